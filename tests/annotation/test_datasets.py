"""Datasets: three forms say the same, every planted fault is named with its row, splits leak nothing, a
frozen set notices every change."""

import json
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.annotation import datasets as D
from cv_pipeline.core.findings import problem_counts
from cv_pipeline.core.formats import LabelledImage, read_dataset
from cv_pipeline.core.likeness import near_pairs, perceptual_hash
from cv_pipeline.core.types import ConfigError, DataError, SourceError


def scene(seed: int, size=(96, 64)) -> np.ndarray:
    "A random smooth picture: different seeds look different."
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 9, 3), np.uint8), size, interpolation=cv2.INTER_CUBIC)


def yolo_folder(
    root: Path,
    n: int = 4,
    first: int = 0,
    text: str = "0 .5 .5 .25 .25\n1 .25 .25 .2 .2\n",
    names=("gear", "bolt"),
) -> Path:
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    for k in range(first, first + n):
        cv2.imwrite(str(root / "images" / f"p{k}.png"), scene(k))
        (root / "labels" / f"p{k}.txt").write_text(text)
    (root / "data.yaml").write_text(json.dumps({"names": list(names)}))
    return root


def coco_file(root: Path, annotations: list[dict], n: int = 2, **changes) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        cv2.imwrite(str(root / f"p{k}.png"), scene(k))
    book = {
        "images": [{"id": k, "file_name": f"p{k}.png", "width": 96, "height": 64} for k in range(n)],
        "categories": [{"id": 3, "name": "gear"}, {"id": 9, "name": "bolt"}],
        "annotations": annotations,
    } | changes
    (root / "labels.json").write_text(json.dumps(book))
    return root / "labels.json"


def kinds(problems, severity="error") -> set[str]:
    return {p.kind for p in problems if p.severity == severity}


# ---- forms

