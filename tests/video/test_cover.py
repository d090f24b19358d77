"""What leaves memory is covered: late and early, single pictures, failing and slow finders, sinks behind the
gate."""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.config import PrivacyConfig, load_config
from cv_pipeline.core.types import ConfigError, DataError, Detections, Frame, FrameResult
from cv_pipeline.service.assembly import leaves_the_machine, run_config
from cv_pipeline.synthetic.passers import Passers, PassersConfig, draw_face
from cv_pipeline.video.cover import (
    GREY,
    Covered,
    CoveredSource,
    CoverError,
    CoverGate,
    CoverSettings,
    Links,
    Mask,
    PictureCover,
    PictureUse,
    Privacy,
    RegionFinder,
    behind_gate,
    cover,
    cover_for,
    cover_masks,
    decide_cover,
    encoded,
    grown,
    is_live,
    privacy_of_run,
)
from cv_pipeline.video.decoding import decode_video
from cv_pipeline.video.faces import NO_FACES, Faces
from cv_pipeline.video.sinks import CallbackSink, VideoSink
from tests.helpers.recorder import Recorder

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
ON = Privacy(True, "tested")


class Planned:
    "Finds what a table says, frame by frame; a picture's first pixel is its number."

    name = "planned"

    def __init__(self, plan):
        self.plan = plan

    def find(self, images):
        return [self._of(int(image[0, 0, 0])) for image in images]

    def _of(self, number):
        boxes = np.array(self.plan.get(number, []), np.float32).reshape(-1, 4)
        return Faces(boxes, np.ones(len(boxes), np.float32), np.zeros((len(boxes), 5, 2), np.float32))


class Broken:
    name = "broken"

    def find(self, images):
        raise RuntimeError("no device")


class Keeps(Recorder):
    name, pictures = "keeps", PictureUse.KEEPS


def result(number, source="gate", seconds=None, size=(80, 60), boxes=(), meta=None):
    image = np.full((size[1], size[0], 3), 200, np.uint8)
    image[0, 0] = number
    at = NOON + timedelta(seconds=number / 10 if seconds is None else seconds)
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    found = Detections(boxes, np.ones(len(boxes)), np.zeros(len(boxes)))
    return FrameResult(Frame(image, source, number, at, meta=meta or {}), found, ("person",))


def passed(gate, results):
    return [p for r in results for p in gate.take(r)] + gate.drain()


def grey(result, box):
    x1, y1, x2, y2 = box
    return float((result.frame.image[y1:y2, x1:x2] == GREY).all(axis=2).mean())


# --- settings and the decision


@pytest.mark.parametrize(
    "bad, words",
    [
        ({"regions": ("noses",)}, "unknown noses"),
        ({"regions": ("plates",)}, "plate_model"),
        ({"regions": ("text",)}, "text_model"),
        ({"cover": "glass"}, "glass"),
        ({"conf": 1.5}, "conf"),
        ({"hold_s": -1}, "hold_s"),
        ({"masks": (Mask(((0, 0), (1, 1))),)}, "3 points"),
    ],
)
def test_invalid_settings_are_named(bad, words):
    with pytest.raises(ConfigError, match=words):
        CoverSettings(**bad)


@pytest.mark.parametrize(
    "section, live, names, on",
    [
        (PrivacyConfig(), True, ("gear",), True),
        (PrivacyConfig(), False, ("gear",), False),
        (PrivacyConfig(), False, ("Person",), True),
        (PrivacyConfig(always=True), False, ("gear",), True),
        (PrivacyConfig(masks=[{"polygon": [(0, 0), (1, 0), (1, 1)]}]), False, ("gear",), True),
        (PrivacyConfig(off="the hall is empty"), True, ("person",), False),
    ],
)
def test_it_is_on_where_people_may_be_seen_and_off_for_a_reason(section, live, names, on):
    decision = decide_cover(section, live, names)
    assert decision.on is on
    assert decision.why


def test_the_reason_to_be_off_is_in_what_is_reported():
    assert decide_cover(PrivacyConfig(off="the hall is empty"), True).to_dict() == {
        "covered": False,
        "why": "off: the hall is empty",
    }


