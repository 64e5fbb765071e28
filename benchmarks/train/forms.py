"""Our starting tensors in the forms that peers read, so that both sides begin at one point."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from benchmarks.train.protocol import ADAPTERS, FULL, P_TUNING, PISSA
from models.nn.base import Base
from models.nn.low_rank import LowRank
from models.nn.methods.base import Method


def to_peer(
    method: Method, tensors: Mapping[str, Tensor], *, base: Base, form: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a peer's configuration and its tensors; `ValueError` where it has no such form.

    `pissa`: A and B as PEFT takes them from W, from which it then subtracts their product.
    `p_tuning`: the encoder, under PEFT's own names. `full`: nothing, it begins at the base.
    """
    if form == FULL:
        return {}, {}
    if form == ADAPTERS:
        return method.model_dump(mode="json"), dict(tensors)
    if form == P_TUNING:
        return _p_tuning(method, base), dict(tensors)
    if form == PISSA and isinstance(method, LowRank):
        trained = {name: t for name, t in tensors.items() if method.is_trained(name)}
        config, theirs = LowRank.to_peft(method, trained, base.shape)
        return {**config, "inference_mode": False}, theirs
    found = method.to_peft(method.finish(tensors, base), base.shape)
    if found is None:
        raise ValueError(f"PEFT has no form of {method!r}.")
    config, theirs = found
    return {**config, "inference_mode": False}, theirs


def _p_tuning(method: Method, base: Base) -> dict[str, Any]:
    shape, settings = base.shape, method.model_dump()
    return {
        "peft_type": "P_TUNING",
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": settings["prompt_length"],
        "token_dim": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_layers": shape.layers,
        "num_transformer_submodules": 1,
        "encoder_reparameterization_type": settings["encoder"].upper(),
        "encoder_hidden_size": settings["encoder_hidden_size"] or shape.hidden,
        "inference_mode": False,
    }
