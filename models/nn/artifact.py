"""An adapter on disk: safetensors, Hugging Face PEFT's configuration where it has one, and ours."""

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import save as save_tensors
from torch import Tensor

from core.bases import REPOSITORIES
from core.errors import Corrupt, InvalidRequest
from models.adapter_files import PEFT_CONFIG, PROVENANCE, TENSORS, TRAINING_TENSORS
from models.nn.base import Base
from models.nn.methods import METHODS, explain, parse_method
from models.nn.methods.base import Method
from models.nn.places import refuse_tensors
from models.nn.shape import Shape
from models.nn.tensor_file import Content, largest, read_tensors

FORMAT = 1

_PIECE = 1024 * 1024
"""Numbers that are looked at together."""

Files = Mapping[str, bytearray]
"""What a folder holds, by name."""


@dataclass(frozen=True)
class Artifact:
    """A method, its float32 tensors as they are served, and where they come from."""

    method: Method
    tensors: dict[str, Tensor]
    provenance: dict[str, Any]
    largest: float
    """The largest magnitude in the tensors."""


def save_artifact(
    folder: Path,
    *,
    method: Method,
    tensors: dict[str, Tensor],
    base: Base,
    provenance: dict[str, Any],
) -> None:
    """Write an adapter into `folder`, durably; equal inputs give equal bytes.

    `tensors` are those of training; where they are served in another form, they are kept beside
    it, so that a later job can go on from them. `provenance` is the caller's: where it
    came from (`worker/order.py`, `worker/train/setup.py`), and a `prompt` that it is served behind.
    """
    shape = base.shape
    trained = {name: tensor.detach().cpu().float() for name, tensor in tensors.items()}
    _check(trained, expected=method.tensors(shape))
    served = method.finish(trained, base)
    _check(served, expected=method.served(shape))
    config, stored = method.to_peft(served, shape) or (None, served)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / TENSORS, _pack(stored))
    if not _same(trained, served):
        _write(folder / TRAINING_TENSORS, _pack(trained))
    if config is not None:
        base_id = provenance.get("base")
        named = {"base_model_name_or_path": REPOSITORIES.get(str(base_id), base_id)}
        _write(folder / PEFT_CONFIG, _json(config | named))
    ours = {"format": FORMAT, "method": method.model_dump(mode="json")}
    _write(folder / PROVENANCE, _json(provenance | ours))
    _sync_folder(folder)


def load_artifact(folder: Path, *, shape: Shape) -> Artifact:
    """Read an adapter from a folder; see `read_artifact`."""
    return read_artifact(read_files(folder), shape=shape)


def read_files(folder: Path) -> dict[str, bytearray]:
    """Return what `read_artifact` needs of a folder."""
    names = (TENSORS, PEFT_CONFIG, PROVENANCE)
    paths = [folder / name for name in names if (folder / name).is_file()]
    return {path.name: bytearray(path.read_bytes()) for path in paths}


def read_artifact(files: Files, *, shape: Shape) -> Artifact:
    """Read an adapter that we or PEFT wrote, for a base of this shape, from its files in memory.

    `Corrupt` for files that are not what they should be, to the name, dimension and finite value;
    `InvalidRequest` for a PEFT adapter that uses what we do not support. Float32 tensors are views
    into the files: nothing is copied.
    """
    stored = _read_tensors(files, TENSORS)
    if provenance := read_provenance(files):
        method = parse_method(provenance.get("method") or {})
        tensors = method.unpack(stored, shape)
    else:
        method, tensors = _from_peft(read_json(files, PEFT_CONFIG), stored, shape)
    found = _check(tensors, expected=method.served(shape))
    return Artifact(method, tensors, provenance, largest=found)


def read_provenance(files: Files) -> dict[str, Any]:
    """Return what our own file says of an adapter; nothing where there is none."""
    if PROVENANCE not in files:
        return {}
    provenance = read_json(files, PROVENANCE)
    if provenance.get("format") != FORMAT:
        raise Corrupt(f"{PROVENANCE} has format {provenance.get('format')!r}, not {FORMAT}.")
    return provenance


def load_training_tensors(folder: Path, *, shape: Shape) -> Artifact:
    """Read what a job can go on from: as `load_artifact`, but tensors as they are trained.

    An adapter that came without its training form (from PEFT) is `InvalidRequest` where the
    method trains another form than it serves.
    """
    artifact = load_artifact(folder, shape=shape)
    expected = artifact.method.tensors(shape)
    if (folder / TRAINING_TENSORS).is_file():
        content = bytearray((folder / TRAINING_TENSORS).read_bytes())
        trained = _read_tensors({TRAINING_TENSORS: content}, TRAINING_TENSORS)
        _check(trained, expected=expected)
        return replace(artifact, tensors=trained)
    if expected != artifact.method.served(shape):
        raise InvalidRequest(
            f"This {artifact.method.kind} adapter was stored in the form that is served; training "
            "cannot go on from it.",
            code="not_resumable",
            param="model",
        )
    return artifact


