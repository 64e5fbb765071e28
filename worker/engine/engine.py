"""The engine as its callers see it: submit a request, read its lines, from any event loop.

One thread does all torch work, loading included; it runs functions that others post to it and
otherwise computes steps. Without work it sleeps.
"""

import gc
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import structlog
import torch

from core.errors import Unavailable
from core.memory import keep_freed_memory
from core.settings import Settings
from core.store import Store
from models.adapter_files import TRAINING_TENSORS
from models.wire import (
    AnyGenerateLine,
    ClassifyReply,
    ClassifyRequest,
    EmbedReply,
    EmbedRequest,
    GenerateRequest,
    InspectReply,
)
from worker.engine.assembly import Assembly, assemble
from worker.engine.inbox import Inbox
from worker.engine.inspect import Source
from worker.engine.intake import read_sampling
from worker.engine.metrics import Metrics
from worker.engine.reading import Reply
from worker.engine.reception import Reception
from worker.engine.request import Outbox, Request
from worker.engine.room import Room

SWITCH_SECONDS = 0.0005

log = structlog.get_logger(__name__)


class Engine:
    """One base model, served; `start` it, then generate, embed and classify until `close`."""

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store | None = None,
        died: Callable[[], None] = lambda: None,
    ) -> None:
        """Take adapters from `store`, or that of the settings; `died`: the thread has ended."""
        self.metrics = Metrics()
        self._settings = settings
        self._store = store or Store(settings.store)
        self._died = died
        self._inbox = Inbox()
        self._outbox = Outbox()
        self._opened: Assembly | None = None
        self._draining = self._closing = self._dead = False
        self._room = Room(rows=settings.engine.rows, waiting=settings.engine.waiting)
        self._inspections = 0
        """Adapters that are being looked at."""
        self._reception = Reception(self._over)
        self._thread = threading.Thread(target=self._run, name="torch", daemon=True)

    def start(self) -> None:
        """Begin to load the base; `health` says when that is done."""
        keep_freed_memory(one_arena=True)
        self._thread.start()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[AnyGenerateLine, None]:
        """Yield a request's lines; closing the iterator cancels its rows.

        Raises a `GraftworkError` if the request is refused before its first line.
        """
        sampling = read_sampling(request.sampling)
        opened = self._serving()
        with self._room.take(sampling.n, tenant=request.tenant):
            generation = await self._reception.generation(request, sampling=sampling, opened=opened)
            with self._working_on(generation, opened):
                async for line in generation.lines():
                    yield line

    async def embed(self, request: EmbedRequest) -> EmbedReply:
        """Return a vector for each input; raises a `GraftworkError` if one cannot be read."""
        reply = await self._read(request)
        if not isinstance(reply, EmbedReply):
            raise TypeError("Embedding gives vectors.")
        return reply

    async def classify(self, request: ClassifyRequest) -> ClassifyReply:
        """Return the scores of each input; raises a `GraftworkError` if one cannot be read."""
        reply = await self._read(request)
        if not isinstance(reply, ClassifyReply):
            raise TypeError("Classifying gives scores.")
        return reply

    async def inspect(self, digest: str) -> InspectReply:
        """Say whether a stored adapter can be served here, and what it is."""
        opened = self._serving()
        source = Source(self._store, digest, self._settings.uploads_folder)
        self._inspections += 1
        try:
            return await self._reception.wait_for(partial(opened.inspector.inspect, source))
        finally:
            self._inspections -= 1

    @property
    def busy(self) -> bool:
        """Whether any request is in flight."""
        return self._room.taken > 0 or self._inspections > 0

    def drop(self, digest: str) -> None:
        """Free an adapter version's memory as soon as no row uses it."""
        if self._opened is not None:
            self._inbox.put(partial(self._opened.loop.adapters.drop, digest))

    def drain(self) -> None:
        """Admit nothing more; what runs goes on."""
        self._draining = True

    def close(self) -> None:
        """End every request with an error, free the memory and end the thread."""
        self.drain()
        self._inbox.put(self._close)
        if self._thread.ident is not None:
            self._thread.join()
        self._reception.close()

    def health(self) -> dict[str, Any]:
        """Say whether requests are served, of which base, and what is in memory."""
        opened = self._opened
        ready = opened is not None and not self._draining and not self._dead
        if opened is None:
            return {"ready": ready}
        quantization = self._settings.engine.quantization
        return {"ready": ready, "quantization": quantization, **opened.describe()}

    def _serving(self) -> Assembly:
        """Return what serves; raises `Unavailable` when nothing does."""
        if self._dead or self._draining:
            raise self._over()
        if self._opened is None:
            raise Unavailable("The base model is being loaded.", code="engine_loading")
        return self._opened

    @contextmanager
    def _working_on(self, request: Request, opened: Assembly) -> Iterator[None]:
        """Give a request to the engine's thread, and take it back at the end."""
        self._inbox.put(partial(opened.loop.add, request), refuse=request.refuse)
        try:
            yield
        finally:
            self._inbox.put(partial(opened.loop.cancel, request))

    def _over(self) -> Unavailable:
        return _died() if self._dead else _stopping()

    async def _read(self, order: EmbedRequest | ClassifyRequest) -> Reply:
        opened = self._serving()
        rows = min(len(order.inputs), max(1, self._settings.engine.rows // 2))
        with self._room.take(rows, tenant=order.tenant):
            reading = await self._reception.reading(order, rows=rows, opened=opened)
            with self._working_on(reading, opened):
                return await reading.result()

    def _run(self) -> None:
        try:
            self._opened = opened = assemble(
                self._settings,
                fetch=partial(self._store.read_files, without=(TRAINING_TENSORS,)),
                inbox=self._inbox,
                outbox=self._outbox,
                metrics=self.metrics,
            )
            _settle()
            log.info("engine_ready", base=opened.manifest.id, dtype=str(opened.backbone.dtype))
            with torch.inference_mode():
                while not self._closing:
                    if not (worked := opened.loop.step()):
                        opened.threads.rest()
                    self._inbox.run(wait=not worked)
                    if not worked:
                        self._inbox.gather(lambda: self._reception.coming > 0)
            self._fail_all(_stopping())
        except Exception as error:
            log.error("engine_died", exc_info=error)
            self._die()
        finally:
            if self._opened is not None:
                self._opened.close()
            gc.unfreeze()

    def _die(self) -> None:
        self._dead = True
        try:
            self._fail_all(_died())
        finally:
            self._died()

    def _fail_all(self, error: Unavailable) -> None:
        """End every request: those of the loop, those posted, and those that are still to come."""
        self._inbox.close(error)
        if self._opened is not None:
            self._opened.loop.fail_all(error)
        self._outbox.flush()

    def _close(self) -> None:
        self._closing = True


def _settle() -> None:
    """Keep pauses out of steps: of the garbage collector, and of other threads that compute.

    What was loaded is not looked through again; a thread that holds the interpreter gives it up
    within the switch interval, which is a third of a step by default.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_SECONDS)


def _stopping() -> Unavailable:
    return Unavailable("This engine is being stopped.", code="engine_stopping")


def _died() -> Unavailable:
    return Unavailable("The engine has died.", code="engine_dead")
