"""PiSSA: LoRA that starts at the weight's own principal directions (Meng et al., arXiv 2404.02948).

W = U S VT; A0 = sqrt(S_r / s) V_rT and B0 = U_r sqrt(S_r / s), section 3. The paper trains A and B
over the residual W - s B0 A0. Here the base stays as it is, for others share it:

y = W x - s B0 A0 x + s B A x = W x + s (B (A - A0) + (B - B0) A0) x

The last form is the same function, gives the same gradients, and is a term of rank 2r in which no
large numbers cancel: at step 0 it is zero to the bit, and a low-precision cast keeps small steps.
It is also what is stored, as a plain PEFT LORA adapter of rank 2r with A = [A - A0; A0] and
B = [B, B - B0]. r (in + out) parameters a place are trained, and as many are kept as they began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import lazy_loader
from pydantic import Field

from models.nn.low_rank import LowRank
from models.nn.methods.base import Method, Site
from models.nn.shape import Shape
from models.nn.terms import LinearTerm

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from models.nn.base import Base
else:
    torch = lazy_loader.load("torch")

_OVERSAMPLING = 8
_ITERATIONS = 4


class Pissa(LowRank, Method):
    """y = W x - s B0 A0 x + s B A x; A and B start at A0 and B0, from the top of W's SVD."""

    sites: ClassVar[frozenset[Site]] = frozenset({"linear"})
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"rank": 4},
        {"rank": 3, "alpha": 5, "use_rslora": True, "target_modules": ["o_proj", "lm_head"]},
        {"rank": 2, "dropout": 0.25, "target_modules": ["layers.1.mlp.down_proj"]},
    )
    learning_rate: ClassVar[float] = 2e-4

    kind: Literal["pissa"] = Field("pissa", alias="type")

    def tensors(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return A, A0 (rank, in) and B, B0 (out, rank) for every place."""
        trained = super().tensors(shape)
        return trained | {_initial(name): size for name, size in trained.items()}

    def is_trained(self, name: str) -> bool:
        """A0 and B0 are not."""
        return not name.endswith((".initial_A", ".initial_B"))

    def init(self, base: Base, generator: torch.Generator) -> dict[str, Tensor]:
        """Take A and B from a randomised SVD of the weight."""
        tensors: dict[str, Tensor] = {}
        for place in self.places(base.shape):
            weight = base.weight(place).cpu()
            down, up = _principal(weight / self.scale, rank=self.rank, generator=generator)
            tensors |= {f"{place}.lora_A": down, f"{place}.lora_B": up}
        return tensors | {_initial(name): tensor.clone() for name, tensor in tensors.items()}

    def linear(self, t: Mapping[str, Tensor], place: str, base: Base) -> LinearTerm | None:  # noqa: ARG002
        """Return the low-rank term of what changed since the start."""
        if f"{place}.lora_A" not in t:
            return None
        down, up = _joined(t, place)
        return LinearTerm(down=down, up=up, scale=self.scale, dropout=self.dropout)

    def served(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        """Return A (2 rank, in) and B (out, 2 rank) for every place."""
        doubled = self.model_copy(update={"rank": 2 * self.rank})
        return LowRank.tensors(doubled, shape)

    def finish(self, t: Mapping[str, Tensor], base: Base) -> dict[str, Tensor]:
        """Return a plain low-rank update."""
        tensors: dict[str, Tensor] = {}
        for place in self.places(base.shape):
            down, up = _joined(t, place)
            tensors |= {f"{place}.lora_A": down, f"{place}.lora_B": up}
        return tensors

    def to_peft(
        self, t: Mapping[str, Tensor], shape: Shape
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return PEFT's LORA form of twice the rank."""
        config, tensors = super().to_peft(t, shape)
        rank = 2 * self.rank
        alpha = self.scale * rank if self.use_rslora else 2 * self.alpha
        doubled = {"r": rank, "lora_alpha": alpha, "use_rslora": False}
        return config | doubled, tensors


def _initial(name: str) -> str:
    """Return the name of what a trained tensor began as."""
    return name.replace(".lora_", ".initial_")


def _joined(t: Mapping[str, Tensor], place: str) -> tuple[Tensor, Tensor]:
    """Return down (2r, in) and up (out, 2r), from the tensors of training or those served."""
    down, up = t[f"{place}.lora_A"], t[f"{place}.lora_B"]
    if f"{place}.initial_A" not in t:
        return down, up
    down0, up0 = t[f"{place}.initial_A"], t[f"{place}.initial_B"]
    return torch.cat([down - down0, down0]), torch.cat([up, up - up0], dim=1)


def _principal(weight: Tensor, *, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return sqrt(S_r) V_rT (r, in) and U_r sqrt(S_r) (out, r) of a weight (out, in).

    By subspace iteration from a random start (Halko et al., arXiv 0909.4061, algorithm 4.4); what a
    small weight has no rank for is zero.
    """
    out, inner = weight.shape
    width = min(rank + _OVERSAMPLING, out, inner)
    found_iq = torch.randn(inner, width, generator=generator)
    basis_oq = torch.linalg.qr(weight @ found_iq).Q
    for _ in range(_ITERATIONS):
        found_iq = torch.linalg.qr(weight.T @ basis_oq).Q
        basis_oq = torch.linalg.qr(weight @ found_iq).Q
    left_qq, values_q, right_qi = torch.linalg.svd(basis_oq.T @ weight, full_matrices=False)
    held = min(rank, width)
    roots_r = values_q[:held].sqrt()
    down = torch.zeros(rank, inner)
    up = torch.zeros(out, rank)
    down[:held] = roots_r[:, None] * right_qi[:held]
    up[:, :held] = (basis_oq @ left_qq[:, :held]) * roots_r
    return down, up
