"""The cache of keys and values: what leaves a slot must not reach the slot's next owner."""

import torch

from tests.worker.engine.conftest import World
from worker.engine.blocks import Blocks, MixedAttention


def test_a_moved_row_leaves_nothing_to_the_next_owner_of_its_slot(world: World) -> None:
    """A row that is not a number moves from slot 3 to 1 and fails there; new rows fill all."""
    shape = world.backbone.shape
    blocks = Blocks(shape, rows=4, context=64, dtype=torch.float32, device=torch.device("cpu"))
    for cache_rkch in (*blocks.keys, *blocks.values):
        cache_rkch[3, :, :5] = torch.nan
    blocks.move(3, 1, length=5)
    assert all(cache_rkch[1, :, :5].isnan().all() for cache_rkch in blocks.keys)
    blocks.wipe(1, length=5)

    attention = MixedAttention(blocks, positions=[0, 0, 0, 0], spans=[])
    query_hth = torch.ones(shape.heads, 4, shape.head_dim)
    new_kth = torch.ones(shape.kv_heads, 4, shape.head_dim)
    output_thh = attention.attend(
        0, query_hth, new_kth, new_kth, scale=1.0, window=None, softcap=None
    )
    assert torch.equal(output_thh, torch.ones(4, shape.heads, shape.head_dim))
