"""What is loaded is checked to the last number, because others share its steps."""

from collections.abc import Callable

import pytest
import torch

from core.bases import read_manifest
from models.nn.backbone import Backbone
from models.nn.spare import WASTE
from models.nn.terms import (
    AttentionTerm,
    HeadTerm,
    HiddenTerm,
    KeysValues,
    LinearTerm,
    NormTerm,
    Terms,
)
from tests.worker.engine.conftest import Kind, World
from worker.engine.loader import LARGEST, Identity, Loader, _largest
from worker.engine.resident import Resident

ONE = torch.ones(1, 1)
KEYS = torch.ones(1, 1, 1)


def linear(bad: torch.Tensor) -> Terms:
    return Terms(linears={"a": LinearTerm(down=ONE, up=bad)})


def bias(bad: torch.Tensor) -> Terms:
    return Terms(linears={"a": LinearTerm(bias=bad[0])})


def weight(bad: torch.Tensor) -> Terms:
    return Terms(linears={"a": LinearTerm(weight=bad)})


def linear_scale(bad: torch.Tensor) -> Terms:
    return Terms(linears={"a": LinearTerm(down=ONE, up=ONE, scale=float(bad))})


def hidden(bad: torch.Tensor) -> Terms:
    return Terms(hiddens={"a": bottleneck(up_bias=bad[0])})


def hidden_scale(bad: torch.Tensor) -> Terms:
    return Terms(hiddens={"a": bottleneck(scale=float(bad))})


def norm(bad: torch.Tensor) -> Terms:
    return Terms(norms={"a": NormTerm(gain=bad[0])})


def attention(bad: torch.Tensor) -> Terms:
    return Terms(attentions={0: AttentionTerm(keys=KEYS, values=KEYS, gate=bad[0])})


def static(bad: torch.Tensor) -> Terms:
    return Terms(keys_values={0: KeysValues(keys=KEYS, values=bad[None])})


def prompt(bad: torch.Tensor) -> Terms:
    return Terms(prompt=bad)


def head(bad: torch.Tensor) -> Terms:
    return Terms(head=HeadTerm(weight=ONE, bias=bad[0]))


def weights(bad: torch.Tensor) -> Terms:
    return Terms(weights={"model.norm.weight": bad[0]})


def bottleneck(**changes: object) -> HiddenTerm:
    plain = {"down": ONE, "down_bias": ONE[0], "up": ONE, "up_bias": ONE[0]}
    return HiddenTerm(**{**plain, "activation": "gelu", **changes})  # type: ignore[arg-type]


MAKERS = (
    linear,
    bias,
    weight,
    linear_scale,
    hidden,
    hidden_scale,
    norm,
    attention,
    static,
    prompt,
    head,
    weights,
)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1e13])
def test_no_number_escapes(make: Callable[[torch.Tensor], Terms], bad: float) -> None:
    assert _largest(make(torch.full((1, 1), 3.0))) == 3
    assert not _largest(make(torch.full((1, 1), bad))) <= LARGEST


@pytest.fixture
def loader(world: World) -> Loader:
    folder = world.settings.base_folder
    backbone, manifest = Backbone.load(folder, dtype=torch.bfloat16), read_manifest(folder)
    identity = Identity(manifest.digest, manifest.renderer_digest)
    return Loader(backbone, world.renderer, identity, 256, backbone.base.apart())


def load(loader: Loader, world: World, kind: Kind) -> Resident:
    files = world.store.read_files(kind.adapter.digest).content
    finishing = loader.finish(loader.prepare(kind.adapter, files))
    while True:
        try:
            next(finishing)
        except StopIteration as end:
            return end.value


def test_a_version_holds_about_what_is_counted(
    world: World, kinds: list[Kind], loader: Loader
) -> None:
    for kind in kinds:
        resident = load(loader, world, kind)
        shown = resident.demonstrations.tensors.values() if resident.demonstrations else ()
        storages = [one.untyped_storage() for one in (*resident.terms.tensors(), *shown)]
        held = sum({one.data_ptr(): one.nbytes() for one in storages}.values())
        assert held + (resident.prefix.bytes if resident.prefix else 0) <= WASTE * resident.bytes, (
            kind.id
        )
