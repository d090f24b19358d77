"""Dataset versions: whatever is merged, the frozen set stays what it is and out of training; classes go by
name, one content has one answer, and a version is whole or not there."""

import errno
import json
import shutil
import subprocess
import sys
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cv_pipeline.annotation import versions as V
from cv_pipeline.annotation.annotations import Draft, write_drafts
from cv_pipeline.annotation.datasets import (
    FrozenSetError,
    LeakError,
    check_leak,
    compare_labels,
    find_leaks,
    freeze,
    read_frozen,
    verify_frozen,
)
from cv_pipeline.core.formats import read_dataset
from cv_pipeline.core.likeness import near_pairs
from cv_pipeline.core.types import ConfigError, DataError, Detections, SinkError

NAMES = ("gear", "bolt", "nut")
LABEL = "0 .5 .5 .25 .25\n2 .25 .25 .2 .2\n"
WHEN = lambda: datetime(2026, 6, 1, 8, tzinfo=timezone.utc)


@lru_cache(maxsize=64)
def content(seed: int, quality: int = 0) -> bytes:
    """A random smooth picture as a file: different seeds look different, one seed in another quality is a
    near-duplicate."""
    image = cv2.resize(
        np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8),
        (96, 64),
        interpolation=cv2.INTER_CUBIC,
    )
    return (
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        if quality
        else cv2.imencode(".png", image)[1].tobytes()
    )


def folder(
    root: Path, pictures: dict[str, tuple[int, int] | int], label: str | dict[str, str] = LABEL, names=NAMES
) -> Path:
    "A YOLO folder: `train/a` → seed, or (seed, quality)."
    for name, what in pictures.items():
        seed, quality = what if isinstance(what, tuple) else (what, 0)
        image, text = (
            root / "images" / f"{name}.{'jpg' if quality else 'png'}",
            root / "labels" / f"{name}.txt",
        )
        for file in (image, text):
            file.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(content(seed, quality))
        text.write_text(label if isinstance(label, str) else label.get(name, LABEL))
    (root / "data.yaml").write_text(yaml.safe_dump({"names": list(names)}))
    return root


def merge(parents, out, frozen=None, name=None, **settings):
    "By Ana, on one day; further arguments are fields of the settings."
    return V.merge(parents, out, frozen, V.MergeSettings(**settings), name=name, by="ana", now=WHEN)


@pytest.fixture
def first(tmp_path) -> Path:
    return folder(
        tmp_path / "first",
        {**{f"train/t{k}": k for k in range(4)}, "val/v0": 10, "val/v1": 11, "test/x0": 20, "test/x1": 21},
    )


@pytest.fixture
def frozen(first, tmp_path) -> Path:
    freeze(first, tmp_path / "test_set.json", "test")
    return tmp_path / "test_set.json"


# ---- the frozen set

TINY = st.tuples(st.integers(0, 9), st.sampled_from([0, 0, 40, 90]))  # which picture, saved how


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frozen_ids=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True),
    batches=st.lists(st.lists(TINY, min_size=1, max_size=5, unique=True), min_size=1, max_size=3),
    side=st.sampled_from(["train", "val", "test", ""]),
    val=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 3),
)
def test_random_merges_never_touch_the_frozen_set(tmp_path_factory, frozen_ids, batches, side, val, seed):
    root = tmp_path_factory.mktemp("merge")
    base = folder(
        root / "base", {**{f"test/f{k}": k for k in frozen_ids}, "train/a": 100, "train/b": 101, "val/c": 102}
    )
    book = freeze(base, root / "frozen.json", "test")
    newest = merge([base], root / "v0", root / "frozen.json", val=val)
    sides = {r["picture"]: r["side"] for r in newest.pictures.values()}
    for n, batch in enumerate(batches):
        here = folder(
            root / f"batch{n}", {f"{side + '/' if side else ''}p{i}": what for i, what in enumerate(batch)}
        )
        try:
            newest = merge([newest.path, here], root / f"v{n + 1}", val=val, seed=seed)
        except DataError as e:
            assert "no training images are left" in str(e)
            continue
        assert read_frozen(root / "frozen.json").digest == book.digest == newest.frozen["digest"]
        verify_frozen(root / "frozen.json")
        check_leak(newest.items(), book)  # an independent reader, on the files as they lie there
        assert {r["side"] for r in newest.pictures.values()} <= {"train", "val"}
        hashes = [r["picture"] for r in newest.pictures.values()]
        assert len(set(hashes)) == len(hashes) and set(sides) <= set(
            hashes
        )  # one content once; nothing old got lost
        for r in newest.pictures.values():
            assert sides.setdefault(r["picture"], r["side"]) == r["side"]  # old pictures keep their side
        i, j, _ = near_pairs([int(r["phash"], 16) for r in newest.pictures.values()])
        where = [r["side"] for r in newest.pictures.values()]
        assert all(where[a] == where[b] for a, b in zip(i, j)), "near-duplicates on both sides"
        mine = {r["from"] for r in newest.pictures.values() if r["parent"] == 1} | {
            r["picture"] for r in newest.left_out if r["parent"] == 1
        }
        assert len(mine) + sum(p.kind.startswith("picture twice") for p in newest.notes) >= len(
            batch
        )  # whatever was offered is in, left out, or there already
        if side == "test":
            assert not any(
                r["parent"] == 1 for r in newest.pictures.values()
            )  # a batch cannot make the test set grow
        V.verify_version(newest.path)


