"""The fleet page as a browser, a stranger and Prometheus meet it: a real server on the loopback address."""

import http.client
import re
from contextlib import ExitStack, closing
from html.parser import HTMLParser
from urllib.parse import quote, urlencode

import pytest

from cv_pipeline.core.types import ConfigError, MissingExtraError
from cv_pipeline.edge import central_page
from cv_pipeline.edge.central import Centre, CentreServer, changing, hear
from cv_pipeline.edge.central_page import SCRIPT, FleetPage, check_page, chosen, fleet_duty, page_routes
from cv_pipeline.edge.devices import example_fleet, push_model, read_fleet, read_pushes
from tests.helpers.services import require
from tests.helpers.waiting import until

require("starlette")
require("jinja2")

PASSWORD = "correct horse battery"


class Browser:
    "Keeps a cookie, follows nothing."

    def __init__(self, url):
        self.host, self.cookie = url.partition("//")[2], ""

    def ask(self, method, path, form=None, **headers):
        with closing(http.client.HTTPConnection(self.host, timeout=20)) as line:
            body = None if form is None else urlencode(form)
            kind = {"Content-Type": "application/x-www-form-urlencoded"} if form is not None else {}
            more = {k.replace("_", "-"): v for k, v in headers.items()}
            line.request(method, path, body, {**kind, "Cookie": self.cookie, **more})
            found = line.getresponse()
            text = found.read().decode()
            if set_cookie := found.getheader("Set-Cookie"):
                self.cookie, self.attributes = set_cookie.split(";")[0], set_cookie.lower()
            return found, text

    def get(self, path, **headers):
        return self.ask("GET", path, **headers)

    def log_in(self, password=PASSWORD):
        return self.ask("POST", "/login", {"password": password})[0].status

    def csrf(self):
        return re.search(r'name="csrf" value="([^"]+)"', self.get("/")[1])[1]

    def press(self, button, **form):
        found, text = self.ask("POST", f"/{button}", {"csrf": self.csrf(), **form})
        return found.status, text


class Place:
    def __init__(self, folder, stack, password=PASSWORD):
        self.clock = [1.8e9]
        self.centre = stack.enter_context(closing(Centre(folder / "centre", now=lambda: self.clock[0])))
        example_fleet(self.centre.store)
        self.page = FleetPage(self.centre, password)
        self.server = stack.enter_context(CentreServer(self.centre, more=page_routes(self.page)))
        self.url = self.server.url

    def browser(self, logged_in=True):
        made = Browser(self.url)
        assert not logged_in or made.log_in() == 303
        return made


@pytest.fixture
def place(tmp_path):
    with ExitStack() as stack:
        yield Place(tmp_path, stack)


@pytest.fixture
def open_place(tmp_path):
    "Without a password: on this machine, and only to read."
    with ExitStack() as stack:
        yield Place(tmp_path, stack, None)


def rows(text):
    return re.findall(r'href="/device/([^"]+)"', text)


def test_the_page_lists_every_device_the_worst_first(open_place):
    found, text = open_place.browser(False).get("/")
    assert found.status == 200
    assert rows(text)[:3] == ["box-08", "box-09", "box-04"] and len(rows(text)) == 12
    assert "golden pictures differ" in text and "dirty lens" in text and "48,210" in text


def test_a_page_without_a_password_has_no_buttons_and_takes_none(open_place):
    guest = open_place.browser(False)
    assert '<form method="post"' not in guest.get("/")[1]
    for button in ("push", "pause", "resume", "abort", "logout"):
        assert guest.ask("POST", f"/{button}", {"csrf": "", "device": "*", "reason": "x"})[0].status == 403
    assert guest.log_in("") == 401


def test_a_stranger_sees_nothing(place):
    guest = place.browser(False)
    for path in ("/", "/device/box-01"):
        found, text = guest.get(path)
        assert (found.status, found.getheader("Location"), "box-" in text) == (303, "/login", False)
    for path in ("/fragment", "/metrics"):
        assert guest.get(path)[0].status == 401
    assert guest.get("/login")[0].status == 200


def test_a_session_is_a_cookie_that_scripts_and_other_sites_do_not_have(place):
    operator = place.browser()
    assert "httponly" in operator.attributes and "samesite=strict" in operator.attributes
    found, _ = operator.get("/")
    assert found.status == 200
    assert "frame-ancestors 'none'" in found.getheader("Content-Security-Policy")
    assert operator.press("logout")[0] == 303
    assert operator.get("/")[0].status == 303


