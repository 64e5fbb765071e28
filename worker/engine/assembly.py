"""Puts one engine together from the settings; runs in the torch thread."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from core.bases import BaseManifest, verify
from core.settings import ComputeSettings, EngineSettings, Settings
from models.nn.backbone import Backbone, pick_dtype
from models.nn.chat import Renderer
from models.nn.prepack import prepack
from models.nn.weight_only import hold_in_8_bits
from worker.engine.adapters import AdapterCache, Fetch
from worker.engine.admission import admit
from worker.engine.blocks import Blocks
from worker.engine.drafts import Drafter
from worker.engine.graphs import graphs_for
from worker.engine.inbox import Inbox
from worker.engine.inspect import Inspector
from worker.engine.loader import Identity, Loader
from worker.engine.loop import Loop
from worker.engine.metrics import Metrics
from worker.engine.native import NativeRunner
from worker.engine.reader import Reader
from worker.engine.request import Outbox
from worker.engine.runner import Runner
from worker.engine.scheduler import BESIDE_OTHERS, Scheduler
from worker.engine.shared import SharedPrompts
from worker.engine.threads import Threads
from worker.engine.writer import Writer


@dataclass(frozen=True, slots=True)
class Assembly:
    """What an engine consists of once its base is loaded."""

    manifest: BaseManifest
    backbone: Backbone
    renderer: Renderer
    context: int
    loader: Loader
    loop: Loop
    threads: Threads
    inspector: Inspector
    form: str
    """What computes steps, in a few words."""

    def describe(self) -> dict[str, Any]:
        """Say what is served and what is in memory; any thread may ask."""
        return {
            "base": self.manifest.id,
            "base_digest": self.manifest.digest,
            "dtype": str(self.backbone.dtype).removeprefix("torch."),
            "step": self.form,
            "context": self.context,
            "rows": len(self.loop.scheduler.running),
            "waiting": self.loop.waiting,
            "resident": [
                {
                    "digest": digest,
                    "kind": resident.kind,
                    "bytes": resident.bytes,
                    "prefix_rows": resident.footing.rows,
                    "pins": len(resident.holders),
                }
                for digest, resident in self.loop.adapters.residents()
            ],
        }

    def close(self) -> None:
        """Let every thread beside the torch thread end, when its work allows."""
        self.loop.adapters.close()
        self.inspector.close()
        self.threads.close()


def assemble(
    settings: Settings, *, fetch: Fetch, inbox: Inbox, outbox: Outbox, metrics: Metrics
) -> Assembly:
    """Verify and load the base, reserve its cache, and warm up."""
    folder = settings.base_folder
    manifest = verify(folder)
    threads = Threads(settings.cores_folder, most=settings.engine.compute.threads)
    backbone = _load(folder, settings.engine)
    renderer = Renderer.load(folder)
    blocks, native, form = _reserve(backbone, settings.engine)
    context = blocks.context
    runner = Runner(backbone, blocks, native=native, graphs=graphs_for(backbone.device))
    identity = Identity(manifest.digest, renderer.digest)
    loader = Loader(backbone, renderer, identity, context, backbone.base.apart())
    if native is None:
        prepack(backbone)
    loop = Loop(
        scheduler=Scheduler(
            rows=blocks.rows,
            prefill_tokens=settings.engine.prefill_tokens,
            beside_others=BESIDE_OTHERS if backbone.device.type == "cpu" else None,
        ),
        blocks=blocks,
        shared=SharedPrompts(blocks, budget=settings.engine.prompt_bytes),
        runner=runner,
        writer=Writer(renderer, outbox, context=context),
        reader=Reader(loader),
        outbox=outbox,
        metrics=metrics,
        drafter=Drafter(runner) if settings.engine.drafts else None,
        called=inbox.called,
        about_to_compute=threads.work,
        adapters=partial(
            AdapterCache,
            fetch=fetch,
            loader=loader,
            budget=settings.engine.adapter_bytes,
            post=inbox.put,
            metrics=metrics,
        ),
    )
    with torch.inference_mode():
        runner.warm_up()
    inspector = Inspector(
        loader, budget=settings.engine.adapter_bytes, inbox=inbox, pace=loop.adapters.pace
    )
    return Assembly(manifest, backbone, renderer, context, loader, loop, threads, inspector, form)


def _load(folder: Path, settings: EngineSettings) -> Backbone:
    """Load the base in the precision that it is served in."""
    compute = settings.compute
    device = _device(compute)
    dtype = pick_dtype(device) if compute.dtype == "auto" else getattr(torch, compute.dtype)
    backbone = Backbone.load(folder, dtype=dtype, device=device)
    return hold_in_8_bits(backbone) if settings.quantization == "int8" else backbone


def _reserve(
    backbone: Backbone, settings: EngineSettings
) -> tuple[Blocks, NativeRunner | None, str]:
    """Return the cache, what computes steps over it natively, if anything, and `admit`'s words."""
    context = min(settings.context, backbone.shape.context)
    reserve = partial(
        Blocks, backbone.shape, rows=settings.rows, context=context, device=backbone.device
    )
    # The C++ step reads a cache in bfloat16, also where the network computes in float32.
    blocks = reserve(dtype=torch.bfloat16 if settings.compute.dtype == "auto" else backbone.dtype)
    native, form = admit(backbone, blocks)
    if native is None and blocks.dtype is not backbone.dtype:
        blocks = reserve(dtype=backbone.dtype)
    return blocks, native, form


def _device(compute: ComputeSettings) -> str:
    if compute.device != "auto":
        return compute.device
    return "cuda" if torch.cuda.is_available() else "cpu"
