"""Results of models that are not detectors on their way: pipeline, tracks, tables, lines, pictures, log."""

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest

from cv_pipeline.core.config import load_config
from cv_pipeline.core.images import decode_mask, encode_mask
from cv_pipeline.core.results import detections_of, merge_results, read_results
from cv_pipeline.core.types import Classification, DataError, Detections, Frame, FrameResult
from cv_pipeline.core.viz import draw_detections
from cv_pipeline.service.assembly import run_config
from cv_pipeline.tracking.trackers import make_tracker
from cv_pipeline.video.sinks import JsonlSink, ParquetSink, ResultRows, result_record, results_table

MODELS = Path(__file__).parents[1] / "models"
NOW = datetime(2026, 6, 1, tzinfo=timezone.utc)
COLUMN = {"segment": "mask", "pose": "keypoints", "obb": "xywhr", "classify": "scores"}


def run(task: str, out: Path, **more):
    "Twelve frames of the line through a model of the tests; the summary."
    config = {
        "sources": ["line:frames=12"],
        "model.path": str(MODELS / f"line_{task}"),
        "model.threads": 1,
        "postprocess.conf": 0.1 if task != "classify" else None,
        "delivery.out": str(out),
    }
    return run_config(load_config(None, {k: v for k, v in config.items() if v is not None} | more))


@pytest.mark.parametrize("task", list(COLUMN))
def test_a_run_writes_what_the_model_says_and_it_comes_back(task, tmp_path):
    summary = run(task, tmp_path)
    table = read_results(tmp_path)
    found, lines = detections_of(table), (tmp_path / "results.jsonl").read_text().splitlines()
    assert summary["frames_inferred"] == 12 and len(found) > 5
    assert table.schema.names[-1] == COLUMN[task]
    said = [d for line in lines for d in json.loads(line)["detections"]]
    assert len(said) == len(found)
    for row, d in zip(found.data[COLUMN[task]], said):
        if task == "segment":
            assert d["mask"] == row
            assert decode_mask(row).shape == (480, 640) and decode_mask(row).any()
        else:
            assert np.allclose(np.ravel(d[COLUMN[task]]), np.ravel(row), atol=0.006)


def test_a_classification_is_one_row_a_frame_and_no_track(tmp_path):
    run("classify", tmp_path)
    table = read_results(tmp_path)
    assert table["frame_id"].to_pylist() == list(range(12))
    assert set(table["tracker_id"].to_pylist()) == {-1}
    first = Classification.of(detections_of(table[:1]))
    assert first.confidence[0] == pytest.approx(first.scores.max())
    assert table[:1].select(["x1", "y1", "x2", "y2"]).to_pylist()[0] == {
        "x1": 0,
        "y1": 0,
        "x2": 640,
        "y2": 480,
    }


@pytest.mark.parametrize("name", ["sort", "bytetrack", "ocsort"])
def test_a_track_keeps_what_its_detection_carries(name):
    tracker, black = make_tracker(name), np.zeros((100, 200, 3), np.uint8)
    for step in range(4):
        frame = Frame(black, "cam", step, NOW + timedelta(seconds=step / 25))
        boxes = np.float32([[20 + step, 20, 60 + step, 60], [120, 20, 160, 60]])
        points = np.float32([[[1, step, 1]], [[2, step, 1]]])
        masks = np.array([encode_mask(np.eye(4, dtype=bool)), encode_mask(np.ones((4, 4), bool))], object)
        given = Detections(boxes, [0.9, 0.8], [0, 1], data={"keypoints": points, "mask": masks})
        found = tracker.update(given, frame)
        for row in range(len(found)):
            mine = int(found.class_id[row])
            assert found.data["keypoints"][row, 0].tolist() == [mine + 1, step, 1]
            assert found.data["mask"][row] == masks[mine]
    assert (found.tracker_id >= 0).all()


def result(n: int, number: int = 0, **data) -> FrameResult:
    "A frame with n detections that carry `data`."
    boxes = np.tile(np.float32([[10, 10, 40, 40]]), (n, 1))
    frame = Frame(np.zeros((60, 80, 3), np.uint8), "cam", number, NOW)
    return FrameResult(frame, Detections(boxes, None, None, None, data), ("a",))


def masks(n: int) -> np.ndarray:
    column = np.empty(n, object)
    column[:] = [encode_mask(np.ones((3, 3), bool), (k, 2), (60, 80)) for k in range(n)]
    return column


def test_frames_without_a_detection_and_without_the_column_are_empty_cells():
    rows = ResultRows()
    for r in (
        result(0),
        result(2, mask=masks(2)),
        result(1),
        result(1, keypoints=np.ones((1, 2, 3), np.float32)),
    ):
        rows.add(r)
    table = results_table(rows, "run")
    assert table["mask"].to_pylist()[2:] == [None, None]
    assert table["keypoints"].to_pylist() == [None, None, None, [1.0] * 6]
    assert "mask" not in detections_of(table).data, "a column with empty cells is no column of all rows"
    assert detections_of(table[:2]).data["mask"][1] == masks(2)[1]


def test_parts_with_and_without_a_column_become_one_table(tmp_path):
    sink = ParquetSink(tmp_path, part_rows=1)
    for number, r in enumerate((result(1), result(1, mask=masks(1)), result(1))):
        r.frame.frame_id = number
        sink.write(r)
    sink.close()
    assert pq.read_table(tmp_path / "results.parquet")["mask"].to_pylist() == [None, masks(1)[0], None]


