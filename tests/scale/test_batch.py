"""A batch on processes that die: nothing lost, nothing double, poison set aside, rows as those of a run."""

import subprocess
import sys
from pathlib import Path

import pytest

from cv_pipeline.core.config import load_config
from cv_pipeline.core.files import locked, read_json, read_json_lines, write_json
from cv_pipeline.core.results import read_results
from cv_pipeline.core.types import BackendError, ConfigError, DataError, SinkError
from cv_pipeline.core.viz import jpeg
from cv_pipeline.scale import batch
from cv_pipeline.scale.batch import BatchSettings, Ledger, LocalEngine, left_to_do, run_batch
from cv_pipeline.scale.units import Outcome, find_work, part_path, plan_units, run_unit
from cv_pipeline.service.assembly import UnitOpener, batch_config, run_config
from cv_pipeline.synthetic.line import open_line
from tests.helpers.batch_work import PlayedWork, archive
from tests.helpers.kill_loop import ROOT
from tests.helpers.waiting import until

NAMES = [f"{k}.jpg" for k in range(40)]
ONE = BatchSettings(processes=1, tries=2)


def planned(folder, pictures=4):
    return plan_units(find_work([folder]), "", pictures)


def in_one_process(units, out):
    "What an undisturbed batch leaves."
    for unit in units:
        run_unit(unit, out, PlayedWork().work)
    run_batch(units, out, PlayedWork(), LocalEngine(ONE))
    return (out / "results.parquet").read_bytes()


@pytest.fixture
def photos(tmp_path):
    return archive(tmp_path / "photos", NAMES)


@pytest.mark.slow
def test_workers_killed_at_every_point_lose_and_double_nothing(photos, tmp_path):
    units = planned(photos, 8)
    (tmp_path / "marks").mkdir()
    settings = BatchSettings(processes=2, tries=4)
    engine = LocalEngine(settings)
    opener = PlayedWork(str(tmp_path / "marks"), ("end",))
    report = run_batch(units[:2], tmp_path / "out", opener, engine, settings=settings)
    assert engine.deaths == 2  # each unit killed its process when its part was there
    opener = PlayedWork(str(tmp_path / "marks"), ("begin", "middle"))
    report = run_batch(units, tmp_path / "out", opener, engine, settings=settings)
    assert (report.before, report.done, report.left) == (2, 3, 0)
    assert engine.deaths == 2 + 2 * 3
    assert (tmp_path / "out" / "results.parquet").read_bytes() == in_one_process(units, tmp_path / "calm")


@pytest.mark.slow
def test_a_driver_killed_again_and_again(photos, tmp_path):
    units, out, marks = planned(photos, 4), tmp_path / "out", tmp_path / "marks"
    marks.mkdir()
    command = [sys.executable, "-m", "tests.helpers.batch_work", *map(str, [photos, out, marks, "", 1])]
    for wanted in (2, 6):  # a worker is in the middle of its unit, and lives on when the driver is killed
        (marks / "hold").write_text(f"{out}\n{wanted}")
        driver = subprocess.Popen(command, cwd=ROOT)
        until((marks / "held").exists, 90, driver)
        driver.kill()
        driver.wait()
        (marks / "hold").unlink()
        (marks / "held").unlink()
    subprocess.run(command, cwd=ROOT, check=True, timeout=120)
    assert (out / "results.parquet").read_bytes() == in_one_process(units, tmp_path / "calm")
    assert not list((out / "parts").glob(".*.part"))


@pytest.mark.slow
def test_a_poison_unit_is_set_aside_and_the_others_are_done(tmp_path):
    folder = archive(tmp_path / "films", ["a.mp4", "poison.mp4", "b.mp4", "odd.mp4"])
    units = planned(folder)
    engine = LocalEngine(ONE)
    report = run_batch(units, tmp_path / "out", PlayedWork(), engine, settings=ONE)
    assert {r["source"]: r["error"] for r in report.set_aside} == {
        "films/poison": "the process died (SIGKILL) while it worked on this unit",
        "films/odd": "ValueError: what is this?",
    }
    assert (report.done, engine.deaths) == (2, 2)
    again = run_batch(units, tmp_path / "out", PlayedWork(), engine, settings=ONE)
    assert (again.done, len(again.set_aside), engine.deaths) == (0, 2, 2)  # not tried a third time
    assert len(left_to_do(tmp_path / "out", units, retry=True)) == 2
    rows = [row for _, row in read_json_lines(tmp_path / "out" / "manifest.jsonl")]
    assert sorted(row["state"] for row in rows) == ["done", "done", "error", "error"]


