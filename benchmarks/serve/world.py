"""What every part of the benchmark shares: a data folder with the base, adapters, and prompts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.serve.adapters import Stored, make_kinds, make_loras
from benchmarks.serve.peers.peer import READY, Peer
from benchmarks.serve.work import Work
from benchmarks.sides import JSON, Side
from cli import programs
from core.settings import EngineSettings, Settings
from core.store import Store
from models.nn.backbone import Backbone, pick_dtype
from models.nn.chat import Renderer
from models.nn.pull import pull

RANK = 16
ADAPTERS = 8
ROWS = 32
LENGTH = 64
TOKENS = 64


@dataclass
class World:
    """A place to work in, and the sides that are started there."""

    folder: Path
    settings: Settings
    backbone: Backbone
    store: Store
    work: Work
    loras: list[Stored]
    kinds: list[Stored]
    made: int = ADAPTERS
    """How many adapters were made; the next one's number."""
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    """Of each side that was started."""

    @property
    def base(self) -> str:
        """Where the base lies, in Hugging Face's format."""
        return str(self.settings.base_folder)

    @property
    def names(self) -> list[str]:
        """The adapters that serve a mixed batch."""
        return [adapter.name for adapter in self.loras]

    @property
    def folders(self) -> dict[str, str]:
        """Where each of them lies, for those who read PEFT's files."""
        return {adapter.name: str(adapter.folder) for adapter in self.loras}

    def more_loras(self, count: int, **settings: Any) -> list[Stored]:
        """Make further adapters, other than all before."""
        first, self.made = self.made, self.made + count
        return make_loras(
            count,
            backbone=self.backbone,
            folder=self.folder / "adapters",
            store=self.store,
            first=first,
            **settings,
        )


def make_world(folder: Path, *, data: Path, seed: int) -> World:
    """Pull the base and make the adapters that all parts use."""
    settings = Settings(data_dir=folder / "data")
    pull(settings.base, settings=settings, progress=_silent)
    backbone = Backbone.load(settings.base_folder, dtype=pick_dtype())
    store = Store(settings.store)
    adapters = folder / "adapters"
    return World(
        folder=folder,
        settings=settings,
        backbone=backbone,
        store=store,
        work=Work(data, renderer=Renderer.load(settings.base_folder), seed=seed),
        loras=make_loras(ADAPTERS, rank=RANK, backbone=backbone, folder=adapters, store=store),
        kinds=make_kinds(backbone=backbone, folder=adapters, store=store),
    )


def _silent(stage: str, done: int, total: int) -> None:
    """Say nothing of how far the base is."""


def start_engine(
    world: World,
    *,
    adapters: list[Stored],
    variables: Mapping[str, str] | None = None,
    **changes: Any,
) -> Side:
    """Start our engine as a side, its threads and memory as `graftwork engine` has them.

    `changes` are settings of its own.
    """
    engine = EngineSettings(**{**world.settings.engine.model_dump(), **changes})
    settings = world.settings.model_copy(update={"engine": engine})
    spec = {
        "settings": settings.model_dump(mode="json"),
        "digests": {adapter.name: adapter.digest for adapter in adapters},
    }
    ours = Peer(
        name="graftwork",
        module="benchmarks.serve.engine_side",
        variables={**programs.waiting(), "GLIBC_TUNABLES": "", **(variables or {})},
    )
    return start(world, ours, label="graftwork", spec=spec)


def start_peer(world: World, peer: Peer, *, label: str, **spec: Any) -> Side:
    """Start a peer over our base; its environment is made the first time."""
    world.versions.setdefault(peer.name, peer.versions())
    context = world.settings.engine.context
    return start(
        world,
        peer,
        label=label,
        spec={"base": world.base, "context": context, "dtype": record.dtype(), **spec},
    )


def start(world: World, peer: Peer, *, label: str, spec: JSON) -> Side:
    """Start a side and have it load what `spec` says: `ready` waits for that."""
    side = Side(
        label,
        peer.module,
        json.dumps(spec),
        log=world.folder / f"{label}.log",
        python=peer.python(),
        variables=peer.environment(),
    )
    side.put(READY)
    return side


def ready(*sides: Side) -> None:
    """Wait until sides that were started have loaded; until then they share the cores."""
    for side in sides:
        side.take()
