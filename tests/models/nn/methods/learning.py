"""A small real task and a plain training loop for tests of single methods."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from models.nn.backbone import Backbone
from models.nn.forward import Part, forward
from models.nn.loss import next_token_loss
from models.nn.methods.base import Method
from models.nn.terms import Terms
from tests.models.nn.families import random_ids

ROWS = 24


def batch(step: int) -> Tensor:
    """Return the ids of a step; every fourth is the same."""
    return random_ids(ROWS, seed=step % 4)


def train(
    loss: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, *, steps: int
) -> list[float]:
    """Return the mean loss of each step."""
    curve = []
    for step in range(steps):
        value = loss(batch(step))
        curve.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return curve


def train_ours(
    method: Method,
    backbone: Backbone,
    *,
    tensors: Mapping[str, Tensor] | None = None,
    rate: float = 3e-3,
    steps: int = 20,
) -> list[float]:
    """Return the mean loss of each AdamW step from fresh or given tensors."""
    if tensors is None:
        tensors = method.init(backbone.base, torch.Generator().manual_seed(0))
    own = {name: t.clone().requires_grad_(method.is_trained(name)) for name, t in tensors.items()}
    groups = [
        {"params": [tensor], "lr": rate * method.learning_rate_scale(name)}
        for name, tensor in own.items()
        if method.is_trained(name)
    ]

    def loss(ids: Tensor) -> Tensor:
        part = Part(ids, (len(ids),), Terms.of(method, own, backbone.base))
        states = forward(backbone, [part])
        logits = states.logits(states.hidden_td, torch.arange(len(ids)))
        return next_token_loss(logits[:-1], ids[1:]) / (len(ids) - 1)

    return train(loss, torch.optim.AdamW(groups, weight_decay=0.0), steps=steps)


def falls(curve: Sequence[float]) -> bool:
    """Say whether the last round over the batches lost less than the first."""
    return sum(curve[-4:]) < sum(curve[:4]) - 0.04
