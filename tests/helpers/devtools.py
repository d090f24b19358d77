"""A headless Chromium that is driven over its DevTools protocol, and a JupyterLab for it to open.

No test framework of browsers: a websocket, and four calls of the protocol. Every wait has a limit.
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers.services import absent, free_port, require
from tests.helpers.waiting import until


class Page:
    "A tab of the browser."

    def __init__(self, address: str):
        websocket = require("websocket", "websocket-client is not installed")
        self._socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self._numbers = itertools.count(1)

    def call(self, method: str, **values: object) -> dict:
        "A call of the protocol and its result; AssertionError for an error."
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": values}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def evaluate(self, code: str) -> object:
        "The value of a JavaScript expression; a promise is awaited."
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, code: str, seconds: float = 60.0) -> object:
        "Wait until an expression is true; its value."
        kept: list[object] = []
        until(lambda: kept.append(self.evaluate(code)) or kept[-1], seconds)
        return kept[-1]

    def open(self, url: str) -> None:
        self.call("Page.enable")
        self.call("Page.navigate", url=url)

    def press(self, key: str, text: str = "") -> None:
        "A key, as a keyboard sends it."
        down = {"key": key, **({"text": text} if text else {})}
        self.call("Input.dispatchKeyEvent", type="keyDown", **down)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def mouse(self, kind: str, x: float, y: float) -> None:
        "mousePressed, mouseMoved or mouseReleased at a place of the window."
        pressed = 0 if kind == "mouseReleased" else 1
        self.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=pressed, clickCount=1
        )

    def click(self, x: float, y: float) -> None:
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def picture(self, path: Path) -> Path:
        "A screenshot."
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path

    def close(self) -> None:
        self._socket.close()


@contextmanager
def a_page(folder: Path, size: tuple[int, int] = (1300, 1000)) -> Iterator[Page]:
    "A tab of a Chromium of its own, which is ended afterwards; skips where there is none."
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        absent("no Chromium on this machine")
    profile = folder / "profile"
    flags = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
        *("--remote-debugging-port=0", f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"),
    ]
    with subprocess.Popen(
        [program, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as browser:
        try:
            told = profile / "DevToolsActivePort"
            until(lambda: told.is_file() and len(told.read_text().split("\n")) > 1, 60, browser)
            port = told.read_text().split("\n")[0]
            tabs = _json(f"http://127.0.0.1:{port}/json/list")
            page = Page(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))
            yield page
            page.close()
        finally:
            browser.kill()


def _json(url: str) -> list[dict]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


@contextmanager
def a_jupyterlab(folder: Path, books: Path, *more: str) -> Iterator[str]:
    "The address of a JupyterLab with a home of its own; skips where it is not installed."
    require("jupyterlab")
    port, home = free_port(), folder / "home"
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTER_DATA_DIR": "data"}
    places |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    env = {
        **os.environ,
        **{name: str(home / place) for name, place in places.items()},
        "JUPYTER_PLATFORM_DIRS": "0",
    }
    words = [
        *(
            "-m",
            "jupyter",
            "lab",
            "--no-browser",
            "--ip=127.0.0.1",
            f"--port={port}",
            "--ServerApp.port_retries=0",
        ),
        *("--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", "--expose-app-in-browser"),
        *("--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"),
        *(["--allow-root"] if os.getuid() == 0 else []),
        f"--ServerApp.root_dir={books}",
        *more,
    ]
    with (
        open(folder / "lab.log", "wb") as log,
        subprocess.Popen(
            [sys.executable, *words], env=env, stdout=log, stderr=log, start_new_session=True
        ) as server,
    ):
        try:
            address = f"http://127.0.0.1:{port}"
            until(lambda: _answers(f"{address}/api"), 90, server)
            yield address
        finally:
            server.terminate()
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, 9)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=10):
            return True
    except OSError:
        return False


BOOK = "[...window.jupyterapp.shell.widgets('main')].find((w) => w.context && w.content?.widgets)"
COMMAND = "window.jupyterapp.commands.execute"


def run_notebook(page: Page, address: str, name: str, theme: str = "JupyterLab Light") -> None:
    "Open a notebook, choose a theme, run all its cells."
    page.call("Emulation.setFocusEmulationEnabled", enabled=True)
    page.open(f"{address}/lab/tree/{name}")
    page.until("!!(window.jupyterapp && document.querySelector('.jp-Notebook'))", 90)
    page.until(f"!!{BOOK}?.context.isReady")
    page.evaluate(f"{COMMAND}('apputils:change-theme', {{theme: '{theme}'}}).then(() => true)")
    page.until(f"{BOOK}.sessionContext.session?.kernel?.status === 'idle'", 90)
    page.evaluate(f"window.jupyterapp.shell.activateById({BOOK}.id)")
    page.until("!!window.jupyterapp.shell.currentWidget")
    page.evaluate(f"{COMMAND}('notebook:run-all-cells') && true")
