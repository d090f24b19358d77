"""The five stages on real parts: order, equality with batch 1, failures, bounded memory."""

import gc
import threading
from collections import Counter, defaultdict
from datetime import datetime, timedelta, timezone

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.config import RuntimeConfig
from cv_pipeline.core.types import BackendError, ConfigError, DataError, Frame, SinkError, SourceError
from cv_pipeline.inference.backends import Model, OutOfMemory, SteadyBackend
from cv_pipeline.inference.batching import DynamicBatcher
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.line import open_line
from cv_pipeline.tracking.sort import SortTracker
from cv_pipeline.video.pipeline import Pipeline
from cv_pipeline.video.selection import make_selector
from cv_pipeline.video.stages import FrameQueues
from tests.helpers.recorder import Recorder
from tests.helpers.waiting import until

START = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


def track(source):
    return SortTracker(frame_rate=25)


class Pictures:
    "A source of given pictures; can wait before a frame, fail, change its size or hang."

    def __init__(self, source_id, images, live=False, before=None, fail_after=None, hang=None):
        self.source_id, self.images, self.live, self.before, self.given = source_id, images, live, before, 0
        self.fail_after, self.hang, self.closed = fail_after, hang, 0

    def __iter__(self):
        for k, image in enumerate(self.images):
            if self.fail_after is not None and k == self.fail_after:
                raise SourceError("cable cut", self.source_id)
            if self.hang is not None and k == 3:
                self.hang.wait(30)
            if self.before:
                self.before(k)
            self.given = k  # frames that have been taken over
            yield Frame(image, self.source_id, k, START + timedelta(seconds=k / 25))

    def close(self):
        self.closed += 1


class Wrapped:
    "A backend around a real one; `before` may raise or change what happens at a call."

    def __init__(self, inner, before=None, after=None, max_batch=None):
        self.inner, self.before, self.after, self.calls, self.sizes = inner, before, after, 0, []
        self.name, self.provider, self.max_batch = inner.name, inner.provider, max_batch or inner.max_batch

    def infer(self, batch):
        self.calls += 1
        self.sizes.append(len(batch))
        if self.before:
            self.before(self.calls, batch)
        raw = self.inner.infer(batch)
        return self.after(self.calls, raw) if self.after else raw

    def warmup(self):
        self.inner.warmup()

    def close(self):
        pass


@pytest.fixture(scope="module")
def model():
    return load_model("factory_line", threads=1)


def with_backend(model, **kwargs):
    return Model(
        model.manifest, Wrapped(model.backend, **kwargs), model.preprocess, model.postprocess, model.path
    )


def waiting(pipeline):
    "Frames at the entrance."
    return pipeline.summary()["stages"]["preprocess"]["queue"]


def line_images(n, camera=0, seed=3):
    return [f.image for f in open_line(f"line:camera={camera},frames={n},seed={seed}", "x")]


def assert_same(a, b, px=0.05, conf=2e-3):
    assert len(a) == len(b)
    order_a, order_b = (
        np.lexsort((a.xyxy[:, 0].round(), a.class_id)),
        np.lexsort((b.xyxy[:, 0].round(), b.class_id)),
    )
    np.testing.assert_array_equal(a.class_id[order_a], b.class_id[order_b])
    np.testing.assert_allclose(a.xyxy[order_a], b.xyxy[order_b], atol=px)
    np.testing.assert_allclose(a.confidence[order_a], b.confidence[order_b], atol=conf)


