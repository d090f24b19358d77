"""Adaptive selection: guarantees under hypothesis, the background against lamps and noise, the budget's
bound, visits and counts on lines and people."""

import threading
from datetime import datetime, timedelta, timezone

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, Detections, Frame, Selector, box_iou
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.conditions import Conditions
from cv_pipeline.tracking.sort import SortTracker, TrackStates
from cv_pipeline.video.adaptive import (
    AdaptiveSelector,
    AdaptiveSettings,
    Background,
    CallBudget,
    boxes_mask,
    look_rates,
    next_reach,
    predicted,
    water_fill,
)
from cv_pipeline.video.selection import EveryN, small_grey
from cv_pipeline.video.sources import open_source

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
BELT = cv2.resize(
    np.random.default_rng(7).integers(60, 150, (24, 32, 3), dtype=np.uint8),
    (160, 120),
    interpolation=cv2.INTER_CUBIC,
)


def at(seconds, image=BELT, number=None, source="cam"):
    return Frame(
        image,
        source,
        int(round(seconds * 1000)) if number is None else number,
        NOON + timedelta(seconds=float(seconds)),
    )


def with_thing(x, y=40, side=24):
    image = BELT.copy()
    image[y : y + side, x : x + side] = 255
    return image


# --- the budget

vessels = st.lists(st.tuples(st.floats(0, 3), st.floats(0, 10), st.floats(0.05, 5)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=200)
@given(vessels, st.floats(0.1, 60))
def test_water_fill_fills_every_vessel_to_one_level(rows, capacity):
    low, extra, weight = np.array(rows).T
    high = low + extra
    share = water_fill(capacity, low, high, weight)
    assert share.sum() == pytest.approx(min(capacity, high.sum()), rel=1e-6, abs=1e-9)
    if low.sum() >= capacity:
        assert np.allclose(share, low * capacity / low.sum())
        return
    assert (share >= low - 1e-9).all() and (share <= high + 1e-9).all()
    between = (share > low + 1e-7) & (share < high - 1e-7)
    level = share / weight
    # those that are neither at the bottom nor at the brim stand at one level; the bottoms lie above it, the
    # brims below
    if between.any():
        one = level[between][0]
        assert np.allclose(level[between], one, rtol=1e-5)
        assert (level[(share <= low + 1e-7) & (extra > 1e-6)] >= one - 1e-5).all() and (
            level[(share >= high - 1e-7) & (extra > 1e-6)] <= one + 1e-5
        ).all()


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6), cameras=st.integers(1, 8), capacity=st.floats(0.5, 30), burst=st.floats(1, 4)
)
def test_the_budget_is_never_exceeded_and_nobody_starves(seed, cameras, capacity, burst):
    rng, budget, floor = np.random.default_rng(seed), CallBudget(capacity, burst), 0.2
    made, wanted = [[] for _ in range(cameras)], rng.uniform(floor, 10, cameras)
    ticks = sorted((t, c) for c in range(cameras) for t in np.cumsum(rng.uniform(0.02, 0.12, 300)))
    for t, c in ticks:
        if rng.random() < 0.01:
            wanted[c] = rng.uniform(floor, 10)
        if budget.ready(c, t, wanted[c], floor):
            budget.spend(c)
            made[c].append(t)
    everything, seconds = np.sort(np.concatenate(made)), ticks[-1][0]
    for begin in (0.0, 3.0, seconds / 2):  # over any time: rate × time + what was saved
        calls = np.searchsorted(everything, seconds, "right") - np.searchsorted(everything, begin, "left")
        assert calls <= capacity * (seconds - begin) + burst * cameras + 1e-6
    least = min(floor, capacity / cameras) * min(m[-1] if m else seconds for m in made) - 2
    assert min(map(len, made)) >= np.floor(least)


