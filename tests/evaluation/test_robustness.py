"""Corruptions that repeat, truth that moves with them, LRP against the reference, thresholds that are not
tuned on what they are judged by, and a report that is paired."""

import json
from itertools import count

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.formats import read_dataset
from cv_pipeline.core.types import ConfigError, DataError, Detections, box_iou
from cv_pipeline.evaluation.calibration import lrp_at
from cv_pipeline.evaluation.metrics import ap_table, match_set, mean_ap
from cv_pipeline.evaluation.records import EvalSet, box_table
from cv_pipeline.evaluation.robustness import (
    CORRUPTIONS,
    KINDS_OF_FALL,
    LINE_CONDITIONS,
    OWN,
    FilmSettings,
    RobustnessSettings,
    Subject,
    corrupt,
    crossed_thresholds,
    falls_of,
    film,
    line_subjects,
    lrp_counts,
    lrp_of,
    moved_truth,
    picture_subjects,
    plot_heat_map,
    plot_retuning,
    robustness,
    robustness_of,
)
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import ModelManifest
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from tests.helpers.eval_sets import random_set


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return FactoryLine(LineConfig(seed=4, density=6)).render(200)[0].image


@pytest.mark.slow
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_repeats_and_grows(name, picture):
    before = picture.copy()
    steps = [corrupt(picture, name, s, "a", seed=3) for s in range(6)]
    assert (picture == before).all() and steps[0].image is picture
    assert all(
        c.image.shape == picture.shape and c.image.dtype == np.uint8 and c.image.flags.c_contiguous
        for c in steps
    )
    again = corrupt(picture, name, 4, "a", seed=3)
    assert (again.image == steps[4].image).all()
    far = [float(np.abs(c.image.astype(int) - picture).mean()) for c in steps]
    assert far[1] > 0.1 and all(b > 0.9 * a for a, b in zip(far, far[1:])) and far[5] > 1.2 * far[1]


CHANCE = [c.name for c in OWN if c.family in ("noise", "weather", "view") or c.name == "motion_blur"]


@pytest.mark.parametrize("name", CHANCE)
def test_chance_belongs_to_the_picture_and_the_seed(name, picture):
    made = [
        corrupt(picture, name, 3, key, seed).image for key, seed in (("a", 0), ("b", 0), ("a", 1), ("c", 2))
    ]
    assert sum((made[0] == other).all() for other in made[1:]) <= (
        2 if name == "camera_turn" else 0
    )  # two ways to turn


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from([c.name for c in OWN]), st.integers(1, 5))
def test_pictures_of_any_size(h, w, name, severity):
    image = np.random.default_rng(h * w).integers(0, 256, (h, w, 3), np.uint8)
    made = corrupt(image, name, severity, "x")
    assert made.image.shape == image.shape and made.image.dtype == np.uint8
    full = Detections([[0, 0, w, h]])
    seen = made.truth(full)
    assert len(seen) <= 1 and (seen.xyxy >= 0).all() and (seen.xyxy <= [w, h, w, h]).all()


@pytest.mark.slow
def test_severity_means_the_published_quantity(picture):
    grey = np.full((400, 400, 3), 128, np.uint8)
    for s, std in enumerate(CORRUPTIONS["gaussian_noise"].ladder[:2], 1):
        assert corrupt(grey, "gaussian_noise", s).image.std() == pytest.approx(std, rel=0.03)
    for s, photons in enumerate(CORRUPTIONS["shot_noise"].ladder[:3], 1):
        read = corrupt(grey, "shot_noise", s).image.astype(float)
        assert read.mean() == pytest.approx(128, abs=2) and read.std() == pytest.approx(
            255 * np.sqrt(128 / 255 / photons), rel=0.06
        )
    for s, share in enumerate(CORRUPTIONS["impulse_noise"].ladder, 1):
        assert (corrupt(grey, "impulse_noise", s).image[..., 0] != 128).mean() == pytest.approx(
            share, rel=0.05
        )
    for s, share in enumerate(CORRUPTIONS["occlusion"].ladder, 1):
        assert share <= corrupt(picture, "occlusion", s, "k").hidden.mean() < share + 0.06
    dot = np.zeros((480, 480, 3), np.uint8)
    dot[240, 240] = 255
    lit = corrupt(dot, "defocus_blur", 5).image[..., 0]
    wide = np.ptp(
        np.flatnonzero(corrupt(cv2.dilate(dot, np.ones((9, 9))), "defocus_blur", 5).image.any(axis=(0, 2)))
    )
    assert lit.sum() <= 400 and wide == pytest.approx(2 * 10 + 8, abs=2)


