"""Zones and lines: exact events on known paths at any frame rate, none from jitter, parity with OpenCV and
supervision."""

import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import cv2
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, Detections, Frame
from cv_pipeline.tracking.zones import (
    Event,
    LineRule,
    Rules,
    RuleWatch,
    ZoneConfig,
    crosses_itself,
    id_of_event,
    line_distance,
    read_rules,
    signed_distance,
)
from tests.helpers.services import require

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
SIZE = (640, 480)
BLANK = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
YARD = [[200, 100], [440, 100], [440, 380], [200, 380]]
CENTER = {"anchor": "center"}


def frame_at(seconds, source="cam", image=BLANK):
    return Frame(image, source, int(round(seconds * 1000)), NOON + timedelta(seconds=float(seconds)))


def boxes(points, ids=None, side=40.0, classes=None):
    p = np.asarray(points, float).reshape(-1, 2)
    return Detections(
        np.hstack([p - side / 2, p + side / 2]), None, classes, np.arange(len(p)) if ids is None else ids
    )


def walk(watch, path, times, side=40.0, noise=None):
    "Events of one object that moves along `path(t)`."
    events = []
    for i, t in enumerate(times):
        p = np.asarray(path(t)) + (0 if noise is None else noise[i])
        events += watch.update(boxes(p, [5], side), frame_at(t))
    return events


def told(events):
    return [(e.rule, e.kind, e.direction) for e in events]


def along(corners, speed):
    corners = np.asarray(corners, float)
    far = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(corners, axis=0).T))])
    return (
        lambda t: (np.interp(t * speed, far, corners[:, 0]), np.interp(t * speed, far, corners[:, 1]))
    ), far[-1] / speed


# --- geometry


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), corners=st.integers(3, 12))
def test_signed_distance_is_opencvs(seed, corners):
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    assume(np.diff(np.append(angle, angle[0] + 2 * np.pi)).max() < 3)
    polygon = (np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(20, 200, (corners, 1)) + 300).astype(
        np.float32
    )
    points = rng.uniform(50, 550, (60, 2)).astype(np.float32)
    theirs = [cv2.pointPolygonTest(polygon, tuple(map(float, p)), True) for p in points]
    assert np.allclose(signed_distance(points.astype(float), polygon.astype(float)), theirs, atol=2e-3)
    assert not crosses_itself(polygon.astype(float))


def test_polygons_that_cross_themselves():
    assert crosses_itself(np.array([[0, 0], [9, 9], [9, 0], [0, 9]], float))
    star = np.array([[math.cos(a), math.sin(a)] for a in np.arange(5) * 4 * np.pi / 5])
    assert crosses_itself(star) and not crosses_itself(np.array(YARD, float))
    assert crosses_itself(
        np.array([[0, 0], [10, 0], [10, 10], [5, 0], [0, 10]], float)
    )  # a corner on another edge
    assert not crosses_itself(
        np.array([[0, 0], [5, 0], [9, 0], [9, 9]], float)
    )  # a corner on a straight edge is fine


@pytest.mark.parametrize("repeat", [[0, 0], [1, 1], [0, 2], [3, 3]])
def test_repeated_points_change_nothing(repeat):
    "GeoJSON and shapely close their rings; hands click twice."
    open_ring = [[0, 0], [100, 0], [100, 100], [0, 100]]
    at, back = repeat
    again = (
        [*open_ring, open_ring[0]]
        if at == 0 and back == 0
        else [*open_ring[: at + 1], open_ring[at], *open_ring[at + 1 :]]
    )
    for ring in (again, [*again, again[0]]):
        rules, points = Rules([ZoneConfig("z", ring)]), np.random.default_rng(0).uniform(-20, 120, (200, 2))
        ours = signed_distance(points, np.asarray(rules.zones[0].polygon, float))
        assert np.allclose(ours, signed_distance(points, np.asarray(open_ring, float)))


def test_line_distance_is_positive_to_the_right():
    d = line_distance(
        np.array([[5.0, 3.0], [5.0, -2.0], [99.0, 1.0]]), np.array([0.0, 0.0]), np.array([10.0, 0.0])
    )
    assert d.tolist() == [3.0, -2.0, 1.0]


