"""The plan: what it chooses, what it leaves alone, and what it says."""

import json
import re

import pytest

from qlora_studio.core.config import TrainConfig
from qlora_studio.core.errors import StudioError
from qlora_studio.core.machine import Machine, TorchBuild
from qlora_studio.core.plan import GIB, GpuProcess, MeasuredShape, PlanSettings
from qlora_studio.planner.activations import step_costs
from qlora_studio.planner.families import list_linears
from qlora_studio.planner.fit import make_plan
from qlora_studio.planner.reference_shapes import REFERENCE_SHAPES
from qlora_studio.planner.tables import imagine_machine, plan_all_cards, plan_all_models
from tests.matrix import mostly_slow

EIGHT = REFERENCE_SHAPES["Llama-3.1-8B"]
FOUR = REFERENCE_SHAPES["Qwen3-4B"]
PROCESSOR = Machine(memory_bytes=32 * GIB, memory_available_bytes=24 * GIB, cores=8, cpu_bf16=True)


def config(**changes):
    return TrainConfig().replace({name.replace("__", "."): value for name, value in changes.items()})


@pytest.mark.parametrize("card", mostly_slow([6, 8, 10, 12, 16, 24], 8))
@pytest.mark.parametrize("name", REFERENCE_SHAPES)
def test_a_plan_never_exceeds_its_budget_without_saying_so(card, name):
    plan = make_plan(TrainConfig(), REFERENCE_SHAPES[name], imagine_machine(card))
    assert plan.fits == (not plan.changes)
    assert plan.fits == (plan.estimate.total_bytes <= plan.budget_bytes)


def test_the_plan_says_how_rows_are_laid_out():
    plan = make_plan(TrainConfig(), REFERENCE_SHAPES["Llama-3.2-1B"], imagine_machine(12))
    packed = "Rows are packed: they lie side by side without padding, and each attends to itself alone."
    assert packed in plan.reasons and plan.settings.packed and not plan.settings.cut_by_row


def test_a_larger_card_never_gets_a_slower_plan():
    times = []
    for card in (8, 10, 12, 16, 24):
        plan = make_plan(TrainConfig(), EIGHT, imagine_machine(card))
        times.append((1 + plan.checkpointed_layers / 64) * (1 + 155 / plan.micro_batch_tokens))
    assert times == sorted(times, reverse=True)


def test_one_layer_less_would_not_fit():
    plan = make_plan(TrainConfig(), EIGHT, imagine_machine(12))
    assert 0 < plan.checkpointed_layers < 32
    tighter = config(memory__micro_batch_tokens=plan.micro_batch_tokens)
    again = make_plan(tighter, EIGHT, imagine_machine(12))
    assert again.checkpointed_layers == plan.checkpointed_layers
    advice = f"Gradient checkpointing on {plan.checkpointed_layers} of 32 layers: with one less, "
    assert advice in " ".join(plan.reasons)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"memory__gradient_checkpointing": "full"}, ("checkpointed_layers", 36)),
        ({"memory__gradient_checkpointing": "half"}, ("checkpointed_layers", 18)),
        ({"memory__gradient_checkpointing": "none"}, ("checkpointed_layers", 0)),
        ({"memory__micro_batch_tokens": 1500}, ("micro_batch_tokens", 1500)),
        ({"memory__adapter_precision": "bf16"}, ("adapter_precision", "bf16")),
        ({"optim__optimizer": "adamw"}, ("optimizer", "adamw")),
    ],
    ids=lambda value: str(value),
)
def test_what_a_person_set_stays_set(changes, expected):
    plan = make_plan(config(**changes), FOUR, imagine_machine(24))
    assert getattr(plan, expected[0]) == expected[1]


def test_real_lengths_make_room_for_speed():
    long, short = (
        make_plan(config(data__max_length=8192), EIGHT, imagine_machine(12), lengths) for lengths in (None, [300, 700])
    )
    assert long.micro_batch_tokens == 8192
    assert short.micro_batch_tokens < 8192 and short.checkpointed_layers < long.checkpointed_layers


def test_a_plan_reads_nothing_but_its_arguments(monkeypatch):
    """Planning is arithmetic: a form may ask for it at every keystroke."""

    def touched(*_, **__):
        raise AssertionError("a plan looked at the world")

    import psutil  # noqa: F401 (its import reads files, and a plan does not import it)

    names = ("builtins.open", "pathlib.Path.open", "os.stat", "subprocess.Popen", "psutil.virtual_memory")
    plans = []
    with monkeypatch.context() as patch:
        for name in (*names, "socket.socket.connect"):
            patch.setattr(name, touched)
        for machine in (imagine_machine(8), PROCESSOR):
            plans.append(make_plan(TrainConfig(), EIGHT, machine, [300, 700]))
    assert [plan.device for plan in plans] == ["cuda", "cpu"]