VOC = "<annotation><filename>{f}</filename>{o}</annotation>"
THING = (
    "<object><name>{n}</name><difficult>0</difficult><bndbox><xmin>{b[0]}</xmin><ymin>{b[1]}</ymin>"
    "<xmax>{b[2]}</xmax><ymax>{b[3]}</ymax></bndbox></object>"
)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 1), st.integers(0, 40), st.integers(0, 30), st.integers(1, 50), st.integers(1, 30)
        ),
        max_size=6,
    )
)
def test_three_forms_of_random_labels_say_the_same(tmp_path_factory, boxes):
    root = tmp_path_factory.mktemp("forms")
    cv2.imwrite(str(root / "p0.png"), scene(0))
    rows = [((c, x, y, min(x + w, 96), min(y + h, 64))) for c, x, y, w, h in boxes]
    (root / "labels_txt" / "data").mkdir(parents=True)
    (root / "labels_txt" / "data" / "p0.txt").write_text(
        "".join(
            f"{c} {(x1 + x2) / 192:.9f} {(y1 + y2) / 128:.9f} {(x2 - x1) / 96:.9f} {(y2 - y1) / 64:.9f}\n"
            for c, x1, y1, x2, y2 in rows
        )
    )
    (root / "labels_txt" / "obj.names").write_text(
        "gear\nbolt"
    )  # no new line at the end: the last name counts too
    (root / "voc").mkdir()
    (root / "voc" / "classes.txt").write_text("bolt\ngear\n")
    (root / "voc" / "p0.xml").write_text(
        VOC.format(f="p0.png", o="".join(THING.format(n=("gear", "bolt")[c], b=b) for c, *b in rows))
    )
    annotations = [
        {"id": k, "image_id": 0, "category_id": (3, 9)[c], "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for k, (c, x1, y1, x2, y2) in enumerate(rows)
    ]
    coco = read_dataset(coco_file(root, annotations, n=1))
    yolo, voc = read_dataset(root / "labels_txt", images=root), read_dataset(root / "voc")
    assert yolo[0].names == ("gear", "bolt") and voc[0].names == ("bolt", "gear")
    assert (
        D.compare_labels(yolo, coco, 0.01)
        == D.compare_labels(coco, voc, 0.01)
        == D.compare_labels(voc, yolo, 0.01)
        == []
    )
    if rows:  # and a difference is seen in each direction
        fewer = [LabelledImage(i.path, i.names, i.label, i.annotations[1:], i.category_ids) for i in coco]
        assert "other number of boxes" in kinds(
            D.compare_labels(fewer, yolo)
        ) and "other number of boxes" in kinds(D.compare_labels(yolo, fewer))


def test_voc_split_lists_and_bad_files(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "JPEGImages").mkdir()
    for k in range(3):
        cv2.imwrite(str(tmp_path / "JPEGImages" / f"p{k}.png"), scene(k))
        (tmp_path / "Annotations" / f"p{k}.xml").write_text(
            VOC.format(f=f"p{k}.png", o=THING.format(n="nut", b=(1, 2, 30, 40)))
        )
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("p1\n")
    assert len(read_dataset(tmp_path)) == 3
    only = read_dataset(tmp_path, "val")
    assert [i.path.name for i in only] == ["p1.png"] and only[0].path.exists()
    (tmp_path / "classes.txt").write_text("bolt\n")
    with pytest.raises(DataError, match="not in the list of names: nut"):
        read_dataset(tmp_path)
    (tmp_path / "Annotations" / "p2.xml").write_text("<annotation>")
    with pytest.raises(DataError, match="not a readable xml"):
        read_dataset(tmp_path)
    assert kinds(D.check_dataset(tmp_path)) == {"dataset-unreadable"}


def test_pictures_beside_labels_in_another_form_are_not_backgrounds(tmp_path):
    coco_file(tmp_path, [])
    with pytest.raises(DataError, match="none of the 2 images has a YOLO label file.*pass .*labels.json"):
        read_dataset(tmp_path)
    (tmp_path / "p0.txt").write_text("")  # one label file: the other picture is a background
    assert len(read_dataset(tmp_path)) == 2


def test_pictures_of_a_coco_split_are_found_where_coco_puts_them(tmp_path):
    for place in ("images/val", "val2017"):
        (tmp_path / place).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / place / "p0.png"), scene(0))
    (tmp_path / "annotations").mkdir()
    for stem, place in (
        ("instances_val", "images/val"),
        ("instances_val2017", "val2017"),
        ("instances_train", "annotations"),
    ):
        file = tmp_path / "annotations" / f"{stem}.json"
        file.write_text(
            json.dumps(
                {
                    "images": [{"id": 0, "file_name": "p0.png"}],
                    "categories": [{"id": 1, "name": "a"}],
                    "annotations": [],
                }
            )
        )
        assert read_dataset(file)[0].path == tmp_path / place / "p0.png"


# ---- the check


@pytest.mark.parametrize(
    "line, kind",
    [
        ("2 .5 .5 .1 .1", "class-out-of-range"),
        ("-1 .5 .5 .1 .1", "class-out-of-range"),
        ("0.5 .5 .5 .1 .1", "class-out-of-range"),
        ("nan .5 .5 .1 .1", "not-finite"),
        ("0 nan .5 .1 .1", "not-finite"),
        ("0 .5 .5 -.1 .1", "inverted-box"),
        ("0 .5 .5 0 .1", "box-without-area"),
        ("0 1.2 .5 .1 .1", "box-outside"),
        ("0 48 32 9 9", "mixed-coordinates"),
        ("0 .5 .5 .1", "malformed-row"),
        ("0 a .5 .1 .1", "malformed-row"),
        ("0 .1 .1 .2 .1 .2 .2 .3", "malformed-row"),
    ],
)
def test_every_bad_yolo_row_is_named_with_its_line(tmp_path, line, kind):
    root = yolo_folder(tmp_path / "set")
    assert kinds(D.check_dataset(root)) == set()
    (root / "labels" / "p2.txt").write_text(f"0 .5 .5 .25 .25\n\n{line}\n")
    found = [p for p in D.check_dataset(root) if p.severity == "error"]
    assert [(p.kind, p.where) for p in found] == [(kind, f"{root / 'labels' / 'p2.txt'}:3")]


