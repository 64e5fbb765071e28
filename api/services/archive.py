"""Zips that people send: read as data of unknown intent, and only for the few files of an adapter.

No name of an entry ever becomes a path, no size in a header is believed, and what would be run
when it is read (pickles) is refused unread.
"""

import os
import stat
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from core.errors import InvalidRequest, TooLarge
from core.settings import MEBIBYTE
from core.store import full_disk
from models.adapter_files import NAMES, PEFT_CONFIG, PROVENANCE, TENSORS

PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
MAX_ENTRIES = 256
DIRECTORY_BYTES = MEBIBYTE
FURTHEST = 2**48
JSON_BYTES = 32 * MEBIBYTE
HEADER_BYTES = MEBIBYTE
"""Names of tensors: some thousand, where an adapter of a large base has several hundred."""
PIECE = 256 * 1024
MOST_RATIO = 200
FREE_OF_RATIO = 16 * MEBIBYTE
"""Small files may shrink as they like: a vector of ones does so a thousandfold."""
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,  # what zipfile says of a compression that it does not know
    ValueError,
)
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x1


class Unpacked(NamedTuple):
    """The names of the files that were kept, and of those that are of no use here."""

    kept: tuple[str, ...]
    ignored: tuple[str, ...]


class _Directory:
    """A file that checks what a zip's headers say of places and lengths, since nobody else does."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.tell = file.tell
        self.seekable = file.seekable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; one before the start or beyond any file is refused."""
        if whence == os.SEEK_SET and not 0 <= offset < FURTHEST:
            raise _invalid("a header in it points nowhere")
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        """Read up to `size` bytes, or to the end; too many at once are refused."""
        if size > DIRECTORY_BYTES:
            raise _invalid("its list of entries is too long")
        return self._file.read(DIRECTORY_BYTES if size < 0 else size)


def unpack(path: Path, folder: Path, *, limit: int) -> Unpacked:
    """Write an adapter's files from the zip at `path` into `folder`, under their own names.

    Raises `InvalidRequest` (`invalid_archive`, `unsafe_format`, `invalid_adapter`), and `TooLarge`
    when more than `limit` bytes would come out.
    """
    try:
        with path.open("rb") as file, _open(file) as opened:
            entries = _check(opened.infolist())
            chosen = _choose(entries)
            for name, entry in chosen.items():
                most = min(limit, JSON_BYTES) if name.endswith(".json") else limit
                limit -= _extract(opened, entry, folder / name, limit=most)
                if name.endswith(".safetensors"):
                    _check_header(folder / name)
    except UNREADABLE as error:
        raise _invalid("it cannot be read as one") from error
    kept = set(chosen.values())
    ignored = sorted(entry.filename for entry in entries if entry not in kept)
    return Unpacked(tuple(chosen), tuple(ignored))


def _open(file: IO[bytes]) -> zipfile.ZipFile:
    wrapped: Any = _Directory(file)
    return zipfile.ZipFile(wrapped)


def _check(entries: list[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """Return the entries that are files; refuse an archive that holds anything odd."""
    if len(entries) > MAX_ENTRIES:
        raise _invalid(f"it has more than {MAX_ENTRIES} entries")
    twice = [name for name, count in Counter(e.filename for e in entries).items() if count > 1]
    if twice:
        raise _invalid(f"{_shown(twice[0])} is in it twice")
    for entry in entries:
        _check_entry(entry)
    files = [entry for entry in entries if not entry.is_dir()]
    if unsafe := [e.filename for e in files if PurePosixPath(e.filename).suffix.lower() in PICKLES]:
        raise InvalidRequest(
            f"{_shown(unsafe[0])} is a pickle, which can run code when it is read, so none is "
            "taken. Save the adapter as safetensors (`model.save_pretrained(folder, "
            "safe_serialization=True)` with PEFT) and leave pickles out of the zip.",
            code="unsafe_format",
            param="file",
        )
    return files


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
    path = PurePosixPath(name)
    outside = path.is_absolute() or ".." in path.parts or "\\" in name
    if outside or not path.parts or ":" in path.parts[0]:
        raise _invalid(f"{_shown(name)} points outside of it")
    if any(ord(letter) < 32 for letter in entry.orig_filename):
        raise _invalid("a name in it holds control characters")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _invalid(f"{_shown(name)} is a link or a device, not a file")
    if entry.flag_bits & ENCRYPTED:
        raise _invalid(f"{_shown(name)} is encrypted")
    if entry.compress_type not in METHODS:
        raise _invalid(f"{_shown(name)} is packed in a way that is not read; use deflate")


def _choose(entries: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Return the files of the adapter, which lie at the top or in one folder there, by name."""
    found = [e for e in entries if e.filename.rpartition("/")[2] == TENSORS and _depth(e) <= 1]
    if not found:
        raise _lacking(f"no {TENSORS}, at its top or in one folder there")
    if len(found) > 1:
        raise _lacking(f"{TENSORS} in {len(found)} folders; send one adapter at a time")
    folder = found[0].filename.removesuffix(TENSORS)
    chosen = {
        entry.filename.removeprefix(folder): entry
        for entry in entries
        if entry.filename.startswith(folder) and entry.filename.removeprefix(folder) in NAMES
    }
    if not chosen.keys() & {PEFT_CONFIG, PROVENANCE}:
        raise _lacking(f"neither {PEFT_CONFIG} (of PEFT) nor {PROVENANCE} (of an export)")
    return chosen


def _depth(entry: zipfile.ZipInfo) -> int:
    return entry.filename.count("/")


def _extract(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, *, limit: int) -> int:
    """Write one entry and return its size, counted and not believed."""
    size = 0
    with full_disk(), opened.open(entry) as source, path.open("xb") as target:
        while piece := source.read(PIECE):
            size += len(piece)
            if size > limit:
                raise TooLarge(
                    f"{path.name} is over the limit of {limit / MEBIBYTE:.4g} MiB, unpacked.",
                    code="adapter_too_large",
                    param="file",
                )
            if size > FREE_OF_RATIO and size > MOST_RATIO * max(entry.compress_size, 1):
                raise _invalid(f"{path.name} unpacks to over {MOST_RATIO} times its size")
            target.write(piece)
    return size


def _check_header(path: Path) -> None:
    """Refuse a file that names more tensors than any adapter has: reading it takes minutes.

    One that is no whole safetensors file is the engine's to refuse, which says what is wrong.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if HEADER_BYTES < length <= path.stat().st_size:
        raise TooLarge(
            f"The header of {path.name} has {length} bytes; {HEADER_BYTES} at most are read.",
            code="adapter_too_large",
            param="file",
        )


def _shown(name: str) -> str:
    return repr(name[:128])


def _invalid(reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"The file is not a zip that can be taken: {reason}.", code="invalid_archive", param="file"
    )


def _lacking(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"The zip holds {what}. Zip the folder that PEFT's `save_pretrained` made, or send an "
        "export as it is.",
        code="invalid_adapter",
        param="file",
    )
