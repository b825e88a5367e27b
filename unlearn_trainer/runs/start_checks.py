"""What the end of a run needs, tried at its start, so that no training is lost to a file name or a full disk."""

import shutil
import tempfile
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file

from ..config.arguments import DataArguments, ModelArguments
from ..config.finished import RESULTS
from ..config.unlearn_config import UnlearnConfig
from ..errors import ConfigError
from ..files import write_json
from ..memory.estimate import OPTIMIZER_BYTES, build_on_meta, optimizer_name
from ..model.loading import load_config
from .environment import configuration

TRIAL = ".trial-"  # beginning of the name of the folder that is made and removed again


def try_the_end(model_args: ModelArguments, data_args: DataArguments, args: UnlearnConfig) -> None:
    """Write all but the weights as the end of the run will, and see whether the disk holds these; leave nothing.

    A tokenizer that cannot be saved is refused where it is loaded. Call it on every process: the first one tries, and
    all refuse together.

    Raises:
        ConfigError: something could not be saved at the end; says what, and the remedy.
    """
    problem = _first_problem(model_args, data_args, args) if PartialState().is_main_process else None
    (problem,) = broadcast_object_list([problem])
    if problem is not None:
        raise ConfigError(problem)


def _first_problem(model_args, data_args, args) -> str | None:
    output = Path(args.output_dir)
    makes_models = args.do_train or args.memorize_first or args.train_never_seen
    what = f"--output_dir {output}"
    try:
        with tempfile.TemporaryDirectory(prefix=TRIAL, dir=output) as place:
            what = f"{RESULTS} in --output_dir {output}"
            write_json(Path(place) / RESULTS, {"config": configuration(model_args, data_args, args)})
            if makes_models:
                what = f"the configuration of --model_name_or_path {model_args.model_name_or_path}"
                load_config(model_args).save_pretrained(place)
                what = f"weights in --output_dir {output}"
                save_file({"trial": torch.zeros(1)}, Path(place) / "model.safetensors")
    except ConfigError as error:  # told by all processes, as whatever else the first one finds
        return str(error)
    except Exception as error:  # tokenizers, configurations and file systems each have their own
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"{what} could not be saved at the end of the run: {reason}. Mend it there, or choose another folder"
    try:
        return _lack_of_space(model_args, args) if makes_models else None
    except (ConfigError, OSError) as error:
        return str(error)


def _lack_of_space(model_args, args) -> str | None:
    needed = bytes_to_write(model_args, args)
    free = shutil.disk_usage(args.output_dir).free
    if needed <= free:
        return None
    return (
        f"--output_dir {args.output_dir}: the models and checkpoints of this run take {needed / 1e9:.3g} GB, and "
        f"{free / 1e9:.3g} GB are free there; choose a folder on a larger disk, fewer checkpoints with "
        "--save_total_limit 1, or none with --save_strategy no"
    )


def bytes_to_write(model_args: ModelArguments, args: UnlearnConfig) -> int:
    """Bytes of the models that a run leaves, and of the checkpoint it has at least, counted from the configuration.

    A checkpoint appears before an older one goes, so there are ``save_total_limit + 1`` for a moment; without a limit
    only one is counted. The teacher's answers are counted where they are written (:mod:`.teacher.cache`). Adapters are
    too small to count.
    """
    try:
        model = build_on_meta(model_args)
    except (RuntimeError, ValueError, TypeError, NotImplementedError):  # what is built from values cannot be counted
        return 0
    parameters = list(model.parameters())
    whole = sum(parameter.numel() * parameter.element_size() for parameter in parameters)
    models = args.memorize_first + args.train_never_seen
    if args.do_train and (model_args.merge_adapter or not model_args.use_peft):
        models += 1
    needed = models * whole
    if args.do_train and args.save_strategy != "no" and not model_args.use_peft:
        moments = 0 if args.save_only_model else OPTIMIZER_BYTES.get(optimizer_name(args), 8)
        checkpoint = whole + moments * sum(parameter.numel() for parameter in parameters)
        needed += checkpoint * ((args.save_total_limit or 0) + 1)
    return needed
