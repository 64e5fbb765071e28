"""Demonstrations: how rows are chosen, per request and for all, and what a job makes of them."""

from collections import Counter
from pathlib import Path

import pytest
import torch

from core.errors import InvalidRequest
from models.nn.artifact import load_artifact
from models.nn.methods import parse_method, parse_posted
from models.nn.methods.in_context import Demonstration, InContext
from models.nn.problem import Pair
from models.nn.similarity import cosines, cover, word_similarities
from tests.models.nn.methods.problem import REVIEWS, World, measured

BM25 = {"selection": "bm25", "scope": "per_request"}
NEAREST = {"selection": "nearest", "scope": "per_request"}
ANIMALS = [
    ("a cat sat on the mat", "cat"),
    ("the dog ran after a ball", "dog"),
    ("seven horses slept standing", "horse"),
    ("a cat and a dog met", "both"),
    ("zebras drink at noon", "zebra"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"), max_position_embeddings=2048)


def decide(world, method, *, rows=REVIEWS, seed=0):
    problem = world.problem(method, rows=rows)
    method = method.adapt(problem, torch.Generator().manual_seed(seed))
    tensors = method.init(world.backbone.base, torch.Generator())
    return method, method.search(tensors, problem, step=0, generator=torch.Generator())[0]


@pytest.mark.parametrize("block", InContext.examples)
def test_what_the_data_decide_survives_json(world, block):
    method, tensors = decide(world, InContext(**block))
    assert method.chosen or method.pool
    assert parse_method(method.model_dump(mode="json")) == method
    assert {name: tuple(t.shape) for name, t in tensors.items()} == method.tensors(
        world.backbone.shape
    )
    assert method.parameters(world.backbone.shape) == 0
    assert method.adapt(world.problem(method), torch.Generator()) is method


@pytest.mark.parametrize("selection", ["random", "balanced", "bm25", "nearest"])
def test_the_same_rows_stand_before_every_request(world, selection):
    method, tensors = decide(world, InContext(selection=selection))
    fixed = method.demonstrations(tensors, None)
    assert len(set(fixed)) == 4
    assert set(fixed) <= set(REVIEWS)
    assert method.demonstrations(tensors, world.ask("good?")) == fixed
    assert decide(world, InContext(selection=selection))[0] == method


def test_a_seed_decides_what_is_drawn(world):
    drawn = {decide(world, InContext(selection="random"), seed=seed)[0].chosen for seed in range(3)}
    assert len(drawn) == 3


@pytest.mark.parametrize(("k", "counts"), [(6, [2, 2, 2]), (4, [1, 1, 2]), (14, [2, 6, 6])])
def test_balanced_shows_each_answer_as_often_as_the_rows_allow(world, k, counts):
    rows = [row for row in REVIEWS if row[1] != "yes"]
    rows += [row for row in REVIEWS if row[1] == "yes"][:2]
    method, _ = decide(world, InContext(k=k, max_characters=40), rows=rows)
    assert sorted(Counter(row.answer for row in method.chosen).values()) == counts


def test_bm25_shows_the_rows_that_share_rare_words_the_best_last(world):
    method, tensors = decide(world, InContext(k=2, **BM25), rows=ANIMALS)
    assert tensors == {}
    assert method.demonstrations(tensors, None) == ()
    shown = method.demonstrations(tensors, world.ask("Did a DOG fetch the ball?"))
    assert len(shown) == 2
    assert shown[-1] == Pair(*ANIMALS[1])
    assert method.demonstrations(tensors, world.ask("noon, zebras"))[-1].answer == "zebra"


def test_nearest_shows_the_rows_whose_centred_states_point_the_same_way(world):
    method, tensors = decide(world, InContext(k=2, **NEAREST), rows=ANIMALS)
    problem = world.problem(method, rows=ANIMALS)
    pool = problem.text_features([row.prompt for row in method.pool], "mean")
    asked = problem.text_features(["the dog ran after a balloon"], "mean")[0]
    mean = pool.mean(0)
    alike = [torch.cosine_similarity(row - mean, asked - mean, dim=0).item() for row in pool]
    best = sorted(range(5), key=lambda row: alike[row])[-2:]
    shown = method.demonstrations(tensors, world.ask("the dog ran after a balloon"))
    assert [pair.prompt for pair in shown] == [method.pool[row].prompt for row in best]
    assert shown[-1].answer == "dog"


@pytest.mark.parametrize("block", [BM25, NEAREST])
def test_a_row_is_never_shown_before_its_own_prompt(world, block):
    method, tensors = decide(
        world,
        InContext(k=64, max_characters=15, **block),
        rows=[
            ("one", "1"),
            ("two", "2"),
            ("three", "3"),
            ("one", "uno"),
        ],
    )
    assert sorted(row.prompt for row in method.pool) == ["one", "three", "two"]
    shown = method.demonstrations(tensors, world.ask("one"))
    assert sorted(pair.prompt for pair in shown) == ["three", "two"]


@pytest.mark.parametrize("text", ["", "?!", "unheard", "你好"])
@pytest.mark.parametrize("block", [BM25, NEAREST])
def test_any_request_gets_demonstrations(world, block, text):
    rows = [*ANIMALS, ("?", "question mark"), ("こんにちは", "hello")]
    method, tensors = decide(world, InContext(k=3, **block), rows=rows)
    assert len(method.demonstrations(tensors, world.ask(text))) == 3


def test_a_pool_is_bounded(world):
    method, _ = decide(world, InContext(pool_size=5, **BM25))
    assert len(method.pool) == 5
    assert not method.chosen


def test_rows_that_are_too_long_are_not_shown(world):
    rows = [("short", "a"), ("l" * 200, "b"), ("w" * 90, "c")]
    method, _ = decide(world, InContext(k=3, max_characters=100), rows=rows)
    assert {row.answer for row in method.chosen} == {"a", "c"}
    method, _ = decide(world, InContext(k=16), rows=rows)  # 64 of 2048 bytes each
    assert {row.answer for row in method.chosen} == {"a"}
    with pytest.raises(InvalidRequest, match="max_characters") as error:
        decide(world, InContext(max_characters=3), rows=rows)
    assert error.value.code == "no_demonstrations"


def test_drawn_rows_cannot_be_drawn_for_each_request():
    with pytest.raises(InvalidRequest, match="bm25 or nearest") as error:
        parse_method({"type": "in_context", "scope": "per_request"})
    assert error.value.param == "peft.scope"


@pytest.mark.parametrize("field", ["chosen", "pool"])
def test_what_the_job_fills_in_is_not_posted(field):
    block = {"type": "in_context", field: [{"prompt": "a", "answer": "b"}]}
    with pytest.raises(InvalidRequest, match="leave it out") as error:
        parse_posted(block)
    assert error.value.param == f"peft.{field}"
    assert parse_posted(block | {field: []}).kind == "in_context"
    assert InContext.model_json_schema()["properties"][field]["readOnly"]


def test_the_rows_for_all_requests_stand_for_different_parts_of_the_data():
    texts = ["red apple", "red apple pie", "red apple tart", "blue whale", "blue whale song"]
    found = cover(word_similarities(texts), 2)
    assert {texts[row].split()[0] for row in found} == {"red", "blue"}
    points = torch.tensor([[0.0, 1], [0.1, 1], [-0.1, 1], [5, -1], [5.1, -1]])
    assert {row // 3 for row in cover(cosines(points, points), 2)} == {0, 1}
    assert sorted(cover(torch.eye(3), 9)) == [0, 1, 2]


@pytest.mark.parametrize("block", [{}, BM25, NEAREST])
def test_a_job_stores_the_demonstrations_and_measures_itself_with_them(world, block):
    said = world.train({"type": "in_context", "k": 2, **block})
    assert measured(said)["valid_loss"] > 0
    loaded = load_artifact(Path(said[-1].adapter_folder), shape=world.backbone.shape)
    method = loaded.method
    assert isinstance(method, InContext)
    assert isinstance((method.chosen or method.pool)[0], Demonstration)
    asked = world.ask("The film number 0 was good!")
    shown = method.demonstrations(loaded.tensors, asked)
    assert len(shown) == 2
    if block:
        assert shown[-1] == REVIEWS[0]
