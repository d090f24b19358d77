"""The folder of a rollout: evidence of many runs, answers and the registry joined into one verdict; nothing
is promoted on silence, and what was killed in between is caught up."""

import json
import math
import random
import shutil
from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest

from cv_pipeline.annotation.annotations import Annotation, read_annotations, write_annotations
from cv_pipeline.core.config import load_config
from cv_pipeline.core.files import append_lines, file_sha256, read_json, write_json
from cv_pipeline.core.types import ConfigError, DataError, Detections
from cv_pipeline.release.evidence import Column, Evidence, readings_of
from cv_pipeline.release.registry import Registry
from cv_pipeline.release.rollout import Policy, RolloutVerdict, advance_rollout, halt_rollout
from cv_pipeline.release.trial import (
    Drawn,
    abort_trial,
    add_answers,
    advance_trial,
    answered,
    chained,
    check_shadow,
    collect_runs,
    drawn_run,
    found_in,
    judge_run,
    judge_trial,
    promote_trial,
    read_trial,
    record_state,
    run_evidence,
    small_registry,
    start_trial,
    trial_baseline,
    trial_metrics,
    winner,
    write_example_trial,
)

SITES = {"gate": "north", "dock": "south"}
START = datetime(2026, 3, 2, 6, tzinfo=timezone.utc)
# few columns and wide limits, so that a few hours prove it
OFF = ("empty", "moved", "confidence", "slow", "dropped", "tracks", "class_disagree", "class_count")
WIDE = {"loss": 0.05, "errors": 0.05, "count": 0.05, "added": 0.1, "lost": 0.1}
QUICK = Policy(hours=2, deadline_hours=12, steps=(0.5, 1.0), **WIDE, **dict.fromkeys(OFF))
HARMLESS = Drawn({"disagree": 0.002}, hours=4, fps=0.2)
WORSE = replace(HARMLESS, means={"disagree": 0.5, "lost": 0.5, "count": -0.5})


class Clock:
    "Hours since the beginning."

    hours = 0.0

    def __call__(self):
        return START + timedelta(hours=self.hours)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def trial(tmp_path, clock):
    small_registry(tmp_path / "registry")
    return start_trial(tmp_path / "trial", tmp_path / "registry", "line@1.1", SITES, QUICK, clock)


def drawn(trial, how=HARMLESS, role="candidate", cameras=SITES, name="run.json", own=()):
    "A run of which the truth is known, in the folder beside the trial."
    base = trial_baseline(trial) if role == "previous" else None
    means = {c: dict(own).get(c, {}) for c in cameras}
    return drawn_run(trial.folder.parent / name, trial, means, how, role, base)


def state_of(trial, version="1.1"):
    return Registry(trial.registry).find(f"line@{version}").state


def judged(trial, clock, how, hours=4.0, **more):
    "The verdict after one run."
    collect_runs(trial.folder, [drawn(trial, how, **more)])
    clock.hours += hours
    return judge_trial(trial.folder, clock)


# from candidate to production


def test_a_harmless_version_goes_step_by_step_into_production(trial, clock):
    stages = []
    for step in range(3):
        state = trial.state
        role = "candidate" if state.stage == "shadow" else "previous"
        run = drawn(trial, replace(HARMLESS, seed=step), role, state.cameras or SITES)
        collect_runs(trial.folder, [run])
        clock.hours += 4
        status = advance_trial(trial.folder, clock)
        stages.append(
            (status.report.verdict.value, status.state.stage, len(status.state.cameras), state_of(trial))
        )
    assert stages[0] == ("PROMOTE", "canary", 2, "canary")  # one camera of each site at least
    assert stages[-1][1:] == ("promoted", 2, "production") and state_of(trial, "1.0") == "retired"
    assert "FORCED" not in judge_trial(trial.folder, clock).headline


