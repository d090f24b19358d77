"""`cv-pipeline rules`: a wrong key has its path, a drawing is covered, a replay counts alarms a day."""

import json
from datetime import datetime, timedelta, timezone

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from cv_pipeline.commands import main, rules
from cv_pipeline.core.config import EventsConfig
from cv_pipeline.core.files import write_whole
from cv_pipeline.core.images import read_image
from cv_pipeline.synthetic.incidents import yard_rules
from cv_pipeline.video.cover import PictureCover
from cv_pipeline.video.events import read_events
from tests.helpers.services import require

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
YARD = {"name": "yard", "polygon": [[200, 100], [440, 100], [440, 380], [200, 380]]}
ENTER = {"name": "intruder", "kind": "enter", "zone": "yard", "classes": ["person"]}


def ask(*words):
    return CliRunner().invoke(main.app, ["rules", *map(str, words)], env={"COLUMNS": "200", "NO_COLOR": "1"})


def error_of(*words):
    return str(ask(*words).exception)


def a_file(folder, given, name="rules.yaml"):
    return write_whole(folder / name, given if isinstance(given, str) else yaml.safe_dump(given))


@pytest.fixture
def tables(monkeypatch):
    "Title → rows of the tables that a command prints."
    shown = {}
    monkeypatch.setattr(rules, "records", lambda title, rows, *more: shown.update({title: list(rows)}))
    return shown


