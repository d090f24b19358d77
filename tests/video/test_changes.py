"""Sources come and go, and thresholds change, while a pipeline runs."""

import threading

import numpy as np
import pytest

from cv_pipeline.core.config import RuntimeConfig
from cv_pipeline.core.types import ConfigError, SinkError
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.line import open_line
from cv_pipeline.video.pipeline import Pipeline
from cv_pipeline.video.sinks import VideoSink
from cv_pipeline.video.stages import FrameQueues
from tests.helpers.waiting import until


@pytest.fixture(scope="module")
def model():
    return load_model("factory_line", threads=1)


def line(name, frames=6, camera=0):
    return open_line(f"line:camera={camera},frames={frames},width=160,height=120", name)


class Waiting:
    "A source that gives two frames, waits until it is let go, and gives two more."

    live = False

    def __init__(self, name, go):
        self.source, self.go, self.source_id = line(name, 4), go, name

    def __iter__(self):
        for k, frame in enumerate(self.source):
            if k == 2:
                self.go.wait(60)
            yield frame

    def close(self):
        self.source.close()


class Camera:
    "A live source that gives one frame, then none until it is closed."

    source_id, live = "camera", True

    def __init__(self):
        self.closed = threading.Event()
        Camera.made = self

    def __iter__(self):
        yield next(iter(line("camera")))
        self.closed.wait(60)

    def close(self):
        self.closed.set()


class Heard:
    "What a sink hears, in order."

    def __init__(self, fails=False):
        self.heard, self.fails = [], fails

    def write(self, result):
        self.heard.append((result.frame.source_id, result.frame.frame_id))

    def source_ended(self, source_id):
        self.heard.append((source_id, "ended"))
        if self.fails:
            raise OSError("no space")

    def close(self):
        pass


def run(model, steps, sinks=(), **how):
    "A run that waits while each step is made, in its tick, as soon as its condition holds."
    go, left = threading.Event(), list(steps)
    pipeline = Pipeline([Waiting("first", go)], model, sinks, **how)

    def tick(p):
        summary = p.summary()
        if summary["sources"]["first"]["frames_delivered"] < 2:
            return
        if left and left[0][0](summary):
            left.pop(0)[1](p)
        elif not left:
            go.set()

    try:
        return pipeline.run(tick)
    finally:
        go.set()


def always(summary):
    return True


def is_in(name, state):
    return lambda summary: summary["sources"].get(name, {}).get("state") == state


def test_a_source_that_is_added_is_read_to_its_end(model):
    heard = Heard()
    steps = [(always, lambda p: p.add_source(line("second"))), (is_in("second", "done"), lambda p: None)]
    summary = run(model, steps, [heard])
    assert [k for name, k in heard.heard if name == "second"] == list(range(6))
    assert summary["sources"]["second"]["frames_delivered"] == 6


def test_a_sink_hears_of_the_end_after_the_last_frame_and_once(model):
    heard = Heard()
    steps = [
        (always, lambda p: p.add_source(line("second"))),
        (is_in("second", "done"), lambda p: p.remove_source("second")),
        (is_in("second", "removed"), lambda p: None),
    ]
    run(model, steps, [heard])
    mine = [k for name, k in heard.heard if name == "second"]
    assert mine == [*range(6), "ended"]


def test_a_camera_that_gives_no_frame_can_be_removed(model):
    steps = [
        (always, lambda p: p.add_source(Camera())),
        (lambda s: s["sources"]["camera"]["frames_delivered"] == 1, lambda p: p.remove_source("camera")),
        (is_in("camera", "removed"), lambda p: None),
    ]
    told = run(model, steps)["sources"]["camera"]
    assert (told["frames_read"], told["frames_delivered"], told["live"]) == (1, 1, True)
    assert "read camera" not in [thread.name for thread in threading.enumerate()]


def test_a_sink_that_cannot_finish_a_source_ends_the_run(model):
    steps = [
        (always, lambda p: p.add_source(line("second"))),
        (is_in("second", "done"), lambda p: p.remove_source("second")),
        (is_in("second", "removed"), lambda p: None),
        (lambda summary: summary["error"], lambda p: None),
    ]
    with pytest.raises(SinkError, match="no space"):
        run(model, steps, [Heard(fails=True)])


def test_the_film_of_a_removed_source_is_closed_while_the_run_goes_on(model, tmp_path):
    film, sizes = VideoSink(tmp_path), []
    steps = [
        (always, lambda p: p.add_source(line("second"))),
        (is_in("second", "done"), lambda p: p.remove_source("second")),
        (
            is_in("second", "removed"),
            lambda p: p.between_batches(lambda: sizes.append(film._clips["second"])),
        ),
        (lambda summary: sizes, lambda p: None),
    ]
    run(model, steps, [film])
    assert sizes == [None]
    assert [path.name for path in film.files] == ["first.mp4", "second.mp4"]


def test_the_same_id_twice_is_refused(model):
    errors = []

    def again(p):
        with pytest.raises(ConfigError, match="had this id before") as caught:
            p.add_source(line("first"))
        errors.append(caught.value)

    run(model, [(always, again)])
    assert len(errors) == 1


def test_a_removed_id_is_not_used_again(model):
    errors = []

    def again(p):
        with pytest.raises(ConfigError, match="had this id before") as caught:
            p.add_source(line("second"))
        errors.append(caught.value)

    steps = [
        (always, lambda p: p.add_source(line("second"))),
        (always, lambda p: p.remove_source("second")),
        (is_in("second", "removed"), again),
    ]
    run(model, steps)
    assert len(errors) == 1