@pytest.mark.parametrize(
    "row, kind",
    [
        ({"bbox": [1, 2, 3]}, "malformed-row"),
        ({"bbox": None}, "malformed-row"),
        ({"bbox": [0.1, 0.1, 0.2, 0.2]}, "fractions-for-pixels"),
        ({"bbox": [5, 5, -3, 8]}, "inverted-box"),
        ({"bbox": [5, 5, float("nan"), 8]}, "not-finite"),
        ({"bbox": [500, 5, 9, 8]}, "box-outside"),
        ({"category_id": 4}, "category-unknown"),
        ({"image_id": 77}, "image-unknown"),
        ({"id": 1}, "annotation-id-twice"),
    ],
)
def test_every_bad_coco_row_is_named(tmp_path, row, kind):
    good = [
        {"id": k, "image_id": k % 2, "category_id": (3, 9)[k % 2], "bbox": [10, 10, 20, 20 + k]}
        for k in range(2)
    ]
    assert kinds(D.check_dataset(coco_file(tmp_path, good))) == set()
    bad = {"id": 17, "image_id": 0, "category_id": 3, "bbox": [30, 30, 9, 9]} | row
    found = [p for p in D.check_dataset(coco_file(tmp_path, [*good, bad])) if p.severity == "error"]
    assert [p.kind for p in found] == [kind] and str(bad["id"]) in found[0].where


def test_pictures_that_are_not_what_the_json_says(tmp_path):
    images = [
        {"id": 0, "file_name": "p0.png", "width": 64, "height": 96},
        {"id": 0, "file_name": "p1.png"},
        {"id": 2, "file_name": "gone.png"},
        {"id": 3, "file_name": "p1.png"},
    ]
    found = D.check_dataset(coco_file(tmp_path, [], images=images))
    assert kinds(found) == {"size-mismatch", "image-id-twice", "picture-missing", "picture-listed-twice"}


def test_doubles_strays_and_broken_pictures(tmp_path):
    root = yolo_folder(tmp_path / "set", 5)
    shutil.copy(root / "images/p0.png", root / "images/same.png")
    shutil.copy(root / "labels/p0.txt", root / "labels/same.txt")
    shutil.copy(root / "images/p1.png", root / "images/unlike.png")
    (root / "labels/unlike.txt").write_text("0 .5 .5 .1 .1\n")
    cv2.imwrite(str(root / "images/near.jpg"), scene(2), [cv2.IMWRITE_JPEG_QUALITY, 60])
    (root / "images/p3.png").write_bytes(b"")
    (root / "labels/stray.txt").write_text("")
    found = D.check_dataset(root)
    assert kinds(found) == {"picture-twice-other-labels", "picture-unreadable"}
    assert kinds(found, "warning") == {"picture-twice", "label-without-picture"}
    near = [p for p in found if p.kind == "picture-near"]
    assert (
        len(near) == 1
        and "p2.png" in near[0].where + near[0].what
        and "near.jpg" in near[0].where + near[0].what
    )
    assert [Path(p.where).name for p in found if p.kind == "picture-without-labels"] == ["near.jpg"]
    assert found == D.worst_first(reversed(found)) and sum(r["count"] for r in problem_counts(found)) == len(
        found
    )


def test_traps_in_the_names(tmp_path):
    root = yolo_folder(tmp_path / "set", names=("gear", "bolt", "nut"))
    assert kinds(D.check_dataset(root), "note") == {"class-unused"}
    (root / "classes.txt").write_text("bolt\ngear\nnut")
    trap = [p for p in D.check_dataset(root) if p.kind == "names-other-order"]
    assert (
        len(trap) == 1
        and trap[0].where.endswith("classes.txt")
        and "class 0 is 'bolt' there and 'gear' here" in trap[0].what
    )
    (root / "classes.txt").unlink()
    (root / "data.yaml").write_text('{"names": ["gear", "Gear "]}')
    assert "names-twice" in kinds(D.check_dataset(root))
    (root / "data.yaml").write_text('{"names": ["gear", "bolt"]}')
    for f in (root / "labels").iterdir():
        f.write_text("1 .5 .5 .1 .1\n2 .2 .2 .1 .1\n")
    assert "ids-from-1" in kinds(D.check_dataset(root))
    (root / "data.yaml").unlink()
    assert "names-missing" in kinds(D.check_dataset(root), "warning")


