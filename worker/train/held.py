"""How tensors that train are held: small ones as one, large ones by themselves.

Shapes: n numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from models.nn.adamw import Moments, Move
from models.nn.cast import add_together, split


class Held(ABC):
    """Tensors in float32, moved as one, and the leaves in which they take part in a forward."""

    moments: Moments | None = None
    """There are none before the first gradient."""

    def __init__(self, tensors: Sequence[Tensor], values: Tensor) -> None:
        self.tensors = tensors
        self.values = values
        """(n,) or the only tensor's shape: what the tensors are views of."""
        self._rounded: Tensor | None = None

    @abstractmethod
    def casts(self, dtype: torch.dtype) -> list[Tensor]:
        """Return a leaf for each tensor, as it is now in `dtype`: the same ones every time.

        What flows to them goes on to the tensors, at the latest when it is gathered.
        """

    @abstractmethod
    def gather(self) -> Tensor | None:
        """Return the sum of what has flown here, in the shape of `values`, if anything has."""

    @abstractmethod
    def forget(self) -> None:
        """Have no gradients."""

    def move(self) -> Move | None:
        """Return what a step does here, if there is a gradient."""
        if (gradient := self.gather()) is None:
            return None
        self.moments = self.moments or Moments.before(self.values)
        return Move(self.values, gradient, self.moments, self._rounded)

    def _round(self, dtype: torch.dtype) -> Tensor:
        """Return the values in `dtype`; another dtype than theirs is kept up by each step."""
        rounded = self.values.to(dtype)
        self._rounded = None if dtype is self.values.dtype else rounded
        return rounded


class Large(Held):
    """A tensor by itself, whose gradient is there only when there is one."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__([tensor], tensor.detach())
        self._leaf = tensor
        self._flown = _Flown()

    def casts(self, dtype: torch.dtype) -> list[Tensor]:
        """See `Held.casts`."""
        if self._leaf.dtype is not dtype:
            self._leaf = self._round(dtype).requires_grad_()
            # Not a method of ours: what a hook of its own leaf holds would never be freed.
            self._leaf.register_post_accumulate_grad_hook(self._flown.take)  # type: ignore[no-untyped-call]
        return [self._leaf]

    def gather(self) -> Tensor | None:
        """See `Held.gather`."""
        (tensor,) = self.tensors
        if tensor.grad is not None and tensor is not self._leaf:
            self._flown.add(tensor.grad)
            tensor.grad = None
        return self._flown.sum if tensor is not self._leaf else tensor.grad

    def forget(self) -> None:
        """See `Held.forget`."""
        self.tensors[0].grad = None
        self._flown.sum = None


class _Flown:
    """A sum of gradients: the only one as it came, several in float32."""

    def __init__(self) -> None:
        self.sum: Tensor | None = None

    def take(self, leaf: Tensor) -> None:
        """Move the gradient of a leaf here."""
        gradient, leaf.grad = leaf.grad, None
        if gradient is not None:
            self.add(gradient)

    def add(self, gradient: Tensor) -> None:
        """Add one more."""
        if self.sum is None:
            self.sum = gradient
        else:
            self.sum = self.sum.float().add_(gradient)


class Joined(Held):
    """Small tensors, which become views of one, and so do their gradients.

    A step is then a few passes over memory, however many there are.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__(tensors, torch.cat([tensor.detach().flatten() for tensor in tensors]))
        self._shapes = [tensor.shape for tensor in tensors]
        self._gradients = torch.zeros_like(self.values)
        for tensor, value, gradient in zip(
            tensors,
            split(self.values, self._shapes),
            split(self._gradients, self._shapes),
            strict=True,
        ):
            tensor.data, tensor.grad = value, gradient
        self._leaves: list[Tensor] = []

    def casts(self, dtype: torch.dtype) -> list[Tensor]:
        """See `Held.casts`; leaves of their own in any dtype, to be added as one."""
        if self._leaves and self._leaves[0].dtype is not self.values.dtype:
            self.gather()  # a leaf would round the sum of several micro-batches to its own dtype
        if not self._leaves or self._leaves[0].dtype is not dtype:
            leaves = split(self._round(dtype), self._shapes)
            self._leaves = [leaf.requires_grad_() for leaf in leaves]
        return self._leaves

    def gather(self) -> Tensor:
        """See `Held.gather`: by one sum, not by one a tensor."""
        flown = [leaf.grad for leaf in self._leaves]
        if any(gradient is not None for gradient in flown):
            add_together(self._gradients, flown, self._shapes)
            self._drop_flown()
        return self._gradients

    def forget(self) -> None:
        """See `Held.forget`."""
        self._drop_flown()
        self._gradients.zero_()

    def _drop_flown(self) -> None:
        for leaf in self._leaves:
            leaf.grad = None
