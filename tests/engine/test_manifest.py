"""Folders that are whole or not there."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil

import pytest

from qlora_studio.engine import manifest
from qlora_studio.engine.manifest import find_damage, remove, sweep, write_folder


def fill_with(text: str):
    def fill(stage) -> None:
        (stage / "a.txt").write_text(text)
        (stage / "b.txt").write_text("b")

    return fill


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_with_its_manifest_and_nothing_else_stays(tmp_path):
    write_folder(tmp_path / "whole", fill_with("one"))
    assert names(tmp_path) == ["whole"] and names(tmp_path / "whole") == ["MANIFEST.json", "a.txt", "b.txt"]
    assert find_damage(tmp_path / "whole") == ""


def test_a_second_writing_replaces_the_first(tmp_path):
    for text in ("one", "two"):
        write_folder(tmp_path / "whole", fill_with(text))
    assert (tmp_path / "whole" / "a.txt").read_text() == "two" and names(tmp_path) == ["whole"]


@pytest.mark.parametrize("there", [True, False], ids=["old one there", "nothing there"])
def test_a_failed_writing_leaves_what_was_there(tmp_path, there):
    if there:
        write_folder(tmp_path / "whole", fill_with("one"))

    def fail(stage) -> None:
        (stage / "a.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_folder(tmp_path / "whole", fail)
    assert names(tmp_path) == (["whole"] if there else [])
    assert not there or find_damage(tmp_path / "whole") == ""


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    """Both ways to put a folder in another's place: in one step, and as on a system that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(manifest, "exchange", lambda first, second: False)
    return request.param


def test_a_folder_in_place_is_there_at_every_instant(tmp_path, monkeypatch):
    """The process could be killed at any fault point: at each of them a whole folder stands in the place."""
    write_folder(tmp_path / "whole", fill_with("one"))
    seen = []
    monkeypatch.setattr(manifest, "fault", lambda point: seen.append((point, find_damage(tmp_path / "whole"))))
    write_folder(tmp_path / "whole", fill_with("two"))
    assert [point for point, _ in seen] == ["save.begin", "save.filled", "save.manifest", "save.synced", "save.placed"]
    assert {damage for _, damage in seen} == {""} and names(tmp_path) == ["whole"]


def test_without_an_exchange_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    write_folder(tmp_path / "whole", fill_with("one"))
    kind = type(tmp_path)
    rename = kind.rename

    def refuse_stage(self, target):
        if ".stage" in str(self):
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(manifest, "exchange", lambda first, second: False)
    monkeypatch.setattr(kind, "rename", refuse_stage)
    with pytest.raises(PermissionError):
        write_folder(tmp_path / "whole", fill_with("two"))
    assert (tmp_path / "whole" / "a.txt").read_text() == "one"
    sweep(tmp_path)
    assert names(tmp_path) == ["whole"]


POINTS = ("begin", "filled", "manifest", "synced", "swap", "placed", "trashed")


@pytest.mark.parametrize("point", [f"save.{point}" for point in POINTS])
@pytest.mark.parametrize("there", [True, False], ids=["old one there", "nothing there"])
def test_after_a_kill_at_any_point_a_sweep_leaves_one_whole_folder_or_none(tmp_path, monkeypatch, way, point, there):
    if there:
        write_folder(tmp_path / "whole", fill_with("one"))

    class Killed(BaseException):
        """What `except` and `finally` would tidy up after, a kill leaves: so nothing may tidy."""

    def kill(here):
        if here == point:
            monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
            monkeypatch.setattr(manifest, "_remove_if_empty", lambda folder: None)
            raise Killed

    monkeypatch.setattr(manifest, "fault", kill)
    with contextlib.suppress(Killed):
        write_folder(tmp_path / "whole", fill_with("two"))
    monkeypatch.undo()
    sweep(tmp_path)
    assert names(tmp_path) in (["whole"], [] if not there else ["whole"])
    assert not (tmp_path / "whole").exists() or find_damage(tmp_path / "whole") == ""


def test_a_sweep_deletes_half_folders_and_brings_back_only_whole_ones(tmp_path):
    write_folder(tmp_path / "a", fill_with("one"))
    write_folder(tmp_path / "b", fill_with("two"))
    (tmp_path / "b" / "a.txt").unlink()
    (tmp_path / ".stage" / "c").mkdir(parents=True)
    (tmp_path / ".trash").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).rename(tmp_path / ".trash" / name)
    sweep(tmp_path)
    assert names(tmp_path) == ["a"] and find_damage(tmp_path / "a") == ""


