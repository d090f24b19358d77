"""The checklist: evidence counts for the model, configuration, machine and date in service, and nothing
passes that was changed: every place that a check has read is dropped, set to NaN, and given another type."""

import copy
import json
import re
import shlex
from dataclasses import replace
from datetime import timedelta

import pytest
import typer
import yaml
from typer.testing import CliRunner

from cv_pipeline.commands import readiness
from cv_pipeline.commands.main import app
from cv_pipeline.core.files import file_sha256
from cv_pipeline.core.types import ConfigError
from cv_pipeline.inference.manifest import bundled_models, load_manifest
from cv_pipeline.readiness.checklist import (
    ITEMS,
    checklist_page,
    chosen_items,
    items_markdown,
    run_checklist,
    write_checklist,
)
from cv_pipeline.readiness.choices import TOPICS
from cv_pipeline.readiness.decide import recompute
from cv_pipeline.readiness.evidence import STATES, evaluate, in_days, open_project, remember
from cv_pipeline.readiness.prove import prove
from tests.helpers.ready_project import NOW, write_ready_project

BY_ID = {i.id: i for i in ITEMS}


def opened(root, **how):
    return open_project(root, now=lambda: NOW, **how)


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    "The folder of a project in which every item passes. Who changes it puts it back."
    return write_ready_project(tmp_path_factory.mktemp("ready") / "project")


@pytest.fixture(scope="module")
def passes(ready):
    "Item → its finding, of the untouched project."
    return {f.id: f for f in run_checklist(opened(ready), note=False).findings}


def test_the_list_has_sixty_three_items_of_their_own():
    assert len(ITEMS) == len(BY_ID) == 63


def test_twenty_four_are_of_the_course():
    assert sum(i.id[0] in "AIVMES" for i in ITEMS) == 24


@pytest.mark.parametrize("item", ITEMS, ids=lambda i: i.id)
def test_a_complete_project_passes(item, passes):
    assert (passes[item.id].state, passes[item.id].reason) == ("pass", passes[item.id].reason)


@pytest.mark.parametrize("item", ITEMS, ids=lambda i: i.id)
def test_a_pass_names_its_file_and_its_hash(item, passes):
    assert all(len(x["sha256"]) == 64 and x["file"] for x in passes[item.id].proofs)
    assert passes[item.id].proofs


@pytest.mark.parametrize("item", ITEMS, ids=lambda i: i.id)
def test_an_empty_project_proves_nothing(item, tmp_path):
    (tmp_path / "checklist.yaml").write_text("name: nothing\n")
    (tmp_path / "cameras.yaml").write_text("sources: [gate.mp4]\ntelemetry: {}\ntracker: {name: sort}\n")
    made = evaluate(item, opened(tmp_path))
    assert made.state == "not proven" and made.reason


# mutations ------------------------------------------------------------------------------------------------


def changed(book, pointer, how):
    "A copy of a book with one place changed; None where the place is not in it."
    made = copy.deepcopy(book)
    *way, last = [k.replace("~1", "/").replace("~0", "~") for k in pointer.split("/")[1:]]
    here = made
    for key in way:
        here = here[int(key)] if isinstance(here, list) else here[key]
    last = int(last) if isinstance(here, list) else last
    if how == "dropped":
        del here[last]
    else:
        here[last] = {
            "NaN": float("nan"),
            "null": None,
            "another type": [[]] if isinstance(here[last], str) else "x",
        }[how]
    return made


def in_the_place_of(project, old, new):
    "The project with another evidence in the place of one, without a second walk over its files."
    made = replace(project)
    made.__dict__.update(
        {k: project.__dict__[k] for k in ("model", "model_sha", "config") if k in project.__dict__}
    )
    made.__dict__["files"] = [
        new if e is old else replace(e, read=[]) for e in project.files if new or e is not old
    ]
    return made


def read_as_it_is(path):
    return yaml.safe_load(path.read_text()) if path.suffix != ".json" else json.loads(path.read_text())


def written(path, book):
    path.write_text(yaml.safe_dump(book, sort_keys=False) if path.suffix != ".json" else json.dumps(book))


def mutations(ready, passes):
    "Item, file, pointer, how: every place that a check has read."
    for finding in passes.values():
        for proof in finding.proofs:
            path = ready / proof["file"]
            if path.suffix in (".json", ".yaml") and path.is_file():
                for pointer in proof["pointers"]:
                    for how in ("dropped", "NaN", "null", "another type"):
                        yield finding.id, proof["file"], pointer, how