def test_a_family_that_nothing_has_measured_gets_no_plan():
    unknown = EIGHT.model_copy(update={"family": "odd", "exact": False})
    with pytest.raises(StudioError, match="The family 'odd' is not known by formula, and nothing has measured it yet"):
        make_plan(TrainConfig(), unknown, imagine_machine(24))


@pytest.mark.parametrize(
    ("build", "card", "message"),
    [
        (
            {"version": "2.13.0+cpu"},
            {},
            "torch 2.13.0+cpu is built for processors only, but this computer has a 24 GB card. Run: pip install "
            "--force-reinstall torch==2.13.0 --index-url https://download.pytorch.org/whl/cu130. "
            "To train on the processor instead, set CUDA_VISIBLE_DEVICES to -1.",
        ),
        (
            {"version": "2.13.0", "cuda": "13.0"},
            {"driver": "570.124.06"},
            "Driver 570.124.06 is too old for torch 2.13.0, which is built for CUDA 13.0. Install NVIDIA driver 580 or "
            "later. To train on the processor instead, set CUDA_VISIBLE_DEVICES to -1.",
        ),
        (
            {"version": "2.13.0", "cuda": "13.0"},
            {"driver": "580.10", "compute_capability": (6, 1)},
            "a 24 GB card has compute capability 6.1, and the 4-bit kernels under CUDA 13.0 want 7.5 or later. "
            "Use a newer card. To train on the processor instead, set CUDA_VISIBLE_DEVICES to -1.",
        ),
    ],
    ids=["a build for processors", "an old driver", "an old card"],
)
def test_a_torch_that_cannot_use_the_card_is_refused_with_the_remedy(build, card, message):
    machine = imagine_machine(24)
    changed = machine.cards[0].model_copy(update=card)
    with pytest.raises(StudioError) as caught:
        make_plan(TrainConfig(), FOUR, machine.model_copy(update={"torch": TorchBuild(**build), "cards": (changed,)}))
    assert str(caught.value) == message


@pytest.mark.parametrize("build", [None, {"version": "2.13.0", "cuda": "13.0"}, {"version": "2.9.1", "cuda": "12.6"}])
def test_a_torch_that_fits_the_card_is_planned_for(build):
    machine = imagine_machine(24)
    card = machine.cards[0].model_copy(update={"driver": "580.10"})
    torch = TorchBuild(**build) if build else None
    assert (
        make_plan(TrainConfig(), FOUR, machine.model_copy(update={"torch": torch, "cards": (card,)})).device == "cuda"
    )


def test_a_budget_below_what_cuda_takes_for_itself_is_refused():
    with pytest.raises(StudioError) as caught:
        make_plan(config(memory__budget_gib=0.3), REFERENCE_SHAPES["SmolLM2-135M"], imagine_machine(8))
    assert str(caught.value) == (
        "field 'memory.budget_gib': The budget is 307 MiB, and CUDA's own context takes 560 MiB before there is any "
        "model. Raise the budget, keep less free, or close other programs."
    )
    assert not make_plan(config(memory__budget_gib=0.3), REFERENCE_SHAPES["SmolLM2-135M"], PROCESSOR).fits


def test_the_micro_batch_never_exceeds_the_effective_batch():
    plan = make_plan(config(optim__batch_tokens=1500), FOUR, imagine_machine(24))
    assert plan.micro_batch_tokens == 1500
    assert "Micro-batch of 1500 tokens: the whole effective batch." in plan.reasons


def test_memory_kept_for_the_desktop_leaves_the_budget():
    plan = make_plan(config(memory__keep_free_gib=1.5), FOUR, imagine_machine(12))
    assert plan.budget_bytes == round(11.6 * GIB) - round(1.5 * GIB)
    assert plan.reasons[0] == "Budget 11.60 GiB: what is free on a 12 GB card, less 1.50 GiB kept free: 10.10 GiB."


def test_a_budget_above_what_is_free_is_cut_to_it():
    plan = make_plan(config(memory__budget_gib=20.0), FOUR, imagine_machine(8))
    assert plan.budget_bytes == 8 * GIB - round(0.4 * GIB)
    assert plan.reasons[0] == "Budget 7.60 GiB instead of 20 GiB: what is free on a 8 GB card."


