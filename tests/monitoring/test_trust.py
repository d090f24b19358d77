"""The trust page: one answer a camera from audits, log, queue, drift and promises, each of which may be
missing, old, damaged or about something else."""

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.evaluation.guarantees import (
    Proven,
    needed,
    needed_to_pass,
    promise_settings,
    read_promise,
    with_promises,
)
from cv_pipeline.evaluation.intervals import Verdict
from cv_pipeline.inference.manifest import ModelManifest, PostprocessSpec, save_manifest
from cv_pipeline.monitoring.audit import design_weights
from cv_pipeline.monitoring.prediction_log import read_log
from cv_pipeline.monitoring.retraining import DriftWindow
from cv_pipeline.monitoring.trust import (
    FIRST_DAY,
    CameraAudit,
    TrustFiles,
    TrustSettings,
    html_trust,
    judge_camera,
    labels_missing,
    newest_drift,
    promise_rows,
    read_audits,
    review_queue,
    trust,
    uncertain_shares,
    write_example,
)

NOW = datetime(2026, 6, 30, tzinfo=timezone.utc)
WELL = (0.97, 0.94, 0.99, 150.0)
FLOORS = {"precision": 0.9, "recall": 0.9}


def audit(
    recall=WELL, precision=WELL, days_ago=2.0, frames=150, objects=400, models=("line 1",)
) -> CameraAudit:
    until = NOW - timedelta(days=days_ago)
    rates = {"precision": precision, "recall": recall}
    return CameraAudit(
        until - timedelta(days=7), until, frames, objects, rates, models, "audits/x/audit_result.json"
    )


def drift(verdict="RED", cause="device fault", devices=("gate",), days_ago=0.5) -> DriftWindow:
    until = NOW - timedelta(days=days_ago)
    return DriftWindow(until - timedelta(days=1), until, verdict, cause, ("image",), devices)


def answer(*audits, drift=None, models=(), settings=None):
    return judge_camera("gate", audits, drift, models, settings or TrustSettings(), NOW)


# ---------------------------------------------------------------- one word


def test_bounds_at_the_floors_are_proof():
    assert answer(audit()).state == "PROVEN"
    assert answer(audit((0.97, 0.9, 0.99, 150.0))).state == "PROVEN"


def test_a_bound_below_the_floor_is_no_proof_and_says_how_many_labels_are_missing():
    found = answer(audit((0.95, 0.89, 0.98, 150.0)))
    assert (found.state, found.missing) == ("UNKNOWN", needed_to_pass(0.9, 0.95, 0.975)[0] - 150)


def test_more_labels_do_not_prove_what_is_not_so():
    found = answer(audit((0.89, 0.85, 0.93, 150.0)))
    assert (found.state, found.missing) == ("UNKNOWN", 0)
    assert "more labels will not prove it" in found.why


def test_never_audited_costs_what_the_floor_costs():
    found = answer()
    assert (found.state, found.missing) == ("UNKNOWN", max(30, needed(0.9, 0.975)))
    assert "audit draw" in found.next_command


def test_a_fall_is_seen_while_the_bound_is_still_good():
    high, lower = (0.995, 0.985, 0.999, 900.0), (0.94, 0.925, 0.955, 900.0)
    assert answer(audit(lower), settings=TrustSettings()).state == "PROVEN"
    assert answer(audit(high, days_ago=9), audit(lower)).state == "FALLING"


def test_a_slow_fall_is_seen_against_the_first_audit():
    steps = [(v, v - 0.02, v + 0.02, 500.0) for v in (0.99, 0.975, 0.96, 0.945, 0.93)]
    rows = [audit(s, days_ago=30 - 7 * k) for k, s in enumerate(steps)]
    assert answer(*rows[-2:]).state == "PROVEN"
    assert answer(*rows).state == "FALLING"


def test_proven_once_and_not_any_more_is_falling():
    found = answer(audit(days_ago=9), audit((0.95, 0.89, 0.98, 150.0)))
    assert found.state == "FALLING"
    assert found.why.startswith("proven until 2026-06-21")


def test_all_of_the_interval_below_the_floor_is_falling():
    assert "lies below the floor 0.9" in answer(audit((0.7, 0.6, 0.8, 150.0))).why


@pytest.mark.parametrize("frames, objects", [(29, 400), (150, 49)])
def test_too_few_labels_say_nothing(frames, objects):
    found = answer(audit(frames=frames, objects=objects))
    assert found.state == "UNKNOWN"
    assert found.missing >= 1


def test_an_old_audit_proves_nothing_about_this_week():
    assert answer(audit(days_ago=36)).state == "UNKNOWN"
    assert answer(audit(days_ago=35)).state == "PROVEN"


def test_an_audit_of_another_model_proves_nothing():
    assert "another model" in answer(audit(), models=("line 2",)).why
    assert answer(audit(), models=("line 1",)).state == "PROVEN"


