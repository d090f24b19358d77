"""Audits: the same sample from the same lots, unbiased weights, intervals that hold, and every sample that is
too small said to be so."""

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.annotation.cases import CollectPolicy
from cv_pipeline.annotation.collect import CollectSink, Flag
from cv_pipeline.commands.monitoring import audit_draw
from cv_pipeline.core.formats import LabelledImage
from cv_pipeline.core.types import ConfigError, DataError, Detections, Frame, FrameResult
from cv_pipeline.monitoring.audit import (
    AuditPlan,
    against,
    allocate,
    design_weights,
    draw_audit,
    flag_signal,
    flags_between,
    read_audit,
    score_audit,
    strata_of,
    take_pictures,
    write_audit,
)
from cv_pipeline.monitoring.prediction_log import PredictionLog, read_log
from cv_pipeline.monitoring.telemetry import TelemetrySink

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


def made_log(cameras=(("gate", 300), ("exit", 60)), seed=0):
    "A log without pictures: boxes of three classes, the second camera is less sure."
    rng, frame = np.random.default_rng(seed), []
    for c, (_, n) in enumerate(cameras):
        for k in range(n):
            frame.append((c, k, int((NOON + timedelta(seconds=k)).timestamp() * 1e6)))
    n = len(frame)
    counts = rng.poisson(2, n)
    camera, number, at = map(np.array, zip(*frame))
    m, box = int(counts.sum()), np.repeat(np.arange(n), counts)
    confidence = np.clip(rng.normal(np.where(camera[box] == 0, 0.85, 0.6), 0.1), 0.05, 1).astype(np.float32)
    corner = rng.integers(0, 500, (m, 2)).astype(np.float32)
    frames = {
        "camera": camera,
        "frame_id": number,
        "captured_at": at,
        "width": np.full(n, 640),
        "height": np.full(n, 640),
        "selected": np.ones(n, bool),
        "status": np.zeros(n, int),
        "model": np.zeros(n, int),
        "detections": counts,
    }
    found = {
        "frame": box,
        "class_id": rng.choice(3, m, p=[0.6, 0.35, 0.05]),
        "confidence": confidence,
        "xyxy": np.hstack([corner, corner + 60]),
        "area_share": np.zeros(m),
        "tracker_id": np.full(m, -1),
        "decision": np.zeros(m, np.int8),
    }
    return PredictionLog(
        tuple(c for c, _ in cameras), ("bolt", "gear", "nut"), ("m 1",), ("ok",), frames, found
    )


LOG = made_log()


def truth_for(audit, miss=0.2, seed=1, only=None):
    """Labelled pictures: what the model said, with some boxes that it should have found as well; more of them
    at the second camera."""
    for look in audit.looks if only is None else audit.looks[:only]:
        rng = np.random.default_rng([seed, look.frame_id, len(look.camera)])
        said = [
            {
                "bbox": [*d["xyxy"][:2], 60, 60],
                "category_id": ["bolt", "gear", "nut"].index(d["class_name"]) + 1,
                "iscrowd": 0,
                "area": 3600,
            }
            for d in look.detections
        ]
        missed = [
            {"bbox": [590 - 70 * i, 590, 40, 40], "category_id": 1, "iscrowd": 0, "area": 1600}
            for i in range(int(rng.binomial(3, miss * (3 if look.camera == "exit" else 1))))
        ]
        yield LabelledImage(Path(look.picture), ("bolt", "gear", "nut"), None, said + missed, (1, 2, 3))


def test_the_same_lots_give_the_same_sample_and_weights_add_up():
    audit = draw_audit(LOG, AuditPlan(looks=60))
    assert audit == draw_audit(LOG, AuditPlan(looks=60)) and audit != draw_audit(
        LOG, AuditPlan(looks=60, seed=1)
    )
    assert sum(1 / look.probability for look in audit.looks) == pytest.approx(len(LOG))
    assert {look.camera for look in audit.looks} == {"gate", "exit"} and len(
        set(look.picture for look in audit.looks)
    ) == 60


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 500), min_size=1),
    st.integers(16, 400),
    st.integers(1, 20),
)
def test_allocation_spends_the_budget_and_never_more_than_there_is(sizes, looks, least):
    drawn = allocate(sizes, AuditPlan(looks=looks, least=least))
    assert sum(drawn.values()) == min(looks, sum(sizes.values()))
    assert all(0 < drawn[s] <= sizes[s] for s in sizes)


