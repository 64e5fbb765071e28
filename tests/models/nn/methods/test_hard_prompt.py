"""Hard prompts: what they may say, how each search goes, and that the text is all there is."""

from string import ascii_letters

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import Corrupt, InvalidRequest
from models.nn.artifact import load_artifact, save_artifact
from models.nn.methods.hard_prompt import HardPrompt
from models.nn.terms import Terms
from tests.models.nn.families import make_backbone, make_network, random_ids, run_alone
from tests.models.nn.methods.worded import TEXTS, Worded, train
from tests.tiny import make_tokenizer as make_byte_tokenizer

SEARCHES = ["autoprompt", "gcg"]


def _adapted(*, batch_size=2, **fields):
    problem = Worded(HardPrompt(**fields), batch_size=batch_size)
    problem.method = problem.method.adapt(problem, torch.Generator())
    tensors = problem.method.init(problem.base, torch.Generator().manual_seed(0))
    return problem, tensors


def test_only_whole_words_are_allowed_and_any_of_them_read_back_as_they_were():
    problem, tensors = _adapted(prompt_length=4)
    allowed = tensors["allowed"].nonzero().flatten().tolist()
    words = [problem.decode([token]) for token in allowed]
    assert {" good", " film", " with", " heart"} <= set(words)
    assert all(word[0] == " " and word[1:].isalpha() for word in words)
    shuffled = torch.tensor(allowed)[torch.randperm(len(allowed))].tolist()
    assert problem.encode(problem.decode(shuffled)) == shuffled
    assert problem.checks > 0


def test_a_vocabulary_of_bytes_may_use_its_letters():
    problem = Worded(HardPrompt(prompt_length=4))
    problem.tokenizer = make_byte_tokenizer().backend_tokenizer
    method = problem.method.adapt(problem, torch.Generator())
    allowed = method.init(problem.base, torch.Generator())["allowed"].nonzero().flatten()
    assert {problem.decode([token]) for token in allowed.tolist()} == set(ascii_letters)


def test_words_that_never_stand_apart_may_be_named():
    problem = Worded(HardPrompt(prompt_length=4, allowed_words=("b", "7")))
    problem.tokenizer = make_byte_tokenizer().backend_tokenizer
    method = problem.method.adapt(problem, torch.Generator())
    allowed = method.init(problem.base, torch.Generator())["allowed"].nonzero().flatten()
    assert {problem.decode([token]) for token in allowed.tolist()} == {"b", "7"}


def test_allowed_words_are_the_only_ones_used():
    words = ("good", "film", "heart")
    problem, tensors = _adapted(prompt_length=6, allowed_words=words, algorithm="gcg", steps=3)
    for step in range(3):
        tensors, _ = problem.method.search(
            tensors, problem, step=step, generator=torch.Generator().manual_seed(step)
        )
    text = problem.decode([int(token) for token in tensors["ids"].tolist()])
    assert set(text.split()) <= set(words)


def test_a_word_that_is_not_one_token_is_named():
    problem = Worded(HardPrompt(allowed_words=("good", "onomatopoeia")))
    with pytest.raises(InvalidRequest, match="onomatopoeia") as caught:
        problem.method.adapt(problem, torch.Generator())
    assert caught.value.param == "peft.allowed_words"


def test_the_projection_is_onto_the_nearest_allowed_token_with_the_gradient_passed_through():
    problem, tensors = _adapted(prompt_length=3, allowed_words=("good", "bad", "film", "cold"))
    base, method = problem.base, problem.method
    prompt = tensors["prompt"] + 0.3 * torch.randn(
        tensors["prompt"].shape, generator=torch.Generator().manual_seed(5)
    )
    prompt.requires_grad_()
    allowed = tensors["allowed"].nonzero().flatten()
    nearest = allowed[torch.cdist(prompt.detach(), base.embed(allowed)).argmin(1)]
    rows = method.embeddings({**tensors, "prompt": prompt}, base)
    assert torch.equal(rows, base.embed(nearest))
    upstream = torch.randn(rows.shape, generator=torch.Generator().manual_seed(6))
    rows.backward(upstream)
    assert torch.equal(prompt.grad, upstream)
    finished = method.finish({**tensors, "prompt": prompt}, base)
    assert finished["ids"].tolist() == nearest.tolist()


@torch.no_grad()
@pytest.mark.parametrize("variant", ["llama-biased-tied", "gemma", "granite"])
def test_a_finished_prompt_is_its_tokens_before_the_text(variant, tmp_path):
    backbone, ids = make_backbone(variant), random_ids(11)
    method = HardPrompt(prompt_length=5)
    tensors = method.init(backbone.base, torch.Generator().manual_seed(2))
    save_artifact(tmp_path, method=method, tensors=tensors, base=backbone.base, provenance={})
    loaded = load_artifact(tmp_path, shape=backbone.shape)
    assert loaded.tensors.keys() == {"ids"}
    before = loaded.tensors["ids"].long()
    expected = make_network(variant)(torch.cat([before, ids])[None]).logits[0, 5:]
    ours = run_alone(backbone, ids, method=method, tensors=loaded.tensors)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("algorithm", SEARCHES)
