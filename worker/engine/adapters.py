"""Adapter versions in memory: fetched on first use, immutable, kept while used or recently used.

A version's identity is its digest; names are labels in messages. Helper threads read, hash and
check files and make the terms; the engine's one torch thread only computes what needs a forward.
"""

from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import structlog

from core.errors import Corrupt, GraftworkError, InvalidRequest, NotFound, Unavailable
from core.store import Files
from models.nn.terms import Terms
from models.wire import AdapterRef
from worker.engine.helper import Pace, use_one_core
from worker.engine.metrics import Metrics
from worker.engine.resident import LaidOut, Loader, Prepared, Resident

FETCHES_AT_ONCE = 2
Fetch = Callable[[str], Files]
"""Given a digest, returns the version's files, which are still to be verified."""
Finishing = Generator[None, None, Resident]
Post = Callable[[Callable[[], None]], None]
"""Runs a function in the engine's thread, soon."""

log = structlog.get_logger(__name__)


class AdapterCache:
    """Least recently used versions leave first when `budget` bytes are passed; pinned ones stay.

    A version that finds the budget full of pinned ones waits, loaded, until rows end.
    """

    def __init__(
        self,
        *,
        fetch: Fetch,
        loader: Loader,
        budget: int,
        post: Post,
        metrics: Metrics,
        failed: Callable[[str, GraftworkError], None],
        evicted: Callable[[str], None],
        lay_out: Callable[[str, Terms], LaidOut],
    ) -> None:
        self._fetch = fetch
        self._loader = loader
        self._budget = budget
        self._post = post
        self._metrics = metrics
        self._failed = failed
        self._evicted = evicted
        self._lay_out = lay_out
        self._resident: OrderedDict[str, Resident] = OrderedDict()
        self._fetching: set[str] = set()
        self._doomed: set[str] = set()
        """Those of them that were dropped meanwhile."""
        self._parked: dict[str, Resident] = {}
        self.pace = Pace()
        self._hashing = ThreadPoolExecutor(
            FETCHES_AT_ONCE, thread_name_prefix="hash", initializer=self.pace.keep
        )
        self._helpers = ThreadPoolExecutor(
            FETCHES_AT_ONCE, thread_name_prefix="fetch", initializer=self._begin_helper
        )

    def ready(self, adapter: AdapterRef) -> bool:
        """Say whether a version is resident; if not, see to it that it will be."""
        digest = adapter.digest
        if digest in self._resident:
            return True
        under_way = len(self._fetching) + len(self._parked)
        if digest not in self._fetching | self._parked.keys() and under_way < FETCHES_AT_ONCE:
            self._fetching.add(digest)
            self._helpers.submit(self._fetch_in_helper, adapter)
        return False

    def pin(self, digest: str) -> None:
        """Keep a resident version until it is unpinned as often."""
        self._resident[digest].pins += 1
        self._resident.move_to_end(digest)

    def unpin(self, digest: str) -> None:
        """Let a version go once nobody else holds it, if it must or memory is short."""
        resident = self._resident[digest]
        resident.pins -= 1
        if resident.pins == 0 and resident.doomed:
            self._evict(digest)
        any(self._settle(waiting) for waiting in list(self._parked))

    def drop(self, digest: str) -> None:
        """Free a version now, or when its last row ends; one that is not here is fine.

        One that is on its way has a row that waits for it: it comes, serves that row and goes.
        """
        if digest in self._fetching:
            self._doomed.add(digest)
        elif digest in self._parked:
            self._parked[digest].doomed = True
        elif digest in self._resident:
            self._resident[digest].doomed = True
            if self._resident[digest].pins == 0:
                self._evict(digest)

    def find(self, digest: str) -> Resident | None:
        """Return a version if it is resident."""
        return self._resident.get(digest)

    def terms(self, digests: Iterable[str]) -> dict[str, Terms]:
        """Return the terms of resident versions by digest."""
        return {digest: self._resident[digest].terms for digest in digests}

    def residents(self) -> list[tuple[str, Resident]]:
        """Return what is in memory, least recently used first; safe from other threads."""
        return list(self._resident.items())

    def close(self) -> None:
        """Stop fetching."""
        self._helpers.shutdown(wait=True, cancel_futures=True)
        self._hashing.shutdown(wait=True)

    def _begin_helper(self) -> None:
        self.pace.keep()
        use_one_core()

    def _fetch_in_helper(self, adapter: AdapterRef) -> None:
        try:
            prepared = self._prepare_and_verify(adapter)
        except Exception as error:  # noqa: BLE001 - an error lost in this thread hangs requests
            self._post(partial(self._fail, adapter.digest, _explain(adapter, error)))
        else:
            self._post(partial(self._arrive, adapter, self._loader.finish(prepared)))

    def _prepare_and_verify(self, adapter: AdapterRef) -> Prepared:
        """Prepare a version while its files are hashed; nothing is made of them before both."""
        files = self._fetch(adapter.digest)
        verified = self._hashing.submit(files.verify)
        try:
            prepared = self._loader.prepare(adapter, files.content)
            if not prepared.acts:
                return prepared
            return replace(prepared, laid_out=self._lay_out(adapter.digest, prepared.terms))
        finally:
            verified.result()  # what is not what was stored is told before what is wrong with it

    def _arrive(self, adapter: AdapterRef, work: Finishing) -> None:
        """Do a piece of what is left to do, and the next one after a step; then take it in."""
        digest = adapter.digest
        try:
            next(work)
        except StopIteration as end:
            self._take(digest, end.value)
        except Exception as error:  # noqa: BLE001 - one adapter's fault must not stop the others
            self._fail(digest, _explain(adapter, error))
        else:
            self._post(partial(self._arrive, adapter, work))

    def _take(self, digest: str, resident: Resident) -> None:
        self._metrics.adapter_loads.inc()
        resident.doomed = digest in self._doomed
        self._parked[digest] = resident
        self._forget_fetch(digest)
        self._settle(digest)

    def _settle(self, digest: str) -> bool:
        """Make room for a parked version and admit it, unless pinned ones fill the budget."""
        arrival = self._parked[digest]
        held = sum(resident.bytes for resident in self._resident.values())
        idle = [name for name, resident in self._resident.items() if resident.pins == 0]
        pinned = held - sum(self._resident[name].bytes for name in idle)
        if arrival.bytes > self._budget:
            del self._parked[digest]
            message = f"This adapter needs {arrival.bytes} bytes; the engine has {self._budget}."
            self._fail(digest, InvalidRequest(message, code="adapter_too_large", param="model"))
            return False
        if pinned + arrival.bytes > self._budget:
            return False
        for name in idle:
            if held + arrival.bytes <= self._budget:
                break
            held -= self._resident[name].bytes
            self._evict(name)
        self._resident[digest] = self._parked.pop(digest)
        return True

    def _evict(self, digest: str) -> None:
        del self._resident[digest]
        self._evicted(digest)

    def _forget_fetch(self, digest: str) -> None:
        self._fetching.discard(digest)
        self._doomed.discard(digest)

    def _fail(self, digest: str, error: GraftworkError) -> None:
        self._forget_fetch(digest)
        self._evicted(digest)
        self._failed(digest, error)


def _explain(adapter: AdapterRef, error: Exception) -> GraftworkError:
    """Return what a request for this adapter is told."""
    log.warning("adapter_unusable", adapter=adapter.name, digest=adapter.digest, exc_info=error)
    if isinstance(error, NotFound):
        return NotFound(
            f"The adapter {adapter.name!r} has no stored version {adapter.digest[:12]}.",
            code="adapter_not_found",
            param="model",
        )
    if isinstance(error, GraftworkError):
        return error
    if isinstance(error, OSError):
        return Unavailable(f"The adapter {adapter.name!r} could not be fetched: {error}.")
    return Corrupt(
        f"The adapter {adapter.name!r} cannot be loaded: {error}.", code="adapter_unusable"
    )
