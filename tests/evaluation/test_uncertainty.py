"""Views that come back to the same place, opinions by hand, rank statistics against the references, and
honesty: noise does not beat confidence, knowledge does."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from cv_pipeline.core.formats import read_dataset
from cv_pipeline.core.types import ConfigError, DataError, Detections, box_iou
from cv_pipeline.evaluation.records import EvalSet, box_table
from cv_pipeline.evaluation.uncertainty import (
    BASELINE,
    MEASURES,
    VIEWS,
    SecondOpinion,
    auroc,
    judge_uncertainty,
    lit,
    measure_uncertainty,
    opinions,
    plot_uncertainty,
    several_models,
    smaller,
    spearman,
    through_views,
    weighted_auroc,
    weighted_spearman,
    with_noise,
)
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.conditions import Conditions


@settings(max_examples=30, deadline=None)
@given(
    st.integers(40, 300),
    st.integers(40, 300),
    st.integers(0, 10_000),
    st.sampled_from([VIEWS[0], smaller(0.85), smaller(0.6), lit(0.7)]),
)
def test_a_view_comes_back_to_where_it_was(w, h, seed, view):
    "A bright patch is found in the changed picture and mapped back onto itself."
    rng = np.random.default_rng(seed)
    x, y, a, b = (
        int(rng.integers(0, w - 20)),
        int(rng.integers(0, h - 20)),
        int(rng.integers(14, 20)),
        int(rng.integers(14, 20)),
    )
    image = np.zeros((h, w, 3), np.uint8)
    image[y : y + b, x : x + a, 2] = 255
    before = image.copy()
    seen = view.change(image)
    assert seen.shape == image.shape and seen.dtype == np.uint8 and (image == before).all()
    rows, cols = np.nonzero((seen[..., 2].astype(int) - seen[..., 1]) > 90)
    there = np.array([[cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]], np.float32)
    back = view.back(there, (w, h))
    assert box_iou(back.astype(np.float32), np.float32([[x, y, x + a, y + b]]))[0, 0] > 0.75


def boxes(rng: np.random.Generator, n: int) -> Detections:
    corner = rng.uniform(0, 200, (n, 2))
    return Detections(
        np.hstack([corner, corner + rng.uniform(10, 60, (n, 2))]), rng.random(n), rng.integers(0, 3, n)
    )


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 12), st.integers(1, 4))
def test_opinions_keep_their_bounds_and_do_not_depend_on_order(seed, n, k):
    rng = np.random.default_rng(seed)
    mine, others = boxes(rng, n), [boxes(rng, int(rng.integers(0, 12))) for _ in range(k)]
    said = opinions(mine, others)
    assert set(said) == set(MEASURES) and all(
        v.shape == (n,) and v.dtype == np.float32 and (v >= 0).all() and (v <= 1).all() for v in said.values()
    )
    turn, back = rng.permutation(n), rng.permutation(k)
    again = opinions(mine[turn], [others[i][rng.permutation(len(others[i]))] for i in back])
    for name in MEASURES:
        np.testing.assert_allclose(again[name], said[name][turn], atol=1e-6)


def test_agreement_is_certain_and_silence_is_not():
    mine = Detections([[0, 0, 10, 10], [30, 30, 50, 50]], [0.9, 0.5], [0, 1])
    same = opinions(mine, [mine] * 3)
    np.testing.assert_allclose(same["doubt"], [0.1, 0.5], atol=1e-6)
    assert not same["swing"].any() and not same["spread"].any() and not same["dissent"].any()
    silent = opinions(mine, [Detections.empty()] * 3)
    np.testing.assert_allclose(silent["doubt"], [1 - 0.9 / 4, 1 - 0.5 / 4], atol=1e-6)
    assert (silent["spread"] == 1).all() and (silent["dissent"] == 1).all()
    renamed = opinions(mine, [replace(mine, class_id=np.array([1, 1], np.int32))])
    assert renamed["dissent"].tolist() == [1, 0] and renamed["spread"].tolist() == [0, 0]
    with pytest.raises(ConfigError, match="no other readings"):
        opinions(mine, [])


def test_one_box_confirms_one_box_and_the_right_class_goes_first():
    twins = Detections([[0, 0, 10, 10], [0, 0, 10, 10.5]], [0.9, 0.8], [0, 0])
    assert sorted(opinions(twins, [Detections([[0, 0, 10, 10]], [0.9], [0])])["dissent"].tolist()) == [0, 1]
    other = Detections([[0, 0, 10, 10], [0, 0, 10, 9]], [0.9, 0.3], [1, 0])
    said = opinions(Detections([[0, 0, 10, 10]], [0.9], [0]), [other])
    assert said["dissent"][0] == 0 and said["spread"][0] == pytest.approx(0.1, abs=1e-6), (
        "a box of the same class, though another overlaps better"
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 80))
def test_rank_statistics_equal_the_references(seed, n):
    rng = np.random.default_rng(seed)
    table, error = (
        np.column_stack([rng.random(n), rng.integers(0, 3, n), rng.normal(size=n)]),
        rng.integers(0, 5, n) / 4,
    )
    wrong = rng.random(n) < 0.4
    if len(set(error)) > 1:
        for mine, column in zip(spearman(table, error), table.T):
            if len(set(column)) > 1:
                assert mine == pytest.approx(spearmanr(column, error).statistic, abs=1e-9)
            else:
                assert np.isnan(mine)
    if 0 < wrong.sum() < n:
        for mine, column in zip(auroc(table, wrong), table.T):
            assert mine == pytest.approx(roc_auc_score(wrong, column), abs=1e-12)
    assert np.isnan(auroc(table, np.zeros(n, bool))).all() and np.isnan(spearman(table[:2], error[:2])).all()


def planted(seed: int, pictures: int = 120) -> tuple[EvalSet, np.ndarray]:
    "Boxes whose confidence knows a little about whether they are right; and that truth."
    rng = np.random.default_rng(seed)
    image = np.repeat(np.arange(pictures), 5)
    corner = np.column_stack([np.tile(np.arange(5) * 100.0, pictures), rng.uniform(0, 300, 5 * pictures)])
    truth = box_table(image, np.hstack([corner, corner + 60]), np.zeros(len(image)))
    wrong = rng.random(len(image)) < 0.25
    off = np.where(wrong, 55, rng.uniform(0, 8, len(image)))[:, None]
    conf = np.clip(0.65 - 0.12 * wrong + rng.normal(0, 0.12, len(image)), 0.01, 1)
    said = box_table(image, np.hstack([corner + off, corner + 60 + off]), np.zeros(len(image)), conf)
    return EvalSet(
        ("part",),
        tuple(map(str, range(pictures))),
        np.full((pictures, 2), 600),
        truth,
        said,
        {"sequence": np.arange(pictures) // 2},
    ), wrong


def test_knowledge_beats_confidence_noise_does_not_and_a_copy_is_a_copy():
    s, wrong = planted(0)
    rng = np.random.default_rng(1)
    report = judge_uncertainty(
        s,
        {
            "copy": 1 - s.predictions.confidence,
            "knows": wrong + rng.normal(0, 0.4, len(wrong)),
            "noise": rng.random(len(wrong)),
        },
        draws=200,
    )
    by = {w.measure: w for w in report.worth}
    assert (report.boxes, report.wrong, report.clusters) == (600, int(wrong.sum()), 60) and report.sufficient
    assert (
        by["copy"].against_confidence.low == by["copy"].against_confidence.high == 0
        and by["copy"].says == "no significant difference"
    )
    assert (
        by["knows"].says == "better than confidence"
        and by["noise"].says == "worse than confidence"
        and by[BASELINE].says == "reference"
    )
    assert by["noise"].auroc.low < 0.5 < by["noise"].auroc.high and by["knows"].correlation.low > 0.3
    assert by["copy"].auroc.value == pytest.approx(
        roc_auc_score(wrong, 1 - s.predictions.confidence), abs=1e-9
    )
    alone = judge_uncertainty(s, {"copy": 1 - s.predictions.confidence}, draws=200).worth[0]
    bounds = lambda w: [(i.value, i.low, i.high) for i in (w.correlation, w.among_right, w.auroc)]
    np.testing.assert_allclose(bounds(alone), bounds(report.worth[0]), atol=1e-12)
    assert json.dumps(report.to_dict(), allow_nan=False) and len(report.rows()) == 4


@given(st.integers(0, 1000))
def test_weights_are_copies(seed):
    "Whole weights against the reference on rows that stand as often as they weigh."
    rng = np.random.default_rng(seed)
    table, error, right = rng.integers(0, 6, (30, 3)) / 5.0, rng.random(30).round(1), rng.random(30) < 0.6
    weight = rng.integers(0, 4, 30)
    rows, w = np.repeat(np.arange(30), weight), weight.astype(float)
    order = lambda values: np.unique(values, return_inverse=True)[1]
    ranked = [order(c) for c in table.T]
    np.testing.assert_allclose(
        weighted_spearman(ranked, order(error), w),
        spearman(table[rows], error[rows]),
        atol=1e-9,
    )
    np.testing.assert_allclose(weighted_auroc(ranked, ~right, w), auroc(table[rows], ~right[rows]), atol=1e-9)


@pytest.mark.slow
def test_a_useless_measure_seldom_wins():
    """The interval of the difference holds what it promises: a second confidence of the same quality is not
    called better or worse too often."""
    said = []
    for seed in range(24):
        s, wrong = planted(seed, pictures=60)
        rng = np.random.default_rng(seed + 500)
        rival = (
            0.35 + 0.12 * wrong + rng.normal(0, 0.12, len(wrong))
        )  # drawn like 1 - confidence, independent of it
        said.append(judge_uncertainty(s, {"rival": rival}, draws=120).worth[1].says)
    assert sum(w != "no significant difference" for w in said) <= 5


def test_crowds_do_not_count_and_too_little_is_said_so():
    s, wrong = planted(3)
    everywhere = box_table(
        np.r_[s.truth.image, np.arange(len(s))],
        np.vstack([s.truth.xyxy, np.tile([0, 0, 600, 600], (len(s), 1))]),
        np.zeros(len(s.truth) + len(s)),
        crowd=np.r_[np.zeros(len(s.truth), bool), np.ones(len(s), bool)],
    )
    none = judge_uncertainty(
        replace(s, truth=everywhere), {"noise": np.random.default_rng(0).random(len(wrong))}, draws=20
    )
    assert (
        none.wrong == 0
        and not none.sufficient
        and "insufficient" in none.rows()[0]["note"]
        and none.to_dict()["measures"] == []
    )
    with pytest.raises(DataError, match="insufficient"):
        plot_uncertainty(none)
    silent = judge_uncertainty(
        replace(s, predictions=box_table([], [], [])), {"noise": np.zeros(0)}, draws=20
    )
    assert silent.boxes == 0 and not silent.sufficient and json.dumps(silent.to_dict(), allow_nan=False)
    for bad in (np.zeros(3), np.full(len(wrong), np.nan)):
        with pytest.raises(DataError, match="noise: one finite number"):
            judge_uncertainty(s, {"noise": bad})


def test_the_picture_ends_where_all_are_found():
    import matplotlib

    matplotlib.use("Agg")
    s, wrong = planted(4)
    report = judge_uncertainty(s, {"constant": np.zeros(len(wrong)), "knows": wrong.astype(float)}, draws=20)
    axes = plot_uncertainty(report)
    lines = {line.get_label(): line.get_xydata() for line in axes[0].lines}
    for name in (BASELINE, "constant", "knows"):
        np.testing.assert_allclose(lines[name][[0, -1]], [[0, 0], [1, 1]])
    assert len(lines["constant"]) == 2, "equal boxes come in any order: the diagonal"
    assert lines["knows"][1].tolist() == pytest.approx([wrong.mean(), 1.0])


@pytest.fixture(scope="module")
def model():
    return load_model("factory_line", threads=1)


@pytest.mark.slow
def test_the_models_boxes_stay_as_they_are(model):
    images = [
        FactoryLine(LineConfig(seed=31 + k, density=6), Conditions(fog=3, noise=2)).render(100)[0].image
        for k in range(2)
    ]
    asked = SecondOpinion(model, [*through_views(model), *with_noise(model, 2)])
    for plain, told in zip(model.predict(images), asked.predict(images)):
        assert (
            (plain.xyxy == told.xyxy).all()
            and (plain.confidence == told.confidence).all()
            and set(MEASURES) < set(told.data)
            and "decision" in told.data
        )
    alone, other = asked.predict(images[:1])[0], asked.predict(images[::-1])[1]
    assert all((alone.data[m] == other.data[m]).all() for m in MEASURES), (
        "doses of noise are the same whenever a picture is seen"
    )
    unlike = SecondOpinion(model, with_noise(model, 2, seed=1)).predict(images[:1])[0]
    assert (
        unlike.data["doubt"]
        != SecondOpinion(model, with_noise(model, 2)).predict(images[:1])[0].data["doubt"]
    ).any()
    grey = SecondOpinion(model, through_views(model)).predict([np.full((120, 160, 3), 90, np.uint8)])[0]
    assert len(grey) == 0 and all(len(grey.data[m]) == 0 for m in MEASURES)


def test_models_of_other_classes_are_refused(model):
    with pytest.raises(ConfigError, match="has different classes"):
        several_models([model], ("cat",))
    assert len(several_models([model, model], model.manifest.names)) == 2
    with pytest.raises(DataError, match="no labelled images"):
        measure_uncertainty(model, [])


@pytest.mark.slow
@pytest.mark.real
def test_two_networks_on_voc_pictures(real_data, tmp_path):
    "A true ensemble: another network of the same classes."
    first = load_model(real_data / "models" / "yolov8n_fp32_reconstructed.onnx", threads=1)
    spec = tmp_path / "yolox.yaml"
    spec.write_text(
        yaml.safe_dump(
            {
                "names": list(first.manifest.names),
                "preprocess": {"imgsz": [416, 416], "letterbox": "top-left", "color": "BGR", "scale": 1.0},
                "postprocess": {"head": "yolox", "iou": 0.45},
            }
        )
    )
    other = load_model(real_data / "models" / "yolox_nano.onnx", spec, threads=1)
    items = read_dataset(next((real_data / "voc100").rglob("*.json")))
    readings = several_models([other], first.manifest.names)
    report = measure_uncertainty(first, items, readings, conf=0.25, method="two networks", draws=100)
    by = {w.measure: w for w in report.worth}
    assert (
        report.pictures == 100
        and report.sufficient
        and by["doubt"].auroc.low > 0.5
        and by["doubt"].correlation.low > 0
    )
    assert by[BASELINE].auroc.value > 0.5 and report.method == "two networks"
