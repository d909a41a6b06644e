"""What a person says of a run: nothing, unless somebody says it, and no more than fits."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from qlora_studio.core.labels import Labels
from tests.core.frozen import stays


def test_a_run_of_which_nobody_says_anything_has_no_labels():
    assert Labels().model_dump() == {"title": "", "note": "", "tags": (), "pinned_steps": (), "pinned": False}
    assert stays(Labels())


def test_a_title_fits_a_line_and_a_note_a_few_pages():
    assert Labels(title="x" * 120, note="y" * 20_000).title == "x" * 120
    for wrong in ({"title": "x" * 121}, {"note": "y" * 20_001}):
        with pytest.raises(ValidationError):
            Labels(**wrong)
