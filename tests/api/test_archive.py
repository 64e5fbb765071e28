"""Zips of every kind of ill will, each refused before anything of it is used."""

import io
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from api.services import archive
from api.services.archive import unpack
from core.errors import InvalidRequest, TooLarge
from core.settings import MEBIBYTE

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
GOOD = {CONFIG: b"{}", TENSORS: b"tensors"}


@pytest.fixture
def send(tmp_path: Path) -> Callable[..., archive.Unpacked]:
    """Unpack bytes, or a zip of these entries, into the folder `out`."""
    (tmp_path / "out").mkdir()

    def unpacked(content: bytes | dict[str, bytes], limit: int = MEBIBYTE) -> archive.Unpacked:
        path = tmp_path / "sent.zip"
        path.write_bytes(content if isinstance(content, bytes) else zipped(content))
        return unpack(path, tmp_path / "out", limit=limit)

    return unpacked


def zipped(entries: dict[str, bytes] | list[tuple[zipfile.ZipInfo | str, bytes]]) -> bytes:
    target = io.BytesIO()
    pairs = entries.items() if isinstance(entries, dict) else entries
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in pairs:
            opened.writestr(name, content)
    return target.getvalue()


def entry(name: str, *, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


@pytest.mark.parametrize("top", ["", "my adapter/", "über/"])
def test_the_files_of_an_adapter_are_kept_and_others_named(send, tmp_path: Path, top: str) -> None:
    files = {f"{top}{name}": content for name, content in GOOD.items()}
    others = {f"{top}README.md": b"#", f"{top}deep/{CONFIG}": b"x", f"__MACOSX/{top}._x": b""}
    found = send({**files, **others})
    assert sorted(found.kept) == [CONFIG, TENSORS]
    assert found.ignored == tuple(sorted(others))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == GOOD


@pytest.mark.parametrize(
    "name",
    [
        "../evil", "a/../../evil", "/etc/passwd", "..\\evil", "C:\\evil", "C:evil", "\\\\host\\x",
        ".", "a\x01b", "a\x00b",
    ],
)  # fmt: skip
def test_names_that_lead_out(send, tmp_path: Path, name: str) -> None:
    held = "aXb" if "\x00" in name else name  # the standard writer cuts a name at NUL
    content = zipped({**GOOD, held: b"evil"}).replace(held.encode(), name.encode())
    with pytest.raises(InvalidRequest) as refused:
        send(content)
    assert refused.value.code == "invalid_archive"
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices(send, kind: int) -> None:
    link = entry(TENSORS, mode=kind | 0o777)
    with pytest.raises(InvalidRequest, match="link") as refused:
        send(zipped([(CONFIG, b"{}"), (link, b"/etc/passwd")]))
    assert refused.value.code == "invalid_archive"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_name_twice(send) -> None:
    with pytest.raises(InvalidRequest, match="twice"):
        send(zipped([*GOOD.items(), (TENSORS, b"others")]))


def test_two_adapters_in_one(send) -> None:
    with pytest.raises(InvalidRequest, match="2 folders"):
        send({f"{top}/{name}": b"{}" for top in "ab" for name in GOOD})


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.pkl", "deep/x.PTH", "x.ckpt"])
def test_pickles_are_refused_unread_with_the_way_out(send, name: str) -> None:
    with pytest.raises(InvalidRequest, match="safetensors") as refused:
        send({CONFIG: b"{}", name: b"\x80\x04."})
    assert refused.value.code == "unsafe_format"
    with pytest.raises(InvalidRequest, match="pickle"):
        send({**GOOD, name: b"\x80\x04."})


@pytest.mark.parametrize(
    "entries",
    [{}, {CONFIG: b"{}"}, {TENSORS: b""}, {f"a/b/{n}": b"" for n in GOOD}, {"a/": b""}],
)
def test_no_adapter_in_it(send, entries: dict[str, bytes]) -> None:
    with pytest.raises(InvalidRequest) as refused:
        send(entries)
    assert refused.value.code == "invalid_adapter"


def test_many_entries(send) -> None:
    with pytest.raises(InvalidRequest, match="256"):
        send({**GOOD, **{f"x{number}": b"" for number in range(300)}})


def test_a_directory_of_millions_is_not_read(send) -> None:
    """30 000 empty entries: 1.6 MB of directory, which would grow to far more in memory."""
    with pytest.raises(InvalidRequest, match="list of entries"):
        send(zipped({**GOOD, **{f"entry-{number}": b"" for number in range(30_000)}}))


def test_more_than_the_limit_comes_out(send, tmp_path: Path) -> None:
    with pytest.raises(TooLarge) as refused:
        send({**GOOD, TENSORS: bytes(2 * MEBIBYTE)})
    assert refused.value.code == "adapter_too_large"
    written = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert written <= MEBIBYTE


def test_the_limit_is_for_all_files_together(send) -> None:
    with pytest.raises(TooLarge):
        send({CONFIG: bytes(700_000), TENSORS: bytes(700_000)})


def test_a_file_of_too_many_names(send) -> None:
    header = bytes(MEBIBYTE + 1)
    tensors = len(header).to_bytes(8, "little") + header
    with pytest.raises(TooLarge, match="header"):
        send({**GOOD, TENSORS: tensors}, limit=8 * MEBIBYTE)


def test_a_file_that_is_cut_off_is_the_engines_to_refuse(send) -> None:
    tensors = (2 * MEBIBYTE).to_bytes(8, "little") + b"{}"
    assert sorted(send({**GOOD, TENSORS: tensors}).kept) == [CONFIG, TENSORS]


def test_a_bomb_is_known_by_its_ratio(send) -> None:
    with pytest.raises(InvalidRequest, match="200 times"):
        send({**GOOD, TENSORS: bytes(17 * MEBIBYTE)}, limit=64 * MEBIBYTE)


def test_a_size_that_lies_gives_no_more_than_it_says(send) -> None:
    """The header says 7 bytes; the stream holds a mebibyte."""
    content = bytearray(zipped({CONFIG: b"{}", TENSORS: bytes(MEBIBYTE)}))
    directory = content.rfind(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<L", 7)
    with pytest.raises(InvalidRequest) as refused:
        send(bytes(content))
    assert refused.value.code == "invalid_archive"


def test_encrypted_and_unusual_entries(send) -> None:
    content = bytearray(zipped(GOOD))
    directory = content.rfind(b"PK\x01\x02")
    content[directory + 8] |= 1
    with pytest.raises(InvalidRequest, match="encrypted"):
        send(bytes(content))
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_LZMA) as opened:
        opened.writestr(CONFIG, b"{}")
    with pytest.raises(InvalidRequest, match="deflate"):
        send(target.getvalue())


def test_no_cut_and_no_flipped_byte_gets_out_as_another_error(send, tmp_path: Path) -> None:
    whole = zipped({CONFIG: b'{"a": 1}', TENSORS: bytes(range(256))})
    flipped = [
        whole[:number] + bytes([whole[number] ^ 0x55]) + whole[number + 1 :]
        for number in range(len(whole))
    ]
    for content in [*flipped, *(whole[:length] for length in range(0, len(whole), 7))]:
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        try:
            send(content)
        except (InvalidRequest, TooLarge):
            continue
