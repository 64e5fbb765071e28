"""AdamW over float32 masters, and the learning rate as a plain function of the step."""

from collections.abc import Mapping
from math import ceil, cos, pi
from typing import NamedTuple

import torch
from torch import Tensor

from models.nn.adamw import Moments, adamw, norm
from models.nn.methods.base import Method
from models.nn.shape import HEAD
from models.spec import LoopSpec
from worker.train.held import Held, Joined, Large

_STEP = "step"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_LARGE = 2**16
"""A tensor of so many numbers is not joined with others."""


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
        self._loop = loop
        names: dict[float, list[str]] = {}
        for name in tensors:
            if method.is_trained(name):
                names.setdefault(method.learning_rate_scale(name), []).append(name)
        self._places: dict[str, _Place] = {}
        self._of_head = {id(t) for name, t in tensors.items() if name.startswith(f"{HEAD}.")}
        self._held = {
            scale: self._hold({name: tensors[name] for name in same})
            for scale, same in names.items()
        }
        self._divisor: Tensor | None = None

    def _hold(self, tensors: Mapping[str, Tensor]) -> list[Held]:
        """Take tensors that are learnt at one rate."""
        small = {name: tensor for name, tensor in tensors.items() if tensor.numel() < _LARGE}
        large = {name: Large(t) for name, t in tensors.items() if name not in small}
        for name, alone in large.items():
            self._places[name] = _Place(alone, slice(None), tensors[name].shape)
        if not small:
            return [*large.values()]
        joined, first = Joined(list(small.values())), 0
        for name, tensor in small.items():
            own = slice(first, first + tensor.numel())
            self._places[name] = _Place(joined, own, tensor.shape)
            first = own.stop
        return [*large.values(), joined]

    @property
    def _all(self) -> list[Held]:
        return [each for held in self._held.values() for each in held]

    def casts(self, dtype: torch.dtype) -> dict[int, Tensor]:
        """Return the tensors as they are now in `dtype`, by the `id` of each.

        They are leaves, the same ones every time: graphs of an earlier call are over with the next.
        What flows to them goes on to the tensors by the time it is normalised, which is why small
        ones that have the dtype get them too. Small ones of the head are left out: a loss sends
        them its gradient in pieces, to be summed in float32.
        """
        return {
            id(tensor): cast
            for held in self._all
            for tensor, cast in zip(held.tensors, held.casts(dtype), strict=True)
            if isinstance(held, Large) or id(tensor) not in self._of_head
        }

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
        gathered = [held.gather() for held in self._all]
        total = norm([each for each in gathered if each is not None]) / labelled_tokens
        shrink = (total / self._loop.max_grad_norm).clamp(min=1.0)
        self._divisor = shrink * labelled_tokens
        return total

    def step(self, rate: float) -> None:
        """Move the tensors at this learning rate and forget the gradients."""
        for scale, held in self._held.items():
            moves = [move for each in held if (move := each.move()) is not None]
            decay = self._loop.weight_decay
            adamw(moves, rate=rate * scale, weight_decay=decay, divisor=self._divisor)
        self.forget()

    def forget(self) -> None:
        """Have no gradients."""
        for held in self._all:
            held.forget()
        self._divisor = None

    def state(self) -> dict[str, Tensor]:
        """Return the moments under `<kind>.<tensor name>`; nothing before the first step."""
        state: dict[str, Tensor] = {}
        for name, place in self._places.items():
            if (moments := place.held.moments) is not None:
                state[f"{_STEP}.{name}"] = moments.step.clone()
                for kind in _MOMENTS:
                    state[f"{kind}.{name}"] = place.of(getattr(moments, kind))
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        for name, place in self._places.items():
            if f"{_STEP}.{name}" not in state:
                continue
            moments = place.held.moments = place.held.moments or Moments.before(place.held.values)
            moments.step.copy_(state[f"{_STEP}.{name}"])
            for kind in _MOMENTS:
                place.of(getattr(moments, kind)).copy_(state[f"{kind}.{name}"])


class _Place(NamedTuple):
    """Where a tensor lies in what holds it."""

    held: Held
    elements: slice
    shape: torch.Size

    def of(self, value: Tensor) -> Tensor:
        """Return the tensor's part of something that has a number for each of what is held."""
        return value.view(-1)[self.elements].view(self.shape)