NAMED = re.compile(
    r"(rank|max sequence length|optimizer|dropout|micro-batch of|gradient checkpointing|offload) (\S+)", re.I
)
FIELDS = {
    "rank": "lora.rank",
    "max sequence length": "data.max_length",
    "optimizer": "optim.optimizer",
    "dropout": "lora.dropout",
    "micro-batch of": "memory.micro_batch_tokens",
    "gradient checkpointing": "memory.gradient_checkpointing",
    "offload": "memory.offload",
}


def follow_advice(run_config, sentence):
    """The config with everything changed that a sentence of advice names."""
    values = {FIELDS[name.lower()]: value for name, value in NAMED.findall(sentence)}
    return run_config.replace(
        {field: json.loads(value) if value[0].isdigit() else value for field, value in values.items()}
    )


WISHES = {
    "one is enough": {"lora__rank": 128, "data__max_length": 1024, "memory__offload": "none"},
    "many would do": {"lora__rank": 64, "data__max_length": 4096, "memory__gradient_checkpointing": "none"},
    "only together": {"lora__rank": 512, "data__max_length": 16384, "optim__optimizer": "adamw", "lora__dropout": 0.1},
    "a fixed micro-batch": {"data__max_length": 512, "memory__micro_batch_tokens": 30000},
}


@pytest.mark.parametrize("changes", WISHES.values(), ids=WISHES)
@pytest.mark.parametrize("card", mostly_slow([6, 8, 10], 8))
@pytest.mark.parametrize("shape", [EIGHT, FOUR], ids=lambda shape: shape.name)
def test_every_advice_closes_the_gap(changes, card, shape):
    plan = make_plan(config(**changes), shape, imagine_machine(card))
    for sentence in plan.changes[1:]:
        if " fits: " in sentence or sentence.startswith("Together these fit: "):
            assert make_plan(follow_advice(config(**changes), sentence), shape, imagine_machine(card)).fits, sentence


def test_a_single_change_that_fits_is_named_and_smaller_ones_are_not():
    changes = config(lora__rank=128, data__max_length=1024, memory__offload="none")
    plan = make_plan(changes, EIGHT, imagine_machine(8))
    assert plan.changes == (
        "917 MiB are missing: the smallest settings need 8.50 GiB, the budget is 7.60 GiB.",
        "Offload auto instead of none fits: 7.2 of 7.6 GiB.",
        "Rank 64 instead of 128 fits: 7.5 of 7.6 GiB.",
        "A smaller model fits with these settings: Mistral-7B-v0.3, 7.0 of 7.6 GiB.",
    )


def test_where_no_single_change_does_the_smallest_combination_is_named_as_mild_as_it_can_be():
    changes = config(lora__rank=512, data__max_length=32768, optim__optimizer="adamw")
    plan = make_plan(changes, EIGHT, imagine_machine(8))
    assert plan.changes == (
        "10.95 GiB are missing: the smallest settings need 18.55 GiB, the budget is 7.60 GiB.",
        "Together these fit: rank 64 instead of 512 and max sequence length 8192 instead of 32768: 7.1 of 7.6 GiB.",
        "A smaller model fits with these settings: Llama-3.2-1B, 6.0 of 7.6 GiB.",
    )
    followed = follow_advice(changes, plan.changes[1])
    for milder in ({"lora.rank": 128}, {"data.max_length": 16384}):
        assert not make_plan(followed.replace(milder), EIGHT, imagine_machine(8)).fits


def test_where_nothing_closes_the_gap_that_is_said():
    big = EIGHT.model_copy(update={"layers": 200})
    plan = make_plan(config(), big, imagine_machine(8))
    assert plan.changes[1:] == (
        "No other setting closes that gap with this model.",
        "A smaller model fits with these settings: Qwen3-8B, 5.7 of 7.6 GiB.",
    )


def test_a_budget_and_a_program_that_would_be_enough_are_named():
    machine = imagine_machine(8)
    game, tray = (
        GpuProcess(pid=pid, name=name, used_bytes=size)
        for pid, name, size in ((7, "game", 5 * GIB), (8, "tray", 50 << 20))
    )
    full = machine.cards[0].model_copy(update={"free_bytes": 3 * GIB, "processes": (game, tray)})
    crowded = machine.model_copy(update={"cards": (full,)})
    advice = make_plan(config(), EIGHT, crowded).changes
    assert "Closing game (process 7) frees 5.00 GiB, which is enough." in advice
    assert not any("tray" in sentence for sentence in advice)
    advice = make_plan(config(memory__budget_gib=5.0, memory__keep_free_gib=0.5), EIGHT, machine).changes
    assert "What is free instead of a budget of 5 GiB fits: 5.5 of 7.1 GiB." in advice
    assert not any("keeping nothing" in sentence.lower() for sentence in advice)


