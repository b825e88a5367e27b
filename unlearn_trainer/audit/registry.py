"""The checks of an audit: which there are, and on which models and data each can be run."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from .arguments import check_names
from .checks.knowledge import generation, probing, truth_ratio, utility
from .checks.logit_lens import logit_lens
from .checks.memorization import memorization
from .checks.prompts import prompts
from .checks.quantization import quantization
from .checks.relearned import relearning
from .checks.steering import steering
from .results import Result
from .subject import AUDITED, BEFORE, NEVER_SEEN, Subject

ALL = (NEVER_SEEN, BEFORE, AUDITED)


@dataclasses.dataclass(frozen=True)
class Check:
    """One kind of measurement.

    Args:
        name: what ``--audit_checks`` and the report call it.
        run: maps a :class:`Subject` to a :class:`Result`; see docs/audit.md for its form in the file.
        models: which of the models it is run on.
        is_attack: whether it does something to the model or its prompts.
        kinds: of rows it is for; None for all.
        wants: other models that it cannot do without.
        settings: names of the flags that decide its result.
    """

    name: str
    run: Callable[[Subject], Result]
    models: tuple[str, ...] = ALL
    is_attack: bool = False
    kinds: frozenset[str] | None = None
    wants: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()

    def obstacle(self, subjects: Mapping[str, Subject]) -> str | None:
        """Why it cannot be run on these models and data; None where it can."""
        audited = subjects[AUDITED]
        if self.kinds is not None and not self.kinds & {item.kind for item in audited.items["forget"]}:
            return f"is for {' and '.join(sorted(self.kinds))} rows"
        missing = [name for name in self.wants if name not in subjects]
        if missing:
            flags = {BEFORE: "--model_before", NEVER_SEEN: "--never_seen_model"}
            return "needs " + " and ".join(flags[name] for name in missing)
        return None


CHECKS = {
    check.name: check
    for check in (
        Check("memorization", memorization),
        Check("probing", probing, kinds=frozenset({"cloze", "qa"})),
        Check("truth_ratio", truth_ratio, kinds=frozenset({"qa"})),
        Check("generation", generation),
        Check("utility", utility, models=(BEFORE, AUDITED)),
        Check("prompts", prompts, is_attack=True),
        Check("quantization", quantization, is_attack=True),
        Check("logit_lens", logit_lens, is_attack=True),
        # A random direction needs no second look, and before is where the direction leads to.
        Check("steering", steering, models=(NEVER_SEEN, AUDITED), is_attack=True, wants=(BEFORE,)),
        # The model before has all of it already.
        Check(
            "relearning",
            relearning,
            models=(NEVER_SEEN, AUDITED),
            is_attack=True,
            settings=(
                "audit_relearn_languages",
                "audit_relearn_steps",
                "audit_relearn_batch_size",
                "audit_relearn_learning_rate",
                *("optim", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm"),
            ),
        ),
    )
}


def chosen_checks(names: Sequence[str] | None) -> list[Check]:
    """The checks of ``--audit_checks``, in the order they are run; memorization is always among them.

    Raises:
        ConfigError: there is no such check.
    """
    check_names(names, CHECKS)
    return [check for check in CHECKS.values() if not names or check.name in names or check.name == "memorization"]