@pytest.mark.parametrize("text", ["off", "false", "{off: no}", "{off: ''}"])
def test_off_without_a_reason_is_refused(tmp_path, text):
    (tmp_path / "run.yaml").write_text(f"sources: [a.mp4]\nprivacy: {text}\n")
    with pytest.raises(ConfigError):
        load_config(tmp_path / "run.yaml")


def test_a_reason_under_the_key_that_yaml_reads_as_false_is_taken(tmp_path):
    (tmp_path / "run.yaml").write_text("sources: [a.mp4]\nprivacy:\n  off: the hall has no people\n")
    assert load_config(tmp_path / "run.yaml").privacy.off == "the hall has no people"


def test_commands_take_their_reason_from_the_environment(monkeypatch):
    assert cover_for(("person",)).on
    monkeypatch.setenv("CV_PIPELINE_PRIVACY_OFF", "consent of all, form 12")
    assert cover_for(("person",)).to_dict() == {"covered": False, "why": "off: consent of all, form 12"}


@pytest.mark.parametrize("uri, live", [("rtsp://a/b", True), ("0", True), ("a.mp4", False), ("line:", False)])
def test_cameras_and_streams_are_live(uri, live):
    assert is_live(uri) is live


def test_a_later_step_repeats_the_decision_of_the_run(tmp_path):
    (tmp_path / "summary.json").write_text(
        '{"config": {"sources": [{"uri": "a.mp4"}], "privacy": {"off": "the hall is empty"}}}'
    )
    assert privacy_of_run(tmp_path, ("person",)).why == "off: the hall is empty"
    assert privacy_of_run(tmp_path / "another", ("person",)).on


# --- painting


@given(
    st.lists(st.tuples(*[st.floats(-200, 200)] * 2, *[st.floats(0, 150)] * 2), max_size=20),
    st.floats(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_grown_boxes_hold_the_old_ones_inside_the_picture(rows, grow):
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h in rows], np.float32).reshape(-1, 4)
    made = grown(boxes, grow, (120, 90))
    assert (made[:, :2] >= 0).all() and (made[:, 2:] <= (120, 90)).all()
    assert (made[:, 2:] > made[:, :2]).all()
    image = cover(np.zeros((90, 120, 3), np.uint8), made)
    for x1, y1, x2, y2 in np.clip(boxes, 0, [120, 90, 120, 90]).tolist():
        inside = image[int(np.floor(y1)) : int(np.ceil(y2)), int(np.floor(x1)) : int(np.ceil(x2))]
        assert (inside == GREY).all() or min(x2 - x1, y2 - y1) <= 0


@pytest.mark.parametrize("how", ["solid", "blur", "pixelate", "person"])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0, 0, 80, 60), (79, 59, 80, 60), (10, 10, 12, 50)])
def test_every_cover_changes_its_part_and_nothing_else(how, box):
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    made, (x1, y1, x2, y2) = cover(image.copy(), np.array([box]), how), box
    outside = np.ones((60, 80), bool)
    outside[y1:y2, x1:x2] = False
    assert np.array_equal(made[outside], image[outside])
    assert how in ("blur", "pixelate") or (made[y1:y2, x1:x2] == GREY).all()


def test_masks_are_for_their_cameras_in_pixels_or_shares():
    blank = lambda: np.zeros((60, 80, 3), np.uint8)
    shares, pixels = (
        Mask(((0, 0), (1, 0), (1, 0.5), (0, 0.5))),
        Mask(((0, 0), (79, 0), (79, 29), (0, 29)), ("a",)),
    )
    assert (cover_masks(blank(), [shares], "b")[:30] == GREY).all()
    assert (cover_masks(blank(), [pixels], "a")[:30] == GREY).all()
    assert not cover_masks(blank(), [pixels], "b").any()


# --- late and early


def test_what_is_found_late_was_covered_early():
    gate = CoverGate(ON, finder=Planned({n: [(30, 20, 50, 40)] for n in range(8, 20)}))
    out = passed(gate, [result(n) for n in range(20)])
    assert [p.result.frame.frame_id for p in out] == list(range(20))
    assert all(grey(p.result, (30, 20, 50, 40)) == 1 for p in out)


