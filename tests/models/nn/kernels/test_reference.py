import torch

from models.nn.kernels import reference


def test_a_masked_low_rank_update_is_each_rows_own():
    torch.manual_seed(0)
    y, x, down, up = (torch.randn(*d).double() for d in ((4, 3), (4, 5), (6, 5), (3, 6)))
    owners = torch.tensor([0, 0, 1, 1, 1, 2])
    rows = torch.tensor([2, 0, 1, 9])
    scales = torch.tensor([2.0, 2.0, 0.5, 0.5, 0.5, 1.0]).double()
    weight = (rows[:, None] == owners) * scales
    output = reference.low_rank(y, x, down_ri=down, up_or=up, weight=weight)
    for index, owner in enumerate(rows.tolist()):
        own = owners == owner
        update = up[:, own] @ (scales[own] * (down[own] @ x[index]))
        torch.testing.assert_close(output[index], y[index] + update)


def test_the_low_rank_update_has_right_gradients():
    torch.manual_seed(0)
    sizes = ((4, 3), (4, 5), (2, 5), (3, 2))
    arguments = [torch.randn(*size).double().requires_grad_() for size in sizes]

    def update(y, x, down, up):
        return reference.low_rank(y, x, down_ri=down, up_or=up, weight=0.5)

    assert torch.autograd.gradcheck(update, arguments)


def test_vectors_are_picked_by_row():
    table = torch.tensor([[1.0, 1.0], [2.0, 3.0]])
    x, rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0])
    scaled = reference.row_scale(x, table_ni=table, rows_t=rows)
    shifted = reference.row_shift(x, table_ni=table, rows_t=rows)
    assert scaled.tolist() == [[2.0, 6.0], [3.0, 4.0]]
    assert shifted.tolist() == [[3.0, 5.0], [4.0, 5.0]]
