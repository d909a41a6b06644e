"""The hub's answers become a pinned set or one sentence each. A small server on this machine stands for the hub."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qlora_studio.core.errors import StudioError
from qlora_studio.data.readers.hub_set import HubSet, read_hub
from qlora_studio.data.readers.rows import Row, Tally

SHA = "0123456789abcdef0123456789abcdef01234567"
ANSWERS = {
    "good/set": (200, {}),
    "gated/set": (403, {"X-Error-Code": "GatedRepo"}),
    "missing/set": (404, {"X-Error-Code": "RepoNotFound"}),
    "old/set": (404, {"X-Error-Code": "RevisionNotFound"}),
    "busy/set": (429, {}),
    "broken/set": (500, {}),
}

CODE = """
import json, sys
from qlora_studio.core.errors import StudioError
from qlora_studio.data.readers.hub_set import HubSet, pin
said = {}
for name in json.loads(sys.argv[1]):
    try:
        said[name] = pin(HubSet(name, revision="v1")).revision
    except StudioError as error:
        said[name] = str(error)
print(json.dumps(said))
"""


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        name = "/".join(self.path.split("/")[3:5])
        status, headers = ANSWERS[name]
        body = json.dumps({"id": name, "sha": SHA, "siblings": []}).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def ask(endpoint, names):
    import os

    kept = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(names)],
        capture_output=True,
        text=True,
        env={**kept, "HF_ENDPOINT": endpoint, "NO_PROXY": "*"},
        check=True,
    )
    return json.loads(done.stdout)


def test_every_answer_of_the_hub_is_a_commit_or_a_sentence():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        answers = ask(f"http://127.0.0.1:{server.server_port}", list(ANSWERS))
    finally:
        server.shutdown()
    assert answers == {
        "good/set": SHA,
        "gated/set": "gated/set: This data set asks you to accept its licence first. "
        f"Open http://127.0.0.1:{server.server_port}/datasets/gated/set and accept it, then log in with "
        "`hf auth login` or set HF_TOKEN.",
        "missing/set": "missing/set: The hub has no such data set, or it is private. Check the Hub ID. "
        "For a private one, log in with `hf auth login` or set HF_TOKEN.",
        "old/set": "old/set: This data set has no revision 'v1'. Leave the revision empty for the newest.",
        "busy/set": "busy/set: The hub asks to wait: too many requests. Try again later.",
        "broken/set": "broken/set: The hub answers with an error (500). Try again later.",
    }


def test_a_hub_that_is_not_there_is_one_sentence():
    (answer,) = ask("http://127.0.0.1:9", ["good/set"]).values()
    assert answer == "good/set: The hub cannot be reached. Check the network, or give a file."


def test_rows_are_streamed_with_their_numbers(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"a": "007"}\n{"a": "x"}\n')
    wanted = HubSet(str(tmp_path))
    assert list(read_hub(wanted, Tally())) == [Row(str(wanted), 1, {"a": "007"}), Row(str(wanted), 2, {"a": "x"})]
    with pytest.raises(StudioError, match=r"The data set cannot be read: .*Check subset and split on its page"):
        list(read_hub(HubSet(str(tmp_path), split="nope"), Tally()))
