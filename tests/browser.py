"""Headless Chromium driven over a pipe (--remote-debugging-pipe): no port, no driver, nothing but Debian's package."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE_S = 60


def program() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Browser:
    """One page. `requests` are the addresses that it asked for, `errors` what its program reported."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_child, self.write = os.pipe()
        self.read, from_child = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        flags += ["--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={self.folder.name}"]
        flags += ["--disable-background-networking", "--disable-component-update", "about:blank"]

        def pipes():  # the browser reads file 3 and writes file 4
            low, high = os.dup(to_child), os.dup(from_child)
            low, high = (os.dup(low) if low in (3, 4) else low), (os.dup(high) if high in (3, 4) else high)
            os.dup2(low, 3)
            os.dup2(high, 4)

        self.process = subprocess.Popen(
            [program(), *flags], preexec_fn=pipes, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_child)
        os.close(from_child)
        self.rest, self.number, self.session = b"", 0, None
        self.requests, self.errors, self.seen = [], [], []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        os.close(self.write)
        os.close(self.read)
        self.process.terminate()
        self.process.wait(10)
        self.folder.cleanup()

    def message(self) -> dict:
        while b"\0" not in self.rest:
            got = os.read(self.read, 1 << 16)
            if not got:
                raise RuntimeError("the browser ended")
            self.rest += got
        line, _, self.rest = self.rest.partition(b"\0")
        found = json.loads(line)
        self.note(found)
        return found

    def note(self, found: dict) -> None:
        name, told = found.get("method"), found.get("params", {})
        if name == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif name == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif name == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(told["entry"]["text"])
        if name:
            self.seen.append(name)

    def ask(self, method: str, **given) -> dict:
        self.number += 1
        call = {"id": self.number, "method": method, "params": given}
        call |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(call).encode() + b"\0")
        while True:
            found = self.message()
            if found.get("id") == self.number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]

    def run(self, code: str):
        """The value of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"].get("exception", {}).get("description"))
        return found["result"].get("value")

    def open(self, path: Path, width: int = 1300, height: int = 900, dark: bool = False) -> float:
        """Open a page file; the seconds until its program is done and its first frame is painted."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.ask("Emulation.setEmulatedMedia", features=scheme)
        self.requests.clear()
        self.errors.clear()
        started = time.perf_counter()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        until = started + PATIENCE_S
        while time.perf_counter() < until:
            if self.run("document.documentElement?.dataset.ready") == "1":
                self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
                return time.perf_counter() - started
        raise RuntimeError(f"the page was not ready within {PATIENCE_S} s: {self.errors}")

    def cpu_s(self) -> float:
        """Processor seconds that the browser's processes have used."""
        found, mine = {}, {self.process.pid}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            found[int(path.parent.name)] = (
                int(fields[1]),
                (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
            )
        while grown := {pid for pid, (parent, _) in found.items() if parent in mine} - mine:
            mine |= grown
        return sum(found[pid][1] for pid in mine if pid in found)

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def texts(self, selector: str) -> list[str]:
        """Texts of the elements that are not hidden."""
        shown = f"[...document.querySelectorAll({json.dumps(selector)})].filter((e) => e.offsetParent !== null)"
        return self.run(f"{shown}.map((e) => e.textContent)")

    def screenshot(self, path: Path, whole: bool = False) -> None:
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))