def test_what_is_like_the_test_set_is_left_out_with_its_reason_or_refused(first, frozen, tmp_path):
    batch = folder(tmp_path / "batch", {"train/same": 20, "train/again": (21, 50), "train/fresh": 30})
    v = merge([first, batch], tmp_path / "v", frozen)
    reasons = {Path(r["picture"]).name: r["reason"] for r in v.left_out}
    assert (
        set(reasons) == {"x0.png", "x1.png", "same.png", "again.jpg"}
        and "is images/test/x0.png" in reasons["same.png"]
        and "is similar to images/test/x1.png" in reasons["again.jpg"]
        and "test split" in reasons["x0.png"]
    )
    with pytest.raises(LeakError, match="same.png") as e:
        merge([first, batch], tmp_path / "w", frozen, leaks="refuse")
    assert {leak.exact for leak in e.value.leaks} == {True, False} and not (tmp_path / "w").exists()
    allowed = merge([first, batch], tmp_path / "u", frozen, allow=[("again.jpg", "x1.png")])
    assert any("again" in k for k in allowed.pictures) and not any("same" in k for k in allowed.pictures)


def test_a_test_side_protects_itself_without_a_manifest(first, tmp_path):
    v = merge([first, folder(tmp_path / "batch", {"train/same": (20, 60)})], tmp_path / "v")
    assert (
        not find_leaks(v.items(), read_dataset(first, "test")) and v.frozen is None and len(v.left_out) == 3
    )


def test_the_next_merge_cannot_forget_the_frozen_set(first, frozen, tmp_path):
    merge([first], tmp_path / "v1", frozen)
    batch = folder(tmp_path / "batch", {"train/same": 20, "train/fresh": 30})
    assert any(
        "is images/test/x0" in r["reason"] for r in merge([tmp_path / "v1", batch], tmp_path / "v2").left_out
    )
    (tmp_path / "elsewhere").mkdir()
    shutil.move(frozen, tmp_path / "elsewhere" / "test_set.json")
    with pytest.raises(DataError, match="test set of a parent is missing"):
        merge([tmp_path / "v1", batch], tmp_path / "v3")
    moved = merge([tmp_path / "v1", batch], tmp_path / "v3", tmp_path / "elsewhere" / "test_set.json")
    assert any(p.kind == "test set not verified" for p in moved.notes) and any(
        "is images/test/x0" in r["reason"] for r in moved.left_out
    )
    freeze(folder(tmp_path / "other", {"a": 50}), tmp_path / "other.json")
    assert any(
        p.kind == "another test set"
        for p in merge([tmp_path / "v1", batch], tmp_path / "v4", tmp_path / "other.json").notes
    )


def test_a_changed_frozen_set_stops_the_merge(first, frozen, tmp_path):
    (first / "labels" / "test" / "x0.txt").write_text("0 .5 .5 .1 .1\n")
    with pytest.raises(FrozenSetError, match="x0.png"):
        merge([first], tmp_path / "v", frozen)
    assert not (tmp_path / "v").exists()