# ---- hashes and groups


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=30),
    st.lists(st.integers(0, 2**64 - 1), max_size=30),
    st.integers(0, 40),
)
def test_near_pairs_equal_counting_bits(a, b, limit):
    found = {(int(i), int(j)): int(d) for i, j, d in zip(*near_pairs(a, b, limit))}
    assert found == {
        (i, j): (x ^ y).bit_count()
        for i, x in enumerate(a)
        for j, y in enumerate(b)
        if (x ^ y).bit_count() <= limit
    }
    within = {(int(i), int(j)) for i, j, _ in zip(*near_pairs(a, hamming=limit))}
    assert within == {(i, j) for j in range(len(a)) for i in range(j) if (a[i] ^ a[j]).bit_count() <= limit}


def test_a_picture_seen_again_is_near_and_another_is_not():
    prints = [perceptual_hash(scene(k, (320, 240))) for k in range(40)]
    assert min((prints[i] ^ prints[j]).bit_count() for i in range(40) for j in range(i)) > 10
    for k in range(10):
        image = scene(k, (320, 240))
        noisy = np.clip(image + np.random.default_rng(k).normal(0, 8, image.shape), 0, 255).astype(np.uint8)
        for again in (
            noisy,
            cv2.resize(image, (200, 150)),
            cv2.convertScaleAbs(image, alpha=0.8, beta=10),
            cv2.GaussianBlur(image, (0, 0), 2),
        ):
            assert (perceptual_hash(again) ^ prints[k]).bit_count() <= 10


def merged(n: int, links) -> list[int]:
    "Union-find written out, numbered by appearance."
    parent = list(range(n))

    def root(i):
        while parent[i] != i:
            i = parent[i]
        return i

    for i, j in links:
        parent[root(i)] = root(j)
    seen: dict[int, int] = {}
    return [seen.setdefault(root(i), len(seen)) for i in range(n)]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 25))
def test_groups_equal_union_find_over_all_three_kinds_of_links(seed, n):
    rng = np.random.default_rng(seed)
    hashes = [int(rng.integers(0, 2**12)) for _ in range(n)]
    sequences = [None if rng.random() < 0.5 else int(rng.integers(0, n)) for _ in range(n)]
    vectors = rng.normal(size=(n, 2)).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    links = [
        (i, j)
        for i in range(n)
        for j in range(i)
        if (hashes[i] ^ hashes[j]).bit_count() <= 1
        or (sequences[i] is not None and sequences[i] == sequences[j])
        or unit[i] @ unit[j] >= 1 - 1e-4
    ]
    assert D.leak_groups(hashes, sequences, vectors, hamming=1, distance=1e-4).tolist() == merged(n, links)


def test_groups_from_nothing_or_from_other_lengths_are_refused():
    with pytest.raises(ConfigError, match="no columns to group by"):
        D.leak_groups()
    with pytest.raises(DataError, match="columns of different lengths"):
        D.leak_groups([1, 2], ["a"])
    with pytest.raises(DataError, match="NaN"):
        D.leak_groups(embeddings=np.array([[np.nan, 1.0]]))
    assert D.leak_groups(sequences=[float("nan"), float("nan"), ""]).tolist() == [0, 1, 2]


# ---- splits


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(3, 40),
    st.sampled_from(
        [{"train": 0.7, "val": 0.15, "test": 0.15}, {"a": 0.5, "b": 0.5}, {"train": 0.9, "test": 0.1}]
    ),
)
def test_no_group_is_torn_and_no_side_is_empty(seed, n_groups, shares):
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.concatenate([np.arange(n_groups), rng.integers(0, n_groups, n_groups * 3)]))
    counts = rng.poisson(0.7, (len(groups), 3))
    side = D.group_split(groups, counts, shares, seed)
    assert set(side) == set(shares)
    assert all(len(set(side[groups == g])) == 1 for g in range(n_groups))
    assert (side == D.group_split(groups, counts, shares, seed)).all()


def test_a_stratified_split_is_nearer_to_its_shares_than_drawn_ones():
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(80), rng.integers(1, 30, 80))
    counts = rng.poisson(np.repeat(rng.gamma(0.4, 2.0, (80, 4)), np.bincount(groups), axis=0))
    shares = {"train": 0.7, "val": 0.15, "test": 0.15}
    off = lambda side: max(abs(counts[side == k].sum(0) / counts.sum(0) - v).max() for k, v in shares.items())
    ours = off(D.group_split(groups, counts, shares))
    drawn = [
        off(
            np.array(list(shares), object)[np.random.default_rng(s).choice(3, 80, p=list(shares.values()))][
                groups
            ]
        )
        for s in range(50)
    ]
    assert ours < 0.03 and ours < min(drawn)


