"""The demo of scale: its steps, its pages, and the worker that dies in the middle."""

import json
import re

import pytest

from cv_pipeline.core.results import read_results
from cv_pipeline.service.scale_demo import CAMERAS, FPS, PAGES, scale_demo


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    heard = []
    out = tmp_path_factory.mktemp("demo") / "scale"
    return scale_demo(out, 2.0, heard.append), heard, out


pytestmark = pytest.mark.slow


def test_a_worker_dies_and_nothing_is_lost_or_double(told):
    story, _, out = told
    assert [story.value("batch")[k] for k in ("left", "same", "killed")] == [0, True, True]
    rows = [read_results(out / name) for name in ("batch", "one_process")]
    assert rows[0].equals(rows[1]) and len(rows[0]) > 50
    journal = (out / "batch" / "manifest.jsonl").read_text()
    assert len({json.loads(line)["unit"] for line in journal.splitlines()}) == story.value("batch")["units"]


def test_every_frame_that_was_offered_is_accounted_for(told):
    story, _, out = told
    for factor in (1, 2):
        offered = story.value(f"load × {factor}")["offered"]
        assert offered == round(CAMERAS * FPS * 2.0 * factor)
        assert (
            story.value(f"load × {factor}")["answered"] + story.value(f"load × {factor}")["lost"] <= offered
        )


def test_the_plan_has_a_page_and_stands_beside_the_load_test(told):
    story, heard, out = told
    for name in PAGES.values():
        assert (out / name).stat().st_size > 3000
    plan = json.loads((out / "plan.json").read_text())
    assert plan["months"][-1]["servers"] == story.value("plan") >= 1
    assert story.value("plan checked") is not None


def test_the_page_tells_every_step_and_links_to_the_others(told):
    story, heard, out = told
    page = (out / "index.html").read_text()
    assert all(f["text"].replace("'", "&#x27;") in page for f in story.facts)
    assert set(re.findall(r'href="([^"]+)"', page)) == set(PAGES.values())
    assert [text.partition("s  ")[2] for text in heard] == [f["text"] for f in story.facts]
