"""Prefix tuning: trained keys and values of every layer that stand before every sequence.

Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", arXiv 2101.00190,
section 4; without the reparametrisation also known as P-tuning v2 (Liu et al., arXiv 2110.07602).
p rows of the prefix, L layers, K key and value heads, H query heads, h head dimension, d hidden, m
width of the reparametrisation, f = 2 L K h. Parameters: p f; with the reparametrisation
p d + m d + m + f m + f; with the zero gate H L more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import lazy_loader
from pydantic import Field

from models.nn.methods.base import Method, Site
from models.nn.places import refuse_settings
from models.nn.prompts import StartsFromTokens, refuse_long, starting_ids, text_ids
from models.nn.shape import Shape
from models.nn.terms import AttentionTerm, KeysValues

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from models.nn.base import Base
    from models.nn.problem import Problem
else:
    torch = lazy_loader.load("torch")

PREFIX = "prompt_embeddings"
GATE = "gate"
_INPUT = "embedding.weight"
_DOWN = "transform.0"
_UP = "transform.2"


class Prefix(StartsFromTokens, Method):
    """Attention over [P_k; K] and [P_v; V]: p trained keys and values a layer before the real ones.

    Keys are as a cache holds them, rotated already, so real rows stand at positions p, p + 1, ...
    With `zero_gate` they have a softmax of their own, times tanh(g) with one g = 0 a head at the
    start (as LLaMA-Adapter, Zhang et al., arXiv 2303.16199, section 3.2), so that training starts
    at the base; PEFT has no form for that, and the adapter is stored in ours.
    """

    sites: ClassVar[frozenset[Site]] = frozenset({"keys_values", "attention"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prefix_length": 4},
        {"prefix_length": 3, "init": "random"},
        {"prefix_length": 2, "init": "vocabulary", "reparametrisation": True, "hidden_size": 6},
        {"prefix_length": 3, "zero_gate": True},
        {"prefix_length": 5, "zero_gate": True, "reparametrisation": True, "hidden_size": 4},
    )
    learning_rate: ClassVar[float] = 1e-2
    peft_type: ClassVar[str | None] = "PREFIX_TUNING"

    kind: Literal["prefix"] = Field("prefix", alias="type")
    prefix_length: int = Field(20, ge=1, le=4096, description="Keys and values of a layer.")
    reparametrisation: bool = Field(
        default=False,
        description="Train the prefix as the output of a small network, which is dropped when "
        "training is over.",
    )
    hidden_size: int = Field(
        512, ge=1, le=16384, description="Width of that network; unused without it."
    )
    zero_gate: bool = Field(
        default=False,
        description="Attend to the prefix apart, through gates that start at zero: training "
        "starts exactly at the base.",
    )

    @property
    def starts_as_base(self) -> bool:
        """Only gates keep a prefix from taking attention; zero keys do not."""
        return self.zero_gate

    @property
    def rows_before(self) -> int:
        """The keys and values, but gated ones, which have a softmax of their own."""
        return 0 if self.zero_gate else self.prefix_length

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return P (p, f), or the network's input (p, d) and weights; and the gates (L, H)."""
        refuse_long(self.prefix_length, shape, param="prefix_length")
        if not self.reparametrisation:
            return self.served(shape)
        named: dict[str, tuple[int, ...]] = {
            _INPUT: (self.prefix_length, shape.hidden),
            f"{_DOWN}.weight": (self.hidden_size, shape.hidden),
            f"{_DOWN}.bias": (self.hidden_size,),
            f"{_UP}.weight": (_features(shape), self.hidden_size),
            f"{_UP}.bias": (_features(shape),),
        }
        return named | self._gates(shape)

    def adapt(self, problem: Problem, generator: torch.Generator) -> Self:  # noqa: ARG002
        """Look up the tokens of `init_text`."""
        if self.start != "text" or self.init_ids:
            return self
        ids = text_ids(self.init_text, problem, length=self.prefix_length)
        return self.model_copy(update={"init_ids": ids})

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """Start from keys and values of tokens, or from noise with their spread in each layer.

        The network of the reparametrisation is drawn at random up to its last layer, and that is
        solved for them, exactly where it is at least as wide as the prefix is long.
        """
        given = self.init_ids if self.start == "text" else ()
        ids = starting_ids(given, base, length=self.prefix_length, generator=generator)
        prefix_pf = self._of_tokens(ids, base)
        if self.start == "random":
            sides_psf = prefix_pf.view(self.prefix_length, 2 * base.shape.layers, -1)
            spread_s1 = sides_psf.std(dim=(0, 2))[:, None]
            noise_psf = torch.randn(sides_psf.shape, generator=generator)
            prefix_pf = (spread_s1 * noise_psf).flatten(1)
        gates = {name: torch.zeros(size) for name, size in self._gates(base.shape).items()}
        if not self.reparametrisation:
            return {PREFIX: prefix_pf} | gates
        return self._solve(prefix_pf, base.shape.hidden, generator) | gates

    def learning_rate_scale(self, name: str) -> float:
        """Train the network of the reparametrisation more slowly than a prefix by itself."""
        return 1.0 if name in (PREFIX, GATE) else 0.03

    def keys_values(self, t: Mapping[str, Tensor], layer: int, base: Base) -> KeysValues | None:
        """Return the keys, rotated already, and values of a layer."""
        return None if self.zero_gate else KeysValues(*self._sides(t, layer, base.shape))

    def attention(self, t: Mapping[str, Tensor], layer: int, base: Base) -> AttentionTerm | None:
        """Return the gated form, whose keys are not rotated."""
        if not self.zero_gate:
            return None
        keys_kph, values_kph = self._sides(t, layer, base.shape)
        return AttentionTerm(keys_kph, values_kph, gate=torch.tanh(t[GATE][layer]))

    def served(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return P (p, f), each row as [layer, key or value, head, dimension]; and the gates."""
        return {PREFIX: (self.prefix_length, _features(shape)), **self._gates(shape)}

    def finish(self, t: Mapping[str, Tensor], base: Base) -> dict[str, Tensor]:  # noqa: ARG002
        """Compute P."""
        if PREFIX in t:
            return dict(t)
        prefix_pf = _transform(t, slice(None)).detach()
        return {PREFIX: prefix_pf} | {name: t[name] for name in t if name == GATE}

    def to_peft(
        self, t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return PEFT's PREFIX_TUNING form, of which a gated prefix has none."""
        if self.zero_gate:
            return None
        config = {
            "peft_type": "PREFIX_TUNING",
            "task_type": "CAUSAL_LM",
            "num_virtual_tokens": self.prefix_length,
            # PEFT means keys here: it divides the one by the other for the head dimension.
            "token_dim": shape.kv_heads * shape.head_dim,
            "num_attention_heads": shape.kv_heads,
            "num_layers": shape.layers,
            "num_transformer_submodules": 1,
            "encoder_hidden_size": shape.kv_heads * shape.head_dim,
            "prefix_projection": False,
            "inference_mode": True,
        }
        return config, {PREFIX: t[PREFIX]}

    @classmethod
    def from_peft(
        cls,
        config: Mapping[str, Any],
        t: Mapping[str, Tensor],
        shape: Shape,  # noqa: ARG003
    ) -> tuple[Self, dict[str, Tensor]]:
        """Read PREFIX_TUNING; of one with a projection, PEFT stores the finished prefix."""
        refuse_settings(
            config,
            read=(
                "num_virtual_tokens",
                "token_dim",
                "num_attention_heads",
                "num_layers",
                "encoder_hidden_size",
                "prefix_projection",
                "init_weights",
            ),
            allowed={"num_transformer_submodules": (1,)},
        )
        return cls(prefix_length=config["num_virtual_tokens"], init="random"), dict(t)

    def _gates(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        return {GATE: (shape.layers, shape.heads)} if self.zero_gate else {}

    def _of_tokens(self, ids: Tensor, base: Base) -> Tensor:
        """Return P (p, f) of ids (p,) int64 as the base computes it.

        For a gated prefix all tokens stand at position 0, where a rotation changes nothing.
        """
        positions = torch.zeros_like(ids) if self.zero_gate else torch.arange(len(ids))
        sides = [side for pair in base.keys_values(ids, positions=positions) for side in pair]
        return torch.stack(sides).permute(2, 0, 1, 3).flatten(1).cpu()

    def _solve(
        self, prefix_pf: Tensor, hidden: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return a network that gives P, or what is nearest to it."""
        rows_pd = torch.randn(len(prefix_pf), hidden, generator=generator)
        down_md = torch.randn(self.hidden_size, hidden, generator=generator) / hidden**0.5
        inner_pm = torch.tanh(torch.nn.functional.linear(rows_pd, down_md))
        mean_f = prefix_pf.mean(0)
        return {
            _INPUT: rows_pd,
            f"{_DOWN}.weight": down_md,
            f"{_DOWN}.bias": torch.zeros(self.hidden_size),
            f"{_UP}.weight": (torch.linalg.pinv(inner_pm) @ (prefix_pf - mean_f)).T.contiguous(),
            f"{_UP}.bias": mean_f,
        }

    def _sides(self, t: Mapping[str, Tensor], layer: int, shape: Shape) -> tuple[Tensor, Tensor]:
        """Return keys and values (K, p, h) of a layer."""
        size = 2 * shape.kv_heads * shape.head_dim
        part = slice(layer * size, (layer + 1) * size)
        rows_pe = t[PREFIX][:, part] if PREFIX in t else _transform(t, part)
        keys_kph, values_kph = rows_pe.view(
            len(rows_pe), 2, shape.kv_heads, shape.head_dim
        ).permute(1, 2, 0, 3)
        return keys_kph, values_kph


def _features(shape: Shape) -> int:
    return shape.layers * 2 * shape.kv_heads * shape.head_dim


def _transform(t: Mapping[str, Tensor], part: slice) -> Tensor:
    """Return some columns of P (p, f) from the network."""
    inner_pm = torch.tanh(
        torch.nn.functional.linear(t[_INPUT], t[f"{_DOWN}.weight"], t[f"{_DOWN}.bias"])
    )
    return torch.nn.functional.linear(inner_pm, t[f"{_UP}.weight"][part], t[f"{_UP}.bias"][part])
