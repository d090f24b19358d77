"""A project in which every item of the checklist passes: written once, then changed in one
place at a time."""

import json
from dataclasses import asdict, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import yaml

from cv_pipeline import __version__
from cv_pipeline.annotation.datasets import Frozen
from cv_pipeline.annotation.versions import DatasetVersion
from cv_pipeline.core.config import load_config
from cv_pipeline.core.files import write_json, write_whole
from cv_pipeline.core.stamp import stamp
from cv_pipeline.inference.manifest import Artefact, load_manifest, save_manifest
from cv_pipeline.privacy.access import note_access
from cv_pipeline.privacy.certificate import Certificate, Found, write_certificate
from cv_pipeline.privacy.stores import Subject
from cv_pipeline.readiness.checks_system import MODES
from cv_pipeline.readiness.choices import TOPICS
from cv_pipeline.readiness.decide import decide, write_decision
from cv_pipeline.release.rollout import Policy
from cv_pipeline.scale.manifests import Cluster, write_manifests

NOW = datetime(2026, 11, 30, 12, tzinfo=timezone.utc)
YESTERDAY = NOW - timedelta(days=1)
CONFIG = """sources:
  - {uri: "rtsp://10.0.0.4/gate", id: gate}
  - {uri: "rtsp://10.0.0.5/yard", id: yard}
model: {path: models/line}
tracker: {name: bytetrack}
selection: {every: 3}
runtime: {max_batch: 4, max_wait_ms: 5}
health: {port: 8080, host: 127.0.0.1}
telemetry: {}
delivery: {out: runs/latest}
"""
ANSWERS = {
    "mode": {"needed_s": 0.5, "acts": True, "live": True, "gap_s": 0},
    "placement": {
        "latency_ms": 80,
        "leave": "covered",
        "offline": True,
        "cameras": 2,
        "mbit": 4,
        "uplink_mbit": 50,
    },
    "task": {
        "sensor": False,
        "experts": True,
        "rare": 900,
        "explain": False,
        "danger": False,
        "person": True,
    },
    "buy": {"images": 900_000, "domain": True},
}


def clock():
    return YESTERDAY


def _model(root: Path):
    "A model of its own: not one that ships with the package."
    folder = root / "models" / "line"
    folder.mkdir(parents=True)
    for name in ("model.onnx", "model_int8.onnx"):
        write_whole(folder / name, b"weights of " + name.encode())
    ours = load_manifest("factory_line")[0]
    gate = {"accepted": True, "reason": "within 0.5 points"}
    artefact = Artefact("model_int8.onnx", "onnxruntime", "int8", gate=gate)
    made = replace(
        ours, name="line", version="3.1", file="model.onnx", sha256="", artefacts=(artefact,), metrics={}
    )
    save_manifest(made, folder)
    sha = load_manifest(folder)[0].sha256
    identity = {"name": "line", "version": "3.1", "file": "model.onnx", "sha256": sha}
    tuned = {"objective": "F1", "reachable": True, "stamp": stamp(identity, "d" * 64, now=clock)}
    curve = {"kind": "temperature", "t": 1.4}
    calibration = {"classes": {"gear": curve}, "rest": curve}
    made = replace(made, metrics={"tuning": tuned})
    try:
        made = replace(made, calibration=calibration)
    except Exception:
        from cv_pipeline.inference.calibrators import Calibrator

        made = replace(made, calibration=Calibrator.from_dict({"default": curve}).to_dict())
    save_manifest(made, folder)
    return identity


def _run(root: Path, origin: dict) -> dict:
    stage = {"count": 900, "errors": 0, "queue": 0, "latency_ms": {"p50": 4.0, "p95": 8.0, "p99": 12.0}}
    stages = ("ingest", "preprocess", "inference", "postprocess", "deliver")
    times = {s: {"p50": 4.0, "p95": 8.0, "p99": 12.0} for s in stages}
    times |= {
        "inference": {"p50": 20.0, "p95": 25.0, "p99": 31.0},
        "end_to_end": {"p50": 40, "p95": 60, "p99": 90.0},
    }
    decoding = {"requested": "auto", "used": "vaapi", "reason": ""}
    return {
        "frames_read": 900, "frames_inferred": 300, "detections": 400, "uncertain": 40,
        "frames_per_second": 25.0, "latency_ms": times, "stages": {s: stage for s in stages},
        "model": {"name": "line 3.1", "provider": "OpenVINO CPU", "sha256": origin["model"]["sha256"]},
        "sources": {k: {"live": True, "decoder_choice": decoding} for k in ("gate", "yard")},
        "privacy": {"covered": True, "why": "live sources"},
        "config": load_config(root / "cameras.yaml").model_dump(mode="json"), "stamp": origin,
    }  # fmt: skip


