"""Who runs next, without a tensor."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from models.spec import SamplingSpec
from models.wire import AdapterRef
from worker.engine.scheduler import BESIDE_OTHERS, Scheduler, Step
from worker.engine.sequence import Choice, Footing, Sequence
from worker.engine.text import TextStream
from worker.engine.tree import ROOT, Tree


def row(
    length: int,
    adapter: str | None = None,
    *,
    group: str | None = None,
    tenant: str | None = None,
) -> Choice:
    ref = AdapterRef(adapter, adapter) if adapter else None
    request = SimpleNamespace(adapter=ref, sampling=SamplingSpec(), tenant=tenant)
    return Choice(
        request=cast("Any", request),
        index=0,
        prompt=[1] * length,
        footing=Footing(group=group),
        limit=4,
        seed=0,
        text=TextStream(bytes_of=lambda token: b""),
    )


def make(rows: int, prefill_tokens: int, *sequences: Sequence) -> Scheduler:
    scheduler = Scheduler(rows=rows, prefill_tokens=prefill_tokens, beside_others=BESIDE_OTHERS)
    for sequence in sequences:
        scheduler.add(sequence)
    return scheduler


def everybody(sequence: Sequence) -> bool:
    return True


def advance(step: Step | None) -> None:
    for chunk in step.chunks if step else ():
        chunk.sequence.computed = chunk.stop


def sizes(step: Step | None) -> list[int]:
    return [chunk.stop - chunk.start for chunk in step.chunks] if step else []


def test_a_tenants_flood_delays_another_by_one_turn() -> None:
    flood = [row(3, name, tenant="many") for name in ("a", "b", "c", None) * 4]
    other = row(3, "a", tenant="one")
    scheduler = make(3, 8, *flood, other)
    assert scheduler.admit(everybody)[:2] == [flood[0], other]


def test_steps_that_not_all_can_share_are_short_while_others_decode() -> None:
    decoding, apart = row(3), row(1000, "whole", group="whole")
    scheduler = make(2, 512, decoding)
    scheduler.admit(everybody)
    advance(scheduler.next_step())
    scheduler.add(apart)
    scheduler.admit(everybody)
    steps = [scheduler.next_step() for _ in range(4)]
    assert [sizes(step) for step in steps] == [[BESIDE_OTHERS], [], [BESIDE_OTHERS], []]
    scheduler.remove(decoding)
    assert sizes(scheduler.next_step()) == [512]


def test_idle_has_no_step() -> None:
    scheduler = make(2, 8)
    assert scheduler.admit(everybody) == []
    assert scheduler.next_step() is None


def test_slots_go_lowest_first_and_come_back() -> None:
    rows = [row(3) for _ in range(4)]
    scheduler = make(3, 8, *rows)
    assert scheduler.admit(everybody) == rows[:3]
    assert [sequence.slot for sequence in rows] == [0, 1, 2, None]
    scheduler.remove(rows[1])
    assert scheduler.admit(everybody) == [rows[3]]
    assert rows[3].slot == 1
    assert rows[1].slot is None


def test_a_long_prompt_is_cut_and_never_delays_decoding() -> None:
    short, long = row(2), row(100)
    scheduler = make(2, 10, short, long)
    scheduler.admit(everybody)
    assert sizes(scheduler.next_step()) == [2, 8]
    advance(scheduler.next_step())
    for _ in range(10):
        step = scheduler.next_step()
        assert step is not None
        assert step.decodes == (short,)
        assert sum(sizes(step)) <= 10
        advance(step)
    assert not long.prefilling


def test_prompts_that_end_soonest_are_computed_first() -> None:
    rows = [row(40), row(9), row(4), row(4)]
    scheduler = make(4, 16, *rows)
    scheduler.admit(everybody)
    served = []
    for _ in range(3):
        step = scheduler.next_step()
        assert step is not None
        assert sum(sizes(step)) == 16
        served.append({chunk.sequence: chunk.stop - chunk.start for chunk in step.chunks})
        advance(step)
    assert served == [
        {rows[0]: 8, rows[2]: 4, rows[3]: 4},
        {rows[0]: 8, rows[1]: 8},
        {rows[0]: 15, rows[1]: 1},
    ]


def test_the_first_prompt_moves_whatever_shorter_ones_come() -> None:
    long = row(100)
    scheduler = make(50, 10, long)
    steps = 0
    while long.prefilling:
        for _ in range(3):
            scheduler.add(row(10))
        scheduler.admit(everybody)
        advance(scheduler.next_step())
        steps += 1
        for sequence in [one for one in scheduler.running if not one.prefilling]:
            scheduler.remove(sequence)
    assert steps <= 20


@pytest.mark.parametrize("prefill_tokens", [1, 2, 3, 8])
def test_every_budget_is_used_and_ends_every_prompt(prefill_tokens: int) -> None:
    rows = [row(length) for length in (4, 1, 7, 4, 2)]
    scheduler = make(5, prefill_tokens, *rows)
    scheduler.admit(everybody)
    left = 18
    while left:
        step = scheduler.next_step()
        assert sum(sizes(step)) == min(prefill_tokens, left)
        left -= sum(sizes(step))
        advance(step)
    assert not any(sequence.prefilling for sequence in rows)


def test_of_prompts_that_lack_the_same_tokens_one_is_computed() -> None:
    rows = [row(5), row(4), row(4), row(3), row(6)]
    for sequence, lacks in zip(rows, (None, b"a", b"a", None, b"b"), strict=True):
        sequence.lacks = lacks
    scheduler = make(5, 100, *rows)
    scheduler.admit(everybody)
    step = scheduler.next_step()
    assert step is not None
    assert [chunk.sequence for chunk in step.chunks] == [rows[0], rows[1], rows[3], rows[4]]
    rows[1].lacks = b"c"
    assert sizes(scheduler.next_step()) == [5, 4, 4, 3, 6]


def test_what_is_not_ready_does_not_block_others() -> None:
    cold, warm = row(1, "cold"), row(1, "warm")
    scheduler = make(2, 8, cold, warm)
    ready = {"warm"}
    assert scheduler.admit(lambda s: s.adapter is not None and s.adapter.digest in ready) == [warm]
    assert scheduler.waiting == [cold]


def test_a_flood_for_one_adapter_delays_another_by_one_turn() -> None:
    flood = [row(1, "a") for _ in range(50)]
    single = row(1, "b")
    scheduler = make(2, 8, *flood, single)
    assert scheduler.admit(everybody) == [flood[0], single]


def test_the_head_of_the_queue_moves_whatever_others_send() -> None:
    waiting = [row(1, "a") for _ in range(3)]
    scheduler = make(1, 8, row(1, "a"), *waiting)
    turns = 0
    while waiting[-1] in scheduler.waiting:
        scheduler.admit(everybody)
        scheduler.remove(scheduler.running[0])
        scheduler.add(row(1, f"new-{turns}"))
        turns += 1
    assert turns <= 9


def test_compaction_moves_the_highest_rows_into_holes() -> None:
    rows = [row(1) for _ in range(8)]
    scheduler = make(8, 8, *rows)
    scheduler.admit(everybody)
    for sequence in rows[:6]:
        scheduler.remove(sequence)
    moved = list(scheduler.compact(rows=2))
    assert [(sequence.slot, source) for sequence, source in moved] == [(0, 7), (1, 6)]
    assert list(scheduler.compact(rows=2)) == []
    scheduler.add(row(1))
    assert [sequence.slot for sequence in scheduler.admit(everybody)] == [2]


def test_rows_that_decode_have_one_step_until_somebody_comes_or_goes() -> None:
    rows = [row(1), row(1), row(2, group="a"), row(2)]
    scheduler = make(3, 8, *rows[:2])
    scheduler.admit(everybody)
    assert sizes(scheduler.next_step()) == [1, 1]
    for sequence in rows[:2]:
        sequence.computed = 1
    steps = [scheduler.next_step() for _ in range(3)]
    assert steps[0] is steps[1] is steps[2]
    assert steps[0] == Step((rows[0], rows[1]), ())
    scheduler.add(rows[2])
    scheduler.admit(everybody)
    steps = [scheduler.next_step() for _ in range(3)]
    assert [step.group for step in steps if step] == ["a", None, "a"]
    scheduler.remove(rows[2])
    assert scheduler.next_step() == scheduler.next_step() == Step((rows[0], rows[1]), ())
    scheduler.remove(rows[0])
    assert scheduler.next_step() == Step((rows[1],), ())
    scheduler.add(rows[3])
    scheduler.admit(everybody)
    step = scheduler.next_step()
    assert step is not None
    assert (step.decodes, sizes(step)) == ((rows[1],), [2])


def test_steps_can_be_taken_apart() -> None:
    rows = [row(2), row(3)]
    scheduler = make(2, 8, *rows)
    scheduler.admit(everybody)
    rows[0].computed = 2
    step = scheduler.next_step()
    assert step is not None
    parts = list(step.alone())
    assert [list(part.sequences) for part in parts] == [[rows[0]], [rows[1]]]


def test_adapters_that_share_no_step_take_turns_with_the_others() -> None:
    shared, first, second = row(1), row(1, "a", group="a"), row(1, "b", group="b")
    scheduler = make(4, 8, shared, row(2, "c"), first, second)
    scheduler.admit(everybody)
    for sequence in scheduler.running:
        sequence.computed = len(sequence.prompt)
    steps = [scheduler.next_step() for _ in range(7)]
    assert [step.group for step in steps if step] == [None, "a", "b", None, "a", "b", None]
    assert [len(step.decodes) for step in steps if step] == [2, 1, 1, 2, 1, 1, 2]
    scheduler.remove(first)
    steps = [scheduler.next_step() for _ in range(4)]
    assert [step.group for step in steps if step] == ["b", None, "b", None]


def test_nodes_of_trees_are_steps_of_their_own() -> None:
    first, second = row(6), row(5)
    for sequence, nodes in ((first, 4), (second, 2)):
        sequence.tree = Tree([1] * nodes, [ROOT] * nodes, [1] * nodes)
    scheduler = make(3, 8, first, second, row(3))
    scheduler.admit(everybody)
    steps = []
    for _ in range(3):
        step = scheduler.next_step()
        advance(step)
        steps.append((len(step.decodes) if step else None, sizes(step)))
    assert steps == [(0, [2, 3, 3]), (0, [4, 2]), (1, [])]


@pytest.mark.parametrize("group", [None, "a"])
def test_labels_one_after_another_leave_steps_to_others(group: str | None) -> None:
    other = row(1, group="b")
    scheduler = make(2, 8, other)
    scheduler.admit(everybody)
    other.computed = 1
    steps = []
    for _ in range(40):
        if len(scheduler.running) == 1:
            labels = row(6, "a", group=group)
            labels.tree = Tree([1, 1], [ROOT] * 2, [1] * 2)
            scheduler.add(labels)
            scheduler.admit(everybody)
        step = scheduler.next_step()
        assert step is not None
        steps.append(step)
        advance(step)
        if not labels.prefilling:
            scheduler.remove(labels)
    assert sum(other in step.decodes for step in steps) >= 13


def test_groups_that_come_and_go_leave_steps_to_others() -> None:
    stays = row(1)
    scheduler = make(2, 8, stays)
    scheduler.admit(everybody)
    stays.computed = 1
    steps = []
    for number in range(30):
        comes = row(1, group="ab"[number % 2])
        scheduler.add(comes)
        scheduler.admit(everybody)
        steps.append(scheduler.next_step())
        scheduler.remove(comes)
    assert sum(step.group is None for step in steps if step) >= 10


def test_a_new_group_has_the_next_step() -> None:
    scheduler = make(3, 8, row(9), row(9, "a", group="a"))
    scheduler.admit(everybody)
    for _ in range(5):
        advance(scheduler.next_step())
    scheduler.add(row(1, "b", group="b"))
    scheduler.admit(everybody)
    step = scheduler.next_step()
    assert step is not None
    assert step.group == "b"
