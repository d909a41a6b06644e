"""Finished exports: listed, and deleted with nothing beside them."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from qlora_studio.cli.app import run as run_cli
from qlora_studio.core.errors import StudioError
from qlora_studio.home import Home
from qlora_studio.studio import Studio
from tests.runs.made import make_run, write_export


@pytest.fixture
def studio(home) -> Studio:
    return Studio(Home.find())


def export(studio: Studio, to: Path, *, named: bool = True) -> Path:
    if not (studio.home.runs / "one").exists():
        make_run(studio, "one", 1.0)
    return write_export(studio, "one", to, named=named)


def test_what_lies_where_it_was_written_is_listed_and_what_was_taken_away_is_not(studio, tmp_path):
    first, second = export(studio, tmp_path / "first"), export(studio, tmp_path / "second")
    assert {(one.run, one.kind, one.path, one.bytes) for one in studio.exports.written()} == {
        ("one", "gguf", str(first), 8), ("one", "gguf", str(second), 8),
    }  # fmt: skip
    first.rename(tmp_path / "elsewhere")
    assert [one.path for one in studio.exports.written("one")] == [str(second)]


@pytest.mark.parametrize("named", [True, False], ids=["this version", "an earlier one"])
def test_an_export_is_deleted_whole_and_nothing_beside_it(studio, tmp_path, named):
    folder = export(studio, tmp_path / "there" / "out", named=named)
    (tmp_path / "there" / "mine").touch()
    studio.exports.delete(str(folder))
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine"]
    assert studio.exports.written() == [] and studio.runs.open("one").name == "one"


@pytest.mark.parametrize("named", [True, False], ids=["this version", "an earlier one"])
def test_a_folder_that_holds_something_else_too_stays(studio, tmp_path, named):
    folder = export(studio, tmp_path / "out", named=named)
    (folder / "below" / "notes.txt").write_text("mine")
    with pytest.raises(StudioError, match="files in this folder are not what was exported"):
        studio.exports.delete(str(folder))
    assert (folder / "below" / "notes.txt").exists() and (folder / "a.gguf").exists()


def test_what_cannot_be_removed_is_said_with_its_place(studio, tmp_path, monkeypatch):
    folder = export(studio, tmp_path / "out")

    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(StudioError, match=r"could not be deleted whole: Permission denied\.") as raised:
        studio.exports.delete(str(folder))
    assert str(tmp_path / ".out.deleted") in str(raised.value)


def test_a_link_in_its_place_and_a_folder_nobody_exported_to_stay(studio, tmp_path):
    folder = export(studio, tmp_path / "out")
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(StudioError, match="not what was exported"):
        studio.exports.delete(str(folder))
    (tmp_path / "stranger").mkdir()
    with pytest.raises(StudioError, match="No run of yours was exported to this folder"):
        studio.exports.delete(str(tmp_path / "stranger"))
    assert (tmp_path / "elsewhere" / "a.gguf").exists() and (tmp_path / "stranger").exists()


def test_the_command_line_lists_warns_asks_and_deletes(studio, tmp_path, monkeypatch, capsys):
    folder = export(studio, tmp_path / "out")
    make_run(studio, "two", 1.0, model__base=str(folder))

    def call(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["qlora-studio", "exports", *arguments])
        assert run_cli() == 0
        return " ".join(capsys.readouterr().out.split())

    assert "one gguf" in call("list")
    monkeypatch.setattr("typer.confirm", lambda question: False)
    output = call("delete", str(folder))
    assert "Its weights are the base of two, which cannot be used without them." in output and "stays." in output
    assert folder.exists()
    assert "is deleted" in call("delete", "--yes", str(folder)) and not folder.exists()
    assert call("list").startswith("There are no exports.")


def test_a_folder_is_shown_by_the_systems_file_manager_and_only_one_of_ours(studio, tmp_path, monkeypatch):
    """A stand-in for xdg-open notes what it was given."""
    folder = export(studio, tmp_path / "out")
    programs = tmp_path / "programs"
    programs.mkdir()
    noted = tmp_path / "noted"
    (programs / "xdg-open").write_text(f'#!/bin/sh\nprintf %s "$1" > "{noted}"\n')
    (programs / "xdg-open").chmod(0o755)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("PATH", f"{programs}:/bin:/usr/bin")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(StudioError, match="There is no file manager to open it in here"):
        studio.exports.open_folder(str(folder))
    monkeypatch.setenv("DISPLAY", ":0")
    studio.exports.open_folder(str(folder))
    until = time.monotonic() + 20
    while not (noted.exists() and noted.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    assert noted.read_text() == str(folder)
    with pytest.raises(StudioError, match="No run of yours was exported"):
        studio.exports.open_folder(str(tmp_path))