def test_strata():
    by = strata_of(LOG, AuditPlan())
    for k in range(0, len(LOG), 7):
        mine = LOG.detections["confidence"][LOG.detections["frame"] == k]
        assert by[k].split(" / ")[1] == (
            "nothing" if not len(mine) else "sure" if mine.min() >= 0.6 else "unsure"
        )
    assert set(strata_of(LOG, AuditPlan(by="camera"))) == {"gate", "exit"}
    rare = strata_of(LOG, AuditPlan(by="class"))
    with_nut = np.isin(np.arange(len(LOG)), LOG.detections["frame"][LOG.detections["class_id"] == 2])
    assert all(r.endswith("/ nut") == n for r, n in zip(rare, with_nut))


@pytest.mark.slow
def test_weighted_accuracy_is_unbiased_where_the_plain_mean_is_not_and_intervals_hold():
    everything = draw_audit(LOG, AuditPlan(looks=10_000))
    whole = score_audit(everything, list(truth_for(everything)), draws=2).numbers["recall"].value
    weighted, inside = [], 0
    for seed in range(60):
        audit = draw_audit(LOG, AuditPlan(looks=60, least=15, seed=seed))
        found = score_audit(audit, list(truth_for(audit)), draws=200).numbers["recall"]
        weighted.append(found.value)
        inside += found.low <= whole <= found.high
    assert abs(np.mean(weighted) - whole) < 3.5 * np.std(weighted) / np.sqrt(60)
    assert inside >= 51  # of 60; a 95 % interval misses 10 or more with probability < .1 %


def test_what_is_not_labelled_is_weighted_for_and_said():
    audit = draw_audit(LOG, AuditPlan(looks=80))
    part = list(truth_for(audit))[::2]
    found = score_audit(audit, part)
    assert found.labelled == 40 and any("40 of 80 frames are not labelled" in n for n in found.notes)


def test_too_small_samples_are_insufficient_not_numbers():
    audit = draw_audit(LOG, AuditPlan(looks=60))
    few = score_audit(audit, list(truth_for(audit))[:12])
    assert few.verdict == "INSUFFICIENT" and "12 frames" in few.reason
    assert against(few, {"AP": 0.9})["state"] == "insufficient"
    with pytest.raises(DataError, match=r"at least 2 labelled frames are needed, not 1"):
        score_audit(audit, list(truth_for(audit))[:1])
    with pytest.raises(DataError, match="none of the labelled images belongs to this audit"):
        score_audit(audit, [replace(next(truth_for(audit)), path=Path("x.jpg"))])
    lopsided = [item for look, item in zip(audit.looks, truth_for(audit)) if look.stratum != "gate / sure"]
    assert (
        "have no label" in score_audit(audit, lopsided).reason or score_audit(audit, lopsided).labelled < 30
    )


def test_a_yolo_picture_without_a_label_file_is_not_labelled(tmp_path):
    audit = draw_audit(LOG, AuditPlan(looks=40))
    items = [
        LabelledImage(tmp_path / look.picture, ("bolt", "gear", "nut"), tmp_path / f"{k}.txt")
        for k, look in enumerate(audit.looks)
    ]
    for k in range(10):
        items[k].label.write_text("")
    assert score_audit(audit, items).labelled == 10


def test_strata_of_one_look_borrow_a_spread():
    weight, drawn = design_weights(np.array([0] * 10 + [1, 2]), np.array([500, 20, 10]), 3000, 0)
    assert weight.tolist() == [50.0] * 10 + [20.0, 10.0]
    assert (drawn.std(axis=0) > 0).all() and np.allclose(drawn.mean(axis=0), weight, rtol=0.1)
    with pytest.raises(DataError, match="labelled frames are needed"):
        design_weights(np.array([0]), np.array([9]))