@pytest.mark.slow
def test_results_equal_batch_one_and_order_is_kept_per_camera(model):
    cameras = {f"cam{c}": line_images(40, c) for c in range(3)}
    answers = {}
    for max_batch in (1, 4, 7):
        sink = Recorder()
        summary = Pipeline(
            [Pictures(k, v) for k, v in cameras.items()],
            model,
            [sink],
            track,
            runtime=RuntimeConfig(max_batch=max_batch),
        ).run()
        assert summary["frames_inferred"] == 120 and summary["frames_dropped"] == 0
        answers[max_batch] = sink.by_source()
        for results in answers[max_batch].values():
            assert [r.frame.frame_id for r in results] == list(range(40))
    for max_batch in (4, 7):
        for camera in cameras:
            for a, b in zip(answers[1][camera], answers[max_batch][camera]):
                assert_same(a.detections, b.detections)
                assert sorted(a.detections.tracker_id.tolist()) == sorted(b.detections.tracker_id.tolist())


def test_pipeline_equals_predict(model):
    images = line_images(10)
    sink = Recorder()
    Pipeline([Pictures("a", images)], model, [sink]).run()
    for r, wanted in zip(sink.results, model.predict(images)):
        assert_same(r.detections, wanted)


@pytest.mark.slow
def test_batches_really_form(model):
    slow = with_backend(model, before=lambda call, batch: call > 1 or until(lambda: waiting(pipeline) >= 6))
    pipeline = Pipeline(
        [Pictures(f"cam{c}", line_images(12, c)) for c in range(3)],
        slow,
        [],
        runtime=RuntimeConfig(max_batch=6),
    )
    pipeline.run()
    assert max(slow.backend.sizes) > 1 and max(slow.backend.sizes) <= 6


def test_frames_that_are_not_selected_are_delivered_without_detections(model):
    sink = Recorder()
    summary = Pipeline(
        [Pictures("a", line_images(20))], model, [sink], track, lambda source: make_selector(every=4)
    ).run()
    assert summary["frames_read"] == 20 and summary["frames_inferred"] == 5
    assert [r.inferred for r in sink.results] == [k % 4 == 0 for k in range(20)]
    assert all(len(r.detections) == 0 for r in sink.results if not r.inferred)
    assert [r.frame.frame_id for r in sink.results] == list(range(20))


def test_frame_size_may_change_in_the_middle(model):
    images = line_images(4) + [np.ascontiguousarray(im[:200, :300]) for im in line_images(4)]
    sink = Recorder()
    summary = Pipeline([Pictures("a", images)], model, [sink], track).run()
    assert summary["sources"]["a"]["size"] == (300, 200) and len(sink.results) == 8
    for r in sink.results[4:]:
        assert (r.detections.xyxy[:, [0, 2]] <= 300).all() and (r.detections.xyxy[:, [1, 3]] <= 200).all()


def test_a_dead_camera_does_not_stop_or_delay_the_others(model):
    hang = threading.Event()
    dead, hanging, good = (
        Pictures("dead", line_images(10), fail_after=4),
        Pictures("hanging", line_images(10), hang=hang, live=True),
        Pictures("good", line_images(30)),
    )
    sink = Recorder()
    pipeline = Pipeline([dead, hanging, good], model, [sink])
    state = {}

    def tick(p):
        s = p.summary()["sources"]
        if s["good"]["state"] == "done" and not state:
            state.update(s)  # the good one ended while the other hangs
            hang.set()

    summary = pipeline.run(tick)
    assert state["hanging"]["state"] == "running"
    assert [len(sink.by_source()[k]) for k in ("dead", "good")] == [4, 30]
    assert (
        summary["sources"]["dead"]["state"] == "failed" and "cable cut" in summary["sources"]["dead"]["error"]
    )
    assert summary["sources"]["good"]["state"] == "done"
    assert dead.closed >= 1 and good.closed >= 1 and sink.closed == 1


def test_a_bug_in_a_source_is_wrapped_not_swallowed(model):
    class Buggy(Pictures):
        def __iter__(self):
            yield from ()
            raise ZeroDivisionError("oops")

    summary = Pipeline([Buggy("b", [])], model, []).run()
    assert "ZeroDivisionError: oops" in summary["sources"]["b"]["error"]


