"""Prompt tuning and P-tuning: trained rows that stand before every sequence's embeddings.

Prompt tuning trains P (p, d) itself (Lester et al., arXiv 2104.08691, section 2). P-tuning trains
P = encoder(E) with E (p, d) and an encoder that is dropped when training is over (Liu et al., arXiv
2103.10385, section 3.2; layers as in Hugging Face PEFT's `PromptEncoder`). p rows, d hidden, m
encoder width. Parameters: p d; the `mlp` encoder has 2 d m + m^2 + 2 m + d more, the `lstm` encoder
(2 layers, both directions) 10 d m + 36 m^2 + 34 m + d.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import lazy_loader
from pydantic import Field

from models.nn.methods.base import Method, Site
from models.nn.places import refuse_settings
from models.nn.prompts import StartsFromTokens, embedding_std, refuse_long, starting_ids, text_ids
from models.nn.shape import Shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch
    from torch import Tensor

    from models.nn.base import Base
    from models.nn.problem import Problem
else:
    torch = lazy_loader.load("torch")

PROMPT = "prompt_embeddings"
_INPUT = "embedding.weight"
_LSTM = "lstm_head"
_MLP = "mlp_head"
_DIRECTIONS = ("l0", "l0_reverse", "l1", "l1_reverse")


class SoftPrompt(StartsFromTokens, Method):
    """[P; E(x)]: p trained rows before the embedded tokens; an encoder of P may be trained."""

    sites: ClassVar[frozenset[Site]] = frozenset({"embeddings"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"prompt_length": 4},
        {"prompt_length": 3, "init": "vocabulary", "encoder": "mlp", "encoder_hidden_size": 8},
        {"prompt_length": 5, "init": "random", "encoder": "lstm", "encoder_hidden_size": 6},
        {"prompt_length": 2, "init": "random"},
    )
    learning_rate: ClassVar[float] = 1e-2
    peft_type: ClassVar[str | None] = "PROMPT_TUNING"
    other_peft_types: ClassVar[tuple[str, ...]] = ("P_TUNING",)

    kind: Literal["soft_prompt"] = Field("soft_prompt", alias="type")
    prompt_length: int = Field(20, ge=1, le=4096, description="Rows of the prompt.")
    encoder: Literal["none", "mlp", "lstm"] = Field(
        "none",
        description="P-tuning: train the prompt as the output of a small network, which may "
        "converge where the prompt alone does not. What is served is the same.",
    )
    encoder_hidden_size: int | None = Field(
        None,
        ge=1,
        le=16384,
        description="Width of the encoder; the hidden size of the base if left out.",
    )

    @property
    def starts_as_base(self) -> bool:
        """A prompt takes attention from the first step."""
        return False

    @property
    def rows_before(self) -> int:
        """The rows of the prompt."""
        return self.prompt_length

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return P (p, d); or the encoder's input (p, d) and its weights, by PEFT's names."""
        refuse_long(self.prompt_length, shape, param="prompt_length")
        hidden, width = shape.hidden, self.encoder_hidden_size or shape.hidden
        rows = (self.prompt_length, hidden)
        if self.encoder == "none":
            return {PROMPT: rows}
        if self.encoder == "mlp":
            sizes = [(width, hidden), (width, width), (hidden, width)]
            return {_INPUT: rows, **_linears(sizes)}
        named: dict[str, tuple[int, ...]] = {_INPUT: rows}
        for direction in _DIRECTIONS:
            given = hidden if direction.startswith("l0") else 2 * width
            named |= {
                f"{_LSTM}.weight_ih_{direction}": (4 * width, given),
                f"{_LSTM}.weight_hh_{direction}": (4 * width, width),
                f"{_LSTM}.bias_ih_{direction}": (4 * width,),
                f"{_LSTM}.bias_hh_{direction}": (4 * width,),
            }
        return named | _linears([(2 * width, 2 * width), (hidden, 2 * width)])

    def adapt(self, problem: Problem, generator: torch.Generator) -> Self:  # noqa: ARG002
        """Look up the tokens of `init_text` and the width of the encoder."""
        update: dict[str, Any] = {}
        if self.start == "text" and not self.init_ids:
            update["init_ids"] = text_ids(self.init_text, problem, length=self.prompt_length)
        if self.encoder != "none" and self.encoder_hidden_size is None:
            update["encoder_hidden_size"] = problem.base.shape.hidden
        return self.model_copy(update=update)

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """Start from rows of the base's embedding, or from noise as large as they are.

        PEFT's N(0, 1) is far outside of most embeddings. An encoder reads these rows at unit
        scale, and its last layer is scaled so that what it gives is as large as they are.
        """
        std = embedding_std(base)
        prompt_pd = self._starting_rows(base, generator, std=std)
        if self.encoder == "none":
            return {PROMPT: prompt_pd}
        sizes = self.tensors(base.shape)
        tensors = {_INPUT: prompt_pd / std}
        for name, size in sizes.items():
            layer = name.rpartition(".")[0]
            if name != _INPUT:
                fan_in = sizes[f"{layer}.weight" if layer != _LSTM else f"{layer}.weight_hh_l0"][1]
                bound = fan_in**-0.5
                tensors[name] = torch.empty(size).uniform_(-bound, bound, generator=generator)
        factor = std / float(self._encode(tensors).std())
        last = _layers(tensors)[-1]
        for part in ("weight", "bias"):
            tensors[f"{last}.{part}"] *= factor
        return tensors

    def _starting_rows(self, base: Base, generator: torch.Generator, *, std: float) -> Tensor:
        """Return (p, d)."""
        if self.start == "random":
            rows = (self.prompt_length, base.shape.hidden)
            return std * torch.randn(rows, generator=generator)
        given = self.init_ids if self.start == "text" else ()
        ids = starting_ids(given, base, length=self.prompt_length, generator=generator)
        return base.embed(ids.to(base.device)).cpu()

    def learning_rate_scale(self, name: str) -> float:
        """Train an encoder and its input more slowly than a prompt by itself."""
        return 1.0 if name == PROMPT else 0.03

    def embeddings(self, t: Mapping[str, Tensor], base: Base) -> Tensor | None:  # noqa: ARG002
        """Return P."""
        return self._prompt(t)

    def served(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return P alone: the encoder is dropped."""
        return {PROMPT: (self.prompt_length, shape.hidden)}

    def finish(self, t: Mapping[str, Tensor], base: Base) -> dict[str, Tensor]:  # noqa: ARG002
        """Compute P."""
        return {PROMPT: self._prompt(t).detach()}

    def to_peft(
        self, t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's PROMPT_TUNING form, or with an encoder P_TUNING, which keeps P only.

        PEFT can go on training the first; of the second it takes P for the encoder's input.
        """
        config: dict[str, Any] = {
            "peft_type": "PROMPT_TUNING" if self.encoder == "none" else "P_TUNING",
            "task_type": "CAUSAL_LM",
            "num_virtual_tokens": self.prompt_length,
            "token_dim": shape.hidden,
            "num_transformer_submodules": 1,
            "num_attention_heads": shape.heads,
            "num_layers": shape.layers,
            "inference_mode": True,
        }
        if self.encoder == "none":
            config["prompt_tuning_init"] = "RANDOM"
        else:
            config["encoder_reparameterization_type"] = self.encoder.upper()
            config["encoder_hidden_size"] = self.encoder_hidden_size or shape.hidden
        return config, {PROMPT: t[PROMPT]}

    @classmethod
    def from_peft(
        cls,
        config: Mapping[str, Any],
        t: Mapping[str, Tensor],
        shape: Shape,  # noqa: ARG003
    ) -> tuple[Self, dict[str, Tensor]]:
        """Read PROMPT_TUNING, or the finished prompt of P_TUNING, whose encoder PEFT dropped."""
        refuse_settings(
            config,
            read=(
                "num_virtual_tokens",
                "token_dim",
                "num_attention_heads",
                "num_layers",
                "prompt_tuning_init",
                "prompt_tuning_init_text",
                "tokenizer_name_or_path",
                "tokenizer_kwargs",
                "encoder_reparameterization_type",
                "encoder_hidden_size",
                "encoder_num_layers",
                "encoder_dropout",
            ),
            allowed={"num_transformer_submodules": (1,)},
        )
        return cls(prompt_length=config["num_virtual_tokens"], init="random"), dict(t)

    def _prompt(self, t: Mapping[str, Tensor]) -> Tensor:
        return t[PROMPT] if PROMPT in t else self._encode(t)

    def _encode(self, t: Mapping[str, Tensor]) -> Tensor:
        """Return P (p, d) from the encoder's input and weights."""
        z_pm = t[_INPUT]
        if self.encoder == "lstm":
            z_pm = _run_lstm(z_pm, t)
        layers = _layers(t)
        for layer in layers:
            z_pm = torch.nn.functional.linear(z_pm, t[f"{layer}.weight"], t[f"{layer}.bias"])
            z_pm = z_pm if layer == layers[-1] else torch.nn.functional.relu(z_pm)
        return z_pm


def _linears(sizes: list[tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """Name the layers of the head as a sequence with an activation between two of them."""
    named: dict[str, tuple[int, ...]] = {}
    for index, (out, given) in enumerate(sizes):
        named[f"{_MLP}.{2 * index}.weight"] = (out, given)
        named[f"{_MLP}.{2 * index}.bias"] = (out,)
    return named


def _layers(names: Iterable[str]) -> list[str]:
    """Return the layers of the head, in order."""
    return sorted({name.rpartition(".")[0] for name in names if name.startswith(_MLP)})


def _run_lstm(rows_pd: Tensor, t: Mapping[str, Tensor]) -> Tensor:
    """Return (p, 2m) of two layers in both directions."""
    weights = [
        t[f"{_LSTM}.{part}_{direction}"]
        for direction in _DIRECTIONS
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    ]
    width = weights[1].shape[1]
    zeros = rows_pd.new_zeros(len(_DIRECTIONS), 1, width)
    # cuDNN differentiates in training mode only; without dropout that changes nothing.
    output_1pm, _, _ = torch.lstm(
        rows_pd[None],
        (zeros, zeros),
        weights,
        has_biases=True,
        num_layers=2,
        dropout=0.0,
        train=True,
        bidirectional=True,
        batch_first=True,
    )
    return output_1pm[0]
