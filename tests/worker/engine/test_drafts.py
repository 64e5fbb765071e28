"""Tokens that are computed before they are drawn change when answers come, and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.nn.kernels.native import library, reason
from models.nn.shape import HEAD
from models.wire import AdapterRef
from tests.worker.engine.conftest import World, ask_all, order, put_adapter
from tests.worker.engine.suited import BFLOAT16, suited_world
from worker.engine.drafts import LONGEST_MATCH, continuation
from worker.engine.engine import Engine
from worker.engine.native import ROWS_OF_ONE, NativeRunner
from worker.engine.runner import Runner
from worker.engine.scheduler import Draft, Step
from worker.engine.sequence import Choice

form = library().instructions if library() else ""  # type: ignore[union-attr]
drafted = pytest.mark.skipif(
    form not in ROWS_OF_ONE, reason=reason() or f"A step by {form} has no rows to spare."
)
PROMPT = [20, 21, 22, 23, 24] * 5
WRONG = 7
"""A token that is not drawn where it is drafted."""


@pytest.mark.parametrize(
    ("ids", "most", "expected"),
    [
        ([5, 6, 7, 8, 1, 6, 7], 2, [8, 1]),
        ([1, 2, 3, 9, 5, 2, 3, 7, 1, 2, 3], 2, [9, 5]),  # three tokens match before two do
        ([1, 2, 4, 1, 2, 5, 1, 2], 1, [5]),  # of equal matches the latest
        ([4, 4, 4], 5, [4]),
        ([1, 2, 3], 5, []),
        ([1], 5, []),
        ([1, 2, 1], 0, []),
        ([256, 0, 65536, 0xD800, 9, 0], 3, [65536, 0xD800, 9]),  # all are tokens like others
    ],
)
def test_continuation(ids: list[int], most: int, expected: list[int]) -> None:
    assert continuation(ids, most=most).tokens == expected


@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ([9, 2, 3, 7], [7]),  # as long a match as the row's own: what is predicted counts
        ([9, 3, 7], [4, 1]),  # a shorter one
        ([2, 3], [4, 1]),  # nothing follows it
        ([], [4, 1]),
    ],
)
def test_what_is_predicted_counts_before_the_row_itself(
    predicted: list[int], expected: list[int]
) -> None:
    draft = continuation([2, 3, 4, 1, 2, 3], most=2, predicted=predicted)
    assert draft == Draft(expected, predicted=expected == [7])


@given(st.lists(st.sampled_from([0, 1, 256, 65536, 0xDC00, 257]), min_size=1, max_size=40))
def test_continuation_is_what_a_search_one_by_one_finds(ids: list[int]) -> None:
    def search() -> list[int]:
        for length in range(LONGEST_MATCH, 0, -1):
            for first in range(len(ids) - length - 1, -1, -1):
                if ids[first : first + length] == ids[-length:]:
                    return ids[first + length :][:4]
        return []

    assert continuation(ids, most=4).tokens == search()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return suited_world(tmp_path_factory.mktemp("drafts"))


@pytest.fixture(scope="module")
def adapter(world: World) -> AdapterRef:
    folder = world.settings.data_folder / "lora"
    return put_adapter(
        world.store, folder, backbone=world.backbone, block={"type": "lora", "rank": 4}, seed=5
    )


@pytest.fixture
def engines(start_engine: Callable[..., Engine]) -> list[Engine]:
    """One that drafts nothing, and one that does."""
    return [start_engine(compute=BFLOAT16, drafts=drafts) for drafts in (False, True)]


def count(engine: Engine, kind: str) -> float:
    value = engine.metrics.registry.get_sample_value(
        "graftwork_engine_tokens_total", {"kind": kind}
    )
    return value or 0.0


def steps(engine: Engine) -> float:
    name = "graftwork_engine_step_seconds_count"
    return engine.metrics.registry.get_sample_value(name) or 0.0


@drafted
@pytest.mark.parametrize(
    "sampling",
    [
        {"logprobs": True, "top_logprobs": 3},
        {"temperature": 0.3, "seed": 4, "logprobs": True},
        {"temperature": 1.0, "seed": 5, "top_p": 0.7},
        {"min_tokens": 20, "ignore_eos": False},
        {"temperature": 0.2, "seed": 9, "n": 3},
        {"max_tokens": 2},
        {"max_tokens": 1},
        {"echo": True, "logprobs": True},
    ],
)
def test_answers_are_those_without_drafts(
    engines: list[Engine], adapter: AdapterRef, sampling: dict[str, Any]
) -> None:
    """Of a row alone and of rows that share what there is to spare."""
    asked = {"max_tokens": 60, "ignore_eos": True, **sampling}
    orders = [order(PROMPT, adapter=one, **asked) for one in (None, adapter)]
    plain, quick = ([*ask_all(engine, orders), *ask_all(engine, orders[:1])] for engine in engines)
    assert quick == plain
    drawn = sum(sum(map(len, answer.texts.values())) > 0 for answer in plain)
    assert drawn == len(plain)


def steps_of(prompt: list[int], answer: list[int], *, predicted: Sequence[int] = ()) -> int:
    """Return how many steps an answer takes if right drafts save theirs."""
    stands = [*prompt[-LONGEST_MATCH:], *predicted] if predicted else []
    drawn = taken = 1  # by the prompt's step
    while drawn < len(answer):
        most = min(ROWS_OF_ONE[form] - 1, len(answer) - drawn - 1)
        draft = continuation([*prompt, *answer[:drawn]], most=most, predicted=stands).tokens
        right = takewhile(lambda pair: pair[0] == pair[1], zip(draft, answer[drawn:], strict=False))
        drawn += 1 + len(list(right))
        taken += 1
    return taken


@drafted
def test_a_row_that_repeats_itself_takes_fewer_steps(engines: list[Engine]) -> None:
    plain, quick = engines
    asked: dict[str, Any] = {"max_tokens": 100, "ignore_eos": True}
    request = order(PROMPT, **asked)
    assert ask_all(quick, [request]) == ask_all(plain, [request])
    assert steps(plain) == 100  # the prompt's step draws the first one
    assert count(plain, "drafted") == 0
    assert count(quick, "completion") == count(plain, "completion") == 100
    assert count(quick, "accepted") == 100 - steps(quick)
    assert count(quick, "drafted") >= count(quick, "accepted")
    (said,) = ask_all(plain, [order(PROMPT, logprobs=True, **asked)])
    assert steps(quick) == steps_of(PROMPT, said.ids) < 100


@drafted
@pytest.mark.parametrize(
    ("block", "by_torch"),
    [
        ({"type": "full"}, False),
        ({"type": "full", "last_blocks": 1}, False),
        ({"type": "ia3", "target_modules": [HEAD], "feedforward_modules": [HEAD]}, True),
    ],
)
def test_only_where_torch_computes_the_step_nothing_is_drafted(
    world: World, engines: list[Engine], block: dict[str, Any], *, by_torch: bool
) -> None:
    """Whole weights have rows of their own to spare; a scaled input of the head is torch's."""
    folder = world.settings.data_folder / f"{block['type']}{len(block)}"
    adapter = put_adapter(world.store, folder, backbone=world.backbone, block=block, seed=6)
    request = order(PROMPT, adapter=adapter, max_tokens=60, ignore_eos=True)
    drafted = count(engines[1], "drafted")
    plain, quick = (ask_all(engine, [request]) for engine in engines)
    assert quick == plain
    assert (count(engines[1], "drafted") == drafted) == by_torch


