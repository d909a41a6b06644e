"""Every row of a source is imported or refused with its place: readers go on behind a bad row, or say what they lost."""

import gzip
import json
import os
import random
import time
import zipfile

import pytest

from qlora_studio.core.errors import LawBroken, StudioError
from qlora_studio.data.readers import files, json_file
from qlora_studio.data.readers.rows import Problem, Row, Tally, Unseen
from qlora_studio.data.sets.importer import import_file, load_conversations, preview_file
from tests.matrix import mostly_slow


def rows(count):
    return [{"instruction": f"question {number}", "input": "", "output": f"answer {number}"} for number in range(count)]


def json_list(lines):
    return "[\n" + ",\n".join(lines) + "\n]\n"


LINES = [json.dumps(row) for row in rows(1000)]
INDENTED = [json.dumps(row, indent=2) for row in rows(1000)]


def broken(lines, at, text):
    return [text if number == at else line for number, line in enumerate(lines)]


CSV = [f'"question, {number}","answer {number}"' for number in range(1000)]
PLAIN_CSV = [f"question {number},answer {number}" for number in range(1000)]
HEAD = "instruction,output\n"

RECOVERED = {
    "JSON list: trailing comma": (
        "rows.json",
        json_list(broken(LINES, 500, '{"instruction": "a", "output": "b",}')),
        502,
    ),
    "JSON list: quote missing": ("rows.json", json_list(broken(LINES, 500, '{"instruction": "a, "output": "b"}')), 502),
    "JSON list: brace missing": ("rows.json", json_list(broken(LINES, 500, '{"instruction": "a", "output": "b"')), 503),
    "JSON list: opening brace missing": (
        "rows.json",
        json_list(broken(LINES, 500, '"instruction": "a", "output": "b"}')),
        502,
    ),
    "JSON list: quote open to the end": ("rows.json", json_list(broken(LINES, 500, '{"instruction": "a')), 502),
    "JSON list: key twice": ("rows.json", json_list(broken(LINES, 500, '{"output": "a", "output": "b"}')), 502),
    "JSON list: a bare word": ("rows.json", json_list(broken(LINES, 500, "oops")), 502),
    "JSON list: a number": ("rows.json", json_list(broken(LINES, 500, "7")), 502),
    "JSON list: a wrong byte": (
        "rows.json",
        json_list(broken(LINES, 500, '{"instruction": "\udce9", "output": "b"}')),
        502,
    ),
    "JSON list: the first row": ("rows.json", json_list(broken(LINES, 0, '{"instruction": "a, "output": "b"}')), 2),
    "JSON list: the last row": (
        "rows.json",
        json_list(broken(LINES, 999, '{"instruction": "a", "output": "b",}')),
        1001,
    ),
    "JSON list: the last row, open": (
        "rows.json",
        json_list(broken(LINES, 999, '{"instruction": "a, "output": "b"}')),
        1001,
    ),
    "JSON list: nested too deep": (
        "rows.json",
        json_list(broken(LINES, 500, '{"x": ' + "[" * 900 + "]" * 900 + "}")),
        502,
    ),
    "JSON list: row of 17 MB": (
        "rows.json",
        json_list(broken(LINES, 500, json.dumps({"instruction": "a" * (17 << 20)}))),
        502,
    ),
    "JSON list on one line": (
        "rows.json",
        "[" + ", ".join(broken(LINES, 500, '{"instruction": "a, "output": "b"}')) + "]",
        1,
    ),
    "JSON list, indented": ("rows.json", json_list(broken(INDENTED, 500, '{\n  "instruction": "a\n}')), 2503),
    "JSON list inside an object": ("rows.json", '{"data": ' + json_list(broken(LINES, 500, "{")) + "}", 502),
    "JSON Lines: a wrong byte": (
        "rows.jsonl",
        "\n".join(broken(LINES, 500, '{"instruction": "\udce9", "output": "b"}')),
        501,
    ),
    "JSON Lines: a line of 17 MB": ("rows.jsonl", "\n".join(broken(LINES, 500, "x" * (17 << 20))), 501),
    "JSON Lines: broken": ("rows.jsonl", "\n".join(broken(LINES, 500, "{")), 501),
    "JSON Lines named .json": ("rows.json", "\n".join(broken(LINES, 500, "{")), 501),
    "CSV: a stray quote": ("rows.csv", HEAD + "\n".join(broken(PLAIN_CSV, 500, '"open,b')), 502),
    "CSV: a stray quote in the last row": ("rows.csv", HEAD + "\n".join(broken(PLAIN_CSV, 999, 'a,"open')), 1001),
    "CSV: a stray quote among quotes": ("rows.csv", HEAD + "\n".join(broken(CSV, 500, '"open,b')), 502),
    "CSV: text behind a quote": ("rows.csv", HEAD + "\n".join(broken(CSV, 500, '"a"x,b')), 502),
    "CSV: a wrong byte": ("rows.csv", HEAD + "\n".join(broken(CSV, 500, "caf\udce9,b")), 502),
    "CSV: a line of 17 MB": ("rows.csv", HEAD + "\n".join(broken(CSV, 500, "a" * (17 << 20))), 502),
    "CSV: a field too many": ("rows.csv", HEAD + "\n".join(broken(CSV, 500, "a,b,c")), 502),
}


@pytest.mark.parametrize("name", mostly_slow(RECOVERED, *(name for name in RECOVERED if "17 MB" not in name)))
def test_one_bad_row_costs_one_row(tmp_path, name):
    file, text, line = RECOVERED[name]
    path = tmp_path / file
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    report = import_file(path, tmp_path / "sets", skip_bad=True)
    assert str(report.account) == "1000 seen = 999 imported + 1 refused"
    (refused,) = (tmp_path / "sets" / report.name / "refused.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(refused)["where"] == f"{file}:{line}"
    answers = [row.turns[-1].content for row in load_conversations(tmp_path / "sets", report.name, "all")]
    expected = {f"answer {number}" for number in range(1000)}
    assert len(answers) == len(set(answers)) == 999 and set(answers) < expected
    with pytest.raises(StudioError, match="1 row cannot be imported"):
        import_file(path, tmp_path / "sets", name="strict")


def test_all_bad_rows_of_a_list_are_counted(tmp_path):
    lines = list(LINES)
    for at in (100, 101, 700):
        lines[at] = '{"instruction": "a, "output": "b"}'
    path = tmp_path / "rows.json"
    path.write_text(json_list(lines))
    preview = preview_file(path)
    assert str(preview.account) == "1000 seen = 997 imported + 3 refused"
    assert [problem.where for problem in preview.problems] == ["rows.json:102", "rows.json:103", "rows.json:702"]


def test_a_latin_1_file_keeps_its_ascii_rows(tmp_path):
    lines = [json.dumps({"text": "café" if number % 4 == 0 else "tea"}, ensure_ascii=False) for number in range(400)]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join(lines).encode("latin-1"))
    report = import_file(path, tmp_path / "sets", skip_bad=True)
    assert str(report.account) == "400 seen = 300 imported + 100 refused"


UNSEEN = {
    "a list that is cut": (
        "rows.json",
        json_list(LINES)[:-3000].rstrip("]\n "),
        r"characters from here on were not seen",
    ),
    "more after the list": (
        "rows.json",
        json_list(LINES) + json_list(LINES),
        r"The \d+ characters from here on were not seen",
    ),
    "two lists": ("rows.json", json.dumps({"train": rows(9), "test": rows(5)}), r"were not seen"),
    "an open quote in a table of one column": (
        "rows.csv",
        'text\nhello\n"open\nmore\nand more\n',
        "2 lines behind the open quote were not",
    ),
    "a table without names": (
        "rows.csv",
        "text,text\nhello,b\nmore,b\n",
        "Without it the 2 lines behind it were not seen",
    ),
}


@pytest.mark.parametrize(("file", "text", "message"), UNSEEN.values(), ids=UNSEEN.keys())
def test_a_loss_of_unknown_size_cannot_be_skipped_over(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(StudioError, match=message):
        import_file(tmp_path / file, tmp_path / "sets", skip_bad=True)
    preview = preview_file(tmp_path / file)
    assert preview.unseen and preview.problems


# the law itself


def swallowing(reader, every=7):
    """A reader that loses rows without a word."""

    def read(stream, file, tally):
        for number, item in enumerate(reader(stream, file, tally), 1):
            if number % every:
                yield item

    return read


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("rows.jsonl", "\n".join(LINES)),
        ("rows.json", json_list(LINES)),
        ("rows.csv", HEAD + "\n".join(CSV)),
        ("rows.txt", "\n\n".join("word " * 700 for _ in range(50))),
    ],
)
def test_a_reader_that_loses_rows_is_found_out(tmp_path, monkeypatch, file, text):
    (tmp_path / file).write_text(text)
    suffix = files.suffix_of(file)
    monkeypatch.setitem(files.READERS, suffix, swallowing(files.READERS[suffix]))
    with pytest.raises(LawBroken, match=r"does not add up: \d+ seen, but \d+ imported, 0 refused and 0 dropped"):
        import_file(tmp_path / file, tmp_path / "sets")
    assert list((tmp_path / "sets").iterdir()) == []
    with pytest.raises(LawBroken):
        preview_file(tmp_path / file)


def test_a_reader_that_stops_early_is_found_out(tmp_path, monkeypatch):
    def read(stream, file, tally):
        tally.rows += 1
        yield Row(file, 1, json.loads(stream.readline()))

    (tmp_path / "rows.jsonl").write_text("\n".join(LINES))
    monkeypatch.setitem(files.READERS, ".jsonl", read)
    with pytest.raises(StudioError, match=r"The last \d+ bytes of this file were not seen"):
        import_file(tmp_path / "rows.jsonl", tmp_path / "sets", skip_bad=True)


def test_a_conversion_that_loses_rows_is_found_out(tmp_path, monkeypatch):
    from qlora_studio.data.sets import conversion

    real = conversion.convert_all
    monkeypatch.setattr(conversion, "convert_all", lambda items, entry, columns: list(real(items, entry, columns))[:-1])
    (tmp_path / "rows.jsonl").write_text("\n".join(LINES))
    with pytest.raises(LawBroken, match="1000 seen, but 999 imported"):
        import_file(tmp_path / "rows.jsonl", tmp_path / "sets")


# what is a row, and what is not


ACCEPTED = {
    "an object that begins with tools": (
        "row.json",
        {
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        },
        1,
    ),
    "tools without a wrapper": (
        "row.json",
        {
            "tools": [{"name": "f", "description": "d"}],
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        },
        1,
    ),
    "a column that is an object": ("row.json", {"meta": {"a": 1}, "instruction": "a", "output": "b"}, 1),
    "two columns that are objects": (
        "row.json",
        {"meta": {"a": 1}, "more": {"b": 2}, "instruction": "a", "output": "b"},
        1,
    ),
    "one row": ("row.json", {"instruction": "a", "output": "b"}, 1),
    "rows by name": (
        "row.json",
        {"x": {"instruction": "a", "output": "b"}, "y": {"instruction": "c", "output": "d"}},
        2,
    ),
    "one row by name": ("row.json", {"0": {"instruction": "a", "output": "b"}}, 1),
    "a wrapped list": ("row.json", {"version": 1, "data": rows(3), "by": "me"}, 3),
    "a list named jsonl": ("row.jsonl", rows(3), 3),
}


@pytest.mark.parametrize(("file", "value", "count"), ACCEPTED.values(), ids=ACCEPTED.keys())
@pytest.mark.parametrize("indent", [None, 2])
def test_what_people_mean_is_read(tmp_path, file, value, count, indent):
    (tmp_path / file).write_text(json.dumps(value, indent=indent))
    report = import_file(tmp_path / file, tmp_path / "sets")
    assert str(report.account) == f"{count} seen = {count} imported + 0 refused"


def test_what_stands_beside_the_rows_is_listed(tmp_path):
    (tmp_path / "row.json").write_text(json.dumps({"version": 1, "data": rows(3), "by": "me"}))
    (tmp_path / "list.jsonl").write_text(json.dumps(rows(3)))
    assert import_file(tmp_path / "row.json", tmp_path / "sets").account.passed_over == (
        "row.json: the value of 'version', beside the rows",
        "row.json: the value of 'by', beside the rows",
    )
    assert import_file(tmp_path / "list.jsonl", tmp_path / "sets").account.notes == (
        "list.jsonl is one JSON document and no JSON Lines; it was read as such.",
    )


def fill(folder):
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("# About\n")
    (folder / "LICENSE").write_text("free\n")
    (folder / "dataset_info.json").write_text('{"splits": {"train": 1}}')
    (folder / "stats.json").write_text('{"mean": 3}')
    (folder / ".gitattributes").write_text("x\n")
    (folder / "a.jsonl").write_text("\n".join(LINES[:5]))
    (folder / "b.json").write_text(json.dumps([{"prompt": "a", "completion": "b"}]))
    (folder / "empty.jsonl").write_text("")


PASSED_OVER = {
    "README.md: text beside tables",
    "LICENSE: not a kind of data",
    "dataset_info.json: it describes the data",
    "stats.json: one object that is no row",
    ".gitattributes: hidden",
    "empty.jsonl: empty",
}


def test_each_file_of_a_folder_stands_for_itself(tmp_path):
    fill(tmp_path / "set")
    (tmp_path / "set" / ".git").mkdir()
    (tmp_path / "set" / "link.jsonl").symlink_to(tmp_path / "set" / "a.jsonl")
    report = import_file(tmp_path / "set", tmp_path / "sets")
    assert str(report.account) == "6 seen = 6 imported + 0 refused"
    assert set(report.account.passed_over) == PASSED_OVER | {".git/: hidden", "link.jsonl: a link or no plain file"}
    assert report.reason.endswith("b.json is prompt-completion")


def test_each_file_of_a_zip_stands_for_itself(tmp_path):
    fill(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted((tmp_path / "set").iterdir()):
            archive.write(path, path.name)
        archive.writestr("more.jsonl.gz", gzip.compress(LINES[7].encode()))
    report = import_file(tmp_path / "set.zip", tmp_path / "sets")
    assert str(report.account) == "7 seen = 7 imported + 0 refused"
    assert set(report.account.passed_over) == {f"set.zip/{name}" for name in PASSED_OVER}


def test_a_folder_of_texts_is_data(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "one.md").write_text("Once.")
    assert import_file(tmp_path / "set", tmp_path / "sets").rows == 1


@pytest.mark.parametrize("quote", ['"', "'", " "])
def test_a_path_in_quotes_is_a_path(tmp_path, quote):
    (tmp_path / "rows.jsonl").write_text("\n".join(LINES[:3]))
    assert import_file(f"{quote}{tmp_path / 'rows.jsonl'}{quote}", tmp_path / "sets").rows == 3


def test_evaluation_rows_stand_in_the_account(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join([*LINES[:10], "{"]))
    (tmp_path / "test.jsonl").write_text("\n".join(LINES[8:12]))
    report = import_file(
        tmp_path / "train.jsonl", tmp_path / "sets", eval_path=tmp_path / "test.jsonl", drop_overlap=True, skip_bad=True
    )
    assert str(report.account) == "15 seen = 12 imported + 1 refused + 2 dropped"


def test_rows_of_threads_are_counted_as_rows(tmp_path):
    thread = [
        {"id": "1", "parent_id": None, "role": "user", "text": "a"},
        {"id": "2", "parent_id": "1", "role": "assistant", "text": "b"},
        {"id": "3", "parent_id": "1", "role": "assistant", "text": "c"},
        {"id": "4", "parent_id": "9", "role": "assistant", "text": "d"},
        {"id": "5", "parent_id": "4", "role": "user", "text": "e"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, thread)))
    report = import_file(tmp_path / "t.jsonl", tmp_path / "sets", skip_bad=True)
    assert (report.rows, str(report.account)) == (2, "5 seen = 3 imported + 2 refused")


# no traceback for any bytes


@pytest.mark.parametrize("suffix", mostly_slow(files.SUFFIXES, ".jsonl"))
def test_random_bytes_are_refused_in_words(tmp_path, suffix):
    generator = random.Random(suffix)
    starts = (b"", b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"\x1f\x8b\x08\0", b"PK\x03\x04", b"[{", b'{"a":')
    for number in range(6 if suffix in (".parquet", ".arrow") else 40):
        content = starts[number % len(starts)] + generator.randbytes(generator.randrange(1, 3000))
        path = tmp_path / f"rows{suffix}"
        path.write_bytes(content)
        with pytest.raises(StudioError):
            import_file(path, tmp_path / "sets")


BAD_INSIDE = {
    "6,000 brackets": {"messages": "[" * 6000},
    "half a character": {"messages": '[{"role": "user", "content": "\\ud83d"}]'},
    "a key twice": {
        "messages": '[{"role": "user", "role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
    },
    "NaN": {"messages": '[{"role": "user", "content": "a", "x": NaN}, {"role": "assistant", "content": "b"}]'},
    "tools of 6,000 brackets": {"messages": [{"role": "user", "content": "a"}], "tools": "[" * 6000},
    "a tool key twice": {"messages": [{"role": "user", "content": "a"}], "tools": '[{"name": "a", "name": "b"}]'},
    "arguments with a key twice": {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1, "a": 2}'}}]},
        ]
    },
    "arguments with half a character": {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": "\\ud800"}'}}]},
        ]
    },
}


@pytest.mark.parametrize("row", BAD_INSIDE.values(), ids=BAD_INSIDE.keys())
def test_json_inside_text_is_read_as_strictly(tmp_path, row):
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [good, row])))
    with pytest.raises(StudioError) as caught:
        import_file(tmp_path / "rows.jsonl", tmp_path / "sets")
    assert caught.value.problems[0].where == "rows.jsonl:2"


@pytest.mark.parametrize(
    "text", ['{"instruction": "a", "output": "b", "output": "c"}', '{"instruction": "a", "output": "b", "x": NaN}']
)
def test_the_first_object_of_a_file_is_read_as_strictly(tmp_path, text):
    (tmp_path / "row.json").write_text(text)
    with pytest.raises(StudioError, match=r"stands twice|NaN is not JSON"):
        import_file(tmp_path / "row.json", tmp_path / "sets")


def test_parquet_with_bad_text_and_an_unknown_zone(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = pa.array([b"good", b"caf\xe9", b"fine"], pa.binary())
    bad = pa.Array.from_buffers(pa.string(), 3, texts.buffers())
    times = pa.array([0, 1, 2], pa.timestamp("us", tz="Mars/Olympus"))
    pq.write_table(pa.table({"text": bad, "at": times}), tmp_path / "rows.parquet")
    report = import_file(tmp_path / "rows.parquet", tmp_path / "sets", skip_bad=True)
    assert str(report.account) == "3 seen = 2 imported + 1 refused"
    assert report.problems[0].startswith("rows.parquet:2: field 'text': This row cannot be read: ")
    first = next(load_conversations(tmp_path / "sets", report.name, "all"))
    assert first.extra == {"at": "1970-01-01T00:00:00+00:00"}


def test_a_reader_process_that_dies_is_a_sentence(tmp_path, monkeypatch):
    from qlora_studio.data.readers import table_file

    (tmp_path / "child.py").write_text("import os\nprint('{\"rows\": 3}', flush=True)\nos.abort()\n")
    monkeypatch.setattr(table_file, "_CHILD", tmp_path / "child.py")
    (tmp_path / "rows.arrow").write_bytes(b"ARROW1\0\0")
    with pytest.raises(
        StudioError, match=r"its reader ended \(exit code -\d+\)\. 3 rows are announced and 0 were read"
    ):
        import_file(tmp_path / "rows.arrow", tmp_path / "sets", skip_bad=True)


def test_file_names_that_are_no_text(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.jsonl")).write_text(LINES[0])
    report = import_file(folder, tmp_path / "sets")
    (row,) = load_conversations(tmp_path / "sets", report.name, "all")
    assert row.source.file == "caf\ufffd.jsonl"
    path = next(folder.iterdir())
    assert import_file(path, tmp_path / "sets", name="one").source_file == "caf\ufffd.jsonl"


@pytest.mark.slow
def test_a_gzip_bomb_is_refused_quickly(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    block = (LINES[0] + "\n").encode() * 200_000
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(40):
            stream.write(block)
    began = time.process_time()
    with pytest.raises(StudioError, match="unpacks to more than 100 times its size"):
        import_file(path, tmp_path / "sets", skip_bad=True)
    assert time.process_time() - began < 5  # of this process alone, whatever else the machine does


def test_readers_count_before_they_read(tmp_path):
    """The count is taken where a record begins, so that it cannot agree with a loss by being made of what was kept."""
    tally = Tally()
    with write(tmp_path).open("rb") as stream:
        items = list(json_file.read_jsonl(stream, "rows.jsonl", tally))
    assert tally.rows == 4
    assert [type(item) for item in items] == [Row, Problem, Row, Problem]
    assert not any(isinstance(item, Unseen) for item in items)


def write(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\n{\n{"a": 2}\n7\n')
    return tmp_path / "rows.jsonl"