def test_sequences_stay_on_one_side_and_out_of_the_test_set(tmp_path):
    base = folder(
        tmp_path / "base", {"train/clip1_a": 0, "train/clip2_a": 1, "val/clip3_a": 2, "test/clip9_a": 3}
    )
    freeze(base, tmp_path / "f.json", "test")
    batch = folder(
        tmp_path / "batch",
        {
            "clip3_b": 40,
            "clip1_b": 41,
            "clip9_b": 42,
            **{f"clip{c}_{k}": 50 + 10 * c + k for c in (4, 5, 6) for k in range(3)},
        },
    )
    v = merge([base, batch], tmp_path / "v", tmp_path / "f.json", sequences=r"(clip\d+)", val=0.4)
    side = {Path(k).stem: r["side"] for k, r in v.pictures.items()}
    assert (
        side["clip3_b"] == "val"
        and side["clip1_b"] == "train"
        and "clip9_b" not in side
        and "sequence clip9" in next(r["reason"] for r in v.left_out if "clip9_b" in r["picture"])
    )
    assert all(len({side[f"clip{c}_{k}"] for k in range(3)}) == 1 for c in (4, 5, 6)) and {
        side[f"clip{c}_0"] for c in (4, 5, 6)
    } == {"train", "val"}
    later = merge(
        [v.path, folder(tmp_path / "more", {"clip4_z": 200})], tmp_path / "w", sequences=r"(clip\d+)"
    )  # the version remembers its sequences
    assert {Path(k).stem: r["side"] for k, r in later.pictures.items()}["clip4_z"] == side["clip4_0"]


# ---- classes and labels


def test_classes_go_by_name_whatever_their_order(first, tmp_path):
    order = ("nut", "gear", "bolt")
    batch = folder(tmp_path / "batch", {"train/n0": 30}, "1 .5 .5 .25 .25\n0 .25 .25 .2 .2\n", order)
    v = merge([first, batch], tmp_path / "v")
    assert (
        v.names == NAMES
        and (
            tmp_path
            / "v"
            / "labels"
            / v.pictures[next(k for k in v.pictures if "n0" in k)]["side"]
            / "n0.txt"
        ).read_text()
        == LABEL
    )
    assert compare_labels([i for i in v.items() if i.path.stem == "n0"], read_dataset(batch)) == []


def test_unknown_names_are_said_and_never_become_classes_by_themselves(first, tmp_path):
    batch = folder(
        tmp_path / "batch", {"n0": 30, "n1": 31}, "0 .5 .5 .2 .2\n1 .5 .5 .2 .2\n", ("geer", "lid")
    )
    with pytest.raises(DataError, match=r"'geer' \(2x, 'gear'\?\), 'lid' \(2x\)"):
        merge([first, batch], tmp_path / "v")
    with pytest.raises(DataError, match="'lid'"):
        merge([first, batch], tmp_path / "v", rename={"geer": "gear"})
    v = merge([first, batch], tmp_path / "v", rename={"geer": "gear"}, add_names=True)
    assert v.names == (*NAMES, "lid") and [
        p.what for p in v.notes if p.kind == "class not looked for" and p.where == "lid"
    ] == ["6 of 8 images were labelled without it: its objects there have no box"]
    both = merge(
        [first, batch], tmp_path / "w", rename={"geer": "gear", "lid": "gear"}
    )  # two names become one
    assert both.names == NAMES and sum(c["objects"]["gear"] for c in both.counts.values()) == 6 + 4
    for wrong, words in (({"gera": "gear"}, "the class 'gera' to rename is in no parent"),):
        with pytest.raises(ConfigError, match=words):
            merge([first, batch], tmp_path / "x", rename=wrong)
    with pytest.raises(ConfigError, match="different and not empty"):
        merge([first], tmp_path / "x", names=["gear", "gear", "nut"])
    with pytest.raises(DataError, match="'nut'"):
        merge([first], tmp_path / "x", names=["gear", "bolt"])
    assert not (tmp_path / "x").exists()


def test_what_was_asked_goes_with_every_picture(first, tmp_path):
    v1 = merge([first], tmp_path / "v1")
    v2 = merge(
        [v1.path, folder(tmp_path / "batch", {"n0": 30}, "3 .5 .5 .2 .2\n", (*NAMES, "lid"))],
        tmp_path / "v2",
        add_names=True,
    )
    v3 = merge([v2.path], tmp_path / "v3")
    for v in (v2, v3):
        asked = {Path(k).stem: v.asked[r["asked"]] for k, r in v.pictures.items()}
        assert asked["n0"] == (*NAMES, "lid") and asked["t0"] == NAMES