def test_a_gap_is_covered_on_the_way():
    plan = {n: [(4 * n, 20, 4 * n + 16, 40)] for n in (0, 1, 2, 6, 7)}
    out = passed(CoverGate(ON, finder=Planned(plan)), [result(n) for n in range(8)])
    assert all(grey(p.result, (4 * n, 20, 4 * n + 16, 40)) == 1 for n, p in enumerate(out))


def test_what_leaves_stays_covered_for_half_a_second_and_not_for_ever():
    gate = CoverGate(ON, finder=Planned({n: [(30, 20, 50, 40)] for n in range(3)}))
    out = passed(gate, [result(n) for n in range(20)])
    assert grey(out[6].result, (30, 20, 50, 40)) == 1
    assert grey(out[12].result, (30, 20, 50, 40)) == 0


def test_what_was_found_more_than_the_held_time_later_is_not_covered():
    gate = CoverGate(ON, finder=Planned({30: [(30, 20, 50, 40)]}))
    out = passed(gate, [result(n) for n in range(31)])
    assert grey(out[10].result, (30, 20, 50, 40)) == 0
    assert grey(out[22].result, (30, 20, 50, 40)) == 1


def test_cameras_do_not_mix():
    gate = CoverGate(ON, finder=Planned({n: [(30, 20, 50, 40)] for n in range(10)}))
    pairs = [result(n + 100 * side, "ab"[side], n / 10) for n in range(10) for side in (0, 1)]
    out = passed(gate, pairs)
    covered = {
        s: [grey(p.result, (30, 20, 50, 40)) for p in out if p.result.frame.source_id == s] for s in "ab"
    }
    assert covered == {"a": [1.0] * 10, "b": [0.0] * 10}


def test_what_is_held_of_a_removed_camera_comes_out_covered_and_its_sinks_hear_the_end():
    class Ends(Keeps):
        ended = ()

        def source_ended(self, source_id):
            self.ended = (*self.ended, (source_id, len(self.results)))

    gate = CoverGate(ON, finder=Planned({n: [(30, 20, 50, 40)] for n in range(9)}))
    first, second = Ends(), Ends()
    sinks = [gate, Covered(first, gate), Covered(second, gate)]
    for given_ in [result(n, "ab"[n % 2], n / 20) for n in range(8)]:
        for sink in sinks:
            sink.write(given_)
    for sink in sinks:
        sink.source_ended("a")
    for kept in (first, second):
        assert [r.frame.frame_id for r in kept.results if r.frame.source_id == "a"] == [0, 2, 4, 6]
        assert all(grey(r, (30, 20, 50, 40)) == 1 for r in kept.results)
        assert kept.ended == (("a", len(kept.results)),)
    assert list(gate._held) == ["b"]


def test_a_clock_that_is_set_back_loses_no_frame_and_uncovers_none():
    gate = CoverGate(ON, finder=Planned({n: [(30, 20, 50, 40)] for n in range(20)}))
    given_ = [result(n, seconds=n / 10 - (50 if n >= 10 else 0)) for n in range(20)]
    out = passed(gate, given_)
    assert [p.result.frame.frame_id for p in out] == list(range(20))
    assert all(grey(p.result, (30, 20, 50, 40)) == 1 for p in out)


def test_a_count_that_begins_again_loses_no_frame():
    gate = CoverGate(ON, finder=Planned({n: [(30, 20, 50, 40)] for n in range(20)}))
    first = [result(n) for n in range(6)]
    again = [result(n, seconds=1 + n / 10) for n in range(6)]
    out = passed(gate, first + again)
    assert [p.result.frame.frame_id for p in out] == [*range(6), *range(6)]
    assert all(grey(p.result, (30, 20, 50, 40)) == 1 for p in out)


def test_a_camera_that_changes_its_size_is_covered_in_both():
    gate = CoverGate(ON, finder=Planned({n: [(30, 20, 50, 40)] for n in range(20)}))
    out = passed(gate, [result(n, size=(80, 60) if n < 5 else (160, 120)) for n in range(10)])
    assert [p.result.frame.size for p in out] == [(80, 60)] * 5 + [(160, 120)] * 5
    assert all(grey(p.result, (30, 20, 50, 40)) == 1 for p in out)