@pytest.mark.parametrize("shares", [{"a": 1.0}, {"a": 0.5, "b": 0.6}, {"a": 1.2, "b": -0.2}])
def test_shares_that_make_no_sense(shares):
    with pytest.raises(ConfigError, match="add up to 1"):
        D.group_split(np.arange(5), np.ones((5, 1)), shares)


def test_split_of_a_folder_keeps_copies_together_and_is_saved(tmp_path):
    root = yolo_folder(tmp_path / "set", 12)
    for k in range(4):
        cv2.imwrite(str(root / "images" / f"again{k}.jpg"), cv2.resize(scene(k), (60, 40)))
    split = D.split_dataset(
        read_dataset(root), {"train": 0.5, "test": 0.5}, sequences={"p8.png": "s", "p9.png": "s"}, seed=1
    )
    side = {i.path.name: s for i, s in zip(split.items, split.side)}
    assert (
        all(side[f"p{k}.png"] == side[f"again{k}.jpg"] for k in range(4)) and side["p8.png"] == side["p9.png"]
    )
    assert abs(len(split.of("train")) - 8) <= 1 and sum(r["pictures"] for r in split.rows()) == 16
    text = split.save(tmp_path / "split.csv").read_text().splitlines()
    assert text[0] == "picture,side,group" and len(text) == 17
    assert not D.find_leaks(split.of("train"), split.of("test"))
    with pytest.raises(ConfigError, match="matches none of the 16 paths"):
        D.split_dataset(read_dataset(root), sequences="camera(\\d+)")
    (root / "images" / "p1.png").write_bytes(b"no picture")
    with pytest.raises(SourceError, match="p1.png"):
        D.split_dataset(read_dataset(root))


# ---- the frozen set


def test_every_single_change_is_noticed_and_named(tmp_path):
    root, manifest = yolo_folder(tmp_path / "set"), tmp_path / "test_set.json"
    D.freeze(root, manifest)
    backup = shutil.copytree(root, tmp_path / "backup")
    flip = (root / "images/p1.png").read_bytes()

    def undo():
        shutil.rmtree(root)
        shutil.copytree(backup, root)
        assert len(D.verify_frozen(manifest)) == 4

    def broken(**wanted):
        with pytest.raises(D.FrozenSetError) as e:
            D.verify_frozen(manifest)
        got = {k: getattr(e.value, k) for k in ("changed", "missing", "added")}
        assert got == {"changed": [], "missing": [], "added": []} | wanted
        assert all(name in str(e.value) for names in got.values() for name in names)
        undo()

    (root / "images/p1.png").write_bytes(flip[:-20] + bytes([flip[-20] ^ 1]) + flip[-19:])
    broken(changed=["images/p1.png (picture)"])
    (root / "labels/p2.txt").write_text("0 .5 .5 .25 .25\n1 .25 .25 .2 .2001\n")
    broken(changed=["images/p2.png (labels)"])
    (root / "labels/p2.txt").unlink()
    broken(changed=["images/p2.png (labels)"])
    (root / "images/p3.png").unlink()
    broken(missing=["images/p3.png"])
    cv2.imwrite(str(root / "images/p9.png"), scene(9))
    broken(added=["images/p9.png"])
    (root / "images/p0.png").rename(root / "images/q0.png")
    broken(missing=["images/p0.png"], added=["images/q0.png"])
    (root / "data.yaml").write_text('{"names": ["bolt", "gear"]}')
    broken(changed=["class names (were gear, bolt; are bolt, gear)"])
    for f in (root / "labels").iterdir():
        f.write_bytes(f.read_bytes().replace(b"\n", b"\r\n"))
    assert len(D.verify_frozen(manifest)) == 4  # line ends are not labels


