"""What is trained, what is cut and what is left out: every row is counted, and no cut answer pretends to end."""

import json

import pytest

from qlora_studio.core.config import DataConfig, DataSource
from qlora_studio.core.conversation import Conversation, Pretokenised, Segment, Source, Turn
from qlora_studio.core.errors import StudioError
from qlora_studio.data.render.prompt import RenderOptions, render
from qlora_studio.data.sets import prepare as prepare_rows
from qlora_studio.data.sets import row_tokeniser
from qlora_studio.data.sets.canonical import read_conversations, to_line
from qlora_studio.data.sets.importer import import_file
from qlora_studio.data.sets.prepare import RowsRequest, prepare, prepare_sources

USER, END = "<|im_start|>user\n", "<|im_end|>"
ANSWER = "\n<|im_start|>assistant\n"


def row(*contents, line=1, **more):
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[index % 2], text) for index, text in enumerate(contents))
    return Conversation(turns=turns, source=Source("rows.jsonl", line), **more)


def trained(prepared, letters):
    return [
        [letters.decode(example.input_ids[start:end]) for start, end in example.spans] for example in prepared.examples
    ]


def whole(prepared, letters):
    return [letters.decode(example.input_ids) for example in prepared.examples]


def test_rows_that_fit_are_trained_whole(letters):
    made = prepare([row("hi", "ho"), row("a", "b", "c", "d")], letters, DataConfig(), keep_text=True)
    assert trained(made, letters) == [["ho" + END], ["b" + END, "d" + END]]
    assert (made.rows, made.too_long, made.dropped, made.cut, made.refused) == (2, 0, 0, 0, 0)
    assert tuple(made.lengths) == (24, 45) == tuple(len(example.input_ids) for example in made.examples)
    assert (made.tokens, made.trained_tokens, made.findings) == (69, 7, ())
    assert made.examples[0].text == USER + "hi" + END + ANSWER + "ho" + END
    assert made.stop_ids == frozenset({letters.added_tokens[END]})


def test_everything_can_be_trained(letters):
    made = prepare([row("hi", "ho")], letters, DataConfig(train_on="everything"))
    assert trained(made, letters) == [[USER + "hi" + END + ANSWER + "ho" + END]]
    assert made.trained_tokens == made.tokens - 1


def test_only_the_last_answer_can_be_trained(letters):
    made = prepare([row("a", "b", "c", "d")], letters, DataConfig(train_on="last_answer"))
    assert trained(made, letters) == [["d" + END]]


def test_a_row_says_itself_what_is_trained(letters):
    turns = (Turn("user", "hi", train=True), Turn("assistant", "no", train=False), Turn("assistant", "ho"))
    made = prepare([Conversation(turns=turns)], letters, DataConfig())
    assert trained(made, letters) == [["hi", "ho" + END]]
    everything = prepare([Conversation(turns=turns)], letters, DataConfig(train_on="everything"))
    assert trained(everything, letters) == [[USER + "hi" + END + ANSWER, "\n<|im_start|>assistant\nho" + END]]


def test_too_long_rows_are_dropped_and_counted(letters):
    made = prepare([row("hi", "ho"), row("hi", "o" * 90, line=7)], letters, DataConfig(max_length=64))
    assert whole(made, letters) == [USER + "hi" + END + ANSWER + "ho" + END]
    assert (made.too_long, made.dropped, made.cut, tuple(made.lengths)) == (1, 1, 0, (24, 112))
    (finding,) = made.findings
    assert finding.message == "1 row longer than the limit is left out, with 91 trained tokens."
    assert finding.examples == ("rows.jsonl:7: 112 tokens, limit 64",)


def test_a_cut_answer_has_no_end_token(letters):
    made = prepare([row("hi", "o" * 90)], letters, DataConfig(max_length=64, too_long="cut_answer"))
    assert whole(made, letters) == [USER + "hi" + END + ANSWER + "o" * 43]
    assert trained(made, letters) == [["o" * 43]]
    assert (made.too_long, made.dropped, made.cut) == (1, 0, 1)


def test_a_prompt_is_never_cut(letters):
    config = DataConfig(max_length=64, too_long="cut_answer")
    made = prepare([row("i" * 90, "ho")], letters, config)
    assert (made.examples, made.too_long, made.dropped, made.cut) == ((), 1, 1, 0)
    second = prepare([row("a", "b", "i" * 90, "ho")], letters, config)
    assert whole(second, letters) == [USER + "a" + END + ANSWER + "b" + END]


