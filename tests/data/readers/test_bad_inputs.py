"""Hundreds of broken inputs: each is refused in a sentence that names file, line and, where there is one, field."""

import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from functools import partial

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.data.sets.importer import import_file

GOOD = {"instruction": "hi", "input": "", "output": "ho"}
CASES: dict[str, tuple[str, Callable[[], bytes], int | None, str]] = {}
"""Name: file name, what makes its content, the line that must be named (None where a file has none), the field ('' where none)."""


def case(name, file, content, line, field=""):
    assert name not in CASES
    CASES[name] = (file, content if callable(content) else partial(as_bytes, content), line, field)


def as_bytes(content):
    return content if isinstance(content, bytes) else content.encode()


BROKEN_JSON = {
    "single quotes": "{'instruction': 'hi', 'output': 'ho'}",
    "trailing comma": '{"instruction": "hi", "output": "ho",}',
    "missing comma": '{"instruction": "hi" "output": "ho"}',
    "missing colon": '{"instruction" "hi", "output": "ho"}',
    "missing value": '{"instruction": , "output": "ho"}',
    "unquoted key": '{instruction: "hi", "output": "ho"}',
    "bad escape": '{"instruction": "h\\q", "output": "ho"}',
    "bad unicode escape": '{"instruction": "\\u12", "output": "ho"}',
    "raw tab in text": '{"instruction": "h\ti", "output": "ho"}',
    "NUL in text": '{"instruction": "h\0i", "output": "ho"}',
    "NaN": '{"instruction": "hi", "output": "ho", "score": NaN}',
    "Infinity": '{"instruction": "hi", "output": "ho", "score": -Infinity}',
    "key twice": '{"instruction": "hi", "instruction": "hey", "output": "ho"}',
    "key twice inside": '{"instruction": "hi", "output": "ho", "more": {"a": 1, "a": 2}}',
    "half a character": '{"instruction": "\\ud83d", "output": "ho"}',
    "other half of a character": '{"instruction": "\\udc00 x", "output": "ho"}',
    "nested too deep": '{"instruction": ' + "[" * 5000 + "]" * 5000 + ', "output": "ho"}',
    "nested 65 deep": '{"instruction": "hi", "output": "ho", "x": ' + "[" * 64 + "]" * 64 + "}",
    "comment": '{"instruction": "hi", /* why */ "output": "ho"}',
    "number of 5000 digits": '{"instruction": "hi", "output": "ho", "id": ' + "9" * 5000 + "}",
    "leading zero": '{"instruction": "hi", "output": "ho", "id": 007}',
    "single word": "hello",
    "True of Python": '{"instruction": "hi", "output": "ho", "flag": True}',
}
for fault, broken in BROKEN_JSON.items():
    good = json.dumps(GOOD)
    case(f"jsonl: {fault}", "rows.jsonl", f"{good}\n\n{broken}\n{good}\n", 3)
    case(f"json: {fault}", "rows.json", f"[\n{good},\n{broken},\n{good}\n]", 3)

NOT_ROWS = {"number": "7", "text": '"hi"', "null": "null", "true": "true", "list": "[1, 2]"}
for fault, value in NOT_ROWS.items():
    case(f"jsonl: row is {fault}", "rows.jsonl", f"{json.dumps(GOOD)}\n{value}\n", 2)
    case(f"json: row is {fault}", "rows.json", f"[{json.dumps(GOOD)},\n{value}]", 2)

case("jsonl: cut in the middle", "rows.jsonl", json.dumps(GOOD) + '\n{"instruction": "h', 2)
case("jsonl: open bracket", "rows.jsonl", json.dumps(GOOD) + '\n{"instruction": "hi", "output": "ho"', 2)
case("jsonl: two rows on a line", "rows.jsonl", json.dumps(GOOD) + json.dumps(GOOD), 1)
case("jsonl: line of 17 MB", "rows.jsonl", json.dumps(GOOD) + '\n{"instruction": "' + "a" * (17 << 20), 2)
case("jsonl: 17 MB row that closes", "rows.jsonl", json.dumps({**GOOD, "input": "a" * (17 << 20)}) + "\n", 1)
case("json: cut in the middle", "rows.json", "[" + json.dumps(GOOD) + ",\n" + '{"instruction": "h', 2)
case("json: list not closed", "rows.json", "[" + json.dumps(GOOD) + "\n", 2)
case("json: comma before ]", "rows.json", "[" + json.dumps(GOOD) + ",\n]", 2)
case("json: no comma between rows", "rows.json", "[" + json.dumps(GOOD) + "\n" + json.dumps(GOOD) + "]", 2)
case("json: row of 17 MB", "rows.json", '[{"instruction": "' + "a" * (17 << 20) + '", "output": "ho"}]', 1)
case("json: quote that never closes", "rows.json", '[\n{"instruction": "' + "a\\n" * 100, 2)
case("json: more after the list", "rows.json", "[" + json.dumps(GOOD) + "]\nmore", 2)
case("json: a bare text", "rows.json", '"hi"', 1)
case("json: a bare number", "rows.json", "12", 1)
case("json: two lists in an object", "rows.json", json.dumps({"train": [GOOD], "test": [GOOD]}), 1, "test")
case("json: rows and others mixed", "rows.json", json.dumps({"0": GOOD, "version": 3}), 1)
case("json: object cut", "rows.json", '{"data": [' + json.dumps(GOOD) + "]", 1)