@drafted
def test_a_predicted_answer_comes_sooner(world: World, engines: list[Engine]) -> None:
    """It is the same answer whatever is predicted; what that was worth is said.

    Not all of it comes sooner: bytes that are no text do not come back as the same tokens.
    """
    asked: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_tokens": 60, "ignore_eos": True}
    (plain,) = ask_all(engines[0], [order("Once upon", logprobs=True, **asked)])
    before = steps(engines[1])
    (right,) = ask_all(engines[1], [order("Once upon", prediction=plain.texts[0], **asked)])
    taken = steps(engines[1]) - before
    backwards = plain.texts[0][::-1]
    (wrong,) = ask_all(engines[1], [order("Once upon", prediction=backwards, **asked)])
    for answer in (right, wrong):
        assert answer.texts == plain.texts
        assert answer.last.completion_tokens == 60
    prompt, predicted = map(world.renderer.encode, ("Once upon", plain.texts[0]))
    assert taken == steps_of(prompt, plain.ids, predicted=predicted)
    assert right.last.accepted_tokens == 60 - taken
    assert wrong.last.accepted_tokens < right.last.accepted_tokens
    assert wrong.last.rejected_tokens > 0
    assert plain.last.accepted_tokens == plain.last.rejected_tokens == 0


@drafted
def test_a_stop_string_ends_a_row_within_a_draft(engines: list[Engine]) -> None:
    """What was drawn behind it is forgotten, and not counted."""
    text = ask_all(engines[0], [order(PROMPT, max_tokens=60, ignore_eos=True)])[0].texts[0]
    for first in range(20, 40, 3):
        stop = text[first : first + 5]
        request = order(PROMPT, max_tokens=60, ignore_eos=True, stop=[stop])
        plain, quick = (ask_all(engine, [request])[0] for engine in engines)
        assert quick == plain
        assert quick.texts[0] == text[: text.index(stop)]