def test_only_what_the_collection_kept_by_lot_is_drawn(tmp_path):
    sink, telemetry = (
        CollectSink(
            tmp_path / "c",
            CollectPolicy(random=0.3, low=None, high=None, none=None, many=None, flicker=False, hamming=-1),
        ),
        TelemetrySink(tmp_path / "log"),
    )
    rng = np.random.default_rng(0)
    for k in range(120):
        image = cv2.resize(rng.integers(0, 255, (6, 8, 3), np.uint8), (64, 48))
        r = FrameResult(
            Frame(image, "gate", k, NOON + timedelta(seconds=k)),
            Detections([[2, 2, 30, 30]], [0.9], [0]),
            ("bolt",),
            {},
            True,
            "ok",
            "m 1",
        )
        sink.write(r)
        telemetry.write(r)
    sink.close()
    telemetry.close()
    log, rows = (
        read_log(tmp_path / "log"),
        [json.loads(line) for line in (tmp_path / "c" / "collected.jsonl").read_text().splitlines()],
    )
    kept = {("gate", r["frame_id"]) for r in rows}
    audit = draw_audit(log, AuditPlan(looks=20), kept)
    assert {(look.camera, look.frame_id) for look in audit.looks} <= kept
    assert sum(1 / look.probability for look in audit.looks) == pytest.approx(120)
    assert (
        take_pictures(audit, tmp_path / "audit", collection=tmp_path / "c") == []
        and len(list((tmp_path / "audit" / "images").iterdir())) == 20
    )
    with pytest.raises(DataError, match="none of the kept images belongs to this log"):
        draw_audit(log, AuditPlan(looks=20), [("attic", 1)])
    (tmp_path / "c" / "collected.jsonl").write_text("")  # an empty collection is not "all frames"
    with pytest.raises(DataError, match="none of the kept images belongs to this log"):
        audit_draw(tmp_path / "log", out=tmp_path / "b", collection=tmp_path / "c", plan=AuditPlan(looks=20))


def two_runs(folder, value=lambda run, k: 10 + 100 * run + k % 60):
    """Two runs of sixty looks of one camera, a day apart, numbers 0 to 59 in both; the picture's grey level
    says which."""
    for run in range(2):
        sink = TelemetrySink(folder)
        for k in range(60):
            sink.write(
                FrameResult(
                    Frame(
                        np.full((48, 64, 3), value(run, k), np.uint8),
                        "gate",
                        k,
                        NOON + timedelta(days=run, seconds=k, microseconds=7),
                    ),
                    Detections([[2, 2, 30, 30]], [0.9], [0]),
                    ("bolt",),
                    {},
                    True,
                    "ok",
                    "m",
                )
            )
        sink.close()
    return read_log(folder)


class Again:
    "A run that can be read again, with its times or with others."

    live = False

    def __init__(self, run, offset=timedelta(0)):
        self.source_id, self.run, self.offset = "gate", run, offset

    def __iter__(self):
        for k in range(60):
            yield Frame(
                np.full((48, 64, 3), 10 + 100 * self.run + k, np.uint8),
                "gate",
                k,
                NOON + timedelta(days=self.run, seconds=k, microseconds=7) + self.offset,
            )

    def close(self):
        pass


def right(audit, folder):
    "How many pictures there are; each is the one of its own run."
    found = [look for look in audit.looks if (folder / look.picture).exists()]
    for look in found:
        assert (
            abs(
                cv2.imread(str(folder / look.picture))[0, 0, 0]
                - (10 + 100 * (look.captured_at > "2026-06-02") + look.frame_id)
            )
            <= 1
        ), look
    return len(found)


