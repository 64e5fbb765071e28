"""Rotary frequencies that depend on nothing but the base.

Transformers chooses those of two kinds anew in each forward, by the farthest position in it: of
`longrope` long ones if it is beyond the length of the first training (Phi-3-mini-128k), of
`dynamic` the wider ones the farther it is. So a row would be rotated by what stands beside it, and
its keys otherwise than the ones of its own that are cached. Here they stay what they are for
positions up to that length, and no base with `longrope` has a longer context.
"""

from collections.abc import Iterator, Mapping
from typing import Any


def context_of(config: Any) -> int:
    """Return how many positions a network has, all of one set of frequencies."""
    bounds: list[int] = [
        settings["original_max_position_embeddings"]
        for settings in _rotations(config)
        if settings["rope_type"] == "longrope"
    ]
    return min([int(config.max_position_embeddings), *bounds])


def fix_frequencies(network: Any) -> None:
    """Let the frequencies of a network be those that it was made with."""
    for module in network.modules():
        kind = getattr(module, "rope_type", None)
        if isinstance(kind, Mapping):
            module.rope_type = dict.fromkeys(kind, "default")
        elif kind is not None:
            module.rope_type = "default"


def _rotations(config: Any) -> Iterator[Mapping[str, Any]]:
    """Go through a network's settings of rotary embeddings: one, or one for each type of layer."""
    settings = getattr(config, "rope_parameters", None) or {}
    if "rope_type" in settings:
        yield settings
    else:
        yield from (one for one in settings.values() if isinstance(one, Mapping))
