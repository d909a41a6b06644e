"""A run is a person's own: named, noted, pinned, deleted, compared, done again."""

from __future__ import annotations

import json

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import EvaluateRequest, ExportRequest, TrainRequest
from qlora_studio.core.record import RunRecord
from qlora_studio.core.runs import common_answers, differing_settings, losses_at_marks
from qlora_studio.home import Home
from qlora_studio.runs import queue
from qlora_studio.runs.folder import JobFolder, create_job
from qlora_studio.runs.journal import Journal
from qlora_studio.studio import Studio
from tests.core.test_progress import step
from tests.runs.holders import held


@pytest.fixture
def studio(tmp_path):
    return Studio(Home(tmp_path))


def make_run(studio, title="one", changes=None, **files) -> JobFolder:
    config = TrainConfig().replace(changes or {})
    whole = {"config.json": config.model_dump(mode="json"), **files}
    job = create_job(studio.home.runs, title, TrainRequest(), whole)
    journal = Journal(job.events)
    for event in (ev.JobStarted(job="train"), step(1), step(2), ev.Stopped(step=2)):
        journal.append(event)
    journal.close()
    return job


def test_what_is_said_of_a_run_is_kept_and_its_name_stays(studio):
    make_run(studio)
    studio.runs.label("one", title="The good one")
    studio.runs.label("one", note="Rank was too low.", tags=("pip", "rank"))
    assert studio.runs.all() == Studio(studio.home).runs.all()
    (summary,), view = studio.runs.all(), studio.runs.open("one")
    assert (summary.name, summary.title, view.title) == ("one", "The good one", "The good one")
    assert (summary.note, summary.tags, view.labels.tags) == ("Rank was too low.", ("pip", "rank"), ("pip", "rank"))
    studio.runs.label("one", title="")
    assert studio.runs.all()[0].title == "one"


def test_too_much_said_is_refused_and_what_was_said_stays(studio):
    make_run(studio)
    studio.runs.label("one", note="short")
    with pytest.raises(StudioError, match="field 'title'"):
        studio.runs.label("one", title="x" * 121)
    assert studio.runs.open("one").labels.note == "short"


def test_the_pinned_stand_first(studio):
    for number, title in enumerate(("old", "new")):
        job = make_run(studio, title)
        values = json.loads(job.job_file.read_text()) | {"created": number}
        job.job_file.write_text(json.dumps(values))
    studio.runs.label("old", pinned=True)
    assert [run.name for run in studio.runs.all()] == ["old", "new"]


def test_a_deleted_run_is_gone_with_all_it_held(studio):
    job = make_run(studio)
    (job.path / "checkpoints" / "step-000001").mkdir(parents=True)
    (job.path / "checkpoints" / "step-000001" / "weights").write_bytes(b"x" * 5000)
    assert studio.runs.size_bytes("one") > 5000
    studio.runs.delete("one")
    assert studio.runs.all() == [] and not list(studio.home.runs.iterdir())
    with pytest.raises(StudioError, match="There is no run 'one'"):
        studio.runs.delete("one")


def test_a_run_in_use_is_not_deleted(studio):
    job = make_run(studio)
    with held(job.lock_file), pytest.raises(StudioError, match="is at work"):
        studio.runs.delete("one")
    evaluation = create_job(job.path / "evaluations", "evaluate", EvaluateRequest(run=job.path))
    with held(evaluation.lock_file), pytest.raises(StudioError, match="is in use by 'evaluate'"):
        studio.runs.delete("one")
    studio.runs.label("one", pinned=True)
    with pytest.raises(StudioError, match="is pinned"):
        studio.runs.delete("one")
    assert job.path.is_dir()
    studio.runs.label("one", pinned=False)
    studio.runs.delete("one")
    assert not job.path.exists()


def test_runs_are_compared_by_the_settings_in_which_they_differ(studio):
    make_run(studio, "a", {"lora.rank": 8, "optim.seed": 7})
    make_run(studio, "b", {"lora.rank": 64, "optim.seed": 7})
    runs = [studio.runs.open("a"), studio.runs.open("b")]
    assert differing_settings(runs) == [("lora.rank", (8, 64))]
    assert differing_settings(runs[:1]) == [] == differing_settings([])


def test_a_record_holds_what_decides_the_curve_and_the_curve(studio, tmp_path):
    fingerprint = {"base": "org/name", "tokens_sha256": "ab", "versions": {"torch": "1"}}
    sources = {"data.sources": [{"name": "pip"}], "lora.rank": 8}
    make_run(studio, "one", sources, **{"fingerprint.json": fingerprint})
    studio.runs.label("one", note="why")
    record = studio.runs.record("one")
    assert record.config == studio.runs.open("one").config and record.fingerprint == fingerprint
    assert record.losses == ((1, 2.0), (2, 1.0)) and record.state == "stopped" and record.labels.note == "why"
    assert [data.name for data in record.data] == ["pip"]
    assert RunRecord.parse(record.model_dump_json(), "here") == record


def test_a_record_names_no_path_of_this_machine(studio, tmp_path):
    make_run(studio, "one", {"model.base": str(tmp_path / "my-model")}, **{"fingerprint.json": {"base": "my-model"}})
    text = studio.runs.record("one").model_dump_json()
    assert str(tmp_path) not in text and json.loads(text)["config"]["model"]["base"] == "my-model"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "here: This is not JSON"),
        ("[1]", "here: This is not the record of a run"),
        ("{}", "field 'name': This is not the record of a run: field required."),
        ('{"name": "x", "config": {"lora": {"rank": 0}}}', "field 'lora.rank': 0 is not allowed"),
        ('{"name": "x", "config": {}, "schema_version": 9}', "written by another version (schema 9)"),
    ],
)
def test_a_record_that_is_none_is_refused_with_its_file(text, message):
    with pytest.raises(StudioError) as refused:
        RunRecord.parse(text, "here")
    assert message in str(refused.value) and "here" in str(refused.value)


