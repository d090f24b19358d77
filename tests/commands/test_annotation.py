"""The annotation loop by commands: from a run's log to a gated candidate, through files and through a real
Label Studio, and every bad input of the way."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cv_pipeline.annotation.annotations import Annotation, read_annotations, write_annotations
from cv_pipeline.annotation.collect import read_collected, read_flags
from cv_pipeline.annotation.datasets import LeakError, freeze
from cv_pipeline.annotation.label_studio import LabelStudioDenied, LabelStudioDown, Server, pages
from cv_pipeline.annotation.versions import VersionError, read_version, verify_version
from cv_pipeline.commands import main as cli
from cv_pipeline.core.config import load_config
from cv_pipeline.core.formats import read_dataset
from cv_pipeline.core.types import (
    BackendError,
    ConfigError,
    CVPipelineError,
    DataError,
    Detections,
    MissingExtraError,
    SinkError,
)
from cv_pipeline.inference.manifest import load_manifest
from cv_pipeline.service.assembly import run_config
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.line import write_dataset
from tests.helpers.cli import called
from tests.helpers.label_studio_server import TOKEN, LabelStudio
from tests.helpers.plain_networks import plain_onnx
from tests.helpers.services import require

pytestmark = pytest.mark.slow

NAMES = ("gear", "bolt", "nut", "bracket", "defect")


def ask(*args, code: int = 0) -> str:
    "A command of the real application in this process; its output, or its typed error."
    result = CliRunner().invoke(
        cli.app, [str(a) for a in args], env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    )
    if isinstance(result.exception, CVPipelineError):
        raise result.exception
    assert result.exit_code == code, f"{result.exit_code}: {result.output}\n{result.exception!r}"
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("loop") / "run"
    run_config(
        load_config(
            None,
            {
                "sources": [{"uri": "line:frames=100,seed=5,fog=4", "id": "gate"}],
                "delivery.out": str(out),
                "model.threads": 1,
            },
        )
    )
    return out


@pytest.fixture(scope="module")
def collection(run) -> Path:
    ask("flag", run, "gate", 60, "--note", "fog on the lens")
    ask("collect", run, "--out", run.parent / "monday", "--random", 0.05, "--hamming", -1)
    return run.parent / "monday"


@pytest.fixture(scope="module")
def selected(collection) -> Path:
    ask(
        "select",
        collection,
        "--out",
        collection.parent / "selected",
        "--budget",
        12,
        "--strategy",
        "uncertainty",
    )
    return collection.parent / "selected"


@pytest.fixture(scope="module")
def answers(selected) -> Path:
    "Two people's answers through files; the second one calls every nut a bolt in one picture."
    root = selected.parent
    ask("label", "files", selected, "--out", root / "drafts", "--model", "factory_line")
    ask(
        "label",
        "files",
        root / "drafts",
        "--annotator",
        "ana",
        "--out",
        root / "annotations.jsonl",
        "--unchanged",
        "accept",
    )  # she looked at all and agrees
    shutil.copytree(root / "drafts", root / "bens")
    label = next(
        p for p in sorted((root / "bens" / "labels").glob("*.txt")) if p.stem != "classes" and p.read_text()
    )
    label.write_text(
        label.read_text().replace("\n2 ", "\n1 ")
        if "\n2 " in label.read_text()
        else "1" + label.read_text()[1:]
    )
    ask(
        "label",
        "files",
        root / "bens",
        "--annotator",
        "ben",
        "--out",
        root / "annotations.jsonl",
        "--unchanged",
        "accept",
    )
    return root / "annotations.jsonl"


@pytest.fixture(scope="module")
def batch(answers, selected) -> Path:
    ask(
        "label",
        "settle",
        answers,
        "--pictures",
        selected,
        "--out",
        answers.parent / "batch",
        "--model",
        "factory_line",
        "--disputes",
        "keep",
    )
    return answers.parent / "batch"


@pytest.fixture(scope="module")
def test_set(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("frozen")
    line = FactoryLine(LineConfig(seed=5100, density=6))
    write_dataset(root / "test", (line.render(k * 10) for k in range(36)), ["yolo"], split="all")
    freeze(root / "test", root / "test_set.json")
    return root / "test_set.json"


# ---- collect and select


def test_flagged_and_doubtful_looks_are_collected(collection, run):
    rows = read_collected(collection)
    flagged = next(r for r in rows if "flag" in r.reasons)
    assert (flagged.frame_id, flagged.note, flagged.probability) == (60, "fog on the lens", 1.0) and {
        "random",
        "low",
    } <= {x for r in rows for x in r.reasons}
    assert [f.frame_id for f in read_flags(run / "flags.jsonl")] == [60]


def test_flags_by_time_and_into_another_file(run, tmp_path):
    at = json.loads((run / "results.jsonl").read_text().splitlines()[3])["captured_at"]
    ask("flag", run, "gate", at, "--out", tmp_path / "f.jsonl")
    ask("flag", run, "gate", "4", "--out", tmp_path / "f.jsonl", "--note", "zwei")
    said = ask(
        "collect",
        run,
        "--out",
        tmp_path / "c",
        "--flags",
        tmp_path / "f.jsonl",
        "--random",
        0,
        "--low",
        "off",
        "--high",
        -1,
        "--none",
        -1,
        "--many",
        -1,
    )
    assert (
        [f.note for f in read_flags(tmp_path / "f.jsonl")] == ["", "zwei"]
        and {r.frame_id for r in read_collected(tmp_path / "c") if "flag" in r.reasons} == {3, 4}
        and "flag" in said
    )


def test_flags_behind_a_torn_line_and_with_any_sign(run, tmp_path):
    file = tmp_path / "new" / "flags.jsonl"  # a folder that is not there yet
    ask("flag", run, "gate", 3, "--out", file)
    with open(file, "ab") as f:
        f.write(
            json.dumps({"source_id": "gate", "frame_id": 4, "note": "ölig"}, ensure_ascii=False).encode()[:-6]
        )  # killed while writing it
    ask("flag", run, "gate", 5, "--out", file, "--note", "lid\u2028gone\x85")
    rows = [json.loads(line) for line in file.read_bytes().decode().split("\n") if line]
    assert [(r["frame_id"], r.get("note", "")) for r in rows] == [(3, ""), (5, "lid\u2028gone\x85")]


@pytest.mark.parametrize(
    "args, error, words",
    [
        (["flag", "{run}", "dock", "3"], DataError, "no source 'dock'"),
        (["flag", "{run}", "gate", "noon"], ConfigError, "neither a frame number"),
        (["flag", "{run}", "gate", "2026-06-01T08:00"], ConfigError, "has no zone"),
        (["flag", "{run}", "gate", "²"], ConfigError, "neither a frame number"),
        (["flag", "{run}", "gate", "9" * 5000], ConfigError, "neither a frame number"),
        (["flag", "{tmp}", "gate", "3"], DataError, "no log found"),
        (["collect", "{tmp}", "--out", "{tmp}/c"], DataError, "no log found"),
        (["collect", "{run}", "--out", "{tmp}/c", "--low", "many"], ConfigError, "'many' is not a number"),
        (["collect", "{run}", "--out", "{tmp}/c", "--low", "0.9,0.2"], ConfigError, "low"),
        (["collect", "{run}", "--out", "{run}"], ConfigError, "not empty"),
        (
            ["collect", "{run}", "--out", "{tmp}/c", "--pictures", "{tmp}"],
            DataError,
            "no images of these sources",
        ),
        (["select", "{run}", "--out", "{tmp}/s", "--budget", "3"], DataError, "no collection found"),
        (["merge", "{tmp}/no", "--out", "{tmp}/v"], DataError, "dataset not found"),
        (["qa", "{tmp}/no", "--out", "{tmp}/q"], DataError, "dataset not found"),
    ],
)
def test_bad_usage_is_a_typed_error(run, tmp_path, args, error, words):
    with pytest.raises(error, match=words):
        ask(*(a.format(run=run, tmp=tmp_path) for a in args))


def test_an_empty_log_has_nothing_to_collect(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.jsonl").write_text("")
    with pytest.raises(DataError, match="the log is empty"):
        ask("collect", tmp_path / "run", "--out", tmp_path / "c")


def test_pictures_that_are_gone_are_named(collection, tmp_path):
    copy = shutil.copytree(collection, tmp_path / "c")
    gone = copy / read_collected(copy)[0].picture
    gone.unlink()
    with pytest.raises(DataError, match=gone.name):
        ask("select", copy, "--budget", 3, "--out", tmp_path / "s")


@pytest.mark.parametrize("strategy", ["hybrid", "diversity", "random"])
def test_every_strategy_keeps_the_budget(collection, tmp_path, strategy):
    ask("select", collection, "--out", tmp_path / "s", "--budget", 5, "--strategy", strategy, "--seed", 3)
    assert len(read_collected(tmp_path / "s")) == 5
    with pytest.raises(ConfigError, match="budget"):
        ask("select", collection, "--out", tmp_path / "t", "--budget", 0)


def test_any_onnx_can_say_what_is_alike(collection, tmp_path):
    file, _ = plain_onnx(tmp_path / "embedder.onnx")
    ask(
        "select",
        collection,
        "--out",
        tmp_path / "s",
        "--budget",
        5,
        "--strategy",
        "diversity",
        "--features",
        file,
    )
    assert len(read_collected(tmp_path / "s")) == 5
    for features, error in (
        (tmp_path / "none.onnx", BackendError),
        ("heavy", ConfigError),
        ("model", ConfigError),
    ):
        with pytest.raises(error):
            ask("select", collection, "--out", tmp_path / "t", "--budget", 5, "--features", features)


# ---- labels through files


@pytest.mark.parametrize("form", ["yolo", "coco"])
def test_drafts_that_nobody_touched_are_nobodys_answers(selected, tmp_path, form):
    ask("label", "files", selected, "--out", tmp_path / "d", "--form", form, "--model", "factory_line")
    place, out = (
        tmp_path / "d" if form == "yolo" else tmp_path / "d" / "annotations.json",
        tmp_path / "a.jsonl",
    )
    with pytest.raises(DataError, match="all 12 drafts are unchanged") as e:
        ask("label", "files", place, "--annotator", "ana", "--out", out)
    assert "--unchanged accept" in e.value.hint and not out.exists()
    if form == "yolo":
        for label in sorted((tmp_path / "d" / "labels").glob("[0-9a-f]*.txt"))[:2]:
            label.write_text(label.read_text() + "0 .5 .5 .25 .25\n")
    else:
        book = json.loads(place.read_text())
        for k in (0, 1):
            book["annotations"].append(
                {
                    "id": 10**6 + k,
                    "image_id": book["images"][k]["id"],
                    "category_id": 1,
                    "bbox": [9, 9, 70, 70],
                }
            )
        place.write_text(json.dumps(book))
    said = ask("label", "files", place, "--annotator", "ana", "--out", out)
    assert (
        "10 of 12 are unchanged" in said
        and "if ana looked at those too and agrees" in said
        and len(read_annotations(out)) == 2
    )
    assert (
        "10 of 12 are unchanged: accepted"
        in ask("label", "files", place, "--annotator", "ana", "--out", out, "--unchanged", "accept")
        and len(read_annotations(out)) == 12
    )
    assert "'yes' is not one of" in ask(
        "label", "files", place, "--annotator", "ana", "--out", out, "--unchanged", "yes", code=2
    )


@pytest.mark.parametrize("form", ["yolo", "coco"])
def test_two_batches_in_one_folder_keep_their_classes(selected, tmp_path, form):
    monday, wednesday = (shutil.copytree(selected, tmp_path / day) for day in ("monday", "wednesday"))
    lines = [json.loads(line) for line in (selected / "collected.jsonl").read_text().splitlines()]
    for folder, part, old, new in (
        (monday, lines[:6], ("gear", "bolt", "nut", "bracket", "defect"), ("bolt", "nut")),
        (wednesday, lines[6:], ("gear", "bolt", "nut", "bracket", "defect"), ("screw", "washer")),
    ):
        for row in part:
            row["detections"] = [
                {**d, "class_name": new[old.index(d["class_name"]) % 2]} for d in row["detections"]
            ]
        (folder / "collected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    for folder, names in ((monday, "bolt,nut"), (wednesday, "screw,washer")):
        ask("label", "files", folder, "--out", tmp_path / "d", "--form", form, "--names", names)
    ask(
        "label",
        "files",
        tmp_path / "d" if form == "yolo" else tmp_path / "d" / "annotations.json",
        "--annotator",
        "ana",
        "--out",
        tmp_path / "a.jsonl",
        "--unchanged",
        "accept",
    )
    said = {a.picture: sorted(a.class_names) for a in read_annotations(tmp_path / "a.jsonl")}
    assert (
        said == {row["picture"]: sorted(d["class_name"] for d in row["detections"]) for row in lines}
        and len({n for names in said.values() for n in names}) == 4
    )


def test_drafts_come_in_the_order_of_the_selection(selected, tmp_path):
    copy = shutil.copytree(selected, tmp_path / "s")
    lines = (selected / "collected.jsonl").read_text().splitlines()[::-1]
    for k, order in enumerate((lines, lines[::-1])):
        (copy / "collected.jsonl").write_text("\n".join(order) + "\n")
        for form in ("yolo", "coco"):
            ask(
                "label",
                "files",
                copy,
                "--out",
                tmp_path / f"{form}{k}",
                "--form",
                form,
                "--model",
                "factory_line",
            )
        wanted = [json.loads(line)["picture"] for line in order]
        book = [
            json.loads(line) for line in (tmp_path / f"coco{k}" / "drafts.jsonl").read_text().splitlines()
        ]
        assert [r["picture"] for r in book] == wanted and [
            r["file_name"]
            for r in json.loads((tmp_path / f"coco{k}" / "annotations.json").read_text())["images"]
        ] == [r["file"] for r in book]
        assert [
            json.loads(line)["picture"]
            for line in (tmp_path / f"yolo{k}" / "drafts.jsonl").read_text().splitlines()
        ] == wanted


def test_files_that_are_no_answers_and_places_that_are_none(answers, selected, tmp_path):
    (tmp_path / "bin.jsonl").write_bytes(b"\x80\x81\n\xff\n")
    (tmp_path / "afile").write_text("")
    settle = [
        "label",
        "settle",
        answers,
        "--pictures",
        selected,
        "--model",
        "factory_line",
        "--disputes",
        "keep",
    ]
    for file, words in (
        (tmp_path, "cannot read the annotation file"),
        (tmp_path / "bin.jsonl", "line 1 is not JSON"),
    ):
        with pytest.raises(DataError, match=words):
            ask("label", "settle", file, "--pictures", selected, "--out", tmp_path / "b")
    for iou in (2, "nan", 0):
        with pytest.raises(ConfigError, match="is not an overlap"):
            ask(*settle, "--out", tmp_path / "b", "--iou", iou)
    assert "'percent' is not one of" in ask(*settle, "--out", tmp_path / "b", "--units", "percent", code=2)
    with pytest.raises(ConfigError, match="cannot write the folder"):
        ask(*settle, "--out", tmp_path / "afile" / "b")
    with pytest.raises(SinkError, match="a parent of the path is a file"):
        ask("label", "files", selected, "--out", tmp_path / "afile" / "x", "--model", "factory_line")
    with pytest.raises(SinkError, match="a parent of the path is a file"):
        ask("flag", answers.parent / "run", "gate", 1, "--out", tmp_path / "afile" / "f.jsonl")


def test_boxes_that_look_like_percent_can_be_said_to_be_pixels(selected, tmp_path):
    rows, file = read_collected(selected), tmp_path / "a.jsonl"
    write_annotations(
        [
            Annotation(
                r.picture,
                "ana",
                r.size,
                NAMES,
                Detections([[5 + k, 5, 20 + k, 95], [75, 3, 99, 9]], class_id=[0, 1]),
            )
            for k, r in enumerate(rows)
        ],
        file,
    )
    settle = [
        "label",
        "settle",
        file,
        "--pictures",
        selected,
        "--out",
        tmp_path / "b",
        "--model",
        "factory_line",
    ]
    with pytest.raises(DataError, match="they appear to be percent") as e:
        ask(*settle)
    assert "--units pixels" in e.value.hint
    ask(*settle, "--units", "pixels")
    assert len(read_dataset(tmp_path / "b")) == 12


def test_answers_of_two_people_become_a_dataset(answers, batch, selected):
    said = read_annotations(answers)
    assert {a.annotator for a in said} == {"ana", "ben"} and len(said) == 24
    items = read_dataset(batch)
    assert len(items) == 12 and items[0].names == NAMES


def test_reading_a_person_twice_replaces_and_doubles_nothing(answers, tmp_path):
    copy, root = tmp_path / "a.jsonl", answers.parent
    shutil.copy(answers, copy)
    before = sorted(copy.read_text().splitlines())
    ask("label", "files", root / "bens", "--annotator", "ben", "--out", copy, "--unchanged", "accept")
    assert sorted(copy.read_text().splitlines()) == before


def test_what_people_disagree_about_is_left_out_unless_kept(answers, selected, tmp_path):
    said = ask(
        "label", "settle", answers, "--pictures", selected, "--out", tmp_path / "b", "--model", "factory_line"
    )
    assert len(read_dataset(tmp_path / "b")) == 11 and "disputed" in said
    place = ["label", "settle", answers, "--pictures", selected, "--out", tmp_path / "x"]
    assert "'maybe' is not one of" in ask(*place, "--disputes", "maybe", code=2)
    with pytest.raises(DataError, match="unknown labels"):
        ask(
            "label",
            "settle",
            answers,
            "--pictures",
            selected,
            "--out",
            tmp_path / "x",
            "--names",
            "gear,bolt,nut",
        )
    with pytest.raises(DataError, match="images are missing"):
        ask(
            "label",
            "settle",
            answers,
            "--pictures",
            tmp_path,
            "--out",
            tmp_path / "x",
            "--model",
            "factory_line",
        )
    renamed = ask(
        "label",
        "settle",
        answers,
        "--pictures",
        selected,
        "--out",
        tmp_path / "y",
        "--names",
        "gear,bolt,nut,bracket",
        "--rename",
        "defect=nut",
        "--disputes",
        "keep",
    )
    assert "written" in renamed and read_dataset(tmp_path / "y")[0].names == (
        "gear",
        "bolt",
        "nut",
        "bracket",
    )


@pytest.mark.parametrize(
    "label, words",
    [
        ("9 .5 .5 .1 .1\n", "unknown label"),
        ("0 .1 .1 .9 .1 .9 .9 .1 .9\n", "polygon"),
        ("0 50 50 10 10\n", "pixels or percent"),
        ("0 .5 nan .1 .1\n", "not fractions"),
        ("0 .5\n", "values"),
    ],
)
def test_files_that_cannot_be_meant_are_refused(answers, tmp_path, label, words):
    copy = shutil.copytree(answers.parent / "drafts", tmp_path / "d")
    next(p for p in sorted((copy / "labels").glob("*.txt")) if p.stem != "classes").write_text(label)
    with pytest.raises(DataError, match=words):
        ask("label", "files", copy, "--annotator", "eve", "--out", tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


def test_nobody_answered(tmp_path, selected):
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(DataError, match="pull again"):
        ask("label", "settle", tmp_path / "a.jsonl", "--pictures", selected, "--out", tmp_path / "b")


def test_the_same_picture_under_two_names_is_asked_once(selected, tmp_path):
    copy = shutil.copytree(selected, tmp_path / "s")
    row = json.loads((copy / "collected.jsonl").read_text().splitlines()[0])
    twin = str(Path(row["picture"]).with_name("00999999.jpg"))
    shutil.copy(copy / row["picture"], copy / twin)
    with open(copy / "collected.jsonl", "a") as f:
        f.write(json.dumps({**row, "picture": twin, "frame_id": 999999}) + "\n")
    assert "picture under two names" in ask(
        "label", "files", copy, "--out", tmp_path / "d", "--model", "factory_line"
    )
    assert len(list((tmp_path / "d" / "images").iterdir())) == 12


# ---- Label Studio


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    started = LabelStudio(tmp_path_factory.mktemp("labelstudio"))
    yield started
    started.stop()


def test_there_and_back_through_a_real_label_studio(studio, selected, tmp_path, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    copy, where = shutil.copytree(selected, tmp_path / "s"), ["--title", "by command", "--url", studio.url]
    assert "12 new tasks, 0 were there" in ask("label", "push", copy, *where, "--model", "factory_line")
    assert "0 new tasks, 12 were there" in ask("label", "push", copy, *where, "--model", "factory_line")
    with pytest.raises(DataError, match="pull again"):
        ask("label", "pull", *where, "--out", tmp_path / "a.jsonl", "--pictures", copy)
    server = Server(studio.url, pause_s=0.01)
    number = json.loads((copy / "label_studio.json").read_text())["project"]
    for task in pages(server, f"/api/tasks?project={number}&fields=all", "tasks", "total"):
        server.call(
            "POST",
            f"/api/tasks/{task['id']}/annotations",
            {
                "result": [
                    {k: v for k, v in r.items() if k != "score"} for r in task["predictions"][0]["result"]
                ],
                "lead_time": 3.0,
            },
        )
    mine = Annotation(read_collected(copy)[0].picture, "ben", (640, 480), ("bolt",), Detections.empty())
    write_annotations([mine], tmp_path / "other.jsonl")
    ask("label", "pull", *where, "--out", tmp_path / "other.jsonl")
    assert (
        ask("label", "pull", *where, "--out", tmp_path / "other.jsonl")
        and len(read_annotations(tmp_path / "other.jsonl")) == 13
        and read_annotations(tmp_path / "other.jsonl")[0].to_dict() == mine.to_dict()
    )
    said = ask("label", "pull", *where, "--out", tmp_path / "a.jsonl", "--pictures", copy)
    assert "12 answers to 12 tasks" in said and TOKEN not in said
    ask(
        "label",
        "settle",
        tmp_path / "a.jsonl",
        "--pictures",
        copy,
        "--out",
        tmp_path / "b",
        "--model",
        "factory_line",
    )
    assert len(read_dataset(tmp_path / "b")) == 12 and sum(
        len(i.truth((640, 480))) for i in read_dataset(tmp_path / "b")
    ) == sum(len(r.detections) for r in read_collected(copy))
    assert "only one annotator" in ask(
        "qa", tmp_path / "b", "--annotations", tmp_path / "a.jsonl", "--out", tmp_path / "q", "--no-report"
    )
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "f" * 40)
    with pytest.raises(LabelStudioDenied):
        ask("label", "pull", *where, "--out", tmp_path / "x.jsonl")


def test_without_token_or_server(selected, tmp_path, monkeypatch):
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="LABEL_STUDIO_API_KEY is not set"):
        ask("label", "push", selected, "--title", "Line")
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    monkeypatch.setattr("time.sleep", lambda s: None)
    monkeypatch.setattr(
        Server.__init__,
        "__defaults__",
        (*Server.__init__.__defaults__[:5], lambda s: None, *Server.__init__.__defaults__[6:]),
    )
    with pytest.raises(LabelStudioDown):
        ask("label", "pull", "--title", "Line", "--url", "http://127.0.0.1:9", "--out", tmp_path / "a.jsonl")


# ---- QA


def test_qa_names_what_is_doubtful_and_sends_it_back(batch, answers, tmp_path):
    said = ask(
        "qa",
        batch,
        "--model",
        "factory_line",
        "--annotations",
        answers,
        "--out",
        tmp_path / "q",
        "--no-report",
        "--tasks",
        tmp_path / "again",
        "--budget",
        4,
    )
    book = json.loads((tmp_path / "q" / "qa.json").read_text())
    assert (
        book["pictures"] == 12
        and book["verdict"] in said
        and {f["what"] for f in book["findings"]} == {"doubtful", "impossible", "power", "agreement"}
    )
    assert any(
        p["kind"] == "people differ" and p["picture"].startswith("frames_gate_") for p in book["problems"]
    ), "disputes carry the dataset's names"
    assert 1 <= len(list((tmp_path / "again" / "images").iterdir())) <= 4
    assert "Traceback" not in ask(
        "qa", batch, "--model", "factory_line", "--out", tmp_path / "q", "--no-report", "--gate", code=1
    )
    ask(
        "qa", batch, "--out", tmp_path / "q", "--no-report", "--gate", "--limit", "power=off"
    )  # no model: boxes only, and that was asked for


def test_a_planted_error_is_on_the_list(batch, tmp_path):
    copy = shutil.copytree(batch, tmp_path / "b")
    label = next(p for p in sorted((copy / "labels").rglob("*.txt")) if p.read_text())
    label.write_text(label.read_text() + "0 0.02 0.02 0.5 0.001\n")
    book = (
        ask("qa", copy, "--out", tmp_path / "q", "--no-report", "--gate", "--limit", "power=off", code=1),
        json.loads((tmp_path / "q" / "qa.json").read_text()),
    )[1]
    assert any(
        p["picture"] == f"{label.stem}.jpg" and p["kind"] in ("no size", "outside") for p in book["problems"]
    )
    with pytest.raises(ConfigError, match="unknown limit"):
        ask("qa", copy, "--out", tmp_path / "q", "--no-report", "--limit", "quality=1")
    with pytest.raises(DataError, match="no class in common"):
        ask(
            "qa",
            _named(copy, tmp_path / "cows", "cow"),
            "--model",
            "factory_line",
            "--out",
            tmp_path / "q",
            "--no-report",
        )


def _named(source: Path, out: Path, name: str) -> Path:
    "The folder with other class names."
    shutil.copytree(source, out)
    (out / "data.yaml").write_text(json.dumps({"names": [f"{name}{k}" for k in range(5)]}))
    return out


def test_suspects_are_tagged_in_a_real_fiftyone(fo, batch, tmp_path):  # noqa: F811
    ask(
        "qa",
        batch,
        "--model",
        "factory_line",
        "--out",
        tmp_path / "q",
        "--no-report",
        "--fiftyone",
        "by command",
    )
    made, book = fo.load_dataset("by command"), json.loads((tmp_path / "q" / "qa.json").read_text())
    assert len(made) == 12 and sum(made.count_values("ground_truth.detections.tags").values()) == sum(
        p["row"] >= 0 for p in book["problems"]
    )
    with pytest.raises(ConfigError, match="--replace"):
        ask("qa", batch, "--out", tmp_path / "q", "--no-report", "--fiftyone", "by command")


def test_the_report_page_is_made_beside_qa_json(batch, answers, tmp_path):
    said = ask(
        "qa",
        batch,
        "--model",
        "factory_line",
        "--annotations",
        answers,
        "--out",
        tmp_path / "q",
        "--root",
        tmp_path / "reports",
    )
    page = next((tmp_path / "reports").rglob("report.html"))
    text, metrics = page.read_text(), json.loads((page.parent / "metrics.json").read_text())
    book = json.loads((tmp_path / "q" / "qa.json").read_text())
    assert (
        metrics["verdict"] == book["verdict"]
        and metrics["counts"] == book["counts"]
        and "report.html" in said
    )
    assert "people differ" in text and "image/jpeg" in text and "Traceback" not in text


def test_the_qa_report_is_scheduled_like_any_other():
    said = ask("report", "qa", "-p", "data=datasets/v2", "-p", "model=models/line", "--schedule")
    assert "report qa -p data=datasets/v2 -p model=models/line" in said and "cron" in said


# ---- merge, train, gate


def test_merge_makes_versions_and_keeps_the_test_set_out(batch, test_set, tmp_path):
    leaky = shutil.copytree(batch, tmp_path / "leaky")
    stolen = read_dataset(test_set.parent / "test")[0]
    (
        shutil.copy(stolen.path, leaky / "images" / "train" / "stolen.jpg"),
        shutil.copy(stolen.label, leaky / "labels" / "train" / "stolen.txt"),
    )
    said = ask(
        "merge",
        leaky,
        "--out",
        tmp_path / "v1",
        "--frozen",
        test_set,
        "--by",
        "ana",
        "--hamming",
        0,
        "--val",
        0.3,
    )
    v1 = verify_version(tmp_path / "v1")
    assert (
        "left out" in said
        and "stolen.jpg" in said
        and len(v1.pictures) == 12
        and v1.made_by == "ana"
        and set(v1.counts) == {"train", "val"}
    )
    with pytest.raises(LeakError, match="stolen"):
        ask(
            "merge", leaky, "--out", tmp_path / "x", "--frozen", test_set, "--leaks", "refuse", "--hamming", 0
        )
    ask(
        "merge",
        tmp_path / "v1",
        _named(batch, tmp_path / "new", "lid"),
        "--out",
        tmp_path / "v2",
        "--add-names",
        "--prefer",
        "newer",
        "--hamming",
        0,
    )
    v2 = read_version(tmp_path / "v2")
    assert (
        v2.names == (*NAMES, *(f"lid{k}" for k in range(5)))
        and v2.number == 2
        and v2.frozen["digest"] == v1.frozen["digest"]
    )
    with pytest.raises(DataError, match="with different labels"):
        ask(
            "merge",
            tmp_path / "v1",
            _named(batch, tmp_path / "n3", "lid"),
            "--out",
            tmp_path / "v3",
            "--add-names",
            "--hamming",
            0,
        )
    next((tmp_path / "v1" / "labels").rglob("*.txt")).write_text("")
    with pytest.raises(VersionError, match="1 changed"):
        ask("merge", tmp_path / "v1", "--out", tmp_path / "v4")


def test_the_gate_by_command(test_set, tmp_path):
    same = [
        "factory_line",
        "--old",
        "factory_line",
        "--frozen",
        test_set,
        "--draws",
        40,
        "--threads",
        1,
        "--thin",
        "report",
    ]
    said = ask("gate", *same, "--out", tmp_path / "c", "--by", "ana", "--version", "9")
    assert "verdict: PASS" in said and load_manifest(tmp_path / "c")[0].version == "9"
    assert "INSUFFICIENT" in ask("gate", *same[:-1], "block", "--out", tmp_path / "d", code=1) and [
        p.name for p in (tmp_path / "d").iterdir()
    ] == ["gate.json"]
    with pytest.raises(LeakError):
        ask("gate", *same, "--out", tmp_path / "e", "--train", test_set.parent / "test")


def test_a_real_training_by_command_goes_to_the_gate(batch, test_set, tmp_path):
    require("ultralytics")
    ask("merge", batch, "--out", tmp_path / "v1", "--frozen", test_set, "--hamming", 0, "--val", 0.3)
    said = ask(
        "train",
        tmp_path / "v1",
        "--out",
        tmp_path / "r",
        "--epochs",
        1,
        "--imgsz",
        96,
        "--batch",
        4,
        "--seed",
        4,
        "--augment",
        "none",
        "--frozen",
        test_set,
    )
    card = json.loads((tmp_path / "r" / "run.json").read_text())
    assert (
        "epoch 1 of 1" in said
        and card["state"] == "finished"
        and (card["plan"]["epochs"], card["plan"]["imgsz"], card["plan"]["seed"]) == (1, 96, 4)
        and not np.any(list(card["plan"]["augment"].values()))
    )
    with pytest.raises(ConfigError, match="finished"):
        ask("train", tmp_path / "v1", "--out", tmp_path / "r", "--resume")
    ask(
        "gate",
        tmp_path / "r",
        "--old",
        "factory_line",
        "--frozen",
        test_set,
        "--train",
        tmp_path / "v1",
        "--out",
        tmp_path / "c",
        "--draws",
        40,
        "--threads",
        1,
        code=1,
    )
    book = json.loads((tmp_path / "c" / "gate.json").read_text())
    assert (
        book["verdict"] == "FAIL"
        and book["training data"]["digest"] == read_version(tmp_path / "v1").digest
        and "overall" in book["reasons"][0]
    )


def test_training_without_its_extra_says_what_to_install(batch, tmp_path, monkeypatch):
    ask("merge", batch, "--out", tmp_path / "v1", "--hamming", 0, "--val", 0.3)
    monkeypatch.setitem(sys.modules, "ultralytics", None)
    with pytest.raises(MissingExtraError, match=r"cv_pipeline\[train\]"):
        ask("train", tmp_path / "v1", "--out", tmp_path / "r", "--epochs", 1, "--augment", "none")


# ---- as a user meets them


def test_every_command_has_examples_and_typed_exit_codes(tmp_path):
    for command in (
        ["flag"],
        ["collect"],
        ["select"],
        ["label", "push"],
        ["label", "pull"],
        ["label", "files"],
        ["label", "settle"],
        ["qa"],
        ["merge"],
        ["train"],
        ["gate"],
    ):
        assert "Example" in ask(*command, "--help"), command
    assert "at most 100" in ask("collect", "--help") and ".onnx" in ask("select", "--help")
    done = called("merge", tmp_path / "nowhere", "--out", tmp_path / "v")
    assert done.returncode == 2 and "dataset not found" in done.stderr and "Traceback" not in done.stderr
    cv2.imwrite(str(tmp_path / "p.png"), np.zeros((40, 40, 3), np.uint8))
    done = called("qa", tmp_path, "--out", tmp_path / "q", "--no-report")
    assert done.returncode == 2 and "labels-missing" in done.stderr


def test_help_does_not_import_what_commands_need():
    text = (
        "import sys, cv_pipeline.commands.main; print([m for m in ('cv2', 'onnxruntime', 'scipy', "
        "'pandas', 'torch', 'fiftyone', 'papermill') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
