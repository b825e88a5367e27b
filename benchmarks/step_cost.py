"""What a step of LingTea costs against fine-tuning, against the released way of computing it, and against its floor.

    python benchmarks/step_cost.py --json step_cost.json

Forward and backward; the optimizer's step is in no variant. See ``step_variants.py`` for the variants and
``docs/performance.md`` for how to read the ratios.
"""

import argparse
import contextlib
import math
import tempfile
import time
from collections.abc import Callable
from unittest import mock

from common import flags, in_fresh_process, report, sizes, synchronize, timed_in_turn
from step_variants import StepVariants, step_memory, train_silently

from unlearn_trainer.step.losses import RowLoss, StateLoss, TokenLoss
from unlearn_trainer.trainer import UnlearnTrainer
from unlearn_trainer.weights.callback import LanguageWeightCallback

VARIANTS = ("naive", "ours", "cached", "plain", "floor")
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "bfloat16": 0.05}  # of a loss, relative to the NLL of a random guess


def main() -> None:
    args = flags(__doc__.split("\n")[0]).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        memory = {name: in_fresh_process(step_memory, args, name, folder) for name in VARIANTS}
        variants = StepVariants(args, folder)
        losses: dict[str, float] = {}
        steps = {name: keeping(losses, name, variants.prepare(name)) for name in VARIANTS}
        runs = dict.fromkeys(VARIANTS, args.repeats) | {"naive": math.ceil(args.repeats / 2)}
        seconds = timed_in_turn(steps, runs, before=variants.student.zero_grad)
        check_equal_work(args, variants, losses)
        share = bookkeeping_share(variants, max(2, args.repeats))
    count = sizes(variants.student)
    rows = [
        {
            "variant": name,
            "seconds": seconds[name],
            "tokens_per_second": variants.tokens / seconds[name],
            "peak_memory_bytes": memory[name],
        }
        for name in VARIANTS
    ]
    head, body = count["head"], count["body"]
    ratios = {
        "step_over_floor": seconds["ours"] / seconds["floor"],
        "cached_over_plain": seconds["cached"] / seconds["plain"],
        # Operations a token, in units of 2: a parameter costs 1 forward and 2 backward. With n forget and n retain
        # tokens plain costs 3 (B + H) 2n; cached adds the teacher's head on the retain tokens, H n.
        "cached_over_plain_bound": 1 + head / (6 * (body + head)),
        "naive_over_step_time": seconds["naive"] / seconds["ours"],
        "naive_over_step_memory": memory["naive"] / max(1, memory["ours"]),
        "bookkeeping_share": share,
    }
    print(f"body {body / 1e6:.3g}e6 and head {head / 1e6:.3g}e6 parameters; {variants.tokens} tokens a step\n")
    report(args, rows, ratios, parameters=count, tokens=variants.tokens)


def keeping(losses: dict[str, float], name: str, step: Callable[[], float | None]) -> Callable[[], None]:
    """``step``, which also writes its loss, if it has one, to ``losses[name]``."""

    def run() -> None:
        loss = step()
        if loss is not None:
            losses[name] = loss

    return run


def check_equal_work(args: argparse.Namespace, variants: StepVariants, losses: dict[str, float]) -> None:
    """Ours and cached have to give the naive step's loss.

    Raises:
        AssertionError: they do not.
    """
    scale = math.log(variants.student.get_output_embeddings().weight.shape[0])
    for name in ("ours", "cached"):
        if not abs(losses[name] - losses["naive"]) <= TOLERANCE[args.dtype] * scale:
            raise AssertionError(f"the {name} step has loss {losses[name]}, the naive one {losses['naive']}")


def bookkeeping_share(variants: StepVariants, steps: int) -> float:
    """Share of ``training_step`` that language weights, statistics and logging take in a real training.

    Both weightings adapt and everything is reduced and logged at every step: the most there can be.
    """
    trainer = variants.trainer(
        max_steps=steps + 1,
        forget_weighting="target",
        forget_target="0.0",
        retain_weighting="primal_dual",
        stop_when_forgotten=False,
        weight_update_steps=1,
        logging_strategy="steps",
        logging_steps=1,
    )
    clock = _Clock()
    with contextlib.ExitStack() as stack:
        for owner, names in (
            (UnlearnTrainer, ("_get_num_items_in_batch", "_agree", "log")),
            *((loss, ("result",)) for loss in (TokenLoss, RowLoss, StateLoss)),
            (LanguageWeightCallback, ("add_batch", "on_step_end")),
        ):
            for name in names:
                stack.enter_context(clock.on(owner, name, "bookkeeping"))
        stack.enter_context(clock.on(UnlearnTrainer, "training_step", "step"))
        train_silently(trainer)
    # The first step also measures the head and fills caches.
    return sum(clock.bookkeeping[1:]) / sum(clock.steps[1:])


class _Clock:
    """Seconds inside wrapped methods, step by step; of nested bookkeeping the outermost counts."""

    def __init__(self):
        self.steps: list[float] = []
        self.bookkeeping: list[float] = [0.0]
        self.is_inside = False

    def on(self, owner: type, name: str, kind: str):
        """A context within which calls of ``owner.name`` are timed."""
        method = getattr(owner, name)

        def timed(*args, **kwargs):
            if self.is_inside:
                return method(*args, **kwargs)
            self.is_inside = kind == "bookkeeping"
            synchronize()
            started = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                synchronize()
                spent = time.perf_counter() - started
                self.is_inside = False
                if kind == "step":
                    self.steps.append(spent)
                    self.bookkeeping.append(0.0)
                else:
                    self.bookkeeping[-1] += spent

        return mock.patch.object(owner, name, timed)


if __name__ == "__main__":
    main()
