"""The form is TrainConfig and nothing else."""

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.core.words import without_quotes
from qlora_studio.ui import fields, form
from qlora_studio.ui.fields import BY_NAME, ELSEWHERE, SETTINGS, Setting


def test_every_field_of_a_run_has_one_place():
    placed = [setting.dotted for setting in SETTINGS] + list(ELSEWHERE)
    assert sorted(placed) == sorted(fields.flatten(TrainConfig()))


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.dotted)
def test_a_control_says_what_the_config_says_and_shows_its_default(setting):
    default = fields.defaults()[setting.dotted]
    control = form.make(setting, default)
    description = fields.field_info(setting.dotted).description
    assert description.endswith(control.info[1:]) and len(control.info) > 15
    assert control.elem_id == setting.dotted.replace(".", "-").replace("_", "-")
    assert fields.read(setting, control.value) == default


def test_help_does_not_repeat_the_label_above_it():
    for setting in SETTINGS:
        assert not fields.help_of(setting).startswith(f"{setting.label}:")


def test_what_the_form_says_untouched_is_the_default_config():
    values = {one.dotted: fields.read(one, form.make(one, fields.defaults()[one.dotted]).value) for one in SETTINGS}
    assert fields.build_config(values) == TrainConfig()


@pytest.mark.parametrize(
    ("dotted", "shown", "meant"),
    [
        ("optim.max_steps", None, None),
        ("optim.max_steps", "", None),
        ("optim.max_steps", "12", 12),
        ("optim.max_steps", "1,024", 1024),
        ("optim.max_steps", "1.5", 1.5),
        ("model.template", "  ", None),
        ("model.template", " chatml ", "chatml"),
        ("saving.name", "", ""),
        ("saving.name", "12", "12"),
        ("lora.rank", 8.0, 8),
        ("memory.budget_gib", "", None),
        ("memory.budget_gib", "5,5", 5.5),
        ("optim.learning_rate", "2e-4", 0.0002),
        ("optim.learning_rate", "0,0002", 0.0002),
        ("optim.learning_rate", "fast", "fast"),
        ("optim.epochs", 2, 2),
        ("lora.use_rslora", False, False),
        ("model.base", '"C:\\models\\tiny"', "C:\\models\\tiny"),
    ],
)
def test_reading_a_control(dotted, shown, meant):
    assert fields.read(BY_NAME[dotted], shown) == meant


@pytest.mark.parametrize(
    ("typed", "number"),
    [
        ("0,5", 0.5),
        ("1,5", 1.5),
        ("-1,25", -1.25),
        ("12 345", 12345.0),
        ("12,345.5", 12345.5),
        ("1,024", "1,024"),
        ("1,000,000", "1,000,000"),
        ("abc", "abc"),
        ("nan", "nan"),
        ("1e999", "1e999"),
        ("1.2.3", "1.2.3"),
    ],
)
def test_a_number_is_never_turned_into_another_one(typed, number):
    assert fields.parse_number(typed) == number


def test_a_number_that_may_mean_two_is_refused_and_named():
    with pytest.raises(StudioError, match="'1,024' is not allowed"):
        fields.build_config({"memory.budget_gib": fields.read(BY_NAME["memory.budget_gib"], "1,024")})


@pytest.mark.parametrize(
    ("typed", "path"), [('"C:\\a b.jsonl"', "C:\\a b.jsonl"), ("'/x y'", "/x y"), (" /x ", "/x"), ('"', '"'), ("", "")]
)
def test_a_path_loses_the_quotes_of_copy_as_path(typed, path):
    assert without_quotes(typed) == path


def test_a_value_beyond_a_sliders_ends_stretches_it():
    rank = BY_NAME["lora.rank"]
    assert form.make(rank, 512).maximum == 512
    shown = form.show(rank, 512)
    assert (shown["value"], shown["minimum"], shown["maximum"]) == (512, 4, 512)


@pytest.mark.parametrize(
    ("typed", "stands", "meant"), [(2, 16, 4), (300, 16, 256), (300, 512, 300), (None, 16, None), (8, 16, 8)]
)
def test_a_half_typed_number_stays_between_a_sliders_ends(typed, stands, meant):
    assert fields.clamp(BY_NAME["lora.rank"], typed, stands) == meant


def test_every_wrong_value_is_named_with_its_field():
    with pytest.raises(StudioError) as error:
        fields.build_config({"lora.rank": 0, "optim.epochs": -1})
    assert [problem.field for problem in error.value.problems] == ["lora.rank", "optim.epochs"]


def test_a_problem_is_said_with_labels():
    problem = Problem("It is short.", "Raise it or lower data.max_length.", "a.json:3", "memory.micro_batch_tokens")
    rest = "It is short. Raise it or lower “Max sequence length”."
    assert fields.sentence(problem) == f"a.json:3: Micro-batch, tokens: {rest}"
    assert fields.sentence(problem, with_field=False) == f"a.json:3: {rest}"


def test_what_a_person_typed_is_not_read_as_markdown_under_the_field():
    shown = form.show_below(BY_NAME["model.base"], Problem("<img src=x> and *that*"))
    assert shown["info"] == r"\<img src=x\> and \*that\*"


def test_choices_are_those_of_the_type():
    control = form.make(Setting("optim.schedule", "Schedule", "learning"), "linear")
    assert control.choices == [("cosine", "cosine"), ("linear", "linear"), ("constant", "constant")]
