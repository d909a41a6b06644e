"""A job followed from the terminal: how it ends is the exit code."""

from __future__ import annotations

import pytest
import typer
from rich.console import Console

from qlora_studio.cli.jobs import follow
from qlora_studio.core import events as ev


def test_a_failed_job_is_a_sentence_and_exit_code_1(capsys):
    failed = ev.Failed(message="The exported model has lost what was trained.", hint="Export it as chatted.")
    with pytest.raises(typer.Exit) as left:
        follow(Console(quiet=True), lambda: iter([ev.JobStarted(job="export"), failed]), lambda: None)
    assert left.value.exit_code == 1
    assert capsys.readouterr().err == "Error: The exported model has lost what was trained. Export it as chatted.\n"


@pytest.mark.parametrize("last", [ev.Finished(), ev.Stopped(step=3)], ids=["finished", "stopped"])
def test_a_job_that_did_not_fail_is_no_error(last):
    assert (
        follow(Console(quiet=True), lambda: iter([ev.JobStarted(job="export"), last]), lambda: None).state == last.tag
    )
