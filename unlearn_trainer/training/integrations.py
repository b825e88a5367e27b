"""What leaves this machine: the result, to the Hub, and figures, to trackers; nothing that knows the forget rows."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from huggingface_hub import HfApi
from transformers import PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import HubStrategy

from ..config.unlearn_config import UnlearnConfig
from ..console import say
from ..errors import ConfigError

# All that may be uploaded, by its name in the output folder; whatever else lies there stays.
OF_RESULT = (
    *("config.json", "generation_config.json", "model.safetensors", "model-?????-of-?????.safetensors"),
    *("model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors"),
    *("README.md", "results.json", "report.md", "report.html"),
)
OF_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
# A card with this in it was written by transformers, and not by a person.
GENERATED = "generated automatically"

# Trackers that can be told to take models or checkpoints along, by what, and what they do when nothing is said.
TAKES_MODELS = {
    "wandb": ("WANDB_LOG_MODEL", "false"),
    "mlflow": ("HF_MLFLOW_LOG_ARTIFACTS", "false"),
    "dagshub": ("HF_DAGSHUB_LOG_ARTIFACTS", "false"),
    "comet_ml": ("COMET_LOG_ASSETS", "false"),
    "dvclive": ("HF_DVCLIVE_LOG_MODEL", "false"),
    "clearml": ("CLEARML_LOG_MODEL", "true"),
    "swanlab": ("SWANLAB_LOG_MODEL", "false"),
}
NOTHING = ("", "0", "false", "no", "off", "n", "f", "none")


def check_integrations(
    args: UnlearnConfig, *, merged: bool = False, own_start: bool = False, show_texts: bool = False
) -> None:
    """Refuse at the start what would send away too much, or fail hours later; call it on every process.

    Args:
        args: of the run.
        merged: whether the result holds whole weights, and not an adapter alone.
        own_start: whether the model that it starts from is made by this run.
        show_texts: whether results and report hold texts of the splits.

    Raises:
        ConfigError: the repository of ``--push_to_hub`` cannot be made; a tracker would take models along, has
            nobody logged in, or cannot be reached.
    """
    for tracker in args.trackers:
        _check_takes_nothing_along(tracker)
    if "wandb" in args.trackers:
        _log_in_to_wandb()
    if "mlflow" in args.trackers:
        _reach_mlflow()
    if not args.push_to_hub:
        return
    if not args.do_train:
        raise ConfigError("--push_to_hub uploads what --do_train makes; add --do_train, or leave it out")
    if show_texts:
        raise ConfigError(
            "--push_to_hub uploads results and report, and with --show_texts they quote the splits; leave one of them "
            "out"
        )
    make_repository(args)
    strategy = HubStrategy(args.hub_strategy).value
    if strategy in ("checkpoint", "all_checkpoints"):
        say(
            f"--hub_strategy {strategy}: checkpoints stay on this machine, because they may know what "
            "is to be forgotten and a repository keeps what was once in it; the result is uploaded at the end"
        )
    if own_start and not merged:
        say(
            "--push_to_hub: the uploaded adapter is for the model that --memorize_first makes, which stays on this "
            "machine; with --merge_adapter a whole model is uploaded"
        )


def make_repository(args: UnlearnConfig) -> str:
    """The id of the repository of ``--push_to_hub``, made where there is none; call it on every process.

    Raises:
        ConfigError: it cannot be made.
    """
    name = args.hub_model_id or args.folder.absolute().name
    api = HfApi(token=args.hub_token)
    made, problem = _by_the_first_process(
        lambda: str(api.create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id)
    )
    if problem is not None:
        raise ConfigError(
            f"--push_to_hub: the repository {name} cannot be made ({problem}); see that the Hub can be reached, that "
            "--hub_model_id is a name of yours, and that you are logged in (`hf auth login`); or leave it out"
        )
    return made


class OnlyResultToHub(Trainer):
    """A Trainer of which what goes to the Hub is on a list, and a checkpoint is not."""

    args: UnlearnConfig
    processing_class: PreTrainedTokenizerBase | None
    hub_model_id: str | None  # type: ignore[assignment]  # transformers names no type beside its first value, None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        self.hub_model_id = make_repository(self.args)
        self.push_in_progress = None

    def _repository(self) -> str:
        """The id of the repository, which is made where that was not done at the start."""
        if self.hub_model_id is None:
            self.hub_model_id, self.push_in_progress = make_repository(self.args), None
        return self.hub_model_id

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: a model that is half done knows half of what is to be forgotten, and a commit stays."""

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """Save the model and upload the result; see :meth:`push_result`."""
        self.save_model(_internal_call=True)
        return self.push_result(commit_message, blocking, token, revision, private, **card)

    def push_result(
        self,
        commit_message: str | None = "Unlearned model",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """Upload the model, tokenizer, card, results and report that lie in the output folder, and nothing else.

        Args:
            commit_message, blocking, token, revision, private, card: as those of ``Trainer.push_to_hub``.

        Returns:
            The commit, or a future of it; None on other processes than the first.

        Raises:
            ConfigError: it cannot be uploaded; names the folder.
        """
        repository = self._repository()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if not self.is_world_process_zero():
            return None
        output = self.args.folder
        readme = output / "README.md"
        if not readme.exists() or GENERATED in readme.read_text(encoding="utf-8", errors="replace"):
            self.create_model_card(model_name=card.pop("model_name", repository.split("/")[-1]), **card)
        api = HfApi(token=token or self.args.hub_token)
        where = {"revision": revision or self.args.hub_revision, "commit_message": commit_message}
        files = files_to_upload(output, self.processing_class)
        if not blocking:
            return api.run_as_future(_upload, api, repository, output, files, **where)
        return _upload(api, repository, output, files, **where)


def push_folder(args: UnlearnConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Upload the result of a run as it lies in the output folder, and nothing else; call it on every process.

    Raises:
        ConfigError: it cannot be uploaded; names the folder.
    """
    repository = make_repository(args)
    if PartialState().is_main_process:
        where = {"revision": args.hub_revision, "commit_message": "Unlearned model"}
        _upload(HfApi(token=args.hub_token), repository, args.folder, files_to_upload(args.folder, tokenizer), **where)


def files_to_upload(folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> list[str]:
    """Names of the files in ``folder`` that are the result; those of the stages, caches and checkpoints are not."""
    allowed = [*OF_RESULT, *OF_TOKENIZER, *getattr(tokenizer, "vocab_files_names", {}).values()]
    paths = [path for pattern in allowed for path in folder.glob(pattern) if path.is_file()]
    return sorted({path.relative_to(folder).as_posix() for path in paths})


def _upload(api: HfApi, repository: str, folder: Path, files: Sequence[str], **where):
    with tempfile.TemporaryDirectory() as place:
        for name in files:
            link = Path(place) / name
            link.parent.mkdir(exist_ok=True)
            link.symlink_to((folder / name).resolve())
        try:
            return api.upload_folder(repo_id=repository, folder_path=place, **where)
        except Exception as error:  # the HTTP client has many of its own
            listed = " ".join(files)
            raise ConfigError(
                f"--push_to_hub: {repository} could not be uploaded to ({' '.join(str(error).split())}); all of it is "
                f"in {folder}: upload it with `hf upload {repository} {folder} --include {listed}`"
            ) from error


def _check_takes_nothing_along(tracker: str) -> None:
    if tracker == "flyte":
        raise ConfigError(
            "--report_to flyte takes checkpoints along, which know what is to be forgotten; choose another, or none"
        )
    variable, by_itself = TAKES_MODELS.get(tracker, ("", "false"))
    value = os.environ.get(variable, by_itself)
    if value.lower() not in NOTHING:
        raise ConfigError(
            f"--report_to {tracker} with {variable}={value} would take models along, which know what is to be "
            f"forgotten; set {variable}=false"
        )


def _log_in_to_wandb() -> None:
    """Let W&B ask for its key now, at a terminal, and not after the stages; elsewhere it must have one."""
    import wandb

    _, problem = _by_the_first_process(lambda: bool(wandb.login()))
    if problem is not None:
        raise ConfigError(
            f"--report_to wandb: no login ({problem}); run `wandb login`, set WANDB_API_KEY, or keep the "
            "figures on this machine with WANDB_MODE=offline"
        )


def _reach_mlflow() -> None:
    """Ask MLflow for an experiment now; its callback asks for the first time when the training begins."""
    import mlflow

    retries = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"  # some minutes of them, unless it is said
    earlier = os.environ.get(retries)
    os.environ.setdefault(retries, "1")
    try:
        _, problem = _by_the_first_process(lambda: bool(mlflow.MlflowClient().search_experiments(max_results=1)))
    finally:
        if earlier is None:
            del os.environ[retries]
    if problem is not None:
        raise ConfigError(
            f"--report_to mlflow: it cannot be reached ({problem}); set MLFLOW_TRACKING_URI to a server that "
            "answers or a folder, or leave it out"
        )


def _by_the_first_process(call: Callable[[], object]) -> list:
    """What ``call`` returns on the first process and None, or None and what it fails with; the same on all."""
    returned, problem = None, None
    if PartialState().is_main_process:
        try:
            returned = call()
        except Exception as error:  # HTTP clients, tokens and names each have errors of their own
            problem = " ".join(str(error).split()) or type(error).__name__
    return broadcast_object_list([returned, problem])
