"""A chat template, rendered so that one can tell where answers begin and where to cut."""

import re
from collections.abc import Mapping, Sequence
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
    """Where the text ends that serving sends to get this answer; None if it is not a prefix."""
    spans: list[tuple[int, int]]
    """What `{% generation %}` marks as written by the assistant; empty without marks."""


class Rendering(NamedTuple):
    """Text of a conversation and its answers in order."""

    text: str
    answers: list[Answer]

    @property
    def cuts(self) -> list[int]:
        """Where tokens must not span: the starts of answers and of marks."""
        starts = {answer.start for answer in self.answers if answer.start is not None}
        starts |= {start for answer in self.answers for start, _ in answer.spans}
        return sorted(starts - {0, len(self.text)})


class ChatTemplate:
    """A Jinja template in Transformers' dialect, with the names of the tokenizer's tokens."""

    def __init__(self, source: str, special_tokens: Mapping[str, Any]) -> None:
        self._source = source
        self._special_tokens = dict(special_tokens)
        self._has_marks = _GENERATION.search(source) is not None

    def render(self, turns: Sequence[Turn], *, is_prompt: bool) -> Rendering:
        """Render a conversation, as a prompt for the next answer or as it stands.

        `InvalidRequest` carries the template's own complaint, such as roles in a wrong order.
        """
        text, marks = self._text(turns, is_prompt=is_prompt)
        starts: list[tuple[int, int | None]] = []
        for index, turn in enumerate(turns):
            if turn.role == "assistant":
                prompt = self._prompt_before(turns[:index])
                is_prefix = prompt is not None and text.startswith(prompt)
                starts.append((index, len(prompt) if prompt is not None and is_prefix else None))
        answers = []
        for position, (index, start) in enumerate(starts):
            following = [later for _, later in starts[position + 1 :] if later is not None]
            stop = following[0] if following else len(text)
            spans = [] if start is None else [m for m in marks if start <= m[0] < stop]
            answers.append(Answer(index, start, spans))
        return Rendering(text, answers)

    def _prompt_before(self, turns: Sequence[Turn]) -> str | None:
        try:
            return self._text(turns, is_prompt=True)[0]
        except InvalidRequest:
            # Half a conversation can break a template's rules that the whole keeps.
            return None

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