def test_what_refers_to_a_run_or_a_set_is_said_before_it_is_deleted(studio, tmp_path):
    first = make_run(studio, "one")
    (first.path / "events.jsonl").write_text(json.dumps({"time": 1.0, "event": "finished"}) + "\n")
    assert studio.references.to_run("one") == [] and studio.references.to_set("mine") == []
    config = TrainConfig().replace({"model.adapter": "one@best", "data.sources": [{"name": "mine"}]})
    waiting = create_job(studio.home.runs, "two", TrainRequest(), {"config.json": config.model_dump(mode="json")})
    queue.put(waiting)
    job = create_job(first.path / "exports", "export", ExportRequest(run=first.path, to=tmp_path / "out"))
    exported = [{"event": "exported", "what": "gguf", "path": str(tmp_path / "out"), "bytes": 1}, {"event": "finished"}]
    job.events.write_text("".join(json.dumps({"time": 1.0, **one}) + "\n" for one in exported))
    assert studio.references.to_run("one") == [
        "From its weights start two, which could not begin or go on without them."
    ]
    (tmp_path / "out").mkdir()
    assert studio.references.to_run("one")[1] == (
        f"Exports of it stay, without the record of how they were made: {tmp_path / 'out'}."
    )
    assert studio.references.to_set("mine") == ["Without mine these cannot begin or be resumed: two."]
    queue.take_out(waiting)
    waiting.events.write_text(json.dumps({"time": 1.0, "event": "finished"}) + "\n")
    assert len(studio.references.to_run("one")) == 1, "a run that is over needs it no more"
    assert studio.references.to_set("mine") == [
        "Trained on mine, and not to be repeated or evaluated on its rows without it: two."
    ]


def test_losses_stand_side_by_side_at_the_same_steps_tokens_or_seconds(studio):
    """Two runs over the same tokens, one in half as many steps, each twice as large and twice as long."""
    for name, count, tokens in (("fine", 8, 100), ("coarse", 4, 200)):
        job = make_run(studio, name)
        job.events.unlink()
        journal = Journal(job.events)
        journal.append(ev.EvaluationLogged(step=0, loss=5.0, tokens=1, rows=1, adapter=False))
        for number in range(1, count + 1):
            line = step(number).model_copy(update={"tokens": tokens, "loss": float(number), "tokens_per_second": 100.0})
            journal.append(line)
        journal.append(ev.EvaluationLogged(step=count, loss=3.0, tokens=1, rows=1))
        journal.close()
    runs = [studio.runs.open("fine"), studio.runs.open("coarse")]
    assert losses_at_marks(runs, "step", held_out=False, marks=4) == [
        (2.0, [1.5, 1.5]), (4.0, [3.5, 3.5]), (6.0, [5.5, None]), (8.0, [7.5, None]),
    ]  # fmt: skip
    halves = [(1.5, 1.0), (3.5, 2.0), (5.5, 3.0), (7.5, 4.0)]
    for along, last in (("tokens", 800.0), ("seconds", 8.0)):
        rows = losses_at_marks(runs, along, held_out=False, marks=4)
        assert [row[0] for row in rows] == [last / 4 * mark for mark in (1, 2, 3, 4)]
        assert [tuple(row[1]) for row in rows] == halves
    assert losses_at_marks(runs, "tokens", held_out=True, marks=2) == [
        (0.0, [5.0, 5.0]), (400.0, [None, None]), (800.0, [3.0, 3.0]),
    ]  # fmt: skip
    empty = create_job(
        studio.home.runs, "empty", TrainRequest(), {"config.json": TrainConfig().model_dump(mode="json")}
    )
    assert losses_at_marks([studio.runs.open(empty.name)], "step", held_out=False) == []


def test_a_finished_run_is_not_resumed_and_takes_no_step_more(studio):
    job = make_run(studio)
    job.events.write_text(json.dumps({"time": 1.0, "event": "finished"}) + "\n")
    with pytest.raises(StudioError, match=r"The run 'one' is finished\. Only a run that did not finish can be resumed"):
        studio.runs.resume("one")
    assert job.events.read_text().count("\n") == 1


def test_answers_to_the_same_prompts_stand_side_by_side_the_newest_of_each_run(studio):
    """Those of the training and of evaluations; a prompt that only one run was asked is left out."""

    def sample(prompt, answer, side="tuned", step=0):
        return ev.SampleWritten(step=step, prompt=prompt, answer=answer, side=side)

    samples = {
        "one": (
            [sample("Hi", "base", "base"), sample("Hi", "early", step=5), sample("Only here", "x")],
            [sample("Hi", "late")],
        ),
        "two": ([sample("Hi", "other", step=5)], []),
    }
    for name, (training, evaluation) in samples.items():
        job = make_run(studio, name)
        evaluated = create_job(job.path / "evaluations", "evaluate", EvaluateRequest(run=job.path, prompts=("Hi",)))
        for folder, events in ((job, training), (evaluated, evaluation)):
            journal = Journal(folder.events)
            for event in events:
                journal.append(event)
            journal.close()
    assert common_answers([studio.runs.answers(name) for name in samples]) == [("Hi", ["late", "other"])]
    assert common_answers([studio.runs.answers("one")]) == []
