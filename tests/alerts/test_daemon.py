"A run and a daemon with a book between them: floods, pictures, answers within a second, one daemon only."

import json
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timezone

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from cv_pipeline.alerts import daemon as daemon_book
from cv_pipeline.alerts.daemon import (
    AlertDaemon,
    AlertSink,
    DaemonSettings,
    Intake,
    IntakeSettings,
    failing_parts,
    happening_of,
    id_of,
    policy_of,
    start_test,
    view_of,
)
from cv_pipeline.alerts.incidents import (
    Happening,
    IncidentBook,
    acknowledge,
    best_pictures,
    fire,
    incidents,
    ingest,
    take,
)
from cv_pipeline.alerts.outbox_of_alerts import SendSettings
from cv_pipeline.alerts.policy import Subject, read_policy
from cv_pipeline.core.config import PrivacyConfig, load_config
from cv_pipeline.core.http_server import Answer, Guard
from cv_pipeline.core.types import ConfigError, Detections, Frame, FrameResult, SinkError
from cv_pipeline.edge.forward import InboxServer, Link, LinkSettings
from cv_pipeline.service.assembly import check_run, run_config
from cv_pipeline.tracking.zones import Event
from cv_pipeline.video.cover import Covered, CoverGate, Privacy, cover_settings
from tests.helpers.waiting import until

GATE = Subject("brno", "gate", "fence")
LEVELS = [
    {"after_s": 0, "channels": ["desk"]},
    {"after_s": 1, "channels": ["desk"], "severity": "critical", "repeat_s": 900},
]
QUICK = DaemonSettings(tick_s=0.02, sending=SendSettings(first_s=0.05, longest_s=0.5, pause_s=0.2))


def policy_for(url="http://127.0.0.1:1", **more):
    channels = {"desk": {"kind": "webhook", "url": f"{url}/hook", "timeout_s": 5}}
    return read_policy({"channels": channels, "levels": LEVELS, **more})


class Receiver:
    "A web server that keeps the calls it gets, with their times."

    def __init__(self, answer=204):
        self.got, self.status = [], answer
        self.server = InboxServer(self.answer)

    def answer(self, request):
        self.got.append((time.monotonic(), json.loads(request.body)))
        return Answer(self.status, "text/plain", b"")


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.server.close()


@contextmanager
def serving(path, policy, settings=QUICK, **how):
    with AlertDaemon(path, policy, settings, **how) as made:
        stop = threading.Event()
        loop = threading.Thread(target=made.run, args=(stop,))
        loop.start()
        try:
            yield made
        finally:
            stop.set()
            loop.join()


def happen(n, subject=GATE):
    return Happening(f"e{n}", subject, "zone_enter", time.time(), n)


# -- the way of a call


def test_an_event_is_called_and_its_link_stops_the_ladder(tmp_path, receiver):
    with serving(tmp_path / "book.sqlite", policy_for(receiver.server.url)):
        with IncidentBook(tmp_path / "book.sqlite") as run:  # as of another process
            began = time.monotonic()
            take(run, [happen(1)])
            until(lambda: len(receiver.got) >= 2, 60)
            first, second = (at - began for at, _ in receiver.got[:2])
            assert second >= 1.0 and first < second
            link = receiver.got[0][1]["link"]
            page = Link(LinkSettings(link.rpartition("/a/")[0]))
            path = "/a/" + link.rpartition("/")[2]
            assert page.ask("GET", path, b"", {})[0].status == 200
            assert run.value("SELECT state FROM incidents") == "firing"
            assert page.ask("POST", path, b"who=Petra", {})[0].status == 200
            assert run.value("SELECT state FROM incidents") == "acknowledged"  # at once
            assert run.value("SELECT count(*) FROM timers WHERE kind = 'step'") == 0
            page.close()


def test_one_daemon_for_a_book(tmp_path):
    with AlertDaemon(tmp_path / "book.sqlite", policy_for()):
        with pytest.raises(ConfigError, match="another daemon serves this file.*process"):
            AlertDaemon(tmp_path / "book.sqlite", policy_for())
    AlertDaemon(tmp_path / "book.sqlite", policy_for()).close()