def test_model_raising_in_the_middle_stop(model):
    def before(call, batch):
        if call >= 8:
            raise RuntimeError("driver gone")

    sink = Recorder()
    pipeline = Pipeline(
        [Pictures("a", line_images(30))],
        with_backend(model, before=before),
        [sink],
        runtime=RuntimeConfig(max_batch=1),
    )
    with pytest.raises(BackendError, match="driver gone"):
        pipeline.run()
    assert [r.frame.frame_id for r in sink.results] == list(range(7)) and sink.closed == 1
    assert "driver gone" in pipeline.summary()["error"]


def test_model_raising_skip_marks_frames_and_recovers(model):
    def before(call, batch):
        if 8 <= call <= 11:  # two frames, two tries each
            raise BackendError("device lost", "m")

    sink = Recorder()
    broken = with_backend(model, before=before)
    summary = Pipeline(
        [Pictures("a", line_images(20))],
        broken,
        [sink],
        track,
        runtime=RuntimeConfig(max_batch=1, on_model_error="skip"),
    ).run()
    assert Counter(r.status for r in sink.results) == {"ok": 18, "model_error": 2}
    assert [r.frame.frame_id for r in sink.results if r.status != "ok"] == [7, 8]
    assert summary["stages"]["inference"]["errors"] == 2 and summary["model"]["events"]["retry"] == 2


def test_nan_output_names_the_model(model):
    def after(call, raw):
        raw = raw.copy()
        raw[0, 0, 0] = np.nan
        return raw

    sink = Recorder()
    pipeline = Pipeline([Pictures("a", line_images(5))], with_backend(model, after=after), [sink])
    with pytest.raises(BackendError, match=f"NaN or infinity.*{model.manifest.name}"):
        pipeline.run()
    assert sink.results == []


def test_wrong_shaped_output_is_a_backend_error(model):
    broken = with_backend(model, after=lambda call, raw: raw[:, :, :0].sum(axis=2))
    with pytest.raises(BackendError, match=model.manifest.name):
        Pipeline([Pictures("a", line_images(5))], broken, []).run()
    with pytest.raises(BackendError, match="for a batch of"):
        Pipeline(
            [Pictures("a", line_images(5))], with_backend(model, after=lambda call, raw: raw[:0]), []
        ).run()


@pytest.mark.slow
def test_out_of_memory_splits_the_batch_and_loses_nothing(model):
    def before(call, batch):
        if len(batch) > 2:
            raise OutOfMemory(f"no room for {len(batch)}", "m")

    sink = Recorder()
    tight = with_backend(model, before=before)
    summary = Pipeline(
        [Pictures(f"c{c}", line_images(20, c)) for c in range(2)],
        tight,
        [sink],
        runtime=RuntimeConfig(max_batch=8),
    ).run()
    assert len(sink.results) == 40 and all(r.status == "ok" for r in sink.results)
    assert summary["model"]["events"].get("oom_split", 0) >= 1 and summary["model"]["max_batch"] <= 2


def test_recover_opens_the_backend_anew(model):
    opened = []

    def recover():
        opened.append(1)
        return model.backend

    def before(call, batch):
        raise BackendError("context lost", "m")

    steady = SteadyBackend(Wrapped(model.backend, before=before), recover)
    batch, _ = model.preprocess.batch(line_images(1))
    assert np.allclose(steady.infer(batch), model.backend.infer(batch), atol=1e-3) and opened == [1]


def test_a_full_disk_ends_the_run_and_the_other_sinks_are_complete(model):
    class Full(Recorder):
        def write(self, result):
            if len(self.results) == 5:
                raise SinkError("no space left on device", "results.parquet")
            super().write(result)

    full, other = Full(), Recorder()
    pipeline = Pipeline(
        [Pictures("a", line_images(30))], model, [full, other], runtime=RuntimeConfig(max_batch=1)
    )
    with pytest.raises(SinkError, match="no space left"):
        pipeline.run()
    assert len(full.results) == 5 and full.closed == 1 and other.closed == 1
    assert [r.frame.frame_id for r in other.results] == list(range(len(other.results))) and len(
        other.results
    ) >= 6


