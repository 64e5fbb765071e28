"""Numbers that are the same each time, and tokenizers with real merges, trained on the spot."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = [
    "system user assistant\n\n  Hello there, how are you today?\n\nI am well, thank you.\n",
    "The answer is 42. What is the question?\n\n    indented text\n\tand tabs\n",
]


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Draw the same numbers whichever tests ran before in this process."""
    torch.manual_seed(0)


def _train(backend: Tokenizer, alphabet: list[str]) -> PreTrainedTokenizerFast:
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>", unk_token="<unk>"
    )


@pytest.fixture
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """As GPT-2's and SmolLM's: bytes, and words that carry the space before them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return _train(backend, pre_tokenizers.ByteLevel.alphabet())


@pytest.fixture
def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: the start of a text counts as a space."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Replace("\r", "")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence([decoders.Metaspace(prepend_scheme="first")])
    return _train(backend, [chr(code) for code in range(10, 127)])


@pytest.fixture(params=["byte_tokenizer", "metaspace_tokenizer"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """One that spells by bytes, and one in which a space stands for the start of a text."""
    return request.getfixturevalue(request.param)
