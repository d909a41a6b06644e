"""The commands by name, and the one door where errors become sentences."""

from __future__ import annotations

import signal
import sys
from typing import Annotated

import typer

from qlora_studio import __version__
from qlora_studio.cli import (
    adopt,
    chat,
    combine,
    data,
    demo,
    doctor,
    evaluate,
    export,
    exports,
    plan,
    push,
    queue,
    runs,
    train,
    ui,
)
from qlora_studio.core.errors import StudioError, explain_unwritable

app = typer.Typer(
    name="qlora-studio",
    help="Tune a language model on the graphics card you already have: 4-bit QLoRA, chat, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("ui")(ui.ui)
app.add_typer(data.app, name="data")
app.command("plan")(plan.plan)
app.command("train")(train.train)
app.add_typer(runs.app, name="runs")
app.add_typer(queue.app, name="queue")
app.command("chat")(chat.chat)
app.command("evaluate")(evaluate.evaluate)
app.command("export")(export.export)
app.add_typer(exports.app, name="exports")
app.command("adopt")(adopt.adopt)
app.command("combine")(combine.combine)
app.command("push")(push.push)
app.command("doctor")(doctor.doctor)


def show_version(value: bool) -> None:
    if value:
        print(f"QLoRA Studio {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Tune a language model on the graphics card you already have: 4-bit QLoRA, chat, export."""


COMMAND = typer.main.get_command(app)
"""Made of the functions once: that takes as long as a small command."""


def run() -> int:
    """Runs one command. 0: done; 1: the work failed; 2: the input was wrong; 130: Ctrl-C, or asked to terminate."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code = COMMAND(standalone_mode=False)
        return int(code or 0)
    except StudioError as error:
        return print_problems(error)
    except typer.Exit as leaving:
        return leaving.exit_code
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130
    except OSError as error:
        if (explained := explain_unwritable(error)) is None:
            raise
        return print_problems(explained)
    except Exception as error:
        show = getattr(error, "show", None)  # typer's own complaint about flags and arguments
        if show is None:
            raise
        show()
        return int(getattr(error, "exit_code", 2))


def print_problems(error: StudioError) -> int:
    """Prints every problem on standard error; the exit code of wrong input."""
    for problem in error.problems:
        print(f"Error: {problem}", file=sys.stderr)
    return 2
