"""The job `tokenise`: what it counts, what it shows, and what it keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qlora_studio.core import events as ev
from qlora_studio.core.conversation import Source
from qlora_studio.core.errors import StudioError
from qlora_studio.core.example import Example
from qlora_studio.core.jobs import LengthBin, TokeniseRequest
from qlora_studio.data.sets.prepare import Prepared
from qlora_studio.worker import templates, tokenise
from tests.worker.small_home import ROWS

HEAD = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def tokens_of(prompt: str, answer: str) -> tuple[int, int]:
    """Tokens and trained tokens of a row: a byte is a token, and so is each of the four marks; the end is trained."""
    return 4 + len("user\n") + len(prompt) + len("\n") + len("assistant\n") + len(answer), len(answer) + 1


def request_of(small, previews=2):
    return TokeniseRequest(datasets=small.home.datasets, previews=previews)


@pytest.fixture
def passed(monkeypatch):
    """As if every template had been tried; who was asked about which."""
    calls = []
    monkeypatch.setattr(templates, "vet_once", lambda *arguments: calls.append(arguments))
    return calls


def test_the_report_counts_what_the_rows_are(small, passed, monkeypatch):
    left_out = []
    monkeypatch.setattr(tokenise, "leave_torch_out", lambda: left_out.append(True))
    done = small.context(request_of(small), data__max_length=48)
    last = done.work(tokenise)
    assert isinstance(last, ev.Finished) and done.phases() == ["tokenising the rows"]
    assert passed == [(done.context, small.home.models / "tiny", None)] and left_out == []
    report = last.report
    assert (report.rows, report.held_out_rows, report.limit) == (16, 4, 48)
    assert (report.examples, report.too_long, report.dropped, report.cut, report.refused) == (15, 1, 1, 0, 0)
    assert report.longest == report.histogram[-1].last == 56 and sum(column.rows for column in report.histogram) == 16
    assert sum(report.lengths) == report.tokens == 584 and len(report.lengths) == 15
    assert [shown.source for shown in report.previews] == ["rows.jsonl:3", "rows.jsonl:4"]
    for shown, (prompt, answer) in zip(report.previews, ROWS[2:4], strict=True):
        assert (shown.tokens, shown.trained) == tokens_of(prompt, answer)
        assert [(piece.text, piece.trained) for piece in shown.pieces] == [
            (HEAD.format(prompt=prompt), False), (f"{answer}<|im_end|>", True),
        ]  # fmt: skip


def test_a_second_job_says_that_it_only_remembers(small, passed, monkeypatch):
    first = small.context(request_of(small)).work(tokenise)
    monkeypatch.setattr(tokenise, "_tokenise", lambda *_: pytest.fail("it tokenised again"))
    again = small.context(request_of(small))
    assert again.work(tokenise) == first
    assert again.notes() == ["These rows were tokenised before; what was found then is used again."]
    assert again.phases() == []


def test_a_process_of_its_own_goes_without_torch_and_a_kept_report_needs_no_such_thing(small, passed, monkeypatch):
    left_out = []
    monkeypatch.setattr(tokenise, "leave_torch_out", lambda: left_out.append(True))
    for _ in range(2):
        done = small.context(request_of(small))
        done.context.own_process = True
        done.work(tokenise)
        assert left_out == [True]


def test_a_stop_ends_it_and_nothing_is_kept(small, passed):
    done = small.context(request_of(small))
    done.context.stopped = True
    assert done.work(tokenise) == ev.Stopped()
    assert not (small.home.cache / "token-reports").exists()


def prepared(lengths, kept=None) -> Prepared:
    kept = lengths if kept is None else kept
    examples = tuple(Example(tuple(range(length)), ((0, length),)) for length in kept)
    return Prepared(
        examples=examples, rows=101, findings=(), too_long=7, dropped=3, cut=4, refused=2, tokens=55, trained_tokens=33,
        reasoning_rows=0, lengths=lengths, stop_ids=frozenset(),
    )  # fmt: skip


def test_a_report_says_each_number_under_its_name():
    report = tokenise.make_report(prepared([5, 3, 9, 4], kept=[5, 3, 4]), 6, 99, [])
    assert (report.rows, report.examples, report.held_out_rows, report.limit) == (101, 3, 6, 99)
    assert (report.too_long, report.dropped, report.cut, report.refused) == (7, 3, 4, 2)
    assert (report.tokens, report.trained_tokens) == (55, 33)
    assert (report.median, report.p95, report.longest) == (5, 9, 9)
    assert report.lengths == (5, 3, 4) and report.padding_share == pytest.approx(1 - 12 / 15)
    assert report.findings == () and report.previews == ()


def test_of_a_hundred_rows_the_median_and_the_longest_twentieth_are_told_apart():
    report = tokenise.make_report(prepared(list(range(200, 100, -1))), 0, 99, [])
    assert (report.median, report.p95, report.longest) == (151, 196, 200)


def test_without_rows_everything_is_nothing():
    report = tokenise.make_report(prepared([]), 0, 99, [])
    assert (report.median, report.p95, report.longest, report.padding_share) == (0, 0, 0, 0.0)
    assert report.histogram == () and report.lengths == ()


def test_lengths_travel_up_to_a_number_of_them(monkeypatch):
    monkeypatch.setattr(tokenise, "MOST_LENGTHS", 3)
    assert tokenise.make_report(prepared([1, 2, 3]), 0, 9, []).lengths == (1, 2, 3)
    assert tokenise.make_report(prepared([1, 2, 3, 4]), 0, 9, []).lengths == ()


def test_the_histogram_has_equal_columns_from_nothing_to_the_longest_row():
    assert tokenise.histogram([0, 2, 2]) == (
        LengthBin(first=0, last=0, rows=1), LengthBin(first=1, last=1, rows=0), LengthBin(first=2, last=2, rows=2),
    )  # fmt: skip
    whole = tokenise.histogram([23])
    assert len(whole) == tokenise.BINS and whole[-1] == LengthBin(first=23, last=23, rows=1)
    wider = tokenise.histogram([24, 1])
    assert len(wider) == 13 and (wider[0], wider[-1]) == (
        LengthBin(first=0, last=1, rows=1), LengthBin(first=24, last=25, rows=1),
    )  # fmt: skip
    assert tokenise.histogram([47])[-1] == LengthBin(first=46, last=47, rows=1)
    assert len(tokenise.histogram([48])) == 17


def test_padding_is_that_of_eight_rows_at_a_time_as_they_come():
    assert tokenise.padding_share([4] * 8) == 0
    assert tokenise.padding_share([1] * 8 + [3]) == 0, "the ninth row is another batch"
    assert tokenise.padding_share([1] * 7 + [3]) == pytest.approx(1 - 10 / 24)
    assert tokenise.padding_share([1, 3, *[2] * 6, 1, 5]) == pytest.approx(1 - 22 / 34)
    assert tokenise.padding_share([]) == 0


def test_a_preview_is_all_of_a_row_in_stretches_that_are_trained_or_not():
    example = Example(
        input_ids=(1, 2, 3, 4, 5), spans=((1, 2), (3, 5)), text="abcdefgh", text_spans=((2, 4), (4, 6)),
        source=Source("rows.jsonl", 7),
    )  # fmt: skip
    shown = tokenise.preview(example)
    assert (shown.source, shown.tokens, shown.trained) == ("rows.jsonl:7", 5, 3)
    assert [(piece.text, piece.trained) for piece in shown.pieces] == [
        ("ab", False), ("cd", True), ("ef", True), ("gh", False),
    ]  # fmt: skip
    whole = tokenise.preview(replace(example, text_spans=((0, 8),)))
    assert [(piece.text, piece.trained) for piece in whole.pieces] == [("abcdefgh", True)]


def test_a_template_is_tried_once_and_each_of_its_files_is_part_of_its_name(small, monkeypatch):
    tried = []

    def vet(folder, template):
        tried.append((folder, template))
        return type("Report", (), {"end_of_turn": "<|im_end|>", "knows_tools": False})()

    monkeypatch.setattr(templates, "vet_template", vet)
    done, base = small.context(request_of(small)), small.home.models / "tiny"
    kept = small.home.cache / "templates"
    templates.vet_once(done.context, base, None)
    (file,) = kept.iterdir()
    assert file.suffix == ".json" and file.read_text() == '{\n "end_of_turn": "<|im_end|>",\n "knows_tools": false\n}'
    templates.vet_once(done.context, base, None)
    assert tried == [(base, None)] and done.phases() == ["trying the chat template"]
    templates.vet_once(done.context, base, "chatml")
    assert tried[1:] == [(base, "chatml")]
    for number, name in enumerate(templates.FILES, 3):
        (base / name).write_text((base / name).read_text() + " " if (base / name).exists() else "{}")
        templates.vet_once(done.context, base, None)
        assert len(tried) == number and len(list(kept.iterdir())) == number
    (base / "generation_config.json").write_text("{ }")
    templates.vet_once(done.context, base, None)
    assert len(tried) == 5


def test_a_template_that_is_refused_is_tried_again(small, monkeypatch):
    def vet(folder, template):
        raise StudioError("It hangs.")

    monkeypatch.setattr(templates, "vet_template", vet)
    done, base = small.context(request_of(small)), small.home.models / "tiny"
    for _ in range(2):
        with pytest.raises(StudioError, match="It hangs"):
            templates.vet_once(done.context, base, None)
    assert len(done.phases()) == 2 and not (small.home.cache / "templates").exists()
