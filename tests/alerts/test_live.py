"""The live page of a run: pictures only while they are watched, always covered, never in a frame's way."""

import base64
import http.client
import json
import os
import socket
import threading
from contextlib import ExitStack, closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from urllib.parse import quote

import cv2
import numpy as np
import pytest

from cv_pipeline.alerts.live import LivePage, LiveSettings, LiveSink, LiveState, View, camera_html, live_html
from cv_pipeline.alerts.snapshots import OpenIncident
from cv_pipeline.core.config import load_config
from cv_pipeline.core.http_server import Guard, HttpServer, Limits
from cv_pipeline.core.types import DataError, Detections, Frame, FrameResult
from cv_pipeline.service.assembly import run_config
from cv_pipeline.tracking.zones import Event, Rules, ZoneConfig
from cv_pipeline.video.cover import Privacy
from tests.helpers.browser import DESKTOP, PHONE, page_of, picture_of
from tests.helpers.waiting import until

AT = datetime(2026, 11, 29, 18, 0, tzinfo=timezone.utc)
NASTY = "<script>alert(1)</script>\"'&"
OPEN = Privacy(False, "files")
RULES = Rules([ZoneConfig("press", [[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.2, 0.8]])])
TOKEN = "0123456789abcdef"


def result(k, camera="gate", image=None):
    picture = np.full((120, 160, 3), 60, np.uint8) if image is None else image
    box = Detections(np.array([[10, 10, 50, 60]], np.float32), np.array([0.9], np.float32), np.array([0]))
    frame = Frame(picture, camera, k, AT + timedelta(seconds=k / 10))
    return FrameResult(frame, box, ("part",))


def summary(*cameras):
    source = {
        "state": "running",
        "connection": "live",
        "error": None,
        "seconds_since_frame": 0.1,
        "live": True,
    }
    source |= {"frames_read": 9, "frames_dropped": 0, "detections": 12, "open_tracks": 1, "tracks": 4}
    found = {"sources": {c: source for c in cameras}, "model": {"name": "line", "state": "ready"}}
    return {**found, "frames_delivered": 18, "seconds": 2.0, "error": None}


class Played:
    "A run that is played: frames come for as long as the block lasts."

    def __init__(self, stack, cameras=("gate",), guard=None, limits=None, incidents=None, privacy=OPEN):
        self.cameras, self.sent, self._stop, self.image = cameras, 0, threading.Event(), None
        self.sink = LiveSink(privacy, RULES, LiveSettings(fps=100, wait_s=20))
        more = {} if incidents is None else {"incidents": incidents}
        state = LiveState("Brno", lambda: summary(*cameras), self.sink, **more)
        limits = limits or Limits(page_s=25)
        self.server = stack.enter_context(
            HttpServer({}, 0, guard=guard or Guard(), limits=limits, live=LivePage(state))
        )
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()
        stack.callback(self.end)

    def _play(self):
        while not self._stop.wait(0.01):
            for camera in self.cameras:
                self.sink.write(result(self.sent, camera, self.image))
            self.sent += 1

    def end(self):
        self._stop.set()
        self.sink.close()
        self._thread.join(10)

    def ask(self, path, token=None, most=None):
        secret = base64.b64encode(f"anna:{token}".encode()).decode()
        headers = {"Authorization": f"Basic {secret}"} if token else {}
        with closing(http.client.HTTPConnection(self.server.url.partition("//")[2], timeout=30)) as line:
            line.request("GET", path, headers=headers)
            found = line.getresponse()
            return found.status, found.read() if most is None else found.read(most)


@pytest.fixture
def stack():
    with ExitStack() as made:
        yield made


# pictures


def test_nobody_watches_and_nothing_is_kept_drawn_or_started():
    sink = LiveSink(OPEN, RULES)
    for k in range(1000):
        sink.write(result(k))
    assert (
        sink.drawn == 0 and sink._thread is None and not sink._slots and sink.picture("gate", View()) is None
    )


