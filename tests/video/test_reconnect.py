"""A camera that is lost comes back, in its own time, without disturbing anybody and without invented
frames."""

import itertools
import threading
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, Frame, SourceError, SourceStatus, StatusSource
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.line import open_line
from cv_pipeline.tracking.sort import SortTracker
from cv_pipeline.video.pipeline import Pipeline
from cv_pipeline.video.reconnect import Backoff, ReconnectingSource, SourceState, StateLog, backoff_s
from cv_pipeline.video.streams import SourceAuthError
from tests.helpers.waiting import until

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


class Wire:
    "A connection that gives pictures, then ends or breaks."

    live = True

    def __init__(self, images, breaks=True, status=None):
        self.source_id, self.images, self.breaks, self.closed, self.told = (
            "wire",
            images,
            breaks,
            0,
            status or SourceStatus(),
        )

    def status(self):
        return self.told

    def __iter__(self):
        for k, image in enumerate(self.images):
            yield Frame(image, "wire", k, NOON + timedelta(seconds=next(SECONDS)))
        if self.breaks:
            raise SourceError("connection reset", "wire")

    def close(self):
        self.closed += 1


SECONDS = itertools.count()


def scripted(*steps, backoff=Backoff(chance=lambda: 0.5), **kwargs):  # noqa: B008 — frozen
    "A camera whose connections are given; closed when there are no more."
    rest = iter(steps)
    waits = []

    def connect():
        step = next(rest, None)
        if step is None:
            camera.close()
            raise SourceError("the script ended", "gate")
        if isinstance(step, SourceError):
            raise step
        return step

    camera = ReconnectingSource(connect, "gate", wait=waits.append, backoff=backoff, **kwargs)
    return camera, waits


def black(n, size=(48, 64)):
    return [np.zeros((*size, 3), np.uint8)] * n


def test_it_comes_back_with_another_size_and_frame_numbers_go_on():
    refused = SourceError("no route to host", "gate")
    first, second = (
        Wire(black(3)),
        Wire(black(2, (100, 200)), breaks=False, status=SourceStatus(frames_skipped=2)),
    )
    camera, waits = scripted(first, refused, refused, second)
    frames = list(camera)
    assert [(f.frame_id, f.size, f.source_id) for f in frames] == [
        (0, (64, 48), "gate"),
        (1, (64, 48), "gate"),
        (2, (64, 48), "gate"),
        (3, (200, 100), "gate"),
        (4, (200, 100), "gate"),
    ]
    assert waits == [
        1.0,
        2.0,
        4.0,
        1.0,
    ]  # the counter starts anew after a good frame; a clean end is a loss too
    assert first.closed == second.closed == 1
    assert camera.status().frames_skipped == 2
    assert isinstance(camera, StatusSource) and camera.live


@given(st.integers(1, 10_000), st.floats(0.1, 10), st.floats(10, 600), st.floats(0, 1))
def test_backoff_grows_stays_bounded_and_spreads(failures, first, longest, chance):
    wait = backoff_s(failures, first, longest, chance)
    assert 0.75 * min(first, longest) <= wait <= 1.25 * longest
    assert backoff_s(failures, first, longest, 0) < backoff_s(failures, first, longest, 1)
    assert backoff_s(failures + 1, first, longest, chance) >= wait


def test_a_bug_is_not_retried():
    class Buggy(Wire):
        def __iter__(self):
            raise ZeroDivisionError

    camera, waits = scripted(Buggy([]))
    with pytest.raises(ZeroDivisionError):
        list(camera)
    assert waits == []


