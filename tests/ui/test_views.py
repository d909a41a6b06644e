"""Views are functions: state in, escaped HTML out."""

import time
from dataclasses import replace
from typing import get_args

from qlora_studio.core import events as ev
from qlora_studio.core.conversation import Conversation, Source, ToolCall, Turn
from qlora_studio.core.dataset import DatasetReport, Finding, RowAccount
from qlora_studio.core.jobs import ExamplePreview, LengthBin, TextPiece, TokeniseReport
from qlora_studio.core.plan import GIB, GpuInfo, MemoryEstimate, MemoryPart, MemoryPlan
from qlora_studio.core.progress import JobView, Progress, fold
from qlora_studio.core.runs import RunSummary
from qlora_studio.core.series import Along
from qlora_studio.core.words import clock
from qlora_studio.ui.views import chat, data, export, plan, run, runs, side, start, tokens
from qlora_studio.ui.views.chart import line, lines, smoothed, thin
from qlora_studio.ui.views.html import bar, count, gib, gib_of, tag, text
from qlora_studio.ui.views.side import Memory
from tests.ui.fakes import make_view, words

EVIL = "<img src=x onerror=alert(1)>${alert(2)}{{alert(3)}}"


def make_plan(total_gib=3, budget_gib=4, **more):
    parts = (MemoryPart(key="weights", label="Weights", bytes=int(total_gib * GIB), basis="in NF4"),)
    values = {"device": "cuda", "micro_batch_tokens": 2048, "checkpointed_layers": 0, "layers": 30}
    values |= {"adapter_precision": "fp32", "optimizer": "adamw", "reasons": ("Because it fits.",)}
    return MemoryPlan(budget_bytes=budget_gib * GIB, estimate=MemoryEstimate(parts=parts), **(values | more))


def step(number, loss, total=10):
    return ev.StepLogged(
        step=number, total_steps=total, epoch=1, loss=loss, learning_rate=1e-4, grad_norm=1, tokens=100,
        trained_tokens=50, tokens_per_second=1234.5, peak_bytes=2 * GIB, seconds_left=61.0,
    )  # fmt: skip


def make_run(tmp_path, progress, state="running", name="first"):
    return make_view(name, tmp_path, progress, state, created=time.time())


def token_report(**more):
    """What a token job found: three rows of up to 18 tokens, where not said otherwise."""
    values = {
        "rows": 3, "examples": 3, "held_out_rows": 0, "tokens": 30, "trained_tokens": 12, "limit": 10, "too_long": 0,
        "dropped": 0, "cut": 0, "refused": 0, "median": 10, "p95": 18, "longest": 90, "padding_share": 0.25,
        "histogram": (), "findings": (), "previews": (),
    }  # fmt: skip
    return TokeniseReport(**(values | more))


def test_text_is_escaped_wherever_it_stands(tmp_path):
    progress = fold([ev.JobStarted(job="train"), ev.Noted(text=EVIL), ev.Failed(message=EVIL, hint=EVIL)])
    view = make_run(tmp_path, progress, "failed", EVIL)
    row = Conversation(
        turns=(Turn("user", EVIL), Turn("assistant", EVIL, reasoning=EVIL, tool_calls=(ToolCall(EVIL, EVIL),))),
        source=Source(EVIL, 1),
    )
    report = DatasetReport(
        name=EVIL, format=EVIL, confidence=1, reason=EVIL, rows=1, source_file=EVIL, problems=(EVIL,)
    )
    finding = Finding(name=EVIL, severity="error", count=1, message=EVIL, examples=(EVIL,), hint=EVIL)
    preview = ExamplePreview(source=EVIL, tokens=2, trained=1, pieces=(TextPiece(text=EVIL, trained=True),))
    result = token_report(histogram=(LengthBin(first=0, last=9, rows=1),), previews=(preview,))
    unreadable = RunSummary(name=EVIL, title=EVIL, created=0.0, state="interrupted", unreadable=EVIL)
    gpu = GpuInfo(index=0, name=EVIL, total_bytes=GIB, free_bytes=GIB)
    shown = [
        side.run_card(view), side.device_card([gpu], Memory(1, 2)), run.ending(view), run.log(view), runs.run_details(view),
        data.conversations_list([row]), data.sets_table([report], [EVIL]), data.left_over(report),
        data.findings_table([finding], [EVIL]), tokens.token_page(result, [EVIL], current=True), runs.peaks_card([view]),
        plan.no_plan([EVIL]), export.export_card(view.job), start.notes([EVIL], [EVIL]),
        start.start_line(None, [EVIL]), tokens.import_first(EVIL), data.import_line(EVIL, True),
        chat.pane(EVIL, [chat.Message("user", EVIL, EVIL)], EVIL), runs.unreadable_run(unreadable),
    ]  # fmt: skip
    for html in shown:
        assert "<img" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown[0]


