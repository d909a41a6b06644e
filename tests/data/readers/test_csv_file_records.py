"""Tables record by record: where a record ends, what an open quote costs, and which first line names columns."""

from __future__ import annotations

import io

import pytest

from qlora_studio.core.errors import Problem
from qlora_studio.data.readers import csv_file
from qlora_studio.data.readers.csv_file import find_separator, read_csv
from qlora_studio.data.readers.rows import MAX_LINE_BYTES, Row, Tally, Unseen


def read(text, separator=None):
    """Rows as line and cells, problems as line and sentence; and how many rows were counted."""
    tally, found = Tally(), []
    for item in read_csv(io.BytesIO(text.encode("utf-8", "surrogateescape")), "f", tally, separator):
        problem = item.problem if isinstance(item, Unseen) else item
        words = list(item.values.values()) if isinstance(item, Row) else problem.message
        line = item.line if isinstance(item, Row) else int(problem.where.removeprefix("f:"))
        found.append((line, f"unseen: {words}" if isinstance(item, Unseen) else words))
    return found, tally.rows


NEVER = "The table is broken: a quote is never closed."
MANY = [(line, [str(line), str(line)]) for line in range(3, 30)]
CASES = [
    ("", []),
    ("\n\n", []),
    ("a,b\n", []),
    ("\n \na,b\n1,2\n\n3,4", [(4, ["1", "2"]), (6, ["3", "4"])]),
    ("a,b\n1\n1,2,3\n", [(2, "This row has 1 fields where the first line names 2."), (3, "This row has 3 fields where the first line names 2.")]),
    ('"a\nb",c\n1,2\n', [(3, ["1", "2"])]),
    ('a,b\n"x\ny",2\n3,4\n', [(2, ["x\ny", "2"]), (4, ["3", "4"])]),
    ('a,b\n"x\n\n""y""\n",2\n3,4\n', [(2, ['x\n\n"y"\n', "2"]), (6, ["3", "4"])]),
    # lines inside an open quote that read like rows are rows, and one of three lines is enough to doubt that
    ('a,b\n"open,2\n3,4\n5,6\n7,8\n', [(2, NEVER), (3, ["3", "4"]), (4, ["5", "6"]), (5, ["7", "8"])]),
    ('a,b\n"open,2\n3,4\n', [(2, NEVER), (3, ["3", "4"])]),
    ('a,b\n"open,2\n' + "".join(f"{line},{line}\n" for line in range(3, 30)), [(2, NEVER), *MANY]),
    ('a,b\n"open\ntext\n3,4\n5,6\n', [(2, NEVER), (2, "unseen: The 3 lines behind the open quote were not seen.")]),
    # twenty lines that read like rows are enough, nineteen and a text are not
    ('a,b\n"open,2\n' + "".join(f"{line},{line}\n" for line in range(3, 23)) + "words\n",
     [(2, NEVER), *MANY[:20], (23, "This row has 1 fields where the first line names 2.")]),
    ('a,b\n"open,2\n' + "".join(f"{line},{line}\n" for line in range(3, 22)) + "words\n",
     [(2, NEVER), (2, "unseen: The 20 lines behind the open quote were not seen.")]),
    ('a,b\n1,"open\nsome words\nmore words\n', [(2, NEVER), (2, "unseen: The 2 lines behind the open quote were not seen.")]),
    ('a,b\n"x\n1,2\n3,4\n5,6\ny",7\n', [(2, NEVER), (3, ["1", "2"]), (4, ["3", "4"]), (5, ["5", "6"]), (6, ['y"', "7"])]),
    ('a,b\n"x\n1,2\n3,4\ny",7\n8,9\n', [(2, ["x\n1,2\n3,4\ny", "7"]), (6, ["8", "9"])]),
    ('a,b\n"x\ntext\n3,4\n5,6\ny",7\n8,9\n', [(2, ["x\ntext\n3,4\n5,6\ny", "7"]), (7, ["8", "9"])]),
    ('a,b\n"x\n""q"",1\n3,4\n5,6\ny",7\n8,9\n', [(2, ['x\n"q",1\n3,4\n5,6\ny', "7"]), (7, ["8", "9"])]),
    ('a\n"x\n1\n2\n3\ny"\nz\n', [(2, ["x\n1\n2\n3\ny"]), (7, ["z"])]),  # of one column any text would be a row
    ('a,b\n"x\n1,2\n"3"q\n', [(2, "The table is broken: ',' expected after '\"'."), (3, ["1", "2"]),
                              (4, "The table is broken: ',' expected after '\"'.")]),
    ('a,b\n"x"y,2\n3,4\n', [(2, "The table is broken: ',' expected after '\"'."), (3, ["3", "4"])]),
    ("a,b\n\udce9,2\n3,4\n", [(2, "The byte 0xe9 is not UTF-8 text."), (3, ["3", "4"])]),
    ('a,b\n"x\n\udce9\n3,4\n', [(3, "The byte 0xe9 is not UTF-8 text."), (3, "The byte 0xe9 is not UTF-8 text."), (4, ["3", "4"])]),
    ("a,a\n1,2\n", [(1, "unseen: Two columns are named 'a'. Without it the 1 lines behind it were not seen.")]),
    ("a,b,b,a\n1,2,3,4\n", [(1, "unseen: Two columns are named 'a'. Without it the 1 lines behind it were not seen.")]),
    ("a,\n1,2\n3,4\n", [(1, "unseen: A column has no name. Without it the 2 lines behind it were not seen.")]),
    ("\n\na, \n1,2\n", [(3, "unseen: A column has no name. Without it the 1 lines behind it were not seen.")]),
    ("x" * 201 + ",b\n1,2\n", [(1, "unseen: The first line does not name columns: it reads like a row. Without it the 1 lines behind it were not seen.")]),
    ("x" * 200 + ",b\n1,2\n", [(2, ["1", "2"])]),
    ('"a,b\n1,2\n3,4\n', [(1, f"unseen: {NEVER} Without it the 2 lines behind it were not seen.")]),
    ("a;b\n1;2,3\n4;5\n", [(2, ["1", "2,3"]), (3, ["4", "5"])]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), CASES, ids=range(len(CASES)))
