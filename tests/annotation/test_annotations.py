"""Annotations of several people: read, refused, settled, voted, written; and the same by files of other
tools."""

import json
import os
import shutil
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.annotation import annotations as A
from cv_pipeline.annotation.datasets import check_dataset
from cv_pipeline.core.files import append_lines
from cv_pipeline.core.formats import read_dataset
from cv_pipeline.core.types import ConfigError, DataError, Detections

ACCEPT = A.ReadLabelledSettings(unchanged="accept")
NAMES, AT = ("disc", "ring", "nut"), datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def said(who="ana", boxes=((10, 20, 60, 80),), classes=None, picture="a.jpg", size=(640, 480), **more):
    return A.Annotation(
        picture,
        who,
        size,
        NAMES,
        Detections(
            np.array(boxes, np.float32).reshape(-1, 4),
            class_id=classes if classes is not None else [0] * len(boxes),
        ),
        **more,
    )


def picture(path, size=(64, 48), seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8))
    return path


corner = st.floats(0, 4000, width=32)
box = st.tuples(corner, corner, corner, corner, st.integers(0, 2)).map(
    lambda r: (min(r[0], r[2]), min(r[1], r[3]), max(r[0], r[2]), max(r[1], r[3]), r[4])
)
word = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(
    str.strip
)  # with U+2028, U+0085, line ends: json keeps or escapes them


# ---- the file ----------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            word,
            st.lists(box, max_size=4),
            st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)),
            st.floats(0, 1e5),
        ),
        min_size=1,
        max_size=5,
    )
)
@pytest.mark.slow
def test_written_and_read_is_the_same(tmp_path_factory, rows):
    made = [
        said(
            who,
            [b[:4] for b in boxes],
            [b[4] for b in boxes],
            f"{i}.jpg",
            created_at=at.replace(tzinfo=timezone.utc),
            lead_time_s=took,
            task="t",
            sha256="ab",
        )
        for i, (who, boxes, at, took) in enumerate(rows)
    ]
    file = A.write_annotations(made, tmp_path_factory.mktemp("a") / "annotations.jsonl")
    back = (
        A.read_annotations(file, NAMES, units="pixels")
        if all(not len(a.boxes) or a.boxes.xyxy.max() > 1.5 for a in made)
        else None
    )
    if back is None:
        return
    assert [a.to_dict() for a in back] == [a.to_dict() for a in made]
    for a, b in zip(made, back):
        np.testing.assert_allclose(a.boxes.xyxy, b.boxes.xyxy, atol=6e-4)


def test_several_files_are_one_list_and_a_cut_last_line_is_left_out(tmp_path):
    one, two = (
        A.write_annotations([said()], tmp_path / "1.jsonl"),
        A.write_annotations([said("ben"), said("eva")], tmp_path / "2.jsonl"),
    )
    two.write_text(two.read_text()[:-30])  # a crash while eva's line was written
    assert [a.annotator for a in A.read_annotations([one, two])] == ["ana", "ben"]
    two.write_text(two.read_text().replace('"ben"', "ben", 1) + "\n{}\n")
    with pytest.raises(DataError, match="line 1 is not JSON"):
        A.read_annotations(two)


def test_signs_that_other_programs_take_for_line_ends_stay_in_their_line(tmp_path):
    odd = replace(said("a\u2028na"), names=("di\x85sc", "ring\u2029", "n\x0but"))
    [back] = A.read_annotations(A.write_annotations([odd], tmp_path / "a.jsonl"))
    assert (back.annotator, back.class_names) == (odd.annotator, odd.class_names)
    (tmp_path / "a.jsonl").write_bytes(
        (tmp_path / "a.jsonl").read_bytes().replace(b"\n", b"\r\n")
    )  # an editor on Windows
    assert A.read_annotations(tmp_path / "a.jsonl")[0].annotator == odd.annotator


@given(st.integers(0, 400))
def test_what_is_added_behind_a_torn_line_can_be_read(tmp_path_factory, cut):
    file = A.write_annotations([said("änä"), said("bén")], tmp_path_factory.mktemp("a") / "a.jsonl")
    whole = file.read_bytes()
    cut = min(cut, len(whole))
    file.write_bytes(whole[: len(whole) - cut])
    append_lines(file, [said("eva").to_dict()], cut_torn=True)
    assert [a.annotator for a in A.read_annotations(file)] == [
        w for w, end in (("änä", whole.index(b"\n")), ("bén", len(whole) - 1)) if len(whole) - cut >= end
    ] + ["eva"]


