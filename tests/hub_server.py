"""A small hub on this machine: it answers like the real one for a handful of models, and notes who asks."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LARGE = (".gguf", ".safetensors")
SHA = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubModel:
    """A model as the hub keeps it."""

    files: dict[str, bytes]
    licence: str = "apache-2.0"
    private: bool = False
    """Only a token named `good` may see it."""


@dataclass
class Hub:
    """The models there are, the errors that are served instead, and every request that came."""

    models: dict[str, HubModel]
    errors: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By model: status and `X-Error-Code`."""
    messages: list[str] = field(default_factory=list)
    """Of uploads."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Large files that were put, by hash, until they are committed."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path, Authorization header."""
    url: str = ""

    def count_requests(self, part: str) -> int:
        return sum(part in path for _, path, _ in self.requests)


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """The hub at work on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_POST(self) -> None:
            """What an upload asks, with a token that may write: `good`."""
            token = self.headers.get("Authorization", "")
            hub.requests.append((self.command, self.path, token))
            body = self._body()
            if token != "Bearer good":
                return self._send(403, b"{}", True)
            if self.path == "/api/repos/create":
                values = json.loads(body)
                name = f"{values.get('organization') or 'me'}/{values['name']}"
                there = name in hub.models
                if not there:
                    private = bool(values.get("private")) or values.get("visibility") == "private"
                    hub.models[name] = HubModel({}, private=private)
                answer = {"url": f"{hub.url}/{name}", "name": name, "id": name}
                return self._send(409 if there else 200, json.dumps(answer).encode(), True)
            if self.path == "/api/validate-yaml":
                return self._send(200, b'{"errors": [], "warnings": []}', True)
            if "/preupload/" in self.path:
                paths = [one["path"] for one in json.loads(body)["files"]]
                modes = [{"path": one, "uploadMode": "lfs" if one.endswith(LARGE) else "regular"} for one in paths]
                files = [{**one, "shouldIgnore": False, "oid": None} for one in modes]
                return self._send(200, json.dumps({"files": files}).encode(), True)
            if self.path.endswith("/info/lfs/objects/batch"):
                places = [
                    {**one, "actions": {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}}
                    for one in json.loads(body)["objects"]
                ]
                return self._send(200, json.dumps({"transfer": "basic", "objects": places}).encode(), True)
            if "/commit/" in self.path:
                name = "/".join(self.path.split("/")[3:5])
                self._commit(hub.models[name], body)
                values = {"commitUrl": f"{hub.url}/{name}/commit/{SHA}", "commitOid": SHA, "success": True}
                return self._send(200, json.dumps(values).encode(), True)
            return self._send(404, b"{}", True)

        def do_PUT(self) -> None:
            hub.requests.append((self.command, self.path, self.headers.get("Authorization", "")))
            content = self._body()
            hub.blobs[hashlib.sha256(content).hexdigest()] = content
            self._send(200, b"", True)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _commit(self, model: HubModel, body: bytes) -> None:
            for line in body.decode().splitlines():
                one = json.loads(line)
                value = one["value"]
                if one["key"] == "header":
                    hub.messages.append(value["summary"])
                elif one["key"] == "file":
                    model.files[value["path"]] = base64.b64decode(value["content"])
                elif one["key"] == "lfsFile":
                    model.files[value["path"]] = hub.blobs.pop(value["oid"])

        def _answer(self, *, with_body: bool) -> None:
            token = self.headers.get("Authorization", "")
            hub.requests.append((self.command, self.path, token))
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts == [""]:
                return self._send(200, b"{}", with_body)
            api = parts[0] == "api"
            name = "/".join(parts[2:4] if api else parts[:2])
            model = hub.models.get(name)
            status, code = hub.errors.get(name, (200, ""))
            if status == 200 and (model is None or (model.private and token != "Bearer good")):
                status, code = (404, "RepoNotFound")
            if status != 200 or model is None:
                return self._send(status, b"{}", with_body, {"X-Error-Code": code})
            if api and parts[4:5] == ["tree"]:
                tree = [
                    {"type": "file", "path": file, "size": len(content), "oid": "0" * 40}
                    for file, content in model.files.items()
                ]
                return self._send(200, json.dumps(tree).encode(), with_body)
            if api:
                siblings = [{"rfilename": file, "size": len(content)} for file, content in model.files.items()]
                record = {"id": name, "sha": SHA, "siblings": siblings, "private": model.private}
                record["cardData"] = {"license": model.licence}
                return self._send(200, json.dumps(record).encode(), with_body)
            content = model.files.get("/".join(parts[4:]))
            if content is None:
                return self._send(404, b"", with_body, {"X-Error-Code": "EntryNotFound"})
            etag = hashlib.sha1(content).hexdigest()
            return self._send(200, content, with_body, {"ETag": f'"{etag}"', "X-Repo-Commit": SHA})

        def _send(self, status: int, body: bytes, with_body: bool, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