@drafted
@pytest.mark.parametrize("end", ["end of text", "stop string"])
def test_what_is_right_behind_the_end_of_an_answer_is_not_accepted(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    engine = engines[1]
    drawn_by: dict[str, Any] = {"max_tokens": 30, "temperature": 1.0}
    for seed in range(200):  # until two tokens come first that differ and are text
        drawn_by["seed"] = seed
        (full,) = ask_all(engine, [order(PROMPT, ignore_eos=True, logprobs=True, **drawn_by)])
        first_two = "".join(token.text for token in full.tokens[0][:2])
        if full.ids[0] != full.ids[1] and len(first_two) == 2 and first_two.isascii():
            break

    def guess(choice: Choice, *, most: int) -> Draft:
        drawn = len(choice.generated)
        return Draft(full.ids[drawn:][: min(most, choice.limit - drawn - 1)], predicted=True)

    monkeypatch.setattr("worker.engine.drafts._guess", guess)
    asked: dict[str, Any] = {"ignore_eos": True, "stop": [first_two]}
    if end == "end of text":
        renderer = engine._opened.renderer  # type: ignore[union-attr]
        monkeypatch.setattr(renderer, "eos_ids", frozenset({full.ids[1]}), raising=False)
        asked = {}
    before = {kind: count(engine, kind) for kind in ("completion", "drafted", "accepted")}
    (answer,) = ask_all(engine, [order(PROMPT, **drawn_by, **asked)])
    drafted = ROWS_OF_ONE[form] - 1
    assert answer.last.completion_tokens == 2
    assert (answer.last.accepted_tokens, answer.last.rejected_tokens) == (1, drafted - 1)
    counted = {kind: count(engine, kind) - value for kind, value in before.items()}
    assert counted == {"completion": 2, "drafted": drafted, "accepted": 1}


@drafted
def test_rows_end_with_their_context(engines: list[Engine]) -> None:
    context = engines[0].health()["context"]
    request = order(PROMPT, max_tokens=context - len(PROMPT), ignore_eos=True)
    plain, quick = (ask_all(engine, [request] * 2) for engine in engines)
    assert quick == plain
    assert quick[0].last.completion_tokens == context - len(PROMPT)


@pytest.fixture
def spoilt(engines: list[Engine], monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Let drafts be wrong and give no numbers; return the slots and positions where they lie."""
    blocks = engines[1]._opened.loop._blocks  # type: ignore[union-attr]
    run, places = Runner.run, []

    def mislead(step: Step, *, spare: int) -> Step:
        share = spare // max(1, len(step.decodes))
        return replace(step, drafts={choice: Draft([WRONG] * share) for choice in step.decodes})

    def spoil(self: Runner, step: Step, **how: Any) -> Any:
        outcome = run(self, step, **how)
        logits_nv, row = outcome.logits(), 0
        for choice in step.drawing():
            drafts = len(step.draft(choice).tokens)
            if drafts:
                place = (choice.slot, choice.reach, choice.reach + drafts)
                part = blocks.read(place[0], start=place[1], stop=place[2])
                blocks.write(place[0], torch.full_like(part, torch.nan), start=place[1])
                places.append(place)
            logits_nv[row + 1 : row + 1 + drafts] = torch.nan
            row += 1 + drafts
        return replace(outcome, logits=lambda: logits_nv)

    monkeypatch.setattr("worker.engine.drafts.with_drafts", mislead)
    monkeypatch.setattr(Runner, "run", spoil)
    return places


def are_numbers(engine: Engine, places: list[tuple[int, int, int]]) -> bool:
    blocks = engine._opened.loop._blocks  # type: ignore[union-attr]
    return all(blocks.read(slot, start=a, stop=b).isfinite().all() for slot, a, b in places)


@drafted
def test_what_a_wrong_draft_leaves_behind_hurts_nobody(
    engines: list[Engine], spoilt: list[tuple[int, int, int]]
) -> None:
    """Its keys may be no numbers at all: they are wiped, and no row ends because of them."""
    plain, quick = engines
    request = order(PROMPT, max_tokens=40, ignore_eos=True, logprobs=True, n=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quick._opened.loop._stepper, "_drafter", None)  # type: ignore[union-attr]
        expected = ask_all(quick, [request])[0]
    assert WRONG not in expected.ids
    assert not spoilt
    assert ask_all(quick, [request])[0] == expected
    assert len(spoilt) == 2 * 39
    assert are_numbers(quick, spoilt)
    assert count(plain, "drafted") == 0


@drafted
def test_nothing_is_left_behind_where_a_request_fails_with_its_drafts(
    engines: list[Engine], spoilt: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both of its choices had drafts without numbers when the first one turned out to have none."""
    run = Runner.run

    def break_all(self: Runner, step: Step, **how: Any) -> Any:
        outcome = run(self, step, **how)
        if not step.drafts:
            return outcome
        logits_nv = torch.full_like(outcome.logits(), torch.nan)
        return replace(outcome, logits=lambda: logits_nv)

    monkeypatch.setattr(Runner, "run", break_all)
    request = order(PROMPT, max_tokens=40, ignore_eos=True, logprobs=True, n=2)
    answer = ask_all(engines[1], [request])[0]
    assert answer.last.code == "engine_fault"
    assert len(spoilt) == 2
    assert are_numbers(engines[1], spoilt)


@drafted
@pytest.mark.parametrize("place", ["drafts.with_drafts", "native.NativeRunner.run"])
def test_an_answer_comes_without_drafts_where_these_fail(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    request = order(PROMPT, max_tokens=20, ignore_eos=True)
    expected = ask_all(engines[0], [request])
    run = NativeRunner.run

    def fail(*given: Any, **how: Any) -> Any:
        if place.startswith("native") and not given[1].drafts:
            return run(*given, **how)
        raise MemoryError

    monkeypatch.setattr(f"worker.engine.{place}", fail)
    assert ask_all(engines[1], [request]) == expected
    assert count(engines[1], "accepted") == 0
