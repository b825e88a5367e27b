"""run_unlearn.py where FSDP2 runs without a GPU, or where a process is to fail.

Environment: FAULT is what happens to FAULT_RANK at optimizer step 2: raise, kill (SIGKILL), or refuse (a ConfigError).
unsavable is a ConfigError when it tries the end of the run, ahead of the first step.
"""

import os
import signal

from accelerate import PartialState
from accelerate.utils import DistributedType
from transformers import TrainerCallback

from unlearn_trainer import cli
from unlearn_trainer.config.unlearn_config import UnlearnConfig
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.runs import run, start_checks


class Fault(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step != 2 or os.environ["RANK"] != os.environ["FAULT_RANK"]:
            return
        match os.environ["FAULT"]:
            case "raise":
                raise RuntimeError("injected")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "refuse":
                raise ConfigError("injected")


class FaultyTrainer(run.UnlearnTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, callbacks=[Fault()], **kwargs)


if __name__ == "__main__":
    if os.environ.get("FAULT") == "unsavable":
        load = start_checks.load_config

        def refuse(*given):
            if os.environ["RANK"] == os.environ["FAULT_RANK"]:
                raise ConfigError("injected")
            return load(*given)

        start_checks.load_config = refuse
    elif "FAULT" in os.environ:
        run.UnlearnTrainer = FaultyTrainer
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        initialise = UnlearnConfig.__post_init__

        def take_it_for_gpus(config):
            # Without a GPU accelerate takes the group for plain CPU training and would silently run DDP.
            initialise(config)
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

        UnlearnConfig.__post_init__ = take_it_for_gpus
    cli.main()
