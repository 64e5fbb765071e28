import torch

from models.nn.loss import next_token_loss


def test_the_loss_is_a_float32_sum_over_rows():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 3.0]], dtype=torch.bfloat16)
    loss = next_token_loss(logits, torch.tensor([0, 0, 1]))
    expected = -logits.float().log_softmax(-1)[torch.arange(3), [0, 0, 1]].sum()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
