"""The weights that a run starts from: found, checked, and kept with it."""

from __future__ import annotations

import shutil

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.core.identity import Identity
from qlora_studio.core.jobs import TrainRequest
from qlora_studio.engine.checkpoints import ADAPTER_FILES
from qlora_studio.engine.manifest import MANIFEST, find_damage
from qlora_studio.runs.folder import read_json
from qlora_studio.worker.fingerprint import read_identity
from qlora_studio.worker.start import find_start


@pytest.fixture
def base(trained) -> Identity:
    return read_identity(read_json(trained.home.runs / "one" / "fingerprint.json"))


def start(trained, base, adapter, name="two"):
    done = trained.context(TrainRequest(), name, model__adapter=adapter)
    return done, lambda: find_start(done.context, done.context.config(), base)


def test_a_new_adapter_starts_from_nothing(trained, base):
    done, find = start(trained, base, None)
    assert find() is None and not (done.folder.path / "start").exists()


@pytest.mark.parametrize(("choice", "place"), [("one", "adapter"), (" one@step-2 ", "checkpoints/step-000002")])
def test_the_weights_are_copied_into_the_run_and_nothing_else(trained, base, choice, place):
    done, find = start(trained, base, choice)
    found = find()
    assert found == done.folder.path / "start" and find_damage(found) == ""
    assert {path.name for path in found.iterdir()} == {*ADAPTER_FILES, MANIFEST}
    for name in ADAPTER_FILES:
        assert (found / name).read_bytes() == (trained.home.runs / "one" / place / name).read_bytes()
    shutil.rmtree(trained.home.runs / "one")
    assert find() == found, "the other run is needed no more"
    (found / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(StudioError, match=r"adapter_model\.safetensors") as refused:
        find()
    assert refused.value.hint == "Start a new run."


def test_what_is_not_there_or_damaged_or_of_another_base_is_refused(trained, base):
    for adapter, message in (("nobody", "There is no run 'nobody'"), ("one@step-9", "no checkpoint 'step-9'")):
        done, find = start(trained, base, adapter)
        with pytest.raises(StudioError, match=message):
            find()
        assert not (done.folder.path / "start").exists()
    _, find = start(trained, Identity(base={"model.safetensors": "0" * 64}), "one")
    with pytest.raises(StudioError, match=r"The adapter of 'one' was trained on another base\. .") as refused:
        find()
    assert refused.value.problems[0].field == "model.adapter"
    (trained.home.runs / "one" / "adapter" / "adapter_config.json").write_text("{")
    _, find = start(trained, base, "one")
    with pytest.raises(StudioError, match=r"adapter_config\.json") as refused:
        find()
    assert refused.value.hint == "Choose another checkpoint to start from."
    assert refused.value.problems[0].field == "model.adapter"


def test_a_run_that_kept_no_record_of_its_base_is_taken_as_it_is(trained, base):
    (trained.home.runs / "one" / "fingerprint.json").unlink()
    _, find = start(trained, Identity(base={"model.safetensors": "0" * 64}), "one")
    assert find() is not None