for file in ("rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.txt", "rows.md"):
    case(f"empty file {file}", file, "", None)
    case(f"only blank lines {file}", file, "\n \n\n", None)
case("empty list", "rows.json", "[]", None)
case("list wrapped and empty", "rows.json", '{"data": []}', 1)
case("only a byte-order mark", "rows.jsonl", b"\xef\xbb\xbf", None)
case("only a header", "rows.csv", "instruction,output\n", None)

for file, head in (("rows.jsonl", ""), ("rows.csv", "instruction,output\n"), ("rows.json", "[\n"), ("rows.txt", "x\n")):
    lines = head.count("\n") + 1
    body = {
        "rows.jsonl": '{"instruction": "na',
        "rows.csv": "na",
        "rows.json": '{"instruction": "na',
        "rows.txt": "na",
    }[file]
    for encoding, byte in (("Latin-1", b"\xefve"), ("cut UTF-8", b"\xe2\x82"), ("surrogate bytes", b"\xed\xa0\x80")):
        case(f"{encoding} in {file}", file, head.encode() + body.encode() + byte, lines)
case("UTF-16 with half a character", "rows.jsonl", b"\xff\xfe" + '{"a": "'.encode("utf-16-le") + b"\x00\xd8\x20\x00", 1)
case("UTF-16 with an odd byte", "rows.jsonl", b"\xff\xfe" + b"{\x00}\x00x", 1)

VALUES = {"null": None, "a number": 7, "a list": [1], "an object": {"a": 1}, "true": True}
NEEDED = {
    "alpaca": (GOOD, ("instruction", "output")),
    "prompt-completion": ({"prompt": "hi", "completion": "ho"}, ("prompt", "completion")),
    "question-answer": ({"question": "hi", "answer": "ho"}, ("question", "answer")),
    "preference": ({"prompt": "hi", "chosen": "ho", "rejected": "no"}, ("chosen", "rejected")),
    "text": ({"text": "Once."}, ("text",)),
}
for format, (row, names) in NEEDED.items():
    for name in names:
        for fault, value in VALUES.items():
            if fault == "a number" and (format, name) in (("alpaca", "output"), ("question-answer", "answer")):
                continue  # numbers are answers
            if fault == "a list" and name == "answer":
                value = [[1]]
            rows = [row, {**row, name: value}]
            case(f"{format}: {name} is {fault}", "rows.jsonl", "\n".join(map(json.dumps, rows)), 2, name)
        rows = [row, {key: value for key, value in row.items() if key != name}]
        case(f"{format}: {name} is missing", "rows.jsonl", "\n".join(map(json.dumps, rows)), 2, name)
for name in ("input", "system", "history"):
    for fault, value in VALUES.items():
        if value is not None and not (name == "history" and fault == "a list"):
            case(
                f"alpaca: {name} is {fault}",
                "rows.json",
                json.dumps([GOOD])[:-1] + ",\n" + json.dumps({**GOOD, name: value}) + "]",
                2,
                name,
            )
