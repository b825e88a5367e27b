"""Questions and conversations as an instruction-tuned model is asked them: through a chat template.

What is to be forgotten is said as an answer to a question that stands in the template; without it another text would
be unlearned. Labels are on the assistant's own words, found by rendering once with the answer and once with a mark in
its place. The tokens that end the turn come after: a model must not forget how to stop.
"""

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import ConfigError, DataError
from .contents import QA, Conversation, Rendered, Turn
from .items import Item

# Stands in the place of an answer; of the private use area, so that it is in no text and no template changes it.
_MARK = "\ue0a7\ue0b3\ue0c1"
# Templates that state the date state this one: rows are the same in every run, and cached.
DATE = datetime.datetime(2025, 1, 1)
_FORMS = ("%Y", "%y", "%m", "%-m", "%B", "%b", "%d", "%-d", "%e", "%A", "%a", "%H", "%I", "%M", "%S", "%p", "%j")
# Takes the place of the function of this name that transformers gives to templates.
_FIXED_DATE = (
    "{%- macro strftime_now(form) -%}{{- form"
    + "".join(f" | replace('{form}', '{DATE.strftime(form)}')" for form in _FORMS)
    + " -}}{%- endmacro -%}"
)
FLAG = "--chat_template"


@dataclass(frozen=True)
class ChatTemplate:
    """Renders turns, as text that holds its special tokens.

    Args:
        tokenizer: whose special tokens the template may name.
        template: in Jinja.
        system_prompt: what the system says before every conversation that does not begin with a system turn.
        source: where the template is from, for messages.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str
    system_prompt: str | None = None
    source: str = "of the tokenizer"

    def __hash__(self) -> int:
        return hash((self.template, self.system_prompt))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChatTemplate) and self.key == other.key

    @property
    def key(self) -> str:
        """A hash of all that decides what a conversation becomes, apart from the conversation."""
        special = sorted(map(str, self.tokenizer.special_tokens_map.items()))
        return hashlib.sha256(repr((self.template, self.system_prompt, str(DATE), special)).encode()).hexdigest()

    def render(self, turns: Sequence[Turn], answer: str) -> Rendered:
        """The conversation with ``answer`` as its last turn, from its first to the token that ends that turn.

        Raises:
            DataError: the template cannot render these turns, or changes the answer.
        """
        marked = self._rendered((*turns, Turn("assistant", _MARK)))
        if marked.count(_MARK) != 1:
            raise DataError(
                f"the chat template ({self.source}) writes an answer {marked.count(_MARK)} times; give one that "
                f"writes it once with {FLAG} FILE, or {FLAG} none"
            )
        before, after = marked.split(_MARK)
        whole = self._rendered((*turns, Turn("assistant", answer)))
        said = next((each for each in (answer, answer.strip()) if whole == before + each + after), None)
        if said is None:
            raise DataError(
                f"the chat template ({self.source}) changes this answer, or what stands around it; write the answer "
                f"as the model says it, or give another template with {FLAG} FILE"
            )
        return Rendered(before + said + self._end_of_turn(after), (len(before), len(before) + len(said)))

    def _end_of_turn(self, after: str) -> str:
        """What follows on an answer, up to the special token that ends the turn."""
        found = [
            after.index(name) + len(name)
            for name in (str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special)
            if name in after
        ]
        return after[: min(found)] if found else after.rstrip()

    def _rendered(self, turns: Sequence[Turn]) -> str:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        if self.system_prompt and messages[0]["role"] != "system":
            messages = self._with_system_prompt(messages)
        return self._apply(messages)

    def _with_system_prompt(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        prompt = str(self.system_prompt)
        if _has_system_role(self):
            return [{"role": "system", "content": prompt}, *messages]
        first = {"role": messages[0]["role"], "content": f"{prompt}\n\n{messages[0]['content']}"}
        return [first, *messages[1:]]

    def _apply(self, messages: list[dict[str, str]]) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    chat_template=(_FIXED_DATE if "strftime_now" in self.template else "") + self.template,
                    tokenize=False,
                )
            )
        except Exception as error:  # a template raises what it likes
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(
                f"the chat template ({self.source}) does not render turns of {roles} ({error}); change the turns, or "
                f"give another template with {FLAG} FILE"
            ) from error


@lru_cache(maxsize=32)
def _has_system_role(chat: ChatTemplate) -> bool:
    """Whether the template shows what a system turn says; some refuse one, some leave it out."""
    try:
        turns = [("system", _MARK), ("user", "a"), ("assistant", "b")]
        return _MARK in chat._apply([{"role": role, "content": content} for role, content in turns])
    except DataError:
        return False


def find_template(
    tokenizer: PreTrainedTokenizerBase, asked: str = "auto", system_prompt: str | None = None
) -> ChatTemplate | None:
    """The chat template that rows go through; None where they are plain text.

    Args:
        tokenizer: of the model.
        asked: ``auto``: the tokenizer's, where it has one; ``none``; or a file with a template in Jinja.
        system_prompt: see :class:`ChatTemplate`.

    Raises:
        ConfigError: a file that cannot be read, or a system prompt without a template.
    """
    if asked == "auto":
        template, source = tokenizer.chat_template, "of the tokenizer"
        if isinstance(template, Mapping):  # several by name
            template = template.get("default")
    elif asked == "none":
        template, source = None, ""
    else:
        source = asked
        try:
            template = Path(asked).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{FLAG} {asked} cannot be read ({error}); name a file, auto or none") from error
    if template is None:
        if system_prompt:
            raise ConfigError("--system_prompt needs a chat template, and there is none; give --chat_template FILE")
        return None
    return ChatTemplate(tokenizer, str(template), system_prompt, source)


def with_template(items: Sequence[Item], chat: ChatTemplate | None) -> list[Item]:
    """The items, whose questions and conversations are rendered by ``chat`` from now on.

    Raises:
        DataError: a conversation where there is no template; names file, line and language. A row that the template
            does not render.
    """
    return [replace(item, content=_with_template(item, chat)) for item in items]


def _with_template(item: Item, chat: ChatTemplate | None) -> dict[str, Any]:
    contents: dict[str, Any] = {}
    for language, content in item.content.items():
        if isinstance(content, Conversation) and chat is None:
            raise DataError(
                f"{item.where(language)}: language {language!r}: a conversation needs a chat template, and there is "
                f"none; give {FLAG} FILE, or rows with question and answer"
            )
        if isinstance(content, QA | Conversation) and chat is not None:
            content = replace(content, chat=chat)
            try:
                _ = content.target
            except DataError as error:
                raise DataError(f"{item.where(language)}: language {language!r}: {error}") from error
        contents[language] = content
    return contents


def label_ends(input_ids: Sequence[int], labels: Sequence[int], ignored: int) -> list[int]:
    """Labels of a rendered row with the tokens after its answer, which end the turn."""
    last = max((place for place, label in enumerate(labels) if label != ignored), default=len(labels))
    return [*labels[: last + 1], *input_ids[last + 1 :]]
