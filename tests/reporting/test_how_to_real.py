"""A how-to notebook with values of a user: a real clip of people, and a YOLOv8n that he exported."""

import json

import pyarrow.parquet as pq
import pytest

from tests.helpers.services import require


@pytest.mark.slow
@pytest.mark.real
def test_a_foreign_yolo_on_a_real_clip(root, real_data, tmp_path):
    papermill = require("papermill")
    given = {
        "model": str(real_data / "models" / "yolov8n_fp32_reconstructed.onnx"),
        "source": str(real_data / "videos" / "one-by-one-person-detection.mp4"),
        "seconds": 6.0,
        "out": str(tmp_path / "out"),
    }
    book = root / "nbs" / "how_to" / "01_own_yolo.ipynb"
    papermill.execute_notebook(
        book, tmp_path / "done.ipynb", given, cwd=tmp_path, progress_bar=False, kernel_name="python3"
    )
    (summary,) = (json.loads(p.read_text(encoding="utf-8")) for p in tmp_path.rglob("summary.json"))
    (source,) = summary["sources"].values()
    assert source["frames_inferred"] > 10
    (table,) = tmp_path.rglob("results.parquet")
    assert "person" in pq.read_table(table)["class_name"].to_pylist()