def test_adding_answers_replaces_those_of_the_same_person_and_picture_only(tmp_path):
    file = tmp_path / "a.jsonl"
    assert A.add_annotations([said("ana"), said("ana", picture="b.jpg")], file) == 0
    other = A.Annotation(
        "a.jpg", "ben", (640, 480), ("quite", "other"), Detections([[1, 2, 3, 400]], class_id=[1])
    )
    assert A.add_annotations([other], file) == 2
    assert A.add_annotations([said("ana", ())], file) == 2
    assert sorted((a.annotator, a.picture, a.class_names) for a in A.read_annotations(file)) == [
        ("ana", "a.jpg", ()),
        ("ana", "b.jpg", ("disc",)),
        ("ben", "a.jpg", ("other",)),
    ]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda p: p.mkdir(), "cannot read the annotation file"),
        (lambda p: p.write_bytes(b"\xff\xfe\x00\n\x81\n"), "line 1 is not JSON"),
    ],
)
def test_what_is_no_file_of_lines(tmp_path, make, message):
    make(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=message):
        A.read_annotations(tmp_path / "a.jsonl")


def test_a_crash_while_writing_keeps_the_old_file(tmp_path):
    file = A.write_annotations([said()], tmp_path / "a.jsonl")

    def breaking():
        yield said("ben")
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError):
        A.write_annotations(breaking(), file)
    assert [a.annotator for a in A.read_annotations(file)] == ["ana"]


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(picture=""), "not a path below"),
        (dict(picture="/etc/passwd"), "not a path below"),
        (dict(picture="a/../../b.jpg"), "not a path below"),
        (dict(picture="C:/a.jpg"), "not a path below"),
        (dict(picture=3), "not a path below"),
        (dict(annotator=""), "is empty"),
        (dict(annotator=None), "is empty"),
        (dict(size=[640]), "is not \\(width, height\\)"),
        (dict(size=[0, 480]), "is not \\(width, height\\)"),
        (dict(size=["a", 480]), "is not \\(width, height\\)"),
        (dict(created_at="2026-01-02T03:04:05"), "no time zone"),
        (dict(created_at="yesterday"), "not an annotation"),
        (dict(lead_time_s=-1), "not a duration"),
        (
            dict(boxes=[{"class_name": "disk", "xyxy": [1, 2, 30, 40]}]),
            r"unknown labels: 'disk' \(1x, 'disc'\?\)",
        ),
        (dict(boxes=[{"class_name": "disc", "xyxy": [1, 2, 3]}]), "shape"),
        (dict(boxes=[{"class_name": "disc", "xyxy": [30, 2, 1, 40]}]), "inverted"),
        (dict(boxes=[{"class_name": "disc", "xyxy": [float("nan"), 2, 30, 40]}]), "NaN"),
        (dict(boxes=[{"xyxy": [1, 2, 30, 40]}]), "not an annotation"),
        (dict(boxes=None), "not an annotation"),
        (dict(boxes=[3]), "not an annotation"),
        (dict(boxes=[{"class_name": "disc", "xyxy": [0.1, 0.2, 0.3, 0.4]}]), "appear to be fractions"),
    ],
)
def test_lines_that_cannot_be_meant_name_their_place(tmp_path, change, message):
    file = tmp_path / "a.jsonl"
    file.write_text(
        json.dumps(said().to_dict()) + "\n" + json.dumps({**said("ben").to_dict(), **change}) + "\n"
    )
    with pytest.raises(DataError, match=message) as e:
        A.read_annotations(file, NAMES)
    assert str(file) in str(e.value.where) and ("a.jsonl:2" in str(e.value) or "fractions" in message)


def test_zero_annotators_and_no_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="no annotations found") as e:
        A.read_annotations(tmp_path / "a.jsonl")
    assert "pull again" in e.value.hint
    with pytest.raises(DataError, match="file not found"):
        A.read_annotations(tmp_path / "b.jsonl")


