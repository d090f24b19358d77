"""The loop from a collection to what is trained on, through the real files: nothing is lost, renumbered or
invented on the way, errors of one of three people do not get through, the test set stays out.

The notebook 05_loop runs all of it once, with training and gate; here are the properties that must hold in
every round.
"""

import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import cv2
import numpy as np
import pytest

from cv_pipeline.annotation.annotations import (
    Draft,
    ReadLabelledSettings,
    consensus,
    read_labelled,
    settle,
    write_drafts,
    write_labelled,
)
from cv_pipeline.annotation.cases import CollectPolicy
from cv_pipeline.annotation.collect import CollectSink, read_collected
from cv_pipeline.annotation.datasets import LeakError, freeze
from cv_pipeline.annotation.qa import agreement, dispute_suspects
from cv_pipeline.annotation.select import select_collected
from cv_pipeline.annotation.versions import MergeSettings, merge
from cv_pipeline.core.formats import read_dataset, to_yolo
from cv_pipeline.core.images import read_image
from cv_pipeline.core.types import DataError, Detections, FrameResult, box_iou
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.line import write_dataset
from cv_pipeline.synthetic.parts import CLASS_NAMES
from cv_pipeline.training.samples import Replay, read_samples, stage
from cv_pipeline.training.train import TrainSettings, train

pytestmark = pytest.mark.slow

ACCEPT = ReadLabelledSettings(unchanged="accept")
KNOWN, NAMES = ("gear", "bolt", "nut", "defect"), ("gear", "bolt", "nut", "defect", "bracket")
SIZE = (320, 240)
LINE = FactoryLine(LineConfig(seed=31, size=SIZE, density=7))


def truth_of(frame_id: int) -> Detections:
    d = LINE.render(frame_id)[1].labelled()
    return Detections(d.xyxy, None, [NAMES.index(CLASS_NAMES[c]) for c in d.class_id])


def old_labels(folder: Path, seed: int, n: int, split: str = "train") -> Path:
    "A folder in which nobody asked for brackets."
    write_dataset(
        folder, FactoryLine(LineConfig(seed=seed, size=SIZE, density=6)).frames(1, 0), ["yolo"], split
    )
    for k in range(n - 1):
        write_dataset(folder, (one for one in [named(seed + 1 + k)]), ["yolo"], split)
    number = {CLASS_NAMES.index(c): i for i, c in enumerate(KNOWN)}
    for file in (folder / "labels").rglob("*.txt"):
        rows = (line.split(" ", 1) for line in file.read_text().splitlines())
        file.write_text("".join(f"{number[int(c)]} {rest}\n" for c, rest in rows if int(c) in number))
    (folder / "data.yaml").write_text(f"names: {list(KNOWN)}\n")
    return folder


