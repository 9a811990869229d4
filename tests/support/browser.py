"""A real browser, Chromium without a window, told over its DevTools socket what to open and what to look for."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from itertools import count
from typing import Any, Self

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

COMMAND = (
    "chromium",
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)

PATIENCE = 60.0
"""Seconds after which a browser is killed, so that its test fails instead of hanging."""

with_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="no chromium here: apt-get install chromium"
)


class Browser:
    """Chromium, with a directory of its own that nobody has used before. Leaving the ``with`` kills it."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [*COMMAND, f"--user-data-dir={self._folder.name}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._watchdog = threading.Timer(PATIENCE, self._kill)
        self._watchdog.start()
        try:
            self._devtools = self._where_it_listens()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._watchdog.cancel()
        self._kill()
        self._process.communicate()
        self._folder.cleanup()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGKILL)

    def _where_it_listens(self) -> str:
        said = ""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            said += line
            if found := re.match("DevTools listening on (ws://[^/]+)/(.*)", line):
                self._target = f"{found[1]}/{found[2]}"
                return found[1]
        raise AssertionError(said)

    async def open(self, url: str) -> "Page":
        """A tab with this page, which has been loaded."""
        browser = Page(await websocket_connect(self._target))
        target = (await browser.call("Target.createTarget", url=url))["targetId"]
        await browser.close()
        page = Page(await websocket_connect(f"{self._devtools}/devtools/page/{target}"))
        while await page.value("`${location.href} ${document.readyState}`") != f"{url} complete":
            pass
        return page


class Page:
    """What one can do with a tab."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self._numbers = count(1)

    async def close(self) -> None:
        """Let go of it; it stays open."""
        self._socket.close()
        while await self._socket.read_message() is not None:
            pass

    async def call(self, method: str, **parameters: Any) -> Any:
        """The result of a method of the DevTools protocol."""
        number = next(self._numbers)
        await self._socket.write_message(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = await self._socket.read_message()
            assert message is not None, "the browser has gone"
            answer = json.loads(message)
            if answer.get("id") == number:
                return answer["result"]

    async def value(self, expression: str) -> Any:
        """The value of a JavaScript expression; if it is a promise, what it promises."""
        result = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def wait_until(self, condition: str) -> None:
        """Return once a JavaScript expression is true."""
        await self.value(
            f"new Promise(done => {{ const look = () => ({condition}) ? done() : setTimeout(look, 20); look(); }})"
        )
