"""The demo of many sites: who is called, until when, and what the page says meanwhile."""

import html

import pytest

from cv_pipeline.alerts.site_stores import SiteStoreError
from cv_pipeline.core.types import DataError
from cv_pipeline.service.sites_demo import Line, SitesStory, sites_demo, wait_for


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    heard = []
    return sites_demo(tmp_path_factory.mktemp("demo") / "sites", heard.append, 240.0), heard


slow = pytest.mark.slow


@slow
def test_it_escalates_twice_and_ends_with_an_answer_by_link(told):
    story, _ = told
    assert story.value("defect", "levels")[:3] == [1, 2, 3]
    assert story.value("answer", "form") and story.value("answer", "answered")
    assert story.value("answer", "state") == "acknowledged" and story.value("silence", "calls") == 0


@slow
def test_a_site_behind_a_cut_line_is_stale_and_the_others_are_not(told):
    story, _ = told
    assert set(story.value("cut", "others")) <= {"ok", "attention"}
    page = (story.out / "cut.html").read_text()
    assert "the line is cut" in page and "stale" in page


@slow
def test_the_page_shows_all_cameras_and_open_incidents(told):
    story, _ = told
    page = (story.out / "sites.html").read_text()
    assert story.value("sites", "cameras") == 12 and story.value("page", "shown") >= 1
    assert all(name in page for name in ("Brno", "Lyon", "Turin", "gate", "dock", "ramp", "acknowledged"))


@slow
def test_every_step_stands_on_the_page(told):
    story, heard = told
    page = html.unescape((story.out / "index.html").read_text())
    assert all(f["text"] in page for f in story.facts)
    assert heard == [f"{f['step']}: {f['text']}" for f in story.facts]


def test_a_cut_line_refuses_and_only_reads(tmp_path):
    line = Line(tmp_path)
    assert line.entries() == []
    line.whole = False
    with pytest.raises(SiteStoreError, match="the line is cut"):
        line.entries()
    with pytest.raises(SiteStoreError, match="only to read"):
        line.put("site=a/box=b/site.json", b"{}")


def test_what_does_not_happen_is_an_error_in_time(tmp_path):
    with pytest.raises(DataError, match="the moon falls down"):
        wait_for("the moon falls down", lambda: False, 0.2)
    with pytest.raises(DataError, match="no levels of 'defect'"):
        SitesStory(tmp_path).value("defect", "levels")
