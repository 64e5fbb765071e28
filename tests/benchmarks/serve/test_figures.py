"""What the serving benchmark makes of its figures: gaps, verdicts, ratios, floors; and its work."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from benchmarks.failures import Failures
from benchmarks.serve.__main__ import (
    FURTHER,
    RATIOS,
    ratios_against,
    ratios_of,
    read_options,
    wrong_of,
)
from benchmarks.serve.data import find_texts, find_training
from benchmarks.serve.equality import LEAST, LEAST_OTHERS, Judge, Noise, verdict_of
from benchmarks.serve.floor import Speeds, floor_of
from benchmarks.serve.gaps import BUSY, QUIET, Phase, gaps_by_phase, percentile
from benchmarks.serve.measure import take_turns
from benchmarks.serve.outside import METRICS, read_report
from benchmarks.serve.peers.hf_oracle import shortfall
from benchmarks.serve.peers.peer import Peer
from benchmarks.serve.slots import copy_seconds
from benchmarks.serve.versus import OURS
from benchmarks.serve.work import Order, Work, in_turn
from benchmarks.sides import Side
from models.nn.shape import Shape


def test_a_gap_that_reaches_into_a_busy_phase_is_a_busy_one() -> None:
    phases = [Phase(QUIET, 0.0, 10.0), Phase(BUSY, 10.0, 20.0), Phase(QUIET, 20.0, 30.0)]
    arrivals = [[1.0, 2.0, 11.0, 12.0, 21.0, 22.5, 31.0], [23.0, 24.0]]
    assert gaps_by_phase(arrivals, phases) == {QUIET: [1.0, 1.5, 1.0], BUSY: [9.0, 1.0, 9.0]}


def test_a_percentile_is_a_value_that_was_seen() -> None:
    values = [float(number) for number in range(1, 101)]
    assert percentile(values, 0.99) == 99.0
    assert percentile(values, 1.0) == 100.0
    assert percentile([3.0], 0.5) == 3.0


def test_tokens_are_right_as_long_as_bfloat16_explains_them() -> None:
    noise = Noise(tokens=10, others=1, worst=0.2)
    near = verdict_of([[0.0, 0.3], [0.0]], noise=noise)
    assert (near.likeliest, near.tokens, near.right) == (2, 3, True)
    assert not verdict_of([[0.0, 0.5]], noise=noise).right
    assert verdict_of([[LEAST]], noise=Noise()).right


def test_no_more_tokens_lie_behind_than_bfloat16_explains() -> None:
    noise = Noise()
    noise.add([[0.0, 0.3], [0.0, 0.0]])
    assert (noise.tokens, noise.others, noise.worst) == (4, 1, 0.3)
    for others in range(9):
        found = verdict_of([[0.1] * others + [0.0] * (8 - others)], noise=noise)
        assert found.allowed_others == LEAST_OTHERS + 4
        assert found.right is (others <= 7)


def test_the_oracle_reads_once_what_sides_answer_alike() -> None:
    order = Order(prompts=[[1], [2]], adapters=["a", None], tokens=2)
    asked: list[dict[str, Any]] = []

    def ask(question: dict[str, Any]) -> dict[str, Any]:
        asked.append(question)
        behind = [[0.0, 0.0], [0.0, 0.1], [0.0, 0.6]]
        return {"behind": behind, "noise": [[0.0, 0.0], [0.0, 0.2], [0.0, 0.0]]}

    oracle = cast("Side", SimpleNamespace(ask=ask))
    found = Judge(oracle).verdicts(order, {"one": [[5, 6], [7, 8]], "other": [[5, 6], [7, 9]]})
    assert asked == [
        {
            "prompts": [[1], [2], [2]],
            "adapters": ["a", None, None],
            "tokens": [(5, 6), (7, 8), (7, 9)],
        }
    ]
    assert (found["one"].worst, found["one"].allowed, found["one"].right) == (0.1, 0.4, True)
    other = found["other"]
    assert (other.worst, other.allowed, other.right) == (0.6, 0.4, False)


def test_what_bfloat16_explains_is_measured_on_former_orders_too() -> None:
    replies = iter([{"behind": [[0.0]], "noise": [[0.2]]}, {"behind": [[0.3]], "noise": [[0.0]]}])
    judge = Judge(cast("Side", SimpleNamespace(ask=lambda _: next(replies))))
    order = Order(prompts=[[1]], adapters=[None], tokens=1)
    judge.verdicts(order, {"one": [[5]]})
    assert judge.verdicts(order, {"one": [[6]]})["one"].allowed == 0.4


def test_a_shortfall_is_measured_from_the_likeliest() -> None:
    logits_ngv = torch.tensor([[[1.0, 3.0], [2.0, 0.5]]])
    assert shortfall(logits_ngv, torch.tensor([[0, 0]])).tolist() == [[2.0, 0.0]]


def test_sides_take_turns_on_the_same_orders() -> None:
    asked: list[tuple[str, int]] = []

    def side(name: str, seconds: float, *, short: int = 0) -> Side:
        def ask(order: dict[str, Any]) -> dict[str, object]:
            asked.append((name, order["tokens"]))
            return {"seconds": seconds, "tokens": [[1] * (order["tokens"] - short)] * 2}

        return cast("Side", SimpleNamespace(ask=ask))

    numbers = iter(range(10, 30))

    def make() -> Order:
        return Order(prompts=[[1], [2]], adapters=[None, None], tokens=next(numbers))

    sides, failures = {"ours": side("ours", 2.0), "peer": side("peer", 4.0)}, Failures()
    given: dict[str, Any] = {"make": make, "repeats": 2, "failures": failures}
    measured, orders = take_turns("both", sides, **given)
    warm_up, rounds = asked[:2], asked[2:]
    assert warm_up == [("ours", 8), ("peer", 8)]
    assert rounds == [("ours", 11), ("peer", 11), ("peer", 12), ("ours", 12)]
    assert [order.tokens for order in orders] == [11, 12]
    assert measured["ours"].rates == [11.0, 12.0]
    assert measured["peer"].rate == 5.75
    measured, _ = take_turns("quick", sides, **given, patience=3.0)
    assert [len(one.rates) for one in measured.values()] == [1, 1]
    assert not failures
    measured, _ = take_turns("short", {**sides, "short": side("short", 1.0, short=1)}, **given)
    assert list(measured) == ["ours", "peer"]
    assert list(failures) == ["short: short"]


def test_no_prompt_comes_twice(tmp_path: Path) -> None:
    lines = [
        {"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "de"}]},
        {"prompt": "fgh", "completion": "ij", "label": 3},
        ["not a row"],
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    renderer = SimpleNamespace(encode=lambda text: [ord(letter) for letter in text])
    work = Work(tmp_path, renderer=renderer, seed=3)  # type: ignore[arg-type]
    first, second = work.prompts(2, length=4)
    assert len(first) == len(second) == 4
    assert first != second
    said = {letter for prompt in work.prompts(8, length=4) for letter in map(chr, prompt)}
    assert said == set("abcdefghij\n")


def test_names_go_round_the_rows() -> None:
    assert in_turn(["a", "b"], 5) == ["a", "b", "a", "b", "a"]


def test_known_sets_are_preferred(tmp_path: Path) -> None:
    for name in ("other", "e2e_nlg", "banking77"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train_chat.jsonl").write_text("{}\n")
    assert [path.parent.name for path in find_texts(tmp_path)] == ["banking77", "e2e_nlg"]
    assert find_training(tmp_path).parent.name == "banking77"
    assert find_texts(tmp_path / "other") == [tmp_path / "other" / "train_chat.jsonl"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError):
        find_texts(tmp_path / "empty")


def test_a_floor_counts_weights_once_and_adapters_and_rows_each() -> None:
    shape = Shape(
        hidden=4,
        layers=2,
        heads=2,
        kv_heads=1,
        head_dim=2,
        vocab=10,
        context=16,
        tied=True,
        linears={"layers.0.q": (4, 4), "layers.1.q": (4, 4), "lm_head": (10, 4)},
        norms={},
    )
    world = SimpleNamespace(backbone=SimpleNamespace(shape=shape))
    asked = {"rows": 3, "length": 5, "adapters": 2, "rank": 1}
    reading = Speeds(bandwidth=2.0, rate=1e9)
    floor = floor_of(world, speeds=reading, **asked)  # type: ignore[arg-type]
    assert floor == (32 + 40 / 2) + 2 * (8 + 8) + 3 * 2 * 2 * 1 * 2 * 5
    coded = floor_of(world, speeds=reading, **asked, weight_bytes=1.5)  # type: ignore[arg-type]
    assert floor - coded == 32 / 4
    multiplying = Speeds(bandwidth=1e9, rate=2.0)
    assert floor_of(world, speeds=multiplying, **asked) == 3 * (32 + 16)  # type: ignore[arg-type]
    asked["adapters"] = 0
    assert floor_of(world, speeds=multiplying, **asked) == 3 * 32  # type: ignore[arg-type]


def test_a_copy_reads_the_whole_file(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(3), "b": torch.zeros(2, 2)}, tmp_path / "some.safetensors")
    assert copy_seconds(tmp_path / "some.safetensors") > 0.0


def test_a_report_keeps_units() -> None:
    report = {
        name: {"unit": "ms", "avg": 1.0, "p50": 2.0, "p99": 3.0, "max": 4.0} for name in METRICS
    }
    assert read_report(report)["time_to_first_token"] == {"unit": "ms", "p50": 2.0, "p99": 3.0}


def speeds(**sides: float) -> dict[str, object]:
    return {"sides": {name: {"tokens_per_second": rate} for name, rate in sides.items()}}


def test_ratios_have_the_names_of_the_bars() -> None:
    parts: dict[str, Any] = {
        "adapters": {
            "mixed": {**speeds(**{OURS: 100.0}, vllm=10.0, peft=4.0), "wrong": []},
            "single": {**speeds(**{OURS: 50.0}, vllm=10.0), "wrong": ["llamacpp-bf16"]},
        },
        "base": {
            "base": speeds(**{OURS: 100.0}, vllm=40.0),
            "single_base": speeds(**{OURS: 90.0, "llamacpp-bf16": 60.0}),
        },
        "steps": {"mixed_over_base": 1.2, "kinds_over_base": 1.5},
        "swaps": {"first": {"swap_over_copy": 4.0}, "others": {"swap_gap": 1.1, "wrong": []}},
        "http": {"registered_1000": 0.99},
        "training": {"beside_training": 0.9},
    }
    ratios = ratios_of(parts)
    assert tuple(ratios) == RATIOS
    assert (ratios["mixed_vs_vllm"], ratios["mixed_vs_peft"]) == (10.0, 25.0)
    assert (ratios["single_vs_llamacpp"], ratios["base_vs_vllm"]) == (1.5, 2.5)
    assert ratios_of({"steps": parts["steps"]}) == {"mixed_over_base": 1.2, "kinds_over_base": 1.5}
    assert wrong_of(parts) == ["adapters.single: llamacpp-bf16"]
    single = {"adapters": {"single": parts["adapters"]["single"]}}  # the other contest failed
    assert ratios_of(single) == {"single_vs_vllm": 5.0}
    parts["adapters"]["mixed"]["wrong"] = ["peft"]
    parts["base"]["base"]["wrong"] = [OURS]
    parts["swaps"]["others"]["wrong"] = ["a swapped adapter"]
    lost = {"mixed_vs_peft", "base_vs_vllm", "swap_gap"}
    assert set(RATIOS) - set(ratios_of(parts)) == lost


def test_a_peer_that_was_given_all_cores_counts_apart() -> None:
    figures = speeds(**{OURS: 100.0, "vllm": 40.0, "vllm-all-cores": 80.0})
    parts = {"base": {"base": figures}}
    assert ratios_of(parts) == {"base_vs_vllm": 2.5}
    assert ratios_against(parts, FURTHER) == {"base_vs_vllm_all_cores": 1.25}


def test_quick_leaves_out_what_has_no_bar() -> None:
    quick, whole = read_options(["--quick"]), read_options([])
    assert set(quick.parts) < set(whole.parts)
    assert quick.repeats < whole.repeats
    with pytest.raises(SystemExit):
        read_options(["--parts", "adapters,nothing"])


def test_a_peer_runs_in_the_usual_environment_but_for_what_hinders_it() -> None:
    peer = Peer(name="some", module="some", variables={"OWN": "1"}, without=("OMP_NUM_THREADS",))
    found = peer.environment()
    assert found["OWN"] == "1"
    assert "OMP_NUM_THREADS" not in found
    assert "PYTHONPATH" in found
