from pathlib import Path

import pytest
import torch

from models.nn.artifact import load_artifact
from models.nn.backbone import Backbone
from models.nn.methods import METHODS
from tests.worker.train.conftest import ROWS, carry_out, values_of, weights_hash
from worker.train import run as module

REPLACING = [kind for kind, cls in METHODS.items() if "weights" in cls.sites]


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_is_trained_over_a_quantised_base(make_job, backbone, kind, quantization):
    pytest.importorskip("bitsandbytes", reason="no wheel of bitsandbytes for this platform")
    order = {"rows": ROWS, "validation": ROWS[:5], "method": {"type": kind, "rank": 4}}
    loop = {"learning_rate": 0.003}  # small steps: at 0.01 runs part by chance of their own
    whole = carry_out(make_job("whole").order(**order, loop=loop))
    loop = {**loop, "quantization": quantization}
    said = carry_out(make_job("packed").order(**order, loop=loop))
    losses, unpacked = (
        [values_of(one)[step]["train_loss"] for step in range(1, 11)] for one in (said, whole)
    )
    assert losses[0] - losses[-1] > 0.9 * (unpacked[0] - unpacked[-1]) > 0.1
    assert losses[0] != unpacked[0]
    assert losses == pytest.approx(unpacked, rel=0.01)
    artifact = load_artifact(Path(said[-1].adapter_folder), shape=backbone.shape)
    assert artifact.provenance["base_quantization"] == quantization
    unquantised = load_artifact(Path(whole[-1].adapter_folder), shape=backbone.shape)
    assert unquantised.provenance["base_quantization"] == "none"


def test_a_paused_run_over_a_quantised_base_ends_as_the_unbroken_one(make_job):
    pytest.importorskip("bitsandbytes", reason="no wheel of bitsandbytes for this platform")
    loop = {"quantization": "nf4"}
    whole = carry_out(make_job("whole").order(loop=loop))
    broken = make_job("broken").order(loop=loop)
    assert type(carry_out(broken, asks_after=4)[-1]).__name__ == "Stopped"
    assert weights_hash(carry_out(broken)) == weights_hash(whole)


@pytest.mark.parametrize("kind", REPLACING)
def test_methods_that_replace_the_weights_are_refused_before_the_base_is_read(
    make_job, monkeypatch, kind
):
    monkeypatch.setattr(module.Backbone, "load", None)
    order = make_job().order(method={"type": kind}, loop={"quantization": "nf4"})
    (failed,) = carry_out(order)
    assert (failed.code, failed.param) == ("invalid_value", "training.quantization")
    assert kind in failed.message


def test_a_base_is_smaller_in_4_bits_than_in_8_and_in_8_than_whole(base_folder):
    pytest.importorskip("bitsandbytes", reason="no wheel of bitsandbytes for this platform")
    sizes = [bytes_of(base_folder, quantization) for quantization in ("nf4", "int8", "none")]
    assert sizes == sorted(set(sizes))


def bytes_of(folder: Path, quantization: str) -> int:
    """Return what the parameters of a loaded base take."""
    backbone = Backbone.load(folder, dtype=torch.bfloat16, quantization=quantization)
    return sum(parameter.nbytes for parameter in backbone.network.parameters())
