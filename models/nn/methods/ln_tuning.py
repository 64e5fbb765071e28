"""LN tuning: the gains of the norms are trained, and nothing else.

Zhao et al., "Tuning LayerNorm in Attention", arXiv 2312.11420, section 3; on these families the
norms are RMS norms without bias: y = g * x / rms(x). (2L + 1) d parameters with all norms over the
hidden size, more where a family has four a block. This is PEFT's LN_TUNING; what is trained and
stored is the network's own weight, which on Gemma is the gain less one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field

from core.errors import InvalidRequest
from models.nn.methods.base import Method, Site
from models.nn.places import (
    Names,
    match_targets,
    peft_name,
    places_in,
    refuse_settings,
    shorten_targets,
)
from models.nn.shape import Shape, path_of
from models.nn.terms import NormTerm

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from models.nn.base import Base

_STORED = "ln_tuning_layers.weight"


class LnTuning(Method):
    """The gain of each chosen norm; training starts at the base's."""

    sites: ClassVar[frozenset[Site]] = frozenset({"norm"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"target_modules": ["input_layernorm"]})
    learning_rate: ClassVar[float] = 1e-2
    peft_type: ClassVar[str | None] = "LN_TUNING"

    kind: Literal["ln_tuning"] = Field("ln_tuning", alias="type")
    target_modules: Literal["all-norms"] | Names = Field(
        "all-norms",
        description="Norms to train: `all-norms`, or names such as `input_layernorm`.",
    )

    def places(self, shape: Shape) -> tuple[str, ...]:
        """Return the norms that are trained."""
        if self.target_modules == "all-norms":
            return tuple(shape.norms)
        return match_targets(self.target_modules, shape.norms)

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return one weight (d,) for every norm."""
        return {f"{place}.weight": (shape.norms[place],) for place in self.places(shape)}

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:  # noqa: ARG002
        """Copy the base's own."""
        return {
            f"{place}.weight": base.parameter(f"{path_of(place)}.weight").to("cpu", copy=True)
            for place in self.places(base.shape)
        }

    def norm(self, t: Mapping[str, Tensor], place: str, base: Base) -> NormTerm | None:
        """Return the gain: the weight, and one more where the family adds it."""
        weight = t.get(f"{place}.weight")
        if weight is None:
            return None
        offset = (base.gain(place) - base.parameter(f"{path_of(place)}.weight")).round()
        return NormTerm(weight.to(offset.device) + offset)

    def to_peft(
        self, t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's LN_TUNING form."""
        places = self.places(shape)
        config = {
            "peft_type": "LN_TUNING",
            "task_type": "CAUSAL_LM",
            "target_modules": list(shorten_targets(places, shape.norms)),
            "inference_mode": True,
        }
        return config, {peft_name(place, _STORED): t[f"{place}.weight"] for place in places}

    def unpack(self, t: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
        """Give PEFT's tensors our names."""
        names = {peft_name(place, _STORED): f"{place}.weight" for place in self.places(shape)}
        return {names.get(name, name): tensor for name, tensor in t.items()}

    @classmethod
    def from_peft(
        cls, config: Mapping[str, Any], t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[Self, dict[str, Tensor]]:
        """Read PEFT's LN_TUNING form; what it acts on is told by the tensors it holds."""
        refuse_settings(config, read=(), allowed={})
        held = places_in(t, tensor=_STORED)
        chosen = [place for place in shape.norms if place in held]
        if not chosen:
            raise InvalidRequest(
                "This LN_TUNING adapter has no norm of this base.", code="unsupported_adapter"
            )
        if others := sorted(held - set(shape.norms)):
            raise InvalidRequest(
                f"This LN_TUNING adapter trains {others[0]!r}, which is no norm of this base over "
                "its hidden size.",
                code="unsupported_adapter",
            )
        everywhere = held == set(shape.norms)
        method = cls(
            target_modules="all-norms" if everywhere else shorten_targets(chosen, shape.norms)
        )
        return method, method.unpack(t, shape)