def test_a_bug_in_a_callback_is_a_sink_error(model):
    class Bug(Recorder):
        def write(self, result):
            raise KeyError("x")

    with pytest.raises(SinkError, match="Bug raised KeyError"):
        Pipeline([Pictures("a", line_images(3))], model, [Bug()]).run()


@pytest.mark.slow
def test_freshest_frame_bounds_latency_and_counts_drops(model):
    "While the sink writes one result, the camera brings six frames."
    in_flight, count, pace = [], 120, 6

    class Slow(Recorder):
        def write(self, result):
            until(lambda: camera.given >= min(count - 1, pace * (len(self.results) + 1)))
            super().write(result)
            s = pipeline.summary()
            in_flight.append(s["frames_read"] - s["frames_delivered"] - s["frames_dropped"])

    slow = Slow()
    camera = Pictures(
        "cam",
        line_images(count),
        live=True,
        before=lambda k: until(lambda: len(slow.results) >= k // pace - 1),
    )
    pipeline = Pipeline([camera], model, [slow], runtime=RuntimeConfig(max_batch=1))
    summary = pipeline.run()
    assert summary["frames_read"] == 120 == len(slow.results) + summary["frames_dropped"]
    assert (
        summary["latency_ms"]["ingest"]["p50"] is None and summary["stages"]["ingest"]["count"] == 120
    )  # waiting for a camera is no latency
    assert summary["frames_dropped"] > 30
    numbers = [r.frame.frame_id for r in slow.results]
    assert (
        numbers == sorted(numbers) and numbers[-1] == 119
    )  # the newest one is never the one that is dropped
    assert max(in_flight) <= 1 + 3 + 1  # one waiting, three with a tensor, one in the reader's hand


def test_stop_finishes_cleanly(model):
    sink = Recorder()
    pipeline = Pipeline([open_line("line:", "endless")], model, [sink])

    def tick(p):
        if len(sink.results) > 10:
            p.stop()

    summary = pipeline.run(tick)
    assert summary["interrupted"] and sink.closed == 1 and summary["sources"]["endless"]["state"] == "stopped"
    assert summary["frames_read"] == len(sink.results)


def adds_up(summary):
    "Every frame that was read is somewhere."
    for s in [summary, *summary["sources"].values()]:
        assert s["frames_read"] == s["frames_delivered"] + s["frames_dropped"] + s["frames_discarded"], s


@pytest.mark.slow
def test_every_frame_is_accounted_for_however_a_run_ends(model):
    def before(call, batch):
        if call >= 8:
            raise BackendError("device lost", "m")

    class Full(Recorder):
        def write(self, result):
            if len(self.results) == 5:
                raise SinkError("no space left", "x")
            super().write(result)

    runs = [
        Pipeline([Pictures("a", line_images(20))], model, [Recorder()]),
        Pipeline([Pictures("a", line_images(40))], with_backend(model, before=before), [Recorder()]),
        Pipeline([Pictures("a", line_images(40))], model, [Full()]),
    ]
    for pipeline in runs:
        try:
            pipeline.run()
        except (BackendError, SinkError):
            assert (
                pipeline.summary()["frames_discarded"] > 0
                and pipeline.summary()["sources"]["a"]["state"] == "stopped"
            )
        else:
            assert pipeline.summary()["frames_discarded"] == 0
        adds_up(pipeline.summary())


def test_a_selected_frame_is_never_the_one_that_is_dropped(model):
    "A thing is laid down at frame 40 and stays. A slow model must see it, although most frames are dropped."
    images = [np.zeros((120, 160, 3), np.uint8)] * 40 + [np.full((120, 160, 3), 200, np.uint8)] * 80
    called = threading.Event()

    def before(call, batch):
        "The first call lasts until the thing has been laid down, and more."
        called.set()
        if call == 1:
            until(lambda: camera.given >= 60)

    slow, sink = with_backend(model, before=before), Recorder()
    camera = Pictures("cam", images, live=True, before=lambda k: k == 20 and called.wait(15))
    selectors = lambda source: make_selector(motion={"max_gap": 1e6})
    summary = Pipeline([camera], slow, [sink], None, selectors).run()
    asked = [r.frame.frame_id for r in sink.results if r.inferred]
    assert len(asked) == 2 and asked[0] < 40 <= asked[1]
    adds_up(summary)


def test_selection_does_not_hide_a_dead_model(model):
    def before(call, batch):
        raise BackendError("device lost", "m")

    pipeline = Pipeline(
        [Pictures("a", line_images(60))],
        with_backend(model, before=before),
        [],
        None,
        lambda source: make_selector(every=2),
        RuntimeConfig(on_model_error="skip", max_consecutive_errors=5, max_batch=1),
    )
    with pytest.raises(BackendError, match="device lost"):
        pipeline.run()


@pytest.mark.slow
def test_batches_fill_with_selected_frames(model):
    images = line_images(10) * 8
    slow = with_backend(
        model,
        before=lambda call, batch: until(
            lambda: waiting(pipeline) >= 8 or pipeline.summary()["frames_read"] == 320
        ),
    )
    pipeline = Pipeline(
        [Pictures(f"c{k}", images) for k in range(4)],
        slow,
        [],
        None,
        lambda source: make_selector(every=2),
        RuntimeConfig(max_batch=4),
    )
    summary = pipeline.run()
    assert summary["frames_inferred"] == 160 and sum(slow.backend.sizes) == 160
    assert np.mean(slow.backend.sizes) > 2


@pytest.mark.parametrize("part", ["tracker", "selector"])
@pytest.mark.slow
def test_a_tracker_or_selector_that_fails_ends_its_own_camera_only(model, part):
    class Fails:
        confirmed = 0

        def __init__(self, source):
            self.bad = source.source_id == "bad"

        def update(self, detections, frame):
            if self.bad and frame.frame_id == 5:
                raise DataError("clock runs backwards", "bad")
            return detections

        def select(self, frame):
            if self.bad and frame.frame_id == 5:
                raise DataError("clock runs backwards", "bad")
            return True

        def reset(self):
            pass

    sink = Recorder()
    sources = [Pictures("bad", line_images(30)), Pictures("good", line_images(30))]
    summary = Pipeline(sources, model, [sink], **{part + "s": Fails}).run()
    assert (
        summary["sources"]["bad"]["state"] == "failed"
        and "clock runs backwards" in summary["sources"]["bad"]["error"]
    )
    assert summary["sources"]["good"]["state"] == "done" and len(sink.by_source()["good"]) == 30
    assert [r.frame.frame_id for r in sink.by_source()["bad"]] == [0, 1, 2, 3, 4]
    adds_up(summary)


def test_a_failing_progress_callback_stops_the_run_before_the_sinks_close(model):
    class Strict(Recorder):
        def write(self, result):
            assert not self.closed
            super().write(result)

    sink = Strict()
    pipeline = Pipeline([open_line("line:", "endless")], model, [sink])

    def tick(p):
        if len(sink.results) > 5:
            raise ZeroDivisionError("bug in a progress bar")

    with pytest.raises(ZeroDivisionError):
        pipeline.run(tick)
    assert sink.closed == 1  # and Strict was not written to afterwards
    assert "the run raised ZeroDivisionError: bug in a progress bar" in pipeline.summary()["error"]
    assert not [t.name for t in threading.enumerate() if t.name in ("_deliver", "_infer", "_prepare")]


@pytest.mark.slow
def test_detections_dropped_by_policy_are_counted(model):
    wanted = sum(len(d) for d in model.predict(line_images(20)))
    strict = model.with_postprocess(accept_conf=1.0, policy="drop")
    summary = Pipeline([Pictures("a", line_images(20))], strict, []).run()
    assert summary["detections"] == 0 and summary["uncertain_dropped"] == wanted > 20


def test_a_pipeline_runs_once(model):
    pipeline = Pipeline([Pictures("a", line_images(2))], model, [])
    pipeline.run()
    with pytest.raises(ConfigError, match="can run only once"):
        pipeline.run()


@pytest.mark.slow
def test_memory_is_flat(model):
    "The full soak is in tests/benchmarks; this one would see a leak of a frame or of a tensor."
    image = line_images(1)[0]
    process, readings = psutil.Process(), []

    class Meter(Recorder):
        def write(self, result):
            readings.append(process.memory_info().rss) if result.frame.frame_id % 100 == 0 else None

    fast = Wrapped(model.backend)
    raw = model.backend.infer(model.preprocess.batch([image])[0])
    fast.infer = lambda batch: np.repeat(raw, len(batch), axis=0)
    gc.collect()
    Pipeline(
        [Pictures("a", (image for _ in range(3000)))],
        Model(model.manifest, fast, model.preprocess, model.postprocess),
        [Meter()],
        track,
    ).run()
    growth = np.median(readings[-5:]) - np.median(readings[8:13])
    assert growth < 8 * 2**20, f"{growth / 2**20:.1f} MiB more after 2,000 frames"


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 0.02)), max_size=60),
    st.integers(1, 8),
    st.floats(0, 0.05),
)
def test_batcher_keeps_order_and_its_two_promises(arrivals, max_batch, max_wait):
    now, received, left = 0.0, [], []
    batcher = DynamicBatcher(max_batch, max_wait, lambda: now)
    for k, (camera, gap) in enumerate(arrivals):
        target = now + gap
        while (wait := batcher.wait_s()) is not None and now + wait <= target:
            now += wait
            batch = batcher.take()
            assert 0 < len(batch) <= max_batch
            left += [(now, item) for item in batch]
            received += batch
        now = target
        batcher.add((camera, k, now))
    while len(batcher):
        received += batcher.take()
    assert [k for _, k, _ in received] == list(range(len(arrivals)))
    assert all(t - came <= max_wait + 1e-9 for t, (_, _, came) in left)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=80), st.integers(1, 4), st.integers(1, 5))
