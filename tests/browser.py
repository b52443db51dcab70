"""Headless Chromium through the DevTools protocol over a pipe: no driver, network or port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

FLAGS = (
    "--headless --no-sandbox --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-extensions --mute-audio "
    # WebGL without a graphics card; in one process, for a second one never answered in some runs.
    "--hide-scrollbars --enable-unsafe-swiftshader --use-angle=swiftshader --in-process-gpu"
)


def chromium() -> str | None:
    """Where the browser is, None where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        found = shutil.which(name)
        if found:
            return found
    return None


class Browser:
    """One page of a headless browser.

    Everything that the page asks for is in `requests` (their addresses), what it complains about
    in `complaints`.
    """

    def __init__(self, profile: Path, *, width: int = 1280, height: int = 800, scale: float = 1.0):
        program = chromium()
        assert program is not None
        here_in, self._to = os.pipe()
        self._from, here_out = os.pipe()

        def channels() -> None:
            # DevTools reads its commands from descriptor 3 and answers on 4.
            a, b = os.dup(here_in), os.dup(here_out)
            os.dup2(a, 3)
            os.dup2(b, 4)

        self._process = subprocess.Popen(
            [program, *FLAGS.split(), "--remote-debugging-pipe", f"--user-data-dir={profile}"],
            preexec_fn=channels,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(here_in)
        os.close(here_out)
        self._buffer = b""
        self._next = 0
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.resize(width, height, scale)

    def resize(self, width: int, height: int, scale: float = 1.0, *, mobile: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=mobile,
        )

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        os.close(self._to)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    # -- the protocol
    def call(self, method: str, *, limit_s: float = 120.0, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        self._next += 1
        message: dict[str, Any] = {"id": self._next, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + limit_s
        while True:
            answer = self._read(end - time.monotonic())
            if answer.get("id") == self._next:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _read(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._from], [], [], max(seconds, 0.0))[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._from, 1 << 20)
            if not part:
                raise RuntimeError("the browser went away")
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        decoded: dict[str, Any] = json.loads(message)
        return decoded

    def _note(self, event: dict[str, Any]) -> None:
        method, of = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(of["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            details = of["exceptionDetails"]
            self.complaints.append(
                details.get("exception", {}).get("description", details.get("text", "?"))
            )
        elif method == "Log.entryAdded" and of["entry"]["level"] == "error":
            self.complaints.append(of["entry"]["text"])

    # -- what a person does
    def open(self, page: Path | str) -> None:
        """Go to a file or an address."""
        address = page if isinstance(page, str) else page.absolute().as_uri()
        self.call("Page.navigate", url=address)

    def ask(self, expression: str, *, limit_s: float = 120.0) -> Any:
        """Value of a JavaScript expression; promises are waited for."""
        answer = self.call(
            "Runtime.evaluate",
            limit_s=limit_s,
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def wait(self, expression: str, *, limit_s: float = 120.0) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + limit_s
        while not self.ask(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"never true: {expression}; complaints: {self.complaints}")
            time.sleep(0.1)

    def click(self, x: float, y: float) -> None:
        """Press and release the left button where a person would."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        time.sleep(0.2)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path: Path | None = None, *, whole: bool = False) -> bytes:
        """PNG of what is seen (`whole`: of the page down to its end)."""
        png = base64.b64decode(
            self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        )
        if path is not None:
            path.write_bytes(png)
        return png
