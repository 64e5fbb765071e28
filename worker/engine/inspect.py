"""What an adapter that somebody brings is, and whether it fits.

A helper reads and checks it; the torch thread only computes what needs a forward.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import structlog
import torch
from safetensors import SafetensorError, safe_open

from core.errors import GraftworkError
from core.leftovers import scratch_folder
from core.store import Store
from models.adapter_files import PEFT_CONFIG, PROVENANCE, TENSORS, TRAINING_TENSORS
from models.nn.artifact import check_peft_config, check_training_tensors, read_files, read_json
from models.nn.methods import METHODS, parse_method
from models.nn.methods.base import Method
from models.nn.shape import Shape
from models.wire import AdapterRef, InspectReply
from worker.engine.helper import Pace, start_helpers
from worker.engine.inbox import Inbox
from worker.engine.loader import Loader
from worker.engine.resident import Prepared

SHOWN_NAMES = 2000
SIDE_BY_SIDE = 4
"""So many adapters are fetched at once."""

Sizes = Mapping[str, tuple[int, ...]]

log = structlog.get_logger(__name__)


class Source(NamedTuple):
    """A stored adapter, and where a copy of it may lie for a while."""

    store: Store
    digest: str
    scratch: Path

    @contextmanager
    def fetched(self) -> Iterator[Path]:
        """Give a folder with its files, which is gone at the end.

        Within one thread: who waits for it may leave, and the files would come all the same.
        """
        with scratch_folder(self.scratch) as own:
            yield self.store.fetch_tree(self.digest, own / "adapter")


class _Read(NamedTuple):
    """An adapter that is whole, and the dimensions that its file has."""

    prepared: Prepared
    held: Sizes


class Inspector:
    """Fetches some adapters side by side, so that one that hangs in a store holds up no other.

    They are read one at a time: each fills some memory.
    """

    def __init__(self, loader: Loader, *, budget: int, inbox: Inbox, pace: Pace) -> None:
        """Refuse what takes more than `budget` bytes in memory."""
        self._loader = loader
        self._budget = budget
        self._inbox = inbox
        self._reading = Lock()
        self._helpers = start_helpers(SIDE_BY_SIDE, name="inspect", pace=pace)

    def inspect(self, source: Source) -> Future[InspectReply]:
        """Load the adapter as a request would; if that fails, say why.

        Names are those of the file. Nothing stays in memory, nor on disk. `RuntimeError` if no
        more is taken; what waits for a thread by then is cancelled.
        """
        return self._helpers.submit(self._inspect, source)

    def close(self) -> None:
        """Take no more; what has begun ends by itself."""
        self._helpers.shutdown(wait=False, cancel_futures=True)

    def _inspect(self, source: Source) -> InspectReply:
        with source.fetched() as folder, self._reading:
            found = _look(folder, digest=source.digest, loader=self._loader, budget=self._budget)
            if isinstance(found, InspectReply):
                return found
            return self._inbox.ask(_finish(found, self._loader)).result()


def _look(folder: Path, *, digest: str, loader: Loader, budget: int) -> _Read | InspectReply:
    """Read and check everything, or say what is wrong; no forward, so a helper may."""
    shape = loader.backbone.shape
    try:
        held = _read_sizes(folder / TENSORS)
    except SafetensorError as error:
        return InspectReply(problems=[f"{TENSORS} is not a whole safetensors file: {error}."])
    except OSError as error:
        log.warning("adapter_unreadable", digest=digest, exc_info=error)
        return InspectReply(problems=[f"{TENSORS} is not a whole safetensors file."])
    size = sum(map(prod, held.values())) * loader.backbone.dtype.itemsize
    if size > budget:
        needs = f"{TENSORS} takes {size} bytes in memory; the engine has {budget} for adapters."
        return InspectReply(problems=[needs])
    try:
        adapter = AdapterRef(name=TENSORS, digest=digest)
        files = read_files(folder)
        prepared = loader.prepare(adapter, files)
        check_peft_config(files, prepared.artifact, shape=shape)
        if (folder / TRAINING_TENSORS).is_file():
            check_training_tensors(folder, method=prepared.artifact.method, shape=shape)
    except Exception as error:  # whatever is wrong with it is what was asked
        log.info("adapter_does_not_fit", digest=digest, reason=_tell(error), exc_info=_fault(error))
        return _compare(folder, held, shape=shape, problem=_tell(error))
    return _Read(prepared, held)


def _finish(read: _Read, loader: Loader) -> Generator[None, None, InspectReply]:
    """Compute what a forward has to say; yields where other rows may have a step."""
    prepared, problems = read.prepared, list[str]()
    try:
        yield from loader.finish(prepared)
    except Exception as error:  # as above
        log.info(
            "adapter_does_not_fit",
            digest=prepared.adapter.digest,
            reason=_tell(error),
            exc_info=_fault(error),
        )
        problems.append(_tell(error))
    return _describe(
        prepared.artifact.method,
        loader.backbone.shape,
        matched=_cut(read.held),
        problems=problems,
    )


def _read_sizes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the header alone."""
    with safe_open(path, framework="pt") as tensors:
        names = list(tensors.keys())
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}


