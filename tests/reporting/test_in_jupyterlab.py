"""A real JupyterLab in a real browser: a slider is moved and the picture changes, a zone is drawn with the
mouse and stands in the file."""

from pathlib import Path

import pytest

from cv_pipeline.tracking.conditions import read_events_config
from tests.helpers.devtools import a_jupyterlab, a_page, run_notebook
from tests.helpers.services import require
from tests.helpers.waiting import until

pytestmark = pytest.mark.service
nbformat = require("nbformat")
require("ipywidgets")
require("anywidget")

CELLS = (
    """
import numpy as np
from pathlib import Path
from cv_pipeline.evaluation.records import EvalSet, box_table
from cv_pipeline.reporting.draw_zones import draw_zones
from cv_pipeline.reporting.thresholds import threshold_explorer

rng, n = np.random.default_rng(5), 20
image, corners = np.repeat(np.arange(n), 2), rng.uniform(0, 200, (2 * n, 2))
square = np.concatenate([corners, corners + 50], axis=1)
names, images = ("<img src=x onerror=document.title=1>", "bolt"), tuple(f"{i}.jpg" for i in range(n))
said = box_table(image, square + 2, np.tile([0, 1], n), rng.uniform(0.05, 0.99, 2 * n))
labelled = EvalSet(names, images, np.full((n, 2), 300), box_table(image, square, np.tile([0, 1], n)), said)
x = threshold_explorer(labelled, picture=lambda i: np.full((300, 300, 3), 9 * i, np.uint8))
x
""",
    'editor = draw_zones(np.full((300, 400, 3), 90, np.uint8), Path("belt.yaml"), bare=True)\neditor',
)
IMAGE = "document.querySelector('.widget-image, .jupyter-widgets img')"
SLIDER = "document.querySelector('.noUi-handle')"


def box_of(page, element):
    "x, y, width and height of an element in the window."
    code = f"(({{ x, y, width, height }}) => [x, y, width, height])({element}.getBoundingClientRect())"
    return page.evaluate(code)


def place_of(page, element):
    "The middle of an element in the window."
    x, y, width, height = box_of(page, element)
    return x + width / 2, y + height / 2


def on_stage(page, x, y):
    "A share of the frame as a place in the window."
    left, top, width, height = box_of(page, "document.querySelector('.cvz svg')")
    return left + x * width, top + y * height


def press_button(page, text):
    page.evaluate(
        f"[...document.querySelectorAll('.cvz button')].find((b) => b.textContent === '{text}').click()"
    )


def draw(page, kind, points):
    before = page.evaluate("document.querySelectorAll('.cvz-row').length")
    press_button(page, kind)
    for x, y in points:
        page.click(*on_stage(page, x, y))
    if kind in ("zone", "ignore"):
        page.press("Enter")
    page.until(f"document.querySelectorAll('.cvz-row').length > {before}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "A page with the notebook of above, run."
    folder = tmp_path_factory.mktemp("lab")
    books = folder / "books"
    books.mkdir()
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    cells = [nbformat.v4.new_code_cell(text.strip()) for text in CELLS]
    book = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
    nbformat.write(book, books / "walk.ipynb")
    with a_jupyterlab(folder, books) as address, a_page(folder, (1300, 2000)) as page:
        run_notebook(page, address, "walk.ipynb")
        page.until(f"!!{IMAGE}?.src && !!document.querySelector('.cvz svg')", 120)
        yield page, books


def test_moving_the_slider_changes_the_picture(lab):
    page, _ = lab
    before = page.evaluate(f"{IMAGE}.src")
    x, y = place_of(page, SLIDER)
    page.mouse("mousePressed", x, y)
    page.mouse("mouseMoved", x + 30, y)
    page.mouse("mouseMoved", x + 60, y)
    page.mouse("mouseReleased", x + 60, y)
    assert page.until(f"{IMAGE}.src !== {before!r}")


def test_a_hostile_name_of_a_class_runs_nothing(lab):
    page, _ = lab
    assert page.evaluate("document.title") != "1"


def test_a_zone_that_is_drawn_with_the_mouse_is_in_the_file(lab):
    page, books = lab
    page.evaluate("document.querySelector('.cvz').scrollIntoView()")
    draw(page, "zone", [(0.1, 0.1), (0.6, 0.1), (0.6, 0.7)])
    draw(page, "line", [(0.8, 0.9), (0.8, 0.1)])
    press_button(page, "save")
    page.until("document.querySelector('.cvz-report').textContent.startsWith('written')")
    config = read_events_config(books / "belt.yaml")
    assert [len(z.polygon) for z in config.zones] == [3]
    assert config.zones[0].polygon[1] == pytest.approx((0.6, 0.1), abs=0.01)
    assert config.lines[0].start == pytest.approx((0.8, 0.9), abs=0.01)


def test_what_is_wrong_stands_below_the_picture_until_it_is_undone(lab):
    page, books = lab
    kept = (books / "belt.yaml").read_text()
    draw(page, "zone", [(0.2, 0.2), (0.8, 0.8), (0.8, 0.2), (0.2, 0.8)])
    page.until("document.querySelector('.cvz-bad')?.textContent.includes('crosses itself')")
    press_button(page, "save")
    press_button(page, "undo")
    page.until("!document.querySelector('.cvz-bad')")
    assert (books / "belt.yaml").read_text() == kept


def test_a_polygon_is_drawn_with_keys_alone(lab):
    page, _ = lab
    before = page.evaluate("document.querySelectorAll('.cvz-row').length")
    page.evaluate("document.querySelector('.cvz').focus()")
    page.press("i", "i")
    for keys in (["ArrowRight"], ["ArrowDown"] * 3, ["ArrowLeft"] * 4):
        for key in keys:
            page.press(key)
        page.press(" ", " ")
    page.press("Enter")
    page.until(f"document.querySelectorAll('.cvz-row').length === {before + 1}")
    assert page.evaluate("document.querySelectorAll('.jp-Notebook .jp-Cell').length") == len(CELLS)


def test_pulling_a_corner_moves_it(lab):
    page, _ = lab
    handle = "document.querySelector('.cvz-handle')"
    x, y = place_of(page, handle)
    page.mouse("mousePressed", x, y)
    page.mouse("mouseMoved", x + 25, y + 10)
    page.mouse("mouseReleased", x + 25, y + 10)
    until(lambda: abs(place_of(page, handle)[0] - x - 25) < 10)


def test_nothing_is_loaded_from_elsewhere(lab):
    page, _ = lab
    names = "performance.getEntriesByType('resource').map((e) => e.name)"
    assert [n for n in page.evaluate(names) if not n.startswith(("http://127.0.0.1", "blob:", "data:"))] == []


def test_the_library_has_written_nothing_beside_the_file(lab):
    _, books = lab
    assert {p.name for p in Path(books).iterdir()} <= {
        "walk.ipynb",
        "belt.yaml",
        ".ipynb_checkpoints",
        ".virtual_documents",
    }