def test_a_daemon_that_cannot_begin_leaves_no_lock(tmp_path, receiver):
    taken = DaemonSettings(port=int(receiver.server.url.rpartition(":")[2]))
    with pytest.raises(ConfigError, match="alerts.port"):
        AlertDaemon(tmp_path / "book.sqlite", policy_for(), taken)
    missing = policy_for(receiver.server.url).model_copy(
        update={"channels": {"desk": {"kind": "webhook", "url_env": "NOWHERE"}}}
    )
    with pytest.raises(ConfigError, match="NOWHERE is not set"):
        AlertDaemon(tmp_path / "book.sqlite", missing)
    AlertDaemon(tmp_path / "book.sqlite", policy_for()).close()


def test_beyond_this_machine_it_asks_for_a_token_and_a_certificate(tmp_path):
    with pytest.raises(ConfigError, match="there is no token"):
        AlertDaemon(tmp_path / "book.sqlite", policy_for(), DaemonSettings(host="0.0.0.0"))
    guarded = DaemonSettings(host="0.0.0.0", guard=Guard("a token of this test"))
    with pytest.raises(ConfigError, match="plain text"):
        AlertDaemon(tmp_path / "book.sqlite", policy_for(), guarded)


def test_a_receiver_that_was_down_gets_the_call_when_it_is_back(tmp_path, receiver):
    receiver.status = 503
    with serving(tmp_path / "book.sqlite", policy_for(receiver.server.url)) as daemon:
        take(daemon.book, [happen(1)])
        until(lambda: len(receiver.got) >= 2, 60)
        assert "answered 503" in failing_parts(daemon)["desk"]
        receiver.status = 204
        until(lambda: daemon.book.value("SELECT count(*) FROM notices WHERE state = 'sent'"), 60)
    keys = {call["key"] for _, call in receiver.got if call["level"] == 1}
    assert len(keys) == 1


def test_a_full_disk_is_a_problem_and_the_next_round_tries_again(tmp_path, monkeypatch):
    with AlertDaemon(tmp_path / "book.sqlite", policy_for()) as daemon:
        take(daemon.book, [happen(1)])
        whole = daemon_book.ingest

        def full(*args):
            raise SinkError("the incident book cannot be written: database or disk is full")

        monkeypatch.setattr(daemon_book, "ingest", full)
        daemon.tick()
        assert "disk is full" in daemon.problems["book"]
        monkeypatch.setattr(daemon_book, "ingest", whole)
        assert daemon.tick() == 2
        assert daemon.problems == {}


def test_a_hundred_thousand_events_in_a_minute_are_bounded_and_counted(tmp_path):
    now = [0.0]
    with IncidentBook(tmp_path / "book.sqlite") as book:
        intake = Intake(book, IntakeSettings(burst=50, per_s=5), lambda: now[0])
        for k in range(100_000):
            now[0] += 60 / 100_000
            intake.add(Happening(f"leaf-{k}", GATE, "zone_enter", 1.78e9 + now[0], k % 7))
        intake.add(Happening("person", GATE._replace(camera="yard"), "zone_enter", 1.78e9, 1))
        assert book.value("SELECT count(*) FROM events WHERE camera = 'yard'") == 1  # at once
        intake.flush(force=True)
        rows, events = book.query("SELECT count(*) AS r, sum(n) AS n FROM events WHERE camera = 'gate'")[
            0
        ].values()
        assert (rows < 500, events) == (True, 100_000)
        while ingest(book, policy_for()):
            pass
        counts = {r["camera"]: r["count"] for r in incidents(book)}
    assert counts == {"gate": 100_000, "yard": 1}
    assert intake.tally["counted"] > 99_000


def test_what_the_disk_does_not_take_waits_in_memory_bounded(tmp_path, monkeypatch):
    with IncidentBook(tmp_path / "book.sqlite") as book:
        now = [0.0]
        intake = Intake(book, IntakeSettings(most_waiting=10, burst=1000), lambda: now[0])
        real = daemon_book.take

        def full(*args):
            raise SinkError("the incident book cannot be written: database or disk is full")

        monkeypatch.setattr(daemon_book, "take", full)
        for k in range(30):
            intake.add(happen(k))
        assert "disk is full" in intake.problem and intake.tally["lost"] == 20
        monkeypatch.setattr(daemon_book, "take", real)
        now[0] += 5
        intake.flush()
        assert (book.value("SELECT count(*) FROM events"), intake.problem) == (10, "")


