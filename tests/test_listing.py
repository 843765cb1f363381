"""What is kept of large image folders: walked once, checked once, and anew when anything has changed. Takes 1 s."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from image_folders import make_folder, open_folder

from wmlc.data import broken, files, listing
from wmlc.data.folders import Found, class_folders
from wmlc.data.listing import found_of_files, listed
from wmlc.errors import InputError


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The folders that are walked; few files count as many, and those just made as settled."""
    found, walk = list[Path](), listing.find_pictures

    def counted(folder: Path, *rest: object) -> Found:
        found.append(folder)
        return walk(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(listing, "find_pictures", counted)
    monkeypatch.setattr(listing, "MANY", 1)
    monkeypatch.setattr(listing, "SETTLED_NS", -(10**12))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return found


def twice(folder: Path, between: Callable[[], object] = lambda: None) -> tuple[Found, Found]:
    before = listed(folder, class_folders(folder))
    between()
    return before, listed(folder, class_folders(folder))


def test_a_folder_is_walked_once(walks: list[Path], tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data") / "train"
    before, after = twice(folder)
    assert after == before and len(after.paths) == 20 and walks == [folder]


@pytest.mark.parametrize("change", ["a new file", "one less", "another name", "a new class", "a file deeper"])
def test_a_changed_folder_is_walked_again(change: str, walks: list[Path], tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data") / "train"
    (folder / "cat" / "deep").mkdir()
    (folder / "cat" / "01.png").rename(folder / "cat" / "deep" / "01.png")

    def changed() -> None:
        source = folder / "cat" / "00.png"
        if change == "a new class":
            (folder / "eel").mkdir()
        elif change == "one less":
            source.unlink()
        elif change == "another name":
            source.rename(folder / "cat" / "first.png")
        else:
            where = folder / "cat" / ("deep" if change == "a file deeper" else "")
            (where / "99.png").write_bytes(source.read_bytes())
        os.utime(folder / "dog", ns=(1, 1))  # and back: only what changed tells

    listed(folder, class_folders(folder))
    os.utime(folder / "dog", ns=(1, 1))
    before, after = twice(folder, changed)
    assert len(walks) == 3 and (after.paths != before.paths or change == "a new class")


def test_nothing_is_kept_where_a_link_leads_elsewhere_or_a_folder_is_young(
    walks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder(tmp_path / "data") / "train"
    (tmp_path / "more").mkdir()
    (folder / "cat" / "more").symlink_to(tmp_path / "more")
    twice(folder)
    assert len(walks) == 2
    (folder / "cat" / "more").unlink()
    monkeypatch.setattr(listing, "SETTLED_NS", 2 * 10**9)
    twice(folder)
    assert len(walks) == 4


def test_nothing_is_kept_of_what_may_come_back_unseen(
    walks: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that could not be read, and the target of a link, change no folder when they are there again."""
    folder = make_folder(tmp_path / "data") / "train"
    (folder / "cat" / "deep").mkdir()
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: scan(place if Path(place).name != "deep" else tmp_path / "none"))
    before, _ = twice(folder)
    assert before.skipped == {"unreadable folder": 1} and len(walks) == 2
    monkeypatch.setattr(os, "scandir", scan)
    (folder / "cat" / "late.png").symlink_to(tmp_path / "late.png")
    before, after = twice(folder, lambda: (tmp_path / "late.png").write_bytes(b""))
    assert len(after.paths) == len(before.paths) + 1


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"form": 1, "classes": 3}', "nonsense"])
def test_what_is_damaged_is_walked_again(text: str, walks: list[Path], tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data") / "train"

    def damage() -> None:
        (file,) = (tmp_path / "cache" / "wmlc" / "listings").iterdir()
        file.write_text(text)

    before, after = twice(folder, damage)
    assert before == after and len(walks) == 2


def test_test_images_are_looked_at_once_until_one_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MANY", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "data", size=(80, 70))
    open_folder(root, image_size=72).check_test()
    picture = root / "test" / "cat" / "00.png"
    whole, changed = picture.read_bytes(), picture.stat().st_mtime_ns
    picture.write_bytes(b"\0" * len(whole))
    os.utime(picture, ns=(changed, changed))
    open_folder(root, image_size=72).check_test()  # by all that is looked at it is the same file
    os.utime(picture, ns=(changed + 1, changed + 1))
    for _ in range(2):  # and what is broken is not kept as good
        with pytest.raises(InputError, match=r"00\.png"):
            open_folder(root, image_size=72).check_test()


def test_what_is_kept_hangs_on_what_was_asked_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a").write_text("a")
    paths = [str(tmp_path / "a")]
    assert found_of_files("checked", paths, "grey", lambda: "found") == "found"
    assert found_of_files("checked", paths, "grey", lambda: "anew") == "found"
    for what, how in (("checked", "colour"), ("broken", "grey")):
        assert found_of_files(what, paths, how, lambda: "anew") == "anew"
    for file in (tmp_path / "cache").rglob("checked/*"):
        file.write_text("dam")
    assert found_of_files("checked", paths, "grey", lambda: "anew") == "anew"
    packed = ["set\0test\0image\0000", "set\0test\0image\0001"]
    assert found_of_files("checked", packed, "grey", lambda: "held", paths) == "held"
    assert found_of_files("checked", packed[1:], "grey", lambda: "anew", paths) == "anew"
    (tmp_path / "a").write_text("another")
    assert found_of_files("checked", packed, "grey", lambda: "anew", paths) == "anew"
    assert found_of_files("checked", [*paths, str(tmp_path / "gone")], "grey", lambda: "gone") == "gone"


def test_what_could_not_be_read_for_a_moment_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root, fault = make_folder(tmp_path / "data"), broken._fault
    monkeypatch.setattr(broken, "_fault", lambda path: "Input/output error" if path.endswith("03.png") else fault(path))
    for whole in (18, 20):
        record = open_folder(root, skip_broken=True).record
        assert record.train + record.held_out == whole
        monkeypatch.setattr(broken, "_fault", fault)


@pytest.mark.parametrize("size", [(80, 70), (16, 16)], ids=["files", "memory"])
def test_broken_pictures_are_named_and_refused_or_skipped_and_counted(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "data", size=size)
    for name in ("train/cat/03.png", "test/dog/01.png"):
        (root / name).write_bytes((root / name).read_bytes()[:60])
    options = {"image_size": 72} if size[0] > 64 else {}
    with pytest.raises(InputError, match=r"01\.png"):
        open_folder(root, **options).check_test()
    decoded = list[str]()
    fault = broken._fault
    monkeypatch.setattr(broken, "_fault", lambda path: decoded.append(path) or fault(path))
    for _ in range(2):  # the second time only what was broken is decoded to find out
        data = open_folder(root, skip_broken=True, **options)
        data.check_test()
        assert (data.record.train + data.record.held_out, data.test_count()) == (19, 5)
        assert sum(len(labels) for _, labels in data.test_batches(2)) == 5
        assert sum(len(labels) for _, labels in data.train_batches(1, 0)) == data.record.train
        said = capsys.readouterr().err
        assert "skipped 1 broken picture of 20 in" in said and "03.png" in said
        assert "skipped 1 broken picture of 6 in" in said and "01.png" in said
    assert len(decoded) == 26 + 2 * 2


def test_a_class_of_broken_pictures_alone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "data", train=2)
    for picture in (root / "train" / "cat").iterdir():
        picture.write_bytes(b"no picture")
    with pytest.raises(InputError, match="has no images in cat"):
        _ = open_folder(root, skip_broken=True).record