def test_patches_are_nested_and_jpeg_is_the_codec(picture):
    hidden = [corrupt(picture, "occlusion", s, "k").hidden for s in range(1, 6)]
    assert all((a <= b).all() for a, b in zip(hidden, hidden[1:]))
    direct = cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 15])[1], cv2.IMREAD_COLOR)
    assert (corrupt(picture, "jpeg", 3).image == direct).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["camera_shift", "camera_turn"]), st.integers(1, 5))
def test_boxes_move_with_the_picture(seed, name, severity):
    "Discs are drawn, the picture is moved, and the discs are found again where the truth says."
    rng = np.random.default_rng(seed)
    image, r = np.zeros((300, 400, 3), np.uint8), int(rng.integers(12, 40))
    x, y = int(rng.integers(150, 250)), int(rng.integers(110, 190))
    cv2.circle(image, (x, y), r, (255, 255, 255), -1)
    made = corrupt(image, name, severity, str(seed))
    said = made.truth(Detections([[x - r, y - r, x + r + 1, y + r + 1]]))
    bx, by, bw, bh = cv2.boundingRect((made.image[..., 0] > 127).astype(np.uint8))
    assert box_iou(said.xyxy, np.float32([[bx, by, bx + bw, by + bh]]))[0, 0] > 0.88


def test_what_is_gone_does_not_count():
    truth = Detections(
        [[0, 0, 100, 100], [200, 100, 240, 140], [300, 0, 400, 100]],
        class_id=[0, 1, 2],
        data={"iscrowd": np.array([0, 0, 1], np.int8)},
    )
    left = np.array([[1.0, 0, -80], [0, 1, 0]])
    moved = moved_truth(truth, (400, 300), left)
    assert (
        moved.class_id.tolist() == [0, 1, 2]
        and moved.data["iscrowd"].tolist() == [1, 0, 1]
        and moved.xyxy[0].tolist() == [0, 0, 20, 100]
    )
    assert moved_truth(truth, (400, 300), np.array([[1.0, 0, -150], [0, 1, 0]])).class_id.tolist() == [1, 2]
    hidden = np.zeros((300, 400), bool)
    hidden[100:140, 200:230] = True  # three quarters of the second
    covered = moved_truth(truth, (400, 300), hidden=hidden)
    assert covered.data["iscrowd"].tolist() == [0, 1, 1] and (covered.xyxy == truth.xyxy).all()
    assert len(moved_truth(Detections.empty(), (400, 300), left, hidden)) == 0
    # truth that already reaches over the border keeps its box when only something covers it
    over = Detections([[-20, 10, 60, 90]])
    assert (moved_truth(over, (400, 300), hidden=hidden).xyxy == over.xyxy).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_lrp_from_counts_is_lrp_and_weights_are_copies(seed):
    s = random_set(seed, pictures=24)
    m, rng = match_set(s, [0.5]), np.random.default_rng(seed)
    thresholds = rng.random(len(s.names))
    counts = lrp_counts(s, m, np.tile(thresholds, (len(s), 1)))
    assert lrp_of(counts.sum(0)) == pytest.approx(lrp_at(s, m, thresholds), abs=1e-12)
    weights = rng.integers(0, 3, len(s))
    if not weights @ np.bincount(s.truth.image[~s.truth.crowd], minlength=len(s)):
        return
    copies = s.select(np.repeat(np.arange(len(s)), weights))
    again = lrp_counts(copies, match_set(copies, [0.5]), np.tile(thresholds, (len(copies), 1)))
    assert lrp_of(again.sum(0)) == pytest.approx(lrp_of(np.tensordot(weights, counts, 1)), abs=1e-12)


def test_thresholds_come_from_the_other_half():
    s = random_set(3, pictures=40)
    table = crossed_thresholds(s)
    kinds = np.unique(table, axis=0)
    assert table.shape == (40, len(s.names)) and len(kinds) == 2
    first = (table == kinds[0]).all(axis=1)
    quiet = EvalSet(
        s.names, s.images, s.size, s.truth, s.predictions[~first[s.predictions.image]]
    )  # nothing is said in the first half
    changed = crossed_thresholds(quiet)
    assert (changed[first] == table[first]).all() and (changed[~first] == 1).all()
    lacking = EvalSet(s.names, s.images, s.size, s.truth[s.truth.class_id != 0], s.predictions)
    assert (crossed_thresholds(lacking, np.full((40, len(s.names)), 0.37))[:, 0] == 0.37).all()


