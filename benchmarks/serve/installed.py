"""A whole `graftwork serve` to ask over HTTP, its adapters registered as publishing does it."""

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from benchmarks.serve.adapters import Stored
from benchmarks.serve.work import Order
from cli.client import Client
from cli.database import FIRST_TENANT
from cli.environment import configure
from cli.temporary import installation
from core.database import Database
from core.settings import Settings
from core.store import Store
from models.nn.methods import parse_method
from models.tables import adapter as adapters
from models.tables.adapter import Adapter

PATIENCE_SECONDS = 600.0


@dataclass(frozen=True)
class Installed:
    """An installation that runs; `url` ends with /v1."""

    settings: Settings
    url: str
    key: str

    def register(self, stored: Sequence[Stored]) -> None:
        """Give adapters a row and their bytes a place in the store."""
        store, database = Store(self.settings.store), Database(self.settings.database)
        try:
            digests = [store.put_tree(each.folder) for each in stored]
            with database.unit_of_work() as session:
                for each, digest in zip(stored, digests, strict=True):
                    adapters.add(session, self._row(each, digest))
        finally:
            database.close()

    def client(self) -> Client:
        """Return a client of this installation."""
        return Client(self.url, api_key=self.key)

    def wave(self, order: Order) -> float:
        """Send an order's requests at once; return the seconds until the last is answered."""
        return asyncio.run(self._wave(order))

    async def _wave(self, order: Order) -> float:
        async with httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=PATIENCE_SECONDS,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        ) as http:
            began = time.perf_counter()
            answers = await asyncio.gather(
                *(
                    http.post("/completions", json=self._request(order, row))
                    for row in range(len(order.prompts))
                )
            )
            seconds = time.perf_counter() - began
        for answer in answers:
            given = answer.raise_for_status().json()["usage"]["completion_tokens"]
            if given != order.tokens:
                raise RuntimeError(f"A request gave {given} tokens, not {order.tokens}.")
        return seconds

    def _request(self, order: Order, row: int) -> dict[str, object]:
        return {
            "model": order.adapters[row] or self.settings.base,
            "prompt": order.prompts[row],
            "max_tokens": order.tokens,
            "temperature": 0,
            "ignore_eos": True,
        }

    def _row(self, stored: Stored, digest: str) -> Adapter:
        method = parse_method({"type": "lora"})
        return Adapter(
            name=stored.name,
            tenant=FIRST_TENANT,
            base=self.settings.base,
            method=method.model_dump(mode="json"),
            digest=digest,
            bytes=stored.bytes,
            parameters=0,
        )


@contextmanager
def installed(folder: Path, *, variables: Mapping[str, str] | None = None) -> Iterator[Installed]:
    """Run an installation in a folder, with environment variables of its own on top."""
    before = dict(os.environ)
    os.environ.update(variables or {})
    try:
        with installation(folder) as (url, key):
            yield Installed(configure(data_dir=folder), url, key)
    finally:
        os.environ.clear()
        os.environ.update(before)
        configure()
