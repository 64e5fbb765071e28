"""Weights in 12 bits: without loss as they lie, and multiplied with as those in 16 are."""

import ctypes

import pytest
import torch
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.kernels.native import INPUT_STEP, PANEL_WIDTH, library, reason
from models.nn.kernels.native.arena import Arena
from models.nn.kernels.native.step import Form
from tests.models.nn.kernels.native.stepping import (
    FORMS,
    Row,
    World,
    advance,
    drawn_ids,
    loaded,
    make_backbone,
)

pytestmark = pytest.mark.skipif(library() is None, reason=reason())

UPPERS, TILE = 16, INPUT_STEP * PANEL_WIDTH
ODD = (0.0, -0.0, 1e-30, -3e38, 1e-40, float("inf"), float("nan"))


def drawn_weight(outputs: int, inputs: int) -> Tensor:
    """Return normal numbers among which all kinds of others stand."""
    generator = torch.Generator().manual_seed(7)
    weight_nk = torch.randn(outputs, inputs, generator=generator)
    places = torch.randperm(weight_nk.numel(), generator=generator)[: 20 * len(ODD)]
    weight_nk.view(-1)[places] = torch.tensor(ODD).repeat(20)
    return weight_nk.bfloat16()


def decode(panel: bytes, inputs: int) -> Tensor:
    """Return the bits (16, K) int32 of a coded panel, as its layout is described."""
    raw = torch.frombuffer(bytearray(panel), dtype=torch.uint8).int()
    front = len(raw) - inputs // INPUT_STEP * TILE * 3 // 2
    uppers, tiles = raw[:UPPERS], raw[front:].view(-1, TILE * 3 // 2)
    lowers = tiles[:, :TILE].reshape(-1, 8, 64)
    pairs = tiles[:, TILE:].reshape(-1, 4, 1, 64)
    codes = torch.cat([pairs % 16, pairs // 16], dim=2).reshape(-1, 8, 64)
    by_byte = uppers[codes.long()] << 8 | lowers
    # 64 bytes are four parts of 8 numbers of the first 32 and 8 of the second.
    numbers = by_byte.view(-1, 8, 4, 2, 8).transpose(2, 3).reshape(-1)
    exceptions = raw[UPPERS:front].to(torch.uint8).view(torch.int32).view(-1, 2)
    for place, value in exceptions.tolist():
        if place == -1:
            break
        numbers[place] = value
    by_pair = numbers.view(inputs // 2, PANEL_WIDTH, 2)
    return by_pair.transpose(0, 1).reshape(PANEL_WIDTH, inputs)


@pytest.mark.parametrize("inputs", [32, 160])
def test_no_bit_is_lost(inputs: int) -> None:
    weight_nk, arena = drawn_weight(48, inputs), Arena(loaded())
    coded = arena.pack_coded(weight_nk)
    assert coded is not None
    address, stride = coded
    assert stride < 2 * PANEL_WIDTH * inputs
    panels = [ctypes.string_at(address + n * stride, stride) for n in range(3)]
    found = torch.cat([decode(panel, inputs) for panel in panels])
    assert torch.equal(found, weight_nk.view(torch.int16).int() & 0xFFFF)


def test_weights_of_any_size_stay_as_they_are() -> None:
    bits = torch.randint(1 << 15, (32, 64), generator=torch.Generator().manual_seed(1))
    assert Arena(loaded()).pack_coded(bits.short().view(torch.bfloat16)) is None


def forms() -> list[object]:
    """Return those by vectors and by tiles that can be computed here or are emulated."""
    tiles = pytest.mark.skipif(library() is None or loaded().instructions != "amx", reason=reason())
    return [*FORMS, pytest.param("amx", marks=tiles)]


def odd_backbone() -> Backbone:
    """Return a network some of whose weights have exponents of their own, for the first inputs.

    So some tiles of a panel have exceptions, and others none.
    """
    backbone = make_backbone("biased, tied")
    with torch.no_grad():
        for parameter in backbone.network.parameters():
            if parameter.dim() > 1:
                parameter[::7, : parameter.shape[1] // 2 : 11] *= 1e-6
                parameter[::5, 3] = 0
    return backbone


@pytest.mark.parametrize(
    "bounds",
    [
        [[0, 1, 30, 90, *range(91, 96), 170], [0, 6, 7, 100], [0, 5, 6, 7, 14, 25, 35, 43]],
        [[count * (count + 1) // 2 for count in range(18)]],
    ],
    ids=["three prompts", "every number of rows"],
)
@pytest.mark.parametrize("form", forms())
def test_products_are_the_same_to_the_bit(form: Form, bounds: list[list[int]]) -> None:
    """For as few rows as pass panels by once, and for more."""
    ids = drawn_ids(170)
    found = {}
    for codes in (False, True):
        world = World.of(odd_backbone(), form=form, codes=codes, rounded=False)
        coded = [getattr(world.step.model.layers[1], name).coded_stride for name in ("qkv", "down")]
        assert all(coded) if codes else not any(coded)
        rows = [Row(slot, ids, decodes=True) for slot in range(len(bounds))]
        found[codes] = torch.cat(advance(world, rows, bounds))
    assert torch.equal(found[True], found[False])