def test_the_held_frames_are_bounded_whatever_the_clock_says():
    gate = CoverGate(ON, finder=Planned({}))
    out = [p for n in range(200) for p in gate.take(result(n % 250, seconds=0))]
    assert len(out) == 200 - 48
    assert gate.counts["most held"] <= 49


def test_frames_without_anything_to_cover_are_not_copied():
    gate, given_ = CoverGate(ON, finder=Planned({})), [result(n) for n in range(15)]
    assert all(p.result.frame.image is g.frame.image for p, g in zip(passed(gate, given_), given_))


def test_the_given_picture_and_boxes_stay_as_they_are():
    gate = CoverGate(ON, finder=Planned({0: [(30, 20, 50, 40)]}))
    first = result(0)
    before = first.frame.image.copy()
    out = passed(gate, [first])
    assert np.array_equal(first.frame.image, before)
    assert grey(out[0].result, (30, 20, 50, 40)) == 1


def test_still_pictures_are_not_held_and_not_linked():
    gate = CoverGate(ON, finder=Planned({1: [(30, 20, 50, 40)]}))
    out = [gate.take(result(n, meta={"path": f"{n}.jpg"})) for n in range(3)]
    assert [len(ps) for ps in out] == [1, 1, 1]
    assert [grey(ps[0].result, (30, 20, 50, 40)) for ps in out] == [0, 1, 0]


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
@pytest.mark.slow
def test_every_frame_comes_out_once_in_order_and_every_finding_is_covered(seed):
    rng = np.random.default_rng(seed)
    plan = {
        n: [(x, y, x + w, y + w) for x, y, w in rng.uniform((0, 0, 4), (60, 40, 20), (rng.integers(0, 4), 3))]
        for n in range(40)
    }
    times = np.cumsum(rng.choice([0.07, 0.1, 0.4, 3.0], 40))
    out = passed(
        CoverGate(ON, finder=Planned(plan)), [result(n, seconds=float(t)) for n, t in enumerate(times)]
    )
    assert [p.result.frame.frame_id for p in out] == list(range(40))
    for n, p in enumerate(out):
        for box in np.array(plan[n]).reshape(-1, 4):
            x1, y1, x2, y2 = np.clip(box, 0, [80, 60, 80, 60]).round().astype(int)
            assert x2 <= x1 or y2 <= y1 or grey(p.result, (x1, y1, x2, y2)) == 1


@pytest.mark.parametrize("fps, searched", [(10, 50), (25, 25), (30, 25)])
def test_fast_cameras_are_not_searched_in_every_frame_and_covered_in_all(fps, searched):
    class Counted(Planned):
        calls = 0

        def find(self, images):
            self.calls += 1
            return super().find(images)

    finder = Counted({n: [(n, 20, n + 16, 40)] for n in range(50)})
    out = passed(CoverGate(ON, finder=finder), [result(n, seconds=n / fps) for n in range(50)])
    assert finder.calls == searched
    assert min(grey(p.result, (n, 20, n + 16, 40)) for n, p in enumerate(out)) > 0.9


def test_without_holding_every_frame_is_searched():
    now = replace(ON, settings=CoverSettings(hold_s=0))
    gate = CoverGate(now, finder=Planned({n: [(30, 20, 50, 40)] for n in range(9)}))
    out = passed(gate, [result(n, seconds=n / 50) for n in range(9)])
    assert all(grey(p.result, (30, 20, 50, 40)) == 1 for p in out)


def test_frames_of_one_moment_are_covered_alike():
    gate = CoverGate(ON, finder=Planned({n: [(30, 20, 50, 40)] for n in range(9)}))
    out = passed(gate, [result(n, seconds=0) for n in range(9)])
    assert all(grey(p.result, (30, 20, 50, 40)) == 1 for p in out)