def test_a_file_that_the_disk_cannot_give_back_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path / "whole", fill_with("one"))

    def refuse(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(manifest, "sha256", refuse)
    assert find_damage(tmp_path / "whole").endswith("a.txt cannot be read: Input/output error.")


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "a.txt").write_text("onf"), "a.txt is not what was written."),
        (lambda folder: (folder / "a.txt").write_text("longer"), "a.txt is missing or of another size."),
        (lambda folder: (folder / "b.txt").unlink(), "b.txt is missing or of another size."),
        (lambda folder: (folder / "MANIFEST.json").unlink(), "MANIFEST.json is missing or unreadable."),
        (lambda folder: (folder / "MANIFEST.json").write_text("{"), "MANIFEST.json is missing or unreadable."),
        (
            lambda folder: (folder / "MANIFEST.json").write_text('{"schema": 9}'),
            "MANIFEST.json was written by another version (schema 9).",
        ),
        *(
            (lambda folder, text=text: (folder / "MANIFEST.json").write_text(text), "MANIFEST.json is no manifest.")
            for text in (
                "[]",
                "null",
                "7",
                '{"schema": 1}',
                '{"schema": 1, "files": []}',
                '{"schema": 1, "files": {"a.txt": 3}}',
                '{"schema": 1, "files": {"../a": {"bytes": 1}}}',
                '{"schema": 1, "files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}',
            )
        ),
        (lambda folder: (folder / "MANIFEST.json").write_bytes(b"\xff\xfe"), "MANIFEST.json is missing or unreadable."),
        (
            lambda folder: (folder / "MANIFEST.json").write_text("[" * 100_000),
            "MANIFEST.json is missing or unreadable.",
        ),
    ],
    ids=[
        "flipped",
        "longer",
        "missing",
        "no manifest",
        "half manifest",
        "newer",
        "list",
        "null",
        "number",
        "no files",
        "list of files",
        "number for a file",
        "way out",
        "absolute",
        "bytes",
        "deep",
    ],
)
def test_damage_is_named_by_file(tmp_path, harm, message):
    write_folder(tmp_path / "whole", fill_with("one"))
    harm(tmp_path / "whole")
    assert find_damage(tmp_path / "whole") == f"{tmp_path / 'whole'}/{message}"


def test_what_is_removed_is_out_of_sight_before_it_is_deleted(tmp_path, monkeypatch):
    write_folder(tmp_path / "whole", fill_with("one"))
    seen = []
    rmtree = shutil.rmtree

    def watched(path, **how):
        if path.exists():
            seen.append(str(path.relative_to(tmp_path)))
        rmtree(path, **how)

    monkeypatch.setattr(shutil, "rmtree", watched)
    remove(tmp_path / "whole")
    assert seen == [".trash/whole"] and names(tmp_path) == []


@pytest.mark.parametrize("error", [OSError("no library"), AttributeError("renameat2"), TypeError("None")])
def test_a_system_without_the_call_says_that_folders_did_not_change_places(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    for name in ("one", "two"):
        write_folder(tmp_path / name, fill_with(name))
    assert manifest.exchange(tmp_path / "one", tmp_path / "two") and find_damage(tmp_path / "one") == ""
    assert (tmp_path / "one" / "a.txt").read_text() == "two"
    assert not manifest.exchange(tmp_path / "one", tmp_path / "nowhere"), "the call is there and refuses"
    monkeypatch.setattr(manifest.ctypes, "CDLL", fail)
    assert manifest.exchange(tmp_path / "one", tmp_path / "two") is False
    assert (tmp_path / "one" / "a.txt").read_text() == "two"


def test_what_an_earlier_kill_left_in_the_trash_makes_room(tmp_path):
    def fill(words):
        return lambda stage: (stage / "file").write_text(words) and None

    write_folder(tmp_path / "one", fill("old"))
    (tmp_path / manifest.TRASH / "one" / "half").mkdir(parents=True)
    trash = manifest.move_away(tmp_path / "one")
    assert trash == tmp_path / manifest.TRASH / "one" and not (tmp_path / "one").exists()
    assert sorted(path.name for path in trash.iterdir()) == ["MANIFEST.json", "file"]


@pytest.mark.parametrize("there", [True, False], ids=["old one there", "nothing there"])
def test_where_the_disk_fails_after_the_folder_is_in_place_its_error_is_what_is_raised(
    tmp_path, monkeypatch, way, there
):
    if there:
        write_folder(tmp_path / "whole", fill_with("one"))
    sync = manifest.sync

    def refuse(path):
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        sync(path)

    monkeypatch.setattr(manifest, "sync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        write_folder(tmp_path / "whole", fill_with("two"))
    assert (tmp_path / "whole" / "a.txt").read_text() == "two" and not (tmp_path / ".stage").exists()


def test_every_file_the_folder_and_its_place_are_put_on_the_disk_in_that_order(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(manifest, "sync", lambda path: synced.append(str(path.relative_to(tmp_path))))
    write_folder(tmp_path / "whole", fill_with("one"))
    files = [f".stage/whole/{name}" for name in ("MANIFEST.json", "a.txt", "b.txt")]
    assert sorted(synced[:3]) == files and synced[3:] == [".stage/whole", "."]


def test_a_manifest_lists_each_file_with_its_size_and_hash(tmp_path):
    write_folder(tmp_path / "whole", fill_with("one"))
    assert json.loads((tmp_path / "whole" / "MANIFEST.json").read_text()) == {
        "schema": 1,
        "files": {
            "a.txt": {"bytes": 3, "sha256": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"},
            "b.txt": {"bytes": 1, "sha256": "3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d"},
        },
    }


def test_a_folder_that_is_not_there_is_removed_without_a_word_and_leaves_no_trash(tmp_path):
    remove(tmp_path / "nowhere")
    sweep(tmp_path)
    assert names(tmp_path) == []