for fault, value in {"triple": [["a", "b", "c"]], "number": [[1, "b"]], "text": ["ab"]}.items():
    case(f"alpaca: history holds {fault}", "rows.jsonl", json.dumps({**GOOD, "history": value}), 1, "history[0]")

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
TURNS = {
    "unknown role": ({"role": "narrator", "content": "hm"}, "role"),
    "empty role": ({"role": "", "content": "hm"}, "role"),
    "number as role": ({"role": 3, "content": "hm"}, "role"),
    "no role": ({"content": "hm"}, "role"),
    "null content": ({"role": "user", "content": None}, "content"),
    "no content": ({"role": "assistant"}, "content"),
    "number as content": ({"role": "user", "content": 3}, "content"),
    "object as content": ({"role": "user", "content": {"text": "hm"}}, "content"),
    "image part": ({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, "content[0]"),
    "number part": ({"role": "user", "content": [3]}, "content[0]"),
    "text as turn": ("hm", ""),
    "null as turn": (None, ""),
    "list as turn": (["user", "hm"], ""),
    "weight of two": ({"role": "assistant", "content": "hm", "weight": 2}, "weight"),
    "train as text": ({"role": "assistant", "content": "hm", "train": "yes"}, "train"),
    "train_detail": ({"role": "assistant", "content": "hm", "train_detail": []}, "train_detail"),
    "name as number": ({"role": "user", "content": "hm", "name": 4}, "name"),
    "tool_calls as number": ({"role": "assistant", "content": "", "tool_calls": 4}, "tool_calls"),
    "tool call without name": (
        {"role": "assistant", "content": "", "tool_calls": [{"function": {}}]},
        "tool_calls[0].name",
    ),
    "tool call as text": ({"role": "assistant", "content": "", "tool_calls": ["x"]}, "tool_calls[0]"),
    "tool_calls as broken JSON": ({"role": "assistant", "content": "", "tool_calls": "[{"}, "tool_calls"),
}
for fault, (turn, field) in TURNS.items():
    rows = [{"messages": CHAT}, {"messages": [*CHAT, turn]}]
    place = f"messages[2]{'.' if field else ''}{field}"
    case(f"messages: {fault}", "rows.jsonl", "\n".join(map(json.dumps, rows)), 2, place)
SHARED = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
for fault, (turn, field) in {
    "unknown role": ({"from": "narrator", "value": "hm"}, "from"),
    "null value": ({"from": "gpt", "value": None}, "value"),
    "call that is no JSON": ({"from": "function_call", "value": "weather()"}, "value"),
    "call without name": ({"from": "function_call", "value": '{"arguments": {}}'}, "value.name"),
    "call that is a number": ({"from": "function_call", "value": "7"}, "value"),
}.items():
    rows = [{"conversations": SHARED}, {"conversations": [*SHARED, turn]}]
    case(f"sharegpt: {fault}", "rows.jsonl", "\n".join(map(json.dumps, rows)), 2, f"conversations[2].{field}")
for column, turns in (("messages", CHAT), ("conversations", SHARED)):
    for fault, value in {"empty": [], "null": None, "a number": 4, "an object": {}, "broken JSON": "[{]"}.items():
        rows = [{column: turns}, {column: value}]
        case(f"{column} is {fault}", "rows.jsonl", "\n".join(map(json.dumps, rows)), 2, column)
for fault, value in {"broken JSON": "[{", "a number": 4, "list of numbers": [4]}.items():
    field = "tools[0]" if fault == "list of numbers" else "tools"
    case(f"tools: {fault}", "rows.jsonl", json.dumps({"messages": CHAT, "tools": value}), 1, field)

OTHERS = {
    "preference without prompt": ({"chosen": "ho", "rejected": "no"}, "prompt"),
    "preference that ends on a question": ({"prompt": "hi", "chosen": CHAT[:1], "rejected": "no"}, "chosen"),
    "completion that ends on a question": ({"prompt": "hi", "completion": CHAT[:1]}, "completion"),
    "segment without text": ({"segments": [{"label": True}]}, "segments[0].text"),
    "segment with a number label": ({"segments": [{"text": "x", "label": 1}]}, "segments[0].label"),
    "labels of another length": ({"input_ids": [1, 2], "labels": [1]}, "labels"),
    "label of another token": ({"input_ids": [1, 2], "labels": [1, 3]}, "labels"),
    "token that is text": ({"input_ids": [1, "2"], "labels": [1, 2]}, "input_ids"),
    "negative token": ({"input_ids": [1, -2]}, "input_ids"),
    "no tokens": ({"input_ids": []}, "input_ids"),
    "padding in tokens": ({"input_ids": [1, 2], "attention_mask": [1, 0]}, "attention_mask"),
    "dialogue of one number": ({"dialog": ["hi", "ho"]}, "dialog[1]"),
}
for fault, (row, field) in OTHERS.items():
    if fault == "dialogue of one number":
        rows = [row, {"dialog": ["hi", 3]}]
        case(fault, "rows.jsonl", "\n".join(map(json.dumps, rows)), 2, field)
    else:
        case(fault, "rows.jsonl", json.dumps(row), 1, field)
for label in (3, "maybe", [], {}):
    rows = [{"prompt": "hi", "completion": "ho", "label": True}, {"prompt": "hi", "completion": "ho", "label": label}]
    case(f"kto label {label!r}", "rows.jsonl", "\n".join(map(json.dumps, rows)), 2, "label")
case("unknown columns", "rows.jsonl", json.dumps({"alpha": "hi", "beta": "ho"}), 1)
case("row without fields", "rows.jsonl", "{}", 1)
case(
    "mixed formats",
    "rows.jsonl",
    f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}\n" + json.dumps({"messages": CHAT}),
    3,
    "instruction",
)

