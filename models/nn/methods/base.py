"""The contract of a method: one frozen class that is its own configuration.

A method turns its own tensors into terms. It never sees an activation, a row, a device or a
cache; `docs/add-a-method.md` walks through an example. Nothing here needs torch.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict

from models.nn.shape import Shape

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from models.nn.backbone import Base
    from models.nn.terms import LinearTerm

Site = Literal["linear"]


class Method(BaseModel):
    """Fields are the configuration that users post; functions say how it acts on a base."""

    model_config = ConfigDict(frozen=True, extra="forbid", serialize_by_alias=True)

    sites: ClassVar[frozenset[Site]] = frozenset()
    """The site functions that the class overrides."""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Configurations that the contract tests run."""
    shares_batch: ClassVar[bool] = True
    """Whether rows of other adapters may sit in the same batch."""
    starts_as_base: ClassVar[bool] = True
    """Whether freshly initialised tensors change nothing, to the bit."""
    objective: ClassVar[Literal["next_token", "classify"]] = "next_token"
    learning_rate: ClassVar[float] = 1e-3
    """What a job's learning-rate multiplier multiplies."""
    peft_type: ClassVar[str | None] = None
    """The type of PEFT files that `from_peft` reads."""

    kind: str
    """Overridden by `Literal["name"] = Field("name", alias="type")`."""

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return the trained tensors' names and dimensions."""
        raise NotImplementedError

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """Return fresh float32 tensors of exactly those names, on the CPU."""
        raise NotImplementedError

    def linear(self, t: Mapping[str, Tensor], place: str, base: Base) -> LinearTerm | None:  # noqa: ARG002
        """Return the term at a linear place, differentiable in `t`; None where nothing acts."""
        return None

    def learning_rate_scale(self, name: str) -> float:  # noqa: ARG002
        """Return what the learning rate of one tensor is multiplied by."""
        return 1.0

    def to_peft(
        self,
        t: Mapping[str, Tensor],  # noqa: ARG002
        shape: Shape,  # noqa: ARG002
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return Hugging Face PEFT's configuration and tensors, where it has a form for this."""
        return None

    def unpack(self, t: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:  # noqa: ARG002
        """Return our tensors from those that `to_peft` gave; unknown names stay as they are."""
        return dict(t)

    @classmethod
    def from_peft(
        cls, config: Mapping[str, Any], t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[Self, dict[str, Tensor]]:
        """Read a file of `peft_type`; `InvalidRequest` names what it uses that this cannot do."""
        raise NotImplementedError

    def parameters(self, shape: Shape) -> int:
        """Return how many numbers are trained."""
        return sum(prod(dimensions) for dimensions in self.tensors(shape).values())
