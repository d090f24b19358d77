"""The verdict of a rollout, which cameras try it, the file that remembers it, the brake of a fleet; the study
in miniature."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from cv_pipeline.core.types import ConfigError, DataError, Detections
from cv_pipeline.evaluation.pairs import compare_frame
from cv_pipeline.release.evidence import Evidence, LabelEvidence
from cv_pipeline.release.rollout import (
    ENDED,
    Baseline,
    Circumstances,
    Failure,
    Outcome,
    Policy,
    RolloutReport,
    RolloutVerdict,
    abort_rollout,
    advance_rollout,
    assigned_cameras,
    begin_evidence,
    begin_labels,
    camera_order,
    fleet_brake,
    halt_rollout,
    judge_rollout,
    memory_failure,
    policy_columns,
    promote_rollout,
    read_rollout,
    start_rollout,
)
from tests.benchmarks import try_rollout

WORD = RolloutVerdict
POLICY = Policy(errors=0.02)  # an error rate of .001 needs ten hours
NAMES = ("gear", "bolt")
DAY = Circumstances(hours=24)


def camera(hours=2.0, policy=POLICY, seed=0, fps=2, **means):
    "Evidence of a camera on which columns have these means; the others are 0, those that are None unknown."
    e, n, rng = begin_evidence(policy, NAMES), int(hours * 3600 * fps), np.random.default_rng(seed)
    values = np.zeros((n, len(e.columns)))
    for i, c in enumerate(e.columns):
        mean = means.get(c.name.replace(": ", "_"), 0.0)
        noise = 0.03 * rng.standard_normal(n) if mean else np.zeros(n)
        values[:, i] = np.nan if mean is None else np.clip(mean + noise, -1.0 if c.signed else 0.0, 1.0)
    e.add(np.arange(n) / fps, values)
    return e


@pytest.fixture(scope="module")
def fine():
    return camera()


def verdict(evidence, now=DAY, policy=POLICY):
    return judge_rollout(policy, evidence, now)


def test_no_difference_for_a_day_is_promoted(fine):
    report = verdict({"a": fine, "b": fine})
    assert report.verdict is WORD.PROMOTE
    assert (report.missing, report.more_hours, report.expired) == ((), 0.0, False)


def test_the_shortest_time_is_kept_and_named(fine):
    report = verdict({"a": fine}, Circumstances(hours=20))
    assert report.verdict is WORD.INSUFFICIENT
    assert report.more_hours == 4 and report.missing[0] == "4.0 more hours of the shortest time"


@pytest.mark.parametrize(
    "name, mean",
    [
        ("lost", 0.09),
        ("added", 0.09),
        ("count", -0.15),
        ("count", 0.15),
        ("moved", 0.28),
        ("empty", 0.15),
        ("confidence", -0.2),
        ("slow", 0.3),
        ("tracks", 0.3),
        ("errors", 0.1),
        ("dropped", 0.1),
        ("disagree_gear", 0.5),
        ("count_bolt", -0.3),
    ],
)
def test_each_guard_rolls_back_and_is_named(name, mean):
    report = verdict({"a": camera(0.5, **{name: mean})}, Circumstances(hours=0.5))
    assert report.verdict is WORD.ROLLBACK
    assert {f.what for f in report.findings if f.verdict is WORD.ROLLBACK} == {name.replace("_", ": ")}
    assert "proven beyond" in report.findings[0].reason and report.missing == ()


@pytest.mark.parametrize("name", ["disagree", "lost", "tracks", "errors", "slow", "dropped", "confidence"])
def test_silence_about_a_column_never_promotes(name):
    report = verdict({"a": camera(**{name: None})})
    assert report.verdict is WORD.INSUFFICIENT
    assert [f.what for f in report.findings if f.verdict is WORD.INSUFFICIENT] == [name]


def test_a_guard_that_is_off_is_not_missed():
    off = Policy(errors=0.02, tracks=None)
    assert verdict({"a": camera(policy=off)}, policy=off).verdict is WORD.PROMOTE


def test_a_difference_asks_for_labels():
    report = verdict({"a": camera(disagree=0.1)})
    assert report.verdict is WORD.NEEDS_LABELS
    assert report.missing == ("disagree: label frames on which the two models disagree",)
    assert report.more_hours == math.inf and report.to_dict()["more_hours"] is None


@pytest.mark.parametrize(
    "new, old, word", [(3, 3, WORD.NEEDS_LABELS), (60, 5, WORD.PROMOTE), (5, 60, WORD.ROLLBACK)]
)
def test_labels_decide_a_difference(new, old, word):
    evidence = {"a": camera(disagree=0.1)}
    labels = begin_labels(POLICY, evidence)
    labels.add(new, old)
    assert verdict(evidence, Circumstances(hours=24, labels=labels)).verdict is word


def test_labels_do_not_excuse_a_guard():
    labels = LabelEvidence(0.02, 0.1)
    labels.add(new=100)
    report = verdict({"a": camera(disagree=0.1, lost=0.1)}, Circumstances(hours=24, labels=labels))
    assert report.verdict is WORD.ROLLBACK and report.findings[0].what == "lost"


def test_how_often_the_models_differ_is_bounded_from_above():
    labels = begin_labels(POLICY, {"a": camera(disagree=0.1), "b": camera()})
    assert 0.1 < labels.differ < 0.13 and labels.allowed == POLICY.loss
    assert begin_labels(POLICY, {"a": begin_evidence(POLICY)}).differ == 1


def test_a_promised_gain_needs_labels(fine):
    gain = Policy(errors=0.02, gain=True)
    assert verdict({"a": fine}, policy=gain).verdict is WORD.NEEDS_LABELS
    labels = LabelEvidence(0.02, 1.0)
    labels.add(new=60, old=5)
    assert verdict({"a": fine}, Circumstances(hours=24, labels=labels), gain).verdict is WORD.PROMOTE


@pytest.mark.parametrize("hours, expired", [(1, False), (71, False), (72, True), (500, True)])
def test_nothing_seen_is_insufficient_and_expires_at_the_deadline(hours, expired):
    report = judge_rollout(Policy(), {}, Circumstances(hours=hours))
    assert (report.verdict, report.expired) == (WORD.INSUFFICIENT, expired)
    assert report.missing and "no frames of any camera" in report.missing[-1]


def test_without_data_insufficient_in_all_of_a_hundred_policies():
    rng = np.random.default_rng(0)
    for _ in range(100):
        policy = Policy(loss=float(rng.uniform(0.001, 0.9)), alpha=float(rng.uniform(0.001, 0.9)), hours=0)
        cameras = {f"camera-{i}": begin_evidence(policy) for i in range(rng.integers(0, 4))}
        assert judge_rollout(policy, cameras, Circumstances(hours=30)).verdict is WORD.INSUFFICIENT


def test_a_proven_promotion_does_not_expire(fine):
    assert not verdict({"a": fine}, Circumstances(hours=100)).expired


def test_a_camera_without_frames_holds_the_others(fine):
    report = verdict({"a": fine}, Circumstances(hours=24, cameras=("a", "b")))
    assert report.verdict is WORD.INSUFFICIENT and report.missing == ("frames: no frames of b",)


def test_a_camera_with_few_blocks_holds_the_others(fine):
    short = camera(0.05)
    report = verdict({"a": fine, "b": short})
    assert report.verdict is WORD.INSUFFICIENT
    assert "blocks of b, 30 are needed" in report.findings[0].reason


@pytest.mark.slow
def test_every_camera_must_prove_it(fine):
    "One camera that agrees for ever does not promote for one that stands between."
    between = camera(disagree=0.02)
    report = verdict({"a": camera(20.0), "b": between})
    assert report.verdict is not WORD.PROMOTE


def test_one_bad_camera_of_ten_is_named(fine):
    cameras = {f"camera-{i}": fine for i in range(9)} | {"camera-9": camera(lost=0.15)}
    report = verdict(cameras)
    assert report.verdict is WORD.ROLLBACK and "camera-9" in report.findings[0].reason


def test_a_dirty_lens_excuses_its_camera(fine):
    cameras = {"a": fine, "b": fine, "c": camera(lost=0.15)}
    now = Circumstances(hours=24, excused={"c": ("dirt", "blur"), "a": ()})
    report = verdict(cameras, now)
    assert report.verdict is WORD.PROMOTE
    assert report.notes == ("c is excused, it needs maintenance: dirt, blur",)


def test_too_many_excused_cameras_prove_nothing(fine):
    now = Circumstances(hours=24, excused={c: ("dark",) for c in "bc"})
    report = verdict({c: fine for c in "abc"}, now)
    assert report.verdict is WORD.INSUFFICIENT and "1 of 3 cameras" in report.findings[0].reason


@pytest.mark.parametrize("kind", ["crash", "NaN", "not ready"])
def test_a_failure_ends_it_at_once(fine, kind):
    report = judge_rollout(POLICY, {}, Circumstances(failures=[Failure(kind, "box-1", "why")]))
    assert report.verdict is WORD.ROLLBACK and report.findings[0].reason == f"{kind} on box-1: why"


def test_a_failure_of_both_models_is_the_devices(fine):
    now = Circumstances(hours=24, failures=[Failure("crash", "box-1", old_too=True)])
    report = verdict({"a": fine}, now)
    assert report.verdict is WORD.PROMOTE and report.notes[0].startswith("device fault, crash on box-1")


def test_memory_is_compared_with_the_old_model():
    base = Baseline(memory_mb=100)
    assert memory_failure(POLICY, base, 130, "a") == []
    assert memory_failure(POLICY, base, 131, "a")[0].detail == "131 MB, at most 130 MB are allowed"
    assert memory_failure(POLICY, Baseline(), 1e9, "a") == []


def test_a_class_that_is_never_seen_is_a_note():
    report = verdict({"a": camera(disagree_bolt=None, count_bolt=None)})
    assert report.verdict is WORD.PROMOTE
    assert report.notes == tuple(
        f"{k}: bolt: not seen by either model, not judged" for k in ("disagree", "count")
    )


def test_a_class_is_judged_where_it_is_seen(fine):
    cameras = {"a": fine, "b": camera(disagree_bolt=None, count_bolt=None)}
    assert verdict(cameras).verdict is WORD.PROMOTE


def test_a_class_that_is_seen_rarely_is_insufficient():
    e = camera(disagree_bolt=None, count_bolt=None)
    e.add(np.arange(8000, 8100), [{"disagree: bolt": 0.0}] * 100)
    report = verdict({"a": e})
    assert report.verdict is WORD.INSUFFICIENT and report.findings[0].what == "disagree: bolt"


def test_cameras_with_other_columns_are_refused(fine):
    with pytest.raises(DataError, match="different columns"):
        verdict({"a": fine, "b": camera(policy=Policy())})


def test_a_report_is_plain_json(fine):
    report = verdict({"a": fine}, Circumstances(hours=2))
    made = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert made["verdict"] == "INSUFFICIENT" and made["findings"][0]["verdict"] == "PROMOTE"


def test_limits_follow_the_old_model():
    limits = {c.name: c.limit for c in policy_columns(Policy(), (), Baseline(errors=0.01, dropped=0.1))}
    assert (limits["errors"], limits["dropped"]) == (0.02, pytest.approx(0.12))
    assert {c.name: c.limit for c in policy_columns(Policy())}["errors"] == 0.001


def test_the_evidence_lasts_until_the_deadline():
    assert begin_evidence(Policy(deadline_hours=48)).horizon_s == 48 * 3600


@pytest.mark.parametrize(
    "bad, what",
    [
        ({"loss": 0}, "loss: 0 is not between"),
        ({"alpha": 1.5}, "alpha"),
        ({"lost": 2}, "lost: 2 is not between 0 and 1, or None"),
        ({"hours": -1}, "hours: -1"),
        ({"hours": math.nan}, "hours: nan"),
        ({"deadline_hours": 3}, "before `hours`"),
        ({"steps": ()}, "do not ascend"),
        ({"steps": (0.3, 0.1, 1)}, "do not ascend"),
        ({"steps": (0.1, 0.5)}, "do not ascend"),
        ({"steps": (0, 1)}, "do not ascend"),
        ({"fewest_blocks": 3}, "fewest_blocks: 3"),
        ({"slow_factor": 0.5}, "slow_factor"),
        ({"memory_factor": math.inf}, "memory_factor"),
    ],
)
def test_invalid_policies_are_refused(bad, what):
    with pytest.raises(ConfigError, match=what):
        Policy(**bad)


def test_all_invalid_settings_are_named_at_once():
    with pytest.raises(ConfigError) as e:
        Policy(loss=0, alpha=0, hours=-1)
    assert [p.split(":")[0] for p in e.value.problems] == ["hours", "loss", "alpha"]


SITES = {f"{site}-{i}": site for site, n in (("north", 10), ("south", 5), ("tiny", 1)) for i in range(n)}
some_sites = st.dictionaries(st.text(min_size=1, max_size=8), st.sampled_from("ab"), min_size=1, max_size=30)


@given(some_sites, st.text(max_size=8), st.lists(st.floats(0.01, 1), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_steps_only_add_and_no_site_is_without_a_canary(sites, release, shares):
    order, chosen = camera_order(release, sites), []
    for share in sorted(shares):
        chosen.append(set(assigned_cameras(order, share)))
        for site in set(sites.values()):
            n, of = sum(sites[c] == site for c in chosen[-1]), sum(s == site for s in sites.values())
            assert n == max(1, math.ceil(share * of - 1e-9))
    assert all(a <= b for a, b in zip(chosen, chosen[1:]))
    assert set(assigned_cameras(order, 1.0)) == set(sites)


def test_another_release_begins_elsewhere():
    firsts = [tuple(assigned_cameras(camera_order(f"r{k}", SITES), 0.1)) for k in range(40)]
    assert len(set(firsts)) > 20
    assert firsts[0] == tuple(assigned_cameras(camera_order("r0", dict(reversed(SITES.items()))), 0.1))


def test_every_camera_is_first_equally_often():
    sites = {f"c{i}": "s" for i in range(4)}
    first = [assigned_cameras(camera_order(f"r{k}", sites), 0.1)[0] for k in range(400)]
    assert min(first.count(c) for c in sites) > 65


def test_a_new_camera_takes_the_model_from_none():
    before = assigned_cameras(camera_order("r", SITES), 0.3)
    more = {**SITES, **{f"north-{i}": "north" for i in range(10, 60)}}
    assert set(before) <= set(assigned_cameras(camera_order("r", more), 0.1, before))
    assert "away" not in assigned_cameras(camera_order("r", SITES), 0.3, ["away"])


@pytest.mark.parametrize("share", [0, -0.1, 1.1, math.nan, None])
def test_shares_are_checked(share):
    with pytest.raises(ConfigError, match="0 < share"):
        assigned_cameras(camera_order("r", SITES), share)


class Clock:
    def __init__(self):
        self.at = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def __call__(self):
        return self.at


PROMOTE = RolloutReport(WORD.PROMOTE, ())
ROLLBACK = RolloutReport(WORD.ROLLBACK, ())
HOLD = RolloutReport(WORD.INSUFFICIENT, ())
LATE = RolloutReport(WORD.INSUFFICIENT, (), expired=True)


@pytest.fixture
def file(tmp_path):
    start_rollout(tmp_path / "rollout.jsonl", "new", "old", SITES, POLICY, Clock())
    return tmp_path / "rollout.jsonl"


def test_a_rollout_goes_step_by_step(file):
    stages = [read_rollout(file)]
    for _ in range(4):
        stages.append(advance_rollout(file, PROMOTE))
    assert [s.stage for s in stages] == ["shadow", "canary", "canary", "canary", "promoted"]
    assert [len(s.cameras) for s in stages] == [0, 3, 6, 16, 16]
    assert advance_rollout(file, ROLLBACK).stage == "promoted", "what has ended stays as it is"


@pytest.mark.parametrize("report, stage", [(ROLLBACK, "rolled back"), (LATE, "expired")])
def test_an_end_takes_the_model_from_all_cameras(file, report, stage):
    advance_rollout(file, PROMOTE)
    state = advance_rollout(file, report)
    assert (state.stage, state.cameras, state.ended) == (stage, (), True)


def test_insufficient_changes_nothing(file):
    before = file.read_bytes()
    assert advance_rollout(file, HOLD).stage == "shadow" and file.read_bytes() == before


def test_what_is_read_is_what_was_made(file):
    state = advance_rollout(file, PROMOTE)
    again = read_rollout(file)
    assert again == state
    assert (again.policy, again.release, again.previous) == (POLICY, "new", "old")
    assert [e["event"] for e in again.events] == ["start", "verdict"]


def test_hours_are_those_of_the_step(tmp_path):
    clock, path = Clock(), tmp_path / "rollout.jsonl"
    start_rollout(path, "new", "old", SITES, POLICY, clock)
    clock.at += timedelta(hours=30)
    assert read_rollout(path).hours(clock()) == 30
    state = advance_rollout(path, PROMOTE, clock)
    assert state.hours(clock.at + timedelta(hours=2)) == 2
    assert state.hours(clock.at - timedelta(days=400)) == 0, "a clock that was put back"


def test_a_person_may_overrule_and_the_file_says_so(file):
    state = promote_rollout(file, "the line stands still")
    assert (state.stage, state.forced, state.events[-1]["reason"]) == (
        "canary",
        True,
        "the line stands still",
    )
    assert advance_rollout(file, PROMOTE).forced, "for ever"


def test_an_abort_keeps_its_reason(file):
    state = abort_rollout(file, "wrong file")
    assert (state.stage, state.forced, state.events[-1]["reason"]) == ("aborted", False, "wrong file")
    with pytest.raises(ConfigError, match="this rollout is aborted"):
        promote_rollout(file, "again")


@pytest.mark.parametrize("act", [promote_rollout, abort_rollout])
def test_a_reason_is_needed(file, act):
    with pytest.raises(ConfigError, match="no reason"):
        act(file, "  ")


def test_a_halt_leaves_the_cameras_and_ends_it(file):
    advance_rollout(file, PROMOTE)
    state = halt_rollout(file, "3 of 12 devices rolled back")
    assert (state.stage, len(state.cameras)) == ("halted", 3)
    assert advance_rollout(file, PROMOTE).stage == "halted"
    assert halt_rollout(file, "once more") == state


def test_a_file_holds_one_rollout(file):
    with pytest.raises(ConfigError, match="already begun"):
        start_rollout(file, "newer", "old", SITES)


@pytest.mark.parametrize("bad", [("", "old", SITES), ("a", "a", SITES), ("a", "b", {}), ("a", "", SITES)])
def test_a_rollout_needs_two_models_and_cameras(tmp_path, bad):
    with pytest.raises(ConfigError, match="two different models"):
        start_rollout(tmp_path / "r.jsonl", *bad)
    assert not (tmp_path / "r.jsonl").exists()


def test_of_many_that_begin_at_once_one_wins(tmp_path):
    def begin(k):
        try:
            return start_rollout(tmp_path / "r.jsonl", f"new{k}", "old", SITES).release
        except ConfigError:
            return None

    with ThreadPoolExecutor(8) as pool:
        won = [r for r in pool.map(begin, range(8)) if r]
    assert won == [read_rollout(tmp_path / "r.jsonl").release]


def test_a_file_cut_at_any_byte_is_an_earlier_state_or_no_rollout(file):
    states = [read_rollout(file)]
    for report in (PROMOTE, PROMOTE):
        states.append(advance_rollout(file, report))
    whole = file.read_bytes()
    ends = [i + 1 for i, b in enumerate(whole) if b == 10]
    for cut in [*range(0, len(whole), 97), *ends, *(e - 1 for e in ends)]:
        file.write_bytes(whole[:cut])
        complete = sum(e - 1 <= cut for e in ends)
        if complete:
            assert read_rollout(file) == states[complete - 1]
        else:
            with pytest.raises(ConfigError, match="no rollout was begun"):
                read_rollout(file)


def test_a_torn_line_is_taken_away_by_the_next_event(file):
    with open(file, "ab") as f:
        f.write(b'{"at": "2026-01-0')
    assert advance_rollout(file, PROMOTE).stage == "canary"
    assert read_rollout(file).stage == "canary"


@pytest.mark.parametrize(
    "line", ["nonsense", "[]", "3", '{"at": "x", "stage": "canary"}', '{"at": "2026-01-01T00:00:00+00:00"}']
)
def test_a_foreign_line_in_the_middle_is_refused(file, line):
    text = file.read_text()
    file.write_text(text + line + "\n" + text)
    with pytest.raises(DataError, match="line 2 is not an event"):
        read_rollout(file)


def test_a_policy_in_the_file_is_checked(file):
    row = json.loads(file.read_text())
    row["policy"]["loss"] = 7
    file.write_text(json.dumps(row) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match="loss: 7"):
        read_rollout(file)


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match="no rollout was begun here"):
        read_rollout(tmp_path / "none.jsonl")


def outcomes(text, ring=0):
    "One device a letter: x rolled back, o fine."
    return [Outcome(f"box-{i}", c == "x", ring) for i, c in enumerate(text)]


@pytest.mark.parametrize(
    "first, later, halts",
    [
        ("", "", False),
        ("x", "", False),
        ("xo", "x", False),
        ("oxx", "", True),
        ("xox", "", False),
        ("ooo", "xx", True),
        ("oooooooo", "xx", False),
        ("oooooooo", "xxx", True),
        ("oooo", "x", False),
    ],
)
def test_the_brake(first, later, halts):
    assert bool(fleet_brake([*outcomes(first), *outcomes(later, 1)])) is halts


def test_the_brake_says_why():
    assert (
        fleet_brake(outcomes("oxx"))
        == "2 consecutive devices of the first ring rolled back, the last one is box-2"
    )
    assert fleet_brake(outcomes("oxoxo", 1)) == "2 of 5 devices rolled back: box-1, box-3"


@pytest.mark.parametrize("bad", [{"most": 0}, {"most": 1}, {"fewest": 0}, {"consecutive": 0}])
def test_settings_of_the_brake_are_checked(bad):
    with pytest.raises(ConfigError, match="fleet brake"):
        fleet_brake([], **bad)


def test_all_ends_are_known():
    assert set(ENDED) == {"promoted", "rolled back", "aborted", "expired", "halted"}


# the study in miniature


@pytest.mark.parametrize("hits, n", [(0, 200), (7, 200), (200, 200)])
def test_intervals_of_the_study_are_the_exact_ones(hits, n):
    exact = binomtest(hits, n).proportion_ci(method="exact")
    assert try_rollout.rate(hits, n) == [round(hits / n, 4), round(exact.low, 4), round(exact.high, 4)]


def test_streams_of_the_study_have_their_mean_and_memory():
    x = try_rollout.streams(20000, 0.1, 0.9, 20, seed=0).astype(float)
    assert x.mean() == pytest.approx(0.1, abs=0.003) and 0 <= x.min() <= x.max() <= 1
    lag = np.mean([np.corrcoef(x[:-1, i], x[1:, i])[0, 1] for i in range(20)])
    assert 0.8 < lag < 0.92


def test_the_study_at_the_limit_in_miniature():
    row = try_rollout.null_row(0.1, 0.9, 1.0, many=60, hours=0.5)
    assert row["rollback"]["evidence"][0] <= 0.05 and row["promote"]["evidence"][0] <= 0.05
    assert row["rollback"]["5 of 20"][0] > 0.5, "the rule of a threshold decides by chance"


def test_the_study_off_the_limit_in_miniature():
    worse = try_rollout.power_row(0.1, 0.3, 0.9, many=30, hours=0.5)
    better = try_rollout.power_row(0.1, 0.02, 0.9, many=30, hours=0.5)
    assert worse["right"][0] == better["right"][0] == 1
    assert worse["wrong"][0] == better["wrong"][0] == 0
    assert worse["minutes, median"] <= 5


def test_the_study_of_a_late_change_in_miniature():
    row = try_rollout.late_row(0.1, 0.05, 0.3, many=20, hours=2.0)
    assert row["seen"][0] == 1 and row["before"][0] == 0 and row["minutes, median"] <= 10


def test_the_study_of_long_memories_in_miniature():
    row = try_rollout.memory_row(20, 1.0, many=30, hours=0.5)
    assert row["promote"][0] == 0 and row["rollback"][0] <= 0.2


def test_the_rule_of_five_of_twenty():
    minute = np.ones((300, 1))
    bad, good = 0.2 * minute, 0 * minute
    assert try_rollout.flagger(np.concatenate([bad, good] * 5), 0.1)[0]
    assert not try_rollout.flagger(np.concatenate([bad, *[good] * 5] * 6), 0.1)[0]


@pytest.mark.slow
def test_planted_faults_on_known_boxes_in_miniature():
    rng, names = np.random.default_rng(6), ("gear", "bolt", "nut", "bracket")
    frames = []
    for k in range(1500):  # five minutes; a part is in view for eight frames
        shown = np.random.default_rng(k // 8).permutation(4)[: 1 + (k // 8) % 3]
        xyxy = [[60 * c + k % 8 * 5, 10, 60 * c + k % 8 * 5 + 40, 50] for c in shown]
        confidence = np.clip(0.8 + 0.1 * rng.standard_normal(len(shown)), 0.4, 1)
        frames.append((np.array(xyxy, np.float32), confidence, shown.astype(np.int32)))
    rows = {r["candidate"]: r for r in try_rollout.line_rows([{"itself": frames}], names, Policy())}
    assert rows["itself"]["verdicts"] == "1 INSUFFICIENT" and rows["itself"]["disagree"] == 0
    assert rows["gear ↔ bolt"]["verdicts"] == "1 ROLLBACK" and rows["gear ↔ bolt"]["minutes, median"] <= 5
    assert rows["threshold 0.85"]["first guard"] == "lost"


def test_the_table_is_whole():
    study = json.loads(try_rollout.TABLE.read_text(encoding="utf-8"))
    assert len(study["null"]) == len(try_rollout.NULL) and len(study["power"]) == len(try_rollout.POWER)
    assert len(study["late"]) == len(try_rollout.LATE) and len(study["memory"]) == len(try_rollout.MEMORY)
    at_limit = [r for r in study["null"] if r["mean"] == r["limit"]]
    assert all(r["streams"] >= 400 for r in study["null"])
    assert max(r["rollback"]["evidence"][2] for r in at_limit) <= 0.075
    assert max(r["promote"]["evidence"][2] for r in at_limit) <= 0.075
    assert max(r["rollback"]["evidence"][0] for r in study["null"] if r not in at_limit) <= 0.01


def test_begin_evidence_takes_rows_of_pairs():
    e = begin_evidence(Policy(), NAMES)
    d = Detections([[0, 0, 10, 10]], [0.9], [0])
    e.add(0.0, compare_frame(d, d, NAMES))
    assert isinstance(e, Evidence) and e.blocks.moments[-1, 0, 0] == 1
