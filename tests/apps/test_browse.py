"""Maps of pictures: places, copies, what is new; the page as a browser has made it; FiftyOne with a real
database."""

import json
import re
from datetime import datetime, timedelta, timezone

import cv2
import numpy as np
import pytest

from cv_pipeline.annotation.collect import Collected, write_collected
from cv_pipeline.apps import browse as B
from cv_pipeline.core.types import ConfigError, DataError, MissingExtraError
from cv_pipeline.core.vectors import unit_vectors
from tests.helpers.browser import page_of, picture_of
from tests.helpers.fiftyone_service import open_fiftyone

AT = datetime(2026, 6, 1, 8, tzinfo=timezone.utc)


def picture(seed, tone=128):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 60, (6, 8, 3)) + tone - 30
    return cv2.resize(np.clip(small, 0, 255).astype(np.uint8), (80, 60), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def folder(tmp_path):
    "Nine pictures: five dark, three bright, and a copy of the first."
    made = tmp_path / "data"
    made.mkdir()
    for k in range(8):
        cv2.imwrite(str(made / f"{k}.png"), picture(k, 60 if k < 5 else 190))
    cv2.imwrite(str(made / "copy.png"), picture(0, 60))
    return made


@pytest.fixture
def collection(tmp_path):
    "Sixty frames of two cameras; the last ten are another world."
    made, rows = tmp_path / "collected", []
    made.mkdir()
    for k in range(60):
        cv2.imwrite(str(made / f"{k:02d}.png"), picture(k, 70 if k < 50 else 210))
        found = [{"class_name": "gear", "confidence": 0.7, "xyxy": [5, 5, 40, 40], "tracker_id": -1}]
        at = AT + timedelta(minutes=k)
        name, camera = f"{k:02d}.png", "gate" if k % 2 else "dock"
        row = Collected(name, camera, k, at, (80, 60), ("random",), 0.1, f"{k:016x}", 0, "line", found)
        rows.append(row)
    write_collected(made, rows)
    return made


# --- places


def test_components_equal_those_of_a_decomposition():
    x = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    mine, share = B.principal(x)
    assert np.allclose(np.abs(mine), np.abs((u * s)[:, :2]), atol=1e-3)
    assert share == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), abs=1e-6)


def test_the_order_of_pictures_does_not_turn_the_map():
    x = np.random.default_rng(1).normal(size=(40, 6))
    order = np.random.default_rng(2).permutation(40)
    assert np.allclose(B.project(x)[0][order], B.project(x[order])[0], atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4), (3, 1), (5, 2)])
def test_few_numbers_are_a_map_too(shape):
    xy = B.project(np.random.default_rng(0).normal(size=shape))[0]
    assert xy.shape == (shape[0], 2)
    assert np.isfinite(xy).all() and xy.min() >= 0 and xy.max() <= 1


def test_one_far_picture_does_not_press_the_others_together():
    x = np.random.default_rng(0).normal(size=(500, 3))
    x[0] = 1e6
    assert np.ptp(B.project(x)[0][1:, 0]) > 0.5 or np.ptp(B.project(x)[0][1:, 1]) > 0.5


def test_umap_that_is_missing_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "umap", None)
    x = np.random.default_rng(0).normal(size=(20, 5))
    with pytest.raises(MissingExtraError, match="umap"):
        B.project(x, "umap")
    assert B.project(x, "auto")[1].startswith("PCA")


# --- copies, and what is new


def test_copies_of_copies_are_one_group():
    assert B.groups_of([0, 1 << 63, 3, 0b1111 << 60, 1], hamming=2).tolist() == [0, 0, 0, -1, 0]


def test_no_copies():
    assert B.groups_of([0, (1 << 32) - 1]).tolist() == [-1, -1]


def test_an_ordinary_window_is_not_new():
    shares = []
    for seed in range(20):
        x = unit_vectors(np.random.default_rng(seed).normal(size=(200, 16)).astype(np.float32))
        shares.append(B.unlike_before(x, np.arange(200) >= 140)[0].sum() / 60)
    assert np.mean(shares) < 0.08  # 5 % is promised


def test_another_world_is_new():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 16)) * 0.2
    x[:80, 0] += 1
    x[80:, 1] += 1
    found, _ = B.unlike_before(unit_vectors(x.astype(np.float32)), np.arange(100) >= 80)
    assert found[80:].all() and not found[:80].any()


def test_too_little_before_says_nothing():
    x = unit_vectors(np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32))
    found, usual = B.unlike_before(x, np.arange(30) >= 20)
    assert not found.any() and np.isnan(usual)


# --- maps


def test_like_is_beside_like(folder):
    m = B.make_map(folder)
    names = [r["picture"].rsplit("/", 1)[1] for r in m.rows]
    first, copy = names.index("0.png"), names.index("copy.png")
    assert m.near[copy, 0] == first
    assert m.group[copy] == m.group[first] >= 0
    assert np.abs(m.xy[copy] - m.xy[first]).max() < 0.01
    bright = [names.index(f"{k}.png") for k in (5, 6, 7)]
    assert set(m.near[bright[0], :2].tolist()) == set(bright[1:])


