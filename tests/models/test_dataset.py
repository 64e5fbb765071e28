import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.dataset import (
    LONGEST_LINE,
    REPORTED_PROBLEMS,
    ChatRow,
    CompletionRow,
    LineProblem,
    TextRow,
    inspect,
    iterate,
)

USER = {"role": "user", "content": "Hello"}
ANSWER = {"role": "assistant", "content": "Hi"}
GOOD = {"messages": [USER, ANSWER]}
DOUBLED = (
    b'{"messages": [{"role": "assistant", "content": "c", %s}, '
    b'{"role": "user", "content": [{"type": "text", %s}]}]}'
)


@pytest.fixture
def write(tmp_path):
    def write(*rows) -> Path:
        path = tmp_path / "rows.jsonl"
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"\n".join(lines))
        return path

    return write


def read_one(path: Path):
    [(line, item)] = iterate(path)
    assert line == 1
    return item


def test_reads_the_chat_format(write):
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    row = read_one(
        write(
            {
                "messages": [
                    {"role": "developer", "content": "Be kind."},
                    {"content": parts, "role": "user", "name": "ann"},
                    {"role": "assistant", "content": "No", "weight": 0},
                    {"role": "assistant", "content": "Hi", "weight": 1},
                    USER,
                ]
            }
        )
    )
    assert isinstance(row, ChatRow)
    assert [(turn.role, turn.text) for turn in row.messages] == [
        ("system", "Be kind."),
        ("user", "Hello"),
        ("assistant", "No"),
        ("assistant", "Hi"),
        ("user", "Hello"),
    ]
    assert [turn.trained for turn in row.messages[2:4]] == [False, True]


def test_reads_the_other_formats(write):
    assert read_one(write({"prompt": "a", "completion": "b"})) == CompletionRow("a", "b")
    assert read_one(write({"text": "a"})) == TextRow("a")


def chat(*turns):
    return {"messages": list(turns)}


