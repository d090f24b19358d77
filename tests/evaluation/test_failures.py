"""Failures: our own matching in columns (crowds as in COCO), views that count what they promise, and the real
FiftyOne with its App."""

import os
import re
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, DataError, MissingExtraError
from cv_pipeline.evaluation import failures as X
from cv_pipeline.evaluation.metrics import confusion_matrix
from cv_pipeline.evaluation.records import EvalSet, box_table
from cv_pipeline.evaluation.worst import cases
from tests.helpers.eval_sets import random_set
from tests.helpers.fiftyone_service import chromium, open_fiftyone
from tests.helpers.services import free_port, require

SEEDS = st.integers(0, 10**6)


def with_pictures(s: EvalSet, folder: Path) -> EvalSet:
    "The set with small pictures on disk, two cameras, and its third picture equal to its first."
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(s.images):
        rng = np.random.default_rng(i if i != 2 else 0)
        cv2.imwrite(
            str(folder / f"{name}.png"),
            cv2.resize(rng.integers(0, 256, (6, 6, 3), np.uint8), (120, 120), interpolation=cv2.INTER_CUBIC),
        )
    columns = {"camera": np.array([f"line-{i % 2}" for i in range(len(s))], object), "id": np.arange(len(s))}
    return replace(
        s, paths=tuple(folder / f"{n}.png" for n in s.images), size=np.full((len(s), 2), 500), columns=columns
    )


# ---- columns


def coco_says(s: EvalSet) -> tuple[int, int, int]:
    "Hits, ignored boxes and missed objects of all predictions of a set at an overlap of 0.5, by pycocotools."
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from cv_pipeline.evaluation.metrics import coco_books

    truth, said = coco_books(s)
    with contextlib.redirect_stdout(io.StringIO()):
        book = COCO()
        book.dataset = truth
        book.createIndex()
        judge = COCOeval(book, book.loadRes(said), "bbox")
        judge.params.iouThrs, judge.params.maxDets = np.array([0.5]), [10**6]
        judge.params.areaRng, judge.params.areaRngLbl = [[0, 1e10]], ["all"]
        judge.evaluate()
    hits = ignored = missed = 0
    for e in filter(None, judge.evalImgs):
        matched, void, crowd = (
            e["dtMatches"][0] > 0,
            e["dtIgnore"][0].astype(bool),
            np.array(e["gtIgnore"], bool),
        )
        hits, ignored, missed = (
            hits + int((matched & ~void).sum()),
            ignored + int(void.sum()),
            missed + int(((e["gtMatches"][0] == 0) & ~crowd).sum()),
        )
    return hits, ignored, missed


@pytest.mark.parametrize("seed", range(12))
def test_hits_ignored_and_missed_equal_pycocotools_with_crowds(seed):
    require("pycocotools")
    s = random_set(seed, crowds=True)
    f = X.find_failures(s, 0.3, twins=[])
    visible = replace(s, predictions=s.predictions[s.predictions.confidence >= 0.3])
    ours = (
        int((f.said["error"] == "hit").sum()),
        int((f.said["error"] == "ignored").sum()),
        int((~f.truth["found"] & ~s.truth.crowd).sum()),
    )
    assert ours == coco_says(visible)


