"""Bytes by content hash, in a folder or in a bucket (S3, GCS, Azure) by URL.

A blob's name is the SHA-256 of its bytes. A tree is a folder: its manifest lists names and
hashes, and the manifest's own hash names the tree, so equal folders are one tree and a changed
byte is another. The manifest is written last and removed first; readers check every hash.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from core.bases import hash_file
from core.errors import (
    Corrupt,
    GraftworkError,
    NotFound,
    StorageFull,
    Unavailable,
    is_disk_full,
)
from core.pace import give_way

PIECE = 1024 * 1024
MANIFEST = "tree-manifest.json"
UNFINISHED = ".put-"
"""What the names of files begin with that are being written."""


class Files(NamedTuple):
    """The files of a tree in memory, and what they should hash to."""

    content: dict[str, bytearray]
    hashes: dict[str, str]

    def verify(self) -> None:
        """Raise `Corrupt` unless every file is the one that was stored; any thread may."""
        for name, content in self.content.items():
            if _hash(content) != self.hashes[name]:
                raise Corrupt(f"Stored object {self.hashes[name][:12]} does not match its hash.")


class Store:
    """The byte store of one installation."""

    def __init__(self, url: str) -> None:
        local = url.startswith("file://")
        self._local = Path(unquote(url.removeprefix("file://"))) if local else None
        if self._local:
            self._local.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._objects = LocalStore(self._local)
        else:
            self._objects = from_url(url)

    def put_file(self, path: Path) -> str:
        """Store a file's bytes; return their hash. Storing the same bytes again is free."""
        digest = hash_file(path)
        if not self.exists(digest):
            self._put(path, key=_blob(digest))
        return digest

    def keep_file(self, digest: str, path: Path) -> None:
        """Store a file again if somebody took equal, unused bytes away before its row was in."""
        if not self.exists(digest):
            self.put_file(path)

    def fetch_file(self, digest: str, path: Path) -> Path:
        """Write a blob to `path`, checking its hash."""
        return self._fetch(_blob(digest), digest=digest, path=path)

    def stream(self, digest: str) -> Iterator[bytes]:
        """Yield a blob's bytes in pieces; `NotFound` before the first one."""
        return self._stream(_blob(digest))

    def exists(self, digest: str) -> bool:
        """Say whether a blob is there."""
        return self._exists(_blob(digest))

    def delete(self, digest: str) -> None:
        """Remove a blob; one that is gone already is fine."""
        self._delete(_blob(digest))

    def put_tree(self, folder: Path) -> str:
        """Store every file directly in `folder`; return the tree's hash."""
        files = {path.name: hash_file(path) for path in sorted(folder.iterdir()) if path.is_file()}
        manifest = json.dumps(files, sort_keys=True).encode()
        digest = hashlib.sha256(manifest).hexdigest()
        if self._exists(_tree(digest, MANIFEST)):
            return digest
        fresh = [name for name in files if not self._exists(_tree(digest, name))]
        try:
            for name in files:
                self._put(folder / name, key=_tree(digest, name))
            with full_disk(), tempfile.TemporaryDirectory() as scratch:
                path = Path(scratch) / MANIFEST
                path.write_bytes(manifest)
                self._put(path, key=_tree(digest, MANIFEST))
        except StorageFull:
            with suppress(GraftworkError):  # nobody would find the half of it
                self._delete_files(digest, fresh)
            raise
        return digest

    def keep_tree(self, digest: str, folder: Path) -> None:
        """Store a tree again if somebody took an equal, unused one away before its row was in."""
        if not self._exists(_tree(digest, MANIFEST)):
            self.put_tree(folder)

    def fetch_tree(self, digest: str, folder: Path) -> Path:
        """Make `folder` hold exactly the tree's files, all of them verified, or nothing new."""
        files = self.read_tree(digest)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tree-"))
        try:
            for name, file_digest in files.items():
                self._fetch(_tree(digest, name), digest=file_digest, path=scratch / name)
            shutil.rmtree(folder, ignore_errors=True)
            scratch.replace(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return folder

    def read_files(self, digest: str, *, without: Container[str] = ()) -> Files:
        """Return a tree's files in memory, to be verified before anything is done with them."""
        hashes = self.read_tree(digest)
        return Files(
            {name: self._read(_tree(digest, name)) for name in hashes if name not in without},
            hashes,
        )

    def read_tree(self, digest: str) -> dict[str, str]:
        """Return a tree's manifest: file names to their hashes."""
        manifest = self._read(_tree(digest, MANIFEST))
        if hashlib.sha256(manifest).hexdigest() != digest:
            raise Corrupt(f"Stored tree {digest[:12]} does not match its hash.")
        files: dict[str, str] = json.loads(manifest)
        if any(Path(name).name != name for name in files):
            raise Corrupt(f"Stored tree {digest[:12]} names a file outside of itself.")
        return files

    def delete_tree(self, digest: str) -> None:
        """Remove a tree, its manifest first, so that no reader finds half of it.

        Its files are those that lie there: the manifest may be damaged, or gone since a try before.
        """
        self._delete(_tree(digest, MANIFEST))
        self._delete_files(digest, self._list_files(digest))

    def _delete_files(self, digest: str, files: Iterable[str]) -> None:
        """Remove a tree's files, unless it is whole: an equal one may be stored meanwhile."""
        if self._exists(_tree(digest, MANIFEST)):
            return
        for name in files:
            self._delete(_tree(digest, name))
        if self._local:
            with suppress(OSError):
                (self._local / _tree(digest, "")).rmdir()

    def _list_files(self, digest: str) -> list[str]:
        folder = _tree(digest, "")
        with _typed_errors(folder):
            pages = list(obstore.list(self._objects, folder))
        names = (Path(item["path"]).name for page in pages for item in page)
        return [name for name in names if not name.startswith(UNFINISHED)]

    def check(self) -> None:
        """Raise `Unavailable` unless the store answers."""
        self.exists("0" * 64)

    def _put(self, path: Path, *, key: str) -> None:
        if self._local:
            _put_local(path, self._local / key)
            return
        with _typed_errors(key):
            obstore.put(self._objects, key, path)

    def _fetch(self, key: str, *, digest: str, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        seen = hashlib.sha256()
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".fetch-")
        try:
            with os.fdopen(handle, "wb") as target, full_disk():
                for piece in self._stream(key):
                    seen.update(piece)
                    target.write(piece)
                    give_way()
            if seen.hexdigest() != digest:
                raise Corrupt(f"Stored object {digest[:12]} does not match its hash.")
            Path(name).replace(path)
        finally:
            Path(name).unlink(missing_ok=True)
        return path

    def _read(self, key: str) -> bytearray:
        if not self._local:
            return bytearray().join(self._stream(key))
        with _typed_errors(key), (self._local / key).open("rb", buffering=0) as stream:
            content = bytearray(os.fstat(stream.fileno()).st_size)
            read = 0
            with memoryview(content) as view:
                while more := stream.readinto(view[read : read + PIECE]):
                    read += more  # one cut short since has another hash
                    give_way()
        return content

    def _stream(self, key: str) -> Iterator[bytes]:
        with _typed_errors(key):
            for piece in obstore.get(self._objects, key).stream(min_chunk_size=PIECE):
                yield bytes(piece)

    def _exists(self, key: str) -> bool:
        try:
            with _typed_errors(key):
                obstore.head(self._objects, key)
        except NotFound:
            return False
        return True

    def _delete(self, key: str) -> None:
        try:
            with _typed_errors(key):
                obstore.delete(self._objects, key)
        except NotFound:
            return


def _hash(content: bytearray) -> str:
    seen = hashlib.sha256()
    with memoryview(content) as view:
        for start in range(0, len(view), PIECE):
            seen.update(view[start : start + PIECE])
            give_way()
    return seen.hexdigest()


def _blob(digest: str) -> str:
    return f"blobs/{digest[:2]}/{digest}"


def _tree(digest: str, name: str) -> str:
    return f"trees/{digest}/{name}"


def _put_local(source: Path, target: Path) -> None:
    """Copy, force to disk, rename: a crash leaves the whole object or none."""
    with full_disk():
        handle, name = _open_beside(target)
        try:
            with os.fdopen(handle, "wb") as copy, source.open("rb") as stream:
                shutil.copyfileobj(stream, copy, PIECE)
                copy.flush()
                os.fsync(copy.fileno())
            Path(name).replace(target)
        finally:
            Path(name).unlink(missing_ok=True)


def _open_beside(target: Path) -> tuple[int, str]:
    while True:
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileNotFoundError):  # a tree was removed meanwhile, its empty folder too
            return tempfile.mkstemp(dir=target.parent, prefix=UNFINISHED)


@contextmanager
def _typed_errors(key: str) -> Iterator[None]:
    """Turn the library's errors into ours."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"No stored object {key}.", code="object_missing") from error
    except BaseError as error:
        raise Unavailable("The store does not answer.", code="store_unavailable") from error


@contextmanager
def full_disk() -> Iterator[None]:
    """Turn "no space left", wherever a buffered write says it, into the typed error."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise StorageFull("There is no space left on the disk.") from error
        raise
