"""Text as it streams: characters, stop strings, tokens."""

import pytest

from worker.engine.sampler import Drawn
from worker.engine.text import TextStream


def stream(pieces: list[bytes], **options) -> TextStream:
    return TextStream(bytes_of=lambda token: pieces[token], **options)


def play(pieces: list[bytes], **options) -> tuple[list[str], str]:
    text = stream(pieces, **options)
    shown = []
    for token in range(len(pieces)):
        shown.append(text.push(Drawn(token)).text)
        if text.stopped:
            return shown, ""
    return shown, text.finish().text


def test_characters_are_never_cut() -> None:
    euro = "€".encode()
    assert play([b"a", euro[:1], euro[1:2], euro[2:] + b"b"]) == (["a", "", "", "€b"], "")


def test_a_character_cut_short_is_replaced_at_the_end() -> None:
    assert play(["€".encode()[:2]]) == ([""], "\ufffd")


def test_bytes_that_are_no_text_do_not_hold_up_what_follows() -> None:
    assert play([b"\xff", b"ok"]) == (["\ufffd", "ok"], "")


@pytest.mark.parametrize(
    ("pieces", "stop", "shown"),
    [
        ([b"one ST", b"OP two"], ("STOP",), "one "),
        ([b"a", b"b", b"c", b"d"], ("cd", "bcx"), "ab"),
        ([b"xEN", b"D"], ("END", "xEND"), ""),
        ([b"aab"], ("ab",), "a"),
        ([b"aaa", b"ab"], ("aaab",), "a"),
        (["né€".encode()[:4], "né€".encode()[4:]], ("€",), "né"),
        ([b"nothing here"], ("STOP", ""), "nothing here"),
    ],
)
def test_stop_strings_are_found_across_tokens(
    pieces: list[bytes], stop: tuple[str, ...], shown: str
) -> None:
    parts, rest = play(pieces, stop=stop)
    assert "".join(parts) + rest == shown


def test_text_is_held_only_while_it_may_become_a_stop_string() -> None:
    assert play([b"a S", b"T", b"A", b"R"], stop=("STOP",)) == (["a ", "", "STA", "R"], "")
    assert play([b"S", b"T"], stop=("STOP",)) == (["", ""], "ST")


def test_tokens_come_with_the_text_they_begin_in() -> None:
    euro = "€".encode()
    text = stream([b"a", b"S", b"T", euro[:2], euro[2:]], stop=("STOP",), with_tokens=True)
    shown = [[t.id for t in text.push(Drawn(token)).tokens] for token in range(5)]
    assert shown == [[0], [], [], [], [1, 2, 3, 4]]


def test_tokens_of_a_stop_string_are_not_shown() -> None:
    text = stream([b"ab", b"cS", b"TOP", b"x"], stop=("STOP",), with_tokens=True)
    shown = [t.id for token in range(3) for t in text.push(Drawn(token)).tokens]
    assert text.stopped
    assert shown == [0, 1]


def test_token_bytes_are_exact() -> None:
    euro = "€".encode()
    text = stream([euro[:1], euro[1:]], with_tokens=True)
    tokens = [t for token in range(2) for t in text.push(Drawn(token, -1.0)).tokens]
    assert b"".join(bytes(t.bytes) for t in tokens) == euro
    assert [t.text for t in tokens] == ["\ufffd", "\ufffd\ufffd"]


def test_tokens_that_come_together_give_what_they_give_one_by_one() -> None:
    pieces = ["é".encode()[:1], "é".encode()[1:], b"<|end|>", b"b"]
    one_by_one, together = (stream(pieces, with_tokens=True) for _ in range(2))
    shown = [one_by_one.push(Drawn(token), invisible={2}) for token in range(4)]
    piece = together.push(*map(Drawn, range(4)), invisible={2})
    assert piece.text == "".join(one.text for one in shown) == "éb"
    assert piece.tokens == [token for one in shown for token in one.tokens]


def test_invisible_tokens_have_no_text() -> None:
    text = stream([b"<|end|>", b"a"], with_tokens=True)
    piece = text.push(Drawn(0), Drawn(1), invisible={0})
    assert piece.text == "a"
    assert [(t.id, t.silent) for t in piece.tokens] == [(0, True), (1, False)]
