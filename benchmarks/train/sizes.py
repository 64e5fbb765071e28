"""How much is measured: enough for medians, or what fits into ten minutes."""

from dataclasses import dataclass
from math import inf

from benchmarks.train.compare import Layout

PADDED = Layout(8)
FREE = Layout(8, "free")


@dataclass(frozen=True)
class Size:
    """Steps and repeats of each part."""

    trial_steps: int
    exact_steps: int
    chat_layouts: tuple[Layout, ...]
    chat_steps: int
    chat_repeats: int
    fixed_steps: int
    fixed_repeats: int
    fixed_casts: tuple[bool, ...]
    fixed_parts: tuple[int, ...]
    """Micro-batches of a step that the peer tries."""
    memory_casts: tuple[bool, ...]
    memory_shapes: int
    kind_steps: int
    kind_repeats: int
    kind_layouts: tuple[Layout, ...]
    jobs_run_separately: int
    gang_repeats: int
    patience: float = inf
    """Seconds that a round of both sides may take for another one to follow."""
    rows_per_step: int = 8


QUICK_SIZE = Size(
    trial_steps=2,
    exact_steps=0,
    chat_layouts=(PADDED, FREE),
    chat_steps=5,
    chat_repeats=2,
    fixed_steps=3,
    fixed_repeats=2,
    fixed_casts=(True,),
    fixed_parts=(1,),
    memory_casts=(True,),
    memory_shapes=1,
    kind_steps=3,
    kind_repeats=1,
    kind_layouts=(PADDED,),
    jobs_run_separately=1,
    gang_repeats=1,
    patience=15.0,
)
FULL_SIZE = Size(
    trial_steps=3,
    exact_steps=2,
    chat_layouts=(PADDED, FREE, Layout(8, autocast=False), Layout(4)),
    chat_steps=16,
    chat_repeats=5,
    fixed_steps=6,
    fixed_repeats=5,
    fixed_casts=(True, False),
    fixed_parts=(1, 2),
    memory_casts=(True, False),
    memory_shapes=2,
    kind_steps=6,
    kind_repeats=3,
    kind_layouts=(PADDED, Layout(8, autocast=False)),
    jobs_run_separately=8,
    gang_repeats=2,
)
