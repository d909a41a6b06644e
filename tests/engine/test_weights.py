"""Identity of weights: a changed byte shows, an unchanged file is read once."""

from __future__ import annotations

import os

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.core.identity import Identity
from qlora_studio.engine import weights
from qlora_studio.engine.weights import hash_cache, identify

OLD = 1_000_000_000


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    os.utime(folder / "model.safetensors", (OLD, OLD))
    return folder


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "MANIFEST.json"):
        (folder / name).write_text(name)
    return folder


def test_an_identity_survives_json_and_says_what_has_changed(base, adapter, tmp_path):
    cache = hash_cache(tmp_path / "cache")
    known = identify(base, adapter, "{{ x }}", cache)
    assert sorted(known.adapter or {}) == ["adapter_config.json", "adapter_model.safetensors"]
    assert Identity.model_validate_json(known.model_dump_json()) == known
    assert known.differences(identify(base, adapter, "{{ x }}", cache)) == ()
    assert known.differences(Identity()) == () == Identity().differences(known)
    (base / "model.safetensors").write_bytes(b"weightz")
    (adapter / "adapter_model.safetensors").unlink()
    assert known.differences(identify(base, adapter, "{{ y }}", cache)) == (
        "The base's weights are not those it was trained with: model.safetensors has changed.",
        "The adapter's files are not those it was trained with: adapter_model.safetensors is missing.",
        "The chat template is not the one it was trained with.",
    )


def test_the_same_bytes_under_other_names_are_the_same_weights():
    before, now = Identity(base={"a": "1", "b": "2"}), Identity(base={"c": "1", "d": "2"})
    assert before.differences(now) == ()
    assert before.differences(Identity(base={"a": "1", "b": "2", "c": "3"})) == (
        "The base's weights are not those it was trained with: c is new.",
    )


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(base, tmp_path, monkeypatch):
    read, cache, really = [], hash_cache(tmp_path / "cache"), weights._hash
    monkeypatch.setattr(weights, "_hash", lambda path, advanced: read.append(path.name) or really(path, advanced))
    steps = []
    first = identify(base, None, None, cache, lambda done, total: steps.append((done, total)))
    assert identify(base, None, None, cache) == first and read == ["model.safetensors"] and steps == [(7, 7)]
    (base / "model.safetensors").write_bytes(b"weightz")
    os.utime(base / "model.safetensors", (OLD, OLD + 1))
    assert identify(base, None, None, cache) != first and len(read) == 2


def test_a_file_written_a_moment_ago_is_not_trusted_to_its_time(base, tmp_path):
    cache, file = hash_cache(tmp_path / "cache"), base / "model.safetensors"
    file.write_bytes(b"weights")
    now = file.stat().st_mtime_ns
    first = identify(base, None, None, cache)
    with file.open("r+b") as opened:
        opened.write(b"Weights")
    os.utime(file, ns=(now, now))
    assert identify(base, None, None, cache) != first


def test_a_broken_cache_costs_time_and_no_path_stands_in_it(base, tmp_path):
    cache = hash_cache(tmp_path / "cache")
    first = identify(base, None, None, cache)
    (kept,) = (tmp_path / "cache" / "hashes").iterdir()
    assert str(tmp_path) not in kept.read_text()
    for text in ("", "[]", '{"facts": 1, "sha256": 2}'):
        kept.write_text(text)
        assert identify(base, None, None, cache) == first
    (tmp_path / "file").write_text("")
    assert identify(base, None, None, hash_cache(tmp_path / "file")) == first


def test_weights_that_cannot_be_loaded_have_no_identity(tmp_path):
    with pytest.raises(StudioError, match="holds no safetensors weights"):
        identify(tmp_path, None, None, hash_cache(tmp_path))
