"""Crowds: reproducible sequences with a detector's faults, and MOTChallenge folders."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, DataError, Detections
from cv_pipeline.evaluation.tracking_scores import evaluate_tracking, tracks_of
from cv_pipeline.synthetic.belt import LineConfig
from cv_pipeline.synthetic.crowds import (
    CROWDS,
    Weakness,
    crowd,
    id_f1,
    line_sequence,
    mot_sequence,
    simulated_detections,
)


@pytest.mark.slow
def test_same_seed_same_crowd_other_seed_another():
    one, two, other = crowd("line-shaky", 2), crowd("line-shaky", 2), crowd("line-shaky", 2, seed=5)
    assert all(
        np.array_equal(a.xyxy, b.xyxy) and np.array_equal(a.confidence, b.confidence)
        for a, b in zip(one.found, two.found)
    )
    assert not np.array_equal(one.found[9].xyxy, other.found[9].xyxy) and other.name == "line-shaky 5"
    assert [f.frame_id for f in one.every(5).frames] == list(range(0, len(one), 5)) and one.every(5).truth[
        1
    ] is one.truth[5]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 12), seed=st.integers(0, 10**6), imagined=st.floats(0, 3))
def test_simulated_detections_are_valid_and_traceable(n, seed, imagined):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 200, (n, 2))
    truth = Detections(
        np.hstack([corner, corner + rng.uniform(10, 60, (n, 2))]),
        None,
        rng.integers(0, 4, n),
        np.arange(n) + 7,
        {"visibility": rng.random(n).astype(np.float32)},
    )
    found = simulated_detections(truth, (320, 240), rng, Weakness(imagined=imagined))
    assert ((found.confidence > 0) & (found.confidence < 1)).all() and (found.tracker_id == -1).all()
    true = found.data["true_id"]
    assert (
        set(true[true >= 0]) <= set(truth.tracker_id.tolist())
        and len(set(true[true >= 0])) == (true >= 0).sum()
    )
    assert (truth.data["visibility"][true[true >= 0] - 7] > Weakness().blind_below).all(), (
        "what is hidden is not found"
    )


def test_a_detector_without_faults_gives_the_truth():
    belt = line_sequence(
        LineConfig(size=(320, 240), density=4, overlap=0, hand_every=0), 2, Weakness(0, 0, 0, -1.0)
    )
    for found, truth in zip(belt.found, belt.truth):
        kept = np.isin(found.data["true_id"], truth.tracker_id)
        assert np.allclose(found.xyxy[kept], truth.xyxy, atol=1e-3)


@pytest.mark.parametrize("name", list(CROWDS))
def test_id_f1_is_idf1_where_boxes_are_sure(name):
    "With boxes that do not tremble, ids matched by origin and by overlap say the same."
    config, weakness, conditions = CROWDS[name]
    belt = line_sequence(
        replace(config, overlap=0.0, density=6),
        4,
        weakness._replace(jitter=0.0, imagined=0.0, blind_below=0.25),
        conditions,
    )
    rng = np.random.default_rng(0)
    named = [
        Detections(
            d.xyxy,
            d.confidence,
            d.class_id,
            (
                d.data["true_id"]
                - d.data["true_id"].min(initial=0)
                + 1000 * (i > 30) * (rng.random(len(d)) < 0.9)
            ).astype(np.int32),
            d.data,
        )
        for i, d in enumerate(belt.found)
    ]
    ours, _ = id_f1(belt, named)
    assert (
        ours
        == pytest.approx(
            evaluate_tracking(tracks_of(belt.truth), tracks_of(named)).to_dict()["IDF1"], abs=0.03
        )
        and 0.3 < ours < 0.95
    )


def test_unknown_crowds_and_broken_folders_are_named(tmp_path):
    with pytest.raises(ConfigError, match="line-heap"):
        crowd("rush hour")
    with pytest.raises(DataError, match="seqinfo"):
        mot_sequence(tmp_path)
    (tmp_path / "seqinfo.ini").write_text("[Sequence]\nseqLength=two\nframeRate=25\n")
    with pytest.raises(DataError, match="no valid frameRate"):
        mot_sequence(tmp_path)
    (tmp_path / "seqinfo.ini").write_text("[Sequence]\nseqLength=2\nframeRate=25\n")
    with pytest.raises(DataError, match="file not found"):
        mot_sequence(tmp_path)


@pytest.mark.real
def test_public_sequences_are_read(real_data):
    campus = mot_sequence(real_data / "mot/TUD-Campus")
    assert (len(campus), campus.fps, sum(map(len, campus.found)), sum(map(len, campus.truth))) == (
        71,
        25.0,
        321,
        359,
    )
    assert len(mot_sequence(real_data / "mot/PETS09-S2L1", None)) == 795