def test_old_spellings_are_renamed(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(
        json.dumps({**said().to_dict(), "boxes": [{"class_name": "Disk", "xyxy": [1, 2, 30, 40]}]}) + "\n"
    )
    assert A.read_annotations(file, NAMES, {"Disk": "disc"})[0].class_names == ("disc",)
    assert A.read_annotations(file, rename={"Disk": "disc"})[0].names == ("disc",)


# ---- units -------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.sampled_from([(640, 480), (1920, 1080), (300, 4000)]))
def test_percent_are_found_and_pixels_are_not_accused(seed, size):
    rng = np.random.default_rng(seed)
    at, side = rng.uniform(0, 0.8, (40, 2)), rng.uniform(0.02, 0.2, (40, 2))
    share = np.hstack([at, at + side])
    make = lambda scale: [
        said(boxes=[b], picture=f"{i}.jpg", size=size) for i, b in enumerate(share * np.tile(scale, 2))
    ]
    A.check_units(make(size))
    with pytest.raises(DataError, match="appear to be percent"):
        A.check_units(make((100, 100)))
    with pytest.raises(DataError, match="appear to be fractions"):
        A.check_units(make((1, 1)))


def test_few_boxes_in_a_corner_and_small_pictures_are_not_accused(tmp_path):
    A.check_units([said(boxes=[(5, 5, 95, 95)]) for _ in range(9)])
    A.check_units([said(boxes=[(0, 0, 99, 99)], size=(100, 100)) for _ in range(50)])
    A.check_units(
        [said(boxes=[(i, i, i + 9, i + 80)]) for i in range(20)]
    )  # a narrow part of the square that percent would fill
    crowded = [said(boxes=[(5 * i, i, 5 * i + 9, i + 90)], picture=f"{i}.jpg") for i in range(10)]
    file = A.write_annotations(crowded, tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="percent"):
        A.read_annotations(file)
    assert len(A.read_annotations(file, units="pixels")) == 10
    with pytest.raises(ConfigError, match="'check' or 'pixels'"):
        A.read_annotations(file, units="percent")


# ---- settling ----------------------------------------------------------------------------------------------


def test_one_answer_a_person_and_picture():
    a = said(boxes=[(10, 20, 60, 80), (100, 100, 150, 150)], classes=[0, 1], created_at=AT)
    moved = replace(a, boxes=a.boxes[[1, 0]], created_at=AT + timedelta(hours=1))
    kept, notes = A.settle([a, moved, said("ben")])
    assert (
        len(kept) == 2
        and [p.kind for p in notes] == ["answered twice"]
        and kept[0].created_at == moved.created_at
    )
    other = replace(a, boxes=Detections(a.boxes.xyxy, class_id=[0, 2]), created_at=AT + timedelta(hours=2))
    with pytest.raises(DataError, match="1 conflicting annotations"):
        A.settle([other, a])
    kept, notes = A.settle([other, a], "latest")
    assert [a.class_names for a in kept] == [("disc", "nut")] and [p.kind for p in notes] == [
        "conflicting answers"
    ]
    with pytest.raises(ConfigError):
        A.settle([a], "first")


def test_one_picture_under_two_names_is_one_picture():
    kept, notes = A.settle(
        [
            said("ana", picture="b.jpg", sha256="x"),
            said("ben", picture="a.jpg", sha256="x"),
            said("eva", picture="c.jpg", sha256="y"),
        ]
    )
    assert sorted(a.picture for a in kept) == ["a.jpg", "a.jpg", "c.jpg"] and [
        (p.kind, p.where) for p in notes
    ] == [("picture under two names", "b.jpg")]
    with pytest.raises(DataError, match="conflicting"):
        A.settle([said(picture="b.jpg", sha256="x"), said(picture="a.jpg", sha256="x", boxes=())])


def test_a_picture_with_two_sizes_is_refused():
    with pytest.raises(DataError, match="different image sizes"):
        A.settle([said(), said("ben", size=(320, 240))])


# ---- votes -------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000))
def test_the_vote_does_not_depend_on_the_order_of_people_or_boxes(seed):
    rng = np.random.default_rng(seed)
    truth = np.array(
        [[i * 90, j * 90, i * 90 + 60, j * 90 + 60] for i in range(4) for j in range(3)], np.float32
    )
    people = []
    for who in ("ana", "ben", "eva"):
        keep = rng.random(len(truth)) > 0.2
        people.append(
            said(who, truth[keep] + rng.uniform(-6, 6, (keep.sum(), 4)), rng.integers(0, 2, keep.sum()))
        )
    [one] = A.consensus(people)
    mixed = [replace(p, boxes=p.boxes[rng.permutation(len(p.boxes))]) for p in people]
    [two] = A.consensus([mixed[i] for i in rng.permutation(3)])
    key = lambda c: sorted(
        map(
            tuple,
            np.hstack(
                [
                    c.annotation.boxes.xyxy,
                    c.annotation.boxes.class_id[:, None],
                    c.annotation.boxes.data["votes"][:, None],
                ]
            ).tolist(),
        )
    )
    assert key(one) == key(two) and sorted(p.what for p in one.disputes) == sorted(
        p.what for p in two.disputes
    )
    person, group = A.box_groups(people)
    for g in np.unique(group):
        assert len(set(person[group == g])) == (group == g).sum(), "two boxes of one person in one object"
    drawn = np.array([(group == g).sum() for g in np.unique(group)])
    assert len(one.annotation.boxes) == (drawn >= 2).sum()


def test_what_is_voted_and_what_is_disputed():
    far = (300, 300, 360, 360)
    [two] = A.consensus([said("ana", [(10, 20, 60, 80), far]), said("ben")])
    assert (
        len(two.annotation.boxes) == 1
        and two.asked == 2
        and [p.kind for p in two.disputes] == ["drawn by half"]
        and "ana, 1 of 2" in two.disputes[0].what
    )
    [three] = A.consensus([said("ana", [far]), said("ben", ()), said("eva", ())])
    assert (len(three.annotation.boxes), three.disputes, three.agreed) == (
        0,
        (),
        True,
    )  # one of three: outvoted
    [split] = A.consensus([said("ana"), said("ben", classes=[1]), said("eva", classes=[2])])
    assert (
        [p.kind for p in split.disputes] == ["class disputed"]
        and not split.agreed
        and split.annotation.class_names == ("disc",)
    )
    [alone] = A.consensus([said("ana", [far])])
    assert len(alone.annotation.boxes) == 1 and alone.asked == 1
    [near] = A.consensus(
        [said("ana", [(10, 10, 50, 50), (20, 10, 60, 50)]), said("ben", [(10, 10, 50, 50), (20, 10, 60, 50)])]
    )
    assert near.annotation.boxes.xyxy.tolist() == [
        [10, 10, 50, 50],
        [20, 10, 60, 50],
    ]  # overlapping neighbours stay two
    [empty] = A.consensus([said("ana", ()), said("ben", ())])
    assert len(empty.annotation.boxes) == 0
    with pytest.raises(DataError, match="two annotations of one image"):
        A.consensus([said(), said()])
    for iou in (2, 0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="is not an overlap"):
            A.consensus([said()], iou)
    with pytest.raises(DataError, match="different class lists"):
        A.consensus([said(), replace(said("ben"), names=("disc", "x", "y"))])


# ---- a dataset ---------------------------------------------------------------------------------------------


def test_written_labels_are_a_dataset_without_errors(tmp_path):
    names = [
        "cam/1.jpg",
        "cam_1.jpg",
        "b.png",
        "b.jpg",
        "images/labels/x y.jpg",
    ]  # names that would meet in one folder
    for i, n in enumerate(names):
        picture(tmp_path / "in" / n, seed=i)
    made = [
        said(boxes=[(1, 2, 30, 40), (50, 40, 70, 60)], classes=[0, 2], picture=n, size=(64, 48))
        for n in names
    ]
    assert A.write_labelled(made, tmp_path / "in", tmp_path / "out") == []
    items = read_dataset(tmp_path / "out")
    assert len(items) == 5 and {i.names for i in items} == {NAMES}
    for item in items:
        np.testing.assert_allclose(item.truth((64, 48)).xyxy, [[1, 2, 30, 40], [50, 40, 64, 48]], atol=1e-4)
    assert not [p for p in check_dataset(tmp_path / "out") if p.severity == "error"]
    with pytest.raises(ConfigError, match="not empty"):
        A.write_labelled(made, tmp_path / "in", tmp_path / "out")


def test_what_cannot_be_written(tmp_path):
    picture(tmp_path / "a.jpg")
    fine = said(boxes=[(1, 2, 30, 40)], size=(64, 48))
    for annotations, message in (
        ([], "no annotations"),
        ([fine, replace(fine, annotator="ben")], "several annotations"),
        ([replace(fine, picture="b.jpg")], "1 images are missing"),
        ([said(size=(640, 480))], "the image is 64x48, the annotation says 640x480"),
    ):
        with pytest.raises(DataError, match=message):
            A.write_labelled(annotations, tmp_path, tmp_path / "out")
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    [problem] = A.write_labelled(
        [replace(fine, boxes=Detections([[1, 2, 30, 40], [100, 2, 130, 40]]))], tmp_path, tmp_path / "out"
    )
    assert (
        problem.kind == "box outside the picture"
        and len(read_dataset(tmp_path / "out")[0].truth((64, 48))) == 1
    )


# ---- other tools -------------------------------------------------------------------------------------------


def drafts(folder, n=4):
    return [
        A.Draft(
            f"frames/{i}.jpg",
            picture(folder / "frames" / f"{i}.jpg", seed=i),
            (64, 48),
            NAMES,
            Detections([[1.5, 2.25, 30, 40], [40, 10, 64, 48]], [0.9, 0.4], [0, 2]),
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("form", ["yolo", "coco"])
def test_out_and_back_by_files(tmp_path, form):
    sent, out = drafts(tmp_path), tmp_path / "desk"
    shutil.copy(sent[0].path, tmp_path / "frames" / "z.jpg")
    new, problems = A.write_drafts(
        [*sent, replace(sent[0], picture="frames/z.jpg", path=tmp_path / "frames" / "z.jpg")], out, form
    )
    assert new == 4 and [p.kind for p in problems] == ["picture under two names"]
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert A.write_drafts(sent, out, form)[0] == 0 and before == {
        p: p.read_bytes() for p in out.rglob("*") if p.is_file()
    }
    extra = A.Draft("frames/new.jpg", picture(tmp_path / "frames" / "new.jpg", seed=99), (64, 48), NAMES)
    assert A.write_drafts([*sent, extra], out, form)[0] == 1
    place, notes = out if form == "yolo" else out / "annotations.json", []
    with pytest.raises(DataError, match="all 5 drafts are unchanged"):
        A.read_labelled(place, "ana", NAMES)
    back = {a.picture: a for a in A.read_labelled(place, "ana", NAMES, settings=ACCEPT, notes=notes)}
    assert ["5 of 5" in n.what and "accepted" in n.what for n in notes] == [True]
    assert set(back) == {d.picture for d in [*sent, extra]} and len(back["frames/new.jpg"].boxes) == 0
    for d in sent:
        np.testing.assert_allclose(back[d.picture].boxes.xyxy, d.boxes.xyxy, atol=1e-4)
        assert back[d.picture].class_names == ("disc", "nut") and back[d.picture].sha256 == d.sha256


@pytest.mark.parametrize("form", ["yolo", "coco"])
def test_what_nobody_touched_is_no_answer(tmp_path, form):
    sent = [
        *drafts(tmp_path, 3),
        A.Draft("frames/none.jpg", picture(tmp_path / "frames" / "none.jpg", seed=9), (64, 48), NAMES),
    ]
    A.write_drafts(sent, tmp_path / "desk", form)
    place, notes = tmp_path / "desk" if form == "yolo" else tmp_path / "desk" / "annotations.json", []
    file = {
        r["picture"]: r["file"]
        for r in map(json.loads, (tmp_path / "desk" / "drafts.jsonl").read_text().splitlines())
    }
    if form == "yolo":
        for p in (tmp_path / "desk" / "labels").glob("[0-9a-f]*.txt"):
            if p.name == "classes.txt":
                continue
            p.write_text(
                "".join(
                    " ".join([r[0], *(f"{float(v):.4f}" for v in r[1:])]) + "\n"
                    for r in map(str.split, p.read_text().splitlines()[::-1])
                )
            )
        label = tmp_path / "desk" / "labels" / file["frames/1.jpg"].replace(".jpg", ".txt")
        label.write_text(label.read_text().replace("2 ", "1 ", 1))
    else:  # every tool writes the whole file anew: rounded, in another order
        book = json.loads(place.read_text())
        number = next(i["id"] for i in book["images"] if i["file_name"] == file["frames/1.jpg"])
        for a in book["annotations"]:
            a["bbox"] = [round(v, 1) for v in a["bbox"]]
        next(a for a in book["annotations"] if a["image_id"] == number and a["category_id"] == 3)[
            "category_id"
        ] = 2
        place.write_text(json.dumps({**book, "annotations": book["annotations"][::-1]}))
    [one] = A.read_labelled(place, "ana", NAMES, notes=notes)
    assert (
        one.picture == "frames/1.jpg"
        and sorted(one.class_names) == ["disc", "ring"]
        and "3 of 4 are unchanged: left out" in notes[0].what
    )
    assert len(A.read_labelled(place, "ana", NAMES, settings=ACCEPT)) == 4
    renamed = A.read_labelled(place, "ana", ("Disc", *NAMES), rename={"disc": "Disc"})
    assert [a.picture for a in renamed] == ["frames/1.jpg"], "another name for a class is no change"


@pytest.mark.parametrize("form", ["yolo", "coco"])
def test_a_second_batch_never_changes_what_the_numbers_of_the_first_mean(tmp_path, form):
    monday = [
        replace(d, names=("bolt", "nut"), boxes=Detections(d.boxes.xyxy, class_id=[0, 1]))
        for d in drafts(tmp_path, 3)
    ]
    wednesday = [
        replace(d, names=("screw", "nut", "washer"), boxes=Detections(d.boxes.xyxy, class_id=[2, 1]))
        for d in drafts(tmp_path, 6)[3:]
    ]
    out = tmp_path / "desk"
    for batch in (monday, wednesday, monday):
        A.write_drafts(batch, out, form)
    items = read_dataset(out if form == "yolo" else out / "annotations.json")
    assert items[0].names == ("bolt", "nut", "screw", "washer")
    back = {
        a.picture: a.class_names
        for a in A.read_labelled(out if form == "yolo" else out / "annotations.json", "ana", settings=ACCEPT)
    }
    assert back == {d.picture: tuple(d.names[c] for c in d.boxes.class_id) for d in [*monday, *wednesday]}
    if form == "coco":
        book = json.loads((out / "annotations.json").read_text())
        for part in ("images", "annotations", "categories"):
            assert len({r["id"] for r in book[part]}) == len(book[part])
        assert len(book["annotations"]) == 12


@pytest.mark.parametrize("form", ["yolo", "coco"])
def test_class_names_with_any_sign_keep_their_numbers(tmp_path, form):
    odd, out = ("on\u2028e", "tw\x85o", " three: [#'\" ", "yes", "7"), tmp_path / "desk"
    sent = [
        replace(d, names=odd, boxes=Detections(d.boxes.xyxy, class_id=[k, k + 2]))
        for k, d in enumerate(drafts(tmp_path, 3))
    ]
    for batch in (
        sent[:1],
        [
            replace(d, names=odd[::-1], boxes=Detections(d.boxes.xyxy, class_id=4 - d.boxes.class_id))
            for d in sent[1:]
        ],
    ):
        A.write_drafts(batch, out, form)
    back = A.read_labelled(out if form == "yolo" else out / "annotations.json", "ana", settings=ACCEPT)
    assert back[0].names == odd and {a.picture: a.class_names for a in back} == {
        d.picture: tuple(odd[c] for c in d.boxes.class_id) for d in sent
    }


def test_drafts_of_an_older_version_are_said_to_be_unknown(tmp_path):
    A.write_drafts(drafts(tmp_path, 2), tmp_path / "desk")
    book, notes = tmp_path / "desk" / "drafts.jsonl", []
    book.write_text(
        "".join(
            json.dumps({k: v for k, v in json.loads(line).items() if k not in ("labels", "form")}) + "\n"
            for line in book.read_text().splitlines()
        )
    )
    assert len(A.read_labelled(tmp_path / "desk", "ana", notes=notes)) == 2 and [
        (n.severity, n.kind) for n in notes
    ] == [("warning", "drafts not recorded")]
    assert A.write_drafts(drafts(tmp_path, 2), tmp_path / "desk")[0] == 0


def test_one_folder_in_two_forms(tmp_path):
    "What one tool gets as YOLO and another as COCO is compared with what that tool got."
    sent, out = drafts(tmp_path, 3), tmp_path / "desk"
    A.write_drafts(sent[:2], out)
    better = [replace(d, boxes=d.boxes[:1]) for d in sent]
    assert A.write_drafts(better, out, "coco")[0] == 3 and A.write_drafts(better[2:], out, "coco")[0] == 0
    for place, n in ((out / "annotations.json", 3), (out, 2)):
        with pytest.raises(DataError, match=f"all {n} drafts"):
            A.read_labelled(place, "ana")
    assert {a.picture for a in A.read_labelled(out, "ana", settings=ACCEPT)} == {d.picture for d in sent[:2]}


def test_classes_whose_numbers_nobody_knows(tmp_path):
    out = tmp_path / "desk"
    A.write_drafts(drafts(tmp_path, 1), out)
    (out / "labels" / "classes.txt").write_text("disc\nring\nnut\nlid\n")  # the person's tool added one
    A.write_drafts(
        [replace(d, names=("cap",), boxes=Detections.empty()) for d in drafts(tmp_path, 2)[1:]], out
    )
    assert read_dataset(out)[0].names == ("disc", "ring", "nut", "lid", "cap")
    more = drafts(tmp_path, 3)[2:]
    for text, message in (
        ("ring\ndisc\nnut\n", "different or duplicate class ids"),
        ("disc\ndisc\n", "different or duplicate class ids"),
    ):
        (out / "labels" / "classes.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            A.write_drafts(more, out)
    (out / "labels" / "classes.txt").unlink()
    (out / "data.yaml").write_text("names: {0: disc, 1")
    with pytest.raises(DataError, match="cannot read its class list"):
        A.write_drafts(more, out)
    (out / "data.yaml").unlink()
    with pytest.raises(DataError, match="labels without a class list"):
        A.write_drafts(more, out)
    (tmp_path / "c").mkdir()
    for text, message in (
        ('{"images": [{"id": 1, "file_na', "not a COCO file"),
        ("[]", "not a COCO file"),
        (
            '{"images": [], "annotations": [], '
            '"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "duplicate category",
        ),
    ):
        (tmp_path / "c" / "annotations.json").write_text(text)
        with pytest.raises(DataError, match=message):
            A.write_drafts(more, tmp_path / "c", "coco")


class Killed(BaseException):
    "The end of the process."


@pytest.mark.parametrize("form", ["yolo", "coco"])
def test_drafts_that_are_killed_anywhere_are_whole_after_the_next_run(tmp_path, monkeypatch, form):
    """At every step of writing the process ends; the next run makes what an undisturbed run makes, and no
    untouched draft passes for an answer."""
    sent, names, steps = drafts(tmp_path, 2), ("replace", "link"), iter(range(99))
    A.write_drafts(sent[:1], tmp_path / "good", form), A.write_drafts(sent, tmp_path / "good", form)
    content = lambda folder: {
        p.relative_to(folder).as_posix(): p.read_bytes().replace(folder.name.encode(), b"")
        for p in folder.rglob("*")
        if p.is_file() and p.name != "drafts.jsonl"
    }

    def tearing(name, left, do):
        def step(source, target):
            left[0] -= 1
            if left[0] < 0:
                raise Killed if name == "replace" else OSError("no links here")
            do(source, target)

        return step

    for step in steps:
        out, left = tmp_path / f"k{step}", [step]
        A.write_drafts(sent[:1], out, form)
        with monkeypatch.context() as m:
            for name in names:
                m.setattr(os, name, tearing(name, left, getattr(os, name)))
            try:
                A.write_drafts(sent, out, form)
            except Killed:
                pass
            else:
                break
        with open(out / "drafts.jsonl", "ab") as f:
            f.write(b'{"file": "0')  # and a line torn as well
        assert not [
            p
            for p in out.rglob("*")
            if p.suffix in (".jpg", ".txt", ".json", ".yaml") and p.stat().st_size == 0 and p.suffix != ".txt"
        ]
        A.write_drafts(sent, out, form)
        assert {k: v for k, v in content(out).items() if not k.endswith(".part")} == content(
            tmp_path / "good"
        ), step
        with pytest.raises(DataError, match="all 2 drafts"):
            A.read_labelled(out if form == "yolo" else out / "annotations.json", "ana")
    assert step >= 2


def test_a_half_copied_picture_is_copied_again(tmp_path):
    [sent] = drafts(tmp_path, 1)
    file = tmp_path / "desk" / "images" / f"{sent.sha256[:20]}.jpg"
    file.parent.mkdir(parents=True)
    file.write_bytes(sent.path.read_bytes()[:100])
    A.write_drafts([sent], tmp_path / "desk")
    assert file.read_bytes() == sent.path.read_bytes()


def test_a_mended_label_file_is_never_written_again(tmp_path):
    sent, out = drafts(tmp_path, 1), tmp_path / "desk"
    A.write_drafts(sent, out)
    [label] = [p for p in (out / "labels").glob("*.txt") if p.name != "classes.txt"]
    label.write_text("1 0.5 0.5 0.25 0.25\n")
    A.write_drafts(sent, out)
    [mine] = A.read_labelled(out, "ana")
    assert mine.class_names == ("ring",) and mine.boxes.xyxy.tolist() == [[24, 18, 40, 30]]
    label.unlink()
    with pytest.raises(DataError, match="no image has a label file"):
        A.read_labelled(out, "ana")


@pytest.mark.parametrize(
    "row,message",
    [
        ("0 .2 .2 .4 .2 .4 .5 .2 .5", "a polygon or a turned rectangle"),
        ("0 .1 .1 .2 .1 .2 .2", "a polygon"),
        ("0 50 50 10 10", "not fractions"),
        ("0 12 30 5 9", "not fractions"),
        ("9 .5 .5 .1 .1", "unknown label: class 9 of 3"),
        ("disc .5 .5 .1 .1", "unknown label: class disc"),
        ("² .5 .5 .1 .1", "unknown label: class ²"),
        ("0 .5 .5 .1", "4 values"),
        ("0 a .5 .1 .1", "not numeric"),
        ("0 nan .5 .1 .1", "not fractions"),
        ("-1 .5 .5 .1 .1", "unknown label"),
    ],
)
def test_rows_of_other_tools_that_are_no_boxes(tmp_path, row, message):
    out = tmp_path / "desk"
    A.write_drafts(drafts(tmp_path, 1), out)
    [label] = [p for p in (out / "labels").glob("*.txt") if p.name != "classes.txt"]
    label.write_text(f"0 .5 .5 .1 .1\n{row}\n")
    with pytest.raises(DataError, match=message) as e:
        A.read_labelled(out, "ana")
    assert f"{label}:2" in str(e.value)


def coco(folder, annotations, name="disc"):
    picture(folder / "a.jpg")
    (folder / "c.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
                "categories": [{"id": 7, "name": name}],
                "annotations": [{"id": 5, "image_id": 1, "category_id": 7, **a} for a in annotations],
            }
        )
    )
    return folder / "c.json"


def test_shapes_in_coco(tmp_path):
    outline = {"segmentation": [[10, 10, 30, 12, 20, 40]]}
    with pytest.raises(DataError, match="a polygon without a box"):
        A.read_labelled(coco(tmp_path, [outline]), "ana")
    assert A.read_labelled(coco(tmp_path, [outline]), "ana", settings=A.ReadLabelledSettings(shapes="box"))[
        0
    ].boxes.xyxy.tolist() == [[10, 10, 30, 40]]
    assert A.read_labelled(coco(tmp_path, [{**outline, "bbox": [10, 10, 20, 30]}]), "ana")[
        0
    ].boxes.xyxy.tolist() == [[10, 10, 30, 40]]  # every COCO box has an outline too
    turned = {"bbox": [20, 10, 20, 10], "attributes": {"rotation": 90.0}}
    with pytest.raises(DataError, match="turned by 90 degrees"):
        A.read_labelled(coco(tmp_path, [turned]), "ana")
    [a] = A.read_labelled(coco(tmp_path, [turned]), "ana", settings=A.ReadLabelledSettings(shapes="box"))
    np.testing.assert_allclose(a.boxes.xyxy, [[25, 5, 35, 25]], atol=1e-4)
    assert a.boxes.data["rotated"].tolist() == [90] and a.to_dict()["boxes"][0]["rotated"] == 90
    for bad, message in (
        ({"bbox": [1, 2, 3]}, "is not \\[x, y"),
        ({"bbox": [1, 2, 3, 4], "category_id": 8}, "unknown label: category 8"),
        ({"bbox": [1, 2, 3, 4], "iscrowd": 1}, "a crowd region"),
        ({"bbox": [0.1, 0.2, 0.3, 0.4]}, "appear to be fractions"),
    ):
        with pytest.raises(DataError, match=message):
            A.read_labelled(coco(tmp_path, [bad]), "ana")
    with pytest.raises(DataError, match="unknown labels: 'Disc'"):
        A.read_labelled(coco(tmp_path, [{"bbox": [1, 2, 3, 4]}], "Disc"), "ana", NAMES)
    assert (
        A.read_labelled(
            coco(tmp_path, [{"bbox": [1, 2, 3, 4]}], "Disc"), "ana", NAMES, rename={"Disc": "disc"}
        )[0].names
        == NAMES
    )


@pytest.mark.parametrize("wrong", [{"shapes": "perhaps"}, {"unchanged": "maybe"}, {"units": "percent"}])
def test_a_wrong_setting_of_reading_is_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)) + ": "):
        A.ReadLabelledSettings(**wrong)