@pytest.mark.slow
def test_no_place_that_was_read_can_be_changed_and_pass(ready, passes):
    base = opened(ready)
    by_file, count, false_passes = {e.shown: e for e in base.files}, 0, []
    for item, file, pointer, how in mutations(ready, passes):
        path = ready / file
        before = path.read_bytes()
        try:
            book = changed(read_as_it_is(path), pointer, how)
            written(path, book)
            old = by_file.get(file)
            project = in_the_place_of(base, old, old and replace(old, book=book, read=[]))
            found = evaluate(BY_ID[item], project)
        finally:
            path.write_bytes(before)
        count += 1
        false_passes += [(item, file, pointer, how, found.reason)] if found.state == "pass" else []
    assert false_passes == []
    assert count >= 400


WITHOUT_MODEL = {  # items whose evidence is about a site, people or data, not about one model
    *"E1 E2 E3 E4 S3 L1 L4 L5 L6 D3 T6 U3 P2 P3 P6 R1 R2 R3 R4 R5 R6".split(),
    "T4",  # by name and version, from the registry
    "T5",
}
ON_THE_MACHINE = ("A2", "I2", "M1", "M3", "M4", "S4")
IN_THE_CONFIGURATION = ("A1", "A3", "V1", "V2", "M1", "M3", "U2", "P1")


def whole_file_changes(e, item):
    "Name → another evidence in the place of one."
    yield "aged", replace(e, when=e.when - timedelta(days=1600))
    yield "dated in the future", replace(e, when=e.when + timedelta(days=10))
    yield "without a date", replace(e, when=None)
    yield "of the demo", replace(e, demo="a run over the synthetic line")
    yield "edited", replace(e, sha256="f" * 64)
    yield "unreadable", None
    if item not in WITHOUT_MODEL:
        yield "of another model", replace(e, models=("e" * 64,))
        yield "of no model", replace(e, models=())
    if item in ON_THE_MACHINE and e.kind in ("benchmark", "loadtest"):
        yield "of another machine", replace(e, machine={**e.machine, "processor": "another one"})
    if item in IN_THE_CONFIGURATION and e.kind == "run":
        book = {
            **e.book,
            "config": {**e.book["config"], "selection": {**e.book["config"]["selection"], "every": 7}},
        }
        yield "of another configuration", replace(e, book=book)


def test_no_evidence_that_is_about_something_else_passes(ready, passes):
    base = opened(ready)
    seen = {e.shown: {"when": e.when and e.when.isoformat(), "sha256": e.sha256} for e in base.files}
    by_file, count, false_passes = {e.shown: e for e in base.files}, 0, []
    for finding in passes.values():
        for e in [by_file[x["file"]] for x in finding.proofs if x["file"] in by_file]:
            if e.kind in ("frozen",):  # carries no date of its own: the dataset version does
                continue
            for name, other in whole_file_changes(e, finding.id):
                project = in_the_place_of(base, e, other and replace(other, read=[]))
                project.__dict__["log"] = seen
                made = evaluate(BY_ID[finding.id], project)
                count += 1
                false_passes += [(finding.id, e.shown, name, made.reason)] if made.state == "pass" else []
    assert false_passes == []
    assert count >= 250