# --- lines


@pytest.mark.slow
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6), crossings=st.integers(0, 6), fps=st.floats(4, 30), jitter=st.floats(0, 0.4)
)
def test_known_crossings_are_exactly_the_events_whatever_the_frame_rate(seed, crossings, fps, jitter):
    rng = np.random.default_rng(seed)
    sides = [(-1) ** k for k in range(crossings + 1)]
    corners = [
        (320 + s * rng.uniform(60, 250), y) for s, y in zip(sides, np.linspace(60, 420, crossings + 1))
    ]
    corners.append((corners[-1][0], corners[-1][1] + 20))  # and stays there
    path, seconds = along(corners, speed=70.0)
    times = np.arange(0, seconds + 1.2, 1 / fps) + 0.2
    times += rng.uniform(-jitter, jitter, len(times)) / fps
    rule = Rules(lines=[LineRule("gate", (320, 0), (320, 480), **CENTER)])
    events = walk(RuleWatch(rule, "cam"), lambda t: path(max(t - 0.4, 0)), times)
    # along the gate, top to bottom, the right-hand side is the smaller x
    wanted = [("gate", "line_cross", "in" if a > b else "out") for a, b in zip(sides, sides[1:])]
    assert told(events) == wanted
    far = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(np.array(corners), axis=0).T))])
    for event, k in zip(events, range(crossings)):
        (x1, y1), (x2, y2) = corners[k], corners[k + 1]
        share = (320 - x1) / (x2 - x1)
        moment = 0.4 + (far[k] + share * (far[k + 1] - far[k])) / 70.0
        # between two looks on one straight piece the moment is exact; a corner between them may bend it
        assert event.at.timestamp() - NOON.timestamp() == pytest.approx(moment, abs=1.5 / fps)
        assert event.x == pytest.approx(320, abs=1e-3) and event.y == pytest.approx(
            y1 + share * (y2 - y1), abs=70 / fps + 1
        )


def test_straight_crossings_are_timed_exactly_at_one_look_a_second():
    for begin in np.linspace(0, 1, 11):
        events = walk(
            RuleWatch(Rules(lines=[LineRule("gate", (320, 480), (320, 0), **CENTER)]), "cam"),
            lambda t: (100 + 50 * t, 200),
            np.arange(begin, 9, 1.0),
        )
        assert told(events) == [("gate", "line_cross", "in")]
        assert (events[0].at - NOON).total_seconds() == pytest.approx(4.4, abs=1e-4) and (
            events[0].x,
            events[0].y,
        ) == (pytest.approx(320), pytest.approx(200))


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), fps=st.floats(3, 30))
@example(seed=26683, fps=5.0)  # one crossing in the first step and another in the last
def test_the_reversed_path_swaps_directions(seed, fps):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(40, 440, (5, 2)) * [1.3, 1]
    path, seconds = along(corners, 80.0)
    rules = Rules(
        [ZoneConfig("yard", YARD, **CENTER)],
        [LineRule("a", (320, 0), (320, 480), **CENTER), LineRule("b", (100, 300), (600, 250), **CENTER)],
        margin=0,
    )
    times = np.arange(0, seconds, 1 / fps)
    forth = walk(RuleWatch(rules, "cam"), path, times)
    back = walk(RuleWatch(rules, "cam"), lambda t: path(times[-1] - t), times)
    # a crossing in the last or first steps has not been seen twice on its far side yet: those are left out,
    # whichever way it went
    inner = lambda e: 2 / fps < (e.at - NOON).total_seconds() < times[-1] - 2 / fps
    crossed = lambda events: [
        (e.rule, e.direction)
        for e in sorted(events, key=lambda e: e.at)
        if e.kind == "line_cross" and inner(e)
    ]
    turned = [(name, {"in": "out", "out": "in"}[d]) for name, d in reversed(crossed(back))]
    if len(turned) == len(crossed(forth)):
        assert crossed(forth) == turned
    assert abs(len(turned) - len(crossed(forth))) <= 4


