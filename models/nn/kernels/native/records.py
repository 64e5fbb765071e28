"""The records of `source/step_types.h`, and a stretch of steps, field by field.

`batch.py` fills `Group` and `Span`.
"""

import ctypes
from ctypes import Structure, c_double, c_float, c_int32, c_int64, c_void_p
from typing import Any, ClassVar

PLACES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SITES = (PLACES[:3], PLACES[3:4], PLACES[4:6], PLACES[6:])
"""Places that read the same rows."""
BY_TURNS = SITES[2]
"""Places of which a product has panels by turns."""
SUBLAYERS = ("self_attn", "mlp")
NORMS = ("input_layernorm", "post_attention_layernorm")
ACTIVATIONS = ("gelu", "relu", "silu", "tanh")


class _Record(Structure):
    _fields_: ClassVar[Any]


class Down(_Record):
    """The low-rank inputs of one site, joined."""

    _fields_ = [("packed", c_void_p), ("scales", c_void_p), ("ranks", c_int64)]


class Place(_Record):
    """What an adapter does at one linear place."""

    _fields_ = [
        ("weight", c_void_p),
        ("up", c_void_p),
        ("rank", c_int64),
        ("stride", c_int64),
        ("behind", c_int64),
        ("first", c_int64),
        ("input_scale", c_void_p),
        ("output_scale", c_void_p),
        ("bias", c_void_p),
    ]


class Bottleneck(_Record):
    """A bottleneck of one sublayer."""

    _fields_ = [
        ("down", c_void_p),
        ("up", c_void_p),
        ("down_bias", c_void_p),
        ("up_bias", c_void_p),
        ("width", c_int64),
        ("activation", c_int32),
        ("reads_input", c_int32),
        ("scale", c_float),
        ("reserved", c_float),
    ]


class Second(_Record):
    """A second attention of one layer."""

    _fields_ = [
        ("keys", c_void_p),
        ("values", c_void_p),
        ("gate", c_void_p),
        ("count", c_int64),
    ]


class AdapterLayer(_Record):
    """An adapter in one layer."""

    _fields_ = [
        ("downs", Down * len(SITES)),
        ("places", Place * len(PLACES)),
        ("bottlenecks", Bottleneck * len(SUBLAYERS)),
        ("second", Second),
        ("gains", c_void_p * len(NORMS)),
    ]


class Adapter(_Record):
    """An adapter."""

    _fields_ = [
        ("layers", c_void_p),
        ("head_down", Down),
        ("head", Place),
        ("final_gain", c_void_p),
    ]


class Matrix(_Record):
    """A weight of the base; see `source/step_types.h` for the kinds of panels."""

    _fields_ = [
        ("panels", c_void_p),
        ("scales", c_void_p),
        ("coded_stride", c_int64),
        ("rounded", c_int64),
    ]


class Layer(_Record):
    """A layer of the base, with its cache."""

    _fields_ = [
        *((name, Matrix) for name in ("qkv", "o", "gate_up", "down")),
        *((f"{name}_bias", c_void_p) for name in ("qkv", "o", "gate_up", "down")),
        ("gains", c_void_p * len(NORMS)),
        ("keys", c_void_p),
        ("values", c_void_p),
    ]


class Screen(_Record):
    """Which tokens may be a row's likeliest, by a head in 8 bits; `screen.py` makes one."""

    _fields_ = [
        ("panels", c_void_p),
        ("order", c_void_p),
        *((name, c_int64) for name in ("exact", "coarse", "stride")),
        ("slack", c_float),
        ("reserved", c_float),
    ]


class Model(_Record):
    """The base."""

    _fields_ = [
        ("layers", c_void_p),
        ("embedding", c_void_p),
        ("head", Matrix),
        ("screen", Screen),
        *((name, c_void_p) for name in ("head_bias", "final_gain", "cosines", "sines")),
        *(
            (name, c_int64)
            for name in (
                "depth",
                "hidden",
                "heads",
                "key_heads",
                "head_size",
                "inner",
                "vocabulary",
                "positions",
            )
        ),
        ("epsilon", c_float),
        ("scale", c_float),
    ]


class Batch(_Record):
    """The rows of one step."""

    _fields_ = [
        ("rows", c_int64),
        *((name, c_void_p) for name in ("ids", "slots", "positions", "owners", "groups")),
        ("group_count", c_int64),
        ("spans", c_void_p),
        ("span_count", c_int64),
        ("hidden", c_void_p),
        ("read", c_int64),
        *((name, c_void_p) for name in ("read_rows", "read_owners", "read_groups")),
        ("read_group_count", c_int64),
        ("wanted", c_int64),
        *((name, c_void_p) for name in ("wanted_rows", "targets", "wanted_groups")),
        ("wanted_group_count", c_int64),
        ("logits", c_void_p),
        ("likeliest", c_void_p),
        ("most_ranks", c_int64),
        ("most_width", c_int64),
        ("scales_inputs", c_int64),
        ("replaces_weights", c_int64),
    ]


class Stretch(_Record):
    """Steps one behind the other; it is that of `source/step_stretch.cpp`."""

    _fields_ = [
        ("most", c_int64),
        ("seconds", c_double),
        *((name, c_void_p) for name in ("ids", "positions", "spans", "drawn", "ends")),
        ("end_count", c_int64),
        ("called", c_void_p),
    ]


def address(record: Structure | ctypes.Array[Any]) -> int:
    """Return where a record or an array of them lies; the caller keeps it alive."""
    return ctypes.addressof(record)
