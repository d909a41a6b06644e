"""Archives to the byte: how far a stream may grow, which entries are passed over, which are refused."""

from __future__ import annotations

import gzip
import io
import zipfile

import pytest

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.readers import archive
from qlora_studio.data.readers.archive import _Bounded, _check_entry, _Counted, _passed_over, open_gzip, open_zip


class Source(io.BytesIO):
    """Bytes that end in an error where one is given."""

    error: Exception | None = None

    def read(self, size=-1):
        if self.error:
            raise self.error
        return super().read(size)


def bounded(data, packed=1, budget=None, error=None):
    source = Source(data)
    source.error = error
    return _Bounded(source, "f", lambda: packed, budget if budget is not None else [1 << 40])


TRUST = "Unpack it yourself if you trust it."


@pytest.mark.parametrize(
    ("from_bytes", "packed", "size", "refused"),
    [(10, 0, 10, False), (10, 0, 11, True), (10, 1, 100, False), (10, 1, 101, True), (1000, 1, 1000, False)],
)
def test_a_stream_grows_a_hundredfold_and_no_further(monkeypatch, from_bytes, packed, size, refused):
    monkeypatch.setattr(archive, "_RATIO_FROM_BYTES", from_bytes)
    stream = bounded(b"x" * size, packed)
    if not refused:
        assert stream.read() == b"x" * size
        return
    with pytest.raises(StudioError) as caught:
        stream.read()
    assert caught.value.problems == (Problem("This file unpacks to more than 100 times its size.", TRUST, "f"),)


def test_all_entries_together_have_one_bound():
    budget = [5]
    assert bounded(b"abc", budget=budget).read() == b"abc" and budget == [2]
    assert bounded(b"de", budget=budget).read() == b"de" and budget == [0]
    with pytest.raises(StudioError) as caught:
        bounded(b"f", budget=budget).read()
    assert caught.value.problems == (Problem("This file unpacks to more than 2 GB.", TRUST, "f"),)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(OSError("no luck."), "no luck"), (EOFError(), "it is broken"), (zipfile.BadZipFile("Bad CRC-32"), "Bad CRC-32")],
)
def test_what_cannot_be_unpacked_is_said_in_its_own_words(error, reason):
    with pytest.raises(StudioError) as caught:
        bounded(b"", error=error).read()
    assert caught.value.problems == (Problem(f"This file cannot be unpacked: {reason}.", "Save it again.", "f"),)


def test_gzip_counts_what_was_read_of_it():
    data = gzip.compress(b"hello " * 1000)
    counted = _Counted(io.BytesIO(data))
    assert (counted.bytes, counted.read(3), counted.bytes, counted.read(), counted.bytes) == (
        0,
        data[:3],
        3,
        data[3:],
        len(data),
    )
    assert open_gzip(io.BytesIO(data), "f").read() == b"hello " * 1000


def zipped(*names, **more):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as made:
        for name in names:
            made.writestr(name, f"in {name}")
    return memory


def test_entries_come_by_name_and_hidden_ones_are_passed_over():
    memory = zipped("b/z.txt", "a.txt", "b/", ".git/x", "b/.hid", "__MACOSX/a.txt", "c__MACOSX/a.txt")
    found = [(name, entry.read() if entry else None, reason) for name, entry, reason in open_zip(memory, "f.zip")]
    assert found == [
        (".git/x", None, "hidden"),
        ("__MACOSX/a.txt", None, "hidden"),
        ("a.txt", b"in a.txt", ""),
        ("b/.hid", None, "hidden"),
        ("b/z.txt", b"in b/z.txt", ""),
        ("c__MACOSX/a.txt", b"in c__MACOSX/a.txt", ""),
    ]


@pytest.mark.parametrize(
    ("mode", "reason"), [(0o120777, "a link"), (0o100644, ""), (0, ""), (0o040755, ""), (0o160000, ""), (0o020000, "")]
)
def test_a_link_is_passed_over(mode, reason):
    entry = zipfile.ZipInfo("a.txt")
    entry.external_attr = mode << 16 | 0x20
    assert _passed_over(entry) == reason


@pytest.mark.parametrize(
    ("count", "message"),
    [(2, ""), (3, "This zip file holds more than 2 entries."), (0, "This zip file holds no file.")],
)
def test_a_zip_holds_some_entries_and_not_too_many(monkeypatch, count, message):
    monkeypatch.setattr(archive, "MAX_ENTRIES", 2)
    memory = zipped("folder/", *(f"{number}.txt" for number in range(count)))
    if not message:
        assert len(list(open_zip(memory, "f.zip"))) == count
        return
    with pytest.raises(StudioError) as caught:
        list(open_zip(memory, "f.zip"))
    assert (caught.value.problems[0].message, caught.value.problems[0].where) == (message, "f.zip")


OUT = "This entry's path leads out of the zip file."
LOCKED = "This entry is locked with a password."
GROWS = "This file unpacks to more than 100 times its size."


@pytest.mark.parametrize(
    ("name", "flags", "size", "packed", "message"),
    [
        ("a.txt", 0, 10, 1, ""),
        ("a..b/..c.txt", 0, 10, 1, ""),
        ("a/b:c.txt", 0, 10, 1, ""),
        ("/a.txt", 0, 10, 1, OUT),
        ("a/../b.txt", 0, 10, 1, OUT),
        ("a\\..\\b.txt", 0, 10, 1, OUT),
        ("C:/a.txt", 0, 10, 1, OUT),
        ("a.txt", 1, 10, 1, LOCKED),
        ("a.txt", 9, 10, 1, LOCKED),
        ("a.txt", 2, 10, 1, ""),
        ("a.txt", 0, 50, 0, ""),
        ("a.txt", 0, 51, 0, GROWS),
        ("a.txt", 0, 100, 1, ""),
        ("a.txt", 0, 101, 1, GROWS),
    ],
)
def test_a_dangerous_entry_is_refused(monkeypatch, name, flags, size, packed, message):
    monkeypatch.setattr(archive, "_RATIO_FROM_BYTES", 50)
    entry = zipfile.ZipInfo(name)
    entry.flag_bits, entry.file_size, entry.compress_size = flags, size, packed
    if not message:
        _check_entry(entry, "f.zip")
        return
    with pytest.raises(StudioError) as caught:
        _check_entry(entry, "f.zip")
    assert (caught.value.problems[0].message, caught.value.problems[0].where) == (message, f"f.zip/{name}")


def test_what_is_no_zip_is_refused():
    with pytest.raises(StudioError) as caught:
        list(open_zip(io.BytesIO(b"PK\x03\x04"), "f.zip"))
    assert caught.value.problems == (
        Problem("This zip file is broken: File is not a zip file.", "Save it again.", "f.zip"),
    )
