"""Frames in tiles on their way through the pipeline: every object once, calls counted, order kept, failures
contained, configuration checked."""

from datetime import datetime, timedelta, timezone

import cv2
import numpy as np
import pytest

from cv_pipeline.core.config import RuntimeConfig, load_config
from cv_pipeline.core.tiles import TileSettings
from cv_pipeline.core.types import BackendError, ConfigError, Frame
from cv_pipeline.inference.loading import load_model
from cv_pipeline.service.assembly import (
    batch_config,
    open_configured_model,
    run_config,
)
from cv_pipeline.service.processes import share_of
from cv_pipeline.tracking.sort import SortTracker
from cv_pipeline.video.pipeline import Pipeline
from tests.helpers.recorder import Recorder
from tests.helpers.squares import paint, squares_model

START = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


class Pictures:
    "A source of given pictures."

    def __init__(self, images, source_id="cam", live=False):
        self.images, self.source_id, self.live = images, source_id, live

    def __iter__(self):
        for i, image in enumerate(self.images):
            yield Frame(image, self.source_id, i, START + timedelta(seconds=i / 25))

    def close(self):
        pass


def layout(seed, count=6, size=(640, 480)):
    "Squares that do not touch."
    rng, taken, made = np.random.default_rng(seed), np.zeros(size[::-1], bool), []
    while len(made) < count:
        side = int(rng.choice([5, 9, 16, 30]))
        x, y = int(rng.integers(2, size[0] - side - 2)), int(rng.integers(2, size[1] - side - 2))
        if not taken[y - 2 : y + side + 2, x - 2 : x + side + 2].any():
            taken[y : y + side, x : x + side] = True
            made.append((x, y, side, side, int(rng.integers(2))))
    return made


def corners(squares):
    return sorted([x, y, x + w, y + h, kind] for x, y, w, h, kind in squares)


def corners_of(found):
    rows = np.concatenate([found.xyxy.round(), found.class_id[:, None]], 1).astype(int)
    return sorted(rows.tolist())


def run(images, model, runtime=None, sinks=1, **how):
    sink = Recorder()
    sources = images if isinstance(images[0], Pictures) else [Pictures(images)]
    pipeline = Pipeline(sources, model, [sink], runtime=runtime or RuntimeConfig(queue_size=4), **how)
    return sink.results, pipeline.run()


@pytest.mark.parametrize("tiles", [{"whole": False}, {}, {"overlap": 0.4}, {"size": 200}])
def test_every_square_is_found_once_for_fifty_layouts(tiles):
    model = squares_model().with_tiles(**tiles)
    for seed in range(50):
        squares = layout(seed)
        found = model.predict([paint(squares)])[0]
        if tiles.get("size"):  # tiles are made smaller: corners are rounded
            assert len(found) == len(squares)
        else:
            assert corners_of(found) == corners(squares)


def test_the_pipeline_finds_what_predict_finds():
    images = [paint(layout(seed)) for seed in range(12)]
    model = squares_model().with_tiles()
    direct = [corners_of(found) for found in model.predict(images)]
    results, summary = run(images, squares_model().with_tiles())
    assert [r.frame.frame_id for r in results] == list(range(12))
    assert [corners_of(r.detections) for r in results] == direct
    assert summary["frames_inferred"] == 12


@pytest.mark.parametrize("batch, calls", [(1, 12 * 21), (8, 12 * 3), (64, 12)])
def test_calls_are_counted_and_no_batch_is_larger_than_allowed(batch, calls):
    "20 tiles of 160 pixels and the whole frame; the last call of a frame is not filled by the next."
    model = squares_model(max_batch=64).with_tiles()
    tiles = len(model.plan((640, 480), model.tiles))
    assert tiles == 21
    results, summary = run([paint(layout(s)) for s in range(12)], model, RuntimeConfig(max_batch=batch))
    assert model.backend.inputs == 12 * 21
    assert summary["sources"]["cam"]["tiles"] == {
        "when": "always",
        "frames": 12,
        "computed": 12 * 21,
        "reused": 0,
    }
    assert model.backend.calls <= calls if batch > 1 else model.backend.calls == calls
    assert [len(r.detections) for r in results] == [6] * 12