@given(st.floats(-360, 360), st.floats(1, 200), st.floats(1, 200))
def test_a_turned_box_keeps_its_area_and_centre(degrees, w, h):
    corners = A.turned_box([50, 60, 50 + w, 60 + h], degrees)
    x, y = corners.T
    assert abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2 == pytest.approx(w * h, rel=1e-6)
    np.testing.assert_allclose(corners.mean(axis=0), [50 + w / 2, 60 + h / 2], atol=1e-6)
    about = A.turned_box([50, 60, 50 + w, 60 + h], degrees, (50, 60))
    np.testing.assert_allclose(about[0], [50, 60], atol=1e-6)


def test_drafts_that_cannot_be_written(tmp_path):
    with pytest.raises(DataError, match="no images to label"):
        A.write_drafts([], tmp_path / "o")
    with pytest.raises(ConfigError, match="unknown form"):
        A.write_drafts(drafts(tmp_path), tmp_path / "o", "voc")
    lost = A.Draft("x.jpg", tmp_path / "x.jpg", (64, 48), NAMES)
    with pytest.raises(DataError, match="the image is missing"):
        A.write_drafts([*drafts(tmp_path), lost], tmp_path / "o")
    assert not (tmp_path / "o").exists()
    with pytest.raises(DataError, match="different class lists"):
        A.write_drafts(
            [*drafts(tmp_path), replace(drafts(tmp_path, 5)[4], names=("disc",), boxes=Detections.empty())],
            tmp_path / "o",
        )
    with pytest.raises(DataError, match="not a path below"):
        A.Draft("../x.jpg", tmp_path / "x.jpg", (64, 48), NAMES)


