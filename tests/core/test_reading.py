"""Datasets as people bring them: the same pictures, boxes and names as pycocotools, Ultralytics and Pillow,
or an error that names the finding."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from cv_pipeline.annotation.datasets import check_dataset, freeze, split_dataset, write_split
from cv_pipeline.annotation.versions import merge
from cv_pipeline.core.class_names import class_names, names_in
from cv_pipeline.core.findings import ACCEPTABLE, REPORTED, accepted_findings, accepting
from cv_pipeline.core.formats import dataset_splits, evaluation_items, read_dataset, upright_size
from cv_pipeline.core.images import read_image
from cv_pipeline.core.stamp import describe_stamp, stamp
from cv_pipeline.core.types import ConfigError, DataError, Detections
from cv_pipeline.evaluation.metrics import coco_metrics
from cv_pipeline.evaluation.records import look_at
from tests.helpers import exports as X
from tests.helpers.services import require


def found(dataset) -> set[str]:
    return {p.kind for p in dataset.findings}


def boxes(items) -> dict[str, list]:
    "Stem → (class name, corners), sorted."
    said = {}
    for i in items:
        d = i.truth(X.SIZE)
        rows = zip(d.class_id, d.xyxy.round(1).tolist())
        said[i.path.stem.removeprefix("1a2b3c4d-")] = sorted((i.names[c], box) for c, box in rows)
    return said


WANTED = {
    stem: sorted((X.NAMES[c], [float(v) for v in box]) for c, *box in rows) for stem, rows in X.BOXES.items()
}


@pytest.mark.parametrize("tool", X.EXPORTS)
def test_an_export_of_each_tool_is_read_with_its_boxes_and_names(tmp_path, tool):
    place = X.EXPORTS[tool](tmp_path / "set")
    split = "val" if "val" in dataset_splits(place) else None
    items = read_dataset(place, split)
    assert boxes(items) == WANTED
    assert all(i.path.exists() for i in items)
    assert [p for p in check_dataset(place, split) if p.severity == "error"] == []


# ---- names


def test_quoted_keys_keep_their_numbers(tmp_path):
    names = {str(k): f"c{k}" for k in range(12)}
    file = X.write(tmp_path / "data.yaml", yaml.safe_dump({"names": names}))
    assert names_in(file) == tuple(f"c{k}" for k in range(12))


@pytest.mark.parametrize(
    "names, message",
    [
        ({1: "a", 2: "b"}, "count from 1"),
        ({0: "a", 2: "b"}, "gap at 1"),
        ({"0": "a", 0: "b"}, "class 0 twice"),
        ({"a": 0, "b": 1}, "not a class id"),
        ({-1: "a", 0: "b"}, "not a class id"),
        ({0.0: "a"}, "not a class id"),
        ("car", "one value"),
        (7, "one value"),
        (["a", "b", "a"], "class named twice"),
        (["a", None], "class 1 is None"),
        ([False, "a"], "class 0 is False"),
        (["a", " "], "class 1 is empty"),
        ([["a"]], "class 0 is"),
    ],
)
def test_names_that_could_mean_two_things_are_refused(names, message):
    with pytest.raises(DataError, match=message):
        class_names(names, "data.yaml")


@pytest.mark.parametrize("given", [["a", "b"], {0: "a", 1: "b"}, {"1": "b", "0": "a"}, [1, 2], ["x"]])
def test_names_are_those_of_ultralytics(given):
    check = require("ultralytics.nn.autobackend").check_class_names
    theirs = check(dict(given) if isinstance(given, dict) else list(given))
    assert class_names(given) == tuple(theirs[k] for k in range(len(theirs)))


def test_a_named_yaml_counts_and_an_unnamed_folder_with_two_is_refused(tmp_path):
    root = X.labelimg_yolo(tmp_path / "set")
    X.write(root / "args.yaml", "names: [nut, bolt, gear]\n")
    X.write(root / "data.yaml", "names: [gear, bolt, nut]\n")
    assert read_dataset(root / "data.yaml")[0].names == X.NAMES
    assert read_dataset(root / "args.yaml")[0].names == X.NAMES[::-1]
    with pytest.raises(DataError, match="names-ambiguous.*--accept names-ambiguous"):
        read_dataset(root)
    assert "names-ambiguous" in {p.kind for p in check_dataset(root) if p.severity == "error"}


def test_a_list_that_goes_on_changes_no_number(tmp_path):
    root = X.labelimg_yolo(tmp_path / "set")
    X.write(root / "data.yaml", "names: [gear, bolt]\n")
    assert read_dataset(root)[0].names == X.NAMES


@pytest.mark.parametrize(
    "file, data, message",
    [
        ("classes.txt", b"gear\n\nbolt\nnut\n", "line 2 is empty"),
        ("classes.txt", "Straße\nbolt\nnut\n".encode("latin-1"), "not UTF-8"),
        ("data.yaml", b"names: [a, b\n", "invalid YAML"),
        ("data.yaml", b"names: [a, b, c]\nnc: 4\n", "nc says 4"),
    ],
)
def test_a_broken_list_of_names_is_an_error(tmp_path, file, data, message):
    root = X.labelimg_yolo(tmp_path / "set")
    X.write(root / file, data)
    with pytest.raises(DataError, match=message):
        read_dataset(root)


def test_merging_keeps_quoted_names(tmp_path):
    root = X.labelimg_yolo(tmp_path / "set")
    (root / "classes.txt").unlink()
    X.write(root / "data.yaml", "names: {'0': gear, '2': nut, '1': bolt}\n")
    assert sorted(n for r in boxes(merge([root], tmp_path / "w").items()).values() for n, _ in r) == [
        "bolt",
        "gear",
        "nut",
    ]


# ---- data.yaml


def theirs(file: Path, split: str) -> dict[str, list]:
    "Picture → class and centre rows, as Ultralytics reads them."
    require("ultralytics")
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    data = check_det_dataset(str(file), autodownload=False)
    made = YOLODataset(img_path=data[split], data=data, task="detect", augment=False, cache=False)
    return {
        str(Path(r["im_file"]).resolve()): np.hstack([r["cls"], r["bboxes"]]).astype(np.float64)
        for r in made.labels
    }


def ours(file: Path, split: str) -> dict[str, list]:
    said = {}
    for i in read_dataset(file, split):
        d = i.truth((1, 1))
        box = d.xyxy.astype(np.float64)
        rows = np.hstack([d.class_id[:, None], (box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]])
        said[str(i.path.resolve())] = rows
    return said


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("change", ["folders", "lists", "several", "nested", "roboflow", "polygons"])
def test_a_yaml_gives_the_pictures_and_boxes_of_ultralytics(tmp_path, change, split, monkeypatch):
    root = tmp_path / "set"
    file = X.roboflow(root) if change == "roboflow" else X.ultralytics(root)
    if change == "lists":
        X.write(root / "val.txt", "\ufeff./images/val/p1.jpg\r\n./images/val/p0.jpg\r\n")
    if change == "several":
        X.pair(root / "more/images", root / "more/labels", "m")
    if change == "nested":
        X.pair(root / "images/val/images/deep", root / "images/val/labels/deep", "n")
    if change == "polygons":
        X.write(root / "labels/val/p0.txt", "\ufeff1 .1 .2 .4 .2 .4 .6 .1 .7\n0 .5 .5 .7 .5 .6 .9\n")
    value = {"lists": "val.txt", "several": ["images/val", "more/images"]}.get(change)
    if value:
        X.write(file, yaml.safe_dump(yaml.safe_load(file.read_text()) | {"val": value}))
    read, wanted = ours(file, split), theirs(file, split)
    assert set(read) == set(wanted) and len(read) >= 2
    assert all(np.allclose(read[k], wanted[k], atol=1e-5) for k in read)


def test_a_yaml_reads_its_own_pictures_only(tmp_path):
    for name in ("A", "B"):
        X.pair(tmp_path / name / "images/train", tmp_path / name / "labels/train", name)
        text = f"path: {name}\ntrain: images/train\nval: images/train\nnames: [gear, bolt, {name}]\n"
        X.write(tmp_path / f"{name}.yaml", text)
    read = read_dataset(tmp_path / "B.yaml")
    assert {i.path.stem for i in read} == {"Bp0", "Bp1", "Bp2"} and {i.names for i in read} == {
        ("gear", "bolt", "B")
    }
    assert [p.what for p in read.findings if p.kind == "split-overlap"] == [
        "3 of 3 pictures of val are also in train"
    ]
    with pytest.raises(DataError, match="several files describe"):
        read_dataset(tmp_path)


def test_a_picture_is_read_once_and_what_is_in_no_split_is_counted(tmp_path):
    root = X.ultralytics(tmp_path / "set").parent
    X.pair(root / "images/spare", root / "labels/spare", "s")
    X.write(root / "val.txt", "./images/train/tp0.jpg\n./images/val/p0.jpg\n./images/val/p0.jpg\n")
    text = yaml.safe_dump({"train": "images/train", "val": "val.txt", "names": list(X.NAMES)})
    X.write(root / "data.yaml", text)
    read = read_dataset(root)
    assert [i.path.stem for i in read] == ["tp0", "tp1", "tp2", "p0"]
    assert [i.path.stem for i in read_dataset(root, "val")] == ["tp0", "p0"]
    said = {p.kind: p.what for p in read.findings}
    assert said["split-overlap"] == "1 of 2 pictures of val are also in train"
    assert said["outside-splits"].startswith("5 pictures") and "listed-twice" in said


def test_a_split_that_is_not_there_is_said_or_refused(tmp_path):
    file = X.roboflow(tmp_path / "set")  # its test folder was not exported
    assert "split-missing" in found(read_dataset(file))
    with pytest.raises(DataError, match="test: there is no folder or list"):
        read_dataset(file, "test")
    X.write(file, "train: gone\nval: gone too\nnames: [gear, bolt, nut]\n")
    with pytest.raises(DataError, match="there is no folder or list"):
        read_dataset(file)


def test_a_path_of_another_computer_is_said(tmp_path):
    read = read_dataset(X.fiftyone_yolo(tmp_path / "set"))
    assert "path-moved" in found(read) and len(read) == 3


def test_a_copied_folder_is_read_itself_and_a_named_yaml_as_it_says(tmp_path):
    X.ultralytics(tmp_path / "set")
    shutil.copytree(tmp_path / "set", tmp_path / "copy")
    X.write(tmp_path / "copy/labels/val/p0.txt", "")
    read = read_dataset(tmp_path / "copy")
    assert all(i.path.is_relative_to(tmp_path / "copy") for i in read) and "path-moved" in found(read)
    assert boxes(read)["p0"] == []
    assert all(i.path.is_relative_to(tmp_path / "set") for i in read_dataset(tmp_path / "copy/data.yaml"))


@pytest.mark.parametrize("value", ["5", "{a: 1}", "[1, 2]", "[images/val, 3]"])
def test_splits_that_are_no_paths_are_errors(tmp_path, value):
    file = X.ultralytics(tmp_path / "set")
    X.write(file, f"train: images/train\nval: {value}\nnames: [gear, bolt, nut]\n")
    with pytest.raises(DataError, match="val is .*not a folder"):
        read_dataset(file)


# ---- what is evaluated


@pytest.mark.parametrize("form", ["yaml", "folders", "voc"])
def test_an_evaluation_takes_val_and_train_only_by_name(tmp_path, form):
    root = tmp_path / "set"
    X.ultralytics(root)
    if form != "yaml":
        (root / "data.yaml").rename(root / "names.txt")
        X.write(root / "classes.txt", "\n".join(X.NAMES))
    if form == "voc":
        shutil.rmtree(root / "labels")
        for p in root.rglob("*.jpg"):
            X.write(root / "Annotations" / f"{p.stem}.xml", X.voc_text(p.stem.removeprefix("t"), p.name))
        X.write(root / "ImageSets/Main/train.txt", "tp0\ntp1\ntp2\n")
        X.write(root / "ImageSets/Main/val.txt", "p0\np1\np2\n")
        (root / "JPEGImages").mkdir()
        for p in (root / "images").rglob("*.jpg"):
            p.rename(root / "JPEGImages" / p.name)
    read = evaluation_items(root)
    assert {i.path.stem for i in read} == {"p0", "p1", "p2"} and "split-chosen" in found(read)
    assert {i.path.stem for i in evaluation_items(root, "train")} == {"tp0", "tp1", "tp2"}
    with pytest.raises(DataError, match="no images of the split 'test'"):
        evaluation_items(root, "test")


def test_a_set_of_training_pictures_is_not_evaluated_unasked(tmp_path):
    with pytest.raises(DataError, match="has the split train only.*--split train"):
        evaluation_items(X.cvat_yolo(tmp_path / "set"))
    assert len(evaluation_items(tmp_path / "set", "train")) == 3


def test_a_folder_without_splits_is_evaluated_whole(tmp_path):
    assert len(evaluation_items(X.labelimg_yolo(tmp_path / "set"))) == 3


# ---- labels


@pytest.mark.parametrize(
    "images, labels, given",
    [
        ("images/val", "labels/val", "images/val"),
        ("images/val", "labels/val", "images"),
        ("images/val", "labels/val", "."),
        ("images", "Labels", "."),
        ("Images", "Labels", "."),
        ("Images", "labels", "Images"),
        ("images/cam/images", "images/cam/labels", "."),
        ("images/cam/images", "labels/cam/images", "."),
        ("images", "Annotations", "."),
        ("photos", "labels", "."),
        ("photos", "photos", "photos"),
        ("JPEGImages", "labels", "."),
    ],
)
def test_labels_are_found_where_people_put_them(tmp_path, images, labels, given):
    root = tmp_path / "set"
    X.pair(root / images, root / labels)
    X.write(root / "data.yaml", "names: [gear, bolt, nut]\n")
    read = read_dataset(root / given)
    assert boxes(read) == WANTED and read[0].names == X.NAMES
    assert [p for p in check_dataset(root / given) if p.severity == "error"] == []


def test_most_labels_gone_is_an_error_a_few_are_counted(tmp_path):
    root = X.labelimg_yolo(tmp_path / "set")
    (root / "p2.txt").unlink()
    read = read_dataset(root)
    assert [p.kind for p in read.findings].count("picture-without-labels") == 1
    (root / "p1.txt").unlink()
    for use in (read_dataset, lambda p: freeze(p, tmp_path / "m.json"), lambda p: merge([p], tmp_path / "v")):
        with pytest.raises(DataError, match="2 of 3 pictures have no label file"):
            use(root)
    assert not (tmp_path / "m.json").exists() and not (tmp_path / "v").exists()
    assert len(read_dataset(root, accept="labels-missing")) == 3
    assert len(read_dataset(root, labels="optional")) == 3


def test_labels_missing_in_one_split_are_not_hidden_by_the_other(tmp_path):
    file = X.ultralytics(tmp_path / "set")
    for p in range(20):
        X.picture(file.parent / f"images/train/x{p}.jpg", p)
        X.write(file.parent / f"labels/train/x{p}.txt", "0 .5 .5 .1 .1\n")
    shutil.rmtree(file.parent / "labels/val")
    with pytest.raises(DataError, match="3 of 3 pictures of val have no label file"):
        read_dataset(file)


def test_label_files_without_a_picture_and_shared_ones_are_counted(tmp_path):
    root = tmp_path / "set"
    X.pair(root / "images", root / "labels")
    X.write(root / "classes.txt", "\n".join(X.NAMES))
    X.write(root / "labels/nobody.txt", "0 .5 .5 .1 .1\n")
    X.picture(root / "images/p0.png", 7)
    said = {p.kind: p.where for p in read_dataset(root).findings}
    assert Path(said["label-without-picture"]).name == "nobody.txt"
    assert Path(said["label-shared"]).name == "p0.txt"


def test_polygons_are_boxes_and_are_counted(tmp_path):
    root = X.labelimg_yolo(tmp_path / "set")
    X.write(root / "p0.txt", "\ufeff0 .1 .2 .4 .2 .4 .6 .1 .7\n1 .5 .5 .2 .2\n")
    read = read_dataset(root)
    np.testing.assert_allclose(read[0].truth((100, 100)).xyxy[0], [10, 20, 40, 70], atol=1e-4)
    assert [p.what[:6] for p in read.findings if p.kind == "polygon-rows"] == ["1 of 2"]
    made = merge([root], tmp_path / "v")
    assert boxes(made.items())["p0"] == boxes(read)["p0"]


# ---- sizes


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_sizes_are_those_of_the_picture_as_it_is_shown(tmp_path, suffix, turn):
    from PIL import Image, ImageOps

    exif = Image.Exif()
    exif[0x0112] = turn
    file = tmp_path / f"a{suffix}"
    Image.new("RGB", (60, 40)).save(file, exif=exif)
    shown = read_image(file).shape[1::-1]
    assert upright_size(file) == shown
    if suffix == ".jpg":
        assert shown == ImageOps.exif_transpose(Image.open(file)).size


@pytest.mark.parametrize("form", ["coco", "voc"])
def test_a_size_that_contradicts_the_file_is_refused_everywhere(tmp_path, form):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    if form == "coco":
        place = X.cvat_coco(tmp_path / "set")
        file = tmp_path / "set/images/default/p0.jpg"
    else:
        place = X.labelimg_voc(tmp_path / "set")
        file = place / "p0.jpg"
    Image.open(file).save(file, exif=exif)  # 96 x 64 as stored, 64 x 96 as shown
    with pytest.raises(DataError, match="size-mismatch.*the labels say 96x64, the picture is 64x96: EXIF"):
        read_dataset(place)
    for use in (
        evaluation_items,
        lambda p: freeze(p, tmp_path / "m.json"),
        lambda p: merge([p], tmp_path / "v"),
    ):
        with pytest.raises(DataError, match="size-mismatch"):
            use(place)
    assert [p.kind for p in check_dataset(place) if p.severity == "error"] == ["size-mismatch"]
    assert "size-mismatch" in found(read_dataset(place, accept=["size-mismatch"]))


# ---- COCO


def coco(root: Path, *changes: dict, **book) -> Path:
    made = X.coco_book() | book
    made["annotations"] = [a | c for a, c in zip(made["annotations"], [*changes, {}, {}, {}])]
    X.cvat_coco(root)
    return X.write(root / "annotations/instances_default.json", json.dumps(made))


def test_ids_as_text_keep_their_labels(tmp_path):
    read = read_dataset(coco(tmp_path, {"image_id": "1", "category_id": "1", "iscrowd": None}))
    assert boxes(read) == WANTED and "image-id-as-text" in found(read)


@pytest.mark.parametrize(
    "change, kind",
    [
        ({"bbox": [1, 2, "x", 4]}, "malformed-row"),
        ({"bbox": [1, 2, None, 4]}, "malformed-row"),
        ({"bbox": None}, "malformed-row"),
        ({"bbox": [1, 2, float("nan"), 4]}, "not-finite"),
        ({"bbox": [1, 2, -3, 4]}, "inverted-box"),
        ({"area": "big"}, "malformed-row"),
        ({"area": -1}, "malformed-row"),
        ({"iscrowd": "0"}, "malformed-row"),
        ({"category_id": 9}, "category-unknown"),
        ({"category_id": None}, "category-unknown"),
        ({"category_id": [1]}, "category-unknown"),
        ({"image_id": 99}, "image-unknown"),
        ({"image_id": None}, "image-unknown"),
        ({"id": 2}, "annotation-id-twice"),
    ],
)
def test_a_coco_row_without_a_meaning_is_an_error_with_its_row(tmp_path, change, kind):
    file = coco(tmp_path, change)
    with pytest.raises(DataError, match=kind):
        read_dataset(file)
    errors = [p for p in check_dataset(file) if p.severity == "error"]
    assert [p.kind for p in errors] == [kind]
    assert "row 0" in errors[0].where or kind == "annotation-id-twice"


def test_pictures_that_are_there_twice_are_errors(tmp_path):
    images = X.coco_book()["images"]
    same_id = [images[0], images[1] | {"id": 1}, images[2]]
    with pytest.raises(DataError, match="image-id-twice"):
        read_dataset(coco(tmp_path / "a", images=same_id))
    with pytest.raises(DataError, match="picture-listed-twice"):
        read_dataset(coco(tmp_path / "b", images=[*images, images[0] | {"id": 9}]))


@pytest.mark.parametrize("crowd", [0, 1])
@pytest.mark.parametrize("area", [500.0, 1600.0, 20000.0])
def test_areas_and_crowds_are_those_of_pycocotools(tmp_path, area, crowd):
    mask = require("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    file = coco(tmp_path, {"area": area}, {"iscrowd": crowd})
    boxes_of = {"p0": [[10, 10, 40, 40]], "p1": [[5, 8, 25, 30], [50, 20, 90, 60]], "p2": [[1, 1, 20, 20]]}
    classes = {"p0": [0], "p1": [2, 1], "p2": [0]}
    items = read_dataset(file)
    order = iter(items)

    def look(image):
        stem = next(order).path.stem
        return Detections(boxes_of[stem], [0.9 - 0.1 * k for k in range(len(classes[stem]))], classes[stem])

    mine = coco_metrics(look_at(items, X.NAMES, look)[0])
    gt = mask.COCO(str(file))
    rows = [
        {
            "image_id": n,
            "category_id": c + 1,
            "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
            "score": 0.9 - 0.1 * k,
        }
        for n, stem in enumerate(boxes_of, 1)
        for k, (b, c) in enumerate(zip(boxes_of[stem], classes[stem]))
    ]
    run = COCOeval(gt, gt.loadRes(rows), "bbox")
    run.evaluate()
    run.accumulate()
    run.summarize()
    for name, k in (("AP", 0), ("APs", 3), ("APm", 4), ("APl", 5)):
        value = None if run.stats[k] < 0 else run.stats[k]
        assert mine[name] == (None if value is None else pytest.approx(value, abs=1e-6)), name


@pytest.mark.parametrize("name", ["annotations/val.json", "annotations/instances_val2017.json", "val.json"])
def test_pictures_of_a_split_are_found_beside_those_of_another(tmp_path, name):
    for k, side in enumerate(("train", "val")):
        for stem in X.BOXES:
            X.picture(tmp_path / "images" / side / f"{stem}.jpg", k)
    X.write(tmp_path / name, json.dumps(X.coco_book()))
    assert {i.path.parent.name for i in read_dataset(tmp_path / name)} == {"val"}


# ---- VOC


def test_a_stale_file_name_does_not_move_labels(tmp_path):
    root = X.labelimg_voc(tmp_path / "set")
    X.write(root / "p0.xml", X.voc_text("p0", name="p2.jpg"))  # renamed together, the old name stayed inside
    read = read_dataset(root)
    assert boxes(read) == WANTED and "file-name-stale" in found(read)
    X.write(root / "p0.xml", X.voc_text("p0", name="gone.jpg"))
    assert boxes(read_dataset(root)) == WANTED


def test_two_annotations_of_one_picture_are_an_error(tmp_path):
    root = X.labelimg_voc(tmp_path / "set")
    X.write(root / "other.xml", X.voc_text("p0", name="p0.jpg"))
    with pytest.raises(DataError, match="picture-listed-twice"):
        read_dataset(root)


def test_sub_folders_of_annotations_are_mirrored(tmp_path):
    root = tmp_path / "set"
    for k, side in enumerate(("a", "b")):
        X.picture(root / "JPEGImages" / side / "p0.jpg", k)
        X.write(root / "Annotations" / side / "p0.xml", X.voc_text("p0"))
    assert [i.path.parent.name for i in read_dataset(root)] == ["a", "b"]
    assert [i.path.parent.parent.name for i in read_dataset(root)] == ["JPEGImages"] * 2


def test_difficult_objects_are_neither_hits_nor_false_alarms(tmp_path):
    root = X.labelimg_voc(tmp_path / "set")
    X.write(root / "p0.xml", X.voc_text("p0", difficult=1))
    items = read_dataset(root)
    assert "difficult-objects" in found(items)
    told = {"p0.jpg": [[10, 10, 40, 40]], "p1.jpg": [[5, 8, 25, 30], [50, 20, 90, 60]]}
    order = iter(items)

    def look(image):
        rows = told.get(next(order).path.name, [])
        return Detections(rows, [0.9] * len(rows), [0] if len(rows) == 1 else [2, 1][: len(rows)])

    s = look_at(items, X.NAMES, look)[0]
    assert coco_metrics(s)["AP"] == 1.0  # a difficult object that was found is no false alarm
    order = iter(items)
    told["p0.jpg"] = []
    assert coco_metrics(look_at(items, X.NAMES, look)[0])["AP"] == 1.0  # and none that was missed


# ---- accepting


def test_what_is_accepted_stands_in_the_stamp(tmp_path):
    root = X.labelimg_yolo(tmp_path / "set")
    for stem in ("p1", "p2"):
        (root / f"{stem}.txt").unlink()
    with accepting(["labels-missing"]):
        read_dataset(root)
        made = stamp()
    assert made["accepted"] == {"labels-missing": 1}
    assert "accepted: labels-missing (1)" in describe_stamp(made)
    assert "accepted" not in stamp()


@pytest.mark.parametrize("name", ["nothing", "malformed-row", "Size-Mismatch"])
def test_only_known_findings_are_accepted(tmp_path, name):
    with pytest.raises(ConfigError, match=name):
        read_dataset(X.labelimg_yolo(tmp_path / "set"), accept=name)


def test_a_frozen_set_remembers_what_was_accepted(tmp_path):
    from cv_pipeline.annotation.datasets import read_frozen, verify_frozen

    root = X.labelimg_yolo(tmp_path / "set")
    for stem in ("p1", "p2"):
        (root / f"{stem}.txt").unlink()
    freeze(root, tmp_path / "m.json", accept=["labels-missing"])
    assert read_frozen(tmp_path / "m.json").accepted == ("labels-missing",)
    with accepting([]):
        assert len(verify_frozen(tmp_path / "m.json")) == 3
        assert accepted_findings() == {"labels-missing": 1}


def test_no_finding_has_two_severities():
    assert set(ACCEPTABLE) & set(REPORTED) == set()


def test_a_split_of_an_export_reads_as_it_was(tmp_path):
    items = read_dataset(X.cvat_coco(tmp_path / "set"))
    write_split(split_dataset(items, {"train": 0.5, "val": 0.5}, hamming=0), tmp_path / "out")
    assert boxes(read_dataset(tmp_path / "out")) == WANTED


@pytest.mark.parametrize("text", ["[1, 2]", "gear", "3"])
def test_a_data_yaml_that_is_no_table_is_refused(tmp_path, text):
    "Another YAML of that kind beside the pictures is nobody's list of names."
    folder = X.labelimg_yolo(tmp_path / "set")
    (folder / "notes.yaml").write_text(text)
    read_dataset(folder)
    (folder / "data.yaml").write_text(text)
    with pytest.raises(DataError, match="not a data.yaml|names"):
        read_dataset(folder)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"annotations": {}}, "annotations is a dict, not a list"),
        ({"annotations": {"1": {"id": 1}}}, "annotations is a dict, not a list"),
        ({"categories": "gear"}, "categories is a str, not a list"),
        ({"images": [{"id": 1, "file_name": None}]}, "file_name is None, not a text"),
    ],
)
def test_tables_of_a_coco_file_are_lists_of_what_they_should_be(tmp_path, change, text):
    "A mapping of annotations was no annotations at all."
    X.picture(tmp_path / "p0.jpg")
    X.write(tmp_path / "c.json", json.dumps({**X.coco_book(), **change}))
    with pytest.raises(DataError, match=text):
        read_dataset(tmp_path / "c.json")
