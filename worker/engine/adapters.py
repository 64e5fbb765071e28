"""Adapter versions in memory: fetched on first use, immutable, kept while used or recently used.

A version's identity is its digest; names are labels in messages. Helper threads read, hash and
check files and make the terms; the engine's one torch thread only computes what needs a forward.
"""

from collections import OrderedDict
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import structlog

from core.errors import Corrupt, GraftworkError, InvalidRequest, NotFound, Unavailable
from core.store import Files
from models.nn.terms import Terms
from models.wire import AdapterRef
from worker.engine.helper import Pace, start_helpers
from worker.engine.loader import Loader
from worker.engine.metrics import Metrics
from worker.engine.request import Request
from worker.engine.resident import NOT_LAID_OUT, LaidOut, Prepared, Resident

FETCHES_AT_ONCE = 2
COPIED = 2.25
"""The most that weights of a network take with what is laid out of them, over what they take."""
Fetch = Callable[[str], Files]
"""Given a digest, returns the version's files, which are still to be verified."""
Finishing = Generator[None, None, Resident]
Post = Callable[[Callable[[], None]], None]
"""Runs a function in the engine's thread, soon."""

log = structlog.get_logger(__name__)


class AdapterCache:
    """Least recently used versions leave first when `budget` bytes are passed; those in use stay.

    A version that finds the budget full of these waits, loaded, until requests end. For its sake
    those that were taken longest ago take no new requests: its turn comes whatever others are asked
    for.
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
        wanted: Callable[[], Container[str]],
    ) -> None:
        """`wanted` returns the versions that requests wait for."""
        self._fetch = fetch
        self._loader = loader
        self._budget = budget
        self._post = post
        self._metrics = metrics
        self._failed = failed
        self._evicted = evicted
        self._lay_out = lay_out
        self._wanted = wanted
        self._resident: OrderedDict[str, Resident] = OrderedDict()
        self.terms: Mapping[str, Terms] = _TermsOf(self._resident)
        """Those of the versions that are resident at the moment, by digest."""
        self._fetching: set[str] = set()
        self._doomed: set[str] = set()
        """Those of them that were dropped meanwhile."""
        self._parked: dict[str, Resident] = {}
        """Loaded ones that wait for room, in order."""
        self._closed: set[str] = set()
        """Resident ones that begin nothing new, to make room for the first of them."""
        self.pace = Pace()
        self._hashing = ThreadPoolExecutor(
            FETCHES_AT_ONCE, thread_name_prefix="hash", initializer=self.pace.keep
        )
        self._helpers = start_helpers(FETCHES_AT_ONCE, name="fetch", pace=self.pace)

    def ready(self, request: Request) -> bool:
        """Say whether a request's version takes rows of it; if not, see to it that it will."""
        adapter = request.adapter
        if adapter is None:
            return True
        digest = adapter.digest
        if (resident := self._resident.get(digest)) is not None:
            return digest not in self._closed or request in resident.holders
        under_way = len(self._fetching) + len(self._parked)
        if digest not in self._fetching | self._parked.keys() and under_way < FETCHES_AT_ONCE:
            self._fetching.add(digest)
            self._helpers.submit(self._fetch_in_helper, adapter)
        return False

    def hold(self, request: Request) -> None:
        """Keep a resident version, if the request has one, until that lets it go."""
        if request.adapter is None:
            return
        digest = request.adapter.digest
        resident = self._resident[digest]
        if request not in resident.holders:
            resident.holders.add(request)
            resident.awaited = False
            self._resident.move_to_end(digest)

    def let_go(self, request: Request) -> None:
        """Keep a version for a request that has ended no longer, if that held it or waited."""
        digest = request.adapter.digest if request.adapter else ""
        if (resident := self._resident.get(digest)) is not None:
            resident.holders.discard(request)
            self._evict_doomed(digest)

    def settle(self) -> bool:
        """Let the next version in, or see to it that it will find room; say if something may begin.

        It says no only where another look at what waits would find nothing new.
        """
        self._closed.clear()
        if not self._parked:
            return False
        wanted = self._wanted()
        digest, arrival = next(iter(self._parked.items()))
        lacking = arrival.bytes + self._bytes(self._resident) - self._budget
        if digest not in wanted and (arrival.doomed or lacking > 0):
            del self._parked[digest]
            self._evicted(digest)
            return True
        held = [name for name in self._resident if self._is_held(name, wanted)]
        if arrival.bytes + self._bytes(held) > self._budget:
            self._close_oldest(lacking, wanted)
            return False
        idle = (name for name in list(self._resident) if name not in held)
        while arrival.bytes + self._bytes(self._resident) > self._budget:
            self._evict(next(idle))
        arrival.awaited = digest in wanted
        self._resident[digest] = self._parked.pop(digest)
        return True

    def drop(self, digest: str) -> None:
        """Free a version now, or when the last request that holds it or waits for it has ended.

        One that is not here is fine; one that is on its way comes, for somebody waited for it.
        """
        if digest in self._fetching:
            self._doomed.add(digest)
        elif digest in self._parked:
            self._parked[digest].doomed = True
        elif digest in self._resident:
            self._resident[digest].doomed = True
            self._evict_doomed(digest)

    def find(self, digest: str) -> Resident | None:
        """Return a version if it is resident."""
        return self._resident.get(digest)

    def residents(self) -> list[tuple[str, Resident]]:
        """Return what is in memory, least recently used first; safe from other threads."""
        return list(self._resident.items())

    def close(self) -> None:
        """Fetch nothing more; what a store is slow to give comes to nobody and is not waited for.

        Threads that hash are left to it, and end with this object.
        """
        self._helpers.shutdown(wait=False, cancel_futures=True)

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
            return replace(prepared, laid_out=self._laid_out(prepared))
        finally:
            verified.result()  # what is not what was stored is told before what is wrong with it

    def _laid_out(self, prepared: Prepared) -> LaidOut:
        """Lay a version out for the C++ step; whole weights only if they have room beside it."""
        terms = prepared.terms
        if terms.weights and COPIED * terms.bytes > self._budget:
            return LaidOut(eager=True)
        if terms.weights or prepared.acts:
            return self._lay_out(prepared.adapter.digest, terms)
        return NOT_LAID_OUT

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
        """Let a version that is ready wait for its room."""
        self._metrics.adapter_loads.inc()
        if resident.bytes > self._budget:
            message = f"This adapter needs {resident.bytes} bytes; the engine has {self._budget}."
            self._fail(digest, InvalidRequest(message, code="adapter_too_large", param="model"))
            return
        resident.doomed = digest in self._doomed
        self._parked[digest] = resident
        self._forget_fetch(digest)

    def _is_held(self, digest: str, wanted: Container[str]) -> bool:
        """Say whether a version is in use, or came for a request that is yet to begin."""
        resident = self._resident[digest]
        return bool(resident.holders) or (resident.awaited and digest in wanted)

    def _close_oldest(self, lacking: int, wanted: Container[str]) -> None:
        """Let those that were taken longest ago take no new requests, until so many bytes are.

        Idle ones among them too: one that began anew would be in use when the last of them ends.
        """
        for digest, resident in self._resident.items():
            if lacking > 0 and (resident.holders or not self._is_held(digest, wanted)):
                self._closed.add(digest)
                lacking -= resident.bytes

    def _bytes(self, digests: Iterable[str]) -> int:
        return sum(self._resident[digest].bytes for digest in digests)

    def _evict_doomed(self, digest: str) -> None:
        """Let a dropped version go if no request holds it or waits for it."""
        resident = self._resident[digest]
        if resident.doomed and not resident.holders and digest not in self._wanted():
            self._evict(digest)

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


class _TermsOf(Mapping[str, Terms]):
    def __init__(self, residents: Mapping[str, Resident]) -> None:
        self._residents = residents

    def __getitem__(self, digest: str) -> Terms:
        return self._residents[digest].terms

    def __iter__(self) -> Iterator[str]:
        return iter(self._residents)

    def __len__(self) -> int:
        return len(self._residents)


def _explain(adapter: AdapterRef, error: Exception) -> GraftworkError:
    """Return what a request for this adapter is told; the log has what is ours alone to know."""
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
        return Unavailable(f"The adapter {adapter.name!r} could not be fetched.")
    return Corrupt(f"The adapter {adapter.name!r} cannot be loaded.", code="adapter_unusable")