@pytest.mark.parametrize(
    "curve, severities, kind, step",
    [
        ((0.8, 0.8, 0.8, 0.79, 0.8, 0.78), (1, 2, 3, 4, 5), "steady", 4),
        ((0.8, 0.7, 0.6, 0.5, 0.4, 0.3), (1, 2, 3, 4, 5), "graceful", None),
        ((0.8, 0.8, 0.8, 0.8, 0.8, 0.2), (1, 2, 3, 4, 5), "cliff", 4),
        ((0.8, 0.1, 0.1, 0.1, 0.1, 0.1), (1, 2, 3, 4, 5), "cliff", 0),
        ((0.8, 0.6, 0.2), (1, 5), "graceful", 0),
        ((0.8, 0.6, 0.4), (2, 4), "graceful", None),
        ((0.0, 0.0, 0.0), (1, 2), "steady", 0),
        ((0.8, 0.9, 0.85), (1, 2), "steady", 1),
        ((0.8, 0.7, 0.5), (1, 5), "graceful", 0),
    ],
)
def test_the_rule_of_falls(curve, severities, kind, step):
    k, s = falls_of(np.array(curve), severities)
    assert KINDS_OF_FALL[int(k)] == kind and (step is None or int(s) == step)
    both, _ = falls_of(np.array([curve, [1.0] * len(curve)]), severities)
    assert both.tolist() == [k, 0]


def cells_of(loss: dict[tuple[str, int], float], pictures=40, seed=0) -> dict[tuple[str, int], EvalSet]:
    "One picture set; in each cell a known share of the boxes is not said."
    rng = np.random.default_rng(seed)
    image, corner = np.repeat(np.arange(pictures), 4), rng.uniform(0, 300, (4 * pictures, 2))
    truth = box_table(image, np.hstack([corner, corner + 50]), rng.integers(0, 2, 4 * pictures))
    chance, sure = rng.random(4 * pictures), rng.uniform(0.3, 1, 4 * pictures)

    def cell(share: float) -> EvalSet:
        keep = chance >= share
        said = box_table(image[keep], truth.xyxy[keep], truth.class_id[keep], sure[keep])
        return EvalSet(
            ("gear", "bolt"),
            tuple(map(str, range(pictures))),
            np.full((pictures, 2), 400),
            truth,
            said,
            {"sequence": np.arange(pictures) // 2},
        )

    return {("clean", 0): cell(0.0), **{k: cell(v) for k, v in loss.items()}}


def test_mpc_rpc_and_the_order_are_their_definitions():
    cells = cells_of(
        {("a", 1): 0.1, ("a", 2): 0.3, ("b", 1): 0.5, ("b", 2): 0.7, ("c", 1): 0.0, ("c", 2): 0.0}
    )
    report = robustness_of(cells, draws=60)
    by_hand = {k: mean_ap(ap_table(s, match_set(s))) for k, s in cells.items()}
    spoiled = [v for k, v in by_hand.items() if k != ("clean", 0)]
    assert report.clean.value == pytest.approx(by_hand["clean", 0], abs=1e-9) == pytest.approx(1.0)
    assert report.mpc.value == pytest.approx(
        np.mean(spoiled), abs=1e-9
    ) and report.rpc.value == pytest.approx(np.mean(spoiled) / by_hand["clean", 0], abs=1e-9)
    assert (
        [f.condition for f in report.falls] == ["b", "a", "c"]
        and report.falls[2].kind == "steady"
        and report.falls[2].agree == 1.0
    )
    same = report.cell("c", 2)
    assert (same.loss.value, same.loss.low, same.loss.high) == (0, 0, 0), (
        "paired: the same boxes on the same draws lose nothing for sure"
    )
    assert (
        report.cell("b", 2).loss.low > 0
        and report.mpc.low < report.mpc.value < report.mpc.high
        and report.about["clusters"] == 20
    )
    assert (
        report.cell("b", 1).rates["recall fixed"] == pytest.approx(0.5, abs=0.12)
        and report.cell("b", 1).rates["precision fixed"] == 1
    )
    again = robustness_of(cells, draws=60)
    assert again == report and robustness_of(cells, draws=60, seed=1).mpc.low != report.mpc.low
    text = json.dumps(report.to_dict(), allow_nan=False)
    assert json.loads(text)["mPC"]["value"] == report.mpc.value


def test_thresholds_in_use_are_taken_as_fixed_and_retuning_finds_what_they_hide():
    cells = cells_of({("a", 1): 0.0, ("b", 1): 0.0})
    dim = cells["b", 1]
    cells["b", 1] = EvalSet(
        dim.names,
        dim.images,
        dim.size,
        dim.truth,
        box_table(
            dim.predictions.image,
            dim.predictions.xyxy,
            dim.predictions.class_id,
            dim.predictions.confidence / 4,
        ),
        dim.columns,
    )
    report = robustness_of(cells, thresholds=[0.29, 0.29], draws=60)
    seen, hidden = report.cell("a", 1), report.cell("b", 1)
    assert (
        seen.lrp_fixed.value == 0
        and hidden.lrp_fixed.value == pytest.approx(1.0)
        and hidden.lrp_tuned.value < 0.05
        and hidden.gain.low > 0.9
    )
    assert hidden.ap.value == pytest.approx(seen.ap.value), "AP does not see it: the order is the same"
    assert (
        hidden.thresholds["gear"][0] == pytest.approx(0.29)
        and hidden.thresholds["gear"][1] < 0.2
        and report.retuned()[0]["condition"] == "b"
    )


def test_pictures_of_numbers_are_drawn_and_too_few_are_not():
    import matplotlib

    matplotlib.use("Agg")
    report = robustness_of(cells_of({("a", 1): 0.1, ("a", 2): 0.95}), draws=40)
    ax = plot_heat_map(report)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a"] and any(
        "0.0" in t.get_text() for t in ax.texts
    )
    assert plot_retuning(report, severity=1).get_title() == "severity 1"
    few = robustness_of(cells_of({("a", 1): 0.1}, pictures=8), draws=20)
    assert (
        not few.sufficient
        and few.rows() == [{"condition": "a", "note": "insufficient"}]
        and few.retuned() == []
        and "mPC" not in few.to_dict()
    )
    with pytest.raises(DataError, match="8 pictures"):
        plot_heat_map(few)