@pytest.mark.slow
def test_in_a_pipeline_the_other_camera_and_the_tracker_do_not_notice():
    images = [f.image for f in open_line("line:frames=12,seed=5", "x")]
    small = [np.ascontiguousarray(i[::2, ::2]) for i in images]
    camera, _ = scripted(Wire(images[:6]), SourceError("no route to host", "gate"), Wire(small[6:]))
    results = {"gate": [], "line": []}

    class Keep:
        def write(self, result):
            results[result.frame.source_id].append(result)

        def close(self):
            pass

    from cv_pipeline.core.config import RuntimeConfig

    line = open_line("line:frames=20", "line")
    summary = Pipeline(
        [camera, line],
        load_model(threads=1),
        [Keep()],
        lambda s: SortTracker(),
        runtime=RuntimeConfig(policy="every-frame"),
    ).run()
    assert [r.frame.frame_id for r in results["gate"]] == list(range(12)) and len(results["line"]) == 20
    gate = summary["sources"]["gate"]
    assert (
        gate["reconnects"] == 1
        and gate["connection"] == "lost"
        and gate["size"] == (320, 240)
        and "connection reset" in gate["error"]
    )


def test_closing_wakes_a_camera_that_waits():
    def refuse():
        raise SourceError("no route to host", "gate")

    camera = ReconnectingSource(refuse, "gate", backoff=Backoff(first_s=60))
    reader = threading.Thread(target=lambda: list(camera), daemon=True)
    reader.start()
    until(lambda: camera.last_error is not None)
    camera.close()
    reader.join(5)
    assert not reader.is_alive()


# --- states


def states(camera):
    return [str(c.state) for c in camera.state_changes]


def test_the_states_of_a_camera_and_what_is_told_about_them():
    told, refused = [], SourceAuthError("the camera rejects this user name or password", "gate")
    camera, waits = scripted(
        SourceError("no route to host", "gate"),
        refused,
        refused,
        Wire(black(2)),
        backoff=Backoff(1, 40, lambda: 0.5),
        on_state=told.append,
    )
    assert camera.state is SourceState.CONNECTING and states(camera) == ["connecting"]
    for _frame in camera:
        assert camera.state == "live"
    assert (
        states(camera) == ["connecting", "lost", "auth_failed", "live", "lost", "closed"]
        and told == camera.state_changes[1:]
    )
    assert [c.reason for c in camera.state_changes][1:5] == [
        "no route to host",
        "the camera rejects this user name or password",
        "",
        "connection reset",
    ]
    assert waits == [1, 40, 40, 1]  # a refused password waits longest, at once; a good frame forgets it
    assert (
        camera.reconnects == 0 and camera.last_error.what == "connection reset" and camera.state == "closed"
    )
    assert all(c.at.tzinfo is not None for c in camera.state_changes)


def test_a_listener_that_fails_does_not_hurt_the_camera(caplog):
    def listener(change):
        raise ZeroDivisionError

    camera, _ = scripted(Wire(black(2)), on_state=listener)
    assert len(list(camera)) == 2 and camera.state == "closed" and "ZeroDivisionError" in caplog.text


def test_a_refused_password_is_never_hammered():
    tries, now = [], [0.0]

    def connect():
        tries.append(now[0])
        raise SourceAuthError("no", "gate")

    def wait(seconds):
        now[0] += seconds
        if now[0] > 3600:
            camera.close()

    camera = ReconnectingSource(connect, "gate", wait=wait, backoff=Backoff(longest_s=60))
    list(camera)
    assert min(b - a for a, b in zip(tries, tries[1:])) >= 45 and len(tries) <= 81


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=60), st.integers(1, 5))
def test_stale_is_exactly_a_wait_that_is_too_long(rounds, limit):
    now, expected = [0.0], ["connecting"]
    log = StateLog(limit, lambda: now[0], lambda: NOON + timedelta(seconds=now[0]))
    for number, (camera_takes, consumer_takes) in enumerate(rounds):
        log.waiting(True)
        now[0] += camera_takes
        stale = number > 0 and camera_takes >= limit
        if number > 0:
            assert log.state == ("stale" if stale else "live")
        log.set(SourceState.LIVE)
        log.waiting(False)
        now[0] += consumer_takes  # a slow consumer is not the camera's fault
        assert log.state == "live"
        if stale:
            expected += ["stale", "live"]
        elif number == 0:
            expected.append("live")
    assert [c.state for c in log.changes] == expected[-100:]
    assert [c.at for c in log.changes] == sorted(c.at for c in log.changes)
    log.set(SourceState.CLOSED)
    log.set(SourceState.LIVE)
    assert log.state == "closed"


