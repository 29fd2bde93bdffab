"""What is refused before any page is made: other hosts' names, other sites, paths outside."""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger(__name__)

_LONGEST_PATH = 2048
_HEADERS = (
    (b"content-security-policy",
     b"default-src 'self'; img-src 'self' data:; media-src 'self' blob:; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"x-content-type-options", b"nosniff"),
)  # fmt: skip


class Guard:
    """Refuses requests that no page of this server makes, and answers errors in a sentence.

    A page elsewhere may let its own host name point to this machine (DNS rebinding) and would then
    read what is served here: its requests carry that name, and are refused.

    Args:
        hosts: addresses and names that the server is reached by. "localhost" and this machine's
            loopback addresses are always among them. Where one of them is an address that others
            can reach, requests by any IP address are answered: rebinding needs a name.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self._app = app
        self._names = {host.lower().rstrip(".") for host in hosts}
        addresses = [_address(name) for name in self._names]
        self._any_address = any(each and not each.is_loopback for each in addresses)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        # File names need not be UTF-8: their bytes are kept as Python's file functions keep them.
        raw = scope.get("raw_path") or scope["path"].encode()
        scope["path"] = unquote(raw.decode("latin-1"), errors="surrogateescape")
        begun = False

        async def send_with_headers(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            logger.warning("request %s failed: %s: %s", scope["path"], type(error).__name__, error)
            if not begun:
                answer = sentence(500, f"the server failed: {type(error).__name__}")
                await answer(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if not self.is_own(host):
            return sentence(403, "this server does not answer to that host name; see --allow-host")
        navigates = headers.get(b"sec-fetch-mode") == b"navigate"
        if headers.get(b"sec-fetch-site") == b"cross-site" and not navigates:
            return sentence(403, "requests by pages of other sites are refused")
        if len(scope["path"]) > _LONGEST_PATH:
            return sentence(414, "the address is too long")
        if ".." in scope["path"].replace("\\", "/").split("/"):
            return sentence(403, "paths outside the folder are refused")
        return None

    def is_own(self, host: str) -> bool:
        """Whether a Host header names this server."""
        name = _without_port(host).lower().rstrip(".")
        if name == "localhost" or name in self._names:
            return True
        address = _address(name)
        return address is not None and (address.is_loopback or self._any_address)


def sentence(status: int, text: str) -> Response:
    """An answer of one line."""
    shown = text.encode("utf-8", "replace").decode()
    return PlainTextResponse(f"{shown}\n", status_code=status)


def _without_port(host: str) -> str:
    if host.startswith("["):
        name, bracket, _ = host[1:].partition("]")
        return name if bracket else ""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
