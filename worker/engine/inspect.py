"""What an adapter that somebody brings is, and whether it fits; runs in the torch thread."""

from collections.abc import Generator, Iterable, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any

import structlog
import torch
from safetensors import SafetensorError, safe_open

from core.errors import GraftworkError, InvalidRequest
from models.nn.artifact import (
    PEFT_CONFIG,
    PROVENANCE,
    TENSORS,
    TRAINING_TENSORS,
    load_training_tensors,
    read_artifact,
    read_files,
    read_json,
)
from models.nn.methods import METHODS, parse_method
from models.nn.methods.base import Method
from models.nn.shape import Shape
from models.wire import AdapterRef, InspectReply
from worker.engine.resident import Loader

SHOWN_NAMES = 2000

Sizes = Mapping[str, tuple[int, ...]]

log = structlog.get_logger(__name__)


def inspect(
    folder: Path, *, digest: str, loader: Loader, budget: int
) -> Generator[None, None, InspectReply]:
    """Load the adapter as a request would, within `budget` bytes; if that fails, say why.

    Names are those of the file. Nothing stays in memory. Yields where other rows may have a step.
    """
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
        files = read_files(folder)
        yield from loader.finish(loader.prepare(AdapterRef(name=TENSORS, digest=digest), files))
        method = read_artifact(files, shape=shape).method
        if (folder / TRAINING_TENSORS).is_file():
            load_training_tensors(folder, shape=shape)
    except Exception as error:  # whatever is wrong with it is what was asked
        log.info("adapter_does_not_fit", digest=digest, exc_info=error)
        return _compare(folder, held, shape=shape, problem=_tell(error))
    return _describe(method, shape, matched=_cut(held))


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
            if kind.peft_type is not None and kind.peft_type == config["peft_type"]:
                with suppress(InvalidRequest):
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


def _tell(error: Exception) -> str:
    said = error.message if isinstance(error, GraftworkError) else "It cannot be loaded."
    return said.encode("utf-8", "backslashreplace").decode()


def _cut(names: Iterable[str]) -> list[str]:
    """Return names in order; beyond a limit, how many more there are."""
    ordered = sorted(names)
    if len(ordered) <= SHOWN_NAMES:
        return ordered
    return [*ordered[:SHOWN_NAMES], f"and {len(ordered) - SHOWN_NAMES} more"]
