"""What is asked of the hub's library for a pinned set, and what becomes of its answer."""

from __future__ import annotations

from datetime import date

import datasets
import pytest

from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.readers import hub_set
from qlora_studio.data.readers.hub_set import HubSet, pin, read_hub
from qlora_studio.data.readers.rows import Row, Tally

SHA = "0123456789abcdef0123456789abcdef01234567"
CHECK = "Check subset and split on its page."


def test_a_set_is_shown_with_its_subset_where_it_has_one():
    assert str(HubSet("owner/name")) == "owner/name:train"
    assert str(HubSet("owner/name", "de", "test", SHA)) == "owner/name/de:test"


def test_pinning_changes_the_revision_alone(monkeypatch):
    asked = []
    monkeypatch.setattr(hub_set, "pin_dataset", lambda *values: asked.append(values) or SHA)
    assert pin(HubSet("owner/name", "de", "test", "v1")) == HubSet("owner/name", "de", "test", SHA)
    assert pin(HubSet("na-me_1.0")) == HubSet("na-me_1.0", None, "train", SHA)
    assert asked == [("owner/name", "v1"), ("na-me_1.0", None)]


@pytest.mark.parametrize("name", ["", "a/b/c", "/b", "a/", "a b", "a/b c", "https://x.y/a", "a/b\n"])
def test_what_is_no_id_is_not_asked_for(monkeypatch, name):
    monkeypatch.setattr(hub_set, "pin_dataset", None)
    with pytest.raises(StudioError) as caught:
        pin(HubSet(name))
    assert caught.value.problems == (
        Problem(f"'{name}' is not the id of a hub data set.", "It looks like owner/name."),
    )


@pytest.mark.parametrize(("token", "given"), [("hf_secret", "hf_secret"), (None, False)])
def test_rows_are_asked_for_as_a_stream_with_the_token_alone(monkeypatch, token, given):
    """Without a token the library must be told so, or it looks for one itself."""
    asked = []

    def load(*values, **more):
        asked.append((values, more))
        return iter([{"a": 1, "on": date(2026, 1, 2)}, {"a": b"x"}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(hub_set, "find_token", lambda: token)
    tally = Tally(rows=5)
    assert list(read_hub(HubSet("owner/name", "de", "test", SHA), tally)) == [
        Row("owner/name/de:test", 1, {"a": 1, "on": "2026-01-02"}),
        Row("owner/name/de:test", 2, {"a": "base64:eA=="}),
    ]
    assert tally.rows == 7
    assert asked == [
        (("owner/name", "de"), {"split": "test", "revision": SHA, "streaming": True, "token": given}),
    ]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("Unknown split.\nThere are two."), "Unknown split"),
        (Exception(), "Exception"),
        (KeyError("x" * 400), "'" + "x" * 299),
    ],
)
def test_what_the_library_says_is_its_first_line_at_most_three_hundred_characters_long(monkeypatch, error, reason):
    def load(*_, **__):
        yield {"a": 1}
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    tally, rows = Tally(), []
    with pytest.raises(StudioError) as caught:
        rows.extend(read_hub(HubSet("owner/name"), tally))
    message = f"The data set cannot be read: {reason}."
    assert caught.value.problems == (Problem(message, CHECK, "owner/name:train"),)
    assert (rows, tally.rows) == ([Row("owner/name:train", 1, {"a": 1})], 1), "what came before is kept"
