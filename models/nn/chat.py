"""Text to token ids and back: the ONE renderer of training, serving and previews.

Two promises. Text that a user wrote never becomes a control token: every control string in it is
marked, and what the template makes of it is cut at the marks before it is tokenised. And the ids
that training sees up to an answer are the ids that serving will send: every rendering is cut
where an answer begins, and no token spans a cut.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer

from core.errors import InvalidRequest
from models.nn.marked_text import MarkedText, Tokens
from models.nn.messages import Message, Turn, check_text, normalise, unused_character
from models.nn.spelling import spell_bytes, spell_text
from models.nn.template import Answer, ChatTemplate, Rendering


class Example(NamedTuple):
    """Token ids, and for each whether it is a target of the loss."""

    ids: list[int]
    labelled: list[bool]


class Renderer:
    """A tokenizer and its chat template."""

    def __init__(
        self, tokenizer: Any, *, stop_ids: Iterable[int] = (), digest: str | None = None
    ) -> None:
        """Wrap a fast Hugging Face tokenizer; `stop_ids` end an answer besides its own eos."""
        self.tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        source = tokenizer.chat_template
        self._template = source and ChatTemplate(source, tokenizer.special_tokens_map)
        self._added = tokenizer.added_tokens_decoder
        control = [token.content for token in self._added.values() if token.special]
        if tokenizer.eos_token_id is None or any(len(text) < 2 for text in control):
            raise InvalidRequest(
                "A base's tokenizer needs an eos token, and control tokens of two characters up.",
                code="unsupported_base",
                param="base",
            )
        self.text = MarkedText(self._backend, control=control)
        """Makes tokens of what users wrote, and says how many a text can have."""
        self._stop_ids = frozenset(stop_ids)
        self.digest = digest or _digest(self._backend.to_str().encode(), source)

    @classmethod
    def load(cls, folder: Path) -> "Renderer":
        """Read a base's tokenizer, template and the ids its authors stop generation at."""
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        stop_ids: list[int] = []
        if (path := folder / "generation_config.json").is_file():
            eos = json.loads(path.read_bytes()).get("eos_token_id")
            stop_ids = eos if isinstance(eos, list) else [eos] if eos is not None else []
        digest = _digest((folder / "tokenizer.json").read_bytes(), tokenizer.chat_template)
        return cls(tokenizer, stop_ids=stop_ids, digest=digest)

    @property
    def eos_id(self) -> int:
        """The id that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends an answer: eos, the base's stop ids, the template's end of turn."""
        return self._stop_ids | {self.eos_id} | self._end_of_turn()

    @cached_property
    def control_ids(self) -> frozenset[int]:
        """Every id of a control token; no text that a user wrote becomes one."""
        return frozenset(index for index, token in self._added.items() if token.special)

    def prompt(self, messages: Sequence[Message], *, most: int | None = None) -> list[int]:
        """Return the ids after which the next answer is to be written; `most` is as in `encode`."""
        template, turns, mark = self._prepare(normalise(messages))
        return self._tokenise(template.prompt(turns), mark, most=most)[0].ids

    def example(self, messages: Sequence[Message]) -> Example:
        """Return a conversation's ids, labelled in the answers whose weight is not zero.

        An answer's end of turn is labelled too, what the template puts after it is not. For each
        labelled answer the ids before it are `prompt` of the messages before it; a template that
        breaks this is an `InvalidRequest`, since serving would differ from training.
        """
        turns = normalise(messages)
        template, defused, mark = self._prepare(turns)
        rendering = template.conversation(defused)
        tokens, positions = self._tokenise(rendering, mark)
        labelled = [False] * len(tokens.ids)
        for answer in rendering.answers:
            if turns[answer.turn].is_learned:
                for index in self._labels(answer, tokens, positions):
                    labelled[index] = True
        return Example(tokens.ids, labelled)

    def completion_example(self, prompt: str, completion: str) -> Example:
        """Return a prompt and its completion; the completion and the eos after it are labelled."""
        head = self.completion_prompt(prompt)
        (tail,) = self.completions(prompt, [completion])
        ids = [*head, *tail]
        return Example(ids, [index >= len(head) for index in range(len(ids))])

    def completions(self, prompt: str, completions: Sequence[str]) -> Iterator[list[int]]:
        """Yield what `completion_example` labels of each completion; the prompt is read once."""
        mark = unused_character((prompt, *completions))
        before = self.text.defuse(prompt, mark)
        alone = self.text.tokens(before, mark).ids
        for completion in completions:
            after = self.text.defuse(completion, mark)
            yield [*self.text.behind(before, alone, after, mark, most=None).ids, self.eos_id]

    def completion_prompt(self, prompt: str, *, most: int | None = None) -> list[int]:
        """Return a prompt's ids; an empty one begins as a text does after another's end."""
        return self.encode(prompt, most=most) or [self.eos_id]

    def text_example(self, text: str) -> Example:
        """Return a text and eos; all but the first token are labelled, as nothing is before it."""
        ids = [*self.encode(text), self.eos_id]
        return Example(ids, [index > 0 for index in range(len(ids))])

    def encode(self, text: str, *, most: int | None = None) -> list[int]:
        """Return the ids of a plain text, after the base's begin token if it has one.

        Of a text of far more than `most` they may be those of its start, which outgrow it too.
        """
        mark = unused_character((check_text(text, param="prompt"),))
        marked = self.text.defuse(text, mark)
        return [*self.begin_ids, *self.text.start(marked, mark, most=most).ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, control tokens included."""
        return str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))

    @cached_property
    def spellings(self) -> dict[int, bytes]:
        """The bytes of every token, which need not be whole characters.

        Finding them takes 0.3 s for some 50,000.
        """
        decoder = json.dumps(json.loads(self._backend.to_str())["decoder"])
        spell = spell_bytes if '"ByteLevel"' in decoder else spell_text
        added = {index: str(token.content).encode() for index, token in self._added.items()}
        last = max(self._backend.get_vocab().values())
        pieces = ((index, self._backend.id_to_token(index)) for index in range(last + 1))
        return {index: spell(piece) for index, piece in pieces if piece is not None} | added

    @cached_property
    def begin_ids(self) -> list[int]:
        """The ids that a plain text begins with, if the base has such."""
        added: list[int] = self._backend.encode("").ids
        return [index for index in added if index == self.tokenizer.bos_token_id]

    def _end_of_turn(self) -> frozenset[int]:
        """Return the control token with which the template closes an answer."""
        if self._template is None:
            return frozenset()
        probes = [
            Turn("user", "probe", is_learned=False),
            Turn("assistant", "probe", is_learned=True),
        ]
        template, turns, mark = self._prepare(probes)
        rendering = template.conversation(turns)
        start = rendering.answers[0].start
        if start is None:
            return frozenset()
        tokens, positions = self._tokenise(rendering, mark)
        after = tokens.ids[positions[start] :]
        found = [index for index in after if index in self.control_ids]
        return frozenset(found[:1])

    def _prepare(self, turns: Sequence[Turn]) -> tuple[ChatTemplate, list[Turn], str]:
        """Return the template, the turns for it with a mark in every control string, the mark."""
        if self._template is None:
            raise InvalidRequest(
                "This base has no chat template; use prompts and completions.",
                code="no_chat_template",
                param="messages",
            )
        mark = unused_character(turn.content for turn in turns)
        defused = [turn._replace(content=self.text.defuse(turn.content, mark)) for turn in turns]
        return self._template, defused, mark

    def _tokenise(
        self, rendering: Rendering, mark: str, *, most: int | None = None
    ) -> tuple[Tokens, dict[int, int]]:
        """Tokenise a rendering; return tokens and, of each cut, the index of its first token."""
        tokens = Tokens([], [])
        positions = {}
        before = ""
        for start, stop in pairwise([0, *rendering.cuts, len(rendering.text)]):
            positions[start] = len(tokens.ids)
            piece = rendering.text[start:stop]
            left = None if most is None else most - len(tokens.ids)
            alone = self.text.tokens(before, mark).ids
            found = self.text.behind(before, alone, piece, mark, most=left)
            tokens.ids.extend(found.ids)
            tokens.starts.extend(start + offset for offset in found.starts)
            if most is not None and self.text.outgrow(tokens.ids, most):
                break
            before = piece
        return tokens, positions | {len(rendering.text): len(tokens.ids)}

    def _labels(self, answer: Answer, tokens: Tokens, positions: dict[int, int]) -> Iterable[int]:
        """Return the indices of an answer's tokens, up to and with its end of turn."""
        if answer.start is None:
            raise InvalidRequest(
                f"The base's chat template changes what comes before messages[{answer.turn}] once "
                "it is answered, so it cannot be trained as it would be served.",
                code="invalid_messages",
                param=f"messages[{answer.turn}]",
            )
        spans = answer.spans or [(answer.start, tokens.starts[-1] + 1)]
        labels: list[int] = []
        for start, stop in spans:
            for index in range(positions[start], len(tokens.ids)):
                is_end = tokens.ids[index] in self.eos_ids
                if tokens.starts[index] >= stop and not is_end:
                    break
                labels.append(index)
                if is_end:
                    return labels
        raise InvalidRequest(
            "The base's chat template does not end answers with a control token.",
            code="invalid_messages",
            param=f"messages[{answer.turn}]",
        )


def _digest(tokenizer: bytes, template: str | None) -> str:
    """Return the SHA-256 over a tokenizer file and a chat template."""
    parts = (tokenizer, (template or "").encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
