"Headless Chromium: what a page becomes in a browser, and how it looks."

import shutil
import subprocess
from pathlib import Path

from tests.helpers.services import absent

DESKTOP, PHONE = (1400, 900), (500, 1000)  # Chromium's headless window has 500 pixels at least


def chromium(
    folder: Path, url: str, *arguments: str, size: tuple[int, int] = DESKTOP, wait_ms: int = 4000
) -> str:
    "What headless Chromium prints for a page."
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        absent("no Chromium on this machine")
    flags = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={size[0]},{size[1]}",
        f"--timeout={wait_ms}",
    ]
    done = subprocess.run([program, *flags, *arguments, url], capture_output=True, text=True, timeout=120)
    return done.stdout


def page_of(folder: Path, url: str, **how: object) -> str:
    "The page as a browser has made it, scripts and all."
    return chromium(folder, url, "--dump-dom", **how)


def picture_of(folder: Path, url: str, size: tuple[int, int] = DESKTOP, wait_ms: int = 4000) -> Path:
    "A screenshot."
    path = folder / f"page-{size[0]}.png"
    chromium(folder, url, f"--screenshot={path}", size=size, wait_ms=wait_ms)
    return path
