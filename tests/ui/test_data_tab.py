"""The Data page over a real home: open, refuse, map, import, mix, clean."""

import json

import pytest

from qlora_studio.core.dataset import Finding
from qlora_studio.core.errors import StudioError
from qlora_studio.ui.server.background_job import BackgroundJob
from qlora_studio.ui.server.sync import Scene
from qlora_studio.ui.tabs import import_rows
from qlora_studio.ui.tabs.data import SETS
from qlora_studio.ui.tabs.import_rows import ImportOptions
from tests.matrix import mostly_slow
from tests.runs.made import make_run
from tests.ui.fakes import Tab
from tests.ui.test_views import token_report


def write(folder, name, rows):
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return str(path)


def open_in(tab, source):
    import_rows.show_source(tab.workspace, tab.view, source)
    return tab.look()


def bring_in(tab, **options):
    import_rows.import_rows(tab.workspace, tab.view, ImportOptions(**options))
    return tab.look()


@pytest.fixture
def rows(tmp_path):
    values = [{"instruction": f"Question {number}?", "output": f"Answer {number}."} for number in range(6)]
    return write(tmp_path, "mine.jsonl", values)


def names(tab):
    return [report.name for report in tab.workspace.studio.data.sets()]


def test_an_empty_page_says_what_to_do_next(tab):
    assert "Use the demo rows" in tab.words("data-status") and tab.value("data-rows") == ""
    assert tab.props["import-bar"]["visible"] is False


def test_an_opened_file_shows_its_format_with_the_reason_and_its_rows(tab, rows):
    open_in(tab, rows)
    sentence = "Read as Alpaca (100% of the rows looked at). The rows have 'instruction' and 'output'."
    assert tab.words("data-status") == sentence
    assert tab.words("data-rows").startswith("mine.jsonl:1 User Question 0? Assistant Answer 0. mine.jsonl:2")
    assert tab.props["import-bar"]["visible"] and tab.words("import-name") == "mine.jsonl is open and not imported yet."
    assert names(tab) == []


def test_what_is_opened_is_opened_in_one_tab_only(workspace, rows):
    first, second = Tab(workspace), Tab(workspace)
    open_in(first, rows)
    assert "data-status" not in second.look().updated


def test_a_path_in_quotes_is_opened(tab, rows):
    assert open_in(tab, f'"{rows}"').view.opened.source == rows


def test_importing_makes_it_what_the_next_run_learns_from(tab, rows):
    bring_in(open_in(tab, rows))
    draft = tab.workspace.draft
    assert draft["data.sources"] == [{"name": "mine", "weight": 1.0}] and draft["data.format"] == "alpaca"
    assert tab.view.opened is None and tab.workspace.started == ["tokenise"]
    assert tab.words("data-status").startswith("Rows 6 about 0 held out Set mine read as alpaca")
    assert "6 seen = 6 imported + 0 refused" in tab.words("data-status")


def test_a_refused_file_names_file_and_line_and_imports_nothing(tab, tmp_path):
    source = write(tmp_path, "bad.jsonl", [{"instruction": "a", "output": "b"}, '{"instruction": "c", '])
    bring_in(open_in(tab, source))
    assert "bad.jsonl cannot be imported like this" in tab.words("data-status")
    assert "bad.jsonl:2" in tab.words("data-status")
    assert names(tab) == [] and tab.workspace.draft["data.sources"] == []
    bring_in(tab, skip_bad=True)
    assert [(report.rows, report.skipped) for report in tab.workspace.studio.data.sets()] == [(1, 1)]


def test_a_missing_file_is_a_sentence(tab, tmp_path):
    assert "There is no such file" in open_in(tab, str(tmp_path / "none.json")).words("data-status")


def test_unknown_columns_are_mapped_by_hand(tab, tmp_path):
    open_in(tab, write(tmp_path, "odd.jsonl", [{"ask": "Why?", "say": "Because."}]))
    assert "ask" in tab.words("data-status") and tab.view.opened.guess is None
    import_rows.read_as(tab.workspace, tab.view, "alpaca")
    parts = tab.workspace.studio.data.format_parts("alpaca")
    assert parts[:3] == ("instruction", "input", "output")
    import_rows.map_columns(tab.workspace, tab.view, ("ask", None, "say"))
    tab.look()
    assert tab.view.opened.columns == {"instruction": "ask", "output": "say"}
    assert tab.words("data-rows") == "odd.jsonl:1 User Why? Assistant Because."
    shown = [(tab.props[f"data-part-{number}"]["label"], tab.value(f"data-part-{number}")) for number in (1, 2, 3)]
    assert shown == [("instruction", "ask"), ("input", ""), ("output", "say")]
    bring_in(tab)
    assert tab.workspace.studio.data.sets()[0].columns == {"instruction": "ask", "output": "say"}


