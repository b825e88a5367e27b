"""What every engine runs, in one process group: a run with a save, its resumption, and evaluation.

    python worker.py OUT START ENGINE PRECISION      # alone: the reference
    torchrun --nproc_per_node 2 worker.py ...        # or accelerate launch, or deepspeed

Rank 0 writes OUT/report.json; the final models are in OUT/whole and OUT/resumed.
"""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from tiny import LANGUAGES, tiny_rows
from transformers import AutoModelForCausalLM

from unlearn_trainer.arguments import UnlearnConfig
from unlearn_trainer.engines import start_deepspeed_on_cpu
from unlearn_trainer.trainer import UnlearnTrainer

GLOBAL_BATCH = 4
STEPS, SAVE = 6, 3


def config(out, engine, precision, **changes):
    world = int(os.environ.get("WORLD_SIZE", "1"))
    settings = {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": precision == "bf16",
        "disable_tqdm": True,
        "report_to": [],
        "per_device_train_batch_size": GLOBAL_BATCH // world,
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": SAVE,
        "eval_strategy": "steps",
        "eval_steps": SAVE,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        # With the usual 1e-8 Adam turns the rounding of gradients near zero into full steps.
        "adam_epsilon": 1e-4,
        "forget_weighting": "target",
        "retain_weighting": "primal_dual",
        "weight_update_steps": 2,
        "stop_when_forgotten": False,
        "max_retain_perplexity_ratio": 1e9,
        **changes,
    }
    if engine.startswith("zero"):
        settings["deepspeed"] = str(Path(__file__).resolve().parents[2] / "ds_configs" / f"{engine}.json")
    args = UnlearnConfig(**settings)
    if engine.startswith("zero"):
        start_deepspeed_on_cpu()
    if engine == "fsdp2":
        # Without a GPU accelerate takes the group for plain CPU training and would silently run DDP.
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    return args


def make_trainer(args, start):
    rows = {split: tiny_rows(seed=seed) for seed, split in enumerate(("forget", "retain", "valid"))}

    def load():
        return AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32, attn_implementation="eager")

    return UnlearnTrainer(
        load(), args, rows["forget"], rows["retain"], languages=LANGUAGES, eval_dataset=rows, teacher=load()
    )


def main():
    out, start, engine, precision = Path(sys.argv[1]), *sys.argv[2:5]
    trainer = make_trainer(config(out / "run", engine, precision), start)
    trainer.train()
    wrapper = type(trainer.model_wrapped).__name__
    trainer.save_model(str(out / "whole"))
    report = {
        "world_size": trainer.args.world_size,
        "wrapper": wrapper,
        "logs": [log for log in trainer.state.log_history if "grad_norm" in log],
        "weights": trainer.language_weights.history,
        "before": trainer.language_weights.figures_at_start,
        "after": trainer.measure(),
    }
    rows = trainer.train_sampler
    rows.set_epoch(0)
    mine = [pair for batch in rows for pair in batch]
    gathered = [mine]
    if dist.is_initialized() and trainer.args.world_size > 1:
        gathered = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine)
    report["rows"] = gathered

    resumed = make_trainer(config(out / "run", engine, precision), start)
    resumed.train(resume_from_checkpoint=str(out / "run" / f"checkpoint-{SAVE}"))
    resumed.save_model(str(out / "resumed"))
    report["resumed_weights"] = resumed.language_weights.history
    if trainer.is_world_process_zero():
        (out / "report.json").write_text(json.dumps(report))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
