"""Data sets as people send them: JSON lines, read one by one, with every problem named.

Three formats, found from the first good row and shared by all rows of a file:

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"prompt": "...", "completion": "..."}
    {"text": "..."}

An example is trained on its assistant turns, but those with `"weight": 0`. It may end on another
turn, as long as an earlier one is trained. `name` is accepted, as OpenAI accepts it; no chat
template here shows it to the network. Any other key that would be ignored is a problem instead.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO, ClassVar, Literal

import msgspec

from models.dataset_problems import MOST_TURNS, LineProblem, examine

LONGEST_LINE = 8 * 1024 * 1024
REPORTED_PROBLEMS = 50
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ESCAPED_ASCII = re.compile(rb"\\u00[0-7]")
"""NUL, or what may spell a key."""


class TextPart(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A piece of a message; only text can be trained on."""

    type: Literal["text"]
    text: str


class Turn(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, tag_field="role"):
    """One message of a conversation."""

    role: ClassVar[str]
    content: str | Annotated[list[TextPart], msgspec.Meta(min_length=1)]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class SystemTurn(Turn, frozen=True, tag="system"):
    """What the operator said first."""

    role = "system"


class DeveloperTurn(Turn, frozen=True, tag="developer"):
    """OpenAI's newer word for the system turn; trained as one."""

    role = "system"


class UserTurn(Turn, frozen=True, tag="user"):
    """What the person said."""

    role = "user"


class AssistantTurn(Turn, frozen=True, tag="assistant"):
    """What the network shall learn to say, unless its weight is 0."""

    role = "assistant"
    weight: Literal[0, 1] | None = None

    @property
    def trained(self) -> bool:
        """Say whether this turn's tokens are labels."""
        return self.weight != 0


AnyTurn = SystemTurn | DeveloperTurn | UserTurn | AssistantTurn


class ChatRow(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """An example in OpenAI's chat format."""

    messages: list[AnyTurn]


class CompletionRow(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """A prompt, and the completion that is trained."""

    prompt: str
    completion: str


class TextRow(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True):
    """Plain text, trained from its first token to its last."""

    text: str


Row = ChatRow | CompletionRow | TextRow
Format = Literal["chat", "completion", "text"]

_ROWS: dict[Format, type[Row]] = {"chat": ChatRow, "completion": CompletionRow, "text": TextRow}
_DECODERS = {name: msgspec.json.Decoder(row) for name, row in _ROWS.items()}


class DataReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a file holds: its good rows, and its problems (the first ones in full, all counted)."""

    format: Format | None
    rows: int
    lines: int
    problems: list[LineProblem]
    problem_counts: dict[str, int]

    def summary(self) -> str:
        """Return one sentence on all problems, the most frequent kind first."""
        total = sum(self.problem_counts.values())
        kinds = ", ".join(
            f"{code} ({count})"
            for code, count in sorted(self.problem_counts.items(), key=lambda item: -item[1])
        )
        first = f" First: line {self.problems[0].line}: {self.problems[0].message}"
        return f"{total} of {self.lines} lines cannot be trained on: {kinds}.{first}"

    def problem_dicts(self) -> list[dict[str, object]]:
        """Return the problems as plain objects."""
        problems: list[dict[str, object]] = msgspec.to_builtins(self.problems)
        return problems

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a plain object."""
        report: dict[str, Any] = msgspec.to_builtins(self)
        return report


class DatasetReader:
    """Reads a file once, in memory bounded by its longest permitted line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.format: Format | None = None
        self.lines = 0

    def __iter__(self) -> Iterator[tuple[int, Row | LineProblem]]:
        """Yield (line number from 1, row or problem) for each line that is not blank."""
        blank = True
        with self._path.open("rb") as stream:
            while line := stream.readline(LONGEST_LINE + 1):
                self.lines += 1
                if self.lines == 1:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                    _skip_line(stream)
                    item: Row | LineProblem = LineProblem(
                        line=self.lines,
                        code="line_too_long",
                        message=f"The line is over {LONGEST_LINE // 2**20} MB; "
                        "split the example, or end each example with a line break.",
                    )
                elif line.isspace() or not line:
                    continue
                else:
                    item = self._read(line)
                blank = False
                yield self.lines, item
        if blank:
            message = "The file holds no examples; write one JSON object on each line."
            yield 1, LineProblem(line=1, code="empty_file", message=message)

    def _read(self, line: bytes) -> Row | LineProblem:
        try:
            row: Row = _DECODERS[self.format or "chat"].decode(line)
        except (msgspec.MsgspecError, RecursionError, ValueError):
            return self._read_with_care(line)
        if not _is_plain(row, line=line):
            return self._read_with_care(line)
        self.format = self.format or "chat"
        return row

    def _read_with_care(self, line: bytes) -> Row | LineProblem:
        """Read a line that is bad, of another format, or written in an unusual way."""
        value = examine(line, number=self.lines)
        if isinstance(value, LineProblem):
            return value
        kind: Format = (
            "chat" if "messages" in value else "text" if "text" in value else "completion"
        )
        self.format = self.format or kind
        if self.format != kind:
            return LineProblem(
                line=self.lines,
                code="mixed_formats",
                message=f"This is a {kind} example, but the file began with {self.format} ones; "
                "put each format into a file of its own.",
            )
        return msgspec.convert(value, _ROWS[kind])


def _is_plain(row: Row, *, line: bytes) -> bool:
    """Say whether a decoded row needs no second look.

    Counting the quoted keys finds a key written twice, of which decoding keeps the last: inside
    of a text the quotes are escaped, so that only a text that equals the key is suspected in vain.
    """
    if _ESCAPED_ASCII.search(line):
        return False
    if isinstance(row, ChatRow):
        return (
            len(row.messages) <= MOST_TURNS
            and all(line.count(key) == count for key, count in _count_keys(row.messages).items())
            and any(type(turn) is AssistantTurn and turn.trained for turn in row.messages)
        )
    if isinstance(row, CompletionRow):
        return line.count(b'"prompt"') == line.count(b'"completion"') == 1
    return line.count(b'"text"') == 1 and bool(row.text)


def _count_keys(turns: list[AnyTurn]) -> dict[bytes, int]:
    """Return how often each quoted key stands in a chat that has no key twice."""
    parts = sum(len(turn.content) for turn in turns if not isinstance(turn.content, str))
    return {
        b'"messages"': 1,
        b'"role"': len(turns),
        b'"content"': len(turns),
        b'"name"': sum(turn.name is not None for turn in turns),
        b'"weight"': sum(type(turn) is AssistantTurn and turn.weight is not None for turn in turns),
        b'"type"': parts,
        b'"text"': 2 * parts,  # it is a value, too
    }


def iterate(path: Path) -> Iterator[tuple[int, Row | LineProblem]]:
    """Yield (line number from 1, row or problem) for each line of a file that is not blank."""
    return iter(DatasetReader(path))


def inspect(path: Path) -> DataReport:
    """Read a whole file and report on it; no bytes whatever make this raise."""
    reader = DatasetReader(path)
    rows = 0
    problems: list[LineProblem] = []
    counts: Counter[str] = Counter()
    for _, item in reader:
        if isinstance(item, LineProblem):
            counts[item.code] += 1
            if len(problems) < REPORTED_PROBLEMS:
                problems.append(item)
        else:
            rows += 1
    return DataReport(
        format=reader.format,
        rows=rows,
        lines=reader.lines,
        problems=problems,
        problem_counts=dict(counts),
    )


def _skip_line(stream: BinaryIO) -> None:
    while (piece := stream.readline(2**20)) and not piece.endswith(b"\n"):
        pass
