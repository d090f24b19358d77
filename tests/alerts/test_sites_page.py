"""The page of many sites as a file, a service and in a browser: hostile names, tokens, stores that fail."""

import base64
import http.client
import os
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from html.parser import HTMLParser
from urllib.parse import urlencode

import cv2
import numpy as np
import pytest

from cv_pipeline.alerts.sites import SiteCamera, SiteState, example_sites, judge_box, read_sites, read_trends
from cv_pipeline.alerts.sites_page import PageNotes, plan_part, sites_page, write_sites_page
from cv_pipeline.alerts.sites_server import Door, SitesPage, SitesServer
from cv_pipeline.alerts.snapshots import CameraState, OpenIncident, Snapshot, plan_bytes
from cv_pipeline.core.http_server import Guard
from cv_pipeline.core.types import ConfigError, DataError
from tests.helpers.browser import DESKTOP, PHONE, page_of, picture_of
from tests.helpers.services import require
from tests.helpers.waiting import until

require("starlette")

AT = datetime(2026, 11, 29, 18, 0, tzinfo=timezone.utc)
TOKEN = "0123456789abcdef"
NASTY = "<script>alert(1)</script>\"'&\x1b\u202e"


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("sites")
    example_sites(place, days=5, now=AT)
    return place


def whole(folder, notes=None):
    sites, trends = read_sites(folder, AT.timestamp), read_trends(folder, 5, AT.timestamp)
    return sites_page(sites, trends, notes or PageNotes(AT))


# as a file


def test_the_worst_site_comes_first_and_every_camera_is_there(folder):
    page = whole(folder)
    order = [page.index(f">{name}</a>") for name in ("Deal", "Brno", "Aachen")]
    assert order == sorted(order)
    assert page.count("camera-1") >= 6 and "no state for 5 min" in page and "press is empty" in page


def test_html_in_every_field_is_text(folder):
    camera = CameraState(NASTY, NASTY, 1.0, 1.0, (NASTY,), NASTY, (0.5, 0.5))
    shown = Snapshot(
        *(
            NASTY,
            NASTY,
            NASTY,
            AT.isoformat(),
            30.0,
            NASTY,
            NASTY,
            NASTY,
            NASTY,
            NASTY,
            NASTY,
            1.0,
            (camera,),
        ),
        *(NASTY, NASTY, (OpenIncident(*[NASTY] * 6),), NASTY),
    )
    box = judge_box(shown, AT.timestamp(), AT.timestamp())
    site = SiteState(NASTY, "failed", (NASTY,), (box,), (SiteCamera(NASTY, camera, NASTY, 1.0),))
    page = sites_page([site], read_trends(folder, 5, AT.timestamp), PageNotes(AT, (NASTY,), foot=NASTY))
    found = Tags(page)
    assert "script" not in found.tags and "img" not in found.tags
    assert (
        any("<script>alert(1)" in text for text in found.texts)
        and "\x1b" not in page
        and "\u202e" not in page
    )


def test_a_page_of_nothing_says_so(tmp_path):
    page = whole(tmp_path)
    assert "No site has written here yet" in page and "No open incidents" in page


def test_a_plan_that_is_no_jpeg_is_left_out_and_the_cameras_stay(folder, tmp_path):
    site = read_sites(folder, AT.timestamp)[0]
    (tmp_path / "plan.jpg").write_bytes(b"<svg onload=alert(1)>")
    drawn = plan_part(site.cameras, tmp_path / "plan.jpg")
    assert "onload" not in drawn and "data:image" not in drawn and drawn.count("<circle") == 4


def test_problems_of_stores_stand_on_the_page(folder, tmp_path):
    path = write_sites_page(
        tmp_path / "p.html",
        read_sites(folder, AT.timestamp),
        read_trends(folder, 5, AT.timestamp),
        PageNotes(AT, ("s3://plants: access denied",)),
    )
    assert "access denied" in path.read_text()


# as a service


class Server:
    def __init__(self, server, page):
        self.server, self.page = server, page

    def ask(self, path, token=TOKEN, form=None, scheme="Basic", **headers):
        secret = base64.b64encode(f"anna:{token}".encode()).decode() if scheme == "Basic" else token
        more = {"Authorization": f"{scheme} {secret}"} if token else {}
        with closing(http.client.HTTPConnection(self.server.url.partition("//")[2], timeout=30)) as line:
            body = None if form is None else urlencode(form)
            line.request("POST" if form else "GET", path, body, {**more, **headers})
            found = line.getresponse()
            return found.status, found.read().decode(), found


