"""Decisions: ordered rules with vetoes; a stored one is computed again to the same bytes,
and flips are true."""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.files import write_json
from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.evaluation.baseline import ANSWERS
from cv_pipeline.readiness.choices import (
    BUY,
    DATA,
    MODEL,
    TASK,
    TOPICS,
    fit_curve,
    labels_for,
    measured_for,
    measured_in,
)
from cv_pipeline.readiness.decide import (
    MODE,
    PLACEMENT,
    answer_of,
    decide,
    decision_text,
    recompute,
    write_decision,
)

BY_NAME = {t.name: t for t in TOPICS}


def value_of(q):
    "A strategy for one answer, unknown with it."
    known = {
        "yes or no": st.booleans(),
        "number": st.one_of(
            st.floats(q.low, q.high, allow_nan=False),
            st.floats(max(q.low, 1e-3), min(q.high, 2000), allow_nan=False) if q.low < 2000 else st.nothing(),
        ),
        "choice": st.sampled_from(q.choices or ("",)),
        "list": st.none(),
    }[q.kind]
    return st.one_of(st.none(), known)


def answers(topic):
    return st.fixed_dictionaries({q.key: value_of(q) for q in topic.questions})


@pytest.mark.parametrize("topic", TOPICS, ids=lambda t: t.name)
def test_flips_are_true_and_the_answer_is_a_known_one(topic):
    @settings(max_examples=25, deadline=None)
    @given(answers(topic))
    def check(a):
        d = decide(topic, a)
        assert d.answer in (*topic.answers, "none")
        for flip in d.flips:
            changed = decide(topic, {**d.inputs, flip["input"]: flip["to"]}).answer
            assert changed == flip["answer"] != d.answer

    check()


@pytest.mark.parametrize("topic", TOPICS, ids=lambda t: t.name)
def test_a_ruled_out_answer_is_never_given(topic):
    @settings(max_examples=60, deadline=None)
    @given(answers(topic))
    def check(a):
        checked = topic.checked(a)
        answer, _ = answer_of(topic, checked)
        barred = {x for r in topic.rules if r.veto and r.fires(checked) for x in r.answer.split("|")}
        assert answer not in barred

    check()


def never_rises(topic, key, order, low, high):
    "The answer's rank does not fall when a number grows."

    @settings(max_examples=120, deadline=None)
    @given(answers(topic), st.floats(low, high), st.floats(low, high))
    def check(a, x, y):
        small, large = sorted((x, y))
        rank = [order[answer_of(topic, topic.checked({**a, key: v}))[0]] for v in (small, large)]
        assert rank[0] <= rank[1]

    check()


def test_a_tighter_latency_never_moves_from_the_edge_to_the_cloud():
    never_rises(PLACEMENT, "latency_ms", {"edge": 0, "hybrid": 0, "none": 0, "cloud": 1}, 0.1, 5000)


def test_a_shorter_time_never_moves_from_real_time_to_batch():
    rank = {"none": 0, "real time": 1, "near real time": 2, "batch": 3}
    never_rises(MODE, "needed_s", rank, 1e-3, 1e5)


def test_more_images_never_move_from_building_to_buying():
    @settings(max_examples=120, deadline=None)
    @given(answers(BUY), st.floats(0, 1e7), st.floats(0, 1e7), st.floats(1e3, 1e6))
    def check(a, x, y, even):
        given = {**a, "even_low": even, "even_high": 2 * even}
        rank = {"buy": 0, "buy, and measure again": 1, "build": 2, "none": 0}
        small, large = (rank[decide(BUY, {**given, "images": v}).answer] for v in sorted((x, y)))
        assert small <= large

    check()


CASES = [  # topic, answers, what follows
    ("mode", {"needed_s": 0.2}, "real time"),
    ("mode", {"needed_s": 30}, "near real time"),
    ("mode", {"needed_s": 7200}, "batch"),
    ("mode", {"needed_s": 7200, "acts": True}, "real time"),
    ("mode", {"needed_s": 0.1, "p99_ms": 150}, "none"),
    ("placement", {"latency_ms": 40}, "edge"),
    ("placement", {"latency_ms": 80}, "edge"),
    ("placement", {"leave": "no", "latency_ms": 5000}, "edge"),
    ("placement", {"offline": True, "latency_ms": 5000}, "hybrid"),
    ("placement", {"latency_ms": 5000, "elastic": True}, "cloud"),
    ("placement", {"latency_ms": 5000, "elastic": True, "leave": "covered"}, "hybrid"),
    ("placement", {"edge_fits": False, "leave": "no"}, "none"),
    ("task", {"sensor": True}, "not vision"),
    ("task", {"experts": False}, "not vision"),
    ("task", {"changes": 12, "affordable": 4}, "not vision"),
    ("task", {"rare": 99}, "vision with a person"),
    ("task", {"danger": True, "person": True}, "vision with a person"),
    ("task", {"explain": True}, "measured features"),
    ("task", {"rare": 100}, "vision"),
    ("model", {"job": "detect", "defects": 500}, "YOLO or RT-DETR"),
    ("model", {"job": "detect", "defects": 40}, "anomaly"),
    ("model", {"job": "fine-grained"}, "EfficientNet or ConvNeXt"),
    ("model", {"job": "scene"}, "ViT"),
    ("model", {"job": "detect", "small": True, "slower": True}, "two-stage"),
    ("model", {"job": "detect", "small": True, "slower": False}, "YOLO or RT-DETR"),
    ("model", {"job": "detect", "no_nms": True}, "DETR"),
    ("model", {"job": "detect", "doubtful": True}, "cascade"),
    ("data", {"images": 60}, "collect first"),
    ("data", {"images": 300}, "a first model"),
    ("data", {"images": 3000}, "production"),
    ("data", {"images": 30_000}, "hard conditions"),
    ("buy", {"images": 50_000, "standard": True, "domain": False}, "buy"),
    ("buy", {"images": 50_000, "standard": True, "domain": True}, "build"),
    ("buy", {"images": 50_000, "standard": True, "offline": True}, "build"),
]