def test_tags_write_attributes_escaped_and_leave_out_none():
    assert (
        tag("b", "a<b", class_="x", aria_label='"q"', title=None)
        == '<b class="x" aria-label="&quot;q&quot;">a&lt;b</b>'
    )
    assert text(tag("i", "x")) == "<i>x</i>"


def test_figures():
    assert [gib(512 * 2**20), gib(6.94 * GIB), gib(-0.5 * GIB)] == ["512 MiB", "6.9 GiB", "-512 MiB"]
    assert [clock(None), clock(42), clock(185), clock(3725)] == ["–", "42 s", "3 m 05 s", "1 h 02 m"]
    assert count(3912) == "3\u202f912"


def test_a_bar_tells_its_value_to_those_who_do_not_see_it():
    html = bar(0.425, "VRAM used")
    assert 'role="progressbar"' in html and 'aria-valuenow="42"' in html and 'aria-label="VRAM used"' in html
    assert 'style="width:100.0%"' in bar(7, "too much")


def test_a_plan_that_fits_says_what_is_spare_and_why():
    shown = words(plan.plan_card(make_plan(longest_context=8192, largest_rank=64)))
    assert "3.0 of 4.0 GiB" in shown and "fits · 1.0 GiB spare" in shown and "Because it fits." in shown
    assert "8\u202f192 tokens" in shown and "largest rank that would fit is 64" in shown


def test_a_plan_over_budget_says_by_how_much_and_what_to_change():
    html = plan.plan_card(make_plan(total_gib=6, changes=("rank 64 -> 16 saves 0.8 GiB",)))
    assert "over budget by 2.0 GiB" in words(html) and "rank 64 -&gt; 16 saves 0.8 GiB" in html
    assert 'style="left:66.67%"' in html  # the budget's mark inside a bar as long as the plan


def test_the_proof_sets_measured_beside_planned():
    state = fold([ev.PlanMade(plan=make_plan()), ev.ProbeMeasured(predicted_bytes=2 * GIB, measured_bytes=GIB)])
    assert words(plan.proof_card(state)) == (
        "Plan and measurement budget 4.0 GiB Planned 3.0 GiB Largest step, measured 1.0 GiB "
        "The largest step took 50% less than the 2.0 GiB planned for it."
    )
    assert plan.proof_card(Progress()) == ""


def test_the_tiles_follow_a_run(tmp_path):
    progress = fold(
        [ev.JobStarted(job="train"), step(4, 1.5), ev.EvaluationLogged(step=4, loss=1.75, tokens=9, rows=1)]
    )
    shown = words(run.run_tiles(make_run(tmp_path, progress)))
    assert shown == (
        "Train loss 1.500 step 4 of 10 Held-out loss 1.750 on the evaluation set "
        "Speed 1\u202f234 tokens / s Time left 1 m 01 s until the last step"
    )


def test_the_log_is_in_order_and_ends_with_how_it_ended(tmp_path):
    events = [
        ev.Noted(text="108 rows"),
        step(1, 2.0),
        step(2, 1.5),
        ev.EvaluationLogged(step=2, loss=1.75, tokens=9, rows=1),
    ]
    assert run.log_lines(fold([*events, ev.Stopped(step=2)])) == [
        "· 108 rows",
        "step     1  loss 2.0000",
        "step     2  loss 1.5000  evaluation 1.7500",
        "· stopped",
    ]