def test_a_worse_version_goes_back_to_candidate(trial, clock):
    collect_runs(trial.folder, [drawn(trial, WORSE)])
    clock.hours += 1
    status = advance_trial(trial.folder, clock)
    assert (status.report.verdict, status.state.stage) == (RolloutVerdict.ROLLBACK, "rolled back")
    assert state_of(trial) == "candidate" and state_of(trial, "1.0") == "production"
    again = judge_trial(trial.folder, clock)
    assert again.headline == status.headline and again.report.findings[0].verdict is RolloutVerdict.ROLLBACK


@pytest.mark.parametrize("hours", [0, 3, 11.9])
def test_silence_never_promotes(trial, clock, hours):
    clock.hours = hours
    status = advance_trial(trial.folder, clock)
    assert (status.report.verdict, status.state.stage) == (RolloutVerdict.INSUFFICIENT, "shadow")
    assert status.report.missing and state_of(trial) == "shadow"


def test_at_the_deadline_the_old_model_stays(trial, clock):
    clock.hours = 12.5
    assert advance_trial(trial.folder, clock).state.stage == "expired"
    assert state_of(trial) == "candidate" and state_of(trial, "1.0") == "production"


def test_one_camera_without_evidence_holds_all(trial, clock):
    status = judged(trial, clock, HARMLESS, cameras=("gate",))
    assert status.report.verdict is RolloutVerdict.INSUFFICIENT and "dock" in status.headline


def test_a_forced_step_is_recorded_everywhere(trial, clock):
    promote_trial(trial.folder, "the fair opens tomorrow", clock)
    last = Registry(trial.registry).find("line@1.1").last
    assert last.state == "canary" and "the fair opens" in last.reason and "FORCED" in last.reason
    assert "FORCED" in judge_trial(trial.folder, clock).headline
    abort_trial(trial.folder, "it rains", clock)
    status = judge_trial(trial.folder, clock)
    assert "aborted, FORCED (it rains)" in status.headline and trial_metrics(status)["forced"]
    assert state_of(trial) == "candidate"


def test_what_a_killed_command_left_is_caught_up_by_the_next(trial, clock):
    status = judged(trial, clock, HARMLESS)
    advance_rollout(trial.path, status.report, clock)  # killed before the registry heard of it
    assert (trial.state.stage, state_of(trial)) == ("canary", "shadow")
    advance_trial(trial.folder, clock)
    assert (trial.state.stage, state_of(trial)) == ("canary", "canary")


def test_a_version_that_was_moved_by_hand_is_left_alone(trial, clock):
    Registry(trial.registry).move("line@1.1", "retired")
    assert "moved by hand?" in record_state(trial)[0] and state_of(trial) == "retired"


def test_a_halted_rollout_moves_nothing(trial, clock):
    halt_rollout(trial.path, "two boxes rolled back", clock)
    assert record_state(trial) == [] and state_of(trial) == "shadow"


# a bad model or a bad device


def fault(kind, of="candidate", times=4):
    return [{"kind": kind, "detail": "it said so", "of": of, "at": ""}] * times


@pytest.mark.parametrize(
    ("how", "verdict", "why"),
    [
        ({"faults": fault("killed"), "state": "failed"}, "INSUFFICIENT", "shadow: failed"),
        ({"faults": fault("hang"), "state": "failed"}, "INSUFFICIENT", "shadow: failed"),
        ({"faults": fault("crash"), "state": "failed"}, "ROLLBACK", "crash"),
        ({"faults": fault("not ready"), "state": "failed"}, "ROLLBACK", "not ready"),
        ({"faults": fault("NaN", times=1)}, "ROLLBACK", "NaN"),
        ({"faults": fault("killed", times=2)}, "PROMOTE", ""),
        ({"faults": fault("crash", "current"), "state": "failed"}, "PROMOTE", ""),
    ],
)
def test_what_went_wrong_decides(trial, clock, how, verdict, why):
    status = judged(trial, clock, replace(HARMLESS, **how))
    assert status.report.verdict.value == verdict and why in status.headline