def standing(sigma, seed=0, n=300, looks=500, side=40, aspect=1.0, **settings):
    "Crossings of n boxes that stand on a line, each of their edges wrong by sigma × height, nothing cut off."
    rng, watch = (
        np.random.default_rng(seed),
        RuleWatch(Rules(lines=[LineRule("gate", (0, 240), (640, 240))], **settings), "cam"),
    )
    place = np.float32([300, 240 - side, 300 + side * aspect, 240])
    return sum(
        len(
            watch.update(
                Detections(place + rng.normal(0, sigma * side, (n, 4)), tracker_id=np.arange(n)),
                frame_at(i / 25),
            )
        )
        for i in range(looks)
    )


@pytest.mark.slow
def test_standing_on_a_line_with_the_detectors_error_is_hardly_ever_a_crossing():
    "300 objects, 20 s at 25 looks a second: 100 minutes on the line."
    assert standing(0.02) == 0 and standing(0.03) == 0
    assert standing(0.04) <= 1
    assert standing(0.04, side=200) <= 1  # it is a matter of sizes, not of pixels
    assert standing(0.075, aspect=0.4) <= 2  # of the height of a person, 2.5 times the width
    assert standing(0.04, n=50, margin=0) > 50  # without a margin every frame counts


@pytest.mark.parametrize("sigma", [0.0, 0.04, 0.075])
@pytest.mark.parametrize("speed, rate", [(0.2, 25), (1.0, 25), (1.0, 5), (3.0, 25)])
def test_who_walks_across_is_counted_once_however_the_box_trembles(sigma, speed, rate):
    "200 persons, 100 pixels high, from 1.2 heights before the line to 1.2 behind it."
    rng, watch = (
        np.random.default_rng(1),
        RuleWatch(Rules(lines=[LineRule("gate", (0, 240), (640, 240))]), "cam"),
    )
    begin, events = rng.uniform(0, 1, 200), []
    for i in range(int(2.4 / speed * rate) + 1):
        y = 240 + 100 * (-1.2 + speed * (i + begin) / rate)
        box = np.stack([np.full(200, 300.0), y - 100, np.full(200, 340.0), y], axis=1)
        box[:, 1::2] += 100 * sigma * rng.normal(size=(200, 2))
        events += watch.update(Detections(box, tracker_id=np.arange(200)), frame_at(i / rate))
    times = np.bincount([e.tracker_id for e in events if e.direction == "in"], minlength=200)
    assert (times == 1).mean() >= 0.99 and len(events) == times.sum()


@pytest.mark.slow
@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10**6), sigma=st.floats(0, 0.03), fps=st.floats(0.5, 30))
def test_jitter_near_a_border_makes_no_events(seed, sigma, fps):
    noise = np.random.default_rng(seed).normal(0, sigma * 40, (200, 2))
    rules = Rules([ZoneConfig("yard", YARD, **CENTER)], [LineRule("gate", (100, 240), (600, 240), **CENTER)])
    for place in ((150, 240), (200, 300), (320, 100), (200, 240)):
        assert walk(RuleWatch(rules, "cam"), lambda t, p=place: p, np.arange(200) / fps, noise=noise) == []


def test_one_wild_box_is_no_event_and_around_the_end_is_no_crossing():
    rules = Rules([ZoneConfig("yard", YARD, **CENTER)], [LineRule("gate", (150, 100), (150, 300), **CENTER)])
    noise = np.zeros((50, 2))
    noise[20] = 300, 0  # once: a box of somebody else
    assert walk(RuleWatch(rules, "cam"), lambda t: (80, 240), np.arange(50) / 10, noise=noise) == []
    around, seconds = along([(80, 200), (80, 350), (180, 350), (180, 395)], 60)
    assert walk(RuleWatch(rules, "cam"), around, np.arange(0, seconds, 0.1)) == []
    back, seconds = along([(180, 390), (180, 350), (80, 350), (80, 200), (180, 200), (180, 150)], 60)
    assert [
        e for e in told(walk(RuleWatch(rules, "cam"), back, np.arange(0, seconds, 0.1))) if e[0] == "gate"
    ] == [("gate", "line_cross", "out")]


