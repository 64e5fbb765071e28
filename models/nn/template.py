"""A chat template, rendered so that one can tell where answers begin and where to cut."""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from core.errors import InvalidRequest
from models.nn.messages import Turn

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Answer(NamedTuple):
    """An assistant message in a rendering, by character."""

    turn: int
    start: int | None
    """Where the text ends that serving sends to get this answer; None if that is no cut of it."""
    spans: list[tuple[int, int]]
    """What `{% generation %}` marks as written by the assistant; empty without marks."""


class Rendering(NamedTuple):
    """Text of a conversation, answers in it in order, and where tokens must not span.

    The cuts follow from the text alone, so that the text up to a cut has the cuts before it.
    """

    text: str
    answers: list[Answer]
    cuts: list[int]


class ChatTemplate:
    """A Jinja template in Transformers' dialect, with the names of the tokenizer's tokens."""

    def __init__(self, source: str, special_tokens: Mapping[str, Any]) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens)
        self._has_marks = _GENERATION.search(source) is not None

    def prompt(self, turns: Sequence[Turn]) -> Rendering:
        """Render what serving sends to get the next answer, in time linear in its length.

        `InvalidRequest` carries the template's own complaint, such as roles in a wrong order.
        """
        text, marks = self._text(turns, is_prompt=True)
        return Rendering(text, [], self._cuts(text, marks))

    def conversation(self, turns: Sequence[Turn]) -> Rendering:
        """Render a conversation as it stands, and again up to each learned answer; see `prompt`.

        Other answers are left out, except where they bound the marks of a learned one.
        """
        text, marks = self._text(turns, is_prompt=False)
        cuts = self._cuts(text, marks)
        places = {0, *cuts, len(text)}
        starts: list[tuple[int, int | None]] = []
        for index, turn in enumerate(turns):
            if turn.is_learned or (marks and starts and turn.role == "assistant"):
                start = self._end_of_prompt(turns[:index], text)
                starts.append((index, start if start in places else None))
        answers = []
        for position, (index, start) in enumerate(starts):
            following = [later for _, later in starts[position + 1 :] if later is not None]
            stop = following[0] if following else len(text)
            spans = [] if start is None else [m for m in marks if start <= m[0] < stop]
            answers.append(Answer(index, start, spans))
        return Rendering(text, answers, cuts)

    def _end_of_prompt(self, turns: Sequence[Turn], text: str) -> int | None:
        """Return where these turns' prompt ends in a text that it begins, if it does."""
        try:
            prompt, _ = self._text(turns, is_prompt=True)
        except InvalidRequest:
            # Half a conversation can break a template's rules that the whole keeps.
            return None
        return len(prompt) if text.startswith(prompt) else None

    def _cuts(self, text: str, marks: Sequence[tuple[int, int]]) -> list[int]:
        """Return the ends of all headers of answers, and the starts of all marks."""
        places = {start for start, _ in marks}
        if self._header:
            places |= {found.end() for found in re.finditer(re.escape(self._header), text)}
        return sorted(places - {0, len(text)})

    @cached_property
    def _header(self) -> str:
        """What the template writes right before an answer; empty if that cannot be told."""
        turns = [Turn("user", "probe", is_learned=False)]
        try:
            prompt, plain = (self._text(turns, is_prompt=value)[0] for value in (True, False))
        except InvalidRequest:
            return ""
        if prompt != plain and prompt.startswith(plain):
            return prompt.removeprefix(plain)
        # Some templates end a user's turn in words that call for the answer, asked to or not.
        return prompt.rpartition("probe")[2]

    def _text(self, turns: Sequence[Turn], *, is_prompt: bool) -> tuple[str, list[tuple[int, int]]]:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            rendered, marks = render_jinja_template(
                [messages],
                chat_template=self._source,
                return_assistant_tokens_mask=self._has_marks,
                add_generation_prompt=is_prompt,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            raise InvalidRequest(
                f"The base's chat template refuses these messages: {error}",
                code="invalid_messages",
                param="messages",
            ) from error
        return rendered[0], marks[0] if self._has_marks else []
