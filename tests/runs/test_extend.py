"""A run that is given more epochs: its config, its record and its journal change together."""

from __future__ import annotations

import json

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.jobs import TrainRequest
from qlora_studio.runs.extend import extend_run
from qlora_studio.runs.folder import create_job, read_json, write_json
from qlora_studio.runs.journal import Follower

BEFORE = TrainConfig().replace({"optim.epochs": 2, "optim.seed": 7})
MORE = BEFORE.replace({"optim.epochs": 3, "optim.ended_at": [2.0]})


@pytest.fixture
def run(tmp_path):
    return create_job(tmp_path, "one", TrainRequest(), {"config.json": BEFORE.model_dump(mode="json")})


def test_only_how_long_a_run_is_changes_in_its_record(run):
    settings = {"optim": {"epochs": 2.0, "max_steps": 5, "learning_rate": 1e-4}, "lora": {"rank": 8}}
    write_json(run.path / "fingerprint.json", {"base": "tiny", "settings": settings})
    extend_run(run, MORE)
    assert read_json(run.path / "fingerprint.json") == {
        "base": "tiny",
        "settings": {
            "optim": {"epochs": 3.0, "max_steps": None, "ended_at": [2.0], "learning_rate": 1e-4},
            "lora": {"rank": 8},
        },
    }
    assert read_json(run.config_file) == MORE.model_dump(mode="json")
    (line,) = [json.loads(line) for line in run.events.read_text().splitlines()]
    assert (line["event"], line["epochs"]) == ("extended", 3.0)
    follower = Follower(run.events)
    follower.read()
    assert follower.progress.state == "stopped"


def test_a_record_without_settings_of_a_length_gets_them(run):
    write_json(run.path / "fingerprint.json", {"settings": {}})
    extend_run(run, MORE)
    length = {"epochs": 3.0, "max_steps": None, "ended_at": [2.0]}
    assert read_json(run.path / "fingerprint.json") == {"settings": {"optim": length}}


@pytest.mark.parametrize("record", [None, "{", '{"settings": []}'])
def test_a_record_that_knows_no_settings_is_left_as_it_is(run, record):
    file = run.path / "fingerprint.json"
    if record is not None:
        file.write_text(record)
    extend_run(run, MORE)
    assert (file.read_text() if file.exists() else None) == record
    assert read_json(run.config_file) == MORE.model_dump(mode="json") and run.events.exists()
