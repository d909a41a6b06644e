"""Folders that are whole or not there."""

from __future__ import annotations

import shutil

import pytest

from qlora_studio.engine.manifest import find_damage, remove, write_folder


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


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    write_folder(tmp_path / "whole", fill_with("one"))
    kind = type(tmp_path)
    rename = kind.rename

    def refuse_stage(self, target):
        if ".stage" in str(self):
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(kind, "rename", refuse_stage)
    with pytest.raises(PermissionError):
        write_folder(tmp_path / "whole", fill_with("two"))
    assert (tmp_path / "whole" / "a.txt").read_text() == "one" and names(tmp_path) == ["whole"]


@pytest.mark.parametrize(
    ("harm", "says"),
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
    ],
    ids=["flipped", "longer", "missing", "no manifest", "half manifest", "newer"],
)
def test_damage_is_named_by_file(tmp_path, harm, says):
    write_folder(tmp_path / "whole", fill_with("one"))
    harm(tmp_path / "whole")
    assert find_damage(tmp_path / "whole") == f"{tmp_path / 'whole'}/{says}"


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
