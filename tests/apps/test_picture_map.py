"""Maps of pictures: places, copies, what is new, what is read."""

from datetime import timedelta

import cv2
import numpy as np
import pytest

from cv_pipeline.apps.picture_map import (
    BrowseSettings,
    groups_of,
    make_map,
    principal,
    project,
    unlike_before,
)
from cv_pipeline.core.types import ConfigError, DataError, MissingExtraError
from cv_pipeline.core.vectors import unit_vectors
from tests.helpers.picture_folders import AT, picture


def test_components_equal_those_of_a_decomposition():
    x = np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32)
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    mine, share = principal(x)
    assert np.allclose(np.abs(mine), np.abs((u * s)[:, :2]), atol=1e-3)
    assert share == pytest.approx((s[:2] ** 2).sum() / (s**2).sum(), abs=1e-6)


def test_the_order_of_pictures_does_not_turn_the_map():
    x = np.random.default_rng(1).normal(size=(40, 6))
    order = np.random.default_rng(2).permutation(40)
    assert np.allclose(project(x)[0][order], project(x[order])[0], atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4), (3, 1), (5, 2)])
def test_few_numbers_are_a_map_too(shape):
    xy = project(np.random.default_rng(0).normal(size=shape))[0]
    assert xy.shape == (shape[0], 2)
    assert np.isfinite(xy).all() and xy.min() >= 0 and xy.max() <= 1


def test_one_far_picture_does_not_press_the_others_together():
    x = np.random.default_rng(0).normal(size=(500, 3))
    x[0] = 1e6
    assert np.ptp(project(x)[0][1:, 0]) > 0.5 or np.ptp(project(x)[0][1:, 1]) > 0.5


def test_umap_that_is_missing_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "umap", None)
    x = np.random.default_rng(0).normal(size=(20, 5))
    with pytest.raises(MissingExtraError, match="umap"):
        project(x, "umap")
    assert project(x, "auto")[1].startswith("PCA")


def test_copies_of_copies_are_one_group():
    assert groups_of([0, 1 << 63, 3, 0b1111 << 60, 1], hamming=2).tolist() == [0, 0, 0, -1, 0]


def test_no_copies():
    assert groups_of([0, (1 << 32) - 1]).tolist() == [-1, -1]


def test_an_ordinary_window_is_not_new():
    shares = []
    for seed in range(20):
        x = unit_vectors(np.random.default_rng(seed).normal(size=(200, 16)).astype(np.float32))
        shares.append(unlike_before(x, np.arange(200) >= 140)[0].sum() / 60)
    assert np.mean(shares) < 0.08  # 5 % is promised


def test_another_world_is_new():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 16)) * 0.2
    x[:80, 0] += 1
    x[80:, 1] += 1
    found, _ = unlike_before(unit_vectors(x.astype(np.float32)), np.arange(100) >= 80)
    assert found[80:].all() and not found[:80].any()


def test_too_little_before_says_nothing():
    x = unit_vectors(np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32))
    found, usual = unlike_before(x, np.arange(30) >= 20)
    assert not found.any() and np.isnan(usual)


def test_like_is_beside_like(folder):
    m = make_map(folder)
    names = [r["picture"].rsplit("/", 1)[1] for r in m.rows]
    first, copy = names.index("0.png"), names.index("copy.png")
    assert m.near[copy, 0] == first
    assert m.group[copy] == m.group[first] >= 0
    assert np.abs(m.xy[copy] - m.xy[first]).max() < 0.01
    bright = [names.index(f"{k}.png") for k in (5, 6, 7)]
    assert set(m.near[bright[0], :2].tolist()) == set(bright[1:])


def test_a_picture_is_not_its_own_neighbour(folder):
    m = make_map(folder)
    assert all(i not in row for i, row in enumerate(m.near.tolist()))


def test_a_large_set_is_thinned_evenly(folder):
    m = make_map(folder, settings=BrowseSettings(most=4))
    assert (len(m), m.step) == (3, 4)


def test_the_window_and_what_is_new_in_it(collection):
    m = make_map(collection, since=AT + timedelta(minutes=45))
    views = m.views()
    assert sorted(m.rows[i]["frame_id"] for i in views["window"]) == list(range(45, 60))
    assert {m.rows[i]["frame_id"] for i in views["unlike before"]} >= set(range(50, 60))
    assert {"camera gate", "camera dock"} <= set(views)


def test_a_point_for_each_box(collection):
    m = make_map(collection, boxes=True)
    assert len(m) == 60 and m.rows[0]["class_name"] == "gear"


def test_an_index_lends_its_vectors(collection, tmp_path):
    from cv_pipeline.apps.picture_items import items_of
    from cv_pipeline.apps.search_files import build_index

    index = build_index(tmp_path / "index", items_of(collection))
    m = make_map(tmp_path / "index")
    assert len(m) == len(index) == 60
    assert np.allclose(m.vectors, index.vectors(np.arange(60)), atol=2e-3)


def test_a_report_brings_its_errors(folder, tmp_path):
    from dataclasses import replace

    from cv_pipeline.evaluation.failures import write_records
    from tests.helpers.eval_sets import random_set

    s = random_set(4, classes=2)
    paths = tuple(folder / f"{i % 8}.png" for i in range(len(s)))
    write_records(replace(s, paths=paths), 0.3, tmp_path / "report")
    m = make_map(tmp_path / "report")
    assert len(m) == len(s) and sum(r["errors"] for r in m.rows) > 0
    assert "errors" in m.views()


def test_the_logs_own_vectors(tmp_path):
    from cv_pipeline.core.config import load_config
    from cv_pipeline.service.assembly import run_config

    source = {"uri": "line:frames=12,seed=5,width=320,height=240", "id": "gate"}
    given = {"sources": [source], "delivery.out": str(tmp_path / "run"), "model.threads": 1}
    run_config(load_config(None, {**given, "telemetry": True}))
    m = make_map(tmp_path / "run", "log")
    assert len(m) >= 3 and m.vectors.shape[1] == 64


def test_too_few_pictures(tmp_path):
    (tmp_path / "two").mkdir()
    for k in range(2):
        cv2.imwrite(str(tmp_path / "two" / f"{k}.png"), picture(k))
    with pytest.raises(DataError, match="too few for a map"):
        make_map(tmp_path / "two")


@pytest.mark.parametrize(
    "wrong", [{"near": 0}, {"hamming": 40}, {"most": 2}, {"thumbnail": 9}, {"method": "tsne"}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BrowseSettings(**wrong)


def test_faces_are_covered_in_thumbnails(tmp_path):
    from cv_pipeline.synthetic.passers import draw_face

    image, head = np.full((240, 240, 3), 140, np.uint8), draw_face(3, 90)
    h, w = head.alpha.shape
    image[60 : 60 + h, 60 : 60 + w] = head.image
    (tmp_path / "people").mkdir()
    for k in range(3):
        cv2.imwrite(str(tmp_path / "people" / f"{k}.png"), image)
    m = make_map(tmp_path / "people", settings=BrowseSettings(thumbnail=240))
    box = [int(v) for v in np.array(head.box) + 60]
    shown = cv2.imdecode(np.frombuffer(m.thumbs[0], np.uint8), cv2.IMREAD_COLOR)
    part = shown[box[1] : box[3], box[0] : box[2]].astype(int)
    assert np.abs(part - 96).mean() < 8
