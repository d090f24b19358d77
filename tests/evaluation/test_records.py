"""Files of truth, predictions and columns: as pycocotools reads them, or an error that names the row."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import DataError
from cv_pipeline.evaluation.metrics import COCO_NAMES, coco_metrics
from cv_pipeline.evaluation.records import match_column, match_columns, read_coco, read_columns


def coco_pair(seed: int) -> tuple[dict, list[dict]]:
    "Truth with crowds and areas of masks, and predictions, as files hold them."
    rng = np.random.default_rng(seed)
    images = [{"id": 3 * i + 1, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(12)]
    rows, said = [], []
    for image in images:
        for _ in range(rng.integers(1, 6)):
            x, y, w, h = (*rng.uniform(0, 300, 2).tolist(), *rng.uniform(8, 150, 2).tolist())
            kind = int(rng.choice([2, 5, 9]))
            row = {"id": len(rows) + 1, "image_id": image["id"], "category_id": kind, "bbox": [x, y, w, h]}
            rows.append(
                {**row, "area": w * h * float(rng.uniform(0.2, 1)), "iscrowd": int(rng.random() < 0.1)}
            )
            for _ in range(rng.integers(0, 3)):
                box = [x + rng.normal(0, 4), y + rng.normal(0, 4), w * rng.uniform(0.8, 1.2), h]
                kind_said = kind if rng.random() < 0.8 else 2
                box = [float(v) for v in box]
                said.append({"image_id": image["id"], "category_id": kind_said, "bbox": box})
                said[-1]["score"] = float(rng.random())
    book = {
        "images": images,
        "annotations": rows,
        "categories": [{"id": i, "name": f"c{i}"} for i in (9, 2, 5)],
    }
    return book, said


def theirs(book: dict, said: list[dict]) -> list[float]:
    "The twelve numbers of pycocotools, from the same file."
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"info": {}, **json.loads(json.dumps(book))}
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(json.loads(json.dumps(said))), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats.tolist()


def ours(tmp: Path, book: dict, said: list[dict]) -> list[float]:
    (tmp / "truth.json").write_text(json.dumps(book))
    (tmp / "said.json").write_text(json.dumps(said))
    numbers = coco_metrics(read_coco(tmp / "truth.json", tmp / "said.json"))
    return [-1.0 if numbers[k] is None else numbers[k] for k in COCO_NAMES]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_random_files_give_the_numbers_of_pycocotools(tmp_path_factory, seed):
    book, said = coco_pair(seed)
    np.testing.assert_allclose(
        ours(tmp_path_factory.mktemp("coco"), book, said), theirs(book, said), atol=1e-9
    )


def changed(book, change):
    "All annotations, each with its number, changed."
    return {**book, "annotations": [{**a, **change(i, a)} for i, a in enumerate(book["annotations"])]}


def as_text(book, said):
    "Ids of images as text, in the truth and in the predictions."
    text = {**book, "images": [{**im, "id": str(im["id"])} for im in book["images"]]}
    text = changed(text, lambda i, a: {"image_id": str(a["image_id"])})
    return text, [{**d, "image_id": str(d["image_id"])} for d in said]


SAME = {  # what says the same in other words; pycocotools is asked about the plain file
    "annotation ids as text": lambda b, d: (changed(b, lambda i, a: {"id": f"a{i}"}), d),
    "annotation ids as uuids": lambda b, d: (changed(b, lambda i, a: {"id": 2**70 + i}), d),
    "annotation ids null": lambda b, d: (changed(b, lambda i, a: {"id": None}), d),
    "annotation ids from 0": lambda b, d: (changed(b, lambda i, a: {"id": i}), d),
    "image ids as text": as_text,
    "images in another order": lambda b, d: ({**b, "images": b["images"][::-1]}, d),
}


@pytest.mark.parametrize("name", SAME)
def test_ids_of_any_kind_change_no_number(tmp_path, name):
    book, said = coco_pair(3)
    np.testing.assert_allclose(ours(tmp_path, *SAME[name](book, said)), theirs(book, said), atol=1e-9)


@pytest.mark.parametrize("value", [None, "missing"])
def test_an_area_that_is_not_given_is_that_of_the_box(tmp_path, value):
    book, said = coco_pair(4)
    boxes = changed(book, lambda i, a: {"area": a["bbox"][2] * a["bbox"][3]})
    without = changed(book, lambda i, a: {"area": None})
    if value == "missing":
        for a in without["annotations"]:
            del a["area"]
    np.testing.assert_allclose(ours(tmp_path, without, said), theirs(boxes, said), atol=1e-9)


@pytest.mark.parametrize("value", [None, False, "missing"])
def test_without_iscrowd_nothing_is_a_crowd(tmp_path, value):
    book, said = coco_pair(5)
    none = changed(book, lambda i, a: {"iscrowd": 0})
    other = changed(book, lambda i, a: {"iscrowd": value})
    if value == "missing":
        for a in other["annotations"]:
            del a["iscrowd"]
    np.testing.assert_allclose(ours(tmp_path, other, said), theirs(none, said), atol=1e-9)


BAD_TRUTH = [
    ({"bbox": None}, "bbox is None"),
    ({"bbox": [1, 2, "x", 4]}, "bbox is"),
    ({"bbox": [1, 2, 3]}, "not four numbers"),
    ({"bbox": [1, 2, True, 4]}, "not four numbers"),
    ({"bbox": [1, 2, float("nan"), 4]}, "not four numbers"),
    ({"area": "big"}, "area is 'big'"),
    ({"area": -1}, "area is -1"),
    ({"area": float("nan")}, "area is nan"),
    ({"iscrowd": "0"}, "iscrowd is '0'"),
    ({"iscrowd": 2}, "iscrowd is 2"),
    ({"image_id": None}, "image_id is None"),
    ({"image_id": [1]}, "image_id is"),
    ({"category_id": {}}, "category_id is"),
]


@pytest.mark.parametrize("change, words", BAD_TRUTH)
def test_an_annotation_that_says_nothing_is_named_with_its_row(tmp_path, change, words):
    book, said = coco_pair(6)
    with pytest.raises(DataError, match=f"truth: row 4 .*{words}"):
        ours(tmp_path, changed(book, lambda i, a: change if i == 4 else {}), said)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"score": None}, "score is None"),
        ({"score": "0.5"}, "score is '0.5'"),
        ({"score": True}, "score is True"),
        ({"score": float("nan")}, "score is nan"),
        ({"bbox": [1, 2, 3, None]}, "not four numbers"),
    ],
)
def test_a_prediction_that_says_nothing_is_named_with_its_row(tmp_path, change, words):
    book, said = coco_pair(6)
    with pytest.raises(DataError, match=f"predictions: row 7 .*{words}"):
        ours(tmp_path, book, [{**d, **change} if i == 7 else d for i, d in enumerate(said)])


@pytest.mark.parametrize("key", ["confidence", "conf", "probability"])
def test_a_score_under_another_name_is_not_taken_for_certainty(tmp_path, key):
    book, said = coco_pair(7)
    other = [{**{k: v for k, v in d.items() if k != "score"}, key: d["score"]} for d in said]
    with pytest.raises(DataError, match=f"row 0 .*'score' is missing .'{key}' must be called 'score'"):
        ours(tmp_path, book, other)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda b: {"images": [*b["images"], b["images"][0]]}, "duplicate image ids: 1 in rows 0 and 12"),
        (lambda b: {"categories": [*b["categories"], {"id": 2, "name": "x"}]}, "duplicate category ids"),
        (lambda b: {"categories": [{"id": 2}]}, "categories: row 0 has the name None"),
        (lambda b: {"images": [{"file_name": "a.jpg"}]}, "images: row 0 has the id None"),
        (lambda b: {"images": {}}, "no list of images"),
        (lambda b: {"annotations": {"a": 1}}, "'annotations' must be a list"),
        (lambda b: {"annotations": [7]}, "row 0 is not"),
        (lambda b: {"images": [{**im, "width": "wide"} for im in b["images"]]}, "the size of image 1"),
        (lambda b: changed(b, lambda i, a: {"id": 5}), "rows 0 and 1 have the same id 5"),
    ],
)
def test_a_truth_that_contradicts_itself_is_refused(tmp_path, change, words):
    book, said = coco_pair(8)
    with pytest.raises(DataError, match=words):
        ours(tmp_path, {**book, **change(book)}, said)


def test_image_ids_as_text_on_one_side_only_are_not_lost_without_a_word(tmp_path):
    book, said = coco_pair(9)
    text = [{**d, "image_id": str(d["image_id"])} for d in said]
    with pytest.raises(
        DataError, match="not in the ground truth.*row 0.*pycocotools takes them for different"
    ):
        ours(tmp_path, book, text)
    with pytest.raises(DataError, match="truth: .*not in the ground truth"):
        ours(tmp_path, changed(book, lambda i, a: {"image_id": str(a["image_id"])}), said)


@pytest.mark.parametrize("content", ["{}", "[]", "null", "[1]", '{"annotations": []}', '"a"'])
def test_files_that_hold_something_else(tmp_path, content):
    book, said = coco_pair(1)
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(DataError):
        read_coco(tmp_path / "other.json")
    (tmp_path / "truth.json").write_text(json.dumps(book))
    if content != "[]":
        with pytest.raises(DataError):
            read_coco(tmp_path / "truth.json", tmp_path / "other.json")


# columns

TABLE = {"north/a.jpg": ("on", "1,5"), "south/a.jpg": ("off", "2"), "b.jpg": ("on", "3")}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_table_from_any_spreadsheet_says_the_same(tmp_path, separator, encoding, end):
    quoted = lambda v: f'"{v}"' if separator in v else v
    lines = [["file", "lämp", "lux"], *([k, *v] for k, v in TABLE.items())]
    text = end.join(separator.join(map(quoted, line)) for line in lines) + end
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    assert read_columns(tmp_path / "t.csv") == {
        "lämp": {k: v[0] for k, v in TABLE.items()},
        "lux": {k: v[1] for k, v in TABLE.items()},
    }


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "empty"),
        ("file\na.jpg\n", "a single column"),
        ("file,lamp\na.jpg\n", "line 2 has 1 values, the header has 2"),
        ("file,lamp,lamp\na.jpg,1,2\n", "different names"),
        ("file,\na.jpg,2\n", "different names"),
        ("a.jpg,north\nb.jpg,south\n", "the header is missing"),
        ("file,lamp\na.jpg,on\nb.jpg,on\na.jpg,off\n", "lines 2 and 4 say different things about a.jpg"),
    ],
)
def test_a_table_that_says_nothing_or_two_things_is_refused(tmp_path, text, words):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_columns(tmp_path / "t.csv")


def test_a_table_in_latin_1_is_a_data_error(tmp_path):
    (tmp_path / "t.csv").write_bytes("file,lamp\na.jpg,für\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_columns(tmp_path / "t.csv")


def test_rows_go_to_the_picture_whose_path_ends_as_they_do():
    paths = [Path("/set/images") / name for name in ("north/a.jpg", "south/a.jpg", "b.jpg", "c.jpg")]
    made, notes = match_columns({"lamp": {k: v[0] for k, v in TABLE.items()} | {"west/a.jpg": "on"}}, paths)
    assert made["lamp"].tolist() == ["on", "off", "on", ""]
    assert notes == (
        "column 'lamp': 1 of 4 rows match no picture, e.g. west/a.jpg",
        "column 'lamp' says nothing about 1 of 4 pictures",
    )


@pytest.mark.parametrize(
    "key",
    [
        "/old/disk/set/north/a.jpg",
        "C:\\set\\north\\a.jpg",
        "north\\a.jpg",
        "./north/a.jpg",
        "../set/north/a.jpg",
    ],
)
def test_paths_of_another_machine_are_known_by_their_end(key):
    made, lost = match_column({key: 1}, [Path("/set/north/a.jpg"), Path("/set/south/a.jpg")])
    assert made.tolist() == [1, ""] and lost == ()


def test_a_row_that_could_mean_two_pictures_is_an_error():
    paths = [Path("/set/north/a.jpg"), Path("/set/south/a.jpg")]
    with pytest.raises(DataError, match="'a.jpg' could mean /set/north/a.jpg and /set/south/a.jpg"):
        match_columns({"lamp": {"a.jpg": "on"}}, paths)
    with pytest.raises(DataError, match="one picture with two values"):
        match_columns({"lamp": {"north/a.jpg": "on", "./north/a.jpg": "off"}}, paths)


def test_a_row_of_another_folder_is_nobodys():
    with pytest.raises(DataError, match="none of the 1 rows names a picture here, e.g. west/a.jpg"):
        match_columns({"lamp": {"west/a.jpg": "on"}}, [Path("/set/north/a.jpg")])


def test_forms_of_unicode_are_one_name():
    made, _ = match_column({"Cafe\u0301.jpg": 1}, [Path("/set/Caf\u00e9.jpg")])
    assert made.tolist() == [1]


@given(st.lists(st.sampled_from(["a", "b", "c/a", "c/b", "d/a", "d/c/a", "c"]), unique=True, max_size=7))
def test_exact_paths_are_looked_up_as_in_a_dictionary(names):
    values = {f"/x/{n}.jpg": n for n in names}
    made, lost = match_column(values, [Path(k) for k in values])
    assert (made.tolist(), lost) == (names, ())


def test_coco_names_with_folders_give_columns(tmp_path):
    import cv2

    from cv_pipeline.core.formats import read_dataset
    from cv_pipeline.core.types import Detections
    from cv_pipeline.evaluation.records import coco_columns, look_at

    book = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    for k, name in enumerate(("north/a.png", "south/a.png", "south/b.png"), 1):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / name), np.full((48, 64, 3), 40 * k, np.uint8))
        image = {"id": k, "file_name": name, "width": 64, "height": 48, "camera": name[:5], "sequence": ""}
        book["images"].append(image)
        row = {"id": k, "image_id": k, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
        book["annotations"].append(row)
    (tmp_path / "truth.json").write_text(json.dumps(book))
    items, told = read_dataset(tmp_path / "truth.json"), coco_columns(tmp_path / "truth.json")
    s, _ = look_at(items, ("x",), lambda image: Detections.empty(), told)
    assert s.columns["camera"].tolist() == ["north", "south", "south"]
