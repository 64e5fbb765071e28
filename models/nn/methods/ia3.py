"""(IA)3: trained vectors that rescale keys, values and the feed-forward's inner activations.

Liu et al., "Few-shot parameter-efficient fine-tuning is better and cheaper than in-context
learning", arXiv 2205.05638, section 3.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import lazy_loader
from pydantic import Field

from core.errors import InvalidRequest
from models.nn.methods.base import Method, Site
from models.nn.places import (
    MOST_NAMES,
    Names,
    is_target,
    match_targets,
    peft_name,
    places_in,
    refuse_settings,
    shorten_targets,
)
from models.nn.shape import Shape
from models.nn.terms import LinearTerm

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from models.nn.base import Base
else:
    torch = lazy_loader.load("torch")


class IA3(Method):
    """y = c * (W x + b), or W (a * x) + b at feed-forward places; vectors start at one."""

    sites: ClassVar[frozenset[Site]] = frozenset({"linear"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"target_modules": ["v_proj", "o_proj", "up_proj"], "feedforward_modules": ["o_proj"]},
    )
    learning_rate: ClassVar[float] = 5e-3
    peft_type: ClassVar[str | None] = "IA3"

    kind: Literal["ia3"] = Field("ia3", alias="type")
    target_modules: Names = Field(
        ("k_proj", "v_proj", "down_proj"),
        description="Linear layers to rescale, by name such as `k_proj` or by full path.",
    )
    feedforward_modules: tuple[str, ...] = Field(
        ("down_proj",),
        max_length=MOST_NAMES,
        fail_fast=True,
        description="Those of target_modules whose input is rescaled instead of the output.",
    )

    def inputs(self, shape: Shape) -> tuple[str, ...]:
        """Return the places whose input is rescaled."""
        chosen = match_targets(self.target_modules, _names(shape))
        inputs = match_targets(self.feedforward_modules, shape.linears, field="feedforward_modules")
        if outside := [place for place in inputs if place not in chosen]:
            raise InvalidRequest(
                f"feedforward_modules names {outside[0]!r}, which target_modules does not.",
                code="invalid_value",
                param="peft.feedforward_modules",
            )
        return inputs

    def outputs(self, shape: Shape) -> tuple[str, ...]:
        """Return the places, or parts of fused places, whose output is rescaled."""
        inputs = self.inputs(shape)
        chosen = match_targets(self.target_modules, _names(shape))
        return tuple(name for name in chosen if name not in inputs)

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return one vector for every place or part: (in,) or (out,)."""
        names = _names(shape)
        sizes = {place: shape.linears[place][1] for place in self.inputs(shape)}
        sizes |= {name: names[name] for name in self.outputs(shape)}
        return {f"{name}.ia3_l": (size,) for name, size in sizes.items()}

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:  # noqa: ARG002
        """Return ones."""
        return {
            name: torch.ones(dimensions) for name, dimensions in self.tensors(base.shape).items()
        }

    def linear(self, t: Mapping[str, Tensor], place: str, base: Base) -> LinearTerm | None:
        """Return a term that scales input or output."""
        if any(is_target(target, place) for target in self.feedforward_modules):
            return LinearTerm(input_scale=t[f"{place}.ia3_l"])
        scale = self._output_scale(t, place, base.shape)
        return None if scale is None else LinearTerm(output_scale=scale)

    def to_peft(
        self, t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's IA3 form; a fused place gets one vector, ones where nothing is trained."""
        inputs = self.inputs(shape)
        tensors = {peft_name(place, "ia3_l"): t[f"{place}.ia3_l"][None, :] for place in inputs}
        places = list(inputs)
        for place in shape.linears:
            scale = self._output_scale(t, place, shape)
            if scale is not None and place not in inputs:
                tensors[peft_name(place, "ia3_l")] = scale[:, None]
                places.append(place)
        targets, feedforward = (shorten_targets(some, shape.linears) for some in (places, inputs))
        if not set(feedforward) <= set(targets):  # PEFT compares the names, not what they match
            targets, feedforward = tuple(places), inputs
        config = {
            "peft_type": "IA3",
            "task_type": "CAUSAL_LM",
            "target_modules": list(targets),
            "feedforward_modules": list(feedforward),
            "fan_in_fan_out": False,
            "inference_mode": True,
        }
        return config, tensors

    def unpack(self, t: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:
        """Give PEFT's vectors our names, and each part of a fused place its own."""
        tensors = dict(t)
        for place in self.inputs(shape):
            _move(tensors, peft_name(place, "ia3_l"), {f"{place}.ia3_l": slice(None)})
        outputs = self.outputs(shape)
        for place in shape.linears:
            parts = {
                f"{name}.ia3_l": slice(*bounds)
                for name, bounds in _parts(place, shape).items()
                if name in outputs
            }
            if parts:
                _move(tensors, peft_name(place, "ia3_l"), parts)
        return tensors

    @classmethod
    def from_peft(
        cls, config: Mapping[str, Any], t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[Self, dict[str, Tensor]]:
        """Read PEFT's IA3 form; (1, in) vectors scale inputs, (out, 1) ones outputs."""
        refuse_settings(
            config, read=("feedforward_modules",), allowed={"init_ia3_weights": (True,)}
        )
        held = places_in(t, tensor="ia3_l")
        inputs = [
            place
            for place in shape.linears
            if place in held and t[peft_name(place, "ia3_l")].shape[0] == 1
        ]
        outputs = [
            name
            for place in shape.linears
            if place in held and place not in inputs
            for name in _parts(place, shape)
        ]
        method = cls(
            target_modules=shorten_targets([*inputs, *outputs], _names(shape)),
            feedforward_modules=shorten_targets(inputs, shape.linears),
        )
        return method, method.unpack(t, shape)

    def _output_scale(self, t: Mapping[str, Tensor], place: str, shape: Shape) -> Tensor | None:
        """Return (out,) of a whole place, ones where a part of it is not trained."""
        parts = _parts(place, shape)
        held = next((t[f"{name}.ia3_l"] for name in parts if f"{name}.ia3_l" in t), None)
        if held is None:
            return None
        pieces = [
            t.get(f"{name}.ia3_l", held.new_ones(stop - start))
            for name, (start, stop) in parts.items()
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _parts(place: str, shape: Shape) -> dict[str, tuple[int, int]]:
    """Return the output slices of a place by the names they have where nothing is fused."""
    if place not in shape.parts:
        return {place: (0, shape.linears[place][0])}
    block = place.rpartition(".")[0]
    return {f"{block}.{part}": bounds for part, bounds in shape.parts[place].items()}


def _names(shape: Shape) -> dict[str, int]:
    """Return every place, or the parts of fused ones, with its output size."""
    return {
        name: stop - start
        for place in shape.linears
        for name, (start, stop) in _parts(place, shape).items()
    }


def _move(tensors: dict[str, Tensor], name: str, parts: Mapping[str, slice]) -> None:
    """Replace a vector by its slices; a missing one is left for the caller's check to name."""
    if (vector := tensors.pop(name, None)) is not None:
        tensors |= {part: vector.flatten()[bounds].clone() for part, bounds in parts.items()}