def _benchmark(origin: dict) -> dict:
    row = {
        "artefact": "model.onnx",
        "batch": 1,
        "error": "",
        "gated": True,
        "p50_ms": 20.0,
        "p99_ms": 30.0,
        "calls": 240,
    }
    return {
        "model": "line 3.1", "rows": [row, {**row, "batch": 4, "p50_ms": 60.0}], "machine": origin["machine"],
        "settings": {"sha256": origin["model"]["sha256"]}, "load": [0.0, 0.5],
        "fit": {"largest": 16, "limit_mib": 4000.0, "mib": {"1": 120.0, "4": 300.0, "16": 900.0}},
        "accuracy": {"model.onnx": {"AP": 0.85}},
        "batching": {"budget_ms": 100.0, "advice": {"max_batch": 4, "max_wait_ms": 5.0}}, "stamp": origin,
    }  # fmt: skip


def _scale(origin: dict) -> dict[str, dict]:
    "Load test, plan and lifecycle."
    phase = {"rate_per_s": 10.0, "verdict": "PASS", "reason": "p99 is at most 80 ms", "p99_high_ms": 80.0}
    counts = {"offered": 100, "answered": 100, "refused": 0, "dropped": 0, "lost": 0}
    over = {**counts, "answered": 60, "dropped": 40}
    phases = [{**phase, **counts, "factor": 1}, {**phase, **over, "factor": 2, "rate_per_s": 25.0}]
    month = {"cameras": 2.0, "servers": 1, "peak_per_s": 10.0, "cost": [100, 300]}
    months = [{**month, "servers": 1 + k // 3} for k in range(7)]
    checked = {
        "where": "/data",
        "verdict": "PASS",
        "files": 40,
        "gigabytes": {"hot": 2},
        "counts": {},
        "astray": [],
    }
    return {
        "drills/load/loadtest.json": {
            "format": 1, "verdict": "PASS", "knee": 2, "settings": {}, "phases": phases, "stamp": origin},
        "plans/plan.json": {"months": months, "sizing": {}, "levers": [], "warnings": [], "stamp": origin},
        "drills/verified.json": {**checked, "stamp": origin},
    }  # fmt: skip


def _drills(origin: dict) -> dict[str, dict]:
    rows = {
        "preprocessing": {"worst difference": 0.0, "sizes": 24},
        "events kept": {"kept low": 0.97},
        "offline": {"cut minutes": 12, "made": 900, "arrived": 900, "twice": 0, "kills": 3},
        "rollback": {"seconds": 9, "by itself": True, "old model runs": True},
        "soak": {
            "hours": 26,
            "fps": 25.0,
            "fps wanted": 25,
            "memory slope low": -0.4,
            "memory slope high": 0.3,
        },
        "review": {"median hours": 5, "limit hours": 24, "answered": 40, "into datasets": 31},
        "faces": {"recall low": 0.97, "faces": 400},
    }
    made = {
        f"drills/{k.replace(' ', '_')}.json": {"drill": k, "outcome": "pass", **v, "stamp": origin}
        for k, v in rows.items()
    }
    tracking = {"clip": "gate", "tracker": "bytetrack", "HOTA": 71.0, "IDF1": 80.0, "stamp": origin}
    return {**made, "drills/tracking.json": tracking}


def _reports(origin: dict) -> dict[str, dict]:
    finding = {"what": "AP", "verdict": "PASS", "reason": "0.85 lies above the floor 0.5"}
    calibration = {"after": {"D-ECE": 0.03, "null D-ECE": 0.02}}
    window = {"from": (NOW - timedelta(days=8)).isoformat(), "to": YESTERDAY.isoformat()}
    names = ("accuracy", "new class", "confidence drift", "input drift", "environment", "cadence", "labels")
    triggers = [{"name": n, "rank": k, "state": "off", "reason": "as usual"} for k, n in enumerate(names)]
    devices = {"box-1": {"state": "ok", "version": "3.1"}, "box-2": {"state": "ok", "version": "3.1"}}
    return {
        "reports/e/metrics.json": {
            "verdict": "PASS", "coco": {}, "header": {}, "findings": [finding], "calibration": calibration,
            "intervals": {"AP": {"low": 0.81, "high": 0.88}}},
        "reports/d/metrics.json": {"verdict": "GREEN", "cause": "none", "families": [], "window": window},
        "reports/q/metrics.json": {
            "verdict": "PASS", "labels": 900, "counts": {}, "findings": [finding],
            "agreement": {"alpha": {"low": 0.83}}},
        "reports/a/audit_result.json": {
            "verdict": "SUFFICIENT", "reason": "", "numbers": {"F1": {"low": 0.93, "high": 0.96}},
            "covered": 1.0, "population": 900},
        "reports/r/recommendation.json": {
            "action": "NOTHING", "policy": {}, "since": YESTERDAY.isoformat(), "triggers": triggers,
            "evidence": {"windows": [{"until": YESTERDAY.isoformat()}]}},
        "reports/w/metrics.json": {
            "sufficient": True, "severities": [3], "conditions": [{"condition": "fog", "low": 0.61}]},
        "reports/f/metrics.json": {
            "verdict": "GREEN", "devices": devices, "pushes": [{"stage": "promoted", "model": "line 3.1"}]},
        "benchmarks/baseline.json": {"custom training": "yes", "intervals": {"AP": [0.4, 0.36, 0.44]}},
    }  # fmt: skip


def _labels(root: Path, origin: dict) -> None:
    "Collection, selection, answers, dataset version, frozen test set, gate."
    policy = {"random": 0.01, "low": [0.3, 0.5], "none": 0.02, "many": 5.0, "flicker": True}
    day, at = {"gate": {"until": YESTERDAY.isoformat()}}, YESTERDAY.isoformat()
    book = {"policy": policy, "looks": {"gate/x": 5000}, "kept": {}, "audit": day}
    write_json(root / "labels/all/collection.json", {**book, "stamp": origin})
    lines = json.dumps({"reasons": ["random"], "captured_at": at}) + "\n"
    write_whole(root / "labels/all/collected.jsonl", lines * 52)
    notes = ["selected: random", *["selected: unsure"] * 5]
    rows = [{"picture": f"{k}.jpg", "captured_at": at, "note": n} for k, n in enumerate(notes)]
    write_whole(root / "labels/monday/collected.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    answers = [{"picture": f"{k}.jpg", "annotator": "ann", "task": k, "created_at": at} for k in range(9)]
    write_whole(root / "labels/annotations.jsonl", "".join(json.dumps(r) + "\n" for r in answers))
    flag = {"source_id": "gate", "frame_id": 12, "note": "lid missing", "at": at}
    write_whole(root / "runs/a/flags.jsonl", json.dumps(flag) + "\n")
    raised = {"camera": "gate", "signal": "blur", "raised": True, "value": 1.0, "at": at}
    write_whole(root / "runs/a/upkeep.jsonl", json.dumps(raised) + "\n")
    test = {
        f"images/t{k}.jpg": {"picture": f"{k:064d}", "labels": "0" * 64, "phash": "0" * 16} for k in range(3)
    }
    frozen = Frozen("test", None, ("gear",), test)
    write_json(root / "datasets/test_set.json", {**frozen.to_dict(), "stamp": origin})
    names = tuple(load_manifest("factory_line")[0].names)
    kept = {"manifest": "test_set.json", "digest": frozen.digest}
    version = DatasetVersion(
        root / "datasets/v1", "line", 1, names, {}, (), {}, frozen=kept, made_at=at, made_by="ann"
    )
    write_json(root / "datasets/v1/version.json", version.to_dict())
    write_whole(root / "datasets/v1/data.yaml", yaml.safe_dump({"names": dict(enumerate(names))}))
    gate = {"verdict": "PASS", "slices": [], "shared": [], "reasons": [], "leaks": "none", "made_at": at}
    about = {"new": {"sha256": origin["model"]["sha256"]}, "test set": {"pictures": 3}, "stamp": origin}
    write_json(root / "releases/gate.json", {**gate, **about})
    classes = {n: {"definition": f"a {n}", "positive": ["1.jpg"], "negative": ["2.jpg"]} for n in names}
    write_whole(root / "ontology.yaml", yaml.safe_dump({"date": "2026-11-01", "classes": classes}))


def _rollout(root: Path) -> None:
    folder, at = root / "releases/trial", lambda hours: (YESTERDAY - timedelta(hours=60 - hours)).isoformat()
    trial = {
        "registry": "registry",
        "name": "line",
        "new": "3.1",
        "old": "3.0",
        "new_digest": "1",
        "old_digest": "2",
    }
    write_json(folder / "trial.json", {"format": "cv_pipeline trial 1", **trial})
    policy = {**asdict(Policy()), "steps": [0.1, 1.0]}
    start = {
        "event": "start",
        "release": "1",
        "previous": "2",
        "order": {"a": ["gate", "yard"]},
        "policy": policy,
    }
    moves = [
        {"event": "verdict", "stage": s, "step": k, "verdict": "PROMOTE"}
        for k, s in enumerate(("canary", "promoted"))
    ]
    lines = [{"at": at(h), **row} for h, row in zip((0, 26, 58), (start, *moves))]
    write_whole(folder / "rollout.jsonl", "".join(json.dumps(x) + "\n" for x in lines))


def _people(root: Path) -> None:
    words = {
        "p4-gate": {"item": "P4", "camera": "gate", "statement": "a sign at the gate"},
        "p4-yard": {"item": "P4", "camera": "yard", "statement": "a sign at the yard"},
        "b1": {"item": "B1", "statement": "restored it alone"},
        "b2": {"item": "B2", "statement": "budget line 4711"},
    }
    who = {"name": "B. Okafor", "role": "operations", "date": "2026-11-01", "expires": "2027-06-01"}
    for name, book in words.items():
        write_whole(root / f"attestations/{name}.yaml", yaml.safe_dump({**book, **who}))
    note_access("view", "gate", "a complaint", path=root / "privacy/access.jsonl", now=clock)
    found = Found("runs", "results.parquet", "rows", "0" * 64, 12, 3)
    done = Certificate(
        "e1",
        Subject("gate"),
        "asked",
        "ann",
        YESTERDAY.isoformat(),
        YESTERDAY.isoformat(),
        (found,),
        {},
        (),
        ("runs",),
        7,
    )
    write_certificate(root, done)


def _incidents(root: Path) -> None:
    from contextlib import closing

    from cv_pipeline.alerts.incidents import IncidentBook

    with closing(IncidentBook(root / "runs/incidents.db")) as book, book.changing() as db:
        at = YESTERDAY.timestamp()
        db.execute(
            "INSERT INTO notices(incident, episode, step, channel, kind, severity, late, planned, wall, due, "
            "state) VALUES (1, 0, '0', 'mail', 'call', 'high', 0, 0, ?, 0, 'sent')", (at,))  # fmt: skip
        db.execute(
            "INSERT INTO acks(incident, at, until, who, note, via) VALUES (1, 0, 0, 'ann', '', 'link')"
        )


def _tests(root: Path) -> None:
    "Names that the patterns of the failures find, and of the parts."
    words = ["test_model_failure", "camera_comes_back", "lost_connection", "full_disk", "kill",
             "without_memory", "broken_bytes", "a_wall_clock", "store_that",
             "twice_the_load", "boxes_map_back"]  # fmt: skip
    assert len(MODES) == 10
    cases = "".join(
        f'<testcase classname="tests.{part}.x" name="{w}"/>' for w in words for part in ("core", "video")
    )
    cases += '<testcase classname="tests.inference.x" name="plain"/>'
    properties = (
        f'<property name="cv_pipeline" value="{__version__}"/><property name="commit" value="96eca5d"/>'
    )
    when = f"{YESTERDAY:%Y-%m-%dT%H:%M:%S}"
    head = f'<testsuite name="pytest" timestamp="{when}"><properties>{properties}</properties>'
    write_whole(root / "drills/tests.xml", f"<testsuites>{head}{cases}</testsuite></testsuites>")


def _manifests(root: Path) -> None:
    cluster = Cluster(image="registry.example/triton@sha256:" + "a" * 64, claim="models", most=4)
    write_manifests(cluster, root / "k8s", 3)


def write_ready_project(root: Path) -> Path:
    "Everything that the checklist reads, as its writers leave it."
    root.mkdir(parents=True, exist_ok=True)
    identity = _model(root)
    origin = stamp(identity, "d" * 64, now=clock)
    write_whole(root / "cameras.yaml", CONFIG)
    known = {t.name: t for t in TOPICS}
    for name, a in ANSWERS.items():
        path = write_decision(decide(known[name], a), root / f"decisions/{name}.yaml")
        book = yaml.safe_load(path.read_text())
        book["stamp"]["at"] = YESTERDAY.isoformat()
        write_whole(path, yaml.safe_dump(book, sort_keys=False, allow_unicode=True))
    files = {"runs/a/summary.json": _run(root, origin), "benchmarks/b/benchmark.json": _benchmark(origin)}
    files |= {**_scale(origin), **_drills(origin)}
    files |= {k: {**v, "stamp": origin} for k, v in _reports(origin).items()}
    for name, book in files.items():
        write_json(root / name, book)
    _labels(root, origin)
    _rollout(root)
    _people(root)
    _incidents(root)
    _tests(root)
    _manifests(root)
    book = {"name": "line 1", "model": "models/line", "author": "A. Ng"}
    write_whole(root / "checklist.yaml", yaml.safe_dump(book))
    return root
