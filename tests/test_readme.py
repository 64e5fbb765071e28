"""The code in README.md, run as it stands there, on a client that keeps what it is asked."""

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import pytest

ROOT = Path(__file__).parents[1]


def test_the_tuned_model_is_asked_as_its_rows_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    package = MagicMock()
    package.OpenAI().fine_tuning.jobs.create.return_value.status = "succeeded"
    monkeypatch.setitem(sys.modules, "openai", package)
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})
    asked = package.OpenAI().chat.completions.create.call_args.kwargs["messages"]
    rows = (ROOT / "examples/support_mail/train.jsonl").read_text().splitlines()
    for row in map(json.loads, rows):
        *before, question, _ = row["messages"]
        assert asked[:-1] == before
        assert asked[-1]["role"] == question["role"] == "user"