def test_manifests_travel_and_cannot_be_edited(tmp_path):
    root, manifest = yolo_folder(tmp_path / "a" / "set"), tmp_path / "a" / "test_set.json"
    frozen = D.freeze(root, manifest)
    assert D.read_frozen(manifest) == frozen and "/" not in frozen.dataset
    (tmp_path / "a").rename(tmp_path / "b")  # the folder moves with its manifest
    assert len(D.verify_frozen(tmp_path / "b" / "test_set.json")) == 4
    (tmp_path / "b" / "set").rename(tmp_path / "elsewhere")
    assert len(D.verify_frozen(tmp_path / "b" / "test_set.json", tmp_path / "elsewhere")) == 4
    with pytest.raises(DataError, match="dataset not found"):
        D.verify_frozen(tmp_path / "b" / "test_set.json")
    manifest = tmp_path / "b" / "test_set.json"
    book = json.loads(manifest.read_text())
    book["pictures"].pop("images/p1.png")
    manifest.write_text(json.dumps(book))
    with pytest.raises(D.FrozenSetError, match="edited"):
        D.read_frozen(manifest)
    for text in (
        "{}",
        "[]",
        "no json",
        json.dumps(book | {"pictures": {"a": {}}}),
        json.dumps(book | {"pictures": [1]}),
    ):
        manifest.write_text(text)
        with pytest.raises(DataError, match="not a manifest"):
            D.read_frozen(manifest)
    with pytest.raises(ConfigError, match="frozen set already"):
        D.freeze(tmp_path / "elsewhere", manifest)
    assert len(D.freeze(tmp_path / "elsewhere", manifest, replace=True).pictures) == 4


def test_coco_manifests_do_not_mind_the_order_of_the_json(tmp_path):
    rows = [{"id": k, "image_id": k % 2, "category_id": 3, "bbox": [10, 10, 20, 20 + k]} for k in range(3)]
    file = coco_file(tmp_path, rows)
    D.freeze(file, tmp_path / "m.json")
    again = [dict(reversed(a.items())) | {"id": a["id"] + 50} for a in rows[::-1]]
    coco_file(tmp_path, again)
    assert len(D.verify_frozen(tmp_path / "m.json")) == 2
    rows[1]["bbox"][3] += 1
    coco_file(tmp_path, rows)
    with pytest.raises(D.FrozenSetError, match=r"p1.png \(labels\)"):
        D.verify_frozen(tmp_path / "m.json")


