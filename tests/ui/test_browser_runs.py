"""Runs managed by hand in a real browser: named, found again after a reload, saved as a record, queued, deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import expect

from qlora_studio.home import Home
from qlora_studio.runs import queue
from qlora_studio.studio import Studio
from tests.runs.made import make_run, write_export

pytestmark = pytest.mark.browser
expect.set_options(timeout=20_000)
EVIL = '<img src=x onerror="document.title=1">'


@pytest.fixture(scope="module")
def studio(server):
    """The home that the open page looks at, with runs that have ended and runs that wait."""
    studio = Studio(Home(server.home))
    for name, best in (("kept", 1.6), ("goes", 1.7)):
        make_run(studio, name, best)
    for name in ("waits-1", "waits-2"):
        queue.put(make_run(studio, name))
    return studio


def pick(page, run: str) -> None:
    page.locator("#runs-table").get_by_text(run, exact=True).first.click()
    expect(page.locator("#run-details h3")).to_have_text(run)


def test_what_is_said_of_a_run_stays_and_is_never_code(watched, studio):
    page = watched.open("#runs")
    pick(page, "kept")
    page.locator("#run-labels > button").click()
    page.locator("#run-note textarea").fill(EVIL)
    page.locator("#run-tags input, #run-tags textarea").first.fill("good, #found")
    page.locator("#run-label-btn").click()
    expect(page.locator("#runs-table")).to_contain_text("#good #found")
    watched.reload()
    pick(page, "kept")
    page.locator("#run-labels > button").click()
    expect(page.locator("#run-note textarea")).to_have_value(EVIL)
    assert page.title() == "QLoRA Studio" and studio.runs.open("kept").labels.tags == ("good", "found")


def test_the_record_is_saved_by_the_browser(watched, studio, tmp_path):
    page = watched.open("#runs")
    pick(page, "kept")
    page.locator("#run-keeping > button").click()
    with page.expect_download() as download:
        page.get_by_text("Save the record").click()
    assert download.value.suggested_filename == "kept.record.json"
    record = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert record["name"] == "kept" and record["evaluations"][0] == [5, 1.6]


def test_a_run_is_deleted_only_at_the_second_word(watched, studio):
    page = watched.open("#runs")
    pick(page, "goes")
    page.locator("#run-keeping > button").click()
    page.locator("#run-delete-btn").click()
    expect(page.locator("#run-holds")).to_contain_text("Delete “goes” (goes)?")
    page.locator("#run-keep-btn").click()
    expect(page.locator("#run-delete-now-btn")).to_be_hidden()
    page.locator("#run-delete-btn").click()
    page.locator("#run-delete-now-btn").click()
    expect(page.locator("#runs-table")).not_to_contain_text("goes")
    assert not (studio.home.runs / "goes").exists() and (studio.home.runs / "kept").exists()


def test_the_order_of_the_queue_is_changed_by_hand(watched, studio):
    page = watched.open("#runs")
    page.locator("#queue > button").click()
    expect(page.locator("#queue-line")).to_contain_text("2 waiting")
    page.locator("#queue-chosen input").click()
    page.get_by_role("option", name="waits-2").click()
    page.locator("#queue-up-btn").click()
    expect(page.locator("#queue-line tbody tr").first).to_contain_text("waits-2")
    assert studio.queue.names() == ["waits-2", "waits-1"]


def test_a_phone_shows_the_run_without_scrolling_sideways(watched, studio):
    watched.page.set_viewport_size({"width": 390, "height": 844})
    page = watched.open("#runs")
    for part in ("#run-labels", "#run-keeping", "#run-more", "#queue"):
        page.locator(f"{part} > button").click()
    expect(page.locator("#run-more-btn")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_an_export_and_a_set_are_deleted_only_at_the_second_word(watched, studio, tmp_path):
    folder = write_export(studio, "kept", tmp_path / "out")
    page = watched.open("#export")
    page.locator("#export-run input").click()
    page.get_by_role("option", name="kept").click()
    page.locator("#export-written > button").click()
    page.locator("#export-open-btn").click()  # here is no file manager
    expect(page.locator(".toast-body").last).to_contain_text(str(folder))
    page.locator("#export-delete-btn").click()
    expect(page.locator("#export-holds")).to_contain_text(f"in {folder} go. The run stays")
    page.locator("#export-keep-btn").click()
    expect(page.locator("#export-delete-now-btn")).to_be_hidden()
    page.locator("#export-delete-btn").click()
    page.locator("#export-delete-now-btn").click()
    expect(page.locator("#export-written")).to_be_hidden()
    assert not folder.exists() and studio.exports.written() == []
    rows = tmp_path / "mine.jsonl"
    rows.write_text('{"instruction": "Hi?", "output": "Hello."}\n')
    studio.data.import_rows(str(rows))
    page.locator("#tab-data-button").click()
    page.locator("#part-sets-button").click()
    page.locator("#set-delete-btn").click()
    expect(page.locator("#set-holds")).to_contain_text("Delete “mine, 1 row”?")
    page.locator("#set-delete-now-btn").click()
    expect(page.locator("#data-sets")).to_contain_text("No imported sets yet")
    assert studio.data.sets() == [] and rows.exists()
