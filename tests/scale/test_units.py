"""Units of work: their names, what is planned, what a part holds, what a half-written one is."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.core.files import read_parquet
from cv_pipeline.core.results import read_results
from cv_pipeline.core.types import DataError, SourceError
from cv_pipeline.scale.units import (
    Found,
    UnitChanged,
    find_work,
    has_part,
    merge_units,
    part_path,
    plan_units,
    read_part,
    read_units,
    run_unit,
    write_units,
)
from tests.helpers.batch_work import PlayedWork, archive

NAMES = [f"{k}.jpg" for k in range(10)]


@pytest.fixture
def pictures(tmp_path):
    return archive(tmp_path / "photos", NAMES)


def planned(folder, identity="model|settings", **how):
    return plan_units(find_work([folder]), identity, **how)


def test_the_same_inputs_are_the_same_units(pictures):
    assert planned(pictures, pictures=4) == planned(pictures, pictures=4)


@pytest.mark.parametrize("change", ["size", "time", "model"])
def test_another_input_or_model_is_another_unit(pictures, change):
    before = planned(pictures)[0].id
    file = pictures / "3.jpg"
    if change == "size":
        file.write_bytes(b"other")
    if change == "time":
        os.utime(file, ns=(0, 0))
    assert planned(pictures, "other" if change == "model" else "model|settings")[0].id != before


def test_frame_two_comes_before_frame_ten(tmp_path):
    folder = archive(tmp_path / "film", ["frame10.jpg", "frame2.jpg"])
    assert [os.path.basename(p) for p in planned(folder)[0].paths] == ["frame2.jpg", "frame10.jpg"]


def test_folders_below_are_sources_of_their_own(tmp_path):
    archive(tmp_path / "all" / "north", ["a.jpg"])
    archive(tmp_path / "all", ["b.jpg", "c.mp4", "notes.txt", ".hidden.jpg"])
    found = find_work([tmp_path / "all"])
    assert [name for name, _, _ in found.sources] == ["all", "all/c", "all/north"]
    assert found.left_out == {".txt": 1}


def test_two_sources_never_share_a_name(tmp_path):
    folder = archive(tmp_path / "all", ["c.mp4", "c.avi"])
    names = [name for name, _, _ in find_work([folder]).sources]
    assert names == ["all/c-1", "all/c-2"]


def test_a_video_and_a_sequence_are_whole(tmp_path):
    folder = archive(tmp_path / "all", [*NAMES, "c.mp4"])
    assert [(u.kind, len(u.files)) for u in planned(folder, fps=10.0)] == [("sequence", 10), ("video", 1)]
    assert len(planned(folder, pictures=4)) == 4


@given(st.integers(1, 60), st.integers(1, 20))
def test_every_picture_is_in_exactly_one_unit(count, size):
    files = [(f"/{k}.jpg", k, k) for k in range(count)]
    units = plan_units(Found([("photos", "pictures", files)]), "", size)
    assert [f for u in units for f in u.files] == files
    assert max(len(u.files) for u in units) <= size


def test_nothing_to_do_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no picture and no video"):
        planned(archive(tmp_path / "texts", ["a.txt"]))
    with pytest.raises(SourceError, match="cannot be read"):
        find_work([tmp_path / "gone"])


def test_a_folder_that_may_not_be_listed_is_an_error(pictures, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(SourceError, match="Permission denied"):
        find_work([pictures])


def test_a_plan_survives_its_file(pictures, tmp_path):
    units = planned(pictures, pictures=3)
    assert read_units(write_units(tmp_path / "units.jsonl", units)) == units
    (tmp_path / "units.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="not a plan of a batch"):
        read_units(tmp_path / "units.jsonl")


def test_a_unit_done_twice_is_the_same_bytes(pictures, tmp_path):
    unit, work = planned(pictures)[0], PlayedWork().work
    run_unit(unit, tmp_path, work)
    first = part_path(tmp_path, unit).read_bytes()
    run_unit(unit, tmp_path, work)
    assert part_path(tmp_path, unit).read_bytes() == first


@pytest.mark.parametrize("left", [0, 4, 100, -1])
def test_a_half_written_part_is_not_done(pictures, tmp_path, left):
    unit = planned(pictures)[0]
    assert not has_part(tmp_path, unit)
    run_unit(unit, tmp_path, PlayedWork().work)
    assert has_part(tmp_path, unit)
    whole = part_path(tmp_path, unit).read_bytes()
    part_path(tmp_path, unit).write_bytes(whole[:left])
    assert not has_part(tmp_path, unit)


@pytest.mark.parametrize("change", ["grows", "goes"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_file_that_changes_gives_no_part(pictures, tmp_path, change, when):
    unit, file = planned(pictures)[0], pictures / "3.jpg"
    do = file.unlink if change == "goes" else lambda: file.write_bytes(b"longer than it was")

    def work(unit, write):
        do()
        return []

    if when == "before":
        do()
    with pytest.raises(UnitChanged, match="run the batch again"):
        run_unit(unit, tmp_path, PlayedWork().work if when == "before" else work)
    assert not has_part(tmp_path, unit)


def test_empty_pictures_have_rows_of_frames(pictures, tmp_path):
    units = planned(pictures, pictures=4)
    for unit in units:
        run_unit(unit, tmp_path, PlayedWork().work)
    merge_units(tmp_path, units)
    frames = read_parquet(tmp_path / "frames.parquet")
    assert frames["boxes"].to_pylist() == [k % 4 for k in range(1, 11)]
    assert frames["frame_id"].to_pylist() == list(range(10))
    assert read_results(tmp_path)["frame_id"].to_pylist() == [
        k for k in range(10) for _ in range((k + 1) % 4)
    ]


def test_a_missing_unit_leaves_the_others(pictures, tmp_path):
    units = planned(pictures, pictures=4)
    for unit in units[1:]:
        run_unit(unit, tmp_path, PlayedWork().work)
    assert merge_units(tmp_path, units)["photos"]["frames"] == 6


def test_a_foreign_table_is_no_part(pictures, tmp_path):
    units = planned(pictures)
    run_unit(units[0], tmp_path, PlayedWork().work)
    merge_units(tmp_path, units)
    with pytest.raises(DataError, match="not a part of a batch"):
        read_part(tmp_path / "frames.parquet")
