"""Drive headless Chromium over the DevTools protocol, with the standard library only; shared by scripts and tests."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell", "chrome-headless-shell")
SIZES = {"wide": (1280, 900), "phone": (360, 740)}
_SECONDS = 60.0

# Checks of the page's structure; returns a list of problems.
STRUCTURE = """(() => {
  const wrong = [], all = (selector) => [...document.querySelectorAll(selector)];
  if (all('h1').length !== 1) wrong.push(`${all('h1').length} h1`);
  let level = 0;
  for (const heading of all('h1,h2,h3,h4,h5,h6')) {
    const own = Number(heading.tagName[1]);
    if (own > level + 1) wrong.push(`heading out of order: ${heading.tagName} ${heading.textContent.slice(0, 40)}`);
    level = own;
  }
  for (const name of ['header', 'nav', 'main', 'footer']) {
    if (all(`body > ${name}`).length !== 1) wrong.push(`no landmark ${name}`);
  }
  for (const image of all('img')) {
    if (image.closest('dialog:not([open])')) continue;
    if (!image.alt || !image.complete || !image.naturalWidth) wrong.push(`image: ${image.alt || 'without alt'}`);
  }
  for (const table of all('table')) if (!table.caption) wrong.push('table without caption');
  for (const cell of all('th')) if (!cell.scope) wrong.push('th without scope');
  for (const input of all('input')) {
    if (!input.labels.length && !input.ariaLabel) wrong.push(`input without label: ${input.id}`);
  }
  for (const button of all('button')) if (!button.textContent.trim() && !button.ariaLabel) wrong.push('button without text');
  const ids = all('[id]').map((each) => each.id);
  if (new Set(ids).size !== ids.length) wrong.push('an id occurs twice');
  return wrong;
})()"""
# innerWidth cannot be used, because on a phone it grows with content that does not fit.
WIDTH = """((width) => {
  const found = document.scrollingElement.scrollWidth;
  return found > width ? [`the page scrolls sideways: it is ${found} px wide`] : [];
})(%d)"""
# WCAG 2 contrast of every visible text against the nearest opaque background.
CONTRAST = """(() => {
  for (const each of document.querySelectorAll('details')) each.open = true;
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const wrong = new Map(), walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || /^(script|style|title)$/i.test(element.tagName) || !element.getClientRects().length) continue;
    let back = element, colour = null;
    while (back && !colour) {
      const [r, g, b, a = 1] = parse(getComputedStyle(back).backgroundColor);
      if (a === 1 && r !== undefined) colour = [r, g, b];
      back = back.parentElement;
    }
    const style = getComputedStyle(element), ink = parse(element.namespaceURI.includes('svg') ? style.fill : style.color);
    const [high, low] = [luminance(ink), luminance(colour || [255, 255, 255])].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    const name = element.className.baseVal ?? element.className;
    if (ratio < 4.5) wrong.set(`contrast ${ratio.toFixed(2)} of "${text.slice(0, 30)}" (${name})`, 1);
  }
  return [...wrong.keys()].slice(0, 10);
})()"""


class Browser:
    """Chromium with one page, controlled over a pair of pipes (``--remote-debugging-pipe``).

    Args:
        program: Path of Chromium.
        profile: Empty directory for the browser's profile.
    """

    def __init__(self, program: str, profile: str) -> None:
        (theirs_in, self._out), (self._in, theirs_out) = os.pipe(), os.pipe()

        def connect() -> None:
            # Chromium reads from descriptor 3 and writes to 4. High numbers are used in between, because 3 and 4 may be in use.
            os.dup2(theirs_in, 63)
            os.dup2(theirs_out, 64)
            os.dup2(63, 3)
            os.dup2(64, 4)

        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--no-first-run",
            "--remote-debugging-pipe",
        ]
        self._process = subprocess.Popen(
            [program, *flags, f"--user-data-dir={profile}", "about:blank"], preexec_fn=connect, close_fds=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._buffer, self._session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer.get("result", {})
            self.events.append(answer)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"]["exception"].get("description", "an expression failed"))
        return result["result"].get("value")

    def open(self, address: str, *, width: int, height: int, dark: bool = False, scripts: bool = True) -> None:
        """Load a page at the given size, and wait until it is rendered."""
        self.events.clear()
        self.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        )
        self.call("Page.navigate", url=address)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        self.events += self._waiting(0.4)  # charts are drawn after their sizes are known

    def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        down = {"type": "keyDown" if text else "rawKeyDown", "key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", **down, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)
        self.events += self._waiting(0.1)

    def type(self, text: str) -> None:
        """Insert text into the focused field."""
        self.call("Input.insertText", text=text)

    def screenshot(self, path: Path, *, top: int = 0) -> None:
        """Save a screenshot of the visible part of the page, which begins ``top`` pixels below its start."""
        self.evaluate(f"document.documentElement.style.scrollBehavior = 'auto', scrollTo(0, {top})")
        self._waiting(0.3)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self, own: str = "data:") -> list[str]:
        """Return the errors and requests since the page was opened.

        Args:
            own: Beginning of the addresses that may be requested.
        """
        found = []
        for event in self.events:
            method, given = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                details = given["exceptionDetails"]
                found.append(f"exception: {details.get('exception', {}).get('description', details['text'])}")
            elif method == "Log.entryAdded" and given["entry"]["level"] in ("error", "warning"):
                found.append(f"{given['entry']['level']}: {given['entry']['text']}")
            elif method == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning", "assert"):
                found.append(f"console: {given['args']}")
            elif method == "Network.requestWillBeSent":
                url = given["request"]["url"]
                if not url.startswith(("data:", own)) and given.get("type") != "Document":
                    found.append(f"request: {url[:200]}")
        return found

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _receive(self) -> dict[str, Any]:
        end = time.monotonic() + _SECONDS
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                raise RuntimeError("the browser does not answer")
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("the browser has ended")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)

    def _waiting(self, seconds: float) -> list[dict[str, Any]]:
        """Return the events that arrive within this number of seconds."""
        found, end = [], time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if b"\0" in self._buffer or select.select([self._in], [], [], left)[0]:
                found.append(self._receive())
        return found


def find_chromium() -> str | None:
    """Return the path of the browser; None if there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)
