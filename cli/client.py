"""A small client of our own api, for the commands that speak HTTP."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx

from cli.console import err
from core.errors import GraftworkError, InvalidRequest, Unauthorized, Unavailable

JSON = dict[str, Any]
AGAIN_SECONDS = 2.0


class Refused(GraftworkError):
    """The api answered with an error; `answer` is its whole `error` object."""

    def __init__(self, status: int, answer: JSON) -> None:
        super().__init__(str(answer.get("message")), code=answer.get("code"))
        self.status = status
        self.answer = answer


class Client:
    """Speaks to one api with one key; use it as a context manager."""

    def __init__(self, base_url: str, *, api_key: str | None) -> None:
        if not api_key:
            raise Unauthorized(
                "No API key: set GRAFTWORK_API_KEY or pass --api-key. `graftwork serve` shows the "
                "first one once; `graftwork keys create` makes another."
            )
        if not (api_key.isascii() and api_key.isprintable()):
            raise Unauthorized("The API key holds characters that no key has; copy it once more.")
        try:
            httpx.URL(base_url)
        except httpx.InvalidURL as error:
            raise InvalidRequest(f"{base_url!r} is no URL: {error}.") from error
        self._base_url = base_url.rstrip("/")
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(600.0, connect=5.0),
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> JSON:
        """GET an object."""
        return self._json("GET", path, params=query)

    def poll(self, path: str, *, patience: float, **query: Any) -> JSON:
        """GET an object that is being waited for, though the api be away for so many seconds."""
        gone_since = None
        while True:
            try:
                return self.get(path, **query)
            except (Unavailable, Refused) as error:
                if isinstance(error, Refused) and error.status != httpx.codes.SERVICE_UNAVAILABLE:
                    raise
                now = time.monotonic()
                if now - (gone_since or now) >= patience:
                    raise
                if gone_since is None:
                    gone_since = now
                    err.print("The api does not answer; waiting for it.", style="yellow")
            time.sleep(AGAIN_SECONDS)

    def post(self, path: str, body: JSON) -> JSON:
        """POST JSON and return the object it made."""
        return self._json("POST", path, json=body)

    def upload(self, path: Path) -> JSON:
        """Upload a data set, streamed from disk."""
        return self.send("/files", path, {"purpose": "fine-tune"})

    def send(self, route: str, path: Path, fields: dict[str, str]) -> JSON:
        """Post a form with a file, streamed from disk."""
        if not path.is_file():
            raise InvalidRequest(f"There is no file {path}.")
        with path.open("rb") as stream:
            return self._json("POST", route, data=fields, files={"file": stream})

    def download(self, path: str, target: Path) -> None:
        """GET bytes into a file, which is there in whole or as it was."""
        if not target.parent.is_dir():
            raise InvalidRequest(f"There is no folder {target.parent} to write {target.name} into.")
        part = target.with_name(f"{target.name}.part")
        try:
            with self._http.stream("GET", f"{self._base_url}{path}") as answer:
                if answer.is_error:
                    answer.read()
                    _refuse(answer)
                with part.open("wb") as stream:
                    for piece in answer.iter_bytes():
                        stream.write(piece)
            part.replace(target)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        finally:
            part.unlink(missing_ok=True)

    def chat(self, model: str, messages: list[JSON], **sampling: Any) -> Iterator[str]:
        """Stream one answer, piece by piece."""
        body = {"model": model, "messages": messages, "stream": True, **sampling}
        try:
            with self._http.stream(
                "POST", f"{self._base_url}/chat/completions", json=body
            ) as answer:
                if answer.is_error:
                    answer.read()
                    _refuse(answer)
                yield from _pieces(answer.iter_lines())
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def base_model(self) -> str:
        """Return the id of the server's base model, the one that nobody tuned."""
        names: list[str] = [model["id"] for model in self.get("/models")["data"]]
        return next((name for name in names if not name.startswith("ft:")), names[0])

    def _json(self, method: str, path: str, **options: Any) -> JSON:
        try:
            answer = self._http.request(method, f"{self._base_url}{path}", **options)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if answer.is_error:
            _refuse(answer)
        body: JSON = answer.json()
        return body

    def _unreachable(self, error: httpx.TransportError) -> Unavailable:
        return Unavailable(
            f"{self._base_url} does not answer ({error}). Is `graftwork serve` running? "
            "--base-url or GRAFTWORK_BASE_URL says where."
        )


def _pieces(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        chunk = json.loads(line.removeprefix("data: "))
        if "error" in chunk:
            raise Refused(500, chunk["error"])
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                yield text


def _refuse(answer: httpx.Response) -> NoReturn:
    try:
        error = answer.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = {"message": f"HTTP {answer.status_code} from {answer.url}", "code": None}
    raise Refused(answer.status_code, error)
