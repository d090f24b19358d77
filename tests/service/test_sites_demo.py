"""The demo of many sites: who is called, until when, and what the page says meanwhile."""

import html

import pytest

from cv_pipeline.alerts.site_stores import SiteStoreError
from cv_pipeline.service.sites_demo import Line, sites_demo


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    heard = []
    out = tmp_path_factory.mktemp("demo") / "sites"
    return sites_demo(out, heard.append, 240.0), heard, out


slow = pytest.mark.slow


@slow
def test_it_escalates_twice_and_ends_with_an_answer_by_link(told):
    story, _, out = told
    assert story.value("defect")[:3] == [1, 2, 3]
    assert story.value("answer") == (True, True, "acknowledged")
    assert story.value("silence") == 0


@slow
def test_a_site_behind_a_cut_line_is_stale_and_the_others_are_not(told):
    story, _, out = told
    assert set(story.value("cut")) <= {"ok", "attention"}
    page = (out / "cut.html").read_text()
    assert "the line is cut" in page and "stale" in page


@slow
def test_a_camera_whose_lamp_fails_stands_on_the_page(told):
    story, _, out = told
    assert story.value("dark") == ["hall"]
    assert "dark" in (out / "sites.html").read_text()


@slow
def test_the_page_shows_all_cameras_and_open_incidents(told):
    story, _, out = told
    page = (out / "sites.html").read_text()
    assert story.value("sites") == 12 and story.value("page") >= 1
    assert all(name in page for name in ("Brno", "Lyon", "Turin", "gate", "dock", "ramp", "acknowledged"))


@slow
def test_every_step_stands_on_the_page(told):
    story, heard, out = told
    page = html.unescape((out / "index.html").read_text())
    assert all(f["text"] in page for f in story.facts)
    assert [text.partition("s  ")[2] for text in heard] == [f["text"] for f in story.facts]


def test_a_cut_line_refuses_and_only_reads(tmp_path):
    line = Line(tmp_path)
    assert line.entries() == []
    line.whole = False
    with pytest.raises(SiteStoreError, match="the line is cut"):
        line.entries()
    with pytest.raises(SiteStoreError, match="only to read"):
        line.put("site=a/box=b/site.json", b"{}")