@pytest.mark.parametrize(("name", "a", "answer"), CASES)
def test_every_rule_of_the_sources_has_a_case(name, a, answer):
    assert decide(BY_NAME[name], a).answer == answer


def test_both_limits_of_the_essays_are_shown():
    rules = decide(PLACEMENT, {"latency_ms": 30}).rules
    assert [r["because"][-5:] for r in rules if r["answer"] == "edge"] == ["50 ms", "00 ms"]


def test_an_unknown_input_is_named_with_its_question():
    d = decide(PLACEMENT, {"latency_ms": 400})
    assert {"leave", "edge_fits"} <= {u["input"] for u in d.unknown}
    assert all(u["question"].endswith("?") for u in d.unknown)


def test_what_cannot_change_the_answer_any_more_is_not_asked_for():
    assert decide(TASK, {"sensor": True}).unknown == ()


@pytest.mark.parametrize("topic", TOPICS, ids=lambda t: t.name)
def test_a_stored_decision_is_computed_again_to_the_same_bytes(topic, tmp_path):
    d = decide(topic, {q.key: q.default for q in topic.questions})
    path = write_decision(d, tmp_path / "d.yaml")
    again = recompute(path, TOPICS)
    assert again.differs == ()
    assert decision_text(again.now) == decision_text(d)


def test_an_answer_that_was_edited_is_found(tmp_path):
    path = write_decision(decide(MODE, {"needed_s": 0.2}), tmp_path / "mode.yaml")
    book = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**book, "answer": "batch"}))
    assert recompute(path, TOPICS).differs == ("answer",)


def test_an_input_that_was_edited_is_found(tmp_path):
    path = write_decision(decide(MODE, {"needed_s": 0.2}), tmp_path / "mode.yaml")
    book = yaml.safe_load(path.read_text())
    book["inputs"]["needed_s"] = 9000.0
    path.write_text(yaml.safe_dump(book))
    assert "answer" in recompute(path, TOPICS).differs


def test_a_person_may_decide_otherwise_with_a_reason(tmp_path):
    made = decide(MODE, {"needed_s": 0.2})
    path = write_decision(
        made,
        tmp_path / "m.yaml",
        {"answer": "batch", "reason": "pilot", "name": "A. Ng", "date": "2026-11-01"},
    )
    again = recompute(path, TOPICS)
    assert (again.differs, again.choice, again.now.answer) == ((), "batch", "real time")


@pytest.mark.parametrize("missing", ["answer", "reason", "name", "date"])
def test_an_override_without_its_parts_is_refused(missing, tmp_path):
    whole = {"answer": "batch", "reason": "pilot", "name": "A. Ng", "date": "2026-11-01"}
    with pytest.raises(ConfigError, match="answer, reason, name and date"):
        write_decision(decide(MODE, {}), tmp_path / "m.yaml", {**whole, missing: " "})


@pytest.mark.parametrize(
    "text", ["", "[]", "format: x", "format: cv_pipeline decision 1",
             "format: cv_pipeline decision 1\ndecision: mode",
             "format: cv_pipeline decision 1\ndecision: mode\ninputs: 3", "\x00", "a: [",
             "format: cv_pipeline decision 1\ndecision: mode\ninputs: {needed_s: .nan}",
             "format: cv_pipeline decision 1\ndecision: mode\ninputs: {}\nmeasured: {p99_ms: 3}"],
)  # fmt: skip
def test_what_is_not_a_decision_is_a_data_error(text, tmp_path):
    path = tmp_path / "d.yaml"
    path.write_text(text)
    with pytest.raises(DataError):
        recompute(path, TOPICS)