def test_the_oldest_turns_are_cut_and_the_system_prompt_stays(letters):
    turns = (Turn("system", "s"), *row("a" * 30, "b", "c", "d", "e", "f").turns)
    config = DataConfig(max_length=64, too_long="cut_oldest")
    made = prepare([Conversation(turns=turns)], letters, config)
    assert whole(made, letters) == [
        f"<|im_start|>system\ns{END}\n{USER}c{END}{ANSWER}d{END}\n{USER}e{END}{ANSWER}f{END}"
    ]
    assert trained(made, letters) == [["d" + END, "f" + END]]
    assert (made.too_long, made.dropped, made.cut) == (1, 0, 1)
    hopeless = prepare([row("hi", "o" * 90)], letters, config)
    assert (hopeless.examples, hopeless.dropped) == ((), 1)


@pytest.mark.parametrize(
    ("bad", "name"),
    [
        (row("hi", line=9), "nothing-trained"),
        (row("hi <|im_end|>", "ho", line=9), "control-tokens"),
        (row("hi", "ho", line=9, tools=({"name": "x"},)), "tools-unknown"),
        (Conversation(tokens=Pretokenised((1, 2), (-100, -100)), source=Source("rows.jsonl", 9)), "nothing-trained"),
    ],
    ids=["no answer", "control token", "tools", "no labels"],
)
def test_a_bad_row_stands_in_the_findings_and_stops_the_run_unless_accepted(letters, bad, name):
    made = prepare([row("hi", "ho"), bad], letters, DataConfig())
    assert (len(made.examples), made.rows, made.refused) == (1, 2, 1)
    (finding,) = made.findings
    assert (finding.name, finding.severity, finding.count) == (name, "error", 1)
    assert finding.examples[0].startswith("rows.jsonl:9")
    with pytest.raises(StudioError, match=rf"accept it by name: data\.accepted = {name}"):
        made.check()
    made.check([name])


def test_nothing_left_to_train_is_refused(letters):
    with pytest.raises(StudioError, match="No row is left to train"):
        prepare([row("hi", "o" * 90)], letters, DataConfig(max_length=64)).check()


def test_bad_examples_are_left_out_and_counted(letters):
    made = prepare([row("hi", "ho", label=True), row("hi", "no", label=False)], letters, DataConfig())
    assert trained(made, letters) == [["ho" + END]]
    assert [(finding.name, finding.count) for finding in made.findings] == [("bad-example", 1)]


def test_control_tokens_are_escaped_or_kept_by_choice(letters):
    bad = row("hi <|im_end|>", "ho")
    end = letters.added_tokens[END]
    escaped = prepare([bad], letters, DataConfig(control_tokens="escape")).examples[0]
    kept = prepare([bad], letters, DataConfig(control_tokens="keep")).examples[0]
    assert letters.decode(escaped.input_ids) == letters.decode(kept.input_ids)
    assert (escaped.input_ids.count(end), kept.input_ids.count(end)) == (2, 3)


def test_segments_text_and_tokens_are_taken_as_they_are(letters):
    segments = Conversation(
        segments=(Segment("Q: hi\nA:", False), Segment(" ho<|im_end|>", True), Segment("\n", False))
    )
    given = Conversation(tokens=Pretokenised((7, 8, 9, 10), (-100, 8, -100, 10)))
    made = prepare([segments, Conversation(text="Once."), given], letters, DataConfig())
    assert trained(made, letters)[:2] == [[" ho" + END], ["Once." + END]]
    assert made.examples[2].spans == ((1, 2), (3, 4))
    assert made.examples[2].labels() == [-100, 8, -100, 10]


def test_a_pre_tokenised_row_reads_back_as_its_labels(letters):
    (example,) = render(Conversation(tokens=Pretokenised((7, 8, 9), (7, 8, 9))), letters, RenderOptions())
    assert example.labels() == [7, 8, 9]


def imported(tmp_path, name, rows):
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(values) + "\n" for values in rows))
    return import_file(path, tmp_path / "sets").name


def test_sets_are_mixed_by_weight_and_keep_their_origin(tmp_path, letters):
    imported(tmp_path, "task", [{"prompt": f"t{number}", "completion": "yes"} for number in range(40)])
    imported(tmp_path, "general", [{"prompt": f"g{number}", "completion": "no"} for number in range(200)])
    sources = (DataSource(name="task", weight=3), DataSource(name="general", weight=1))
    config = DataConfig(sources=sources, eval_share=0.1)
    made = prepare_sources(RowsRequest(tmp_path / "sets", letters, config, 5))
    assert [(part.name, part.rows, part.of_rows) for part in made.mixture] == [("task", 36, 36), ("general", 12, 180)]
    assert sorted({example.origin for example in made.examples}) == ["general", "task"]
    assert len(made.examples) == 48
    assert made.tokens == sum(len(example.input_ids) for example in made.examples)
    held_out = prepare_sources(RowsRequest(tmp_path / "sets", letters, config), "eval")
    assert len(held_out.examples) == 24


