"""The draft of the next run: one for all tabs, kept on disk; every control follows it but the one being typed in."""

import json

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.ui import fields
from qlora_studio.ui.server import settings
from qlora_studio.ui.server.draft import Draft
from qlora_studio.ui.server.workspace import Workspace
from tests.ui.fakes import Tab


def shown_values(tab):
    """What the browser would send for every control: what the page was told, or what it was built with."""
    return [
        tab.props.get(control.component.elem_id, {}).get("value", control.component.value) for control in tab.controls
    ]


def test_a_restart_of_the_page_keeps_the_draft(workspace):
    workspace.draft.change({"lora.rank": 64, "saving.name": "Straße"}, {"rank": "strong"})
    again = Workspace.open(workspace.studio)
    assert again.draft.values == workspace.draft.values and again.draft.presets["rank"] == "strong"
    assert [path.name for path in workspace.studio.home.root.glob("*draft*")] == ["draft.json"]


def test_a_half_typed_draft_is_kept_as_it_is(tmp_path):
    Draft.open(tmp_path / "draft.json").change({"lora.rank": 0, "optim.learning_rate": "abc"})
    kept = Draft.open(tmp_path / "draft.json")
    with pytest.raises(StudioError) as error:
        kept.config()
    assert [problem.field for problem in error.value.problems] == ["lora.rank", "optim.learning_rate"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 99, "values": {}, "presets": {}}'])
def test_a_file_that_is_no_draft_is_a_new_draft(tmp_path, text):
    (tmp_path / "draft.json").write_text(text)
    draft = Draft.open(tmp_path / "draft.json")
    assert draft.is_new and draft.config() == TrainConfig()


def test_fields_of_another_version_are_renamed_or_left_out(tmp_path):
    values = {"data.max_tokens": 300, "lora.colour": "red", "lora.rank": 8}
    (tmp_path / "draft.json").write_text(json.dumps({"schema": 1, "values": values, "presets": {}}))
    draft = Draft.open(tmp_path / "draft.json")
    assert (draft["data.max_length"], draft["lora.rank"]) == (300, 8) and "lora.colour" not in draft.values


def test_a_draft_that_cannot_be_kept_says_so(tmp_path):
    draft = Draft.open(tmp_path / "none" / "draft.json")
    with pytest.raises(StudioError, match=r"The settings cannot be kept: No such file or directory\."):
        draft.change({"lora.rank": 8})


def test_a_tab_shows_what_another_one_changed_and_never_what_its_own_person_is_typing(workspace):
    first, second = Tab(workspace), Tab(workspace)
    first.type("lora.rank", 64)
    assert "lora-rank" not in first.updated
    assert second.look().value("lora-rank") == 64 and "lora-rank" in second.updated
    assert second.look().updated == []


def other_value(setting, now):
    """A value of a setting that it does not have."""
    kind, _ = fields.kind_of(fields.field_info(setting.dotted).annotation)
    if choices := getattr(kind, "__args__", None):
        return next(one for one in choices if one != now)
    return not now if kind is bool else "x" if kind is str else 3


def test_every_control_follows_the_draft(tab):
    changed = {one.dotted: other_value(one, tab.workspace.draft[one.dotted]) for one in fields.SETTINGS}
    tab.workspace.draft.change(changed)
    tab.look()
    shown = {dotted: tab.value(fields.element(dotted)) for dotted in changed}
    assert {dotted: str(value) for dotted, value in shown.items()} == {
        dotted: str(value) for dotted, value in changed.items()
    }


def test_start_takes_what_was_typed_a_moment_ago(workspace):
    tab = Tab(workspace)
    values = shown_values(tab)
    values[[control.setting.dotted for control in tab.controls].index("lora.rank")] = 48
    settings.agree(workspace, tab.view, tab.controls, values)
    assert workspace.draft["lora.rank"] == 48


def test_start_refuses_in_words_what_was_changed_elsewhere_and_is_not_shown_here(workspace):
    first, second = Tab(workspace), Tab(workspace)
    values = shown_values(second)
    first.type("lora.rank", 64).type("optim.max_steps", "12")
    with pytest.raises(StudioError) as error:
        settings.agree(workspace, second.view, second.controls, values)
    assert str(error.value) == (
        "The settings were changed in another tab: “Rank” is 64 now, “Max steps” is 12 now. "
        "This page shows them in a moment. Look at them, then start again."
    )
    assert (workspace.draft["lora.rank"], workspace.draft["optim.max_steps"]) == (64, 12)
    second.look()
    settings.agree(workspace, second.view, second.controls, shown_values(second))


def test_an_untouched_page_agrees_with_the_draft(workspace):
    tab = Tab(workspace)
    before = workspace.draft.version
    settings.agree(workspace, tab.view, tab.controls, shown_values(tab))
    assert workspace.draft.version == before


def test_an_emptied_slider_waits_for_its_number(workspace):
    tab = Tab(workspace)
    before = workspace.draft["lora.rank"]
    assert tab.type("lora.rank", None).workspace.draft["lora.rank"] == before and "lora-rank" not in tab.updated


def test_what_a_tab_looks_at_is_its_own(workspace):
    first, second = Tab(workspace), Tab(workspace)
    first.view.run, first.view.export_what, first.view.formatted = "a", "adapter", True
    assert (second.view.run, second.view.export_what, second.view.formatted) == (None, "merged", False)
