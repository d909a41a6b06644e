"""One readiness: whole sentences, what blocks, what is merely unusual, and steps that the loop will really take."""

from dataclasses import replace

import pytest

from qlora_studio.core.bases import FailedBase, ResolvedBase, UnresolvedBase
from qlora_studio.core.config import TrainConfig
from qlora_studio.core.dataset import Finding
from qlora_studio.core.errors import Problem
from qlora_studio.core.jobs import TokeniseReport
from qlora_studio.core.machine import Machine, Speed
from qlora_studio.core.plan import GIB
from qlora_studio.core.readiness import DataFacts, DiskNeed, ExportFacts, LeftOut, TimeEstimate
from qlora_studio.planner import readiness
from qlora_studio.planner.families import count_weights
from qlora_studio.planner.readiness import assess, assess_export
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.tables import imagine_machine
from qlora_studio.planner.time import Work

SMOL, EIGHT = REFERENCE_SHAPES["SmolLM2-135M"], REFERENCE_SHAPES["Llama-3.1-8B"]
BASE = ResolvedBase(name="smol", shape=SMOL, weights="on_disk", weights_bytes=270_000_000)
PROCESSOR = Machine(
    memory_bytes=8 * GIB,
    memory_available_bytes=7 * GIB,
    cores=2,
    cpu_bf16=True,
    disk_free_bytes=50 * GIB,
    speeds=(Speed(model="smol", weights=count_weights(SMOL), flops_per_second=2e11),),
)
CONFIG = TrainConfig().replace(
    {
        "data.sources": [{"name": "mine"}],
        "data.max_length": 512,
        "optim.epochs": 2,
        "optim.batch_tokens": 1024,
        "optim.optimizer": "adamw",
        "memory.budget_gib": 4.0,
    }
)


def counted(lengths, rows=None, /, **more):
    """A report of rows of these lengths; `rows` counts what was read, the rest was too long."""
    rows = len(lengths) if rows is None else rows
    values = {
        "rows": rows, "examples": len(lengths), "held_out_rows": 12, "tokens": sum(lengths), "limit": 512,
        "trained_tokens": sum(lengths), "too_long": rows - len(lengths), "dropped": rows - len(lengths), "cut": 0,
        "refused": 0, "median": 0, "p95": 0, "longest": max(lengths, default=0), "padding_share": 0.0,
        "histogram": (), "lengths": tuple(lengths), "findings": (), "previews": (),
    }  # fmt: skip
    return TokeniseReport(**{**values, **more})


def ready(config=CONFIG, base=BASE, tokens=None, machine=PROCESSOR, **data):
    return assess(config, base, DataFacts(rows=200, tokens=tokens, **data), machine)


def test_the_sentence_before_a_start():
    seen = ready(tokens=counted([140, 150, 160] * 45 + [149, 151], 200))
    assert seen.sentence == "137 of 200 rows, 63 too long, 46 steps, about 3 min, 1.8 of 4.0 GiB"
    assert (seen.ready, seen.blocks, seen.over_budget, seen.unusual) == (True, (), None, ())
    assert (seen.left_out, seen.held_out_rows) == ((LeftOut(63, "too long"),), 12)


def test_every_part_of_the_sentence():
    report = counted([100] * 40, 100, dropped=30, refused=10, cut=5, too_long=35)
    base = BASE.model_copy(update={"weights": "to_download"})
    seen = ready(tokens=report, base=base, machine=PROCESSOR.model_copy(update={"speeds": ()}))
    assert seen.sentence == (
        "40 of 100 rows, 30 too long, 10 with nothing to train, 20 left out by the mixture, 5 truncated, 8 steps, "
        "under a minute, 1.8 of 4.0 GiB, 257 MiB to download first"
    )


def test_before_rows_are_tokenised_it_says_what_is_known():
    seen = ready()
    assert seen.sentence == "200 rows, not tokenised yet, 1.8 of 4.0 GiB"
    assert (seen.steps, seen.time, seen.trained_rows, seen.ready) == (None, None, None, True)


