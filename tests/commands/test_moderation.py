"""`cv-pipeline moderate` and `cv-pipeline cascade` as they are typed."""

import json

import cv2
import pytest
from typer.testing import CliRunner

from cv_pipeline.annotation.annotations import Annotation, write_annotations
from cv_pipeline.apps.moderation_queue import outcomes
from cv_pipeline.commands import moderation
from cv_pipeline.commands.main import app
from cv_pipeline.core.chain import read_chain
from cv_pipeline.core.types import ConfigError, CVPipelineError, DataError, Detections
from tests.helpers.scenes import cut, scene


@pytest.fixture
def place(tmp_path, monkeypatch):
    "A list of two pictures; uploads: a copy, a cut copy, a stranger, a damaged file."
    monkeypatch.chdir(tmp_path)
    for folder, images in {
        "reported": {"0": scene(0), "1": scene(1)},
        "uploads": {"copy": scene(0)[:, ::-1], "cut": cut(scene(1)), "new": scene(9)},
    }.items():
        (tmp_path / folder).mkdir()
        for name, image in images.items():
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), image)
    (tmp_path / "uploads" / "broken.jpg").write_bytes(b"rubbish")
    ask("moderate", "lists", "known.tsv", "--add", "reported", "--source", "case 1")
    return tmp_path


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    "Tables as rows."
    rows = []
    monkeypatch.setattr(moderation, "records", lambda title, found, *a: rows.append((title, list(found))))
    return rows


def ask(*words, code=0):
    done = CliRunner().invoke(app, [str(w) for w in words])
    if code == 0 and done.exception is not None:
        raise done.exception
    assert isinstance(done.exception, CVPipelineError) or done.exit_code == code
    return done


def last(place):
    return {
        r["name"]: r
        for r in read_chain(place / "runs/moderation/trail.jsonl").rows
        if r["event"] == "decision"
    }


def test_pictures_are_listed_once(place, shown):
    ask("moderate", "lists", "known.tsv", "--add", "reported", "--source", "case 1")
    assert [len(line.split("\t")) for line in (place / "known.tsv").read_text().splitlines()[1:]] == [4] * 4
    assert shown[-1][1] == [{"label": "forbidden", "lines": 4}]


def test_a_run_without_a_network_blocks_copies_and_asks_people_about_the_rest(place):
    ask("moderate", "run", "uploads", "--known", "known.tsv")
    made = {name: (r["action"], r["by"]) for name, r in last(place).items()}
    assert made == {
        "copy.png": ("block", "list"),
        "cut.png": ("person", "list"),
        "new.png": ("person", "classes"),
        "broken.jpg": ("person", "error"),
    }
    assert len(list((place / "runs/moderation/queue/pictures").iterdir())) == 2


def test_people_decide_by_answers_of_label_studio_and_one_by_one(place, shown):
    ask("moderate", "run", "uploads", "--known", "known.tsv")
    found = last(place)
    box, size = Detections([[1, 1, 9, 9]], class_id=[0]), (304, 228)
    named = f"pictures/{found['cut.png']['picture']}.png"
    write_annotations([Annotation(named, "ana", size, ("forbidden",), box)], "a.jsonl")
    ask("moderate", "decide", "--answers", "a.jsonl")
    ask(
        "moderate",
        "decide",
        "--picture",
        found["new.png"]["picture"][:8],
        "--action",
        "pass",
        "--person",
        "ben",
    )
    made = outcomes(read_chain(place / "runs/moderation/trail.jsonl").rows)
    actions = {r["name"]: made[r["picture"]]["action"] for r in found.values()}
    assert actions == {"copy.png": "block", "cut.png": "block", "new.png": "pass", "broken.jpg": "person"}
    ask("moderate", "queue")
    assert [r["name"] for r in shown[-1][1]] == ["broken.jpg"]


def test_the_trail_reproduces_every_decision_and_checking_writes_nothing(place):
    ask("moderate", "run", "uploads", "--known", "known.tsv")
    trail = place / "runs/moderation/trail.jsonl"
    before = trail.read_bytes()
    ask("moderate", "trail", "--pictures", "uploads", "--known", "known.tsv")
    assert trail.read_bytes() == before


def test_a_trail_with_a_false_decision_is_exit_code_one(place):
    from cv_pipeline.core.chain import append_chain

    ask("moderate", "run", "uploads", "--known", "known.tsv")
    trail = place / "runs/moderation/trail.jsonl"
    row = {**last(place)["new.png"], "action": "pass"}
    append_chain(trail, {k: v for k, v in row.items() if k not in ("number", "previous")})
    assert ask("moderate", "trail", code=1).exit_code == 1


def test_an_audit_is_drawn_and_judged(place, shown):
    from cv_pipeline.apps.decisions import Policy, save_policy

    ask("moderate", "run", "uploads", "--known", "known.tsv")
    save_policy(Policy(), place / "p.json")
    month = last(place)["copy.png"]["at"][:7]
    ask("moderate", "audit", month, "--pictures", "uploads", "--share", "1")
    ask("moderate", "decide", "--picture", last(place)["copy.png"]["picture"], "--person", "ana")
    ask("moderate", "audit", month, "--policy", "p.json")
    assert shown[-1][1][0]["blocked"] == 1
    assert read_chain(place / "runs/moderation/trail.jsonl").rows[-1]["verdict"] == "open"


@pytest.mark.parametrize(
    "words, error",
    [
        (("moderate", "lists", "none.tsv"), DataError),
        (("moderate", "lists", "new.tsv", "--add", "uploads/broken.jpg"), CVPipelineError),
        (("moderate", "run", "nothing", "--known", "known.tsv"), DataError),
        (("moderate", "run", "uploads", "--known", "none.tsv"), DataError),
        (("moderate", "run", "uploads", "--policy", "none.json"), ConfigError),
        (("moderate", "decide"), ConfigError),
        (("moderate", "decide", "--picture", "ab"), DataError),
        (("moderate", "trail", "--trail", "none.jsonl"), DataError),
        (("moderate", "audit", "2026-06"), ConfigError),
        (("cascade", "cost", "factory_line"), DataError),
    ],
)
def test_mistakes_are_typed_errors(place, words, error):
    assert isinstance(ask(*words, code=2).exception, error)


def test_the_cost_of_a_cascade_is_that_of_its_manifest(tmp_path, shown):
    from cv_pipeline.core.files import write_json
    from cv_pipeline.inference.manifest import ModelManifest

    costs = {"first": 1.0, "second": 0.0, "large": 10.0, "crops": [0, 0], "asks": [0.0, 1.0]}
    about = {"cascade": {"costs": costs, "break even": 0.9, "table": [{"prevalence": 0.05}]}}
    (tmp_path / "stages.cascade").write_text(json.dumps({"files": []}))
    write_json(
        tmp_path / "manifest.json", ModelManifest("c", "stages.cascade", ("x",), metrics=about).to_dict()
    )
    ask("cascade", "cost", tmp_path)
    ask("cascade", "cost", tmp_path, "--prevalence", "0.1")
    assert shown[0][1] == [{"prevalence": 0.05}]
    assert shown[1][1] == [{"prevalence": 0.1, "cascade": 2.0, "large alone": 10.0, "ratio": 5.0}]
