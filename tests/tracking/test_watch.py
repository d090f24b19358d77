"""Rules on tracks: each kind on known paths, once for each incident whatever the tracker calls it, hours,
filters, bad input, and the same events again from what was recorded."""

import json
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from cv_pipeline.core.config import EventsConfig, load_config
from cv_pipeline.core.files import write_whole
from cv_pipeline.core.types import ConfigError, DataError, Detections, Frame, FrameResult
from cv_pipeline.service.assembly import configured_rules
from cv_pipeline.synthetic.incidents import NAMES, IncidentLine, IncidentsConfig, score_incidents, yard_rules
from cv_pipeline.tracking.conditions import events_problems, zone_rules
from cv_pipeline.tracking.trackers import make_tracker
from cv_pipeline.tracking.watch import MOST_PLACES, Watch, open_watch, poisson_interval, replay_rules
from cv_pipeline.tracking.zones import Rules, RuleWatch, ZoneConfig
from cv_pipeline.video.events import EventSink, draw_watch, read_events
from cv_pipeline.video.sinks import JsonlSink, ParquetSink

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
SIZE = (640, 480)
BLANK = np.broadcast_to(np.zeros(1, np.uint8), (480, 640, 3))
KINDS = ("person", "helmet", "bag", "car")
YARD = {"name": "yard", "polygon": [[200, 100], [440, 100], [440, 380], [200, 380]]}
DOOR = {"name": "door", "polygon": [[480, 100], [630, 100], [630, 380], [480, 380]]}
GATE = {"name": "gate", "start": [320, 480], "end": [320, 0]}
SHAPES = {"person": (40, 100), "helmet": (20, 18), "bag": (30, 24), "car": (120, 60)}
INSIDE, AWAY = (320, 240), (60, 240)


def config(*rules, **more):
    given = [{"name": f"r{i}", **rule} for i, rule in enumerate(rules)]
    return EventsConfig(**{"zones": [YARD, DOOR], "lines": [GATE], "rules": given, "lost_s": 1.0, **more})


def thing(kind, place, track=1, conf=0.9):
    "Kind, foot point, id and confidence of one box."
    return kind, place, track, conf


def found(things):
    rows = [t for t in things if t is not None]
    boxes = [[x - SHAPES[k][0] / 2, y - SHAPES[k][1], x + SHAPES[k][0] / 2, y] for k, (x, y), _, _ in rows]
    return Detections(
        np.array(boxes or np.zeros((0, 4))),
        [r[3] for r in rows],
        [KINDS.index(r[0]) for r in rows],
        [r[2] for r in rows],
    )


def frame_at(t, source="cam", start=NOON):
    return Frame(BLANK, source, int(round(t * 1000)), start + timedelta(seconds=float(t)))


def play(rules, scene, seconds, fps=10.0, begin=0.0, watch=None, start=NOON):
    "(kind, second) of the rules' events while `scene(t)` gives the things of each moment."
    watch, events = watch or Watch(rules, "cam"), []
    for t in np.arange(begin, begin + seconds, 1 / fps):
        events += watch.update(found(scene(t)), frame_at(t, start=start), KINDS)
    names = {r.name for r in rules.rules}
    return [(e.kind, round((e.at - start).total_seconds(), 1)) for e in events if e.rule in names]


def walk(begin, end, since, until):
    return lambda t: tuple(np.interp(t, [since, until], [a, b]) for a, b in zip(begin, end))


# --- each kind


def test_enter_stay_and_leave_come_once_each():
    rules = config(
        {"kind": "enter", "zone": "yard"},
        {"kind": "stay", "zone": "yard", "for_s": 4},
        {"kind": "leave", "zone": "yard"},
    )
    way = lambda t: (np.interp(t, [0, 5, 12, 17], [60, 320, 320, 60]), 240)
    told = play(rules, lambda t: [thing("person", way(t))], 18)
    assert [k for k, _ in told] == ["enter", "stay", "leave"]
    (_, entered), (_, stayed), (_, left) = told
    assert abs(entered - 2.7) < 0.3 and abs(stayed - entered - 4) < 0.2 and abs(left - 14.3) < 0.4


def test_cross_knows_directions():
    rules = config({"kind": "cross", "line": "gate", "direction": "in"})
    forth = lambda t: (60 + 50 * t, 240)
    back = lambda t: (560 - 50 * t, 240)
    one, other = (play(rules, lambda t, w=w: [thing("person", w(t))], 10) for w in (forth, back))
    assert len(one) + len(other) == 1


