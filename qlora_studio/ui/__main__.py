"""`python -m qlora_studio.ui`: opens the studio on this machine, in one process and one place at a time."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import webbrowser
from collections.abc import Sequence
from typing import Any

from filelock import FileLock, Timeout

from qlora_studio.core.errors import StudioError
from qlora_studio.studio import Studio
from qlora_studio.ui.server.environment import let_queue_rest, prepare

PORT = 7860
"""Tried first, so that a bookmark keeps working; a free one is taken where it is not."""
ADDRESS = "127.0.0.1"
LARGEST_UPLOAD = "2gb"
"""What is larger is opened by its path."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Opens the studio and stays until Ctrl-C. `--port N` asks for a port, `--no-open` leaves the browser alone."""
    try:
        port, opens = read_arguments(sys.argv[1:] if arguments is None else arguments)
        studio = Studio()
        with _only_page(studio).acquire(timeout=0):
            _serve(studio, port, opens)
    except Timeout:
        _point_to_open_page(studio, opens)
    except StudioError as error:
        sys.stderr.write(f"Error: {error}\n")
        raise SystemExit(2) from None


def read_arguments(arguments: Sequence[str]) -> tuple[int | None, bool]:
    """Port, where one is asked for, and whether the browser is opened. Raises a StudioError for anything else."""
    port, opens, rest = None, True, list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--no-open":
            opens = False
        elif word == "--port" and rest and rest[0].isdecimal() and 1 <= int(rest[0]) <= 65535:
            port = int(rest.pop(0))
        else:
            raise StudioError(f"'{word}' is not understood here.", "Use --port NUMBER and --no-open.")
    return port, opens


def find_port(wanted: int | None) -> int:
    """A free port: the one asked for, else the usual one, else any. Raises a StudioError where the asked is taken."""
    for port in (wanted,) if wanted else (PORT, 0):
        with socket.socket() as probe:
            if (
                os.name == "posix"
            ):  # a port that was closed a moment ago counts as free, one that is listened on does not
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ADDRESS, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise StudioError(f"The port {wanted} is taken.", "Choose another one, or leave --port out.", field="--port")


def launch_options(studio: Studio, port: int) -> dict[str, Any]:
    """How Gradio serves the page: loopback only, guarded, nothing recorded, nothing of the disk readable."""
    from starlette.middleware import Middleware

    from qlora_studio.ui.server.origin import Guard
    from qlora_studio.ui.theme import make_theme

    assets, home = studio.assets, studio.home
    private = (home.datasets, home.models, home.runs, home.exports, home.chats, home.presets)  # the cache takes uploads
    return {
        "server_name": ADDRESS,
        "server_port": port,
        "inbrowser": False,
        "share": False,
        "prevent_thread_lock": True,
        "quiet": True,
        "show_error": False,
        "theme": make_theme(),
        "css_paths": [assets / "page.css"],
        "js": (assets / "page.js").read_text(encoding="utf-8"),
        "favicon_path": str(assets / "icon.png"),
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "allowed_paths": [],
        "blocked_paths": [str(folder) for folder in private],
        "max_file_size": LARGEST_UPLOAD,
        "strict_cors": True,
        "pwa": False,
        "ssr_mode": False,
        "mcp_server": False,
        "app_kwargs": {"middleware": [Middleware(Guard)], "docs_url": None, "redoc_url": None, "openapi_url": None},
    }


def _only_page(studio: Studio) -> FileLock:
    """The lock that one page a home holds. Raises a StudioError for a home that cannot be written."""
    try:
        studio.home.cache.mkdir(parents=True, exist_ok=True)
        (studio.home.cache / "page.lock").touch()
    except OSError as error:
        raise StudioError(
            f"The studio's folder cannot be written: {error.strerror}.",
            "Let the studio write there, or set QLORA_STUDIO_HOME to another folder.",
            where=str(studio.home.cache),
        ) from None
    return FileLock(studio.home.cache / "page.lock")


def _serve(studio: Studio, wanted: int | None, opens: bool) -> None:
    port = find_port(wanted)
    prepare(studio.home.cache)
    from qlora_studio.ui.app import build
    from qlora_studio.ui.server.workspace import Workspace

    # Gradio may serve what lies in the working folder: give it an empty one
    empty = studio.home.cache / "empty"
    empty.mkdir(exist_ok=True)
    os.chdir(empty)
    workspace = Workspace.open(studio)
    page = build(workspace).queue(api_open=False, max_size=64, default_concurrency_limit=4)
    let_queue_rest(page._queue)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:  # around the launch too: the page answers before that returns
        page.launch(**launch_options(studio, port))
        address = f"http://{ADDRESS}:{port}/"
        (studio.home.cache / "page.json").write_text(json.dumps({"address": address}), encoding="utf-8")
        sys.stdout.write(f"QLoRA Studio is open at {address}\nRuns go on when this is closed. Ctrl-C closes it.\n")
        sys.stdout.flush()
        if opens:
            webbrowser.open(address)
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        sys.stdout.write("\nClosed.\n")
    finally:
        workspace.chat.close()
        page.close(verbose=False)


def _point_to_open_page(studio: Studio, opens: bool) -> None:
    """A second start shows the first one's page."""
    try:
        address = json.loads((studio.home.cache / "page.json").read_text(encoding="utf-8"))["address"]
    except (OSError, ValueError, KeyError):
        raise SystemExit("The studio is opening already.") from None
    sys.stdout.write(f"QLoRA Studio is open already at {address}\n")
    if opens:
        webbrowser.open(address)


if __name__ == "__main__":
    main()
