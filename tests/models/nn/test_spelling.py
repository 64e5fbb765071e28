"""The bytes of every token, of tokenizers that spell by bytes and by pieces of text."""

import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from models.nn.chat import Renderer


def test_spellings_join_to_the_text(tokenizer):
    renderer = Renderer(tokenizer)
    text = "Hello there, how\n  are you"
    joined = b"".join(renderer.spellings[index] for index in renderer.encode(text)).decode()
    assert joined.strip() == text
    assert renderer.spellings[renderer.eos_id] == b"<|im_end|>"


def test_every_token_has_its_bytes(tokenizer):
    """Those that are characters of their own decode to what they are spelled with."""
    renderer = Renderer(tokenizer)
    assert sorted(renderer.spellings) == list(range(len(tokenizer)))
    for index, piece in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer)))):
        if piece.isascii():
            assert renderer.spellings[index] == piece.encode()


def test_a_piece_beyond_the_byte_alphabet_is_plain_text(byte_tokenizer):
    """As its decoder has it: a base with such pieces is served all the same."""
    backend = json.loads(byte_tokenizer.backend_tokenizer.to_str())
    backend["model"]["vocab"] |= {"caf\u4e00": len(byte_tokenizer)}
    beside = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        eos_token=byte_tokenizer.eos_token,
    )
    renderer = Renderer(beside)
    (own,) = (index for index, piece in renderer.spellings.items() if piece[:3] == b"caf")
    assert renderer.spellings[own].decode() == renderer.decode([own]) == "caf\u4e00"