def test_a_label_keeps_its_digits_through_many_versions(tmp_path):
    text = "0 0.123456789012 .5 2.5e-1 0.25\n2 .3 .3 .2 .2 0.87\n"
    v = merge([folder(tmp_path / "a", {"train/a": 1, "val/b": 2}, text)], tmp_path / "v0")
    for k in range(4):
        v = merge([v.path], tmp_path / f"v{k + 1}", names=list(NAMES[::-1]) if k == 0 else None)
    label = v.items("train")[0].label.read_text()
    assert label == "2 0.123456789012 .5 2.5e-1 0.25\n0 .3 .3 .2 .2\n" and v.number == 5


def test_coco_crowds_and_a_missing_label_file_are_said(tmp_path):
    root = tmp_path / "coco"
    root.mkdir()
    for k in range(2):
        (root / f"p{k}.png").write_bytes(content(k))
    rows = [
        {"id": 1, "image_id": 0, "category_id": 7, "bbox": [10, 10, 30, 20], "iscrowd": 0},
        {"id": 2, "image_id": 0, "category_id": 7, "bbox": [0, 0, 90, 60], "iscrowd": 1},
    ]
    (root / "labels.json").write_text(
        json.dumps(
            {
                "images": [{"id": k, "file_name": f"p{k}.png", "width": 96, "height": 64} for k in range(2)],
                "categories": [{"id": 7, "name": "gear"}],
                "annotations": rows,
            }
        )
    )
    bare = folder(tmp_path / "bare", {"q": 5, "r": 6}, {"r": ""}, names=("gear", "bolt", "nut"))
    (bare / "labels" / "q.txt").unlink()
    v = merge([root / "labels.json", bare], tmp_path / "v", val=0.0)
    assert {p.kind for p in v.notes} >= {
        "crowd left out",
        "picture without labels",
        "side without pictures",
    } and v.counts["train"]["objects"] == {"gear": 1}
    assert sum(r["boxes"] for r in v.pictures.values()) == 1


@pytest.mark.parametrize(
    "box",
    [
        [120, 10, 20, 20],
        [10, -40, 20, 30],
        [96, 0, 10, 10],
        [20, 20, 0, 10],
        [20, 20, 10, 0],
        [-5, 20, 5, 10],
    ],
)
def test_a_coco_box_without_area_in_the_picture_is_left_out_and_said(tmp_path, box):
    root = tmp_path / "coco"
    root.mkdir()
    for k in range(2):
        (root / f"p{k}.png").write_bytes(content(k))
    rows = [
        {"id": 1, "image_id": 0, "category_id": 7, "bbox": [-10, 10, 30, 20], "iscrowd": 0},
        {"id": 2, "image_id": 0, "category_id": 7, "bbox": box, "iscrowd": 0},
    ]
    (root / "labels.json").write_text(
        json.dumps(
            {
                "images": [{"id": k, "file_name": f"p{k}.png", "width": 96, "height": 64} for k in range(2)],
                "categories": [{"id": 7, "name": "gear"}],
                "annotations": rows,
            }
        )
    )
    v = merge([root / "labels.json"], tmp_path / "v", val=0.0)
    (note,) = [p for p in v.notes if p.kind == "box outside the picture"]
    assert (
        note.where.endswith("p0.png")
        and "gear" in note.what
        and "left out" in note.what
        and v.counts["train"]["objects"] == {"gear": 1}
    )
    (line,) = [line for i in v.items() for line in i.label.read_text().splitlines()]
    assert min(map(float, line.split()[3:])) > 0, "the other one is cut at the border"


# ---- one content, one answer


def test_the_same_picture_under_two_names_is_kept_once(first, tmp_path):
    v = merge([first, folder(tmp_path / "batch", {"train/other_name": 10, "train/n": 30})], tmp_path / "v")
    assert [Path(k).stem for k in v.pictures] == ["t0", "t1", "t2", "t3", "v0", "v1", "n"] and any(
        p.kind == "picture twice" for p in v.notes
    )
    assert v.pictures["images/val/v0.png"]["side"] == "val"


