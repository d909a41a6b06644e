"""Tokens are kept: a second start tokenises nothing and gets the same; what decides tokens decides what is found."""

import json
from array import array
from dataclasses import replace

import pytest

from qlora_studio.core.config import DataConfig, DataSource
from qlora_studio.core.example import token_lengths
from qlora_studio.data.sets import prepare as preparing
from qlora_studio.data.sets import row_tokeniser, token_cache
from qlora_studio.data.sets.importer import import_file
from qlora_studio.data.sets.prepare import RowsRequest, Stopped, Watch, prepare_sources
from qlora_studio.data.sets.token_cache import tokenise_rows
from qlora_studio.data.sets.token_table import TokenTable


@pytest.fixture
def request_rows(tmp_path, letters):
    def make(**changes):
        config = DataConfig(sources=(DataSource(name="rows"),), eval_share=0.1)
        return RowsRequest(tmp_path / "sets", letters, config.model_copy(update=changes))

    lines = [json.dumps({"prompt": f"p{number}", "completion": f"yes {number}"}) for number in range(600)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    import_file(tmp_path / "rows.jsonl", tmp_path / "sets")
    return make


def forbid_rendering(monkeypatch):
    def render(*_):
        raise AssertionError("rows were tokenised again")

    monkeypatch.setattr(row_tokeniser, "drafts", render)


def test_a_second_start_tokenises_nothing_and_gets_the_same(tmp_path, request_rows, monkeypatch):
    first = tokenise_rows(request_rows(), tmp_path / "cache")
    memory = {split: prepare_sources(request_rows(), split) for split in ("train", "eval")}
    forbid_rendering(monkeypatch)
    again = tokenise_rows(request_rows(), tmp_path / "cache")
    assert (first.from_cache, again.from_cache) == (False, True)
    names = [path.name for path in (tmp_path / "cache").rglob("*")]
    assert "train.safetensors" in names and not [name for name in names if name.endswith((".part", ".mixed"))]
    for side, split in ((again.train, "train"), (again.held_out, "eval")):
        plain = memory[split]
        assert tuple(side.examples) == tuple(
            type(one)(one.input_ids, one.spans, source=one.source, origin=one.origin) for one in plain.examples
        )
        assert array("i", side.lengths) == plain.lengths
        assert side.examples[-1] == list(side.examples)[-1] and side.examples[3:5] == list(side.examples)[3:5]
        assert list(token_lengths(side.examples)) == [len(one.input_ids) for one in plain.examples]
        for name in (*token_cache.COUNTS, "findings", "stop_ids", "mixture"):
            assert getattr(side, name) == getattr(plain, name)
    assert first.train.sha256 == again.train.sha256 != again.held_out.sha256


@pytest.mark.parametrize(
    "change", [{"max_length": 24}, {"train_on": "everything"}, {"eval_share": 0.2}, {"control_tokens": "keep"}]
)
def test_what_decides_tokens_decides_what_is_found(tmp_path, request_rows, change):
    tokenise_rows(request_rows(), tmp_path / "cache")
    assert not tokenise_rows(request_rows(**change), tmp_path / "cache").from_cache


def test_what_decides_nothing_is_found_again(tmp_path, request_rows):
    tokenise_rows(request_rows(), tmp_path / "cache")
    assert tokenise_rows(request_rows(accepted=("cut",)), tmp_path / "cache").from_cache


def test_other_rows_under_the_same_name_are_tokenised(tmp_path, request_rows):
    tokenise_rows(request_rows(), tmp_path / "cache")
    (tmp_path / "more.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 5)
    import_file(tmp_path / "more.jsonl", tmp_path / "sets", name="rows", replace=True)
    assert len(tokenise_rows(request_rows(), tmp_path / "cache").train.examples) == 5


@pytest.mark.parametrize("harm", ["cut", "gone", "scribbled"])
def test_a_damaged_file_is_made_anew(tmp_path, request_rows, harm):
    before = tokenise_rows(request_rows(), tmp_path / "cache").train.sha256
    (file,) = (tmp_path / "cache" / "tokens").glob("*/train.safetensors")
    content = file.read_bytes()
    file.unlink() if harm == "gone" else file.write_bytes(
        content[:-100] if harm == "cut" else b"\xff" * 64 + content[64:]
    )
    again = tokenise_rows(request_rows(), tmp_path / "cache")
    assert (again.from_cache, again.train.sha256) == (False, before)


def test_the_file_is_safetensors(tmp_path, request_rows):
    from safetensors.numpy import load_file

    made = tokenise_rows(request_rows(), tmp_path / "cache").train
    (file,) = (tmp_path / "cache" / "tokens").glob("*/train.safetensors")
    arrays = load_file(file)
    assert arrays["ids"].tolist() == [token for one in made.examples for token in one.input_ids]
    assert isinstance(made.examples, TokenTable)


def test_a_mixture_is_kept_with_its_order(tmp_path, request_rows, monkeypatch):
    (tmp_path / "small.jsonl").write_text("\n".join(f'{{"prompt": "s{n}", "completion": "no"}}' for n in range(30)))
    import_file(tmp_path / "small.jsonl", tmp_path / "sets")
    sources = (DataSource(name="rows"), DataSource(name="small", max_repeats=4))
    plain = prepare_sources(request_rows(sources=sources))
    tokenise_rows(request_rows(sources=sources), tmp_path / "cache")
    forbid_rendering(monkeypatch)
    made = tokenise_rows(request_rows(sources=sources), tmp_path / "cache").train
    assert [one.input_ids for one in made.examples] == [one.input_ids for one in plain.examples]
    assert made.mixture == plain.mixture
    assert [round(one.epochs, 3) for one in made.mixture] == [0.2, 4.0]
    assert (made.tokens, made.trained_tokens) == (plain.tokens, plain.trained_tokens)


def test_progress_is_said_and_a_stop_is_heard_at_once(tmp_path, request_rows, monkeypatch):
    monkeypatch.setattr(preparing, "_SECONDS_BETWEEN_WORDS", 0)
    reports = []
    tokenise_rows(request_rows(), tmp_path / "cache", Watch(lambda done, total: reports.append((done, total))))
    assert reports[0] == (512, 540) and (540, 540) in reports and reports[-1] == (60, 60)
    stops = iter([False, True])
    with pytest.raises(Stopped):
        tokenise_rows(request_rows(max_length=99), tmp_path / "cache", Watch(stopped=lambda: next(stops)))
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1


def test_only_the_newest_are_kept(tmp_path, request_rows, monkeypatch):
    monkeypatch.setattr(token_cache, "KEPT", 2)
    for length in (40, 41, 42):
        tokenise_rows(request_rows(max_length=length), tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 2


def test_plain_rows_are_rendered_once(request_rows, monkeypatch, letters):
    count = 0
    real = type(letters).render

    def counted(*arguments, **options):
        nonlocal count
        count += 1
        return real(*arguments, **options)

    monkeypatch.setattr(type(letters), "render", counted)
    made = prepare_sources(request_rows())
    assert len(made.examples) == 540
    assert count < 540 * 1.06 + 100


def test_a_layout_that_was_a_mistake_is_given_up(request_rows, monkeypatch, letters):
    """A template whose prompt depends on the words: what was learned from others is not used."""
    odd = "{% if add_generation_prompt %}{{ ' ' if 'p5' in messages[-1].content else '' }}"
    inner = letters.inner.__class__(tokenizer_object=letters.inner.backend_tokenizer, eos_token="<|im_end|>")
    inner.chat_template = letters.template.replace("{% if add_generation_prompt %}", odd)
    made = prepare_sources(replace(request_rows(), tokenizer=type(letters)(inner)))
    assert [finding.name for finding in made.findings] == ["prompt-not-prefix"]
    assert 90 < made.findings[0].count < 112


def test_raw_text_is_cut_into_blocks_and_nothing_is_lost(letters):
    from qlora_studio.core.conversation import Conversation, Source
    from qlora_studio.data.sets.prepare import prepare

    sentences = [f"Sentence {number} tells of a mill." for number in range(200)]
    text = "\n\n".join(" ".join(sentences[start : start + 7]) for start in range(0, 200, 7))
    row = Conversation(text=text, source=Source("book.txt", 1))
    made = prepare([row], letters, DataConfig(max_length=300))
    assert [finding.name for finding in made.findings] == ["text-blocks"]
    assert (made.dropped, made.too_long) == (0, 0)
    blocks = [letters.decode(one.input_ids) for one in made.examples]
    assert "".join(blocks) == text + "<|im_end|>"
    assert max(made.lengths) <= 300 and min(made.lengths[:-1]) > 150
    assert all(block.endswith((". ", "\n\n")) for block in blocks[:-1])
    assert sum(one.trained_tokens for one in made.examples) >= len(text) - len(blocks)

    overlapping = prepare([row], letters, DataConfig(max_length=300, text_overlap=40)).examples
    decoded = "".join(letters.decode(one.input_ids[one.spans[0][0] :]) for one in overlapping)
    assert decoded == text + "<|im_end|>"
    assert all(one.spans[0][0] == 40 for one in overlapping[1:])


def test_text_without_any_end_is_cut_all_the_same(letters):
    from qlora_studio.core.conversation import Conversation
    from qlora_studio.data.sets.prepare import prepare

    made = prepare([Conversation(text="x" * 1000)], letters, DataConfig(max_length=300))
    assert [len(one.input_ids) for one in made.examples] == [300, 300, 300, 101]
