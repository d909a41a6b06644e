"""The form is TrainConfig and nothing else."""

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.ui import form
from qlora_studio.ui.form import BY_NAME, ELSEWHERE, SETTINGS, Setting


def test_every_field_of_a_run_has_one_place():
    placed = [setting.dotted for setting in SETTINGS] + list(ELSEWHERE)
    assert sorted(placed) == sorted(form.flatten(TrainConfig()))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.dotted)
def test_a_control_says_what_the_config_says_and_shows_its_default(setting):
    default = form.defaults()[setting.dotted]
    control = form.make(setting, default)
    assert control.info == form.field_info(setting.dotted).description
    assert control.elem_id == setting.dotted.replace(".", "-").replace("_", "-")
    assert form.read([setting], [control.value]) == {setting.dotted: default}


def test_what_the_form_says_untouched_is_the_default_config():
    values = [form.make(setting, form.defaults()[setting.dotted]).value for setting in SETTINGS]
    assert form.build_config(form.read(SETTINGS, values)) == TrainConfig()


@pytest.mark.parametrize(
    ("dotted", "shown", "meant"),
    [
        ("optim.max_steps", None, None),
        ("optim.max_steps", 12.0, 12),
        ("model.template", "  ", None),
        ("model.template", " chatml ", "chatml"),
        ("saving.name", "", ""),
        ("lora.rank", None, 16),
        ("lora.rank", 8.0, 8),
        ("memory.budget_gib", None, None),
        ("optim.epochs", 2, 2),
        ("lora.use_rslora", False, False),
    ],
)
def test_reading_a_control(dotted, shown, meant):
    assert form.read([BY_NAME[dotted]], [shown]) == {dotted: meant}


def test_a_value_beyond_a_sliders_ends_stretches_it():
    rank = BY_NAME["lora.rank"]
    assert form.make(rank, 512).maximum == 512
    shown = form.show(rank, 512)
    assert (shown["value"], shown["minimum"], shown["maximum"]) == (512, 4, 512)


@pytest.mark.parametrize(
    ("typed", "stands", "meant"), [(2, 16, 4), (300, 16, 256), (300, 512, 300), (None, 16, None), (8, 16, 8)]
)
def test_a_half_typed_number_stays_between_a_sliders_ends(typed, stands, meant):
    assert form.clamp(BY_NAME["lora.rank"], typed, stands) == meant


def test_every_wrong_value_is_named_with_its_field():
    with pytest.raises(StudioError) as error:
        form.build_config({"lora.rank": 0, "optim.epochs": -1})
    assert [problem.field for problem in error.value.problems] == ["lora.rank", "optim.epochs"]


def test_choices_are_those_of_the_type():
    control = form.make(Setting("optim.schedule", "Schedule", "learning"), "linear")
    assert control.choices == [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant")]
