"""The record of a run of which only its name and settings are known, and data of which only the name is."""

from __future__ import annotations

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.labels import Labels
from qlora_studio.core.record import DataRecord, RunRecord
from tests.core.frozen import stays


def test_a_record_of_a_run_that_did_nothing_is_empty():
    record = RunRecord(name="one", config=TrainConfig())
    assert record.model_dump(exclude={"name", "config", "labels"}) == {
        "schema_version": 1, "fingerprint": {}, "data": (), "state": "", "losses": (), "evaluations": (), "peak_bytes": 0,
    }  # fmt: skip
    assert record.labels == Labels()
    assert DataRecord(name="a").model_dump() == {"name": "a", "sha256": "", "rows": 0}
    assert stays(record) and stays(DataRecord(name="a"))
