"""A headless Chromium for tests, over its debugging pipe: no driver, no further package."""

from __future__ import annotations

import base64
import json
import os
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """One page. A context manager."""

    def __init__(self, profile: Path, width: int = 1000, height: int = 820) -> None:
        assert CHROMIUM
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        command = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--mute-audio",
            "--no-first-run", "--disable-dev-shm-usage", "--remote-debugging-pipe",
            "--autoplay-policy=no-user-gesture-required", f"--user-data-dir={profile}",
            f"--window-size={width},{height}", "about:blank",
        ]  # fmt: skip
        shell = f"exec {shlex.join(command)} 3<&{to_read} 4>&{to_write}"
        self._process = subprocess.Popen(
            ["bash", "-c", shell],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._number = 0
        self._rest = b""
        target = self._ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = ""
        session = self._ask("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = session["sessionId"]
        self._ask("Page.enable", {})

    _session = ""

    def go(self, url: str) -> None:
        """Open a page."""
        self._ask("Page.navigate", {"url": url})

    def run(self, script: str) -> Any:
        """The value of an expression; promises are waited for."""
        result = self._ask(
            "Runtime.evaluate",
            {
                "expression": script,
                "awaitPromise": True,
                "returnByValue": True,
                "userGesture": True,
            },
        )
        if "exceptionDetails" in result:
            raise AssertionError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait_for(self, script: str, seconds: float = 60) -> Any:
        """The value of an expression once it is true."""
        deadline = time.monotonic() + seconds
        while True:
            value = self.run(script)
            if value:
                return value
            if time.monotonic() > deadline:
                raise AssertionError(f"not true after {seconds} s: {script}")
            time.sleep(0.1)

    def screenshot(self, path: Path) -> None:
        """Save what is seen as PNG."""
        data = self._ask("Page.captureScreenshot", {"format": "png"})["data"]
        path.write_bytes(base64.b64decode(data))

    def _ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 90
        while True:
            while b"\0" not in self._rest:
                if not select.select([self._read], [], [], 1.0)[0]:
                    assert time.monotonic() < deadline, f"Chromium does not answer {method}"
                    continue
                chunk = os.read(self._read, 1 << 20)
                assert chunk, "Chromium ended"
                self._rest += chunk
            text, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(text)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._session = ""
            self._ask("Browser.close", {})
        except (AssertionError, OSError):
            self._process.kill()
        self._process.wait(20)
        os.close(self._read)
        os.close(self._write)