@pytest.mark.parametrize(
    "found, state",
    [
        (drift(), "UNKNOWN"),
        (drift(devices=("dock",)), "PROVEN"),
        (drift(cause="world changed", devices=("dock",)), "UNKNOWN"),
        (drift("AMBER"), "PROVEN"),
        (drift("GREY"), "PROVEN"),
        (drift(days_ago=3), "PROVEN"),  # the audit is younger
    ],
)
def test_red_since_the_audit_voids_it_for_the_cameras_it_is_about(found, state):
    assert answer(audit(), drift=found).state == state


def test_a_rate_that_does_not_exist_is_missing_labels():
    nothing = (float("nan"), 0.0, 1.0, 0.0)
    found = answer(audit(precision=nothing))
    assert (found.state, found.missing) == ("UNKNOWN", needed(0.9, 0.975))


def test_only_floors_that_are_asked_for_count():
    weak = audit(precision=(0.5, 0.4, 0.6, 150.0))
    assert answer(weak, settings=TrustSettings({"recall": 0.9})).state == "PROVEN"


def test_labels_without_an_error_are_counted_from_the_price_list():
    assert (
        labels_missing(audit((1.0, 0.88, 1.0, 20.0), frames=40), {"recall": 0.9}) == needed(0.9, 0.975) - 20
    )


@pytest.mark.parametrize(
    "given, text",
    [
        ({"floors": {"AP": 0.5}}, "known are precision and recall"),
        ({"floors": {}}, "floors: none"),
        ({"floors": {"recall": 1.0}}, "not between 0 and 1"),
        ({"band": (0.6, 0.3)}, "low < high"),
        ({"fresh_days": 0}, "below 1"),
    ],
)
def test_settings_are_checked(given, text):
    with pytest.raises(ConfigError, match=text):
        TrustSettings(**given)


# ---------------------------------------------------------------- an audit's intervals by camera


def test_no_error_in_a_few_frames_is_not_certainty():
    from cv_pipeline.monitoring.audit import _camera_rate

    counts = np.tile([2, 0, 0], (20, 1))
    weight, drawn = design_weights(np.zeros(20, int), np.array([2000]), 300)
    row = _camera_rate("recall", weight, counts, drawn, 0.95)
    assert row["recall"] == 1.0
    assert row["recall_low"] == pytest.approx(0.025 ** (1 / 20))


def test_uneven_weights_count_as_fewer_frames():
    from cv_pipeline.monitoring.audit import _camera_rate

    counts = np.tile([2, 0, 0], (40, 1))
    even = _camera_rate("recall", np.ones(40), counts, np.ones((50, 40), np.float32), 0.95)
    uneven = _camera_rate("recall", np.repeat([1.0, 9.0], 20), counts, np.ones((50, 40), np.float32), 0.95)
    assert (round(even["recall_n"]), round(uneven["recall_n"], 1)) == (40, 24.4)
    assert uneven["recall_low"] < even["recall_low"]


# ---------------------------------------------------------------- evidence from files


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return write_example(tmp_path_factory.mktemp("trust") / "example")


@pytest.fixture
def files(example):
    return TrustFiles(
        example / "log", [example / "audits"], [example / "collected"], reports=example / "reports"
    )


END = FIRST_DAY + timedelta(days=29)


@pytest.mark.slow
def test_the_example_has_one_of_each(files):
    page = trust(files, now=END)
    assert {c: a.state for c, a in page.cameras.items()} == {
        "belt": "UNKNOWN",
        "dock": "FALLING",
        "gate": "PROVEN",
    }
    assert page.verdict == "FAIL"


@pytest.mark.slow
def test_before_the_lamp_failed_the_dock_was_proven(files, example):
    early = sorted((example / "audits").rglob("audit_result.json"))[:3]
    page = trust(replace(files, audits=early, reports="nowhere"), now=END - timedelta(days=7))
    assert {c: a.state for c, a in page.cameras.items()} == {
        "belt": "UNKNOWN",
        "dock": "PROVEN",
        "gate": "PROVEN",
    }
    assert page.verdict == "INSUFFICIENT"


def test_all_proven_passes(files, example):
    page = trust(replace(files, log=None, queue=()), now=END)
    alone = replace(page, cameras={"gate": page.cameras["gate"]})
    assert alone.verdict == "PASS"


@pytest.mark.parametrize("gone", ["log", "audits", "queue", "reports"])
def test_any_evidence_may_be_missing(files, gone):
    empty = {"log": None, "audits": ["nowhere"], "queue": ["nowhere"], "reports": "nowhere"}[gone]
    page = trust(replace(files, **{gone: empty}), now=END)
    assert set(page.cameras) == {"belt", "dock", "gate"}
    assert (page.cameras["gate"].state == "PROVEN") is (gone != "audits")
    json.dumps(page.to_dict(), allow_nan=False)
    assert "gate" in html_trust(page)


def test_nothing_at_all_is_insufficient():
    page = trust(TrustFiles(None, (), reports="nowhere"), now=END)
    assert (page.verdict, page.cameras) == ("INSUFFICIENT", {})
    assert "no camera is known: give a prediction log or an audit" in page.notes


