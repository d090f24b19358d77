"""Yards with incidents: the same each time, boxes where the camera puts them, incidents of every kind."""

from dataclasses import replace

import numpy as np
import pytest

from cv_pipeline.core.types import ConfigError
from cv_pipeline.synthetic.incidents import (
    SIZE,
    Actor,
    Incident,
    IncidentLine,
    IncidentsConfig,
    Scored,
    detected,
    score_incidents,
    true_boxes,
    yard_pixels,
    yard_rules,
)

SHORT = IncidentsConfig(seconds=300, fps=1)


def test_a_seed_is_a_yard():
    one, again, other = IncidentLine(SHORT), IncidentLine(SHORT), IncidentLine(replace(SHORT, seed=1))
    boxes = lambda line: [d.xyxy.tolist() for _, d in line][:60]
    assert boxes(one) == boxes(again) != boxes(other) and one.truth == again.truth != other.truth


def test_every_rule_has_an_incident_in_every_round():
    truth = IncidentLine(replace(SHORT, seconds=900)).truth
    kinds = [r["name"] for r in yard_rules()["rules"]]
    assert {k: sum(i.rule == k for i in truth) for k in kinds} == dict.fromkeys(kinds, 3)
    assert all(0 <= i.since < i.until <= 900 for i in truth)


def test_a_person_is_as_high_as_the_camera_sees_it():
    boxes, kinds, shown = true_boxes([Actor("person", (0, 10), ((0.0, 9.0), (0.0, 9.0)))], 5.0)
    (foot, head), _ = yard_pixels(np.array([[0, 9.0, 0], [0, 9.0, 1.75]]))
    assert kinds.tolist() == [0, 1] and shown.all()
    assert np.isclose(boxes[0, 3], foot[1]) and np.isclose(boxes[0, 1], head[1])
    assert boxes[0, 1] - 3 <= boxes[1, 1] and boxes[1, 3] < boxes[0, 3] and boxes[0, 0] < boxes[1, 0]


def test_what_is_outside_of_the_picture_or_hidden_is_not_found():
    actors = [
        Actor("car", (0, 10), ((60.0, 9.0), (60.0, 9.0))),
        Actor("bag", (0, 10), ((0.0, 9.0), (0.0, 9.0)), breaks=((4, 6),)),
        Actor("bag", (20, 30), ((0.0, 9.0), (0.0, 9.0))),
    ]
    assert true_boxes(actors, 5.0)[2].tolist() == [False, False]
    assert true_boxes(actors, 7.0)[2].tolist() == [False, True]
    assert len(true_boxes([], 1.0)[0]) == 0


def test_a_detector_misses_trembles_and_invents():
    truth = true_boxes([Actor("car", (0, 10), ((0.0, 12.0), (0.0, 12.0)))], 5.0)
    rng, config = np.random.default_rng(0), IncidentsConfig(recall=0.8, false_boxes=0.0)
    found = [detected(config, truth, rng) for _ in range(600)]
    assert 0.75 < np.mean([len(d) for d in found]) < 0.85
    boxes = np.concatenate([d.xyxy for d in found])
    size = np.sqrt(np.prod(truth[0][0, 2:] - truth[0][0, :2]))
    assert np.allclose(boxes.std(axis=0), config.jitter * size, rtol=0.15)
    nothing = (np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool))
    some = [detected(replace(config, false_boxes=0.5), nothing, rng) for _ in range(400)]
    assert 0.4 < np.mean([len(d) for d in some]) < 0.6
    assert all((d.xyxy >= 0).all() and (d.xyxy[:, 2] <= SIZE[0]).all() for d in some)


def test_scores_count_second_alarms_as_false():
    truth = [Incident("a", 10, 20), Incident("a", 40, 50), Incident("b", 1, 2)]
    events = [("a", 12), ("a", 19), ("a", 100), ("b", 4.5), ("c", 1)]
    assert score_incidents(truth, events) == [Scored("a", 2, 1, 2), Scored("b", 1, 1, 0)]
    assert score_incidents(truth, [])[0] == Scored("a", 2, 0, 0)


@pytest.mark.parametrize(
    "change",
    [{"fps": 0}, {"seconds": 100}, {"round_s": 60}, {"recall": 0}, {"jitter": -1}, {"false_boxes": -1}],
)
def test_yards_that_cannot_be(change):
    with pytest.raises(ConfigError, match="invalid settings of the yard"):
        IncidentsConfig(**change)
