"""Addresses among the settings: what one may begin with, in words."""

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError


def begins_with(*beginnings: str) -> AfterValidator:
    """Take an address that begins like one of these; an empty one is none."""

    def check(address: str | None) -> str | None:
        if address and not address.startswith(beginnings):
            raise PydanticCustomError(
                "address",
                "It should begin with {beginnings}",
                {"beginnings": " or ".join(beginnings)},
            )
        return address

    return AfterValidator(check)
