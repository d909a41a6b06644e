"""The parts of a dry run: one pass of a copy counted to the byte, and what is read off the passes."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig

from qlora_studio.core.errors import StudioError
from qlora_studio.core.plan import MeasuredShape, Moment, StepCosts
from qlora_studio.engine import dry_run
from qlora_studio.engine.dry_run import Copy, Layout, Run, attends_in_squares, measure
from qlora_studio.engine.stand_in_kernels import Mark
from qlora_studio.engine.stand_ins import without_numbers
from tests.engine.architectures import config_of

TINY = {
    "vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 96,
}  # fmt: skip
HIDDEN = 64
BF16, FP32 = torch.bfloat16, torch.float32
PACKED, TILED, PADDED = Layout(True), Layout(True, True), Layout(False)


def tiny(**changes):
    return AutoConfig.for_model("llama", **(TINY | changes))


def summed(marks):
    """How many marks there are, and the sum of each of their numbers."""
    sums = [sum(getattr(mark, name) for mark in marks) for name in Mark.__dataclass_fields__]
    return (len(marks), *sums)


def run(config, copy):
    with without_numbers():
        return dry_run._run(config, copy)


def synthetic(squares, passes):
    """A `_run` whose bytes follow from a few numbers, and which notes for what it is asked."""
    hidden = HIDDEN * 2

    def of(config, one):
        n, layers = one.tokens, one.layers
        passes.append((layers, one.checkpointed, n))
        pairs = squares * n * n
        saved = 70 * n + 500 + 3 * pairs
        around = 9 * n + 40 + 2 * pairs
        layers_hold = layers * 12 * n if one.checkpointed else layers * saved - 11 * n
        held = layers_hold + around + 5 * n
        below = 12 * n + around + saved
        lines = {64: (20, 7), 128: (20, 7), 512: (30, 8), 1024: (30, 8), 8192: (30, 8), 16384: (30, 8)}
        slope, fixed = (31, 9) if squares else lines[n]
        return Run(
            held=held,
            end_peak=held + 6 * n + 77,
            kept=layers_hold + around + hidden * n,
            layer_peak=below + slope * n + fixed + 4 * pairs,
            end_marks=(Mark(held + 13 * n + 3, norm_numbers=64 * n, norm_fused=True),) if one.layout.packed else (),
            layer_marks=(
                Mark(below + 17 * n + 1, inner_numbers=96 * n, tile_numbers=32 * n),
                Mark(below - 19 * n - 2, attention=True),
            ),
        )

    return of


def test_costs_are_read_off_the_passes_of_two_and_four_layers(monkeypatch):
    passes = []
    monkeypatch.setattr(dry_run, "_run", synthetic(0, passes))
    assert dry_run._measure_costs(tiny(), BF16, PACKED) == StepCosts(
        boundary=12, saved=70, saved_fixed=500, first_saved_less=11, around=9, ending=5,
        layer=(
            Moment(20, 7),
            Moment(30, 8),  # once, though it is found twice
            Moment(17, 1, inner_width=96, tile_width=32),
            Moment(-19, -2, attention=True),
       ),
        end=Moment(13, 3, norm_width=64, norm_fused=True),
        saved_pairs=0, around_pairs=0,
    )  # fmt: skip
    several = {(2, True, n) for n in (64, 128, 512, 1024, 8192, 16384)}
    others = {(layers, twice, n) for layers, twice in ((2, False), (4, False), (4, True)) for n in (512, 1024)}
    assert len(passes) == len(set(passes)) and set(passes) == several | others


def test_where_attention_holds_pairs_they_are_told_apart_by_three_lengths(monkeypatch):
    passes = []
    monkeypatch.setattr(dry_run, "_run", synthetic(1, passes))
    assert dry_run._measure_costs(tiny(attention_dropout=0.1), BF16, PADDED) == StepCosts(
        boundary=12, saved=70, saved_fixed=500, first_saved_less=11, around=9, ending=5,
        layer=(
            Moment(31, 9, 8),
            Moment(17, 1, inner_width=96, tile_width=32),
            Moment(-19, -2, attention=True),
       ),
        end=Moment(6, 77),
        saved_pairs=6, around_pairs=4,
    )  # fmt: skip
    kinds = ((2, False), (4, False), (2, True), (4, True))
    assert sorted(passes) == sorted((*kind, n) for kind in kinds for n in (256, 512, 1024))


@pytest.mark.parametrize(("formats", "tiled"), [(("bf16", "fp32"), True), (("fp32",), False)])
def test_a_measurement_has_the_costs_of_each_format_and_of_tiles_in_bf16(monkeypatch, formats, tiled):
    monkeypatch.setattr(dry_run, "_measure_costs", lambda config, dtype, layout: cost_of(dtype, layout))
    measured = measure(tiny(), formats)
    assert isinstance(measured, MeasuredShape)
    assert measured.costs == {
        name: cost_of({"bf16": BF16, "fp32": FP32}[name], replace(PACKED, tiled=False)) for name in formats
    }
    assert measured.tiled == ({"bf16": cost_of(BF16, TILED)} if tiled else {})
    assert (measured.rank, measured.eager, measured.padded_because, measured.stacked) == (16, False, None, ())
    assert measured.other_bytes == 2 * (2 * 512 * 64 + 64 + 4 * 2 * 64) + 2 * 8 * 4, (
        "embeddings, head, norms, frequencies"
    )
    assert [(one.name, one.inputs, one.outputs, one.count) for one in measured.linears] == [
        ("q_proj", 64, 64, 4), ("k_proj", 64, 32, 4), ("v_proj", 64, 32, 4), ("o_proj", 64, 64, 4),
        ("gate_proj", 64, 96, 4), ("up_proj", 64, 96, 4), ("down_proj", 96, 64, 4),
    ]  # fmt: skip


def cost_of(dtype, layout):
    number = dtype.itemsize + 10 * layout.packed + 100 * layout.tiled
    return StepCosts(
        boundary=number, saved=0, saved_fixed=0, first_saved_less=0, around=0, ending=0, layer=(Moment(1, 1),),
        end=Moment(1, 1),
    )  # fmt: skip


def test_a_model_that_cannot_be_packed_is_measured_padded_and_one_without_gated_mlps_in_no_tiles(monkeypatch):
    monkeypatch.setattr(dry_run, "_measure_costs", lambda config, dtype, layout: cost_of(dtype, layout))
    measured = measure(config_of("gptj"), ("bf16",))
    assert measured.padded_because is not None
    assert measured.costs == {"bf16": cost_of(BF16, PADDED)} and measured.tiled == {}


def test_an_mlp_beside_attention_is_measured_in_tiles_though_its_first_input_needs_no_gradient():
    measured = measure(config_of("cohere2"), ("bf16",))
    assert measured.tiled["bf16"].saved < measured.costs["bf16"].saved


def test_pairs_are_counted_without_a_fused_kernel_and_with_dropout():
    assert not attends_in_squares(tiny())
    assert attends_in_squares(tiny(attention_dropout=0.1))
    assert attends_in_squares(AutoConfig.for_model("gpt2"))  # attn_pdrop is 0.1 there
    assert attends_in_squares(config_of("gptj"))


def test_several_rows_go_through_where_pairs_are_counted_and_a_packed_one_else():
    inputs = dry_run._inputs(tiny(), Copy(BF16, 2, False, 64, PACKED))
    assert {name: tuple(value.shape) for name, value in inputs.items() if name != "documents"} == {
        "input_ids": (1, 64),
        "position_ids": (1, 64),
    }
    assert inputs["documents"].spans == ((0, 64),)
    inputs = dry_run._inputs(tiny(attention_dropout=0.1), Copy(BF16, 2, False, 64, PADDED))
    assert {name: tuple(value.shape) for name, value in inputs.items()} == {"input_ids": (2, 32)}
    assert inputs["input_ids"].dtype == torch.long


PASSES = {
    ("tiny", Copy(BF16, 2, False, 64, PACKED)): (218626, 235012, 218372, 263428, (1, 235012, 4096, 1, 0, 0, 0), (7, 1034780, 12288, 3, 12288, 0, 2)),
    ("tiny", Copy(BF16, 2, True, 64, PACKED)): (29442, 45828, 29188, 176132, (1, 45828, 4096, 1, 0, 0, 0), (7, 693020, 12288, 3, 12288, 0, 2)),
    ("tiny", Copy(FP32, 2, True, 64, PACKED)): (58116, 90888, 57864, 296968, (1, 90888, 4096, 1, 0, 0, 0), (7, 1256248, 12288, 3, 12288, 0, 2)),
    ("tiny", Copy(BF16, 2, False, 64, TILED)): (161282, 177668, 161028, 199940, (1, 177668, 4096, 1, 0, 0, 0), (11, 1442348, 12288, 3, 12288, 36864, 2)),
    ("tiny", Copy(BF16, 2, True, 128, TILED)): (58882, 91652, 58372, 237572, (1, 91652, 8192, 1, 0, 0, 0), (11, 2050604, 24576, 3, 24576, 73728, 2)),
    ("tiny", Copy(BF16, 2, False, 64, PADDED)): (218114, 234500, 217860, 262916, (1, 234500, 4096, 1, 0, 0, 0), (7, 1031196, 12288, 3, 12288, 0, 2)),
    ("qwen3_moe", Copy(BF16, 2, False, 64, PACKED)): (594946, 627716, 594692, 692996, (1, 627716, 8192, 1, 0, 0, 0), (9, 2659620, 49152, 7, 0, 0, 2)),
    ("gpt_oss", Copy(BF16, 2, False, 64, PADDED)): (1389570, 1422340, 1389316, 1487620, (1, 1422340, 8192, 1, 0, 0, 0), (3, 1825292, 24576, 3, 0, 0, 0)),
    ("gpt2", Copy(BF16, 2, False, 64, PADDED)): (1422850, 1455620, 1422596, 1596676, (0, 0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, 0)),
    ("gemma2", Copy(BF16, 2, False, 64, PADDED)): (665602, 698372, 665348, 785924, (1, 698372, 8192, 0, 0, 0, 0), (9, 4170788, 57344, 0, 32768, 0, 0)),
}  # fmt: skip
"""By model and copy: held, end_peak, kept and layer_peak in bytes; then of the marks at the end and in the layers how many,
and the sums of held, norm_numbers, norm_fused, inner_numbers, tile_numbers and attention."""


@pytest.mark.parametrize(("family", "copy"), PASSES, ids=str)
def test_a_pass_is_counted_to_the_byte(family, copy):
    config = tiny() if family == "tiny" else config_of(family)
    one = run(config, copy)
    assert (one.held, one.end_peak, one.kept, one.layer_peak, summed(one.end_marks), summed(one.layer_marks)) == PASSES[
        family, copy
    ]


def test_a_folder_is_measured_from_its_own_config_and_after_its_adapter_was_tried(monkeypatch, tmp_path):
    calls = []

    def read(folder, **options):
        calls.append((folder, options))
        return tiny()

    def refuse(config):
        calls.append(config.model_type)
        raise StudioError("An adapter would not reach it.")

    monkeypatch.setattr(dry_run.AutoConfig, "from_pretrained", read)
    monkeypatch.setattr(dry_run, "check_adapter", refuse)
    with pytest.raises(StudioError, match=r"^An adapter would not reach it\.$"):
        dry_run.measure_folder(tmp_path)
    assert calls == [(tmp_path, {"trust_remote_code": False, "local_files_only": True}), "llama"]


def test_passes_with_other_marks_cannot_be_put_together():
    one, two = (Mark(10, norm_numbers=64),), (Mark(20, norm_numbers=128), Mark(30))
    with pytest.raises(ValueError, match="shorter"):
        dry_run._fit_marks({64: (two, 0), 128: (one, 0)})
    assert dry_run._fit_marks({64: (one, 4), 128: (two[:1], 4)}) == [
        Moment((16 - 6) / 64, -4, norm_width=1.0, norm_fused=False)
    ]


@pytest.mark.parametrize(
    ("points", "moment"),
    [
        ({64: 70, 128: 134}, Moment(1.0, 6)),
        ({64: 6, 128: 6}, Moment(0.0, 6)),
        ({10: 100, 20: 400, 40: 1600}, Moment(0.0, 0, 2.0)),
        ({10: 5 + 30 + 100, 20: 5 + 60 + 400, 40: 5 + 120 + 1600}, Moment(3.0, 5, 2.0)),
    ],
)
def test_two_points_are_a_line_and_three_a_parabola_that_goes_through_them(points, moment):
    found = dry_run._fit(points)
    assert found == moment
    for tokens, bytes in points.items():
        assert dry_run._value(found, tokens) == pytest.approx(bytes)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("No such shape.\nmore\nand more", "ValueError: No such shape."),
        ("  \n It ends... \nmore", "ValueError: It ends."),
        ("", "ValueError."),
        ("x" * 301, f"ValueError: {'x' * 300}."),
    ],
    ids=["several lines", "an empty one first", "nothing", "a long one"],
)
def test_what_an_architecture_stumbles_over_is_said_in_its_first_line(monkeypatch, tmp_path, said, message):
    def refuse(folder, **options):
        raise ValueError(said)

    monkeypatch.setattr(dry_run.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(StudioError) as caught:
        dry_run.measure_folder(tmp_path)
    (problem,) = caught.value.problems
    assert problem.message == f"This architecture cannot be measured: {message}"
    assert problem.hint == "Choose another model; a newer transformers may know this one."
    assert problem.where == str(tmp_path / "config.json")
