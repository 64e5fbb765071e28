import pytest
import torch

from models.nn.cast import add_together, cast_together


def test_tensors_are_cast_at_once_and_their_gradients_come_back():
    wide = [
        torch.randn(2, 3, requires_grad=True),
        torch.randn(5),
        torch.randn((), requires_grad=True),
    ]
    narrow = torch.randn(4).bfloat16()
    cast = cast_together([wide[0], narrow, wide[1], wide[2]], torch.bfloat16)
    assert cast[1] is narrow
    for tensor, found in zip((wide[0], wide[1], wide[2]), (cast[0], *cast[2:]), strict=True):
        assert torch.equal(found, tensor.detach().bfloat16())
    assert cast[0].untyped_storage().data_ptr() == cast[2].untyped_storage().data_ptr()
    ((cast[0] * 3).sum() + cast[3] * 2).backward()
    assert torch.equal(wide[0].grad, torch.full((2, 3), 3.0))
    assert wide[2].grad == 2.0
    assert wide[1].grad is None


def test_nothing_is_made_where_nothing_changes():
    tensor = torch.randn(3)
    assert cast_together([tensor], torch.float32)[0] is tensor
    assert cast_together([], torch.float32) == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_pieces_are_added_where_they_belong(dtype: torch.dtype):
    shapes = [torch.Size(each) for each in ((3, 5), (), (70_000,), (2, 1, 4), (9,))]
    pieces = [torch.randn(shape).to(dtype) for shape in shapes]
    sums = torch.randn(sum(shape.numel() for shape in shapes))
    missing = 3
    wanted = torch.cat([piece.float().flatten() * (i != missing) for i, piece in enumerate(pieces)])
    wanted += sums
    pieces[missing] = None
    add_together(sums, pieces, shapes)
    assert torch.equal(sums, wanted)


def test_pieces_with_gaps_are_added_too():
    sums, piece = torch.zeros(6), torch.arange(6).bfloat16().view(2, 3).T
    assert not piece.is_contiguous()
    add_together(sums, [piece], [piece.shape])
    assert torch.equal(sums, piece.float().flatten())