def test_a_picture_is_not_its_own_neighbour(folder):
    m = B.make_map(folder)
    assert all(i not in row for i, row in enumerate(m.near.tolist()))


def test_a_large_set_is_thinned_evenly(folder):
    m = B.make_map(folder, settings=B.BrowseSettings(most=4))
    assert (len(m), m.step) == (3, 4)


def test_the_window_and_what_is_new_in_it(collection):
    m = B.make_map(collection, since=AT + timedelta(minutes=45))
    views = m.views()
    assert sorted(m.rows[i]["frame_id"] for i in views["window"]) == list(range(45, 60))
    assert {m.rows[i]["frame_id"] for i in views["unlike before"]} >= set(range(50, 60))
    assert {"camera gate", "camera dock"} <= set(views)


def test_a_point_for_each_box(collection):
    m = B.make_map(collection, boxes=True)
    assert len(m) == 60 and m.rows[0]["class_name"] == "gear"


def test_an_index_lends_its_vectors(collection, tmp_path):
    from cv_pipeline.apps.search_files import build_index, items_of

    index = build_index(tmp_path / "index", items_of(collection))
    m = B.make_map(tmp_path / "index")
    assert len(m) == len(index) == 60
    assert np.allclose(m.vectors, index.vectors(np.arange(60)), atol=2e-3)


def test_a_report_brings_its_errors(folder, tmp_path):
    from dataclasses import replace

    from cv_pipeline.evaluation.failures import write_records
    from tests.helpers.eval_sets import random_set

    s = random_set(4, classes=2)
    paths = tuple(folder / f"{i % 8}.png" for i in range(len(s)))
    write_records(replace(s, paths=paths), 0.3, tmp_path / "report")
    m = B.make_map(tmp_path / "report")
    assert len(m) == len(s) and sum(r["errors"] for r in m.rows) > 0
    assert "errors" in m.views()


def test_the_logs_own_vectors(tmp_path):
    from cv_pipeline.core.config import load_config
    from cv_pipeline.service.assembly import run_config

    source = {"uri": "line:frames=12,seed=5,width=320,height=240", "id": "gate"}
    given = {"sources": [source], "delivery.out": str(tmp_path / "run"), "model.threads": 1}
    run_config(load_config(None, {**given, "telemetry": True}))
    m = B.make_map(tmp_path / "run", "log")
    assert len(m) >= 3 and m.vectors.shape[1] == 64


def test_too_few_pictures(tmp_path):
    (tmp_path / "two").mkdir()
    for k in range(2):
        cv2.imwrite(str(tmp_path / "two" / f"{k}.png"), picture(k))
    with pytest.raises(DataError, match="too few for a map"):
        B.make_map(tmp_path / "two")


