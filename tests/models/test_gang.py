"""Which jobs may share a trainer."""

from typing import Any

import pytest

from models.gang import FILE_BYTES, STEP_TOKENS, gang_of
from models.nn.methods import parse_method
from models.spec import LoopSpec


def gang(
    *, kind: str = "lora", bytes_: int = 100, rows: int = 10, others: int = 0, **loop: Any
) -> str | None:
    spec = LoopSpec(**{"n_epochs": 1, "batch_size": 2, "learning_rate": 0.1, **loop})
    return gang_of(
        "tiny",
        parse_method({"type": kind}),
        spec,
        rows=rows,
        training_bytes=rows * bytes_,
        all_bytes=rows * bytes_ + others,
    )


@pytest.mark.parametrize("kind", ["lora", "ia3", "soft_prompt", "head", "ln_tuning"])
def test_small_jobs_of_all_gradient_kinds_have_a_word_in_common(kind: str) -> None:
    assert gang(kind=kind) == gang(batch_size=4, learning_rate=0.2) == "tiny/auto/none"


@pytest.mark.parametrize("kind", ["full", "feature_based", "in_context"])
def test_kinds_that_cannot_share_a_stream_are_alone(kind: str) -> None:
    assert gang(kind=kind) is None


def test_what_a_base_is_held_in_tells_gangs_apart() -> None:
    assert len({gang(), gang(dtype="float32"), gang(quantization="nf4")}) == 3


def test_large_steps_large_files_and_runs_by_the_clock_are_alone() -> None:
    most = 2 * STEP_TOKENS
    assert gang(bytes_=most)
    assert gang(bytes_=most + 1) is None
    assert gang(others=FILE_BYTES) is None
    assert gang(max_seconds=10.0) is None
