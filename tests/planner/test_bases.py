"""Looking a base up: once, kept by the hash of its config, failures too; afterwards neither network nor child."""

import json
import time
from pathlib import Path

import pytest

from qlora_studio.core.bases import BaseRef, FailedBase, ResolvedBase, UnresolvedBase
from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import LinearShape, MeasuredShape, Moment, StepCosts
from qlora_studio.home import Home
from qlora_studio.planner import bases
from qlora_studio.planner.bases import find_resolved, measurement_file, resolve
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.shape import read_shape
from tests.hub_server import SHA, Hub, HubModel, serve
from tests.planner.test_shape import SMOL, write_config

pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")

ODD = SMOL | {"model_type": "granite"}
COSTS = StepCosts(1, 1, 0, 0, 0, 0, (Moment(1),), Moment(1))
MEASURED = MeasuredShape(
    linears=(LinearShape("q_proj", 8, 8, 30),), other_bytes=100, costs={"bf16": COSTS, "fp32": COSTS}, rank=16
)


class DryRun:
    """A dry run that counts how often it was made, and fails where it is told to."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.made = fails, 0

    def __call__(self, folder: Path) -> MeasuredShape:
        self.made += 1
        if self.fails:
            raise StudioError("This architecture cannot be measured: odd.", "Choose another model.", where=str(folder))
        return MEASURED


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def nothing(message: str) -> None:
    pass


def test_a_known_family_is_resolved_from_its_files_alone(tmp_path, home):
    folder = write_config(tmp_path / "smol", SMOL)
    (folder / "model.safetensors").write_bytes(b"0" * 500)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: other\n")
    (folder / "source.json").write_text('{"repo": "org/smol", "commit": "abc"}')
    (folder / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    facts = find_resolved(BaseRef(str(folder)), home)
    assert facts == ResolvedBase(
        name=str(folder),
        shape=REFERENCE_SHAPES["SmolLM2-135M"].model_copy(
            update={"name": str(folder), "config_hash": facts.shape.config_hash}
        ),
        weights="on_disk",
        weights_bytes=500,
        revision="abc",
        licence="apache-2.0",
        has_template=True,
    )
    assert not home.root.exists()


def test_a_folder_without_weights_is_resolved_and_says_what_is_missing(tmp_path, home):
    folder = write_config(tmp_path / "smol", SMOL)
    facts = find_resolved(BaseRef(str(folder)), home)
    assert (facts.weights, facts.weights_bytes) == ("missing", None)
    assert facts.weights_problem == f"{folder}: This folder holds no safetensors weights. Download the model again."
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "pickle weights only" in find_resolved(BaseRef(str(folder)), home).weights_problem


def test_the_demo_model_is_resolved_before_it_is_fetched(home):
    facts = find_resolved(BaseRef("smollm2-135m-instruct"), home)
    assert (facts.weights, facts.licence, facts.shape.layers) == ("to_download", "apache-2.0", 30)


@pytest.mark.parametrize("name", ["/no/such/folder", "no-such-model"])
def test_a_name_that_means_nothing_has_failed(home, name):
    facts = find_resolved(BaseRef(name), home)
    assert facts == FailedBase(
        name=name,
        stage="files",
        message=f"There is no model folder '{name}'.",
        hint="Give a folder with config.json and safetensors weights, a hub id such as org/name, or "
        "'smollm2-135m-instruct'.",
        field="model.base",
    )


def test_another_family_is_measured_once_by_the_hash_of_its_config(tmp_path, home):
    one, same = (write_config(tmp_path / name, ODD) for name in ("one", "same"))
    other = write_config(tmp_path / "other", ODD | {"num_hidden_layers": 31})
    run, announced = DryRun(), []
    assert find_resolved(BaseRef(str(one)), home) == UnresolvedBase(
        name=str(one), needs="The family 'granite' has to be measured by a dry run."
    )
    assert resolve(BaseRef(str(one)), home, run, announced.append).shape.measured == MEASURED
    assert announced == ["measuring an architecture that no formula knows"]
    for folder in (one, same):
        assert find_resolved(BaseRef(str(folder)), home).shape.measured == MEASURED
        resolve(BaseRef(str(folder)), home, run, nothing)
    assert run.made == 1
    assert isinstance(find_resolved(BaseRef(str(other)), home), UnresolvedBase)


def test_a_dry_run_that_failed_is_kept_and_made_again_only_when_asked(tmp_path, home):
    base = BaseRef(str(write_config(tmp_path / "odd", ODD)))
    run = DryRun(fails=True)
    failed = resolve(base, home, run, nothing)
    assert failed == FailedBase(
        name=base.name,
        stage="dry_run",
        message="This architecture cannot be measured: odd.",
        hint="Choose another model.",
        where=str(tmp_path / "odd"),
        field="model.base",
    )
    begun = time.process_time()
    assert [find_resolved(base, home) for _ in range(50)] == [failed] * 50
    assert time.process_time() - begun < 1
    assert resolve(base, home, run, nothing) == failed and run.made == 1
    run.fails = False
    assert resolve(base, home, run, nothing, again=True).shape.measured == MEASURED and run.made == 2


def test_where_what_was_measured_is_gone_at_once_it_says_so_and_what_to_do(tmp_path, home, monkeypatch):
    base = BaseRef(str(write_config(tmp_path / "odd", ODD)))
    monkeypatch.setattr("qlora_studio.planner.bases.write_whole", lambda *_: None)  # another process cleared the cache
    assert resolve(base, home, DryRun(), nothing) == FailedBase(
        name=base.name,
        stage="files",
        message="The family 'granite' has to be measured by a dry run.",
        hint="Look it up again.",
    )


def test_whether_an_adapter_can_be_merged_is_read_from_the_weights_that_are_there(tmp_path, home):
    import torch
    from safetensors.torch import save_file

    folder = write_config(tmp_path / "smol", SMOL | {"num_hidden_layers": 2})
    layers = {
        "q_proj": (576, 576), "k_proj": (192, 576), "v_proj": (192, 576), "o_proj": (576, 576),
        "gate_proj": (1536, 576), "up_proj": (1536, 576), "down_proj": (576, 1536),
    }  # fmt: skip
    weights = {
        f"model.layers.{layer}.{'mlp' if name in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{name}.weight": shape
        for layer in range(2)
        for name, shape in layers.items()
    }
    weights["model.layers.1.mlp.up_proj.weight"] = (8, 8)
    save_file(
        {name: torch.empty(shape, dtype=torch.int8) for name, shape in weights.items()}, folder / "model.safetensors"
    )
    facts = find_resolved(BaseRef(str(folder)), home)
    assert facts.unmergeable == ("model.layers.*.mlp.up_proj",)
    assert facts.limits == (
        "The adapter trains and cannot be merged into this base: model.layers.*.mlp.up_proj. It can be exported as it is.",
    )


def test_another_transformers_measures_anew(tmp_path, home, monkeypatch):
    base = BaseRef(str(write_config(tmp_path / "odd", ODD)))
    resolve(base, home, DryRun(fails=True), nothing)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    assert isinstance(find_resolved(base, home), UnresolvedBase)


def test_a_kept_file_that_is_broken_is_as_good_as_none(tmp_path, home):
    folder = write_config(tmp_path / "odd", ODD)
    resolve(BaseRef(str(folder)), home, DryRun(), nothing)
    measurement_file(read_shape(folder, "odd"), home).write_text("{")
    assert isinstance(find_resolved(BaseRef(str(folder)), home), UnresolvedBase)


@pytest.fixture
def running(monkeypatch):
    models = {
        "org/smol": HubModel({"config.json": json.dumps(SMOL).encode(), "model.safetensors": b"0" * 700}),
        "org/odd": HubModel({"config.json": json.dumps(ODD).encode(), "model.safetensors": b"0"}),
        "org/old": HubModel({"config.json": json.dumps(SMOL).encode(), "pytorch_model.bin": b"0"}),
        "org/mine": HubModel({"config.json": json.dumps(SMOL).encode()}, private=True),
        "org/evil": HubModel({"config.json": json.dumps(SMOL | {"attn_implementation": "e/k"}).encode()}),
    }
    with serve(Hub(models)) as there:
        monkeypatch.setenv("HF_ENDPOINT", there.url)
        yield there


def test_the_hub_is_asked_once_and_never_by_a_look(home, running):
    base = BaseRef("org/smol")
    assert find_resolved(base, home) == UnresolvedBase(
        name="org/smol", needs="The hub has to be asked for its config.json."
    )
    assert running.requests == []
    announced = []
    facts = resolve(base, home, DryRun(), announced.append)
    assert announced == ["asking the hub about org/smol"]
    assert (facts.weights, facts.revision, facts.licence) == ("to_download", SHA, "apache-2.0")
    assert facts.weights_bytes == 700 + len(json.dumps(SMOL))
    count = len(running.requests)
    assert resolve(base, home, DryRun(), nothing) == find_resolved(base, home) == facts
    assert len(running.requests) == count


def test_a_model_of_the_hub_may_need_both(home, running):
    run, announced = DryRun(), []
    assert resolve(BaseRef("org/odd"), home, run, announced.append).shape.measured == MEASURED
    assert announced == ["asking the hub about org/odd", "measuring an architecture that no formula knows"]


def test_a_model_without_safetensors_is_known_before_the_download(home, running):
    facts = resolve(BaseRef("org/old"), home, DryRun(), nothing)
    assert (facts.weights, facts.weights_problem) == ("missing", "This model has no safetensors weights on the hub.")


def test_a_config_of_the_hub_that_asks_for_foreign_code_has_failed(home, running):
    assert resolve(BaseRef("org/evil"), home, DryRun(), nothing).message == (
        "The model's config.json asks for foreign code."
    )


def test_a_refusal_is_kept_until_a_token_comes_or_someone_asks_again(home, running, monkeypatch):
    base = BaseRef("org/mine")
    failed = resolve(base, home, DryRun(), nothing)
    assert (failed.stage, failed.message) == ("hub", "The hub has no such model, or it is private.")
    count = len(running.requests)
    assert find_resolved(base, home) == resolve(base, home, DryRun(), nothing) == failed
    assert len(running.requests) == count
    resolve(base, home, DryRun(), nothing, again=True)
    assert len(running.requests) > count
    monkeypatch.setenv("HF_TOKEN", "good")
    assert isinstance(find_resolved(base, home), UnresolvedBase)
    assert isinstance(resolve(base, home, DryRun(), nothing), ResolvedBase)


def test_revisions_are_kept_apart(home, running):
    resolve(BaseRef("org/smol"), home, DryRun(), nothing)
    assert isinstance(find_resolved(BaseRef("org/smol", "v2"), home), UnresolvedBase)


def test_offline_a_model_that_was_looked_up_is_still_known(home, running, monkeypatch):
    facts = resolve(BaseRef("org/smol"), home, DryRun(), nothing)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_resolved(BaseRef("org/smol"), home) == facts
    assert resolve(BaseRef("org/new"), home, DryRun(), nothing).message == "The hub is switched off (HF_HUB_OFFLINE)."


def test_a_look_up_whose_result_cannot_be_kept_is_a_failure_that_says_what_is_missing(tmp_path, home, monkeypatch):
    folder = write_config(tmp_path / "odd", ODD)
    monkeypatch.setattr(bases, "write_whole", lambda path, content: None)
    assert resolve(BaseRef(str(folder)), home, DryRun(), nothing) == FailedBase(
        name=str(folder), stage="files", message="The family 'granite' has to be measured by a dry run.",
        hint="Look it up again.",
    )  # fmt: skip


def test_what_another_version_kept_is_not_believed(tmp_path, home, running):
    """A file with more in it than this version knows is looked up anew, of a dry run as of the hub."""
    folder = write_config(tmp_path / "odd", ODD)
    resolve(BaseRef(str(folder)), home, DryRun(), nothing)
    resolve(BaseRef("org/smol"), home, DryRun(), nothing)
    (record,) = (home.cache / "bases" / "hub").glob("*/hub.json")
    for file in (measurement_file(read_shape(folder, "odd"), home), record):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"more": 1}))
    assert isinstance(find_resolved(BaseRef(str(folder)), home), UnresolvedBase)
    assert isinstance(find_resolved(BaseRef("org/smol"), home), UnresolvedBase)


def test_a_name_that_is_known_is_not_looked_up_again_and_one_on_the_disk_never_on_the_hub(tmp_path, home, running):
    announced, run = [], DryRun()
    for name in ("smollm2-135m-instruct", str(write_config(tmp_path / "smol", SMOL))):
        assert resolve(BaseRef(name), home, run, announced.append, again=True).shape.layers == 30
    odd = BaseRef(str(write_config(tmp_path / "odd", ODD)))
    for _ in range(2):
        resolve(odd, home, run, announced.append)
    assert announced == ["measuring an architecture that no formula knows"] and run.made == 1
    assert running.requests == []


def test_the_demo_model_before_it_is_fetched_is_known_whole(home):
    assert find_resolved(BaseRef("smollm2-135m-instruct"), home) == ResolvedBase(
        name="smollm2-135m-instruct",
        shape=REFERENCE_SHAPES["SmolLM2-135M"].model_copy(update={"name": "smollm2-135m-instruct"}),
        weights="to_download", weights_bytes=270_000_000, licence="apache-2.0", has_template=True,
    )  # fmt: skip


def test_where_a_measurement_and_a_record_of_the_hub_are_kept(tmp_path, home, running, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.1" if name == "transformers" else "0")
    shape = read_shape(write_config(tmp_path / "odd", ODD), "odd")
    kept = home.cache / "bases"
    assert measurement_file(shape, home) == kept / "measured" / f"{shape.config_hash}-v5-transformers-9.1.json"
    for revision, name in ((None, "org--smol-v5"), ("v2", "org--smol@v2-v5")):
        assert bases._hub_folder(BaseRef("org/smol", revision), home) == kept / "hub" / name


def test_a_refusal_is_forgotten_once_the_model_was_found(home, running, monkeypatch):
    base = BaseRef("org/mine")
    assert isinstance(resolve(base, home, DryRun(), nothing), FailedBase)
    monkeypatch.setenv("HF_TOKEN", "good")
    facts = resolve(base, home, DryRun(), nothing)
    monkeypatch.delenv("HF_TOKEN")
    assert isinstance(facts, ResolvedBase) and find_resolved(base, home) == facts
