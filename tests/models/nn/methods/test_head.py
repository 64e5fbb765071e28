"""New output layers: a uniform start, labels, the language-model head, whole jobs, torch's own."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from core.errors import InvalidRequest
from models.nn.artifact import load_artifact
from models.nn.methods import parse_method
from models.nn.methods.head import Head
from models.nn.terms import Terms
from tests.models.nn.families import (
    make_backbone,
    make_network,
    random_ids,
    random_tensors,
    run,
    run_alone,
)
from tests.models.nn.methods.problem import REVIEWS, World, curve, measured


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("block", [{}, {"hidden_size": 8, "pooling": "last"}])
def test_it_starts_with_all_classes_as_likely(world, block):
    method = Head(labels=("a", "b", "c"), **block)
    tensors = method.init(world.backbone.base, torch.Generator().manual_seed(0))
    scores = world.scores("anything", method.head(tensors, world.backbone.base))
    assert torch.equal(scores, torch.zeros(3))


def test_labels_come_from_the_answers(world):
    problem = world.problem(Head())
    method = Head().adapt(problem, torch.Generator())
    assert method.class_labels == ("no", "perhaps", "yes")
    assert parse_method(method.model_dump(mode="json")) == method
    with pytest.raises(InvalidRequest) as error:
        Head(labels=("yes", "no")).adapt(problem, torch.Generator())
    assert error.value.code == "unknown_label"


def test_a_head_that_writes_text_has_no_labels(world):
    method = Head(task="generation")
    assert method.class_labels is None
    assert method.adapt(world.problem(method), torch.Generator()) is method
    with pytest.raises(InvalidRequest) as error:
        parse_method({"type": "head", "task": "generation", "labels": ["a", "b"]})
    assert error.value.param == "peft.labels"


@pytest.mark.parametrize("variant", ["llama", "llama-biased-tied", "gemma2", "granite"])
def test_a_trained_head_stands_for_the_networks_and_a_tied_embedding_stays(variant):
    backbone, method = make_backbone(variant), Head(task="generation")
    tensors = random_tensors(method, backbone)
    network, ids = make_network(variant), random_ids(12)
    with torch.no_grad():
        network.lm_head.weight = torch.nn.Parameter(tensors["lm_head.weight"])  # untied by this
        expected = network(input_ids=ids[None]).logits[0]
    ours = run_alone(backbone, ids, method=method, tensors=tensors)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert (ours - run(backbone, ids)).abs().max() > 1e-2
    assert Terms.of(method, tensors, backbone.base).leaves_trunk_alone


def test_fresh_tensors_share_no_memory_with_the_base():
    backbone, method = make_backbone("llama-biased-tied"), Head(task="generation")
    ids = random_ids(6)
    before = run(backbone, ids)
    method.init(backbone.base, torch.Generator())["lm_head.weight"].add_(1.0)
    assert torch.equal(run(backbone, ids), before)


@pytest.mark.parametrize(
    "block", [{}, {"hidden_size": 16, "pooling": "last", "labels": ["yes", "no", "perhaps"]}]
)
def test_a_job_learns_labels(world, block):
    said = world.train({"type": "head", **block}, n_epochs=80, learning_rate=0.05)
    losses = curve(said)
    assert losses[0] == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-5)
    assert losses[-1] < 0.6 * losses[0]
    assert measured(said)["valid_mean_token_accuracy"] > 0.8
    loaded = load_artifact(Path(said[-1].adapter_folder), shape=world.backbone.shape)
    labels = block.get("labels", ["no", "perhaps", "yes"])
    assert loaded.method.class_labels == tuple(labels)
    head = loaded.method.head(loaded.tensors, world.backbone.base)
    answers = [labels[world.scores(question, head).argmax()] for question, _ in REVIEWS]
    hits = sum(answer == row[1] for answer, row in zip(answers, REVIEWS, strict=True))
    assert hits / len(REVIEWS) == measured(said)["valid_mean_token_accuracy"]


def test_one_layer_learns_what_torchs_linear_layer_on_the_same_states_learns(world):
    method = Head()
    problem = world.problem(method)
    method = method.adapt(problem, torch.Generator())
    states = problem.features("mean")
    answers = torch.tensor([method.labels.index(pair.answer) for pair in problem.pairs])
    theirs = torch.nn.Linear(32, 3)
    torch.nn.init.zeros_(theirs.weight)
    torch.nn.init.zeros_(theirs.bias)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.0)
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(theirs(states), answers).backward()
        optimizer.step()
    whole = {"batch_size": len(REVIEWS), "n_epochs": 5, "scheduler": "constant"}
    said = world.train({"type": "head"}, **whole, warmup_ratio=0.0, max_grad_norm=1e9)
    loaded = load_artifact(Path(said[-1].adapter_folder), shape=world.backbone.shape)
    torch.testing.assert_close(
        loaded.tensors["score.weight"], theirs.weight.data, atol=1e-3, rtol=1e-3
    )


def test_a_job_trains_the_head_that_writes_text(world):
    said = world.train({"type": "head", "task": "generation"}, learning_rate=0.2)
    losses = curve(said)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
