"""One evaluation as a whole, the worst pictures, the baseline's answer."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.evaluation.baseline import answer_for
from cv_pipeline.evaluation.intervals import (
    Finding,
    Interval,
    Verdict,
    ap_draws,
    clusters,
    draw_weights,
)
from cv_pipeline.evaluation.metrics import ap_table, match_set
from cv_pipeline.evaluation.records import box_table, data_hash
from cv_pipeline.evaluation.summary import (
    checked_floors,
    class_rows,
    evaluate_model,
    evaluate_set,
    html_table,
    html_verdict,
    judge_floors,
)
from cv_pipeline.evaluation.worst import cases, draw_case, worst_sheet
from tests.helpers.eval_sets import random_set


@pytest.fixture(scope="module")
def busy():
    s = random_set(7, pictures=90)
    return replace(
        s,
        columns={
            "sequence": np.arange(90) // 3,
            "camera": np.array(["n", "s", "rare"], object)[np.where(np.arange(90) < 4, 2, np.arange(90) % 2)],
        },
    )


def test_an_evaluation_is_complete_and_plain(busy):
    e = evaluate_set(
        busy, 0.3, ["camera"], {"AP": 0.01, "AP, camera = rare": 0.1, "recall": 0.999}, draws=100
    )
    m = json.loads(json.dumps(e.metrics()))
    assert m["verdict"] == "FAIL" and {f["what"]: f["verdict"] for f in m["findings"]} == {
        "AP": "PASS",
        "AP, camera = rare": "INSUFFICIENT",
        "recall": "FAIL",
    }
    assert (
        m["coco"]["AP"] == pytest.approx(m["intervals"]["AP"]["value"], abs=1e-9)
        and m["header"]["clusters"] == 60
    )  # sequence × camera
    rare = next(r for r in m["slices"] if r["what"] == "camera = rare")
    assert rare["AP"] is None and rare["note"] == "insufficient" and rare["pictures"] == 4
    assert {r["cause"] for r in m["errors"]} == {"Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"} and m["lrp"][
        -1
    ]["class"] == "mean"
    assert (
        "FAIL" in html_verdict(e)
        and "&lt;" in html_table([{"a": "<script>", "b": None, "c": float("nan")}])
        and "–" in html_table([{"b": None}])
    )


def test_floors_of_nothing_and_unknown_slices_are_refused(busy):
    with pytest.raises(ConfigError, match="unknown metric: AP, camera = west"):
        evaluate_set(busy, 0.3, ["camera"], {"AP, camera = west": 0.1}, draws=20, with_calibration=False)
    with pytest.raises(DataError, match="unknown column 'hour'"):
        evaluate_set(busy, 0.3, ["hour"], draws=20, with_calibration=False)


@pytest.mark.parametrize(
    "floors, words",
    [
        ({"AP": 50}, "AP: 50 is outside 0..1; for 50 % write 0.5"),
        ({"AP": 1.5}, "1.5 is outside"),
        ({"AP": -0.1}, "-0.1 is outside"),
        ({"AP": "0.5"}, "AP: '0.5' is not a number"),
        ({"AP": None}, "AP: None is not a number"),
        ({"AP": True}, "AP: True is not a number"),
        ({"AP": float("nan")}, "AP: nan is not a number"),
        ({"AP": [0.5]}, "is not a number"),
        ({"AP": 0, 5: None}, "5: None: not the name of a metric"),
        ({0.5: 0.5}, "0.5: 0.5: not the name"),
        ("AP=0.5", "must be a table"),
        ([0.5], "must be a table"),
    ],
)
def test_a_floor_that_is_no_fraction_is_refused_by_every_way_in(busy, floors, words):
    with pytest.raises(ConfigError, match=words):
        judge_floors(floors, {"AP": Interval(0.8, 0.7, 0.9)}, [], 100, 500)
    with pytest.raises(ConfigError, match=words):
        evaluate_set(busy, floors=floors, draws=20, with_calibration=False)
    with pytest.raises(ConfigError, match=words):
        evaluate_model(None, [], floors=floors)  # before the model is asked


def test_every_bad_floor_is_named_at_once():
    with pytest.raises(ConfigError) as e:
        checked_floors({"AP": 50, "recall": "x", 7: 0.5})
    assert all(word in str(e.value) for word in ("3 invalid", "AP: 50", "recall: 'x'", "7: 0.5"))


def test_floors_from_zero_to_one_are_taken_as_they_are():
    assert checked_floors({"AP": 0, "AP50": 1, "F1": np.float32(0.5)}) == {"AP": 0.0, "AP50": 1.0, "F1": 0.5}
    assert checked_floors(None) == {}


def test_a_floor_for_a_name_that_two_classes_have_is_refused():
    row = {"what": "gear", "pictures": 90, "objects": 90, "AP": 0.5, "low": 0.4, "high": 0.6}
    with pytest.raises(ConfigError, match="two classes are called 'gear'"):
        judge_floors({"AP, gear": 0.3}, {}, [row, row], 90, 90)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_class_table_is_what_each_class_alone_would_give(seed):
    s = random_set(seed, pictures=120)
    m, weights = match_set(s), draw_weights(clusters(s), 60, seed)
    shared = class_rows(s, m, weights)
    for c, name in enumerate(s.names):
        drawn = ap_draws(s, m, weights)
        alone = drawn.interval(lambda ap, c=c: float(np.nanmean(ap[:, c])))
        holds = {int(i) for i in s.truth.image[m.counted & (s.truth.class_id == c)]}
        assert shared[c]["what"] == name and shared[c]["pictures"] == len(holds)
        got = [shared[c][k] for k in ("AP", "low", "high")]
        assert shared[c]["clusters"] == len(holds) <= alone.clusters
        assert got[0] == pytest.approx(alone.value, abs=1e-12)
        # the class is in fewer clusters than all together: a little wider
        assert 1 <= (got[2] - got[1]) / (alone.high - alone.low) < 1.1
    assert [r["what"] for r in shared[3:]] == ["size small", "size medium", "size large"]


def test_a_class_in_one_picture_has_its_value_and_no_proof():
    s = random_set(4, pictures=20)
    few = replace(s, truth=s.truth[(s.truth.class_id != 0) | (s.truth.image == s.truth.image[0])])
    m = match_set(few)
    found = ap_draws(few, m, draw_weights(clusters(few), 200)).of_class(0)
    assert found.value == pytest.approx(float(np.nanmean(ap_table(few, m)["ap"][:, 0])), abs=1e-9)
    assert found.clusters == 1 and found.high - found.low > 0.4


def test_the_draws_are_made_once_for_all_classes(monkeypatch):
    from cv_pipeline.evaluation import intervals

    calls, real = [], intervals.APSampler.__call__
    monkeypatch.setattr(
        intervals.APSampler, "__call__", lambda self, w: calls.append(np.ndim(w)) or real(self, w)
    )
    s = random_set(5, pictures=200)
    m = match_set(s)
    class_rows(s, m, draw_weights(clusters(s), 10))
    assert calls.count(2) <= 4  # one pass for all classes, one for each size


def test_pictures_without_a_sequence_are_counted_in_the_header(busy):
    some = replace(busy, columns={"sequence": np.array([""] * 30 + ["a"] * 20 + ["b"] * 40, object)})
    e = evaluate_set(some, draws=20, with_calibration=False)
    assert e.header["clusters"] == 32
    assert e.header["pictures without a sequence"] == "30 of 90: each is a cluster of its own"
    assert "pictures without a sequence" not in evaluate_set(busy, draws=20, with_calibration=False).header


@pytest.mark.slow
def test_a_better_answer_on_the_same_pictures_is_called_better(busy):
    rng = np.random.default_rng(0)
    worse = replace(busy, predictions=busy.predictions[rng.random(len(busy.predictions)) < 0.5])
    assert (
        evaluate_set(busy, baseline=worse, draws=200, with_calibration=False).comparison["says"] == "better"
    )
    assert evaluate_set(worse, baseline=busy, draws=200, with_calibration=False).comparison["says"] == "worse"
    assert evaluate_set(busy, baseline=busy, draws=50, with_calibration=False).comparison["difference"] == 0


def test_the_hash_is_of_the_truth(busy):
    assert data_hash(busy) == data_hash(replace(busy, predictions=box_table([], [], [])))
    moved = replace(busy, truth=replace(busy.truth, xyxy=busy.truth.xyxy + 1))
    assert (
        len(
            {
                data_hash(s)
                for s in (busy, moved, busy.select(np.arange(40)), replace(busy, names=("a", "b", "d")))
            }
        )
        == 4
    )


def test_worst_pictures_account_for_every_error(busy):
    ranked = cases(busy, 0.4)
    assert [c.errors for c in ranked] == sorted((c.errors for c in ranked), reverse=True) and len(
        ranked
    ) == len(busy)
    real = ~busy.truth.crowd
    assert sum(len(c.hits) + len(c.missed) for c in ranked) == real.sum()
    shown = busy.predictions.confidence >= 0.4
    assert sum(len(c.hits) + len(c.false) for c in ranked) <= shown.sum()  # the rest lies in crowds
    blank = np.zeros((500, 500, 3), np.uint8)
    assert (draw_case(busy, ranked[0], blank) != blank).any() and not blank.any()
    assert worst_sheet(busy, 0.4, picture=lambda i: blank).ndim == 3
    with pytest.raises(DataError, match="only labels were found"):
        worst_sheet(busy, 0.4)
    assert worst_sheet(replace(busy, predictions=busy.truth[real], truth=busy.truth[real]), 0.4) is None


@pytest.mark.parametrize(
    "verdicts, unknown, late, answer",
    [
        ("P", (), None, "no"),
        ("PF", (), None, "yes"),
        ("PI", (), None, "label more"),
        ("P", (), "F", "too slow"),
        ("P", ("defect",), "F", "yes"),
        ("FI", (), "F", "yes"),
        ("", (), None, "floors?"),
        ("", (), "P", "no"),
    ],
)
def test_the_baselines_answer(verdicts, unknown, late, answer):
    kind = {"P": Verdict.PASS, "F": Verdict.FAIL, "I": Verdict.INSUFFICIENT}
    found, reasons = answer_for(
        [Finding("AP", kind[v], "why") for v in verdicts],
        unknown,
        Finding("latency", kind[late], "slow") if late else None,
    )
    assert found == answer and (reasons or answer == "floors?")


def test_slices_come_from_the_coco_file_when_none_are_named(tmp_path):
    """Every column that divides the set, and no more: not the sequence, not a value of its own for each
    picture."""
    from cv_pipeline.evaluation.records import coco_columns, read_coco
    from cv_pipeline.evaluation.summary import sliceable

    book = {
        "images": [
            {
                "id": i,
                "file_name": f"{i}.jpg",
                "width": 64,
                "height": 64,
                "camera": "ab"[i % 2],
                "sequence": i // 2,
                "note": f"n{i}",
                "site": "x",
            }
            for i in range(20)
        ],
        "categories": [{"id": 1, "name": "part"}],
        "annotations": [
            {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}
        ],
    }
    file = tmp_path / "val.json"
    file.write_text(json.dumps(book))
    assert coco_columns(file)["camera"] == {f"{i}.jpg": "ab"[i % 2] for i in range(20)}
    s = read_coco(file)
    assert sliceable(s) == ["camera"] and set(s.columns) == {"camera", "sequence", "note", "site"}
    e = evaluate_set(s, slices=None, draws=20, with_calibration=False)
    assert [r["what"] for r in e.slices] == ["camera = a", "camera = b"]
