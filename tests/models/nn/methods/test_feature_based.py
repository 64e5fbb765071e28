"""Feature-based: the fit against its own optimality conditions, folding, labels, a whole job."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from core.errors import InvalidRequest
from models.nn.artifact import load_artifact
from models.nn.methods import parse_method
from models.nn.methods.feature_based import FeatureBased
from tests.models.nn.methods.problem import REVIEWS, World, measured


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World.make(tmp_path_factory.mktemp("world"))


def fit(world, method, *, seed=0):
    problem = world.problem(method)
    method = method.adapt(problem, torch.Generator().manual_seed(seed))
    started = method.init(world.backbone.base, torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed)
    tensors, found = method.search(started, problem, step=0, generator=generator)
    return method, problem, tensors, found


def test_labels_come_from_the_answers_and_survive_json(world):
    method, *_ = fit(world, FeatureBased())
    assert method.class_labels == ("no", "perhaps", "yes")
    assert parse_method(method.model_dump(mode="json")) == method
    assert FeatureBased().class_labels == ()


def test_labels_that_are_given_keep_their_order_and_must_cover_the_answers(world):
    given = FeatureBased(labels=("yes", "perhaps", "no", "never"))
    method, _, tensors, _ = fit(world, given)
    assert method.class_labels == given.labels
    assert tensors["score.weight"].shape == (4, 32)
    with pytest.raises(InvalidRequest, match="perhaps") as error:
        fit(world, FeatureBased(labels=("yes", "no")))
    assert (error.value.code, error.value.param) == ("unknown_label", "peft.labels")


@pytest.mark.parametrize("labels", [["a"], ["a", "a"], ["a", " b"], ["a", ""]])
def test_label_sets_that_are_none_are_refused(labels):
    with pytest.raises(InvalidRequest) as error:
        parse_method({"type": "feature_based", "labels": labels})
    assert error.value.param == "peft.labels"


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_the_fit_is_the_minimum_of_the_penalised_loss_on_scaled_states(world, pooling):
    method, problem, tensors, found = fit(world, FeatureBased(pooling=pooling, regularisation=0.1))
    z = problem.features(pooling).double()
    mean, spread = z.mean(0), z.std(0, correction=0)
    weight = (tensors["score.weight"].double() * spread).requires_grad_()
    bias = (tensors["score.bias"].double() + tensors["score.weight"].double() @ mean).detach()
    bias.requires_grad_()
    answers = torch.tensor([method.labels.index(pair.answer) for pair in problem.pairs])
    scores = (z - mean) / spread @ weight.T + bias
    loss = F.cross_entropy(scores, answers)
    (loss + 0.05 * weight.square().sum()).backward()
    assert weight.grad.abs().max() < 1e-4
    assert bias.grad.abs().max() < 1e-4
    assert found["train_loss"] == pytest.approx(loss.item(), abs=1e-4)
    hits = (scores.argmax(1) == answers).double().mean().item()
    assert found["train_mean_token_accuracy"] == pytest.approx(hits)


@pytest.mark.parametrize("block", [{}, {"classifier": "mlp", "hidden_size": 8}])
def test_what_is_served_is_what_was_measured(world, block):
    method, problem, tensors, found = fit(world, FeatureBased(regularisation=1e-4, **block))
    head = method.head(tensors, world.backbone.base)
    scores = torch.stack([world.scores(pair.prompt, head) for pair in problem.pairs])
    answers = torch.tensor([method.labels.index(pair.answer) for pair in problem.pairs])
    loss = F.cross_entropy(scores, answers).item()
    assert found["train_loss"] == pytest.approx(loss, abs=1e-3)
    assert found["train_mean_token_accuracy"] == 1.0
    assert loss < 0.1


@pytest.mark.parametrize("block", [{}, {"classifier": "mlp", "hidden_size": 8}])
def test_a_seed_gives_the_same_bits_again(world, block):
    first, again = (fit(world, FeatureBased(**block))[2] for _ in range(2))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_states_that_never_vary_do_no_harm(world):
    rows = [("same", answer) for answer in ("yes", "no", "no") * 2]
    problem = world.problem(FeatureBased(), rows=rows)
    method = FeatureBased().adapt(problem, torch.Generator())
    started = method.init(world.backbone.base, torch.Generator())
    tensors, _ = method.search(started, problem, step=0, generator=torch.Generator())
    scores = world.scores("same", method.head(tensors, world.backbone.base))
    torch.testing.assert_close(scores.softmax(0), torch.tensor([2 / 3, 1 / 3]), atol=1e-3, rtol=0)


def test_answers_that_are_no_label_set_are_refused(world):
    for answers in ("b", "bcd", "bcde"):  # one answer, and answers that few rows share
        rows = [("a", answer) for answer in answers]
        with pytest.raises(InvalidRequest) as error:
            FeatureBased().adapt(world.problem(FeatureBased(), rows=rows), torch.Generator())
        assert error.value.code == "no_label_set"


def test_a_blank_answer_is_no_label(world):
    rows = [("a", "yes"), ("b", "no"), ("c", " ")] * 4
    with pytest.raises(InvalidRequest) as error:
        FeatureBased().adapt(world.problem(FeatureBased(), rows=rows), torch.Generator())
    assert error.value.code == "no_label_set"
    assert "'c' is blank" in error.value.message


def test_a_job_ends_with_an_artifact_that_classifies(world):
    said = world.train({"type": "feature_based", "regularisation": 1e-3})
    assert measured(said)["valid_mean_token_accuracy"] == 1.0
    loaded = load_artifact(Path(said[-1].adapter_folder), shape=world.backbone.shape)
    head = loaded.method.head(loaded.tensors, world.backbone.base)
    for question, answer in REVIEWS:
        assert loaded.method.labels[world.scores(question, head).argmax()] == answer
