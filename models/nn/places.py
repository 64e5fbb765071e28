"""Names: where a target that a user wrote leads, and what PEFT files call a place."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from core.errors import InvalidRequest
from models.nn.shape import path_of, place_of

_PEFT_PREFIX = "base_model.model."
_NEUTRAL_SETTINGS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "loftq_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
    }
)
_OTHER_TENSORS = {
    ".lora_embedding_A": "an update of the embedding, which is not supported",
    ".base_layer.weight": "the base's own weight; save the adapter without it, by PEFT's "
    "`save_pretrained(folder, save_embedding_layers=False)`",
}
"""How their names end, and what they are."""
MOST_NAMES = 4096
"""No base has as many linear layers."""


def _check_some(names: tuple[str, ...]) -> tuple[str, ...]:
    if not names:
        raise ValueError("at least one name is needed")
    return names


Names = Annotated[
    tuple[str, ...],
    Field(max_length=MOST_NAMES, fail_fast=True, json_schema_extra={"minItems": 1}),
    AfterValidator(_check_some),
]


def is_target(target: str, place: str) -> bool:
    """Return whether a target names this place, in full or by its last parts."""
    return f".{place}".endswith(f".{place_of(target)}")


def match_targets(
    targets: Sequence[str], places: Iterable[str], *, field: str = "target_modules"
) -> tuple[str, ...]:
    """Return the places, in their order, that a target names in full or by its last parts.

    A target that matches nothing is an `InvalidRequest`, which names the method's `field`: it
    would silently train less.
    """
    places = tuple(places)
    matched: set[str] = set()
    for target in targets:
        found = {place for place in places if is_target(target, place)}
        if not found:
            names = sorted({place.rpartition(".")[2] for place in places})
            raise InvalidRequest(
                f"{field}: {target!r} names no such layer of this base; "
                f"the names are {', '.join(names)}.",
                code="invalid_value",
                param=f"peft.{field}",
            )
        matched |= found
    return tuple(place for place in places if place in matched)


def shorten_targets(chosen: Sequence[str], places: Iterable[str]) -> tuple[str, ...]:
    """Return last names that match exactly the chosen places, or the places themselves."""
    names = tuple(sorted({place.rpartition(".")[2] for place in chosen}))
    return names if set(match_targets(names, places)) == set(chosen) else tuple(chosen)


def peft_name(place: str, tensor: str) -> str:
    """Return what PEFT files call a tensor of a place."""
    return f"{_PEFT_PREFIX}{path_of(place)}.{tensor}"


def places_in(names: Iterable[str], *, tensor: str) -> set[str]:
    """Return the places for which PEFT files with these names hold `tensor`."""
    return {
        place_of(name.removeprefix(_PEFT_PREFIX).removesuffix(f".{tensor}"))
        for name in names
        if name.startswith(_PEFT_PREFIX) and name.endswith(f".{tensor}")
    }


def refuse_settings(
    config: Mapping[str, Any], *, read: Iterable[str], allowed: Mapping[str, Sequence[Any]]
) -> None:
    """Raise `InvalidRequest` for the first setting of a PEFT file that would change its meaning.

    `read` names what the caller reads, `allowed` the values that others may have; whatever else is
    set to anything but nothing is refused, so that tomorrow's settings are not ignored either.
    """
    for name, value in sorted(config.items()):
        if name in _NEUTRAL_SETTINGS or name in read:
            continue
        if value not in allowed.get(name, ()) and value not in (None, False, [], {}, ""):
            raise InvalidRequest(
                f"This adapter was made with {name}={value!r}, which is not supported.",
                code="unsupported_adapter",
            )


def refuse_tensors(names: Collection[str]) -> None:
    """Raise `InvalidRequest` for a tensor that PEFT saves beside an adapter and nothing here reads.

    An embedding's update goes first: without the base's weight beside it, it is no better.
    """
    for ending, said in _OTHER_TENSORS.items():
        if found := [name for name in names if name.endswith(ending)]:
            raise InvalidRequest(f"{found[0]!r} is {said}.", code="unsupported_adapter")