def test_steps_of_very_many_rows_are_said_to_be_about_so_many():
    exact = ready(tokens=counted([150] * 900))
    summary = ready(tokens=counted([150] * 900, lengths=()))
    assert (exact.steps_exact, summary.steps_exact) == (True, False)
    assert "about 264 steps" in summary.sentence and summary.steps == pytest.approx(exact.steps, rel=0.15)


def finding(**values):
    return Finding(**{"name": "secret", "severity": "error", "count": 1, "message": "A key stands in a row.", **values})


@pytest.mark.parametrize(
    ("change", "blocks"),
    [
        ({"config": CONFIG.replace({"data.sources": []})}, ["There is no data to train on. Import a file first."]),
        (
            {"tokens": counted([], 9)},
            [
                "No row is left to train: of 9 none fits 512 tokens. Raise the max sequence length, or truncate long "
                "rows instead of dropping them."
            ],
        ),
        (
            {"base": UnresolvedBase(name="x", needs="The hub has to be asked for its config.json.")},
            ["The hub has to be asked for its config.json. Look the model up first."],
        ),
        (
            {"base": FailedBase(name="x", stage="hub", message="The hub has no such model.", hint="Check the Hub ID.")},
            ["The hub has no such model. Check the Hub ID."],
        ),
        (
            {"base": BASE.model_copy(update={"weights": "missing", "weights_problem": "No weights."})},
            ["No weights."],
        ),
        ({"findings": (finding(),)}, ["A key stands in a row."]),
        ({"findings": (finding(severity="warning"),)}, []),
        ({"findings": (finding(),), "config": CONFIG.replace({"data.accepted": ["secret"]})}, []),
        ({"findings": (finding(),), "tokens": counted([100] * 300)}, []),
        ({"tokens": counted([100] * 300, findings=(finding(),))}, ["A key stands in a row."]),
        (
            {"machine": PROCESSOR.model_copy(update={"disk_free_bytes": 100 << 20})},
            [
                "The run needs 306 MiB of disk, and 100 MiB are free. Free some space, or choose another disk."
            ],
        ),
        (
            {"machine": imagine_machine(8), "config": CONFIG.replace({"memory.budget_gib": 0.1})},
            [
                "The budget is 102 MiB, and CUDA's own context takes 560 MiB before there is any model. "
                "Raise the budget, keep less free, or close other programs."
            ],
        ),
    ],
)  # fmt: skip
def test_what_blocks_a_start(change, blocks):
    seen = ready(**change)
    assert [" ".join(filter(None, (one.message, one.hint))) for one in seen.blocks] == blocks
    assert seen.ready == (not blocks) and not seen.can_start_anyway


def test_an_over_full_plan_is_not_a_block_that_cannot_be_passed():
    base = BASE.model_copy(update={"shape": EIGHT})
    seen = ready(base=base, tokens=counted([100] * 300))
    assert (seen.ready, seen.can_start_anyway, seen.blocks) == (False, True, ())
    assert "over budget, and memory would run out" in seen.over_budget.message
    assert not ready(base=base, tokens=counted([], 9)).can_start_anyway


@pytest.mark.parametrize(
    ("changes", "field", "message"),
    [
        ({"optim.learning_rate": 1.0}, "optim.learning_rate", "A learning rate of 1 is 769 times what suits a model"),
        ({"optim.learning_rate": 1e-7}, "optim.learning_rate", "A learning rate of 1e-07 is so low that hardly"),
        ({"lora.rank": 512}, "lora.rank", "A rank of 512 is more than there are examples (300)."),
        ({"lora.rank": 576}, "lora.rank", "A rank of 576 is no less than the model's width"),
        ({"lora.alpha": 1600}, "lora.alpha", "An alpha of 1,600 scales the adapter out of proportion."),
        ({"optim.epochs": 40}, "optim.epochs", "Each row is seen 40 times; most runs forget after a few."),
        ({"optim.max_steps": 3}, "optim.batch_tokens", "There are only 3 steps: little is learned."),
        ({"optim.warmup_share": 0.8}, "optim.warmup_share", "The learning rate still rises after 80% of the run."),
        ({"lora.dropout": 0.9}, "lora.dropout", "A dropout of 0.9 leaves most of the adapter's input out."),
    ],
    ids=lambda value: "",
)
def test_what_is_unusual_is_said_and_blocks_nothing(changes, field, message):
    seen = ready(CONFIG.replace(changes), tokens=counted([150] * 300))
    assert [(one.field, one.message.startswith(message)) for one in seen.unusual] == [(field, True)]
    assert all(one.hint.endswith(".") for one in seen.unusual) and seen.ready


