"""Twenty-four kinds of rows, and a tokenizer of letters for any chat template, so that every word can be looked for."""

import json
import re

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from qlora_studio.core.conversation import Conversation, Source, ToolCall, Turn
from qlora_studio.engine.tokenizer import ChatTokenizer

MARK = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]{1,40}[|\uff5c]>|</?(?:s|bos|eos|sop)>|<(?:start|end)_of_turn>|<end_of_utterance>"
    r"|\[/?(?:INST|gMASK|TOOL_CALLS|AVAILABLE_TOOLS)\]|<\|?(?:turn|channel|tool|tool_call|tool_response)\|?>|<SPECIAL_\d+>"
)
"""What control tokens look like in templates."""


def letters_for(source: str) -> ChatTokenizer:
    """A tokenizer whose tokens are letters and the control tokens that this template writes."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(sorted({*MARK.findall(source), "<bos>", "<eos>"}))
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = source
    return ChatTokenizer(fast)


def tool(name, parameter):
    parameters = {
        "type": "object",
        "properties": {parameter: {"type": "string", "description": "Which one."}},
        "required": [parameter],
    }
    return {
        "type": "function",
        "function": {"name": name, "description": f"Tells by {parameter}.", "parameters": parameters},
    }


def call(name, arguments, number=1):
    return ToolCall(name, json.dumps(arguments), f"call0000{number}")


def calling(*calls, text="", reasoning=None):
    return Turn("assistant", text, reasoning=reasoning, tool_calls=calls)


def result(text, name, number=1):
    return Turn("tool", text, tool_call_id=f"call0000{number}", name=name)


WEATHER, CLOCK = tool("find_weather", "city"), tool("read_clock", "zone")
S = Turn("system", "Sone be brief and kind.")
Q1, Q2 = Turn("user", "Qone what weather in Bern?"), Turn("user", "Qtwo and in Basel?")
A1, A2 = Turn("assistant", "Aone it is sunny."), Turn("assistant", "Atwo it rains.")
R1 = Turn("assistant", "Aone it is sunny.", reasoning="Rone the sky is blue.")
R2 = Turn("assistant", "Atwo it rains.", reasoning="Rtwo clouds came.")
BERN, BASEL = call("find_weather", {"city": "Vbern"}), call("find_weather", {"city": "Vbasel"}, 2)
TIME = call("read_clock", {"zone": "Vzurich"}, 2)
DEEP = call("find_weather", {"city": "Vbern", "days": [3, 5], "how": {"unit": "Vcelsius", "deep": True}})
SUNNY, RAIN = result("Oone sunny, 21 degrees", "find_weather"), result("Otwo rain", "find_weather", 2)
NOON = result("Otwo noon", "read_clock", 2)
JSON = result('{"sky": "Oblue", "degrees": 21}', "find_weather")
LOOK, WHY = "Tone I will look.", "Rone I need data."

ROWS = {
    "one exchange": (Q1, A1),
    "system": (S, Q1, A1),
    "two exchanges": (Q1, A1, Q2, A2),
    "system and two exchanges": (S, Q1, A1, Q2, A2),
    "ends on a question": (Q1, A1, Q2),
    "code and blank lines": (Q1, Turn("assistant", "Aone:\n\n```py\nx = {'a': 1}\n\n\nprint(x)\n```")),
    "reasoning": (Q1, R1),
    "system and reasoning": (S, Q1, R1),
    "reasoning in both answers": (Q1, R1, Q2, R2),
    "reasoning in the first answer": (Q1, R1, Q2, A2),
    "tools that are not called": (Q1, A1, WEATHER, CLOCK),
    "system and tools that are not called": (S, Q1, A1, WEATHER, CLOCK),
    "call, result, answer": (Q1, calling(BERN), SUNNY, A1, WEATHER, CLOCK),
    "system, call, result, answer": (S, Q1, calling(BERN), SUNNY, A1, WEATHER, CLOCK),
    "call that ends the row": (Q1, calling(BERN), WEATHER),
    "text beside a call": (Q1, calling(BERN, text=LOOK), SUNNY, A1, WEATHER),
    "two calls in one turn": (Q1, calling(BERN, TIME), SUNNY, NOON, A1, WEATHER, CLOCK),
    "two calls that end the row": (Q1, calling(BERN, TIME), WEATHER, CLOCK),
    "the same function twice": (Q1, calling(BERN), SUNNY, calling(BASEL), RAIN, A1, WEATHER),
    "reasoning before a call": (Q1, calling(BERN, reasoning=WHY), SUNNY, A1, WEATHER),
    "reasoning and text before a call": (Q1, calling(BERN, reasoning=WHY, text=LOOK), SUNNY, A1, WEATHER),
    "reasoning after a call": (Q1, calling(BERN), SUNNY, R1, WEATHER),
    "calls without tools": (Q1, calling(BERN), SUNNY, A1),
    "nested arguments and a result in JSON": (Q1, calling(DEEP), JSON, A1, WEATHER),
}


def conversation(kind: str) -> Conversation:
    parts = ROWS[kind]
    turns = tuple(part for part in parts if isinstance(part, Turn))
    tools = tuple(part for part in parts if isinstance(part, dict))
    return Conversation(turns=turns, tools=tools, source=Source("rows.jsonl", 4))


# the oracle: what an examiner looks for in decoded tokens; it shares no code with the program


def spellings(value):
    if isinstance(value, str):
        return {value.strip(), json.dumps(value)[1:-1]}
    return {json.dumps(value), str(value)}


def values_in(arguments):
    for name, value in arguments.items():
        yield name
        if isinstance(value, dict):
            yield from values_in(value)
        else:
            yield from value if isinstance(value, list) else [value]


def stands(value, text):
    return any(spelling in text for spelling in spellings(value))


def find_losses(row: Conversation, examples, chat: ChatTokenizer) -> list[str]:
    """What of a row is missing in the tokens that are trained, and in those that stand before them."""
    stretches = []
    for example in examples:
        for start, end in example.spans:
            stretches.append((chat.decode(example.input_ids[:start]), chat.decode(example.input_ids[start:end])))
    answers = [index for index, turn in enumerate(row.turns) if turn.role == "assistant"]
    if len(stretches) != len(answers):
        return [f"{len(stretches)} trained stretches for {len(answers)} answers"]
    lost = []
    for index, (before, own) in zip(answers, stretches, strict=True):
        turn = row.turns[index]
        lost += [f"{index}: {part}" for part in (turn.reasoning, turn.content) if part and not stands(part, own)]
        lost += [f"{index}: {part}" for part in _calls(turn) if not stands(part, own)]
        names = [one.name for one in turn.tool_calls]
        lost += [f"{index}: a call of {name}" for name in names if own.count(name) < names.count(name)]
        for earlier in row.turns[:index]:
            found = stands(earlier.content, before) or (
                earlier.content.startswith("{") and all(stands(v, before) for v in json.loads(earlier.content).values())
            )
            lost += [] if found else [f"before {index}: {earlier.content}"]
            lost += [f"before {index}: {part}" for part in _calls(earlier) if not stands(part, before)]
        lost += [
            f"before {index}: {one['function']['name']}" for one in row.tools if one["function"]["name"] not in before
        ]
        if not any(own.rstrip().endswith(token) for token in chat.control_tokens):
            lost.append(f"{index}: a token that ends it")
    return lost


def _calls(turn):
    for one in turn.tool_calls:
        yield one.name
        yield from values_in(json.loads(one.arguments))