def test_wrong_passwords_are_answered_with_a_wait(place):
    guest = place.browser(False)
    assert [guest.log_in("guess") for _ in range(10)] == [401] * 10
    assert guest.log_in() == 429


def test_a_button_needs_the_token_of_the_session_and_the_own_site(place):
    operator = place.browser()
    form = {"device": "box-01", "reason": "x"}
    assert operator.ask("POST", "/pause", {**form, "csrf": "guess"})[0].status == 403
    assert operator.ask("POST", "/pause", form)[0].status == 403
    good = {**form, "csrf": operator.csrf()}
    assert operator.ask("POST", "/pause", good, Origin="https://evil.example")[0].status == 403
    assert place.centre.store.paused == {}
    assert operator.ask("POST", "/pause", good, Origin=place.url)[0].status == 200
    assert place.centre.store.paused == {"box-01": "x"}
    stranger = place.browser()
    assert stranger.ask("POST", "/resume", good)[0].status == 403, "a token of another session"


def test_push_pause_and_abort_by_buttons(place):
    operator = place.browser()
    status, text = operator.press("push", release="c3" * 32)
    assert status == 200 and "is on its way" in text and "Abort" in text
    assert len(read_pushes(place.centre.store)) == 1
    status, text = operator.press("push", release="d4" * 32)
    assert status == 400 and "is on its way" in text
    assert operator.press("pause", device="*", reason="stocktaking")[0] == 200
    assert "Nothing changes on any device: stocktaking" in operator.get("/")[1]
    assert operator.press("resume", device="*")[0] == 200
    assert operator.press("abort", digest="c3" * 32, reason="wrong file")[0] == 200
    assert read_pushes(place.centre.store)[0].state.stage == "aborted"
    assert operator.press("pause", device="box-77", reason="x")[0] == 400


def test_a_release_is_pushed_by_its_name(tmp_path):
    from cv_pipeline.core.files import write_json

    (tmp_path / "releases" / "metadata").mkdir(parents=True)
    custom = {"name": "line", "version": "1.1", "digest": "c3" * 32}
    listed = {"signed": {"targets": {"line/1.1.bundle": {"custom": custom}}}}
    write_json(tmp_path / "releases" / "metadata" / "2.targets.json", listed)
    write_json(tmp_path / "releases" / "metadata" / "1.targets.json", {"signed": {"targets": {}}})
    with ExitStack() as stack:
        place = Place(tmp_path, stack)
        place.centre.releases = tmp_path / "releases"
        operator = place.browser()
        assert '<option value="line@1.1">' in operator.get("/")[1]
        assert operator.press("push", release="line@1.1")[0] == 200
        assert read_pushes(place.centre.store)[0].digest == "c3" * 32


def test_nothing_is_sent_while_nothing_changes(place):
    operator = place.browser()
    for name in place.centre.store.sites:
        hear(place.centre.store, name, {"state": "running"})
    found, text = operator.get("/fragment")
    tag = found.getheader("ETag")
    assert "box-01" in text
    place.clock[0] += 2
    place.page.made.clear()
    assert operator.get("/fragment", If_None_Match=tag)[0].status == 304
    hear(place.centre.store, "box-01", {"state": "no model"})
    place.page.made.clear()
    assert operator.get("/fragment", If_None_Match=tag)[0].status == 200


@pytest.mark.parametrize(
    "query, first, number",
    [
        ({"q": "como"}, "box-08", 4),
        ({"q": "brno rolled"}, "box-04", 1),
        ({"state": "disk"}, "box-09", 1),
        ({"sort": "name"}, "box-01", 12),
        ({"sort": "waiting"}, "box-07", 12),
        ({"sort": "disk"}, "box-09", 12),
        ({"sort": "nonsense", "state": "nonsense"}, "box-08", 12),
        ({"q": "nothing has this name"}, "", 0),
    ],
)
def test_filter_and_order(open_place, query, first, number):
    text = open_place.browser(False).get(f"/?{urlencode(query)}")[1]
    assert (rows(text)[:1], len(rows(text))) == ([first] if first else [], number)


def test_every_column_can_be_sorted_by(open_place):
    devices = read_fleet(open_place.centre.store)
    for key in central_page._SORTS:
        assert len(chosen(devices, {"sort": key})) == 12


EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='x",
    "{{7*'7'}}",
    "\u202etxt",
    "</table></body>",
    "javascript:alert(1)",
]


