"""Prompt tuning and P-tuning against Hugging Face PEFT's, both ways, and where they start."""

import json

import peft
import pytest
import torch
from peft.tuners.p_tuning.model import PromptEncoder

from core.errors import Corrupt, InvalidRequest
from models.nn.artifact import load_artifact, load_training_tensors, save_artifact
from models.nn.methods import parse_method, parse_posted
from models.nn.methods.soft_prompt import PROMPT, SoftPrompt
from tests.models.nn.families import make_backbone, make_network, random_ids, random_tensors
from tests.models.nn.families import run_alone as run_alone_with
from tests.models.nn.methods.worded import Worded, train

# PEFT 0.21 reads an attribute that Transformers 5.24 renamed.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)

BASES = ["llama-biased-tied", "qwen3", "phi3", "gemma", "gemma3", "granite"]
OURS = {
    "plain": SoftPrompt(prompt_length=4),
    "mlp": SoftPrompt(prompt_length=3, encoder="mlp", encoder_hidden_size=8),
    "lstm": SoftPrompt(prompt_length=5, encoder="lstm", encoder_hidden_size=6),
}
THEIRS = {
    "plain": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "vocabulary": peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, prompt_tuning_init="SAMPLE_VOCAB"
    ),
    "mlp": peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=8
    ),
    "lstm": peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=5,
        encoder_hidden_size=6,
        encoder_reparameterization_type="LSTM",
        encoder_dropout=0.1,
    ),
}


def _close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", BASES)
@pytest.mark.parametrize("name", OURS)
@torch.no_grad()
def test_peft_reads_ours_with_equal_logits(variant, name, tmp_path):
    method, backbone, ids = OURS[name], make_backbone(variant), random_ids(15)
    tensors = random_tensors(method, backbone)
    save_artifact(
        tmp_path, method=method, tensors=tensors, base=backbone.base, provenance={"base": "tiny"}
    )
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["peft_type"] == ("PROMPT_TUNING" if name == "plain" else "P_TUNING")
    theirs = peft.PeftModel.from_pretrained(make_network(variant), tmp_path).eval()
    expected = theirs(ids[None]).logits[0, method.prompt_length :]
    _close(run_alone_with(backbone, ids, method=method, tensors=tensors), expected)


@pytest.mark.parametrize("variant", BASES)
@pytest.mark.parametrize("name", THEIRS)
@torch.no_grad()
def test_we_read_what_peft_wrote_with_equal_logits(variant, name, tmp_path):
    torch.manual_seed(1)
    theirs = peft.get_peft_model(make_network(variant), THEIRS[name]).eval()
    theirs.save_pretrained(tmp_path)
    backbone, ids = make_backbone(variant), random_ids(15)
    loaded = load_artifact(tmp_path, shape=backbone.shape)
    expected = theirs(ids[None]).logits[0, THEIRS[name].num_virtual_tokens :]
    _close(run_alone_with(backbone, ids, method=loaded.method, tensors=loaded.tensors), expected)
    again = load_training_tensors(tmp_path, shape=backbone.shape)  # the prompt itself goes on
    assert torch.equal(again.tensors[PROMPT], loaded.tensors[PROMPT])


@pytest.mark.parametrize("name", ["mlp", "lstm"])
def test_an_encoder_computes_what_peft_s_computes(name):
    backbone = make_backbone("llama")
    method, tensors = OURS[name], random_tensors(OURS[name], backbone)
    theirs = PromptEncoder(
        peft.PromptEncoderConfig(
            num_virtual_tokens=method.prompt_length,
            num_transformer_submodules=1,
            token_dim=32,
            encoder_hidden_size=method.encoder_hidden_size,
            encoder_reparameterization_type=name.upper(),
        )
    )
    theirs.load_state_dict(tensors, strict=True)
    prompt = method.finish(tensors, backbone.base)[PROMPT]
    _close(prompt, theirs(torch.arange(method.prompt_length)))
    assert method.parameters(backbone.shape) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("encoder", ["mlp", "lstm"])
