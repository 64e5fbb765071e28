import torch

from models.nn.cast import cast_together


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