@pytest.mark.parametrize(
    ("report", "config", "message"),
    [
        (counted([150] * 300, 900), CONFIG, "Most rows are left out: 600 of 900."),
        (
            counted([150] * 300, cut=7),
            CONFIG.replace({"data.too_long": "cut_answer"}),
            "7 answers end in the middle: the model learns to break off.",
        ),
        (
            counted([150] * 300, held_out_rows=0),
            CONFIG,
            "No row is held out, so nobody sees whether the model learns or memorises.",
        ),
    ],
)
def test_unusual_rows(report, config, message):
    assert [one.message for one in ready(config, tokens=report).unusual] == [message]


def test_shipped_settings_are_not_unusual():
    for rate in (1e-4, 2e-4, 3e-4, 1e-3):
        for shape in (SMOL, EIGHT):
            base = BASE.model_copy(update={"shape": shape})
            seen = ready(CONFIG.replace({"optim.learning_rate": rate}), base, counted([150] * 300))
            assert seen.unusual == ()


def test_an_export_says_size_time_and_room():
    facts = ExportFacts("merged model", 269 << 20, read_bytes=270 << 20, checks=3, free_bytes=13 * GIB)
    seen = assess_export(BASE, facts, needs_base=True)
    assert seen.sentence == "merged model, 269 MiB, under a minute, 13.00 GiB free"
    assert (seen.ready, seen.time.measured) == (True, False)
    full = assess_export(BASE, ExportFacts("merged model", 2 * GIB, 0, GIB, free_bytes=2 * GIB), needs_base=True)
    assert full.blocks == (
        Problem(
            "The merged model needs 3.00 GiB of disk, and 2.00 GiB are free.",
            "Free some space, or choose another disk.",
        ),
    )


def test_an_export_that_reads_the_base_waits_for_it():
    gone = FailedBase(name="x", stage="files", message="There is no model folder 'x'.")
    facts = ExportFacts("adapter", 20 << 20, 20 << 20, free_bytes=GIB)
    assert assess_export(gone, facts, needs_base=False).ready
    assert [one.message for one in assess_export(gone, facts, needs_base=True).blocks] == [gone.message]


def test_what_llama_cpp_does_not_know_here_is_said_before_training_and_stops_such_an_export():
    odd = BASE.model_copy(update={"shape": SMOL.model_copy(update={"family": "gpt_neox"}), "limits": ("One.",)})
    limits = assess(CONFIG, odd, DataFacts(), PROCESSOR).limits
    assert limits[0] == "One." and limits[1].startswith("No GGUF file can be made of a gpt_neox model here")
    assert assess(CONFIG, BASE, DataFacts(), PROCESSOR).limits == ()
    facts = ExportFacts("GGUF file", GIB, GIB, free_bytes=9 * GIB, gguf=True)
    assert assess_export(odd, facts, needs_base=True).blocks == (
        Problem(limits[1], "Export the merged model instead."),
    )
    assert assess_export(odd, replace(facts, gguf=False), needs_base=True).ready
    assert assess_export(BASE, facts, needs_base=True).ready


def test_the_search_for_blocks_takes_its_time_on_the_cores_there_are():
    facts = ExportFacts("GGUF file", GIB, GIB, free_bytes=9 * GIB, encoded_values=6_000_000 * 600, cores=1)
    plain = ExportFacts("GGUF file", GIB, GIB, free_bytes=9 * GIB)
    seconds = [
        assess_export(BASE, one, needs_base=True).time.seconds for one in (facts, replace(facts, cores=4), plain)
    ]
    assert seconds[0] - seconds[2] == pytest.approx(600) and seconds[1] - seconds[2] == pytest.approx(150)