@pytest.mark.parametrize("prefer, kept", [("newer", "1 .5 .5 .1 .1\n"), ("older", LABEL), ("refuse", None)])
def test_conflicting_duplicates_need_a_decision(first, tmp_path, prefer, kept):
    batch = folder(tmp_path / "batch", {"train/again": 10}, "1 .5 .5 .1 .1\n")
    if kept is None:
        with pytest.raises(DataError, match="v0.png of parent 0, images/train/again.png of parent 1"):
            merge([first, batch], tmp_path / "v")
        return
    v = merge([first, batch], tmp_path / "v", prefer=prefer)
    assert (tmp_path / "v" / "labels" / "val" / "v0.txt").read_text() == kept and len(v.pictures) == 6
    assert v.counts["val"]["objects"]["bolt"] == (1 if prefer == "newer" else 0)


def test_within_one_folder_nobody_is_newer(tmp_path):
    both = folder(
        tmp_path / "both", {"train/a": 1, "train/b": 1}, {"train/a": LABEL, "train/b": "1 .5 .5 .1 .1\n"}
    )
    for prefer in V.PREFER:
        with pytest.raises(DataError, match="with different labels"):
            merge([both], tmp_path / "v", prefer=prefer)
    with pytest.raises(ConfigError, match="prefer: 'latest' is not one of refuse, newer, older"):
        merge([both], tmp_path / "v", prefer="latest")


def test_files_of_one_name_do_not_share_a_label(tmp_path):
    v = merge(
        [folder(tmp_path / "a", {"train/p": 1, "val/p": 2}), folder(tmp_path / "b", {"p": (3, 90)})],
        tmp_path / "v",
        val=0.0,
    )
    stems = [Path(k).stem for k in v.pictures]
    assert len(stems) == 3 == len({s.lower() for s in stems}) and all(i.label.exists() for i in v.items())


# ---- whole or not at all


def test_a_version_is_its_own_and_is_moved_and_read_like_any_dataset(first, tmp_path):
    v1 = merge([first], tmp_path / "v1")
    v2 = merge([v1.path, folder(tmp_path / "b", {"n": 30})], tmp_path / "v2")
    links = [p.stat().st_nlink for root in (first, v1.path, v2.path) for p in root.rglob("*.png")]
    assert links and set(links) == {1}  # a hard link would change with the original
    v1.items()[0].path.write_bytes(b"edited")
    V.verify_version(v2.path)
    shutil.move(tmp_path / "v2", tmp_path / "moved")
    moved = V.verify_version(tmp_path / "moved")
    assert moved.digest == v2.digest and {i.path.name for i in read_dataset(tmp_path / "moved", "train")} == {
        i.path.name for i in moved.items("train")
    }
    sheet = yaml.safe_load((tmp_path / "moved" / "data.yaml").read_text())
    assert sheet == {"train": "images/train", "val": "images/val", "names": dict(enumerate(NAMES))}


def test_the_same_merge_gives_the_same_version(first, tmp_path):
    batch = folder(tmp_path / "b", {f"n{k}": 30 + k for k in range(6)})
    one, two, other = (
        merge([first, batch], tmp_path / n, val=0.4, seed=s) for n, s in (("v", 0), ("w", 0), ("u", 5))
    )
    assert (
        one.digest == two.digest
        and one.made_at == "2026-06-01T08:00:00+00:00"
        and one.made_by == "ana"
        and {r["picture"] for r in other.pictures.values()} == {r["picture"] for r in one.pictures.values()}
    )


def test_every_change_is_named(first, tmp_path):
    v = merge([first], tmp_path / "v")
    at = {
        "picture": v.path / "images/train/t0.png",
        "label": v.path / "labels/val/v0.txt",
        "sheet": v.path / "data.yaml",
        "book": v.path / "version.json",
    }
    old = {k: p.read_bytes() for k, p in at.items()}

    def spoilt(place: str, data: bytes | None, match: str, **lists):
        at[place].unlink()  # a new file: the parents' share the old one
        if data is not None:
            at[place].write_bytes(data)
        with pytest.raises(V.VersionError, match=match) as e:
            V.verify_version(v.path)
        for k, names in lists.items():
            assert getattr(e.value, k) == names
        with pytest.raises(V.VersionError):
            merge([v.path], tmp_path / "w")
        at[place].unlink(missing_ok=True), at[place].write_bytes(old[place])
        V.verify_version(v.path)

    spoilt("picture", content(77), "1 changed", changed=["images/train/t0.png"])
    spoilt("picture", None, "1 missing", missing=["images/train/t0.png"])
    spoilt("label", b"", "labels/val/v0.txt", changed=["labels/val/v0.txt"])
    spoilt("sheet", old["sheet"].replace(b"gear", b"gaer"), "class names")
    spoilt(
        "book",
        old["book"].replace(b'"side": "val"', b'"side": "train"').replace(b"bolt", b"belt"),
        "manifest was edited",
    )
    (v.path / "images" / "train" / "stray.png").write_bytes(content(78))
    with pytest.raises(V.VersionError, match="1 added"):
        V.verify_version(v.path)
    for text in ("", "[]", "{}", '{"format": "cv_pipeline dataset version 1"}'):
        at["book"].write_text(text)
        with pytest.raises(DataError, match="not a dataset version"):
            V.read_version(v.path)


