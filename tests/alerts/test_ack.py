"Answers by link, alerts of other systems, and numbers: what may be done with an address, and what not."

import json
import stat
import threading
from html.parser import HTMLParser

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cv_pipeline.alerts.ack import (
    LINK_S,
    Desk,
    alerts_in,
    answer_request,
    link_secret,
    link_token,
    read_token,
)
from cv_pipeline.alerts.incidents import (
    Happening,
    IncidentBook,
    fire,
    ingest,
    keep_picture,
    resolve,
    take,
)
from cv_pipeline.alerts.policy import Subject, read_policy
from cv_pipeline.core.types import DataError, SinkError
from cv_pipeline.edge.forward import Request
from cv_pipeline.edge.outbox import DeviceClock
from tests.helpers.disks import fill, small_disk
from tests.helpers.services import absent

NASTY = "<script>alert(1)</script>\"'&"
GATE = Subject(NASTY, NASTY, NASTY)
POLICY = read_policy(
    {
        "channels": {"desk": {"kind": "webhook"}},
        "levels": [{"after_s": 0, "channels": ["desk"], "repeat_s": 600}],
        "ack_hours": 2,
    }
)


class Place:
    "A book with one incident, and its desk."

    def __init__(self, folder, token=None):
        self.now = 1_780_000_000.0
        clock = DeviceClock(lambda: self.now, lambda: self.now, "boot")
        self.book = IncidentBook(folder / "book.sqlite", clock)
        self.desk = Desk(self.book, POLICY, link_secret(self.book.path), token, "Brno")
        take(self.book, [Happening("e1", GATE, "enter", self.now, 4, NASTY)])
        self.round()
        self.token = self.link(1)

    def round(self):
        ingest(self.book, POLICY)
        fire(self.book, POLICY)

    def link(self, notice):
        (row,) = self.book.query("SELECT * FROM notices WHERE id = ?", notice)
        return link_token(self.desk.secret, row, f"key {notice}")

    def ask(self, method, path, body=b"", **headers):
        return answer_request(self.desk, Request(method, path, headers, body), 5.0)

    def get(self, token=None):
        return self.ask("GET", f"/a/{token or self.token}")

    def post(self, body=b"who=Petra&note=on+my+way", token=None):
        return self.ask("POST", f"/a/{token or self.token}", body)

    @property
    def state(self):
        return self.book.value("SELECT state FROM incidents WHERE id = 1")


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path)
    yield made
    made.book.close()


# -- links


def test_opening_a_link_shows_and_changes_nothing(place):
    for _ in range(5):
        found = place.get()
        assert found.status == 200 and b"I deal with it" in found.body
    assert place.state == "firing"


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS"])
def test_no_other_method_answers(place, method):
    assert place.ask(method, f"/a/{place.token}").status == 404
    assert place.state == "firing"


def test_the_button_answers(place):
    assert place.post().status == 200
    assert place.book.query("SELECT who, note, via, until - at AS s FROM acks") == [
        {"who": "Petra", "note": "on my way", "via": "link", "s": 7200.0}
    ]
    assert place.state == "acknowledged"


def test_a_link_works_once(place):
    assert [place.post().status, place.post(b"who=Ivan").status] == [200, 409]
    assert place.book.value("SELECT count(*) FROM acks") == 1
    page = place.get()
    assert b"This link was used" in page.body and b"I deal with it" not in page.body


def test_pressed_by_many_at_once_it_answers_once(place):
    people = [threading.Thread(target=place.post, args=(f"who=p{k}".encode(),)) for k in range(12)]
    for p in people:
        p.start()
    for p in people:
        p.join()
    assert place.book.value("SELECT count(*) FROM acks") == 1


@pytest.mark.parametrize("body", [b"", b"who=", b"who=+++", b"note=x", b"\xff\xfe", b"&" * 5000, b"a=" * 400])
def test_without_a_name_there_is_no_answer(place, body):
    assert place.post(body).status in (400, 500)
    assert place.state == "firing"
    assert place.post().status == 200  # the link is not used up


def test_every_edited_link_is_refused(place):
    for k in range(len(place.token)):
        for letter in "A0_.":
            edited = place.token[:k] + letter + place.token[k + 1 :]
            assert edited == place.token or read_token(place.desk.secret, edited, place.now) is None
    assert place.post(token=place.token[:-1]).status == 404
    assert place.state == "firing"


@pytest.mark.parametrize(
    "token", ["", ".", "x", "é", "a" * 5000, "..", "%2e", "=.=", "AAAA.AAAA", "0.0.0.0.0"]
)
def test_what_is_not_a_link_is_refused(place, token):
    assert place.ask("POST", f"/a/{token}", b"who=Petra").status == 404