case("csv: short row", "rows.csv", "instruction,output\na,b\nc\n", 3, "output")
case("csv: long row", "rows.csv", "instruction,output\na,b\nc,d,e\n", 3)
case("csv: open quote", "rows.csv", 'instruction,output\na,b\n"c,d\n', 3)
case("csv: text after a quote", "rows.csv", 'instruction,output\n"a"x,b\n', 2)
case("csv: column twice", "rows.csv", "instruction,output,output\na,b,c\n", 1, "output")
case("csv: column without name", "rows.csv", "instruction,,output\na,b,c\n", 1)
case("csv: no header", "rows.csv", "What is it?,A thing.\nAnd that?,Another.\n", 2)
case("csv: field of 17 MB", "rows.csv", 'instruction,output\n"' + "a" * (17 << 20) + '",b\n', 2)
case("tsv: commas instead of tabs", "rows.tsv", "instruction,output\na,b\n", 2)
case("csv: NUL", "rows.csv", "instruction,output\na,\0\n,x,y\n", 3)

PARQUET_BAD = {
    "wrong magic": b"nothing of the kind",
    "empty": b"",
    "only magic": b"PAR1PAR1",
    "cut": b"PAR1" + b"\x15" * 200,
}
for fault, content in PARQUET_BAD.items():
    case(f"parquet: {fault}", "rows.parquet", content, None)
    case(f"arrow: {fault}", "rows.arrow", content.replace(b"PAR1", b"ARROW1"), None)


def zipped(entries, **options):
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return memory.getvalue()


LINE = json.dumps(GOOD) + "\n"
case("gzip: not one", "rows.jsonl.gz", LINE, None)
case("gzip: cut", "rows.jsonl.gz", gzip.compress(os.urandom(4000).hex().encode())[:-900], None)
case("gzip: flipped bits", "rows.jsonl.gz", gzip.compress(LINE.encode() * 50)[:-8] + b"\0" * 8, None)
case("gzip: unknown inside", "rows.exe.gz", gzip.compress(b"x"), None)
case("gzip: bomb", "rows.jsonl.gz", lambda: gzip.compress(b" " * (40 << 20), 9), None)
case("gzip: broken row", "rows.jsonl.gz", gzip.compress(f"{LINE}{{".encode()), 2)
case("zip: not one", "rows.zip", b"PK\x03\x04 but then not", None)
case("zip: wrong name", "rows.zip", LINE, None)
case("zip: empty", "rows.zip", b"PK\x05\x06" + b"\0" * 18, None)
case("zip: path outside", "rows.zip", zipped({"../rows.jsonl": LINE}), None)
case("zip: absolute path", "rows.zip", zipped({"/etc/rows.jsonl": LINE}), None)
case("zip: windows path", "rows.zip", zipped({"C:\\rows.jsonl": LINE}), None)
case("zip: backslash outside", "rows.zip", zipped({"a\\..\\..\\rows.jsonl": LINE}), None)
case("zip: bomb", "rows.zip", lambda: zipped({"rows.jsonl": b" " * (40 << 20)}), None)
case("zip: nested", "rows.zip", zipped({"inner.zip": zipped({"rows.jsonl": LINE})}), None)
case("zip: unknown inside", "rows.zip", zipped({"rows.exe": "x"}), None)
case("zip: broken row inside", "rows.zip", zipped({"rows.jsonl": LINE + "{"}), 2)
case("zip: too many entries", "rows.zip", lambda: zipped({f"{number}.jsonl": "" for number in range(10_001)}), None)
case("a picture", "rows.png", b"\x89PNG\r\n", None)
case("no ending", "rows", LINE, None)
case("a pickle", "rows.pkl", b"\x80\x04.", None)


@pytest.mark.parametrize(("file", "content", "line", "field"), CASES.values(), ids=CASES.keys())
def test_bad_input_is_refused_with_file_line_and_field(tmp_path, file, content, line, field):
    path = tmp_path / file
    path.write_bytes(content())
    with pytest.raises(StudioError) as caught:
        import_file(path, tmp_path / "datasets")
    problems = caught.value.problems
    first = problems[0]
    assert file in first.where
    assert line is None or first.where.endswith(f":{line}"), first.where
    assert first.field == field or (first.field.startswith((f"{field}[", f"{field}.")) and field)
    assert first.message.endswith(".") and len(first.message) < 600
    assert first.hint.endswith(".")
    left = list((tmp_path / "datasets").iterdir()) if (tmp_path / "datasets").exists() else []
    assert left == []


def test_there_are_enough_of_them():
    assert len(CASES) >= 200
