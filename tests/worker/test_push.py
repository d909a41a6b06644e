"""Exports handed on to LM Studio and Ollama: the right file in the right place, the right command, or one sentence."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from qlora_studio import local_programs
from qlora_studio.core import events as ev
from qlora_studio.core.errors import StudioError
from qlora_studio.core.jobs import PushRequest
from qlora_studio.home import Home
from qlora_studio.runs.folder import create_job
from qlora_studio.worker import push
from qlora_studio.worker.context import Context
from tests.modelfile_reader import read_modelfile

MODELFILE = 'FROM ./run.Q8_0.gguf\nPARAMETER stop "<|im_end|>"\n'
OLLAMA = """#!{python}
import json, os, pathlib, sys
place = pathlib.Path({log!r})
place.write_text(json.dumps({{"arguments": sys.argv[1:], "folder": os.getcwd(), "modelfile": open("Modelfile").read(),
    "tokens": [name for name in os.environ if "TOKEN" in name]}}))
print("gathering model components")
if {fails}:
    print("Error: could not connect to a running Ollama instance", file=sys.stderr)
    sys.exit(1)
"""


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "run.Q8_0.gguf").write_bytes(os.urandom(100_000))
    (folder / "Modelfile").write_text(MODELFILE)
    return folder


@pytest.fixture
def person(tmp_path, monkeypatch):
    """A home folder of a person's own."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "person")
    (tmp_path / "person").mkdir()
    return tmp_path / "person"


def install_ollama(tmp_path, monkeypatch, *, fails=False):
    """A stand-in that writes down how it was called."""
    program, log = tmp_path / "bin" / "ollama", tmp_path / "called.json"
    program.parent.mkdir()
    program.write_text(OLLAMA.format(python=sys.executable, log=str(log), fails=fails))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return log


def work(tmp_path, events, **request):
    job = create_job(tmp_path / "pushes", "push", PushRequest(**request))
    return push.run(Context(job, events.append, os.getppid(), home=Home(tmp_path)))


@pytest.mark.parametrize("moved", [False, True])
def test_a_gguf_file_is_copied_to_where_lm_studio_finds_it(export, person, tmp_path, moved):
    place = person / ".lmstudio"
    if moved:
        place = tmp_path / "elsewhere"
        (person / ".lmstudio-home-pointer").write_text(str(place))
    place.mkdir()
    events: list[ev.Event] = []
    done = work(tmp_path, events, export=export, to="lmstudio", name="me/pirate")
    target = place / "models" / "me" / "pirate" / "run.Q8_0.gguf"
    assert isinstance(done, ev.Finished) and done.report.place == str(target)
    assert target.read_bytes() == (export / "run.Q8_0.gguf").read_bytes()
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert events[-1].done == events[-1].total == 100_000
    with pytest.raises(StudioError, match="has a file of this name already"):
        work(tmp_path, events, export=export, to="lmstudio", name="me/pirate")


def test_a_stopped_copy_leaves_nothing(export, person):
    (person / ".lmstudio").mkdir()

    def stop(done, total):
        raise push.Stopped

    with pytest.raises(push.Stopped):
        local_programs.copy_to_lm_studio(export, "me/pirate", stop)
    assert [path for path in (person / ".lmstudio").rglob("*") if path.is_file()] == []