def test_runs_whose_numbers_begin_anew_do_not_get_each_others_pictures(tmp_path):
    log = two_runs(tmp_path / "log")
    audit = draw_audit(log, AuditPlan(looks=60, by="camera"))
    assert (
        len({(look.frame_id, look.captured_at) for look in audit.looks})
        == len({look.picture for look in audit.looks})
        == 60
        and len({look.frame_id for look in audit.looks}) > 35
    )
    assert all(look.repeated for look in audit.looks)
    second = [look for look in audit.looks if look.captured_at > "2026-06-02"]
    missing = take_pictures(audit, tmp_path / "a", {"gate": Again(1)})
    assert right(audit, tmp_path / "a") == len(second) == 60 - len(missing) and 15 < len(second) < 45
    assert (
        take_pictures(audit, tmp_path / "a", {"gate": Again(0)}) == [] and right(audit, tmp_path / "a") == 60
    )  # the other run, later
    assert (
        len(take_pictures(audit, tmp_path / "b", {"gate": Again(1, timedelta(hours=1))})) == 60
        and not (tmp_path / "b").exists()
    )  # which run this is nobody knows
    one = draw_audit(log.between("2026-06-02"), AuditPlan(looks=30, by="camera"))
    assert (
        take_pictures(one, tmp_path / "c", {"gate": Again(1, timedelta(hours=1))}) == []
        and right(one, tmp_path / "c") == 30
    )  # a file has no times of its own: the number is enough where it is the only one
    write_audit(audit, tmp_path / "a")
    assert read_audit(tmp_path / "a") == audit


def test_a_collection_of_two_runs_is_matched_by_time(tmp_path):
    log = two_runs(tmp_path / "log")
    sink = CollectSink(
        tmp_path / "c",
        CollectPolicy(random=1.0, low=None, high=None, none=None, many=None, flicker=False, hamming=-1),
    )
    for k in range(60):
        sink.write(
            FrameResult(
                Frame(
                    np.full((48, 64, 3), 110 + k, np.uint8),
                    "gate",
                    k,
                    NOON + timedelta(days=1, seconds=k, microseconds=7),
                ),
                Detections([[2, 2, 30, 30]], [0.9], [0]),
                ("bolt",),
                {},
                True,
                "ok",
                "m",
            )
        )
    sink.close()
    rows = [json.loads(line) for line in (tmp_path / "c" / "collected.jsonl").read_text().splitlines()]
    kept = [
        ("gate", r["frame_id"], datetime.fromisoformat(r["captured_at"]) + timedelta(microseconds=k % 3 - 1))
        for k, r in enumerate(rows)
    ]  # as times are that went through a float
    audit = draw_audit(log, AuditPlan(looks=30, by="camera"), kept)
    assert len(audit.looks) == 30 and all(look.captured_at > "2026-06-02" for look in audit.looks)
    assert (
        take_pictures(audit, tmp_path / "a", collection=tmp_path / "c") == []
        and right(audit, tmp_path / "a") == 30
    )
    both = draw_audit(log, AuditPlan(looks=60, by="camera"))
    missing = take_pictures(both, tmp_path / "b", collection=tmp_path / "c")
    assert (
        missing
        and {look.captured_at[:10] for look in missing} == {"2026-06-01"}
        and right(both, tmp_path / "b") == 60 - len(missing)
    )
    with pytest.raises(DataError, match="120 frames share camera and number with others"):
        draw_audit(log, AuditPlan(looks=30, by="camera"), [k[:2] for k in kept])


def test_flags_without_a_time_are_vague_where_numbers_repeat(tmp_path):
    log, notes = two_runs(tmp_path / "log"), []
    assert flags_between(
        [Flag("gate", 3), Flag("gate", at=NOON), Flag("gate", 99)], log, notes
    ) == 1 and notes == ["1 flags have no time, and a frame number that occurs in several runs"]
    assert flags_between([Flag("gate", 3)], log.between("2026-06-02"), notes) == 1 and len(notes) == 1


def test_cameras_whose_names_look_alike_have_pictures_of_their_own():
    twins = replace(LOG, cameras=("a/b", "a_b"))
    audit = draw_audit(twins, AuditPlan(looks=360))
    assert len({look.picture for look in audit.looks}) == 360