def test_a_failed_run_says_what_went_wrong_and_what_to_do(tmp_path):
    state = fold([ev.Failed(message="Memory ran out.", hint="Lower the rank.")])
    assert (
        words(run.ending(make_run(tmp_path, state, "failed")))
        == "The run 'first' failed Memory ran out. Lower the rank."
    )
    assert run.ending(make_run(tmp_path, Progress(), "running")) == ""


def test_the_runs_table_is_text_only(tmp_path):
    facts = {"base": "smollm2-135m-instruct", "rank": 16, "step": 4, "total_steps": 10, "loss": 1.5}
    whole = RunSummary(
        name="first", title="First", created=0, state="finished", seconds=62.0, peak_bytes=2 * GIB, **facts
    )
    broken = RunSummary(name="odd", title="odd", created=0, state="interrupted", unreadable="No config.")
    rows = runs.run_rows([whole, broken])
    assert rows[0][:9] == [
        "first", "finished", "smollm2-135m-instruct", "16", "1.500", "–", "4/10", "1 m 02 s", "2.0 GiB",
    ]  # fmt: skip
    assert rows[1][:5] == ["odd", "unreadable", "–", "–", "–"]


def test_without_a_card_the_sidebar_shows_the_computers_memory():
    assert words(side.device_card([], Memory(2 * GIB, 8 * GIB))).startswith("CPU no card 2.0 of 8.0 GiB memory in use")
    gpu = GpuInfo(
        index=0, name="NVIDIA GeForce RTX 3060", total_bytes=12 * GIB, free_bytes=3 * GIB, temperature_c=71,
        power_watts=164.4, utilisation_percent=97,
    )  # fmt: skip
    shown = words(side.device_card([gpu], Memory(0, 1)))
    assert shown == "RTX 3060 71 °C · 164 W 9.0 of 12.0 GiB VRAM Compute 97 %"


def test_trained_text_is_marked_and_the_limit_is_drawn():
    pieces = (TextPiece(text="Q", trained=False), TextPiece(text="A", trained=True))
    result = token_report(
        too_long=1,
        dropped=1,
        longest=18,
        histogram=(LengthBin(first=0, last=9, rows=1), LengthBin(first=10, last=19, rows=2)),
        previews=(ExamplePreview(source="a.json:1", tokens=3, trained=1, pieces=pieces),),
    )
    html = tokens.token_page(result, ["demo"], current=False)
    assert "<span>Q</span><mark>A</mark>" in html and 'style="left:50.00%"' in html
    assert "limit 10" in words(html) and "40% of them trained" in words(html) and "Settings have changed" in html


def test_thinning_keeps_the_shape_and_the_end():
    points = [(number, float(number)) for number in range(1, 1002)]
    thinned = thin(points, 500)
    assert len(thinned) == 334 and thinned[0] == (3, 2.0) and thinned[-1] == (1001, 1000.5)
    assert thin(points[:10], 500) == points[:10]


def test_a_chart_leaves_out_empty_lines():
    assert lines([line("train", 0, [(1, 2.0)]), line("held out", 2, [])], 9) == {
        "series": [{"name": "train", "colour": 0, "points": [[1, 2.0]], "smoothed": None, "dots": False}],
        "last": 9,
        "unit": "step",
    }