KILLED = """
import os, signal, sys
from pathlib import Path
from cv_pipeline.annotation import versions as V
real, count = os.{call}, 0
def deadly(*a, **k):
    global count
    count += 1
    if count == {n}: os.kill(os.getpid(), signal.SIGKILL)
    return real(*a, **k)
os.{call} = deadly
V.merge([Path(sys.argv[1])], Path(sys.argv[2]))
"""


@pytest.mark.parametrize("call, n", [("utime", 3), ("replace", 1), ("replace", 3)])
@pytest.mark.slow
def test_a_killed_merge_leaves_no_half_version(first, tmp_path, call, n):
    done = subprocess.run(
        [sys.executable, "-c", KILLED.format(call=call, n=n), first, tmp_path / "v"],
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == -9 and not (tmp_path / "v").exists() and list(tmp_path.glob(".v.*.part"))
    merge([first], tmp_path / "v")
    assert not list(tmp_path.glob(".v.*.part")) and V.verify_version(tmp_path / "v")


def test_a_full_disk_is_a_typed_error_and_leaves_nothing(first, tmp_path, monkeypatch):
    def full(*a, **k):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(SinkError):
        merge([first], tmp_path / "v")
    assert [p.name for p in tmp_path.iterdir()] == ["first"]


def test_nothing_is_overwritten(first, tmp_path):
    merge([first], tmp_path / "v")
    with pytest.raises(ConfigError, match="already exists"):
        merge([first], tmp_path / "v")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="already exists"):
        merge([first], tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot write the folder"):
        merge([first], tmp_path / "file" / "v")


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda f, t: (f / "images/train/t0.png").write_bytes(b"no picture"), "cannot read an image"),
        (lambda f, t: (f / "labels/train/t0.txt").write_text("0 .5 .5\n"), "t0.txt"),
        (lambda f, t: (f / "labels/train/t0.txt").write_text("9 .5 .5 .1 .1\n"), "t0.txt"),
        (lambda f, t: (f / "labels/train/t0.txt").write_text("0 50 50 20 20\n"), "pixels"),
        (lambda f, t: (f / "data.yaml").unlink(), "no class names"),
        (lambda f, t: shutil.rmtree(f), "dataset not found"),
    ],
)
def test_bad_parents_are_refused_with_their_file(first, tmp_path, spoil, words):
    spoil(first, tmp_path)
    with pytest.raises(DataError, match=words):
        merge([first], tmp_path / "v")
    assert not (tmp_path / "v").exists()


def test_pictures_that_are_gone_and_drafts_are_no_labels(tmp_path):
    root = tmp_path / "coco"
    root.mkdir()
    (root / "labels.json").write_text(
        json.dumps(
            {
                "images": [{"id": 0, "file_name": "gone.png", "width": 9, "height": 9}],
                "categories": [{"id": 1, "name": "gear"}],
                "annotations": [],
            }
        )
    )
    with pytest.raises(DataError, match="1 of 1 images are missing"):
        merge([root / "labels.json"], tmp_path / "v")
    (tmp_path / "p.png").write_bytes(content(1))
    write_drafts(
        [Draft("p.png", tmp_path / "p.png", (96, 64), NAMES, Detections([[1, 1, 20, 20]], class_id=[0]))],
        tmp_path / "drafts",
    )
    with pytest.raises(DataError, match="folder of drafts"):
        merge([tmp_path / "drafts"], tmp_path / "v")
    with pytest.raises(ConfigError, match="no parents to merge"):
        merge([], tmp_path / "v")
    only = folder(tmp_path / "only", {"test/a": 1})
    with pytest.raises(DataError, match="no training images are left"):
        merge([only], tmp_path / "v")