@pytest.mark.parametrize(
    "wrong", [{"near": 0}, {"hamming": 40}, {"most": 2}, {"thumbnail": 9}, {"method": "tsne"}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        B.BrowseSettings(**wrong)


def test_faces_are_covered_in_thumbnails(tmp_path):
    from cv_pipeline.synthetic.passers import draw_face

    image, head = np.full((240, 240, 3), 140, np.uint8), draw_face(3, 90)
    h, w = head.alpha.shape
    image[60 : 60 + h, 60 : 60 + w] = head.image
    (tmp_path / "people").mkdir()
    for k in range(3):
        cv2.imwrite(str(tmp_path / "people" / f"{k}.png"), image)
    m = B.make_map(tmp_path / "people", settings=B.BrowseSettings(thumbnail=240))
    box = [int(v) for v in np.array(head.box) + 60]
    shown = cv2.imdecode(np.frombuffer(m.thumbs[0], np.uint8), cv2.IMREAD_COLOR)
    part = shown[box[1] : box[3], box[0] : box[2]].astype(int)
    assert np.abs(part - 96).mean() < 8


# --- the page


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_holds_every_picture_and_view(folder, tmp_path):
    m = B.make_map(folder)
    page = B.write_page(m, tmp_path / "map.html").read_text("utf-8")
    data = data_of(page)
    assert len(data["items"]) == len(m)
    assert dict(data["views"])["near duplicates"] == np.flatnonzero(m.group >= 0).tolist()


def test_no_address_leaves_the_page(folder, tmp_path):
    page = B.write_page(B.make_map(folder), tmp_path / "map.html").read_text("utf-8")
    assert "http://" not in page and "https://" not in page and 'src="' not in page


NASTY = "</script><img src=x onerror=alert(1)>&amp;\u202e"


def test_a_nasty_name_stays_text(folder, tmp_path):
    m = B.make_map(folder)
    m.rows[0]["camera"] = m.rows[1]["class_name"] = NASTY
    page = B.write_page(m, tmp_path / "map.html").read_text("utf-8")
    assert "<img" not in page and page.count("</script>") == 2
    assert any("onerror" in str(i["f"]) for i in data_of(page)["items"])


def test_a_browser_shows_the_map_and_more_like_this(folder, tmp_path):
    m = B.make_map(folder)
    m.rows[0]["camera"] = NASTY
    page = B.write_page(m, tmp_path / "map.html", "my index/")
    seen = page_of(tmp_path, page.as_uri())
    assert seen.count("More like this") == 2  # in the script, and on the page
    assert "near duplicates (2)" in seen
    assert "cv-pipeline search query 'my index/'" in seen
    assert "<img src=x" not in seen
    image = cv2.imread(str(picture_of(tmp_path, page.as_uri(), (900, 600))))
    assert image[80:, :550].std() > 5  # something is drawn on the canvas


def test_commands_survive_a_shell():
    import shlex

    row = {"picture": "runs/a b/$(x)#gate;1#17", "x1": 1.0, "y1": 2.0, "x2": 30.0, "y2": 40.0}
    words = shlex.split(B.search_command(row, "in dex"))
    assert words[3:] == [
        "in dex",
        "--run",
        "runs/a b/$(x)",
        "--source",
        "gate;1",
        "--frame",
        "17",
        "--box",
        "1,2,30,40",
    ]


def test_a_page_that_cannot_be_written_is_named(folder, tmp_path):
    with pytest.raises(ConfigError, match=".html"):
        B.write_page(B.make_map(folder), tmp_path / "map.svg")


# --- FiftyOne


@pytest.fixture(scope="module")
def fo(tmp_path_factory):
    return open_fiftyone(tmp_path_factory.mktemp("fiftyone"))


def test_the_dataset_has_the_views_and_both_keys(fo, collection):
    m = B.make_map(collection, since=AT + timedelta(minutes=45))
    made = B.build_browse(m, "browse test", replace_old=True)
    try:
        counts = {name: len(made.load_saved_view(name)) for name in made.list_saved_views()}
        assert counts == {k: len(v) for k, v in m.views().items()}
        assert set(made.list_brain_runs()) == {"map", "alike"}
    finally:
        made.delete()


def test_similarity_in_fiftyone_is_ours(fo, collection):
    m = B.make_map(collection)
    made = B.build_browse(m, "browse alike", replace_old=True)
    try:
        ids = made.values("id")
        like = made.sort_by_similarity(ids[7], k=4, brain_key="alike").values("id")
        assert [ids.index(i) for i in like[1:]] == m.near[7, :3].tolist()
    finally:
        made.delete()


def test_places_in_fiftyone_are_ours(fo, folder):
    m = B.make_map(folder)
    made = B.build_browse(m, "browse places", replace_old=True)
    try:
        points = made.load_brain_results("map").points
        assert np.allclose(points, m.xy, atol=1e-5)
    finally:
        made.delete()


def test_failures_get_the_map(fo, folder, tmp_path):
    from dataclasses import replace

    from cv_pipeline.commands.main import failures
    from cv_pipeline.evaluation.failures import write_records
    from tests.helpers.eval_sets import random_set

    s = random_set(4, classes=2)
    write_records(
        replace(s, paths=tuple(folder / f"{i % 8}.png" for i in range(len(s)))), 0.3, tmp_path / "report"
    )
    failures(tmp_path / "report", name="failures map", replace=True, app=False)
    made = fo.load_dataset("failures map")
    try:
        assert set(made.list_brain_runs()) == {"map", "alike"}
    finally:
        made.delete()


def test_a_name_that_is_taken(fo, folder):
    m = B.make_map(folder)
    made = B.build_browse(m, "browse taken", replace_old=True)
    try:
        with pytest.raises(ConfigError, match="already has a dataset"):
            B.build_browse(m, "browse taken")
    finally:
        made.delete()


def test_what_fails_leaves_no_half_dataset(fo, folder, monkeypatch):
    m = B.make_map(folder)
    monkeypatch.setattr(B, "attach_map", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        B.build_browse(m, "browse broken")
    assert not [n for n in fo.list_datasets() if n.startswith("browse broken")]


def test_without_fiftyone_the_command_writes_the_page(folder, tmp_path, monkeypatch):
    from cv_pipeline.apps.browse import BrowseSettings
    from cv_pipeline.commands.browse import browse

    def missing():
        raise MissingExtraError("fiftyone", "failures")

    monkeypatch.setattr(B, "fiftyone_package", missing)
    monkeypatch.chdir(tmp_path)
    browse(folder, settings=BrowseSettings())
    assert (tmp_path / "map.html").stat().st_size > 5000
    with pytest.raises(MissingExtraError):
        browse(folder, fiftyone="mine", settings=BrowseSettings())