def test_the_thread_ends_when_nobody_watches_any_more():
    clock = [0.0]
    sink = LiveSink(OPEN, RULES, LiveSettings(fps=1000), clock=lambda: clock[0])
    sink.want("gate", View())
    thread = sink._thread
    for k in range(5):
        clock[0] += 0.01
        sink.write(result(k))
    until(lambda: sink.picture("gate", View()))
    clock[0] += 100
    until(lambda: not thread.is_alive())
    drawn = sink.drawn
    sink.write(result(9))
    assert sink.drawn == drawn and sink.picture("gate", View()) is None and not sink._slots


def test_a_picture_has_boxes_and_on_request_zones_and_motion(stack):
    run = Played(stack)
    plain, zones = (run.ask(f"/live/picture?camera=gate{more}") for more in ("", "&zones=1"))
    assert plain[0] == zones[0] == 200
    images = [cv2.imdecode(np.frombuffer(data, np.uint8), 1).astype(int) for _, data in (plain, zones)]
    assert images[0].shape == (120, 160, 3)
    assert (np.abs(images[0] - 60).max(axis=2) > 40).sum() > 50, "the box"
    assert (np.abs(images[1] - images[0]).max(axis=2) > 40).sum() > 50, "the zone"
    assert run.ask("/live/picture?camera=gate&motion=1")[0] == 200


def test_frames_with_inference_come_first_and_others_only_where_those_are_rare():
    clock = [0.0]
    sink = LiveSink(OPEN, RULES, LiveSettings(fps=1e6), clock=lambda: clock[0])
    sink._thread = threading.current_thread()  # nobody takes what is offered
    sink.want("gate", View())
    for k in range(30):
        clock[0] += 0.1
        sink._slots.clear()
        sink.write(replace(result(k), inferred=k in (0, 5)))
        assert bool(sink._slots) == (k in (0, 5) or k >= 15), k


def test_a_stream_has_one_part_after_the_other(stack):
    status, data = Played(stack).ask("/live/stream?camera=gate", most=20_000)
    assert status == 200 and data.count(b"--frame") >= 3 and data.count(b"\xff\xd8\xff") >= 3


def test_a_picture_that_cannot_be_checked_is_not_shown(stack, monkeypatch):
    class Fails:
        name = "fails"

        def __init__(self, **how):
            pass

        def find(self, images):
            raise RuntimeError("no memory")

    monkeypatch.setattr("cv_pipeline.video.cover.YuNet", Fails)
    sink = LiveSink(Privacy(True, "a source is live"), RULES, LiveSettings(fps=1e6))
    sink.want("gate", View())
    for k in range(30):
        sink.write(result(k))
        until(lambda: not sink._slots)
    assert sink.drawn == 0 and sink.picture("gate", View()) is None
    sink.close()


def test_a_face_is_covered(monkeypatch):
    class Finds:
        name = "finds"

        def __init__(self, **how):
            pass

        def find(self, images):
            xyxy = np.array([[100, 40, 140, 80]], np.float32)
            return [Detections(xyxy, np.array([0.9], np.float32), np.array([0])) for _ in images]

    monkeypatch.setattr("cv_pipeline.video.cover.YuNet", Finds)
    image = np.zeros((120, 160, 3), np.uint8)
    image[40:80, 100:140] = 255
    sink = LiveSink(Privacy(True, "a source is live"), RULES, LiveSettings(fps=1e6))
    for k in range(40):
        sink.want("gate", View())
        sink.write(result(k, image=image))
        until(lambda: not sink._slots)
    shown = cv2.imdecode(np.frombuffer(until_picture(sink).data, np.uint8), 1)
    sink.close()
    assert abs(int(shown[60, 120].mean()) - 96) < 12, "grey over the face"


def until_picture(sink):
    until(lambda: sink.picture("gate", View()))
    return sink.picture("gate", View())


