"""People: the queue, judgements, audits."""

import pytest

from cv_pipeline.annotation.annotations import Annotation
from cv_pipeline.annotation.collect import read_collected
from cv_pipeline.apps.moderation import Moderator
from cv_pipeline.apps.moderation_queue import (
    draw_month,
    judgements,
    note_judgements,
    outcomes,
    queue_pictures,
    score_month,
    waiting,
)
from cv_pipeline.core.chain import read_chain
from cv_pipeline.core.types import ConfigError, DataError, Detections
from tests.helpers.moderation_desk import CLOCK, Told, pixel, policy_of


def decide_some(desk, scores, first=0):
    return [desk.decide(pixel(s, first + k))[1] for k, s in enumerate(scores)]


def judge(desk, rows, person, action):
    return note_judgements(
        desk.trail, [{"picture": r["picture"], "person": person, "action": action} for r in rows]
    )


def test_the_majority_of_people_decides_and_a_tie_waits(desk):
    rows = decide_some(desk, [0.5] * 3)
    for person, actions in {"ana": "bbp", "ben": "bpp", "cho": "b"}.items():
        for r, a in zip(rows, actions):
            judge(desk, [r], person, {"b": "block", "p": "pass"}[a])
    made = outcomes(read_chain(desk.trail).rows)
    assert [made[r["picture"]]["action"] for r in rows] == ["block", "person", "pass"]
    assert [w["picture"] for w in waiting(read_chain(desk.trail).rows)] == [rows[1]["picture"]]


def test_a_judgement_is_written_once_and_a_person_may_change_it(desk):
    rows = decide_some(desk, [0.5])
    assert [judge(desk, rows, "ana", a) for a in ("block", "block", "pass")] == [1, 0, 1]
    assert outcomes(read_chain(desk.trail).rows)[rows[0]["picture"]]["action"] == "pass"


@pytest.mark.parametrize("wrong", [{"picture": "0" * 64}, {"action": "maybe"}, {"person": " "}])
def test_judgements_that_are_none(desk, wrong):
    [row] = decide_some(desk, [0.5])
    with pytest.raises(DataError, match="a picture that was decided"):
        note_judgements(desk.trail, [{"picture": row["picture"], "person": "ana", "action": "pass", **wrong}])


def test_the_queue_is_a_collection_and_each_picture_is_in_it_once(desk, tmp_path):
    data = [pixel(0.5, k) for k in range(3)]
    rows = [desk.decide(d)[1] for d in data]
    assert queue_pictures(tmp_path / "q", [*zip(rows, data), (rows[0], b"rubbish")]) == 3
    assert queue_pictures(tmp_path / "q", zip(rows, data)) == 0
    found = read_collected(tmp_path / "q")
    assert [r.picture.split("/")[1][:64] for r in found] == [r["picture"] for r in rows]


def test_answers_of_label_studio_become_judgements():
    named = f"pictures/{'a' * 64}.jpg"
    box = Detections([[1, 1, 5, 5]], class_id=[0])
    answers = [
        Annotation(named, "ana", (9, 9), ("x",), box),
        Annotation(named, "ben", (9, 9), ("x",), Detections.empty()),
    ]
    assert [(r["person"], r["action"]) for r in judgements(answers)] == [("ana", "block"), ("ben", "pass")]
    with pytest.raises(DataError, match="not a picture of the queue"):
        judgements([Annotation("a.jpg", "ana", (9, 9), ("x",), box)])


def audited(desk, rows):
    desk.write("sample", month="2026-06", share=1.0, pictures=[r["picture"] for r in rows])


def test_a_sample_is_random_repeatable_and_of_the_month(desk):
    decide_some(desk, [0.0] * 30 + [1.0] * 10 + [0.5] * 5)
    rows = read_chain(desk.trail).rows
    sample = draw_month(rows, "2026-06", 0.2)
    assert [r["action"] for r in sample] == ["block"] * 2 + ["pass"] * 6
    assert draw_month(rows, "2026-06", 0.2) == sample and draw_month(rows, "2026-05", 0.2) == []
    assert draw_month(rows, "2026-06", 0.2, seed=1) != sample


@pytest.mark.parametrize("month, share", [("June", 0.1), ("2026-06", 0.0), ("2026-06", 2.0)])
def test_a_sample_of_nothing(desk, month, share):
    with pytest.raises(ConfigError, match="moderation audit"):
        draw_month([], month, share)


def made_up(blocked, passed, wrong=0, bad=0, people=40):
    "Lines of a trail with judgements of every automatic decision."
    policy = policy_of(sha="a" * 64)
    rows, n = [], 0
    for machine, count, other in (("block", blocked, wrong), ("pass", passed, bad), ("person", people, 0)):
        for k in range(count):
            n += 1
            one = {"number": n, "at": "2026-06-01", "name": "", "policy": policy.digest, "picture": str(n)}
            rows.append({"event": "decision", "action": machine, "reason": "", **one})
            truth = {"block": "pass" if k < other else "block", "pass": "block" if k < other else "pass"}
            action = truth.get(machine, "block")
            rows.append({"event": "judgement", "picture": str(n), "person": "ana", "action": action})
    rows.append({"event": "sample", "pictures": [str(k) for k in range(1, n + 1)]})
    return rows, policy


@pytest.mark.parametrize(
    "counts, verdict",
    [
        ((500, 400), "kept"),
        ((50, 400), "open"),
        ((500, 400, 40), "voided"),
        ((500, 400, 0, 120), "voided"),
        ((500, 400, 0, 22), "open"),
        ((0, 0), "kept"),
    ],
)
def test_an_audit_keeps_voids_or_leaves_open(counts, verdict):
    assert score_month(*made_up(*counts)).verdict == verdict


def test_an_open_audit_names_what_is_missing():
    assert "318 further judgements of blocked pictures" in score_month(*made_up(50, 4000)).reason


def test_a_voided_policy_sends_everything_to_people(desk):
    desk.write(
        "audit",
        month="2026-06",
        policy=desk.policy.digest,
        verdict="voided",
        reason="30 were bad",
        numbers={},
    )
    again = Moderator(desk.policy, desk.trail, Told(), now=CLOCK)
    assert again.decide(pixel(0.0))[0] == ("person", "void", "the audit of 2026-06 found: 30 were bad")