def test_a_prompt_that_one_set_holds_out_is_not_trained_from_another(tmp_path, letters):
    rows = [{"prompt": f"p{number}", "completion": "yes"} for number in range(30)]
    imported(tmp_path, "one", rows)
    imported(
        tmp_path,
        "two",
        [
            *({**values, "completion": "no"} for values in rows),
            *({"prompt": f"q{n}", "completion": "x"} for n in range(60)),
        ],
    )
    config = DataConfig(sources=(DataSource(name="one"), DataSource(name="two")), eval_share=0.3)
    made = prepare_sources(RowsRequest(tmp_path / "sets", letters, config))
    held_out = prepare_sources(RowsRequest(tmp_path / "sets", letters, config), "eval")
    prompts = [
        {letters.decode(example.input_ids[: example.spans[0][0]]) for example in side.examples}
        for side in (made, held_out)
    ]
    assert prompts[0] and prompts[1] and not prompts[0] & prompts[1]
    assert "held-out-elsewhere" in {finding.name for finding in made.findings}


def test_row_findings_of_the_sets_stand_among_those_of_the_run(tmp_path, letters):
    rows = [{"prompt": f"p{number}", "completion": "yes" if number else ""} for number in range(30)]
    name = imported(tmp_path, "one", rows)
    made = prepare_sources(RowsRequest(tmp_path / "sets", letters, DataConfig(sources=(DataSource(name=name),))))
    with pytest.raises(StudioError, match=r"data\.accepted = empty-answer"):
        made.check()


def test_a_run_without_data_is_refused(tmp_path, letters):
    with pytest.raises(StudioError, match="No data set is chosen"):
        prepare_sources(RowsRequest(tmp_path, letters, DataConfig()))
    with pytest.raises(StudioError, match="There is no data set 'x'"):
        prepare_sources(RowsRequest(tmp_path, letters, DataConfig(sources=(DataSource(name="x"),))))


def test_given_tokens_are_checked_against_the_vocabulary(letters):
    made = prepare(
        [Conversation(tokens=Pretokenised((7, 9999), (7, 9999)), source=Source("r", 1))], letters, DataConfig()
    )
    assert (made.examples, made.refused) == ((), 1)
    assert made.findings[0].message == "Token ids in 1 row are not in the model's vocabulary."


def test_the_settings_that_mend_a_finding_are_named(letters):
    config = DataConfig(accepted=("cut",))
    (typed,) = prepare([row("hi <|im_end|>", "ho")], letters, config).findings
    (unanswered,) = prepare([row("hi")], letters, config).findings
    assert typed.setting == "data.control_tokens=escape"
    assert unanswered.setting == "data.accepted=nothing-trained"
    assert (typed.remedy, unanswered.remedy) == (None, None)


def test_rows_that_reason_are_counted(letters):
    turns = (Turn("user", "hi"), Turn("assistant", "ho", reasoning="hm"))
    made = prepare([Conversation(turns=turns), row("a", "b")], letters, DataConfig())
    assert made.reasoning_rows == 1
    assert trained(made, letters)[0] == ["<think>\nhm\n</think>\n\nho" + END]


def test_long_rows_are_encoded_a_few_at_a_time(monkeypatch, letters):
    """Encodings take many times the text: a batch ends with the row that fills it."""
    sizes = []
    real = row_tokeniser.encode_drafts

    def encode(made, *more):
        sizes.append(len(made))
        return real(made, *more)

    monkeypatch.setattr(row_tokeniser, "encode_drafts", encode)
    monkeypatch.setattr(prepare_rows, "_BATCH_CHARACTERS", 100)
    rows = [Conversation(text="a" * length) for length in (30, 30, 50, 10, 500, 99)]
    prepared = prepare(rows, letters, DataConfig(max_length=1000))
    assert sizes == [3, 2, 1] and len(prepared.examples) == 6


def test_a_file_is_read_by_the_rows_that_are_wanted_and_has_just_as_many(tmp_path):
    file = tmp_path / "conversations.jsonl"
    file.write_text("".join(to_line(row(prompt, "b", line=number)) + "\n" for number, prompt in enumerate("ac", 1)))
    assert [one.source.line for one in read_conversations(file, "set", [False, True])] == [2]
    for wanted in ([], [True], [True, True, True]):
        with pytest.raises(StudioError, match="is damaged"):
            list(read_conversations(file, "set", wanted))
    file.write_text("")
    assert list(read_conversations(file, "set", [])) == []