FILES = ["runs/a/summary.json", "benchmarks/b/benchmark.json", "drills/load/loadtest.json",
         "releases/gate.json", "datasets/v1/version.json", "privacy/certificates/e1.json",
         "releases/trial/trial.json",
         "attestations/b1.yaml", "decisions/mode.yaml", "drills/tests.xml", "privacy/access.jsonl",
         "runs/incidents.db", "models/line/manifest.json", "ontology.yaml", "cameras.yaml"]  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_cut_off_proves_nothing_and_ends_nothing(file, ready, passes):
    path = ready / file
    before = path.read_bytes()
    mine = [i for i, f in passes.items() if any(x["file"] == file for x in f.proofs)]
    try:
        path.write_bytes(before[: len(before) // 2])
        made = {f.id: f for f in run_checklist(opened(ready), mine, note=False).findings}
    finally:
        path.write_bytes(before)
    assert [i for i in mine if made[i].state == "pass"] == []


def test_a_model_that_was_exchanged_makes_all_its_evidence_another_ones(ready, passes):
    folder = ready / "models" / "line"
    kept = {n: (folder / n).read_bytes() for n in ("model.onnx", "manifest.json")}
    try:
        (folder / "model.onnx").write_bytes(b"other weights")
        book = json.loads(kept["manifest.json"])
        (folder / "manifest.json").write_text(
            json.dumps({**book, "sha256": file_sha256(folder / "model.onnx")})
        )
        made = {f.id: f for f in run_checklist(opened(ready), note=False).findings}
    finally:
        for name, data in kept.items():
            (folder / name).write_bytes(data)
    assert {made[i].state for i in ("A1", "M3", "S1", "S4", "L7", "T2", "T7", "P1")} == {"not proven"}
    assert "another model" in made["L7"].reason


def test_an_edited_file_is_found_by_the_log(ready):
    project = opened(ready)
    findings = [evaluate(BY_ID["S4"], project)]
    remember(project, findings)
    path = ready / "drills/load/loadtest.json"
    before = path.read_bytes()
    try:
        path.write_bytes(before.replace(b'"p99_high_ms": 80.0', b'"p99_high_ms": 40.0'))
        assert path.read_bytes() != before
        made = evaluate(BY_ID["S4"], opened(ready))
        remember(opened(ready), [made])
        again = evaluate(BY_ID["S4"], opened(ready))
    finally:
        path.write_bytes(before)
        (ready / ".checklist/seen.jsonl").unlink()
    assert (made.state, again.state) == ("not proven", "not proven")
    assert "it was edited" in again.reason


def test_a_newer_fail_counts_before_an_older_pass(ready):
    old, new = ready / "drills/load/loadtest.json", ready / "drills/load2/loadtest.json"
    new.parent.mkdir()
    book = json.loads(old.read_text())
    book["stamp"]["at"] = NOW.isoformat()
    book["phases"][1] |= {"verdict": "FAIL", "reason": "p99 is at least 300 ms"}
    try:
        new.write_text(json.dumps(book))
        assert evaluate(BY_ID["S4"], opened(ready)).state == "fail"
    finally:
        new.unlink()
        new.parent.rmdir()


def test_evidence_of_the_bundled_model_is_a_demo(ready):
    project = opened(ready, model="factory_line")
    assert "says nothing about your system" in evaluate(BY_ID["A3"], project).reason or evaluate(
        BY_ID["A3"], project
    ).reason.endswith("[runs/a/summary.json]")
    assert evaluate(BY_ID["M3"], project).state == "not proven"


FAILS = {  # item → file, and what it says instead
    "A1": ("runs/a/summary.json", ("latency_ms", "end_to_end", "p99"), 900.0),
    "I1": ("drills/preprocessing.json", ("worst difference",), 0.5),
    "V1": ("drills/events_kept.json", ("kept low",), 0.8),
    "V3": ("drills/tracking.json", ("HOTA",), 31.0),
    "V4": ("drills/load/loadtest.json", ("phases", 1, "dropped"), 39),
    "M4": ("benchmarks/b/benchmark.json", ("fit", "mib", "4"), 3900.0),
    "E1": ("drills/offline.json", ("twice",), 2),
    "E3": ("drills/rollback.json", ("by itself",), False),
    "E4": ("reports/f/metrics.json", ("devices", "box-1", "state"), "silent"),
    "S3": ("drills/verified.json", ("counts",), {"overdue": 3}),
    "S4": ("drills/load/loadtest.json", ("phases", 1, "verdict"), "FAIL"),
    "L1": ("labels/all/collection.json", ("looks", "gate/x"), 90_000),
    "L4": ("reports/q/metrics.json", ("agreement", "alpha", "low"), 0.4),
    "L7": ("releases/gate.json", ("verdict",), "FAIL"),
    "D1": ("reports/d/metrics.json", ("verdict",), "RED"),
    "D2": ("reports/a/audit_result.json", ("numbers", "F1"), {"low": 0.7, "high": 0.8}),
    "T2": ("reports/e/metrics.json", ("verdict",), "FAIL"),
    "T3": ("drills/soak.json", ("memory slope low",), 0.2),
    "T7": ("reports/w/metrics.json", ("conditions", 0, "low"), 0.2),
    "U1": ("reports/e/metrics.json", ("calibration", "after", "D-ECE"), 0.2),
    "U2": ("runs/a/summary.json", ("uncertain",), 0),
    "U3": ("drills/review.json", ("median hours",), 90),
    "P1": ("runs/a/summary.json", ("privacy",), {"covered": False, "why": "switched off"}),
    "P2": ("drills/faces.json", ("recall low",), 0.6),
}


@pytest.mark.parametrize("item", FAILS)
def test_evidence_that_says_no_is_a_fail_with_its_number(item, ready):
    file, way, value = FAILS[item]
    path = ready / file
    before = path.read_bytes()
    book = json.loads(before)
    here = book
    for key in way[:-1]:
        here = here[key]
    here[way[-1]] = value
    try:
        path.write_text(json.dumps(book))
        made = evaluate(BY_ID[item], opened(ready))
    finally:
        path.write_bytes(before)
    assert (made.state, bool(made.reason)) == ("fail", True)


# the project ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [("modle: x", "unknown: modle"),
     ("not_applicable: {S2: {reason: x, date: 2026-11-01}}", "without reason, name"),
     ("not_applicable: {S2: one box}", "without reason"), ("not_applicable: [S2]", "not a table"),
     ("not_applicable: {S2: {reason: x, name: y, date: soon}}", "without reason"), ("[", "invalid YAML"),
     ("not_applicable: {S2: {reason: x, name: y, date: 2027-03-01}}", "without reason")],
)  # fmt: skip
def test_a_wrong_checklist_yaml_is_a_config_error(text, message, tmp_path):
    (tmp_path / "checklist.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path)


def test_a_missing_checklist_yaml_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="was not found"):
        opened(tmp_path)


