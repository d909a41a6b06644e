"""A chat template that others wrote is tried in a process of its own before anything is rendered with it for real.

The sandbox of transformers keeps a template from running code; it does not keep it from running forever or from
building endless text. So the trial has a clock and a bound on memory, and it checks what the template leaves out.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from qlora_studio.core.conversation import Conversation, ToolCall, Turn
from qlora_studio.core.errors import Problem, StudioError
from qlora_studio.data.render.prompt import RenderOptions, render
from qlora_studio.data.render.templated_row import RowRefused
from qlora_studio.data.render.traits import read_traits
from qlora_studio.engine.without_torch import leave_torch_out

if TYPE_CHECKING:
    from qlora_studio.engine.tokenizer import ChatTokenizer

START_SECONDS = 120.0
"""For importing the libraries and reading the tokenizer, on a slow disk."""
RENDER_SECONDS = 2.0
RENDER_BYTES = 512 << 20
"""What rendering may add to the process."""

_READY, _DONE = "ready", "done"
_OUT_OF_MEMORY = 3
"""Exit code of a trial whose memory ran out."""


@dataclass(frozen=True, slots=True)
class TemplateReport:
    """What a template was seen to do."""

    knows_tools: bool
    knows_thinking: bool
    knows_system: bool
    rewrites_turns: bool
    """Earlier turns are written differently once there are later ones: each answer becomes an example of its own."""
    end_of_turn: str
    sample: str
    """A small conversation, rendered."""
    problems: tuple[Problem, ...]


def vet_template(folder: Path, template: str | None = None) -> TemplateReport:
    """Tries the template of a model folder, or a built-in one by name.

    Raises a StudioError where it takes too long or too much memory, where it fails, and where it drops or reorders
    what is said in a plain conversation. What it does not know (system turns, tools) is no error; the report says so.
    """
    command = [sys.executable, "-m", "qlora_studio.engine.template_vetting", str(folder), template or ""]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as child:
        assert child.stdout
        lines = _follow(child.stdout)
        try:
            _wait(lines, START_SECONDS, str(folder), _READY)
            message = _wait(lines, RENDER_SECONDS, str(folder), _DONE)
        except EOFError:
            raise _ended(child.wait(), str(folder)) from None
        finally:
            child.kill()
    if "error" in message:
        raise StudioError(**message["error"])
    problems = tuple(Problem(**problem) for problem in message.pop("problems"))
    report = TemplateReport(**message, problems=problems)
    if problems:
        raise StudioError.of(problems)
    return report


def _follow(stream: IO[str]) -> queue.Queue[str | None]:
    """The lines of a pipe as they come, then None."""
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    return lines


def _wait(lines: queue.Queue[str | None], seconds: float, where: str, awaited: str) -> dict[str, Any]:
    """The next message of the trial. Raises a StudioError where none comes in time, EOFError at the end."""
    try:
        line = lines.get(timeout=seconds)
    except queue.Empty:
        what = (
            "The chat template does not come to an end" if awaited == _DONE else "Reading the tokenizer takes too long"
        )
        raise StudioError(
            f"{what}: it was stopped after {seconds:.0f} seconds.", "Choose a built-in template by name.", where=where
        ) from None
    if line is None:
        raise EOFError
    message: dict[str, Any] = json.loads(line)
    return message


def _ended(code: int, where: str) -> StudioError:
    """The error for a trial that ended and reported nothing."""
    if code == _OUT_OF_MEMORY:
        message = f"The chat template takes more than {RENDER_BYTES >> 20} MB of memory."
    else:
        message = f"The trial of the chat template broke off (exit code {code})."
    return StudioError(message, "Choose a built-in template by name.", where=where)


def _limit_memory() -> None:
    """Bounds what this process may add to its address space; where the system knows no such bound, only time counts."""
    try:
        import resource
    except ImportError:
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        bound = pages * os.sysconf("SC_PAGE_SIZE") + RENDER_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def _send(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def main(folder: str, template: str) -> None:
    """The trial itself: says ready, then what it found. Runs in the child."""
    from qlora_studio.engine.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(Path(folder), template or None)
    except StudioError as error:
        _send({"awaited": _READY})
        _send({"error": _as_keywords(error)})
        return
    _send({"awaited": _READY})
    tokenizer.guard.row_bytes = RENDER_BYTES  # nothing else is at work in this process
    _limit_memory()
    try:
        report = try_template(tokenizer)
    except StudioError as error:
        _send({"error": {**_as_keywords(error), "where": folder}})
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
    else:
        _send(asdict(report))


def _as_keywords(error: StudioError) -> dict[str, str]:
    first = error.problems[0]
    return {"message": first.message, "hint": first.hint, "where": first.where, "field": first.field}


_CONVERSATION = (
    Turn("user", "Qk1 where is the harbour"),
    Turn("assistant", "Wz2 behind the hill"),
    Turn("user", "Vp3 and the mill"),
    Turn("assistant", "Ts4 beside the river"),
    Turn("user", "Lm5 thanks"),
    Turn("assistant", "Hn6 gladly"),
)
_TOOL = {
    "type": "function",
    "function": {"name": "find_place", "description": "Finds it.", "parameters": {"type": "object", "properties": {}}},
}


def try_template(tokenizer: ChatTokenizer) -> TemplateReport:
    """Renders small conversations and looks what becomes of them. Without clock or bound: `vet_template` has both.

    Raises a StudioError where the template fails at once; what it drops stands in the report's problems.
    """
    traits = read_traits(tokenizer)
    problems: list[Problem] = []

    def tried(conversation: Conversation) -> int:
        """How many examples it makes; 0 where the template refuses it or leaves something out."""
        try:
            return len(render(conversation, tokenizer, RenderOptions(control_tokens="keep"), traits))
        except RowRefused as error:
            problems.append(replace(error.problems[0], where=tokenizer.where))
            return 0

    tried(Conversation(turns=_CONVERSATION[:2]))
    made = tried(Conversation(turns=_CONVERSATION))
    needed, problems = problems, []
    system = tried(Conversation(turns=(Turn("system", "Bd7 be brief"), *_CONVERSATION[:2])))
    problems = []
    called = Turn("assistant", "", tool_calls=(ToolCall("find_place", '{"name": "Gx8"}', "call00001"),))
    with_tools = (_CONVERSATION[0], called, Turn("tool", "Rf9 found", tool_call_id="call00001"), _CONVERSATION[1])
    tools = tried(Conversation(turns=with_tools, tools=(_TOOL,))) if traits.knows_tools else 0
    sample = tokenizer.render([{"role": turn.role, "content": turn.content} for turn in _CONVERSATION[:2]])
    return TemplateReport(
        knows_tools=bool(tools),
        knows_thinking=traits.knows_thinking,
        knows_system=bool(system),
        rewrites_turns=made > 1,
        end_of_turn=traits.end_of_turn,
        sample=sample[:4000],
        problems=tuple(needed),
    )


if __name__ == "__main__":
    leave_torch_out()
    main(sys.argv[1], sys.argv[2])