def test_while_another_process_writes_for_long_events_wait_in_memory(tmp_path):
    now = [0.0]
    with (
        IncidentBook(tmp_path / "book.sqlite", wait_s=0.05) as book,
        IncidentBook(tmp_path / "book.sqlite") as other,
    ):
        intake = Intake(book, clock=lambda: now[0])
        with other.changing():
            intake.add(happen(1))
            assert "is locked" in intake.problem
        now[0] += 5
        intake.flush()
        assert (book.value("SELECT count(*) FROM events"), intake.problem) == (1, "")


def test_a_dead_mans_switch_is_called_while_the_daemon_lives(tmp_path):
    beats = []

    def beat(request):
        beats.append(request.path)
        return Answer(200, "text/plain", b"")

    with InboxServer(beat) as switch:
        policy = policy_for(heartbeat={"url": f"{switch.url}/ping/key", "every_s": 1})
        with serving(tmp_path / "book.sqlite", policy) as daemon:
            until(lambda: len(beats) >= 2, 60)
            assert daemon.beat > 0
            daemon.problems["book"] = "disk"
            assert not daemon.heart._alive()
    assert set(beats) == {"/ping/key"}


def test_numbers_over_http(tmp_path):
    with serving(tmp_path / "book.sqlite", policy_for()) as daemon:
        until(lambda: daemon.beat, 30)
        page = Link(LinkSettings(daemon.server.url))
        text = page.ask("GET", "/metrics", b"", {})[0].body.decode()
        page.close()
    assert "cv_pipeline_alerts_heartbeat_timestamp_seconds" in text


def test_a_test_call_says_so_and_is_answered(tmp_path, receiver):
    with serving(tmp_path / "book.sqlite", policy_for(receiver.server.url)) as daemon:
        number = start_test(daemon.book, daemon.policy)
        until(lambda: receiver.got, 30)
        assert receiver.got[0][1]["kind"] == "test" and receiver.got[0][1]["link"]
        acknowledge(daemon.book, daemon.policy, number, "Petra")
        with pytest.raises(ConfigError, match="unknown channel 'dsk'"):
            start_test(daemon.book, daemon.policy, ["dsk"])


def test_commands_use_the_policy_of_the_newest_daemon(tmp_path):
    with IncidentBook(tmp_path / "book.sqlite") as book:
        with pytest.raises(ConfigError, match="give --policy"):
            policy_of(book)
        with AlertDaemon(tmp_path / "book.sqlite", policy_for(ack_hours=7)):
            pass
        assert policy_of(book).ack_hours == 7


def test_a_changed_policy_is_taken_without_a_restart(tmp_path, receiver):
    quiet = policy_for(
        receiver.server.url, routes=[{"severity": "info"}], quiet=[{"from": "00:00", "to": "23:59"}]
    )
    offered = [None]
    with AlertDaemon(tmp_path / "book.sqlite", quiet, QUICK) as daemon:
        stop = threading.Event()
        loop = threading.Thread(target=daemon.run, args=(stop, lambda: offered.pop() if offered else None))
        loop.start()
        offered.append(policy_for(receiver.server.url, ack_hours=9))
        until(lambda: policy_of(daemon.book).ack_hours == 9, 30)
        take(daemon.book, [happen(1)])
        until(lambda: receiver.got, 60)
        stop.set()
        loop.join()
    assert daemon.desk.policy.ack_hours == 9


def test_a_changed_policy_that_is_wrong_leaves_the_one_in_force(tmp_path, receiver):
    def wrong():
        return read_policy(tmp_path / "nowhere.yaml")

    with AlertDaemon(tmp_path / "book.sqlite", policy_for(receiver.server.url), QUICK) as daemon:
        stop = threading.Event()
        loop = threading.Thread(target=daemon.run, args=(stop, wrong))
        loop.start()
        until(lambda: "policy" in failing_parts(daemon), 30)
        take(daemon.book, [happen(1)])
        until(lambda: receiver.got, 60)
        stop.set()
        loop.join()


def test_calls_of_a_channel_that_was_removed_are_not_owed_any_more(tmp_path):
    with AlertDaemon(tmp_path / "book.sqlite", policy_for()) as daemon:
        take(daemon.book, [happen(1)])
        daemon.tick()
    channels = {"siren": {"kind": "webhook", "url": "http://127.0.0.1:1/"}}
    other = read_policy(
        {"channels": channels, "levels": [{"after_s": 0, "channels": ["siren"], "repeat_s": 60}]}
    )
    with AlertDaemon(tmp_path / "book.sqlite", other) as daemon:
        row = daemon.book.query("SELECT state, problem FROM notices")[0]
    assert row == {"state": "cancelled", "problem": "its channel was removed"}


