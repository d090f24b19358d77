"""What is killed: commands with inputs that are small, and readers that say what became of their results."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cv_pipeline.core.types import DataError
from tests.campaigns._forked import outcome, run_command
from tests.campaigns.kill import Job, cleaned, present, tree

SIZE = "width=160,height=120"


def prepared(root: Path, work: Callable[[], object]) -> None:
    "Do something in a child, so that no thread of a library lives in this process when it forks."
    log = root / "prepare.txt"
    if outcome(work, log, 400) != 0:
        raise AssertionError(f"preparation failed:\n{log.read_text()[-3000:]}")


def once(root: Path, name: str, make: Callable[[Path], object]) -> Path:
    "An input that several commands share."
    place = root / "inputs" / name
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        prepared(root, lambda: make(place))
    return place


def labelled(root: Path, name: str, seed: int, pictures: int = 24, scale: int = 2) -> Path:
    "A labelled YOLO folder of the line."
    from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
    from cv_pipeline.synthetic.line import write_dataset

    def make(place: Path) -> None:
        line = FactoryLine(LineConfig(seed=seed, density=6, size=(320 * scale // 2, 240 * scale // 2)))
        write_dataset(place, (line.render(k * 25) for k in range(pictures)), ["yolo"], split="all")

    return once(root, name, make)


def finished_run(root: Path) -> Path:
    "The folder of a run with a prediction log."

    def make(place: Path) -> None:
        place.mkdir()
        config = {"sources": [{"uri": f"line:frames=120,{SIZE}", "id": "gate"}], "telemetry": True}
        (place / "run.yaml").write_text(json.dumps(config))
        run_command(["run", str(place / "run.yaml"), "--out", str(place / "out")])

    return once(root, "run", make) / "out"


def collection_of(folder: Path) -> Any:
    "Rows, counters and pictures of a collection."
    from cv_pipeline.annotation.collect import read_books, read_collected

    rows = [r.to_dict() for r in read_collected(folder)]
    return rows, read_books(folder) if (folder / "collection.json").exists() else None, tree(folder)


def collect_job(root: Path) -> Job:
    run = finished_run(root)
    options = ["--random", "0.3", "--quota", "12"]
    return Job(
        "collect",
        lambda f: ["collect", str(run), "--out", str(f / "c"), *options],
        lambda f: collection_of(f / "c"),
    )


def collected(root: Path) -> Path:
    run = finished_run(root)
    options = ["--random", "0.5"]
    make = lambda place: run_command(["collect", str(run), "--out", str(place), *options])
    return once(root, "collected", make)


def select_job(root: Path) -> Job:
    from cv_pipeline.annotation.collect import read_collected

    source = collected(root)
    options = ["--budget", "20", "--strategy", "random"]
    read = lambda f: ([r.to_dict() for r in read_collected(f / "s")], tree(f / "s"))
    return Job("select", lambda f: ["select", str(source), "--out", str(f / "s"), *options], read)


def merge_job(root: Path) -> Job:
    from cv_pipeline.annotation.versions import read_version

    a, b = labelled(root, "a", 11), labelled(root, "b", 12)

    def read(f: Path) -> Any:
        version = read_version(f / "v")
        return cleaned(version.to_dict()), tree(f / "v", ["version.json"])

    return Job("merge", lambda f: ["merge", str(a), str(b), "--out", str(f / "v"), "--by", "ana"], read)


def split_job(root: Path) -> Job:
    from cv_pipeline.core.formats import read_dataset

    a = labelled(root, "a", 11)

    def read(f: Path) -> Any:
        items = read_dataset(present(f / "d"))
        sheet = (f / "d" / "data.yaml").read_text().replace(str(f), "")
        return len(items), sheet, tree(f / "d", ["data.yaml"])

    return Job("split", lambda f: ["data", "split", str(a), "--out", str(f / "d")], read)


def freeze_job(root: Path) -> Job:
    from cv_pipeline.annotation.datasets import read_frozen

    a = labelled(root, "a", 11)
    read = lambda f: read_frozen(f / "m.json").to_dict()
    return Job("freeze", lambda f: ["data", "freeze", str(a), "--out", str(f / "m.json")], read)


def answers(root: Path) -> Path:
    "Answers of two people about the pictures of a labelled set."
    a = labelled(root, "a", 11)

    def make(place: Path) -> None:
        from dataclasses import replace

        from cv_pipeline.annotation.annotations import Annotation, write_annotations
        from cv_pipeline.core.formats import read_dataset
        from cv_pipeline.core.images import read_image
        from cv_pipeline.core.types import Detections

        rows = []
        for item in read_dataset(a):
            height, width = read_image(item.path).shape[:2]
            truth = item.truth((width, height))
            boxes = Detections(truth.xyxy, class_id=truth.class_id)
            name = item.path.relative_to(a).as_posix()
            rows.append(Annotation(name, "ana", (width, height), item.names, boxes))
        place.mkdir()
        write_annotations([*rows, *(replace(r, annotator="ben") for r in rows)], place / "annotations.jsonl")

    return once(root, "answers", make) / "annotations.jsonl"


def settle_job(root: Path) -> Job:
    from cv_pipeline.core.formats import read_dataset

    a, said = labelled(root, "a", 11), answers(root)

    def read(f: Path) -> Any:
        items = read_dataset(present(f / "b"))
        sheet = (f / "b" / "data.yaml").read_text().replace(str(f), "")
        return len(items), sheet, tree(f / "b", ["data.yaml"])

    argv = lambda f: ["label", "settle", str(said), "--pictures", str(a), "--out", str(f / "b")]
    return Job("label settle", argv, read)


def lines_of(path: Path) -> Any:
    from cv_pipeline.annotation.annotations import read_annotations

    return sorted(json.dumps(cleaned(a.to_dict()), sort_keys=True) for a in read_annotations(path))


def files_job(root: Path) -> Job:
    "A person's answers into a file that has others' already."
    said = answers(root)

    def make(place: Path) -> None:
        run_command(["label", "files", str(collected(root)), "--out", str(place / "drafts")])

    drafts = once(root, "drafts", lambda place: (place.mkdir(), make(place)))
    options = ["--annotator", "eva", "--unchanged", "accept"]
    return Job(
        "label files",
        lambda f: [*("label", "files", str(drafts / "drafts")), "--out", str(f / "a.jsonl"), *options],
        lambda f: lines_of(f / "a.jsonl"),
        setup=lambda f: shutil.copy(said, f / "a.jsonl"),
    )


def pull_job(root: Path) -> Job | str:
    "The same from a real server."
    from tests.helpers.label_studio_server import TOKEN, LabelStudio, find_label_studio

    if find_label_studio() is None:
        return "Label Studio is not installed here (CV_PIPELINE_LABEL_STUDIO)"
    (root / "inputs").mkdir(exist_ok=True)
    server, said = LabelStudio(root / "inputs" / "server"), answers(root)
    os.environ |= {"LABEL_STUDIO_API_KEY": TOKEN, "LABEL_STUDIO_URL": server.url}

    def label() -> None:
        from cv_pipeline.annotation import label_studio as L

        run_command(["label", "push", str(collected(root)), "--title", "killed"])
        asked = L.Server(server.url)
        project = L.find_project(asked, "killed")
        for task in list(L.pages(asked, f"/api/tasks?project={project['id']}&fields=all", "tasks", "total")):
            drawn = (task["predictions"] or [{"result": []}])[0]["result"]
            asked.call("POST", f"/api/tasks/{task['id']}/annotations", {"result": drawn, "lead_time": 3.0})

    prepared(root, label)
    job = Job(
        "label pull",
        lambda f: ["label", "pull", "--title", "killed", "--out", str(f / "a.jsonl")],
        lambda f: lines_of(f / "a.jsonl"),
        setup=lambda f: shutil.copy(said, f / "a.jsonl"),
    )
    job.stop = server.stop
    return job


def audit_job(root: Path) -> Job:
    from cv_pipeline.monitoring.audit import read_audit

    run = finished_run(root)

    def read(f: Path) -> Any:
        audit = read_audit(f / "a")
        gone = [look.picture for look in audit.looks if not (f / "a" / look.picture).exists()]
        if gone:
            raise DataError(f"{len(gone)} pictures are still to come", f / "a")
        return tree(f / "a")

    def partial(f: Path, whole: Any) -> str:
        "Pictures that are there are the right ones."
        there = tree(f / "a") if (f / "a").exists() else {}
        wrong = [n for n, v in there.items() if whole.get(n) != v]
        return f"half a file: {wrong[0]}" if wrong else ""

    argv = lambda f: [*("audit", "draw", str(run / "log"), "--run", str(run)), "--out", str(f / "a")]
    return Job("audit draw", lambda f: [*argv(f), "--looks", "40"], read, partial=partial)


def optimize_job(root: Path, again: bool = False) -> Job:
    from cv_pipeline.core.files import file_sha256
    from cv_pipeline.inference.manifest import artefact_sha256, find_artefact, load_manifest

    data = labelled(root, "judge", 21, 12)

    def read(f: Path) -> Any:
        found = load_manifest(f / "m")
        manifest = found[0] if isinstance(found, tuple) else found
        hashes = {a.file: artefact_sha256(find_artefact(f / "m", a)) for a in manifest.artefacts}
        named = {a.file: a.sha256 for a in manifest.artefacts}
        named[manifest.file], hashes[manifest.file] = manifest.sha256, file_sha256(f / "m" / manifest.file)
        wrong = [n for n, v in hashes.items() if named[n] and named[n] != v]
        if wrong:  # whoever opens it is told so
            raise DataError(f"{wrong[0]} is not what the manifest says", f / "m")
        return sorted(hashes.items())

    def argv(f: Path, steps: str = "fp32,fp16,fp32-bytes") -> list[str]:
        how = ["--steps", steps, "--data", str(data), "--threads", "1", "--max-loss", "0.1"]
        return ["optimize", "factory_line", "--out", str(f / "m"), *how]

    if not again:
        return Job("optimize", argv, read)
    older = once(root, "older", lambda p: (p.mkdir(), run_command(argv(p, "fp32,fp32-bytes"))))
    return Job(
        "optimize again",
        lambda f: [*argv(f, "fp32,openvino"), "--replace"],
        read,
        setup=lambda f: shutil.copytree(older / "m", f / "m"),
    )


def gate_job(root: Path) -> Job:
    from cv_pipeline.core.files import read_json
    from cv_pipeline.inference.manifest import load_manifest

    data = labelled(root, "test", 31, 40)
    frozen = once(
        root,
        "frozen",
        lambda p: (p.mkdir(), run_command(["data", "freeze", str(data), "--out", str(p / "t.json")])),
    )

    def read(f: Path) -> Any:
        book = read_json(f / "g" / "gate.json", dict)
        found = load_manifest(f / "g")
        manifest = found[0] if isinstance(found, tuple) else found
        return book["verdict"], manifest.names, tree(f / "g", ["gate.json", "manifest.json"])

    rules = ["--thin", "report", "--draws", "40", "--threads", "1"]
    argv = lambda f: ["gate", "factory_line", "--old", "factory_line", "--frozen", str(frozen / "t.json")]
    return Job("gate", lambda f: [*argv(f), "--out", str(f / "g"), *rules], read)


def report_job(root: Path) -> Job:
    from cv_pipeline.reporting.history import list_reports

    def make(place: Path) -> None:
        import nbformat

        book = nbformat.v4.new_notebook()
        values = nbformat.v4.new_code_cell(
            'output: str = "."\nnumber: int = 1', metadata={"tags": ["parameters"]}
        )
        text = "import json, pathlib\nplace = pathlib.Path(output)\n(place / 'metrics.json').write_text("
        text += "json.dumps({'verdict': 'PASS', 'number': number}))\nprint(number)"
        book.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
        book.cells = [values, nbformat.v4.new_code_cell(text)]
        place.mkdir()
        nbformat.write(book, place / "small.ipynb")

    template = once(root, "template", make) / "small.ipynb"

    def read(f: Path) -> Any:
        told = [(e.name, e.verdict, e.page is not None) for e in list_reports(f / "r")]
        if not told:
            raise DataError("no report", f / "r")
        return told

    argv = lambda f: ["report", str(template), "-p", "number=3", "--root", str(f / "r"), "--name", "small"]
    return Job("report", argv, read)


def train_job(root: Path) -> Job:
    from cv_pipeline.inference.manifest import load_manifest
    from cv_pipeline.training.train import read_card

    def make(place: Path) -> None:
        from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
        from cv_pipeline.synthetic.line import write_dataset

        for side, seed in (("train", 41), ("val", 42)):
            line = FactoryLine(LineConfig(seed=seed, size=(96, 72)))
            write_dataset(place, (line.render(25 * k) for k in range(6)), ["yolo"], split=side)

    data = once(root, "small", make)

    def read(f: Path) -> Any:
        card = read_card(f / "t")
        if card["state"] != "finished":
            raise DataError(f"the training is {card['state']}", f / "t")
        found = load_manifest(f / "t")
        manifest = found[0] if isinstance(found, tuple) else found
        return manifest.names, [e["epoch"] for e in card["epochs"]], card["data"]["sha256"]

    options = ["--epochs", "3", "--imgsz", "64", "--batch", "6", "--augment", "none"]
    argv = lambda f: ["train", str(data), "--out", str(f / "t"), *options]
    again = lambda f: [*argv(f), *(["--resume"] if (f / "t" / "run.json").exists() else [])]
    return Job("train", argv, read, again=again)


def run_job(root: Path) -> Job:
    from cv_pipeline.annotation.collect import read_log
    from cv_pipeline.core.files import read_json, read_json_lines
    from cv_pipeline.core.results import read_table

    def rows(f: Path) -> tuple[set, set]:
        "Frames of the log, and boxes of the table."
        lines = [r for _, r in read_json_lines(f / "o" / "results.jsonl") if isinstance(r, dict)]
        logged = {
            (r["frame_id"], d["class_name"], round(d["confidence"], 3))
            for r in lines
            for d in r["detections"]
        }
        table = read_table(f / "o", "results").select(["frame_id", "class_name", "confidence"]).to_pylist()
        return logged, {(r["frame_id"], r["class_name"], round(r["confidence"], 3)) for r in table}

    def read(f: Path) -> Any:
        summary = read_json(f / "o" / "summary.json", dict)
        logged, table = rows(f)
        return summary["frames_delivered"], len(read_log(f / "o")), logged == table, len(table)

    def partial(f: Path, whole: Any) -> str:
        "What was logged before the kill is readable, and the table says nothing that the log does not."
        if not any((f / "o").glob("results.parts/*")) or not (f / "o" / "results.jsonl").exists():
            return ""
        logged, table = rows(f)
        return f"{len(table - logged)} boxes of the table are not in the log" if table - logged else ""

    argv = lambda f: ["run", f"line:frames=100,{SIZE}", "--out", str(f / "o")]
    return Job("run", argv, read, partial=partial)


JOBS: dict[str, tuple[Callable[[Path], Job | str], Sequence[str]]] = {
    "collect": (collect_job, ("cv_pipeline.annotation.collect", "cv_pipeline.video.pipeline")),
    "select": (select_job, ("cv_pipeline.annotation.select",)),
    "merge": (merge_job, ("cv_pipeline.annotation.versions",)),
    "split": (split_job, ()),
    "freeze": (freeze_job, ()),
    "settle": (settle_job, ("cv_pipeline.annotation.annotations",)),
    "files": (files_job, ()),
    "pull": (pull_job, ("cv_pipeline.annotation.label_studio",)),
    "audit": (audit_job, ("cv_pipeline.monitoring.audit",)),
    "run": (run_job, ("cv_pipeline.service.assembly", "cv_pipeline.core.results", "pyarrow.parquet")),
    "gate": (gate_job, ("cv_pipeline.training.gate",)),
    "optimize": (optimize_job, ("cv_pipeline.optimization.optimize", "onnx")),
    "optimize-again": (lambda root: optimize_job(root, True), ("cv_pipeline.optimization.optimize", "onnx")),
    "report": (report_job, ("papermill", "nbconvert", "cv_pipeline.reporting.runner")),
    "train": (train_job, ("ultralytics", "cv_pipeline.training.train")),
}


def jobs(root: Path, only: Sequence[str] = ()) -> Iterator[tuple[str, Job | str]]:
    "Each command with its inputs; a sentence where it cannot be tried."
    for name in only or JOBS:
        make, modules = JOBS[name]
        try:
            for module in ("cv_pipeline.commands.main", "onnxruntime", "cv2", "av", *modules):
                importlib.import_module(module)
        except ImportError as e:
            yield name, f"{e.name} is not installed"
            continue
        made = make(root)
        try:
            yield name, made
        finally:
            getattr(made, "stop", lambda: None)()
        sys.stderr.flush()
