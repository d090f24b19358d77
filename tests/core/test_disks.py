"""The campaign of disks in small: every writer, each kind of fault once or twice."""

from pathlib import Path

import pytest

from tests.campaigns import disks
from tests.helpers.disks import can_mount, descriptors_left, fill, small_disk

NAMES = (
    "results.jsonl, results.parquet, hours of results.parquet, hours of results.jsonl, events.parquet, "
    "video, prediction log, collected pictures, summary.json, lines of flags, annotations, index of reports, "
    "manifest of a model, frozen set, split dataset"
).split(", ")


@pytest.fixture
def mounted(tmp_path):
    if not can_mount(tmp_path / "probe"):
        pytest.skip("mounting a small file system needs root")


@pytest.fixture
def writer(request, tmp_path):
    return {w.name: w for w in disks.writers(tmp_path / "outside")}[request.param]


def test_every_writer_is_named_here(tmp_path):
    assert [w.name for w in disks.writers(tmp_path)] == NAMES


@pytest.mark.parametrize("writer", NAMES, indirect=True)
@pytest.mark.parametrize("kilobytes", [8, 40])
def test_a_disk_that_is_full(mounted, writer, tmp_path, kilobytes):
    assert disks.full(writer, tmp_path / "disk", [kilobytes])[1] == []


@pytest.mark.parametrize("writer", NAMES, indirect=True)
def test_a_disk_that_is_full_for_a_while(mounted, writer, tmp_path):
    assert disks.for_a_while(writer, tmp_path / "disk") == (2, [])


@pytest.mark.parametrize("writer", NAMES, indirect=True)
def test_a_disk_that_is_read_only(mounted, writer, tmp_path):
    assert disks.locked_up(writer, tmp_path / "disk") == (1, [])


@pytest.mark.parametrize("writer", NAMES, indirect=True)
def test_no_descriptor_is_left(writer, tmp_path):
    (tmp_path / "disk").mkdir()
    assert disks.without_descriptors(writer, tmp_path / "disk", [0, 1, 2])[1] == []


@pytest.mark.slow
def test_runs_on_a_full_disk_complete_their_other_sinks(mounted, tmp_path):
    assert disks.runs(tmp_path, [24]) == (3, [])


# --- the faults themselves


def test_a_small_disk_really_runs_full(mounted, tmp_path):
    with small_disk(tmp_path / "disk", 64) as disk:
        with pytest.raises(OSError, match="No space left"):
            (disk / "x").write_bytes(b"x" * 70_000)
        (disk / "x").unlink()
        fill(disk, leave=5000)
        (disk / "y").write_bytes(b"y" * 4000)


def test_descriptors_are_really_used_up(tmp_path):
    with descriptors_left(0), pytest.raises(OSError, match="Too many open files"):
        open(tmp_path / "x", "w")
    (tmp_path / "x").write_text("again")


@pytest.mark.parametrize(
    "error, found",
    [(OSError(28, "No space left"), 1), (KeyError("x"), 1), (None, 0)],
)
def test_the_campaign_sees_errors_that_are_not_typed(tmp_path, error, found):
    writer = disks.Writer("x", lambda folder, most: None, lambda folder: None)
    assert len(disks.problems(writer, tmp_path, error)) == found


def test_the_campaign_sees_torn_files_and_drafts(tmp_path):
    def read(folder: Path) -> None:
        raise ValueError("torn")

    (tmp_path / ".a.json.1-ff.part").write_text("half")
    writer = disks.Writer("x", lambda folder, most: None, read)
    assert len(disks.problems(writer, tmp_path, None, must_fail=True)) == 3
