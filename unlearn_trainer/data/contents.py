"""What an item says in one language: a text, a cloze, a question and its answer, or a conversation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

MASK = "<mask>"


class Renderer(Protocol):
    """Turns into the text that a model is asked with."""

    def render(self, turns: Sequence["Turn"], answer: str) -> "Passage": ...


class Passage(NamedTuple):
    """A complete text, of which the characters ``[start, end)`` of ``span`` carry labels (None: all of it)."""

    text: str
    span: tuple[int, int] | None = None


class Rendered(Passage):
    """What a chat template has made, with all its special tokens: none are put around it."""

    __slots__ = ()


class Turn(NamedTuple):
    """What one side says in a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Text:
    """A text, all of which is labelled."""

    text: str

    @property
    def cue(self) -> None:
        return None

    @property
    def target(self) -> Passage:
        return Passage(self.text)

    def further(self) -> list[Passage]:
        return []

    def choices(self) -> list[tuple[Passage, bool]]:
        return []

    def complete(self) -> list[str]:
        return [self.text]


@dataclass(frozen=True)
class Cloze:
    """A prompt with one ``<mask>``; the first answer is the one trained on, every answer counts as right."""

    prompt: str
    answers: tuple[str, ...]
    candidates: tuple[str, ...] = ()

    @property
    def cue(self) -> str:
        return self.prompt

    @property
    def target(self) -> Passage:
        return self.fill(self.answers[0])

    def fill(self, answer: str) -> Passage:
        before, _, after = self.prompt.partition(MASK)
        return Passage(before + answer + after, (len(before), len(before) + len(answer)))

    def choices(self) -> list[tuple[Passage, bool]]:
        """The whole sentence with each candidate filled in, and whether the candidate is right."""
        return [(self.fill(candidate), candidate in self.answers) for candidate in self.candidates]

    def further(self) -> list[Passage]:
        """The sentence with each answer but the first: not trained on, and as much what the row says."""
        return [self.fill(answer) for answer in self.answers[1:]]

    def complete(self) -> list[str]:
        return [self.fill(answer).text for answer in self.answers]


@dataclass(frozen=True)
class QA:
    """A question and its answer, joined by one space.

    A space, because SentencePiece vocabularies turn a newline into one anyway: so all tokenizers see the same text.
    With ``chat`` the question is a user's turn, and the answer the assistant's.
    """

    question: str
    answer: str
    paraphrased_answer: str | None = None
    perturbed_answer: tuple[str, ...] = ()
    paraphrased_question: str | None = None
    chat: "Renderer | None" = field(default=None, compare=False)

    @property
    def cue(self) -> str:
        return self.question

    @property
    def target(self) -> Passage:
        return self.fill(self.answer)

    def fill(self, answer: str) -> Passage:
        if self.chat is not None:
            return self.chat.render((Turn("user", self.question),), answer)
        text = f"{self.question} {answer}"
        return Passage(text, (len(self.question) + 1, len(text)))

    def choices(self) -> list[tuple[Passage, bool]]:
        """The right and the perturbed answers after the question; empty when there is nothing wrong to compare with.

        The right one is the paraphrased answer, or the answer itself where no paraphrase exists (TOFU's real authors).
        """
        if not self.perturbed_answer:
            return []
        right = (self.fill(self.paraphrased_answer or self.answer), True)
        return [right, *((self.fill(answer), False) for answer in self.perturbed_answer)]

    def further(self) -> list[Passage]:
        return []

    def complete(self) -> list[str]:
        return [self.target.text]


@dataclass(frozen=True)
class Conversation:
    """Turns, and what the assistant says to them.

    Args:
        turns: all but the last.
        answer: the last, of the assistant.
        chat: what renders them; they cannot be used without.
    """

    turns: tuple[Turn, ...]
    answer: str
    chat: "Renderer | None" = field(default=None, compare=False)

    @property
    def cue(self) -> str:
        return "\n".join(turn.content for turn in self.turns)

    @property
    def target(self) -> Passage:
        return self.fill(self.answer)

    def fill(self, answer: str) -> Passage:
        if self.chat is None:  # nothing but a comparison of texts asks for it then
            text = f"{self.cue} {answer}"
            return Passage(text, (len(self.cue) + 1, len(text)))
        return self.chat.render(self.turns, answer)

    def further(self) -> list[Passage]:
        return []

    def choices(self) -> list[tuple[Passage, bool]]:
        return []

    def complete(self) -> list[str]:
        return [self.target.text]