def test_seen_beyond_the_line_once_is_no_crossing_however_the_track_ends():
    for looks in (2, 3):
        watch = RuleWatch(Rules(lines=[LineRule("gate", (320, 480), (320, 0), **CENTER)], looks=looks), "cam")
        events = walk(watch, lambda t: (200 + 65 * t, 200), [0, 1, 2])  # 330: beyond, once
        if looks == 3:
            for t in (3, 4, 5.1):
                events += watch.update(Detections.empty(), frame_at(t))
        assert events == [] == watch.finish() and watch.counts["gate"] == {}


def test_seen_beyond_the_line_twice_and_never_again_counts_when_it_is_lost_or_at_the_end():
    rules = Rules(lines=[LineRule("gate", (320, 480), (320, 0), **CENTER)], looks=3)
    for finish in (False, True):
        watch = RuleWatch(rules, "cam")
        events = walk(
            watch, lambda t: (200 + 65 * t, 200), [0, 1, 1.9, 2]
        )  # 323.5 is within the margin, 330 beyond
        assert events == [] and watch.update(boxes((340, 200), [5]), frame_at(2.2)) == []
        if finish:
            events = watch.finish()
        else:
            for t in (3, 4, 4.9):
                events += watch.update(Detections.empty(), frame_at(t))
            assert events == []
            events += watch.update(Detections.empty(), frame_at(5.1))
        assert told(events) == [("gate", "line_cross", "in")] and (
            events[0].at - NOON
        ).total_seconds() == pytest.approx(120 / 65, abs=1e-5)
        assert watch.finish() == [] and watch.counts["gate"]["0"]["in"] == 1


def test_directions_and_counts_are_supervisions():
    sv = require("supervision")
    rng, ids = np.random.default_rng(1), 12
    place, speed = rng.uniform(60, 420, (ids, 2)), rng.normal(0, 6, (ids, 2))
    ours = RuleWatch(
        Rules(
            [ZoneConfig("yard", YARD, **CENTER)], [LineRule("gate", (0, 250), (640, 230), **CENTER)], margin=0
        ),
        "cam",
    )
    gate = sv.LineZone(
        sv.Point(0, 250), sv.Point(640, 230), [sv.Position.CENTER], minimum_crossing_threshold=2
    )
    yard = sv.PolygonZone(np.array(YARD), [sv.Position.CENTER])
    for i in range(400):
        place += speed
        speed = np.where((place < 30) | (place > (610, 450)), -speed, speed)
        place = place.clip(30, (610, 450))
        d = boxes(place.round() + 0.4)
        ours.update(d, frame_at(i / 25))
        theirs = sv.Detections(d.xyxy, tracker_id=d.tracker_id)
        gate.trigger(theirs)
        inside = yard.trigger(theirs).sum()
    counts = ours.counts["gate"]["0"]
    assert (
        gate.in_count > 20
        and abs(counts["in"] - gate.in_count) <= 2
        and abs(counts["out"] - gate.out_count) <= 2
    )
    assert (
        abs(ours.counts["yard"]["0"]["now"] - inside) <= 1 and (counts["in"] > 0) and counts["total"] <= ids
    )


# --- zones


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), fps=st.floats(2, 30), visits=st.integers(1, 4))
def test_known_visits_are_exactly_the_events(seed, fps, visits):
    rng = np.random.default_rng(seed)
    corners = [(100, 240)]
    for _ in range(visits):
        corners += [
            (rng.uniform(260, 400), rng.uniform(150, 330)),
            (rng.uniform(260, 400), rng.uniform(150, 330)),
            (100, rng.uniform(150, 330)),
        ]
    path, seconds = along([*corners, (60, 240)], 60.0)
    times = np.arange(0, seconds + 1.5, 1 / fps)
    watch = RuleWatch(Rules([ZoneConfig("yard", YARD, dwell_s=1.0, **CENTER)]), "cam")
    events = walk(watch, path, times)
    dense = np.array([path(t)[0] > 200 for t in np.arange(0, seconds, 0.002)])
    begins, ends = (
        np.flatnonzero(np.diff(dense.astype(int)) == 1) * 0.002,
        np.flatnonzero(np.diff(dense.astype(int)) == -1) * 0.002,
    )
    wanted = [("yard", "zone_enter", "in"), ("yard", "dwell", "in"), ("yard", "zone_leave", "out")] * visits
    assert told(events) == wanted
    for (enter, dwell, leave), a, b in zip(zip(*[iter(events)] * 3), begins, ends):
        t = lambda e: (e.at - NOON).total_seconds()
        assert t(enter) == pytest.approx(a, abs=1 / fps + 0.01) and t(leave) == pytest.approx(
            b, abs=1 / fps + 0.01
        )
        assert (
            leave.dwell_s == pytest.approx(t(leave) - t(enter), abs=1e-5)
            and t(dwell) == pytest.approx(t(enter) + 1, abs=1e-5)
            and dwell.dwell_s == 1
        )
    assert watch.counts["yard"]["0"] == {"in": visits, "out": visits, "now": 0, "total": 1}