def test_a_table_is_its_records(text, expected):
    found, counted = read(text)
    assert found == expected
    unseen = sum(isinstance(words, str) and words.startswith("unseen") for _, words in expected)
    assert counted == len(expected) - unseen


def test_the_missing_column_is_named_and_none_of_too_many():
    problems = list(read_csv(io.BytesIO(b"a,b,c\n1\n1,2\n1,2,3,4\n"), "f", Tally()))
    assert [problem.field for problem in problems] == ["b", "c", ""]
    assert {problem.hint for problem in problems} == {'Put text that holds separators or line ends in "quotes".'}


def test_what_is_wrong_with_the_first_line_names_its_column():
    found = [
        list(read_csv(io.BytesIO(head + b"\n1,2\n"), "f", Tally())) for head in (b"a,b,b,a", b"a, ", b"x" * 201 + b",b")
    ]
    behind = "Without it the 1 lines behind it were not seen."
    assert found == [
        [Unseen(Problem(f"Two columns are named 'a'. {behind}", "Rename one.", "f:1", "a"))],
        [Unseen(Problem(f"A column has no name. {behind}", "The first line must name every column.", "f:1"))],
        [Unseen(Problem(f"The first line does not name columns: it reads like a row. {behind}", "Add a first line with names.", "f:1"))],
    ]  # fmt: skip


def test_a_line_that_is_too_long_costs_itself_inside_a_quote_as_well(monkeypatch):
    monkeypatch.setattr("qlora_studio.data.readers.text_file.MAX_LINE_BYTES", 20)
    found, _ = read('a,b\n"x\n' + "y" * 21 + "\n3,4\n")
    long = "This line is longer than 16 MB."
    assert found == [(3, long), (3, long), (4, ["3", "4"])]
    assert read("a,b\n" + "y" * 21 + "\n3,4\n")[0] == [(2, long), (3, ["3", "4"])]
    assert read("y" * 21 + "\n3,4\n")[0] == [(1, f"unseen: {long} Without it the 1 lines behind it were not seen.")]


def test_an_open_quote_is_followed_as_far_as_the_longest_row(monkeypatch):
    monkeypatch.setattr(csv_file, "MAX_LINE_BYTES", 30)
    text = 'a,b\n1,"' + "words and words\n" * 9
    assert read(text)[0] == [(2, NEVER), (2, "unseen: The 8 lines behind the open quote were not seen.")]
    closed = 'a,b\n1,"words\nand more\nand more"\n3,4\n'
    assert read(closed)[0] == [(2, ["1", "words\nand more\nand more"]), (5, ["3", "4"])]
    far = text + 'end"\n3,4\n'
    assert read(far)[0] == [(2, NEVER), (2, "unseen: The 10 lines behind the open quote were not seen.")]
    for length, row in ((27, ["x" * 27, "y\nend"]), (28, NEVER)):
        assert read("a,b\n" + "x" * length + ',"y\nend"\n')[0][0] == (2, row)


def test_a_cell_may_be_as_long_as_a_line():
    import csv

    before = csv.field_size_limit(100)
    try:
        assert read("a,b\n" + "x" * 200_000 + ",2\n")[0] == [(2, ["x" * 200_000, "2"])]
        assert csv.field_size_limit() == MAX_LINE_BYTES
    finally:
        csv.field_size_limit(before)


@pytest.mark.parametrize(
    ("lines", "separator"),
    [
        ([], ","),
        (["a\n", "b\n"], ","),
        (["a;b\n", "c;d\n"], ";"),
        (["a\tb\n", "c\td\n"], "\t"),
        (["a|b\n", "c|d\n"], "|"),
        (["a,b;c\n", "d,e;f\n"], ","),  # both cut alike: the comma
        (["a,b;c\n", "d;e\n", "f;g\n"], ";"),
        (["a;b,c\n", "1;2\n", "3,4;5\n", "6;7\n"], ";"),
        (["a;b\n", "1;2\n", '3;"op,en\n'], ";"),  # the last line may be half of a record
        (["a;b\n"], ";"),
        # cut by commas there are more lines alike, of more lines in all
        (["n,m;q\n", 'x;"1,2\n', "3,4\n", '5,6"\n', "y;z\n", "y;z\n"], ";"),
    ],
)
def test_the_separator_cuts_most_lines_alike(lines, separator):
    assert find_separator(lines) == separator
