"""A project of three cameras as its own writers leave it, with markers planted in everything that a camera
leaves; and a process that is killed while it erases.

    python -m tests.helpers.watched_project FOLDER POINTS… erases copies of a project, killed at these steps
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import sys
import time
from contextlib import closing
from datetime import datetime, timedelta, timezone
from pathlib import Path

import cv2
import numpy as np

from cv_pipeline.annotation.cases import CollectPolicy
from cv_pipeline.annotation.collect import CollectSink
from cv_pipeline.annotation.datasets import freeze
from cv_pipeline.annotation.versions import merge
from cv_pipeline.core.files import append_lines, file_sha256, read_json_lines, write_json, write_whole
from cv_pipeline.core.types import Detections, Frame, FrameResult
from cv_pipeline.edge.forward import Inbox
from cv_pipeline.edge.outbox import Outbox, OutboxSettings
from cv_pipeline.monitoring.telemetry import LogSettings, TelemetrySink
from cv_pipeline.monitoring.upkeep import Healthy
from cv_pipeline.privacy.certificate import Markers, certify, search_files
from cv_pipeline.privacy.erasure import erase
from cv_pipeline.privacy.stores import Subject
from cv_pipeline.video.sinks import JsonlSink, ParquetSink

EIGHT = datetime(2026, 6, 1, 8, tzinfo=timezone.utc)
CAMERAS = ("gate", "yard", "hall 2")
FRAMES = 25  # of each camera, one a minute


def marker(camera: str, store: str, k: int) -> str:
    "Text that occurs nowhere else."
    return f"marker-{camera.replace(' ', '_')}-{store}-{k:03d}"


def result(camera: str, k: int, store: str) -> FrameResult:
    "A frame with one box of a track that lasts five frames; its class is a marker."
    image = np.random.default_rng([CAMERAS.index(camera), k]).integers(0, 255, (48, 64, 3), np.uint8)
    frame = Frame(image, camera, k, EIGHT + timedelta(minutes=k))
    boxes = Detections([[4, 4, 30, 30]], [0.9], [0], [k // 5])
    return FrameResult(frame, boxes, (marker(camera, store, k),), model="m", model_sha256="ab" * 32)


def _run(root: Path) -> None:
    lines, table = JsonlSink(root / "run" / "results.jsonl"), ParquetSink(root / "run")
    log = TelemetrySink(root / "log", LogSettings(unasked_fps=None))
    for k in range(FRAMES):
        for camera in CAMERAS:
            lines.write(result(camera, k, "lines"))
            table.write(result(camera, k, "table"))
            log.write(result(camera, k, "log"))
    for sink in (lines, table, log):
        sink.close()
    for camera in CAMERAS:
        film = np.random.default_rng(CAMERAS.index(camera)).bytes(3000) + marker(camera, "film", 0).encode()
        write_whole(root / "run" / f"{camera.replace(' ', '_')}.mp4", film)


def _pictures(root: Path) -> None:
    "A collection, a batch with labels, a version of a data set, a frozen set."
    with closing(CollectSink(root / "collected", CollectPolicy(random=1.0, quota=None, hamming=-1))) as sink:
        for k in range(FRAMES):
            for camera in CAMERAS:
                sink.write(result(camera, k, "collected"))
    for _, row in read_json_lines(root / "collected" / "collected.jsonl"):
        path, k = root / "collected" / row["picture"], row["frame_id"]
        write_whole(path, path.read_bytes() + marker(row["source_id"], "picture", k).encode())
        side = "train" if k % 3 else "val"
        name = f"{row['source_id'].replace(' ', '_')}-{k:04d}"
        for data in ("data", "test") if k % 5 == 0 else ("data",):
            at = side if data == "data" else "test"
            write_whole(root / data / "images" / at / f"{name}.jpg", path.read_bytes())
            write_whole(root / data / "labels" / at / f"{name}.txt", "0 0.5 0.5 0.2 0.2\n")
        about = {"picture": f"images/{side}/{name}.jpg", "sha256": file_sha256(path)}
        note = {"annotator": "ana", "note": marker(row["source_id"], "label", k)}
        append_lines(root / "labels" / "annotations.jsonl", [{**about, **note}])
    for data, sides in (("data", ("train", "val")), ("test", ("test",))):
        lines = "".join(f"{s}: images/{s}\n" for s in sides)
        write_whole(root / data / "data.yaml", f"{lines}names: [part]\n")
    freeze(root / "test", root / "test_set.json", "test")
    shutil.copytree(root / "data", root / "parent")
    merge([root / "parent"], root / "v1")
    shutil.rmtree(root / "parent")


def _rest(root: Path) -> None:
    "Reports, health check, device, centre, golden pictures."
    for camera in CAMERAS:
        folder = root / "reports" / "2026-06-02" / f"drift-{camera.replace(' ', '_')}"
        image = cv2.imencode(".jpg", result(camera, 3, "").frame.image)[1].tobytes()
        notes = "".join(f"<p>{marker(camera, 'report', k)}</p>" for k in range(FRAMES))
        page = (
            f"<h1>{camera}</h1><img src='data:image/jpeg;base64,{base64.b64encode(image).decode()}'>{notes}"
        )
        write_whole(folder / "report.html", page)
        Healthy(0.5, 0.2, 0.9, 10.0, np.random.default_rng(1).random((120, 160), np.float32)).save(
            root / "upkeep" / f"{camera.replace(' ', '_')}.npz"
        ) if camera != "hall 2" else None
        for k in range(FRAMES):
            row = {"camera": camera, "signal": marker(camera, "upkeep", k), "raised": True, "value": 1.0}
            append_lines(
                root / "upkeep" / "upkeep.jsonl", [{**row, "at": (EIGHT + timedelta(minutes=k)).isoformat()}]
            )
    body = lambda camera, k, store: {
        "source_id": camera,
        "captured_at": (EIGHT + timedelta(minutes=k)).isoformat(),
        "detections": [{"class_name": marker(camera, store, k), "tracker_id": k // 5}],
    }
    with Outbox(root / "device", OutboxSettings(ballast_bytes=0)) as box:
        box.write([("result", body(c, k, "outbox")) for k in range(FRAMES) for c in CAMERAS])
    with closing(Inbox(root / "centre")) as inbox:
        rows = [(k, json.dumps(body(c, k, "inbox"))) for k in range(FRAMES) for c in CAMERAS]
        for seq, (_, text) in enumerate(rows, 1):
            inbox.base.db.execute(
                "INSERT INTO rows(spool, seq, kind, happened, by_device, corrected, body, digest) "
                "VALUES (1, ?, 'result', 0, 0, 0, ?, '')",
                (seq, text),
            )


def _golden(root: Path) -> None:
    "Two golden pictures a camera: smaller, and encoded again."
    rows = []
    for camera in CAMERAS:
        for k in (2, 7):
            name = f"{CAMERAS.index(camera)}{k}.jpg"
            small = cv2.resize(result(camera, k, "").frame.image, (60, 45), interpolation=cv2.INTER_AREA)
            path = write_whole(root / "model" / "golden" / name, cv2.imencode(".jpg", small)[1].tobytes())
            rows.append({"file": name, "sha256": file_sha256(path), "boxes": []})
    write_json(root / "model" / "golden" / "golden.json", {"pictures": rows, "thresholds": {}})


def watched_project(root: Path) -> Path:
    "The folder of a project with everything in it."
    _run(root)
    _pictures(root)
    _rest(root)
    _golden(root)
    return root


def markers_of(camera: str) -> list[bytes]:
    "All markers of a camera: 201."
    stores = ("lines", "table", "log", "picture", "label", "report", "upkeep", "outbox")
    made = [marker(camera, s, k) for s in stores for k in range(FRAMES)]
    return [m.encode() for m in (*made, marker(camera, "film", 0))]


def found_markers(root: Path, camera: str) -> set[bytes]:
    "The markers of a camera that occur in any file of a folder."
    marks, made = Markers(markers_of(camera)), set[bytes]()
    within = marks.within
    marks.within = lambda data: made.update(got := within(data)) or got  # type: ignore[method-assign]
    search_files([root], root, marks)
    return made


def content(root: Path, but: str = "") -> dict[str, str]:
    "Checksums of all files of a project, but for those of its own erasures."
    return {
        p.relative_to(root).as_posix(): file_sha256(p)
        for p in sorted(root.rglob("*"))
        if p.is_file() and "privacy" not in p.relative_to(root).parts and not p.name.endswith(".lock")
    }


def killed_at(root: Path, point: float) -> bool:
    """Erase in a child process that ends at a step (a whole number), or after so many seconds (a fraction);
    whether it was killed."""
    if not (child := os.fork()):
        steps = iter(range(10**6))

        def step(name: str) -> None:
            if next(steps) == point:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            certify(root, erase(root, Subject("gate"), step=step))
        finally:
            os._exit(0)
    if point != int(point):
        end = time.monotonic() + point
        while time.monotonic() < end and os.waitpid(child, os.WNOHANG) == (0, 0):
            time.sleep(0.002)
        try:
            os.kill(child, signal.SIGKILL)
        except ProcessLookupError:
            return False
    try:
        return os.waitpid(child, 0)[1] == signal.SIGKILL
    except ChildProcessError:
        return False


def main(folder: str, *points: str) -> None:
    "Kill at each point, each time in a fresh copy, and then let the same command finish."
    kills = 0
    for point in points:
        copy = Path(folder).with_name(f"killed-{point}")
        shutil.copytree(folder, copy)
        for at in (float(point), float(point) + random.Random(point).randint(1, 9)):  # and once more
            kills += killed_at(copy, at)
        done, _ = certify(copy, erase(copy, Subject("gate")))
        print(json.dumps({"point": point, "complete": done.complete, "left": done.left}), flush=True)
    print(json.dumps({"kills": kills}))


if __name__ == "__main__":
    main(*sys.argv[1:])