def test_the_budget_gives_by_need_and_takes_back_from_the_silent():
    budget, calls = CallBudget(4.0, silent_s=2.0), {"busy": 0, "calm": 0}

    def minute(begin, keys, wish):
        for t in np.arange(begin, begin + 60, 0.04):
            for key in keys:
                if budget.ready(key, t, wish[key], 0.2):
                    budget.spend(key)
                    calls[key] += 1

    minute(0, ("busy", "calm"), {"busy": 8.0, "calm": 0.4})
    assert 210 <= calls["busy"] <= 234 and 10 <= calls["calm"] <= 26 and sum(calls.values()) <= 4 * 60 + 4
    calls.update(busy=0, calm=0)
    minute(60, ("calm",), {"calm": 8.0})  # the busy one is dead: after two seconds all is calm's
    assert 4 * 57 <= calls["calm"] <= 4 * 60 + 2
    budget.leave("calm")
    assert budget.ready("new", 0.0, 5.0, 0.2)  # an empty budget, and time may start anywhere


def test_the_budget_may_have_a_clock_and_threads():
    now = [0.0]
    budget, made, lock = CallBudget(10.0, clock=lambda: now[0]), [], threading.Lock()

    def camera(key):
        for _ in range(400):
            if budget.ready(key, -1e9, 50.0, 0.1):
                budget.spend(key)
                with lock:
                    made.append(key)

    for second in range(10):
        now[0] = float(second)
        threads = [threading.Thread(target=camera, args=(k,)) for k in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert len(made) <= 10 * 9 + 2 * 4 and {made.count(k) > 9 for k in range(4)} == {True}


@pytest.mark.parametrize(
    "bad",
    [
        {"calls_per_second": 0},
        {"calls_per_second": 1, "burst": 0.5},
        {"calls_per_second": 1, "silent_s": 0},
        {"calls_per_second": float("nan")},
    ],
)
def test_bad_budgets_are_refused(bad):
    with pytest.raises(ConfigError):
        CallBudget(**bad)


# --- the picture


def learned(images, background=None):
    background = background or Background()
    for image in images:
        if not background.mean.size:
            background.start(image)
        found = background.foreground(image)
        background.learn(image, 0.04, background.still)
    return background, found


@settings(deadline=None, max_examples=30)
@given(gain=st.floats(0.6, 1.3), x=st.integers(0, 135), y=st.integers(0, 95), seed=st.integers(0, 999))
def test_a_lamp_is_no_motion_and_a_thing_is_found_where_it_is(gain, x, y, seed):
    rng = np.random.default_rng(seed)
    noisy = lambda image, g=1.0: np.clip(
        small_grey(image) * g + rng.normal(0, 2, image.shape[:2]), 0, 255
    ).astype(np.uint8)
    background, _ = learned([noisy(BELT) for _ in range(20)])
    dimmed = background.foreground(noisy(BELT, gain))
    assert cv2.countNonZero(dimmed) <= 0.001 * dimmed.size
    thing = cv2.cvtColor(with_thing(x, y), cv2.COLOR_BGR2GRAY)
    found = background.foreground(np.clip(thing * gain, 0, 255).astype(np.uint8))
    inside = found[y + 2 : y + 22, x + 2 : x + 22]
    if gain <= 1:
        assert inside.mean() > 240  # above 1 the thing is as white as the picture can be
    outside = cv2.countNonZero(found) - cv2.countNonZero(
        found[max(y - 2, 0) : y + 26, max(x - 2, 0) : x + 26]
    )
    assert outside <= 0.002 * found.size


def test_in_the_dark_a_smaller_difference_will_do():
    night = (small_grey(BELT) * 0.2).astype(np.uint8)
    thing, bright = night.copy(), small_grey(BELT)
    thing[40:64, 50:74] += 9
    assert cv2.countNonZero(learned([night] * 60)[0].foreground(thing)) > 400
    by_day = bright.copy()
    by_day[40:64, 50:74] += 9
    assert cv2.countNonZero(learned([bright] * 60)[0].foreground(by_day)) == 0


def test_what_keeps_changing_is_learned_as_usual():
    rng = np.random.default_rng(0)
    grey = small_grey(BELT)
    grey[30:34], grey[:, 60:63] = 250, 250  # rails: sharp edges

    def shaken():
        return np.roll(grey, rng.integers(-2, 3, 2), (0, 1))  # single lines are removed anyway

    background, _ = learned([grey, *(shaken() for _ in range(250))])
    late = np.mean([cv2.countNonZero(background.foreground(shaken())) for _ in range(20)])
    fixed = Background()
    fixed.start(grey)
    at_first = np.mean([cv2.countNonZero(fixed.foreground(shaken())) for _ in range(20)])
    assert late <= 0.005 * grey.size and late * 4 < at_first


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.floats(-200, 900), st.floats(-200, 700), st.floats(0, 400), st.floats(0, 400)),
        max_size=8,
    ),
    st.floats(1, 9),
)
def test_boxes_mask_is_the_union_of_boxes(rows, scale):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in rows], np.float32).reshape(-1, 4)
    mask, wanted = boxes_mask(boxes, (60, 90), scale), np.zeros((60, 90), np.uint8)
    for x1, y1, x2, y2 in np.rint(boxes / np.float32(scale)).astype(int).clip(0, 1000):
        wanted[y1:y2, x1:x2] = 255
    solid = [b for b in np.rint(boxes / np.float32(scale)).astype(int) if b[2] > b[0] and b[3] > b[1]]
    if len(solid) == len(boxes):
        assert np.array_equal(mask, wanted)
    else:
        assert (mask >= wanted).all()


