"""Terms keep no more memory alive than they are worth."""

import torch
from torch import Tensor

from models.nn.spare import without_spare
from models.nn.terms import HeadTerm, LinearTerm, NormTerm, Terms


def views(*sizes: tuple[int, ...]) -> list[Tensor]:
    """Return tensors that lie one behind the other, as those of a file do."""
    lengths = [torch.Size(size).numel() for size in sizes]
    flat = torch.randn(sum(lengths))
    pieces = torch.split(flat, lengths)
    return [piece.view(size) for piece, size in zip(pieces, sizes, strict=True)]


def held(terms: Terms) -> int:
    """Return the bytes that terms keep alive."""
    storages = [tensor.untyped_storage() for tensor in terms.tensors()]
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())


def test_a_few_gains_do_not_hold_a_file() -> None:
    down, up, gain, weight, bias = views((8, 64), (64, 8), (64,), (3, 64), (3,))
    cast = LinearTerm(down.bfloat16(), up.bfloat16())
    head = HeadTerm(weight, bias)
    terms = Terms(linears={"a": cast}, norms={"n": NormTerm(gain)}, head=head)
    own = without_spare(terms)
    assert held(own) == own.bytes == terms.bytes < held(terms) / 2
    assert own.linears["a"].down is cast.down
    for mine, theirs in zip(own.tensors(), terms.tensors(), strict=True):
        assert mine.equal(theirs)
        assert mine.stride() == theirs.stride()


def test_what_is_most_of_its_memory_is_not_copied() -> None:
    down, up, gain, weight = views((8, 64), (64, 8), (64,), (40, 64))
    terms = Terms(linears={"a": LinearTerm(down, up)}, norms={"n": NormTerm(gain)})
    assert held(without_spare(terms)) == terms.bytes < held(terms)
    whole = Terms(linears={"a": LinearTerm(down, up, weight=weight)}, norms=terms.norms)
    kept = without_spare(terms, kept=[weight])
    assert [*map(id, kept.tensors())] == [*map(id, terms.tensors())]
    assert [*map(id, without_spare(whole).tensors())] == [*map(id, whole.tensors())]


def test_one_tensor_at_many_places_counts_once() -> None:
    gain, _ = views((64,), (640,))
    terms = Terms(norms={str(place): NormTerm(gain) for place in range(20)})
    assert without_spare(terms).norms["0"].gain.untyped_storage().nbytes() == gain.nbytes
