"""What both LLaMA-Adapters share: prompts in the upper layers, attended to beside the sequence.

Shapes: L layers, p rows of a prompt, d hidden, K key heads, H query heads, h head dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, Field

from core.errors import InvalidRequest
from models.nn.shape import Shape
from models.nn.terms import AttentionTerm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from models.nn.base import Base
    from models.nn.terms import LinearTerm

PROMPT = "adaption_prompt"
_LEFT_OUT = 2


class GatedPrompt(BaseModel):
    """Prompts (p, d) whose keys and values the frozen projections make, behind a gate."""

    prompt_length: int = Field(10, ge=1, le=4096, description="Rows of each layer's prompt.")
    layers: Literal["all-but-two"] | Annotated[int, Field(ge=1)] = Field(
        "all-but-two",
        description="How many layers, counted from the top, have a prompt; `all-but-two` leaves "
        "the lowest two without.",
    )

    def prompted(self, shape: Shape) -> range:
        """Return the layers that have a prompt; a base of one or two has one in its last."""
        if self.layers == "all-but-two":
            return range(min(_LEFT_OUT, shape.layers - 1), shape.layers)
        if self.layers > shape.layers:
            raise InvalidRequest(
                f"layers is {self.layers}, but this base has {shape.layers}; give at most that "
                "many, or `all-but-two`.",
                code="invalid_value",
                param="peft.layers",
            )
        return range(shape.layers - self.layers, shape.layers)

    def prompts(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return the prompt (p, d) of every layer that has one."""
        size = (self.prompt_length, shape.hidden)
        return {name_in(layer, PROMPT): size for layer in self.prompted(shape)}


def name_in(layer: int, tensor: str) -> str:
    """Return the name of a tensor of one layer's attention."""
    return f"layers.{layer}.self_attn.{tensor}"


def attend(
    layer: int,
    prompt_pd: Tensor,
    *,
    gate: Tensor,
    base: Base,
    linears: Mapping[str, LinearTerm] | None = None,
) -> AttentionTerm:
    """Return the second attention over a prompt; `gate` is (H,), or (1,) for all heads.

    The output scales and biases of `linears` act on the prompt's projections too.
    """
    keys_kph, values_kph = base.project_keys_values(
        layer, prompt_pd.to(base.device), linears=linears
    )
    return AttentionTerm(keys=keys_kph, values=values_kph, gate=gate.expand(base.shape.heads))