# --- the tracks


def states(xyxy, velocity=None, ids=None, confirmed=None, since=None, uncertainty=None):
    n = len(xyxy)
    fill = lambda value, default: np.full(n, default) if value is None else np.asarray(value)
    return TrackStates(
        np.asarray(xyxy, np.float32),
        np.zeros((n, 2), np.float32) if velocity is None else np.asarray(velocity, np.float32),
        np.arange(n, dtype=np.int32) if ids is None else np.asarray(ids, np.int32),
        fill(confirmed, True),
        np.full(n, 5, np.int32),
        fill(since, 0.0).astype(float),
        fill(uncertainty, 0.0).astype(np.float32),
    )


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 12))
def test_reach_grows_where_predictions_hold_and_does_not_depend_on_the_order(seed, n):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 400, (n, 2))
    first = states(np.hstack([corner, corner + 50]), rng.normal(0, 30, (n, 2)))
    reach, moved = next_reach(None, first, 0.0, 0.3, 1.0), predicted(first, 0.5)
    wrong = rng.random(n) < 0.4
    second = first._replace(xyxy=(moved + wrong[:, None] * 30).astype(np.float32))
    after = next_reach(reach, second, 0.5, 0.3, 1.0)
    assert np.allclose(after.sizes, np.where(wrong, 0.3, 0.45))
    turn = rng.permutation(n)
    turned = next_reach(reach, TrackStates(*(column[turn] for column in second)), 0.5, 0.3, 1.0)
    assert np.array_equal(turned.sizes, after.sizes[turn])
    for i in range(8):
        after = (
            next_reach(after, second._replace(xyxy=predicted(second, 0.5 * i)), 0.5 * (i + 1), 0.3, 1.0)
            if i == 0
            else after
        )
    assert (after.sizes <= 1.0).all()


def test_rates_by_kind():
    still, fast, new, lost, gone, edge = [
        [100, 100, 150, 150],
        [300, 100, 350, 150],
        [200, 200, 240, 240],
        [100, 300, 150, 350],
        [-80, 300, -30, 350],
        [0, 10, 50, 60],
    ]
    known = states(
        [still, fast, new, lost, gone, edge],
        [[0, 0], [100, 0], [0, 0], [0, 0], [-90, 0], [-20, 0]],
        [0, 1, -1, 3, 4, 5],
        [True, True, False, True, True, True],
        [0, 0, 0, 0.5, 0.5, 0],
    )
    reach = next_reach(None, known, 0.0, 0.3, 1.0)._replace(sizes=np.full(6, 1.0, np.float32))
    rates, why = look_rates(reach, (640, 480), 0.3, 0.33, 20.0)
    assert rates == pytest.approx(
        [0.33, 2.0, 20.0, 2.0, 0.0, 20 / 50 / 0.45], rel=1e-4
    )  # the last: at the border the reach is short again
    assert why.tolist() == ["follow", "follow", "new", "lost", "lost", "follow"]
    unsure = look_rates(
        reach._replace(states=known._replace(uncertainty=np.full(6, 15, np.float32))),
        (640, 480),
        0.3,
        0.33,
        20.0,
    )[0]
    assert unsure[1] > rates[1] and unsure[1] <= 2 * rates[1] + 1e-6


# --- the selector's guarantees