def test_training_rows_for_an_importance_matrix_go_forward_at_twice_the_speed_of_training():
    plain = ExportFacts("GGUF file", GIB, GIB, free_bytes=9 * GIB, encoded_values=10**9)
    known = replace(plain, read_tokens=8000, tokens_per_second=40.0)
    unknown = replace(plain, read_tokens=8000)  # two operations a weight and token, at what a core is taken for
    before, measured, guessed = (
        assess_export(BASE, one, needs_base=True).time.seconds for one in (plain, known, unknown)
    )
    assert measured - before == pytest.approx(100) and guessed - before == pytest.approx(400)


def test_a_base_that_an_adapter_cannot_be_merged_into_blocks_only_merges():
    base = BASE.model_copy(update={"unmergeable": ("transformer.h.*.attn.c_attn",)})
    facts = ExportFacts("merged model", GIB, GIB, free_bytes=9 * GIB)
    (block,) = assess_export(base, facts, needs_base=True).blocks
    assert str(block) == (
        "The adapter cannot be merged into this base: its files hold no matching weight for transformer.h.*.attn.c_attn. "
        "Export the adapter as it is."
    )
    assert assess_export(base, facts, needs_base=False).ready


@pytest.mark.parametrize(
    ("seconds", "measured", "text"),
    [
        (20, True, "under a minute"),
        (300, True, "about 5 min"),
        (300, False, "roughly 5 min"),
        (7800, True, "about 2 h 10 min"),
        (7150, True, "about 2 h"),
        (400_000, False, "roughly 5 days"),
    ],
)
def test_times_are_no_finer_than_they_are_known(seconds, measured, text):
    assert str(TimeEstimate(seconds, 1.0, measured, "")) == text


def test_a_rate_that_is_left_open_is_said_before_the_start():
    seen = ready(CONFIG.replace({"optim.learning_rate": "auto"}), tokens=counted([150] * 300))
    assert seen.chosen == {
        "optim.learning_rate": "A learning rate of 0.0013 suits this model, 576 wide, at this alpha."
    }
    assert ready(CONFIG.replace({"optim.learning_rate": 1e-4}), tokens=counted([150] * 300)).chosen == {}


SUMMARY = {"lengths": (), "tokens": 900 * 150, "held_out_rows": 40}
"""Of so many rows that their lengths do not travel."""


def test_of_very_many_rows_the_steps_follow_from_their_tokens_and_stop_where_they_are_to():
    report = counted([150] * 900, **SUMMARY)
    whole = readiness._work(CONFIG, report, None)
    assert whole == (Work(264, 270_000, 150.0, 6000), False), "two epochs in steps of 1,024 tokens, rounded up"
    for most, expected in ((263, Work(263, 263 * 1024, 150.0, 6000)), (264, whole[0]), (500, whole[0])):
        assert readiness._work(CONFIG.replace({"optim.max_steps": most}), report, None) == (expected, False)
    assert readiness._work(CONFIG, None, None) == readiness._work(CONFIG, counted([]), None) == (None, True)


def test_a_plan_is_made_for_the_real_lengths_or_for_the_longest_that_is_trained(monkeypatch):
    asked = []
    monkeypatch.setattr(readiness, "make_plan", lambda *given: asked.append(given[-1]) or 1 / 0)
    for report in (
        None, counted([]), counted([5, 7]), counted([150] * 9, lengths=(), longest=300),
        counted([150] * 9, lengths=(), longest=900),
    ):  # fmt: skip
        with pytest.raises(ZeroDivisionError):
            ready(tokens=report)
    assert asked == [None, None, (5, 7), (300,), (512,)]


def test_every_place_where_rows_went_is_counted_once():
    report = counted([100] * 40, 100, dropped=30, refused=10)
    assert ready(tokens=report).left_out == (
        LeftOut(30, "too long"), LeftOut(10, "with nothing to train"), LeftOut(20, "left out by the mixture"),
    )  # fmt: skip
    assert ready(tokens=report).trained_rows == 40
    more = counted([100] * 80, 100, dropped=30, refused=10)  # a mixture may take rows twice
    assert ready(tokens=more).left_out == (LeftOut(30, "too long"), LeftOut(10, "with nothing to train"))
    assert ready(tokens=more).trained_rows == 60