def test_an_unknown_item_that_is_declared_is_a_config_error(tmp_path):
    (tmp_path / "checklist.yaml").write_text("not_applicable: {Z9: {reason: x, name: y, date: 2026-11-01}}")
    with pytest.raises(ConfigError, match="unknown items: Z9"):
        run_checklist(opened(tmp_path))


def test_what_does_not_apply_carries_its_reason_and_name(tmp_path):
    (tmp_path / "checklist.yaml").write_text(
        "not_applicable: {S2: {reason: one box, name: A. Ng, date: 2026-11-01}}"
    )
    made = evaluate(BY_ID["S2"], opened(tmp_path))
    assert (made.state, made.reason) == ("n/a", "one box (A. Ng, 2026-11-01)")


@pytest.mark.parametrize("only", [["speed"], ["A9"], ["architecture", "Z1"]])
def test_an_unknown_area_is_a_config_error(only):
    with pytest.raises(ConfigError, match="areas: architecture"):
        chosen_items(only)


def test_some_items_are_chosen_by_area_and_id():
    assert [i.id for i in chosen_items(["edge", "s4"])] == ["E1", "E2", "E3", "E4", "S4"]


@pytest.mark.parametrize("cause", ["date", "expires", "name", "statement", "role"])
def test_an_attestation_without_its_parts_is_not_proven(cause, ready):
    path = ready / "attestations/b2.yaml"
    before = path.read_text()
    book = yaml.safe_load(before)
    try:
        path.write_text(yaml.safe_dump({**book, cause: " "}))
        made = evaluate(BY_ID["B2"], opened(ready))
    finally:
        path.write_text(before)
    assert made.state == "not proven"


def test_an_attested_pass_is_counted_apart(ready):
    assert run_checklist(opened(ready), ["people"], note=False).counts == {"pass": 2, "attested": 2}


def test_the_worst_stands_first_in_its_area(tmp_path, ready):
    made = run_checklist(opened(ready), note=False)
    for area in {f.area for f in made.findings}:
        states = [STATES.index(f.state) for f in made.findings if f.area == area]
        assert states == sorted(states)


def test_exit_codes(tmp_path, ready):
    good = run_checklist(opened(ready), note=False)
    (tmp_path / "checklist.yaml").write_text("name: x\n")
    (tmp_path / "cameras.yaml").write_text("sources: [gate.mp4]\n")
    empty = run_checklist(opened(tmp_path), ["video", "scale"], note=False)
    red = run_checklist(opened(tmp_path), ["H1"], note=False)
    assert [good.exit_code(True), empty.exit_code(), empty.exit_code(True), red.exit_code()] == [0, 0, 1, 1]


def test_there_is_no_percentage(ready):
    page = checklist_page(run_checklist(opened(ready), note=False))
    assert "% ready" not in page and "score" not in page.lower()


def test_json_and_page_are_written(ready, tmp_path):
    made = run_checklist(opened(ready), note=False)
    write_checklist(made, tmp_path / "c.json", tmp_path / "c.html")
    book = json.loads((tmp_path / "c.json").read_text())
    assert book["counts"] == {"pass": 60, "attested": 3} and len(book["findings"]) == 63
    assert all(i.id in (tmp_path / "c.html").read_text() for i in ITEMS)