def test_the_old_model_that_fails_in_the_shadow_of_a_canary_holds_it(trial, clock):
    promote_trial(trial.folder, "in a hurry", clock)
    how = replace(HARMLESS, faults=fault("crash", "previous"), state="failed")
    status = judged(trial, clock, how, role="previous", cameras=trial.state.cameras)
    assert (
        status.report.verdict is RolloutVerdict.INSUFFICIENT
        and "the old model in the shadow" in status.headline
    )


def test_a_camera_that_needs_maintenance_is_excused(trial, clock):
    how = replace(HARMLESS, excused={"dock": ["dirt"]})
    status = judged(trial, clock, how, own={"dock": WORSE.means})
    assert status.report.verdict is RolloutVerdict.PROMOTE
    assert any("dock is excused" in n for n in status.report.notes)


def test_too_much_memory_ends_it(trial, clock):
    path = drawn(trial)
    book = read_json(path, dict)
    write_json(path, book | {"peak_mb": 900.0})
    collect_runs(trial.folder, [path])
    clock.hours = 4
    status = judge_trial(trial.folder, clock)
    assert status.report.verdict is RolloutVerdict.ROLLBACK and "900 MB" in status.headline


def test_the_baseline_of_the_canary_is_what_the_old_model_was_like(trial):
    path = drawn(trial)
    book = read_json(path, dict)
    book["counts"] |= {"frames": 900, "failed": 9, "dropped": 100}
    write_json(path, book)
    collect_runs(trial.folder, [path])
    base = trial_baseline(trial)
    assert (base.errors, base.dropped, base.p95_ms) == (0.01, 0.1, 12.0)


# evidence of many runs


def test_two_runs_of_a_camera_are_one_long_run():
    columns, rng = (Column("disagree", 0.1), Column("count", 0.1, signed=True)), np.random.default_rng(1)
    n = 3 * 5120
    x = np.stack([rng.random(n) < 0.05, np.clip(rng.normal(0.02, 0.2, n), -1, 1)], axis=1).astype(float)
    at, seam = np.arange(n) / 4.0, 5120 * 2
    whole, first, second = (Evidence(columns) for _ in range(3))
    whole.add(at, x)
    first.add(at[: seam + 5], np.where(np.arange(seam + 5)[:, None] < seam, x[: seam + 5], np.nan))
    second.add(at[seam:], x[seam:])
    first.leave_out("dirt", 3)
    both = chained(first, second)
    for a, b in zip(readings_of(both), readings_of(whole)):
        assert math.isclose(a.within, b.within, rel_tol=1e-6) and math.isclose(
            a.beyond, b.beyond, rel_tol=1e-6
        )
        assert math.isclose(a.mean, b.mean, rel_tol=1e-9) and a.blocks == b.blocks
    assert both.left_out == {"dirt": 3} and readings_of(first)[0].rows == seam  # the parts are unchanged


def test_runs_of_one_camera_add_up_and_the_same_run_counts_once(trial):
    path = drawn(trial, replace(HARMLESS, hours=1.0))
    collect_runs(trial.folder, [path, path])
    rows = readings_of(found_in(trial).evidence["gate"])[0].rows
    book = read_json(path, dict)
    shift = {m: {str(int(k) + 600): v for k, v in one.items()} for m, one in book["minutes"].items()}
    write_json(path, book | {"run": "tomorrow", "minutes": shift})
    collect_runs(trial.folder, [path])
    assert rows == 720 and readings_of(found_in(trial).evidence["gate"])[0].rows == 1440


def test_the_same_minutes_twice_are_refused(trial):
    path = drawn(trial, replace(HARMLESS, hours=1.0))
    collect_runs(trial.folder, [path])
    write_json(path, read_json(path, dict) | {"run": "once more"})
    with pytest.raises(DataError, match="two runs of .* overlap in time"):
        collect_runs(trial.folder, [path])
    assert readings_of(found_in(trial).evidence["gate"])[0].rows == 720