def test_one_tile_that_covers_the_frame_is_like_no_tiles():
    images = [paint(layout(s), (150, 120)) for s in range(0)] or [
        paint([(5, 7, 30, 20), (80, 60, 12, 12, 1)], (150, 120))
    ] * 3
    plain, _ = run(images, squares_model())
    tiled, summary = run(images, squares_model().with_tiles())
    for a, b in zip(plain, tiled):
        assert (a.detections.xyxy == b.detections.xyxy).all()
        assert (a.detections.confidence == b.detections.confidence).all()
    assert summary["sources"]["cam"]["tiles"]["notes"] == ["frames of 150×120 fit into one tile: not cut"]


def test_the_bundled_detector_answers_the_same_where_nothing_is_cut():
    from cv_pipeline.synthetic.belt import FactoryLine, LineConfig

    images = [f.image for f, _ in FactoryLine(LineConfig(size=(320, 240), seed=3)).frames(3)]
    model = load_model("factory_line", threads=1)
    for a, b in zip(model.predict(images), model.with_tiles(320).predict(images)):
        assert (a.xyxy == b.xyxy).all() and (a.confidence == b.confidence).all()
        assert list(a.data) == list(b.data)


def test_motion_gives_the_same_objects_for_fewer_calls():
    walk = [[(10 + 5 * i, 20 + 3 * i, 20, 20, 0), (500, 60, 18, 18, 1)] for i in range(40)]
    images = [paint(squares) for squares in walk]
    always, motion = squares_model().with_tiles(), squares_model().with_tiles(when="motion", every=20)
    first, _ = run(images, always, trackers=lambda s: SortTracker(frame_rate=25))
    second, summary = run(images, motion, trackers=lambda s: SortTracker(frame_rate=25))
    assert [corners_of(r.detections) for r in second] == [corners(squares) for squares in walk]
    assert [sorted(r.detections.tracker_id.tolist()) for r in second[3:]] == [[0, 1]] * 37
    assert [r.detections.tracker_id.tolist() for r in first] == [
        r.detections.tracker_id.tolist() for r in second
    ]
    assert motion.backend.inputs < 0.35 * always.backend.inputs
    assert summary["sources"]["cam"]["tiles"]["computed"] == motion.backend.inputs


def test_motion_on_a_file_does_not_depend_on_speed():
    "With batches of any size, and a queue of any length, the same tiles are computed."
    rng = np.random.default_rng(5)
    images = [paint([(int(x), int(y), 14, 14)]) for x, y in rng.integers(0, 460, (25, 2))]
    seen = []
    for batch, depth in ((1, 1), (8, 4), (32, 16)):
        model = squares_model(max_batch=32).with_tiles(when="motion")
        results, summary = run(
            images,
            model,
            RuntimeConfig(max_batch=batch, queue_size=depth),
            trackers=lambda s: SortTracker(frame_rate=25),
        )
        rows = [(corners_of(r.detections), r.detections.tracker_id.tolist()) for r in results]
        seen.append((rows, summary["sources"]["cam"]["tiles"]))
    assert seen[0] == seen[1] == seen[2]


def test_two_cameras_of_two_sizes_keep_their_tiles_apart():
    one = [paint([(100 + 4 * i, 100, 20, 20)]) for i in range(15)]
    two = [paint([(300, 200 + 4 * i, 24, 24, 1)], (800, 600)) for i in range(15)]
    model = squares_model(max_batch=16).with_tiles(when="motion")
    results, _ = run([Pictures(one, "one"), Pictures(two, "two")], model, RuntimeConfig(max_batch=16))
    for name, wanted in (("one", 0), ("two", 1)):
        mine = [r for r in results if r.frame.source_id == name]
        assert [r.frame.frame_id for r in mine] == list(range(15))
        assert [r.detections.class_id.tolist() for r in mine] == [[wanted]] * 15