def test_ollama_is_given_the_modelfile_of_the_export_and_no_token(export, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    log = install_ollama(tmp_path, monkeypatch)
    done = work(tmp_path, [], export=export, to="ollama", name="pirate")
    assert isinstance(done, ev.Finished) and done.report.place == "ollama run pirate"
    called = json.loads(log.read_text())
    assert called["arguments"] == ["create", "pirate", "-f", "Modelfile"] and called["folder"] == str(export)
    assert called["tokens"] == []
    assert dict(read_modelfile(called["modelfile"])) == {"from": "./run.Q8_0.gguf", "stop": "<|im_end|>"}


def test_what_ollama_says_against_it_is_passed_on(export, tmp_path, monkeypatch):
    install_ollama(tmp_path, monkeypatch, fails=True)
    with pytest.raises(StudioError, match="Ollama refuses the model: Error: could not connect"):
        work(tmp_path, [], export=export, to="ollama", name="pirate")


@pytest.mark.parametrize(
    ("to", "name", "message"),
    [
        ("lmstudio", "me/pirate", "LM Studio is not on this machine"),
        ("lmstudio", "../pirate", "LM Studio needs a name such as me/model"),
        ("lmstudio", "pirate", "LM Studio needs a name such as me/model"),
        ("ollama", "pirate", "Ollama is not on this machine"),
        ("ollama", "--help", "is no name for Ollama"),
    ],
)
def test_what_is_missing_or_misnamed_is_one_sentence(export, person, tmp_path, monkeypatch, to, name, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StudioError, match=message):
        work(tmp_path, [], export=export, to=to, name=name)


def test_a_folder_without_a_model_of_one_file_is_refused(tmp_path, monkeypatch):
    install_ollama(tmp_path, monkeypatch)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "run.lora.gguf").write_bytes(b"GGUF")
    with pytest.raises(StudioError, match="no GGUF file of a model"):
        work(tmp_path, [], export=tmp_path / "adapter", to="ollama", name="pirate")
    with pytest.raises(StudioError, match="There is no export in this folder"):
        work(tmp_path, [], export=tmp_path / "nowhere", to="ollama", name="pirate")


def of_kind(events, kind):
    return [event for event in events if isinstance(event, kind)]


def test_each_place_is_named_while_it_is_filled(export, person, tmp_path, monkeypatch):
    sent = []
    (person / ".lmstudio").mkdir()
    monkeypatch.setattr(push, "create_in_ollama", lambda folder, name, stopped: not stopped())
    monkeypatch.setattr(
        push, "upload_folder", lambda folder, name, public: sent.append((folder, name, public)) or "there"
    )
    said = {}
    for to, name in (("lmstudio", "me/pirate"), ("ollama", "pirate"), ("hub", "me/pirate")):
        events = []
        done = work(tmp_path, events, export=export, to=to, name=name, public=True)
        said[to] = [event.phase for event in of_kind(events, ev.PhaseEntered)]
        assert isinstance(done, ev.Finished)
    assert said == {
        "lmstudio": ["copying into LM Studio's folder"], "ollama": ["Ollama makes a model of it"],
        "hub": ["uploading to the hub"],
    }  # fmt: skip
    assert done.report.place == "there" and sent == [(export, "me/pirate", True)]


@pytest.mark.parametrize(("to", "name"), [("lmstudio", "me/pirate"), ("ollama", "pirate")])
def test_a_stop_is_heard_while_a_copy_is_made(export, person, tmp_path, monkeypatch, to, name):
    (person / ".lmstudio").mkdir()
    monkeypatch.setattr(push, "create_in_ollama", lambda folder, name, stopped: not stopped())
    job, events = create_job(tmp_path / "pushes", "push", PushRequest(export=export, to=to, name=name)), []
    job.ask("stop")
    assert push.run(Context(job, events.append, os.getppid(), home=Home(tmp_path))) == ev.Stopped()
    assert [path for path in (person / ".lmstudio").rglob("*") if path.is_file()] == []
    advances = of_kind(events, ev.Advanced)
    assert advances == ([ev.Advanced(done=100_000, total=100_000, unit="bytes")] if to == "lmstudio" else [])


def test_an_empty_folder_is_no_export(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(StudioError) as refused:
        work(tmp_path, [], export=tmp_path / "empty", to="hub", name="me/pirate")
    (problem,) = refused.value.problems
    assert problem.where == str(tmp_path / "empty") and problem.hint == "Name the folder of one."