def test_queues_keep_the_newest_in_order_and_count_every_drop(puts, depth, most):
    queues = FrameQueues({k: (depth, True) for k in "abc"})
    sent = defaultdict(list)
    for k, camera in enumerate(puts):
        queues.put(camera, (camera, k))
        sent[camera].append(k)
    queues.close()
    got = defaultdict(list)
    while (some := queues.take(most)) is not None:
        assert len(some) <= most
        for camera, k in some:
            got[camera].append(k)
    for camera in "abc":
        assert got[camera] == sent[camera][-depth:]
        assert queues.dropped[camera] == len(sent[camera]) - len(got[camera])


class Listener:
    "Every fourth frame, or every frame while the last answer had fewer than four boxes; notes what it hears."

    def __init__(self, fail_on=None):
        self.fail_on, self.heard = fail_on, []
        self.reset()

    def reset(self):
        self.seen, self.boxes = 0, 0

    def select(self, frame):
        self.seen += 1
        return self.boxes < 4 or self.seen % 4 == 0

    def observe(self, frame, detections, tracker):
        if frame.frame_id == self.fail_on:
            raise ValueError("cannot understand the answer")
        self.heard.append((frame.frame_id, len(detections), tracker.confirmed))
        self.boxes = len(detections)


def listen(model, images, max_batch=1, live=False, pauses=False, **kwargs):
    rng, sink, made = np.random.default_rng(0), Recorder(), {}

    def delay(calls, batch):
        "Real work: the model takes one to three times as long."
        for _ in range(rng.integers(3) if pauses else 0):
            model.backend.infer(batch)

    def selector(source):
        made[source.source_id] = Listener(**kwargs)
        return made[source.source_id]

    slow = with_backend(model, before=delay)
    sources = [Pictures(f"cam{c}", images[c], live=live) for c in range(len(images))]
    summary = Pipeline(
        sources, slow, [sink], track, selector, RuntimeConfig(max_batch=max_batch, policy="every-frame")
    ).run()
    return summary, sink.by_source(), made