def test_an_unknown_camera_and_an_unknown_page_are_404(stack):
    run = Played(stack)
    for path in ("/live/picture?camera=other", "/live/stream?camera=", "/live/camera", "/live/else", "/else"):
        assert run.ask(path)[0] == 404


def test_a_camera_that_delivers_nothing_is_a_sentence(stack):
    run = Played(stack, cameras=("gate",))
    run._stop.set()
    run.sink.settings = LiveSettings(wait_s=0.3)
    assert run.ask("/live/picture?camera=gate") == (503, b"no picture can be shown now\n")


# guests


def test_a_wrong_token_sees_nothing(stack):
    run = Played(stack, guard=Guard(TOKEN))
    for path in ("/", "/live/state", "/live/news", "/live/picture?camera=gate", "/live/stream?camera=gate"):
        status, data = run.ask(path, "guess")
        assert status == 401 and b"gate" not in data
    assert run.sink.drawn == 0
    assert run.ask("/", TOKEN)[0] == 200


def test_a_viewer_that_never_reads_is_let_go_and_holds_no_frame(stack):
    run = Played(stack, limits=Limits(request_s=0.3, page_s=25))
    run.image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)  # large as JPEG
    host, port = run.server.url.partition("//")[2].split(":")
    silent = stack.enter_context(closing(socket.socket()))
    silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    silent.connect((host, int(port)))
    silent.sendall(b"GET /live/stream?camera=gate HTTP/1.1\r\n\r\n")
    until(lambda: run.server.connections == 1)
    sent = run.sent
    until(lambda: run.server.connections == 0, 60.0)
    assert run.sent > sent and run.ask("/live/picture?camera=gate")[0] == 200


def test_a_hundred_viewers_are_bounded_and_told_so(stack):
    run = Played(stack, limits=Limits(streams=8, page_s=25))
    host, port = run.server.url.partition("//")[2].split(":")
    statuses = []
    for _ in range(100):
        line = stack.enter_context(closing(socket.create_connection((host, int(port)), timeout=30)))
        line.sendall(b"GET /live/stream?camera=gate HTTP/1.1\r\n\r\n")
        statuses.append(line.recv(300))
    assert sum(s.startswith(b"HTTP/1.1 200") for s in statuses) == 8
    assert sum(b"at most 8 viewers" in s for s in statuses) == 92
    assert run.ask("/live/state")[0] == 200


def test_viewers_of_one_camera_share_its_pictures(stack):
    run = Played(stack, limits=Limits(streams=8, page_s=25))
    host, port = run.server.url.partition("//")[2].split(":")
    for _ in range(6):
        line = stack.enter_context(closing(socket.create_connection((host, int(port)), timeout=30)))
        line.sendall(b"GET /live/stream?camera=gate HTTP/1.1\r\n\r\n")
        line.recv(300)
    assert list(run.sink._wanted) == [("gate", View())]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("evil.example:8080", 403),
        ("evil", 403),
    ],
)
def test_a_foreign_name_that_points_here_is_refused_without_a_token(stack, host, status):
    run = Played(stack)
    with closing(http.client.HTTPConnection(run.server.url.partition("//")[2], timeout=30)) as line:
        line.request("GET", "/live/state", headers={"Host": host})
        assert line.getresponse().status == status


def test_with_a_token_any_name_will_do(stack):
    run = Played(stack, guard=Guard(TOKEN))
    with closing(http.client.HTTPConnection(run.server.url.partition("//")[2], timeout=30)) as line:
        line.request("GET", "/live/state", headers={"Host": "box-17", "Authorization": f"Bearer {TOKEN}"})
        assert line.getresponse().status == 200


# the page


