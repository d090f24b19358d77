"""A camera that is lost comes back, in its own time, without disturbing anybody and without invented frames."""
import itertools
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.inference.backends import load_model
from cv_pipeline.line import open_line
from cv_pipeline.types import Frame, Source, SourceError
from cv_pipeline.video.pipeline import Pipeline
from cv_pipeline.video.reconnect import ReconnectingSource, backoff_s
from cv_pipeline.video.tracking import SortTracker

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


class Wire:
    "A connection that gives pictures, then ends or breaks."

    live = True

    def __init__(self, images, breaks=True, skipped=0):
        self.source_id, self.images, self.breaks, self.closed, self.skipped_count = "wire", images, breaks, 0, skipped

    def __iter__(self):
        for k, image in enumerate(self.images):
            yield Frame(image, "wire", k, NOON + timedelta(seconds=next(SECONDS)))
        if self.breaks:
            raise SourceError("connection reset", "wire")

    def close(self):
        self.closed += 1


SECONDS = itertools.count()


def scripted(*steps, **kwargs):
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

    camera = ReconnectingSource(connect, "gate", wait=waits.append, chance=lambda: 0.5, **kwargs)
    return camera, waits


def black(n, size=(48, 64)):
    return [np.zeros((*size, 3), np.uint8)] * n


def test_it_comes_back_with_another_size_and_frame_numbers_go_on():
    refused = SourceError("no route to host", "gate")
    first, second = Wire(black(3)), Wire(black(2, (100, 200)), breaks=False, skipped=2)
    camera, waits = scripted(first, refused, refused, second)
    frames = list(camera)
    assert [(f.frame_id, f.size, f.source_id) for f in frames] == [(0, (64, 48), "gate"), (1, (64, 48), "gate"), (2, (64, 48), "gate"),
                                                                    (3, (200, 100), "gate"), (4, (200, 100), "gate")]
    assert waits == [1.0, 2.0, 4.0, 1.0]  # the counter starts anew after a good frame; a clean end is a loss too
    assert first.closed == second.closed == 1 and camera.skipped_count == 2
    assert isinstance(camera, Source) and camera.live


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

    from cv_pipeline.config import RuntimeConfig

    line = open_line("line:frames=20", "line")
    summary = Pipeline([camera, line], load_model(threads=1), [Keep()], lambda s: SortTracker(), runtime=RuntimeConfig(policy="every-frame")).run()
    assert [r.frame.frame_id for r in results["gate"]] == list(range(12)) and len(results["line"]) == 20
    gate = summary["sources"]["gate"]
    assert gate["reconnects"] == 2 and gate["connection"] == "lost" and gate["size"] == (320, 240) and "script ended" in gate["error"]


def test_closing_wakes_a_camera_that_waits():
    import threading
    import time

    def refuse():
        raise SourceError("no route to host", "gate")

    camera = ReconnectingSource(refuse, "gate", first_s=60)
    reader = threading.Thread(target=lambda: list(camera), daemon=True)
    reader.start()
    while camera.last_error is None:
        time.sleep(0.01)
    camera.close()
    reader.join(5)
    assert not reader.is_alive()