def test_a_live_camera_in_tiles_delivers_complete_frames():
    images = [paint([(100, 100, 20, 20), (500, 400, 20, 20, 1)])] * 30
    results, summary = run([Pictures(images, "cam", live=True)], squares_model().with_tiles(when="motion"))
    assert results
    assert {len(r.detections) for r in results} == {2}


# ---------------------------------------------------------------- failures


def failing_at(call):
    def before(calls):
        if calls == call:
            raise BackendError("device lost", "squares")

    return before


def test_a_call_that_fails_marks_the_frame_and_the_next_one_is_computed_whole():
    "The second frame's only tile fails twice (the call and its retry); nothing is missed afterwards."
    images = [paint([(30, 30, 20, 20)])] + [paint([(34 + 4 * i, 30, 20, 20)]) for i in range(6)]
    before, model = set(), squares_model()
    tiles = len(model.plan((640, 480), TileSettings(whole=False)))

    def fails(calls):
        if calls in (tiles + 1, tiles + 2):
            before.add(calls)
            raise BackendError("device lost", "squares")

    model = squares_model(before=fails).with_tiles(when="motion", whole=False, every=1000)
    results, summary = run(images, model, RuntimeConfig(on_model_error="skip"))
    assert before == {tiles + 1, tiles + 2}
    assert [r.status for r in results] == ["ok", "model_error"] + ["ok"] * 5
    assert [len(r.detections) for r in results] == [1, 0] + [1] * 5
    assert summary["sources"]["cam"]["tiles"]["computed"] >= 2 * tiles


def test_a_call_that_fails_ends_the_run_where_it_should():
    model = squares_model(before=lambda calls: failing_at(30)(calls) or failing_at(31)(calls)).with_tiles()
    with pytest.raises(BackendError, match="device lost"):
        run([paint(layout(s)) for s in range(5)], model)


def test_a_selection_of_tiles_that_fails_ends_its_own_camera_only():
    model = squares_model().with_tiles(when="motion", sources=("bad",))
    bad, good = Pictures([paint([])] * 5, "bad"), Pictures([paint([(5, 5, 20, 20)], (150, 120))] * 5, "good")
    sink = Recorder()
    pipeline = Pipeline([bad, good], model, [sink])
    channel = next(c for c in pipeline._run.channels if c.source.source_id == "bad")
    channel.tiles.select = lambda frame: 1 / 0
    summary = pipeline.run()
    assert summary["sources"]["bad"]["state"] == "failed"
    assert "the selection of tiles raised ZeroDivisionError" in summary["sources"]["bad"]["error"]
    assert [len(r.detections) for r in sink.results if r.frame.source_id == "good"] == [1] * 5


def test_other_thresholds_are_not_mixed_with_what_was_found_before():
    model = squares_model().with_tiles(when="motion", every=1000)
    images = [paint([(30, 30, 20, 20)])] * 12
    sink, changed = Recorder(), []

    class Changing(Recorder):
        def write(self, result):
            if result.frame.frame_id == 3:
                pipeline.use_thresholds(pipeline.model.with_postprocess(conf=0.99))
                changed.append(True)

        def close(self):
            pass

    pipeline = Pipeline([Pictures(images)], model, [sink, Changing()], runtime=RuntimeConfig(queue_size=1))
    pipeline.run()
    counts = [len(r.detections) for r in sink.results]
    assert changed and counts[:4] == [1] * 4
    assert counts[-4:] == [0] * 4  # none of the old result is left


# ---------------------------------------------------------------- settings of a run


def folder_of(tmp_path, images):
    for i, image in enumerate(images):
        cv2.imwrite(str(tmp_path / f"{i:03}.png"), image)
    return str(tmp_path)


