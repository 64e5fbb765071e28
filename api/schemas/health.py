"""Whether this process, and what it leans on, works."""

from typing import Literal

from api.schemas.common import Reply


class Check(Reply):
    """One thing that was looked at; `required` ones decide."""

    ok: bool
    required: bool
    detail: str | None
    milliseconds: float


class Readiness(Reply):
    """All checks together."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, Check]


class Liveness(Reply):
    """The process answers."""

    status: Literal["ok"] = "ok"