def test_dwell_needs_evidence_and_comes_once():
    rules = Rules([ZoneConfig("yard", YARD, dwell_s=3, **CENTER)])
    assert told(walk(RuleWatch(rules, "cam"), lambda t: (300, 240), np.arange(0, 20, 0.5))) == [
        ("yard", "zone_enter", "in"),
        ("yard", "dwell", "in"),
    ]
    short = walk(
        RuleWatch(rules, "cam"), lambda t: (300, 240) if t < 2.5 else (100, 240), np.arange(0, 20, 0.5)
    )
    assert told(short) == [("yard", "zone_enter", "in"), ("yard", "zone_leave", "out")]
    jumped = walk(
        RuleWatch(rules, "cam"), lambda t: (300, 240) if t < 6 else (100, 240), [0, 1, 8, 9]
    )  # nobody looked in between
    assert told(jumped) == [
        ("yard", "zone_enter", "in"),
        ("yard", "dwell", "in"),
        ("yard", "zone_leave", "out"),
    ]


def test_lost_tracks_leave_after_a_buffer_of_looks():
    watch = RuleWatch(Rules([ZoneConfig("yard", YARD, **CENTER)], lost_s=2.0), "cam")
    events = walk(watch, lambda t: (300, 240), [0, 1, 2])
    events += watch.update(Detections.empty(), frame_at(60))  # a long time without looks is no absence
    assert told(events) == [("yard", "zone_enter", "in")]
    events += watch.update(boxes((300, 240), [5]), frame_at(61))  # it is still there
    for t in (62, 63, 63.9):
        events += watch.update(Detections.empty(), frame_at(t))
    assert len(events) == 1 and watch.counts["yard"]["0"]["now"] == 1
    events += watch.update(Detections.empty(), frame_at(64.1))
    assert (
        told(events)[1:] == [("yard", "zone_leave", "out")]
        and events[-1].lost
        and events[-1].dwell_s == pytest.approx(61)
    )
    assert (
        (events[-1].at - NOON).total_seconds() == 61
        and watch.counts["yard"]["0"]["now"] == 0
        and len(watch._book.id) == 0
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_tracks_do_not_disturb_each_other_and_order_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    n = 6
    paths = [along(rng.uniform(40, 440, (5, 2)) * [1.3, 1], 80.0)[0] for _ in range(n)]
    rules = Rules(
        [ZoneConfig("yard", YARD, dwell_s=1, **CENTER)], [LineRule("gate", (320, 0), (320, 480), **CENTER)]
    )
    together, shuffled, alone = (
        RuleWatch(rules, "cam"),
        RuleWatch(rules, "cam"),
        [RuleWatch(rules, "cam") for _ in range(n)],
    )
    got, mixed, single = [], [], []
    for t in np.arange(0, 8, 0.2):
        points, turn = np.array([p(t) for p in paths]), rng.permutation(n)
        got += together.update(boxes(points), frame_at(t))
        mixed += shuffled.update(boxes(points[turn], turn), frame_at(t))
        for i in range(n):
            single += alone[i].update(boxes(points[i], [i]), frame_at(t))
    key = lambda e: (e.tracker_id, e.at, e.rule, e.kind)
    assert sorted(got, key=key) == sorted(mixed, key=key) == sorted(single, key=key)


def test_unconfirmed_tracks_do_not_exist():
    watch = RuleWatch(
        Rules([ZoneConfig("yard", YARD, dwell_s=1)], [LineRule("gate", (320, 0), (320, 480))]), "cam"
    )
    for t in np.arange(0, 9, 0.1):
        assert watch.update(boxes([(50 + 60 * t, 200), (300, 240)], [-1, -1]), frame_at(t)) == []
    assert len(watch._book.id) == 0 and watch.counts == {"yard": {}, "gate": {}}


def test_classes_by_majority_sources_anchors_and_shares():
    rules = Rules(
        [
            ZoneConfig("people", [[0, 0.5], [1, 0.5], [1, 1], [0, 1]], classes=["person"]),
            ZoneConfig("second", YARD, sources=["b"]),
        ]
    )
    watch, names = RuleWatch(rules, "a"), ("car", "person")
    events = []
    for t in range(20):
        kinds = [1 if t % 4 else 0, 0]  # a person that is taken for a car now and then, and a car
        events += watch.update(
            boxes([(100, 200 + 5 * t), (400, 200 + 5 * t)], classes=kinds), frame_at(t), names
        )
    assert (
        told(events) == [("people", "zone_enter", "in")]
        and events[0].class_name == "person"
        and events[0].tracker_id == 0
    )
    assert (events[0].at - NOON).total_seconds() == pytest.approx(
        4, abs=1e-6
    )  # the lower edge, 20 below the centre, reaches 240 at t = 4
    assert list(RuleWatch(rules, "b").counts) == ["people", "second"] and list(watch.counts) == ["people"]
    other = RuleWatch(Rules([ZoneConfig("half", [[0, 0], [0.5, 0], [0.5, 1], [0, 1]])]), "cam")
    for t in range(3):
        other.update(boxes([(300, 200)]), frame_at(t))
    small = np.zeros((240, 320, 3), np.uint8)  # another size: shares follow
    assert told(e for t in (3, 4) for e in other.update(boxes([(250, 100)]), frame_at(t, image=small))) == [
        ("half", "zone_leave", "out")
    ]


def stay(moments, dwell_s=5.0, lost_s=2.0):
    "Events and counts of one car that stands in the yard at (frame number, seconds)."
    watch = RuleWatch(Rules([ZoneConfig("yard", YARD, dwell_s=dwell_s, **CENTER)], lost_s=lost_s), "cam")
    events = []
    for number, seconds in moments:
        frame = Frame(BLANK, "cam", number, NOON + timedelta(seconds=seconds))
        events += watch.update(boxes((300, 240), [5]), frame)
    return events, watch.counts["yard"]["0"]


@pytest.mark.parametrize("jump", [-86400, -3600, -0.5])
def test_a_clock_that_is_set_back_changes_no_stay(jump):
    moments = [(k, 0.2 * k + (jump if k >= 12 else 0)) for k in range(40)]
    events, counts = stay(moments)
    assert told(events) == [("yard", "zone_enter", "in"), ("yard", "dwell", "in")]
    assert (events[1].at - NOON).total_seconds() == pytest.approx(5 + jump, abs=1e-3)  # the camera's time now
    assert counts == {"in": 1, "out": 0, "now": 1, "total": 1}


@pytest.mark.parametrize("away", [2.5, 60, 3600, 86400])
def test_after_a_gap_nobody_has_stayed(away):
    """A camera that is away, or a clock that is set forward: the stay ends when it was last seen, even where
    a tracker gives the old number again."""
    moments = [(k, 0.2 * k + (away if k >= 12 else 0)) for k in range(30)]
    events, counts = stay(moments)
    assert told(events) == [
        ("yard", kind, way)
        for kind, way in (("zone_enter", "in"), ("zone_leave", "out"), ("zone_enter", "in"))
    ]
    assert events[1].lost and events[1].dwell_s == pytest.approx(2.2)
    assert counts["now"] == 1 and counts["in"] == 2


@pytest.mark.parametrize("moments", [
    [(k, 5.0 * k) for k in range(8)],  # 0.2 pictures a second
    [(k, 0.2 * k + (1.5 if k >= 12 else 0)) for k in range(40)],  # away for less than lost_s
    [(k * 125, 5.0 * k) for k in range(8)],  # 25 a second came, one in five seconds was looked at
    [(k, 600.0 * k) for k in range(12)],  # photos of a day, every ten minutes
])  # fmt: skip
def test_low_rates_and_short_gaps_are_one_stay(moments):
    events, counts = stay(moments)
    if moments[1][1] <= 1:
        assert told(events) == [("yard", "zone_enter", "in"), ("yard", "dwell", "in")]
    assert counts["now"] == 1 and not [e for e in events[2:] if e.kind == "zone_enter"]
    assert events[-1].kind == "dwell" and events[-1].dwell_s == 5.0


# --- settings


@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: Rules([ZoneConfig("z", [[0, 0], [1, 1]])]), "at least 3 points"),
        (lambda: Rules([ZoneConfig("z", [[0, 0], [9, 9], [9, 0], [0, 9]])]), "crosses itself"),
        (lambda: Rules([ZoneConfig("z", [[0, 0], [9, 9], [9, 9], [0, 0]])]), "3 different points, not 2"),
        (lambda: Rules([ZoneConfig("z", "abc")]), "must be points"),
        (lambda: Rules([ZoneConfig("z", [[0, 0], [float("nan"), 1], [2, 2]])]), "must be points"),
        (lambda: Rules([ZoneConfig("z", [[0, 0], [5, 5], [9, 9]])]), "no area"),
        (lambda: Rules([ZoneConfig("z", YARD, dwell_s=-1)]), "dwell_s"),
        (lambda: Rules([ZoneConfig("z", YARD), ZoneConfig("z", YARD)]), "duplicate name"),
        (lambda: Rules([ZoneConfig("z", YARD, anchor="feet")]), "anchor"),
        (lambda: Rules([ZoneConfig("z", YARD, classes="person")]), "lists"),
        (lambda: Rules(lines=[LineRule("l", (1, 1), (1, 1))]), "no length"),
        (lambda: Rules(margin=2), "margin"),
        (lambda: Rules(looks=0), "looks"),
        (lambda: Rules(lost_s=-1), "lost_s"),
        (lambda: read_rules({"zone": []}), "unknown key 'zone'"),
        (lambda: read_rules({"zones": [{"name": "a"}]}), "'polygon' is missing"),
        (
            lambda: read_rules({"lines": [{"name": "a", "start": [0, 0], "ende": [1, 1]}]}),
            "did you mean 'end'",
        ),
        (lambda: read_rules({"zones": [3]}), "must be a mapping"),
        (
            lambda: read_rules(
                {"lines": [{"name": "a", "start": [0, 0], "end": [1, 1], "classes": [7]}]}, ["x"]
            ),
            "class 7",
        ),
    ],
)
def test_wrong_rules_are_config_errors_that_say_what(make, text):
    with pytest.raises(ConfigError) as error:
        make()
    assert text in str(error.value)


