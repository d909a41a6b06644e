"""Who may talk to the page: this machine's own browser, and no page of anybody else's that it has open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

NEAR = frozenset({"127.0.0.1", "localhost", "[::1]"})
CONTENT = "; ".join(
    (
        # Gradio's own pages need inline scripts and `eval` for HTML components; what matters is that nothing leaves
        "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:",
        "connect-src 'self'",
        "img-src 'self' data: blob:",
        "object-src 'none'",
        "frame-ancestors 'none'",
        "form-action 'self'",
        "base-uri 'self'",
    )
)
HEADERS = (
    (b"content-security-policy", CONTENT.encode()),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


class Guard:
    """ASGI middleware: refuses foreign hosts and origins, and forbids every page to load or send anything elsewhere."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if refusal := find_refusal(str(scope.get("method", "GET")), headers):
            await _refuse(scope, receive, send, refusal)
            return

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self.app(scope, receive, send_guarded)


def find_refusal(method: str, headers: MutableMapping[str, str]) -> str:
    """Why a request is refused; empty where it is welcome. Header names are in lower case."""
    host = headers.get("host", "")
    if host.rsplit(":", 1)[0] not in NEAR and host not in NEAR:
        return "The studio answers this machine only."
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return "This request comes from another page."
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        opens_page = method == "GET" and headers.get("sec-fetch-mode") == "navigate"
        if not opens_page or headers.get("sec-fetch-dest") != "document":
            return "This request comes from another page."
    return ""


async def _refuse(scope: Scope, receive: Receive, send: Send, reason: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    body = reason.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode()), *HEADERS]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