def test_kinds_are_not_linked_to_each_other():
    links, frame = Links(), result(0).frame
    plate, face = np.array([[10, 10, 30, 30]], np.float32), np.array([[12, 10, 32, 30]], np.float32)
    links.add(frame, plate, np.array([4]))
    later = replace(frame, frame_id=1, captured_at=NOON + timedelta(seconds=0.4))
    links.add(later, face, np.array([0]))
    assert len(links.at((NOON + timedelta(seconds=0.2)).timestamp())) == 2


# --- regions


def test_heads_and_people_come_from_the_boxes_of_the_run():
    person = [(20, 5, 50, 58)]
    finder = Planned({})
    heads = passed(CoverGate(ON, ("person",), finder=finder), [result(1, boxes=person)])
    whole = passed(
        CoverGate(replace(ON, settings=CoverSettings(cover="person")), ("person",), finder=finder),
        [result(1, boxes=person)],
    )
    assert grey(heads[0].result, (28, 6, 42, 16)) == 1
    assert grey(heads[0].result, (20, 40, 50, 58)) == 0
    assert grey(whole[0].result, person[0]) == 1


def test_vehicles_are_covered_where_they_are_wanted():
    settings_ = CoverSettings(regions=("vehicles",))
    r = replace(result(1, boxes=[(20, 5, 50, 58)]), names=("car",))
    out = passed(CoverGate(replace(ON, settings=settings_), ("car",)), [r])
    assert grey(out[0].result, (20, 5, 50, 58)) == 1


@pytest.mark.parametrize(
    "settings_", [CoverSettings(regions=("persons",)), CoverSettings(regions=("vehicles",))]
)
def test_a_model_without_such_classes_is_refused_before_the_first_frame(settings_):
    with pytest.raises(ConfigError, match="the model finds no"):
        RegionFinder(settings_, ("gear",))


def test_plates_come_from_a_model_that_is_named():
    settings_ = CoverSettings(regions=("plates",), plate_model="factory_line")
    assert "factory_line" in RegionFinder(settings_).name


def test_masks_alone_need_no_finder():
    settings_ = CoverSettings(regions=("masks",), masks=(Mask(((0, 0), (1, 0), (1, 0.5), (0, 0.5))),))
    out = passed(CoverGate(replace(ON, settings=settings_)), [result(1)])
    assert grey(out[0].result, (0, 0, 80, 29)) == 1
    assert grey(out[0].result, (0, 32, 80, 60)) == 0


# --- fails closed


def test_a_finder_that_fails_shows_no_picture_and_the_results_continue():
    gate, keeps, blank, table = CoverGate(ON, finder=Broken()), Keeps(), Keeps(), Keeps()
    sinks = [gate, Covered(keeps, gate), Covered(blank, gate, blank=True), table]
    for r in (result(n) for n in range(15)):
        for sink in sinks:
            sink.write(r)
    for sink in sinks:
        sink.close()
    assert len(keeps.results) == 0
    assert len(table.results) == 15
    assert len(blank.results) == 15
    assert max(int(r.frame.image.max()) for r in blank.results) == 0
    assert gate.counts["failed"] == 15
    assert "no device" in gate.summary()["problem"]


def test_a_finder_that_fails_once_hides_one_frame():
    class Once(Planned):
        def _of(self, number):
            if number == 5:
                raise MemoryError
            return super()._of(number)

    plan = {n: [(30, 20, 50, 40)] for n in range(12)}
    out = passed(CoverGate(ON, finder=Once(plan)), [result(n) for n in range(12)])
    assert [p.shown for p in out] == [n != 5 for n in range(12)]


def test_a_finder_slower_than_the_camera_costs_pictures_and_is_counted():
    now = [0.0]

    class Slow(Planned):
        def find(self, images):
            now[0] += 0.5
            return super().find(images)

    gate = CoverGate(ON, live=True, finder=Slow({}), clock=lambda: now[0])
    shown = []
    for n in range(100):
        now[0] += 0.01
        shown += [p.shown for p in gate.take(result(n))]
    shown += [p.shown for p in gate.drain()]
    assert len(shown) == 100
    assert gate.counts["too slow"] == shown.count(False) > 10
    assert gate.seconds <= 0.75 * now[0] + 2.5