def test_a_run_with_other_limits_is_refused(trial):
    path = drawn(trial, replace(HARMLESS, hours=0.1))
    book = read_json(path, dict)
    for state in book["cameras"].values():
        state["columns"][0][1] = 0.2
    write_json(path, book)
    with pytest.raises(DataError, match="limits are not those of this rollout"):
        collect_runs(trial.folder, [path])


def test_runs_of_other_models_or_of_another_stage_are_refused(trial, clock):
    short = replace(HARMLESS, hours=0.1)
    swapped = replace(trial, new_digest=trial.old_digest, old_digest=trial.new_digest)
    with pytest.raises(DataError, match="this rollout compares"):
        collect_runs(trial.folder, [drawn(swapped, short)])
    with pytest.raises(DataError, match="set role: candidate"):
        collect_runs(trial.folder, [drawn(trial, short, "previous")])
    abort_trial(trial.folder, "enough", clock)
    with pytest.raises(ConfigError, match="this rollout is aborted"):
        collect_runs(trial.folder, [drawn(trial, short)])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "cv_pipeline shadow 1"}', '{"format": "x"}', "\x00"]
)
def test_what_is_not_evidence_is_a_sentence(tmp_path, text):
    (tmp_path / "evidence.json").write_text(text)
    with pytest.raises(DataError, match="not the evidence of a shadow"):
        run_evidence(tmp_path)


@pytest.mark.slow
def test_whatever_is_changed_in_a_file_is_a_sentence_or_a_verdict(trial, clock):
    path = drawn(trial, replace(HARMLESS, hours=0.5, faults=fault("NaN", times=1)))
    good, rng = read_json(path, dict), random.Random(1)
    values = [None, 0, -1, 1e300, math.nan, "x", [], {}, [1, "a"], True, {"a": 1}, 10**30]
    outcomes = Counter()
    for _ in range(150):
        book = part = json.loads(json.dumps(good))
        keys = list(good)
        while True:
            key = rng.choice(keys)
            if not isinstance(part[key], (dict, list)) or not part[key] or rng.random() < 0.4:
                break
            part = part[key]
            keys = list(part) if isinstance(part, dict) else range(len(part))
        part[key] = rng.choice(values)
        path.write_text(json.dumps(book))
        shutil.rmtree(trial.folder / "evidence", ignore_errors=True)
        try:
            collect_runs(trial.folder, [path])
            status = judge_trial(trial.folder, clock)
            outcomes[json.loads(json.dumps(trial_metrics(status)))["verdict"]] += 1
        except DataError as e:
            outcomes[type(e).__name__] += 1
    assert outcomes["DataError"] > 20 and outcomes["PROMOTE"] == 0 and sum(outcomes.values()) == 150


def test_one_run_alone_is_judged_by_the_hours_that_it_spans(trial):
    path = drawn(trial)
    assert judge_run(path, trial.folder).report.verdict is RolloutVerdict.PROMOTE
    assert judge_run(drawn(trial, replace(HARMLESS, hours=1.0)), trial.folder).report.missing
    assert {r["proven"] for r in judge_run(drawn(trial, WORSE), trial.folder).rows} >= {"BEYOND"}


# answers


def boxes(*xs):
    return [{"class_name": "gear", "confidence": 0.9, "xyxy": [x, 0, x + 10, 10]} for x in xs]


def answer(picture, *xs, sha256="", by="ann"):
    found = Detections(
        np.array([[x, 0, x + 10, 10] for x in xs], float).reshape(-1, 4), None, np.zeros(len(xs))
    )
    return Annotation(picture, by, (640, 480), ("gear", "bolt"), found, sha256=sha256 or None)


