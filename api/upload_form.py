"""A multipart form with one file in it, streamed to disk beside the data it will join.

Starlette's own parser spools to the system's temporary folder, which is often memory; this one
writes where the store is, a mebibyte at a time in a thread, and counts while it writes.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from api.keyed_route import StrictRequest
from core.errors import InvalidRequest, TooLarge
from core.settings import MEBIBYTE
from core.store import full_disk

PIECE = MEBIBYTE
FRAMING_BYTES = MEBIBYTE
FIELD_BYTES = 4096
MAX_PARTS = 16
PREFIX = "upload-"


class UploadForm:
    """What has arrived of a form: its fields, its file's name, and how many bytes of it."""

    def __init__(self, target: IO[bytes], *, limit: int) -> None:
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.size = 0
        self.path = Path(target.name)
        self._target = target
        self._limit = limit
        self._waiting = bytearray()
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._field = ""
        self._value: bytearray | None = None
        self._parts = 0
        self._ended = False

    @classmethod
    @asynccontextmanager
    async def receive(
        cls, request: StrictRequest, *, folder: Path, limit: int
    ) -> AsyncIterator["UploadForm"]:
        """Read a whole form; the file is gone when the block is left."""
        boundary = _boundary(request)
        await run_in_threadpool(folder.mkdir, parents=True, exist_ok=True, mode=0o700)
        request.limit = limit + FRAMING_BYTES
        with full_disk(), tempfile.NamedTemporaryFile(dir=folder, prefix=PREFIX) as target:
            form = cls(target, limit=limit)
            try:
                await form._read(request, boundary=boundary)
            except FormParserError as error:
                raise _invalid("The multipart form cannot be read.") from error
            if form.filename is None:
                raise InvalidRequest(
                    "Missing required parameter: 'file'.",
                    code="missing_required_parameter",
                    param="file",
                )
            yield form

    async def _read(self, request: StrictRequest, *, boundary: bytes) -> None:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
                "on_header_end": self._end_header,
                "on_headers_finished": self._begin_value,
                "on_part_data": self._add_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )
        async for piece in request.stream():
            parser.write(piece)
            if len(self._waiting) >= PIECE:
                await self._flush()
        parser.finalize()
        if not self._ended:
            raise _invalid("The multipart form ends in the middle.")
        await self._flush()
        await run_in_threadpool(self._target.flush)

    async def _flush(self) -> None:
        piece, self._waiting = self._waiting, bytearray()
        await run_in_threadpool(self._target.write, piece)

    def _begin_part(self) -> None:
        self._parts += 1
        self._disposition = b""
        if self._parts > MAX_PARTS:
            raise _invalid(f"The form has more than {MAX_PARTS} parts.")

    def _end_header(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _begin_value(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = _text(options.get(b"name", b""), name="name")
        if b"filename" not in options:
            if self._field == "file":
                raise InvalidRequest("'file' must be sent as a file, with a name.", param="file")
            if self._field in self.fields:
                raise _invalid(f"The field '{self._field[:64]}' is given twice.")
            self._value = bytearray()
            return
        if self._field != "file" or self.filename is not None:
            raise _invalid("The form must have exactly one file, in the field 'file'.")
        self.filename = _text(options[b"filename"], name="filename")
        self._value = None

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._value is not None:
            self._value += data[start:end]
            if len(self._value) > FIELD_BYTES:
                raise _invalid(f"The field '{self._field[:64]}' is over {FIELD_BYTES} bytes.")
            return
        self._waiting += data[start:end]
        self.size += end - start
        if self.size > self._limit:
            raise TooLarge(
                f"The file is over the limit of {self._limit / MEBIBYTE:.4g} MiB.",
                code="file_too_large",
                param="file",
            )

    def _end_part(self) -> None:
        if self._value is not None:
            self.fields[self._field] = _text(bytes(self._value), name=self._field)

    def _end(self) -> None:
        self._ended = True


def _boundary(request: StrictRequest) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequest(
            "Send the file as multipart/form-data.", code="invalid_content_type", param="file"
        )
    return boundary


def _text(value: bytes, *, name: str) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise _invalid(f"The text of '{name[:64]}' is not UTF-8.") from error
    if "\0" in text:
        raise InvalidRequest(f"'{name[:64]}' holds a NUL character.", code="invalid_text")
    return text


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_multipart")