def test_a_link_of_another_book_is_refused(place, tmp_path):
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    theirs = other.token
    assert place.post(token=theirs).status == 404
    other.book.close()


def test_a_link_ends_after_a_day(place):
    place.now += LINK_S - 1
    assert place.get().status == 200
    place.now += 2
    assert (place.get().status, place.post().status) == (404, 404)


def test_a_link_for_an_incident_that_ended_shows_and_does_nothing(place):
    resolve(place.book, POLICY, 1, "Ivan")
    assert b"I deal with it" not in place.get().body
    assert place.post().status == 409
    assert place.state == "resolved"


def test_a_link_of_an_earlier_episode_does_nothing(place):
    resolve(place.book, POLICY, 1, "Ivan")
    take(place.book, [Happening("e2", GATE, "enter", place.now, 4)])
    place.round()
    assert (place.state, place.post().status) == ("firing", 409)
    number = place.book.value("SELECT max(id) FROM notices")
    assert place.post(token=place.link(number)).status == 200


def test_a_call_that_is_sent_again_has_the_same_link(place):
    assert place.link(1) == place.token


def test_the_key_of_links_is_the_owners_only(place):
    path = place.book.path.with_name("book.sqlite.key")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and len(path.read_bytes()) == 32
    path.write_bytes(b"short")
    with pytest.raises(DataError, match="damaged"):
        link_secret(place.book.path)


# -- the page


class Reader(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_the_page_shows_hostile_names_as_text(place):
    keep_picture(place.book, "e1", b"\xff\xd8picture", 1.0)
    place.post(b"who=%3Cb%3EPetra")
    page = Reader(place.get().body.decode())
    names = {tag for tag, _ in page.tags}
    assert "script" not in names and "b" not in names
    assert NASTY in page.text and "<b>Petra" in page.text


def test_the_page_shows_the_best_picture_inside(place):
    keep_picture(place.book, "e1", b"\xff\xd8picture", 1.0)
    pictures = [a["src"] for tag, a in Reader(place.get().body.decode()).tags if tag == "img"]
    assert len(pictures) == 1 and pictures[0].startswith("data:image/jpeg;base64,")


def test_the_page_may_load_and_be_framed_by_nothing(place):
    headers = dict(place.get().headers)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"


def test_who_opens_a_page_is_noted(place, monkeypatch, tmp_path):
    monkeypatch.setenv("CV_PIPELINE_ACCESS_LOG", str(tmp_path / "access.jsonl"))
    place.get()
    assert "incident 1" in (tmp_path / "access.jsonl").read_text()


# -- programs


@pytest.mark.parametrize("path", ["/metrics", "/incidents"])
def test_programs_need_the_token(tmp_path, path):
    place = Place(tmp_path, token="a token of this test")
    assert place.ask("GET", path).status == 401
    assert place.ask("GET", path, authorization="Bearer wrong").status == 401
    assert place.ask("GET", path, authorization="Bearer a token of this test").status == 200
    assert place.post().status == 200  # a link is its own permission
    place.book.close()


def test_an_answer_by_program(place):
    assert place.ask("POST", "/incidents/1/ack", b'{"who": "board", "note": "x"}').status == 200
    assert place.state == "acknowledged"
    assert place.ask("POST", "/incidents/1/resolve", b'{"who": "board"}').status == 200
    assert place.state == "resolved"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/incidents/1/ack", b"{}", 400),
        ("/incidents/1/ack", b"[", 400),
        ("/incidents/9/ack", b'{"who": "x"}', 400),
        ("/incidents/x/ack", b'{"who": "x"}', 404),
        ("/incidents/1/dance", b'{"who": "x"}', 404),
        ("/api/v2/alerts", b"", 400),
        ("/api/v2/alerts", b'"x"', 400),
        ("/api/v2/alerts", b"[1]", 400),
    ],
)
def test_what_a_program_may_not_ask(place, path, body, status):
    assert place.ask("POST", path, body).status == status
    assert place.state == "firing"


def test_metrics_count_open_incidents_and_what_waits(place):
    take(place.book, [Happening("e2", Subject("Ostrava", "gate", "x"), "enter", place.now)])
    place.now += 30
    found = {
        (s.name, tuple(sorted(s.labels.items()))): s.value
        for f in text_string_to_metric_families(place.ask("GET", "/metrics").body.decode())
        for s in f.samples
    }
    values = {name: v for (name, _), v in found.items()}
    assert values["cv_pipeline_alerts_notification_oldest_seconds"] == 30
    assert values["cv_pipeline_alerts_events_waiting"] == 1
    assert values["cv_pipeline_alerts_heartbeat_timestamp_seconds"] == 5
    assert ("cv_pipeline_incidents", (("level", "1"), ("site", NASTY), ("state", "firing"))) in found


