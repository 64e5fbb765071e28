"""A prompt that is given back: its text as its caller wrote it, and the tokens that spell it."""

from models.nn.chat import Renderer
from models.spec import SamplingSpec
from models.wire import TokenChoice
from worker.engine.demonstrations import Prompt
from worker.engine.sampler import Drawn
from worker.engine.scheduler import Chunk
from worker.engine.sequence import Choice, Scored
from worker.engine.text import BytesOf, describe


class Echo:
    """Knows what of a row's prompt is its caller's: no demonstrations, nothing that was added."""

    def __init__(self, renderer: Renderer, *, bytes_of: BytesOf) -> None:
        self._renderer = renderer
        self._bytes_of = bytes_of

    def begin(self, choice: Choice) -> str:
        """Return the text of a prompt, before any of its tokens is told.

        Their first may begin with a space that is not in it, but stands for the start of a text.
        """
        added = self._added(choice)
        own = [token for token in choice.prompt[choice.own :] if token not in added]
        text = choice.request.source.text
        if text is None:
            text = self._renderer.decode(own)
        spelled = b"".join(map(self._bytes_of, own))
        choice.spaced = _spaces(spelled) > _spaces(text.encode())
        return text

    def tokens(self, choice: Choice, chunk: Chunk, scored: list[Drawn]) -> list[TokenChoice]:
        """Return those of a chunk, if they are wanted; nothing is said to precede the first one."""
        if not echoes_tokens(choice.sampling):
            return []
        begins = chunk.start <= choice.own < chunk.stop
        first = [Drawn(choice.prompt[choice.own])] if begins else []
        return [self._describe(choice, drawn) for drawn in first + scored]

    def _describe(self, choice: Choice, drawn: Drawn) -> TokenChoice:
        if drawn.token in self._added(choice):
            return describe(drawn, bytes_of=self._bytes_of, silent=True)
        bytes_of = self._behind_space if choice.spaced else self._bytes_of
        choice.spaced = False
        return describe(drawn, bytes_of=bytes_of, silent=False)

    def _behind_space(self, token: int) -> bytes:
        return self._bytes_of(token).removeprefix(b" ")

    def _added(self, choice: Choice) -> frozenset[int]:
        """Return the control tokens which a prompt has from the renderer: all, unless given as ids.

        Text that a user wrote never becomes one.
        """
        return frozenset() if choice.request.source.ids else self._renderer.control_ids


def echoes_tokens(sampling: SamplingSpec) -> bool:
    """Say whether a prompt is given back token by token."""
    return sampling.echo and sampling.logprobs


def scored_for_echo(prompt: Prompt) -> list[Scored]:
    """Return the request's own tokens but the first, each behind the row before it."""
    return [(row, prompt.ids[row + 1]) for row in range(prompt.own, len(prompt.ids) - 1)]


def _spaces(text: bytes) -> int:
    """Return how many spaces a text begins with."""
    return len(text) - len(text.lstrip(b" "))