def test_a_model_that_cannot_be_opened_ends_the_batch_at_once(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_MODEL", "1")
    with pytest.raises(BackendError, match="the model is gone"):
        run_batch(planned(photos), tmp_path / "out", PlayedWork(), LocalEngine(ONE), settings=ONE)
    assert not (tmp_path / "out" / "failed").exists()


def test_a_full_disk_ends_the_batch_and_sets_nothing_aside(photos, tmp_path, monkeypatch):
    unit = planned(photos)[0]

    def full(unit, folder, work):
        raise SinkError("could not be written: No space left on device", folder)

    monkeypatch.setattr(batch, "run_unit", full)
    outcome = batch.attempt(unit, tmp_path, PlayedWork().work)
    with pytest.raises(BackendError, match="No space left"):
        Ledger([unit], ONE, print).heard(unit, outcome)


def test_when_every_unit_fails_there_is_one_cause(photos):
    units, heard = planned(photos, 1), []
    ledger = Ledger(units, BatchSettings(tries=1, give_up=5), heard.append)
    with pytest.raises(DataError, match="5 units failed one after the other; the last: no route"):
        while (unit := ledger.next()) is not None:
            ledger.heard(unit, Outcome(unit.id, "error", error="no route to the store"))
    assert len(heard) == 5


@pytest.mark.slow
def test_a_changed_unit_is_reported_and_made_again_by_the_next_call(photos, tmp_path):
    units = planned(photos)
    (photos / "3.jpg").write_bytes(b"another picture")
    report = run_batch(units, tmp_path / "out", PlayedWork(), LocalEngine(ONE), settings=ONE)
    assert [row["state"] for row in report.changed] == ["changed"]
    assert (report.done, report.left) == (9, 1)
    report = run_batch(planned(photos), tmp_path / "out", PlayedWork(), LocalEngine(ONE), settings=ONE)
    assert (report.before, report.done, report.left) == (9, 1, 0)


@pytest.mark.slow
def test_a_part_that_was_cut_off_is_made_again(photos, tmp_path):
    units = planned(photos)
    before = in_one_process(units, tmp_path / "out")
    path = part_path(tmp_path / "out", units[2])
    path.write_bytes(path.read_bytes()[:-5])
    report = run_batch(units, tmp_path / "out", PlayedWork(), LocalEngine(ONE), settings=ONE)
    assert (report.before, report.done) == (9, 1)
    assert (tmp_path / "out" / "results.parquet").read_bytes() == before


def test_two_batches_do_not_share_a_folder(photos, tmp_path):
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out" / "run"), pytest.raises(ConfigError, match="another run is writing"):
        run_batch(planned(photos), tmp_path / "out", PlayedWork(), LocalEngine(ONE))


def test_the_folder_of_a_run_is_left_alone(photos, tmp_path):
    write_json(tmp_path / "out" / "summary.json", {"sources": {}})
    with pytest.raises(ConfigError, match="holds the results of a run"):
        run_batch(planned(photos), tmp_path / "out", PlayedWork(), LocalEngine(ONE))


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    "Pictures, two of them black and one broken, and a video of the line."
    folder = tmp_path_factory.mktemp("line")
    (folder / "photos").mkdir()
    settings = {"sources": ["line:seed=5,frames=40"], "delivery.video": True, "model.threads": 1}
    for k, frame in enumerate(open_line("line:seed=5,frames=9", "line", False)):
        (folder / "photos" / f"{k}.jpg").write_bytes(jpeg(frame.image * (k not in (2, 7))))
    (folder / "photos" / "3.jpg").write_bytes(b"\xff\xd8 no picture")
    run_config(load_config(None, {**settings, "delivery.out": str(folder / "made")}))
    (folder / "made" / "line.mp4").rename(folder / "line.mp4")
    return folder


@pytest.mark.parametrize("what, tracker", [("photos", "none"), ("line.mp4", "bytetrack")])
@pytest.mark.slow
def test_rows_are_those_of_a_run_byte_for_byte(line, tmp_path, what, tracker):
    given = {"sources": [str(line / what)], "tracker.name": tracker, "model.threads": 1}
    run_config(load_config(None, {**given, "delivery.out": str(tmp_path / "run")}))
    worker, model, identity = batch_config(load_config(None, given), 1, pictures=what == "photos")
    units = plan_units(find_work([line / what]), identity, pictures=4)
    settings = BatchSettings(processes=2)
    opener = UnitOpener(worker.model_dump_json())
    report = run_batch(units, tmp_path / "batch", opener, LocalEngine(settings), about={"model": model})
    assert report.left == 0
    mine, theirs = read_results(tmp_path / "batch"), read_results(tmp_path / "run")
    assert mine.num_rows > 20
    assert mine.equals(theirs)
    assert (set(mine["tracker_id"].to_pylist()) > {-1}) == (tracker != "none")
    summary = read_json(tmp_path / "batch" / "summary.json")
    assert summary["skipped"] == (what == "photos")
    assert summary["stamp"]["model"]["sha256"] == model["sha256"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"selection.every": 3}, "selection over time"),
        ({"telemetry": {}}, "of runs, not batches"),
        ({"selection.adaptive": {"budget": 3.0}}, "selection over time"),
    ],
)
def test_what_a_batch_cannot_do_is_refused(changes, message):
    config = load_config(None, {"sources": ["photos"], **changes})
    with pytest.raises(ConfigError, match=message):
        batch_config(config, 1, pictures=True)


def test_a_budget_is_refused_for_videos():
    config = load_config(None, {"sources": ["a.mp4"], "selection.adaptive": {"budget": 3.0}})
    with pytest.raises(ConfigError, match="depend on the order"):
        batch_config(config, 1, pictures=False)


@pytest.mark.parametrize("wrong", [{"processes": 0}, {"threads": 0}, {"tries": 0}, {"give_up": 0}])
def test_wrong_settings(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: 0 is not at least 1"):
        BatchSettings(**wrong)


@pytest.mark.slow
def test_a_batch_of_the_command(line, tmp_path):
    command = [str(Path(sys.executable).with_name("cv-pipeline")), "batch", str(line / "photos")]
    words = ["--out", str(tmp_path / "out"), "--processes", "1", "--pictures", "4"]
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "3 units done, 0 before, of 3" in done.stderr.replace("\n", " ")
