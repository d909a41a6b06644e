"""The command line: every verb of the studio, its progress and its mistakes in plain words."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; a person's mistake becomes one sentence on standard error and exit code 2."""
    from qlora_studio.cli.app import run

    sys.exit(run())
