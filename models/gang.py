"""Which jobs may be trained together in one process, by what is known before they are trained."""

from models.nn.methods.base import Method
from models.spec import LoopSpec

STEP_TOKENS = 256
"""Larger steps fill the processor by themselves; together they would only wait for each other."""
FILE_BYTES = 4 * 1024 * 1024
"""Reading a larger file would hold the others up."""
_BYTES_A_TOKEN = 4


def gang_of(
    base: str, method: Method, loop: LoopSpec, *, rows: int, training_bytes: int, all_bytes: int
) -> str | None:
    """Return a word that jobs have in common which may be trained together; None for none.

    They have a base in one precision, learn by gradient without replacing its weights, and take
    small steps. A job that runs for a given time is alone, or it would get less for its time.
    The training file has `rows` rows in `training_bytes`; `all_bytes` is of all the job's files.
    """
    row_tokens = method.rows_before + training_bytes / max(rows, 1) / _BYTES_A_TOKEN
    step_tokens = loop.batch_size * row_tokens
    by_gradient = method.search_steps == 0 and method.shares_batch
    is_small = step_tokens <= STEP_TOKENS and all_bytes <= FILE_BYTES
    if not by_gradient or not is_small or loop.max_seconds is not None:
        return None
    return f"{base}/{loop.dtype}/{loop.quantization}"