class Seen(HTMLParser):
    "Tags and attributes of a page as a browser reads them."

    def __init__(self, text):
        super().__init__()
        self.tags, self.handlers, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.handlers += [k for k, _ in attrs if k.startswith("on")]
        self.links += [v for k, v in attrs if k in ("href", "src", "action")]


@pytest.mark.parametrize("evil", EVIL)
def test_names_that_want_to_be_html_are_text(place, evil):
    store = place.centre.store
    with changing(store) as db:
        db.execute("INSERT INTO devices VALUES ('box-66', 'x', ?, 0, NULL)", (evil,))
        db.execute("INSERT INTO actions(at, who, what, detail) VALUES (0, ?, ?, ?)", (evil, evil, evil))
        db.execute("INSERT INTO paused VALUES ('*', ?, 0)", (evil,))
    push_model(store, evil, "c3" * 32, evil)
    body = {"state": "no model", "reason": evil, "model": {"name": evil, "version": evil, "digest": evil}}
    body |= {"update": evil, "agent": evil, "upkeep": {evil: [evil]}, "signals": {evil: evil}}
    hear(store, "box-66", {**body, "rolled_back": {"digest": evil, "why": evil}, "hardware": {evil: evil}})
    place.centre.problems[evil] = evil
    operator = place.browser()
    for path in (
        "/",
        "/device/box-66",
        f"/?{urlencode({'q': evil, 'sort': evil, 'state': evil})}",
        "/fragment",
    ):
        found, text = operator.get(path)
        assert found.status == 200
        seen = Seen(text)
        assert seen.handlers == [] and "img" not in seen.tags and "\u202e" not in text and "777" not in text
        assert seen.tags.count("script") == (1 if "/page.js" in text else 0)
        assert all(link.startswith("/") for link in seen.links)


def test_the_page_of_a_device_has_its_history(place):
    for k in range(5):
        place.clock[0] += 3700
        hear(place.centre.store, "box-01", {"state": "running", "outbox": {"waiting": 100 * k}})
    store = place.centre.store
    until(lambda: len(store.query("SELECT id FROM history WHERE device = 'box-01'")) >= 6)
    text = place.browser().get("/device/box-01")[1]
    assert "<polyline" in text and "400" in text
    assert place.browser().get("/device/box-77")[0].status == 404
    assert place.browser().get(f"/device/{quote('../x', safe='')}")[0].status == 404


def test_prometheus_reads_the_figures_with_the_password_as_token(place):
    found, text = place.browser(False).get("/metrics", Authorization=f"Bearer {PASSWORD}")
    assert found.status == 200
    assert 'cv_pipeline_fleet_state{device="box-08",state="offline"} 1.0' in text
    assert place.browser(False).get("/metrics", Authorization="Bearer wrong")[0].status == 401


def test_the_rollouts_move_while_the_centre_serves(place):
    fleet_duty(place.centre)
    push_model(place.centre.store, "line", "c3" * 32, "1.1")
    for name in read_pushes(place.centre.store)[0].state.cameras:
        hear(place.centre.store, name, {"rolled_back": {"digest": "c3" * 32, "why": "crashed"}})

    def halted():
        place.clock[0] += 1
        return read_pushes(place.centre.store)[0].state.stage == "halted"

    until(halted)
    assert "halted" in place.browser().get("/")[1]


def test_the_own_script_is_short():
    assert len(SCRIPT.splitlines()) <= 20


@pytest.mark.parametrize("password", ["", "short"])
def test_a_short_password_is_refused(tmp_path, password):
    with closing(Centre(tmp_path)) as centre, pytest.raises(ConfigError, match="at least 12 characters"):
        FleetPage(centre, password)


def test_the_page_is_not_open_to_other_machines():
    check_page("127.0.0.1", None, False)
    check_page("0.0.0.0", PASSWORD, False)
    with pytest.raises(ConfigError, match="the page has no password"):
        check_page("0.0.0.0", None, False)


def test_a_missing_template_engine_is_named(monkeypatch):
    import sys

    central_page._templates.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(MissingExtraError, match=r'pip install "cv_pipeline\[central\]"'):
        central_page._templates()
    central_page._templates.cache_clear()


def test_opening_a_page_is_noted_and_its_polls_are_not(place):
    seen = []
    place.page.note = lambda who, what: seen.append((who, what))
    browser = place.browser()
    name = rows(browser.get("/")[1])[0]
    browser.get("/fragment")
    browser.get(f"/device/{quote(name)}")
    assert seen == [
        ("operator from 127.0.0.1", "fleet page"),
        ("operator from 127.0.0.1", f"fleet page, device {name}"),
    ]
