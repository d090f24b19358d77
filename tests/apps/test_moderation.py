"""Moderation: decisions from evidence, promises, the trail, context models that fail, people, audits."""

import hashlib
import json
import threading
from dataclasses import replace
from datetime import datetime, timezone

import cv2
import numpy as np
import pytest

from cv_pipeline.annotation.annotations import Annotation
from cv_pipeline.annotation.collect import read_collected
from cv_pipeline.apps.hash_lists import HashList, add_entries, entries_of, read_list
from cv_pipeline.apps.moderation import (
    Context,
    ContextReader,
    Moderator,
    Policy,
    check_trail,
    draw_month,
    judgements,
    load_policy,
    note_judgements,
    outcomes,
    prove_policy,
    queue_pictures,
    read_verdict,
    save_policy,
    score_month,
    scores_of,
    settle,
    waiting,
)
from cv_pipeline.core.chain import ChainError, read_chain
from cv_pipeline.core.http_server import Answer, HttpServer
from cv_pipeline.core.types import BackendError, ConfigError, DataError, Detections
from tests.helpers.scenes import scene

LIMITS = {"x": {"block": 0.9, "pass": 0.2}}
CLOCK = lambda: datetime(2026, 6, 15, 12, tzinfo=timezone.utc)


def jpg(image):
    return cv2.imencode(".jpg", image)[1].tobytes()


def policy_of(limits=LIMITS, sha="", **more):
    proven = lambda t: {"threshold": t, "sentence": "made up"}
    classes = {n: {k: proven(t) for k, t in v.items()} for n, v in limits.items()}
    return Policy(classes, {"sha256": sha} if sha else {}, **more)


class Told:
    "A network whose score of a picture is the grey level of its first pixel."

    class manifest:
        task, names = "multilabel", ("x",)

    identity = {"name": "told", "sha256": "a" * 64}

    def __init__(self, fails=None):
        self.fails, self.preprocess, self.postprocess, self.backend = fails, self, self, self

    def batch(self, images):
        return np.array([[i[0, 0, 0] / 255] for i in images], np.float32), None

    def infer(self, batch):
        if self.fails:
            raise self.fails
        return batch

    def checked(self, raw, n):
        return raw


def pixel(score, seed=0):
    "A PNG file that `Told` gives this score."
    image = scene(seed)
    image[:2, :2] = round(255 * score)
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture
def desk(tmp_path):
    return Moderator(policy_of(sha="a" * 64), tmp_path / "trail.jsonl", Told(), now=CLOCK)


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


CHAT = "http://127.0.0.1:{}/v1/chat/completions"


def context(port=9, **more):
    return Context(
        CHAT.format(port), "vlm", "Is it forbidden?", **{"timeout_s": 20.0, "cover": False, **more}
    )


def reply(text):
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        reply("yes"),
        reply('{"verdict": "maybe"}'),
        reply('{"verdict": ["allowed"]}'),
        reply("{"),
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b"\xff\xfe",
    ],
)
def test_rubbish_of_a_context_model_is_no_answer(body):
    with pytest.raises(DataError):
        read_verdict(body)
    assert ContextReader(context(), lambda *a: body)(scene(0))["score"] is None


@pytest.mark.parametrize("verdict, score", [("allowed", 0.0), ("unsure", 0.5), ("forbidden", 1.0)])
def test_a_verdict_inside_of_other_text(verdict, score):
    found = read_verdict(reply(f'Well:\n```json\n{{"verdict": "{verdict}", "reason": "so"}}\n```'))
    assert found == {"score": score, "note": "so"}


def test_a_late_context_model_is_no_answer_and_requests_do_not_pile_up():
    free, asked = threading.Event(), []

    def send(*a):
        asked.append(a)
        free.wait(30)
        return b""

    ask = ContextReader(context(timeout_s=0.02), send)
    found = [ask(scene(0)) for _ in range(7)]
    free.set()
    assert {f["score"] for f in found} == {None} and len(asked) <= 4


def test_a_context_model_over_http_gets_the_picture_and_the_key(monkeypatch):
    monkeypatch.setenv("KEY_OF_TEST", "k-123")
    seen = []

    class Sent:
        def __call__(self, url, headers, body, timeout_s):
            seen.append((url, headers, json.loads(body)))
            return reply('{"verdict": "allowed"}')

    assert ContextReader(context(key_env="KEY_OF_TEST"), Sent())(scene(0))["score"] == 0.0
    [(url, headers, body)] = seen
    assert headers["Authorization"] == "Bearer k-123" and "k-123" not in json.dumps(body)
    assert body["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,")


def test_an_address_where_no_one_listens_is_no_answer():
    with HttpServer({}, port=0, name="silent") as server:
        port = int(server.url.rsplit(":", 1)[1])
    assert "no answer" in ContextReader(context(port))(scene(0))["note"]


def test_an_address_that_answers_something_else_is_no_answer():
    with HttpServer({"/": lambda: Answer(200, "text/plain", b"hello")}, port=0, name="other") as server:
        assert ContextReader(context(int(server.url.rsplit(":", 1)[1])))(scene(0))["score"] is None


def test_a_picture_that_cannot_be_covered_is_not_sent():
    sent = []

    def refuses(image):
        raise DataError("no finder", "cover")

    found = ContextReader(context(), lambda *a: sent.append(a), refuses)(scene(0))
    assert found["score"] is None and not sent


@pytest.mark.parametrize(
    "how, what",
    [
        ({"url": "file:///etc/passwd"}, "address"),
        ({"url": "http://a:b@c/"}, "password"),
        ({"prompt": " "}, "empty"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"key_env": "NOT_SET_X"}, "NOT_SET_X"),
    ],
)
def test_bad_settings_of_a_context_model(how, what):
    with pytest.raises(ConfigError, match=what):
        replace(context(), **how)


def test_the_context_is_asked_only_between_the_thresholds(desk):
    asked = []
    desk.context = lambda image: asked.append(1) or {"score": 0.0, "note": "fine", "ms": 1}
    made = [desk.decide(pixel(s, k)) for k, s in enumerate((0.0, 0.5, 1.0))]
    assert len(asked) == 1 and [d.action for d, _ in made] == ["pass", "person", "block"]
    assert made[1][1]["evidence"]["context"]["note"] == "fine"


def decide_some(desk, scores, first=0):
    return [desk.decide(pixel(s, first + k))[1] for k, s in enumerate(scores)]


def judge(desk, rows, person, action):
    return note_judgements(
        desk, [{"picture": r["picture"], "person": person, "action": action} for r in rows]
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
        note_judgements(desk, [{"picture": row["picture"], "person": "ana", "action": "pass", **wrong}])


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


def test_a_policy_is_read_back_and_an_edited_one_is_refused(tmp_path):
    policy = policy_of(sha="a" * 64, context=context())
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