@pytest.mark.real
def test_blood_cells_of_three_people(real_data, tmp_path):
    "BCCD's labels drawn by three people with shaky hands: the vote is nearer to the labels than any of them."
    items = read_dataset(real_data / "bccd" / "annotations" / "instances_val.json")[:20]
    root, rng, people = real_data / "bccd" / "images" / "val", np.random.default_rng(0), []
    truth = A.drafts_of(items, root)
    for who in ("ana", "ben", "eva"):
        for d in truth:
            keep = rng.random(len(d.boxes)) > 0.05
            shaken = d.boxes.xyxy[keep] + rng.normal(0, 2, (keep.sum(), 4)).astype(np.float32)
            people.append(
                A.Annotation(
                    d.picture,
                    who,
                    d.size,
                    d.names,
                    Detections(shaken, class_id=d.boxes.class_id[keep]),
                    created_at=AT,
                    sha256=d.sha256,
                )
            )
    back = A.read_annotations(A.write_annotations(people, tmp_path / "annotations.jsonl"), truth[0].names)
    voted = [c.annotation for c in A.consensus(A.settle(back)[0])]
    found = sum(len(a.boxes) for a in voted)
    total = sum(len(d.boxes) for d in truth)
    assert (
        0.98 * total <= found <= 1.005 * total
    )  # three in four misses are mended: two of three must miss for one to be lost
    errors = []
    for v, d in zip(voted, sorted(truth, key=lambda d: d.picture)):
        gap = np.abs(v.boxes.xyxy[:, None] - d.boxes.xyxy[None]).mean(axis=2).min(axis=1)
        errors.append(gap)
    assert np.concatenate(errors).mean() < 1.3  # a single hand: 1.6 pixels
    assert not [
        p for p in A.write_labelled(voted, root, tmp_path / "out") if p.kind != "box outside the picture"
    ]
    assert os.path.getsize(tmp_path / "out" / "data.yaml")
