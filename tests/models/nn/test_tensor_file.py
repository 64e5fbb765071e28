"""Files in memory read as the library of the format reads them; everything else is refused."""

import json
from math import inf, isnan, nan

import pytest
import torch
from safetensors.torch import load, save

from models.nn.tensor_file import as_one, cast_adjacent, largest, read_tensors

TENSORS = {
    "half": torch.randn(3, 5).half(),
    "brain": torch.randn(7).bfloat16(),
    "odd": torch.arange(3, dtype=torch.uint8),
    "single": torch.randn(2, 3, 4),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
}


def file(header: object, body: bytes = b"") -> bytearray:
    text = json.dumps(header).encode()
    return bytearray(len(text).to_bytes(8, "little") + text + body)


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_tensors_are_those_that_were_saved_and_lie_in_the_file():
    content = save(TENSORS, metadata={"format": "pt"})
    buffer = bytearray(content)
    read = read_tensors(buffer)
    expected = load(content)
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    buffer[-len(content) // 2 :] = bytes(-(-len(content) // 2))
    assert not all(torch.equal(read[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08\x00\x00\x00\x00\x00\x00\x00{}",
        b"\xff" * 16,
        file([]),
        file({"a": entry()}),
        file({"a": entry()}, bytes(5)),
        file({"a": entry(offsets=(1, 5))}, bytes(5)),
        file({"a": entry(), "b": entry()}, bytes(4)),
        file({"a": entry(shape=(2,))}, bytes(8)),
        file({"a": entry(shape=(-1,), offsets=(0, -4))}),
        file({"a": entry(shape=(True,))}, bytes(4)),
        file({"a": entry(shape=4)}, bytes(4)),
        file({"a": entry(shape=(2**62, 2**62))}, bytes(4)),
        file({"a": entry(shape=(2**70, 0), offsets=(0, 0))}),
        file({"a": entry(dtype="X1")}, bytes(4)),
        file({"a": entry(dtype=["F32"])}, bytes(4)),
        file({"a": entry(offsets=None)}, bytes(4)),
        file({"a": entry(offsets=(inf, 4))}, bytes(4)),
        file({"a": entry(offsets=(0.0, 4))}, bytes(4)),
        file({"a": 3}, bytes(4)),
        file({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)),
        bytearray((200_000).to_bytes(8, "little") + b"[" * 200_000),
    ],
    ids=range(22),
)
def test_what_is_no_such_file_is_refused(content):
    with pytest.raises(ValueError, match=r"header|tensor|bytes|JSON|Expecting|Extra|codec"):
        read_tensors(bytearray(content))


def test_a_name_given_twice_is_refused():
    header = b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":3}'
    with pytest.raises(ValueError, match="twice"):
        read_tensors(bytearray(len(header).to_bytes(8, "little") + header))


def test_a_tensor_at_an_odd_place_is_read():
    header = {"a": entry("U8", (1,), (0, 1)), "b": entry("F32", (1,), (1, 5))}
    body = b"\x07" + torch.tensor([1.5]).numpy().tobytes()
    read = read_tensors(file(header, body))
    assert (int(read["a"]), float(read["b"])) == (7, 1.5)


def test_the_largest_magnitude_is_found_and_nothing_hides_behind_it():
    tensors = [torch.tensor([1.0, -4.0]), torch.tensor([[3.0]]).bfloat16(), torch.zeros(0)]
    assert largest(tensors) == 4
    assert largest([]) == 0
    assert largest([*tensors, torch.tensor([-inf])]) == inf
    assert isnan(largest([torch.tensor([1.0, nan]), *tensors, torch.tensor([inf])]))


def test_tensors_of_one_file_are_cast_together_and_others_are_not():
    read = read_tensors(bytearray(save({"a": torch.randn(2, 3), "b": torch.randn(5)})))
    tensors = [read["b"], read["a"]]
    flat = as_one(tensors)
    assert flat is not None
    assert flat.data_ptr() == min(tensor.data_ptr() for tensor in tensors)
    assert len(flat) == 11
    casts = cast_adjacent(tensors, torch.bfloat16)
    for tensor in tensors:
        assert torch.equal(casts[id(tensor)], tensor.bfloat16())
    assert cast_adjacent(tensors, torch.float32) == {}
    for apart in ([], [torch.zeros(2), torch.zeros(2)], [read["a"].t()], tensors[:1] * 2):
        assert as_one(apart) is None
        assert cast_adjacent(apart, torch.bfloat16) == {}
    gap = torch.zeros(9)
    assert as_one([gap[:3], gap[4:]]) is None
    assert as_one([gap[:3], gap[3:4], gap[4:]]).shape == (9,)
