"""A workspace over an empty home, and a real server in a process of its own with a browser that forgives nothing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page

from qlora_studio.core.jobs import JobRef
from qlora_studio.home import Home
from qlora_studio.runs.folder import create_job
from qlora_studio.studio import Studio
from tests.ui.fakes import Tab

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
QUIET_BROWSER = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace over an empty home. Jobs that it would start are noted and never come to life."""
    from qlora_studio.ui.server.memory import read_memory
    from qlora_studio.ui.server.workspace import Workspace

    studio = Studio(Home(tmp_path))
    started: list[str] = []

    def start(parent, request, files=None, **_):
        started.append(request.job)
        return JobRef(create_job(parent, request.job, request, files).path)

    monkeypatch.setattr(studio.jobs, "start", start)
    monkeypatch.setattr("qlora_studio.ui.server.sync.CONFIRM_SECONDS", 1e9)  # a slow machine would confirm in between
    memory = read_memory()  # else it changes on the page whenever it changes on the machine
    monkeypatch.setattr("qlora_studio.ui.server.world.read_memory", lambda: memory)
    made = Workspace.open(studio)
    made.started = started
    return made


@pytest.fixture
def tab(workspace):
    """A tab of the browser that has just opened the page."""
    return Tab(workspace)


@pytest.fixture
def ready(workspace):
    """A tab of a workspace with the demo rows chosen, nothing counted and nothing started."""
    report = workspace.studio.data.import_rows(str(workspace.studio.data.demo().rows), name="demo")
    workspace.forget_world()
    workspace.draft.change({"data.sources": [{"name": report.name, "weight": 1.0}]})
    return Tab(workspace)


@dataclass(frozen=True)
class Server:
    """A studio that is open, and how long it took."""

    url: str
    home: Path
    seconds: float


def start_server(home: Path) -> tuple[subprocess.Popen[str], Server]:
    """Opens the studio over this home and returns once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "qlora_studio.ui", "--no-open", "--port", str(port)],
        cwd=ROOT,
        env={**os.environ, "QLORA_STUDIO_HOME": str(home), "PYTHONPATH": str(ROOT), "GOMP_SPINCOUNT": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    url = f"http://127.0.0.1:{port}/"
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).read()
            return process, Server(url, home, time.monotonic() - begun)
        except OSError:
            if process.poll() is not None or time.monotonic() - begun > 60:
                process.kill()
                pytest.fail(f"the studio did not open:\n{process.stdout.read() if process.stdout else ''}")
            time.sleep(0.1)


@pytest.fixture(scope="module")
def server(tmp_path_factory, request) -> Iterator[Server]:
    """One open studio for the tests of a file; its home holds the embedded model where the file asks for it."""
    home = tmp_path_factory.mktemp("home")
    if getattr(request.module, "NEEDS_MODEL", False):
        (home / "models").mkdir()
        model = request.getfixturevalue("smollm2")
        (home / "models" / "smollm2-135m-instruct").symlink_to(model, target_is_directory=True)
    process, made = start_server(home)
    yield made
    process.terminate()
    output, _ = process.communicate(timeout=20)
    assert "Traceback" not in output, output


@pytest.fixture(scope="session")
def browser_type_launch_args():
    return {"executable_path": CHROMIUM, "args": QUIET_BROWSER}


class Watched:
    """A page of the studio, with everything that goes wrong on it."""

    ABORTED = ("AbortError", "Connection errored out", "ERR_ABORTED", "Failed to fetch", "network error")
    """What Gradio says of the requests that a reload cuts off."""

    def __init__(self, page: Page, url: str) -> None:
        self.page, self.url = page, url
        self.wrong: list[str] = []
        self.leaving = False
        near = (url, "data:", "blob:")
        page.on("console", lambda message: self.note(f"console: {message.text}") if message.type == "error" else None)
        page.on("pageerror", lambda error: self.note(f"page: {error}"))
        page.on(
            "request", lambda request: None if request.url.startswith(near) else self.note(f"outside: {request.url}")
        )

    def note(self, wrong: str) -> None:
        if not (self.leaving and any(word in wrong for word in self.ABORTED)):
            self.wrong.append(wrong)

    def open(self, anchor: str = "") -> Page:
        self.page.goto(self.url + anchor)
        self.page.wait_for_selector("html[data-ready='1']")
        return self.page

    def reload(self) -> None:
        self.leaving = True
        self.page.reload()
        self.page.wait_for_selector("html[data-ready='1']")
        self.leaving = False


@pytest.fixture
def watched(page: Page, server: Server) -> Iterator[Watched]:
    """Fails on console errors, page errors and any request that leaves the machine."""
    made = Watched(page, server.url)
    yield made
    made.leaving = True
    assert made.wrong == []
