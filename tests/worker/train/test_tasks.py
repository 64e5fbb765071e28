import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from models.nn.backbone import Backbone
from models.nn.executors import DropoutSource
from models.nn.methods import parse_method
from models.nn.terms import Terms
from tests.worker.train.conftest import ROWS
from worker.train import tasks as module
from worker.train.data import read_examples
from worker.train.rows import render_example
from worker.train.score import Score
from worker.train.tasks import MicroBatch, NextTokens, score_together
from worker.train.turns import do_alone


@pytest.fixture
def examples(tmp_path, renderer):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return read_examples(
        path,
        folder=path.parent,
        render=partial(render_example, renderer=renderer),
        max_length=512,
        param="training_file",
    )


def perturbed(backbone: Backbone, **config):
    method = parse_method({"type": "lora", "rank": 4, **config})
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (tensor + 0.1 * torch.randn(tensor.shape, generator=generator)).requires_grad_()
        for name, tensor in method.init(backbone.base, generator).items()
    }
    return method, tensors


def gradients(examples, backbone, rows, *, max_tokens, **config):
    method, tensors = perturbed(backbone, **config)
    total = Score()
    task = NextTokens(examples, backbone=backbone, max_tokens=max_tokens)
    for stream in task.streams(rows):
        total += task.score(stream, Terms.of(method, tensors, backbone.base))
    return total, {name: tensor.grad / total.tokens for name, tensor in tensors.items()}


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "lm_head"], ["lm_head"]])
def test_micro_batches_add_up_to_the_batch(examples, backbone, monkeypatch, targets):
    rows = np.arange(8)
    whole, expected = gradients(examples, backbone, rows, max_tokens=10**6, target_modules=targets)
    monkeypatch.setattr(module, "LOGIT_ROWS", 7)
    pieces, found = gradients(examples, backbone, rows, max_tokens=64, target_modules=targets)
    assert pieces.tokens == whole.tokens == examples.labels(rows)
    assert pieces.correct == whole.correct
    assert pieces.mean_loss == pytest.approx(whole.mean_loss, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_no_two_pieces_of_the_logits_drop_the_same(examples, backbone, monkeypatch, kind):
    def spy(source, x_ti, **drawn):
        masks.append(draw(source, x_ti, **drawn))
        return masks[-1]

    masks, draw = [], DropoutSource.draw
    method, tensors = perturbed(backbone, type=kind, target_modules=["lm_head"], dropout=0.5)
    terms = Terms.of(method, tensors, backbone.base)
    task, source = NextTokens(examples, backbone=backbone, max_tokens=512), DropoutSource(1, 1)
    (stream,) = task.streams(np.arange(4))
    monkeypatch.setattr(module, "LOGIT_ROWS", 7)
    monkeypatch.setattr(DropoutSource, "draw", spy)
    score_together([MicroBatch(task, stream, terms, source)])
    first, *others = masks
    assert sum(map(len, masks)) == len(stream.targets_n)
    assert torch.equal(first, draw(source, first, probability=0.5, place="lm_head"))
    assert len({mask.numpy().tobytes() for mask in masks}) == len(masks) > 3
    assert all(mask.shape == first.shape for mask in others[:-1])


def test_packed_rows_equal_rows_alone(examples, backbone):
    method, tensors = perturbed(backbone)
    terms = Terms.of(method, tensors, backbone.base)
    alone = Score()
    with torch.no_grad():
        task = NextTokens(examples, backbone=backbone, max_tokens=512)
        packed = task.score(examples.pack(range(6), device="cpu"), terms)
        for row in range(6):
            alone += task.score(examples.pack([row], device="cpu"), terms)
    assert (packed.correct, packed.tokens) == (alone.correct, alone.tokens)
    assert packed.loss == pytest.approx(alone.loss, rel=1e-6)


def test_what_follows_the_last_label_changes_nothing(examples, backbone):
    short = examples.pack([3], device="cpu")
    row = slice(int(examples.offsets[3]), int(examples.offsets[4]))
    ids_t = torch.tensor(examples.ids[row]).long()
    whole = replace(short, ids_t=ids_t, lengths=(len(ids_t),))
    assert len(short.ids_t) < len(ids_t)
    scores, grads = [], []
    for stream in (short, whole):
        method, tensors = perturbed(backbone)
        task = NextTokens(examples, backbone=backbone, max_tokens=512)
        scores.append(task.score(stream, Terms.of(method, tensors, backbone.base)))
        grads.append({name: tensor.grad for name, tensor in tensors.items()})
    assert scores[0].loss == pytest.approx(scores[1].loss, rel=1e-6)
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-4, atol=1e-6)


