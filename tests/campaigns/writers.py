"""Several processes at once on each kind of file: nothing lost, nothing torn, no lock that stays."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cv_pipeline.core.types import CVPipelineError
from tests.campaigns import Outcome
from tests.campaigns._forked import quick_folder, start

NAMES = ("disc", "ring")


@dataclass(frozen=True)
class Writer:
    "An operation of one process, and what a reader must find after all of them, and at any moment between."

    name: str
    write: Callable[[Path, int, int], Any]  # folder, process, operation
    missing: Callable[[Path, int, int], int]  # folder, processes, operations → lost, doubled or torn
    read: Callable[[Path], Any]  # at any moment; CVPipelineError only while nothing is there
    setup: Callable[[Path], Any] = lambda folder: None
    share: int = 1  # of the operations: each is so many times slower


def one_answer(person: str, picture: str) -> Any:
    from cv_pipeline.annotation.annotations import Annotation
    from cv_pipeline.core.types import Detections

    boxes = Detections([[300, 300, 400, 400]], class_id=[0])
    return Annotation(picture, person, (640, 480), NAMES, boxes)


def add_answer(folder: Path, who: int, k: int) -> None:
    from cv_pipeline.annotation.annotations import add_annotations

    add_annotations([one_answer(f"person {who}", f"{k:04d}.jpg")], folder / "annotations.jsonl")


def answers(folder: Path) -> list[tuple[str, str]]:
    from cv_pipeline.annotation.annotations import read_annotations

    return [(a.annotator, a.picture) for a in read_annotations(folder / "annotations.jsonl")]


def lost_answers(folder: Path, people: int, each: int) -> int:
    wanted = sorted((f"person {p}", f"{k:04d}.jpg") for p in range(people) for k in range(each))
    return differing(sorted(answers(folder)), wanted)


def differing(found: list, wanted: list) -> int:
    "How many are lost, or there twice."
    return len(set(wanted) - set(found)) + len(found) - len(set(found) & set(wanted))


def add_flag(folder: Path, who: int, k: int) -> None:
    from cv_pipeline.core.files import append_lines

    row = {"source_id": f"cam {who}", "frame_id": k, "note": "x" * (37 * k % 3000)}
    append_lines(folder / "flags.jsonl", [row], cut_torn=True)


def flags(folder: Path) -> list[tuple[str, int | None]]:
    from cv_pipeline.annotation.collect import read_flags

    return [(f.source_id, f.frame_id) for f in read_flags(folder / "flags.jsonl")]


def lost_flags(folder: Path, people: int, each: int) -> int:
    return differing(flags(folder), [(f"cam {p}", k) for p in range(people) for k in range(each)])


def note_event(folder: Path, who: int, k: int) -> None:
    from cv_pipeline.core.files import append_lines

    append_lines(folder / "upkeep.jsonl", [{"who": who, "k": k, "text": "é" * (k % 500)}])


def events(folder: Path) -> list[tuple[int, int]]:
    from cv_pipeline.core.files import read_json_lines

    return [(row["who"], row["k"]) for _, row in read_json_lines(folder / "upkeep.jsonl")]


def lost_events(folder: Path, people: int, each: int) -> int:
    return differing(events(folder), [(p, k) for p in range(people) for k in range(each)])


def write_summary(folder: Path, who: int, k: int) -> None:
    from cv_pipeline.core.files import write_json

    write_json(folder / "summary.json", {"who": who, "k": k, "x": "y" * 50_000})


def summary(folder: Path) -> int:
    from cv_pipeline.core.files import read_json

    return len(read_json(folder / "summary.json", dict)["x"])


def freeze_set(folder: Path, who: int, k: int) -> None:
    from cv_pipeline.annotation.datasets import freeze

    (folder / "won").mkdir(exist_ok=True)
    try:
        freeze(folder / "data", folder / f"set {k}.json")
    except CVPipelineError as e:
        if "already exists" not in str(e):
            raise
    else:
        (folder / "won" / f"{k} {who}").touch()


def frozen(folder: Path) -> int:
    from cv_pipeline.annotation.datasets import read_frozen

    return sum(len(read_frozen(p).pictures) for p in folder.glob("set *.json"))


def twice_frozen(folder: Path, people: int, each: int) -> int:
    return differing(
        sorted(p.name.split()[0] for p in (folder / "won").iterdir()), sorted(map(str, range(each)))
    )


def small_set(folder: Path) -> None:
    import cv2
    import numpy as np

    for part in ("images", "labels"):
        (folder / "data" / part).mkdir(parents=True)
    (folder / "data" / "data.yaml").write_text("names: [disc]\n")
    for k in range(3):
        small = np.random.default_rng(k).integers(0, 256, (6, 9, 3), np.uint8)
        cv2.imwrite(str(folder / "data" / "images" / f"{k}.png"), cv2.resize(small, (96, 64)))
        (folder / "data" / "labels" / f"{k}.txt").write_text("0 0.5 0.5 0.2 0.2\n")


def merge_sets(folder: Path, who: int, k: int) -> None:
    from cv_pipeline.annotation.versions import MergeSettings, merge

    (folder / "won").mkdir(exist_ok=True)
    try:
        merge([folder / "data"], folder / f"v{k}", settings=MergeSettings(hamming=0))
    except CVPipelineError as e:
        if not any(words in str(e) for words in ("already exists", "cannot move the folder")):
            raise
    else:
        (folder / "won" / f"{k} {who}").touch()


def versions(folder: Path) -> int:
    from cv_pipeline.annotation.versions import read_version

    return sum(len(read_version(p).items()) for p in folder.glob("v[0-9]*"))


def torn_versions(folder: Path, people: int, each: int) -> int:
    return twice_frozen(folder, people, each) + abs(versions(folder) - 3 * each)


def draft_for(folder: Path, who: int, k: int) -> None:
    from cv_pipeline.annotation.annotations import Draft, write_drafts
    from cv_pipeline.core.types import Detections

    path = folder / "pictures" / f"{who}-{k}.png"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((folder / "data" / "images" / "0.png").read_bytes() + f"{who} {k}".encode())
    boxes = Detections([[10, 10, 40, 40]], [0.9], [0])
    write_drafts([Draft(path.name, path, (96, 64), (f"class {who}", "disc"), boxes)], folder / "drafts")


def drafts(folder: Path) -> list[tuple[str, str]]:
    from cv_pipeline.core.files import read_json_lines

    rows = [row for _, row in read_json_lines(folder / "drafts" / "drafts.jsonl")]
    return [(row["picture"], row["labels"][0][0]) for row in rows]


def lost_drafts(folder: Path, people: int, each: int) -> int:
    "Lines that are lost, and labels whose number means another class than was drawn."
    wanted = [(f"{p}-{k}.png", f"class {p}") for p in range(people) for k in range(each)]
    names = (folder / "drafts" / "labels" / "classes.txt").read_text().split("\n")
    wrong = 0
    for row in (json.loads(line) for line in (folder / "drafts" / "drafts.jsonl").read_text().splitlines()):
        label = (folder / "drafts" / "labels" / row["file"]).with_suffix(".txt").read_text()
        wrong += names[int(label.split()[0])] != row["labels"][0][0]
    return wrong + differing(drafts(folder), wanted)


def put_report(folder: Path, who: int, k: int) -> None:
    from datetime import date, timedelta

    from cv_pipeline.core.files import draft_folder, write_json, write_whole
    from cv_pipeline.reporting import runner
    from cv_pipeline.reporting.history import write_index

    day = folder / "reports" / (date(2026, 6, 1) + timedelta(days=k % 3)).isoformat()
    with draft_folder(day / "line") as part:
        write_whole(part / "report.html", f"<p>{who} {k}</p>")
        write_json(part / "metrics.json", {"verdict": "PASS", "who": who, "k": k})
        write_json(part / runner.CARD, {"name": "line", "status": "done"})
        runner._put(part, day / "line", None, failed=False)
    write_index(folder / "reports")


def index(folder: Path) -> int:
    from cv_pipeline.core.types import DataError

    page = folder / "reports" / "index.html"
    if not page.exists():
        raise DataError("no index yet", page)
    if not page.read_text().endswith("</html>\n"):
        raise DataError("half a page", page)
    return 1


def reports(folder: Path) -> list[tuple[int, int]]:
    found = folder.glob("reports/2*/[a-z]*/metrics.json")
    return [(m["who"], m["k"]) for m in (json.loads(p.read_text()) for p in found)]


def lost_reports(folder: Path, people: int, each: int) -> int:
    from cv_pipeline.reporting.history import list_reports

    listed = (folder / "reports" / "index.html").read_text()
    unlisted = sum(e.folder.name not in listed for e in list_reports(folder / "reports"))
    count = f"<p>{people * each} reports," not in listed
    return differing(reports(folder), [(p, k) for p in range(people) for k in range(each)]) + unlisted + count


def replace_folder(folder: Path, who: int, k: int) -> None:
    from cv_pipeline.core.files import Staging, write_whole

    with Staging(folder / "served", replace=True) as part:
        for name in ("a", "b", "c"):
            write_whole(part / name, f"{who} {k}")


def served(folder: Path) -> int:
    "Files of one writer: opened at once, so that they belong to one folder."
    from cv_pipeline.core.types import DataError

    try:
        place = os.open(folder / "served", os.O_RDONLY | os.O_DIRECTORY)
    except OSError as e:
        raise DataError("the folder is gone", folder) from e
    try:
        names = os.listdir(place)
        return len(names)
    finally:
        os.close(place)


def unserved(folder: Path, people: int, each: int) -> int:
    texts = [(folder / "served" / n).read_text() for n in ("a", "b", "c")]
    return len(set(texts)) - 1 + sum(1 for p in folder.iterdir() if p.name != "served")


def draw_audit(folder: Path, who: int, k: int) -> None:
    from cv_pipeline.monitoring.audit import Audit, AuditLook, AuditPlan, write_audit

    at = "2026-06-01T12:00:00+00:00"
    look = AuditLook("a.jpg", "gate", who, at, (96, 64), "gate", 0.1, ("m", ""), [], False)
    strata = {"gate": {"looks": 10, "drawn": 1}}
    try:
        write_audit(
            Audit((look,), strata, ("disc",), (), (at, at), AuditPlan(seed=who), ()), folder / f"a{k}"
        )
    except CVPipelineError as e:
        if "another audit" not in str(e):
            raise


def audits(folder: Path) -> int:
    from cv_pipeline.monitoring.audit import read_audit

    found = [read_audit(p.parent) for p in folder.glob("a[0-9]*/audit.json")]
    return sum(a.plan.seed == a.looks[0].frame_id for a in found)


def mixed_audits(folder: Path, people: int, each: int) -> int:
    return each - audits(folder)


WRITERS = [
    Writer("answers into annotations.jsonl", add_answer, lost_answers, answers),
    Writer("flags.jsonl", add_flag, lost_flags, flags),
    Writer("events of upkeep", note_event, lost_events, events),
    Writer("summary.json", write_summary, lambda f, people, each: summary(f) != 50_000, summary),
    Writer("frozen test sets", freeze_set, twice_frozen, frozen, small_set, share=4),
    Writer("versions of a dataset", merge_sets, torn_versions, versions, small_set, share=8),
    Writer("drafts for labelling", draft_for, lost_drafts, drafts, small_set, share=2),
    Writer("reports and their index", put_report, lost_reports, index, share=8),
    Writer("a folder that is replaced", replace_folder, unserved, served),
    Writer("audits", draw_audit, mixed_audits, audits),
]


def work(writer: Writer, folder: Path, who: int, each: int, pause_s: float = 0.0) -> None:
    "One process: all its operations."
    for k in range(each):
        writer.write(folder, who, k)
        time.sleep(pause_s)


def reading(writer: Writer, folder: Path, seconds: float) -> None:
    "A reader in parallel: exit code 1 for the first half that it sees."
    until, seen = time.monotonic() + seconds, False
    while time.monotonic() < until and not (folder / "done").exists():
        try:
            writer.read(folder)
            seen = True
        except CVPipelineError:
            if seen:
                raise
        time.sleep(0.001)


def stress(writer: Writer, root: Path, people: int, each: int) -> Outcome:
    "All processes at once, and a reader."
    folder, log = prepared(writer, root)
    each, began = max(1, each // writer.share), time.monotonic()
    reader = start(lambda: reading(writer, folder, 600), log)
    together = get_context("fork").Barrier(people)  # on a busy machine the last one starts late

    def at_once(who: int) -> None:
        together.wait(300)
        work(writer, folder, who, each)

    children = [start(lambda p=p: at_once(p), log) for p in range(people)]
    failed = sum(c.wait(600) != 0 for c in children)
    seconds = time.monotonic() - began
    (folder / "done").touch()
    torn = reader.wait(60) != 0
    (folder / "done").unlink()
    lost = writer.missing(folder, people, each)
    litter = [p.name for p in folder.rglob(".*") if p.suffix in (".lock", ".part", ".old")]
    seen = (
        f"{people} processes × {each} in {seconds:.1f} s; lost or doubled {int(lost)}, processes that failed "
    )
    seen += f"{failed}, reader saw a half: {'yes' if torn else 'no'}, locks and drafts left {len(litter)}"
    wrong = int(lost) + failed + torn + len(litter)
    if wrong:
        seen += f"; {' '.join(log.read_text(errors='replace').split())[-300:]}"
    return Outcome(f"{people} processes at once: {writer.name}", people * each, wrong, seen.replace("|", "/"))


def prepared(writer: Writer, root: Path) -> tuple[Path, Path]:
    folder, log = root / "place", root / "log.txt"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    log.unlink(missing_ok=True)
    writer.setup(folder)
    return folder, log


def killed(writer: Writer, root: Path, people: int, times: int, rng: random.Random) -> Outcome:
    "kill -9 of a writer in the middle, again and again; the others go on, and the files stay readable."
    folder, log = prepared(writer, root)
    wrong, problems, endless = 0, set(), 10**6
    children = [start(lambda p=p: work(writer, folder, p, endless, 0.01), log) for p in range(people)]
    longest = 0.0
    for k in range(times):
        time.sleep(rng.uniform(0.0, 0.03))
        place = rng.randrange(people)
        os.kill(children[place].pid, signal.SIGKILL)
        children[place].wait(10)
        children[place] = start(lambda p=people + k: work(writer, folder, p, endless, 0.01), log)
        try:
            began = time.monotonic()
            writer.read(folder)
            longest = max(longest, time.monotonic() - began)
        except CVPipelineError as e:
            if k > 20:
                wrong, problems = wrong + 1, problems | {str(e)[:200]}
    dead = [c for c in children if c.poll() is not None]
    for child in children:
        child.kill()
    one, began = start(lambda: writer.write(folder, 10**6, 0), log), time.monotonic()
    code, seconds = one.wait(70), time.monotonic() - began
    if code != 0:
        wrong, problems = wrong + 1, problems | {"a writer after the kills does not end well"}
    if dead:
        wrong, problems = wrong + len(dead), problems | {"writers that were not killed ended"}
    seen = f"{times} kills among {people} processes; files readable after each; a writer after them took "
    seen += f"{seconds:.2f} s"
    if problems:
        seen += "; " + "; ".join(sorted(problems)) + " " + " ".join(log.read_text().split())[-300:]
    return Outcome(f"kill -9 in the middle: {writer.name}", times, wrong, seen.replace("|", "/"))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--operations", type=int, default=200, help="of each process; slow ones do fewer")
    parser.add_argument("--kills", type=int, default=100, help="kill -9 among the processes, of each writer")
    parser.add_argument("--only", default="", help="words of the writers' names, separated by commas")
    parser.add_argument("--seed", type=int, default=0)


def chosen(only: str) -> list[Writer]:
    words = [w.strip() for w in only.split(",") if w.strip()]
    return [w for w in WRITERS if not words or any(word in w.name for word in words)]


def run(options: argparse.Namespace) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory(prefix="writers-", dir=quick_folder()) as folder:
        for writer in chosen(options.only):
            yield stress(writer, Path(folder), options.processes, options.operations)
            if options.kills:
                rng = random.Random(f"{options.seed} {writer.name}")
                yield killed(writer, Path(folder), options.processes, options.kills, rng)
