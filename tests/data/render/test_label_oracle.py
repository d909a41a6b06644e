"""Twenty families of chat templates times fifteen kinds of rows: exactly the answer and its stop token is trained.

For each case the trained tokens are decoded and compared with what the family writes for this answer; the tokens
before each answer must be those that chat gives the model; the beginning token must stand exactly once.
"""

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from qlora_studio.core.conversation import Conversation, Source, ToolCall, Turn
from qlora_studio.data.render.prompt import RenderOptions, prompt_ids, render, stop_ids
from qlora_studio.data.render.templated_row import RowRefused
from qlora_studio.data.render.templates import TEMPLATES
from qlora_studio.data.render.traits import read_traits
from qlora_studio.engine.tokenizer import ChatTokenizer

FOLDER = Path(__file__).parent.parent.parent / "fixtures" / "chat_templates"


@dataclass(frozen=True)
class Family:
    """What a family of models brings beside its template."""

    stop: str
    tokens: tuple[str, ...]
    bos: str | None = None
    eos: str | None = None
    words: str = "bytes"
    """`bytes`: byte-level BPE; `pieces`: sentencepiece's way, with a space put before a text."""
    trims: bool = False
    lead: str = ""
    """What the template puts between the prompt and the answer."""
    no_answer_think: str = ""
    """What stands before an answer without reasoning, where chat begins that way."""
    call_stop: str | None = None


IM = ("<|im_start|>", "<|im_end|>")
LLAMA3 = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
)
GEMMA = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
INST = ("<s>", "</s>", "[INST]", "[/INST]")
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
TEKKEN = (*INST, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]")
TEKKEN = (*TEKKEN, "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
COMMAND = ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>")
R1 = ("<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
GRANITE = ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>")

FAMILIES: dict[str, Family] = {
    "chatml": Family("<|im_end|>", IM, eos="<|im_end|>"),
    "chatml-system": Family("<|im_end|>", (*IM, "<|endoftext|>"), bos=None, eos="<|endoftext|>"),
    "chatml-tools": Family("<|im_end|>", IM, eos="<|im_end|>"),
    "llama2": Family("</s>", ("<s>", "</s>"), "<s>", "</s>", "pieces", lead=" "),
    "llama3": Family("<|eot_id|>", LLAMA3, "<|begin_of_text|>", "<|end_of_text|>", trims=True),
    "llama3-tools": Family("<|eot_id|>", LLAMA3, "<|begin_of_text|>", "<|eot_id|>", trims=True, call_stop="<|eom_id|>"),
    "mistral": Family("</s>", INST[:2], "<s>", "</s>", "pieces", lead=" "),
    "mistral-tools": Family("</s>", TEKKEN, "<s>", "</s>"),
    "gemma": Family("<end_of_turn>", GEMMA, "<bos>", "<eos>", "pieces", trims=True),
    "gemma-strict": Family("<end_of_turn>", GEMMA, "<bos>", "<end_of_turn>", "pieces", trims=True),
    "phi3": Family("<|end|>", (*ROLES, "<|end|>", "<|endoftext|>"), eos="<|endoftext|>"),
    "phi4": Family("<|im_end|>", (*IM, "<|im_sep|>"), eos="<|im_end|>"),
    "qwen-reasoning": Family("<|im_end|>", (*IM, "<|endoftext|>"), eos="<|im_end|>"),
    "r1-reasoning": Family(R1[3], R1, R1[0], R1[3], no_answer_think="\n</think>\n\n"),
    "zephyr": Family("</s>", ("<s>", "</s>"), "<s>", "</s>", "pieces"),
    "alpaca": Family("</s>", ("<s>", "</s>"), "<s>", "</s>", "pieces"),
    "vicuna": Family("</s>", ("<s>", "</s>"), "<s>", "</s>", "pieces"),
    "command": Family("<|END_OF_TURN_TOKEN|>", COMMAND, "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", trims=True),
    "granite": Family("<|end_of_text|>", GRANITE, eos="<|end_of_text|>"),
    "olmo": Family("<|endoftext|>", (*ROLES, "<|endoftext|>"), "<|endoftext|>", "<|endoftext|>"),
}

CORPUS = [
    "What is the capital of France? The capital of France is Paris, a city on the Seine.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))\n",
    "user assistant system tool USER: ASSISTANT: ### Instruction:\n### Response:\n",
    "Grüße aus Zürich! 東京は日本の首都です。 \U0001f600 Ответ: да.",
]


@cache
def tokenizer(name: str) -> ChatTokenizer:
    """A small tokenizer of the family's kind, trained here, with the family's tokens and template."""
    family = FAMILIES[name]
    special = [AddedToken(token, special=True, normalized=False) for token in family.tokens]
    if family.words == "bytes":
        inner = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(
            Regex(r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), "isolated"
        )
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        inner.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    else:
        inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        inner.normalizer = normalizers.Sequence([])
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        reserved = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=reserved, show_progress=False)
    inner.train_from_iterator(CORPUS, trainer)
    if family.words == "pieces":  # bytes are spelled by fallback, not recognised as special tokens
        values = inner.to_str().replace('"special":true', '"special":false')
        inner = Tokenizer.from_str(_without_added(values))
    inner.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=family.bos, eos_token=family.eos)
    path = FOLDER / f"{name}.jinja"
    fast.chat_template = path.read_text(encoding="utf-8") if path.exists() else TEMPLATES[name].source
    if family.bos:
        from tokenizers.processors import TemplateProcessing

        bos = fast.convert_tokens_to_ids(family.bos)
        fast.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{family.bos} $A", pair=f"{family.bos} $A $B", special_tokens=[(family.bos, bos)]
        )
    return ChatTokenizer(fast)


