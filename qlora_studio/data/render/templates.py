"""Chat templates of our own, by name, for bases that bring none. The chosen one is saved with the adapter."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from qlora_studio.core.errors import StudioError


@dataclass(frozen=True, slots=True)
class NamedTemplate:
    """A template, and the tokens a tokenizer must have for it."""

    name: str
    description: str
    source: str
    needs: tuple[str, ...] = ()


_INSTRUCTION = """\
{{- bos_token if bos_token else '' -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ message.content }}{{ '\\n\\n' }}
{%- elif message.role == 'user' -%}
{{ '### Instruction:\\n' }}{{ message.content }}{{ '\\n\\n' }}
{%- elif message.role == 'assistant' -%}
{{ '### Response:\\n' }}{{ message.content }}{{ eos_token }}{{ '\\n\\n' }}
{%- else -%}
{{ raise_exception('the instruction template knows no ' + message.role + ' turns') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '### Response:\\n' }}{%- endif -%}
"""

_DIALOGUE = """\
{{- bos_token if bos_token else '' -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{{ message.content }}{{ '\\n\\n' }}
{%- elif message.role == 'user' -%}
{{ 'User: ' }}{{ message.content }}{{ '\\n' }}
{%- elif message.role == 'assistant' -%}
{{ 'Assistant:\\n' }}{{ message.content }}{{ eos_token }}{{ '\\n' }}
{%- else -%}
{{ raise_exception('the dialogue template knows no ' + message.role + ' turns') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:\\n' }}{%- endif -%}
"""

_CHATML = """\
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant'] -%}
{{ raise_exception('the chatml template knows no ' + message.role + ' turns; chatml-tools does') }}
{%- endif -%}
{{ '<|im_start|>' }}{{ message.role }}{{ '\\n' }}{{ message.content }}{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

_CHATML_TOOLS = """\
{%- set first = messages[0] if messages and messages[0].role == 'system' else none -%}
{%- if tools or first -%}
{{ '<|im_start|>system\\n' }}{{ first.content if first else '' }}
{%- if tools -%}
{{ '\\n\\n' if first else '' }}{{ 'You may call these functions:\\n<tools>\\n' }}
{%- for tool in tools -%}{{ tool | tojson }}{{ '\\n' }}{%- endfor -%}
{{ '</tools>\\nAnswer with <tool_call>{"name": ..., "arguments": {...}}</tool_call> to call one.' }}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- if not loop.first -%}{{ '<|im_start|>system\\n' }}{{ message.content }}{{ '<|im_end|>\\n' }}{%- endif -%}
{%- elif message.role == 'user' -%}
{{ '<|im_start|>user\\n' }}{{ message.content }}{{ '<|im_end|>\\n' }}
{%- elif message.role == 'tool' -%}
{{ '<|im_start|>tool\\n' }}{{ message.content }}{{ '<|im_end|>\\n' }}
{%- else -%}
{{ '<|im_start|>assistant\\n' }}{{ message.content }}
{%- for call in message.tool_calls or [] -%}
{{ '\\n' if message.content or not loop.first else '' }}{{ '<tool_call>\\n{"name": ' }}{{ call.function.name | tojson }}
{%- set given = call.function.arguments -%}
{{ ', "arguments": ' }}{{ given if given is string else given | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

_MARKS = ("<|im_start|>", "<|im_end|>")

TEMPLATES: dict[str, NamedTemplate] = {
    template.name: template
    for template in (
        NamedTemplate("instruction", "Plain text with ### Instruction and ### Response; for any base.", _INSTRUCTION),
        NamedTemplate("dialogue", "Plain text with User: and Assistant:; for any base.", _DIALOGUE),
        NamedTemplate("chatml", "ChatML; for bases that have its two tokens.", _CHATML, _MARKS),
        NamedTemplate("chatml-tools", "ChatML with tools; for bases that have its two tokens.", _CHATML_TOOLS, _MARKS),
    )
}


def find_template(name: str, tokens: Collection[str]) -> NamedTemplate:
    """A template by name, for a tokenizer with these added tokens. Raises a StudioError that lists what there is."""
    if name not in TEMPLATES:
        raise StudioError(
            f"There is no chat template '{name}'.", f"There are: {', '.join(TEMPLATES)}.", field="model.template"
        )
    template = TEMPLATES[name]
    if missing := [token for token in template.needs if token not in tokens]:
        fitting = [other.name for other in TEMPLATES.values() if all(token in tokens for token in other.needs)]
        raise StudioError(
            f"The template '{name}' needs {' and '.join(missing)}, which this model's tokenizer does not have.",
            f"Choose {' or '.join(fitting)}.",
            field="model.template",
        )
    return template