def test_lines_of_a_killed_run_bring_their_columns(tmp_path):
    lines = JsonlSink(tmp_path / "results.jsonl")
    (tmp_path / "results.parts").mkdir()
    lines.write(result(2, 4, mask=masks(2), keypoints=np.float32([[[1, 2, 0.5]], [[3, 4, 0.25]]])))
    lines.close()
    found = detections_of(read_results(tmp_path))
    assert found.data["mask"].tolist() == masks(2).tolist()
    assert found.data["keypoints"].tolist() == [[[1, 2, 0.5]], [[3, 4, 0.25]]]
    merge_results(tmp_path)
    again = detections_of(pq.read_table(tmp_path / "results.parquet"))
    assert again.data["mask"].tolist() == masks(2).tolist()


def test_a_detector_writes_the_columns_that_it_always_wrote():
    rows = ResultRows()
    rows.add(result(1, decision=np.zeros(1, np.int8), raw_confidence=np.ones(1, np.float32)))
    assert results_table(rows, "run").schema.names[-1] == "decision"
    assert set(result_record(result(1))["detections"][0]) == {
        *("class_id", "class_name", "confidence", "xyxy", "tracker_id", "decision")
    }


def test_masks_key_points_and_turned_boxes_are_drawn_where_they_are():
    picture = np.full((100, 120, 3), 200, np.uint8)
    mask = np.zeros((100, 120), bool)
    mask[30:50, 20:60] = True
    column = np.empty(1, object)
    column[0] = encode_mask(mask)
    drawn = draw_detections(picture, Detections([[20, 30, 60, 50]], data={"mask": column}), labels=False)
    assert (drawn[35:45, 25:55] != picture[35:45, 25:55]).any(axis=2).all()
    assert (drawn[60:] == picture[60:]).all()
    points = np.float32([[[30, 80, 1], [90, 80, 1], [60, 10, 0.1]]])
    posed = Detections([[20, 70, 100, 90]], data={"keypoints": points})
    drawn = draw_detections(picture, posed, labels=False, skeleton=[(0, 1)])
    assert (drawn[80, 32:88] != picture[80, 32:88]).any(axis=1).all(), "the line between two points"
    assert (drawn[5:15, 55:65] == picture[5:15, 55:65]).all(), "a point that is hardly sure is not drawn"
    turned = Detections([[20, 20, 100, 80]], data={"xywhr": np.float32([[60, 50, 80, 2, np.pi / 4]])})
    drawn = draw_detections(picture, turned, labels=False)
    assert (drawn[50, 60] != picture[50, 60]).any() and (drawn[20, 21:90] == picture[20, 21:90]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1e12])
def test_numbers_of_a_broken_model_do_not_stop_the_drawing(bad):
    picture = np.full((50, 50, 3), 90, np.uint8)
    points, turned = np.full((1, 2, 3), bad, np.float32), np.full((1, 5), bad, np.float32)
    rows = Detections([[bad] * 4], [0.5], data={"keypoints": points, "xywhr": turned})
    assert draw_detections(picture, rows, skeleton=[(0, 1), (0, 7)]).shape == picture.shape


def test_a_mask_of_another_size_is_not_drawn_and_a_broken_one_is_named():
    picture, column = np.full((50, 50, 3), 90, np.uint8), np.empty(1, object)
    column[0] = encode_mask(np.ones((10, 10), bool))
    one = Detections([[5, 5, 9, 9]], data={"mask": column})
    assert (draw_detections(picture, one, labels=False)[6:8, 6:8] == 90).all()
    column[0] = {"size": [50, 50], "counts": "5"}
    with pytest.raises(DataError, match="do not fill its 50×50 pixels"):
        draw_detections(picture, one)


def test_what_was_found_is_drawn_over_the_covered_frame(tmp_path):
    "The cover paints the whole frame grey; masks of what was found in it are all that the video shows."
    whole = [{"polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}]
    privacy = {"always": True, "regions": ["masks"], "masks": whole}
    run("segment", tmp_path, **{"delivery.video": True, "privacy": privacy})
    table = read_results(tmp_path)
    film = cv2.VideoCapture(str(next(tmp_path.glob("*.mp4"))))
    shown, image = film.read()
    found = detections_of(table.filter(pa.compute.equal(table["frame_id"], 0)))
    assert shown and len(found) > 0
    masks = np.any([decode_mask(m) for m in found.data["mask"]], axis=0)
    inside = cv2.erode(masks.astype(np.uint8), np.ones((9, 9))) > 0
    grey = np.median(image[~masks].astype(int), axis=0)
    assert grey.max() - grey.min() < 8, "what lies outside is covered"
    assert np.median(np.abs(image[inside] - grey).max(axis=1)) > 20, "masks are tinted over it"


def test_the_prediction_log_counts_the_classes_of_a_classifier(tmp_path):
    run("classify", tmp_path / "out", **{"telemetry": {"folder": str(tmp_path / "log")}})
    tables = [pq.read_table(p) for p in sorted((tmp_path / "log").rglob("*.parquet"))]
    rows = [t for t in tables if "confidence" in t.schema.names]
    assert sum(len(t) for t in rows) == 12
    assert all(pa.types.is_floating(t["confidence"].type) for t in rows)


def test_a_vector_is_written_and_not_drawn():
    vector = np.float32([[0.6, 0.8]])
    rows = ResultRows()
    rows.add(result(1, embedding=vector))
    assert np.array_equal(detections_of(results_table(rows, "run")).data["embedding"], vector)
    one = result(1, embedding=vector)
    assert (draw_detections(one.frame.image, one.detections, one.names) == one.frame.image).all()
