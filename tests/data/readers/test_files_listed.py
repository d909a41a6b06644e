"""Which files of a source are read, which are passed over and why, and what is said of one that cannot be."""

from __future__ import annotations

import errno
import gzip
import io
import zipfile
from pathlib import Path

import pytest

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.readers import files
from qlora_studio.data.readers.files import _reader, list_files, read_files, read_rows
from qlora_studio.data.readers.rows import Row, Tally, Unseen


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"a": 1}\n')
    return folder


def test_what_is_read_of_a_folder_and_what_is_passed_over(tmp_path):
    make(
        tmp_path,
        "b.jsonl",
        "A/c.JSONL",
        "A/.d/e.jsonl",
        ".f.jsonl",
        "g.pdf",
        "README.md",
        "A/dataset_info.json",
        "h.csv.gz",
    )
    (tmp_path / "l.jsonl").symlink_to(tmp_path / "b.jsonl")
    (tmp_path / "m").symlink_to(tmp_path / "A", target_is_directory=True)
    kept, passed_over = list_files(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in kept] == ["b.jsonl", "h.csv.gz", "A/c.JSONL"]
    assert passed_over == [
        "m/: a link or no plain file", ".f.jsonl: hidden", "g.pdf: not a kind of data", "l.jsonl: a link or no plain file",
        "A/.d/: hidden", "README.md: text beside tables", "A/dataset_info.json: it describes the data",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("a.md", "b.txt"), ["a.md", "b.txt"]),
        (("a.md", "metadata.json"), ["a.md", "metadata.json"]),
        (("METADATA.json", "b.csv"), ["b.csv"]),
        (("state.json",), ["state.json"]),
    ],
)
def test_texts_and_descriptions_are_data_where_there_is_no_table(tmp_path, names, kept):
    assert [path.name for path in list_files(make(tmp_path, *names))[0]] == kept


@pytest.mark.parametrize(("most", "fits"), [(4, True), (3, False)])
def test_a_folder_of_too_many_entries_is_refused(tmp_path, monkeypatch, most, fits):
    monkeypatch.setattr(files, "MAX_ENTRIES", most)
    make(tmp_path, "a.csv", "b.pdf", "c/d.csv", ".e/f.csv")  # a.csv, b.pdf, c/d.csv and .e/
    if fits:
        assert len(list_files(tmp_path)[0]) == 2
        return
    with pytest.raises(StudioError, match=f"This folder holds more than {most} files"):
        list_files(tmp_path)


def test_a_folder_without_data_says_what_it_holds(tmp_path):
    make(tmp_path, *(f"{name}.pdf" for name in "abcdefg"))
    with pytest.raises(StudioError) as caught:
        list(read_rows(tmp_path))
    (problem,) = caught.value.problems
    shown = "; ".join(f"{name}.pdf: not a kind of data" for name in "abcde")
    assert problem.message == f"This folder holds no file that can be read. Passed over: {shown}."
    assert problem.hint == f"Put in one of: {', '.join(files.SUFFIXES)}." and problem.where == str(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudioError, match=r"no file that can be read\. Put"):
        list(read_rows(tmp_path / "empty"))


def test_each_file_carries_its_name_and_whether_it_is_alone(tmp_path):
    make(tmp_path, "s/a.jsonl", "s/b/c.jsonl")
    tally = Tally()
    found = [(file.name, list(file.rows), file.alone) for file in read_files(tmp_path / "s", tally)]
    assert found == [
        ("a.jsonl", [Row("a.jsonl", 1, {"a": 1})], False), ("b/c.jsonl", [Row("b/c.jsonl", 1, {"a": 1})], False),
    ]  # fmt: skip
    assert (tally.rows, tally.passed_over) == (2, [])
    (alone,) = read_files(tmp_path / "s" / "a.jsonl", Tally())
    assert (alone.name, alone.alone) == ("a.jsonl", True)


