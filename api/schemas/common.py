"""Shapes that every resource shares."""

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidatorFunctionWrapHandler, field_validator

from core.misread import misread

ItemT = TypeVar("ItemT")


class Wire(BaseModel):
    """Base of request bodies: numbers are finite, and a key that nobody reads is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _refuse_what_is_misread(cls, given: Any, read: ValidatorFunctionWrapHandler) -> Any:
        """Raise where text, truth or a number is read as another of them."""
        value = read(given)
        if wanted := misread(given, value=value):
            raise ValueError(wanted)
        return value


class Reply(BaseModel):
    """Base of response bodies."""

    model_config = ConfigDict(frozen=True)


class ErrorDetail(Reply):
    """What went wrong: a sentence, a family, the parameter at fault, a stable code."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorWithReport(ErrorDetail):
    """An error whose findings do not fit into a sentence."""

    report: dict[str, Any]


class ErrorEnvelope(Reply):
    """The body of every error."""

    error: ErrorWithReport | ErrorDetail


class Listing(Reply, Generic[ItemT]):
    """One page; the client asks for the next with `after=<last_id>` while `has_more`."""

    object: Literal["list"] = "list"
    data: list[ItemT]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Deletion(Reply):
    """The receipt of a deletion."""

    id: str
    object: str
    deleted: Literal[True] = True


def list_items(items: list[Any], *, has_more: bool = False) -> Listing[Any]:
    """Wrap items that have an id into a page."""
    ids = [item.id for item in items]
    return Listing(
        data=items,
        has_more=has_more,
        first_id=ids[0] if ids else None,
        last_id=ids[-1] if ids else None,
    )