# -- the run's side


def event(k=3, kind="zone_enter", track=4, at=None):
    at = at or datetime(2026, 6, 1, 3, 12, k, tzinfo=timezone.utc)
    return Event(kind, "gate", "fence", track, 0, "person", at, k, "in", None, 1.0, 1.0)


def test_the_id_of_an_event_is_stable_and_its_own_one_counts():
    assert id_of(event(), "run") == id_of(event(), "run") != id_of(event(), "another run")
    assert id_of(event(track=5), "run") != id_of(event(), "run")

    own = event()
    own.event_id = "abc"
    assert id_of(own, "run") == "abc"


def test_the_text_of_an_event_says_what_was_measured():
    fast = event(kind="speed")
    fast.value, fast.plus_minus, fast.direction = 3.24, 0.41, ""
    assert happening_of(fast, "run", "brno").text == "person: speed, 3.24 ± 0.41"
    crowd = event(kind="crowding", track=-1)
    crowd.class_id, crowd.class_name, crowd.value, crowd.direction = -1, "", 12.0, ""
    assert happening_of(crowd, "run", "brno").text == "crowding, 12"
    assert happening_of(event(), "run", "brno").text == "person: zone enter in"


def test_a_leave_is_an_end():
    assert happening_of(event(kind="zone_leave"), "run", "brno").ends
    assert not happening_of(event(), "run", "brno").ends


def result(k, size, track=4, colour=(40, 90, 220), conf=0.9):
    image = np.full((120, 160, 3), 70, np.uint8)
    image[20 : 20 + size, 30 : 30 + size] = colour
    boxes = np.array([[30, 20, 30 + size, 20 + size]], np.float32)
    found = Detections(boxes, np.array([conf], np.float32), np.zeros(1), np.array([track]))
    at = datetime.fromtimestamp(event(3).at.timestamp() + (k - 3) / 10, timezone.utc)
    return FrameResult(Frame(image, "gate", k, at), found, ("person",))