def crowd(n):
    return [thing("person", (220 + 40 * k, 300), k) for k in range(n)]


def test_a_crowd_must_last_and_comes_once():
    rules = config({"kind": "crowding", "zone": "yard", "more_than": 3, "for_s": 5})
    watch, events = Watch(rules, "cam"), []
    for t in np.arange(0, 30, 0.1):
        events += watch.update(found(crowd(5 if 3 < t < 20 else 3)), frame_at(t), KINDS)
    (event,) = [e for e in events if e.kind == "crowding"]
    assert 7.5 < (event.at - NOON).total_seconds() < 9 and event.value == 5 and event.tracker_id == -1
    assert 200 < event.x < 440
    assert play(rules, lambda t: crowd(5 if 3 < t < 7 else 3), 20) == []


def test_a_flickering_crowd_is_one_crowd():
    rules, rng = (
        config({"kind": "crowding", "zone": "yard", "more_than": 3, "for_s": 5}),
        np.random.default_rng(0),
    )
    assert len(play(rules, lambda t: [c for c in crowd(5) if rng.random() < 0.85], 40)) == 1


def test_the_wrong_way_and_not_the_right_one_nor_across():
    rules = config({"kind": "wrong_way", "way": [[100, 240], [500, 240]]})
    against, along = walk((600, 240), (50, 240), 0, 10), walk((50, 240), (600, 240), 0, 10)
    across = walk((300, 120), (300, 470), 0, 10)
    assert len(play(rules, lambda t: [thing("person", against(t))], 10)) == 1
    assert play(rules, lambda t: [thing("person", along(t)), thing("person", across(t), 2)], 10) == []
    rng = np.random.default_rng(0)
    shake = lambda t: [thing("person", (320 + rng.normal(0, 2), 240 + rng.normal(0, 2)))]
    assert play(rules, shake, 30) == []


FLOOR = {"image": [[0, 0], [640, 0], [640, 480], [0, 480]], "metres": [[0, 0], [16, 0], [16, 12], [0, 12]]}


@pytest.mark.parametrize("pace, fires", [(5.0, 1), (2.0, 0)])
def test_a_speed_above_its_limit_comes_with_its_error(pace, fires):
    rules, events = config({"kind": "speed", "above": 3.0}, ground=[FLOOR]), []
    watch, rng = Watch(rules, "cam"), np.random.default_rng(0)
    for t in np.arange(0, 3, 0.1):
        place = np.array([30 + 40 * pace * t, 240]) + rng.normal(0, 1, 2)
        events += watch.update(found([thing("car", place)]), frame_at(t), KINDS)
    told = [e for e in events if e.kind == "speed"]
    assert len(told) == fires
    assert all(abs(e.value - pace) <= 2 * e.plus_minus and 0 < e.plus_minus < 1 for e in told)


def test_a_limit_within_the_error_bar_is_not_broken():
    rules, rng = (
        config({"kind": "speed", "above": 3.0}, ground=[{**FLOOR, "point_px": 30.0}]),
        np.random.default_rng(0),
    )
    scene = lambda t: [thing("car", np.array([30 + 40 * 3.3 * t, 240]) + rng.normal(0, 2, 2))]
    assert play(rules, scene, 4) == []


BAG = {"kind": "left_object", "classes": ["bag"], "for_s": 5}


def left_bag(t, owner_goes=10.0, bag_until=60.0, bag_from=6.0):
    owner = (330, 260) if t < owner_goes else (330 + 60 * (t - owner_goes), 260)
    return [
        thing("person", owner, 1) if owner[0] < 620 else None,
        thing("bag", INSIDE, 2) if bag_from <= t < bag_until else None,
    ]


@pytest.mark.slow
def test_a_bag_that_was_left_and_one_with_its_owner():
    (event,) = play(config(BAG), left_bag, 40)
    assert 14 < event[1] < 20
    assert play(config(BAG), lambda t: left_bag(t, owner_goes=99), 40) == []


def test_a_bag_that_was_there_before_is_furniture():
    assert play(config(BAG), lambda t: left_bag(t, owner_goes=1, bag_from=0.0), 40) == []


TAKEN = {"kind": "taken_object", "classes": ["bag"], "settled_s": 3, "for_s": 3}


