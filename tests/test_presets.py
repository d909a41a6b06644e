"""Presets are real files: each is valid, the families own disjoint fields, an edited one changes what it does."""

from __future__ import annotations

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import Machine
from qlora_studio.core.plan import GIB, GpuInfo
from qlora_studio.home import Home, bundled
from qlora_studio.presets import (
    FAMILIES,
    OWNED,
    apply_presets,
    default_config,
    default_presets,
    find_preset,
    list_presets,
    read_preset,
)

FILES = [(family, path) for family in FAMILIES for path in sorted((bundled("presets") / family).glob("*.toml"))]


@pytest.mark.parametrize(("family", "path"), FILES, ids=lambda value: getattr(value, "stem", value))
def test_a_bundled_preset_is_valid_and_says_what_it_is_for(family, path):
    preset = read_preset(path, family)
    assert preset.title and preset.description.endswith(".") and preset.changes
    config = apply_presets(TrainConfig(), [preset])
    for dotted, value in preset.changes.items():
        section, name = dotted.split(".")
        assert getattr(getattr(config, section), name) == value


def test_the_families_own_disjoint_fields():
    fields = [field for family in FAMILIES for field in OWNED[family]]
    assert len(fields) == len(set(fields))
    known = {
        f"{section}.{name}"
        for section, kind in TrainConfig.model_fields.items()
        for name in kind.annotation.model_fields
    }
    assert set(fields) <= known


def test_the_named_presets_are_there(tmp_path):
    names = {family: {preset.name for preset in list_presets(family, Home(tmp_path))} for family in FAMILIES}
    assert names["rank"] == {"light", "balanced", "strong"}
    assert names["memory"] == {"6gb", "8gb", "10gb", "12gb", "16gb", "24gb", "cpu"}
    assert names["format"] >= {"alpaca", "sharegpt", "messages", "prompt-completion", "text"}


def test_ones_own_preset_wins_by_name(tmp_path):
    own = tmp_path / "presets" / "rank" / "light.toml"
    own.parent.mkdir(parents=True)
    own.write_text('title = "Mine"\nsays = "My own."\n[lora]\nrank = 3\nalpha = 5\n')
    preset = find_preset("rank", "light", Home(tmp_path))
    assert (preset.title, apply_presets(TrainConfig(), [preset]).lora.rank) == ("Mine", 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[lora\n", "not valid TOML"),
        ("[lora]\nrank = 0\n", "0 is not allowed"),
        ("[lora]\nrang = 4\n", "A rank preset cannot set this"),
        ("[data]\nmax_length = 64\n", "A rank preset cannot set this"),
        ("rank = 4\n", "This belongs under a table"),
    ],
)
def test_a_wrong_preset_names_its_file(tmp_path, text, message):
    file = tmp_path / "presets" / "rank" / "mine.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(StudioError, match=message) as caught:
        list_presets("rank", Home(tmp_path))
    assert str(file) in str(caught.value)


def test_an_unknown_preset_lists_those_there_are(tmp_path):
    with pytest.raises(StudioError, match=r"There is no rank preset 'huge'. There are: balanced, light, strong."):
        find_preset("rank", "huge", Home(tmp_path))


@pytest.mark.parametrize(
    ("gigabytes", "name"),
    [(None, "cpu"), (4, "6gb"), (6, "6gb"), (7.65, "8gb"), (11.76, "12gb"), (23.5, "24gb"), (80, "24gb")],
)
def test_a_machine_has_one_default_for_every_face(tmp_path, gigabytes, name):
    size = round((gigabytes or 0) * GIB)
    cards = (GpuInfo(index=0, name="card", total_bytes=size, free_bytes=size),) if gigabytes else ()
    machine, home = Machine(cards=cards), Home(tmp_path)
    assert default_presets(machine, home) == {"memory": name, "rank": "balanced"}
    wanted = [find_preset("memory", name, home), find_preset("rank", "balanced", home)]
    assert default_config(machine, home) == apply_presets(TrainConfig(), wanted)


def test_ones_own_memory_preset_may_be_the_default(tmp_path):
    own = tmp_path / "presets" / "memory" / "laptop.toml"
    own.parent.mkdir(parents=True)
    own.write_text('title = "Laptop"\n[memory]\nbudget_gib = 7.0\n')
    card = GpuInfo(index=0, name="card", total_bytes=7 * GIB, free_bytes=7 * GIB)
    assert default_presets(Machine(cards=(card,)), Home(tmp_path))["memory"] == "laptop"