def test_a_missing_log_is_a_note(files):
    page = trust(replace(files, log="nowhere"), now=END)
    assert any("nowhere" in n for n in page.notes)
    assert page.cameras["gate"].state == "PROVEN"


def test_uncertain_shares_are_counted_by_hand(example):
    log = read_log(example / "log")
    (row,) = [r for r in uncertain_shares(log, (0.3, 0.6), 7) if r["camera"] == "dock"][-1:]
    last = log.at.max() - 7 * 86400
    frames = np.flatnonzero((log.frames["camera"] == log.cameras.index("dock")) & (log.at > last))
    score = log.detections["confidence"][np.isin(log.detections["frame"], frames)]
    assert row["detections"] == len(score)
    assert row["share"] == pytest.approx(((score >= 0.3) & (score < 0.6)).mean())


def test_a_period_without_a_detection_has_no_share(example):
    log = read_log(example / "log")
    bare = replace(log, detections={k: v[:0] for k, v in log.detections.items()})
    assert {r["share"] for r in uncertain_shares(bare)} == {None}
    assert uncertain_shares(log.select(np.zeros(len(log), bool))) == []


def test_what_is_labelled_does_not_wait(example, tmp_path):
    done = tmp_path / "answers.jsonl"
    rows = (example / "collected" / "collected.jsonl").read_text().splitlines()
    told = [
        {"picture": json.loads(r)["picture"], "annotator": "ann", "size": [64, 48], "boxes": []}
        for r in rows[:5]
    ]
    done.write_text("".join(json.dumps(t) + "\n" for t in told))
    whole, rest = (review_queue([example / "collected"], labels, END) for labels in ((), [done]))
    assert sum(q["waiting"] for q in whole.values()) - sum(q["waiting"] for q in rest.values()) == 5


def test_a_picture_in_two_folders_waits_once(example):
    twice = review_queue([example / "collected"] * 2, now=END)
    assert twice == review_queue([example / "collected"], now=END)
    assert twice["gate"]["oldest_days"] == 15.0


def test_a_folder_without_a_collection_is_an_error_with_a_hint(tmp_path):
    with pytest.raises(DataError, match="collected.jsonl is missing"):
        review_queue([tmp_path])


@pytest.mark.parametrize(
    "text, said",
    [
        ("{}", "not an audit's result"),
        ("[]", "not an audit's result"),
        ("no json", "not an audit's result"),
        (
            '{"window": ["2026-06-01", "2026-06-08"], "by_camera": {"a": {"recall": 1}}}',
            "no intervals by camera",
        ),
        ('{"window": ["x", "y"], "by_camera": {}}', "not an audit's result"),
        (
            '{"window": ["2026-06-01", "2026-06-08"], "by_camera": {"a": {"recall_low": 1}}}',
            "not an audit's result",
        ),
    ],
)
def test_damaged_audits_are_left_out_by_name(tmp_path, text, said):
    (tmp_path / "audit_result.json").write_text(text)
    found, left_out = read_audits([tmp_path])
    assert (found, len(left_out)) == ({}, 1)
    assert said in left_out[0]


def test_the_newest_drift_report_counts_unless_it_is_old(example):
    assert newest_drift(example / "reports", now=END)[0].devices == ("dock",)
    late, notes = newest_drift(example / "reports", now=END + timedelta(days=60))
    assert (late, notes) == (None, ["the newest drift report ends 2026-06-29: too old"])


def test_promises_of_models_are_on_the_page(files, tmp_path):
    from cv_pipeline.core.model_files import artefact_sha256

    (tmp_path / "m.onnx").write_bytes(b"weights")
    m = ModelManifest("m", "m.onnx", ("a",), sha256=artefact_sha256(tmp_path / "m.onnx"))
    m = replace(m, postprocess=PostprocessSpec(conf=0.4))
    made = Proven(read_promise("recall>=0.95@95%"), Verdict.PASS, 0.4, 299, 300, 0.98, 0, "", "track")
    made = replace(made, settings=promise_settings(m, 0.4), stamp={"model": {"sha256": m.sha256}})
    m = replace(m, metrics=with_promises(m, [made]))
    assert [r["state"] for r in promise_rows(m, drift("GREEN"))] == ["valid"]
    save_manifest(m, tmp_path / "manifest.json")
    (row,) = trust(replace(files, models=[tmp_path]), now=END).promises
    assert (row["state"], row["why"]) == ("void", "void since 2026-06-29T00:00: drift RED (image)")


@pytest.mark.parametrize("damaged", [{"models": ["no-such-model"]}, {"labels": ["nowhere.jsonl"]}])
def test_what_cannot_be_read_is_noted_and_the_page_is_made(files, damaged):
    page = trust(replace(files, **damaged), now=END)
    assert any("no-such-model" in n or "nowhere.jsonl" in n for n in page.notes)
    assert page.cameras["gate"].state == "PROVEN"


def test_one_broken_queue_does_not_hide_the_other(files):
    page = trust(replace(files, queue=["nowhere", *files.queue]), now=END)
    assert page.queue["gate"]["waiting"] == 10
    assert any("nowhere" in n for n in page.notes)