def drive(selector, times, picture, observe=True, found=None):
    chosen = []
    for i, t in enumerate(times):
        frame = at(t, picture(i), i)
        if selector.select(frame):
            chosen.append(t)
            if observe:
                selector.observe(frame, found(i) if found else Detections.empty())
    return np.array(chosen)


@pytest.mark.slow
@settings(deadline=None, max_examples=20)
@given(
    floor=st.floats(0.1, 2),
    ceiling=st.floats(2, 12),
    fps=st.floats(8, 30),
    jitter=st.floats(0, 0.4),
    seed=st.integers(0, 99),
    observe=st.booleans(),
)
def test_never_above_the_ceiling_never_below_the_floor(floor, ceiling, fps, jitter, seed, observe):
    rng = np.random.default_rng(seed)
    n = 250
    times = (np.arange(n) + rng.uniform(-jitter, jitter, n)) / fps
    times -= times[0]
    noise = [rng.integers(0, 255, (40, 56, 3), dtype=np.uint8) for _ in range(7)]
    wild = drive(
        AdaptiveSelector(AdaptiveSettings(floor, ceiling, tracked_fps=0.1)),
        times,
        lambda i: noise[i % 7],
        observe,
    )
    for begin in (0.0, times[n // 3], times[n // 2]):
        assert (wild >= begin).sum() <= ceiling * (times[-1] - begin) + max(ceiling, 3) + 1
    calm = drive(
        AdaptiveSelector(AdaptiveSettings(floor, ceiling, tracked_fps=0.1)), times, lambda i: BELT, observe
    )
    longest = np.diff(np.append(calm, times[-1])).max()
    assert calm[0] == 0 and longest <= 1 / floor + 2 / fps + 1e-6
    assert len(calm) <= floor * times[-1] + 2  # nothing moves: the floor and no more


def test_first_frame_another_size_and_a_clock_that_jumps_back():
    selector = AdaptiveSelector()
    assert isinstance(selector, Selector)
    assert selector.select(at(0)) and not selector.select(at(0.04))
    selector.observe(at(0), Detections.empty())
    assert selector.select(at(0.6, np.zeros((50, 80, 3), np.uint8)))
    assert selector.select(at(-500, np.zeros((50, 80, 3), np.uint8))) and not selector.select(
        at(-499.9, np.zeros((50, 80, 3), np.uint8))
    )
    assert selector.reasons["first"] == 2


OTHER = np.random.default_rng(3).integers(10, 245, (120, 160, 3), dtype=np.uint8)


@pytest.mark.parametrize("cut", [5.04, 5.08, 5.16, 5.2, 7.0])
@pytest.mark.parametrize(
    "picture", [OTHER, cv2.resize(BELT, (320, 240)), BELT[:, :90]], ids=["scene", "size", "shape"]
)
def test_another_scene_or_size_right_after_a_look_is_not_forgotten(cut, picture):
    times = np.arange(0, 12, 0.04)
    chosen = drive(AdaptiveSelector(), times, lambda i: BELT if times[i] < cut - 1e-6 else picture)
    late = chosen[chosen >= cut - 1e-6]
    assert (
        late[0] == pytest.approx(max(cut, 5.2), abs=0.01) and len(late) <= 3
    )  # as soon as the ceiling allows, once


@pytest.mark.parametrize("picture", [OTHER, cv2.resize(BELT, (320, 240))], ids=["scene", "size"])
def test_another_scene_waits_for_a_budget_that_refuses(picture):
    times, budget = np.arange(0, 20, 0.04), CallBudget(0.5, burst=1)
    selector = AdaptiveSelector(budget=budget)
    chosen = drive(selector, times, lambda i: BELT if times[i] < 5.4 else picture)
    assert chosen[1] == pytest.approx(5, abs=0.1)
    assert 5.4 < chosen[2] <= 7.2  # the floor alone would come at 10


def test_another_size_voids_what_was_known_in_pixels():
    selector, large = AdaptiveSelector(), cv2.resize(BELT, (320, 240))
    assert selector.select(at(0))
    selector.observe(at(0), Detections([[10, 10, 40, 40]]))
    assert len(selector._rates) == 1
    selector.select(at(0.04, large))
    assert len(selector._rates) == 0 and selector._reach is None
    selector.observe(at(0), Detections([[10, 10, 40, 40]]))  # an answer about the old picture comes late
    assert selector._reach is None
    assert selector.select(at(0.24, large)) and selector.reasons["first"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [61, 305])
def test_a_tight_budget_still_confirms_tracks(seed):
    "Two busy belts, one call a second each: single looks would confirm none or few."
    budget, calls, visits = CallBudget(2.0), 0, 0
    belts = [
        list(FactoryLine(LineConfig(size=(320, 240), density=3.0, seed=seed + k, start=NOON)).frames(400))
        for k in (0, 1)
    ]
    cameras = [
        (
            AdaptiveSelector(budget=budget),
            SortTracker(track_activation_threshold=0.5, lost_track_buffer=75, frame_rate=25),
        )
        for _ in belts
    ]
    for moment in zip(*belts):
        for (frame, truth), (selector, tracker) in zip(moment, cameras):
            if not selector.select(frame):
                continue
            calls += 1
            selector.observe(frame, tracker.update(Detections(truth.labelled().xyxy), frame), tracker)
    for belt in belts:
        visits += len(set().union(*(truth.labelled().tracker_id.tolist() for _, truth in belt)))
    assert calls <= 2 * 16 + 2 * 3
    assert sum(tracker.confirmed for _, tracker in cameras) >= 0.6 * visits > 0, (
        visits,
        calls,
        [t.confirmed for _, t in cameras],
    )


def test_something_new_is_looked_at_at_once_and_boredom_sets_in():
    selector = AdaptiveSelector(AdaptiveSettings(floor_fps=0.1))
    times = np.arange(0, 12, 0.04)
    chosen = drive(selector, times, lambda i: BELT if times[i] < 4 else with_thing(20 + (i % 7) * 9, 40))
    assert chosen[0] == 0 and (chosen[1] == pytest.approx(4, abs=0.05))
    gaps = np.diff(chosen[1:])
    assert (
        gaps[0] < 0.5 and gaps[-1] > max(1.0, 4 * gaps[0]) and selector.reasons["motion"] == len(chosen) - 1
    )  # nobody finds anything there: rarer and rarer
    fresh = drive(selector, np.arange(12, 13, 0.04), lambda i: with_thing(20, 90, 20))
    assert len(fresh) and fresh[0] <= 12.1  # but elsewhere it is news


def test_a_rolling_box_that_its_track_explains_is_no_news():
    times, tracker, selector = (
        np.arange(0, 8, 0.04),
        SortTracker(frame_rate=25),
        AdaptiveSelector(AdaptiveSettings(floor_fps=0.1, tracked_fps=0.1)),
    )
    calls = []
    for i, t in enumerate(times):
        x = int(10 + 12 * t)
        frame = at(t, with_thing(x), i)
        if selector.select(frame):
            calls.append(t)
            selector.observe(frame, tracker.update(Detections([[x, 40, x + 24, 64]]), frame), tracker)
    assert tracker.confirmed == 1 and len(calls) < 14 and sum(t > 4 for t in calls) <= 5
    assert selector.reasons["new"] == 2  # three looks on end, the first was the first frame


def test_without_answers_it_asks_on_but_no_faster_than_the_ceiling():
    selector = AdaptiveSelector(AdaptiveSettings(floor_fps=0.1, ceiling_fps=4))
    chosen = drive(
        selector,
        np.arange(0, 10, 0.04),
        lambda i: with_thing(10 + 37 * i % 120, 20 + 29 * i % 80),
        observe=False,
    )
    assert (np.diff(chosen) >= 0.25 - 3e-3).all() and len(chosen) >= 30
    assert len(selector._asked) <= 2.0 * 4 + 1  # answers that never come are forgotten
    selector.observe(at(5, number=125), Detections.empty())  # one of a look that was given up, or never made
    assert len(selector._asked) <= 2.0 * 4 + 1


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 3, 10, 20])
def test_late_answers_cost_calls_but_no_visits(late):
    "A live camera: the answer comes up to 0.8 s after the look, the tracker too."
    frames = list(FactoryLine(LineConfig(size=(320, 240), seed=411, density=0.5, speed=120.0)).frames(700))
    selector, tracker, waiting, present, kept, calls = (
        AdaptiveSelector(),
        SortTracker(track_activation_threshold=0.5, lost_track_buffer=50, frame_rate=25),
        [],
        {},
        set(),
        0,
    )
    for frame, truth in frames:
        wanted = truth.labelled()
        for i in wanted.tracker_id.tolist():
            present[i] = present.get(i, 0) + 1
        if selector.select(frame):
            calls += 1
            waiting.append((frame, wanted))
        while waiting and frame.frame_id - waiting[0][0].frame_id >= late:
            seen, parts = waiting.pop(0)
            result = tracker.update(Detections(parts.xyxy, None, parts.class_id), seen)
            selector.observe(seen, result, tracker)
            kept |= set(parts.tracker_id[result.tracker_id >= 0].tolist())
    visits = {i for i, n in present.items() if n >= 13}
    assert visits == visits & kept and tracker.confirmed == len(visits) >= 3 and calls * 7 <= len(frames)


