"""`qlora-studio chat`: chat with a run, and to its base for comparison."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Annotated

import typer
from rich.console import Console

from qlora_studio.cli import options as op
from qlora_studio.core.chat import ChatRequest, ChatTurn, Sampling, Side
from qlora_studio.core.errors import StudioError
from qlora_studio.studio import Studio


def chat(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    message: Annotated[
        str | None, typer.Option("--message", help="Ask once and leave, instead of a conversation.")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", help="A system message to begin with.")] = None,
    side: Annotated[str, typer.Option("--side", help="Who answers: tuned, base or both.")] = "tuned",
    temperature: Annotated[
        float, typer.Option("--temperature", help=Sampling.model_fields["temperature"].description)
    ] = 0.0,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", help=Sampling.model_fields["max_new_tokens"].description)
    ] = 256,
    seed: Annotated[int, typer.Option("--seed", help=Sampling.model_fields["seed"].description)] = 42,
    checkpoint: op.Checkpoint = "",
) -> None:
    """Chat with the tuned model, the base, or both with the same seed."""
    sides: dict[str, tuple[Side, ...]] = {"tuned": ("tuned",), "base": ("base",), "both": ("base", "tuned")}
    if side not in sides:
        raise StudioError(f"'{side}' cannot answer.", "Choose tuned, base or both.", field="--side")
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens, seed=seed)
    console = Console()
    first = (ChatTurn(role="system", content=system),) if system else ()
    histories = dict.fromkeys(sides[side], first)
    with closing(Studio().chats.open(run, checkpoint)) as pipe:
        while True:
            text = message if message is not None else _read(console)
            if text is None:
                return
            for one in sides[side]:
                if len(sides[side]) > 1:
                    console.print(f"[bold]{one}[/]")
                turns = (*histories[one], ChatTurn(role="user", content=text))
                answer = ""
                try:
                    for piece in pipe.ask(ChatRequest(turns=turns, side=one, sampling=sampling)):
                        sys.stdout.write(piece.text[len(answer) :])
                        sys.stdout.flush()
                        answer = piece.text
                except KeyboardInterrupt:
                    pipe.stop()
                    return
                print()
                histories[one] = (*turns, ChatTurn(role="assistant", content=answer))
            if message is not None:
                return


def _read(console: Console) -> str | None:
    """The next message; None at the end of input or /quit."""
    try:
        text = console.input("[bold]you:[/] ")
    except EOFError:
        return None
    return None if text.strip() in ("/quit", "/exit") else text
