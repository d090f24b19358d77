"""Clocks that jump, time zones and summer time in the middle of a run: nothing is lost."""

import json
import os
import time
from datetime import datetime, timedelta, timezone

import av
import pytest

from cv_pipeline.core.config import load_config
from cv_pipeline.core.results import read_jsonl, read_results
from cv_pipeline.core.types import Clocks, Frame, FrameResult
from cv_pipeline.monitoring.prediction_log import read_log
from cv_pipeline.service import assembly
from cv_pipeline.synthetic.line import open_line
from cv_pipeline.video.pipeline import Pipeline

FRAMES = 24
SUMMER = datetime(2026, 3, 29, 0, 59, 59, tzinfo=timezone.utc)  # a second before clocks go forward in Europe
JUMPS = {  # frame → how the wall clock of the machine jumps
    "an hour back": {8: -timedelta(hours=1)},
    "an hour forward": {8: timedelta(hours=1)},
    "a day back": {8: -timedelta(days=1)},
    "a day forward, and back": {6: timedelta(days=1), 14: -timedelta(days=1)},
}


class Camera:
    "Frames of the line, stamped by a wall clock that jumps; calls something before each frame."

    source_id, live = "gate", False

    def __init__(self, jumps, before=lambda k: None):
        self.jumps, self.before = jumps, before

    def __iter__(self):
        now = SUMMER
        for k, frame in enumerate(open_line(f"line:width=160,height=120,frames={FRAMES}", "gate")):
            self.before(k)
            now += timedelta(seconds=0.5) + self.jumps.get(k, timedelta())
            yield Frame(frame.image, "gate", k, now)

    def close(self):
        pass


@pytest.fixture
def zone():
    "The time zone is put back."
    before = os.environ.get("TZ")
    yield
    os.environ.pop("TZ", None) if before is None else os.environ.update(TZ=before)
    time.tzset()


def run(folder, camera, monkeypatch):
    "A run with every sink over a camera."
    config = load_config(
        None,
        {
            "sources": ["line:"],
            "delivery.out": str(folder),
            "delivery.video": True,
            "model.threads": 1,
            "telemetry": {},
            "collect": {"random": 1.0},
            "tracker.name": "bytetrack",
        },
    )
    monkeypatch.setattr(assembly, "open_configured", lambda configs, gates=None: [camera])
    return assembly.run_config(config)


def counted(folder):
    "Frames that each sink has kept."
    with av.open(str(next(folder.glob("*.mp4")))) as film:
        shown = sum(1 for _ in film.decode(video=0))
    return {
        "jsonl": len(list(read_jsonl(folder / "results.jsonl"))),
        "video": shown,
        "log": len(read_log(folder / "log")),
        "collected": len(list((folder / "collected").rglob("*.jpg"))),
    }


@pytest.mark.parametrize("jumps", JUMPS.values(), ids=JUMPS)
def test_a_wall_clock_that_jumps_loses_nothing(tmp_path, monkeypatch, jumps):
    summary = run(tmp_path, Camera(jumps), monkeypatch)
    assert counted(tmp_path) == dict.fromkeys(("jsonl", "video", "log", "collected"), FRAMES)
    assert summary["detections"] == read_results(tmp_path).num_rows
    assert summary["seconds"] < 600  # by the monotonic clock


@pytest.mark.parametrize("zones", [("Europe/Berlin", "Asia/Tokyo"), ("UTC", "America/New_York")])
def test_a_time_zone_that_changes_loses_nothing(tmp_path, monkeypatch, zone, zones):
    def before(k):
        os.environ["TZ"] = zones[k >= FRAMES // 2]
        time.tzset()

    run(tmp_path, Camera({}, before), monkeypatch)
    assert counted(tmp_path) == dict.fromkeys(("jsonl", "video", "log", "collected"), FRAMES)
    times = [datetime.fromisoformat(line["captured_at"]) for line in read_jsonl(tmp_path / "results.jsonl")]
    assert times == [SUMMER + timedelta(seconds=(k + 1) / 2) for k in range(FRAMES)]


def test_intervals_are_those_of_the_monotonic_clock(monkeypatch):
    "The wall clock of the pipeline goes back by an hour; how long it ran does not."
    wall = iter(SUMMER - timedelta(hours=k) for k in range(10_000))
    ticks = iter(range(10_000_000))

    class Answers:
        def write(self, result: FrameResult):
            pass

        def close(self):
            pass

    from cv_pipeline.inference.loading import load_model

    camera = Camera({})
    camera.live = True
    clocks = Clocks(lambda: next(ticks) / 1e3, lambda: next(wall))
    summary = Pipeline([camera], load_model("factory_line", threads=1), [Answers()], clocks=clocks).run()
    assert summary["seconds"] > 0 and json.loads(json.dumps(summary))["error"] is None