def test_reset_is_new_instances_are_independent_and_decisions_repeat():
    line = list(FactoryLine(LineConfig(size=(320, 240), density=0.8, seed=2)).frames(150))

    def run(selector):
        tracker, chosen = SortTracker(frame_rate=25), []
        for frame, truth in line:
            if selector.select(frame):
                chosen.append(frame.frame_id)
                selector.observe(frame, tracker.update(Detections(truth.labelled().xyxy), frame), tracker)
        return chosen

    one, other = AdaptiveSelector(), AdaptiveSelector()
    other.select(at(0))
    first = run(one)
    one.reset()
    assert first == run(one) == run(AdaptiveSelector()) and 3 < len(first) < 60


class Silent:
    "A tracker of somebody else: no `tracks`."

    confirmed = 0

    def update(self, detections, frame):
        return detections

    def reset(self): ...


@pytest.mark.parametrize("tracker", [None, Silent()])
def test_works_without_tracks(tracker):
    times, selector = np.arange(0, 8, 0.04), AdaptiveSelector(AdaptiveSettings(floor_fps=0.2))
    calls = 0
    for i, t in enumerate(times):
        x = int(10 + 12 * t)
        frame = at(t, with_thing(x), i)
        if selector.select(frame):
            calls += 1
            selector.observe(frame, Detections([[x, 40, x + 24, 64]]), tracker)
    assert 4 <= calls <= 50


