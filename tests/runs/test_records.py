"""The record of a run: what is known of it, under names that mean something on another machine too."""

import pytest

from qlora_studio.core.record import DataRecord
from qlora_studio.runs.folder import write_json
from qlora_studio.runs.records import is_local_path, read_record
from qlora_studio.runs.store import RunStore
from qlora_studio.studio import Studio
from tests.runs.made import make_run


@pytest.mark.parametrize(
    ("base", "local"),
    [
        ("org/name", False), ("name", False), ("smollm2-135m-instruct", False), ("/models/name", True),
        ("./name", True), ("../name", True), ("~/name", True), ("C:\\models\\name", True), ("models/org/name", True),
    ],
)  # fmt: skip
def test_a_base_is_local_where_its_name_is_a_path(base, local):
    assert is_local_path(base) is local


@pytest.fixture
def studio(home) -> Studio:
    return Studio()


def record_of(studio, name="one"):
    return read_record(RunStore(studio.home.runs).open(name))


def test_a_record_is_what_config_fingerprint_and_journal_say(studio):
    sources = [{"name": "pip"}, {"name": "other"}]
    run = make_run(studio, "one", 1.25, model__base="org/name", data__sources=sources)
    fingerprint = {"base": "org/name", "datasets": {"pip": "ab12"}}
    write_json(run.path / "fingerprint.json", fingerprint)
    record = record_of(studio)
    assert (record.name, record.state, record.fingerprint) == ("one", "finished", fingerprint)
    assert record.config.model.base == "org/name"
    assert record.data == (DataRecord(name="pip", sha256="ab12"), DataRecord(name="other", sha256=""))
    assert record.losses == () and record.evaluations == ((5, 1.25), (10, 1.55)) and record.peak_bytes == 0


@pytest.mark.parametrize(
    ("fingerprint", "name"), [(None, "my-model"), ({}, "my-model"), ({"base": None}, "my-model"), ({"base": "org/it"}, "org/it")]
)  # fmt: skip
def test_a_base_that_is_a_path_goes_by_what_the_training_called_it_or_by_its_folder(studio, fingerprint, name):
    run = make_run(studio, "one", 1.0, model__base="/somewhere/my-model", data__sources=[{"name": "pip"}])
    if fingerprint is not None:
        write_json(run.path / "fingerprint.json", fingerprint | {"datasets": None})
    record = record_of(studio)
    assert record.config.model.base == name
    assert record.fingerprint == ({} if fingerprint is None else fingerprint | {"datasets": None})
    assert record.data == (DataRecord(name="pip", sha256=""),)
