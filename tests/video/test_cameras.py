"""Many cameras in one process: what one of them does, the others do not feel.

Time here is a beat that the tests advance: at every beat each camera brings a frame. Nobody waits for a
clock, and a camera that were held up by another one would keep the beat from going on.
"""

import threading
from collections import defaultdict
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import pytest

from cv_pipeline.core.config import RuntimeConfig
from cv_pipeline.core.types import Frame, SourceError
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.line import open_line
from cv_pipeline.tracking.sort import SortTracker
from cv_pipeline.video.pipeline import Pipeline
from cv_pipeline.video.reconnect import ReconnectingSource
from tests.helpers.waiting import until

FPS, BEATS = 4, 12
START = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
HEALTHY = [f"cam{i:02d}" for i in range(12)]


@pytest.fixture(scope="module")
def model():
    return load_model("factory_line", threads=1)


@pytest.fixture(scope="module")
def images():
    return [f.image for f in open_line("line:frames=24,seed=3", "x")]


class Beat:
    "The time that all cameras share."

    def __init__(self):
        self.now, self.waiting_for, self._changed = 0, defaultdict(int), threading.Condition()

    def wait(self, camera, beat, stop):
        "Until this beat, or until the camera is closed."
        self.waiting_for[camera] = beat  # all its frames before this one have been taken over
        with self._changed:
            assert self._changed.wait_for(lambda: self.now >= beat or stop.is_set(), 60), (
                f"beat {beat} never came"
            )

    def advance(self):
        with self._changed:
            self.now += 1
            self._changed.notify_all()


class Camera:
    "A frame at every beat, whether anybody takes it or not."

    live = True

    def __init__(self, name, images, beat):
        self.source_id, self.images, self.beat, self.stop = name, images, beat, threading.Event()

    def __iter__(self):
        for k in range(BEATS):
            self.beat.wait(self.source_id, k, self.stop)
            if self.stop.is_set():
                return
            yield self.frame(k)
        self.beat.waiting_for[self.source_id] = BEATS

    def frame(self, k):
        return Frame(self.images[k % len(self.images)], self.source_id, k, START + timedelta(seconds=k / FPS))

    def close(self):
        self.stop.set()
        with self.beat._changed:
            self.beat._changed.notify_all()


class Dead(Camera):
    "Cannot be opened, ever."

    def __iter__(self):
        raise SourceError("no route to host", self.source_id)
        yield


class Stuck(Camera):
    "Accepts, gives two frames, then hangs in its driver and does not even notice that it was closed."

    driver = threading.Event()

    def __iter__(self):
        for k in range(2):
            yield self.frame(k)
        self.driver.wait()


class Sluggish(Camera):
    "Two frames in all that time."

    def __iter__(self):
        for k in range(2):
            self.beat.wait(self.source_id, 6 * k, self.stop)
            yield self.frame(k)


class Corrupt(Camera):
    "Goes mad after some frames: its clock runs backwards."

    def frame(self, k):
        return Frame(
            self.images[k % len(self.images)],
            self.source_id,
            k if k < 4 else 3,
            START + timedelta(seconds=k / FPS),
        )


class Leads:
    """A sink that lets the next beat come when the frames of this one are there, of all cameras that should
    deliver."""

    def __init__(self, beat, names):
        self.beat, self.names, self.frames = beat, names, defaultdict(list)

    def write(self, result):
        self.frames[result.frame.source_id].append(result.frame.frame_id)
        if all(len(self.frames[name]) > self.beat.now for name in self.names):
            self.beat.advance()

    def close(self):
        pass


