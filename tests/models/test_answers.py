"""What is known of a file's answers without holding the file in memory."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from models.answers import check_answers
from models.nn.methods import AnyMethod

ROWS = 3000
WIDE = "x" * 2000


@pytest.mark.parametrize("method", [{"type": "head"}, {"type": "in_context"}])
def test_a_file_is_checked_row_by_row(tmp_path: Path, method: dict[str, Any]) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("w") as stream:
        for n in range(ROWS):
            stream.write(json.dumps({"prompt": f"{n} {WIDE}", "completion": f"{n % 2}"}) + "\n")
    checked = TypeAdapter[Any](AnyMethod).validate_python(method)
    tracemalloc.start()
    check_answers(checked, path, path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < path.stat().st_size / 3