def test_rows_that_drop_share_no_start(examples, backbone):
    stream = examples.pack([0, 0], device="cpu")
    task = NextTokens(examples, backbone=backbone, max_tokens=512)
    assert stream.tree is not None
    assert stream.lengths[0] < examples.length(0)
    for dropout, source, shared in (
        (0.0, DropoutSource(1, 1), True),
        (0.5, None, True),
        (0.5, DropoutSource(1, 1), False),
    ):
        method, tensors = perturbed(backbone, dropout=dropout)
        batch = MicroBatch(task, stream, Terms.of(method, tensors, backbone.base), source)
        assert (batch.part.tree is not None) is shared
        assert batch.rows == (stream.lengths[0] if shared else 2 * stream.lengths[0])
        assert batch.tokens == 2 * examples.length(0)


def test_a_trained_prompt_counts_once_in_a_turn(examples, backbone):
    stream = examples.pack([0, 1], device="cpu")
    task = NextTokens(examples, backbone=backbone, max_tokens=512)
    method = parse_method({"type": "soft_prompt", "prompt_length": 7})
    tensors = dict(method.init(backbone.base, torch.Generator().manual_seed(0)))
    batch = MicroBatch(task, stream, Terms.of(method, tensors, backbone.base))
    assert batch.tokens == 7 + examples.length(0) + examples.length(1)


def test_loss_is_that_of_transformers(examples, backbone, base_folder):
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(base_folder)
    stream = examples.pack([3], device="cpu")
    labels = torch.where(torch.tensor(examples.labelled), torch.tensor(examples.ids), -100)
    row = slice(int(examples.offsets[3]), int(examples.offsets[4]))
    ids_t = torch.tensor(examples.ids[row]).long()
    with torch.no_grad():
        expected = network(ids_t[None], labels=labels[row].long()[None]).loss.item()
        found = NextTokens(examples, backbone=backbone, max_tokens=512).score(stream, Terms())
    assert found.mean_loss == pytest.approx(expected, rel=1e-6)


def test_evaluation_sees_all_rows_once_without_gradients(examples, backbone):
    method, tensors = perturbed(backbone, dropout=0.5)
    task, turns = NextTokens(examples, backbone=backbone, max_tokens=128), []
    work = task.evaluate(Terms.of(method, tensors, backbone.base))
    found = do_alone(work, check=lambda: turns.append(1))
    assert found.tokens == examples.counts.labelled_tokens
    assert 0 <= found.accuracy <= 1
    assert len(turns) > 3
    assert all(tensor.grad is None for tensor in tensors.values())


def test_a_frozen_trunk_is_computed_once_and_gives_the_same_loss(examples, backbone, monkeypatch):
    method, tensors = perturbed(backbone, target_modules=["lm_head"])
    terms = Terms.of(method, tensors, backbone.base)
    task = NextTokens(examples, backbone=backbone, max_tokens=128)
    stream = task.streams(np.arange(7))[0]
    fresh = task.score(stream, terms)
    expected = {name: tensor.grad.clone() for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.grad = None
    do_alone(task.prepare(terms, rows=np.arange(7)))
    monkeypatch.setattr(backbone, "hidden", None)
    cached = task.score(stream, Terms.of(method, tensors, backbone.base))
    assert cached.correct == fresh.correct
    assert cached.loss == pytest.approx(fresh.loss, rel=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(tensors[name].grad, gradient, atol=1e-5, rtol=1e-4)
