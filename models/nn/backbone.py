"""One frozen Hugging Face network, changed so that executors act in it and attention is ours.

The network stays what its authors wrote: its linear leaves are replaced by ones that ask the
current executor, and its attention function by one that asks the current `Attention`. A family is
admitted once a test shows that it equals the unchanged network.
Shapes: T rows of the stream, d hidden, N rows whose logits are wanted, V vocabulary.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers import AutoConfig, AutoModelForCausalLM

from core.errors import InvalidRequest
from core.memory import give_freed_memory_back
from models.nn.attention import Attention
from models.nn.base import Base
from models.nn.executors import Executor
from models.nn.flat import FlatTrunk, admit
from models.nn.joint import Joint
from models.nn.kernels import Weight, ops
from models.nn.kernels.native import cross_entropy, project
from models.nn.kernels.rows import OWN_ROWS, SHARED_ROWS
from models.nn.leaves import ATTENTION_NAME, act_in, replace_leaves
from models.nn.quantized import leave_files, loading_options
from models.nn.rotation import fix_frequencies
from models.nn.shape import BODY_PREFIX, HEAD, Shape

FAMILIES = frozenset(
    {
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "llama",
        "mistral",
        "phi3",
        "qwen2",
        "qwen3",
        "smollm3",
    }
)


class Backbone:
    """The frozen base: hidden states and logits of a flat stream, with adapters at its places."""

    def __init__(self, network: Any) -> None:
        """Take over a Hugging Face network that was loaded for `AttentionInterface`'s name here."""
        self.config = network.config
        refuse_unknown_family(self.config)
        network.requires_grad_(requires_grad=False).eval()
        network.set_attn_implementation(ATTENTION_NAME)
        self.shape = Shape.of(network)
        replace_leaves(network, self.shape)
        fix_frequencies(network)
        # No row is padding here: the token that others pad with has gradients like any other.
        network.get_input_embeddings().padding_idx = None
        self.network = network
        self.dtype: torch.dtype = network.dtype
        self.device: torch.device = network.device
        self.base = Base(self.shape, self.dtype, self.device, network)
        self._weights: Mapping[str, Tensor] = {}
        self._flat = admit(network, self.shape, surgery=self._surgery)
        self._head = Weight(network.lm_head.weight, network.lm_head.bias)
        products = [one for joint in self.joints() for one in (joint, *joint.apart)]
        self._keeps_rows_apart = all(project.keeps_rows_apart(one.weight) for one in products)

    @classmethod
    def load(
        cls, folder: Path, *, dtype: torch.dtype, device: str = "cpu", quantization: str = "none"
    ) -> "Backbone":
        """Load a folder in Hugging Face's format; `InvalidRequest` for an unknown family.

        `quantization` is `none`, or `nf4` or `int8` for linear weights in 4 or 8 bits.
        """
        refuse_unknown_family(AutoConfig.from_pretrained(folder, local_files_only=True))
        network = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            **loading_options(quantization, dtype=dtype, device=device),
        )
        leave_files(network, folder)
        backbone = cls(network if quantization != "none" else network.to(device))
        give_freed_memory_back()
        return backbone

    def using(self, weights: Mapping[str, Tensor]) -> "Backbone":
        """Return the same network over other parameters, by their names in it.

        No copy is made, but of weights that train: only there joining them each time pays.
        """
        if not weights:
            return self
        changed = self.without_flat()
        changed._weights = weights  # noqa: SLF001 - of our own kind
        trains = torch.is_grad_enabled() and any(w.requires_grad for w in weights.values())
        if self._flat is not None and trains:
            changed._flat = FlatTrunk(self.network, self.shape, weights)  # noqa: SLF001
        return changed

    def without_flat(self) -> "Backbone":
        """Return the same network by its own forward, which is what the flat one is to equal."""
        changed = copy.copy(self)
        changed._flat = None  # noqa: SLF001 - of our own kind
        return changed

    @property
    def is_flat(self) -> bool:
        """Whether `hidden` is the flat forward and not the surgery."""
        return self._flat is not None

    @property
    def shared_rows(self) -> int:
        """How high a stream of several jobs may be, for no row to depend on the rows beside it."""
        return OWN_ROWS if self.is_flat and self._keeps_rows_apart else SHARED_ROWS

    def joints(self) -> Iterator[Joint]:
        """Go through the products of the flat forward; there are none without it."""
        yield from self._flat.joints() if self._flat is not None else ()

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return (T, d) in the base's dtype: what the layers are given for ids (T,) int64."""
        embedding = self.network.get_input_embeddings()
        weights = self._below(BODY_PREFIX + "embed_tokens.")
        embedded_td: Tensor = functional_call(embedding, weights, token_ids)
        return embedded_td

    def hidden(
        self,
        stream: Tensor,
        *,
        positions: Tensor,
        attention: Attention,
        executor: Executor,
        rows_n: Tensor | None = None,
    ) -> Tensor:
        """Return the final-normed hidden states (T, d) of a stream, or (N, d) of some rows of it.

        The stream is ids (T,) int64, or (T, d) as `embed` gives them. `positions` (T,) int64 are
        those of each row in its own sequence; which rows see which is `attention`'s business.
        `rows_n` (N,) int64 are the rows whose states will be read, some perhaps several times.
        """
        given: dict[str, Any] = {
            "positions": positions,
            "attention": attention,
            "executor": executor,
        }
        if self._flat is not None:
            return self._flat.hidden(stream, rows_n=rows_n, **given)
        hidden_td = self._surgery(stream, **given)
        return hidden_td if rows_n is None else hidden_td[rows_n]

    def _surgery(
        self, stream: Tensor, *, positions: Tensor, attention: Attention, executor: Executor
    ) -> Tensor:
        """Return what `hidden` does, through the network itself."""
        given = "inputs_embeds" if stream.is_floating_point() else "input_ids"
        inputs: dict[str, Any] = {
            given: stream[None],
            "position_ids": positions[None],
            "use_cache": False,
        }
        with act_in(executor, attention):
            body = self.network.model
            weights = self._below(BODY_PREFIX)
            output = functional_call(body, weights, kwargs=inputs) if weights else body(**inputs)
        hidden_1td: Tensor = output.last_hidden_state
        return hidden_1td[0]

    def logits(self, hidden_rows: Tensor, *, executor: Executor) -> Tensor:
        """Return (N, V) in the base's dtype from rows of `hidden`.

        The executor must be that of `hidden`, re-indexed by its `at` for the rows picked.
        """
        head, weights = self.network.lm_head, self._head_weights()
        with act_in(executor, None):
            logits_nv: Tensor = (
                functional_call(head, weights, hidden_rows) if weights else head(hidden_rows)
            )
        if (scaling := getattr(self.config, "logits_scaling", None)) is not None:
            logits_nv = logits_nv / scaling
        if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:
            logits_nv = cap * torch.tanh(logits_nv / cap)
        return logits_nv

    def has_plain_head(self, executor: Executor) -> bool:
        """Whether logits are but the base's own product with the hidden states."""
        changed = ("logits_scaling", "final_logit_softcapping")
        bounded = any(getattr(self.config, name, None) is not None for name in changed)
        return not (bounded or self._head_weights() or executor.acts(HEAD))

    def losses(self, hidden_rows: Tensor, *, targets_n: Tensor) -> tuple[Tensor, Tensor]:
        """Return each row's loss (N,) float32, and whether its target (int64) is the likeliest.

        For a plain head; no logits are kept.
        """
        loss = ops(hidden_rows.device).linear_cross_entropy
        return loss(hidden_rows, weight=self._head, targets_n=targets_n)

    def keeps_losses_apart(self, hidden_rows: Tensor) -> bool:
        """Say whether `losses` of a row are the same bits whatever rows are beside it."""
        return cross_entropy.keeps_rows_apart(hidden_rows, self._head)

    def _below(self, prefix: str) -> dict[str, Tensor]:
        """Return the replaced parameters below a module, by their names in that."""
        return {
            name.removeprefix(prefix): weight
            for name, weight in self._weights.items()
            if name.startswith(prefix)
        }

    def _head_weights(self) -> dict[str, Tensor]:
        """Return the head's replaced parameters; a tied head's weight is the embedding's."""
        return self._below(f"{BODY_PREFIX}embed_tokens." if self.shape.tied else f"{HEAD}.")


def refuse_unknown_family(config: Any) -> None:
    """Raise `InvalidRequest` unless the family is one whose equality is tested."""
    if config.model_type not in FAMILIES:
        raise InvalidRequest(
            f"Base models of type {config.model_type!r} are not supported; "
            f"supported are {', '.join(sorted(FAMILIES))}.",
            code="unsupported_base",
            param="base",
        )


def pick_dtype(device: str = "cpu") -> torch.dtype:
    """Return bfloat16 where the device multiplies it at full speed, else float32."""
    if device != "cpu":
        return torch.bfloat16
    features = torch.cpu.get_capabilities()
    fast = any(features.get(name) for name in ("avx512_bf16", "amx_bf16"))
    return torch.bfloat16 if fast else torch.float32