@pytest.mark.slow
def test_taken_and_merely_hidden():
    gone = lambda t: [thing("bag", INSIDE) if t < 20 else None]
    ((kind, at),) = play(config(TAKEN), gone, 40)
    assert kind == "taken_object" and abs(at - 20) < 0.3
    hidden = lambda t: [thing("bag", INSIDE) if not 10 < t < 30 else thing("person", (320, 260), 9)]
    assert play(config(TAKEN), hidden, 40) == []
    flicker = np.random.default_rng(0)
    assert play(config(TAKEN), lambda t: [thing("bag", INSIDE) if flicker.random() < 0.4 else None], 40) == []


HELMET = {"kind": "missing", "classes": ["person"], "without": ["helmet"]}


@pytest.mark.parametrize("recall, fires", [(0.0, 1), (0.6, 0), (1.0, 0)])
def test_a_missing_helmet_is_a_matter_of_many_frames(recall, fires):
    rng = np.random.default_rng(1)
    way = walk((100, 240), (500, 240), 0, 10)

    def scene(t):
        x, y = way(t)
        return [thing("person", (x, y)), thing("helmet", (x, y - 80), 5) if rng.random() < recall else None]

    assert len(play(config(HELMET), scene, 10)) == fires


def test_the_class_of_the_track_itself_counts_as_worn():
    flips = lambda t: [thing("helmet" if int(t * 10) % 3 == 0 else "person", (100 + 30 * t, 240))]
    assert play(config(HELMET), flips, 10) == []


def test_who_is_cut_off_by_the_border_is_not_judged():
    assert play(config(HELMET), lambda t: [thing("person", (300, 60))], 10) == []


