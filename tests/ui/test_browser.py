"""The studio as a person meets it, in a real browser. The first test is the main job, on the real embedded model."""

import json
import re

import pytest
from playwright.sync_api import Page, expect

NEEDS_MODEL = True
pytestmark = pytest.mark.browser
expect.set_options(timeout=20_000)

EVIL = '<img src=x onerror="document.title=1">${document.title="2"}{{document.title="3"}}'


ODD = "What is a<b and c>d in <div>?\n- one\n  - two\n<tool_call>x</tool_call>"
"""A question that a page would lose parts of if it took it for Markdown or HTML."""


def last_message(page: Page, pane: str, role: str) -> str:
    """The text of the newest message as a reader gets it, folded blocks opened and without their names."""
    message = page.locator(f"{pane} .{role} .qs-text").last
    expect(message).to_be_visible()
    without_names = "node => { const copy = node.cloneNode(true); copy.querySelectorAll('summary').forEach(s => s.remove()); return copy.textContent }"
    return str(message.evaluate(without_names))


def fill_number(page: Page, control: str, value: str) -> None:
    """As a person does it: click into the field, replace what stands there, leave."""
    field = page.locator(f"#{control} input").first
    field.click()
    field.press("Control+A")
    field.press_sequentially(value)
    field.press("Tab")
    expect(field).to_have_value(value)