def test_all_problems_at_once_and_good_rules_pass():
    with pytest.raises(ConfigError) as error:
        Rules(
            [ZoneConfig("a", [[0, 0]]), ZoneConfig("b", YARD, dwell_s=0)],
            [LineRule("c", (0, 0), (0, 0))],
            looks=0,
        )
    assert len(error.value.problems) == 4
    rules = read_rules(
        {
            "zones": [{"name": "yard", "polygon": YARD, "dwell_s": 5, "classes": ["person", 0]}],
            "lines": [{"name": "gate", "start": [0, 0.5], "end": [1, 0.5]}],
            "looks": 1,
        },
        ["car", "person"],
    )
    assert rules.zones[0].name == "yard" and rules.lines[0].anchor == "bottom_center" and rules.looks == 1


def test_unknown_classes_are_said_with_every_frame():
    watch = RuleWatch(Rules([ZoneConfig("z", YARD, ["cat"])]), "cam")
    for t in range(2):
        with pytest.raises(ConfigError, match="'cat'"):
            watch.update(Detections.empty(), frame_at(t), ("person",))


def test_a_rule_outside_of_the_picture_is_switched_off_and_named_and_the_others_go_on():
    rules = Rules(
        [ZoneConfig("far", [[0, 0], [700, 0], [700, 400]], **CENTER), ZoneConfig("yard", YARD, **CENTER)],
        [LineRule("low", (0, 500), (640, 500)), LineRule("gate", (320, 480), (320, 0), **CENTER)],
    )
    watch = RuleWatch(rules, "cam")
    events = walk(watch, lambda t: (150 + 50 * t, 240), np.arange(0, 8, 0.2))
    assert told(events) == [
        ("yard", "zone_enter", "in"),
        ("gate", "line_cross", "in"),
        ("yard", "zone_leave", "out"),
    ]
    assert (
        list(watch.problems) == ["far", "low"]
        and "[700.0, 400.0], outside of the 640×480 image" in watch.problems["far"]
    )
    large = np.zeros((960, 1280, 3), np.uint8)  # a size into which they fit: they are on from here
    again = [
        e
        for t in np.arange(8, 10, 0.2)
        for e in watch.update(boxes((600, 200), [9]), frame_at(t, image=large))
    ]
    assert ("far", "zone_enter", "in") in told(again) and watch.problems == {}