def test_runs_are_compared_by_steps_tokens_or_time(tmp_path):
    def logged(step, loss, tokens):
        return ev.StepLogged(step=step, total_steps=3, epoch=1, loss=loss, learning_rate=1, grad_norm=1, tokens=tokens,
            trained_tokens=1, tokens_per_second=100, peak_bytes=1)  # fmt: skip

    story = [
        ev.EvaluationLogged(step=0, loss=5.0, tokens=9, rows=1, adapter=False),
        logged(1, 4.0, 1000),
        logged(2, 9.0, 3000),
        logged(2, 3.0, 2000),  # computed anew after a resume: counted once
        ev.EvaluationLogged(step=2, loss=3.5, tokens=9, rows=1),
    ]
    shown = make_run(tmp_path, fold(story))
    points = {along: runs.compared_lines([shown], along=along)["series"][0]["points"] for along in get_args(Along)}
    assert points == {
        "step": [[1, 4.0], [2, 3.0]], "tokens": [[1000, 4.0], [3000, 3.0]], "seconds": [[10, 4.0], [30, 3.0]],
    }  # fmt: skip
    held_out = runs.compared_lines([shown], of_evaluation=True, along="tokens")
    assert held_out["series"][0]["points"] == [[0, 5.0], [3000, 3.5]] and held_out["unit"] == "tokens"


def test_a_smoothed_curve_lies_on_a_straight_line_and_does_not_lag_behind_a_falling_one():
    straight = [(step, 5 - step / 20) for step in range(1, 101)]
    for (_, drawn), (_, value) in zip(smoothed(straight), straight, strict=True):
        assert abs(drawn - value) < 1e-9
    falling = [(step, 2.7 ** (-step / 40)) for step in range(1, 201)]
    assert max(abs(drawn - value) for (_, drawn), (_, value) in zip(smoothed(falling), falling, strict=True)) < 0.02


def test_a_smoothed_curve_has_less_noise_and_the_same_steps():
    noisy = [(step, 1 + (0.3 if step % 2 else -0.3)) for step in range(1, 101)]
    drawn = smoothed(noisy)
    assert [step for step, _ in drawn] == [step for step, _ in noisy]
    assert max(abs(value - 1) for _, value in drawn) < 0.15
    assert smoothed(noisy[:3]) == noisy[:3]


def test_a_merge_that_disagrees_does_not_end_under_a_green_finished():
    events = [
        ev.JobStarted(job="export"),
        ev.Exported(what="merged model", path="/out", bytes=GIB),
        ev.Checked(what="merged model, original", same_top1=0.7, kl=0.195, identical_answers=0, answers=3),
    ]
    card = export.export_card(JobView("finished", fold([*events, ev.Finished()]), 9.0))
    assert '<span class="qs-chip warn">differs</span>' in card and "finished" not in card
    assert "Export again as chatted" in card
    as_chatted = events[-1].model_copy(update={"what": "merged, as chatted", "as_chatted": True, "kl": 0.001})
    assert "Export again" not in export.export_card(
        JobView("finished", fold([*events[:-1], as_chatted, ev.Finished()]))
    )


def test_both_sides_of_an_of_have_one_unit():
    assert [gib_of(1.2 * GIB, 205 << 20), gib_of(96 << 20, 512 << 20)] == ["1.2 of 0.2 GiB", "96 of 512 MiB"]


def test_a_run_that_cannot_be_read_is_shown_with_the_reason():
    lost = RunSummary(name="x", title="X", created=0.0, state="interrupted", unreadable="config.json cannot be read.")
    assert words(runs.unreadable_run(lost)) == "The run 'X' cannot be read config.json cannot be read."


def test_what_became_of_every_row_of_an_import_is_said():
    account = RowAccount(seen=999, imported=997, refused=2, passed_over=("README.md: text beside tables",))
    report = DatasetReport(
        name="m", format="alpaca", confidence=1, reason="", rows=997, source_file="m", account=account
    )
    shown = words(data.left_over(report))
    assert "Rows of m: 999 seen = 997 imported + 2 refused." in shown
    assert "Passed over, for it holds no rows: README.md: text beside tables." in shown


def test_the_settings_of_a_run_stand_under_their_labels(tmp_path):
    edited = make_run(tmp_path, Progress(), "finished")
    edited = replace(
        edited, config=edited.config.replace({"lora.rank": 64, "data.sources": [{"name": "a", "weight": 2}]})
    )
    shown = words(runs.run_details(edited))
    assert "Settings Setting Value Training data a × 2 Rank 64 Folder:" in shown