def test_files_wait_for_a_slow_finder():
    now = [0.0]

    class Slow(Planned):
        def find(self, images):
            now[0] += 5
            return super().find(images)

    gate = CoverGate(ON, finder=Slow({}), clock=lambda: now[0])
    assert all(p.shown for p in passed(gate, [result(n) for n in range(20)]))


def test_metrics_tell_what_was_hidden():
    gate = CoverGate(ON, finder=Broken())
    passed(gate, [result(n) for n in range(3)])
    samples = {(s.name, *s.labels.values()): s.value for f in gate.metric_families() for s in f.samples}
    assert samples["cv_pipeline_cover_hidden_total", "failed"] == 3
    assert samples["cv_pipeline_cover_hidden_total", "too slow"] == 0


# --- sinks behind the gate


def test_only_sinks_that_keep_pictures_are_behind_the_gate():
    function = CallbackSink(lambda r: None)
    shows = CallbackSink(lambda r: None, pictures=PictureUse.BLANK)
    gate, first, second, third = behind_gate([Keeps(), function, shows], ON)
    assert isinstance(gate, CoverGate)
    assert isinstance(first, Covered) and not first.blank
    assert second is function
    assert isinstance(third, Covered) and third.blank


def test_without_a_sink_that_keeps_pictures_nothing_is_looked_for():
    function = CallbackSink(lambda r: None)
    assert behind_gate([function], ON) == [function]


def test_where_it_is_off_nothing_changes():
    keeps = Keeps()
    assert behind_gate([keeps], Privacy(False, "not needed")) == [keeps]


def test_a_sink_that_cannot_take_the_last_frames_is_closed_all_the_same():
    class Full(Keeps):
        def write(self, result):
            raise OSError("disk full")

    gate, full = CoverGate(ON, finder=Planned({})), Full()
    covered = Covered(full, gate)
    covered.write(result(0))
    with pytest.raises(OSError):
        covered.close()
    assert full.closed == 1


def test_a_covered_sink_answers_like_the_one_inside(tmp_path):
    film = Covered(VideoSink(tmp_path), CoverGate(ON, finder=Planned({})))
    film.write(result(0))
    film.close()
    assert film.name == "video"
    assert film.summary() == {"files": ["gate.mp4"]}
    assert film.files == [tmp_path / "gate.mp4"]
    assert not hasattr(film, "nothing_of_that_name")


# --- single pictures


@pytest.fixture(scope="module")
def portrait():
    image, head = np.full((200, 200, 3), 140, np.uint8), draw_face(3, 80)
    h, w = head.alpha.shape
    image[20 : 20 + h, 40 : 40 + w] = head.image
    return image, tuple(int(v) for v in np.array(head.box) + (40, 20, 40, 20))


def test_a_single_picture_is_covered_and_the_original_stays(portrait):
    image, (x1, y1, x2, y2) = portrait
    before = image.copy()
    made = PictureCover(ON)(image)
    assert (made[y1:y2, x1:x2] == GREY).all(axis=2).mean() > 0.95
    assert np.array_equal(image, before)


