"""Language weights in a training: the sums of its batches, the events at which they move, and its checkpoints."""

import dataclasses
from collections.abc import Mapping

import torch
from accelerate.utils import reduce
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from .state import CHECKPOINTED, SIDES, SUMS, LanguageWeights, check_saved


class LanguageWeightCallback(LanguageWeights, TrainerCallback, ExportableState):
    """The language weights of a Trainer, which adds every batch's sums and every evaluation's figures.

    It is the state, and does not only hold it, because a Trainer restores a callback by setting the attributes that
    :meth:`state` gave it, one by one, on a new instance: look it up in ``trainer.callback_handler`` each time.
    Checkpoints know it by the name of this class.

    A training begins with it between the caller's callbacks and ``RunEvents``; resuming puts it behind both. So
    neither may rely on the other having been called first in the same event, and both look for a ``stop_reason``.
    """

    _batch_sums: torch.Tensor | None = None  # [sides, languages, SUMS] of this process, since the last reduction

    def add_batch(self, side: str, language: torch.Tensor, figures: Mapping[str, torch.Tensor]) -> None:
        """Add one micro-batch on the device, without a host sync.

        Args:
            side: ``forget`` or ``retain``.
            language: [rows] language of each row.
            figures: each of :data:`SUMS` but ``rows``, a tensor [rows]; without a teacher no ``teacher_probability``.
        """
        sums = self.prepare(language.device)
        columns = [figures.get(name) for name in SUMS]
        columns[SUMS.index("rows")] = figures["tokens"] > 0
        table = torch.stack([torch.zeros_like(language) if c is None else c for c in columns], 1)
        sums[SIDES.index(side)].index_add_(0, language, table.to(sums.dtype))

    def prepare(self, device: torch.device) -> torch.Tensor:
        """The sums, allocated on every process, also where a language or a side has not been seen yet."""
        if self._batch_sums is None:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            shape = (len(SIDES), len(self.languages), len(SUMS))
            self._batch_sums = torch.zeros(shape, dtype=dtype, device=device)
        return self._batch_sums

    def reduce_batches(self) -> None:
        """Move the sums of every process's batches into ``window``, the same on all of them; a collective."""
        if self._batch_sums is None:
            return
        self.add_to_window(reduce(self._batch_sums.contiguous(), reduction="sum").tolist())
        self._batch_sums.zero_()

    def update(self, step: int) -> None:
        """Move the weights by the batches of all processes since the last update; call it on every process."""
        self.reduce_batches()
        self.move_by_window(step)

    # ---- events -----------------------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        self.prepare(args.device)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.policy.weight_update_steps == 0:
            self.update(state.global_step)
            if self.stop_reason:
                control.should_training_stop = True

    def on_evaluate(self, args, state, control, **kwargs):
        self.stop_if_forgotten()
        if self.stop_reason and state.global_step:
            control.should_training_stop = True

    # ---- checkpoints ------------------------------------------------------------------------------------------------

    def state(self) -> dict:
        """Everything a resumed run needs, as JSON; call :meth:`reduce_batches` on all processes before."""
        given = {"languages": self.languages, "policy": dataclasses.asdict(self.policy)}
        return {"args": given, "attributes": {name: getattr(self, name) for name in CHECKPOINTED}}

    @classmethod
    def from_state(cls, state: dict) -> "LanguageWeightCallback":
        """The weights as :meth:`state` gave them.

        Raises:
            ConfigError: something is missing, unknown or of another form.
        """
        check_saved(state)
        return super().from_state(state)
