"""Cross-entropy over a head in C++ against float64, alone, in company, in several chunks."""

from functools import partial

import pytest
import torch
from torch import Tensor

from models.nn.kernels import Weight, reference
from models.nn.kernels.native import cross_entropy
from models.nn.kernels.plain import PLAIN
from tests.models.nn.kernels.native.comparing import (
    assert_close_to_exact,
    assert_threads_change_nothing,
    drawn,
)

pytestmark = pytest.mark.usefixtures("each_dtype")

VOCABULARY = 6176  # segments of three blocks and a bit
ROWS = 257  # two chunks


def lose(
    form, hidden: Tensor, *, bias: bool = False, tokens: int = VOCABULARY
) -> tuple[Tensor, Tensor]:
    weight = drawn(tokens, 64, seed=2, scale=0.3).to(hidden)
    head = Weight(weight, drawn(tokens, seed=3).to(hidden) if bias else None)
    targets = torch.randint(tokens, (len(hidden),), generator=torch.Generator().manual_seed(0))
    return form.linear_cross_entropy(hidden, weight=head, targets_n=targets)


@pytest.mark.parametrize("rows", [1, 13, 256, ROWS])
@pytest.mark.parametrize("bias", [True, False])
def test_losses_and_gradients_are_those_of_float64(rows: int, bias: bool) -> None:
    def losses(form, hidden: Tensor) -> Tensor:
        return lose(form, hidden, bias=bias)[0]

    inputs = (drawn(rows, 64, seed=1),)
    assert_close_to_exact(partial(losses, cross_entropy), partial(losses, reference), inputs)
    assert_threads_change_nothing(partial(losses, cross_entropy), inputs)


def test_there_may_be_fewer_tokens_than_segments_have_places_for() -> None:
    def losses(form, hidden: Tensor) -> Tensor:
        return lose(form, hidden, tokens=96)[0]

    inputs = (drawn(5, 64, seed=1),)
    assert_close_to_exact(partial(losses, cross_entropy), partial(losses, reference), inputs)


def test_large_logits_and_tokens_that_cannot_come() -> None:
    """Sums before a larger logit scale down to nothing; whole blocks may have no weight at all."""
    hidden = drawn(20, 64, seed=1)
    weight, bias = drawn(VOCABULARY, 64, seed=2, scale=6.0), drawn(VOCABULARY, seed=3)
    bias[: VOCABULARY // 2] = -torch.inf
    targets = torch.arange(20) + VOCABULARY // 2
    assert (hidden.float() @ weight.float().T).abs().max() > 150

    def losses(form, hidden: Tensor) -> Tensor:
        head = Weight(weight.to(hidden), bias.to(hidden))
        return form.linear_cross_entropy(hidden, weight=head, targets_n=targets)[0]

    # Of logits near 50, products of 13 bits leave a hundredth, and of the gradient as much.
    bound = 0.01 if hidden.dtype is torch.bfloat16 else 0.04
    assert_close_to_exact(
        partial(losses, cross_entropy), partial(losses, reference), (hidden,), bound=bound
    )


def test_what_is_no_number_stays_so() -> None:
    hidden = drawn(4, 64, seed=1)
    hidden[2, 5] = torch.nan
    losses, correct = lose(cross_entropy, hidden)
    assert losses.isnan().tolist() == [False, False, True, False]
    assert not correct[2]


def test_rows_and_weights_may_lie_apart() -> None:
    wide, table = drawn(20, 96, seed=1), drawn(VOCABULARY, 96, seed=2)
    targets = torch.arange(20)
    apart, dense = (
        cross_entropy.linear_cross_entropy(hidden, weight=Weight(weight), targets_n=targets)
        for hidden, weight in (
            (wide[:, :64], table[:, :64]),
            (wide[:, :64].contiguous(), table[:, :64].contiguous()),
        )
    )
    assert torch.equal(apart[0], dense[0])


def test_hits_are_the_argmax() -> None:
    hidden = drawn(40, 64, seed=1)
    weight = drawn(VOCABULARY, 64, seed=2)
    targets = (hidden.double() @ weight.double().T).argmax(-1)
    targets[::2] = 0
    best = (hidden.double() @ weight.double().T).topk(2).values
    clear = best[:, 0] - best[:, 1] > 0.03  # products may round to 13 bits
    _, correct = cross_entropy.linear_cross_entropy(
        hidden, weight=Weight(weight), targets_n=targets
    )
    assert clear.sum() > 30
    assert not correct[::2].any()
    assert correct[1::2][clear[1::2]].all()


def test_a_row_does_not_depend_on_its_company() -> None:
    weight, rows = Weight(drawn(VOCABULARY, 64, seed=2)), drawn(ROWS, 64, seed=1)
    targets = torch.arange(ROWS)

    def computed(chosen: Tensor) -> tuple[Tensor, Tensor]:
        hidden = rows[chosen].requires_grad_()
        losses, _ = cross_entropy.linear_cross_entropy(
            hidden, weight=weight, targets_n=targets[chosen]
        )
        losses.sum().backward()
        return losses.detach(), hidden.grad

    losses, grads = computed(torch.arange(ROWS))
    for chosen in (torch.tensor([3]), torch.arange(180, ROWS)):
        own = computed(chosen)
        assert torch.equal(losses[chosen], own[0])
        assert torch.equal(grads[chosen], own[1])


def test_without_a_gradient_losses_are_the_same() -> None:
    hidden = drawn(5, 64, seed=1)
    with torch.no_grad():
        alone = lose(cross_entropy, hidden)[0]
    assert torch.equal(alone, lose(cross_entropy, hidden.requires_grad_())[0].detach())


def test_odd_sizes_are_computed_plainly() -> None:
    weight, hidden = Weight(drawn(50, 24, seed=1)), drawn(3, 24, seed=2)
    targets = torch.tensor([1, 2, 3])
    found, plain = (
        form.linear_cross_entropy(hidden, weight=weight, targets_n=targets)
        for form in (cross_entropy, PLAIN)
    )
    assert torch.equal(found[0], plain[0])
    assert torch.equal(found[1], plain[1])
