"""No first prompt of a conversation stands in both training and evaluation, by a count that shares no code with it."""

import json

import pytest

from qlora_studio.core.config import DataConfig, DataSource
from qlora_studio.core.errors import LawBroken
from qlora_studio.data.sets import store
from qlora_studio.data.sets.importer import import_file, load_conversations
from qlora_studio.data.sets.prepare import RowsRequest
from qlora_studio.data.sets.token_cache import tokenise_rows


def user(text):
    return {"role": "user", "content": text}


def answer(text):
    return {"role": "assistant", "content": text}


def beginnings():
    """Each conversation also as its own beginnings, as exports of chat logs give it."""
    for number in range(60):
        turns = []
        for step in range(3):
            turns += [user(f"question {number}.{step}"), answer(f"answer {number}.{step}")]
            yield {"messages": list(turns)}


def threads():
    for number in range(40):
        yield {"id": f"{number}", "parent_id": None, "role": "user", "text": f"question {number}"}
        for branch in range(3):
            name = f"{number}-{branch}"
            yield {"id": name, "parent_id": f"{number}", "role": "assistant", "text": f"answer {number}"}
            yield {"id": f"{name}-q", "parent_id": name, "role": "user", "text": f"more {name}"}
            yield {"id": f"{name}-a", "parent_id": f"{name}-q", "role": "assistant", "text": f"so {name}"}


def systems():
    for number in range(60):
        for manner in ("kind", "brief", ""):
            before = [{"role": "system", "content": f"Be {manner}."}] if manner else []
            yield {"messages": [*before, user(f"question {number}"), answer(f"answer {number}")]}


def judged():
    for number in range(60):
        for good in (True, False):
            yield {"prompt": f"question {number} ", "completion": f"answer {number} {good}", "label": good}


def repeated():
    for number in range(120):
        yield {"instruction": f"question {number % 40}", "input": "", "output": f"answer {number % 20}"}


SHAPES = {shape.__name__: shape for shape in (beginnings, threads, systems, judged, repeated)}


def write(tmp_path, rows, name="rows"):
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return import_file(path, tmp_path / "sets").name


def prompts_and_answers(folder, name, split):
    """What is asked first, and every answer behind it, as plain texts."""
    for row in load_conversations(folder, name, split, 0.2):
        prompt = next(turn.content for turn in row.turns if turn.role == "user").strip()
        for turn in row.turns:
            if turn.role == "assistant":
                yield prompt, turn.content


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_nothing_that_is_held_out_is_trained(tmp_path, shape):
    name = write(tmp_path, shape())
    trained = set(prompts_and_answers(tmp_path / "sets", name, "train"))
    held_out = list(prompts_and_answers(tmp_path / "sets", name, "eval"))
    assert len(held_out) >= 8
    assert [pair for pair in held_out if pair in trained] == []
    assert {prompt for prompt, _ in held_out} & {prompt for prompt, _ in trained} == set()


BROKEN = {
    "by the last prompt": lambda row: hash(row.turns[-2].content) & 0xFFFFFFFF,
    "by the whole row": lambda row: hash(row.turns) & 0xFFFFFFFF,
}


@pytest.mark.parametrize("split_by", BROKEN.values(), ids=BROKEN.keys())
def test_a_splitter_broken_on_purpose_is_caught_by_the_program(tmp_path, monkeypatch, letters, split_by):
    from qlora_studio.data.sets import prepare as preparing
    from qlora_studio.data.sets import writer

    config = DataConfig(sources=(DataSource(name="rows"),), eval_share=0.2)
    for module in (writer, store, preparing):
        monkeypatch.setattr(module, "prompt_hash", split_by)
    write(tmp_path, beginnings())
    with pytest.raises(LawBroken, match=r"prompts of the evaluation rows would be trained as well; the first is that"):
        prepare_both(tmp_path, letters, config)


def test_a_split_that_gives_one_row_to_both_sides_is_caught(tmp_path, monkeypatch, letters):
    from qlora_studio.data.sets import prepare as preparing

    write(tmp_path, repeated())
    config = DataConfig(sources=(DataSource(name="rows"),), eval_share=0.2)
    monkeypatch.setattr(preparing, "eval_prompts", lambda *_: frozenset())
    real = preparing.load_rows

    def leaky(folder, name, split, share):
        yield from real(folder, name, "all" if split == "train" else split, share)

    monkeypatch.setattr(preparing, "load_rows", leaky)
    with pytest.raises(LawBroken):
        prepare_both(tmp_path, letters, config)


def prepare_both(tmp_path, letters, config):
    tokenise_rows(RowsRequest(tmp_path / "sets", letters, config), tmp_path / "cache")