@pytest.fixture(scope="module")
def fleet(images, model):
    """Twelve cameras that work, four that do not: summary, sink, and whether the stuck one still hung when
    the run was over."""
    beat = Beat()
    sources = [
        kind(f"cam{i:02d}", images, beat)
        for i, kind in enumerate([Camera] * 12 + [Dead, Stuck, Sluggish, Corrupt])
    ]
    sources = [ReconnectingSource(lambda s=s: s, s.source_id) if isinstance(s, Dead) else s for s in sources]
    sink = Leads(beat, HEALTHY)
    pipeline = Pipeline(
        sources, model, [sink], lambda s: SortTracker(frame_rate=FPS), runtime=RuntimeConfig(max_batch=4)
    )
    summary = pipeline.run(lambda p: p.stop() if beat.now == BEATS else None)
    stuck = [t for t in threading.enumerate() if t.name == "read cam13"]
    Stuck.driver.set()
    return summary, sink, stuck


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_every_frame_of_a_healthy_camera_is_delivered_at_its_beat(fleet, name):
    assert fleet[1].frames[name] == list(range(BEATS))


def test_no_healthy_camera_has_an_error(fleet):
    assert [fleet[0]["sources"][name]["error"] for name in HEALTHY] == [None] * 12


def test_a_dead_camera_is_lost_with_its_reason(fleet):
    dead = fleet[0]["sources"]["cam12"]
    assert dead["connection"] == "lost" and "no route to host" in dead["error"]


@pytest.mark.parametrize("name", ["cam13", "cam14"])
def test_what_a_stuck_and_a_sluggish_camera_gave_is_counted(fleet, name):
    assert fleet[0]["sources"][name]["frames_read"] == 2


def test_a_camera_whose_clock_runs_backwards_fails_with_the_frame(fleet):
    mad = fleet[0]["sources"]["cam15"]
    assert mad["state"] == "failed" and "frame 3" in mad["error"]


def test_a_stuck_camera_does_not_keep_the_run_alive(fleet):
    assert fleet[2], "the run was over before its driver came back"


# --- twice the load


class Halved:
    "A model that takes half a beat for a frame: with four cameras it can bear half of what comes."

    name, provider, max_batch = "halved", "CPUExecutionProvider", 1

    def __init__(self, inner, beat, names):
        self.inner, self.beat, self.names, self.calls = inner, beat, names, 0

    def infer(self, batch):
        self.calls += 1
        if self.calls % 2 == 0 and self.beat.now < BEATS:
            self.beat.advance()
            until(
                lambda: all(
                    self.beat.waiting_for[name] > self.beat.now or self.beat.now >= BEATS
                    for name in self.names
                )
            )
        return self.inner.infer(batch)

    def warmup(self):
        pass

    def close(self):
        pass


class Late:
    "How many beats after its own each frame was delivered."

    def __init__(self, beat):
        self.beat, self.beats = beat, defaultdict(list)

    def write(self, result):
        self.beats[result.frame.source_id].append(self.beat.now - result.frame.frame_id)

    def close(self):
        pass


@pytest.fixture(scope="module")
def overload(images, model):
    beat, names = Beat(), HEALTHY[:4]
    slow = replace(model, backend=Halved(model.backend, beat, names))
    sink = Late(beat)
    return Pipeline(
        [Camera(name, images, beat) for name in names], slow, [sink], runtime=RuntimeConfig(max_batch=1)
    ).run(), sink


def test_under_twice_the_load_every_frame_is_taken_over(overload):
    assert overload[0]["frames_read"] == 4 * BEATS


def test_under_twice_the_load_drops_are_counted(overload):
    summary = overload[0]
    assert summary["frames_dropped"] >= 0.3 * summary["frames_read"]
    assert summary["frames_delivered"] + summary["frames_dropped"] == summary["frames_read"]


def test_under_twice_the_load_latency_stays_bounded(overload):
    """At most a frame of each camera waits, three are on their way, and each takes half a beat; a queue would
    grow to six beats."""
    assert max(max(beats) for beats in overload[1].beats.values()) <= (4 + 3) / 2 + 1


def test_under_twice_the_load_cameras_share_the_model_fairly(overload):
    assert min(len(beats) for beats in overload[1].beats.values()) >= 3