def pairs_across(t, every, until=1e9):
    "Somebody crosses the gate from left to right every so many seconds."
    return [
        thing("person", (230 + 60 * (t - k * every), 240), 100 + k)
        for k in range(int(t // every) + 1)
        if 0 <= t - k * every < 3 and k * every < until
    ]


@pytest.mark.slow
def test_lines_are_counted_by_full_intervals():
    rules = config({"kind": "line_count", "line": "gate", "every_s": 60})
    watch, values = Watch(rules, "cam"), []
    for t in np.arange(30, 250, 0.2):
        values += [
            e
            for e in watch.update(found(pairs_across(t - 30, 4)), frame_at(t), KINDS)
            if e.kind == "line_count"
        ]
    assert [((e.at - NOON).total_seconds(), e.value) for e in values][1:] == [
        (120.0, 15.0),
        (180.0, 15.0),
        (240.0, 15.0),
    ]


@pytest.mark.slow
def test_too_few_is_only_said_of_an_interval_that_was_watched():
    few = config({"kind": "line_count", "line": "gate", "every_s": 60, "below": 5})
    assert [t for _, t in play(few, lambda t: pairs_across(t, 4, 100), 200, fps=5)] == [180.0]
    watch, events = Watch(few, "cam"), []
    for t in [
        *np.arange(0, 70, 0.1),
        *np.arange(115, 125, 0.1),
    ]:  # the camera was away for most of the second one
        events += watch.update(found(pairs_across(t, 4)), frame_at(t), KINDS)
    assert [e for e in events if e.kind == "line_count"] == []
    many = config({"kind": "line_count", "line": "gate", "every_s": 60, "above": 14})
    assert [t for _, t in play(many, lambda t: pairs_across(t, 4), 130, fps=5)] == [60.0, 120.0]


@pytest.mark.parametrize(
    "way, fires",
    [
        ([(0, 60), (5, 320), (10, 560)], 1),
        ([(0, 60), (5, 320), (25, 320), (30, 560)], 0),  # too slow
        ([(0, 560), (5, 320), (10, 60)], 0),  # the other way round
        ([(0, 60), (5, 320), (8, 60), (11, 320), (14, 560)], 1),  # back, and again
    ],
)
def test_a_sequence_is_in_order_and_in_time(way, fires):
    rules = config({"kind": "sequence", "steps": ["yard", "door"], "within_s": 8})
    at, x = zip(*way)
    assert len(play(rules, lambda t: [thing("person", (np.interp(t, at, x), 240))], at[-1] + 3)) == fires


def test_a_sequence_of_a_line_and_a_zone():
    rules = config({"kind": "sequence", "steps": ["gate", "door"], "within_s": 8})
    assert len(play(rules, lambda t: [thing("person", (60 + 50 * t, 240))], 12)) == 1


# --- the same object under another number


def parked(t, breaks=((20, 24), (50, 58))):
    number = 1 + sum(t >= e for _, e in breaks)
    return [None if any(b <= t < e for b, e in breaks) else thing("car", INSIDE, number)]


@pytest.mark.parametrize(
    "kind", [{"kind": "enter"}, {"kind": "stay", "for_s": 5}, {"kind": "stay", "for_s": 30}]
)
def test_a_parked_car_alarms_once_whatever_the_tracker_calls_it(kind):
    assert len(play(config({**kind, "zone": "yard"}), parked, 120, fps=5)) == 1


def test_the_number_changes_while_both_tracks_are_remembered():
    scene = lambda t: [thing("car", INSIDE, 1 if t < 20 else 2)]
    assert len(play(config({"kind": "stay", "zone": "yard", "for_s": 5}), scene, 40)) == 1


def test_a_track_that_jumps_onto_what_stood_there_is_that_object():
    "Trackers do that: a passer's number goes on with the parked car."
    rules = config({"kind": "stay", "zone": "yard", "for_s": 5})
    other = lambda t: thing("car", (60 + 20 * (t - 20), 420), 2)
    scene = lambda t: [thing("car", INSIDE, 1) if t < 20 else other(t) if t < 24 else thing("car", INSIDE, 2)]
    assert len(play(rules, scene, 60)) == 1


def test_two_tracks_of_one_object_alarm_once_and_two_objects_twice():
    rules = config({"kind": "stay", "zone": "yard", "for_s": 5})
    assert len(play(rules, lambda t: [thing("car", INSIDE, 1), thing("car", (323, 242), 2)], 20)) == 1
    late = lambda t: [thing("car", INSIDE, 1), thing("car", (323, 242), 2) if t > 8 else None]
    assert len(play(rules, late, 20)) == 1
    assert len(play(rules, lambda t: [thing("car", INSIDE, 1), thing("car", (390, 260), 2)], 20)) == 2


def test_another_car_after_the_place_was_seen_empty_is_another_car():
    scene = lambda t: [thing("car", INSIDE, 1) if t < 20 else thing("car", INSIDE, 2) if t > 60 else None]
    assert len(play(config({"kind": "stay", "zone": "yard", "for_s": 5}), scene, 90)) == 2


def test_a_lost_camera_does_not_park_the_car_again():
    watch, rules = None, config({"kind": "stay", "zone": "yard", "for_s": 5})
    watch = Watch(rules, "cam")
    first = play(rules, parked, 15, watch=watch)
    again = play(rules, lambda t: [thing("car", INSIDE, 77)], 60, begin=40, watch=watch)
    assert (len(first), again) == (1, [])


@pytest.mark.slow
def test_places_are_bounded():
    watch = Watch(config({"kind": "stay", "zone": "yard", "for_s": 500}), "cam")
    for k in range(MOST_PLACES + 60):
        spot = (30 + 100 * (k % 6), 60 + 60 * (k % 7))
        for t in (0.0, 0.8, 1.6):
            watch.update(found([thing("bag", spot, k)]), frame_at(4.0 * k + t), KINDS)
    assert len(watch._places.until) <= MOST_PLACES and len(watch._book.id) < 5


# --- who, when, where


def standing(kind="person", track=1, conf=0.9):
    return lambda t: [thing(kind, INSIDE, track, conf)]


ENTER = {"kind": "enter", "zone": "yard"}


@pytest.mark.parametrize(
    "more, kind, fires",
    [
        ({"classes": ["person"]}, "person", 1),
        ({"classes": ["person"]}, "car", 0),
        ({"classes": [3]}, "car", 1),
        ({"min_height": 0.3}, "person", 0),
        ({"min_height": 0.1, "max_height": 0.3}, "person", 1),
        ({"max_height": 0.1}, "person", 0),
        ({"min_ratio": 1.0}, "person", 0),
        ({"min_ratio": 1.0}, "car", 1),
        ({"max_ratio": 1.0}, "car", 0),
        ({"sources": ["cam"]}, "person", 1),
        ({"sources": ["other"]}, "person", 0),
    ],
)
def test_whom_a_rule_is_for(more, kind, fires):
    assert len(play(config({**ENTER, **more}), standing(kind), 5)) == fires


def test_one_lucky_frame_is_no_detection():
    lucky = lambda t: [thing("person", INSIDE, 1, 0.95 if int(t * 10) % 6 == 0 else 0.3)]
    assert play(config({**ENTER, "conf": 0.6}), lucky, 10) == []
    unlucky = lambda t: [thing("person", INSIDE, 1, 0.2 if int(t * 10) % 6 == 0 else 0.8)]
    assert len(play(config({**ENTER, "conf": 0.6}), unlucky, 10)) == 1


def test_what_stands_in_an_ignored_part_counts_for_nothing():
    part = {"polygon": [[300, 200], [340, 200], [340, 260], [300, 260]]}
    watch = Watch(config(ENTER, ignore=[part]), "cam")
    assert all(not watch.update(found(standing()(t)), frame_at(t), KINDS) for t in np.arange(0, 5, 0.1))
    assert len(play(config(ENTER, ignore=[{**part, "sources": ["other"]}]), standing(), 5)) == 1


NIGHT = {"name": "night", "start": "22:00", "end": "06:00"}


def test_who_is_inside_when_the_hours_begin_is_an_intruder_then():
    evening = datetime(2026, 6, 1, 21, 59, 30, tzinfo=timezone.utc)
    rules = config({**ENTER, "during": "night"}, hours=[NIGHT])
    ((_, at),) = play(rules, standing(), 60, fps=5, start=evening)
    assert 29.5 <= at <= 31
    assert play(rules, standing(), 25, fps=5, start=evening) == []


def test_a_stay_counts_from_the_hours_on():
    evening = datetime(2026, 6, 1, 21, 59, 30, tzinfo=timezone.utc)
    rules = config({"kind": "stay", "zone": "yard", "for_s": 20, "during": "night"}, hours=[NIGHT])
    ((_, at),) = play(rules, standing(), 80, fps=5, start=evening)
    assert 49 <= at <= 51


def test_sources_have_their_own_state_and_zones_their_sources():
    rules = config(ENTER, {"kind": "crowding", "zone": "yard", "more_than": 1, "for_s": 1})
    one, other = Watch(rules, "a"), Watch(rules, "b")
    for t in np.arange(0, 5, 0.1):
        told = one.update(found(standing()(t)), frame_at(t, "a"), KINDS)
        told += other.update(found(standing(track=2)(t)), frame_at(t, "b"), KINDS)
        assert not [e for e in told if e.kind == "crowding"]
    elsewhere = config(ENTER, zones=[{**YARD, "sources": ["a"]}, DOOR])
    assert [b.rule.name for b in Watch(elsewhere, "b").bound] == []


def test_a_speed_without_a_plane_here_is_switched_off_and_named():
    rules = config({"kind": "speed", "above": 1.0}, ground=[{**FLOOR, "sources": ["other"]}])
    watch = Watch(rules, "cam")
    for t in np.arange(0, 3, 0.1):
        watch.update(found([thing("car", (100 + 100 * t, 240))]), frame_at(t), KINDS)
    assert watch.problems == {"r0": "has no ground plane on this source"}


@pytest.mark.parametrize("jump, enters", [(-3600.0, 1), (-0.5, 1), (60.0, 1), (7200.0, 2)])
def test_a_clock_that_jumps_invents_nothing(jump, enters):
    "After two hours, however they passed, who stands there is somebody new."
    rules = config(
        ENTER,
        {"kind": "stay", "zone": "yard", "for_s": 600},
        {"kind": "crowding", "zone": "yard", "more_than": 2},
    )
    watch, events = Watch(rules, "cam"), []
    for i in range(200):
        t = i / 10 + (jump if i >= 100 else 0)
        frame = Frame(BLANK, "cam", i, NOON + timedelta(seconds=t))
        events += watch.update(found(standing()(t)), frame, KINDS)
    assert [e.kind for e in events if e.rule.startswith("r")] == ["enter"] * enters


@pytest.mark.slow
def test_many_tracks_at_once_are_as_many_alone():
    rules = config(
        ENTER, {"kind": "stay", "zone": "yard", "for_s": 2}, {"kind": "wrong_way", "way": [[0, 0], [100, 0]]}
    )
    rng = np.random.default_rng(0)
    lanes = [120 + 14 * k for k in range(25)]  # apart enough to be two objects
    ways = [walk((rng.uniform(30, 610), y), (rng.uniform(30, 610), y), 0, 6) for y in lanes]
    together = play(rules, lambda t: [thing("bag", w(t), k) for k, w in enumerate(ways)], 6)
    alone = [
        e for k, w in enumerate(ways) for e in play(rules, lambda t, k=k, w=w: [thing("bag", w(t), k)], 6)
    ]
    assert sorted(together) == sorted(alone) and len(alone) > 15


def test_a_picture_of_another_size_scales_what_is_known():
    rules = EventsConfig(
        zones=[{"name": "half", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}],
        rules=[{"name": "r", "kind": "stay", "zone": "half", "for_s": 3}],
    )
    watch, events = Watch(rules, "cam"), []
    for i in range(80):
        k = 1 if i < 20 else 2
        image = np.broadcast_to(np.zeros(1, np.uint8), (240 * k, 320 * k, 3))
        frame = Frame(image, "cam", i, NOON + timedelta(seconds=i / 10))
        events += watch.update(Detections([[60 * k, 60 * k, 90 * k, 120 * k]], None, [0], [1]), frame, KINDS)
    assert [e.kind for e in events if e.rule == "r"] == ["stay"]


def test_names_with_markup_are_names():
    name = "<script>alert('x')</script>\n\u202e"
    rules = EventsConfig(zones=[YARD], rules=[{"name": name, "kind": "enter", "zone": "yard"}])
    assert [e.rule for e in _events(rules, standing(), 3) if e.kind == "enter"] == [name]


def _events(rules, scene, seconds):
    watch = Watch(rules, "cam")
    return [e for t in np.arange(0, seconds, 0.1) for e in watch.update(found(scene(t)), frame_at(t), KINDS)]


# --- bad input


@pytest.mark.parametrize(
    "given, text",
    [
        (
            {"rules": [{"kind": "crowding", "zone": "yrd", "more_than": 1}]},
            "rules[0].zone: unknown zone 'yrd'; did you mean 'yard'?",
        ),
        (
            {"rules": [{"kind": "sequence", "steps": ["yard", "nowhere"]}]},
            "rules[0].steps[1]: unknown zone or line 'nowhere'",
        ),
        (
            {"rules": [{"kind": "cross", "line": "gates"}]},
            "rules[0].line: unknown line 'gates'; did you mean 'gate'?",
        ),
        (
            {"rules": [{**ENTER, "during": "nihgt"}], "hours": [NIGHT]},
            "rules[0].during: unknown hours 'nihgt'",
        ),
        ({"rules": [{"kind": "speed", "above": 3}]}, "rules[0]: a speed needs a ground plane"),
        ({"rules": [{"kind": "left_object"}]}, "rules[0].classes: name the classes"),
        ({"rules": [{"kind": "wrong_way", "way": [[1, 1], [1, 1]]}]}, "rules[0].way: has no length"),
        (
            {"rules": [{**ENTER, "min_height": 0.5, "max_height": 0.4}]},
            "the least height or ratio is not below",
        ),
        ({"rules": [{**ENTER, "name": "yard"}]}, "duplicate name 'yard'"),
        ({"rules": [ENTER], "hours": [NIGHT, NIGHT]}, "duplicate name 'night'"),
        (
            {"rules": [], "hours": [{**NIGHT, "timezone": "Mars/Olympus"}]},
            "hours[0].timezone: unknown time zone",
        ),
        (
            {"rules": [], "ground": [{**FLOOR, "image": [[0, 0], [1, 1], [2, 2], [3, 3]]}]},
            "ground[0].image: three of the four points",
        ),
        (
            {"rules": [], "ignore": [{"polygon": [[0, 0], [9, 9], [9, 0], [0, 9]]}]},
            "ignore[0].polygon: its border crosses itself",
        ),
    ],
)
def test_what_is_wrong_between_keys_has_its_path(given, text):
    wrong = config(*given.pop("rules"), **given)
    assert any(text in line for line in events_problems(wrong))
    with pytest.raises(ConfigError, match="problem"):
        zone_rules(wrong)


def test_polygons_of_zones_that_cross_themselves():
    with pytest.raises(ConfigError, match="its border crosses itself"):
        zone_rules(config(ENTER, zones=[{"name": "yard", "polygon": [[0, 0], [9, 9], [9, 0], [0, 9]]}]))


@pytest.mark.parametrize(
    "rule",
    [
        {**ENTER, "kind": "entr"},
        {"kind": "stay", "zone": "yard", "for_s": -1},
        {"kind": "stay", "zone": "yard"},
        {"kind": "crowding", "zone": "yard", "more_than": -1},
        {"kind": "speed", "above": 0},
        {"kind": "sequence", "steps": ["yard"]},
        {"kind": "missing", "classes": ["person"], "without": []},
        {"kind": "line_count", "line": "gate", "every_s": 0},
        {**ENTER, "conf": 1.5},
        {**ENTER, "name": ""},
        {**ENTER, "zones": "yard"},
    ],
)
def test_what_a_key_cannot_be(rule):
    with pytest.raises(ValidationError):
        config(rule)


def test_unknown_classes_are_found_when_the_model_is_known():
    for rule in ({**ENTER, "classes": ["cat"]}, {**HELMET, "without": ["hat"]}, {**BAG, "owners": ["owner"]}):
        with pytest.raises(ConfigError, match="names the unknown class"):
            zone_rules(config(rule), KINDS)
    assert zone_rules(config(BAG), ("bag", "car")).zones  # without people: everything that is left is alone


def test_a_configuration_with_rules_is_checked_with_its_sources():
    given = {
        "sources": [{"uri": "line:", "id": "cam"}],
        "events.zones": [YARD],
        "events.rules": [{"name": "r", **ENTER}],
    }
    assert isinstance(configured_rules(load_config(overrides=given)), EventsConfig)
    plain = {**given, "events.rules": []}
    assert isinstance(configured_rules(load_config(overrides=plain)), Rules)
    wrong = {**given, "events.rules": [{"name": "r", **ENTER, "sources": ["cma"]}]}
    with pytest.raises(ConfigError, match="'r' names the unknown source 'cma'"):
        configured_rules(load_config(overrides=wrong))
    with pytest.raises(
        ConfigError, match=r"events\.rules\.0\.crowding\.more_then: unknown key; did you mean 'more_than'"
    ):
        load_config(
            overrides={
                **given,
                "events.rules": [{"name": "r", "kind": "crowding", "zone": "yard", "more_then": 1}],
            }
        )


def test_zones_alone_are_watched_as_before():
    rules = Rules([ZoneConfig("yard", YARD["polygon"])])
    assert type(open_watch(rules, "cam")) is RuleWatch and type(open_watch(config(ENTER), "cam")) is Watch


# --- from a run to its replay


def results_of(scene, seconds, source="cam"):
    for t in np.arange(0, seconds, 0.1):
        yield FrameResult(frame_at(t, source), found(scene(t)), KINDS)


def a_run(folder, rules, scene, seconds=20):
    sinks = [ParquetSink(folder), JsonlSink(folder / "results.jsonl"), EventSink(folder, rules)]
    for result in results_of(scene, seconds):
        for sink in sinks:
            sink.write(result)
    for sink in sinks:
        sink.close()
    return {row["event_id"]: row for row in read_events(folder).to_pylist()}


def busy(t):
    return [*crowd(5 if 3 < t < 15 else 2), thing("car", (60 + 50 * (t % 11), 420), 50 + int(t // 11))]


ALL = config(
    ENTER,
    {"kind": "crowding", "zone": "yard", "more_than": 3, "for_s": 2},
    {"kind": "cross", "line": "gate"},
    {"kind": "line_count", "line": "gate", "every_s": 5},
)


def test_a_replay_of_a_run_gives_its_events_with_their_ids(tmp_path):
    live = a_run(tmp_path, ALL, busy)
    kinds = {row["kind"] for row in live.values()}
    assert {"enter", "crowding", "cross", "line_count", "zone_enter"} <= kinds
    again = replay_rules(ALL, tmp_path)
    assert sorted(e.event_id for e in again.events) == sorted(live)
    assert again.frames == 200 and abs(again.seconds["cam"] - 19.9) < 0.01


def test_a_table_alone_gives_the_same(tmp_path):
    live = a_run(tmp_path, ALL, busy)
    (tmp_path / "results.jsonl").unlink()
    assert sorted(e.event_id for e in replay_rules(ALL, tmp_path, SIZE).events) == sorted(live)


def test_lines_alone_and_torn_ones(tmp_path):
    live = a_run(tmp_path, ALL, busy)
    for path in tmp_path.glob("*.parquet"):
        path.unlink()
    lines = (tmp_path / "results.jsonl").read_bytes()
    write_whole(tmp_path / "results.jsonl", b'{"half": \n[1, 2]\n"text"\n{"status": "ok"}\n' + lines)
    told = lambda events: sorted((e["rule"], e["kind"], e["tracker_id"], e["frame_id"]) for e in events)
    again = [
        {k: getattr(e, k) for k in ("rule", "kind", "tracker_id", "frame_id")}
        for e in replay_rules(ALL, tmp_path).events
    ]
    assert told(again) == told(live.values())


def test_other_rules_on_the_same_results(tmp_path):
    a_run(tmp_path, ALL, busy)
    stricter = config({"kind": "crowding", "zone": "yard", "more_than": 9}, {**ENTER, "classes": ["dog"]})
    again = replay_rules(stricter, tmp_path)
    assert not [e for e in again.events if e.kind in ("crowding", "enter")] and again.absent == ["dog"]


def test_results_that_cannot_be_replayed(tmp_path):
    with pytest.raises(DataError, match="there are no results"):
        replay_rules(ALL, tmp_path)
    with pytest.raises(DataError, match="there are no results"):
        replay_rules(ALL, tmp_path / "nothing")
    a_run(tmp_path, ALL, lambda t: [thing("person", INSIDE, -1)], 3)
    with pytest.raises(DataError, match="have no tracks"):
        replay_rules(ALL, tmp_path)
    (tmp_path / "results.jsonl").unlink()
    half = EventsConfig(zones=[{"name": "half", "polygon": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}])
    with pytest.raises(DataError, match="need the size of the pictures"):
        replay_rules(half, tmp_path)


def test_poisson_limits():
    assert poisson_interval(0)[0] == 0 and abs(poisson_interval(0)[1] - 3.689) < 1e-3
    assert np.allclose(poisson_interval(10), (4.795, 18.391), atol=1e-3)


def test_columns_of_rules_reach_the_table_and_their_ids_the_lines(tmp_path):
    live = a_run(tmp_path, ALL, busy)
    table = pq.read_table(tmp_path / "events.parquet")
    counts = [row["value"] for row in table.to_pylist() if row["kind"] == "crowding"]
    assert counts == [5.0] and table.column_names[-4:-1] == ["event_id", "value", "plus_minus"]
    assert all(json.dumps(row["event_id"]) for row in live.values())


def test_the_summary_counts_what_rules_have_fired(tmp_path):
    sink = EventSink(tmp_path, ALL)
    for result in results_of(busy, 20):
        sink.write(result)
    sink.close()
    fired = sink.summary()["fired"]["cam"]
    counts = [row["rule"] for row in read_events(tmp_path).to_pylist() if row["rule"].startswith("r")]
    assert fired == {name: counts.count(name) for name in set(counts)} and fired["r1"] == 1
    alone = EventSink(tmp_path / "alone", Rules([ZoneConfig("yard", YARD["polygon"])]))
    alone.close()
    assert "fired" not in alone.summary()


@pytest.mark.parametrize("fps", [0.5, 2.0, 15.0])
@pytest.mark.slow
def test_rules_hold_at_any_frame_rate(fps):
    rules = config({"kind": "crowding", "zone": "yard", "more_than": 3, "for_s": 6}, {**BAG, "for_s": 10})
    scene = lambda t: [*crowd(5), thing("bag", (400, 280), 90) if t > 60 else None]
    told = play(rules, scene, 100, fps=fps)
    assert [k for k, _ in told] == ["crowding"]  # the people beside it may own the bag
    alone = play(
        config({**BAG, "for_s": 10}), lambda t: [thing("bag", (400, 160), 90)] * bool(t > 60), 100, fps=fps
    )
    assert [k for k, _ in alone] == ["left_object"] and 69 < alone[0][1] < 85


def test_a_drawing_shows_what_is_watched():
    rules = config(
        {"kind": "wrong_way", "way": [[100, 240], [500, 240]]},
        ground=[FLOOR],
        ignore=[{"polygon": [[0, 0], [60, 0], [60, 60]]}],
    )
    image = np.full((480, 640, 3), 200, np.uint8)
    drawn = draw_watch(image, rules, "cam")
    assert image.min() == 200 and (drawn != image).any(axis=2).mean() > 0.1
    assert drawn[5, 30].max() < 150 and (drawn[240, 150:450] == (0, 200, 0)).all(axis=1).mean() > 0.5


# --- the yard


@pytest.mark.slow
def test_the_yard_in_miniature():
    yard, rules = IncidentLine(IncidentsConfig(seconds=300, fps=6, seed=30)), EventsConfig(**yard_rules())
    tracker, watch, events = make_tracker("bytetrack", frame_rate=6.0), Watch(rules, "yard"), []
    for frame, boxes in yard:
        events += watch.update(tracker.update(boxes, frame), frame, NAMES)
    mine = {r.name for r in rules.rules}
    told = [(e.rule, (e.at - yard.start).total_seconds()) for e in events if e.rule in mine]
    scored = score_incidents(yard.truth, told)
    assert len(scored) == 13 and sum(s.found for s in scored) >= 12 and sum(s.false for s in scored) <= 1
