"""A how-to notebook with values of a user: a real clip of people, and a YOLOv8n that he exported."""

import json

import pyarrow.parquet as pq
import pytest

from cv_pipeline.synthetic.line import write_video
from tests.helpers.services import require


@pytest.mark.slow
@pytest.mark.real
def test_a_foreign_yolo_on_a_real_clip(root, real_data, tmp_path):
    papermill, av = require("papermill"), require("av")
    clip = tmp_path / "people.mp4"
    with av.open(str(real_data / "videos" / "one-by-one-person-detection.mp4")) as whole:
        pictures = [
            frame.to_ndarray(format="bgr24")
            for frame, _ in zip(whole.decode(video=0), range(120), strict=False)
        ]
    write_video(
        clip, iter(pictures[60:])
    )  # somebody walks in at frame 65: the clock of a slow machine must not end it before
    given = {
        "model": str(real_data / "models" / "yolov8n_fp32_reconstructed.onnx"),
        "source": str(clip),
        "seconds": 600.0,
        "out": str(tmp_path / "out"),
    }
    book = root / "nbs" / "how_to" / "01_own_yolo.ipynb"
    papermill.execute_notebook(
        book, tmp_path / "done.ipynb", given, cwd=tmp_path, progress_bar=False, kernel_name="python3"
    )
    (summary,) = (json.loads(p.read_text(encoding="utf-8")) for p in tmp_path.rglob("summary.json"))
    (source,) = summary["sources"].values()
    assert source["frames_inferred"] == 60
    (table,) = tmp_path.rglob("results.parquet")
    names = pq.read_table(table)["class_name"].to_pylist()
    assert names.count("person") > 30