@pytest.mark.slow
def test_a_budget_bounds_selectors_together_and_reset_leaves_it():
    noise = [np.random.default_rng(i).integers(0, 255, (60, 80, 3), dtype=np.uint8) for i in range(5)]
    budget = CallBudget(1.0)
    cameras, calls = [AdaptiveSelector(budget=budget) for _ in range(3)], [0, 0, 0]
    for i, t in enumerate(np.arange(0, 20, 0.04)):
        for c, camera in enumerate(cameras):
            frame = at(t, noise[(i + c) % 5] if c < 2 else BELT, i)
            if camera.select(frame):
                calls[c] += 1
                camera.observe(frame, Detections([[5, 5, 30, 30]]))
    assert sum(calls) <= 20 + 3 * 3 and calls[2] >= 3 and min(calls[:2]) > calls[2]
    for camera in cameras:
        camera.reset()
    assert not budget._cameras


@pytest.mark.parametrize(
    "bad",
    [
        {"floor_fps": 0},
        {"floor_fps": 6},
        {"ceiling_fps": float("inf")},
        {"tracked_fps": 9},
        {"new_fps": 0},
        {"area": 1},
        {"reach": (0.5, 0.2)},
        {"forget_s": 0},
        {"answer_s": -1},
        {"width": 3},
    ],
)
def test_bad_settings_are_config_errors(bad):
    with pytest.raises(ConfigError) as error:
        AdaptiveSettings(**bad)
    assert next(iter(bad)) in str(error.value)


# --- visits and counts


