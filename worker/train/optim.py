"""AdamW over float32 masters, and the learning rate as a plain function of the step."""

from collections.abc import Mapping
from math import ceil, cos, pi

import torch
from torch import Tensor

from models.nn.methods.base import Method
from models.spec import LoopSpec

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def rate_factor(step: int, *, loop: LoopSpec, total_steps: int) -> float:
    """Return what multiplies the learning rate at `step` (from 0): warm-up, then the schedule.

    The first step already learns, and the last one still does.
    """
    warmup = ceil(loop.warmup_ratio * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(total_steps - warmup, 1)
    if loop.scheduler == "linear":
        return 1.0 - progress
    if loop.scheduler == "cosine":
        return 0.5 * (1.0 + cos(pi * progress))
    return 1.0


class Optimizer:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) with the norm of all gradients clipped."""

    def __init__(self, tensors: Mapping[str, Tensor], *, method: Method, loop: LoopSpec) -> None:
        self._tensors = {name: t for name, t in tensors.items() if method.is_trained(name)}
        self._loop = loop
        scales: dict[float, list[Tensor]] = {}
        for name, tensor in self._tensors.items():
            scales.setdefault(method.learning_rate_scale(name), []).append(tensor)
        self._scales = list(scales)
        self._adamw = torch.optim.AdamW(
            [{"params": group} for group in scales.values()],
            lr=loop.learning_rate,
            weight_decay=loop.weight_decay,
            fused=True,
        )

    def learning_rate(self, step: int, *, total_steps: int) -> float:
        """Return the rate of `step` (from 0) before any scale of a single tensor."""
        return self._loop.learning_rate * rate_factor(
            step, loop=self._loop, total_steps=total_steps
        )

    def normalise(self, labelled_tokens: int) -> Tensor:
        """Turn gradients of a sum into those of a mean, clip them; return their norm before that.

        The division comes last and in float32: folded into bfloat16 gradients it would bias them.
        """
        gradients = [tensor.grad for tensor in self._tensors.values() if tensor.grad is not None]
        torch._foreach_div_(gradients, float(labelled_tokens))
        return torch.nn.utils.clip_grad_norm_(self._tensors.values(), self._loop.max_grad_norm)

    def step(self, rate: float) -> None:
        """Move the tensors at this learning rate and forget the gradients."""
        for group, scale in zip(self._adamw.param_groups, self._scales, strict=True):
            group["lr"] = rate * scale
        self._adamw.step()
        self.forget()

    def forget(self) -> None:
        """Drop the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Return the moments under `<kind>.<tensor name>`."""
        return {
            f"{kind}.{name}": value
            for name, tensor in self._tensors.items()
            for kind, value in self._adamw.state[tensor].items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned; nothing before the first step."""
        if not state:
            return
        for name, tensor in self._tensors.items():
            self._adamw.state[tensor] = {
                kind: state[f"{kind}.{name}"].to(tensor.device, copy=True) for kind in _MOMENTS
            }
