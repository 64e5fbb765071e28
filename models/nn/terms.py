"""What an adapter says at each place, as data: executors apply it, methods never see a row.

Importing this loads no torch, so that method files may. Shapes: i in features, o out features,
r rank, d hidden, m bottleneck, K key and value heads, H query heads, h head dimension, p rows of a
prompt or prefix, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

import lazy_loader

from models.nn.shape import HEAD

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from models.nn.base import Base
    from models.nn.methods.base import Method

    OpenForm = Callable[[Tensor, Tensor], Tensor]
else:
    torch = lazy_loader.load("torch")

KeyT = TypeVar("KeyT")
TermT = TypeVar("TermT", bound="Term")

NO_CASTS: Mapping[int, Any] = {}

Activation = Literal["gelu", "relu", "silu", "tanh"]
Pooling = Literal["last", "mean"]


@dataclass(frozen=True)
class Term:
    """A record of tensors and plain values."""

    keeps_float32: ClassVar[bool] = False
    """Whether the tensors stay float32 whatever the base computes in."""

    def tensors(self) -> Iterator[Tensor]:
        """Go through the tensors that are there."""
        yield from self._named().values()

    def to(self, dtype: torch.dtype, device: torch.device | str) -> Self:
        """Move every tensor and, unless they stay float32, cast it; differentiably."""
        kept = torch.float32 if self.keeps_float32 else dtype
        return self._with({name: t.to(device, kept) for name, t in self._named().items()})

    def filled(self, tensors: Iterator[Tensor]) -> Self:
        """Return it with the next of some tensors in the place of each of its own."""
        return self._with({name: next(tensors) for name in self._named()})

    def _with(self, tensors: Mapping[str, Any]) -> Self:
        # A step makes hundreds for each job: `dataclasses.replace` takes several times as long.
        return type(self)(**{**vars(self), **tensors})

    def _named(self) -> dict[str, Any]:
        return {
            name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)
        }


@dataclass(frozen=True)
class LinearTerm(Term):
    """One adapter at one linear place `y = W x + b0`; every field may be absent.

    y = output_scale * (W (input_scale * x) + b0 + scale * up down drop(input_scale * x)) + bias

    where `weight`, if given, stands for W and b0; or, for an algebra without fields of its own,
    y = function(x, W x + b0), which is correct everywhere and fast nowhere.
    """

    down: Tensor | None = None
    """(r, i)"""
    up: Tensor | None = None
    """(o, r)"""
    scale: float = 1.0
    dropout: float = 0.0
    """Probability that a feature of the low-rank input is dropped in training."""
    input_scale: Tensor | None = None
    """(i,)"""
    output_scale: Tensor | None = None
    """(o,)"""
    bias: Tensor | None = None
    """(o,)"""
    weight: Tensor | None = None
    """(o, i); rows of this adapter pay a product of their own."""
    function: OpenForm | None = None

    @property
    def is_low_rank(self) -> bool:
        """Whether it is a low-rank update and nothing else."""
        rest = (self.input_scale, self.output_scale, self.bias, self.weight, self.function)
        return self.down is not None and all(field is None for field in rest)

    def __post_init__(self) -> None:
        if (self.down is None) != (self.up is None):
            raise ValueError("A low-rank term needs both down and up.")
        if self.function is not None and self._named():
            raise ValueError("A term is either an open function or made of tensors, not both.")


@dataclass(frozen=True)
class HiddenTerm(Term):
    """One bottleneck at a sublayer (`layers.3.self_attn`, `layers.3.mlp`), added to its output.

    y += scale * (up act(down z + down_bias) + up_bias), z the sublayer's output or its input.
    """

    down: Tensor
    """(m, d)"""
    down_bias: Tensor
    """(m,)"""
    up: Tensor
    """(d, m)"""
    up_bias: Tensor
    """(d,)"""
    activation: Activation
    scale: float = 1.0
    reads: Literal["output", "input"] = "output"


@dataclass(frozen=True)
class NormTerm(Term):
    """The gain by which a norm multiplies, its family's offset included, instead of the base's."""

    keeps_float32: ClassVar[bool] = True

    gain: Tensor
    """(d,)"""


@dataclass(frozen=True)
class AttentionTerm(Term):
    """A second attention of one layer, with a softmax of its own, over constant keys and values.

    o += gate * softmax(scale * q keysT) values; q is rotated, keys are not, all rows see all keys.
    """

    keys: Tensor
    """(K, p, h)"""
    values: Tensor
    """(K, p, h)"""
    gate: Tensor
    """(H,)"""


@dataclass(frozen=True)
class KeysValues(Term):
    """Keys (already rotated) and values of one layer that stand before a sequence's own."""

    keys: Tensor
    """(K, p, h)"""
    values: Tensor
    """(K, p, h)"""


@dataclass(frozen=True)
class HeadTerm(Term):
    """Class scores of a sequence: weight z + bias, z pooled from the final hidden states.

    With `inner_weight`, z is act(inner_weight pooled + inner_bias).
    """

    keeps_float32: ClassVar[bool] = True

    weight: Tensor
    """(C, d), or (C, m) behind an inner layer"""
    bias: Tensor
    """(C,)"""
    pooling: Pooling = "last"
    inner_weight: Tensor | None = None
    """(m, d)"""
    inner_bias: Tensor | None = None
    """(m,)"""
    activation: Activation = "gelu"


