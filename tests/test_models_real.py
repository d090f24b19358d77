"""Other people's models through the whole pipeline: the person video, with the tracks it must give."""
import numpy as np
import pyarrow.parquet as pq
import pytest

from cv_pipeline.config import load_config
from cv_pipeline.video.run import run_config

YOLOX = """
names: [person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign, parking meter, bench, bird, cat, dog,
  horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat,
  baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli,
  carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, cell phone, microwave,
  oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear, hair drier, toothbrush]
preprocess: {imgsz: [416, 416], letterbox: top-left, color: BGR, scale: 1.0}
postprocess: {head: yolox, iou: 0.45}
"""


@pytest.mark.real
def test_yolov8n_counts_the_people_of_the_person_video(real_data, tmp_path):
    "Six people walk to the table one after the other; every fourth frame is enough to count them."
    config = load_config(None, {
        "sources": [str(real_data / "videos/one-by-one-person-detection.mp4")], "model.path": str(real_data / "models/yolov8n_fp32_reconstructed.onnx"),
        "postprocess.conf": 0.35, "postprocess.classes": ["person"], "selection.every": 4, "delivery.out": str(tmp_path), "delivery.jsonl": False})
    summary = run_config(config)
    assert summary["frames_read"] == 1394 and summary["frames_inferred"] == 349
    assert summary["tracks"] == 6
    rows = pq.read_table(tmp_path / "results.parquet").to_pydict()
    ids, frames = np.array(rows["tracker_id"]), np.array(rows["frame_id"])
    visits = sorted((frames[ids == i].min(), frames[ids == i].max()) for i in np.unique(ids[ids >= 0]))
    assert all(a[1] < b[0] for a, b in zip(visits, visits[1:])), "one at a time"


@pytest.mark.real
def test_yolox_with_a_spec_file_sees_people(real_data, tmp_path):
    spec = tmp_path / "yolox.yaml"
    spec.write_text(YOLOX)
    config = load_config(None, {
        "sources": [str(real_data / "videos/one-by-one-person-detection.mp4")], "model.path": str(real_data / "models/yolox_nano.onnx"),
        "model.spec": str(spec), "postprocess.conf": 0.35, "selection.every": 10, "delivery.out": str(tmp_path / "out")})
    summary = run_config(config)
    rows = pq.read_table(tmp_path / "out/results.parquet").to_pydict()
    people = np.array(rows["class_name"]) == "person"
    assert summary["frames_inferred"] == 140 and people.sum() > 40
