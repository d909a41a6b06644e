"""Which locks a job needs, where they lie, and what they say of their holder."""

from __future__ import annotations

import pytest

from qlora_studio.core.jobs import DoctorRequest, RateRequest, TrainRequest
from qlora_studio.runs.folder import create_job
from qlora_studio.worker import locks


@pytest.fixture
def places(tmp_path, monkeypatch):
    monkeypatch.setattr(locks.platformdirs, "user_runtime_path", lambda name, appauthor: tmp_path / "run" / name)
    return tmp_path


def test_a_training_needs_its_home_and_then_its_card(places):
    run = create_job(places / "home" / "runs", "one", TrainRequest())
    search = create_job(places / "home" / "cache" / "rates", "try", RateRequest(steps=3))
    look = create_job(places / "home" / "jobs", "look", DoctorRequest())
    card = places / "run" / "qlora-studio" / "card-GPU-1--a.lock"
    for job, words in ((run, "one"), (search, locks.SEARCH)):
        request = job.read_job().request
        assert locks.trains(request)
        (home,) = locks.needed_locks(job, request, None)
        assert not card.parent.exists()
        found = locks.needed_locks(job, request, "GPU-1/_a")
        training = places / "home" / "runs" / ".training.lock"
        assert [(lock.path, lock.words) for lock in found] == [
            (training, words), (card, f"{words} of {places / 'home'}"),
        ]  # fmt: skip
        assert (home.path, home.words) == (training, words) and card.parent.is_dir()
        for path in card.parent.iterdir():
            path.unlink()
        card.parent.rmdir()
    assert not locks.trains(look.read_job().request)
    assert locks.needed_locks(look, look.read_job().request, "GPU-1") == []
