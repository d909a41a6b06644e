"""The open studio as anything on this machine can reach it."""

import os
import subprocess
import sys

import httpx
import pytest
from gradio_client import Client

FOREIGN = [{"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}]


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda headers: next(iter(headers)))
@pytest.mark.parametrize("path", ["", "config", "gradio_api/info"])
def test_foreign_requests_are_refused(server, headers, path):
    assert httpx.get(server.url + path, headers=headers).status_code == 403


@pytest.mark.parametrize("headers", FOREIGN, ids=lambda headers: next(iter(headers)))
def test_a_foreign_page_cannot_fill_the_disk(server, headers):
    files = {"files": ("a.json", b"[]")}
    assert httpx.post(server.url + "gradio_api/upload", files=files, headers=headers).status_code == 403


def test_every_answer_forbids_frames_and_the_outside(server):
    for path in ("", "config", "nowhere", "gradio_api/info"):
        headers = httpx.get(server.url + path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy and "connect-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert "http" not in policy
        assert headers["x-frame-options"] == "DENY" and headers["x-content-type-options"] == "nosniff"


def test_no_endpoint_has_a_name(server):
    assert Client(server.url, verbose=False).view_api(return_format="dict", print_info=False)["named_endpoints"] == {}


@pytest.mark.parametrize(
    "path", ["docs", "redoc", "openapi.json", "monitoring", "monitoring/summary", "gradio_api/runs"]
)
def test_what_is_not_needed_is_closed(server, path):
    assert httpx.get(server.url + path).status_code in (403, 404)


def test_no_file_of_the_disk_can_be_read(server):
    secret = server.home / "cache" / "page.json"
    assert secret.exists()
    for path in ("/etc/passwd", str(secret), "..%2f..%2fetc%2fpasswd", "/proc/self/environ"):
        assert httpx.get(f"{server.url}gradio_api/file={path}").status_code in (403, 404)


def test_a_second_start_points_to_the_first(server):
    environment = {**os.environ, "QLORA_STUDIO_HOME": str(server.home)}
    command = [sys.executable, "-m", "qlora_studio.ui", "--no-open"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == f"QLoRA Studio is open already at {server.url}" and done.returncode == 0
