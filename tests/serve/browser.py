"""A real browser, spoken to over two pipes by its DevTools protocol: no driver is needed."""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
LIMIT = 60.0


class Browser:
    """A headless Chromium with one page.

    folder: for its profile.
    """

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM is not None
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()

        def place() -> None:  # it reads from 3 and writes to 4
            one, two = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(one, 3)
            os.dup2(two, 4)

        words = [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]
        words += ["--disable-background-networking", "--disable-sync", "--no-proxy-server", "--window-size=1000,800"]
        self._process = subprocess.Popen(
            [*words, "--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"],
            preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._in, self._out, self._held, self._number = ours_in, ours_out, b"", 0
        self.said: list[str] = []
        """What went wrong in the page, and what the browser refused it."""
        targets = self._call("Target.getTargets")["targetInfos"]
        (page,) = [each["targetId"] for each in targets if each["type"] == "page"]
        self._session: str | None = None
        self._session = self._call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **given: Any) -> Any:
        self._number += 1
        session = {"sessionId": self._session} if getattr(self, "_session", None) else {}
        message = {"id": self._number, "method": method, "params": given, **session}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + LIMIT
        while True:
            while b"\0" not in self._held:
                assert select.select([self._in], [], [], max(0.0, until - time.monotonic()))[0], (
                    f"no answer to {method}"
                )
                self._held += os.read(self._in, 1 << 20)
            line, _, self._held = self._held.partition(b"\0")
            found = json.loads(line)
            if found.get("id") == self._number:
                assert "error" not in found, found["error"]
                return found["result"]
            wrong = found.get("method") == "Runtime.exceptionThrown"
            if wrong or found.get("params", {}).get("entry", {}).get("level") == "error":
                self.said.append(json.dumps(found["params"])[:500])

    def go(self, address: str) -> None:
        """Open a page."""
        self._call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of an expression in the page; of a promise, what it comes to."""
        found = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str) -> Any:
        """Until an expression is true. Returns it."""
        return self.run(
            f"new Promise((done, fail) => {{ const until = Date.now() + {LIMIT * 1000}; const look = () => {{"
            f"const found = ({script}); if (found) done(found); else if (Date.now() < until) setTimeout(look, 20);"
            "else fail(Error(document.body.innerText)); }; look(); })"
        )

    def picture(self) -> bytes:
        """The page as a PNG."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """End it."""
        os.close(self._out)
        self._process.terminate()
        self._process.wait(30)
        os.close(self._in)
