"""What must go is gone: from every place, with every other camera's files untouched, through kills and full
disks, with a certificate that shows every edit."""

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from cv_pipeline.annotation.collect import audited, read_collected
from cv_pipeline.annotation.datasets import verify_frozen
from cv_pipeline.annotation.versions import verify_version
from cv_pipeline.core.files import Busy, locked, read_json
from cv_pipeline.core.results import read_jsonl, read_results
from cv_pipeline.core.types import ConfigError, DataError, SinkError
from cv_pipeline.edge.outbox import Outbox, OutboxSettings, outbox_status
from cv_pipeline.monitoring.prediction_log import read_log
from cv_pipeline.monitoring.upkeep import read_events
from cv_pipeline.privacy import certificate as C
from cv_pipeline.privacy import erasure as E
from cv_pipeline.privacy import places as P
from cv_pipeline.privacy import stores as S
from cv_pipeline.privacy.access import note_access, read_access, verify_access
from tests.helpers.disks import fill, small_disk
from tests.helpers.watched_project import (
    CAMERAS,
    EIGHT,
    FRAMES,
    content,
    found_markers,
    markers_of,
)

ROOT = Path(__file__).parents[2]
GATE = S.Subject("gate")
QUARTER = S.Subject("gate", EIGHT + timedelta(minutes=5), EIGHT + timedelta(minutes=20))


@pytest.fixture(scope="module")
def erased(made, tmp_path_factory):
    "A project from which the gate was erased; the certificate, its path, the log."
    root = tmp_path_factory.mktemp("erased") / "project"
    shutil.copytree(made, root)
    log = root / "privacy" / "access.jsonl"
    return root, *C.certify(root, E.erase(root, GATE, "request 14", access=log), access=log), log


@pytest.mark.slow
def test_the_markers_are_in_the_project(made):
    for camera in CAMERAS:
        assert found_markers(made, camera) == set(markers_of(camera))


def test_no_marker_of_the_camera_is_left_in_any_file(erased):
    assert found_markers(erased[0], "gate") == set()


def test_every_marker_of_the_other_cameras_is_left(erased):
    for camera in CAMERAS[1:]:
        assert found_markers(erased[0], camera) == set(markers_of(camera))


def test_files_of_the_other_cameras_are_the_same_bytes(made, erased):
    before, after = content(made), content(erased[0])
    shared = {
        "run/results.jsonl",
        "run/results.parquet",
        "collected/collected.jsonl",
        "collected/collection.json",
    }
    shared |= {
        "labels/annotations.jsonl",
        "upkeep/upkeep.jsonl",
        "v1/version.json",
        "test_set.json",
        "log/deleted.jsonl",
    }
    shared |= {
        "device/outbox.sqlite",
        "centre/inbox.sqlite",
        "model/golden/golden.json",
        "collected/erased.jsonl",
    }
    own = {k for k in before if "gate" in k or k.startswith("model/golden/0")}
    assert {k: v for k, v in after.items() if k not in shared} == {
        k: v for k, v in before.items() if k not in shared | own
    }


def test_rows_of_the_other_cameras_are_the_same_lines(made, erased):
    of = lambda root, name: [x for x in (root / name).read_bytes().splitlines() if b"gate" not in x]
    for name in ("run/results.jsonl", "labels/annotations.jsonl", "upkeep/upkeep.jsonl"):
        assert of(erased[0], name) == of(made, name) == (erased[0] / name).read_bytes().splitlines()


def test_every_reader_reads_what_is_left(erased):
    root, rest = erased[0], len(CAMERAS) - 1
    assert len(list(read_jsonl(root / "run" / "results.jsonl"))) == rest * FRAMES
    assert len(read_results(root / "run")) == rest * FRAMES
    assert len(read_log(root / "log")) == rest * FRAMES
    assert len(read_collected(root / "collected")) == rest * FRAMES
    assert len(verify_version(root / "v1").pictures) == rest * FRAMES
    assert len(verify_frozen(root / "test_set.json")) == rest * 5
    assert len(read_events(root / "upkeep")) == rest * FRAMES


def test_the_certificate_is_complete_and_counts_everything(erased):
    _, c, _, _ = erased
    assert c.complete and len(c.pictures) == FRAMES + 2  # and two golden ones
    rows = {(r["store"].split()[0], r["what"]): r for r in c.counts()}
    assert rows["collection", "picture"]["files"] == FRAMES
    assert rows["run", "rows"]["rows"] == 2 * FRAMES and rows["log", "rows"]["rows"] == 2 * FRAMES
    assert rows["run", "film"]["files"] == rows["upkeep", "background"]["files"] == 1
    assert rows["reports", "report"]["files"] == 1 and rows["golden", "picture"]["files"] == 2
    assert rows["outbox", "rows"]["rows"] == rows["inbox", "rows"]["rows"] == FRAMES


def test_manifests_say_which_certificate_took_their_pictures(erased):
    root, c, _, _ = erased
    for path, number in ((root / "v1" / "version.json", FRAMES), (root / "test_set.json", 5)):
        (note,) = read_json(path)["removed_for"]
        assert (note["certificate"], note["pictures"]) == (c.number, number)
        assert note["digest_before"] != read_json(path)["digest"]