@settings(max_examples=60, deadline=None)
@given(SEEDS, st.floats(0, 0.9))
@pytest.mark.slow
def test_columns_agree_with_each_other_and_with_the_ranking(seed, threshold):
    s = random_set(seed)
    f = X.find_failures(s, threshold, worst=3, twins=[])
    error, cause = f.said["error"], f.truth["error"]
    assert (s.predictions.confidence[f.shown] >= threshold).all() and len(np.unique(f.shown)) == len(
        f.shown
    ) == (s.predictions.confidence >= threshold).sum()
    assert (
        (error == "hit").sum()
        == (cause == "hit").sum()
        == f.truth["found"].sum()
        == np.trace(confusion_matrix(s, threshold)[:-1, :-1])
    )
    assert ((cause == "ignored") == s.truth.crowd).all()
    assert (
        not (f.truth["suspect"] & (cause != "Miss")).any()
        and not (f.said["suspect"] & ~np.isin(error, ["Bkg", "Cls"])).any()
    )
    ranked = cases(s, threshold)
    by_picture = {c.picture: c.errors for c in ranked}
    assert f.pictures["errors"].tolist() == [by_picture[i] for i in range(len(s))]
    assert f.pictures["rank"].tolist() == [
        next(k for k, c in enumerate(ranked, 1) if c.picture == i) for i in range(len(s))
    ]
    assert f.pictures["worst"].sum() == min(3, (f.pictures["errors"] > 0).sum())
    assert all(c == "" or e == "Cls" for c, e in zip(f.said["confusion"], error))


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_sizes_are_cocos(seed):
    from cv_pipeline.evaluation.metrics import match_set

    s = random_set(seed)
    f = X.find_failures(s, 0.3, twins=[])
    for size, limits in X.SIZES.items():
        counted = match_set(s, [0.5], area=limits).counted
        assert (counted == ((f.truth["size"] == size) & ~s.truth.crowd)).all()


def test_a_box_near_a_missed_object_explains_it():
    truth = box_table([0, 0, 0], [[0, 0, 100, 100], [200, 0, 300, 100], [0, 200, 100, 300]], [0, 1, 2])
    said = box_table(
        [0, 0, 0, 0],
        [[0, 0, 100, 45], [200, 0, 300, 100], [400, 400, 480, 480], [5, 5, 95, 40]],
        [0, 0, 1, 0],
        [0.9, 0.8, 0.7, 0.6],
    )
    f = X.find_failures(EvalSet(("a", "b", "c"), ("p",), np.array([[500, 500]]), truth, said), 0.5)
    assert f.truth["error"].tolist() == ["Loc", "Cls", "Miss"]
    assert f.said["error"].tolist() == ["Loc", "Cls", "Bkg", "Loc"] and f.said["was"].tolist() == [
        "a",
        "b",
        "",
        "a",
    ]
    assert f.said["confusion"].tolist() == ["", "b as a", "", ""] and f.said["iou"][:3] == pytest.approx(
        [0.45, 1.0, 0.0]
    )
    assert f.counts() == {"Cls": 1, "Loc": 2, "Bkg": 1, "Miss": 1}


