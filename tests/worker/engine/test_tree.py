"""Continuations of one prompt in one slot: who sees whom, and where each stands."""

import torch

from worker.engine.tree import Tree


def grow(*continuations: str) -> tuple[Tree, list[list[tuple[int, int]]]]:
    """Grow by strings of digits."""
    tree = Tree()
    return tree, [tree.add([(int(digit), True) for digit in one]) for one in continuations]


def test_common_beginnings_are_shared_and_last_tokens_have_no_node() -> None:
    tree, edges = grow("129", "139", "9", "1299")
    assert tree.tokens == [1, 2, 3, 9]
    assert tree.parents == [-1, 0, 0, 1]
    assert tree.depths == [1, 2, 2, 3]
    assert edges == [
        [(-1, 1), (0, 2), (1, 9)],
        [(-1, 1), (0, 3), (2, 9)],
        [(-1, 9)],
        [(-1, 1), (0, 2), (1, 9), (3, 9)],
    ]


def test_it_says_what_a_continuation_lacks() -> None:
    tree, _ = grow("129", "139")
    for continuation, lacking in (("129", 0), ("1259", 1), ("149", 1), ("5679", 3), ("9", 0)):
        assert tree.lacks([(int(digit), True) for digit in continuation]) == lacking


def test_what_is_not_scored_is_still_read() -> None:
    tree = Tree()
    assert tree.add([(1, True), (2, False), (3, True)]) == [(-1, 1), (1, 3)]
    assert tree.tokens == [1, 2]


def test_nodes_see_the_prompt_and_what_they_continue() -> None:
    tree, _ = grow("129", "139", "59")
    assert tree.positions(1, 7, trunk=3) == [1, 2, 3, 4, 4, 3]
    expected = torch.tensor(
        [
            [1, 1, 1, 0, 0, 0, 0],
            [1, 1, 1, 1, 0, 0, 0],
            [1, 1, 1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0, 1, 0],
            [1, 1, 1, 0, 0, 0, 1],
        ]
    ).bool()
    whole = tree.visible(0, 7, trunk=3, window=None)
    assert torch.equal(whole[2:], expected)
    for start, stop in ((0, 2), (1, 3), (2, 5), (3, 4), (5, 7)):
        part = tree.visible(start, stop, trunk=3, window=None)
        assert torch.equal(part, whole[start:stop, :stop])


def test_a_window_counts_positions_not_places() -> None:
    tree, _ = grow("129", "139")
    visible = tree.visible(0, 6, trunk=3, window=2)
    assert visible[5].tolist() == [False, False, False, True, False, True]
    assert visible[3].tolist() == [False, False, True, True, False, False]
