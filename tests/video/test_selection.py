"""Selectors: rates without drift, motion on the line, guarantees under hypothesis."""

from datetime import datetime, timedelta, timezone

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, Frame, ListeningSelector, Selector
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.video.selection import (
    Chain,
    EveryN,
    MaxFps,
    MotionSelector,
    difference,
    make_selector,
    small_grey,
)

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
BLANK = np.zeros((60, 80, 3), np.uint8)


def at(seconds, image=BLANK, number=0):
    return Frame(image, "cam", number, NOON + timedelta(seconds=float(seconds)))


@settings(deadline=None)
@given(n=st.integers(1, 50), count=st.integers(0, 300))
def test_every_n(n, count):
    selector = EveryN(n)
    assert [i for i in range(count) if selector.select(at(i))] == list(range(0, count, n))
    selector.reset()
    assert selector.select(at(0))


@settings(deadline=None, max_examples=60)
@given(fps=st.floats(0.2, 40), camera=st.floats(1, 60), jitter=st.floats(0, 0.4), seed=st.integers(0, 99))
def test_max_fps_is_never_above_and_does_not_drift(fps, camera, jitter, seed):
    n = 600
    times = (np.arange(n) + np.random.default_rng(seed).uniform(-jitter, jitter, n)) / camera
    selector = MaxFps(fps)
    kept = np.array([t for t in times if selector.select(at(t - times[0]))]) - times[0]
    cells = np.floor(kept * fps + MaxFps.early + 1e-4)
    assert len(set(cells)) >= len(kept) - 1  # one a cell
    duration = times[-1] - times[0]
    assert len(kept) <= duration * fps + 2
    if camera > 2.2 * fps:
        assert len(kept) >= duration * fps - 2  # no drift: the rate that was asked for, over the whole time


def test_max_fps_equal_to_the_cameras_keeps_all_with_rounded_times():
    for fps in (10, 24, 25, 29.97, 30, 50, 60):
        selector = MaxFps(fps)
        assert all(selector.select(at(round(i / fps, 3))) for i in range(3000))


def test_max_fps_goes_on_after_the_clock_jumped():
    selector = MaxFps(1)
    assert [selector.select(at(t)) for t in (0, 0.5, 1, 5000, 5000.2, -4000, -3999.5, -3999)] == [
        True,
        False,
        True,
        True,
        False,
        True,
        False,
        True,
    ]


def test_motion_guarantees():
    selector = MotionSelector(max_gap=2)
    assert [t for t in np.arange(0, 8, 0.5) if selector.select(at(t))] == [0, 2, 4, 6]
    selector.reset()
    assert selector.select(at(0.1)) and not selector.select(at(0.2))
    assert selector.select(at(0.3, np.zeros((30, 80, 3), np.uint8)))  # size changed
    assert selector.select(at(-100, np.zeros((30, 80, 3), np.uint8)))  # time went back


@pytest.mark.slow
def test_motion_sees_a_small_thing_a_slow_change_and_ignores_noise():
    rng = np.random.default_rng(0)
    still = cv2.resize(rng.integers(60, 190, (27, 48, 3), dtype=np.uint8), (1920, 1080))

    noise = [rng.normal(0, 8, still.shape[:2])[..., None].astype(np.float32) for _ in range(3)]
    turn = iter(range(1000))

    def shot(image):
        return np.clip(image + noise[next(turn) % 3], 0, 255).astype(np.uint8)

    selector = MotionSelector(max_gap=1e6)
    assert [selector.select(at(i, shot(still))) for i in range(10)] == [True] + [False] * 9
    thing = still.copy()
    thing[500:580, 900:980] = 255
    assert selector.select(at(11, shot(thing))) and not selector.select(at(12, shot(thing)))
    fading = [
        selector.select(at(20 + i, shot((thing * (1 - i / 100)).astype(np.uint8)))) for i in range(1, 40, 2)
    ]
    assert 1 <= sum(fading) <= 8  # it adds up against the last selected frame


def test_motion_on_the_line_keeps_what_is_busy():
    line = FactoryLine(LineConfig(density=0.4, size=(320, 240), seed=5))
    selector, busy, kept = MotionSelector(), [], []
    for frame, truth in line.frames(500):
        kept.append(selector.select(frame))
        busy.append(len(truth.labelled()) > 0)
    busy, kept = np.array(busy), np.array(kept)
    assert 0.1 < busy.mean() < 0.9
    assert kept[busy].mean() > 0.9 and kept[~busy].mean() < 0.5


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 700), height=st.integers(1, 700))
def test_small_grey_of_any_size(width, height):
    image = np.full((height, width, 3), 100, np.uint8)
    small = small_grey(image)
    assert (
        small.ndim == 2
        and small.dtype == np.uint8
        and small.shape[1] == min(width, 160)
        and abs(int(small.mean()) - 100) <= 1
    )
    assert difference(small, small) == (0.0, 0.0)


def test_chain_and_make_selector():
    for settings_ in (
        {},
        {"every": 2},
        {"max_fps": 5},
        {"motion": True},
        {"every": 2, "max_fps": 5, "motion": {"max_gap": 1}},
    ):
        assert isinstance(make_selector(**settings_), Selector)
    assert all(make_selector().select(at(i)) for i in range(5))
    chain = Chain([EveryN(2), EveryN(3)])
    assert [i for i in range(13) if chain.select(at(i))] == [0, 6, 12]
    chain.reset()
    assert chain.select(at(0))


def test_a_chain_passes_on_what_was_found_only_if_somebody_asks():
    heard = []

    class Curious(EveryN):
        def observe(self, frame, detections, tracker):
            heard.append((frame.frame_id, detections, tracker))

    chain = Chain([EveryN(1), Curious(1), Curious(1)])
    assert chain.select(at(0)) and isinstance(chain, Selector)
    chain.observe(at(0, number=7), "found", "tracker")
    assert heard == [(7, "found", "tracker")] * 2
    assert isinstance(chain, ListeningSelector)
    assert not isinstance(Chain([EveryN(1)]), ListeningSelector)
    assert not isinstance(make_selector(every=2, max_fps=5), ListeningSelector)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EveryN(0),
        lambda: EveryN(1.5),
        lambda: MaxFps(0),
        lambda: MaxFps(float("nan")),
        lambda: MaxFps("5"),
        lambda: MotionSelector(changed=0),
        lambda: MotionSelector(threshold=-1),
        lambda: MotionSelector(max_gap=0),
        lambda: make_selector(motion={"wrong": 1}),
        lambda: make_selector(max_fps=-3),
    ],
)
def test_bad_settings_are_config_errors(make):
    with pytest.raises(ConfigError):
        make()
