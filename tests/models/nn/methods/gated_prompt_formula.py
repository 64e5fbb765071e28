"""LLaMA-Adapter's attention on a plain Hugging Face network, as the papers and LitGPT have it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import rotate_half


def add_prompts(network: Any, prompts: Mapping[int, Tensor], gates: Mapping[int, Tensor]) -> None:
    """Add gate * softmax(q kT) v to what o_proj reads; prompts (p, d), gates (H,), by layer."""
    for layer, prompt in prompts.items():
        _add_prompt(network.model.layers[layer].self_attn, prompt, gates[layer])


def _add_prompt(attention: Any, prompt_pd: Tensor, gate: Tensor) -> None:
    seen: dict[str, Any] = {}

    def listen(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)

    def add(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        hidden_td = seen["hidden_states"][0]
        query_the, key_pke, value_pke = (
            _heads(attention, rows, part)
            for rows, part in ((hidden_td, "q"), (prompt_pd, "k"), (prompt_pd, "v"))
        )
        cos, sin = (side[0][:, None] for side in seen["position_embeddings"])
        width = cos.shape[-1]
        if getattr(attention, "use_rope", True):
            turned = query_the[..., :width]
            turned = turned * cos + rotate_half(turned) * sin
            query_the = torch.cat([turned, query_the[..., width:]], dim=-1)
        groups = query_the.shape[1] // key_pke.shape[1]
        outputs = []
        for head in range(query_the.shape[1]):
            key_pe, value_pe = key_pke[:, head // groups], value_pke[:, head // groups]
            scores = query_the[:, head] @ key_pe.T * attention.scaling
            outputs.append(gate[head] * torch.softmax(scores, dim=-1) @ value_pe)
        return (args[0] + torch.cat(outputs, dim=-1)[None],)

    attention.register_forward_pre_hook(listen, with_kwargs=True)
    attention.o_proj.register_forward_pre_hook(add)


def _heads(attention: Any, rows: Tensor, part: str) -> Tensor:
    """Return rows projected and, where the family does so, normalised: (rows, heads, h)."""
    size = attention.head_dim
    if hasattr(attention, "qkv_proj"):
        sizes = [attention.config.num_attention_heads * size]
        sizes += [attention.num_key_value_heads * size] * 2
        projected = attention.qkv_proj(rows).split(sizes, dim=-1)["qkv".index(part)]
    else:
        projected = getattr(attention, f"{part}_proj")(rows)
    heads = projected.view(len(rows), -1, size)
    norm = getattr(attention, f"{part}_norm", None)
    return heads if norm is None else norm(heads)
