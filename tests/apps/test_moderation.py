"""Moderation: the trail, and decisions that are made again from it."""

import hashlib

import numpy as np
import pytest

from cv_pipeline.apps.decisions import Policy
from cv_pipeline.apps.hash_lists import HashList, add_entries, entries_of, read_list
from cv_pipeline.apps.moderation import Moderator, check_trail
from cv_pipeline.core.chain import ChainError, read_chain
from cv_pipeline.core.types import BackendError, ConfigError
from tests.helpers.moderation_desk import CLOCK, Told, pixel, policy_of
from tests.helpers.scenes import scene


def test_every_decision_is_a_line_and_reproduced(desk):
    files = [pixel(s, k) for k, s in enumerate((0.0, 0.1, 0.5, 0.95, 1.0))]
    actions = [desk.decide(f, str(k))[0].action for k, f in enumerate(files)]
    assert actions == ["pass", "pass", "person", "block", "block"]
    found = check_trail(desk.trail, desk, lambda r: files[int(r["name"])])
    assert (found["decisions"], found["from pictures"], found["differ"]) == (5, 5, [])


def test_a_line_holds_no_picture(desk):
    desk.decide(pixel(0.5))
    assert all(len(line) < 2000 for line in desk.trail.read_text().splitlines())


def test_another_network_under_the_same_name_is_found(desk):
    desk.decide(data := pixel(0.1), "0")
    desk.model.batch = lambda images: (np.array([[0.15]], np.float32), None)
    [found] = check_trail(desk.trail, desk, lambda r: data)["differ"]
    assert found["differs"] == ["scores"]


def test_another_file_under_the_same_name_is_found(desk):
    desk.decide(pixel(0.1), "0")
    [found] = check_trail(desk.trail, desk, lambda r: pixel(0.2))["differ"]
    assert found["differs"] == ["picture"]


def test_a_changed_line_breaks_the_chain(desk):
    for s in (0.1, 0.95):
        desk.decide(pixel(s))
    text = desk.trail.read_text()
    desk.trail.write_text(text.replace('"action": "pass"', '"action": "block"', 1))
    with pytest.raises(ChainError, match="changed or removed"):
        check_trail(desk.trail)


def test_a_decision_that_does_not_follow_from_its_evidence_is_found(desk):
    row = {"picture": "0" * 64, "name": "", "policy": desk.policy.digest, "list": "", "void": []}
    desk.write(
        "decision", **row, evidence={"scores": {"x": 0.1}}, action="block", by="classes", reason="x 0.100"
    )
    [found] = check_trail(desk.trail)["differ"]
    assert found["differs"] == ["decision"]


def test_a_new_policy_is_a_line_and_old_decisions_stay_reproducible(desk):
    desk.decide(pixel(0.5))
    other = policy_of({"x": {"block": 0.4, "pass": 0.1}}, "a" * 64)
    again = Moderator(other, desk.trail, Told(), now=CLOCK)
    assert again.decide(pixel(0.5))[0].action == "block"
    Moderator(other, desk.trail, Told(), now=CLOCK)
    rows = read_chain(desk.trail).rows
    assert [r["event"] for r in rows] == ["policy", "decision", "policy", "decision"]
    assert check_trail(desk.trail)["differ"] == []


def test_thresholds_of_another_network_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="proven for another model"):
        Moderator(policy_of(sha="b" * 64), tmp_path / "t.jsonl", Told())


@pytest.mark.parametrize("data", [b"", b"rubbish", pixel(0.1)[:300]])
def test_a_file_that_cannot_be_read_goes_to_a_person(desk, data):
    decision, row = desk.decide(data)
    assert decision[:2] == ("person", "error") and row["picture"] == hashlib.sha256(data).hexdigest()


def test_a_network_that_fails_sends_pictures_to_people(tmp_path):
    desk = Moderator(
        policy_of(sha="a" * 64), tmp_path / "t.jsonl", Told(BackendError("out of order")), now=CLOCK
    )
    assert desk.decide(pixel(0.1))[0] == ("person", "error", "out of order")


def test_a_listed_picture_is_blocked_whatever_its_score(tmp_path):
    add_entries(tmp_path / "l.tsv", entries_of(scene(3), "forbidden", "case 3"))
    desk = Moderator(
        policy_of(sha="a" * 64), tmp_path / "t.jsonl", Told(), read_list(tmp_path / "l.tsv"), now=CLOCK
    )
    decision, row = desk.decide(pixel(0.0, 3))
    assert decision[:2] == ("block", "list") and row["evidence"]["list"]["matches"][0]["source"] == "case 3"
    assert row["list"] == desk.known.digest


def test_without_a_network_only_the_list_acts(tmp_path):
    desk = Moderator(Policy(), tmp_path / "t.jsonl", None, HashList(), now=CLOCK)
    assert desk.decide(pixel(0.0))[0].action == "person"


def test_the_context_is_asked_only_between_the_thresholds(desk):
    asked = []
    desk.context = lambda image: asked.append(1) or {"score": 0.0, "note": "fine", "ms": 1}
    made = [desk.decide(pixel(s, k)) for k, s in enumerate((0.0, 0.5, 1.0))]
    assert len(asked) == 1 and [d.action for d, _ in made] == ["pass", "person", "block"]
    assert made[1][1]["evidence"]["context"]["note"] == "fine"