def test_longest_context_and_largest_rank_are_the_last_that_fit():
    card = imagine_machine(6)
    plan = make_plan(TrainConfig(), FOUR, card)
    for field, value, edge in (
        ("data.max_length", plan.longest_context, 1),
        ("lora.rank", plan.largest_rank, 1),
    ):
        assert make_plan(TrainConfig().replace({field: value}), FOUR, card).fits
        assert not make_plan(TrainConfig().replace({field: value + edge}), FOUR, card).fits


@pytest.mark.slow
def test_tables_have_a_row_for_every_card_and_every_model():
    cards = plan_all_cards(TrainConfig(), FOUR, PROCESSOR)
    assert [row.card.name if row.card else "CPU" for row in cards] == [
        "a 6 GB card", "a 8 GB card", "a 10 GB card", "a 12 GB card", "a 16 GB card", "a 24 GB card", "CPU",
    ]  # fmt: skip
    models = plan_all_models(TrainConfig(), imagine_machine(8))
    assert [row.shape.name for row in models] == list(REFERENCE_SHAPES)
    assert [row.plan.fits for row in models] == [True] * 10 + [False] * 2


@pytest.mark.parametrize(
    ("rank", "offload", "words"),
    [
        (16, "none", None),
        (
            48,
            "embeddings",
            "Input embeddings are offloaded to the computer's memory, 1002 MiB of it: with everything on the "
            "card nothing fits.",
        ),
    ],
)
def test_what_may_wait_outside_is_used_only_where_nothing_fits_without(rank, offload, words):
    plan = make_plan(config(lora__rank=rank, data__max_length=1024), EIGHT, imagine_machine(8))
    assert plan.fits and (plan.offload, plan.adapter_precision) == (offload, "fp32")
    assert [reason for reason in plan.reasons if "computer's memory" in reason] == ([words] if words else [])


def test_tied_embeddings_are_never_moved_and_a_cpu_has_nowhere_to_move_to():
    choices = {
        make_plan(config(data__max_length=rows), FOUR, imagine_machine(6)).offload for rows in (512, 6000, 9000, 14000)
    }
    assert choices == {"none", "boundaries"}
    assert make_plan(config(memory__offload="both"), FOUR, PROCESSOR).offload == "none"


def test_layer_inputs_that_wait_outside_make_rows_longer():
    here = make_plan(config(memory__offload="none"), FOUR, imagine_machine(8)).longest_context
    outside = make_plan(config(memory__offload="boundaries"), FOUR, imagine_machine(8)).longest_context
    assert here and outside and outside > 1.5 * here


def turing(size):
    """A card of this size from before bf16 and flash attention."""
    machine = imagine_machine(size)
    card = machine.cards[0].model_copy(update={"compute_capability": (7, 5)})
    return machine.model_copy(update={"cards": (card,)})


@pytest.mark.parametrize("name", REFERENCE_SHAPES)
@pytest.mark.parametrize("size", mostly_slow([6, 8, 12], 6))
def test_adapters_are_in_fp32_wherever_the_arithmetic_is_in_fp16(name, size):
    plan = make_plan(config(data__max_length=1024), REFERENCE_SHAPES[name], turing(size))
    assert plan.settings.compute == ("fp32" if name.startswith("Gemma-3") else "fp16")
    assert plan.settings.compute == "fp32" or plan.adapter_precision == "fp32"


@pytest.mark.parametrize(
    ("changes", "shape", "machine", "message"),
    [
        (
            {"memory__adapter_precision": "bf16"},
            FOUR,
            turing(8),
            "field 'memory.adapter_precision': An adapter in bf16 cannot be trained in fp16: its scaled gradients have "
            "no kernel. Choose fp32 or auto.",
        ),
        (
            {"model__compute_dtype": "fp16"},
            REFERENCE_SHAPES["Gemma-3-4B"],
            imagine_machine(24),
            "field 'model.compute_dtype': A gemma3_text model overflows in fp16. Choose bf16, fp32 or auto.",
        ),
        (
            {"model__compute_dtype": "fp16"},
            FOUR,
            PROCESSOR,
            "field 'model.compute_dtype': This computer has no card, and fp16 is not for processors. Choose bf16, fp32 "
            "or auto.",
        ),
    ],
    ids=["bf16 adapter", "gemma 3", "processor"],
)
def test_formats_that_cannot_train_are_refused(changes, shape, machine, message):
    with pytest.raises(StudioError) as caught:
        make_plan(config(**changes), shape, machine)
    assert str(caught.value) == message


