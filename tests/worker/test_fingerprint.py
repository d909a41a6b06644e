"""A run that is resumed is the same run, or says what changed."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.identity import Identity
from qlora_studio.core.jobs import TrainRequest
from qlora_studio.home import Home
from qlora_studio.runs.folder import create_job
from qlora_studio.worker import train
from qlora_studio.worker.context import Context, FetchedBase
from qlora_studio.worker.fingerprint import (
    MUST_STAY,
    check_same_weights,
    fingerprint,
    identify_base,
    keep_fingerprint,
    kept_rate,
)
from qlora_studio.worker.train import find_checkpoint


@pytest.fixture
def context(tmp_path):
    events: list[Any] = []
    made = Context(create_job(tmp_path / "runs", "one", TrainRequest()), events.append, guard=0, home=Home(tmp_path))
    made.events = events  # type: ignore[attr-defined]
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
    identity = Identity(base={"model.safetensors": facts.get("weights", "ww")})
    config = TrainConfig().replace(facts.get("settings", {}))
    return fingerprint(config, base, tokenizer, rows, identity)


def test_a_new_run_writes_its_fingerprint_and_the_same_run_goes_on(context, home):
    made = make()
    keep_fingerprint(context, made)
    assert json.loads((context.folder.path / "fingerprint.json").read_text()) == made
    keep_fingerprint(context, make())
    assert {"base", "tokens_sha256", "template_sha256", "seed", "versions"} <= made.keys()
    assert made["versions"].keys() >= {"torch", "transformers", "peft", "bitsandbytes"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "other"}, "The rows are others, or become other tokens."),
        ({"held_out": "other"}, "The rows are others, or become other tokens."),
        ({"template": "{{ y }}"}, "The chat template is not the one it was trained with."),
        ({"base": "org/other"}, "The base is another one: org/other instead of org/name."),
        ({"revision": None}, "The base's revision is none instead of abc."),
        (
            {"weights": "flipped"},
            "The base's weights are not those it was trained with: model.safetensors has changed.",
        ),
        ({"settings": {"lora.alpha": 7}}, "lora.alpha is 7 instead of 32."),
        (
            {"base": "org/other", "train": "other"},
            "The base is another one: org/other instead of org/name. The rows are others, or become other tokens.",
        ),
    ],
)
def test_a_run_that_would_be_another_is_refused_with_what_differs(context, home, changes, message):
    keep_fingerprint(context, make(settings={"lora.alpha": 32}))
    before = (context.folder.path / "fingerprint.json").read_bytes()
    with pytest.raises(StudioError) as refused:
        keep_fingerprint(context, make(**{"settings": {"lora.alpha": 32}} | changes))
    assert refused.value.message.endswith(f"for it would be another one. {message}")
    assert (context.folder.path / "fingerprint.json").read_bytes() == before


def test_what_does_not_decide_the_curve_may_change(context, home):
    keep_fingerprint(context, make())
    keep_fingerprint(context, make(settings={"saving.keep": 9, "memory.budget_gib": 3.5, "evaluation.patience": 2}))


def test_a_change_of_version_is_said_once_and_recorded_beside_what_it_was(context, home):
    made = make()
    older, newer = made | {"versions": made["versions"] | {"torch": "2.0"}}, made
    keep_fingerprint(context, older)
    for _ in range(2):
        keep_fingerprint(context, newer)
    (note,) = context.events
    assert note.text.startswith("Since this run was last at work, versions changed: torch 2.0 before, ")
    kept = json.loads((context.folder.path / "fingerprint.json").read_text())
    assert kept["versions"]["torch"] == "2.0" and kept["resumed_with"] == [newer["versions"]]


def test_a_fingerprint_that_knows_no_hashes_differs_in_none_and_learns_them(context, home):
    made = make()
    earlier = {name: value for name, value in made.items() if name not in ("identity", "settings")}
    keep_fingerprint(context, earlier)
    keep_fingerprint(context, made)
    assert json.loads((context.folder.path / "fingerprint.json").read_text()) == made


def test_a_base_that_changed_is_not_chatted_with_in_silence(context, tmp_path):
    """One byte of the base flipped after training: refused by name; as it was: accepted."""
    base = tmp_path / "base"
    base.mkdir()
    weights = base / "model.safetensors"
    save_file({"w": torch.ones(4)}, weights)
    tokenizer: Any = SimpleNamespace(template="{{ x }}")
    found = FetchedBase(base, "org/name", "abc")
    made = make() | {"identity": identify_base(context, base).model_dump(mode="json")}
    keep_fingerprint(context, made)
    check_same_weights(context, context.folder, found, tokenizer)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(StudioError, match=r"not answer as it was trained\. .*model\.safetensors has changed\."):
        check_same_weights(context, context.folder, found, tokenizer)
    with pytest.raises(StudioError, match="The chat template is not the one"):
        check_same_weights(context, context.folder, found, SimpleNamespace(template="{{ z }}"))  # type: ignore[arg-type]


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
    (note,) = context.events
    assert "step-000003" in note.text and note.text.endswith("There is no older one, so the run begins again.")


def test_a_rate_that_was_chosen_stays_whatever_rule_chooses_now(context, home, monkeypatch):
    shape: Any = SimpleNamespace(hidden=64)
    config = TrainConfig()
    monkeypatch.setattr(train, "choose_rate", lambda config, shape: config.replace({"optim.learning_rate": 3e-4}))
    begun = train.settle_rate(context, config, shape)
    keep_fingerprint(context, make(settings={"optim.learning_rate": begun.optim.learning_rate}))
    monkeypatch.setattr(train, "choose_rate", lambda config, shape: config.replace({"optim.learning_rate": 9e-4}))
    resumed = train.settle_rate(context, config, shape)
    assert resumed.optim.learning_rate == 3e-4
    keep_fingerprint(context, make(settings={"optim.learning_rate": resumed.optim.learning_rate}))
    monkeypatch.setattr(train, "choose_rate", lambda config, shape: config)
    typed = config.replace({"optim.learning_rate": 1e-5})
    assert train.settle_rate(context, typed, shape).optim.learning_rate == 1e-5, "one that a person types is theirs"


def test_how_far_the_hashing_of_a_base_is_is_said(context, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    save_file({"w": torch.ones(4)}, base / "model.safetensors")
    size = (base / "model.safetensors").stat().st_size
    first, second = identify_base(context, base), identify_base(context, base)
    assert first == second and first.base["model.safetensors"]
    assert [event for event in context.events if isinstance(event, ev.PhaseEntered)] == [
        ev.PhaseEntered(phase="hashing the base's weights")
    ] * 2
    assert [event for event in context.events if isinstance(event, ev.Advanced)] == [
        ev.Advanced(done=size, total=size, unit="bytes")
    ] * 2


@pytest.mark.parametrize(
    ("record", "rate"),
    [
        (None, None), ("{}", None), ('{"settings": []}', None), ('{"settings": {}}', None),
        ('{"settings": {"optim": null}}', None), ('{"settings": {"optim": {"learning_rate": null}}}', None),
        ('{"settings": {"optim": {"learning_rate": true}}}', None),
        ('{"settings": {"optim": {"learning_rate": "1e-4"}}}', None),
        ('{"settings": {"optim": {"learning_rate": 1}}}', 1.0),
        ('{"settings": {"optim": {"learning_rate": 0.0002}}}', 2e-4),
    ],
)  # fmt: skip
def test_the_rate_that_a_run_was_begun_with_is_a_number_or_not_known(context, record, rate):
    if record is not None:
        (context.folder.path / "fingerprint.json").write_text(record)
    found = kept_rate(context.folder)
    assert found == rate and isinstance(found, float) == (rate is not None)


def test_every_version_that_changed_is_said_with_both_and_one_that_is_new_is_not(context, home):
    made = make()
    keep_fingerprint(context, made | {"versions": {"torch": "1.0", "peft": "0.1"}})
    now = {"torch": "2.0", "peft": "0.1", "bitsandbytes": "0.5"}
    keep_fingerprint(context, made | {"versions": now})
    keep_fingerprint(context, made | {"versions": now | {"peft": "0.2"}})
    before, after = (
        "Since this run was last at work, versions changed: ", ". Its curve may differ by rounding.",
    )  # fmt: skip
    assert [event.text for event in context.events] == [
        f"{before}torch 1.0 before, 2.0 now{after}", f"{before}peft 0.1 before, 0.2 now{after}",
    ]  # fmt: skip
    kept = json.loads((context.folder.path / "fingerprint.json").read_text())
    assert kept["versions"] == {"torch": "1.0", "peft": "0.1"}
    assert kept["resumed_with"] == [now, now | {"peft": "0.2"}]


def test_what_is_refused_is_refused_with_what_to_do(context, home):
    keep_fingerprint(context, make())
    file = str(context.folder.path / "fingerprint.json")
    with pytest.raises(StudioError) as refused:
        keep_fingerprint(context, make(template="other"))
    (problem,) = refused.value.problems
    assert problem.where == file and problem.hint == (
        "Bring that back as it was, or start a new run from its weights: `qlora-studio train --adapter one`. "
        "Its checkpoints stay where they are."
    )
    with pytest.raises(StudioError) as refused:
        keep_fingerprint(context, make() | {"schema": 3})
    (problem,) = refused.value.problems
    assert (problem.where, problem.hint) == (file, "Start a new run; its checkpoints stay where they are.")


def test_a_base_of_a_run_without_a_record_or_a_template_is_taken_as_it_is(context, tmp_path, home):
    base = tmp_path / "base"
    base.mkdir()
    save_file({"w": torch.ones(4)}, base / "model.safetensors")
    tokenizer: Any = SimpleNamespace(template="{{ x }}")
    found = FetchedBase(base, "org/name", "abc")
    check_same_weights(context, context.folder, found, tokenizer)
    assert context.events == [], "nothing is hashed where nothing is known"
    keep_fingerprint(context, {"schema": 2, "versions": {}})
    check_same_weights(context, context.folder, found, tokenizer)
    assert context.events[0] == ev.PhaseEntered(phase="hashing the base's weights")
