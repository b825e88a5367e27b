"""What a run prints: the figures that fit on a line; trackers and the log history get all of them."""

from transformers.trainer_callback import PrinterCallback, ProgressCallback


def compact(logs: dict | None) -> dict:
    """Without single languages and weights."""
    logs = logs or {}
    if "eval_runtime" not in logs:
        return {key: value for key, value in logs.items() if not key.startswith("weights/")}
    shown = ("unlearning_score", "forget_worst_memorization_accuracy", "retain_perplexity", "valid_perplexity")
    return {key: value for key, value in logs.items() if key.removeprefix("eval_") in (*shown, "epoch")}


class CompactProgress(ProgressCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, logs=compact(logs), **kwargs)


class CompactPrinter(PrinterCallback):
    def on_log(self, args, state, control, logs=None, **kwargs):
        super().on_log(args, state, control, logs=compact(logs), **kwargs)