def test_the_largest_and_surest_view_is_kept(tmp_path):
    sink = AlertSink(IncidentBook(tmp_path / "book.sqlite"), "brno", "run")
    sink.event(event(3))
    for k, size in ((3, 10), (4, 40), (5, 80), (6, 30)):
        sink.write(result(k, size))
    sink.close()
    with IncidentBook(tmp_path / "book.sqlite") as book:
        ingest(book, policy_for())
        ((track, jpeg),) = best_pictures(book, 1)
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert track == 4 and picture.shape[0] > 80
    assert abs(int(picture[picture.shape[0] // 2, picture.shape[1] // 2, 2]) - 220) < 25


def test_a_view_outside_of_the_picture_is_none():
    assert view_of(result(1, 20), 99) is None
    moved = result(1, 20)
    moved.detections.xyxy[0] = (500, 500, 520, 520)
    assert view_of(moved, 4) is None


def test_an_event_of_no_single_track_has_the_whole_view(tmp_path):
    sink = AlertSink(IncidentBook(tmp_path / "book.sqlite"), "brno", "run")
    sink.event(event(3, kind="crowding", track=-1))
    for k in range(3, 6):
        sink.write(result(k, 30))
    sink.close()
    with IncidentBook(tmp_path / "book.sqlite") as book:
        ingest(book, policy_for())
        ((track, jpeg),) = best_pictures(book, 1)
    assert (track, cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape) == (-1, (120, 160, 3))


def test_tracks_that_are_watched_are_bounded(tmp_path):
    sink = AlertSink(IncidentBook(tmp_path / "book.sqlite"), "brno", "run", IntakeSettings(most_pictures=3))
    for track in range(50):
        sink.event(event(3, track=track))
    assert len(sink._watched) == 3
    sink.close()


class EveryFace:
    "Finds one face over the whole upper half, always."

    name = "test"

    def find(self, images):
        boxes = np.array([[0, 0, 160, 60]], np.float32)
        return [Detections(boxes, np.ones(1, np.float32), np.zeros(1)) for _ in images]


def test_pictures_in_the_book_are_covered(tmp_path):
    privacy = Privacy(True, "test", cover_settings(PrivacyConfig(hold_s=0)))
    gate = CoverGate(privacy, ("person",), finder=EveryFace())
    sink = AlertSink(IncidentBook(tmp_path / "book.sqlite"), "brno", "run")
    covered = Covered(sink, gate)
    sink.event(event(3))
    for k in range(3, 9):
        covered.write(result(k, 30))
    covered.close()
    with IncidentBook(tmp_path / "book.sqlite") as book:
        ingest(book, policy_for())
        ((_, jpeg),) = best_pictures(book, 1)
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert np.abs(picture.astype(int) - 96).max() < 12  # the box lies in the covered half


def test_a_picture_that_could_not_be_covered_is_not_kept(tmp_path):
    class Broken(EveryFace):
        def find(self, images):
            raise RuntimeError("broken")

    privacy = Privacy(True, "test", cover_settings(PrivacyConfig(hold_s=0)))
    sink = AlertSink(IncidentBook(tmp_path / "book.sqlite"), "brno", "run")
    covered = Covered(sink, CoverGate(privacy, ("person",), finder=Broken()))
    sink.event(event(3))
    for k in range(3, 9):
        covered.write(result(k, 30))
    covered.close()
    with IncidentBook(tmp_path / "book.sqlite") as book:
        assert book.value("SELECT count(*) FROM pictures") == 0
        assert book.value("SELECT count(*) FROM events") == 1


# -- in a run

ZONE = {"name": "belt", "polygon": [[0.1, 0.0], [0.9, 0.0], [0.9, 1.0], [0.1, 1.0]]}


def configured(folder, **more):
    given = {
        "sources": ["line:frames=40,seed=5,fps=12"],
        "delivery.out": str(folder / "run"),
        "tracker.name": "bytetrack",
        "events": {"zones": [ZONE]},
        "site": "brno",
        "alerts": {"book": str(folder / "alerts" / "incidents.sqlite")},
    }
    return load_config(None, {**given, **more})


@pytest.mark.slow
def test_events_of_runs_are_in_the_book_with_the_ids_of_their_tables_and_one_incident(tmp_path):
    first = run_config(configured(tmp_path))
    written = set(pq.read_table(tmp_path / "run" / "events.parquet")["event_id"].to_pylist())
    with IncidentBook(tmp_path / "alerts" / "incidents.sqlite") as book:
        assert {r["id"] for r in book.query("SELECT id FROM events")} == written
    again = run_config(configured(tmp_path))
    assert first["sinks"]["alerts"]["events"] == first["sinks"]["events"]["events"] > 0
    assert again["sinks"]["alerts"]["events"] == again["sinks"]["events"]["events"]
    assert first["sinks"]["events"]["callback_errors"] == {}
    with IncidentBook(tmp_path / "alerts" / "incidents.sqlite") as book:
        ingest(book, policy_for())
        fire(book, policy_for())
        (row,) = incidents(book)
        assert (row["site"], row["rule"], row["tracks"] > 1) == ("brno", "belt", True)
        assert row["count"] < 2 * len(written) + 1 and row["count"] > 1
        assert best_pictures(book, row["id"]) != []


@pytest.mark.slow
def test_a_run_with_alerts_has_the_same_results(tmp_path):
    run_config(configured(tmp_path))
    run_config(configured(tmp_path / "without", alerts=None))
    tables = [pq.read_table(p / "run" / "events.parquet") for p in (tmp_path, tmp_path / "without")]
    assert tables[0].num_rows > 0 and tables[0].drop(["at", "event_id", "site"]).equals(
        tables[1].drop(["at", "event_id", "site"])
    )


def test_alerts_without_rules_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="alerts need zones, lines or rules"):
        check_run(configured(tmp_path, events={}))


def test_a_run_checks_its_policy_before_it_begins(tmp_path):
    (tmp_path / "policy.yaml").write_text("channels: {desk: {kind: webhook}}\nlevels: []\n")
    wrong = {"book": str(tmp_path / "book.sqlite"), "policy": str(tmp_path / "policy.yaml")}
    with pytest.raises(ConfigError, match="has no level"):
        check_run(configured(tmp_path, alerts=wrong))


def test_a_damaged_book_is_a_sentence_before_the_run(tmp_path):
    (tmp_path / "alerts").mkdir()
    (tmp_path / "alerts" / "incidents.sqlite").write_bytes(b"not a book" * 1000)
    with pytest.raises(SinkError, match="incident book is corrupt"):
        run_config(configured(tmp_path))
