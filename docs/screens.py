"""Screenshots for the site, into docs/pictures: `python -m docs.screens` from the repository's root.

A real JupyterLab in a headless Chromium runs the tour; the pages of the demos are opened as a reader would.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2

from tests.helpers.devtools import BOOK, COMMAND, a_jupyterlab, a_page, run_notebook

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "pictures"
SHOWN = {  # picture → what its cell of the tour holds
    "scrubber": "frame_scrubber(",
    "zones": "draw_zones(frame",
    "threshold": "threshold_explorer(belt",
}


def keep(path: Path, name: str, width: int = 1100) -> None:
    "A screenshot as a JPEG of a width."
    image = cv2.imread(str(path))
    height = round(image.shape[0] * width / image.shape[1])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    OUT.mkdir(exist_ok=True)
    cv2.imwrite(str(OUT / f"{name}.jpg"), small, [cv2.IMWRITE_JPEG_QUALITY, 82])


def tour(folder: Path) -> None:
    "The film, the zones and the thresholds of the tour."
    shutil.copy(ROOT / "nbs" / "tour.ipynb", folder)
    cells = f"{BOOK}.content.widgets"
    with a_jupyterlab(folder, folder) as address, a_page(folder, (1200, 1000)) as page:
        run_notebook(page, address, "tour.ipynb")
        page.evaluate(f"{COMMAND}('application:toggle-left-area') && true")
        page.until(f"{cells}.every((c) => c.model.type !== 'code' || c.model.executionCount)", 240)
        page.evaluate(
            "[...document.querySelectorAll('button')].find((b) => b.innerText === 'No')?.click() || true"
        )
        for name, word in SHOWN.items():
            cell = f"{cells}.find((c) => c.model.sharedModel.source.includes({word!r}))"
            page.evaluate(f"{cell}.outputArea.node.scrollIntoView({{block: 'end'}}) || true")
            page.evaluate("new Promise((done) => setTimeout(() => done(true), 3000))")
            keep(page.picture(folder / f"{name}.png"), f"tour_{name}")


def pages(folder: Path) -> None:
    "The checklist of the demo project, and the example of an evaluation."
    program = [sys.executable, "-c", "from cv_pipeline.commands.main import main; main()"]
    ready = folder / "ready.html"
    words = ["checklist", str(folder / "project"), "--demo", "--html", str(ready)]
    subprocess.run([*program, *words], check=False, capture_output=True, timeout=600)
    shown = {"checklist": ready, "evaluation": ROOT / "reports" / "example-evaluation" / "report.html"}
    with a_page(folder, (1200, 1100)) as page:
        for name, path in shown.items():
            page.open(path.as_uri())
            page.evaluate("new Promise((done) => setTimeout(() => done(true), 2000))")
            keep(page.picture(folder / f"{name}.png"), name, 1000)


if __name__ == "__main__":
    for make in (tour, pages) if not sys.argv[1:] else (globals()[w] for w in sys.argv[1:]):
        with tempfile.TemporaryDirectory() as place:
            make(Path(place))