def test_repeated_keys_and_values_are_counted_where_there_are_no_grouped_queries():
    forced = config(memory__micro_batch_tokens=2048, memory__gradient_checkpointing="none", data__max_length=2048)
    old, new = (make_plan(forced, EIGHT, machine) for machine in (turing(48), imagine_machine(48)))
    more = old.estimate.part_bytes("activations") - new.estimate.part_bytes("activations")
    assert more == 2048 * 32 * 2 * 2 * (32 - 8) * 128  # layers x keys and values x bytes x heads more x their width
    assert "Keys and values are repeated for every head: this card has no attention kernel for grouped queries." in (
        old.reasons
    )
    every_head = EIGHT.model_copy(update={"kv_heads": 32})
    assert not make_plan(forced, every_head, turing(48)).settings.repeats_kv
    in_fp32 = forced.replace({"model.compute_dtype": "fp32"})
    assert make_plan(in_fp32, EIGHT, imagine_machine(48)).settings.repeats_kv


def test_what_is_offloaded_is_pinned_and_has_to_fit_the_computer():
    changes = config(data__max_length=14000)
    plan = make_plan(changes, FOUR, imagine_machine(6))
    assert plan.offload == "boundaries"
    assert plan.host_bytes == plan.checkpointed_layers * plan.micro_batch_tokens * 2560 * 2
    for share in (1.0, 0.5, 0.1):
        memory = round(2 * share * plan.host_bytes)
        other = make_plan(changes, FOUR, imagine_machine(6).model_copy(update={"memory_available_bytes": memory}))
        assert other.host_budget_bytes == memory // 2
        assert other.host_bytes <= other.host_budget_bytes


def test_an_offload_that_the_computer_cannot_hold_is_no_plan_that_fits():
    changes = config(memory__offload="boundaries", memory__gradient_checkpointing="full", data__max_length=8192)
    small = imagine_machine(12).model_copy(update={"memory_available_bytes": 1 * GIB})
    plan = make_plan(changes, FOUR, small)
    assert not plan.fits and plan.spare_bytes > 0
    assert plan.missing_bytes == plan.host_bytes - GIB // 2
    assert plan.changes[:2] == (
        "Offloading would take 1.41 GiB of the computer's memory, and 512 MiB may be taken.",
        "Offload auto instead of boundaries fits: 5.5 of 11.6 GiB.",
    )


def test_mlps_go_in_tiles_only_where_nothing_fits_without():
    longest = make_plan(config(lora__rank=32), EIGHT, imagine_machine(12)).longest_context
    small, large = (
        make_plan(config(lora__rank=32, data__max_length=n), EIGHT, imagine_machine(12)) for n in (4096, longest)
    )
    advice = "MLPs are computed in tiles of 1024 tokens: with all tokens at once nothing fits."
    assert (small.tiled_mlp, advice in small.reasons) == (False, False)
    assert (large.tiled_mlp, large.settings.tiled_mlp, advice in large.reasons) == (True, True, True)
    with_dropout = make_plan(config(lora__rank=32, lora__dropout=0.1), EIGHT, imagine_machine(12))
    assert longest / 2 < with_dropout.longest_context < longest  # it keeps nothing, and its MLPs are not tiled


def measured_eight(tiled):
    """A family that is known by a dry run alone, which found what the formulas say."""
    formats = {
        name: {"bf16": step_costs(EIGHT, PlanSettings(tiled_mlp=name == "tiled"))} for name in ("costs", "tiled")
    }
    found = MeasuredShape(
        linears=tuple(list_linears(EIGHT)),
        other_bytes=2_000_000_000,
        costs=formats["costs"],
        tiled=formats["tiled"] if tiled else {},
        rank=16,
    )
    return EIGHT.model_copy(update={"measured": found, "exact": False})


def test_a_measured_family_is_planned_in_tiles_where_its_dry_run_had_some():
    with_tiles, without = measured_eight(tiled=True), measured_eight(tiled=False)
    card = imagine_machine(12)
    longest = make_plan(config(), with_tiles, card).longest_context
    assert longest > 1.1 * make_plan(config(), without, card).longest_context
    plan = make_plan(config(data__max_length=longest), with_tiles, card)
    assert (plan.fits, plan.tiled_mlp) == (True, True)
    assert not make_plan(config(data__max_length=longest), without, card).fits


def test_rows_that_will_be_padded_are_said_to_be_with_the_reason():
    shape = measured_eight(tiled=False)
    padded = shape.measured.model_copy(update={"padded_because": "its attention mixes rows"})
    plan = make_plan(config(), shape.model_copy(update={"measured": padded}), imagine_machine(24))
    assert "Rows are padded to the longest of their micro-batch: its attention mixes rows." in plan.reasons
    assert not plan.settings.packed