def test_a_set_with_errors_is_not_frozen(tmp_path):
    root = yolo_folder(tmp_path / "set")
    (root / "labels/p1.txt").write_text("5 .5 .5 .1 .1\n")
    with pytest.raises(DataError, match="p1.txt:1: class-out-of-range"):
        D.freeze(root, tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


def test_leaks_are_named_and_can_be_allowed(tmp_path):
    test, train = yolo_folder(tmp_path / "test"), yolo_folder(tmp_path / "train", 6, first=10)
    frozen = D.freeze(test, tmp_path / "m.json")
    assert len(D.check_test_set(tmp_path / "m.json", read_dataset(train))) == 4
    shutil.copy(test / "images/p1.png", train / "images/x.png")
    cv2.imwrite(str(train / "images/y.jpg"), cv2.resize(scene(2), (50, 30)))
    with pytest.raises(D.LeakError) as e:
        D.check_test_set(tmp_path / "m.json", read_dataset(train))
    assert [(Path(k.train).name, Path(k.test).name, k.exact) for k in e.value.leaks] == [
        ("x.png", "p1.png", True),
        ("y.jpg", "p2.png", False),
    ]
    assert "x.png" in str(e.value) and "the same file" in str(e.value) and "p2.png" in str(e.value)
    assert D.find_leaks(read_dataset(train), read_dataset(test))[0].exact
    D.check_leak(read_dataset(train), frozen, allow=[("x.png", "p1.png"), ("y.jpg", "p2.png")])
    with pytest.raises(D.LeakError, match="1 image"):
        D.check_leak(read_dataset(train), frozen, allow=[("x.png", "p1.png")])


# ---- real data


@pytest.mark.real
@pytest.mark.slow
def test_three_forms_of_voc100_say_the_same_273_boxes(real_data):
    folder = real_data / "voc100"
    coco, voc, yolo = (
        read_dataset(folder / p)
        for p in ("coco_format_v1/instances_default.json", "pascalvoc_format", "yolo_format")
    )
    assert [sum(len(i.truth((500, 500))) for i in form) for form in (coco, voc, yolo)] == [273] * 3
    assert D.compare_labels(yolo, coco, 0.01) == D.compare_labels(voc, coco, 0.01) == []
    alphabetical = tuple((folder / "voc.names").read_text().split())
    assert voc[0].names == alphabetical
    trapped = [
        LabelledImage(i.path, alphabetical, i.label) for i in yolo
    ]  # what a reader with the wrong list would say
    wrong = Counter(p.kind for p in D.compare_labels(trapped, coco))
    by_luck = sum(coco[0].names[c] == alphabetical[c] for i in yolo for c in i.truth((500, 500)).class_id)
    assert wrong == {"other class": 273 - by_luck} and by_luck < 30
    traps = [p for p in D.check_dataset(folder / "yolo_format") if p.kind == "names-other-order"]
    assert [Path(p.where).name for p in traps] == ["voc.names"]


@pytest.mark.slow
@pytest.mark.real
def test_real_sets_have_no_errors(real_data):
    for path, split in (
        ("bccd", "train"),
        ("coco8", None),
        ("voc100/coco_format_v1/instances_default.json", None),
        ("voc100/pascalvoc_format", None),
        ("bccd/annotations/instances_val.json", None),
        ("coco8/annotations/instances_train.json", None),
    ):
        assert kinds(D.check_dataset(real_data / path, split)) == set(), path


@pytest.mark.real
def test_bccd_leaks_one_field_of_view_into_its_validation_half(real_data):
    leaks = D.find_leaks(read_dataset(real_data / "bccd", "train"), read_dataset(real_data / "bccd", "val"))
    assert [(Path(k.train).stem, Path(k.test).stem, k.exact) for k in leaks] == [
        ("BloodImage_00038", "BloodImage_00037", False)
    ]


def test_nearly_equal_pictures_are_said_once_a_group(tmp_path):
    root = yolo_folder(tmp_path / "set", 3)
    for quality in (30, 50, 70, 90):
        cv2.imwrite(str(root / f"images/near{quality}.jpg"), scene(1), [cv2.IMWRITE_JPEG_QUALITY, quality])
    near = [p for p in D.check_dataset(root) if p.kind == "picture-near"]
    assert len(near) == 1 and near[0].what.startswith("4 like it")


@pytest.mark.parametrize("form", ["yolo", "coco"])
def test_a_split_is_written_in_a_form_that_reads_back(tmp_path, form):
    root = yolo_folder(tmp_path / "set", 12)
    source = (
        root
        if form == "yolo"
        else coco_file(
            tmp_path,
            [
                {"id": 1, "image_id": 0, "category_id": 3, "bbox": [4, 4, 20, 12], "iscrowd": 0},
                {"id": 2, "image_id": 1, "category_id": 3, "bbox": [4, 4, 20, 12], "iscrowd": 1},
            ],
        )
    )
    split = D.split_dataset(read_dataset(source), {"train": 0.6, "val": 0.4}, hamming=0)
    lost = D.write_split(split, tmp_path / "out")
    assert [p.kind for p in lost] == ([] if form == "yolo" else ["crowd left out"])
    back = {side: read_dataset(tmp_path / "out", side) for side in set(split.side.tolist())}
    assert {side: len(items) for side, items in back.items()} == {side: len(split.of(side)) for side in back}
    kept = split.counts.sum() - len(lost)
    assert D.class_counts(read_dataset(tmp_path / "out")).sum() == kept
    assert not any(p.severity == "error" for p in D.check_dataset(tmp_path / "out"))
    with pytest.raises(ConfigError, match="not empty"):
        D.write_split(split, tmp_path / "out")


def test_sequences_of_a_table_go_to_the_pictures_that_their_paths_name():
    items = [LabelledImage(Path("/set") / p, ()) for p in ("north/a.jpg", "south/a.jpg", "b.jpg")]
    table = {"north/a.jpg": "n", "south/a.jpg": "s", "b.jpg": ""}
    assert D.sequences_by(items, table) == ["n", "s", None]
    with pytest.raises(DataError, match="could mean"):
        D.sequences_by(items, {"a.jpg": "x"})
    with pytest.raises(ConfigError, match="none of the 1 names"):
        D.sequences_by(items, {"west/a.jpg": "x"})
