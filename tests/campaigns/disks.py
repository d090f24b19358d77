"""Disks: every writer on a disk that runs full at some point, that is read-only, that is full for a while,
and without descriptors. A typed error, what was written before stays readable, and no draft is left."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cv_pipeline.annotation.annotations import Annotation, add_annotations, read_annotations
from cv_pipeline.annotation.collect import CollectPolicy, CollectSink, read_collected
from cv_pipeline.annotation.datasets import freeze, read_frozen, split_dataset, write_split
from cv_pipeline.core.config import load_config
from cv_pipeline.core.files import append_lines, read_json, read_json_lines, write_json
from cv_pipeline.core.formats import read_dataset
from cv_pipeline.core.results import read_jsonl, read_results, read_table
from cv_pipeline.core.tables import Hours
from cv_pipeline.core.types import CVPipelineError, Detections, Frame, FrameResult
from cv_pipeline.inference.manifest import bundled_models, load_manifest, save_manifest
from cv_pipeline.monitoring.prediction_log import read_log
from cv_pipeline.monitoring.telemetry import LogSettings, TelemetrySink
from cv_pipeline.reporting.history import write_index
from cv_pipeline.service.assembly import run_config
from cv_pipeline.tracking.zones import read_rules
from cv_pipeline.video.decoding import decode_video
from cv_pipeline.video.events import EventSink
from cv_pipeline.video.sinks import JsonlSink, ParquetSink, VideoSink
from tests.campaigns import Outcome
from tests.helpers.disks import can_mount, descriptors_left, fill, read_only, small_disk

START = datetime(2026, 11, 28, 10, tzinfo=timezone.utc)
RULES = read_rules({"zones": [{"name": "all", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}]})
NOISE = np.random.default_rng(0).integers(0, 255, (8, 96, 128, 3), dtype=np.uint8)


def result(k: int, boxes: int = 20) -> FrameResult:
    "A frame with tracked boxes that come and go."
    at = START + timedelta(seconds=k)
    box = np.tile(np.float32([[10, 10, 60, 60]]), (boxes, 1)) + np.arange(boxes)[:, None] % 7
    ids = np.arange(boxes) + k // 5 * boxes
    found = Detections(box, np.linspace(0.3, 0.9, boxes), np.zeros(boxes, int), ids)
    return FrameResult(
        Frame(NOISE[k % 8], "gate", k, at), found, ("part",), {"inference": 1.0}, True, "ok", "m"
    )


@dataclass(frozen=True)
class Writer:
    "Something that writes into a folder, and how it is read back."

    name: str
    write: Callable[[Path, int], Any]  # folder, how much (grows); may raise
    read: Callable[[Path], Any]  # raises where something whole is broken
    most: int = 40  # how often it writes


def through(make: Callable[[Path], Any]) -> Callable[[Path, int], None]:
    "Write frames with a sink, and close it as a pipeline does: also after an error."

    def write(folder: Path, most: int) -> None:
        sink, first = make(folder), None
        for k in range(most):
            try:
                sink.write(result(k))
            except CVPipelineError as e:
                first = e
                break
        try:
            sink.close()
        except CVPipelineError as e:
            first = first or e
        if first is not None:
            raise first

    return write


class HourClock:
    "An hour every ten questions."

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> datetime:
        self.asked += 1
        return START + timedelta(hours=self.asked // 10)


def rolled(folder: Path) -> Hours:
    return Hours(folder, None, now=HourClock())


def _pictures(folder: Path) -> Path:
    "A small dataset outside the disk."
    for k in range(6):
        for name, data in ((f"images/{k}.png", None), (f"labels/{k}.txt", "0 0.5 0.5 0.2 0.2\n")):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), NOISE[k]) if data is None else path.write_text(data)
    (folder / "data.yaml").write_text("names: [part]\ntrain: images\nval: images\n")
    return folder


def _annotation(k: int) -> Annotation:
    return Annotation(f"{k}.png", "ann", (128, 96), ("part",), result(k).detections)


def _rows(folder: Path, name: str = "results") -> None:
    if any(folder.glob(f"{name}*/*")) or (folder / f"{name}.parquet").exists():
        read_table(folder, name)


def writers(outside: Path) -> Iterator[Writer]:
    "Everything that writes; `outside` is a folder on a sound disk."
    data = _pictures(outside / "data")
    manifest = load_manifest(bundled_models()["factory_line"])[0]
    yield Writer(
        "results.jsonl", through(lambda f: JsonlSink(f / "results.jsonl")), lambda f: [*read_jsonl(f)]
    )
    yield Writer("results.parquet", through(lambda f: ParquetSink(f, part_rows=100)), _rows)
    hourly = lambda f: ParquetSink(f, part_rows=100, hours=rolled(f))
    yield Writer("hours of results.parquet", through(hourly), _rows)
    lines = lambda f: JsonlSink(f / "results.jsonl", hours=rolled(f))
    yield Writer("hours of results.jsonl", through(lines), lambda f: [*read_jsonl(f)])
    events = lambda f: EventSink(f, RULES, part_seconds=1e-9)
    yield Writer("events.parquet", through(events), lambda f: _rows(f, "events"))
    film = lambda f: VideoSink(f, preset="ultrafast", threads=1)
    yield Writer("video", through(film), _films)
    log = lambda f: TelemetrySink(f / "log", LogSettings(part_rows=5))
    yield Writer(
        "prediction log", through(log), lambda f: any(f.glob("log/frames/*/*/*")) and read_log(f / "log")
    )
    keep = lambda f: CollectSink(f / "kept", CollectPolicy(random=1.0, quota=None), flush_s=0)
    kept = lambda f: (f / "kept/collection.json").exists() and read_collected(f / "kept")
    yield Writer("collected pictures", through(keep), kept)
    steps: dict[str, tuple[Callable[[Path, int], Any], Callable[[Path], Any]]] = {
        "summary.json": (lambda f, k: write_json(f / "s.json", {"rows": ["x" * 500] * k}), _summary),
        "lines of flags": (lambda f, k: append_lines(f / "f.jsonl", [{"note": "x" * 900}]), _whole_lines),
        "annotations": (lambda f, k: add_annotations([_annotation(k)], f / "a.jsonl"), _said),
        "index of reports": (_report, lambda f: None),
        "manifest of a model": (
            lambda f, k: save_manifest(manifest, f / f"{k}.json"),
            _each(lambda p: read_json(p, dict)),
        ),
        "frozen set": (lambda f, k: freeze(data, f / f"{k}.json"), _each(read_frozen)),
        "split dataset": (
            lambda f, k: write_split(split_dataset(read_dataset(data)), f / f"split{k}"),
            _splits,
        ),
    }
    for name, (step, read) in steps.items():
        yield Writer(name, _repeated(step), read, 12)


def _repeated(step: Callable[[Path, int], Any]) -> Callable[[Path, int], None]:
    def write(folder: Path, most: int) -> None:
        for k in range(most):
            step(folder, k)

    return write


def _each(read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: [read(path) for path in folder.glob("*.json")]


def _report(folder: Path, k: int) -> None:
    write_json(folder / f"2026-11-{k + 1:02d}-r" / "metrics.json", {"verdict": "good", "note": "x" * 500})
    write_index(folder)


def _summary(folder: Path) -> None:
    if (folder / "s.json").exists():
        read_json(folder / "s.json", dict)


def _films(folder: Path) -> None:
    for path in folder.glob("*.mp4"):
        if path.read_bytes().count(b"moof") > 1:  # a second at least is whole
            list(decode_video(path))


def _whole_lines(folder: Path) -> None:
    rows = [row for _, row in read_json_lines(folder / "f.jsonl")]
    assert None not in rows[:-1], "a line in the middle is torn"  # the last one: the next writer ends it


def _said(folder: Path) -> None:
    if (folder / "a.jsonl").exists():
        read_annotations(folder / "a.jsonl")


def _splits(folder: Path) -> None:
    for path in folder.glob("split*"):
        assert (path / "split.csv").exists(), f"{path.name} is half there"


def problems(
    writer: Writer, folder: Path, error: BaseException | None, must_fail: bool = False
) -> list[str]:  # what is not as promised
    "After a fault: was the error typed, is everything readable, is no draft left?"
    found = []
    if error is not None and not (isinstance(error, CVPipelineError) and error.exit_code in (2, 3, 5)):
        found.append(f"{type(error).__name__}: {error}")
    if error is None and must_fail:
        found.append("no error")
    try:
        writer.read(folder)
    except Exception as e:
        found.append(f"cannot be read back: {type(e).__name__}: {e}")
    found += [f"left over: {p.name}" for p in folder.rglob(".*") if p.name.endswith(".part")]
    return found


def struck(writer: Writer, folder: Path, most: int | None = None) -> BaseException | None:
    "The error of a writer."
    try:
        writer.write(folder, most or writer.most)
    except Exception as e:
        return e
    return None


def full(writer: Writer, folder: Path, kilobytes: Iterable[int]) -> tuple[int, list[str]]:
    "A disk of each size: the writer meets its end at another place each time."
    tried, found = 0, []
    for size in kilobytes:
        with small_disk(folder / f"{size}k", size) as disk:
            error = struck(writer, disk)
            found += [f"{size} kB: {text}" for text in problems(writer, disk, error)]
            tried += 1
    return tried, found


def for_a_while(writer: Writer, folder: Path) -> tuple[int, list[str]]:
    "Full, then free again: the next attempt in the same folder is whole, with what was there before."
    with small_disk(folder / "while", 4096) as disk:
        (before := disk / "before").mkdir()
        if error := struck(writer, before):
            return 1, [f"not even on a sound disk: {type(error).__name__}: {error}"]
        ballast = fill(disk)
        (disk / "meanwhile").mkdir(exist_ok=True)
        found = problems(writer, disk / "meanwhile", struck(writer, disk / "meanwhile"), must_fail=True)
        ballast.unlink()
        (disk / "after").mkdir()
        found += [
            f"afterwards: {t}" for t in problems(writer, disk / "after", struck(writer, disk / "after"))
        ]
        found += [f"what was there: {t}" for t in problems(writer, before, None)]
    return 2, found


def locked_up(writer: Writer, folder: Path) -> tuple[int, list[str]]:
    "A read-only file system."
    with small_disk(folder / "ro", 4096) as disk:
        (disk / "x").mkdir()
        with read_only(disk):
            error = struck(writer, disk / "x")
        return 1, problems(writer, disk / "x", error, must_fail=True)


def without_descriptors(writer: Writer, folder: Path, left: Iterable[int]) -> tuple[int, list[str]]:
    "So many more files can be opened, no more."
    tried, found = 0, []
    for count in left:
        place = folder / f"fd{count}"
        place.mkdir()
        with descriptors_left(count):
            error = struck(writer, place, 6)
        found += [
            f"{count} descriptors: {text}"
            for text in problems(writer, place, error)
            if "left over" not in text  # deleting a folder takes a descriptor: the next start sweeps it
        ]
        tried += 1
    return tried, found


def whole(out: Path, place: Path, what: str) -> bool:
    "Whether a run of 60 frames left everything, also on the disk that was said to be too small."
    from cv_pipeline.monitoring.prediction_log import read_log

    folder = place if what == "delivery.out" else out
    summary = json.loads((folder / "summary.json").read_text())
    lines = sum(1 for _ in read_jsonl(folder / "results.jsonl"))
    logged = len(read_log(place)) if what == "telemetry" else lines
    rows = len(read_results(folder))
    return (lines, logged, rows) == (60, 60, summary["detections"]) and not (folder / "running.json").exists()


def runs(folder: Path, sizes: Iterable[int]) -> tuple[int, list[str]]:
    "Whole runs whose log, pictures or results lie on a disk that runs full: the other sinks are completed."
    tried, found = 0, []
    for size in sizes:
        for what in ("telemetry", "collect", "delivery.out"):
            out = folder / f"{what}-{size}"
            out.mkdir(parents=True)
            with small_disk(folder / f"{what}-{size}-disk", size) as disk:
                place = disk / "x"
                settings: dict[str, Any] = {
                    "sources": ["line:frames=60,width=160,height=120"],
                    "model.threads": 1,
                }
                settings |= {"delivery.out": str(out)} | {
                    "telemetry": {"telemetry": {"folder": str(place), "part_seconds": 0.2}},
                    "collect": {"collect": {"folder": str(place), "random": 1.0}},
                    "delivery.out": {"delivery.out": str(place)},
                }[what]
                try:
                    run_config(load_config(None, settings))
                    error = None
                except Exception as e:
                    error = e
                tried += 1
                if error is None and whole(out, place, what):
                    continue  # there was room for all of it
                if not isinstance(error, CVPipelineError) or error.exit_code not in (2, 5):
                    found.append(f"{what}, {size} kB: {error!r}")
                if what == "delivery.out":
                    continue
                summary = json.loads((out / "summary.json").read_text())
                lines = sum(1 for _ in read_jsonl(out / "results.jsonl"))
                if len(read_results(out)) != summary["detections"] or lines != summary["frames_delivered"]:
                    found.append(f"{what}, {size} kB: the other sinks are not complete")
                if (out / "running.json").exists() or not summary["error"]:
                    found.append(f"{what}, {size} kB: the summary does not tell")
    return tried, found


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=16, help="sizes of full disks for each writer")
    parser.add_argument("--runs", type=int, default=3, help="sizes of full disks for whole runs")


def run(options: argparse.Namespace) -> Iterable[Outcome]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        mounts = can_mount(folder)
        sizes = [8 + round(1.45**k * 4) for k in range(options.steps)]
        for number, writer in enumerate(writers(folder)):
            place = folder / str(number)
            faults: dict[str, Callable[[], tuple[int, list[str]]]] = {
                "no descriptors": lambda w=writer, p=place: without_descriptors(w, p / "d", range(8)),
            }
            if mounts:
                faults |= {
                    "full": lambda w=writer, p=place: full(w, p, sizes),
                    "full for a while": lambda w=writer, p=place: for_a_while(w, p),
                    "read-only": lambda w=writer, p=place: locked_up(w, p),
                }
            (place / "d").mkdir(parents=True)
            for fault, strike in faults.items():
                tried, found = strike()
                yield Outcome(
                    f"{writer.name}: {fault}", tried, len(found), "; ".join(found[:3]) or "as promised"
                )
        if mounts:
            tried, found = runs(folder / "runs", [24 + 40 * k for k in range(options.runs)])
            yield Outcome(
                "run: log, pictures or results on a full disk",
                tried,
                len(found),
                "; ".join(found[:3]) or "exit code 5 or 2, the other sinks complete",
            )
        else:
            yield Outcome("full and read-only disks", 0, 0, "skipped: mounting needs root")
