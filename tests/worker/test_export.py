"""Steps of the job `export`, each with stand-ins of what is heavy: what is kept, what is handed on, what is refused."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import ExportRequest
from qlora_studio.core.plan import GIB
from qlora_studio.engine.accelerator.cpu import CpuAccelerator
from qlora_studio.runs.folder import write_json
from qlora_studio.worker import export

LIVE = SimpleNamespace(model="model", tokenizer="tokenizer", options="options")


@pytest.fixture
def opened(monkeypatch):
    calls = []
    monkeypatch.setattr(export, "open_run", lambda *given: calls.append(given) or LIVE)
    return calls


def job(trained, **options):
    request = ExportRequest(run=trained.home.runs / "one", to=trained.home.root / "target" / "out", **options)
    return trained.context(request), request


def test_a_full_disk_is_said_before_anything_is_written(tmp_path, monkeypatch):
    stage = tmp_path / "disk" / "part" / "files"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=GIB if place == stage else 0))
    export.check_room(stage, GIB)
    with pytest.raises(StudioError, match=r"The export needs 1\.5 GiB, and 1\.0 GiB are free\.") as refused:
        export.check_room(stage, GIB + GIB // 2)
    assert refused.value.problems[0].where == str(tmp_path / "disk")


@pytest.mark.parametrize(
    ("held_out", "sources", "rows"), [(True, True, ("row",)), (False, True, ()), (True, False, ())]
)
def test_the_chat_is_asked_and_its_answers_are_kept_in_the_job(trained, opened, monkeypatch, held_out, sources, rows):
    asked, saved = [], []
    record = SimpleNamespace(save=lambda place: saved.append((place, list(place.iterdir()))))
    monkeypatch.setattr(export, "held_out", lambda *_: SimpleNamespace(examples=("row",)))
    monkeypatch.setattr(export, "record_chat", lambda *given: asked.append(given) or record)
    monkeypatch.setattr(export, "weigh_columns", lambda *_: pytest.fail("nobody wants an importance matrix"))
    if not sources:
        file = trained.home.runs / "one" / "config.json"
        export_config = trained.config.replace({"data.sources": []}).model_dump(mode="json")
        file.write_text(export.TrainConfig.model_validate(export_config).model_dump_json())
    done, request = job(trained, prompts=("Hi", "Ho"), held_out=held_out, checkpoint="step-2")
    place = done.folder.path / export.RECORD
    place.mkdir()
    (place / "old").touch()
    assert export.ask_the_chat(done.context, request, done.write) == place
    assert saved == [(place, [])], "what an interrupted job left is gone"
    assert asked == [(export.ChatModel("model", "tokenizer", "options"), ("Hi", "Ho"), rows)]
    assert done.phases() == ["answering with the adapter"]
    ((context, folder, checkpoint),) = opened
    assert (context, folder.path, checkpoint) == (done.context, request.run, "step-2")
    place.rmdir()
    assert export.ask_the_chat(done.context, request, done.write) == place and place.is_dir()


def test_without_prompts_only_the_columns_are_weighed_and_without_both_nothing_is_opened(trained, opened, monkeypatch):
    weighed = []
    monkeypatch.setattr(export, "weigh_columns", lambda *given: weighed.append(given))
    monkeypatch.setattr(export, "record_chat", lambda *_: pytest.fail("there is nothing to ask"))
    done, request = job(trained)
    assert export.ask_the_chat(done.context, request, done.write) is None and opened == [] and weighed == []
    done, request = job(trained, importance=True)
    assert export.ask_the_chat(done.context, request, "emit") is None and len(opened) == 1
    ((context, live, config, emit),) = weighed
    assert (context, live, emit) == (done.context, LIVE, "emit") and config.data.sources[0].name == "rows"


def test_columns_are_weighed_on_training_rows(trained, monkeypatch):
    saved, given = [], []

    def measure(model, rows, advanced):
        given.append((model, rows))
        advanced(3, 9)
        return "found"

    rows = SimpleNamespace(train=SimpleNamespace(examples=["row"]), held_out=SimpleNamespace(examples=["other"]))
    monkeypatch.setattr(
        export, "tokenise", lambda context, config, tokenizer: rows if tokenizer == "tokenizer" else None
    )
    monkeypatch.setattr(export, "measure_importance", measure)
    monkeypatch.setattr(export, "save_importance", lambda *what: saved.append(what))
    done, _ = job(trained)
    emitted = []
    export.weigh_columns(done.context, LIVE, trained.config, emitted.append)
    assert given == [("model", ["row"])] and emitted == [ev.Advanced(done=3, total=9, unit="tokens")]
    assert saved == [("found", done.folder.path / export.IMPORTANCE)]
    assert done.phases() == ["reading training rows", "measuring which columns count"]
    with pytest.raises(StudioError, match="no training rows here"):
        export.weigh_columns(done.context, LIVE, trained.config.replace({"data.sources": []}), emitted.append)


class Exporter:
    """Writes one file, and is asked about it here only where nothing is compared."""

    def __init__(self):
        self.sources, self.checks = [], []

    def size_bytes(self, source):
        return 1

    def write(self, source, stage, emit):
        self.sources.append(source)
        (stage / "deep").mkdir()
        (stage / "deep" / "model.bin").write_bytes(b"12345")

    def check(self, source, stage, record, emit):
        self.checks.append(record)


@pytest.fixture
def exporter(monkeypatch):
    made = Exporter()
    monkeypatch.setattr(export, "find_exporter", lambda kind: made)
    return made


def test_an_artefact_that_is_compared_is_asked_elsewhere_and_judged(trained, exporter, monkeypatch):
    asked = []
    bad = ev.Checked(what="merged model, as chatted", kl=0.2, as_chatted=True)
    good = ev.Checked(what="merged model", kl=0.001)
    for checks in ([good], [good, bad]):
        done, request = job(trained, prompts=("Hi",))
        record = done.folder.path / export.RECORD

        def keep(context, request, emit, record=record):
            record.mkdir()
            (record.parent / export.IMPORTANCE).touch()
            return record

        monkeypatch.setattr(export, "ask_the_chat", keep)
        monkeypatch.setattr(export, "ask_artefact", lambda *given, it=checks: asked.append(given) or it)
        if bad in checks:
            shutil.rmtree(request.to)
            with pytest.raises(StudioError, match=r"KL 0\.200 nats"):
                done.work(export)
            assert not request.to.exists()
        else:
            report = done.work(export).report
            assert report.path == request.to and report.files == ("README.md", "deep/model.bin")
            assert report.bytes == 5 + (request.to / "README.md").stat().st_size
            (exported,) = done.of(ev.Exported)
            assert (exported.what, exported.path, exported.bytes) == ("merged", str(request.to), report.bytes)
        assert not record.exists() and not (record.parent / export.IMPORTANCE).exists()
        assert exporter.sources[-1].importance == record.parent / export.IMPORTANCE and exporter.checks == []
        assert asked[-1][0] is done.context and asked[-1][2] == record


@pytest.mark.parametrize("request_name", ["stop", "pause"])
def test_a_stop_after_the_last_check_publishes_nothing(trained, exporter, monkeypatch, request_name):
    done, request = job(trained, kind="adapter")
    exporter.check = lambda source, stage, record, emit: done.folder.ask(request_name)
    if request_name == "stop":
        assert done.work(export) == ev.Stopped() and not request.to.exists()
        assert list(request.to.parent.iterdir()) == []
    else:
        assert isinstance(done.work(export), ev.Finished) and (request.to / "deep" / "model.bin").exists()
        assert not (request.to / "README.md").exists(), "a copy of the adapter has no card of ours"


def test_a_phase_says_how_long_it_still_takes(trained, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(export.time, "monotonic", lambda: now[0])
    done, _ = job(trained)
    emit = export.listening(done.context)
    emit(ev.PhaseEntered(phase="writing"))
    now[0] = 106.0
    emit(ev.Advanced(done=0, total=8, unit="bytes"))
    emit(ev.Advanced(done=2, total=8, unit="bytes"))
    emit(ev.Advanced(done=4, total=8, unit="bytes", seconds_left=1.0))
    emit(ev.PhaseEntered(phase="reading"))
    now[0] = 108.0
    emit(ev.Advanced(done=4, total=8, unit="bytes"))
    assert [one.seconds_left for one in done.of(ev.Advanced)] == [None, 18.0, 1.0, 2.0]
    done.folder.ask("stop")
    emit(ev.Noted(text="said anyway"))
    with pytest.raises(export.Stopped):
        emit(ev.Advanced(done=8, total=8, unit="bytes"))
    assert done.of(ev.Advanced)[-1].done == 8


def test_an_export_that_does_not_fit_the_disk_is_refused_before_it_is_written(trained, exporter):
    exporter.size_bytes = lambda source: 1 << 60
    done, request = job(trained, kind="adapter")
    with pytest.raises(StudioError, match=r"The export needs 1073741824\.0 GiB"):
        done.work(export)
    assert exporter.sources == [] and not request.to.exists()


def test_what_the_chat_held_is_given_back_before_the_export_is_written(trained, exporter, monkeypatch):
    order, write = [], exporter.write
    monkeypatch.setattr(CpuAccelerator, "release", lambda self: order.append("release"))
    monkeypatch.setattr(export, "ask_the_chat", lambda *_: order.append("asked"))
    exporter.write = lambda *given: order.append("written") or write(*given)
    done, _ = job(trained, prompts=("Hi",))
    done.work(export)
    assert order == ["asked", "release", "written"] and exporter.checks == [None]


def test_a_base_that_changed_since_the_training_is_refused_while_its_hashing_is_said(trained, exporter):
    done, request = job(trained)
    weights = trained.home.models / "tiny" / "model.safetensors"
    done.work(export)
    assert "comparing the base with that of the training" in done.phases() and request.to.exists()
    shutil.rmtree(request.to)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    done, request = job(trained)
    with pytest.raises(StudioError, match=r"model\.safetensors has changed") as refused:
        done.work(export)
    (problem,) = refused.value.problems
    assert problem.where == str(weights.parent) and problem.hint.startswith("Put the base back as it was")
    assert not request.to.exists() and len(exporter.sources) == 1
    hashed = done.of(ev.Advanced)
    assert hashed[-1] == ev.Advanced(done=len(data), total=len(data), unit="bytes")


@pytest.mark.parametrize("record", [None, {}, {"identity": None}, {"identity": []}])
def test_a_run_that_wrote_down_no_hashes_is_exported_as_it_is(trained, exporter, record):
    file = trained.home.runs / "one" / "fingerprint.json"
    file.unlink()
    if record is not None:
        write_json(file, record)
    done, request = job(trained)
    done.work(export)
    assert request.to.exists() and "comparing the base with that of the training" not in done.phases()
