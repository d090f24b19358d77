"""The factory line: the same bytes in any order, boxes that are the pixels, ids that persist, conditions that
do what they say."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, DataError, Frame, box_iou
from cv_pipeline.synthetic import belt as synthetic
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig, View, slot
from cv_pipeline.synthetic.conditions import CONDITION_NAMES, LADDERS, Changing, Conditions, random_conditions
from cv_pipeline.synthetic.parts import CLASS_NAMES, LENGTHS, Sprite, draw_part, seeded

SEVERITY = st.sampled_from([0, 0, 0, 1, 2.5, 5])
CONDITIONS = st.builds(Conditions, **dict.fromkeys(CONDITION_NAMES, SEVERITY))


def same(a, b) -> bool:
    (fa, ta), (fb, tb) = a, b
    columns = all(
        np.array_equal(getattr(ta.detections, n), getattr(tb.detections, n))
        for n in ("xyxy", "class_id", "tracker_id")
    )
    return (
        fa.image.tobytes() == fb.image.tobytes()
        and columns
        and np.array_equal(ta.detections.data["visibility"], tb.detections.data["visibility"])
    )


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), order=st.permutations([0, 3, 4, 90, 2000]), condition=CONDITIONS)
def test_frames_do_not_depend_on_the_order_of_asking(seed, order, condition):
    config = LineConfig(seed=seed, size=(320, 240))
    first, second = FactoryLine(config, condition), FactoryLine(config, condition)
    forwards = {i: first.render(i) for i in sorted(order)}
    for i in order:
        assert same(second.render(i), forwards[i])


def test_seeds_make_different_lines():
    pictures = {
        FactoryLine(LineConfig(seed=s, size=(160, 120))).render(10)[0].image.tobytes() for s in range(6)
    }
    assert len(pictures) == 6


@pytest.mark.slow
def test_cameras_may_be_asked_from_several_threads():
    config = LineConfig(cameras=3, seed=9, size=(320, 240))
    shared = FactoryLine(config)
    jobs = [(i, c) for i in range(0, 600, 40) for c in range(3)]
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(lambda job: shared.render(*job), jobs))
    alone = FactoryLine(config)
    assert all(same(frame, alone.render(*job)) for frame, job in zip(got, jobs))


@pytest.mark.slow
def test_a_long_run_forgets_what_it_drew():
    line = FactoryLine(LineConfig(seed=1, size=(96, 72), speed=800), Conditions(vibration=3))
    for i in range(0, 1500, 3):
        line.render(i)
    assert len(line.kept._things) <= line.kept.most


@pytest.mark.slow
@pytest.mark.parametrize("camera", [0, 1])
@pytest.mark.parametrize(
    "condition", [None, Conditions(shift=4, field_of_view=3, vibration=2)], ids=["clean", "moved"]
)
def test_boxes_are_the_pixels(monkeypatch, camera, condition):
    """White parts without shadows on an unlit belt: the pixels that are at least half white, when one part is
    there and not otherwise, are its box."""

    def white(*args, **kwargs):
        sprite = draw_part(*args, **kwargs)
        return Sprite(np.repeat(sprite.mask[..., None], 3, axis=2), sprite.mask, sprite.mask)

    monkeypatch.setattr(synthetic, "draw_part", white)
    monkeypatch.setattr(
        synthetic, "light_map", lambda light, size: np.full((size[1], size[0], 3), 128, np.uint8)
    )
    monkeypatch.setattr(Conditions, "develop", lambda self, image, at: image)
    config = LineConfig(cameras=2, seed=12, hand_every=0, overlap=0)
    line, everyone, off = FactoryLine(config, condition), synthetic.slots_in_view, []
    for index in range(0, 400, 40):
        d = line.render(index, camera)[1].detections
        for row in np.flatnonzero(
            (d.data["visibility"] > 0.5) & ((box_iou(d.xyxy, d.xyxy) > 0).sum(axis=1) == 1)
        ):
            alone = int(d.tracker_id[row]) + synthetic.first_slot(config)
            pictures = []
            for wanted in (lambda k, alone=alone: k == alone, lambda k: False):
                monkeypatch.setattr(
                    synthetic,
                    "slots_in_view",
                    lambda *a, wanted=wanted: [k for k in everyone(*a) if wanted(k)],
                )
                pictures.append(line.render(index, camera)[0].image.astype(float))
            monkeypatch.setattr(synthetic, "slots_in_view", everyone)
            share = ((pictures[0] - pictures[1]) / (255 - pictures[1])).mean(axis=2)
            x, y, w, h = cv2.boundingRect((share > 0.5).astype(np.uint8))
            off.append(np.abs(d.xyxy[row] - [x, y, x + w, y + h]).max())
    assert len(off) >= 20 and max(off) <= 1 and np.mean(off) < 0.1, (len(off), max(off), np.mean(off))


@pytest.mark.slow
def test_ids_persist_along_the_belt_and_under_the_next_camera():
    config = LineConfig(cameras=2, seed=5, fps=5, size=(320, 240), hand_every=0)
    line, life = FactoryLine(config), {}
    for camera in (0, 1):
        for _, truth in line.frames(200, camera):
            d = truth.detections
            assert len(set(d.tracker_id.tolist())) == len(d) and (d.tracker_id >= 0).all()
            for number, cls, box in zip(d.tracker_id.tolist(), d.class_id.tolist(), d.xyxy):
                life.setdefault((camera, number), []).append((truth.frame_id, cls, (box[0] + box[2]) / 2))
    both = {n for c, n in life if c == 0} & {n for c, n in life if c == 1}
    assert len(both) > 10
    for number in both:
        assert life[0, number][0][1] == life[1, number][0][1], "the class changed between two cameras"
    for moments in life.values():
        frames, classes, x = (np.array(v) for v in zip(*moments))
        assert len(set(classes)) == 1 and (np.diff(x) > -1).all(), "parts only move downstream"
    inner = [v for v in life.values() if v[0][0] > 0 and v[-1][0] < 199]
    assert len(inner) > 20 and all(v[0][2] < 60 and v[-1][2] > 260 for v in inner), (
        "parts enter on the left and leave on the right"
    )


@pytest.mark.slow
def test_a_hand_hides_and_overlap_hides_but_boxes_stay_whole():
    with_hand, without = (FactoryLine(LineConfig(seed=3, hand_every=e, size=(320, 240))) for e in (4, 0))
    hidden = 0
    for index in range(0, 800, 4):
        (_, a), (_, b) = with_hand.render(index), without.render(index)
        assert not b.hand
        left = dict(zip(a.detections.tracker_id.tolist(), range(len(a.detections))))
        for row, number in enumerate(b.detections.tracker_id.tolist()):
            if number in left:
                assert np.array_equal(a.detections.xyxy[left[number]], b.detections.xyxy[row])
                drop = b.detections.data["visibility"][row] - a.detections.data["visibility"][left[number]]
                assert drop >= 0 and (drop == 0 or a.hand)
                hidden += drop > 0.3
            else:
                assert a.hand  # wholly covered
    assert hidden > 10
    shares = np.concatenate(
        [
            t.detections.data["visibility"]
            for _, t in FactoryLine(LineConfig(seed=3, overlap=0.6, hand_every=0, size=(320, 240))).frames(
                200
            )
        ]
    )
    assert (shares < 0.8).mean() > 0.1


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    index=st.integers(0, 10**6),
    condition=CONDITIONS,
    size=st.sampled_from([(640, 480), (1280, 720), (64, 64), (65, 97), (480, 640)]),
    density=st.floats(0.5, 12),
)
def test_truth_is_always_well_formed(seed, index, condition, size, density):
    frame, truth = FactoryLine(LineConfig(seed=seed, size=size, density=density), condition).render(index)
    d = truth.detections
    assert frame.image.shape == (size[1], size[0], 3) and frame.image.dtype == np.uint8
    assert (d.xyxy == d.xyxy.round()).all() and (d.xyxy >= 0).all() and (d.xyxy <= [*size, *size]).all()
    assert (d.area > 0).all() and ((d.data["visibility"] > 0) & (d.data["visibility"] <= 1)).all()
    assert set(d.class_id.tolist()) <= set(range(len(CLASS_NAMES)))
    assert truth.conditions == condition.describe(None) and set(truth.conditions) == set(CONDITION_NAMES)


def test_frames_are_stamped_without_a_clock():
    config = LineConfig(fps=30, size=(64, 64))
    frame, truth = FactoryLine(config).render(90)
    assert (
        isinstance(frame, Frame)
        and frame.captured_at == config.start + timedelta(seconds=3)
        and frame.pts == truth.t == 3
    )
    assert frame.meta["truth"] is truth


def test_every_class_turns_up_and_weights_are_obeyed():
    plain = LineConfig(seed=2)
    seen = [slot(plain, k).class_id for k in range(500)]
    assert min(np.bincount(seen, minlength=5)) > 60
    rare = LineConfig(seed=2, class_weights=(1, 1, 1, 1, 0))
    assert 4 not in {slot(rare, k).class_id for k in range(500)}


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in CONDITION_NAMES if n not in ("field_of_view", "shift")])
def test_every_severity_is_worse_than_the_one_below(name):
    "Averaged over moments and lines, because flicker and vibration change with every frame."
    apart = np.zeros(6)
    for seed in range(4):
        clean = FactoryLine(LineConfig(seed=seed, size=(240, 180)))
        for severity in range(6):
            line = FactoryLine(clean.config, Conditions(**{name: severity}))
            apart[severity] += sum(
                np.abs(line.render(i)[0].image.astype(int) - clean.render(i)[0].image).mean()
                for i in (7, 50, 93)
            )
    assert apart[0] == 0 and (np.diff(apart) > 0).all(), apart


def test_shift_moves_boxes_and_a_wider_lens_shrinks_them():
    def middle_and_width(**severities):
        d = FactoryLine(LineConfig(seed=3, hand_every=0), Conditions(**severities)).render(141)[1].detections
        inside = (d.xyxy[:, 0] > 60) & (d.xyxy[:, 2] < 580) & (d.xyxy[:, 1] > 40) & (d.xyxy[:, 3] < 440)
        return {
            int(i): ((b[:2] + b[2:]) / 2, b[2] - b[0]) for i, b, ok in zip(d.tracker_id, d.xyxy, inside) if ok
        }

    clean, far, wide = middle_and_width(), [], []
    for severity in range(1, 6):
        moved, small = middle_and_width(shift=severity), middle_and_width(field_of_view=severity)
        far.append(np.mean([np.linalg.norm(moved[i][0] - clean[i][0]) for i in clean.keys() & moved.keys()]))
        wide.append(np.mean([small[i][1] / clean[i][1] for i in clean.keys() & small.keys()]))
    assert (np.diff(far) > 0).all() and abs(far[0] - LADDERS["shift"][1]) < 4
    assert (np.diff(wide) < 0).all() and np.allclose(wide, LADDERS["zoom"][1:], atol=0.03)


def test_severity_zero_is_the_untouched_picture():
    config = LineConfig(seed=6, size=(320, 240))
    assert same(FactoryLine(config).render(33), FactoryLine(config, Conditions()).render(33))


def test_conditions_may_change_with_time_and_by_camera():
    config = LineConfig(cameras=2, seed=6, size=(320, 240))
    line = FactoryLine(config, {1: Changing(lambda t: Conditions(fog=4 if t >= 2 else 0))})
    clean = FactoryLine(config)
    assert same(line.render(80, 0), clean.render(80, 0)) and line.render(80, 0)[1].conditions == {}
    assert same(line.render(49, 1), clean.render(49, 1))
    assert not same(line.render(50, 1), clean.render(50, 1)) and line.render(50, 1)[1].conditions["fog"] == 4


def test_random_mixtures_stay_in_range_and_differ():
    rng = np.random.default_rng(0)
    drawn = [random_conditions(rng, worst=4) for _ in range(200)]
    table = np.array([list(c.describe(None).values()) for c in drawn])
    assert table.max() <= 4 and (table.max(axis=0) > 2).all() and 1.5 < (table > 0).sum(axis=1).mean() < 3


@pytest.mark.parametrize(
    "bad, message",
    [
        (dict(cameras=0), "cameras: 0"),
        (dict(size=(10, 480)), "size: 10×480"),
        (dict(fps=0), "fps: 0"),
        (dict(density=0), "density: 0"),
        (dict(speed=-1), "speed: -1"),
        (dict(overlap=2), "overlap: 2"),
        (dict(class_weights=(1, 2)), "class_weights"),
        (dict(class_weights=(0,) * 5), "not all 0"),
        (dict(start=datetime(2026, 1, 1)), "no time zone"),
        (dict(hand_every=-1), "hand_every: -1"),
    ],
)
def test_wrong_settings_are_named(bad, message):
    with pytest.raises(ConfigError, match="invalid line settings") as error:
        LineConfig(**bad)
    assert any(message in p for p in error.value.problems)


def test_other_bad_input():
    with pytest.raises(ConfigError) as error:
        Conditions(fog=5.1, dirt=-1, noise="3", exposure=float("nan"))
    assert len(error.value.problems) == 4
    with pytest.raises(ConfigError, match="camera 1 does not exist"):
        FactoryLine(LineConfig()).render(0, 1)
    with pytest.raises(ConfigError, match=r"cameras \[2\]"):
        FactoryLine(LineConfig(), {2: Conditions()})
    with pytest.raises(DataError, match="unknown class id -1"):
        draw_part(-1, (0,))


def test_named_random_numbers_are_independent_of_each_other():
    assert seeded(1, "a").random() == seeded(1, "a").random()
    assert (
        len(
            {
                seeded(*key).random()
                for key in [(1, "a"), (1, "b"), (2, "a"), ("a", 1), (1, "a", 1), (-1, "a")]
            }
        )
        == 6
    )


def test_parts_have_the_size_that_is_promised():
    for cls, (low, high) in enumerate(LENGTHS):
        for k in range(12):
            x, y, w, h = cv2.boundingRect((draw_part(cls, (k, "size")).mask > 127).astype(np.uint8))
            assert 0.8 * low <= max(w, h) <= high + 2, (CLASS_NAMES[cls], w, h)
    assert View() == View(1.0, 0.0, 0.0, 0.0)