def test_history_is_bounded_and_counts_are_those_of_all_connections():
    told = SourceStatus(
        fps=25.0, decoder="wire", frames_not_taken=3, frames_skipped=2, skipped=(("packet", "broken"),)
    )
    camera, _ = scripted(*[Wire(black(1), status=told) for _ in range(150)])
    assert len(list(camera)) == 150
    status = camera.status()
    assert len(status.state_changes) == 100
    assert len(status.skipped) == 100
    assert (status.reconnects, status.frames_not_taken, status.frames_skipped) == (149, 450, 300)
    assert (status.fps, status.decoder) == (25.0, "wire")  # of the last connection, also when it is lost


def test_the_status_is_that_of_the_present_connection_with_the_counts_of_all():
    first, second = (
        Wire(black(2), status=SourceStatus(decoder=name, frames_skipped=1)) for name in ("h264", "mjpeg")
    )
    camera, _ = scripted(first, second)
    seen = [camera.status() for _frame in camera]
    assert [(s.decoder, s.frames_skipped) for s in seen] == [
        ("h264", 1),
        ("h264", 1),
        ("mjpeg", 2),
        ("mjpeg", 2),
    ]
    assert [s.connection for s in seen] == ["live"] * 4


def test_a_closed_camera_tells_what_it_was_before_it_was_closed():
    camera, _ = scripted(Wire(black(1)))
    list(camera)
    assert camera.state == "closed"
    assert camera.status().connection == "lost"
    assert camera.status().error.what == "connection reset"


def test_connections_that_tell_nothing_are_no_trouble():
    class Mute:
        source_id, live = "wire", True

        def __iter__(self):
            return iter(Wire(black(2)))

        def close(self):
            pass

    camera, _ = scripted(Mute())
    assert [camera.status().fps for _frame in camera] == [None, None]


def test_time_and_numbers_go_on_when_the_camera_wakes_up_in_the_past():
    class Late(Wire):
        def __init__(self, start, ids):
            self.source_id, self.start, self.ids = "wire", start, ids

        def __iter__(self):
            for k in self.ids:
                yield Frame(np.zeros((4, 4, 3), np.uint8), "wire", k, self.start + timedelta(seconds=k))

        def close(self):
            pass

    camera, _ = scripted(
        Late(NOON, [0, 1, 4]), Late(NOON - timedelta(hours=1), [2, 3]), Late(NOON + timedelta(minutes=1), [0])
    )
    frames = list(camera)
    assert [f.frame_id for f in frames] == [
        0,
        1,
        4,
        7,
        8,
        9,
    ]  # gaps are frames that were dropped on the way; they stay visible
    times = [f.captured_at for f in frames]
    assert (
        times == sorted(set(times))
        and times[:3] == [NOON, NOON + timedelta(seconds=1), NOON + timedelta(seconds=4)]
        and times[-1] == NOON + timedelta(minutes=1)
    )


def test_closing_while_it_connects_closes_what_was_opened():
    wire = Wire(black(3))

    def connect():
        camera.close()
        return wire

    camera = ReconnectingSource(connect, "gate", wait=lambda s: None)
    next(iter(camera), None)
    assert wire.closed and camera.state == "closed"


@pytest.mark.parametrize("times", [(0, 1), (5, 1), (-1, 5)])
def test_waits_that_make_no_sense_are_refused(times):
    with pytest.raises(ConfigError, match="waits of"):
        Backoff(*times)