@pytest.mark.parametrize(
    "wrong",
    [
        {"names": "gear"},
        {"prefer": "latest"},
        {"leaks": "ignore"},
        {"val": 1.0},
        {"val": -0.1},
        {"val": "half"},
        {"val": True},
        {"val": float("nan")},
        {"hamming": -1},
        {"hamming": 65},
        {"hamming": 1.5},
        {"hamming": None},
        {"seed": -1},
        {"seed": 0.5},
        {"seed": "x"},
    ],
)
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)) + ": "):
        V.MergeSettings(**wrong)


def test_all_wrong_settings_are_named_at_once():
    with pytest.raises(ConfigError) as e:
        V.MergeSettings(prefer="latest", val=2, seed=-1)
    assert [p.split(":")[0] for p in e.value.problems] == ["prefer", "val", "seed"]


def test_the_manifest_keeps_the_settings(first, tmp_path):
    v = merge(
        [first],
        tmp_path / "v",
        val=0.2,
        rename={"gear": "cog"},
        allow=[("a.png", "b.png")],
        sequences={"t0.png": "clip"},
    )
    assert v.settings == {
        "prefer": "refuse",
        "leaks": "leave out",
        "val": 0.2,
        "hamming": 10,
        "seed": 0,
        "rename": {"gear": "cog"},
        "allow": [["a.png", "b.png"]],
        "sequences": "table",
    }


# ---- where it came from


def test_the_log_of_parents(first, tmp_path):
    v1 = merge([first], tmp_path / "v1", name="line")
    batch = folder(tmp_path / "b", {"n": 30})
    v2 = merge([v1.path, batch], tmp_path / "v2")
    v3 = merge([v2.path], tmp_path / "v3")
    rows = V.history(v3.path)
    assert [(r["depth"], r["number"], r["state"]) for r in rows] == [
        (0, 3, "there"),
        (1, 2, "there"),
        (2, 1, "there"),
        (2, None, "there"),
        (3, None, "there"),
    ] and {r["name"] for r in rows} == {"line", "b", "first"}
    shutil.rmtree(batch), shutil.rmtree(v1.path)
    assert [r["state"] for r in V.history(v3.path)] == ["there", "there", "gone", "gone"]
    merge([folder(tmp_path / "else", {"a": 60})], tmp_path / "v1", name="line")
    assert [r["state"] for r in V.history(v3.path)][2] == "changed since"


def test_balance_counts_what_the_files_say(first, tmp_path):
    v1 = merge([first], tmp_path / "v1")
    v2 = merge(
        [v1.path, folder(tmp_path / "b", {"n": 30, "m": 31}, "1 .5 .5 .1 .1\n")], tmp_path / "v2", val=0.0
    )
    rows = {r["class"]: r for r in V.balance(v1, v2)}
    assert (
        rows["bolt"]["new"] == 2 == rows["bolt"]["objects"] == rows["bolt"]["train"]
        and rows["gear"]["objects before"] == rows["gear"]["objects"] == 6
        and rows["gear"]["val"] == 2
    )
    s = V.version_set(v2)
    assert len(s) == 8 and set(s.columns["side"]) == {"train", "val"} and (s.size == [96, 64]).all()


# ---- real data


@pytest.mark.slow
def test_voc_in_two_forms_and_two_class_orders_is_one_dataset(real_data, tmp_path):
    root = real_data / "voc100"
    book = next(p for p in sorted(root.rglob("*.json")))
    yolo = next(p.parent for p in sorted(root.rglob("obj.names")))
    one = merge([book], tmp_path / "v1")
    both = merge([one.path, yolo], tmp_path / "v2")
    assert (
        len(both.pictures) == len(one.pictures) == 100
        and sum(r["boxes"] for r in both.pictures.values()) == 273
    )
    assert sum(p.kind == "picture twice" for p in both.notes) == 100


@pytest.mark.slow
def test_blood_cells_keep_their_sides(real_data, tmp_path):
    v = merge([real_data / "bccd"], tmp_path / "v")
    assert {k: c["pictures"] for k, c in v.counts.items()} == {"train": 205, "val": 87} and sum(
        sum(c["objects"].values()) for c in v.counts.values()
    ) == 3941