def replay(frames, selector, find):
    tracker = SortTracker(track_activation_threshold=0.5, lost_track_buffer=50, frame_rate=25)
    calls, kept, present = 0, set(), {}
    for frame, truth in frames:
        wanted = truth.labelled()
        for i in wanted.tracker_id.tolist():
            present[i] = present.get(i, 0) + 1
        if not selector.select(frame):
            continue
        calls += 1
        result = tracker.update(find(frame, wanted), frame)
        if isinstance(selector, AdaptiveSelector):
            selector.observe(frame, result, tracker)
        counted = result[result.tracker_id >= 0]
        if len(wanted) and len(counted):
            kept |= set(wanted.tracker_id[box_iou(wanted.xyxy, counted.xyxy).max(axis=1) >= 0.5].tolist())
    visits = {i for i, n in present.items() if n >= 13}
    return calls, tracker.confirmed, len(visits), len(visits & kept)


CONDITIONS = {
    "good light": (Conditions(), 201, {}),
    "flicker": (Conditions(lamp_flicker=3, noise=2), 202, {}),
    "shaken": (Conditions(vibration=2), 203, {}),
    "evening, fast": (Conditions(time_of_day=2, lamp_flicker=1, noise=2), 205, {"speed": 150.0}),
}


@pytest.mark.slow
def test_a_tenth_of_the_calls_keeps_the_visits_and_the_counts():
    """Seeds that no constant was chosen on; detections from the truth with jitter, misses and a false find
    now and then."""
    total = np.zeros((3, 4), int)
    for conditions, seed, more in CONDITIONS.values():
        frames = list(
            FactoryLine(
                LineConfig(size=(320, 240), seed=seed, **{"density": 0.4, **more}), {0: conditions}
            ).frames(1000)
        )
        ours = AdaptiveSelector()

        def find(frame, wanted, seed=seed):
            rng = np.random.default_rng((seed, frame.frame_id))
            there = wanted[rng.random(len(wanted)) > 0.02]
            found = there.xyxy + rng.normal(0, 0.7, (len(there), 4))
            if rng.random() < 0.005:
                found = np.vstack([found, [[10, 10, 40, 40]]])
            return Detections(found, np.full(len(found), 0.8))

        every, adaptive = replay(frames, EveryN(1), find), replay(frames, ours, find)
        total += [every, adaptive, replay(frames, EveryN(round(len(frames) / adaptive[0])), find)]
        assert adaptive[1] == every[1], "the tracks that are counted"
    frames_in_all = 1000 * len(CONDITIONS)
    assert total[1, 0] * 10 <= frames_in_all and total[1, 3] >= 0.95 * total[1, 2] > 0
    assert total[2, 3] < 0.8 * total[2, 2], (
        "every N at as many calls loses visits: else this test proves little"
    )


@pytest.mark.slow
def test_with_the_bundled_detector():
    model = load_model("factory_line")
    find = lambda frame, wanted: model.predict([frame.image])[0]
    frames = FactoryLine(LineConfig(density=0.4, seed=211)).frames(600)
    calls, counted, visits, kept = replay(frames, AdaptiveSelector(), find)
    assert calls * 10 <= 600 and visits >= 1 and kept == visits == counted


PEOPLE = [
    (63, 196),
    (231, 448),
    (507, 698),
    (747, 867),
    (930, 1198),
    (1237, 1359),
]  # frames of each visit, by yolov8n and SORT on every frame


@pytest.mark.slow
@pytest.mark.real
def test_people_are_counted_with_a_tenth_of_the_frames(real_data):
    model = load_model(real_data / "models/yolov8n_fp32_reconstructed.onnx").with_postprocess(
        conf=0.35, classes=["person"]
    )
    selector, tracker, calls, seen, frames = (
        AdaptiveSelector(),
        SortTracker(track_activation_threshold=0.5, frame_rate=10),
        0,
        {},
        0,
    )
    for frame in open_source(str(real_data / "videos/one-by-one-person-detection.mp4")):
        frames += 1
        if not selector.select(frame):
            continue
        calls += 1
        result = tracker.update(model.predict([frame.image])[0], frame)
        selector.observe(frame, result, tracker)
        for i in result.tracker_id[result.tracker_id >= 0].tolist():
            seen.setdefault(i, []).append(frame.frame_id)
    assert frames == 1394 and calls * 10 <= frames
    assert tracker.confirmed == len(PEOPLE) == len(seen)
    for (begin, end), found in zip(PEOPLE, seen.values()):
        assert begin - 5 <= found[0] <= begin + 10 and end - 12 <= found[-1] <= end + 5
