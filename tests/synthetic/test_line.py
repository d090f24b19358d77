"""The line as data: what is written can be read back, by our readers and by the tools that the formats belong
to."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.formats import from_mot, from_yolo, read_dataset
from cv_pipeline.core.types import ConfigError, DataError, Detections, Source
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.conditions import Conditions
from cv_pipeline.synthetic.line import (
    DEMO,
    LineSource,
    average_precision,
    domain_randomised,
    make_demo,
    open_line,
    shrunk,
    write_dataset,
    write_video,
)
from cv_pipeline.synthetic.parts import CLASS_NAMES
from tests.helpers.services import require

CONFIG = LineConfig(cameras=2, seed=31, size=(320, 240), hand_every=5)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    "Twelve frames of two cameras, interleaved, in every format; lossless pictures."
    root, line = tmp_path_factory.mktemp("line"), FactoryLine(CONFIG, Conditions(fog=1))
    frames = [line.render(i, c) for i in range(0, 60, 5) for c in (0, 1)]
    assert write_dataset(root, iter(frames), ["yolo", "coco", "mot", "video"], "val", suffix=".png") == 24
    return root, frames


def test_yolo_round_trip(written):
    root, frames = written
    items = {i.path.stem: i for i in read_dataset(root, "val")} if (root / "data.yaml").exists() else {}
    for frame, truth in frames:
        name, wanted = f"{frame.source_id}_{truth.frame_id:06d}", truth.labelled(0.3)
        text = (root / "labels" / "val" / f"{name}.txt").read_text()
        read = from_yolo(text, frame.size, len(CLASS_NAMES))
        assert (
            np.abs(read.xyxy - wanted.xyxy).max(initial=0) < 0.01
            and read.class_id.tolist() == wanted.class_id.tolist()
        )
        assert (root / "images" / "val" / f"{name}.png").exists()
        if items:
            assert items[name].names == CLASS_NAMES


def test_coco_round_trip_by_pycocotools(written):
    coco = require("pycocotools.coco")
    root, frames = written
    book = coco.COCO(str(root / "annotations" / "val.json"))
    assert [c["name"] for c in book.loadCats(book.getCatIds())] == list(CLASS_NAMES)
    for number, (frame, truth) in enumerate(frames, 1):
        image, d = book.imgs[number], truth.detections
        assert (image["width"], image["height"], image["frame_id"], image["camera"]) == (
            *frame.size,
            truth.frame_id,
            truth.camera,
        )
        assert (
            image["conditions"]["fog"] == 1
            and image["captured_at"] == frame.captured_at.isoformat()
            and (root / image["file_name"]).exists()
        )
        rows = book.loadAnns(book.getAnnIds([number]))
        assert [a["track_id"] for a in rows] == d.tracker_id.tolist()
        assert np.allclose([[x, y, x + w, y + h] for x, y, w, h in (a["bbox"] for a in rows)], d.xyxy)
        assert [a["iscrowd"] for a in rows] == (d.data["visibility"] < 0.3).astype(int).tolist()
    assert sorted(book.anns) == list(range(1, len(book.anns) + 1))


def test_mot_round_trip(written):
    root, frames = written
    for camera in (0, 1):
        folder = root / "mot" / "val" / f"line-{camera}"
        read = from_mot((folder / "gt" / "gt.txt").read_text())
        for _, truth in frames:
            if truth.camera == camera:
                got, d = read[truth.frame_id], truth.detections
                assert (
                    got.tracker_id.tolist() == d.tracker_id.tolist()
                    and got.class_id.tolist() == d.class_id.tolist()
                )
                assert np.allclose(got.xyxy, d.xyxy) and np.allclose(
                    got.data["visibility"], d.data["visibility"], atol=1e-4
                )
        assert "seqLength=56" in (folder / "seqinfo.ini").read_text()


def test_videos_have_the_frames_that_were_written(written):
    root, frames = written
    for camera in (0, 1):
        with av.open(str(root / "videos" / "val" / f"line-{camera}.mp4")) as clip:
            decoded = [f.to_ndarray(format="bgr24") for f in clip.decode(video=0)]
            assert clip.streams.video[0].codec_context.name == "h264"
        wanted = [f.image for f, t in frames if t.camera == camera]
        assert len(decoded) == len(wanted) == 12
        assert (
            max(np.abs(a.astype(int) - b).mean() for a, b in zip(decoded, wanted)) < 4
        )  # lossy, but the same pictures


def test_splits_share_one_data_yaml(tmp_path):
    line = FactoryLine(CONFIG)
    for split, first in (("train", 0), ("val", 50), ("test", 100)):
        write_dataset(tmp_path, line.frames(2, first=first), ["yolo"], split)
    text = (tmp_path / "data.yaml").read_text()
    assert all(f"{s}: images/{s}" in text for s in ("train", "val", "test"))


@pytest.mark.parametrize("formats, message", [([], "empty"), (["yolo", "voc"], "voc")])
def test_unknown_formats_are_refused(tmp_path, formats, message):
    with pytest.raises(ConfigError, match=message):
        write_dataset(tmp_path, [], formats)


def test_a_frame_that_comes_twice_is_refused(tmp_path):
    line = FactoryLine(CONFIG)
    with pytest.raises(DataError, match="duplicate frame"):
        write_dataset(tmp_path, [line.render(3), line.render(3)], ["yolo"])


def test_video_sizes_must_be_even_and_constant(tmp_path):
    black = lambda h, w: np.zeros((h, w, 3), np.uint8)
    with pytest.raises(DataError, match="even frame size, not 33x32"):
        write_video(tmp_path / "a.mp4", [black(32, 33)])
    with pytest.raises(DataError, match="frame 1 is 64x32"):
        write_video(tmp_path / "b.mp4", [black(32, 32), black(32, 64)])
    assert write_video(tmp_path / "new" / "c.mp4", [black(32, 32)] * 3, fps=29.97) == 3
    with av.open(str(tmp_path / "new" / "c.mp4")) as clip:
        assert abs(float(clip.streams.video[0].average_rate) - 29.97) < 0.01


def test_the_same_frames_give_the_same_file(tmp_path):
    files = [tmp_path / f"{i}.mp4" for i in (0, 1)]
    for file in files:
        write_video(file, (f.image for f, _ in FactoryLine(CONFIG).frames(10)))
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_line_is_a_source():
    source = LineSource(FactoryLine(CONFIG), camera=1, frames=4, first=10, source_id="belt")
    assert isinstance(source, Source) and not source.live and source.skipped_count == 0
    frames = list(source)
    assert [f.frame_id for f in frames] == [10, 11, 12, 13] and {f.source_id for f in frames} == {"belt"}
    assert all(len(f.meta["truth"].detections) for f in frames)
    endless = LineSource(FactoryLine(CONFIG))
    taken = []
    for frame in endless:
        taken.append(frame.frame_id)
        if len(taken) == 3:
            endless.close()
    assert taken == [0, 1, 2]


def test_open_line_reads_settings_and_conditions():
    source = open_line("line:camera=1,frames=7,seed=31,width=320,height=240,hand_every=5,fog=2.5", "belt-7")
    assert source.source_id == "belt-7" and source.info[1:5] == (320, 240, 25.0, 7)
    frame = next(iter(source))
    assert frame.meta["truth"].conditions["fog"] == 2.5
    twin = FactoryLine(CONFIG, {1: Conditions(fog=2.5)}).render(0, 1)[0]
    assert frame.image.tobytes() == twin.image.tobytes()
    assert open_line("line:").line.config == LineConfig()


@pytest.mark.parametrize(
    "uri, message",
    [
        ("line:fogg=1", "unknown setting of the line: 'fogg'"),
        ("line:seed=1.5", "seed=1.5 is not a number"),
        ("line:noise=7", "severities"),
        ("line:density=0", "line settings"),
        ("line:seed", "seed= is not a number"),
        ("line:camera=-1", "line settings"),
    ],
)
def test_open_line_refuses_nonsense(uri, message):
    with pytest.raises(ConfigError, match=message):
        open_line(uri)


@pytest.mark.slow
def test_splits_never_share_a_line():
    names = [{f.source_id for f, _ in domain_randomised(seed, 6, per_line=2)} for seed in (100, 200)]
    assert names == [{"line-100", "line-101", "line-102"}, {"line-200", "line-201", "line-202"}]
    one, two = ([f.image.tobytes() for f, _ in domain_randomised(100, 4, per_line=2)] for _ in range(2))
    assert one == two


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([(640, 480), (854, 480), (321, 243)]), st.integers(64, 640))
def test_shrunken_boxes_fit_shrunken_pictures(size, side):
    frame, truth = FactoryLine(LineConfig(seed=3, size=size)).render(20)
    small, less = shrunk(frame, truth, side)
    w, h = small.size
    assert (
        max(w, h) == side
        and (less.detections.xyxy <= [w, h, w, h]).all()
        and less.detections.tracker_id is truth.detections.tracker_id
    )
    assert np.allclose(less.detections.xyxy / [w, h, w, h], truth.detections.xyxy / [*size, *size], atol=1e-5)


def test_average_precision_of_truth_silence_and_hidden_parts():
    require("pycocotools")
    truths = [t for _, t in FactoryLine(LineConfig(seed=3, hand_every=4)).frames(40)]
    everything, labelled = [t.detections for t in truths], [t.labelled() for t in truths]
    assert sum(map(len, everything)) > sum(map(len, labelled))
    for found in (everything, labelled):  # finding a hidden part is no mistake, missing it neither
        assert average_precision(truths, found)["AP"] == 1
    assert average_precision(truths, [Detections.empty()] * 40)["AP"] == 0
    wrong = [Detections(d.xyxy, None, (d.class_id + 1) % 5) for d in labelled]
    assert average_precision(truths, wrong)["AP50"] < 0.05


def test_the_demo_is_two_cameras_of_one_line(tmp_path):
    paths = make_demo(tmp_path / "demo", seconds=1, fps=10)
    assert [p.name for p in paths] == ["camera-1.mp4", "camera-2.mp4"] and len(DEMO) == 2
    for path in paths:
        with av.open(str(path)) as clip:
            assert sum(1 for _ in clip.decode(video=0)) == 10
        assert sorted(from_mot(Path(path).with_suffix(".gt.txt").read_text())) == list(range(10))


def test_coco_file_is_plain_json(written):
    book = json.loads((written[0] / "annotations" / "val.json").read_text())
    assert set(book) == {"images", "annotations", "categories"} and len(book["images"]) == 24