def _without_added(text: str) -> str:
    import json

    values = json.loads(text)
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] == "<unk>"]
    return json.dumps(values)


U, A, S = "user", "assistant", "system"
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}},
}


def conversation(*turns, **more):
    return Conversation(
        turns=tuple(Turn(role, content) for role, content in turns), source=Source("rows.jsonl", 4), **more
    )


ROWS: dict[str, tuple[Conversation, RenderOptions]] = {
    "one exchange": (conversation((U, "What is the capital?"), (A, "The capital is Paris.")), RenderOptions()),
    "with a system prompt": (conversation((S, "Be brief."), (U, "Capital?"), (A, "Paris.")), RenderOptions()),
    "two exchanges": (conversation((U, "Capital?"), (A, "Paris."), (U, "River?"), (A, "The Seine.")), RenderOptions()),
    "system and three exchanges": (
        conversation((S, "Be brief."), (U, "1"), (A, "one"), (U, "2"), (A, "two"), (U, "3"), (A, "three")),
        RenderOptions(),
    ),
    "code on many lines": (
        conversation((U, "Write add."), (A, "```python\ndef add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\n```")),
        RenderOptions(),
    ),
    "other scripts and emoji": (conversation((U, "Grüße! 東京?"), (A, "Да \U0001f600 — 首都。")), RenderOptions()),
    "answer that begins with white space": (conversation((U, "Indent."), (A, "\n  - one\n  - two")), RenderOptions()),
    "answer that ends with white space": (conversation((U, "List."), (A, "one\ntwo \n\n")), RenderOptions()),
    "question that ends with white space": (conversation((U, "Capital? \n"), (A, "Paris.")), RenderOptions()),
    "last answer only": (
        conversation((U, "Capital?"), (A, "Paris."), (U, "River?"), (A, "The Seine.")),
        RenderOptions(train_on="last_answer"),
    ),
    "first answer masked by the row": (
        Conversation(
            turns=(Turn(U, "Capital?"), Turn(A, "Rome.", train=False), Turn(U, "Sure?"), Turn(A, "Paris.")),
            source=Source("rows.jsonl", 4),
        ),
        RenderOptions(),
    ),
    "ends on a question": (conversation((U, "Capital?"), (A, "Paris."), (U, "Thanks.")), RenderOptions()),
    "reasoning": (
        Conversation(
            turns=(Turn(U, "Capital?"), Turn(A, "Paris.", reasoning="France, so Paris.")),
            source=Source("rows.jsonl", 4),
        ),
        RenderOptions(),
    ),
    "tool call and result": (
        Conversation(
            turns=(
                Turn(U, "Weather?"),
                Turn(A, "", tool_calls=(ToolCall("weather", '{"city": "Bern"}', "c1"),)),
                Turn("tool", "sunny", tool_call_id="c1"),
                Turn(A, "It is sunny."),
            ),
            tools=(TOOL,),
            source=Source("rows.jsonl", 4),
        ),
        RenderOptions(),
    ),
    "control tokens typed in the text": (
        conversation((U, "Say {stop} twice."), (A, "Here: {stop}{stop} done.")),
        RenderOptions(control_tokens="escape"),
    ),
}
CALLS = {
    "llama3-tools": '{"name": "weather", "parameters": {"city": "Bern"}}',
    "mistral-tools": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Bern"}}]',
    "qwen-reasoning": '\n<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>',
    "granite": '<|tool_call|>[{"name": "weather", "arguments": {"city": "Bern"}}]',
    "chatml-tools": '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>',
}
"""What each family with tools writes for the call."""
REFUSED = {("gemma-strict", "with a system prompt"), ("gemma-strict", "system and three exchanges")}
"""Rows the family's own template refuses in words."""