@pytest.mark.slow
def test_what_a_listening_selector_chooses_from_files_does_not_depend_on_speed_or_batches(model):
    images = [line_images(40, c) for c in range(3)]
    _, first, made = listen(model, images)
    for max_batch, pauses in ((4, False), (1, True), (8, True)):
        summary, again, heard = listen(model, images, max_batch, pauses=pauses)
        for camera, results in first.items():
            assert [r.frame.frame_id for r in again[camera]] == list(range(40))
            assert [r.inferred for r in again[camera]] == [r.inferred for r in results]
            assert [h[:2] for h in heard[camera].heard] == [h[:2] for h in made[camera].heard]
    inferred = [r.frame.frame_id for r in first["cam0"] if r.inferred]
    assert [h[0] for h in made["cam0"].heard] == inferred and 10 <= len(
        inferred
    ) < 40  # told about each frame it chose, and only those


def test_a_live_camera_does_not_wait_for_its_listening_selector(model):
    summary, results, made = listen(model, [line_images(30)], live=True, pauses=True)
    assert summary["frames_read"] == 30 == len(results["cam0"]) and made["cam0"].heard
    assert summary["latency_ms"]["end_to_end"]["p50"] is not None  # by the wall clock, live sources only


def test_a_selector_that_cannot_take_the_answer_ends_its_own_camera(model):
    images = [line_images(30, c) for c in range(2)]
    sink, made = Recorder(), {"cam0": Listener(fail_on=0), "cam1": Listener()}
    summary = Pipeline(
        [Pictures(k, images[i]) for i, k in enumerate(made)],
        model,
        [sink],
        track,
        lambda s: made[s.source_id],
    ).run()
    assert (
        summary["sources"]["cam0"]["state"] == "failed"
        and "cannot understand" in summary["sources"]["cam0"]["error"]
    )
    assert summary["sources"]["cam1"]["state"] == "done" and len(sink.by_source()["cam1"]) == 30


