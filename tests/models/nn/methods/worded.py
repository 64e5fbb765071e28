"""A small task over a tiny base whose vocabulary has whole words, as methods may look at it."""

from functools import cached_property
from itertools import accumulate

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from models.nn.forward import Part, forward
from models.nn.loss import next_token_loss
from models.nn.problem import Pair
from models.nn.terms import Terms
from tests.models.nn.families import VOCAB, make_backbone

TEXTS = [
    "a good film with a warm heart => good",
    "a bad film with a cold heart => bad",
    "the warm film was good fun => good",
    "the cold film was no fun => bad",
]


def make_tokenizer():
    """Return a byte-level tokenizer of 97 ids, the most common words of the texts among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator([f" {text}" for text in TEXTS] * 4, trainer)
    return tokenizer


class Worded:
    """A `Problem` with real tokens, a real base and the real loss."""

    def __init__(self, method, *, variant="qwen2", batch_size=2):
        self.method = method
        self.batch_size = batch_size
        self.backbone = make_backbone(variant)
        self.tokenizer = make_tokenizer()
        self.checks = 0
        self.losses = 0

    @property
    def base(self):
        return self.backbone.base

    @cached_property
    def pairs(self):
        return [Pair(*text.split(" => ")) for text in TEXTS]

    def loss(self, t, *, step):
        self.losses += 1
        terms = Terms.of(self.method, t, self.base)
        texts = [TEXTS[(step + offset) % len(TEXTS)] for offset in range(self.batch_size)]
        sequences = [self.encode(text) for text in texts]
        ids = torch.tensor([token for sequence in sequences for token in sequence])
        lengths = tuple(map(len, sequences))
        states = forward(self.backbone, [Part(ids, lengths, terms)])
        ends = set(accumulate(lengths))
        rows = torch.tensor([row for row in range(len(ids)) if row + 1 not in ends])
        logits = states.logits(states.hidden_td[rows], rows)
        return next_token_loss(logits, ids[rows + 1]) / len(rows)

    def encode(self, text):
        return self.tokenizer.encode(text).ids

    def decode(self, ids):
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def check(self):
        self.checks += 1


def train(problem, tensors, *, steps, rate):
    """Return the losses before and after some plain AdamW steps on the same batch."""
    method = problem.method
    own = {name: t.clone().requires_grad_(method.is_trained(name)) for name, t in tensors.items()}
    groups = [
        {"params": [t], "lr": rate * method.learning_rate_scale(name)}
        for name, t in own.items()
        if t.requires_grad
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = problem.loss(own, step=0)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses
