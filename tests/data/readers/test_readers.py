"""Files of every kind give the same rows, with the lines they stand on, and text stays text."""

import gzip
import io
import json
import tracemalloc
import zipfile

import pytest

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.readers.files import list_files, read_rows
from qlora_studio.data.readers.rows import Row
from tests.matrix import mostly_slow

ROWS = [{"a": "eins", "b": "zwei"}, {"a": 'drei, "vier"', "b": "fünf\nsechs 😀"}]
JSONL = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CSV = 'a,b\neins,zwei\n"drei, ""vier""","fünf\nsechs 😀"\n'


def parquet(kind):
    import pyarrow as pa
    import pyarrow.parquet as pq

    memory, table = io.BytesIO(), pa.Table.from_pylist(ROWS)
    if kind == "parquet":
        pq.write_table(table, memory)
    elif kind == "file":
        with pa.ipc.new_file(memory, table.schema) as writer:
            writer.write_table(table)
    else:
        with pa.ipc.new_stream(memory, table.schema) as writer:
            writer.write_table(table)
    return memory.getvalue()


def zipped(name, content):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr(name, content)
    return memory.getvalue()


FILES = {
    "jsonl": ("r.jsonl", JSONL.encode(), [1, 2]),
    "jsonl with byte-order mark": ("r.jsonl", b"\xef\xbb\xbf" + JSONL.encode(), [1, 2]),
    "jsonl in UTF-16": ("r.jsonl", JSONL.encode("utf-16"), [1, 2]),
    "jsonl in UTF-16 without mark": ("r.jsonl", JSONL.encode("utf-16-le"), [1, 2]),
    "jsonl in big-endian UTF-16": ("r.jsonl", b"\xfe\xff" + JSONL.encode("utf-16-be"), [1, 2]),
    "jsonl with CRLF": ("r.jsonl", JSONL.replace("\n", "\r\n").encode(), [1, 2]),
    "jsonl with CR": ("r.jsonl", JSONL.replace("\n", "\r").encode(), [1, 2]),
    "jsonl with blank lines": ("r.jsonl", ("\n" + JSONL.replace("\n", "\n\n")).encode(), [2, 4]),
    "jsonl without last line end": ("r.jsonl", JSONL.rstrip().encode(), [1, 2]),
    "ndjson": ("r.ndjson", JSONL.encode(), [1, 2]),
    "json list": ("r.json", json.dumps(ROWS).encode(), [1, 1]),
    "json list on lines": ("r.json", f"[\n{json.dumps(ROWS[0])},\n{json.dumps(ROWS[1])}\n]\n".encode(), [2, 3]),
    "json list indented": ("r.json", json.dumps(ROWS, indent=2).encode(), [2, 6]),
    "json wrapping one list": ("r.json", json.dumps({"version": 1, "data": ROWS, "more": "x"}).encode(), [1, 1]),
    "json object of rows": ("r.json", json.dumps({"0": ROWS[0], "1": ROWS[1]}).encode(), [1, 1]),
    "json that is jsonl": ("r.json", JSONL.encode(), [1, 2]),
    "csv": ("r.csv", CSV.encode(), [2, 3]),
    "csv with byte-order mark": ("r.csv", b"\xef\xbb\xbf" + CSV.encode(), [2, 3]),
    "csv with semicolons": (
        "r.csv",
        CSV.replace("a,b", "a;b").replace("eins,zwei", "eins;zwei").replace('""",', '""";').encode(),
        [2, 3],
    ),
    "csv with CRLF": ("r.csv", CSV.replace("zwei\n", "zwei\r\n").replace("a,b\n", "a,b\r\n").encode(), [2, 3]),
    "tsv": (
        "r.tsv",
        CSV.replace("a,b", "a\tb").replace("eins,zwei", "eins\tzwei").replace('""",', '"""\t').encode(),
        [2, 3],
    ),
    "parquet": ("r.parquet", parquet("parquet"), [1, 2]),
    "parquet under another name": ("r.json", parquet("parquet"), [1, 2]),
    "arrow file": ("r.arrow", parquet("file"), [1, 2]),
    "arrow stream": ("r.arrow", parquet("stream"), [1, 2]),
    "gzip": ("r.jsonl.gz", gzip.compress(JSONL.encode()), [1, 2]),
    "gzip without the ending": ("r.jsonl", gzip.compress(JSONL.encode()), [1, 2]),
    "zip": ("r.zip", zipped("inner/r.jsonl", JSONL), [1, 2]),
    "zip of csv": ("r.zip", zipped("r.csv", CSV), [2, 3]),
    "zip of parquet": ("r.zip", zipped("r.parquet", parquet("parquet")), [1, 2]),
    "gzip of parquet": ("r.parquet.gz", gzip.compress(parquet("parquet")), [1, 2]),
}


@pytest.mark.parametrize(("file", "content", "lines"), FILES.values(), ids=FILES.keys())
def test_every_kind_of_file_gives_the_same_rows(tmp_path, file, content, lines):
    path = tmp_path / file
    path.write_bytes(content)
    rows = list(read_rows(path))
    assert [row.values for row in rows] == ROWS
    assert [row.line for row in rows] == lines


def test_text_in_tables_stays_text(tmp_path):
    path = tmp_path / "r.csv"
    path.write_text("id,when,what,more\n007,2024-01-02,NA,123456789012345678901234567890\n1e5,,null,None\n")
    assert [row.values for row in read_rows(path)] == [
        {"id": "007", "when": "2024-01-02", "what": "NA", "more": "123456789012345678901234567890"},
        {"id": "1e5", "when": "", "what": "null", "more": "None"},
    ]


def test_long_numbers_of_json_stay_whole(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"id": 123456789012345678901234567890}\n')
    assert [row.values for row in read_rows(path)] == [{"id": 123456789012345678901234567890}]


def test_a_text_file_is_cut_between_paragraphs_and_loses_nothing(tmp_path):
    text = "".join(f"Paragraph {number} of the tale.\n" + "It goes on. " * 30 + "\n\n" for number in range(60))
    path = tmp_path / "tale.md"
    path.write_text(text)
    rows = list(read_rows(path))
    assert "".join(row.values["text"] for row in rows) == text
    assert len(rows) > 5
    assert all(len(row.values["text"]) < 4000 for row in rows)
    lines = text.split("\n")
    assert all(row.values["text"].startswith(lines[row.line - 1]) for row in rows)


def test_broken_rows_stand_as_problems_among_the_good(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n{"a": }\n{"a": 3}\n')
    good, bad, last = read_rows(path)
    assert (good, last) == (Row("r.jsonl", 1, {"a": 1}), Row("r.jsonl", 3, {"a": 3}))
    assert bad == Problem("The JSON is broken at column 7: expecting value.", "Fix this row.", "r.jsonl:2")


def test_a_folder_is_read_in_order_without_links_and_hidden_files(tmp_path):
    outside = tmp_path / "secret.jsonl"
    outside.write_text('{"a": "secret"}\n')
    folder = tmp_path / "data"
    (folder / "b").mkdir(parents=True)
    (folder / "a.jsonl").write_text('{"a": 1}\n')
    (folder / "b" / "c.jsonl").write_text('{"a": 2}\n')
    (folder / ".hidden.jsonl").write_text('{"a": 3}\n')
    (folder / "notes.pdf").write_text("x")
    (folder / "link.jsonl").symlink_to(outside)
    assert list(read_rows(folder)) == [Row("a.jsonl", 1, {"a": 1}), Row("b/c.jsonl", 1, {"a": 2})]
    assert list_files(folder)[1] == [
        ".hidden.jsonl: hidden",
        "link.jsonl: a link or no plain file",
        "notes.pdf: not a kind of data",
    ]


def test_a_folder_without_data_says_so(tmp_path):
    (tmp_path / "notes.pdf").write_text("x")
    with pytest.raises(
        StudioError, match=r"holds no file that can be read. Passed over: notes.pdf: not a kind of data."
    ):
        list(read_rows(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", mostly_slow(["big.jsonl", "big.json", "big.csv", "big.jsonl.gz", "big.txt"], "big.json")
)
def test_memory_stays_flat_while_a_big_file_streams(tmp_path, file):
    path = tmp_path / file
    line = json.dumps({"a": "word " * 200})
    opener = gzip.open if file.endswith(".gz") else open
    with opener(path, "wt") as out:
        out.write({"big.json": "[", "big.csv": "a\n"}.get(file, ""))
        for number in range(30_000):
            if file == "big.csv":
                out.write("word " * 200 + f"{number}\n")
            elif file == "big.json":
                out.write(("," if number else "") + line)
            elif file == "big.txt":
                out.write("word " * 200 + "\n\n")
            else:
                # numbers that do not repeat keep the packed size honest
                out.write(
                    json.dumps({"a": " ".join(str(hash((number, place)) % 10**9) for place in range(100))}) + "\n"
                )
        out.write("]" if file == "big.json" else "")
    tracemalloc.start()
    count = sum(1 for _ in read_rows(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count >= 5000
    assert peak < 24 << 20  # a chunk, its lines and the decoder; the file is 30 MB