def test_pictures_of_another_size_or_that_are_gone_are_missing_not_wrong(tmp_path):
    audit = draw_audit(LOG, AuditPlan(looks=40))
    assert (
        len(take_pictures(audit, tmp_path, {"gate": "line:frames=5"})) == 40
    )  # 640 × 480, the log says 640 × 640
    assert not (tmp_path / "images").exists()


def test_files_are_whole_and_another_audit_is_not_overwritten(tmp_path):
    audit = draw_audit(LOG, AuditPlan(looks=60))
    write_audit(audit, tmp_path)
    write_audit(audit, tmp_path)
    assert read_audit(tmp_path) == audit
    with pytest.raises(ConfigError, match="this folder contains another audit"):
        write_audit(draw_audit(LOG, AuditPlan(looks=61)), tmp_path)
    lines = (tmp_path / "sample.jsonl").read_text().splitlines()
    (tmp_path / "sample.jsonl").write_text("\n".join(lines[:-1]))
    with pytest.raises(DataError, match="59 frames, audit.json has 60"):
        read_audit(tmp_path)
    with pytest.raises(DataError, match="no audit found"):
        read_audit(tmp_path / "none")


def test_nothing_to_draw_from():
    with pytest.raises(DataError, match="no frame with inference"):
        draw_audit(replace(LOG, frames=LOG.frames | {"selected": np.zeros(len(LOG), bool)}))
    with pytest.raises(ConfigError, match="at least two per stratum"):
        draw_audit(LOG, AuditPlan(looks=3))
    with pytest.raises(ConfigError, match="2 invalid settings of the audit"):
        AuditPlan(looks=0, by="weather")


def test_the_change_since_the_reference():
    audit = draw_audit(LOG, AuditPlan(looks=120))
    found = score_audit(audit, list(truth_for(audit)))
    value = found.numbers["recall"].value
    states = [
        against(
            found,
            {"recall": {"value": value + d, "low": value + d - 0.005, "high": value + d + 0.005}},
            0.02,
            "recall",
        )["state"]
        for d in (0.3, 0.0, -0.3)
    ]
    assert states[0] == "below" and states[2] == "kept" and states[1] in ("kept", "undecided")
    with pytest.raises(DataError, match="no MOTA to compare"):
        against(found, {"AP": 1}, name="MOTA")
    json.dumps(found.to_dict(), allow_nan=False)


@given(st.integers(0, 50), st.integers(0, 200))
def test_the_interval_of_a_rate_holds_its_value(now, before):
    found = flag_signal(now, 1000, (before, 10_000))
    assert found.per_1000.low <= found.per_1000.value <= found.per_1000.high
    if now + before:
        assert found.ratio.low <= found.ratio.value <= found.ratio.high or before == 0
    json.dumps(found.to_dict(), allow_nan=False)


def test_flags_are_a_signal_only_beside_a_reference():
    assert flag_signal(9, 1000).state == "no reference" and flag_signal(0, 10, (0, 10)).state == "undecided"
    assert (
        flag_signal(30, 1000, (20, 10_000)).state == "raised"
        and flag_signal(200, 100_000, (200, 100_000)).state == "usual"
    )
    raised = np.mean(
        [
            flag_signal(int(np.random.default_rng(k).poisson(5)), 1000, (50, 10_000)).state == "raised"
            for k in range(1000)
        ]
    )
    assert raised <= 0.04
    with pytest.raises(DataError, match="looks must be at least 1"):
        flag_signal(1, 0)
    log = made_log()
    flags = [
        Flag("gate", 3),
        Flag("gate", 9999),
        Flag("attic", 1),
        Flag("exit", at=NOON + timedelta(seconds=20)),
        Flag("exit", at=NOON - timedelta(days=1)),
    ]
    assert flags_between(flags, log) == 2


def test_names_with_unicode_line_breaks_come_back(tmp_path):
    odd = "tor\u2028a\u0085"
    audit = draw_audit(made_log(((odd, 40),)), AuditPlan(looks=10))
    write_audit(audit, tmp_path)
    assert read_audit(tmp_path).looks == audit.looks and {look.camera for look in audit.looks} == {odd}
