"""A model folder's tokenizer: local, fast, without remote code; anything else is refused in a sentence."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from qlora_studio.core.errors import StudioError
from qlora_studio.data.render.templates import TEMPLATES
from qlora_studio.engine.tokenizer import load_tokenizer


@pytest.fixture
def folder(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>"])
    inner.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 256)])
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    fast.add_tokens(["<note>"])
    fast.save_pretrained(tmp_path)
    return tmp_path


def test_what_the_data_room_asks_is_answered(folder):
    loaded = load_tokenizer(folder)
    assert (loaded.bos_id, loaded.eos_id, loaded.template) == (256, 257, "")
    assert loaded.control_tokens == {"<s>": 256, "</s>": 257}
    assert loaded.added_tokens == {"<s>": 256, "</s>": 257, "<note>": 258}
    (encoded,) = loaded.encode(["a</s>"])
    assert encoded.ids == [loaded.encode(["a"])[0].ids[0], 257]
    assert loaded.decode(encoded.ids) == "a</s>"
    assert loaded.encode([]) == []


@pytest.mark.parametrize(("named", "put_first", "found"), [(True, True, 256), (True, False, None), (False, True, None)])
def test_a_beginning_token_is_one_that_the_tokenizer_puts_first(folder, named, put_first, found):
    """Many models name one and never put it there."""
    inner = load_tokenizer(folder).inner.backend_tokenizer
    if not put_first:
        inner.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    names = {"bos_token": "<s>"} if named else {}
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", **names).save_pretrained(folder)
    assert load_tokenizer(folder).bos_id == found


def test_a_base_without_template_says_so_and_takes_one_by_name(folder):
    with pytest.raises(StudioError, match="This model has no chat template"):
        load_tokenizer(folder).render([{"role": "user", "content": "hi"}])
    loaded = load_tokenizer(folder, "instruction")
    assert loaded.template == TEMPLATES["instruction"].source
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert loaded.render(messages) == "<s>### Instruction:\nhi\n\n### Response:\nho</s>\n\n"
    assert loaded.render(messages[:1], add_generation_prompt=True) == "<s>### Instruction:\nhi\n\n### Response:\n"


def test_the_dialogue_template(folder):
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
    ]
    assert load_tokenizer(folder, "dialogue").render(messages) == "<s>s\n\nUser: hi\nAssistant:\nho</s>\n"


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("nope", "There is no chat template 'nope'.", "There are: instruction, dialogue, chatml, chatml-tools."),
        (
            "chatml",
            "The template 'chatml' needs <|im_start|> and <|im_end|>, which this model's tokenizer does not have.",
            "Choose instruction or dialogue.",
        ),
    ],
)
def test_a_template_that_does_not_fit_is_refused(folder, name, message, hint):
    with pytest.raises(StudioError) as caught:
        load_tokenizer(folder, name)
    assert (caught.value.problems[0].message, caught.value.hint) == (message, hint)


def test_a_template_that_refuses_a_row_is_named(folder):
    with pytest.raises(StudioError, match="the instruction template knows no tool turns"):
        load_tokenizer(folder, "instruction").render([{"role": "tool", "content": "x"}])


def broken(path):
    (path / "tokenizer.json").write_text("{")


def empty(path):
    for file in path.iterdir():
        file.unlink()


def with_code(path):
    """A tokenizer that wants code of the model to run, which would leave a mark."""
    config = json.loads((path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").unlink()
    (path / "own.py").write_text(f"open({str(path / 'mark')!r}, 'w').close()\n")


@pytest.mark.parametrize("harm", [broken, empty, with_code])
def test_a_folder_that_cannot_be_read_is_one_sentence_and_runs_nothing(folder, harm):
    harm(folder)
    with pytest.raises(StudioError) as caught:
        load_tokenizer(folder)
    assert caught.value.problems[0].where == str(folder)
    assert "\n" not in str(caught.value)
    assert not (folder / "mark").exists()


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(StudioError, match="There is no such model folder"):
        load_tokenizer(tmp_path / "nothing")