@pytest.mark.parametrize(
    ("drawn_boxes", "who"),
    [((0, 50), "old"), ((0,), "new"), ((), "new"), ((0, 50, 99), "old"), ((0, 54), "")],
)
def test_the_model_with_fewer_errors_wins_a_frame(drawn_boxes, who):
    row = {"picture": "a.jpg", "sha256": "", "old": boxes(0, 50), "new": boxes(0)}
    if who == "":
        row["new"] = boxes(0, 200)
    assert winner(row, answer("a.jpg", *drawn_boxes)) == who


def disagreements(trial, count):
    "Frames on which the old one has a box more, which is an object in every third."
    rows = []
    for k in range(count):
        (trial.folder / f"{k}.jpg").write_bytes(bytes([k]) * 9)
        sha256 = file_sha256(trial.folder / f"{k}.jpg")
        rows.append({"picture": f"{k}.jpg", "sha256": sha256, "old": boxes(0, 50), "new": boxes(0)})
    append_lines(trial.folder / "disagreements.jsonl", rows)
    return rows


def test_answers_decide_what_the_stream_cannot(trial, clock, tmp_path):
    status = judged(trial, clock, replace(HARMLESS, means={"disagree": 0.15}))
    assert status.report.verdict is RolloutVerdict.NEEDS_LABELS
    rows = disagreements(trial, 60)
    given = [answer(r["picture"], *((0, 50) if k % 10 == 0 else (0,))) for k, r in enumerate(rows)]
    path = write_annotations(given, tmp_path / "answers.jsonl")
    assert add_answers(trial.folder, read_annotations(path)) == 60
    after = judge_trial(trial.folder, clock)
    assert after.votes == (54, 6) and after.report.verdict is RolloutVerdict.PROMOTE
    worse = [answer(r["picture"], 0, 50, sha256=r["sha256"]) for r in rows]
    add_answers(trial.folder, worse)  # corrected: the last answer about a picture counts
    after = judge_trial(trial.folder, clock)
    assert after.votes == (0, 60) and after.report.verdict is RolloutVerdict.ROLLBACK


def test_answers_about_other_pictures_are_no_votes(trial):
    disagreements(trial, 2)
    assert add_answers(trial.folder, [answer("other.jpg", 0)]) == 0 and answered(trial) is None


# what can be wrong


def test_a_trial_needs_a_candidate_and_something_to_compare_it_with(tmp_path, trial):
    registry = Registry(trial.registry)
    for ref, what in (("line@1.0", "is production"), ("line@9", "unknown version")):
        with pytest.raises(ConfigError, match=what):
            start_trial(tmp_path / "other", registry.folder, ref, SITES)
    with pytest.raises(ConfigError, match="already begun"):
        start_trial(trial.folder, registry.folder, "line@1.1", SITES)
    registry.move("line@1.0", "retired")
    with pytest.raises(ConfigError, match="nothing to compare with"):
        start_trial(tmp_path / "other", registry.folder, "line@1.1", SITES)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"format": "other"}', '{"format": "cv_pipeline trial 1", "x": 1}']
)
def test_a_damaged_trial_is_a_sentence(trial, text):
    (trial.folder / "trial.json").write_text(text)
    with pytest.raises(DataError, match="not a trial"):
        read_trial(trial.folder)


@pytest.mark.parametrize(
    ("section", "what"),
    [({"model": "no/such"}, "no/such"), ({"model": "factory_line", "rollout": "none"}, "no trial was begun")],
)
def test_a_shadow_that_cannot_work_is_refused_before_the_run(section, what):
    config = load_config(None, {"sources": ["line:frames=3"], "shadow": section})
    with pytest.raises(Exception, match=what):
        check_shadow(config.shadow, config)


@pytest.mark.slow
def test_the_example_needs_labels(tmp_path):
    folder, when = write_example_trial(tmp_path / "example")
    status = judge_trial(folder, lambda: when)
    metrics = json.loads(json.dumps(trial_metrics(status)))
    assert (metrics["verdict"], metrics["stage"], metrics["forced"]) == ("NEEDS LABELS", "canary", False)
    assert any(m.startswith("disagree: label") for m in metrics["report"]["missing"])