@pytest.mark.parametrize(
    ("code", "row"),
    [
        ("invalid_json", b'{"messages": ['),
        ("invalid_json", b'{"text": NaN}'),
        ("invalid_json", b'{"text": "a"} {"text": "b"}'),
        ("invalid_json", b"[" * 100_000),
        ("invalid_json", b'{"text": "raw \x00 NUL"}'),
        ("invalid_utf8", '{"text": "a"}'.encode("utf-16-be")),
        ("invalid_json", b'{"text": ' + b"1" * 5000 + b"}"),
        ("invalid_utf8", b'{"text": "\xff"}'),
        ("invalid_utf8", '{"text": "a"}'.encode("utf-16")),
        ("invalid_text", b'{"text": "\\ud800"}'),
        ("invalid_text", b'{"text": "\\udc00\\ud800 x"}'),
        ("nul_character", {"text": "a\x00"}),
        ("nul_character", chat(USER, {"role": "assistant", "content": "\x00"})),
        ("not_an_object", [GOOD]),
        ("not_an_object", "text"),
        ("duplicate_key", b'{"text": "a", "text": "b"}'),
        (
            "duplicate_key",
            b'{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}',
        ),
        ("duplicate_key", DOUBLED % (b'"weight": 0, "weight": 1', b'"text": "a"')),
        ("duplicate_key", DOUBLED % (b'"weight": 1, "weight": 0', b'"text": "a"')),
        ("duplicate_key", DOUBLED % (b'"name": "x", "name": "y"', b'"text": "a"')),
        ("duplicate_key", DOUBLED % (b'"weight": 1', b'"text": "a", "text": "b"')),
        ("duplicate_key", b'{"messages": [], ' + (DOUBLED % (b'"name": "x"', b'"text": ""'))[1:]),
        ("duplicate_key", DOUBLED % (b'"weight": 0, "w\\u0065ight": 1', b'"text": "a"')),
        ("missing_messages", {}),
        ("missing_messages", {"question": "a", "answer": "b"}),
        ("missing_messages", {"messages": "a"}),
        ("missing_messages", {"messages": {"0": USER}}),
        ("empty_messages", {"messages": []}),
        ("too_many_turns", chat(*[USER, ANSWER] * 128, USER)),
        ("invalid_role", chat("Hello")),
        ("invalid_role", chat({"content": "a"})),
        ("invalid_role", chat({"role": "bot", "content": "a"})),
        ("invalid_role", chat({"role": ["user"], "content": "a"})),
        ("missing_content", chat(USER, {"role": "assistant"})),
        ("missing_content", chat(USER, {"role": "assistant", "content": None})),
        ("missing_content", {"prompt": "a"}),
        ("missing_content", chat(USER, {"role": "assistant", "content": [{"type": "text"}]})),
        ("invalid_content", chat(USER, {"role": "assistant", "content": 3})),
        ("invalid_content", chat(USER, {"role": "assistant", "content": []})),
        ("invalid_content", chat(USER, {"role": "assistant", "content": ["a"]})),
        ("invalid_content", chat({**USER, "name": 3}, ANSWER)),
        ("invalid_content", {"prompt": "a", "completion": 1}),
        ("invalid_weight", chat(USER, {**ANSWER, "weight": 0.5})),
        ("invalid_weight", chat(USER, {**ANSWER, "weight": True})),
        ("invalid_weight", chat({**USER, "weight": 1}, ANSWER)),
        ("no_assistant_message", chat(USER)),
        ("nothing_to_train", chat(USER, {**ANSWER, "weight": 0})),
        ("nothing_to_train", {"text": ""}),
        ("unknown_key", {**GOOD, "id": 7}),
        ("unknown_key", {**GOOD, "prompt": "a"}),
        ("unknown_key", chat(USER, {**ANSWER, "mood": "glad"})),
        ("unsupported_feature", {**GOOD, "tools": [{"type": "function"}]}),
        ("unsupported_feature", {**GOOD, "parallel_tool_calls": False}),
        ("unsupported_feature", chat(USER, {"role": "tool", "content": "1"}, ANSWER)),
        ("unsupported_feature", chat(USER, {**ANSWER, "tool_calls": [{"id": "1"}]})),
        (
            "unsupported_feature",
            chat({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER),
        ),
        ("unsupported_feature", {"input": {}, "preferred_output": [ANSWER]}),
        ("line_too_long", b'{"text": "' + b"a" * LONGEST_LINE + b'"}'),
        ("empty_file", b""),
        ("empty_file", b" \r\n\n\t"),
    ],
)
def test_names_every_problem(write, code, row):
    problem = read_one(write(row))
    assert isinstance(problem, LineProblem)
    assert problem.code == code
    assert problem.message.endswith(".")
    assert len(problem.message) < 300


@pytest.mark.parametrize(
    "row",
    [
        {**GOOD, "tools": None, "id": None},
        {**GOOD, "tools": []},
        chat({**USER, "name": None}, {**ANSWER, "weight": None, "tool_calls": None}),
        chat(USER, {**ANSWER, "weight": 1.0}),
        chat(ANSWER),
        chat(USER, {"role": "assistant", "content": ""}),
        chat({"role": "user", "content": "role"}, {"role": "assistant", "content": "content"}),
        chat({"role": "user", "content": '{"role": "messages"} \\u0000'}, ANSWER),
        b'{"messages": [{"r\\u006fle": "assistant", "content": "a"}]}',
        b'\xef\xbb\xbf{"messages": [{"role": "assistant", "content": "a"}]}\r\n',
    ],
)
def test_takes_what_loses_nothing(write, row):
    assert isinstance(read_one(write(row)), ChatRow)


def test_a_file_has_one_format(write):
    report = inspect(write(b"{", {"text": "a"}, GOOD, {"text": "b"}, {"prompt": "", "a": 1}))
    assert report.format == "text"
    assert report.rows == 2
    assert [(problem.line, problem.code) for problem in report.problems] == [
        (1, "invalid_json"),
        (3, "mixed_formats"),
        (5, "unknown_key"),
    ]


def test_blank_lines_are_skipped_but_counted(write):
    path = write(b"", GOOD, b"  \r", GOOD, b"", b"")
    assert [line for line, _ in iterate(path)] == [2, 4]
    report = inspect(path)
    assert (report.rows, report.lines, report.problem_counts) == (2, 5, {})


def test_all_problems_are_counted_and_the_first_are_told(write):
    report = inspect(write(*[b"{"] * 70, *[{"text": "a"}] * 2, *[[]] * 5))
    assert report.problem_counts == {"invalid_json": 70, "not_an_object": 5}
    assert len(report.problems) == REPORTED_PROBLEMS
    assert report.summary().startswith("75 of 77 lines cannot be trained on: invalid_json (70), ")
    assert report.problem_dicts()[0]["line"] == 1
    assert report.as_dict()["rows"] == 2


def test_the_line_after_a_giant_one_is_read(write):
    report = inspect(write(b"a" * (2 * LONGEST_LINE), GOOD))
    assert (report.rows, report.lines, report.problem_counts) == (1, 2, {"line_too_long": 1})


def peak_of_inspecting(path: Path) -> int:
    """Return the bytes that it took, in a process where no other test's threads take any."""
    script = (
        "import sys, tracemalloc; from pathlib import Path; from models.dataset import inspect; "
        "tracemalloc.start(); inspect(Path(sys.argv[1])); "
        "print(tracemalloc.get_traced_memory()[1])"
    )
    command = [sys.executable, "-c", script, str(path)]
    return int(subprocess.run(command, check=True, capture_output=True).stdout)


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "large.jsonl"
    with path.open("wb") as stream:
        stream.truncate(2**30)  # one line of NUL bytes that ends nowhere; takes no disk
    assert inspect(path).problem_counts == {"line_too_long": 1}
    assert peak_of_inspecting(path) < 3 * LONGEST_LINE


def test_memory_does_not_grow_with_the_rows(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_bytes((json.dumps(GOOD).encode() + b"\n") * 30_000)
    assert inspect(path).rows == 30_000
    assert peak_of_inspecting(path) < 100_000


def test_torch_is_not_imported():
    script = "import sys, models.dataset; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from([USER, ANSWER]),
    lambda children: (
        st.lists(children, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["messages", "role", "content", "weight", "text", "prompt", "type", "tools", "x"]
            ),
            children,
            max_size=4,
        )
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_raise(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    report = inspect(path)
    assert report.rows or report.problem_counts


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(json_values, min_size=1, max_size=4), st.booleans())
def test_no_json_raises(tmp_path, values, wrapped):
    path = tmp_path / "rows.jsonl"
    rows = [{"messages": value} if wrapped else value for value in values]
    path.write_bytes(b"\n".join(json.dumps(row).encode() for row in rows))
    report = inspect(path)
    assert report.rows + sum(report.problem_counts.values()) == len(rows)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text())
def test_any_text_survives(tmp_path, content):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(chat(USER, {"role": "assistant", "content": content})))
    [(_, row)] = iterate(path)
    if isinstance(row, ChatRow):
        assert row.messages[-1].text == content
    else:
        assert row.code in ("nul_character", "invalid_text")