@dataclass(frozen=True)
class Terms:
    """The terms of one adapter, by place or by layer; d hidden, p rows of a prompt."""

    linears: Mapping[str, LinearTerm] = field(default_factory=dict)
    hiddens: Mapping[str, HiddenTerm] = field(default_factory=dict)
    norms: Mapping[str, NormTerm] = field(default_factory=dict)
    attentions: Mapping[int, AttentionTerm] = field(default_factory=dict)
    keys_values: Mapping[int, KeysValues] = field(default_factory=dict)
    prompt: Tensor | None = None
    """(p, d): rows that enter the stream before a sequence's own, after `keys_values`."""
    head: HeadTerm | None = None
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    """What stands for the network's own parameters, by their names in it."""

    @classmethod
    def of(
        cls,
        method: Method,
        tensors: Mapping[str, Tensor],
        base: Base,
        *,
        dtype: torch.dtype | None = None,
        casts: Mapping[int, Tensor] = NO_CASTS,
    ) -> Terms:
        """Ask `method` for its terms and cast each once, from float32 to `dtype`.

        Differentiable in `tensors`; `dtype` is the base's unless given. `casts` holds, by the `id`
        of a tensor, those that were made already.
        """
        shape, dtype = base.shape, dtype or base.dtype
        layers = range(shape.layers)

        def given(asked: Iterable[tuple[KeyT, TermT | None]]) -> dict[KeyT, TermT]:
            return {key: term for key, term in asked if term is not None}

        linears = given((p, method.linear(tensors, p, base)) for p in shape.linears)
        hiddens = given((p, method.hidden(tensors, p, base)) for p in shape.sublayers)
        norms = given((p, method.norm(tensors, p, base)) for p in shape.norms)
        attentions = given((i, method.attention(tensors, i, base)) for i in layers)
        keys_values = given((i, method.keys_values(tensors, i, base)) for i in layers)
        groups = (linears, hiddens, norms, attentions, keys_values)
        _cast(groups, dtype, base.device, casts)
        prompt, head = _prompt(method, tensors, base), method.head(tensors, base)
        weights = method.weights(tensors, base) or {}
        return cls(
            linears=linears,
            hiddens=hiddens,
            norms=norms,
            attentions=attentions,
            keys_values=keys_values,
            prompt=None if prompt is None else prompt.to(base.device, dtype),
            head=None if head is None else head.to(dtype, base.device),
            weights={
                name: casts.get(id(weight), weight).to(base.device, dtype)
                for name, weight in weights.items()
            },
        )

    @property
    def static_rows(self) -> int:
        """How many positions `keys_values` take."""
        return next((term.keys.shape[1] for term in self.keys_values.values()), 0)

    @property
    def prompt_rows(self) -> int:
        """How many rows its prompt has; 0 without one."""
        return 0 if self.prompt is None else len(self.prompt)

    @property
    def prefix_rows(self) -> int:
        """How many positions stand before a sequence's own first one."""
        return self.static_rows + self.prompt_rows

    @property
    def leaves_trunk_alone(self) -> bool:
        """Whether the final hidden states are the base's: all that acts is a head."""
        acting = (self.hiddens, self.norms, self.attentions, self.keys_values, self.weights)
        at_head = all(place == HEAD for place in self.linears)
        return at_head and self.prompt is None and not any(acting)

    @property
    def drops(self) -> bool:
        """Whether training draws masks, by which rows that are alike come out different."""
        return any(term.dropout > 0 for term in self.linears.values())

    def tensors(self) -> Iterator[Tensor]:
        """Go through every tensor of every term."""
        for member in fields(self):
            value = getattr(self, member.name)
            for item in value.values() if isinstance(value, Mapping) else (value,):
                if isinstance(item, Term):
                    yield from item.tensors()
                elif isinstance(item, torch.Tensor):
                    yield item

    @property
    def bytes(self) -> int:
        """What the tensors occupy."""
        return sum(tensor.nbytes for tensor in self.tensors())


def _cast(
    groups: Iterable[dict[Any, Any]],
    dtype: torch.dtype,
    device: torch.device,
    casts: Mapping[int, Tensor],
) -> None:
    """Move every term of some groups and cast it, all tensors at once."""
    from models.nn.cast import cast_together  # loads torch, which this file does not

    terms = [term for held in groups for term in held.values() if not term.keeps_float32]
    sources = [casts.get(id(t), t).to(device) for term in terms for t in term.tensors()]
    cast = iter(cast_together(sources, dtype))
    for held in groups:
        for key, term in held.items():
            held[key] = term.to(torch.float32, device) if term.keeps_float32 else term.filled(cast)


def _prompt(method: Method, tensors: Mapping[str, Tensor], base: Base) -> Tensor | None:
    """Return the rows of `tokens`, then those of `embeddings`, as one (p, d)."""
    ids, embeddings = method.tokens(tensors), method.embeddings(tensors, base)
    pieces = [] if ids is None else [base.embed(ids.to(base.device))]
    pieces += [] if embeddings is None else [embeddings]
    return torch.cat(pieces) if pieces else None