def test_an_unknown_source_cannot_be_removed(model):
    def wrong(p):
        with pytest.raises(ConfigError, match="there are first"):
            p.remove_source("nobody")

    assert run(model, [(always, wrong)])["sources"]["first"]["state"] == "done"


def test_a_run_that_is_over_takes_no_source(model):
    pipeline = Pipeline([line("first")], model)
    pipeline.run()
    with pytest.raises(ConfigError, match="about to end"):
        pipeline.add_source(line("second"))


def test_a_run_that_was_stopped_takes_no_source(model):
    def late(p):
        p.stop()
        with pytest.raises(ConfigError, match="about to end"):
            p.add_source(line("second"))

    assert run(model, [(always, late)])["interrupted"]


def test_a_source_that_fails_after_it_was_added_fails_alone(model):
    class Broken:
        source_id, live = "broken", False

        def __iter__(self):
            raise OSError("torn")
            yield

        def close(self):
            pass

    steps = [(always, lambda p: p.add_source(Broken())), (is_in("broken", "failed"), lambda p: None)]
    summary = run(model, steps)
    assert {n: s["state"] for n, s in summary["sources"].items()} == {"first": "done", "broken": "failed"}


def test_no_room_for_a_reader_fails_the_new_source_only(model, monkeypatch):
    def add(p):
        with monkeypatch.context() as patch:
            patch.setattr(
                threading.Thread, "start", lambda self: (_ for _ in ()).throw(RuntimeError("no room"))
            )
            p.add_source(Camera())

    summary = run(model, [(always, add)])
    assert summary["sources"]["camera"]["state"] == "failed"
    assert Camera.made.closed.is_set()
    assert summary["sources"]["first"]["frames_delivered"] == 4


def test_a_full_queue_of_a_removed_source_is_delivered(model):
    "Its reader waits for a place when it is removed; what was read is not lost."
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Heard):
        def write(self, result):
            super().write(result)
            if result.frame.source_id == "second":
                entered.set()
                go_on.wait(60)

    def remove(p):
        until(lambda: p.summary()["stages"]["preprocess"]["queue"] >= 2)
        p.remove_source("second")
        go_on.set()

    slow = Slow()
    steps = [
        (always, lambda p: p.add_source(line("second", 500))),
        (lambda summary: entered.is_set(), remove),
        (is_in("second", "removed"), lambda p: None),
    ]
    told = run(model, steps, [slow], runtime=RuntimeConfig(max_batch=1, queue_size=2))["sources"]["second"]
    assert told["frames_read"] == told["frames_delivered"] < 500
    assert told["frames_discarded"] == 0


def test_thresholds_keep_what_was_counted(model):
    made = model.with_postprocess(conf=0.9)
    seen = []

    def swap(p):
        p.model.postprocess.dropped = 7
        change = p.between_batches(lambda: p.use_thresholds(made))
        assert change.done.wait(60)
        seen.append((p.model.postprocess.spec.conf, p.summary()["uncertain_dropped"], change.error))

    pipeline_model = model.with_postprocess(conf=0.3)
    run(pipeline_model, [(always, swap)])
    assert seen == [(0.9, 7, None)]


def test_a_change_that_raises_hurts_nobody_and_is_told(model):
    seen = []

    def wrong(p):
        change = p.between_batches(lambda: 1 / 0)
        assert change.done.wait(60)
        seen.append(type(change.error))

    assert run(model, [(always, wrong)])["error"] is None
    assert seen == [ZeroDivisionError]


def test_the_model_remembers_its_own_thresholds(model):
    changed = model.with_postprocess(conf=0.9).with_postprocess(iou=0.3)
    assert changed.as_shipped().manifest.postprocess == model.manifest.postprocess
    image = np.zeros((64, 64, 3), np.uint8)
    assert len(changed.as_shipped().predict([image])[0]) == len(model.predict([image])[0])


def test_queues_forget_a_source_and_keep_the_turn_of_the_others():
    queues = FrameQueues({name: (4, False) for name in "abc"})
    for name in "abc":
        queues.put(name, name + "1")
        queues.put(name, name + "2")
    assert queues.take(1) == ["a1"]
    queues.remove("b")
    assert queues.take(4) == ["c1", "a2", "c2"]
    assert set(queues.dropped) == {"a", "c"}


def test_a_writer_that_waits_for_a_removed_source_is_let_go():
    queues, told = FrameQueues({"a": (1, False), "b": (1, False)}), []
    queues.put("a", 1)
    writer = threading.Thread(target=lambda: told.append(queues.put("a", 2)))
    writer.start()
    queues.remove("a")
    writer.join(30)
    assert told == [False]


def test_what_is_known_of_a_removed_source_is_written_down_after_its_last_frame(model):
    "Its only frame is at a sink when it is removed: it has left when that frame was counted, not before."
    entered, go_on, looks = threading.Event(), threading.Event(), []

    class Holds(Heard):
        def write(self, result):
            super().write(result)
            if result.frame.source_id == "second":
                entered.set()
                go_on.wait(60)

    def looked(summary):
        looks.append(summary["sources"]["second"]["state"])
        return len(looks) > 8

    steps = [
        (always, lambda p: p.add_source(line("second", 1))),
        (lambda summary: entered.is_set(), lambda p: p.remove_source("second")),
        (looked, lambda p: go_on.set()),
        (is_in("second", "removed"), lambda p: None),
    ]
    told = run(model, steps, [Holds()], runtime=RuntimeConfig(max_batch=1))["sources"]["second"]
    assert "removed" not in looks
    assert (told["frames_read"], told["frames_delivered"], told["frames_discarded"]) == (1, 1, 0)
