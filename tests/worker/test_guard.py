"""A worker that exits unexpectedly: memory kills are answered by going on smaller, other deaths by saying which."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.jobs import DoctorRequest, TrainReport, TrainRequest
from qlora_studio.runs.folder import create_job
from qlora_studio.runs.journal import Follower
from qlora_studio.worker import guard as guards
from qlora_studio.worker.guard import MOST_STALLED, count_rungs, guard

DIE_TWICE = """
import json, os, pathlib, signal, sys
folder = pathlib.Path(sys.argv[1])
deaths = folder / "deaths"
count = len(deaths.read_text()) if deaths.exists() else 0
if count < int(sys.argv[2]):
    deaths.write_text("x" * (count + 1))
    os.kill(os.getpid(), int(sys.argv[3]))
rungs = json.loads((folder / "limits.json").read_text())["rungs"] if (folder / "limits.json").exists() else 0
with (folder / "events.jsonl").open("a") as file:
    file.write(json.dumps({"event": "finished", "report": {"job": "train", "steps": rungs}}) + "\\n")
"""


def run_guard(folder, deaths: int, number: int, memory: bool) -> tuple[int, Follower]:
    killed = []

    def kills() -> int:
        killed.append(1)
        return len(killed) if memory else 0

    code = guard(folder, [sys.executable, "-c", DIE_TWICE, str(folder.path), str(deaths), str(number)], kills)
    follower = Follower(folder.events)
    follower.read()
    return code, follower


@pytest.mark.parametrize("deaths", [0, 1, 3])
def test_a_training_that_the_kernel_ended_for_memory_goes_on_smaller(tmp_path, deaths):
    folder = create_job(tmp_path, "one", TrainRequest())
    code, follower = run_guard(folder, deaths, 9, memory=True)
    assert code == 0 and follower.progress.state == "finished"
    assert follower.progress.report == TrainReport(steps=deaths)
    assert len([note for note in follower.progress.notes if "because memory ran out" in note]) == deaths


def test_after_too_many_memory_kills_it_stops_with_a_sentence(tmp_path):
    folder = create_job(tmp_path, "one", TrainRequest())
    code, follower = run_guard(folder, 99, 9, memory=True)
    assert code == 1 and follower.progress.state == "failed"
    assert follower.progress.message == "The system ended the worker because the computer's memory ran out."
    assert json.loads((folder.path / "limits.json").read_text()) == {"rungs": MOST_STALLED}


@pytest.mark.slow
def test_memory_kills_are_counted_against_progress_and_not_to_a_number(tmp_path):
    """A worker that brings one more step each time before it is killed is started again however often."""
    folder, deaths = create_job(tmp_path, "one", TrainRequest()), MOST_STALLED + 12
    step = ev.StepLogged(
        step=1, total_steps=99, epoch=0, loss=1, learning_rate=1, grad_norm=1, tokens=1, trained_tokens=1,
        tokens_per_second=1, peak_bytes=3 << 30,
    )  # fmt: skip
    logs = (
        "with (folder / 'events.jsonl').open('a') as file:\n"
        f"    file.write(json.dumps({step.to_json()!r} | {{'step': count + 1}}) + '\\n')\nif count <"
    )
    script = DIE_TWICE.replace("if count <", logs, 1)
    killed = iter(range(999))
    arguments = [sys.executable, "-c", script, str(folder.path), str(deaths), "9"]
    assert guard(folder, arguments, lambda: next(killed)) == 0
    assert len((folder.path / "deaths").read_text()) == deaths


@pytest.mark.parametrize(("number", "how"), [(9, "signal 9"), (11, "signal 11")])
def test_a_death_that_was_not_for_memory_is_not_repeated(tmp_path, number, how):
    folder = create_job(tmp_path, "one", TrainRequest())
    code, follower = run_guard(folder, 99, number, memory=False)
    assert code == 1 and follower.progress.message == f"The worker exited unexpectedly ({how})."
    assert "runs resume one" in follower.progress.hint and len((folder.path / "deaths").read_text()) == 1


def test_other_jobs_are_not_started_again(tmp_path):
    folder = create_job(tmp_path, "one", DoctorRequest())
    code, follower = run_guard(folder, 99, 9, memory=True)
    assert code == 1 and follower.progress.message.startswith("The system ended the worker because")


def test_signals_reach_the_child_while_it_works_and_their_handlers_come_back(monkeypatch):
    sent, heard = [], []

    class Child:
        def __init__(self, command):
            assert command == ["work"]

        def send_signal(self, number):
            sent.append(number)

        def wait(self):
            for number in guards.STOPPING:
                signal.raise_signal(number)
            return 5

    monkeypatch.setattr(guards.subprocess, "Popen", Child)
    before = {number: signal.signal(number, lambda number, frame: heard.append(number)) for number in guards.STOPPING}
    try:
        assert guards.run_child(["work"]) == 5
        assert sent == list(guards.STOPPING) and heard == []
        for number in guards.STOPPING:
            signal.raise_signal(number)
        assert heard == sent and len(sent) == len(guards.STOPPING)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_the_kernel_says_of_its_memory_kills(tmp_path, monkeypatch):
    counts = tmp_path / "vmstat"
    monkeypatch.setattr(guards, "VMSTAT", counts)
    assert guards.count_memory_kills() == 0
    counts.write_text("nr_free_pages 812\noom_killer 5\noom_kill 3\npgfault 7 9\n")
    assert guards.count_memory_kills() == 3
    counts.write_text("nr_free_pages 812\n")
    assert guards.count_memory_kills() == 0


def test_without_another_count_the_kernel_s_own_is_asked_around_the_child(tmp_path, monkeypatch):
    folder, counts = create_job(tmp_path, "one", TrainRequest()), iter([4, 4])
    monkeypatch.setattr(guards, "count_memory_kills", lambda: next(counts))
    monkeypatch.setattr(guards, "run_child", lambda command: guards.KILLED)
    assert guard(folder, ["work"]) == 1 and next(counts, None) is None
    follower = Follower(folder.events)
    assert follower.read() == [
        ev.Failed(
            message="The worker exited unexpectedly (signal 9).",
            hint=f"Its log is {folder.log}. A training can go on: `qlora-studio runs resume one`.",
        )
    ]


@pytest.mark.parametrize(("code", "said"), [(0, "exit code 0"), (1, "exit code 1"), (-15, "signal 15"), (2, None)])
def test_a_child_that_wrote_no_last_event_is_answered_for_unless_it_could_not_begin(tmp_path, monkeypatch, code, said):
    folder = create_job(tmp_path, "one", TrainRequest())
    monkeypatch.setattr(guards, "run_child", lambda command: code)
    assert guard(folder, ["work"], lambda: 0) == (1 if said else 2)
    found = [event.message for event in Follower(folder.events).read()]
    assert found == ([f"The worker exited unexpectedly ({said})."] if said else [])


def test_a_child_that_ran_out_of_memory_is_told_with_the_most_that_it_held(tmp_path):
    folder = create_job(tmp_path, "one", TrainRequest())
    words = "The system ended the worker because the computer's memory ran out."
    for peak, more in ((3 << 29, " It held 1.5 GiB at most."), (0, "")):
        assert guards.explain(folder, guards.KILLED, True, peak) == ev.Failed(
            message=words + more, hint="Close other programs, or choose a smaller model, rank or row length."
        )
    assert guards.explain(folder, guards.KILLED, True).message == words


def test_restarts_in_a_row_that_bring_no_step_are_counted_and_each_begins_a_rung_lower(tmp_path, monkeypatch):
    folder, begun, kills = create_job(tmp_path, "one", TrainRequest()), [], iter(range(99))
    monkeypatch.setattr(guards, "run_child", lambda command: begun.append(count_rungs(folder)) or guards.KILLED)
    assert guard(folder, ["work"], lambda: next(kills)) == 1
    assert begun == list(range(MOST_STALLED + 1))
    notes = [event.text for event in Follower(folder.events).read() if isinstance(event, ev.Noted)]
    assert (
        notes
        == [
            "The system ended the worker in step 1 because memory ran out. "
            "It resumes from its last checkpoint with a smaller micro-batch or more gradient checkpointing."
        ]
        * MOST_STALLED
    )