def test_readers_of_the_log_know_how_many_frames_are_missing(erased):
    root, c, _, _ = erased
    assert P.erased_rows(root / "log", "gate") == {"2026-06-01": {"frames": FRAMES, "detections": FRAMES}}
    assert P.erased_rows(root / "log", "yard") == {}
    assert any("erased on request" in n for n in read_log(root / "log", cameras=["yard", "gate"]).notes)


def test_a_collection_stands_for_the_frames_that_are_left(made, erased):
    assert audited(made / "collected")[1] == 3 * FRAMES
    assert audited(erased[0] / "collected")[1] == 2 * FRAMES


def test_numbers_of_waiting_rows_stay(erased, tmp_path):
    copy = tmp_path / "device"
    shutil.copytree(erased[0] / "device", copy)
    with Outbox(copy, OutboxSettings(ballast_bytes=0)) as box:
        assert outbox_status(box).waiting == 3 * FRAMES


def test_the_verification_finds_nothing(erased):
    root, _, path, log = erased
    found = C.verify_certificate(path, root, access=log)
    assert found.problems == () and found.unreached == () and found.files > 100


def test_an_edited_certificate_is_found(erased, tmp_path):
    root, c, path, log = erased
    book = read_json(path)
    for key, value in (
        ("why", "x"),
        ("left", ["a"]),
        ("files", 1),
        ("subject", {**book["subject"], "camera": "yard"}),
    ):
        (tmp_path / "c.json").write_text(json.dumps({**book, key: value}))
        with pytest.raises(C.CertificateError, match="was edited"):
            C.read_certificate(tmp_path / "c.json")


def test_an_edited_certificate_with_a_new_digest_is_not_in_the_log(erased, tmp_path):
    root, c, _, log = erased
    path = C.write_certificate(tmp_path, replace(c, why="another"))
    found = C.verify_certificate(path, root, access=log)
    assert found.problems == ("the access log does not have this certificate",)


def test_the_log_has_the_request_and_the_certificate(erased):
    _, c, _, log = erased
    rows = [a for a in read_access(log) if a.action == "erase"]
    assert (rows[0].what, rows[0].why, rows[1].what) == (
        "gate",
        "request 14",
        f"certificate {c.number} {c.digest}",
    )
    assert verify_access(log, c.chain) == []


def test_a_copy_that_comes_back_is_found_by_its_bytes(erased, made, tmp_path):
    root, _, path, log = erased
    shutil.copytree(root, tmp_path / "project")
    picture = next((made / "collected" / "frames" / "gate").glob("*.jpg"))
    (tmp_path / "project" / "backup.bin").write_bytes(b"head" + picture.read_bytes())
    (problem,) = C.verify_certificate(path, tmp_path / "project", access=log).problems
    assert problem.startswith("still there: backup.bin: bytes of")


def test_a_period_leaves_what_is_before_and_after(project):
    c, _ = C.certify(project, E.erase(project, QUARTER))
    assert c.complete and len(c.pictures) == 16  # and a golden one
    minutes = {(r["captured_at"], r["source_id"]) for r in read_jsonl(project / "run" / "results.jsonl")}
    kept = [EIGHT + timedelta(minutes=m) for m in range(FRAMES) if not 5 <= m < 20]
    assert {t for t, camera in minutes if camera == "gate"} == {t.isoformat() for t in kept}
    assert audited(project / "collected")[1] == 3 * FRAMES - 15
    left = found_markers(project, "gate")
    assert left == {
        m for m in markers_of("gate") if not 5 <= int(m[-3:]) < 20 and b"report" not in m and b"film" not in m
    }


def test_a_track_goes_with_the_pictures_of_its_time(project):
    before = len(read_log(project / "log"))
    c, _ = C.certify(project, E.erase(project, S.Subject("gate", track=2)))
    assert c.complete and len(c.pictures) == 5  # minutes 10 to 14
    assert c.subject.since == EIGHT + timedelta(minutes=10, seconds=-1)
    rows = [r for r in read_jsonl(project / "run" / "results.jsonl") if r["source_id"] == "gate"]
    assert len(rows) == FRAMES and sum(not r["detections"] for r in rows) == 5
    assert len(read_results(project / "run")) == 3 * FRAMES - 5
    assert len(read_log(project / "log")) == before  # statistics of whole frames show nobody


def test_a_track_that_never_was_is_refused(project):
    with pytest.raises(ConfigError, match="no box of track 99"):
        E.erase(project, S.Subject("gate", track=99))


