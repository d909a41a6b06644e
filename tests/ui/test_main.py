"""How the studio is opened."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from filelock import FileLock

from qlora_studio.core.errors import StudioError
from qlora_studio.ui.__main__ import find_port, read_arguments

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.mark.slow
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


def answers(url):
    try:
        urllib.request.urlopen(url, timeout=2).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there is no SIGTERM to send")
def test_ending_the_command_ends_its_page(tmp_path):
    port = find_port(None)
    command = [sys.executable, "-m", "qlora_studio", "ui", "--no-open", "--port", str(port)]
    environment = {**os.environ, "QLORA_STUDIO_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}/"
    try:
        until = time.monotonic() + 60
        while not answers(url) and time.monotonic() < until:
            time.sleep(0.2)
        assert answers(url)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=15)
    finally:
        process.kill()
    assert not answers(url) and process.returncode == 0 and output.endswith("Closed.\n")


ENDED_IN_LAUNCH = """
import os, signal, sys, time, gradio
def launch(*_, **__):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
gradio.Blocks.launch = launch
from qlora_studio.ui.__main__ import main
sys.argv = ["qlora-studio ui", "--no-open"]
sys.exit(main())
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGTERM to send")
@pytest.mark.slow
def test_a_page_that_is_ended_while_it_opens_is_closed(tmp_path):
    environment = {**os.environ, "QLORA_STUDIO_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", ENDED_IN_LAUNCH]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\nClosed.\n", "")


def test_a_home_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "cache").write_text("in the way")
    environment = {**os.environ, "QLORA_STUDIO_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "qlora_studio.ui", "--no-open"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("Error: ") and "cannot be written" in done.stderr


def test_a_second_start_names_the_page_that_is_open(tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "page.json").write_text('{"address": "http://127.0.0.1:7999/"}')
    environment = {**os.environ, "QLORA_STUDIO_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "qlora_studio.ui", "--no-open"]
    with FileLock(cache / "page.lock"):
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "QLoRA Studio is open already at http://127.0.0.1:7999/\n")


def test_gradios_queue_still_has_the_fields_that_let_it_rest():
    import gradio as gr

    from qlora_studio.ui.server.environment import QUEUE_SECONDS, let_queue_rest

    with gr.Blocks() as page:
        gr.HTML()
    page.queue()
    assert all(hasattr(page._queue, name) for name in QUEUE_SECONDS)
    let_queue_rest(page._queue)
    assert {name: getattr(page._queue, name) for name in QUEUE_SECONDS} == QUEUE_SECONDS
