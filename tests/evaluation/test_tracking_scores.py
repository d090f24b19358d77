"""HOTA, CLEAR and identity scores: TrackEval is the oracle, on real and on random sequences; what is wrong
with a file is said."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import DataError, Detections, SinkError, box_iou
from cv_pipeline.evaluation.tracking_scores import (
    TrackTable,
    evaluate_tracking,
    find_sequences,
    ids_along_truth,
    read_mot,
    read_run,
    track_table,
    tracks_of,
)
from tests.helpers.services import require

trackeval = require("trackeval", reason="TrackEval is not installed: `make test` does it")


def oracle(truth: TrackTable, result: TrackTable) -> dict:
    "TrackEval's own numbers for the same tables."
    ids = [np.unique(t.id, return_inverse=True) for t in (truth, result)]
    data = {
        "num_gt_ids": len(ids[0][0]),
        "num_tracker_ids": len(ids[1][0]),
        "num_gt_dets": len(truth),
        "num_tracker_dets": len(result),
        "gt_ids": [],
        "tracker_ids": [],
        "similarity_scores": [],
    }
    last = int(max(truth.frame.max(), result.frame.max() if len(result) else 0)) + 1
    data["num_timesteps"] = last
    for at in range(last):
        a, b = truth.frame == at, result.frame == at
        data["gt_ids"].append(ids[0][1][a])
        data["tracker_ids"].append(ids[1][1][b])
        data["similarity_scores"].append(box_iou(truth.xyxy[a], result.xyxy[b]))
    hota = trackeval.metrics.HOTA().eval_sequence(data)
    clear = trackeval.metrics.CLEAR({"PRINT_CONFIG": False}).eval_sequence(data)
    identity = trackeval.metrics.Identity({"PRINT_CONFIG": False}).eval_sequence(data)
    names = {"Rcll": "CLR_Re", "Prcn": "CLR_Pr", "FP": "CLR_FP", "FN": "CLR_FN"}
    both = {**{k: np.mean(v) for k, v in hota.items()}, **clear, **identity}
    wanted = (
        "HOTA",
        "DetA",
        "AssA",
        "DetRe",
        "DetPr",
        "AssRe",
        "AssPr",
        "LocA",
        "MOTA",
        "MOTP",
        "Rcll",
        "Prcn",
        "IDF1",
        "IDR",
        "IDP",
        "IDSW",
        "FP",
        "FN",
        "MT",
        "PT",
        "ML",
        "Frag",
    )
    return {k: float(both[names.get(k, k)]) for k in wanted}


def agrees(truth: TrackTable, result: TrackTable) -> dict:
    ours, theirs = evaluate_tracking(truth, result).to_dict(), oracle(truth, result)
    for key, value in theirs.items():
        assert ours[key] == pytest.approx(value, abs=1e-9), key
    return ours


def random_tracks(
    seed: int, frames: int, objects: int, jitter: float, crowd: float
) -> tuple[TrackTable, TrackTable]:
    "Walkers in a small room, seen with jitter, misses, false boxes and swapped ids."
    rng = np.random.default_rng(seed)
    place, speed = rng.uniform(0, crowd, (objects, 2)), rng.normal(0, 3, (objects, 2))
    names, truth, result, fresh = np.arange(objects), [], [], objects
    for at in range(frames):
        place = place + speed
        here = rng.random(objects) < 0.9
        boxes = np.hstack([place, place + (30, 60)])
        truth += [(at, i, *boxes[i]) for i in np.flatnonzero(here)]
        if rng.random() < 0.2 and objects > 1:
            i, j = rng.choice(objects, 2, replace=False)
            names[[i, j]] = names[[j, i]]
        if rng.random() < 0.1:
            names[rng.integers(objects)], fresh = fresh, fresh + 1
        result += [
            (at, names[i], *(boxes[i] + rng.normal(0, jitter, 4)))
            for i in np.flatnonzero(rng.random(objects) < 0.8)
        ]
        if rng.random() < 0.3:
            result.append(
                (at, 10_000 + at, *np.r_[rng.uniform(0, crowd, 2), rng.uniform(crowd, crowd + 60, 2)])
            )
    pack = lambda rows: (lambda a: track_table(a[:, 0], a[:, 1], a[:, 2:]))(
        np.array(rows, float).reshape(-1, 6)
    )
    return pack(truth), pack(result)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 25),
    st.integers(1, 8),
    st.sampled_from([0.0, 2.0, 8.0]),
    st.sampled_from([40.0, 200.0]),
)
def test_equal_to_trackeval_on_random_walks(seed, frames, objects, jitter, crowd):
    truth, result = random_tracks(seed, frames, objects, jitter, crowd)
    if len(truth):
        agrees(truth, result)


def test_two_objects_that_last_matched_the_same_track_get_it_once():
    box, far = [0, 0, 10, 10], [100, 0, 110, 10]
    truth = track_table([0, 1, 2, 2], [1, 2, 1, 2], [box, box, box, [1, 0, 11, 10]])
    result = track_table([0, 1, 2, 2], [7, 7, 7, 8], [box, box, box, far])
    assert agrees(truth, result)["IDSW"] == 0


def test_overlap_of_exactly_one_half_counts():
    truth, result = track_table([0], [1], [[0, 0, 10, 10]]), track_table([0], [1], [[0, 0, 10, 5]])
    assert agrees(truth, result)["MOTA"] == 1


def test_a_switch_is_counted_and_named():
    boxes = [[0, 0, 10, 10]] * 4
    scores = evaluate_tracking(
        track_table(range(4), [5] * 4, boxes), track_table(range(4), [1, 1, 2, 2], boxes)
    )
    assert scores.IDSW == 1 and scores.switches == [(2, 5, 1, 2)]
    assert ids_along_truth(
        track_table(range(4), [5] * 4, boxes), track_table([0, 3], [1, 2], boxes[:2])
    ).tolist() == [1, -1, -1, 2]


def test_sums_of_sequences_equal_trackevals_combination():
    pairs = [random_tracks(seed, 20, 5, 2.0, 100.0) for seed in (1, 2, 3)]
    total = sum((evaluate_tracking(*p) for p in pairs[1:]), evaluate_tracking(*pairs[0])).to_dict()
    shift = lambda tables: TrackTable(
        *(
            np.concatenate([getattr(t, f) + (1000 * k if f != "xyxy" else 0) for k, t in enumerate(tables)])
            for f in ("frame", "id", "xyxy")
        )
    )
    truth, result = (shift(t) for t in zip(*pairs))  # one long sequence with other ids is the same as three
    long = evaluate_tracking(
        truth, track_table(result.frame, result.id + 100_000 * (result.frame // 1000), result.xyxy)
    ).to_dict()
    for key in ("HOTA", "AssA", "DetA", "MOTA", "IDF1", "IDSW", "FP", "FN", "MT"):
        assert total[key] == pytest.approx(long[key], abs=1e-9), key


def test_unconfirmed_rows_are_no_tracks():
    d = Detections([[0, 0, 10, 10], [20, 0, 30, 10]], tracker_id=np.array([0, -1]))
    table = tracks_of([d, d])
    assert len(table) == 2 and table.unconfirmed == 2 and table.frames == 2


@pytest.mark.real
def test_published_numbers_of_tud_campus(real_data):
    """Matlab devkit: MOTA 52.6, MOTP 72.3, IDF1 55.8, IDP 73.0, IDR 45.1, FP 13, FN 150, 7 switches, 7
    fragments, MT/PT/ML 1/6/1."""
    truth = read_mot(real_data / "mot/TUD-Campus/gt/gt.txt", truth=True)
    result = read_mot(real_data / "mot/reference_tracker_outputs/TUD-Campus.txt")
    s = agrees(truth, result)
    assert [s[k] for k in ("FP", "FN", "IDSW", "Frag", "MT", "PT", "ML", "GT_IDs")] == [
        13,
        150,
        7,
        7,
        1,
        6,
        1,
        8,
    ]
    assert [round(100 * s[k], 1) for k in ("MOTA", "MOTP", "IDF1", "IDP", "IDR", "Rcll", "Prcn")] == [
        52.6,
        72.3,
        55.8,
        73.0,
        45.1,
        58.2,
        94.1,
    ]
    assert truth.frames == 71


@pytest.mark.parametrize(
    "text, message",
    [
        ("1,1,10,10,5,5,1,-1,-1,-1\n1,1,10,10,5,5,1,-1,-1,-1\n", "id 1 occurs twice in frame 0"),
        ("1,1,10,10\n", "line 1 has 4 values"),
        ("0,1,10,10,5,5,1\n", "counts from 1"),
        ("1,1,a,10,5,5,1\n", "not numeric"),
        ("1,1,nan,10,5,5,1\n", "NaN"),
        ("1,1.5,10,10,5,5,1\n", "whole numbers"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path, text, message):
    (tmp_path / "gt.txt").write_text(text)
    with pytest.raises(DataError, match=message) as e:
        read_mot(tmp_path / "gt.txt", truth=True)
    assert "gt.txt" in str(e.value)


def test_missing_results_and_empty_truth_are_errors(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "gt" / name / "gt").mkdir(parents=True)
        (tmp_path / "gt" / name / "gt" / "gt.txt").write_text("1,1,10,10,5,5,1,-1,-1,-1\n")
    (tmp_path / "res").mkdir()
    (tmp_path / "res" / "a.txt").write_text("")
    with pytest.raises(DataError, match="no result for b"):
        find_sequences(tmp_path / "gt", tmp_path / "res")
    (tmp_path / "res" / "b.txt").write_text("1,3,10,10,5,5,1\n")
    found = find_sequences(tmp_path / "gt", tmp_path / "res")
    assert [evaluate_tracking(*found[k]).FN for k in "ab"] == [1, 0]
    (tmp_path / "gt" / "a" / "gt" / "gt.txt").write_text("1,1,10,10,5,5,0,-1,-1,-1\n")
    with pytest.raises(DataError, match="no ground-truth tracks"):
        evaluate_tracking(*find_sequences(tmp_path / "gt", tmp_path / "res")["a"])
    with pytest.raises(DataError, match="no ground truth found"):
        find_sequences(tmp_path / "res" / "..", tmp_path / "res")
    (tmp_path / "gt" / "b" / "seqinfo.ini").write_text("[Sequence]\nseqLength=many\n")
    with pytest.raises(DataError, match="seqinfo.ini cannot be read"):
        find_sequences(tmp_path / "gt", tmp_path / "res")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SinkError, match="no results found"):
        read_run(tmp_path / "empty")


def test_a_truth_is_not_compared_with_itself(tmp_path):
    (tmp_path / "gt.txt").write_text("1,1,10,10,5,5,1,-1,-1,-1\n")
    with pytest.raises(DataError, match="are the same file"):
        find_sequences(tmp_path / "gt.txt", tmp_path / "gt.txt")
    with pytest.raises(DataError, match="are the same file"):
        find_sequences(tmp_path / "gt.txt", tmp_path)  # the folder holds only the truth


def test_scores_are_kept_with_the_tracker_and_the_model_of_their_run(tmp_path):
    from typer.testing import CliRunner

    from cv_pipeline.commands.main import app

    rows = "".join(f"{k},1,{10 + k},10,20,20,1,-1,-1,-1\n" for k in range(1, 9))
    (tmp_path / "gt.txt").write_text(rows)
    (tmp_path / "res.txt").write_text(rows)
    out = tmp_path / "tracking.json"
    made = CliRunner().invoke(
        app, ["eval-tracking", str(tmp_path / "gt.txt"), str(tmp_path / "res.txt"), "--out", str(out)]
    )
    assert made.exit_code == 0, made.exception
    book = json.loads(out.read_text())
    assert (book["HOTA"], book["IDF1"], book["tracker"]) == (100.0, 100.0, None)
    assert book["stamp"]["cv_pipeline"]
