"""A run that is resumed is the same run, or says what changed."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import TrainRequest
from qlora_studio.home import Home
from qlora_studio.runs.folder import create_job
from qlora_studio.worker.context import Context, FetchedBase
from qlora_studio.worker.fingerprint import MUST_STAY, fingerprint, keep_fingerprint
from qlora_studio.worker.train import find_checkpoint


@pytest.fixture
def context(tmp_path):
    said: list[Any] = []
    made = Context(create_job(tmp_path / "runs", "one", TrainRequest()), said.append, guard=0, home=Home(tmp_path))
    made.said = said  # type: ignore[attr-defined]
    return made


def make(**changes: Any) -> dict[str, Any]:
    """A fingerprint, with single facts of what it is made from changed."""
    facts = {"train": "aa", "held_out": "bb", "template": "{{ x }}", "base": "org/name", "revision": "abc"} | changes
    rows: Any = SimpleNamespace(
        train=SimpleNamespace(sha256=facts["train"], reasoning_rows=facts.get("reasoning", 0), examples=range(4)),
        held_out=SimpleNamespace(sha256=facts["held_out"]),
    )
    tokenizer: Any = SimpleNamespace(template=facts["template"])
    base = FetchedBase(Home.find().root, facts["base"], facts["revision"])
    return fingerprint(TrainConfig(), base, tokenizer, rows)


def test_a_new_run_writes_its_fingerprint_and_the_same_run_goes_on(context, home):
    made = make()
    keep_fingerprint(context, made)
    assert json.loads((context.folder.path / "fingerprint.json").read_text()) == made
    keep_fingerprint(context, make())
    assert {"base", "tokens_sha256", "template_sha256", "seed", "versions"} <= made.keys()
    assert made["versions"].keys() >= {"torch", "transformers", "peft", "bitsandbytes"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train": "other"}, "tokens_sha256"),
        ({"held_out": "other"}, "tokens_sha256"),
        ({"template": "{{ y }}"}, "template_sha256"),
        ({"base": "org/other"}, "base"),
        ({"revision": "def"}, "revision"),
        ({"base": "org/other", "train": "other"}, "base, tokens_sha256"),
    ],
)
def test_a_run_that_would_be_another_is_refused_by_what_changed(context, home, changes, named):
    keep_fingerprint(context, make())
    before = (context.folder.path / "fingerprint.json").read_bytes()
    with pytest.raises(StudioError) as refused:
        keep_fingerprint(context, make(**changes))
    assert f"since it began, {named} changed." in str(refused.value)
    assert (context.folder.path / "fingerprint.json").read_bytes() == before


def test_a_run_of_another_version_is_refused_as_such(context, home):
    made = make()
    keep_fingerprint(context, made | {"schema": 1})
    with pytest.raises(StudioError, match="begun by another version"):
        keep_fingerprint(context, made)


def test_both_sides_of_the_data_count_and_their_order(home):
    assert make()["tokens_sha256"] != make(train="bb", held_out="aa")["tokens_sha256"]
    assert set(MUST_STAY) <= make().keys()


@pytest.mark.parametrize(("reasoning", "thinks"), [(0, False), (2, False), (3, True), (4, True)])
def test_a_run_thinks_where_most_of_its_rows_do(home, reasoning, thinks):
    assert make(reasoning=reasoning)["thinks"] is thinks


def test_a_damaged_checkpoint_is_named_and_an_older_one_is_said_to_be_used_only_where_there_is_one(context):
    (context.folder.path / "checkpoints" / "step-000003").mkdir(parents=True)
    assert find_checkpoint(context) is None
    (note,) = context.said
    assert "step-000003" in note.text and note.text.endswith("There is no older one, so the run begins again.")