def named(seed: int):
    frame, truth = FactoryLine(LineConfig(seed=seed, size=SIZE, density=6)).render(40)
    frame.source_id = f"line-{seed}"
    return frame, truth


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """Pictures that a pipeline's sink collected and the strategy chose; the model found the first object of
    each only."""
    work = tmp_path_factory.mktemp("loop")
    sink = CollectSink(work / "collected", CollectPolicy(random=1.0, quality=95))
    for k in range(0, 240, 20):
        frame, truth = LINE.render(k)
        frame = replace(
            frame, source_id="belt", captured_at=datetime(2026, 6, 1, 8, 0, k // 20, tzinfo=timezone.utc)
        )
        first = truth.labelled()[:1]
        known = first[first.class_id < len(KNOWN)]
        sink.write(
            FrameResult(
                frame,
                Detections(known.xyxy, np.full(len(known), 0.5), known.class_id),
                CLASS_NAMES,
                model="m",
            )
        )
    sink.close()
    rows = select_collected(work / "collected", work / "chosen", 9)
    assert len(rows) == 9 and len(read_collected(work / "collected")) == 12
    return work / "chosen", rows


def label(folder: Path, chosen, form: str, person) -> Path:
    "Drafts into a folder, what a person draws into its files; the path to read."
    pictures, rows = chosen
    write_drafts(
        (
            Draft(
                r.picture,
                pictures / r.picture,
                r.size,
                NAMES,
                r.found(NAMES),
                {"reasons": r.reasons},
                r.model,
            )
            for r in rows
        ),
        folder,
        form,
    )
    book = {
        r["picture"]: r["file"] for r in map(json.loads, (folder / "drafts.jsonl").read_text().splitlines())
    }
    drawn = {book[r.picture]: person(r) for r in rows}
    if form == "yolo":
        for name, boxes in drawn.items():
            (folder / "labels" / name).with_suffix(".txt").write_text(to_yolo(boxes, SIZE, clip=True))
        return folder
    coco = json.loads((folder / "annotations.json").read_text())
    number = {Path(i["file_name"]).name: i["id"] for i in coco["images"]}
    coco["annotations"] = [
        {
            "id": n,
            "image_id": number[name],
            "category_id": int(c) + 1,
            "bbox": [float(v) for v in (*b[:2], *(b[2:] - b[:2]))],
        }
        for n, (name, b, c) in enumerate(
            ((k, b, c) for k, d in drawn.items() for b, c in zip(d.xyxy, d.class_id)), 1
        )
    ]
    (folder / "annotations.json").write_text(json.dumps(coco))
    return folder / "annotations.json"


def same(a: Detections, b: Detections, pixels: float) -> bool:
    "The same boxes and classes in whatever order."
    if len(a) != len(b):
        return False
    near = (np.abs(a.xyxy[:, None] - b.xyxy[None]).max(axis=2) <= pixels) & (
        a.class_id[:, None] == b.class_id[None]
    )
    return bool(near.any(axis=1).all() and near.any(axis=0).all())


@pytest.mark.parametrize("form", ["yolo", "coco"])
def test_what_a_careful_person_draws_is_what_is_trained_on(chosen, form, tmp_path):
    answers = read_labelled(
        label(tmp_path / "anna", chosen, form, lambda r: truth_of(r.frame_id)), "anna", NAMES, settings=ACCEPT
    )  # she looked at all of them
    together = consensus(settle(answers)[0])
    write_labelled([c.annotation for c in together], chosen[0], tmp_path / "batch")
    merge(
        [old_labels(tmp_path / "old", 500, 6), tmp_path / "batch"],
        tmp_path / "v2",
        settings=MergeSettings(add_names=True, val=0.3),
    )
    names, samples = read_samples(tmp_path / "v2")
    assert names == NAMES
    staged = stage(samples, names, tmp_path / "data")
    new = {r["picture"] for r in staged.rows if "bracket" in r["asked"]}
    assert len(new) == len(chosen[1]) and not any(r["added"] for r in staged.rows)
    frame_of = {r.picture.replace("/", "_"): r.frame_id for r in chosen[1]}
    for item in read_dataset(tmp_path / "data"):
        if item.path.relative_to(tmp_path / "data").as_posix() not in new:
            continue
        frame = next(f for name, f in frame_of.items() if item.path.name.endswith(name))
        assert same(item.truth(SIZE), truth_of(frame), 0.01)
        np.testing.assert_array_equal(
            read_image(item.path),
            read_image(chosen[0] / next(r.picture for r in chosen[1] if r.frame_id == frame)),
        )


def test_errors_of_one_of_three_people_do_not_get_through_and_are_named(chosen, tmp_path):
    rng, planted = np.random.default_rng(2), []

    def careless(r):
        d = truth_of(r.frame_id)
        if not len(d):
            return d
        k = int(rng.integers(len(d)))
        planted.append((r.picture, d.xyxy[k]))
        if len(planted) % 2:
            return d[np.arange(len(d)) != k]
        classes = d.class_id.copy()
        classes[k] = (classes[k] + 1) % len(NAMES)
        return Detections(d.xyxy, None, classes)

    careful = lambda r: truth_of(r.frame_id)
    answers = [
        a
        for who, form, eyes in (
            ("anna", "yolo", careful),
            ("ben", "coco", careful),
            ("cara", "yolo", careless),
        )
        for a in read_labelled(label(tmp_path / who, chosen, form, eyes), who, NAMES, settings=ACCEPT)
    ]
    settled, notes = settle(answers)
    assert len(settled) == 27 and not notes and len(planted) >= 6
    by_picture = {r.picture: r.frame_id for r in chosen[1]}
    for c in consensus(settled):
        assert c.agreed and same(c.annotation.boxes, truth_of(by_picture[c.annotation.picture]), 0.5)
    found = dispute_suspects(settled)
    assert all(
        any(s.picture == picture and box_iou(np.array([s.xyxy]), box[None])[0, 0] > 0.5 for s in found)
        for picture, box in planted
    )
    assert len(found) == len(planted)
    worst = {r["person"]: r for r in agreement(settled).by_person}
    assert worst["cara"]["alpha without"] == 1 and worst["cara"]["missed"] > 0 == worst["anna"]["missed"]


def test_a_lost_label_file_is_no_empty_picture(chosen, tmp_path):
    folder = label(tmp_path / "anna", chosen, "yolo", lambda r: truth_of(r.frame_id))
    next((folder / "labels").glob("*[0-9a-f].txt")).unlink()
    assert len(read_labelled(folder, "anna", NAMES, settings=ACCEPT)) == len(chosen[1]) - 1
    for file in (folder / "labels").glob("*.txt"):
        file.unlink()
    with pytest.raises(DataError, match="annotations|labelled"):
        read_labelled(folder, "anna", NAMES)


def test_drafts_never_become_training_data_by_mistake(chosen, tmp_path):
    "A folder that went out to people and came back untouched holds what a model drew."
    pictures, rows = chosen
    write_drafts(
        (Draft(r.picture, pictures / r.picture, r.size, NAMES, r.found(NAMES), {}, r.model) for r in rows),
        tmp_path / "out",
    )
    with pytest.raises(DataError, match="drafts"):
        merge([tmp_path / "out"], tmp_path / "v1")
    with pytest.raises(DataError, match="all 9 drafts are unchanged"):
        read_labelled(tmp_path / "out", "anna", NAMES)


def test_the_test_set_stays_out_of_every_door(chosen, tmp_path):
    pictures, rows = chosen
    write_labelled(
        [
            c.annotation
            for c in consensus(
                settle(
                    read_labelled(
                        label(tmp_path / "anna", chosen, "yolo", lambda r: truth_of(r.frame_id)),
                        "anna",
                        NAMES,
                        settings=ACCEPT,
                    )
                )[0]
            )
        ],
        pictures,
        tmp_path / "batch",
    )
    test = tmp_path / "test"
    for kind in ("images", "labels"):
        (test / kind / "test").mkdir(parents=True)
    for r in rows[:2]:  # one the same file, one saved again
        name = f"t-{r.frame_id}"
        if r is rows[0]:
            (test / "images" / "test" / f"{name}.jpg").write_bytes((pictures / r.picture).read_bytes())
        else:
            cv2.imwrite(
                str(test / "images" / "test" / f"{name}.jpg"),
                read_image(pictures / r.picture),
                [cv2.IMWRITE_JPEG_QUALITY, 70],
            )
        (test / "labels" / "test" / f"{name}.txt").write_text(to_yolo(truth_of(r.frame_id), SIZE, clip=True))
    (test / "data.yaml").write_text(f"names: {list(NAMES)}\n")
    freeze(test, tmp_path / "frozen.json", "test")
    two = merge(
        [old_labels(tmp_path / "old", 600, 6), tmp_path / "batch"],
        tmp_path / "v2",
        frozen=tmp_path / "frozen.json",
        settings=MergeSettings(add_names=True),
    )
    assert len(two.left_out) >= 2 and two.frozen["pictures"] == 2
    both = merge(
        [old_labels(tmp_path / "old2", 600, 6), tmp_path / "batch"],
        tmp_path / "v3",
        settings=MergeSettings(add_names=True),
    )  # somebody forgot to say what is frozen
    with pytest.raises(LeakError):
        train(
            both.path,
            tmp_path / "run",
            frozen=tmp_path / "frozen.json",
            settings=TrainSettings(replay=Replay(teacher="factory_line")),
        )
    assert not (tmp_path / "run").exists()
