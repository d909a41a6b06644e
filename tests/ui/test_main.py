"""How the studio is opened."""

import socket
import subprocess
import sys

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.ui.__main__ import find_port, read_arguments

HEAVY = {"torch", "transformers", "peft", "bitsandbytes", "accelerate", "trl", "datasets"}


@pytest.mark.parametrize(
    ("given", "meant"),
    [([], (None, True)), (["--no-open"], (None, False)), (["--port", "8000", "--no-open"], (8000, False))],
)
def test_arguments(given, meant):
    assert read_arguments(given) == meant


@pytest.mark.parametrize("given", [["--port"], ["--port", "x"], ["--port", "70000"], ["--host", "0.0.0.0"], ["8000"]])
def test_other_arguments_are_refused_by_name(given):
    with pytest.raises(StudioError, match="is not understood here"):
        read_arguments(given)


def test_a_taken_port_that_was_asked_for_is_refused_and_any_free_one_found_otherwise():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StudioError, match=f"The port {port} is taken."):
            find_port(port)
        assert find_port(None) not in (0, port)


def test_the_page_loads_no_model_library_and_writes_no_stub_files():
    code = (
        "import sys; from pathlib import Path; from qlora_studio.ui.server.environment import prepare; prepare(Path('/nowhere'))\n"
        "import qlora_studio.ui.app, gradio.component_meta as meta\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} & "
        + repr(HEAVY)
        + "), meta.create_or_modify_pyi.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] <lambda>"