def test_disk_is_needed_for_a_download_the_adapter_and_every_checkpoint_that_there_may_be_at_once():
    seen = ready()
    adapter, optimizer = (seen.plan.estimate.part_bytes(part) for part in ("adapter", "optimizer"))
    needed = adapter + (2 + 2) * (adapter + optimizer) + (64 << 20)
    assert CONFIG.saving.keep == 2 and seen.disk == DiskNeed(needed, 50 * GIB) and seen.download_bytes == 0
    more = ready(CONFIG.replace({"saving.keep": 5}), BASE.model_copy(update={"weights": "to_download"}))
    assert more.disk.needed_bytes == needed + 3 * (adapter + optimizer) + 270_000_000
    assert more.download_bytes == 270_000_000
    unknown = BASE.model_copy(update={"weights": "to_download", "weights_bytes": None})
    assert ready(base=unknown).download_bytes == 0
    for free, fits in ((needed, True), (needed - 1, False)):
        machine = PROCESSOR.model_copy(update={"disk_free_bytes": free})
        assert ready(machine=machine).ready == fits


def test_what_is_over_budget_is_said_with_the_first_change_that_helps_or_with_a_general_one():
    base = BASE.model_copy(update={"shape": EIGHT})
    seen = ready(base=base, tokens=counted([100] * 300))
    missing = seen.plan.missing_bytes
    assert seen.over_budget == Problem(
        f"The plan is {missing / GIB:.2f} GiB over budget, and memory would run out.", seen.plan.changes[1]
    )
    alone = seen.plan.model_copy(update={"changes": seen.plan.changes[:1]})
    general = "Choose a smaller model, shorter rows or a smaller rank."
    assert readiness._over_budget(alone).hint == general
    assert readiness._over_budget(alone.model_copy(update={"changes": ()})).hint == general
    assert readiness._over_budget(None) is None


def test_data_without_rows_blocks_only_until_they_are_counted():
    empty = assess(CONFIG, BASE, DataFacts(rows=0), PROCESSOR)
    assert [str(one) for one in empty.blocks] == [
        "field 'data.sources': The chosen data sets have no rows. Import a file that has some."
    ]
    assert assess(CONFIG, BASE, DataFacts(rows=0, tokens=counted([9])), PROCESSOR).blocks == ()
    assert assess(CONFIG, BASE, DataFacts(rows=1), PROCESSOR).blocks == ()


def test_an_export_takes_the_time_of_what_it_reads_writes_encodes_and_asks():
    def seconds(**facts):
        values = {"kind": "GGUF file", "result_bytes": 0, "read_bytes": 0, "free_bytes": GIB} | facts
        return assess_export(BASE, ExportFacts(**values), needs_base=True).time

    assert seconds(checks=0).seconds == 0
    assert seconds(read_bytes=200_000_000).seconds == 1
    assert seconds(result_bytes=400_000_000, scratch_bytes=200_000_000).seconds == 3
    assert seconds(result_bytes=None, scratch_bytes=200_000_000).seconds == 1
    assert seconds(encoded_values=12_000_000, cores=2).seconds == 1
    assert seconds(checks=3).seconds == 30
    assert seconds(read_tokens=100, tokens_per_second=5.0).seconds == 10
    assert seconds(read_tokens=10, encoded_values=10**9, cores=1).seconds == pytest.approx(10**9 / 6e6 + 0.5)
    time = seconds()
    assert (time.tokens_per_second, time.measured) == (0, False)
    assert time.basis == "by a rough formula: weights read and written at 0.2 GB/s"


def test_an_export_of_unknown_size_is_not_refused_for_the_disk():
    facts = ExportFacts("adapter", None, 0, free_bytes=0)
    seen = assess_export(BASE, facts, needs_base=True)
    assert (seen.disk, seen.ready, seen.result_bytes) == (None, True, None)
    exact = ExportFacts("adapter", GIB, 0, GIB, free_bytes=2 * GIB)
    assert assess_export(BASE, exact, needs_base=True).ready