def test_a_search_lowers_the_loss_at_a_bounded_cost_and_repeats_itself(algorithm):
    """Of all rows at once: a swap that helps some batch may well harm another."""
    texts = []
    for _ in range(2):
        problem, tensors = _adapted(
            batch_size=len(TEXTS),
            prompt_length=4,
            algorithm=algorithm,
            steps=12,
            candidates=5,
            top_k=10,
        )
        lowest = before = problem.loss(tensors, step=0).item()
        problem.losses = 0
        for step in range(problem.method.search_steps):
            tensors, values = problem.method.search(
                tensors, problem, step=step, generator=torch.Generator().manual_seed(step)
            )
            assert values.keys() == {"train_loss", "swapped"}
            assert values["train_loss"] <= lowest + 1e-6
            lowest = values["train_loss"]
        assert problem.losses <= 12 * (1 + 5)
        assert problem.loss(tensors, step=0).item() < before - 0.01
        ids = [int(token) for token in tensors["ids"].tolist()]
        assert problem.encode(problem.decode(ids)) == ids
        texts.append(problem.decode(ids))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("algorithm", SEARCHES)
def test_a_step_never_ends_above_the_loss_it_began_with(algorithm):
    problem, tensors = _adapted(prompt_length=3, algorithm=algorithm, candidates=4)
    for step in range(6):
        before = problem.loss(tensors, step=step).item()
        tensors, values = problem.method.search(
            tensors, problem, step=step, generator=torch.Generator().manual_seed(step)
        )
        assert values["train_loss"] <= before + 1e-6
        reached = problem.loss(tensors, step=step).item()
        assert reached == pytest.approx(values["train_loss"], abs=1e-6)


@pytest.mark.parametrize("algorithm", SEARCHES)
def test_the_first_candidate_is_what_the_gradient_says(algorithm):
    problem, tensors = _adapted(prompt_length=3, algorithm=algorithm, candidates=1, top_k=1)
    ids = tensors["ids"].long()
    allowed = tensors["allowed"].nonzero().flatten()
    one_hot = torch.nn.functional.one_hot(ids, 97).float().requires_grad_()
    table = problem.base.embed(torch.arange(97))
    tried, problem_loss = [], problem.loss
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Terms, "of", lambda *_: Terms(prompt=one_hot @ table))
        problem_loss({}, step=0).backward()
    score = -one_hot.grad[:, allowed]
    score[ids[:, None] == allowed] = -torch.inf
    best = {position: int(allowed[score[position].argmax()]) for position in range(3)}

    def watch(t, *, step):
        if "ids" in t:
            tried.append(t["ids"].long())
        return problem_loss(t, step=step)

    problem.loss = watch
    problem.method.search(tensors, problem, step=0, generator=torch.Generator().manual_seed(0))
    (candidate,) = tried
    (position,) = (candidate != ids).nonzero().flatten().tolist()
    assert int(candidate[position]) == best[position]


def test_swaps_that_do_not_read_back_are_not_tried():
    problem, tensors = _adapted(prompt_length=3, algorithm="gcg", candidates=6)
    started = [int(token) for token in tensors["ids"].tolist()]
    real = problem.encode
    problem.encode = lambda text: [*real(text), 5]
    problem.losses = 0
    found, values = problem.method.search(
        tensors, problem, step=0, generator=torch.Generator().manual_seed(0)
    )
    assert found["ids"].tolist() == started
    assert values["swapped"] == 0
    assert problem.losses == 1


def test_pez_lowers_a_real_loss():
    problem, tensors = _adapted(prompt_length=4)
    losses = train(problem, tensors, steps=40, rate=0.1)
    assert min(losses[20:]) < losses[0] - 0.05


@pytest.mark.parametrize("bad", [97.0, -1.0, 3.5, 1e9])
def test_ids_that_are_none_of_the_base_are_corrupt(bad, tmp_path):
    backbone, method = make_backbone("llama"), HardPrompt(prompt_length=2)
    tensors = method.init(backbone.base, torch.Generator())
    save_artifact(tmp_path, method=method, tensors=tensors, base=backbone.base, provenance={})
    path = tmp_path / "adapter_model.safetensors"
    ids = load_file(path)["ids"]
    save_file({"ids": torch.tensor([ids[0], bad])}, path)
    with pytest.raises(Corrupt, match="ids"):
        load_artifact(tmp_path, shape=backbone.shape)