def test_a_chosen_format_does_not_stick_to_the_next_file(tab, rows, tmp_path):
    open_in(tab, rows)
    import_rows.read_as(tab.workspace, tab.view, "text")
    assert tab.look().value("data-format") == "text"
    open_in(tab, write(tmp_path, "next.jsonl", [{"instruction": "a", "output": "b"}]))
    assert (tab.view.opened.format_in_use, tab.value("data-format")) == ("alpaca", "auto")


def test_a_hub_id_waits_for_the_import_and_asks_nobody(tab):
    open_in(tab, "owner/some-set")
    assert "owner/some-set is a data set of the hub" in tab.words("data-status") and tab.view.opened.hub


def test_a_set_name_with_a_space_is_taken(tab, rows):
    bring_in(open_in(tab, rows), name="My rows")
    assert names(tab) == ["my-rows"] and tab.workspace.draft["data.sources"][0]["name"] == "my-rows"


@pytest.fixture
def mixed(tab, rows, tmp_path):
    """A tab with two sets in the mixture."""
    for source in (rows, write(tmp_path, "general.jsonl", [{"instruction": "Say hi", "output": "hi"}])):
        bring_in(open_in(tab, source))
    import_rows.choose_sets(tab.workspace, ["mine", "general"])
    return tab.look()


def test_two_sets_show_their_weights(mixed):
    import_rows.weigh_sets(mixed.workspace, ["1.0", "0,2"])
    mixed.look()
    shown = [mixed.props[f"data-weight-{number}"] for number in (1, 2, 3)]
    assert [(one["visible"], one.get("label"), one.get("value")) for one in shown[:2]] == [
        (True, "Weight of mine", "1.0"),
        (True, "Weight of general", "0.2"),
    ]
    assert shown[2]["visible"] is False and mixed.props["data-mix-by"]["visible"]
    assert "2 sets mixed" in mixed.words("data-status")


@pytest.mark.parametrize("typed", mostly_slow(["", "0", "-1", "much", "1,000"], "", "1,000"))
def test_a_weight_that_is_none_is_refused_and_named(mixed, typed):
    with pytest.raises(StudioError, match="is not a weight for general"):
        import_rows.weigh_sets(mixed.workspace, ["1", typed])
    assert [source["weight"] for source in mixed.workspace.draft["data.sources"]] == [1.0, 1.0]


def test_tokens_and_findings_are_never_those_of_another_set_than_the_rows_beside_them(mixed, rows):
    finding = Finding(name="short-answer", severity="warning", count=1, message="One answer is short.")
    mixed.workspace.tokens._job = BackgroundJob(mixed.workspace.studio)
    mixed.workspace.tokens.keep(mixed.workspace.draft.config(), token_report(findings=(finding,)))
    mixed.look()
    assert mixed.words("data-tokens").startswith("Tokens of mine, general .")
    assert mixed.words("data-findings").startswith("Findings in mine, general .")
    open_in(mixed, rows)
    for part in ("data-tokens", "data-findings"):
        assert mixed.words(part).startswith("mine.jsonl is not imported yet Import it")
    import_rows.show_source(mixed.workspace, mixed.view, "")
    import_rows.choose_sets(mixed.workspace, ["general"])
    mixed.look()
    assert mixed.words("data-tokens").startswith("Not counted yet")
    assert "One answer is short" not in mixed.words("data-findings")


def test_nothing_to_import_is_a_sentence(tab):
    with pytest.raises(StudioError, match="There is nothing to import"):
        bring_in(tab)


def test_cleaning_changes_the_chosen_sets(tab, tmp_path):
    values = [{"instruction": "a?", "output": "b"}, {"instruction": "a?", "output": "b"}]
    bring_in(open_in(tab, write(tmp_path, "twice.jsonl", values)))
    import_rows.clean_sets(tab.workspace, ["drop-copies"])
    assert tab.workspace.studio.data.sets()[0].rows == 1
    with pytest.raises(StudioError, match="No remedy is ticked"):
        import_rows.clean_sets(tab.workspace, [])


def test_a_set_in_use_warns_before_it_is_deleted_and_leaves_the_draft(tab, rows):
    bring_in(open_in(tab, rows))
    studio = tab.workspace.studio
    make_run(studio, "done", 1.0, data__sources=[{"name": "mine"}])
    tab.look()
    assert tab.props["set-delete"]["choices"] == [("mine, 6 rows", "mine")] and tab.value("set-delete") == "mine"
    assert tab.value("set-holds") == "" and not tab.props["set-delete-now-btn"]["visible"]
    tab.view.to_delete["data set"] = tab.view.deleted_next["data set"] = "mine"
    warning = tab.look().words("set-holds")
    assert "The next run is to learn from it." in warning
    assert "Trained on mine, and not to be repeated or evaluated on its rows without it: done." in warning
    assert tab.props["set-delete-now-btn"]["visible"] and not tab.props["set-delete-btn"]["visible"]
    SETS.delete(Scene(tab.workspace, tab.workspace.world(), tab.view), "mine")
    tab.look()
    assert names(tab) == [] and tab.workspace.draft["data.sources"] == []
    assert not tab.props["set-delete"]["visible"] and tab.value("set-holds") == ""
