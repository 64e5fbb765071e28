import threading
from pathlib import Path

import pytest

from core.errors import Corrupt, NotFound
from core.pace import pause_by
from core.store import MANIFEST, PIECE, Store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "adapter"
    made.mkdir()
    (made / "a.bin").write_bytes(b"weights" * 1000)
    (made / "b.json").write_text("{}")
    return made


def damage(store_root: Path, name: str) -> None:
    for path in store_root.rglob(name):
        path.write_bytes(b"not what was stored")


def test_a_file_comes_back_as_it_was(store: Store, tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(bytes(range(256)) * 9000)
    digest = store.put_file(tmp_path / "rows")
    assert store.put_file(tmp_path / "rows") == digest
    fetched = store.fetch_file(digest, tmp_path / "out" / "copy")
    assert fetched.read_bytes() == (tmp_path / "rows").read_bytes()
    store.delete(digest)
    store.delete(digest)
    with pytest.raises(NotFound):
        store.fetch_file(digest, tmp_path / "again")


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    named = tmp_path / "my größe 100%20 #1?"
    (tmp_path / "rows").write_bytes(b"{}")
    digest = Store(named.as_uri()).put_file(tmp_path / "rows")
    assert [path.name for path in named.rglob(digest)] == [digest]
    assert sorted(path.name for path in tmp_path.iterdir()) == [named.name, "rows"]


def test_changed_bytes_are_never_handed_out(store: Store, folder: Path, tmp_path: Path) -> None:
    blob = store.put_file(folder / "a.bin")
    tree = store.put_tree(folder)
    damage(tmp_path / "store", blob)
    damage(tmp_path / "store", "a.bin")
    with pytest.raises(Corrupt):
        store.fetch_file(blob, tmp_path / "copy")
    with pytest.raises(Corrupt):
        store.fetch_tree(tree, tmp_path / "tree")
    assert not (tmp_path / "copy").exists()
    assert not (tmp_path / "tree").exists()


def test_equal_folders_are_one_tree_and_a_changed_byte_is_another(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    first = store.put_tree(folder)
    assert store.put_tree(folder) == first
    (folder / "b.json").write_text("[]")
    second = store.put_tree(folder)
    assert second != first
    assert (store.fetch_tree(first, tmp_path / "one") / "b.json").read_text() == "{}"
    assert (store.fetch_tree(second, tmp_path / "two") / "b.json").read_text() == "[]"


def test_deleting_a_tree_leaves_others_with_equal_files_whole(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    first = store.put_tree(folder)
    (folder / "b.json").write_text("[]")
    second = store.put_tree(folder)
    store.delete_tree(first)
    store.delete_tree(first)
    with pytest.raises(NotFound):
        store.fetch_tree(first, tmp_path / "gone")
    assert sorted(path.name for path in store.fetch_tree(second, tmp_path / "two").iterdir()) == [
        "a.bin",
        "b.json",
    ]


@pytest.mark.parametrize("content", [b"", b"not what was stored", None])
def test_a_tree_without_a_sound_manifest_is_deleted_whole(
    store: Store, folder: Path, tmp_path: Path, content: bytes | None
) -> None:
    tree = tmp_path / "store" / "trees" / store.put_tree(folder)
    if content is None:
        (tree / MANIFEST).unlink()
    else:
        (tree / MANIFEST).write_bytes(content)
    store.delete_tree(tree.name)
    assert not tree.exists()


def test_a_bucket_works_like_a_folder(folder: Path, tmp_path: Path) -> None:
    bucket = Store("memory:///")
    tree = bucket.put_tree(folder)
    blob = bucket.put_file(folder / "a.bin")
    assert (bucket.fetch_tree(tree, tmp_path / "tree") / "b.json").read_text() == "{}"
    assert b"".join(bucket.stream(blob)) == (folder / "a.bin").read_bytes()
    bucket.delete_tree(tree)
    assert bucket.put_tree(folder) == tree
    assert bucket.read_files(tree).content["b.json"] == b"{}"


def test_a_tree_is_read_into_memory_and_verified(tmp_path: Path) -> None:
    store = Store((tmp_path / "store").as_uri())
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "a").write_bytes(b"x" * (2 * PIECE + 3))
    (folder / "empty").write_bytes(b"")
    (folder / "left").write_bytes(b"out")
    digest = store.put_tree(folder)
    files = store.read_files(digest, without={"left"})
    assert files.content == {"a": (folder / "a").read_bytes(), "empty": b""}
    files.verify()
    stored = tmp_path / "store" / "trees" / digest / "a"
    stored.write_bytes(b"y" + stored.read_bytes()[1:])
    damaged = store.read_files(digest)
    with pytest.raises(Corrupt):
        damaged.verify()
    stored.unlink()
    with pytest.raises(NotFound):
        store.read_files(digest)


def test_who_fetches_gives_way_between_pieces(store: Store, tmp_path: Path) -> None:
    folder, pauses = tmp_path / "large", list[int]()
    folder.mkdir()
    (folder / "file").write_bytes(bytes(3 * PIECE))
    digest = store.put_tree(folder)

    def fetch() -> None:
        pause_by(lambda: pauses.append(1))
        store.fetch_tree(digest, tmp_path / "copy")

    thread = threading.Thread(target=fetch)
    thread.start()
    thread.join()
    assert len(pauses) >= 3
