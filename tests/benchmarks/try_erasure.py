"""How long an erasure takes: a prediction log of the shape of a large one, and the log of accesses.

    python -m tests.benchmarks.try_erasure [--megabytes 200] [--lines 40000] [--json FILE]

The log has the folders of a real one: a day and camera each, ten cameras, parts of 5,000 rows with vectors.
Ten gigabytes are a hundred days or so; here it has as many megabytes as asked for, and seconds are given for
a gigabyte of the log. One camera of ten is erased: first five minutes, so that parts are written again, then
all of it. Beside it a log of lines (results.jsonl), all of which is read, and the search of bytes afterwards.
"""

import argparse
import hashlib
import json
import tempfile
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cv_pipeline.core.chain import append_chain, read_chain
from cv_pipeline.core.files import json_bytes
from cv_pipeline.monitoring.telemetry import EMBEDDING_SIZE, detections_schema, frames_schema
from cv_pipeline.privacy.certificate import Markers, search_files
from cv_pipeline.privacy.erasure import erase
from cv_pipeline.privacy.stores import Subject

EIGHT = datetime(2026, 6, 1, tzinfo=timezone.utc)
CAMERAS, ROWS = 10, 5000


def part(camera: int, day: int, seed: int) -> tuple[pa.Table, pa.Table]:
    "A part of frames with vectors, and its boxes."
    rng = np.random.default_rng([camera, day, seed])
    n, columns = ROWS, {}
    for f in frames_schema():
        if f.name == "camera":
            columns[f.name] = pa.array([f"camera-{camera}"] * n)
        elif f.name == "captured_at":
            at = EIGHT + timedelta(days=day, seconds=seed * n * 0.2)
            columns[f.name] = pa.array([at + timedelta(seconds=0.2 * k) for k in range(n)], f.type)
        elif f.name == "embedding":
            ends = pa.array(np.arange(n + 1) * EMBEDDING_SIZE, pa.int32())
            flat = pa.array(rng.standard_normal(n * EMBEDDING_SIZE).astype(np.float16))
            columns[f.name] = pa.ListArray.from_arrays(ends, flat)
        elif pa.types.is_string(f.type):
            columns[f.name] = pa.array(["ok"] * n)
        elif pa.types.is_boolean(f.type):
            columns[f.name] = pa.array([True] * n)
        elif pa.types.is_floating(f.type):
            columns[f.name] = pa.array(rng.random(n, np.float32))
        else:
            columns[f.name] = pa.array(np.arange(n), f.type)
    frames = pa.Table.from_arrays([columns[f.name] for f in frames_schema()], schema=frames_schema())
    boxes = {f.name: frames[f.name] if f.name in frames.column_names else None for f in detections_schema()}
    made = []
    for f in detections_schema():
        plain = ["part"] * n if pa.types.is_string(f.type) else rng.random(n) * 100
        made.append(
            boxes[f.name].combine_chunks()
            if boxes[f.name] is not None
            else pa.array(plain).cast(f.type, safe=False)
        )
    return frames, pa.Table.from_arrays(made, schema=detections_schema())


def write_log(folder: Path, megabytes: float) -> int:
    "Bytes of a log of at least this size."
    size, day = 0, 0
    while size < megabytes * 1e6:
        for camera in range(CAMERAS):
            for name, table in zip(("frames", "detections"), part(camera, day, 0)):
                path = (
                    folder / name / f"date={EIGHT + timedelta(days=day):%Y-%m-%d}" / f"camera=camera-{camera}"
                )
                path.mkdir(parents=True)
                pq.write_table(table, path / "part-0123456789ab-000000.parquet", compression="zstd")
                size += (path / "part-0123456789ab-000000.parquet").stat().st_size
        day += 1
    return size


def timed(work) -> tuple[float, float, object]:
    wall, cpu = time.perf_counter(), time.process_time()
    made = work()
    return time.perf_counter() - wall, time.process_time() - cpu, made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=float, default=200.0)
    parser.add_argument("--lines", type=int, default=40_000)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    rows = []

    def note(what: str, gigabytes: float, wall: float, cpu: float, **more: object) -> None:
        per = {"s/GB": round(wall / gigabytes, 2), "CPU s/GB": round(cpu / gigabytes, 2)}
        rows.append({"what": what, "GB": round(gigabytes, 3), "s": round(wall, 2), **per, **more})
        print(json.dumps(rows[-1]), flush=True)

    with tempfile.TemporaryDirectory() as top:
        root = Path(top) / "log-only"
        size = write_log(root / "log", asked.megabytes) / 1e9
        half = Subject("camera-3", EIGHT + timedelta(minutes=5), EIGHT + timedelta(minutes=10))
        wall, cpu, done = timed(lambda: erase(root, half))
        note("log: five minutes of one camera", size, wall, cpu, rows=sum(f.rows for f in done.plan.found))
        wall, cpu, done = timed(lambda: erase(root, Subject("camera-3")))
        note("log: one camera of ten", size, wall, cpu, rows=sum(f.rows for f in done.plan.found))
        marks = Markers(np.random.default_rng(k).bytes(48) for k in range(200))
        wall, cpu, _ = timed(lambda: search_files([root], root, marks))
        note("search for 200 pieces in the log", size * 0.9, wall, cpu)
        root = Path(top) / "lines"
        root.mkdir()
        box = {
            "class_id": 0,
            "class_name": "part",
            "confidence": 0.9,
            "xyxy": [1.5, 2.5, 99.5, 88.5],
            "tracker_id": 7,
        }
        at = lambda k: (EIGHT + timedelta(seconds=k)).isoformat()
        with open(root / "results.jsonl", "wb") as file:
            for k in range(int(asked.megabytes * 1e6 / 600)):
                row = {
                    "source_id": f"camera-{k // 50 % CAMERAS}",
                    "frame_id": k,
                    "captured_at": at(k),
                    "detections": [box] * 4,
                }
                file.write(json_bytes(row, separators=(",", ":")) + b"\n")
        size = (root / "results.jsonl").stat().st_size / 1e9
        wall, cpu, done = timed(lambda: erase(root, Subject("camera-3")))
        note("lines: one camera of ten", size, wall, cpu, rows=sum(f.rows for f in done.plan.found))
        path = Path(top) / "access.jsonl"
        append_chain(
            path,
            {
                "at": at(0),
                "by": "ann",
                "machine": "m",
                "action": "view",
                "what": "gate",
                "why": "",
                "pictures": 3,
            },
        )
        line, previous = path.read_bytes(), path.read_bytes()
        with open(path, "ab") as file:
            for k in range(2, asked.lines + 1):
                row = {
                    **json.loads(line),
                    "number": k,
                    "previous": hashlib.sha256(previous.rstrip(b"\n")).hexdigest(),
                }
                previous = json.dumps(row).encode() + b"\n"
                file.write(previous)
        wall, cpu, chain = timed(lambda: read_chain(path))
        rows.append(
            {"what": "chain verified", "lines": len(chain.rows), "lines/s": round(len(chain.rows) / wall)}
        )
        print(json.dumps(rows[-1]))
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
