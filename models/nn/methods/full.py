"""Finetuning II: all weights of the network, or those of the last blocks.

The last rung of the ladder in Raschka, "Understanding parameter-efficient finetuning of large
language models" (2023). W is trained itself, from the base's. An adapter of this kind cannot share
a batch: it is a network of its own, and the engine gives it turns of its own.

Parameters: all of the network's; with `last_blocks` k those of the last k blocks, of the final norm
and of a head that is not tied. A tied head is one parameter with the embedding, under that name.
Stored under the network's own names (`model.layers.0.self_attn.q_proj.weight`), float32, so that
`network.load_state_dict(load_file("adapter_model.safetensors"), strict=False)` makes the
base's Transformers network the tuned one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import lazy_loader
from pydantic import Field

from core.errors import InvalidRequest
from models.nn.methods.base import Method, Site
from models.nn.shape import BODY_PREFIX, HEAD, Shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from models.nn.base import Base
else:
    torch = lazy_loader.load("torch")


class Full(Method):
    """Every weight is trained, from the base's; such a model shares no batch with others."""

    sites: ClassVar[frozenset[Site]] = frozenset({"weights"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"last_blocks": 1})
    shares_batch: ClassVar[bool] = False
    learning_rate: ClassVar[float] = 1e-4

    kind: Literal["full"] = Field("full", alias="type")
    last_blocks: int | None = Field(
        None,
        ge=1,
        description="Train only this many of the last blocks, the final norm and a head that is "
        "not tied; all weights unless given.",
    )

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return the network's own parameters by name; `InvalidRequest` if they are not known."""
        if not shape.parameters:
            raise InvalidRequest(
                "This base was pulled by an older version, which did not list its parameters; "
                "pull it again with `graftwork pull --force`.",
                code="base_outdated",
                param="model",
            )
        if self.last_blocks is None:
            return dict(shape.parameters)
        if self.last_blocks > shape.layers:
            raise InvalidRequest(
                f"The base has {shape.layers} blocks, not {self.last_blocks}; give at most that "
                "many, or leave `last_blocks` out to train all weights.",
                code="invalid_value",
                param="peft.last_blocks",
            )
        first = shape.layers - self.last_blocks
        blocks = [f"{BODY_PREFIX}layers.{layer}." for layer in range(first, shape.layers)]
        trained = (*blocks, f"{BODY_PREFIX}norm.", f"{HEAD}.")
        return {name: size for name, size in shape.parameters.items() if name.startswith(trained)}

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:  # noqa: ARG002
        """Copy the base's parameters."""
        return {
            name: base.parameter(name).to("cpu", copy=True) for name in self.tensors(base.shape)
        }

    def weights(self, t: Mapping[str, Tensor], base: Base) -> Mapping[str, Tensor]:
        """Return the parameters that stand for the base's."""
        return {name: t[name] for name in self.tensors(base.shape)}