def test_a_grey_picture_and_an_upside_down_one_are_covered(portrait):
    image, (x1, y1, x2, y2) = portrait
    flat = PictureCover(ON)(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
    assert (flat[y1:y2, x1:x2] == GREY).mean() > 0.9
    turned = PictureCover(ON)(image[::-1, ::-1].copy())[::-1, ::-1]
    assert (turned[y1:y2, x1:x2] == GREY).all(axis=2).mean() > 0.9


def test_a_picture_that_cannot_be_checked_is_refused(portrait):
    with pytest.raises(CoverError, match="no device"):
        PictureCover(ON, finder=Broken())(portrait[0])


def test_a_file_without_faces_is_copied_byte_for_byte(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(np.full((40, 40, 3), 90, np.uint8), ".png"))
    assert PictureCover(ON, finder=Planned({})).file(tmp_path / "a.png", tmp_path / "b.png") is False
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_file_with_a_face_is_written_covered_in_its_own_format(tmp_path, portrait, suffix):
    image, (x1, y1, x2, y2) = portrait
    (tmp_path / f"a{suffix}").write_bytes(encoded(image, suffix))
    assert PictureCover(ON).file(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}") is True
    made = cv2.imread(str(tmp_path / f"b{suffix}"))
    assert np.abs(made[y1:y2, x1:x2].astype(int) - GREY).mean() < 6


def test_a_format_that_cannot_be_written_is_an_error():
    with pytest.raises(DataError, match=".xyz"):
        encoded(np.zeros((4, 4, 3), np.uint8), ".xyz")


# --- a model elsewhere


def test_a_source_for_a_model_elsewhere_gives_covered_frames_only():
    film = Passers(PassersConfig(frames=4, faces=4, plates=0, seed=3))
    frames = list(CoveredSource(film, ON))
    assert [f.frame_id for f in frames] == [0, 1, 2, 3]
    dark = list(CoveredSource(film, ON, Broken()))
    assert max(int(f.image.max()) for f in dark) == 0


def test_nothing_is_found_in_an_empty_picture():
    assert len(NO_FACES.xyxy) == 0


# --- whole runs


@pytest.mark.slow
def test_kill_9_leaves_a_film_without_an_uncovered_frame(tmp_path):
    script = """
import sys
from cv_pipeline.core.types import Detections, FrameResult
from cv_pipeline.synthetic.passers import Passers, PassersConfig
from cv_pipeline.video.cover import Covered, CoverGate, Privacy
from cv_pipeline.video.sinks import VideoSink
from tests.helpers.recorder import Recorder
film = Passers(PassersConfig(frames=2000, faces=6, plates=0, size=(320, 180), widths=(24, 60)))
draw = lambda r, trails: r.frame.image
sink = Covered(VideoSink(sys.argv[1], draw=draw, threads=1), CoverGate(Privacy(True, "tested")))
for frame in film:
    sink.write(FrameResult(frame, Detections.empty()))
    print(frame.frame_id, flush=True)
"""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writer = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True, env=env
    )
    announced = next((int(text) for text in writer.stdout if int(text) >= 90), -1)
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert announced >= 90
    frames = [p.image for p in decode_video(tmp_path / "passers.mp4", threads=1)]
    assert 20 <= len(frames) <= announced
    film = Passers(PassersConfig(frames=2000, faces=6, plates=0, size=(320, 180), widths=(24, 60)))
    leaks = seen = 0
    for n, image in enumerate(frames):
        truth = film.frame(n)[1]
        for x1, y1, x2, y2 in truth.xyxy[truth.visible > 0.6].round().astype(int):
            seen += 1
            leaks += (np.abs(image[y1:y2, x1:x2].astype(int) - GREY).max(axis=2) < 25).mean() < 0.7
    assert seen > 10
    assert leaks <= 0.02 * seen


@pytest.mark.parametrize(
    "section, covered, why", [({"off": "the line has no people"}, False, "off: "), (True, True, "requested")]
)
def test_the_summary_of_a_run_holds_the_decision(tmp_path, section, covered, why):
    settings_ = {"sources": ["line:frames=6"], "delivery.out": str(tmp_path), "delivery.video": True}
    summary = run_config(load_config(None, {**settings_, "privacy": section}))
    assert summary["privacy"]["covered"] is covered
    assert summary["privacy"]["why"].startswith(why)
    assert ("privacy" in summary.get("sinks", {})) is covered


def test_a_run_over_files_without_people_has_no_gate(tmp_path):
    settings_ = {"sources": ["line:frames=6"], "delivery.out": str(tmp_path), "delivery.video": True}
    summary = run_config(load_config(None, settings_))
    assert summary["privacy"] == {
        "covered": False,
        "why": "not needed: files, and no class that is a person",
    }


@pytest.mark.parametrize(
    "model, away",
    [
        ("triton://gpu.example:8001/line", True),
        ("triton://10.0.0.7/line", True),
        ("triton://localhost:8001/line", False),
        ("triton://127.0.0.1/line", False),
        ("triton://[::1]:8001/line", False),
        ("factory_line", False),
    ],
)
def test_a_model_on_another_host_gets_the_pictures(model, away):
    assert leaves_the_machine(model) is away
