"""AdamW over float32 masters, and the learning rate as a plain function of the step."""

from collections.abc import Mapping, Sequence
from math import ceil, cos, pi
from typing import NamedTuple

import torch
from torch import Tensor

from models.nn.cast import add_together, split
from models.nn.methods.base import Method
from models.nn.shape import HEAD
from models.spec import LoopSpec

_STEP = "step"
_MOMENTS = ("exp_avg", "exp_avg_sq")
_LARGE = 2**16
"""A tensor of so many numbers is not joined with others."""
_RUN = 2**12
"""The squares of so many numbers are summed in float32 without losing small ones."""


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

    Small tensors become views of one buffer and their gradients of another, so that a step is a few
    passes over memory however many there are. Large ones stay as they are, and have a gradient only
    when there is one: what is kept must be set to zero and added to, which are passes of their own.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, method: Method, loop: LoopSpec) -> None:
        self._loop = loop
        names: dict[float, list[str]] = {}
        for name in tensors:
            if method.is_trained(name):
                names.setdefault(method.learning_rate_scale(name), []).append(name)
        self._scales = list(names)
        self._large: list[Tensor] = []
        self._joined: list[_Joined] = []
        self._places: dict[str, _Place] = {}
        self._of_head = {id(t) for name, t in tensors.items() if name.startswith(f"{HEAD}.")}
        groups = [self._group({name: tensors[name] for name in same}) for same in names.values()]
        self._adamw = torch.optim.AdamW(
            [{"params": group} for group in groups],
            lr=loop.learning_rate,
            weight_decay=loop.weight_decay,
            fused=True,
        )

    def _group(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """Return what AdamW takes for tensors that are learnt at one rate."""
        small = {name: tensor for name, tensor in tensors.items() if tensor.numel() < _LARGE}
        large = {name: tensor for name, tensor in tensors.items() if name not in small}
        for name, tensor in large.items():
            self._places[name] = _Place(tensor, slice(None), tensor.shape)
        self._large += large.values()
        return [*large.values(), *([self._join(small)] if small else [])]

    def _join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Move tensors into one, and their gradients into its gradient."""
        joined = _Joined(list(tensors.values()))
        first = 0
        for name, tensor in tensors.items():
            own = slice(first, first + tensor.numel())
            self._places[name] = _Place(joined.values, own, tensor.shape)
            first = own.stop
        self._joined.append(joined)
        return joined.values

    def casts(self, dtype: torch.dtype) -> dict[int, Tensor]:
        """Return the small tensors as they are now in `dtype`, by the `id` of each, cast as one.

        They are leaves, the same ones every time: graphs of an earlier call are over with the next.
        What has flown to them goes on to the tensors then, or when it is normalised, which is why
        those that have the dtype get them too. Those of the head are left out: a loss sends them
        its gradient in pieces, to be summed in float32.
        """
        return {
            id(tensor): cast
            for joined in self._joined
            for tensor, cast in zip(joined.tensors, joined.cast(dtype), strict=True)
            if id(tensor) not in self._of_head
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
        for joined in self._joined:
            joined.gather()
        given = [tensor.grad for tensor in self._large if tensor.grad is not None]
        norm = _norm([*given, *(joined.gradients for joined in self._joined)]) / labelled_tokens
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
        """Have no gradients."""
        for tensor in self._large:
            tensor.grad = None
        for joined in self._joined:
            joined.forget()

    def state(self) -> dict[str, Tensor]:
        """Return the moments under `<kind>.<tensor name>`; nothing before the first step."""
        state: dict[str, Tensor] = {}
        for name, place in self._places.items():
            held = self._adamw.state[place.parameter]
            if held:
                state[f"{_STEP}.{name}"] = held[_STEP].clone()
                state |= {f"{kind}.{name}": place.of(held[kind]) for kind in _MOMENTS}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        for name, place in self._places.items():
            if f"{_STEP}.{name}" not in state:
                continue
            parameter = place.parameter
            held = self._adamw.state[parameter]
            held[_STEP] = state[f"{_STEP}.{name}"].to(parameter.device, copy=True)
            for kind in _MOMENTS:
                if kind not in held:
                    held[kind] = torch.zeros_like(parameter.detach())
                place.of(held[kind]).copy_(state[f"{kind}.{name}"])


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the norm of all, from those of short pieces, which several threads share.

    Taken as one, millions of float32 squares lose the small ones: some 1e-4 of the norm and more.
    """
    pieces = [piece for gradient in gradients for piece in _pieces(gradient.flatten())]
    total: Tensor = torch.linalg.vector_norm(torch.cat(pieces))
    return total


def _pieces(values: Tensor) -> list[Tensor]:
    """Return the norms of runs of `_RUN` values, and that of the rest."""
    whole = values.numel() // _RUN * _RUN
    runs, rest = values[:whole].view(-1, _RUN), values[whole:].view(1, -1)
    return [torch.linalg.vector_norm(part, dim=1) for part in (runs, rest)]


class _Joined:
    """What AdamW takes for several tensors, which become views of it, and so do their gradients."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self._shapes = [tensor.shape for tensor in tensors]
        self.values = torch.cat([tensor.detach().flatten() for tensor in tensors])
        self.gradients = torch.zeros_like(self.values)
        for tensor, value, gradient in zip(
            tensors,
            split(self.values, self._shapes),
            split(self.gradients, self._shapes),
            strict=True,
        ):
            tensor.data, tensor.grad = value, gradient
        self.values.requires_grad_().grad = self.gradients
        self._cast: Tensor | None = None
        self._pieces: list[Tensor] = []

    def cast(self, dtype: torch.dtype) -> list[Tensor]:
        """Return the tensors as they are now in `dtype`; always the same leaves."""
        self.gather()
        values = self.values.detach()
        if self._cast is None or self._cast.dtype is not dtype:
            self._cast = values.to(dtype)
            self._pieces = [piece.requires_grad_() for piece in split(self._cast, self._shapes)]
        elif dtype is not values.dtype:
            self._cast.copy_(values)
        return self._pieces

    def gather(self) -> None:
        """Add what has flown to the casts to the gradients: by one sum, not by one a tensor."""
        flown = [piece.grad for piece in self._pieces]
        if any(gradient is not None for gradient in flown):
            add_together(self.gradients, flown, self._shapes)
            self._drop_flown()

    def forget(self) -> None:
        """Have no gradients."""
        self._drop_flown()
        self.gradients.zero_()

    def _drop_flown(self) -> None:
        for piece in self._pieces:
            piece.grad = None


class _Place(NamedTuple):
    """Where a tensor lies in what AdamW takes."""

    parameter: Tensor
    elements: slice
    shape: torch.Size

    def of(self, value: Tensor) -> Tensor:
        """Return the tensor's part of something that has a number for each of the parameter's."""
        return value.view(-1)[self.elements].view(self.shape)
