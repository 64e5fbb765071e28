"""AdamW over float32 masters, and the learning rate as a plain function of the step."""

from collections.abc import Mapping
from itertools import accumulate, pairwise
from math import ceil, cos, pi
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.nn.methods.base import Method
from models.spec import LoopSpec

_STEP = "step"
_MOMENTS = ("exp_avg", "exp_avg_sq")


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
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) with the norm of all gradients clipped.

    All tensors become views of one buffer and their gradients of another, so that a step is a few
    passes over memory however many tensors there are.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, method: Method, loop: LoopSpec) -> None:
        trained = {name: tensor for name, tensor in tensors.items() if method.is_trained(name)}
        self._loop = loop
        names: dict[float, list[str]] = {}
        for name in trained:
            names.setdefault(method.learning_rate_scale(name), []).append(name)
        self._scales = list(names)
        ordered = {name: trained[name] for same in names.values() for name in same}
        values = torch.cat([tensor.detach().flatten() for tensor in ordered.values()])
        self._gradients = torch.zeros_like(values)
        self._places: dict[str, _Place] = {}
        groups, start = [], 0
        for index, same in enumerate(names.values()):
            sizes = [trained[name].numel() for name in same]
            group = slice(start, start + sum(sizes))
            groups.append(nn.Parameter(values[group]))
            groups[-1].grad = self._gradients[group]
            bounds = pairwise(accumulate(sizes, initial=0))
            for name, (first, last) in zip(same, bounds, strict=True):
                tensor = trained[name]
                self._places[name] = _Place(index, slice(first, last), tensor.shape)
                tensor.data = values[start + first : start + last].view(tensor.shape)
                tensor.grad = self._gradients[start + first : start + last].view(tensor.shape)
            start = group.stop
        self._groups = groups
        self._adamw = torch.optim.AdamW(
            [{"params": [group]} for group in groups],
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
        """Have the next step take the gradients of a sum as those of a mean, and clip these.

        Returns the norm of the mean's. The division is part of the step, in float32: folded into
        bfloat16 gradients it would bias them, and apart it would be passes over all memory.
        """
        gradients = [group.grad for group in self._groups if group.grad is not None]
        norm = nn.utils.get_total_norm(gradients) / labelled_tokens
        shrink = (norm / self._loop.max_grad_norm).clamp(min=1.0)
        self._adamw.grad_scale = shrink * labelled_tokens  # type: ignore[attr-defined]  # as of GradScaler
        return norm

    def step(self, rate: float) -> None:
        """Move the tensors at this learning rate and forget the gradients."""
        for group, scale in zip(self._adamw.param_groups, self._scales, strict=True):
            group["lr"] = rate * scale
        self._adamw.step()
        self.forget()

    def forget(self) -> None:
        """Set the gradients to zero."""
        self._gradients.zero_()

    def state(self) -> dict[str, Tensor]:
        """Return the moments under `<kind>.<tensor name>`; nothing before the first step."""
        state: dict[str, Tensor] = {}
        for name, place in self._places.items():
            held = self._adamw.state[self._groups[place.group]]
            if held:
                state[f"{_STEP}.{name}"] = held[_STEP].clone()
                state |= {f"{kind}.{name}": place.of(held[kind]) for kind in _MOMENTS}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned; nothing before the first step."""
        if not state:
            return
        for group in self._groups:
            moments = {kind: torch.zeros_like(group.detach()) for kind in _MOMENTS}
            self._adamw.state[group] = moments
        for name, place in self._places.items():
            group = self._groups[place.group]
            held = self._adamw.state[group]
            held[_STEP] = state[f"{_STEP}.{name}"].to(group.device, copy=True)
            for kind in _MOMENTS:
                place.of(held[kind]).copy_(state[f"{kind}.{name}"])


class _Place(NamedTuple):
    """Where a tensor lies in its group."""

    group: int
    elements: slice
    shape: torch.Size

    def of(self, value: Tensor) -> Tensor:
        """Return the tensor's part of a value of the group."""
        return value[self.elements].view(self.shape)