def test_a_zip_lists_what_it_passes_over(tmp_path):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as made:
        for name in ("in/a.jsonl", "b.pdf", ".c.jsonl", "README.md", "state.json"):
            made.writestr(name, '{"a": 1}\n')
        made.writestr("d.jsonl.gz", gzip.compress(b'{"a": 2}\n'))
    tally = Tally()
    found = [(file.name, list(file.rows), file.alone) for file in read_files(tmp_path / "z.zip", tally)]
    assert found == [
        ("z.zip/d.jsonl.gz", [Row("z.zip/d.jsonl.gz", 1, {"a": 2})], False),
        ("z.zip/in/a.jsonl", [Row("z.zip/in/a.jsonl", 1, {"a": 1})], False),
    ]
    assert tally.passed_over == [
        "z.zip/.c.jsonl: hidden", "z.zip/README.md: text beside tables", "z.zip/b.pdf: not a kind of data",
        "z.zip/state.json: it describes the data",
    ]  # fmt: skip
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as made:
        made.writestr("b.pdf", "x")
    (unseen,) = read_rows(tmp_path / "y.zip")
    assert unseen.problem.message == "This zip file holds no file that can be read." and unseen.problem.where == "y.zip"


NAMED = "Files of the kind '{}' cannot be read."


@pytest.mark.parametrize(
    ("name", "head", "reader", "message"),
    [
        ("a.json", b"[1]", ".json", ""),
        ("a.JSONL", b"", ".jsonl", ""),
        ("a.json", b"PAR1", ".parquet", ""),
        ("a.jsonl", b"\x1f\x8b", ".jsonl", ""),
        ("a.csv.gz", b"\x1f\x8b", ".csv", ""),
        ("a.csv.gz", b"", ".csv", ""),
        ("a.csv.gz", b"a,b", "", "This is not a gzip file, although its name says so."),
        ("a.zip", b"a,b", "", "This is not a zip file, although its name says so."),
        ("a.pdf", b"", "", NAMED.format(".pdf")),
        ("a", b"", "", NAMED.format("no ending")),
        ("a.gz", b"\x1f\x8b", "", NAMED.format("no ending")),
    ],
)
def test_a_reader_is_found_by_name_after_a_look_at_the_first_bytes(name, head, reader, message):
    stream = io.BytesIO(b"")
    if not message:
        inner, found = _reader(stream, name, head)
        assert found is files.READERS[reader]
        assert (inner is stream) == (head != b"\x1f\x8b" and not name.endswith(".gz"))
        return
    with pytest.raises(StudioError) as caught:
        _reader(stream, name, head)
    assert (caught.value.problems[0].message, caught.value.problems[0].where) == (message, name)


@pytest.mark.parametrize(
    ("error", "reason"), [(OSError(errno.EACCES, "Permission denied"), "Permission denied"), (OSError("odd"), "odd")]
)
def test_a_file_that_cannot_be_read_is_said_with_the_reason(tmp_path, monkeypatch, error, reason):
    make(tmp_path, "a.jsonl")

    def fail(*arguments, **more):
        raise error

    expected = Unseen(Problem(f"This file cannot be read: {reason}.", "Check its rights.", "a.jsonl"))
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", fail)
        assert list(read_rows(tmp_path / "a.jsonl")) == [expected]
    monkeypatch.setitem(files.READERS, ".jsonl", fail)
    assert list(read_rows(tmp_path / "a.jsonl")) == [expected]


def test_a_reader_that_stopped_where_it_says_so_is_not_told_twice(tmp_path, monkeypatch):
    make(tmp_path, "a.jsonl")
    unseen, row = Unseen(Problem("Gone.")), Row("a.jsonl", 1, {})
    for items in ([unseen], [unseen, row], [row, unseen]):
        monkeypatch.setitem(files.READERS, ".jsonl", lambda stream, file, tally, items=items: iter(items))
        assert list(read_rows(tmp_path / "a.jsonl")) == items
    monkeypatch.setitem(files.READERS, ".jsonl", lambda stream, file, tally: iter([row]))
    lost = Unseen(Problem("The last 9 bytes of this file were not seen.", "Save the file again.", "a.jsonl"))
    assert list(read_rows(tmp_path / "a.jsonl")) == [row, lost]