def test_pixel_rules_and_tracks_are_scaled_when_the_picture_changes_its_size():
    rules = Rules([ZoneConfig("yard", YARD, **CENTER)], [LineRule("gate", (320, 480), (320, 0), **CENTER)])
    wanted = walk(RuleWatch(rules, "cam"), lambda t: (150 + 50 * t, 240), np.arange(0, 8, 0.2))
    for scale in ((0.5, 0.5), (2, 2), (0.5, 0.75)):
        watch, events, other = (
            RuleWatch(rules, "cam"),
            [],
            np.zeros((int(480 * scale[1]), int(640 * scale[0]), 3), np.uint8),
        )
        for t in np.arange(0, 8, 0.2):
            big = 3.3 < t < 6  # around the gate, and back again
            p, k = np.float32([150 + 50 * t, 240]), np.float32(scale if big else (1, 1))
            events += watch.update(
                Detections([[*(p - 20) * k, *(p + 20) * k]], tracker_id=[5]),
                frame_at(t, image=other if big else BLANK),
            )
        assert told(events) == told(wanted) and watch.problems == {}
        assert [e.at.timestamp() for e in events] == pytest.approx(
            [e.at.timestamp() for e in wanted], abs=1e-3
        )


# --- ids of events


def test_ids_are_the_same_for_the_same_run_and_boxes_rounded_to_files():
    rules = Rules(
        [ZoneConfig("yard", YARD, dwell_s=1, **CENTER)], [LineRule("gate", (320, 480), (320, 0), **CENTER)]
    )
    path, times = lambda t: (100.003 + 61.017 * t, 240.004), np.arange(0, 8, 0.1)
    ids = lambda run, way: [e.event_id for e in walk(RuleWatch(rules, "cam", run), way, times)]
    first = ids("a", path)
    assert len(set(first)) == len(first) == 4 and all(len(i) == 24 for i in first)
    assert ids("a", path) == first and not set(ids("b", path)) & set(first)
    assert ids("a", lambda t: np.round(path(t), 2)) == first


@pytest.mark.parametrize(
    "field, value",
    [
        ("source_id", "other"),
        ("rule", "other"),
        ("kind", "dwell"),
        ("tracker_id", 8),
        ("frame_id", 4),
        ("at", NOON + timedelta(hours=1)),
    ],
)
def test_every_part_of_an_event_counts_in_its_id(field, value):
    event = Event("zone_enter", "cam", "yard", 7, 0, "car", NOON, 3, "in", None, 1.0, 2.0)
    assert id_of_event("run", replace(event, **{field: value})) != id_of_event("run", event)
    elsewhere = replace(event, at=NOON.astimezone(timezone(timedelta(hours=5, minutes=30))))
    assert id_of_event("run", elsewhere) == id_of_event("run", event)