def test_a_hostile_name_stays_text_on_the_page(ready):
    made = replace(run_checklist(opened(ready), ["A1"], note=False), name="<img src=x onerror=alert(1)>")
    assert "<img" not in checklist_page(made)


def test_an_age_in_words():
    assert [in_days(timedelta(days=n)) for n in (1, 9)] == ["1 day", "9 days"]


def test_a_decision_that_was_edited_fails_and_an_override_counts(ready):
    path = ready / "decisions/buy.yaml"
    before = path.read_text()
    book = yaml.safe_load(before)
    choice = {"answer": "buy", "reason": "a pilot", "name": "A. Ng", "date": "2026-11-01"}
    try:
        path.write_text(yaml.safe_dump({**book, "answer": "buy"}))
        edited = evaluate(BY_ID["N1"], opened(ready))
        path.write_text(yaml.safe_dump({**book, "override": choice}))
        chosen = evaluate(BY_ID["N1"], opened(ready))
    finally:
        path.write_text(before)
    assert (edited.state, chosen.state) == ("fail", "pass")
    assert "a pilot" in chosen.reason


def test_what_a_real_run_leaves_counts_for_the_configuration_that_it_used(tmp_path):
    from cv_pipeline.core.config import load_config
    from cv_pipeline.readiness.evidence import service_config
    from cv_pipeline.service.assembly import run_config

    config = tmp_path / "cameras.yaml"
    config.write_text('sources: ["line:frames=12"]\nhealth: {port: 0}\n')
    run_config(load_config(config, {"delivery.out": str(tmp_path / "runs" / "a")}))
    (tmp_path / "checklist.yaml").write_text("name: x\ndemo: true\n")
    stored = json.loads((tmp_path / "runs/a/summary.json").read_text())
    assert service_config(stored["config"]) == service_config(load_config(config))
    assert evaluate(BY_ID["A3"], open_project(tmp_path)).state == "pass"
    config.write_text('sources: ["line:frames=12"]\nhealth: {port: 0}\nselection: {every: 2}\n')
    assert "another configuration" in evaluate(BY_ID["A3"], open_project(tmp_path)).reason


# commands and documentation -------------------------------------------------------------------------------


def help_of(words):
    here, path = typer.main.get_command(app), []
    while hasattr(here, "get_command") and len(path) < len(words):
        path.append(words[len(path)])
        here = here.get_command(None, path[-1])
        assert here is not None, path
    env = {"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
    return path, CliRunner().invoke(app, [*path, "--help"], env=env).output


@pytest.mark.parametrize(
    "item", [i for i in ITEMS if i.command.startswith("cv-pipeline")], ids=lambda i: i.id
)
def test_the_command_that_would_prove_an_item_exists_with_its_options(item):
    words = shlex.split(item.command.partition(" > ")[0])[1:]
    path, text = help_of(words)
    given = [w for w in words[len(path) :] if w.startswith("--")]
    assert [o for o in given if not re.search(rf"(?<![\w-]){re.escape(o)}(?![\w-])", text)] == []


def test_the_table_of_the_documentation_is_the_code(root):
    page = (root / "docs" / "checklist.md").read_text(encoding="utf-8")
    assert items_markdown() in page, "make it again: cv_pipeline.readiness.checklist.items_markdown"


def ask(*words):
    return CliRunner().invoke(
        app, list(map(str, words)), env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    )


def test_the_command_shows_the_worst_first_and_writes_both_files(tmp_path, monkeypatch):
    tables = {}
    monkeypatch.setattr(readiness, "records", lambda title, rows, *more: tables.update({title: list(rows)}))
    (tmp_path / "checklist.yaml").write_text("name: x\n")
    (tmp_path / "cameras.yaml").write_text("sources: [gate.mp4]\n")
    made = ask("checklist", tmp_path, "--json", tmp_path / "c.json", "--html", tmp_path / "c.html")
    assert made.exit_code == 1  # upkeep is off
    assert [r["item"] for r in tables["x"]][0] == "H1"
    assert (
        json.loads((tmp_path / "c.json").read_text())["counts"]["fail"] == 1
        and (tmp_path / "c.html").exists()
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--max-age", "soon"], "--max-age"), (["--only", "speed"], "unknown: speed"),
     (["--max-age", "0d"], "--max-age")],
)  # fmt: skip
def test_a_wrong_option_is_a_config_error(words, message, tmp_path):
    (tmp_path / "checklist.yaml").write_text("name: x\n")
    made = ask("checklist", tmp_path, *words)
    assert isinstance(made.exception, ConfigError) and message in str(made.exception)


