"""Requests with an Idempotency-Key: what one asks for is made once, however often it arrives."""

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Generic, TypeVar

from pydantic import BaseModel
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from core.errors import InvalidRequest
from models.tables.comparison import Comparison
from models.tables.job import Job

RowT = TypeVar("RowT", bound=Job | Comparison)


class Once(Generic[RowT]):
    """One request for one row; without a key every request is the first."""

    def __init__(
        self,
        session: Session,
        body: BaseModel,
        *,
        key: str | None,
        find: Callable[[str], RowT | None],
    ) -> None:
        """`find` looks for the row that an earlier request with a key made."""
        content = json.dumps(body.model_dump(mode="json"), sort_keys=True)
        self._digest = sha256(content.encode()).hexdigest()
        self._session = session
        self._key = key
        self._find = find

    def find_earlier(self) -> RowT | None:
        """Return what an earlier request made; `InvalidRequest` if that one had another body."""
        if self._key is None:
            return None
        earlier = self._find(self._key)
        if earlier is not None and earlier.request_digest != self._digest:
            raise InvalidRequest(
                "This Idempotency-Key was used with another body; use a new key for this one.",
                code="idempotency_key_reused",
            )
        return earlier

    def mark(self, row: RowT) -> None:
        """Write into a row which request it is for."""
        row.idempotency_key, row.request_digest = self._key, self._digest

    def add(self, add: Callable[[], RowT]) -> RowT:
        """Add a marked row, or return that of a request with the same key that was faster."""
        try:
            with self._session.begin_nested():
                return add()
        except IntegrityError:
            if earlier := self.find_earlier():
                return earlier
            raise