def test_health_names_what_fails(place):
    assert place.ask("GET", "/healthz").status == 200
    place.desk.problems = lambda: {"desk": "away"}
    found = place.ask("GET", "/healthz")
    assert (found.status, json.loads(found.body)["problems"]) == (503, {"desk": "away"})


def test_a_full_disk_is_507(tmp_path):
    with small_disk(tmp_path / "disk", 900) as disk:
        if disk is None:
            absent("mounting is not allowed here")
        place = Place(disk)
        ballast = fill(disk)
        alerts = [{"labels": {"alertname": f"a{k}", "x": "y" * 2000}, "startsAt": ""} for k in range(900)]
        assert place.ask("POST", "/api/v2/alerts", json.dumps(alerts).encode()).status == 507
        ballast.unlink()
        assert place.post().status == 200
        place.book.close()


def test_a_bug_is_500_and_the_next_request_is_answered(place):
    place.desk.problems = lambda: 1 / 0
    assert place.ask("GET", "/healthz").status == 500
    assert place.get().status == 200


# -- alerts of other systems


def alert(**more):
    labels = {"alertname": "CameraDown", "source": "gate-1", "severity": "critical", **more.pop("labels", {})}
    return {
        "labels": labels,
        "annotations": {"summary": "no frames"},
        "startsAt": "2026-05-28T20:26:40.123Z",
        "endsAt": "0001-01-01T00:00:00Z",
        **more,
    }


def test_an_alert_is_an_incident_with_levels_and_an_end(place):
    body = json.dumps({"version": "4", "alerts": [alert()]}).encode()
    assert json.loads(place.ask("POST", "/api/v2/alerts", body).body) == {"taken": 1}
    place.round()
    (row,) = place.book.query("SELECT * FROM incidents WHERE rule = 'CameraDown'")
    assert (row["site"], row["camera"], row["severity"], row["state"]) == (
        "Brno",
        "gate-1",
        "critical",
        "firing",
    )
    done = json.dumps([alert(endsAt="2026-05-28T20:26:41Z")]).encode()
    place.now += 10
    place.ask("POST", "/api/v2/alerts", done)
    place.round()
    assert place.book.value("SELECT state FROM incidents WHERE rule = 'CameraDown'") == "resolved"


def test_the_same_alert_again_and_again_is_one_event_and_keeps_it_open(place):
    for _ in range(180):  # three hours
        place.ask("POST", "/api/v2/alerts", json.dumps([alert()]).encode())
        place.now += 60
        place.round()
    rows = place.book.query("SELECT state, count FROM incidents WHERE rule = 'CameraDown'")
    assert [(r["state"], 17 <= r["count"] <= 19) for r in rows] == [("firing", True)]


def test_labels_that_differ_are_other_alerts():
    both = [alert(), alert(labels={"source": "gate-2"})]
    found = alerts_in(json.dumps(both).encode(), 1.78e9)
    assert len({h.id for h in found}) == 2


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"labels": None},
        {"labels": [], "annotations": 5},
        {"labels": {"alertname": {"x": [1]}, "severity": 9}},
        {"startsAt": "yesterday", "endsAt": []},
        {"startsAt": "9999-99-99T00:00:00Z"},
        {"labels": {"site": "\ud800", "alertname": "\x00\n" + "x" * 9000}},
    ],
)
def test_alerts_of_any_shape_are_taken(place, given):
    assert place.ask("POST", "/api/v2/alerts", json.dumps([given]).encode()).status == 200
    place.round()


def test_too_many_alerts_at_once_are_refused():
    with pytest.raises(DataError, match="not a list of alerts"):
        alerts_in(json.dumps([{}] * 5001).encode(), 0.0)


def test_a_key_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(SinkError, match="cannot be written"):
        link_secret(tmp_path / "nowhere" / "book.sqlite")


def test_every_metric_of_the_rules_for_alerts_exists(place):
    import re

    from cv_pipeline.monitoring.exporter import alert_rules

    asked = set(re.findall(r"cv_pipeline_(?:alerts_\w+|incidents)", alert_rules()))
    page = place.ask("GET", "/metrics").body.decode()
    assert len(asked) == 3 and asked <= set(re.findall(r"^(cv_pipeline_\w+)", page, re.M))
