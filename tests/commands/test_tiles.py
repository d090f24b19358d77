"""`--tiles` of run, batch and evaluate."""

import json

import cv2
import pytest
from typer.testing import CliRunner

from cv_pipeline.commands.main import app
from cv_pipeline.core.types import ConfigError
from cv_pipeline.synthetic.line import write_dataset
from tests.helpers.squares import paint

PLAIN = {"NO_COLOR": "1", "COLUMNS": "200"}


def called(*words):
    done = CliRunner().invoke(app, list(map(str, words)), env=PLAIN)
    if done.exception is not None:
        raise done.exception
    return done.output


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(folder / f"{name}.png"), paint([(30, 30, 20, 20)]))
    return folder


def test_run_cuts_frames_and_writes_how(pictures, tmp_path):
    out = tmp_path / "out"
    called("run", pictures, "--tiles", "320", "--tile-when", "motion", "--out", out)
    summary = json.loads((out / "summary.json").read_text())
    assert {k: summary["config"]["tiles"][k] for k in ("size", "when")} == {"size": 320, "when": "motion"}
    (row,) = summary["sources"].values()
    assert (row["tiles"]["frames"], row["frames_inferred"]) == (2, 2)
    assert row["tiles"]["computed"] + row["tiles"]["reused"] == 2 * 7


def test_tiles_that_are_too_small_are_a_config_error(pictures, tmp_path):
    with pytest.raises(ConfigError, match="tiles.size"):
        called("run", pictures, "--tiles", "16", "--out", tmp_path / "out")


def test_batch_cuts_pictures(pictures, tmp_path):
    out = tmp_path / "out"
    called("batch", pictures, "--tiles", "320", "--tracker", "none", "--processes", "1", "--out", out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["config"]["tiles"]["size"] == 320


def test_evaluate_in_tiles_no_larger_than_a_frame_is_evaluate(tmp_path):
    from cv_pipeline.synthetic.belt import FactoryLine, LineConfig

    data = tmp_path / "data"
    line = FactoryLine(LineConfig(size=(320, 240)))
    write_dataset(data, line.frames(3), ("yolo",), "val")
    for name, more in (("plain", ()), ("tiled", ("--tiles", "320")), ("small", ("--tiles", "160"))):
        called("evaluate", "factory_line", data / "data.yaml", *more, "--out", tmp_path / f"{name}.json")
    plain, tiled, small = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "tiled", "small")
    )
    assert plain["coco"] == tiled["coco"]
    assert plain["stamp"]["config"] != tiled["stamp"]["config"]
    assert small["coco"] != plain["coco"]