@pytest.mark.parametrize(
    ("name", "a", "message"),
    [("mode", {"need": 3}, "unknown: need"), ("mode", {"needed_s": "soon"}, "not a number"),
     ("mode", {"needed_s": float("inf")}, "not a number from"), ("mode", {"needed_s": True}, "not a number"),
     ("mode", {"live": 1}, "not yes or no"), ("placement", {"leave": "perhaps"}, "one of yes, covered, no"),
     ("model", {"candidates": "fast"}, "not a list")],
)  # fmt: skip
def test_a_wrong_answer_is_a_config_error_with_the_question(name, a, message):
    with pytest.raises(ConfigError, match=message):
        decide(BY_NAME[name], a)


BENCH = {
    "machine": {},
    "fit": {"largest": 8},
    "rows": [
        {"artefact": "fp32", "batch": 1, "p99_ms": 46.0, "error": ""},
        {"artefact": "int8", "batch": 1, "p99_ms": 17.0, "error": ""},
        {"artefact": "int8", "batch": 8, "p99_ms": 90.0, "error": ""},
        {"artefact": "broken", "batch": 1, "p99_ms": None, "error": "no memory"},
    ],
    "accuracy": {"int8": {"difference_low": -0.03}},
}


def test_measured_inputs_carry_their_way_back(tmp_path):
    (tmp_path / "benchmark.json").write_text(json.dumps(BENCH))
    found = measured_in([tmp_path])
    assert found["edge_p99_ms"]["value"] == 17.0
    assert found["edge_fits"]["value"] is True
    assert found["edge_fits"]["pointer"] == "/fit/largest" and len(found["edge_fits"]["sha256"]) == 64


def test_a_candidate_that_may_have_lost_too_much_is_not_chosen(tmp_path):
    (tmp_path / "benchmark.json").write_text(json.dumps(BENCH))
    found = measured_for(MODEL, [tmp_path])
    d = decide(MODEL, {"job": "detect", "latency_ms": 50}, found)
    assert d.numbers["chosen"] == "fp32"
    assert decide(MODEL, {"job": "detect", "latency_ms": 20}, found).numbers["chosen"] is None


def test_what_a_person_gives_counts_before_what_was_measured():
    found = {"p99_ms": {"value": 500.0, "file": "s.json", "sha256": "0", "pointer": "/x"}}
    d = decide(MODE, {"needed_s": 0.3, "p99_ms": 100}, found)
    assert d.answer == "real time" and d.measured == {}


@pytest.mark.parametrize(
    "book", [{}, {**BENCH, "rows": 3}, {**BENCH, "rows": [{"batch": 1, "p99_ms": 2}]}, []]
)
def test_a_file_that_measured_nothing_known_is_a_data_error(book, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(book))
    with pytest.raises(DataError):
        measured_in([tmp_path / "x.json"])


def test_a_learning_curve_gives_an_interval_and_a_ceiling():
    made = labels_for([[250, 0.61], [500, 0.68], [1000, 0.73], [2000, 0.765]], 0.80)
    assert 2000 < made["labels low"] <= made["labels high"] and 0.8 < made["ceiling"] < 1


def test_a_curve_that_falls_is_a_data_error():
    with pytest.raises(DataError, match="does not rise"):
        fit_curve([[100, 0.9], [200, 0.8], [400, 0.7]])


def test_labels_that_are_missing_cost_something():
    d = decide(
        DATA, {"images": 500, "classes": 2, "boxes": 1, "seconds": 3.6, "wage": 10, "level": "production"}
    )
    assert d.numbers["pictures missing"] == [1000.0, 9000.0]
    assert d.numbers["cost"] == [10, 90]


def a_baseline(folder, answer):
    "What `cv-pipeline baseline --out` leaves."
    return write_json(
        folder / "baseline.json",
        {"custom training": answer, "means": ANSWERS[answer], "reasons": [], "coco": {}, "latency_ms": None},
    )


def test_a_baseline_that_meets_every_floor_needs_no_labels(tmp_path):
    path = a_baseline(tmp_path, "no")
    made = decide(DATA, {"images": 50}, measured_for(DATA, [path]))
    assert made.answer == "no training" and made.rules[0]["source"] == "measured"
    file = write_decision(made, tmp_path / "data.yaml")
    assert recompute(file, TOPICS).differs == ()


@pytest.mark.parametrize("answer", sorted(set(ANSWERS) - {"no"}))
def test_any_other_baseline_leaves_the_count_of_labels_to_decide(tmp_path, answer):
    measured = measured_for(DATA, [a_baseline(tmp_path, answer)])
    assert measured["baseline"]["value"] == answer and measured["baseline"]["pointer"] == "/custom training"
    assert decide(DATA, {"images": 50}, measured).answer == "collect first"


def test_a_baseline_with_an_unknown_answer_is_refused(tmp_path):
    path = write_json(
        tmp_path / "b.json", {"custom training": "maybe", "means": "", "reasons": [], "coco": {}}
    )
    with pytest.raises(ConfigError, match="baseline: 'maybe' is not one of"):
        decide(DATA, {}, measured_for(DATA, [path]))
