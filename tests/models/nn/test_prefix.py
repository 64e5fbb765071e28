"""What stands before every sequence is the same however it is computed."""

import pytest
import torch

from models.nn.prefix import compile_in_pieces
from models.nn.terms import KeysValues, Terms
from tests.models.nn.families import compile_prefix, make_backbone, random_ids


@pytest.mark.parametrize("variant", ["llama", "gemma2"])
@pytest.mark.parametrize("static", [0, 5])
def test_pieces_give_what_one_forward_gives(variant: str, static: int) -> None:
    backbone = make_backbone(variant)
    shape = backbone.shape
    sides = torch.randn(shape.layers, 2, shape.kv_heads, 5, shape.head_dim)
    before = {layer: KeysValues(*sides[layer]) for layer in range(shape.layers if static else 0)}
    terms = Terms(prompt=torch.randn(4, shape.hidden), keys_values=before)
    ids = random_ids(13).tolist()
    whole = compile_prefix(backbone, terms, token_ids=ids)
    pauses, pieces = 0, compile_in_pieces(backbone, terms, token_ids=ids, rows=3)
    with torch.no_grad():
        while True:
            try:
                next(pieces)
            except StopIteration as end:
                found = end.value
                break
            pauses += 1
    assert whole is not None
    assert pauses == 5
    assert found.rows == whole.rows == static + 4 + 13
    assert found.token_ids == whole.token_ids
    torch.testing.assert_close(found.keys, whole.keys, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.values, whole.values, rtol=1e-4, atol=1e-4)


def test_nothing_stands_before_a_plain_adapter() -> None:
    assert compile_prefix(make_backbone("llama"), Terms()) is None