@pytest.mark.slow
def test_killed_at_twenty_points_the_same_command_finishes(made, erased, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(made, base)
    points = [*range(0, 60, 6), *(round(0.013 + 0.05 * k, 3) for k in range(10))]
    command = [sys.executable, "-m", "tests.helpers.watched_project", str(base), *map(str, points)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    *rows, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r for r in rows if not r["complete"]] == []
    assert len(rows) == 20 and last["kills"] >= 15
    for point in points:
        copy = tmp_path / f"killed-{float(point) if isinstance(point, float) else point}"
        assert found_markers(copy, "gate") == set()
        assert set(content(copy)) == set(content(erased[0]))


def test_two_at_once_are_refused(project):
    begun, go_on, made = threading.Event(), threading.Event(), []

    def step(name):
        begun.set()
        assert go_on.wait(60)

    first = threading.Thread(target=lambda: made.append(E.erase(project, GATE, step=step)))
    first.start()
    assert begun.wait(60)
    with pytest.raises(Busy, match="another erasure is under way"):
        E.erase(project, S.Subject("yard"))
    go_on.set()
    first.join(60)
    assert made[0].left == ()


def test_a_full_disk_stops_it_and_nothing_is_half(made, tmp_path):
    with small_disk(tmp_path / "disk", 8000) as disk:
        if disk is None:
            pytest.skip("mounting is not allowed here")
        shutil.copytree(made, disk / "project")
        before = (disk / "project" / "run" / "results.jsonl").read_bytes()
        ballast = fill(disk)
        with pytest.raises(SinkError, match="disk is full|No space"):
            E.erase(disk / "project", S.Subject("gate", EIGHT, EIGHT + timedelta(minutes=1)))
        assert (disk / "project" / "run" / "results.jsonl").read_bytes() == before
        ballast.unlink()
        c, _ = C.certify(disk / "project", E.erase(disk / "project", GATE))
        assert c.complete and found_markers(disk / "project", "gate") == set()


class Offline(S.FolderStore):
    "A server that is off, and comes back."

    kind, off = "server", True

    def find(self, wanted):
        if self.off:
            raise S.StoreError("connection refused", "http://label", "start it")
        yield from super().find(wanted)


def test_a_store_that_is_offline_is_listed_and_done_later(project, monkeypatch):
    (project / "remote" / "frames" / "gate").mkdir(parents=True)
    shutil.copy(
        next((project / "collected" / "frames" / "gate").glob("*.jpg")),
        project / "remote" / "frames" / "gate",
    )

    def stores(root):
        found, missed = P.open_stores(root)
        inside = [s for s in found if s.kind == "files"]
        inside[0].leave_out |= {root / "remote"}
        return [*found, Offline(root / "remote", root)], missed

    c, path = C.certify(project, E.erase(project, GATE, stores=stores), stores)
    assert [(u.store, u.why) for u in c.unreached] == [
        ("server remote", "connection refused")
    ] and not c.complete
    assert any("remote/frames/gate" in text for text in c.left)
    monkeypatch.setattr(Offline, "off", False)
    done = E.erase(project, GATE, stores=stores)
    again, later = C.certify(project, done, stores)
    assert done.resumed and again.complete and later == path and again.number == c.number
    assert not (project / "remote").exists() or not list((project / "remote").rglob("*.jpg"))


def test_an_open_outbox_is_listed(project):
    with Outbox(project / "device", OutboxSettings(ballast_bytes=0)):
        c, _ = C.certify(project, E.erase(project, GATE))
    assert [u.why for u in c.unreached] == ["a process has this outbox open"] and not c.complete
    assert C.certify(project, E.erase(project, GATE))[0].complete


def test_a_collection_that_is_written_to_is_listed(project):
    with locked((project / "collected").absolute()):
        c, _ = C.certify(project, E.erase(project, GATE))
    assert "a run is collecting into this folder" in [u.why for u in c.unreached]
    assert C.certify(project, E.erase(project, GATE))[0].complete


def test_a_damaged_table_is_listed_and_the_rest_goes(project):
    path = project / "run" / "results.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    c, _ = C.certify(project, E.erase(project, GATE))
    assert [u.store for u in c.unreached if "run" in u.store] and "Parquet" in c.unreached[0].why
    assert not list((project / "collected" / "frames" / "gate").glob("*.jpg"))


def test_a_damaged_plan_is_refused(project):
    E._keep_plan(project, E.plan_erasure(project, GATE))
    (plan,) = (project / "privacy" / "erasures").glob("*.json")
    plan.write_text("{}")
    with pytest.raises(DataError, match="not a plan of an erasure"):
        E.erase(project, GATE)


def test_a_plan_changes_nothing(project):
    before = content(project)
    plan = E.plan_erasure(project, GATE)
    assert plan.rows() and content(project) == before and not (project / "privacy").exists()


def test_a_camera_that_left_nothing_has_an_empty_certificate(project):
    before = content(project)
    c, _ = C.certify(project, E.erase(project, S.Subject("attic")))
    assert c.complete and c.found == () and content(project) == before


def test_the_access_log_is_left_alone(project):
    log = project / "access.jsonl"
    note_access("view", "gate", path=log)
    E.erase(project, GATE, access=log)
    assert verify_access(log) == [] and read_access(log)[0].what == "gate"


def test_readers_of_the_log_read_why_frames_are_missing(erased):
    notes = read_log(erased[0] / "log", cameras=["gate", "yard"]).notes
    assert f"erased on request or by age: {FRAMES} frames of 2026-06-01" in notes
