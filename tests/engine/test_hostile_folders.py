"""Folders from strangers: whatever a base or an adapter says of itself, an export writes into its target alone.

Each is refused with a sentence within seconds, and everything outside the target stays as it was, to the byte and time.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlora_studio.core.errors import StudioError
from qlora_studio.engine.exporters.merged import MergedExporter
from qlora_studio.engine.exporters.protocol import ExportSource
from tests.engine.adapter_variants import Variant
from tests.engine.conftest import FP32

SECONDS = 5
Spoil = Callable[[Path, Path], None]
"""Makes a base's folder and an adapter's folder hostile."""


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("good")
    Variant(shards="20KB", changes={"tie_word_embeddings": False}).write(place)
    return place


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def index(folder: Path) -> Path:
    return folder / "model.safetensors.index.json"


def place_at(name: Any) -> Spoil:
    """An index that puts the first tensor into a file of this name."""

    def spoil(base: Path, adapter: Path) -> None:
        values = json.loads(index(base).read_text())
        values["weight_map"] |= {next(iter(values["weight_map"])): name}
        index(base).write_text(json.dumps(values))

    return spoil


def place_elsewhere(base: Path, adapter: Path) -> None:
    """An index that says a tensor is in a file that is there and has it not."""
    values = json.loads(index(base).read_text())
    name, file = next(iter(values["weight_map"].items()))
    values["weight_map"][name] = next(other for other in values["weight_map"].values() if other != file)
    index(base).write_text(json.dumps(values))


def outside(base: Path) -> Path:
    return base.parent / "outside"


def write(name: str, content: bytes | str) -> Spoil:
    def spoil(base: Path, adapter: Path) -> None:
        (base / name).unlink(missing_ok=True)
        (base / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def link(name: str, target: str = "secret", *, of_adapter: bool = False) -> Spoil:
    """A file that is a link to something outside."""

    def spoil(base: Path, adapter: Path) -> None:
        place = (adapter if of_adapter else base) / name
        place.unlink(missing_ok=True)
        place.symlink_to(outside(base) / target)

    return spoil


def fifo(name: str, *, of_adapter: bool = False) -> Spoil:
    def spoil(base: Path, adapter: Path) -> None:
        place = (adapter if of_adapter else base) / name
        place.unlink(missing_ok=True)
        os.mkfifo(place)

    return spoil


def huge(name: str, size: int) -> Spoil:
    """A file with a hole in it: large to read and nothing on the disk."""

    def spoil(base: Path, adapter: Path) -> None:
        with (base / name).open("wb") as file:
            file.truncate(size)

    return spoil


def first_shard(base: Path) -> Path:
    return sorted(base.glob("model-*.safetensors"))[0]


def header(change: Callable[[dict[str, Any]], None], *, of_adapter: bool = False) -> Spoil:
    """A weights file whose header is changed so."""

    def spoil(base: Path, adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors" if of_adapter else first_shard(base)
        data = file.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        values = json.loads(data[8 : 8 + length])
        change(values)
        encoded = json.dumps(values).encode()
        file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data[8 + length :])

    return spoil


def entry(**changes: Any) -> Spoil:
    def change(values: dict[str, Any]) -> None:
        next(value for name, value in values.items() if name != "__metadata__").update(changes)

    return header(change)


def raw_header(text: bytes) -> Spoil:
    def spoil(base: Path, adapter: Path) -> None:
        first_shard(base).write_bytes(struct.pack("<Q", len(text)) + text)

    return spoil


def overlap(values: dict[str, Any]) -> None:
    entries = [value for name, value in values.items() if name != "__metadata__"]
    entries[1]["data_offsets"] = entries[0]["data_offsets"]


def repeated_tensor(base: Path, adapter: Path) -> None:
    first, second = sorted(base.glob("model-*.safetensors"))[:2]
    save_file(load_file(first) | load_file(second), second, metadata={"format": "pt"})


def adapter_setting(**changes: Any) -> Spoil:
    return lambda base, adapter: edit(adapter / "adapter_config.json", **changes)


def adapter_of_other_shape(base: Path, adapter: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    state = load_file(file)
    name = next(name for name in state if "lora_A" in name)
    save_file(state | {name: torch.zeros(4, 7)}, file)


def four_bit_lie(base: Path, adapter: Path) -> None:
    """A 4-bit weight whose state says it is far larger than its bytes."""
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [100_000, 100_000]}
    packed = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    weight = "model.layers.0.mlp.up_proj.weight"
    for path in base.glob("model*"):
        path.unlink()
    save_file(
        {
            weight: torch.zeros(8, 1, dtype=torch.uint8),
            f"{weight}.absmax": torch.zeros(1),
            f"{weight}.quant_map": torch.zeros(16),
            f"{weight}.quant_state.bitsandbytes__nf4": packed,
        },
        base / "model.safetensors",
    )


HOSTILE: dict[str, tuple[Spoil, str]] = {
    "absolute name": (lambda base, adapter: place_at(str(outside(base) / "victim.safetensors"))(base, adapter), "no plain file name"),
    "name above": (place_at("../outside/victim.safetensors"), "no plain file name"),
    "name below": (place_at("deeper/x.safetensors"), "no plain file name"),
    "name with a backslash": (place_at("..\\outside\\victim.safetensors"), "no plain file name"),
    "name with a drive": (place_at("C:x.safetensors"), "no plain file name"),
    "name with a zero": (place_at("x\0.safetensors"), "no plain file name"),
    "name with a line end": (place_at("x\n.safetensors"), "no plain file name"),
    "empty name": (place_at(""), "no safetensors file"),
    "endless name": (place_at("x" * 5000 + ".safetensors"), "no plain file name"),
    "name of another kind": (place_at("config.json"), "no safetensors file"),
    "name that is a number": (place_at(3), "no weight_map"),
    "file that is missing": (place_at("model-00009-of-00009.safetensors"), "is missing"),
    "tensor in another file": (place_elsewhere, "and it is not"),
    "index that is a list": (write("model.safetensors.index.json", "[1, 2]"), "does not hold an object"),
    "index with NaN": (write("model.safetensors.index.json", '{"weight_map": {}, "metadata": {"total_size": NaN}}'), "NaN"),
    "index with a name twice": (write("model.safetensors.index.json", '{"metadata": {}, "weight_map": {"a": "x", "a": "y"}}'), "'a' twice"),
    "index nested without end": (write("model.safetensors.index.json", "[" * 200_000), "cannot be read"),
    "index that is cut off": (write("model.safetensors.index.json", '{"weight_map"'), "cannot be read"),
    "index that is huge": (huge("model.safetensors.index.json", 1 << 40), "cannot be read"),
    "index that is a pipe": (fifo("model.safetensors.index.json"), "holds no safetensors weights"),
    "index that is a link": (link("model.safetensors.index.json"), "leads out of this folder"),
    "weights that are a link": (link("model.safetensors", "victim.safetensors"), "leads out of this folder"),
    "weights named in the config above": (lambda base, adapter: edit(base / "config.json", transformers_weights="../outside/victim.safetensors"), "no plain file name"),
    "weights named in the config of another kind": (lambda base, adapter: edit(base / "config.json", transformers_weights=["x"]), "no safetensors file"),
    "an adapter in the base": (write("adapter_config.json", '{"base_model_name_or_path": "/"}'), "load another model in its place"),
    "licence that is a link": (link("LICENSE"), "leads out of this folder"),
    "licence that is huge": (huge("LICENSE", 1 << 40), "none has so many"),
    "notice that is a pipe": (fifo("NOTICE"), "not a regular file"),
    "tokenizer that is a link": (link("tokenizer.json"), "leads out of this folder"),
    "tokenizer of the adapter that is a link": (link("tokenizer.json", of_adapter=True), "leads out of this folder"),
    "tokenizer that is a pipe": (fifo("tokenizer_config.json"), "not a regular file"),
    "settings that are huge": (huge("generation_config.json", 1 << 40), "none has so many"),
    "template that is a folder": (lambda base, adapter: (base / "chat_template.jinja").mkdir(), "not a regular file"),
    "config that is a link": (link("config.json"), "leads out of this folder"),
    "config with NaN": (write("config.json", '{"model_type": "llama", "rms_norm_eps": NaN}'), "NaN"),
    "stored in a way of its own": (lambda base, adapter: edit(base / "config.json", quantization_config={"quant_method": "awq"}), "stored quantised (awq)"),
    "header longer than the file": (write("model.safetensors", struct.pack("<Q", 1 << 62) + b"{}"), "is cut off"),
    "header that is no JSON": (raw_header(b"\xff\xfe{}"), "no readable header"),
    "header with a tensor twice": (raw_header(b'{"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}, "a": 1}'), "'a' twice"),
    "header nested without end": (raw_header(b"[" * 200_000), "no readable header"),
    "more bytes than there are": (entry(data_offsets=[0, 1 << 50]), "lies about"),
    "bytes before the file": (entry(data_offsets=[-8, 0]), "lies about"),
    "tensors over each other": (header(overlap), "lies about"),
    "shape that is a lie": (entry(shape=[1 << 40, 1 << 40]), "lies about"),
    "shape below nothing": (entry(shape=[-1, -32]), "its shape is not one"),
    "dtype that is a lie": (entry(dtype="F64"), "lies about"),
    "dtype nobody knows": (entry(dtype="X9"), "its dtype is X9"),
    "metadata that are numbers": (header(lambda values: values.update(__metadata__={"a": 1})), "metadata"),
    "a tensor in two files": (repeated_tensor, "stands in"),
    "4 bits that lie about their size": (four_bit_lie, "is not one"),
    "adapter weights that are a link": (link("adapter_model.safetensors", "victim.safetensors", of_adapter=True), "leads out of this folder"),
    "adapter weights that lie": (header(overlap, of_adapter=True), "lies about"),
    "adapter for another base": (adapter_of_other_shape, "does not fit the base"),
    "adapter of another kind": (adapter_setting(peft_type="IA3"), "is of the kind IA3"),
    "adapter without a rank": (adapter_setting(r="8"), "names no rank"),
    "adapter that asks for more": (adapter_setting(run_this="x"), "uses run_this"),
}  # fmt: skip


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Size, time and link of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        found[str(path)] = (facts.st_size, facts.st_mtime_ns, str(path.readlink()) if path.is_symlink() else "")
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_outside_the_target_changes_and_a_sentence_says_why(good, tmp_path, name):
    spoil, message = HOSTILE[name]
    world = tmp_path / "world"
    shutil.copytree(good, world)
    base, adapter, target = world / "base", world / "adapter", tmp_path / "target"
    outside(base).mkdir()
    (outside(base) / "secret").write_text("a secret")
    shutil.copyfile(adapter / "adapter_model.safetensors", outside(base) / "victim.safetensors")
    spoil(base, adapter)
    target.mkdir()
    before, begun = snapshot(world), time.process_time()
    with pytest.raises(StudioError) as refused:
        MergedExporter().write(ExportSource(adapter, base, FP32), target, lambda event: None)
    assert message in str(refused.value) and "\n" not in refused.value.message and len(refused.value.message) < 600
    assert time.process_time() - begun < SECONDS
    assert snapshot(world) == before
    assert not any("a secret" in path.read_text(errors="replace") for path in target.rglob("*") if path.is_file())


def test_there_are_at_least_40():
    assert len(HOSTILE) >= 40


def test_an_honest_folder_is_merged_all_the_same(good, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    MergedExporter().write(ExportSource(good / "adapter", good / "base", FP32), target, lambda event: None)
    assert (target / "model.safetensors.index.json").is_file()