def test_rows_to_training_to_chat_with_a_reload_in_between(watched):
    page = watched.open("#data")
    page.locator("#data-demo").click()
    expect(page.locator("#data-rows")).to_contain_text("How do I boil an egg")
    page.locator("#part-tokens-button").click()
    expect(page.locator("#data-tokens mark").first).to_contain_text("— Pip<|im_end|>", timeout=60_000)
    expect(page.locator("#data-status")).to_contain_text("Fits 256")

    page.locator("#tab-train-button").click()
    expect(page.locator("#train-data")).to_have_text("Learns from demo (120 rows).")
    page.locator("#advanced > button").click()
    page.locator("#saving-name input").fill("By hand")
    page.locator("#evaluation-before input").uncheck()
    fill_number(page, "evaluation-every-steps", "50")
    fill_number(page, "optim-max-steps", "3")
    fill_number(page, "optim-batch-tokens", "256")
    expect(page.locator("#plan")).to_contain_text("Micro-batch of 256 tokens")
    page.locator("#start-btn").click()
    expect(page.locator("#run-state")).to_have_text("running")
    expect(page.locator("#start-btn")).to_be_disabled()

    page.locator("#tab-chat-button").click()
    expect(page.locator("#chat-notice")).to_contain_text("is training")
    watched.reload()
    expect(page.locator("#run-state")).to_have_text("running")
    page.locator("#tab-train-button").click()
    expect(page.locator("#loss-chart path.line").first).to_be_visible(timeout=60_000)
    expect(page.locator("#run-state")).to_have_text("finished", timeout=120_000)
    expect(page.locator("#current-run").get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")
    expect(page.locator("#proof")).to_contain_text("Largest step, measured")
    expect(page.locator("#start-btn")).to_be_enabled()

    page.locator("#tab-chat-button").click()
    expect(page.locator("#chat-run input")).to_have_value("by-hand")
    page.locator("#chat-sampling > button").click()
    fill_number(page, "chat-max-new-tokens", "16")
    message = page.locator("#chat-message textarea")
    message.fill(ODD)
    message.press("Enter")
    expect(page.locator("#chat-speed")).to_contain_text("adapter: 16 tokens", timeout=90_000)
    for pane in ("#chat-base", "#chat-tuned"):
        assert last_message(page, pane, "user") == ODD
        expect(page.locator(f"{pane} .assistant .qs-text")).not_to_be_empty()
    expect(message).to_have_value("")
    watched.reload()
    assert last_message(page, "#chat-tuned", "user") == ODD

    page.locator("#tab-runs-button").click()
    expect(page.locator("#run-details")).to_contain_text("Max steps")
    page.locator("#run-export-btn").click()
    expect(page.locator("#export-run input")).to_have_value("by-hand")
    page.get_by_role("radio", name=re.compile("^Adapter")).check()
    expect(page.locator("#export-folder input, #export-folder textarea")).to_have_value(re.compile("by-hand-adapter$"))
    page.locator("#export-btn").click()
    expect(page.locator("#export-state")).to_contain_text("by-hand-adapter", timeout=60_000)


def test_keys_theme_and_deep_links(watched):
    page = watched.open("#runs")
    expect(page.get_by_role("tab", name="Runs")).to_have_attribute("aria-selected", "true")
    for key, name, anchor in (("4", "Chat", "#chat"), ("1", "Data", "#data"), ("6", "Doctor", "#doctor")):
        page.keyboard.press(f"Alt+{key}")
        expect(page.get_by_role("tab", name=name, exact=True)).to_have_attribute("aria-selected", "true")
        page.wait_for_function("anchor => location.hash === anchor", arg=anchor)
    # what the page writes into itself between a link and its event must not win over the link
    page.evaluate("location.hash = '#train'; document.querySelector('#pages').append(document.createElement('i'))")
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Alt+6")
    dark = "document.body.classList.contains('dark')"
    before = page.evaluate(dark)
    page.locator("#theme-btn").click()
    assert page.evaluate(dark) is not before
    watched.reload()
    assert page.evaluate(dark) is not before
    expect(page.get_by_role("tab", name="Doctor")).to_have_attribute("aria-selected", "true")


def test_a_plan_over_budget_blocks_the_start(watched):
    page = watched.open("#data")
    page.locator("#data-demo").click()
    expect(page.locator("#data-rows")).to_contain_text("How do I boil an egg")
    page.locator("#tab-train-button").click()
    expect(page.locator("#start-btn")).to_be_enabled()
    fill_number(page, "memory-budget-gib", "0.4")
    expect(page.locator("#plan")).to_contain_text("over budget by")
    expect(page.locator("#readiness")).to_contain_text("Start is blocked")
    expect(page.locator("#start-btn")).to_be_disabled()
    expect(page.locator("#start-anyway-btn")).to_be_visible()
    desk = page.viewport_size
    page.set_viewport_size({"width": 390, "height": 844})
    # what blocks stands above the buttons
    page.wait_for_function("document.querySelector('#readiness').getBoundingClientRect().width > 300")
    assert page.locator("#start-bar").bounding_box()["height"] < 200
    page.set_viewport_size(desk)
    page.get_by_role("radio", name="CPU").check()
    expect(page.locator("#plan")).to_contain_text("fits")
    expect(page.locator("#start-btn")).to_be_enabled()


def test_an_uploaded_files_rows_are_text_and_never_code_and_its_refusal_names_the_line(watched, tmp_path):
    source = tmp_path / "evil.jsonl"
    source.write_text(
        json.dumps({"instruction": EVIL, "output": f"![x](https://example.invalid/x.png) {EVIL}"}) + "\n{"
    )
    page = watched.open("#data")
    page.locator("#data-file input[type=file]").set_input_files(source)
    expect(page.locator("#data-rows")).to_contain_text(EVIL)
    page.locator("#data-import").click()
    expect(page.locator("#data-status")).to_contain_text("evil.jsonl:2")
    assert page.title() == "QLoRA Studio"


def test_a_second_tab_follows_the_first_but_not_while_its_own_person_types(watched, server):
    page = watched.open("#train")
    other = page.context.new_page()
    other.goto(f"{server.url}#train")
    other.wait_for_selector("html[data-ready='1']")
    rank = other.locator("#lora-rank input").first
    fill_number(page, "lora-rank", "64")
    expect(rank).to_have_value("64")
    rate = other.locator("#optim-learning-rate input")
    rate.click()
    rate.press("Control+A")
    rate.press_sequentially("0,00", delay=700)  # slower than the clock ticks
    expect(rate).to_have_value("0,00")
    rate.press_sequentially("03")
    expect(page.locator("#optim-learning-rate input")).to_have_value("0.0003")
    fill_number(other, "lora-rank", "16")
    expect(page.locator("#lora-rank input").first).to_have_value("16")


def test_a_tab_in_the_background_asks_less_often(watched):
    page = watched.open("#train")
    polls = []
    page.on("request", lambda request: polls.append(request.url) if "predict" in request.url else None)
    page.wait_for_timeout(4000)
    assert polls
    hide = "Object.defineProperty(document, 'visibilityState', {value: %r, configurable: true})"
    page.evaluate(hide % "hidden")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(1500)
    polls.clear()
    page.wait_for_timeout(6000)
    assert polls == []
    page.evaluate(hide % "visible")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.wait_for_timeout(5000)
    assert polls


@pytest.mark.parametrize(("typed", "shown"), [("0,25", "0.25"), ("0.25", "0.25")])
def test_a_comma_in_a_share_is_its_decimal_point(watched, typed, shown):
    page = watched.open("#data")
    field = page.locator("#data-eval-share input").first
    field.click()
    field.press("Control+A")
    field.press_sequentially(typed)
    field.press("Tab")
    expect(field).to_have_value(shown)


def test_a_comma_in_a_whole_number_sets_thousands_apart(watched):
    page = watched.open("#train")
    field = page.locator("#data-max-length input").first
    field.click()
    field.press("Control+A")
    field.press_sequentially("1,024")
    field.press("Tab")
    expect(field).to_have_value("1024")


@pytest.mark.parametrize("size", [(390, 844), (1024, 768)], ids=["phone", "small desk"])
def test_what_a_page_is_for_stays_in_view(watched, size, tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"instruction": "a", "output": "b"}))
    watched.page.set_viewport_size({"width": size[0], "height": size[1]})
    page = watched.open("#data")
    page.locator("#data-path input").fill(f'"{source}"')
    page.locator("#data-path input").press("Enter")
    for tab, element in (
        ("data", "data-import"),
        ("train", "start-btn"),
        ("chat", "chat-message"),
        ("export", "export-btn"),
    ):
        page.locator(f"#tab-{tab}-button").click()
        expect(page.locator(f"#{element}")).to_be_in_viewport(ratio=0.9)