def test_a_cell_without_objects_takes_no_part():
    cells = cells_of({("a", 1): 0.2, ("b", 1): 0.2})
    blind = cells["b", 1]
    cells["b", 1] = EvalSet(
        blind.names, blind.images, blind.size, box_table([], [], []), blind.predictions, blind.columns
    )
    report = robustness_of(cells, draws=30)
    assert np.isnan(report.cell("b", 1).ap.value) and report.mpc.value == pytest.approx(
        report.cell("a", 1).ap.value
    )
    assert json.dumps(report.to_dict(), allow_nan=False)


def test_unpaired_and_incomplete_cells_are_refused():
    cells = cells_of({("a", 1): 0.1, ("b", 2): 0.1})
    with pytest.raises(DataError, match="not measured at every severity"):
        robustness_of(cells)
    with pytest.raises(DataError, match="other images"):
        robustness_of({**cells, ("a", 1): cells["a", 1].select(np.arange(4))})
    with pytest.raises(DataError, match="is missing"):
        robustness_of({("a", 1): cells["a", 1]})


@pytest.fixture(scope="module")
def model():
    return load_model("factory_line", threads=1)


@pytest.mark.slow
def test_a_budget_stops_after_whole_pictures_and_any_prefix_is_random(model):
    subjects, ticks = line_subjects(6, 2, seed=950), count()
    cells = film(
        model,
        subjects,
        FilmSettings(["jpeg", "line fog"], (2, 4), budget_s=6),
        clock=lambda: float(next(ticks)),
    )
    assert set(cells) == {("clean", 0), ("jpeg", 2), ("jpeg", 4), ("line fog", 2), ("line fog", 4)}
    assert len({s.images for s in cells.values()}) == 1 and 4 <= len(cells["clean", 0]) < 12
    ordered = [
        film(
            model,
            subjects,
            FilmSettings(["jpeg"], (1,), budget_s=0, seed=k),
            clock=lambda: float(next(ticks)),
        )["clean", 0].images
        for k in (0, 0, 1)
    ]
    assert ordered[0] == ordered[1] != ordered[2] and {len(o) for o in ordered} == {4}, (
        "two clusters are always finished"
    )


@pytest.mark.slow
def test_order_and_company_of_pictures_change_nothing(model):
    subjects = line_subjects(3, 2, seed=960)
    one, other = (
        film(model, list(s), FilmSettings(["gaussian_noise", "camera_turn"], (3,)))
        for s in (subjects, reversed(subjects[:4]))
    )
    for key in one:
        a, b = one[key], other[key]
        for name in b.images:
            i, j = a.images.index(name), b.images.index(name)
            assert (
                a.predictions.xyxy[a.predictions.image == i] == b.predictions.xyxy[b.predictions.image == j]
            ).all()
            assert (a.truth.xyxy[a.truth.image == i] == b.truth.xyxy[b.truth.image == j]).all()


