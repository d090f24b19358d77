"""What writes pictures: the user's own stay as they are, and each copy has its own labels."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from cv_pipeline.annotation.annotations import Annotation, Draft, write_drafts, write_labelled
from cv_pipeline.annotation.datasets import freeze, split_dataset, write_split
from cv_pipeline.annotation.versions import MergeSettings, merge
from cv_pipeline.core.formats import read_dataset
from cv_pipeline.core.types import ConfigError, CVPipelineError, DataError, Detections
from cv_pipeline.training.samples import Sample, stage

NAMES = ("gear", "bolt")
NASTY = [
    "cam_1/x.jpg",
    "cam/1_x.jpg",
    "cam/1/x.jpg",
    "0001.jpg",
    "0001.png",
    "Gear.png",
    "gear.png",
    "Cafe\u0301.png",
    "Caf\u00e9.png",
    "12:30.png",
    "two\nlines.png",
    "NUL.png",
    "dots..png",
    "x" * 251 + ".png",
    "y" * 250 + "1.png",
    "名" * 80 + ".png",
]


def box_of(k: int) -> list[int]:
    "Each picture has a box of its own, by which its labels are known again."
    return [4 * k, 3 * k, 20 + k, 16]


def user_set(root: Path) -> Path:
    "A COCO set of nasty names; no two pictures look alike."
    book = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in enumerate(NAMES)],
    }
    for k, name in enumerate(NASTY):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        small = np.random.default_rng(k).integers(0, 256, (6, 9, 3), np.uint8)
        image = cv2.resize(small, (128, 96), interpolation=cv2.INTER_CUBIC)
        (root / name).write_bytes(cv2.imencode(Path(name).suffix, image)[1].tobytes())
        book["images"].append({"id": k, "file_name": name, "width": 128, "height": 96})
        box = box_of(k)
        row = {
            "id": k,
            "image_id": k,
            "category_id": k % 2,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        book["annotations"].append(row)
    (root / "labels.json").write_text(json.dumps(book))
    return root / "labels.json"


def by_split(source: Path, out: Path):
    write_split(split_dataset(read_dataset(source), {"train": 0.5, "val": 0.5}), out)


def by_merge(source: Path, out: Path):
    merge([source], out, settings=MergeSettings(val=0.3))


def by_merge_of_a_version(source: Path, out: Path):
    merge([source], out.with_name("older"))
    merge([out.with_name("older")], out)


def by_stage(source: Path, out: Path):
    items = read_dataset(source)
    stage([Sample(i, ("train", "val")[k % 2], NAMES) for k, i in enumerate(items)], NAMES, out)


def by_labelled(source: Path, out: Path):
    rows = []
    for item in read_dataset(source):
        boxes = item.truth((128, 96))
        boxes = Detections(boxes.xyxy, class_id=boxes.class_id)
        name = item.path.relative_to(source.parent).as_posix()
        rows.append(Annotation(name, "ann", (128, 96), NAMES, boxes))
    write_labelled(rows, source.parent, out)


def by_drafts(source: Path, out: Path):
    drafts = [
        Draft(i.path.relative_to(source.parent).as_posix(), i.path, (128, 96), NAMES, i.truth((128, 96)))
        for i in read_dataset(source)
    ]
    write_drafts(drafts, out)


WRITERS = [by_split, by_merge, by_merge_of_a_version, by_stage, by_labelled, by_drafts]


def state(root: Path) -> dict[str, tuple[str, int]]:
    files = [p for p in root.rglob("*") if p.is_file()]
    return {
        p.relative_to(root).as_posix(): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_nlink)
        for p in files
    }


@pytest.mark.parametrize("write", WRITERS, ids=lambda w: w.__name__[3:])
def test_originals_stay_and_each_copy_has_its_own_labels(write: Callable, tmp_path: Path):
    source = user_set(tmp_path / "set")
    before = state(tmp_path / "set")
    write(source, tmp_path / "out")
    assert state(tmp_path / "set") == before
    number = {before[name][0]: k for k, name in enumerate(NASTY)}
    pictures = [p for p in (tmp_path / "out" / "images").rglob("*") if p.is_file()]
    assert sorted(number[hashlib.sha256(p.read_bytes()).hexdigest()] for p in pictures) == list(
        range(len(NASTY))
    )
    for p in pictures:
        assert p.stat().st_nlink == 1
        k = number[hashlib.sha256(p.read_bytes()).hexdigest()]
        place = p.relative_to(tmp_path / "out" / "images")
        rows = (tmp_path / "out" / "labels" / place).with_suffix(".txt").read_text().split()
        x, y, w, h = box_of(k)
        assert int(rows[0]) == k % 2
        assert [float(v) for v in rows[1:]] == pytest.approx(
            [(x + w / 2) / 128, (y + h / 2) / 96, w / 128, h / 96], abs=1e-5
        )


@pytest.mark.parametrize("write", WRITERS[:-1], ids=lambda w: w.__name__[3:])  # drafts are added to
def test_nothing_is_written_into_a_folder_that_is_in_use(write: Callable, tmp_path: Path):
    source = user_set(tmp_path / "set")
    before = state(tmp_path / "set")
    with pytest.raises((ConfigError, DataError), match="already exists|not empty"):
        write(source, tmp_path / "set")
    assert state(tmp_path / "set") == before


def test_a_split_that_fails_in_the_middle_leaves_nothing(tmp_path: Path):
    source = user_set(tmp_path / "set")
    made = split_dataset(read_dataset(source), {"train": 0.5, "val": 0.5})
    (tmp_path / "set" / NASTY[-1]).write_bytes(b"not a picture any more")
    with pytest.raises(CVPipelineError):
        write_split(made, tmp_path / "out")
    assert not (tmp_path / "out").exists() and [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_frozen_set_is_not_written_over_another_file(tmp_path: Path):
    source = user_set(tmp_path / "set")
    before = state(tmp_path / "set")
    for replace in (False, True):
        with pytest.raises(ConfigError):
            freeze(source, source, replace=replace)
    assert state(tmp_path / "set") == before


def test_pictures_behind_links_are_copied_as_files(tmp_path: Path):
    source = user_set(tmp_path / "set")
    linked = tmp_path / "linked"
    for name in NASTY:
        (linked / name).parent.mkdir(parents=True, exist_ok=True)
        (linked / name).symlink_to(source.parent / name)
    (linked / "labels.json").write_bytes(source.read_bytes())
    by_split(linked / "labels.json", tmp_path / "out")
    files = [p for p in (tmp_path / "out").rglob("*") if not p.is_dir()]
    assert len(files) == 2 * len(NASTY) + 2 and not any(p.is_symlink() for p in files)


def test_frames_of_two_sources_are_never_read_from_one_folder(tmp_path: Path):
    from cv_pipeline.annotation.collect import kept_folders
    from cv_pipeline.core.files import safe_name

    sources = ["a b", "a_b", "a/b"]
    for s in sources:
        (tmp_path / safe_name(s)).mkdir()
    found = kept_folders(tmp_path, sources)
    assert set(found) == set(sources) and len(set(found.values())) == 3
    old = tmp_path / "old"
    (old / "cam_1").mkdir(parents=True)  # as folders were called before
    assert kept_folders(old, ["cam 1"]) == {"cam 1": old / "cam_1"}
    assert kept_folders(old, ["cam 1", "cam/1"]) == {}
