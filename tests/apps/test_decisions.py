"""Decisions from evidence and thresholds, promises of a policy, its file."""

import numpy as np
import pytest

from cv_pipeline.apps.context import Context
from cv_pipeline.apps.decisions import load_policy, prove_policy, save_policy, scores_of, settle
from cv_pipeline.core.types import ConfigError, DataError
from tests.helpers.moderation_desk import LIMITS, Told, policy_of
from tests.helpers.scenes import scene

LISTED = {"action": "block", "reason": "r"}

CASES = [
    ({"scores": {"x": 0.95}}, ("block", "classes")),
    ({"scores": {"x": 0.1}}, ("pass", "classes")),
    ({"scores": {"x": 0.5}}, ("person", "classes")),
    ({"scores": {"x": 0.9}}, ("person", "classes")),  # not above
    ({"scores": {"x": 0.2}}, ("pass", "classes")),  # not above
    ({"list": LISTED, "scores": {"x": 0.0}}, ("block", "list")),
    ({"list": {"action": "person", "reason": "r"}, "scores": {"x": 0.0}}, ("person", "list")),
    ({"list": {"action": "none", "reason": "r"}, "scores": {"x": 0.0}}, ("pass", "classes")),
    ({"error": "damaged", "list": LISTED}, ("person", "error")),
    ({}, ("person", "classes")),
    ({"scores": {"unknown": 0.0}}, ("person", "classes")),
    ({"scores": {"x": 0.1, "unknown": 0.0}}, ("person", "classes")),
    ({"scores": {"x": 0.5}, "context": {"score": 0.0}}, ("person", "classes")),  # advice is not proven
    ({"scores": {"x": 0.5}, "context": {"score": None}}, ("person", "classes")),
]


@pytest.mark.parametrize("evidence, wanted", CASES)
def test_a_decision_from_evidence(evidence, wanted):
    assert settle(evidence, LIMITS)[:2] == wanted


def test_a_proven_context_decides():
    limits = {**LIMITS, "context": {"block": 0.5, "pass": 0.0}}
    kinds = [
        settle({"scores": {"x": 0.5}, "context": {"score": s}}, limits)[:2] for s in (0.0, 0.5, 1.0, None)
    ]
    assert kinds == [("pass", "context"), ("person", "classes"), ("block", "context"), ("person", "classes")]


def test_void_promises_leave_only_the_list():
    assert settle({"scores": {"x": 0.99}}, LIMITS, ["drift RED"])[:2] == ("person", "void")
    assert settle({"list": LISTED}, LIMITS, ["drift RED"]).action == "block"


def test_thresholds_that_are_not_proven_send_everything_to_people():
    rng = np.random.default_rng(0)
    few = prove_policy(rng.random((50, 1)).round(6), rng.random((50, 1)) < 0.5, ["x"])
    assert few.thresholds == {"x": {"block": None, "pass": None}}
    assert {settle({"scores": {"x": s}}, few.thresholds).action for s in (0.0, 0.5, 1.0)} == {"person"}


def test_a_policy_keeps_its_promises_on_other_pictures():
    rng = np.random.default_rng(1)
    bad = rng.random(6000) < 0.5
    score = np.where(bad, rng.beta(8, 1, 6000), rng.beta(1, 8, 6000)).round(6)
    made = prove_policy(score[:3000, None], bad[:3000, None], ["x"])
    got = np.array([settle({"scores": {"x": float(s)}}, made.thresholds).action for s in score[3000:]])
    truth = bad[3000:]
    assert truth[got == "block"].mean() >= 0.98 and (truth & (got == "pass")).sum() / truth.sum() <= 0.06
    assert (got == "person").mean() < 0.9


@pytest.mark.parametrize("labels", [np.zeros((4, 2), bool), np.zeros(4, bool), np.zeros((3, 1), bool)])
def test_labels_that_do_not_fit_their_scores(labels):
    with pytest.raises(DataError, match="labels"):
        prove_policy(np.zeros((4, 1), np.float32), labels, ["x"])


def test_a_model_of_another_task_is_named():
    class Detector(Told):
        class manifest:
            task, names = "detect", ("x",)

    with pytest.raises(ConfigError, match='task is "detect"'):
        scores_of(Detector(), [scene(0)])


def test_a_policy_is_read_back_and_an_edited_one_is_refused(tmp_path):
    policy = policy_of(sha="a" * 64, context=Context("http://127.0.0.1:9/v1", "vlm", "Is it forbidden?"))
    save_policy(policy, tmp_path / "p.json")
    assert load_policy(tmp_path / "p.json").digest == policy.digest
    text = (tmp_path / "p.json").read_text()
    (tmp_path / "p.json").write_text(text.replace('"miss": 0.05', '"miss": 0.3'))
    with pytest.raises(ConfigError, match="was edited"):
        load_policy(tmp_path / "p.json")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": "other"}', '{"format": "cv_pipeline moderation 1"}']
)
def test_a_file_that_is_no_policy(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ConfigError):
        load_policy(tmp_path / "p.json")