def test_the_line_moves_its_own_truth_and_clean_is_clean():
    subject = line_subjects(1, 1, seed=907)[0]
    plain, truth = subject.show("clean", 0)
    knocked, moved = subject.show("line shift", 5)
    again, _ = subject.show("clean", 0)
    assert (plain == again).all() and (plain != knocked).any() and not np.array_equal(truth.xyxy, moved.xyxy)
    assert set(truth.data) == {"iscrowd"} and len(LINE_CONDITIONS) == 13
    frame, real = FactoryLine(LineConfig(seed=907, density=5.0)).render(0)
    assert (plain == frame.image).all() and (
        truth.data["iscrowd"] == (real.detections.data["visibility"] < 0.3)
    ).all()


def test_wrong_designs_are_refused_before_the_model_is_asked(model):
    subjects = line_subjects(2, 1)
    with pytest.raises(ConfigError) as e:
        FilmSettings(["fogg", "rain", "rain"], (0, 3))
    assert len(e.value.problems) == 3
    with pytest.raises(ConfigError, match="must rise"):
        FilmSettings(["fog"], (3, 1))
    with pytest.raises(ConfigError, match="both must be non-empty"):
        FilmSettings([])
    with pytest.raises(DataError, match="same name"):
        film(model, [subjects[0], subjects[0]])
    with pytest.raises(DataError, match="no images"):
        film(model, [])
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), None, np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(DataError, match="an image must be"):
            corrupt(image, "fog", 1)
    with pytest.raises(ConfigError, match="unknown corruption"):
        corrupt(np.zeros((4, 4, 3), np.uint8), "frog", 1)


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"conditions": ["frog"]}, "conditions: unknown condition 'frog'"),
        ({"conditions": []}, "both must be non-empty"),
        ({"severities": (6,)}, "severities: 6"),
        ({"severities": (3, 1)}, "severities: "),
        ({"conf": 1.5}, "conf: 1.5"),
        ({"budget_s": -1}, "budget_s: -1"),
        ({"draws": 0}, "draws: 0"),
    ],
)
def test_settings_that_are_wrong_name_the_field(wrong, said):
    with pytest.raises(ConfigError, match=said):
        RobustnessSettings(**wrong)


@pytest.mark.slow
def test_noise_hurts_the_bundled_detector_and_pixels_do_not(model):
    "The whole way on the line: what it was never trained with is worst, and it is said with certainty."
    report = robustness(
        model,
        line_subjects(10, 3, seed=970),
        RobustnessSettings(["impulse_noise", "pixelate", "line resolution"], (1, 5), draws=60),
    )
    assert [f.condition for f in report.falls][0] == "impulse_noise" and report.sufficient
    assert (
        report.cell("impulse_noise", 5).loss.low > 0.5 and abs(report.cell("pixelate", 1).loss.value) < 0.05
    )
    assert report.clean.value > 0.8 and isinstance(model.manifest, ModelManifest)


@pytest.mark.slow
def test_subjects_of_ones_own(model):
    "Anything that can be shown can be measured."
    inner = line_subjects(4, 1, seed=980)
    mine = [
        Subject(f"mine {i}", lambda c, s, i=i: inner[i].show("clean", 0), {"sequence": i}) for i in range(4)
    ]
    cells = film(model, mine, FilmSettings(["fog"], (1, 2)))
    assert all(
        (cells["fog", 1].predictions.xyxy == cells["clean", 0].predictions.xyxy).all() for _ in range(1)
    )


@pytest.mark.slow
@pytest.mark.real
def test_yolov8n_on_voc_pictures(real_data):
    items = read_dataset(next((real_data / "voc100").rglob("*.json")))[:30]
    model = load_model(real_data / "models" / "yolov8n_fp32_reconstructed.onnx", threads=1)
    report = robustness(
        model,
        picture_subjects(items, model.manifest.names),
        RobustnessSettings(["camera_turn", "fog", "gaussian_noise"], (1, 5), draws=60),
    )
    assert report.sufficient and report.clean.value > 0.4 and 0.2 < report.rpc.value < 1
    assert (
        report.cell("gaussian_noise", 5).loss.low > 0
        and report.cell("gaussian_noise", 5).loss.value > report.cell("gaussian_noise", 1).loss.value
    )