def expected_answers(name: str, conversation: Conversation, options: RenderOptions) -> list[str]:
    """What must be trained, written down by hand for each family: this knows nothing of the code under test."""
    family, found = FAMILIES[name], []
    for turn in conversation.turns:
        if turn.role != "assistant" or turn.train is False:
            continue
        if turn.tool_calls:
            found.append(CALLS[name] + (family.call_stop or family.stop))
            continue
        answer = turn.content.strip() if family.trims else turn.content
        if name == "qwen-reasoning":
            answer = answer.lstrip("\n")
            if turn.reasoning:
                answer = f"<think>\n{turn.reasoning}\n</think>\n\n{answer}"
        elif name == "r1-reasoning":
            answer = f"{turn.reasoning or ''}{family.no_answer_think}{answer}"
        elif turn.reasoning:
            answer = f"<think>\n{turn.reasoning}\n</think>\n\n{answer}"
        found.append(f"{family.lead}{answer}{family.stop}")
    return found[-1:] if options.train_on == "last_answer" else found


CASES = [(name, kind) for name in FAMILIES for kind in ROWS]


def test_there_are_three_hundred_cases():
    assert (len(FAMILIES), len(ROWS), len(CASES)) == (20, 15, 300)


@pytest.mark.parametrize(("name", "kind"), CASES, ids=[f"{name}-{kind.replace(' ', '-')}" for name, kind in CASES])
def test_exactly_the_answer_and_its_stop_token_is_trained(name, kind):
    family, chat = FAMILIES[name], tokenizer(name)
    conversation, options = ROWS[kind]
    turns = tuple(replace(turn, content=turn.content.replace("{stop}", family.stop)) for turn in conversation.turns)
    conversation = replace(conversation, turns=turns)
    if (name, kind) in REFUSED or (conversation.tools and name not in CALLS):
        with pytest.raises(RowRefused) as caught:
            render(conversation, chat, options)
        assert caught.value.finding == ("tools-unknown" if conversation.tools else "template-refuses")
        assert caught.value.problems[0].where == "rows.jsonl:4"
        return

    examples = render(conversation, chat, options)

    trained = []
    for example in examples:
        ids = example.input_ids
        for start, end in example.spans:
            before = chat.decode(ids[:start])
            trained.append(chat.decode(ids[:end]).removeprefix(before))
            assert chat.decode(ids[:end]).startswith(before)
            assert ids[end - 1] in stop_ids(chat)
        assert len(ids) == example.spans[-1][1]
        assert [example.text[start:end] for start, end in example.text_spans] == trained[-len(example.spans) :]
        if family.bos and family.bos != family.eos:
            assert ids[0] == chat.bos_id and ids.count(chat.bos_id) == 1
        elif family.bos:
            assert ids[0] == chat.bos_id and ids[1] != chat.bos_id
    assert trained == expected_answers(name, conversation, options)
    check_chat_is_the_training_prefix(chat, conversation, examples, options)


def check_chat_is_the_training_prefix(chat, conversation, examples, options):
    turns = conversation.turns
    answers = [index for index, turn in enumerate(turns) if turn.role == "assistant" and turn.train is not False]
    if options.train_on == "last_answer":
        answers = answers[-1:]
    starts = [(example, start) for example in examples for start, _ in example.spans]
    assert len(starts) == len(answers)
    for index, (example, start) in zip(answers, starts, strict=True):
        chat_options = replace(options, thinking=bool(turns[index].reasoning))
        assert (
            tuple(prompt_ids(turns[:index], chat, tools=conversation.tools, options=chat_options))
            == example.input_ids[:start]
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_stop_token_is_found(name):
    family, chat = FAMILIES[name], tokenizer(name)
    assert read_traits(chat).end_of_turn == family.stop
    wanted = {chat.added_tokens[token] for token in (family.stop, family.call_stop, family.eos) if token}
    assert stop_ids(chat) == wanted
