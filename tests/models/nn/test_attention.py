import pytest
import torch

from models.nn.attention import PackedCausal, causal_mask


def _plain(query, key, value, *, scale, window, softcap):
    """Attention as the textbook writes it, one head and one row at a time, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    group = len(query) // len(key)
    output = torch.zeros(query.shape[1], len(query), query.shape[2], dtype=torch.float64)
    for head in range(len(query)):
        for row in range(query.shape[1]):
            first = 0 if window is None else max(0, row - window + 1)
            seen = (head // group, slice(first, row + 1))
            scores = key[seen] @ query[head, row] * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            output[row, head] = scores.softmax(0) @ value[seen]
    return output.float()


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_each_sequence_attends_to_itself_as_written_out(heads, window, softcap):
    torch.manual_seed(0)
    query = torch.randn(heads[0], 12, 8, requires_grad=True)
    key, value = (torch.randn(heads[1], 12, 8, requires_grad=True) for _ in range(2))
    settings = {"scale": 0.4, "window": window, "softcap": softcap}
    output = PackedCausal([(0, 7), (7, 12)]).attend(0, query, key, value, **settings)
    expected = torch.cat(
        [
            _plain(query[:, part], key[:, part], value[:, part], **settings)
            for part in (slice(0, 7), slice(7, 12))
        ]
    )
    assert output.shape == (12, heads[0], 8)
    torch.testing.assert_close(output, expected, atol=2e-6, rtol=1e-5)
    weight = torch.randn_like(output)
    ours = torch.autograd.grad((output * weight).sum(), (query, key, value))
    theirs = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("sequences", [[(0, 3), (4, 6)], [(1, 3)], [(0, 3), (2, 5)], [(0, 0)]])
def test_sequences_must_tile_the_stream(sequences):
    with pytest.raises(ValueError, match=r"[Ss]equence"):
        PackedCausal(sequences)


def test_a_mask_hides_the_future_and_what_left_the_window():
    mask = causal_mask(torch.tensor([2, 5]), torch.arange(6), window=3)
    assert mask.int().tolist() == [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]]
