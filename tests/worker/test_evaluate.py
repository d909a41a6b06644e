"""The job `evaluate`: the same held-out rows and prompts, once to the base and once to the tuned model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.chat import Sampling
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import EvaluateRequest
from qlora_studio.engine.ladder import Limits
from qlora_studio.runs.folder import read_json, write_json
from qlora_studio.worker import evaluate, loaded_run

SHORT = Sampling(max_new_tokens=3)


def request_of(small, **options):
    return EvaluateRequest(run=small.home.runs / "one", sampling=SHORT, **options)


def test_it_measures_what_the_training_measured_and_asks_both_sides(trained, trained_files, monkeypatch):
    of_training = trained_files.of(ev.EvaluationLogged)
    limits, layouts = [], []
    ladder, layout = evaluate.MemoryLadder, evaluate.keep_layout
    monkeypatch.setattr(evaluate, "MemoryLadder", lambda *given: limits.append(given[2]) or ladder(*given))
    monkeypatch.setattr(
        evaluate,
        "keep_layout",
        lambda model, *, canonical: layouts.append(canonical) or layout(model, canonical=canonical),
    )
    done = trained.context(request_of(trained, prompts=("Hi", "Count 3")))
    report = done.work(evaluate).report
    assert (report.rows, report.base_loss) == (4, pytest.approx(of_training[0].loss, rel=1e-6))
    assert report.tuned_loss == pytest.approx(of_training[-1].loss, rel=1e-6) and report.tuned_loss < report.base_loss
    assert limits == [Limits(4096, 0, 0)] and layouts == [False]
    assert done.phases()[-3:] == ["loading the model in 4 bits", "measuring the held-out loss", "answering"]
    assert [(one.step, one.loss, one.rows, one.tokens, one.adapter) for one in done.of(ev.EvaluationLogged)] == [
        (0, report.base_loss, 4, of_training[0].tokens, False), (0, report.tuned_loss, 4, of_training[0].tokens, True),
    ]  # fmt: skip
    samples = done.of(ev.SampleWritten)
    assert [(one.prompt, one.side) for one in samples] == [
        ("Hi", "base"), ("Hi", "tuned"), ("Count 3", "base"), ("Count 3", "tuned"),
    ]  # fmt: skip
    assert {one.step for one in samples} == {0} and max(len(one.answer) for one in samples) <= 3
    said = [(one.done, one.total) for one in done.of(ev.Advanced) if one.unit == "prompts"]
    assert said == [(1, 2), (2, 2)]


def test_a_checkpoint_is_measured_in_place_of_the_adapter(trained, trained_files):
    (at_two,) = [one.loss for one in trained_files.of(ev.EvaluationLogged) if one.step == 2]
    report = trained.context(request_of(trained, checkpoint="step-2")).work(evaluate).report
    assert report.tuned_loss == pytest.approx(at_two, rel=1e-6)


@pytest.fixture
def live(monkeypatch):
    """A run that is loaded without a model: it answers its prompt."""
    opened = []
    model = SimpleNamespace(eval=lambda: None)
    made = SimpleNamespace(
        model=model, tokenizer=None, whole_answer=lambda prompt, side, sampling: f"{side}: {prompt}"
    )  # fmt: skip
    monkeypatch.setattr(evaluate, "open_run", lambda *given: opened.append(given) or made)
    monkeypatch.setattr(evaluate, "keep_layout", lambda *_, **__: None)
    return opened


def no_rows(monkeypatch):
    monkeypatch.setattr(evaluate, "find_held_out", lambda *_: SimpleNamespace(examples=()))


def test_without_held_out_rows_the_prompts_alone_are_answered(trained, live, monkeypatch):
    no_rows(monkeypatch)
    done = trained.context(request_of(trained, prompts=("Hi",), checkpoint="last"))
    report = done.work(evaluate).report
    assert (report.rows, report.base_loss, report.tuned_loss) == (0, None, None)
    assert [one.answer for one in done.of(ev.SampleWritten)] == ["base: Hi", "tuned: Hi"]
    assert done.phases() == ["answering"]
    ((context, folder, checkpoint),) = live
    assert context is done.context and folder.path == trained.home.runs / "one" and checkpoint == "last"


def test_with_neither_rows_nor_prompts_there_is_nothing_to_measure(trained, live, monkeypatch):
    no_rows(monkeypatch)
    with pytest.raises(StudioError, match="holds nothing out, so there is nothing to measure") as refused:
        trained.context(request_of(trained)).work(evaluate)
    assert "an evaluation share above 0" in refused.value.hint


def test_a_stop_ends_it_while_rows_are_read_and_between_two_answers(trained, live, monkeypatch):
    def stop(*_):
        raise evaluate.Stopped

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "find_held_out", stop)
        assert trained.context(request_of(trained, prompts=("Hi",))).work(evaluate) == ev.Stopped()
    no_rows(monkeypatch)
    done = trained.context(request_of(trained, prompts=("Hi", "Ho")))
    write = done.context.write

    def hear(event):
        write(event)
        if isinstance(event, ev.SampleWritten):
            done.folder.ask("stop")

    done.context.write = hear
    assert done.work(evaluate) == ev.Stopped()
    assert [one.side for one in done.of(ev.SampleWritten)] == ["base"]
    paused = trained.context(request_of(trained, prompts=("Hi",)))
    paused.folder.ask("pause")
    assert isinstance(paused.work(evaluate), ev.Finished), "there is nothing to go on with later"


def test_weights_that_are_damaged_are_not_opened(trained):
    file = trained.home.runs / "one" / "adapter" / "adapter_config.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(StudioError, match=r"adapter_config\.json") as refused:
        trained.context(request_of(trained)).work(evaluate)
    assert refused.value.hint == "Choose a checkpoint with --checkpoint, or train again."


@pytest.mark.parametrize("thinks", [True, False])
def test_a_run_is_opened_as_it_was_trained(trained, thinks, monkeypatch):
    """Its template, its dtype and whether it thinks are of the run; a base that has changed since is refused."""
    devices = []
    choose = loaded_run.load.choose_device
    monkeypatch.setattr(loaded_run.load, "choose_device", lambda dtype: devices.append(dtype) or choose(dtype))
    done = trained.context(request_of(trained))
    folder = type(done.folder)(trained.home.runs / "one")
    record = folder.path / "fingerprint.json"
    values = read_json(record)
    write_json(record, values | {"thinks": thinks})
    live = loaded_run.open_run(done.context, folder)
    assert live.options.thinking is thinks and not live.model.training and devices == ["fp32"]
    assert live.base.label == "tiny"
    values["identity"]["base"]["model.safetensors"] = "0" * 64
    write_json(record, values)
    with pytest.raises(StudioError, match="This adapter would not answer as it was trained"):
        loaded_run.open_run(done.context, folder)


def test_a_template_of_the_run_itself_goes_before_that_of_the_base(trained, monkeypatch):
    looked = []

    def load(folder):
        looked.append(folder)
        raise StudioError("Enough.")

    monkeypatch.setattr(loaded_run, "load_tokenizer", load)
    monkeypatch.setattr(loaded_run, "find_damage", lambda _: "")
    done = trained.context(request_of(trained))
    folder = type(done.folder)(trained.home.runs / "one")
    for _ in range(2):
        with pytest.raises(StudioError, match="Enough"):
            loaded_run.open_run(done.context, folder)
        (folder.adapter / "tokenizer_config.json").write_text("{}")
    assert looked == [trained.home.models / "tiny", folder.adapter]


class Letters:
    """A tokenizer whose last token is only whole with the one after it."""

    def decode(self, ids):
        return {1: "a", 2: "a\ufffd", 3: "aé", 4: "aé\ufffd"}[len(ids)]


def answers(monkeypatch, count, stop_after=99):
    given = []

    def generate(model, prompt, stops, sampling):
        given.append((model, prompt, stops, sampling))
        yield from range(count)

    live = loaded_run.LoadedRun(None, Letters(), SimpleNamespace(eval=lambda: given.append("eval")), None, None)
    monkeypatch.setattr(loaded_run.LoadedRun, "prompt", lambda self, turns: [len(turns)])
    monkeypatch.setattr(loaded_run, "generate", generate)
    monkeypatch.setattr(loaded_run, "stop_ids", lambda tokenizer: {9})
    monkeypatch.setattr(loaded_run, "choose_side", lambda model, side: evaluate.nullcontext())
    pieces = []
    for piece in live.answer(["turn"], "tuned", SHORT, lambda: len(pieces) >= stop_after):
        pieces.append(piece)
    assert given == ["eval", (live.model, [1], {9}, SHORT)]
    return pieces


def test_an_answer_grows_by_whole_characters_and_ends_with_what_was_held_back(monkeypatch):
    assert answers(monkeypatch, 3) == ["a", "aé"]
    assert answers(monkeypatch, 4) == ["a", "aé", "aé\ufffd"]
    assert answers(monkeypatch, 2) == ["a", "a\ufffd"]
    assert answers(monkeypatch, 0) == []
    assert answers(monkeypatch, 4, stop_after=1) == ["a"]
