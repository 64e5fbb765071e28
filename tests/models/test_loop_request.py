import pytest
from pydantic import ValidationError

from core.errors import InvalidRequest
from models.loop_request import LoopRequest, resolve
from models.nn.methods import parse_method

LORA = parse_method({"type": "lora"})


@pytest.mark.parametrize(
    ("rows", "epochs", "batch"),
    [(1, 25, 1), (10, 10, 1), (100, 3, 4), (1000, 3, 32), (50_000, 1, 32)],
)
def test_auto_suits_the_size_of_the_data(rows: int, epochs: int, batch: int) -> None:
    loop = resolve(LoopRequest(), method=LORA, rows=rows)
    assert (loop.n_epochs, loop.batch_size) == (epochs, batch)
    assert loop.learning_rate == LORA.learning_rate


def test_auto_may_be_said_and_bounds_hold() -> None:
    assert LoopRequest.model_validate({"n_epochs": "auto", "batch_size": "auto"}) == LoopRequest()
    for wrong in ({"n_epochs": 0}, {"batch_size": "many"}, {"learning_rate_multiplier": 0}):
        with pytest.raises(ValidationError):
            LoopRequest.model_validate(wrong)


def test_what_is_asked_for_is_what_runs() -> None:
    asked = LoopRequest(n_epochs=2, batch_size=7, learning_rate_multiplier=0.5, scheduler="cosine")
    loop = resolve(asked, method=LORA, rows=1000)
    assert (loop.n_epochs, loop.batch_size, loop.scheduler) == (2, 7, "cosine")
    assert loop.learning_rate == LORA.learning_rate / 2


def test_an_absurd_rate_is_refused() -> None:
    asked = LoopRequest(learning_rate=1.0, learning_rate_multiplier=100)
    with pytest.raises(InvalidRequest, match="learning rate comes to 100"):
        resolve(asked, method=LORA, rows=1)
    asked = LoopRequest(learning_rate=1e-320, learning_rate_multiplier=1e-10)
    with pytest.raises(InvalidRequest, match="learning rate comes to 0"):
        resolve(asked, method=LORA, rows=1)


def test_a_method_that_trains_the_quantised_weights_is_refused() -> None:
    asked = LoopRequest(quantization="nf4")
    assert resolve(asked, method=LORA, rows=1).quantization == "nf4"
    with pytest.raises(InvalidRequest, match="full") as caught:
        resolve(asked, method=parse_method({"type": "full"}), rows=1)
    assert caught.value.param == "training.quantization"
