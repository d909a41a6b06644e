"""The examples of docs/data.md are what they say: each is recognised as the format under whose heading it stands."""

import json
import re
from pathlib import Path

import pytest

from qlora_studio.data.cleaning.lint import KINDS
from qlora_studio.data.cleaning.row_findings import KINDS as TOKEN_KINDS
from qlora_studio.data.formats.registry import FORMATS, Converted, convert_all, detect, find_format
from qlora_studio.data.readers.rows import Row

PAGE = (Path(__file__).parent.parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^### ([\w-]+)\n.*?```json\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE))


def conversations(rows, entry, columns):
    return [one.conversation if isinstance(one, Converted) else one for one in convert_all(rows, entry, columns)]


def test_every_format_has_an_example():
    assert set(EXAMPLES) == set(FORMATS)


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_of_its_format_and_uses_all_it_shows(name):
    rows = [Row("page", number, json.loads(line)) for number, line in enumerate(EXAMPLES[name].splitlines(), 1)]
    assert detect(rows).format == name
    (made,) = conversations(rows, find_format(name), {})
    assert {field for field in made.extra if not field.startswith("id.")} == set()


def test_every_finding_is_on_the_page():
    assert [name for name in (*KINDS, *TOKEN_KINDS) if f"`{name}`" not in PAGE] == []
