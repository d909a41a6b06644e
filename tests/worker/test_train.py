"""The job `train` from its rows to its record, and what it says on the way."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.held_out import HeldOut
from qlora_studio.core.jobs import TrainRequest
from qlora_studio.data.sets.mix import Taken
from qlora_studio.engine.setup import Outcome
from qlora_studio.runs.folder import JobFolder, read_json
from qlora_studio.worker import train
from tests.worker.small_home import Done


@pytest.fixture(autouse=True)
def passed(monkeypatch):
    """As if every template had been tried; who was asked about which."""
    calls = []
    monkeypatch.setattr(train, "vet_once", lambda *arguments: calls.append(arguments))
    return calls


def test_a_run_of_three_steps_reports_what_its_journal_says(trained_files):
    done = trained_files
    assert done.phases()[:5] == [
        "tokenising the rows",
        "hashing the base's weights",
        "loading the model in 4 bits",
        "trying the largest step",
        "measuring the held-out loss",
    ]
    assert done.notes() == ["16 rows to train, 4 held out; 640 tokens, 216 of them trained."]
    steps, evaluations = done.of(ev.StepLogged), done.of(ev.EvaluationLogged)
    assert [step.step for step in steps] == [1, 2, 3] and steps[-1].total_steps == 3
    assert [(one.step, one.adapter, one.rows) for one in evaluations] == [(0, False, 4), (2, True, 4), (3, True, 4)]
    best = min(evaluations[1:], key=lambda one: one.loss)
    report = done.events[-1].report
    assert (report.steps, report.loss, report.stopped_early) == (3, steps[-1].loss, False)
    assert (report.held_out_before, report.held_out_after) == (evaluations[0].loss, evaluations[-1].loss)
    assert (report.best_step, report.best_held_out) == (best.step, best.loss)
    assert report.held_out_after < report.held_out_before


def test_what_a_run_leaves_behind(trained_files):
    folder, config = trained_files.folder, trained_files.context.config()
    names = {path.name for path in folder.path.iterdir()}
    assert {"adapter", "checkpoints", "plan.json", "fingerprint.json"} <= names and "start" not in names
    assert sorted(path.name for path in folder.adapter.iterdir()) == [
        "MANIFEST.json", "adapter_config.json", "adapter_model.safetensors",
    ], "the base brings its own tokenizer"  # fmt: skip
    assert {path.name for path in (folder.path / "checkpoints").iterdir()} == {"step-000002", "step-000003"}
    record = read_json(folder.path / "fingerprint.json")
    assert record["base"] == "tiny" and record["settings"]["optim"]["learning_rate"] == config.optim.learning_rate
    assert json.loads((folder.adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert list(trained_files.home.cache.glob("*")), "what was learned of this machine"


def test_a_stop_and_a_pause_before_the_model_is_loaded_are_told_apart(small, monkeypatch):
    monkeypatch.setattr(train, "load_model", lambda *_: pytest.fail("it was loaded"))
    made = {}
    for request in ("stop", "pause"):
        done = made[request] = small.context(TrainRequest())
        done.folder.ask(request)
        assert done.work(train) == ev.Stopped(paused=request == "pause")
        assert "loading the model in 4 bits" not in done.phases()
    kept = small.context(TrainRequest())
    tokenised = train.prepare_rows(kept.context, small.config, train.load_tokenizer(small.home.models / "tiny"))
    for request in ("stop", "pause"):  # the rows are there: it is asked when everything is prepared
        monkeypatch.setattr(train, "prepare_rows", lambda *_: tokenised)
        done = small.context(TrainRequest())
        done.folder.ask(request)
        assert done.work(train) == ev.Stopped(paused=request == "pause")
        assert (done.folder.path / "fingerprint.json").exists() and "loading the model in 4 bits" not in done.phases()


MEASURED = HeldOut(before=3.0, evaluations=((4, 1.5), (8, 1.75)))


def outcome(**changes):
    values = {"step": 9, "total_steps": 12, "loss": 2.5, "held_out": MEASURED, "ending": "finished"}
    return Outcome(**(values | changes))


def test_how_a_training_ended_is_its_last_event(small):
    done = small.context(TrainRequest())
    last = train.last_event(done.context, outcome()).report
    assert (last.steps, last.loss, last.held_out_before, last.held_out_after) == (9, 2.5, 3.0, 1.75)
    assert (last.best_step, last.best_held_out, last.stopped_early) == (4, 1.5, False)
    assert train.last_event(done.context, outcome(ending="early")).report.stopped_early
    none = train.last_event(done.context, outcome(loss=None, held_out=HeldOut())).report
    assert (none.loss, none.best_step, none.best_held_out) == (None, None, None)
    stopped = outcome(ending="stopped")
    assert train.last_event(done.context, stopped) == ev.Stopped(step=9, saved="adapter", paused=False)
    paused = outcome(ending="paused")
    assert train.last_event(done.context, paused) == ev.Stopped(step=9, saved="checkpoint", paused=True)


def test_a_run_that_takes_no_step_more_reports_the_loss_of_its_journal(trained):
    done = Done(JobFolder(trained.home.runs / "one"), trained.home)
    steps = [json.loads(line) for line in done.folder.events.read_text().splitlines()]
    (loss,) = [step["loss"] for step in steps if step["event"] == "step" and step["step"] == 3]
    assert train.last_event(done.context, outcome(loss=None)).report.loss == loss


def test_a_run_resumed_after_its_last_step_comes_to_the_same_report(trained, trained_files):
    done = Done(JobFolder(trained.home.runs / "one"), trained.home)
    before = trained_files.events[-1].report
    report = done.work(train).report
    assert (report.steps, report.loss, report.best_step) == (before.steps, before.loss, before.best_step)
    assert report.best_held_out == before.best_held_out and done.of(ev.StepLogged) == []


def test_the_tokenizer_is_put_beside_an_adapter_only_where_the_base_brings_no_template(small, tmp_path):
    saved = []
    tokenizer = SimpleNamespace(inner=SimpleNamespace(save_pretrained=saved.append))
    train.write_beside(small.config, tokenizer, tmp_path)
    assert saved == []
    train.write_beside(small.config.replace({"model.template": "chatml"}), tokenizer, tmp_path)
    assert saved == [tmp_path]


def test_a_run_thinks_where_most_of_its_rows_do(small):
    def thinks(reasoning, rows):
        rows = SimpleNamespace(train=SimpleNamespace(reasoning_rows=reasoning, examples=[None] * rows))
        return train.thinks(small.config, rows).thinking

    assert [thinks(2, 4), thinks(3, 4), thinks(2, 3), thinks(0, 0)] == [False, True, True, False]


def test_sample_prompts_are_answered_by_the_tuned_side_greedily(small):
    heard = []

    def answer(prompt, side, sampling):
        heard.append((side, sampling.max_new_tokens, sampling.temperature))
        return prompt.upper()

    config = small.config.replace({"evaluation.prompts": "one\ntwo", "evaluation.answer_tokens": 7})
    answers = list(train.sample_answers(config, SimpleNamespace(whole_answer=answer)))
    assert answers == [("one", "ONE"), ("two", "TWO")] and heard == [("tuned", 7, 0.0)] * 2


def test_a_rate_left_open_is_chosen_once_and_said(small):
    config = small.config.replace({"optim.learning_rate": None})
    shape = SimpleNamespace(hidden=64)
    done = small.context(TrainRequest())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "choose_rate", lambda config, shape: config.replace({"optim.learning_rate": 5e-4}))
        assert train.settle_rate(done.context, config, shape).optim.learning_rate == 5e-4
        assert done.notes() == ["Learning rate 0.0005: it suits a model of width 64 at this alpha."]
        (done.folder.path / "fingerprint.json").write_text('{"settings": {"optim": {"learning_rate": 0.003}}}')
        assert train.settle_rate(done.context, config, shape).optim.learning_rate == 0.003
    assert train.settle_rate(done.context, small.config, shape).optim.learning_rate == 4e-3
    assert len(done.notes()) == 1


def test_what_came_otherwise_while_loading_is_kept_and_noted(small, monkeypatch, tmp_path):
    """Another plan than the one given is written down, and an adapter to start from is taken."""
    done, order = small.context(TrainRequest()), []
    plan, other = object(), object()
    material = SimpleNamespace(base=SimpleNamespace(folder=tmp_path), config=small.config)
    planned = SimpleNamespace(plan=plan, again="again")
    monkeypatch.setattr(train, "start_from", lambda model, start: order.append((model, start)))
    monkeypatch.setattr(train, "keep_plan", lambda context, kept: order.append(kept))
    for begins, made in ((None, plan), (tmp_path / "start", other)):
        loaded = SimpleNamespace(plan=made, model="model", notes=["With less."])
        monkeypatch.setattr(train, "load_for_training", lambda *given, it=loaded: order.append(given) or it)
        assert train.load_model(done.context, material, planned, begins) is loaded
    given = (tmp_path, small.config, plan, "again")
    assert order == [given, given, ("model", tmp_path / "start"), other]
    assert done.phases() == ["loading the model in 4 bits"] * 2 and done.notes() == ["With less."] * 2


def rows_of(**changes):
    of_train = {"examples": [None] * 5, "tokens": 50, "trained_tokens": 20, "mixture": (), "dropped": 0, "cut": 0}
    checks = []
    found = SimpleNamespace(
        train=SimpleNamespace(**(of_train | changes), check=checks.append), held_out=SimpleNamespace(examples=[None])
    )
    return found, checks


def test_what_is_taken_and_what_is_left_out_is_said(small, monkeypatch):
    taken = Taken(name="rows", share=0.25, rows=5, of_rows=10, size=5, epochs=0.5)
    for changes, more in (
        ({}, []),
        ({"dropped": 2}, ["2 rows left out and 0 cut: longer than 256 tokens."]),
        ({"cut": 3}, ["0 rows left out and 3 cut: longer than 256 tokens."]),
        ({"mixture": (taken,)}, ["rows: 5 of 10 rows, 25% of the mixture, each seen 1.5 times."]),
    ):
        rows, checks = rows_of(**changes)
        monkeypatch.setattr(train, "tokenise", lambda *_, rows=rows: rows)
        done = small.context(TrainRequest())
        config = small.config.replace({"optim.epochs": 3, "data.accepted": ["one-finding"]})
        assert train.prepare_rows(done.context, config, None) is rows
        assert checks == [config.data.accepted]
        assert done.notes() == ["5 rows to train, 1 held out; 50 tokens, 20 of them trained.", *more]


def test_damaged_checkpoints_are_named_and_passed_over(trained):
    done = Done(JobFolder(trained.home.runs / "one"), trained.home)
    kept = done.folder.path / "checkpoints"
    assert train.find_checkpoint(done.context) == kept / "step-000003" and done.notes() == []
    (kept / "step-000003" / "state.json").write_text("{")
    leftover = done.folder.path / ".stage" / "adapter"
    leftover.mkdir(parents=True)
    assert train.find_checkpoint(done.context) == kept / "step-000002"
    (said,) = done.notes()
    assert said.endswith(" An older checkpoint is used.") and not leftover.exists()
    (kept / "step-000002" / "state.json").write_text("{")
    again = Done(done.folder, trained.home)
    assert train.find_checkpoint(again.context) is None
    assert len(again.notes()) == 2
    assert all(note.endswith(" There is no older one, so the run begins again.") for note in again.notes())


def test_the_speed_of_the_steps_is_kept_with_the_padding_they_had(small, monkeypatch):
    learned, measured = [], []
    monkeypatch.setattr(train, "padding_of_steps", lambda *_: 1.25)
    monkeypatch.setattr(train, "learn_speed", lambda *given: learned.append(given))
    material = SimpleNamespace(
        rows=SimpleNamespace(train=SimpleNamespace(examples=SimpleNamespace(token_lengths=[4, 5]))), config=small.config
    )
    done = small.context(TrainRequest())
    for settings, speed in ((None, None), (None, "quick"), ("settings", "quick")):
        monkeypatch.setattr(train, "measured_speed", lambda *given, it=speed: measured.append(given) or it)
        planned = SimpleNamespace(plan=SimpleNamespace(settings=settings), shape="shape", gpu="card")
        train.keep_speed(done.context, material, planned, ["step"])
    assert [(shape, steps, padding) for shape, _, steps, padding in measured] == [
        ("shape", ["step"], 1.0), ("shape", ["step"], 1.0), ("shape", ["step"], 1.25),
    ]  # fmt: skip
    assert learned == [(small.home.cache, "card", "quick")] * 2


def test_findings_that_nobody_accepted_end_the_run_before_anything_is_loaded(small, monkeypatch):
    def refuse(accepted):
        raise StudioError("Not these rows.")

    rows, _ = rows_of()
    rows.train.check = refuse
    monkeypatch.setattr(train, "tokenise", lambda *_: rows)
    done = small.context(TrainRequest())
    with pytest.raises(StudioError, match="Not these rows"):
        done.work(train)
    assert done.phases() == ["tokenising the rows"] and not (done.folder.path / "plan.json").exists()


def test_each_event_of_a_training_is_written_tracked_and_learned_from(small, passed, monkeypatch):
    """The tracker hears all of them, the planner what the probe measured, and the speed is that of the steps alone."""
    step = ev.StepLogged(
        step=1, total_steps=3, epoch=0, loss=1, learning_rate=1, grad_norm=1, tokens=1, trained_tokens=1,
        tokens_per_second=1, peak_bytes=1,
    )  # fmt: skip
    probe = ev.ProbeMeasured(predicted_bytes=1, measured_bytes=2, tokens=3)
    said, tracked, learned, kept = [step, probe, ev.Noted(text="x"), step], [], [], []
    monkeypatch.setattr(train, "open_tracker", lambda config, folder: tracked.append)
    monkeypatch.setattr(
        train, "learn_from_probe", lambda context, planned, event: learned.append((planned.plan, event))
    )
    monkeypatch.setattr(train, "keep_speed", lambda context, material, planned, steps: kept.append(list(steps)))
    loaded = SimpleNamespace(plan="the plan it was loaded with")
    monkeypatch.setattr(train, "load_model", lambda *_: loaded)
    monkeypatch.setattr(train, "make_setup", lambda context, material, made: made)
    monkeypatch.setattr(train, "train", lambda setup, emit, pending: [emit(one) for one in said] and outcome())
    done = small.context(TrainRequest())
    assert done.work(train).report.steps == 9
    assert tracked == said == done.events[-5:-1] and kept == [[step, step]]
    assert learned == [(loaded.plan, probe)]
    assert passed == [(done.context, small.home.models / "tiny", None)], "no template is rendered that was never tried"