def test_a_model_that_does_not_answer_does_not_leave_the_selector_waiting(model):
    def before(calls, batch):
        if 4 <= calls <= 9:
            raise BackendError("device lost", "x")

    sink, ears = Recorder(), Listener()
    broken = with_backend(model, before=before)
    summary = Pipeline(
        [Pictures("a", line_images(30))],
        broken,
        [sink],
        track,
        lambda s: ears,
        RuntimeConfig(on_model_error="skip"),
    ).run()
    assert len(sink.results) == 30 and summary["stages"]["inference"]["errors"] >= 2
    failed = {r.frame.frame_id for r in sink.results if r.status == "model_error"}
    assert failed and not failed & {h[0] for h in ears.heard}
    stopped = Pipeline(
        [Pictures("a", line_images(30))], with_backend(model, before=before), [], track, lambda s: Listener()
    )
    with pytest.raises(BackendError, match="device lost"):
        stopped.run()


@pytest.mark.slow
def test_open_tracks_are_the_confirmed_ones_of_the_newest_frame():
    from cv_pipeline.inference.loading import load_model
    from cv_pipeline.synthetic.line import open_line
    from cv_pipeline.tracking.trackers import make_tracker
    from cv_pipeline.video.sinks import CallbackSink

    seen = []
    pipeline = Pipeline(
        [open_line("line:seed=4,frames=40", "belt")],
        load_model("factory_line", threads=1),
        [CallbackSink(seen.append)],
        trackers=lambda source: make_tracker("sort", 25),
    )
    summary = pipeline.run()
    open_now = [int((r.detections.tracker_id >= 0).sum()) for r in seen]
    assert max(open_now) > 0 and summary["sources"]["belt"]["open_tracks"] == open_now[-1]