def a_recording(folder, seconds=3600, size=(640, 480)):
    "Somebody enters the yard every ten minutes."
    lines = []
    for i in range(seconds):
        x = 60 + 10 * (i % 600)
        rows = []
        if x < 640:
            box = {"xyxy": [x - 20, 140, x + 20, 240], "tracker_id": i // 600, "decision": "accept"}
            rows.append({"class_id": 0, "class_name": "person", "confidence": 0.9, **box})
        at = NOON + timedelta(seconds=i)
        head = {"source_id": "gate", "frame_id": i, "captured_at": at.isoformat(), "size": size}
        lines.append(json.dumps({**head, "inferred": True, "status": "ok", "detections": rows}))
    return write_whole(folder / "results.jsonl", "\n".join(lines) + "\n")


# --- check


def test_a_right_file_and_the_configuration_of_a_run(tmp_path, tables):
    alone = a_file(tmp_path, yard_rules())
    assert ask("check", alone).exit_code == 0
    assert [row["kind"] for row in tables["Rules"]][:3] == ["enter", "leave", "stay"]
    whole = {"sources": ["gate.mp4"], "events": {"zones": [YARD], "rules": [ENTER]}}
    assert ask("check", a_file(tmp_path, whole, "run.yaml")).exit_code == 0
    assert tables["Rules"] == [{"rule": "intruder", "kind": "enter", "where": "yard", "for": "person"}]


@pytest.mark.parametrize(
    "given, text",
    [
        ("", "the file has no rules"),
        ("- 1\n", ""),
        ("sources: [a.mp4]\n", "the file has no rules"),
        ("zones: []\nrules: []\n", "the file has no rules"),
        (
            {"zones": [YARD], "rules": [{**ENTER, "zone": "yrad"}]},
            "rules[0].zone: unknown zone 'yrad'; did you mean 'yard'?",
        ),
        (
            {"zones": [YARD], "rules": [{**ENTER, "calsses": []}]},
            "rules.0.enter.calsses: unknown key; did you mean 'classes'?",
        ),
        ({"zones": [YARD], "rules": [{**ENTER, "kind": "entre"}]}, "rules.0"),
        (
            {"zones": [YARD], "rules": [{"name": "s", "kind": "stay", "zone": "yard", "for_s": -5}]},
            "rules.0.stay.for_s",
        ),
        ({"zones": [{**YARD, "polygon": [[0, 0], [9, 9], [9, 0], [0, 9]]}]}, "its border crosses itself"),
        ({"zones": [YARD], "rules": [ENTER], "hours": [{"name": "n", "start": "26:00"}]}, "hours.0.start"),
        ({"zonse": [YARD]}, "zonse: unknown key; did you mean 'zones'?"),
    ],
)
def test_a_wrong_file_is_refused_with_the_path_of_the_key(tmp_path, given, text):
    result = ask("check", a_file(tmp_path, given))
    assert result.exit_code != 0 and text in str(result.exception)
    assert getattr(result.exception, "exit_code", 2) == 2


def test_classes_are_checked_against_a_model(tmp_path):
    file = a_file(tmp_path, {"zones": [YARD], "rules": [{**ENTER, "classes": ["unicorn"]}]})
    assert ask("check", file).exit_code == 0
    assert "names the unknown class 'unicorn'" in error_of("check", file, "--model", "factory_line")


# --- draw


def test_a_drawing_shows_the_rules_and_goes_through_the_cover(tmp_path, monkeypatch):
    image = tmp_path / "gate.png"
    cv2.imwrite(str(image), np.full((480, 640, 3), 200, np.uint8))
    covered = []
    monkeypatch.setattr(PictureCover, "__call__", lambda self, p, *more: covered.append(self.privacy.on) or p)
    file, out = a_file(tmp_path, {"zones": [YARD], "rules": [ENTER]}), tmp_path / "drawn.png"
    assert ask("draw", file, "--image", image, "--out", out).exit_code == 0
    assert covered == [True] and (read_image(out) != 200).any(axis=2).mean() > 0.05
    assert ask("draw", file, "--image", image, "--out", out, "--bare").exit_code == 0 and covered == [
        True,
        False,
    ]


def test_faces_in_a_drawing_are_covered(tmp_path):
    from cv_pipeline.synthetic.passers import Passers, PassersConfig

    passers = Passers(PassersConfig(frames=40, faces=3, plates=0, widths=(60.0, 90.0), pillars=0, seed=3))
    frame, truth = max((passers.frame(n) for n in range(5, 40, 5)), key=lambda f: (f[1].visible > 0.9).sum())
    image, out = tmp_path / "p.png", tmp_path / "drawn.png"
    cv2.imwrite(str(image), frame.image)
    small = {"zones": [{"name": "z", "polygon": [[0, 0], [5, 0], [5, 5]]}]}
    assert ask("draw", a_file(tmp_path, small), "--image", image, "--out", out).exit_code == 0
    x1, y1, x2, y2 = truth.xyxy[truth.visible.argmax()].astype(int)
    face = read_image(out)[y1 + 5 : y2 - 5, x1 + 5 : x2 - 5]
    assert face.std() < frame.image[y1 + 5 : y2 - 5, x1 + 5 : x2 - 5].std() / 2


def test_a_drawing_of_a_film_and_what_cannot_be_drawn(tmp_path):
    file, out = a_file(tmp_path, yard_rules()), tmp_path / "drawn.png"
    film = cv2.VideoWriter(str(tmp_path / "yard.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (320, 180))
    for k in range(20):
        film.write(np.full((180, 320, 3), 10 * k, np.uint8))
    film.release()
    small = {"zones": [{"name": "z", "polygon": [[0, 0], [0.1, 0], [0.1, 0.1]]}]}
    given = ("--video", tmp_path / "yard.mp4", "--second", 1.0)
    assert ask("draw", a_file(tmp_path, small, "s.yaml"), *given, "--out", out, "--bare").exit_code == 0
    assert 90 <= read_image(out)[170, 300].mean() <= 115
    assert "give either --image or --video" in error_of("draw", file, "--out", out)
    assert ask("draw", file, "--image", tmp_path / "none.png", "--out", out).exit_code != 0


# --- replay


@pytest.mark.slow
def test_a_replay_counts_alarms_a_day_with_an_interval(tmp_path, tables):
    a_recording(tmp_path)
    file = a_file(tmp_path, {"zones": [YARD], "rules": [ENTER, {**ENTER, "name": "dog", "classes": ["dog"]}]})
    result = ask("replay", tmp_path, "--rules", file, "--most", 2, "--out", tmp_path / "events.parquet")
    assert result.exit_code == 0 and "class 'dog' never occurs" in result.output
    intruder, dog = tables["Alarms"]
    assert (intruder["events"], dog["events"]) == (6, 0)
    assert float(intruder["from"]) < 144.0 < float(intruder["to"])
    assert (
        abs(float(intruder["a day and camera"]) - 144.0) < 0.2
        and len(tables["Events (the first 2 of 6)"]) == 2
    )
    table = pq.read_table(tmp_path / "events.parquet")
    assert table["kind"].to_pylist().count("enter") == 6 and len(set(table["event_id"].to_pylist())) == len(
        table
    )
    assert read_events(tmp_path).num_rows == len(table)


@pytest.mark.slow
def test_events_as_lines_are_the_same_each_time(tmp_path, tables):
    a_recording(tmp_path, 1300)
    file, texts = a_file(tmp_path, {"zones": [YARD], "rules": [ENTER]}), []
    for name in ("a.jsonl", "b.jsonl"):
        assert (
            ask("replay", tmp_path / "results.jsonl", "--rules", file, "--out", tmp_path / name).exit_code
            == 0
        )
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1] and json.loads(texts[0].splitlines()[0])["source_id"] == "gate"


def test_replays_that_cannot_be(tmp_path):
    file = a_file(tmp_path, {"zones": [YARD], "rules": [ENTER]})
    assert "there are no results" in error_of("replay", tmp_path / "none", "--rules", file)
    a_recording(tmp_path, 20)
    assert "WIDTHxHEIGHT" in error_of("replay", tmp_path, "--rules", file, "--size", "0x480")
    assert "end it with .parquet or .jsonl" in error_of(
        "replay", tmp_path, "--rules", file, "--out", tmp_path / "x.csv"
    )


# --- schema


def test_the_schema_knows_every_kind_and_refuses_what_the_models_refuse(tmp_path):
    assert ask("schema", "--out", tmp_path / "schema.json").exit_code == 0
    schema = json.loads((tmp_path / "schema.json").read_text())
    assert schema == json.loads(json.dumps(EventsConfig.model_json_schema()))
    assert json.loads(ask("schema").stdout) == schema
    jsonschema = require("jsonschema")
    plain = json.loads(json.dumps(yard_rules()))
    jsonschema.validate(plain, schema)
    plain["rules"][0]["zoen"] = "dock"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(plain, schema)


def test_the_example_of_the_page_is_right(tmp_path):
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text(encoding="utf-8")
    example = page.split("```yaml\n")[1].split("```")[0]
    assert ask("check", a_file(tmp_path, example)).exit_code == 0
    given = EventsConfig.model_validate(yaml.safe_load(example)["events"])
    assert len({r.kind for r in given.rules}) == len(given.rules) == 12
