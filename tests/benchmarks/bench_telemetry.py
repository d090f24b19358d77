"""The prediction log: milliseconds a frame on the delivering thread, beside a writer that appends a
dictionary a box and calls pyarrow or pandas.

1920 × 1080, 20 boxes, parts of 500 frames, whole files synced in both; alternating rounds, medians of all
frames and means with everything that writing costs.
"""

import os
import statistics
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cv_pipeline.core.types import Detections, FrameResult
from cv_pipeline.monitoring import telemetry
from cv_pipeline.monitoring.frame_statistics import FrameStatistics, cell_descriptor, frame_statistics
from cv_pipeline.monitoring.telemetry import LogSettings, TelemetrySink
from cv_pipeline.monitoring.upkeep import Upkeep
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig

PART = 500
CONSTANT = FrameStatistics(1.0, 2.0, 0.5, 0.4, 3.0)


class RowWise:
    "What one writes first: a dictionary a row, a dictionary a box."

    def __init__(self, folder: Path, pandas: bool, statistics_of=frame_statistics, vector_of=cell_descriptor):
        self.folder, self.pandas, self.statistics_of, self.vector_of, self.frames, self.boxes, self.number = (
            folder,
            pandas,
            statistics_of,
            vector_of,
            [],
            [],
            0,
        )
        folder.mkdir()

    def write(self, result: FrameResult) -> None:
        f, d = result.frame, result.detections
        row = {
            "camera": f.source_id,
            "frame_id": f.frame_id,
            "captured_at": f.captured_at,
            "width": f.size[0],
            "height": f.size[1],
            "model": result.model,
            "selected": result.inferred,
            "status": result.status,
            "detections": len(d),
            **self.statistics_of(f.image)._asdict(),
            "embedding": self.vector_of(f.image).tolist(),
        }
        self.frames.append(row)
        for i in range(len(d)):
            x1, y1, x2, y2 = (float(v) for v in d.xyxy[i])
            self.boxes.append(
                {
                    "camera": f.source_id,
                    "frame_id": f.frame_id,
                    "captured_at": f.captured_at,
                    "class_id": int(d.class_id[i]),
                    "class_name": result.class_name(int(d.class_id[i])),
                    "confidence": float(d.confidence[i]),
                    "x1": x1,
                    "y1": y1,
                    "x2": x2,
                    "y2": y2,
                    "area_share": (x2 - x1) * (y2 - y1) / (f.size[0] * f.size[1]),
                    "tracker_id": int(d.tracker_id[i]),
                    "decision": "accept",
                }
            )
        if len(self.frames) >= PART:
            self.flush()

    def flush(self) -> None:
        for name, rows in (("frames", self.frames), ("detections", self.boxes)):
            if not rows:
                continue
            if self.pandas:
                import pandas as pd

                table = pa.Table.from_pandas(pd.DataFrame(rows))
            else:
                table = pa.Table.from_pylist(rows)
            with open(self.folder / f"{name}-{self.number}.parquet", "wb") as f:
                pq.write_table(table, f, compression="zstd")
                f.flush()
                os.fsync(f.fileno())
        self.frames, self.boxes, self.number = [], [], self.number + 1

    close = flush


def timed(sink, results) -> tuple[float, float]:
    "Median milliseconds of a frame, and the mean with closing."
    took, began = [], time.perf_counter()
    for r in results:
        start = time.perf_counter()
        sink.write(r)
        took.append((time.perf_counter() - start) * 1e3)
    sink.close()
    return statistics.median(took), (time.perf_counter() - began) * 1e3 / len(results)


def made(frames: int) -> list[FrameResult]:
    "Results of one 1080p picture with twenty boxes; every picture differs in one row of pixels."
    first, rng = FactoryLine(LineConfig(size=(1920, 1080))).render(0)[0], np.random.default_rng(0)
    xyxy = rng.uniform(0, 900, (20, 2)).astype(np.float32)
    images = [np.roll(first.image, k, axis=0) for k in range(4)]
    return [
        FrameResult(
            replace(
                first,
                image=images[k % 4],
                frame_id=k,
                captured_at=first.captured_at + timedelta(milliseconds=40 * k),
            ),
            Detections(
                np.hstack([xyxy, xyxy + 60]), rng.uniform(0.3, 1, 20), np.arange(20) % 5, np.arange(20)
            ),
            ("a", "b", "c", "d", "e"),
            {"inference": 8.0},
            model="m 1",
        )
        for k in range(frames)
    ]


def run(quick: bool = False) -> list[dict]:
    cv2.setNumThreads(1)
    results, rounds = made(1000 if quick else 2000), 2 if quick else 5
    constant = lambda image: np.zeros(64, np.float32)
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            for name, sink in (
                ("ours", TelemetrySink(place / "ours", LogSettings(part_rows=PART))),
                (
                    "ours, with upkeep",
                    TelemetrySink(
                        place / "upkeep", LogSettings(part_rows=PART), listeners=[Upkeep(place / "u")]
                    ),
                ),
                ("row by row, pyarrow", RowWise(place / "arrow", False)),
                ("row by row, pandas", RowWise(place / "pandas", True)),
            ):
                found.setdefault(name, []).append(timed(sink, results))
            real = telemetry.frame_statistics
            telemetry.frame_statistics = lambda image: CONSTANT
            try:
                found.setdefault("ours, bookkeeping only", []).append(
                    timed(
                        TelemetrySink(
                            place / "books",
                            LogSettings(telemetry.Descriptor("zero", constant), part_rows=PART),
                        ),
                        results,
                    )
                )
            finally:
                telemetry.frame_statistics = real
            found.setdefault("row by row, bookkeeping only", []).append(
                timed(RowWise(place / "books2", False, lambda image: CONSTANT, constant), results)
            )
    middle = {
        k: (statistics.median(m for m, _ in v), statistics.median(a for _, a in v)) for k, v in found.items()
    }
    beside = lambda k: "ours, bookkeeping only" if "bookkeeping" in k else "ours"
    return [
        {
            "writer": k,
            "median ms a frame": m,
            "mean ms a frame, all told": a,
            "times ours": a / middle[beside(k)][1],
        }
        for k, (m, a) in middle.items()
    ]