@pytest.mark.parametrize("size", [(390, 844), (1440, 900)], ids=["phone", "desk"])
def test_nothing_is_wider_than_the_window(watched, size):
    watched.page.set_viewport_size({"width": size[0], "height": size[1]})
    page = watched.open()
    for number in range(1, 7):
        page.keyboard.press(f"Alt+{number}")
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]


def test_every_kind_of_export_asks_for_what_it_needs_and_an_adapter_is_written(watched):
    page = watched.open("#export")
    expect(page.locator("#export-run input")).to_have_value("by-hand")
    needs = {"gguf": ("merge", "gguf"), "pack": ("merge", "gguf", "parts"), "merged": ("merge",), "adapter": ()}
    for kind, shown in needs.items():
        page.locator(f"#export-what input[value='{kind}']").check()
        for control in ("merge", "gguf", "parts"):
            expect(page.locator(f"#export-{control}")).to_be_visible(visible=control in shown)
        expect(page.locator("#export-readiness")).to_contain_text("GiB free")
    page.locator("#export-btn").click()
    card = page.locator("#export-state")
    expect(card).to_contain_text("adapter, 19 MiB", timeout=60_000)
    card.locator("summary", has_text="Open in PEFT").click()
    expect(card.locator("pre")).to_contain_text("AutoPeftModelForCausalLM")
    page.locator("#export-elsewhere > button").click()
    folder = re.search(r"(/\S+by-hand-adapter[-\d]*)", card.inner_text())
    page.locator("#adopt-folder textarea, #adopt-folder input").first.fill(folder[1] if folder else "")
    page.locator("#adopt-base textarea, #adopt-base input").first.fill("smollm2-135m-instruct")
    page.locator("#adopt-btn").click()
    page.locator("#export-run input").click()
    expect(page.get_by_role("option", name=re.compile("by-hand-adapter"))).to_be_visible(timeout=60_000)
    page.keyboard.press("Escape")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