def _compare(folder: Path, held: Sizes, *, shape: Shape, problem: str) -> InspectReply:
    """Hold the file's names and dimensions against those that its own method asks for."""
    method = _find_method(folder, held, shape)
    if method is None:
        return InspectReply(problems=[problem], unexpected=_cut(held))
    needed = _stored_sizes(method, shape)
    both = held.keys() & needed.keys()
    return _describe(
        method,
        shape,
        matched=_cut(name for name in both if held[name] == needed[name]),
        missing=_cut(needed.keys() - held.keys()),
        unexpected=_cut(held.keys() - needed.keys()),
        mismatched=_cut(
            f"{name}: {held[name]}, not {needed[name]}"
            for name in both
            if held[name] != needed[name]
        ),
        problems=[problem],
    )


def _describe(method: Method, shape: Shape, **found: list[str]) -> InspectReply:
    parameters = 0
    with suppress(GraftworkError):
        parameters = method.parameters(shape)
    return InspectReply(method=method.model_dump(mode="json"), parameters=parameters, **found)


def _find_method(folder: Path, held: Sizes, shape: Shape) -> Method | None:
    """Return what the files say that they are, however their tensors fit."""
    with suppress(Exception):  # nobody vouches for what they hold
        if (folder / PROVENANCE).is_file():
            return parse_method(_read(folder, PROVENANCE)["method"])
        config = _read(folder, PEFT_CONFIG)
        tensors = {name: torch.zeros(()).expand(size) for name, size in held.items()}
        for kind in METHODS.values():
            if kind.reads_peft(config):
                return kind.from_peft(config, tensors, shape)[0]
    return None


def _stored_sizes(method: Method, shape: Shape) -> Sizes:
    """Return names and dimensions as a file of this method has them."""
    with suppress(GraftworkError):
        served = {n: torch.zeros(()).expand(size) for n, size in method.served(shape).items()}
        stored = (method.to_peft(served, shape) or (None, served))[1]
        return {name: tuple(tensor.shape) for name, tensor in stored.items()}
    return {}


def _read(folder: Path, name: str) -> dict[str, Any]:
    return read_json({name: bytearray((folder / name).read_bytes())}, name)


def _fault(error: Exception) -> Exception | None:
    """Return what is worth a stack trace: no refusal of ours, so perhaps a fault of ours."""
    return None if isinstance(error, GraftworkError) else error


def _tell(error: Exception) -> str:
    said = error.message if isinstance(error, GraftworkError) else "It cannot be loaded."
    return said.encode("utf-8", "backslashreplace").decode()


def _cut(names: Iterable[str]) -> list[str]:
    """Return names in order; beyond a limit, how many more there are."""
    ordered = sorted(names)
    if len(ordered) <= SHOWN_NAMES:
        return ordered
    return [*ordered[:SHOWN_NAMES], f"and {len(ordered) - SHOWN_NAMES} more"]
