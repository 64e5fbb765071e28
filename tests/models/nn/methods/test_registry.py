import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import core
import models
from core.errors import InvalidRequest
from models.nn.methods import METHODS, parse_method


def _refusal(block):
    with pytest.raises(InvalidRequest) as caught:
        parse_method(block)
    return caught.value


def test_defaults_are_resolved():
    block = parse_method({"type": "lora"}).model_dump(mode="json")
    assert block == {
        "type": "lora",
        "rank": 16,
        "alpha": 32.0,
        "dropout": 0.0,
        "target_modules": "all-linear",
        "use_rslora": False,
        "learning_rate_ratio": 1.0,
    }


def test_an_unknown_key_is_named_beside_those_that_are_known():
    error = _refusal({"type": "lora", "rnk": 3})
    assert (error.code, error.param) == ("unknown_parameter", "peft.rnk")
    assert "'rnk'" in error.message
    assert "alpha, dropout, learning_rate_ratio, rank, target_modules, type" in error.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rank", 0),
        ("rank", "many"),
        ("rank", 2.5),
        ("rank", True),
        ("alpha", False),
        ("alpha", float("nan")),
        ("dropout", 1.0),
        ("target_modules", []),
        ("target_modules", "q_proj"),
        ("target_modules", [3]),
        ("use_rslora", "perhaps"),
    ],
)
def test_a_bad_value_is_named_by_its_key(key, value):
    error = _refusal({"type": "lora", key: value})
    assert (error.code, error.param) == ("invalid_value", f"peft.{key}")


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        *(("lora", "target_modules"), ("ia3", "target_modules"), ("ia3", "feedforward_modules")),
        *(("ln_tuning", "target_modules"), ("head", "labels"), ("feature_based", "labels")),
        *(("hard_prompt", "allowed_words"), ("in_context", "pool"), ("in_context", "chosen")),
    ],
)
def test_of_a_long_bad_list_the_first_item_is_told(kind, key):
    error = _refusal({"type": kind, key: [1] * 10_000})
    assert error.param == f"peft.{key}"
    assert error.__cause__.error_count() <= 2


@pytest.mark.parametrize("block", [{}, {"type": "x"}, {"type": None}, {"type": ["lora"]}])
def test_an_unknown_method_is_answered_with_those_that_exist(block):
    error = _refusal(block)
    assert (error.code, error.param) == ("unknown_method", "peft.type")
    assert all(kind in error.message for kind in METHODS)


def test_a_block_without_a_type_is_told_so():
    assert "`type` is missing" in _refusal({"rank": 2}).message


def test_the_key_to_fix_first_is_the_unknown_one():
    assert _refusal({"type": "lora", "rank": 0, "rnk": 3}).param == "peft.rnk"


def test_a_method_that_derives_from_another_stands_beside_it(tmp_path):
    package = tmp_path / "models"
    shutil.copytree(Path(models.__path__[0]), package)
    shutil.copytree(Path(core.__path__[0]), tmp_path / "core")
    code = """
from typing import Literal

from pydantic import Field

from models.nn.methods.lora import Lora


class Other(Lora):
    kind: Literal["{kind}"] = Field("{kind}", alias="type")
"""
    asked = "from models.nn.methods import METHODS; print(*METHODS)"
    command = [sys.executable, "-c", asked]
    for kind, message in (("other", ""), ("lora", "Two methods have the kind 'lora'")):
        (package / "nn" / "methods" / "other.py").write_text(code.format(kind=kind))
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert message in done.stderr
        assert message or set(done.stdout.split()) == {"other", *METHODS}