def check_training_tensors(folder: Path, *, method: Method, shape: Shape) -> None:
    """Refuse a file of them as `load_training_tensors` does; it is looked through, not loaded."""
    trained = _stored(_map(folder / TRAINING_TENSORS), TRAINING_TENSORS)
    _check_sizes(trained, expected=method.tensors(shape))
    for name, tensor in trained.items():
        pieces = torch.split(tensor.view(-1), _PIECE)
        if not all(isfinite(largest([piece.float()])) for piece in pieces):
            raise _not_finite(name)


def check_peft_config(files: Files, artifact: Artifact, *, shape: Shape) -> None:
    """Refuse PEFT's configuration where it is not that of the adapter which our file describes.

    Only who loads the adapter elsewhere reads it, so this is not looked at when we do.
    """
    form = artifact.method.to_peft(artifact.tensors, shape)
    if form is None or not files.keys() >= {PEFT_CONFIG, PROVENANCE}:
        return
    config, stored = form
    # Both as we read them: a P-tuning's encoder is told in it, but is not part of the adapter.
    meant = _reread(config, stored, shape)
    said = _reread(read_json(files, PEFT_CONFIG), stored, shape)
    for name in sorted(meant):
        if said.get(name) != meant[name]:
            raise Corrupt(
                f"{PEFT_CONFIG} says {name}={said.get(name)!r}, {PROVENANCE} {meant[name]!r}."
            )


def _reread(config: dict[str, Any], stored: dict[str, Tensor], shape: Shape) -> dict[str, Any]:
    """Return the configuration that we would write of the adapter that PEFT's describes."""
    method, tensors = _from_peft(config, stored, shape)
    _check_sizes(tensors, expected=method.served(shape))
    written, _ = method.to_peft(tensors, shape) or ({}, None)
    return written


def _from_peft(
    config: dict[str, Any], stored: dict[str, Tensor], shape: Shape
) -> tuple[Method, dict[str, Tensor]]:
    """Ask the method that reads such files."""
    for method in METHODS.values():
        if method.reads_peft(config):
            refuse_tensors(stored)
            try:
                return method.from_peft(config, stored, shape)
            except ValidationError as error:
                said = explain(error, method).message.replace("for peft.", "for ")
                raise Corrupt(f"{PEFT_CONFIG}: {said}") from error
            except LookupError as error:
                raise Corrupt(f"{PEFT_CONFIG} or its tensors lack {error}.") from error
    raise InvalidRequest(
        f"PEFT adapters of type {config.get('peft_type')!r} are not supported.",
        code="unsupported_adapter",
    )


def _read_tensors(files: Files, name: str) -> dict[str, Tensor]:
    if name not in files:
        raise Corrupt(f"{name} is missing; pickled adapters are never read.")
    return {name: tensor.float() for name, tensor in _stored(files[name], name).items()}


def _stored(content: Content, name: str) -> dict[str, Tensor]:
    """Return tensors as a file has them; `name` is what errors call it."""
    try:
        stored = read_tensors(content)
    except ValueError as error:
        raise Corrupt(f"{name} is not a whole safetensors file: {error}") from error
    if odd := [name for name, tensor in stored.items() if not tensor.is_floating_point()]:
        raise Corrupt(f"Tensor {odd[0]!r} is not of a floating-point type.")
    return stored


def _map(path: Path) -> Content:
    """Return a file's bytes, which are read when they are looked at and need not stay in memory."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return bytearray()
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)


def read_json(files: Files, name: str) -> dict[str, Any]:
    """Return the JSON object of a file; `Corrupt` if it is none, or holds what is no text."""
    try:
        content = json.loads(files[name])
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (LookupError, ValueError, RecursionError) as error:
        raise Corrupt(f"{name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise Corrupt(f"{name} is not a JSON object.")
    return content


def _same(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    return tensors.keys() == others.keys() and all(
        tensor is others[name] or torch.equal(tensor, others[name])
        for name, tensor in tensors.items()
    )


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    packed: bytes = save_tensors(contiguous, metadata={"format": "pt"})
    return packed


def _check(tensors: Mapping[str, Tensor], *, expected: Mapping[str, tuple[int, ...]]) -> float:
    """Return the largest magnitude; `Corrupt` for other names, dimensions or infinite values."""
    _check_sizes(tensors, expected=expected)
    if not isfinite(found := largest(tensors.values())):
        name = next(name for name, tensor in tensors.items() if not isfinite(largest([tensor])))
        raise _not_finite(name)
    return found


def _check_sizes(tensors: Mapping[str, Tensor], *, expected: Mapping[str, tuple[int, ...]]) -> None:
    if differing := sorted(expected.keys() ^ tensors.keys()):
        state = "missing" if differing[0] in expected else "not expected"
        raise Corrupt(f"Tensor {differing[0]!r} is {state}; {len(differing)} names differ.")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != expected[name]:
            raise Corrupt(
                f"Tensor {name!r} has dimensions {tuple(tensor.shape)}, not {expected[name]}."
            )


def _not_finite(name: str) -> Corrupt:
    return Corrupt(f"Tensor {name!r} holds values that are not finite.")


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
