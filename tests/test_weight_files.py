"""Which files are a model's weights: transformers' own choice, plain names only, nothing outside the folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qlora_studio.core.errors import StudioError
from qlora_studio.weight_files import find_plain_file, find_weight_files
from tests.engine.conftest import tiny_folder  # noqa: F401 (a fixture)

METADATA = {"total_size": 1}


def make(folder: Path, *names: str, index: object = None) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x" * 10)
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_one_file_and_shards_are_found_and_strangers_beside_them_are_not(tmp_path):
    one = make(tmp_path / "one", "model.safetensors", "consolidated.safetensors")
    assert (find_weight_files(one).names, find_weight_files(one).bytes) == (("model.safetensors",), 10)
    places = {"a": "x-2.safetensors", "b": "x-1.safetensors"}
    many = make(
        tmp_path / "many", "x-1.safetensors", "x-2.safetensors", index={"metadata": METADATA, "weight_map": places}
    )
    files = find_weight_files(many)
    assert files.names == ("x-1.safetensors", "x-2.safetensors") and files.places == places


def test_what_transformers_loads_is_what_is_named(tiny_folder, tmp_path):  # noqa: F811
    """A whole file beside an index, and a file named in the configuration: the same choice as transformers'."""
    folder = tmp_path / "both"
    AutoModelForCausalLM.from_pretrained(tiny_folder).save_pretrained(folder, max_shard_size="100KB")
    state = load_file(tiny_folder / "model.safetensors")
    for name, factor in (("model.safetensors", 2.0), ("other.safetensors", 3.0)):
        save_file({key: value * factor for key, value in state.items()}, folder / name, metadata={"format": "pt"})
    config, norm = json.loads((folder / "config.json").read_text()), "model.norm.weight"

    def loaded() -> float:
        model = AutoModelForCausalLM.from_pretrained(folder)
        return float((model.state_dict()[norm] / state[norm]).mean())

    assert loaded() == 2.0 and find_weight_files(folder).names == ("model.safetensors",)
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "other.safetensors"}))
    assert loaded() == 3.0 and find_weight_files(folder).names == ("other.safetensors",)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    assert loaded() == 1.0 and len(find_weight_files(folder).names) > 1


def test_a_snapshot_in_the_hubs_cache_keeps_its_links(tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "123").write_bytes(b"x")
    (snapshot / "model.safetensors").symlink_to("../../blobs/123")
    assert find_weight_files(snapshot).names == ("model.safetensors",)
    (snapshot / "LICENSE").symlink_to("/etc/hostname")
    with pytest.raises(StudioError, match="leads out of this folder"):
        find_plain_file(snapshot, "LICENSE")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"metadata": METADATA, "weight_map": {"a": "/etc/passwd.safetensors"}}, "no plain file name"),
        ({"metadata": METADATA, "weight_map": {"a": "../x.safetensors"}}, "no plain file name"),
        ({"metadata": METADATA, "weight_map": {"a": "sub\\x.safetensors"}}, "no plain file name"),
        ({"metadata": METADATA, "weight_map": {"a": "x.safetensors\n"}}, "no safetensors file"),
        ({"metadata": METADATA, "weight_map": {"a": "x.bin"}}, "no safetensors file"),
        ({"metadata": METADATA, "weight_map": {"a": "gone.safetensors"}}, r"gone\.safetensors is missing"),
        ({"metadata": METADATA, "weight_map": {"a": 3}}, "no weight_map"),
        ({"metadata": METADATA, "weight_map": []}, "no weight_map"),
        ({"weight_map": {"a": "x.safetensors"}}, "no metadata"),
        ([1], "does not hold an object"),
        ({"metadata": {"total_size": float("nan")}, "weight_map": {}}, "NaN"),
    ],
)
def test_an_index_is_a_strangers_word(tmp_path, index, message):
    folder = make(tmp_path / "m", "x.safetensors", "x.bin", index=index)
    with pytest.raises(StudioError, match=message):
        find_weight_files(folder)


def test_a_pipe_a_link_out_and_a_foreign_adapter_are_refused_without_being_opened(tmp_path):
    folder = make(tmp_path / "m")
    os.mkfifo(folder / "pipe")
    (tmp_path / "secret").write_text("s")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "loop").symlink_to("loop")
    for name, message in (("pipe", "not a regular file"), ("link", "leads out"), ("loop", "missing"), ("..", "plain")):
        with pytest.raises(StudioError, match=message):
            find_plain_file(folder, name)
    make(folder, "model.safetensors", "adapter_config.json")
    with pytest.raises(StudioError, match="transformers would load another model in its place"):
        find_weight_files(folder)


def test_a_name_said_twice_is_not_chosen_between(tmp_path):
    folder = make(tmp_path / "m", "x.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"metadata": {}, "weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'
    )
    with pytest.raises(StudioError, match="it names 'a' twice"):
        find_weight_files(folder)
