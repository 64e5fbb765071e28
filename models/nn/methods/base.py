"""The contract of a method: one frozen class that is its own configuration.

A method turns its own tensors into terms. It never sees an activation, a row, a device or a
cache; `docs/add-a-method.md` walks through an example. Nothing here needs torch.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, model_validator

from core.errors import InvalidRequest
from core.misread import misread
from models.nn.shape import Shape

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor

    from models.nn.base import Base
    from models.nn.problem import Pair, Problem, Query
    from models.nn.terms import (
        AttentionTerm,
        HeadTerm,
        HiddenTerm,
        KeysValues,
        LinearTerm,
        NormTerm,
    )

Site = Literal[
    "demonstrations",
    "tokens",
    "embeddings",
    "keys_values",
    "attention",
    "linear",
    "hidden",
    "norm",
    "head",
    "weights",
]
SITES: tuple[str, ...] = get_args(Site)


class Method(BaseModel):
    """Fields are the configuration that users post; functions say how it acts on a base.

    In all functions `t` holds the tensors by name: those of `tensors` while training, those of
    `served` afterwards. Site functions are differentiable in `t` and return None where the method
    does not act.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", serialize_by_alias=True, allow_inf_nan=False
    )

    sites: ClassVar[frozenset[Site]] = frozenset()
    """The site functions that the class overrides."""
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    """Configurations that the contract tests run."""
    shares_batch: ClassVar[bool] = True
    """Whether rows of other adapters may sit in the same batch."""
    learning_rate: ClassVar[float] = 1e-3
    """What a job's learning-rate multiplier multiplies."""
    peft_type: ClassVar[str | None] = None
    """The type of PEFT files that `from_peft` reads."""
    other_peft_types: ClassVar[tuple[str, ...]] = ()
    """Further types that it reads."""

    kind: str
    """Overridden by `Literal["name"] = Field("name", alias="type")`."""

    @model_validator(mode="wrap")
    @classmethod
    def _refuse_what_is_misread(cls, block: Any, read: ModelWrapValidatorHandler[Self]) -> Self:
        """Raise where text, truth or a number is read as another of them."""
        method = read(block)
        for name, field in cls.model_fields.items() if isinstance(block, dict) else ():
            key = field.alias or name
            if key in block and (wanted := misread(block[key], value=getattr(method, name))):
                raise InvalidRequest(
                    f"Invalid value for peft.{key}: {wanted}.",
                    code="invalid_value",
                    param=f"peft.{key}",
                )
        return method

    @property
    def starts_as_base(self) -> bool:
        """Whether freshly initialised tensors change nothing, to the bit."""
        return True

    @property
    def class_labels(self) -> tuple[str, ...] | None:
        """The labels of a classifier, in the order of its scores; None for what generates text."""
        return None

    @property
    def rows_before(self) -> int:
        """How many positions its own rows take before every sequence, demonstrations apart."""
        return 0

    @property
    def search_steps(self) -> int:
        """How many steps `search` takes; 0 for what is trained by gradient."""
        return 0

    # --- tensors -----------------------------------------------------------------------------

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return the tensors' names and dimensions while training."""
        raise NotImplementedError  # every kind has its own

    def is_trained(self, name: str) -> bool:  # noqa: ARG002
        """Say whether a tensor is trained; one that is not is kept and saved as it began."""
        return True

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """Return fresh float32 tensors of exactly those names, on the CPU."""
        raise NotImplementedError  # every kind has its own

    def learning_rate_scale(self, name: str) -> float:  # noqa: ARG002
        """Return what the learning rate of one tensor is multiplied by."""
        return 1.0

    def trained(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return the names and dimensions of the tensors that are trained."""
        named = self.tensors(shape).items()
        return {name: dimensions for name, dimensions in named if self.is_trained(name)}

    def parameters(self, shape: Shape) -> int:
        """Return how many numbers are trained."""
        return sum(map(prod, self.trained(shape).values()))

    # --- what the data decide ----------------------------------------------------------------

    def adapt(self, problem: Problem, generator: torch.Generator) -> Self:  # noqa: ARG002
        """Return the method with the fields filled that the training data decide."""
        return self

    def search(
        self, t: Mapping[str, Tensor], problem: Problem, *, step: int, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Return the tensors after step `step` (from 0) of a search, and what it measured."""
        raise NotImplementedError  # asked only of kinds with `search_steps`

    # --- sites -------------------------------------------------------------------------------

    def demonstrations(self, t: Mapping[str, Tensor], query: Query | None) -> Sequence[Pair]:  # noqa: ARG002
        """Return solved examples to show before a query; `query` None asks for what all share."""
        return ()

    def tokens(self, t: Mapping[str, Tensor]) -> Tensor | None:  # noqa: ARG002
        """Return ids (p,) int64 that stand before every sequence."""
        return None

    def embeddings(self, t: Mapping[str, Tensor], base: Base) -> Tensor | None:  # noqa: ARG002
        """Return rows (p, d) that stand before every sequence, in the space of `base.embed`."""
        return None

    def keys_values(self, t: Mapping[str, Tensor], layer: int, base: Base) -> KeysValues | None:  # noqa: ARG002
        """Return keys and values that stand before every sequence; all layers or none."""
        return None

    def attention(self, t: Mapping[str, Tensor], layer: int, base: Base) -> AttentionTerm | None:  # noqa: ARG002
        """Return a second attention of one layer."""
        return None

    def linear(self, t: Mapping[str, Tensor], place: str, base: Base) -> LinearTerm | None:  # noqa: ARG002
        """Return the term at a linear place."""
        return None

    def hidden(self, t: Mapping[str, Tensor], place: str, base: Base) -> HiddenTerm | None:  # noqa: ARG002
        """Return the bottleneck at a sublayer, of `shape.sublayers`."""
        return None

    def norm(self, t: Mapping[str, Tensor], place: str, base: Base) -> NormTerm | None:  # noqa: ARG002
        """Return the gain of a norm, of `shape.norms`."""
        return None

    def head(self, t: Mapping[str, Tensor], base: Base) -> HeadTerm | None:  # noqa: ARG002
        """Return the head of a classifier."""
        return None

    def weights(self, t: Mapping[str, Tensor], base: Base) -> Mapping[str, Tensor] | None:  # noqa: ARG002
        """Return tensors that replace the network's own parameters, by their names in it."""
        return None

    # --- stored form -------------------------------------------------------------------------

    def served(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return the names and dimensions of what `finish` gives."""
        return self.tensors(shape)

    def finish(self, t: Mapping[str, Tensor], base: Base) -> dict[str, Tensor]:  # noqa: ARG002
        """Return the tensors to serve from those that were trained; the same function of a row."""
        return dict(t)

    def to_peft(
        self,
        t: Mapping[str, Tensor],  # noqa: ARG002
        shape: Shape,  # noqa: ARG002
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return Hugging Face PEFT's configuration and tensors, where it has a form for this."""
        return None

    def unpack(self, t: Mapping[str, Tensor], shape: Shape) -> dict[str, Tensor]:  # noqa: ARG002
        """Return served tensors from those that `to_peft` gave; unknown names stay as they are."""
        return dict(t)

    @classmethod
    def reads_peft(cls, config: Mapping[str, Any]) -> bool:
        """Say whether `from_peft` is for files of this configuration."""
        kind = config.get("peft_type")
        return kind is not None and kind in (cls.peft_type, *cls.other_peft_types)

    @classmethod
    def from_peft(
        cls, config: Mapping[str, Any], t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[Self, dict[str, Tensor]]:
        """Read a file of these types; `InvalidRequest` names what it uses that this cannot do."""
        raise NotImplementedError  # asked only where `reads_peft` says so