def test_the_count_of_the_docstring_is_that_of_the_tensors(encoder):
    shape, p, d, m = make_backbone("llama").shape, 5, 32, 6
    method = SoftPrompt(prompt_length=p, encoder=encoder, encoder_hidden_size=m)
    more = {
        "mlp": 2 * d * m + m**2 + 2 * m + d,
        "lstm": 10 * d * m + 36 * m**2 + 34 * m + d,
    }
    assert method.parameters(shape) == p * d + more[encoder]
    assert SoftPrompt(prompt_length=p).parameters(shape) == p * d


@pytest.mark.parametrize("encoder", ["none", "mlp", "lstm"])
@pytest.mark.parametrize("start", ["text", "vocabulary", "random"])
def test_a_prompt_starts_as_large_as_the_embeddings_are(start, encoder):
    base = make_backbone("gemma").base
    method = parse_method(
        {"type": "soft_prompt", "prompt_length": 60, "init": start, "encoder": encoder}
    )
    tensors = method.init(base, torch.Generator().manual_seed(0))
    prompt = method.finish(tensors, base)[PROMPT]
    spread = base.embed(torch.arange(97)).std().item()
    assert prompt.std().item() == pytest.approx(spread, rel=0.2)
    assert len(set(map(tuple, prompt.tolist()))) > 30  # an encoder does not blur rows


def test_a_text_is_where_a_prompt_starts():
    problem = Worded(SoftPrompt(prompt_length=7, init="text", init_text="a good film"))
    method = problem.method.adapt(problem, torch.Generator())
    ids = problem.encode("a good film")
    assert list(method.init_ids) == (ids * 7)[:7]
    prompt = method.init(problem.base, torch.Generator())[PROMPT]
    assert torch.equal(prompt, problem.base.embed(torch.tensor(method.init_ids)))


def test_adapting_resolves_the_width_of_an_encoder():
    problem = Worded(SoftPrompt(prompt_length=4, encoder="mlp"))
    method = problem.method.adapt(problem, torch.Generator())
    assert method.encoder_hidden_size == 32
    assert method.tensors(problem.base.shape) == problem.method.tensors(problem.base.shape)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt_length": 65}, "peft.prompt_length"),
        ({"prompt_length": 2, "init_ids": [3]}, "peft.init_ids"),
        ({"prompt_length": 2, "init_ids": [3, 97]}, "peft.init_ids"),
    ],
)
def test_what_does_not_fit_the_base_is_refused_by_name(fields, param):
    base = make_backbone("llama").base
    with pytest.raises(InvalidRequest) as caught:
        assert SoftPrompt(**fields).tensors(base.shape) != SoftPrompt(**fields).init(
            base, torch.Generator()
        )
    assert caught.value.param == param


def test_a_prompt_of_another_base_is_corrupt(tmp_path):
    network = make_network("llama")
    peft.get_peft_model(network, THEIRS["plain"]).save_pretrained(tmp_path)
    shape = make_backbone("llama").shape.model_copy(update={"hidden": 64})
    with pytest.raises(Corrupt, match="dimensions"):
        load_artifact(tmp_path, shape=shape)


@pytest.mark.parametrize("name", OURS)
def test_training_lowers_a_real_loss(name):
    problem = Worded(OURS[name])
    tensors = problem.method.init(problem.base, torch.Generator().manual_seed(0))
    losses = train(problem, tensors, steps=30, rate=SoftPrompt.learning_rate)
    assert losses[-1] < losses[0] - 0.05


def test_the_tokens_of_the_text_are_not_posted():
    with pytest.raises(InvalidRequest, match="leave it out") as caught:
        parse_posted({"type": "soft_prompt", "init_ids": [3]})
    assert caught.value.param == "peft.init_ids"
    assert SoftPrompt.model_json_schema()["properties"]["init_ids"]["readOnly"]