def planted(seed: int = 0, n: int = 60) -> tuple[EvalSet, int, int]:
    "Predictions from low to high on good labels, with one label on nothing and one object that has no label."
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(n // 3), 3)
    corner = np.tile([[10, 10], [200, 10], [10, 200]], (n // 3, 1)) + rng.uniform(0, 20, (n, 2))
    xyxy = np.hstack([corner, corner + 90])
    sure = rng.uniform(0.1, 0.9, n)  # some are below the threshold: missed, but seen
    truth = box_table(np.append(image, 4), np.vstack([xyxy, [380, 380, 450, 450]]), np.zeros(n + 1))
    said = box_table(
        np.append(image, 7),
        np.vstack([xyxy + rng.normal(0, 2, xyxy.shape), [380, 380, 450, 450]]),
        np.zeros(n + 1),
        np.append(sure, 0.95),
    )
    return (
        EvalSet(("a",), tuple(f"p{i}" for i in range(n // 3)), np.full((n // 3, 2), 500), truth, said),
        n,
        7,
    )


@pytest.mark.parametrize("seed", range(5))
def test_a_label_on_nothing_and_an_object_without_label_are_suspect_and_nothing_else(seed):
    s, label, picture = planted(seed)
    f = X.find_failures(s, 0.4, twins=[])
    assert np.flatnonzero(f.truth["suspect"]).tolist() == [label]
    assert s.predictions.image[f.shown[f.said["suspect"]]].tolist() == [picture]
    assert np.flatnonzero(f.pictures["suspect"]).tolist() == [4, 7]
    above = replace(s, predictions=s.predictions[s.predictions.confidence >= 0.4])
    assert (
        not X.find_failures(above, 0.4, twins=[]).truth["suspect"].any()
    )  # without unsure boxes nothing can be said


def test_confidence_ranges_that_are_wrong_are_named_and_right_ones_hardly_ever():
    rng = np.random.default_rng(1)
    conf = rng.uniform(0.3, 1, 2000)
    honest = [set(X._claims(conf, rng.random(2000) < conf, np.ones(2000, bool))) for _ in range(30)]
    assert sum(found != {""} for found in honest) <= 1
    timid = X._claims(conf, rng.random(2000) < np.minimum(conf + 0.3, 1), np.ones(2000, bool))
    assert (timid[conf < 0.7] == "too little").all()
    assert set(X._claims(conf, rng.random(2000) < 0.2, np.zeros(2000, bool))) == {""}  # nothing that counts


def test_twins_from_pictures_and_from_the_caller(tmp_path):
    s = with_pictures(random_set(3), tmp_path / "pictures")
    assert X.twin_pairs(s.paths) == [(0, 2)]
    assert X.find_failures(s).pictures["twin"][:3].tolist() == [0, -1, 0]
    assert X.twin_pairs((None, *s.paths[1:])) == []
    assert X.find_failures(s, twins=[(5, 4), (6, 5)]).pictures["twin"][3:8].tolist() == [-1, 4, 4, 4, -1]
    with pytest.raises(DataError, match="not two of 12 pictures"):
        X.find_failures(s, twins=[(3, 40)])


@pytest.mark.parametrize(
    "column, name",
    [
        ("camera", "camera"),
        ("time of day", "time_of_day"),
        ("id", "id_"),
        ("errors", "errors_"),
        ("2nd", "2nd_"),
        ("_x", "x"),
        ("!!", "column"),
    ],
)
def test_columns_get_names_that_fiftyone_takes(column, name):
    assert X.field_name(column) == name


# ---- views and records


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_views_count_what_they_promise_and_are_never_empty(seed):
    s = replace(random_set(seed), columns={"camera": np.array([f"c{i % 3}" for i in range(12)], object)})
    f = X.find_failures(s, 0.3, twins=[(0, 1)])
    views = {v.name: v for v in X.planned_views(f)}
    assert all(v.pictures > 0 and (v.boxes > 0) == bool(v.field) for v in views.values()) and len(
        {v.slug for v in views.values()}
    ) == len(views)
    missed = sum(v.boxes for n, v in views.items() if n.startswith("missed"))
    assert missed == (~f.truth["found"] & ~s.truth.crowd).sum()  # a crowd region is never missed
    assert sum(v.boxes for n, v in views.items() if n.startswith("false")) == sum(
        f.counts().get(k, 0) for k in X.KINDS[1:]
    )
    assert (
        sum(v.pictures for n, v in views.items() if n.startswith("camera")) == 12
        and views["near duplicates"].pictures == 2
    )
    confusions = Counter(f.said["confusion"][f.said["confusion"] != ""].tolist())
    assert {
        n.removeprefix("confusion: "): v.boxes for n, v in views.items() if n.startswith("confusion")
    } == dict(confusions)


def test_views_of_values_that_look_alike_in_an_address_stay_apart():
    s = replace(random_set(1), columns={"camera": np.array(["a/b", "ab", "x" * 300, "ab "] * 3, object)})
    views = [v for v in X.planned_views(X.find_failures(s, twins=[])) if v.name.startswith("camera")]
    assert len({v.slug for v in views}) == 4 and all(len(v.slug) <= 100 for v in views)


@pytest.mark.parametrize("seed", range(4))
def test_records_come_back_as_they_were(tmp_path, seed):
    s = with_pictures(random_set(seed), tmp_path / "pictures")
    s = replace(s, columns=s.columns | {"light": np.array([None, "good"] * 6, object)})
    least = np.array([0.2, 0.4, 0.6])
    again, thresholds = X.read_records(X.write_records(s, least, tmp_path / "run" / "records").parent)
    assert thresholds.tolist() == least.tolist() and again.names == s.names and again.paths == s.paths
    assert {k: list(map(str, v)) for k, v in again.columns.items()} == {
        k: ["" if x is None else str(x) for x in v] for k, v in s.columns.items()
    }
    a, b = X.find_failures(s, least), X.find_failures(again, thresholds)
    assert a.counts() == b.counts() and [v for v in X.planned_views(a)] == [v for v in X.planned_views(b)]


def test_folders_without_records_say_so(tmp_path):
    with pytest.raises(DataError, match="truth.json and predictions.json not found"):
        X.read_records(tmp_path)
    (tmp_path / "truth.json").write_text(
        '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "category_id": 1, "bbox": '
        '[1, 1, 5, 5]}], "categories": [{"id": 1, "name": "a"}]}'
    )
    (tmp_path / "predictions.json").write_text("[]")
    with pytest.raises(DataError, match="no thresholds"):
        X.read_records(tmp_path)


# ---- without FiftyOne


def test_without_the_package_the_extra_is_named(monkeypatch, tmp_path):
    s = with_pictures(random_set(0), tmp_path / "pictures")
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(MissingExtraError, match=r"cv_pipeline\[failures\]"):
        X.build_failures(X.find_failures(s))


def test_pictures_that_are_gone_are_named(tmp_path):
    s = with_pictures(random_set(0), tmp_path / "pictures")
    s.paths[4].unlink()
    with pytest.raises(DataError, match="1 of 12 images are missing, e.g. p4"):
        X.build_failures(X.find_failures(s))
    with pytest.raises(DataError, match="12 of 12"):
        X.build_failures(X.find_failures(replace(s, paths=())))


# ---- with FiftyOne


@pytest.fixture(scope="module")
def fo(tmp_path_factory):
    return open_fiftyone(tmp_path_factory.mktemp("fiftyone"))


@pytest.mark.parametrize("seed", range(3))
def test_saved_views_hold_what_was_planned(fo, tmp_path, seed):
    from fiftyone.core.utils import to_slug

    s = with_pictures(random_set(seed, crowds=True), tmp_path / "pictures")
    f = X.find_failures(s, 0.3, worst=4)
    dataset = X.build_failures(f, f"views {seed}")
    views = X.planned_views(f)
    assert sorted(dataset.list_saved_views()) == sorted(v.name for v in views)
    for v in views:
        saved = dataset.load_saved_view(v.name)
        assert saved.count() == v.pictures, v.name
        if v.field:
            assert saved.count(f"{v.field}.detections") == v.boxes, v.name
        assert to_slug(v.name) == v.slug
    worst = dataset.load_saved_view("worst 4").values("errors")
    assert worst == sorted(f.pictures["errors"], reverse=True)[:4]
    assert dataset.count_values("predictions.detections.error") == dict(Counter(f.said["error"].tolist()))
    assert dataset.count_values("ground_truth.detections.error") == dict(Counter(f.truth["error"].tolist()))
    assert (
        dataset.count_sample_tags().get("near duplicate") == 2 and dataset.count_sample_tags()["worst"] == 4
    )
    first = dataset.first()
    rows = np.flatnonzero(s.truth.image == 0)
    boxes = np.array(
        [
            [x * 500, y * 500, (x + w) * 500, (y + h) * 500]
            for x, y, w, h in (d.bounding_box for d in first.ground_truth.detections)
        ]
    ).reshape(-1, 4)
    np.testing.assert_allclose(boxes, s.truth.xyxy[rows], atol=1e-6)
    assert first.id_ == 0 and first.camera == "line-0" and Path(first.filepath) == s.paths[0].resolve()


def test_a_dataset_is_whole_or_not_there(fo, tmp_path, monkeypatch):
    f = X.find_failures(with_pictures(random_set(0), tmp_path / "pictures"))
    before = set(fo.list_datasets())
    kept = X.build_failures(f, "kept")
    with pytest.raises(ConfigError, match="already has a dataset 'kept'"):
        X.build_failures(f, "kept")
    with monkeypatch.context() as m:
        m.setattr(X, "_select", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            X.build_failures(f, "kept", replace_old=True)
    assert (
        set(fo.list_datasets()) == before | {"kept"} and fo.load_dataset("kept").count() == kept.count() == 12
    )
    smaller = X.find_failures(f.set.select(np.arange(5)))
    assert X.build_failures(smaller, "kept", replace_old=True).count() == 5
    assert set(fo.list_datasets()) == before | {"kept"}


def test_a_database_that_does_not_answer_is_an_error_soon_that_hides_the_password(fo, tmp_path, monkeypatch):
    f = X.find_failures(with_pictures(random_set(0), tmp_path / "pictures"))
    monkeypatch.setattr(fo.config, "database_uri", f"mongodb://anna:se%40cret@127.0.0.1:{free_port()}")
    with pytest.raises(X.ViewerError, match="database does not respond.*mongod --dbpath") as e:
        X.build_failures(f)
    assert "cret" not in str(e.value) and e.value.exit_code == 5


def test_a_mongod_that_does_not_start_is_an_error_soon(fo, tmp_path, monkeypatch):
    broken = tmp_path / "mongod"
    broken.write_text(
        "#!/bin/sh\necho 'error while loading shared libraries: libcrypto.so.1.1' >&2\nexit 127\n"
    )
    broken.chmod(0o755)
    from fiftyone.core.service import DatabaseService

    monkeypatch.setattr(DatabaseService, "find_mongod", staticmethod(lambda: str(broken)))
    with pytest.raises(X.ViewerError, match="cannot start.*libcrypto.so.1.1.*set FIFTYONE_DATABASE_URI"):
        X._check_database(None)


def test_the_app_shows_the_dataset_and_its_views_in_chromium(fo, tmp_path):
    s = with_pictures(random_set(5, crowds=True), tmp_path / "pictures")
    f = X.find_failures(s, 0.3, worst=4)
    X.build_failures(f, "in the app")
    port = free_port()
    session = X.open_app("in the app", port=port)
    try:
        with pytest.raises(ConfigError, match=f"port {port} is in use"):
            X.open_app("in the app", port=port)
        with pytest.raises(ConfigError, match="no dataset 'nothing'.*in the app"):
            X.open_app("nothing", port=free_port())
        text = lambda page: re.sub(
            r"(\|\s*)+", "|", re.sub(r"<[^>]+>", "|", re.sub(r"<(script|style)[\s\S]*?</\1>", "", page))
        )

        def shown(url):
            """The page as text: Chromium's virtual time does not wait for the App's server, so it is opened
            again until it is there."""
            until = time.monotonic() + 150
            while (
                "samples|" not in (page := text(chromium(tmp_path, url, "--dump-dom")))
                and time.monotonic() < until
            ):
                pass
            return page

        whole, picture = f"http://127.0.0.1:{port}/datasets/in%20the%20app", tmp_path / "app.png"
        assert "|12|" in shown(whole).replace(" ", "")
        for _ in range(20):  # a busy machine shows the App before its pictures
            chromium(tmp_path, whole, f"--screenshot={picture}")
            shot = cv2.imread(str(picture))
            assert shot.shape[:2] == (850, 1400)
            grid = shot[150:, 300:950].astype(
                int
            )  # beside the menus; our pictures are colourful, the App is grey
            colourful = float(((grid.max(axis=2) - grid.min(axis=2)) > 60).mean())
            if colourful > 0.15:
                break
        if os.environ.get("CV_PIPELINE_SHOTS"):
            cv2.imwrite(os.path.join(os.environ["CV_PIPELINE_SHOTS"], "fiftyone.png"), shot)
        assert colourful > 0.15
        for row in X.view_rows(X.planned_views(f), f"http://127.0.0.1:{port}", "in the app"):
            if row["view"] not in ("worst 4", "false: Bkg"):
                continue
            page = shown(row["link"])
            assert (
                "in the app" in page
                and row["view"] in page
                and re.search(rf"\|{row['pictures']}\s*\|?\s*samples?\|", page)
            ), page[:1500]
    finally:
        session.close()
