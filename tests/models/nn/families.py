"""Tiny random networks, one or more for each admitted family, and ways to run them."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
import transformers
from torch import Tensor

from models.nn.attention import PackedCausal, Span
from models.nn.backbone import Backbone
from models.nn.executors import NOBODY, Executor
from models.nn.forward import Part, forward
from models.nn.methods.base import Method
from models.nn.prefix import Prefix, compile_in_pieces
from models.nn.terms import KeysValues, Terms

VOCAB = 97
_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_CAPPED = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
_MIXED_LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
_SCALES = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.3,
}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "llama-biased-tied": (
        "LlamaConfig",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "mistral": ("MistralConfig", {"head_dim": 8, "sliding_window": None}),
    "mistral-window": ("MistralConfig", {"head_dim": 8, "sliding_window": 5}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2-window": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "sliding_window": 5, **_CAPPED}),
    "gemma3": (
        "Gemma3TextConfig",
        {"head_dim": 16, "sliding_window": 5, "layer_types": _MIXED_LAYERS},
    ),
    "granite": ("GraniteConfig", _SCALES),
    "phi3": ("Phi3Config", {"sliding_window": 5}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0, 1]}),
}

_THETA = 10_000.0
_LONG = {
    "rope_type": "longrope",
    "rope_theta": _THETA,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.5, 3.5, 4.5],
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": _THETA, "factor": 4.0}
_PLAIN = {"rope_type": "default", "rope_theta": _THETA}
ROTATED: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3-longrope": (
        "Phi3Config",
        {"rope_parameters": _LONG, "original_max_position_embeddings": 32},
    ),
    "llama-dynamic": ("LlamaConfig", {"rope_parameters": _DYNAMIC}),
    "gemma3-dynamic": (
        "Gemma3TextConfig",
        {
            "head_dim": 16,
            "layer_types": _MIXED_LAYERS,
            "rope_parameters": {"sliding_attention": _PLAIN, "full_attention": _DYNAMIC},
        },
    ),
}
"""Those whose rotary frequencies transformers chooses anew in each forward."""


def make_network(variant: str, *, seed: int = 0) -> Any:
    """Return a network none of whose weights is an identity, as those hide faults."""
    name, values = (VARIANTS | ROTATED)[variant]
    config = getattr(transformers, name)(**{**_COMMON, **values})
    config._attn_implementation = "eager"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def make_backbone(variant: str, *, dtype: torch.dtype = torch.float32) -> Backbone:
    """Return the backbone over `make_network`."""
    return Backbone(make_network(variant).to(dtype))


def random_ids(count: int, *, seed: int = 0) -> Tensor:
    """Return (count,) int64 ids that are not control tokens."""
    return torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def random_tensors(method: Method, backbone: Backbone, *, seed: int = 0) -> dict[str, Tensor]:
    """Return a method's tensors, the trained ones moved away from where they start."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
        if method.is_trained(name)
        else tensor
        for name, tensor in method.init(backbone.base, generator).items()
    }


def run(
    backbone: Backbone,
    ids: Tensor,
    *,
    executor: Executor = NOBODY,
    lengths: tuple[int, ...] = (),
    prefixes: Sequence[Prefix | None] = (),
) -> Tensor:
    """Return the logits of every row of sequences laid end to end; one sequence by default.

    `prefixes` holds what stands before each sequence.
    """
    lengths = lengths or (len(ids),)
    spans, positions = [], []
    start = 0
    for length, prefix in zip_longest(lengths, prefixes):
        static = prefix and _as_terms(prefix)
        spans.append(Span(start, start + length, static))
        positions.append(torch.arange(length) + (prefix.rows if prefix else 0))
        start += length
    hidden = backbone.hidden(
        ids, positions=torch.cat(positions), attention=PackedCausal(spans), executor=executor
    )
    return backbone.logits(hidden, executor=executor.at(torch.arange(len(ids))))


def _as_terms(prefix: Prefix) -> dict[int, KeysValues]:
    pairs = zip(prefix.keys, prefix.values, strict=True)
    return {layer: KeysValues(keys, values) for layer, (keys, values) in enumerate(pairs)}


@torch.no_grad()
def compile_prefix(
    backbone: Backbone, terms: Terms, *, token_ids: Sequence[int] = ()
) -> Prefix | None:
    """Return what stands before an adapter's sequences, and then before it `token_ids`."""
    pieces = compile_in_pieces(backbone, terms, token_ids=token_ids)
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value


def run_alone(
    backbone: Backbone, ids: Tensor, *, method: Method, tensors: dict[str, Tensor]
) -> Tensor:
    """Return the logits of one sequence under one adapter, without a cache."""
    return run_terms(backbone, ids, terms=Terms.of(method, tensors, backbone.base))


def run_terms(
    backbone: Backbone, ids: Tensor, *, terms: Terms, lengths: tuple[int, ...] = ()
) -> Tensor:
    """Return the logits of sequences under one adapter's terms, without a cache."""
    states = forward(backbone, [Part(ids, lengths or (len(ids),), terms)])
    return states.logits(states.hidden_td, torch.arange(len(ids)))
