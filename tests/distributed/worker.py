"""What every engine runs, in one process group: evaluation, a run with a save, and its resumption, case by case.

    python worker.py OUT START ENGINE CASE...        # alone: the reference
    torchrun --nproc_per_node 2 worker.py ...        # or accelerate launch, or deepspeed

Cases: fp32, bf16, lora (fp32 with an adapter, whose base model teaches); methods and methods-lora: a short run of each
method that has its own objective. Rank 0 writes OUT/report.json, by case; the final models are in OUT/CASE/whole and
OUT/CASE/resumed, of the methods in OUT/CASE/METHOD/whole and so on.
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
from helpers.tiny import LANGUAGES, rows_with_companions, tiny_rows
from transformers import AutoModelForCausalLM, TrainerCallback

from unlearn_trainer.config.unlearn_config import UnlearnConfig
from unlearn_trainer.data.collator import COMPANIONS
from unlearn_trainer.engine.engines import start_deepspeed_on_cpu
from unlearn_trainer.errors import ConfigError
from unlearn_trainer.objectives import METHODS
from unlearn_trainer.trainer import UnlearnTrainer

GLOBAL_BATCH = 4
GUARDED = "guarded"  # calibrated with what is done to gradients; each process relearns from rows of its own
STEPS, SAVE = 6, 3
# In fp32 memorization falls within these steps; the others keep away from where a token may turn by rounding.
LEARNING_RATE = {"bf16": 3e-3}


def config(out, engine, case, **changes):
    world = int(os.environ.get("WORLD_SIZE", "1"))
    settings = {
        "output_dir": str(out),
        "use_cpu": True,
        "bf16": case == "bf16",
        "disable_tqdm": True,
        "report_to": [],
        "per_device_train_batch_size": GLOBAL_BATCH // world,
        "max_steps": STEPS,
        "save_strategy": "steps",
        "save_steps": SAVE,
        "eval_strategy": "steps",
        "eval_steps": SAVE,
        "logging_steps": 1,
        "learning_rate": LEARNING_RATE.get(case, 1e-2),
        # With 1e-8 to 1e-6 Adam turns the rounding of single elements of the embedding, whose gradients are near
        # zero, into steps: the final weights agree to 2e-5 only, with this to 3e-7.
        "adam_epsilon": 1e-4,
        # In bf16 as the engine prefers: a file where nothing is sharded.
        "teacher": "resident" if case == "fp32" else "auto",
        "forget_weighting": "target",
        "retain_weighting": "primal_dual",
        "weight_update_steps": 2,
        "retain_eta": 0.1,
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


def make_trainer(args, start, case):
    rows = {split: tiny_rows(seed=seed) for seed, split in enumerate(("forget", "retain", "valid"))}
    if any(map(args.needs_companion, COMPANIONS)):
        rows["forget"] = rows_with_companions(6)

    def load():
        return AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32, attn_implementation="eager")

    model, teacher = load(), load()
    if case.endswith("lora"):
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        adapter = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear")  # as apply_peft makes it
        model, teacher = get_peft_model(model, adapter), None
    return UnlearnTrainer(
        model, args, rows["forget"], rows["retain"], languages=LANGUAGES, eval_dataset=rows, teacher=teacher
    )


class Margins(TrainerCallback):
    """How far each forget token is from turning from hit to miss (in nats, least first), before each step."""

    def __init__(self):
        self.found = []

    @torch.no_grad()
    def on_step_begin(self, args, state, control, model=None, **kwargs):
        margins = []
        for row in tiny_rows(seed=0):
            labels = torch.tensor(row["labels"][1:])
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1][labels != -100].float()
            labels = labels[labels != -100, None]
            label = logits.gather(1, labels)
            margins += (label - logits.scatter(1, labels, -torch.inf).max(1, keepdim=True).values).abs().flatten()
        self.found.append(min(margins).item())


def run_case(out, start, engine, case):
    trainer = make_trainer(config(out / "run", engine, case), start, case)
    # A single batch, before any training: the other rank has none, and no engine has the model yet.
    batch, trainer.evaluator.batch_size = trainer.evaluator.batch_size, 64
    untrained = trainer.measure()
    trainer.evaluator.batch_size = batch
    refused = None
    if engine == "fsdp2":
        try:
            trainer.train()
        except ConfigError as error:
            refused = str(error)
            trainer = make_trainer(config(out / "run", engine, case), start, case)
    margins = Margins()
    if trainer.args.world_size == 1:
        trainer.add_callback(margins)
    trainer.train()
    wrapper = type(trainer.model_wrapped).__name__
    trainer.save_model(str(out / "whole"))
    report = {
        "world_size": trainer.args.world_size,
        "wrapper": wrapper,
        "logs": [log for log in trainer.state.log_history if "grad_norm" in log],
        "weights": trainer.language_weights.history,
        "margins": margins.found,
        "untrained": untrained,
        "refused": refused,
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

    resumed = make_trainer(config(out / "run", engine, case), start, case)
    resumed.train(resume_from_checkpoint=str(out / "run" / f"checkpoint-{SAVE}"))
    resumed.save_model(str(out / "resumed"))
    report["resumed_weights"] = resumed.language_weights.history
    return report


def run_methods(out, start, engine, case):
    report = {}
    surgery = {"method": "calibrated", "relearn_coef": 1.0, "project_forget_gradient": True}
    guarded = [GUARDED] if engine not in ("zero3", "fsdp2") else []
    for method in [*METHODS, *guarded]:
        if method in ("lingtea", "memorize", "retain_only"):
            continue
        changes = {
            "method": method,
            "relearn_coef": 0.0,
            "max_steps": 3,
            "save_steps": 2,
            "eval_strategy": "no",
            "rmu_layer": 1,
        }
        changes |= {"forget_weighting": "uniform", "retain_weighting": None, "learning_rate": 1e-3, "teacher": "auto"}
        if method == GUARDED:
            changes |= surgery
        for name in ("whole", "resumed"):
            trainer = make_trainer(config(out / method / "run", engine, case, **changes), start, case)
            resumed = str(out / method / "run" / "checkpoint-2") if name == "resumed" else None
            trainer.train(resume_from_checkpoint=resumed)
            trainer.save_model(str(out / method / name))
            if name == "whole":
                report[method] = [log for log in trainer.state.log_history if "grad_norm" in log]
    return report


def main():
    out, start, engine, *cases = Path(sys.argv[1]), *sys.argv[2:]
    runs = {case: run_methods if case.startswith("methods") else run_case for case in cases}
    report = {case: run(out / case, start, engine, case) for case, run in runs.items()}
    if PartialState().is_main_process:
        (out / "report.json").write_text(json.dumps(report))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