def test_html_in_every_field_is_text():
    event = Event("zone_enter", NASTY, NASTY, 7, 0, NASTY, AT, 50, NASTY, None, 1, 1)
    sink = LiveSink(OPEN)
    sink.event(event)
    incident = OpenIncident(*[NASTY] * 6)
    state = LiveState(NASTY, lambda: summary(NASTY), sink, lambda: [incident]).now()
    for page in (live_html(state), camera_html(NASTY, NASTY, View())):
        assert page.count("<script") == 1 and "alert(1)</script>" not in page
        assert f"camera={quote(NASTY, safe='')}".replace("%20", "+") in page


def test_a_book_of_incidents_that_is_locked_costs_a_line():
    def locked():
        raise DataError("the book is locked", "incidents", "wait")

    state = LiveState("Brno", lambda: summary("gate"), LiveSink(OPEN), locked).now()
    assert "the book is locked" in state["problem"] and state["cameras"]


def test_news_come_when_something_has_changed(stack):
    run = Played(stack)
    status, data = run.ask("/live/news", most=100)
    first = json.loads(
        data.partition(b"\n\n")[0].removeprefix(b"data: ") if b"\n\n" in data else b"{}" or b"{}"
    )
    assert status == 200 and data.startswith(b"data: {") and (not first or first["site"] == "Brno")


def live_run(tmp_path, ready, **more):
    zone = {"name": "press", "polygon": [[0.3, 0.1], [0.7, 0.1], [0.7, 0.9], [0.3, 0.9]]}
    line = "line:width=640,height=360,frames=100000"
    settings = {
        "sources": [{"uri": line, "id": c, "realtime": True} for c in ("gate", "dock")],
        "site": "Brno",
    }
    settings |= {"delivery.out": str(tmp_path / "out"), "health.port": 0, "model.threads": 1}
    settings |= {"events.zones": [zone], "selection.every": 5, **more}
    return run_config(load_config(None, settings), on_ready=ready)


@pytest.mark.slow
def test_a_real_run_in_chromium_on_a_desk_and_on_a_phone(tmp_path):
    seen, errors = {}, []

    def visit(url, pipeline):
        try:
            until(lambda: pipeline.summary()["sources"]["gate"]["frames_delivered"] > 20, 60.0)
            seen["dom"] = page_of(tmp_path, url + "/", wait_ms=6000)
            seen["camera"] = page_of(tmp_path, f"{url}/live/camera?camera=gate&zones=1", wait_ms=3000)
            for size in (DESKTOP, PHONE):
                seen[size] = cv2.imread(str(picture_of(tmp_path, url + "/", size, wait_ms=5000)))
            seen["one"] = cv2.imread(
                str(picture_of(tmp_path, f"{url}/live/camera?camera=gate&zones=1", wait_ms=4000))
            )
        except BaseException as e:
            errors.append(e)
        pipeline.stop(discard=True)

    ready = lambda url, pipeline: threading.Thread(target=visit, args=(url, pipeline), daemon=True).start()
    summary = live_run(tmp_path, ready)
    assert not errors and summary["error"] is None
    assert (
        "gate" in seen["dom"]
        and "/live/picture?camera=dock" in seen["dom"]
        and "hide zones" in seen["camera"]
    )
    for size in (DESKTOP, PHONE):
        assert seen[size].shape[1::-1] == size and seen[size].std() > 5
    if folder := os.environ.get("CV_PIPELINE_KEEP_PICTURES"):
        for size in (DESKTOP, PHONE):
            cv2.imwrite(f"{folder}/live-{size[0]}.png", seen[size])
        cv2.imwrite(f"{folder}/live-one.png", seen["one"])


def test_without_the_page_the_health_port_is_as_before(tmp_path):
    asked = []

    def ready(url, pipeline):
        with closing(http.client.HTTPConnection(url.partition("//")[2], timeout=20)) as line:
            line.request("GET", "/")
            asked.append(line.getresponse().status)
        pipeline.stop(discard=True)

    live_run(tmp_path, ready, **{"health.page": False})
    assert asked == [404]