@pytest.mark.parametrize(
    "given, wanted",
    [
        (640, {"size": 640, "when": "always"}),
        (True, {"size": None}),
        ({"size": 320, "when": "motion", "every": 9}, {"size": 320, "when": "motion", "every": 9}),
    ],
)
def test_short_and_long_forms(given, wanted):
    config = load_config(None, {"sources": ["line:"], "tiles": given})
    assert {k: getattr(config.tiles, k) for k in wanted} == wanted


def test_false_and_nothing_are_no_tiles():
    for given in ({}, {"tiles": False}, {"tiles": None}):
        assert load_config(None, {"sources": ["line:"], **given}).tiles is None


@pytest.mark.parametrize(
    "given, words",
    [
        (16, "tiles.size"),
        ({"overlap": 0.95}, "tiles.overlap"),
        ({"when": "sometimes"}, "tiles.when"),
        ({"every": 0}, "tiles.every"),
        ({"sise": 640}, "did you mean 'size'"),
        ("large", "tiles"),
    ],
)
def test_invalid_settings_of_a_run_are_named(given, words):
    with pytest.raises(ConfigError) as e:
        load_config(None, {"sources": ["line:"], "tiles": given})
    assert words in str(e.value)


def test_tiles_of_an_unknown_source_are_refused():
    config = load_config(None, {"sources": [{"uri": "line:", "id": "belt"}], "tiles": {"sources": ["roof"]}})
    with pytest.raises(ConfigError, match="unknown source 'roof'"):
        open_configured_model(config)


def test_a_model_for_whole_pictures_is_not_cut(tmp_path):
    from dataclasses import replace

    model = squares_model()
    post = replace(model.manifest.postprocess, head="softmax")
    namer = replace(model, manifest=replace(model.manifest, task="classify", postprocess=post))
    with pytest.raises(ConfigError, match='tiles: this model\'s task is "classify"'):
        namer.with_tiles(640)


def test_a_run_in_tiles_writes_what_it_did(tmp_path):
    out = tmp_path / "out"
    source = folder_of(tmp_path / "in" if (tmp_path / "in").mkdir() is None else tmp_path, [paint([])] * 2)
    config = load_config(None, {"sources": [source], "tiles": {"size": 320}, "delivery.out": str(out)})
    summary = run_config(config)
    (row,) = summary["sources"].values()
    assert row["tiles"] == {"when": "always", "frames": 2, "computed": 2 * 7, "reused": 0}
    assert summary["config"]["tiles"]["size"] == 320


def test_each_process_gets_the_tiles_of_its_sources():
    config = load_config(
        None,
        {
            "sources": [{"uri": "line:", "id": "a"}, {"uri": "line:seed=2", "id": "b"}],
            "tiles": {"size": 320, "sources": ["b"]},
        },
    )
    assert share_of(config, [0], 0, 8000).tiles is None
    assert share_of(config, [1], 1, 8001).tiles.sources == ["b"]


@pytest.mark.parametrize("given", [{"sources": ["line"]}, {"when": "motion"}])
def test_a_batch_of_pictures_takes_no_tiles_of_cameras(given):
    config = load_config(None, {"sources": ["line:"], "tiles": given})
    with pytest.raises(ConfigError, match="are of cameras"):
        batch_config(config, 1, True)


def test_tiles_belong_to_the_identity_of_a_batch():
    one, two = (
        load_config(None, {"sources": ["line:"], "tracker.name": "none", **tiles})
        for tiles in ({}, {"tiles": 320})
    )
    assert batch_config(one, 1, True)[2] != batch_config(two, 1, True)[2]


def test_a_shadow_sees_the_tiles_of_its_run():
    from cv_pipeline.core.config import ShadowConfig
    from cv_pipeline.release.trial import shadow_settings

    config = load_config(None, {"sources": ["line:"], "tiles": 320})
    assert shadow_settings(ShadowConfig(model="factory_line"), config).tiles == TileSettings(320, sources=[])
    some = load_config(None, {"sources": ["line:"], "tiles": {"sources": ["line"]}})
    with pytest.raises(ConfigError, match="in one way"):
        shadow_settings(ShadowConfig(model="factory_line"), some)
