"""Adapters to serve: of real size, trained by nothing but small noise, stored and as folders."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from core.store import Store
from models.nn.artifact import save_artifact
from models.nn.backbone import Backbone
from models.nn.methods import METHODS, parse_method
from models.nn.methods.base import Method

NOISE = 0.02
"""Standard deviation of what is added: an update of about a tenth of each linear's output."""


@dataclass(frozen=True)
class Stored:
    """An adapter by name, where its files lie and its digest in the store."""

    name: str
    folder: Path
    digest: str

    @property
    def bytes(self) -> int:
        """The size of its files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())


def make_adapter(
    name: str, *, method: Method, backbone: Backbone, seed: int, folder: Path, store: Store
) -> Stored:
    """Write an adapter, with PEFT's files where the method has them, and store it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        key: tensor + NOISE * torch.randn(tensor.shape, generator=generator)
        if method.is_trained(key) and tensor.is_floating_point()
        else tensor
        for key, tensor in method.init(backbone.base, generator).items()
    }
    target = folder / name
    save_artifact(target, method=method, tensors=tensors, base=backbone.base, provenance={})
    return Stored(name, target, store.put_tree(target))


def make_loras(
    count: int,
    *,
    backbone: Backbone,
    folder: Path,
    store: Store,
    first: int = 0,
    rank: int,
    **settings: Any,
) -> list[Stored]:
    """Return LoRA adapters, on all linears unless `settings` differ, each of other numbers."""
    method = parse_method({"type": "lora", "rank": rank, **settings})
    return [
        make_adapter(
            f"lora-r{rank}-{number}",
            method=method,
            backbone=backbone,
            seed=number,
            folder=folder,
            store=store,
        )
        for number in range(first, first + count)
    ]


def mixing_methods() -> Iterator[Method]:
    """Yield one method of every kind that shares a batch and acts in a decode step or its cache.

    Each is as by default. Left out are classifiers, which generate nothing, demonstrations, which
    are only a longer prompt of the base, and whole weights, which have steps of their own.
    """
    for cls in METHODS.values():
        method = cls()
        alone = not cls.shares_batch or method.class_labels is not None
        if not alone and not cls.sites & {"demonstrations", "weights"}:
            yield method


def make_kinds(*, backbone: Backbone, folder: Path, store: Store) -> list[Stored]:
    """Return an adapter of every kind that shares a batch."""
    return [
        make_adapter(
            f"kind-{method.kind}",
            method=method,
            backbone=backbone,
            seed=number,
            folder=folder,
            store=store,
        )
        for number, method in enumerate(mixing_methods())
    ]
