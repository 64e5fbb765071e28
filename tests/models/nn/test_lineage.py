"""Sequences that begin alike as a tree, and that no method can tell it from each by itself."""

from itertools import accumulate, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.nn.forward import Part, forward
from models.nn.lineage import LEAST_SAVED, NONE, Tree, lineage, share_starts
from models.nn.methods import METHODS
from models.nn.terms import Terms
from tests.models.nn.families import make_backbone, random_ids, random_tensors

CASES = [
    pytest.param(cls(**example), id=f"{kind}-{index}")
    for kind, cls in METHODS.items()
    for index, example in enumerate(cls.examples)
]


def as_tree(sequences):
    return share_starts([np.array(sequence, np.int64) for sequence in sequences], device="cpu")


def rows_of(tree: Tree):
    """Return each run's rows, and those of all that it goes on from."""
    own = [list(range(*bounds)) for bounds in pairwise(accumulate(tree.lengths, initial=0))]
    return [
        [row for up in lineage(tree.parents, run) for row in own[up]] for run in range(len(own))
    ]


@given(
    st.lists(
        st.tuples(st.integers(0, 60), st.lists(st.integers(0, 1), min_size=1, max_size=30)),
        min_size=1,
        max_size=12,
    )
)
def test_every_sequence_is_a_way_from_a_root(drawn):
    sequences = [[7] * begins + ends for begins, ends in drawn]
    tree = as_tree(sequences)
    if tree is None:
        return
    ways = rows_of(tree)
    mine = torch.split(tree.rows_t, [len(sequence) for sequence in sequences])
    for rows, sequence in zip(mine, sequences, strict=True):
        assert tree.ids_t[rows].tolist() == sequence
        way = next(way for way in ways if rows[-1] in way)
        assert rows.tolist() == way[: way.index(int(rows[-1])) + 1]
    assert all(parent < run for run, parent in enumerate(tree.parents))
    assert sum(tree.lengths) == len(tree.ids_t) <= sum(map(len, sequences)) - LEAST_SAVED
    assert min(tree.lengths) > 0
    assert set(tree.rows_t.tolist()) == set(range(len(tree.ids_t)))


def test_what_is_not_worth_it_is_left_alone():
    assert as_tree([[1] * 40]) is None
    assert as_tree([[1] * 40, [2] * 40]) is None
    worth_it = [1] * LEAST_SAVED
    assert as_tree([[*worth_it[1:], 2], [*worth_it[1:], 3]]) is None
    assert as_tree([[*worth_it, 2], [*worth_it, 3]]).lengths == (LEAST_SAVED, 1, 1)


def test_starts_within_starts():
    system, question, other = [1] * 20, [2] * 20, [3] * 20
    tree = as_tree([[*system, *question, 4], [*system, *other], [*system, *question, 5], system])
    assert tree.lengths == (20, 20, 1, 1, 20)
    assert tree.parents == (NONE, 0, 1, 1, 0)


def test_a_sequence_that_is_there_twice_is_computed_once():
    tree = as_tree([[1] * 30, [1] * 30])
    assert (tree.lengths, tree.parents) == ((30,), (NONE,))
    tree = as_tree([[1] * 30, [1] * 30, [1] * 30 + [2]])
    assert (tree.lengths, tree.parents) == ((30, 1), (NONE, 0))
    assert tree.rows_t.tolist() == [*range(30), *range(30), *range(31)]


SEQUENCES = [
    [*range(20), *range(30, 41)],
    [*range(20), *range(50, 52)],
    list(range(20, 29)),
    [*range(20), *range(30, 50)],
    list(range(20)),
]
LENGTHS = tuple(map(len, SEQUENCES))


@pytest.mark.parametrize("variant", ["llama", "gemma2"])
@pytest.mark.parametrize("method", CASES)
def test_every_method_has_the_states_and_gradients_of_unshared_sequences(method, variant):
    backbone = make_backbone(variant)
    ids, tree = torch.tensor([token for one in SEQUENCES for token in one]), as_tree(SEQUENCES)
    assert tree is not None
    tensors = random_tensors(method, backbone)
    trained = [
        tensor.requires_grad_() for name, tensor in tensors.items() if method.is_trained(name)
    ]
    found = []
    for own in (tree, None):
        terms = Terms.of(method, tensors, backbone.base)
        others = [] if terms.weights else [Part(random_ids(5), (5,))]
        states = forward(backbone, [*others, Part(ids, LENGTHS, terms, tree=own)])
        own_td = states.of(len(others)).hidden_td
        loss = (own_td * torch.linspace(-1, 1, own_td.numel()).view_as(own_td)).sum()
        grads = []
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
        found.append((own_td, *grads))
    for shared, apart in zip(*found, strict=True):
        assert (shared - apart).norm() <= 1e-3 * apart.norm()