def test_max_age_is_in_days_or_hours(ready):
    assert evaluate(BY_ID["T2"], opened(ready, max_age=timedelta(hours=12))).state == "not proven"


def test_the_list_names_every_item(monkeypatch):
    tables = {}
    monkeypatch.setattr(readiness, "records", lambda title, rows, *more: tables.update({title: list(rows)}))
    assert ask("checklist", "--list").exit_code == 0
    assert [r["item"] for r in tables["Items"]] == [i.id for i in ITEMS]


def test_decide_takes_keys_a_file_and_writes_what_recomputes(tmp_path):
    (tmp_path / "a.yaml").write_text("live: true\nacts: true\n")
    out = tmp_path / "decisions" / "mode.yaml"
    made = ask("decide", "mode", "needed_s=20", "--inputs", tmp_path / "a.yaml", "--out", out)
    assert made.exit_code == 0
    again = recompute(out, TOPICS)
    assert (again.now.answer, again.differs) == ("real time", ())


@pytest.mark.parametrize(
    ("words", "message"),
    [(["speed"], "unknown topic 'speed'"), (["mode", "fast"], "not key=value"),
     (["mode", "need=3"], "unknown: need")],
)  # fmt: skip
def test_a_wrong_decision_is_a_config_error(words, message):
    made = ask("decide", *words)
    assert isinstance(made.exception, ConfigError) and message in str(made.exception)


@pytest.mark.slow
def test_prove_leaves_drills_that_count(tmp_path):
    (tmp_path / "checklist.yaml").write_text("name: x\ndemo: true\nmodel: factory_line\n")
    (tmp_path / "cameras.yaml").write_text("sources: [gate.mp4]\n")
    told = []
    prove(open_project(tmp_path), told.append)
    assert [t.partition(": ")[2] for t in told] == ["pass"] * 3
    assert evaluate(BY_ID["I1"], open_project(tmp_path)).state == "pass"


def test_prove_without_a_model_says_why_and_ends_nothing(tmp_path):
    (tmp_path / "checklist.yaml").write_text("name: x\nmodel: nowhere\n")
    (tmp_path / "cameras.yaml").write_text("sources: [gate.mp4]\n")
    told = []
    prove(open_project(tmp_path), told.append)
    assert all("not proven" in t for t in told) and len(told) == 3


def test_a_preprocessing_that_is_not_the_trainers_is_found(monkeypatch):
    from cv_pipeline.inference.manifest import PreprocessSpec
    from cv_pipeline.readiness import prove as module

    right = module.as_trained
    monkeypatch.setattr(module, "as_trained", lambda image, spec: right(image, replace(spec, color="BGR")))
    assert module.prove_preprocessing(PreprocessSpec())["outcome"] == "fail"


def test_what_fails_stands_above_everything_else_on_the_page(tmp_path):
    (tmp_path / "checklist.yaml").write_text("name: x\n")
    (tmp_path / "cameras.yaml").write_text("sources: [gate.mp4]\n")
    page = checklist_page(run_checklist(opened(tmp_path), note=False))
    assert page.index("What fails") < page.index("<b>H1</b>") < page.index("<h2>architecture</h2>")
    assert page.count("<b>H1</b>") == 1


def test_a_bare_model_file_without_a_manifest_is_known_by_its_hash(tmp_path):
    from cv_pipeline.core.stamp import stamp

    (tmp_path / "net.onnx").write_bytes((bundled_models()["factory_line"] / "model.onnx").read_bytes() + b" ")
    sha = file_sha256(tmp_path / "net.onnx")
    (tmp_path / "checklist.yaml").write_text("name: x\nmodel: net.onnx\n")
    made = json.dumps(
        {"drill": "preprocessing", "outcome": "pass", "worst difference": 0.0, "sizes": 24,
         "stamp": stamp({"name": "net", "sha256": sha}, now=lambda: NOW)}
    )  # fmt: skip
    (tmp_path / "drills").mkdir()
    (tmp_path / "drills" / "p.json").write_text(made)
    project = opened(tmp_path)
    project.__dict__["model"] = (replace(load_manifest("factory_line")[0], sha256=""), tmp_path / "net.onnx")
    assert evaluate(BY_ID["I1"], project).state == "pass"