@pytest.fixture
def server(folder):
    done, seen = [], []

    def acknowledge(site, incident, who):
        if incident.camera == "fails":
            raise DataError("the book is locked", "incidents", "wait")
        done.append((site.name, incident.id, who))
        return "acknowledged"

    page = SitesPage(folder, acknowledge=acknowledge, note=lambda *what: seen.append(what), now=AT.timestamp)
    with SitesServer(page, guard=Guard(TOKEN)) as made:
        found = Server(made, page)
        found.done, found.seen = done, seen
        yield found


@pytest.mark.parametrize("how", [{"token": None}, {"token": "guess"}, {"token": "guess", "scheme": "Bearer"}])
def test_a_wrong_token_sees_nothing(server, how):
    for path in ("/", "/sites.json"):
        status, text, found = server.ask(path, **how)
        assert status == 401 and "Aachen" not in text
        assert found.getheader("WWW-Authenticate").startswith("Basic")
    assert server.ask("/ack", form={"site": "Como", "id": "i2", "csrf": "x"}, **how)[0] == 401
    assert server.done == []


def test_the_server_says_that_it_lives_and_nothing_else(server):
    assert server.ask("/healthz", token=None)[:2] == (200, '{"alive": true}\n')


def test_who_opens_the_page_is_noted(server):
    assert server.ask("/")[0] == 200
    assert server.ask("/sites.json", scheme="Bearer")[0] == 200
    assert server.seen == [("anna from 127.0.0.1", "sites page"), ("program from 127.0.0.1", "sites data")]


def test_an_acknowledgement_needs_the_form_of_this_page(server):
    form = {"site": "Como", "id": "i2"}
    assert server.ask("/ack", form={**form, "csrf": "guess"})[0] == 403
    good = {**form, "csrf": Door(TOKEN).csrf("anna")}
    assert good["csrf"] in server.ask("/")[1]
    assert server.ask("/ack", form=good, Origin="https://evil.example")[0] == 403
    assert server.done == []
    status, text, _ = server.ask("/ack", form=good)
    assert (status, server.done) == (200, [("Como", "i2", "anna")]) and "acknowledged" in text
    assert "not open any more" in server.ask("/ack", form={**good, "id": "unknown"})[1]


def test_without_a_hook_there_is_no_button(folder):
    with SitesServer(SitesPage(folder, now=AT.timestamp), guard=Guard(TOKEN)) as made:
        alone = Server(made, None)
        assert "<form" not in alone.ask("/")[1]
        assert alone.ask("/ack", form={"csrf": "x"})[0] in (404, 405)


def test_a_page_that_others_can_reach_needs_a_token(folder):
    with pytest.raises(ConfigError, match="no token"):
        SitesServer(SitesPage(folder), host="0.0.0.0")


def test_a_store_that_fails_is_on_the_page_and_the_server_lives(folder):
    class Bad:
        counts_s = 1.0

        def entries(self):
            raise DataError("the drive is away", "/mnt", "mount it")

    page = SitesPage(folder, [("north", Bad())], now=AT.timestamp, every_s=0.05)
    with SitesServer(page) as made:
        until(lambda: page.problems)
        status, text, _ = Server(made, page).ask("/", token=None)
        assert status == 200 and "the drive is away" in text and made.alive


# in a browser


@pytest.mark.slow
def test_in_chromium_the_page_fits_a_desk_and_a_phone(folder, tmp_path):
    page = tmp_path / "sites.html"
    plan = tmp_path / "plan.png"
    cv2.imwrite(str(plan), np.full((300, 300, 3), 200, np.uint8))
    sites = [replace(s, plans={"box-1": tmp_path / "plan.jpg"}) for s in read_sites(folder, AT.timestamp)]
    (tmp_path / "plan.jpg").write_bytes(plan_bytes(plan))
    write_sites_page(page, sites, read_trends(folder, 5, AT.timestamp), PageNotes(AT))
    text = page_of(tmp_path, page.as_uri())
    assert "Deal" in text and "camera-4" in text
    for size in (DESKTOP, PHONE):
        image = cv2.imread(str(picture_of(tmp_path, page.as_uri(), size)))
        assert image is not None and image.shape[1::-1] == size and image.std() > 5
        if folder := os.environ.get("CV_PIPELINE_KEEP_PICTURES"):
            cv2.imwrite(f"{folder}/sites-{size[0]}.png", image)
