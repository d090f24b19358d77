"""Two streams a camera: fits, lags, pictures of the main stream at their place, never past the cover."""

import json
import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import av
import cv2
import numpy as np
import pytest

from cv_pipeline.core.config import RunConfig
from cv_pipeline.core.types import (
    Clocks,
    ConfigError,
    Detections,
    Frame,
    FrameResult,
    SourceError,
    SourceStatus,
)
from cv_pipeline.video.cover import CoverGate, CoverSettings, Mask, Privacy
from cv_pipeline.video.decoding import decode_video, open_container, packets, unheard, video_stream
from cv_pipeline.video.sources import SourceSettings, open_source
from cv_pipeline.video.substream import (
    LagMeter,
    MainPictures,
    MainRing,
    MainSettings,
    MainStream,
    MainTap,
    TwoStreams,
    best_lag,
    fit_of,
    measure_lag,
    picture_near,
    shared_view,
    stamp_of,
)
from tests.helpers.waiting import until

FPS, NOON = 25, datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
OPEN, CLOSED = Privacy(False, "boxes are no people"), Privacy(True, "requested")
NONE = Detections.empty()
RED = (40, 60, 220)


def place(seconds):
    "Left edge of the box as a share of the width: never the same way twice."
    return 0.1 + 0.5 * (0.5 - 0.5 * math.cos(1.3 * seconds)) + 0.06 * math.sin(4.1 * seconds)


def film(path, size, seconds=8, shift=0.0, view=(0.0, 0.0, 1.0, 1.0), **options):
    "A grey wall and a red box; `shift`: everything so many seconds later; `view`: the part that is shown."
    (w, h), (x1, y1, x2, y2), rng = size, view, np.random.default_rng(0)
    wide, high = round(w / (x2 - x1)), round(h / (y2 - y1))
    part = np.s_[round(y1 * high) : round(y1 * high) + h, round(x1 * wide) : round(x1 * wide) + w]
    wall = cv2.resize(rng.integers(60, 160, (9, 16), np.uint8), (wide, high), interpolation=cv2.INTER_CUBIC)
    wall = cv2.cvtColor(wall, cv2.COLOR_GRAY2BGR)
    given = {"g": "50", "preset": "ultrafast", "threads": "1", **options}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=given)
        stream.width, stream.height, stream.pix_fmt = w, h, "yuv420p"
        for i in range(round(seconds * FPS)):
            image, left = wall.copy(), place(i / FPS - shift)
            corners = (left * wide, 0.3 * high), ((left + 0.12) * wide, 0.85 * high)
            cv2.rectangle(image, *([round(v) for v in corner] for corner in corners), RED, -1)
            image = np.ascontiguousarray(image[part])
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    return {
        "small": film(folder / "small.mp4", (320, 180)),
        "main": film(folder / "main.mp4", (960, 540)),
        "later": film(folder / "later.mp4", (960, 540), shift=0.4),
        "sooner": film(folder / "sooner.mp4", (960, 540), shift=-0.4),
        "both": film(folder / "both.mp4", (960, 540), bf="2", preset="veryfast"),
        "short": film(folder / "short.mp4", (960, 540), seconds=3),
        "squeezed": film(folder / "squeezed.mp4", (320, 240)),
        "middle": film(folder / "middle.mp4", (240, 180), view=(0.125, 0.0, 0.875, 1.0)),
    }


def two(films, main="main", small="small", fit="same", **settings):
    "A source of two films."
    read = MainStream("gate", MainSettings(fit, **settings)).read_file(films[main])
    return TwoStreams(open_source(films[small], "gate", SourceSettings(start=NOON, threads=1)), read)


def red(image):
    "(left, right) of what is red, as shares of the width."
    columns = np.flatnonzero((image[..., 2].astype(int) - image[..., 1] > 90).mean(0) > 0.2)
    return columns[0] / image.shape[1], (columns[-1] + 1) / image.shape[1]


def found_in(frame):
    "The red box of a small frame, as a detector would give it."
    (w, h), (x1, x2) = frame.size, red(frame.image)
    return Detections(np.array([[x1 * w, 0.3 * h, x2 * w, 0.85 * h]]))


# --- fits


@pytest.mark.parametrize("how", ["same", "stretch", "crop", "bars"])
def test_the_shared_view_of_equal_shapes_is_everything(how):
    assert shared_view((640, 360), (1920, 1080), how) == ((0, 0, 1, 1), (0, 0, 1, 1))


@pytest.mark.parametrize("small", [(640, 480), (704, 576), (352, 288)])
def test_another_shape_is_refused_with_the_settings_that_allow_it(small):
    with pytest.raises(ConfigError, match="stretch.*crop.*bars"):
        fit_of(small, (1920, 1080))


@pytest.mark.parametrize("small", [(640, 352), (640, 368), (480, 272)])
def test_rounding_to_whole_blocks_is_no_other_shape(small):
    corner = fit_of(small, (1920, 1080)).boxes(np.array([[0, 0, *small]]))
    assert corner.tolist() == [[0, 0, 1920, 1080]]


def test_a_crop_is_the_middle_and_bars_are_around_it():
    assert fit_of((480, 360), (1920, 1080), "crop").boxes([[0, 0, 480, 360]]).tolist() == [
        [240, 0, 1680, 1080]
    ]
    inner = fit_of((640, 480), (1920, 1080), "bars").boxes([[0, 60, 640, 420]])
    assert inner.tolist() == [[0, 0, 1920, 1080]]


def test_key_points_move_along_and_masks_are_left_out():
    points = np.array([[[10, 20, 0.9]]], np.float32)
    found = Detections([[0, 0, 20, 40]], data={"keypoints": points, "mask": np.array([{}], object)})
    moved = fit_of((320, 180), (960, 540)).detections(found)
    assert moved.data["keypoints"].tolist() == [[[30, 60, pytest.approx(0.9)]]]
    assert "mask" not in moved.data


def test_the_small_stream_must_be_the_small_one():
    with pytest.raises(ConfigError, match="`uri` is the large stream"):
        fit_of((1920, 1080), (640, 360))


# --- pictures


@pytest.mark.parametrize("name", ["main", "both"])
def test_a_picture_is_the_one_that_a_decoder_of_everything_shows(films, name):
    whole = list(decode_video(films[name], threads=1))
    main = MainStream("gate").read_file(films[name])
    for number in (0, 1, 49, 50, 51, 120, 199):
        picture = main.ring.picture(whole[number].pts)
        assert np.array_equal(picture.image, whole[number].image), number


def test_the_nearest_picture_says_how_far_it_is(films):
    picture = MainStream("gate").read_file(films["main"]).ring.picture(2.013)
    assert picture.at == pytest.approx(2.0)
    assert picture.apart_s == pytest.approx(-0.013)


def test_no_more_is_decoded_than_up_to_the_picture(films):
    main = MainStream("gate").read_file(films["main"])
    main.ring.picture(2.4)
    assert 11 <= main.ring._reader.decoded <= 12  # the key frame at 2 s, ten more, and what tells it is over


def test_all_pictures_together_cost_no_more_than_decoding_everything(films):
    main, whole = MainStream("gate").read_file(films["both"]), list(decode_video(films["both"], threads=1))
    first, readers = main.ring.picture(0.0), set()
    for picture in whole[1:]:
        assert np.array_equal(main.ring.picture(picture.pts).image, picture.image), picture.number
        readers.add(main.ring._reader)
    assert np.array_equal(first.image, whole[0].image)
    assert sum(reader.decoded for reader in readers) <= len(whole) + 4 * 8  # frames ahead, of each group


@pytest.mark.parametrize("times", [(5.0, 1.0, 5.0), (1.0, 1.0, 1.04), (0.0, 3.96, 4.0), (7.96, 0.0)])
def test_pictures_may_be_asked_for_in_any_order(films, times):
    main, whole = MainStream("gate").read_file(films["both"]), list(decode_video(films["both"], threads=1))
    for at in times:
        assert np.array_equal(main.ring.picture(at).image, whole[round(at * FPS)].image), at


def test_a_decoder_that_rests_is_given_back(films):
    source = two(films)
    frames = list(source)
    source.main.picture(frames[0])
    source.main.see(frames[100])
    assert source.main.ring._reader is not None
    source.main.see(replace(frames[199], pts=12.0))
    assert source.main.ring._reader is None


def test_what_left_the_ring_and_what_never_came_are_no_pictures(films):
    main = MainStream("gate", MainSettings(keep_s=2.0)).read_file(films["main"])
    assert main.ring.picture(7.0) is not None
    assert main.ring.picture(1.0) is None
    assert main.ring.picture(9.0) is None


def test_a_ring_is_bounded_in_bytes(films):
    main = MainStream("gate", MainSettings(ring_mb=0.05)).read_file(films["main"])
    main.ring.read_to(8.0)
    assert main.ring.bytes <= 50_000
    assert main.ring.cut_short > 0


def test_a_broken_packet_costs_its_picture_not_the_run(films):
    main = MainStream("gate").read_file(films["main"])
    kept = main.ring.cut(2.0, 3.9)[1]
    codec = main.ring.codecs[main.ring.connection]
    torn = av.Packet(b"\x00\x00\x00\x09no packet at all")
    torn.pts = kept[0].packet.pts
    assert picture_near(codec, [kept[0]._replace(packet=torn)], 2.0) is None
    assert picture_near(codec, kept, 2.0) is not None


def test_a_picture_can_be_decoded_when_the_container_is_closed(films):
    main = MainStream("gate").read_file(films["main"])
    main.ring.read_to(8.0)
    main._file._container.close()
    assert main.ring.picture(4.0).at == pytest.approx(4.0)


# --- lags


@pytest.mark.parametrize("name, ms", [("main", 0), ("later", 400), ("sooner", -400)])
def test_a_planted_lag_is_found_within_a_frame(films, name, ms):
    source = two(films, name)
    frames = list(source)
    told = source.status().main
    assert abs(told["offset_ms"] - ms) <= 40
    assert told["offset_by"] == "pictures"
    assert len(frames) == 200


@pytest.mark.parametrize("small, fit", [("squeezed", "stretch"), ("middle", "crop")])
def test_a_lag_is_found_through_another_shape(films, small, fit):
    source = two(films, "later", small, fit)
    list(source)
    assert abs(source.status().main["offset_ms"] - 400) <= 40


def test_the_object_is_at_its_place_in_the_main_picture(films):
    source = two(films, "later")
    enlarge, apart = MainPictures(lambda: [source], OPEN, ("box",)), []
    for frame in source:
        if source.main.meter.sure and frame.frame_id % 10 == 0:
            large = enlarge(FrameResult(frame, found_in(frame), ("box",)))
            x1, _, x2, _ = large.detections.xyxy[0] / large.frame.size[0]
            apart += [abs(x1 - red(large.frame.image)[0]), abs(x2 - red(large.frame.image)[1])]
    assert len(apart) > 10
    assert max(apart) < 0.012  # three pixels of the small picture


def test_without_the_lag_it_would_be_beside_it(films):
    source = two(films, "later")
    frames = list(source)
    source.main.ring.lag_s = 0.0
    beside = [red(source.main.picture(f).image)[0] - red(f.image)[0] for f in frames[100:180:10]]
    assert max(map(abs, beside)) > 0.1


def test_a_view_in_which_nothing_moves_gives_no_lag():
    wall = [(k / 5, stamp_of(np.full((90, 160), 80, np.uint8), (0, 0, 1, 1))) for k in range(12)]
    assert best_lag(wall, wall) is None


def test_a_movement_that_repeats_gives_no_lag():
    def stamp(t):
        grey = np.full((90, 160), 80, np.uint8)
        left = int(60 + 40 * math.sin(2 * math.pi * t / 0.8))
        grey[20:80, left : left + 20] = 220
        return stamp_of(grey, (0, 0, 1, 1))

    small = [(2 + k / 5, stamp(2 + k / 5)) for k in range(12)]
    main = [(k / 25, stamp(k / 25)) for k in range(160)]
    assert best_lag(small, main) is None


def test_another_connection_makes_the_lag_unsure(films):
    source = two(films, "later")
    list(source)
    meter = source.main.meter
    assert meter.sure
    meter.begin("another")
    assert not meter.sure
    assert source.status().main["offset_by"] == "pictures of an earlier connection"


def test_a_lag_that_cannot_be_measured_is_tried_again_later_and_later():
    meter = LagMeter(MainRing(10.0))
    dues = []
    for _ in range(4):
        meter._stamps.extend([(0.0, np.zeros(1296, np.float32))] * 12)
        taken = meter.take()
        assert measure_lag(meter, taken, (320, 180)) is None
        dues.append(meter._due)
    assert dues == [2.0, 4.0, 8.0, 16.0]


def live(films, name, seconds=8.0, clock_s=0.0):
    "Two streams that come packet by packet, by a clock of their own; `clock_s`: the main one's delay."
    start, main = NOON.timestamp(), MainStream("gate", live=True)
    now = [start]
    clocks = Clocks(lambda: now[0], lambda: datetime.fromtimestamp(now[0], timezone.utc))
    frames = list(open_source(films["small"], "gate", SourceSettings(start=NOON, threads=1)))
    with open_container(films[name]) as container:
        stream = video_stream(container, films[name])
        decoder = MainTap(main.ring, clocks)(stream, stream.codec_context, unheard, unheard, True)
        for packet in packets(container, stream, unheard):
            if packet.size and (seconds_in := float(packet.pts * packet.time_base)) <= seconds:
                now[0] = start + seconds_in + clock_s
                for decoded in decoder.feed(packet):
                    main.size = decoded.frame.width, decoded.frame.height
                main.see(frames[round(seconds_in * FPS)])
                yield main, frames[round(seconds_in * FPS)]


@pytest.mark.parametrize(
    "name, clock_s, ms", [("later", 0.0, 400), ("main", 0.3, 300), ("sooner", 0.2, -200)]
)
def test_the_lag_of_a_camera_is_measured_while_it_runs(films, name, clock_s, ms):
    seen = []
    for main, frame in live(films, name, clock_s=clock_s):
        seen.append(frame)
        if main.meter._due > 0 and not main._waiting:  # the measurement runs in a thread of its own
            until(lambda m=main: m.meter.measured or m.meter.failures, 60)
    assert main.meter.measured == 1
    assert abs(main.summary()["offset_ms"] - ms) <= 40
    picture = main.picture(seen[-25])  # a second ago
    assert abs(red(picture.image)[0] - red(seen[-25].image)[0]) < 0.02


def test_a_picture_that_has_not_come_yet_is_waited_for_and_not_for_ever(films):
    main, last = list(live(films, "later", seconds=6.0))[-1]
    main.ring.lag_s = 0.4
    main._source = source_that_is("live")
    source = TwoStreams(open_source(films["small"], "gate"), main)
    pictures, result = MainPictures(lambda: [source], OPEN), FrameResult(last, NONE)
    now = last.captured_at.timestamp()
    early = FrameResult(replace(last, captured_at=last.captured_at - timedelta(seconds=0.5)), NONE)
    assert not pictures.ready(result, now)
    assert pictures.ready(early, now)
    assert pictures.ready(result, now + 2.1)
    main._source = source_that_is("lost")
    assert pictures.ready(result, now)


def source_that_is(state):
    "A source in this state."

    class Told:
        source_id, live = "gate main", True

        def __iter__(self):
            return iter(())

        def close(self):
            pass

        def status(self):
            return SourceStatus(connection=state)

    return Told()


def test_packets_that_waited_while_a_camera_was_opened_do_not_shift_its_clock(films):
    main, now = MainStream("gate", live=True), [NOON.timestamp()]
    clocks = Clocks(lambda: now[0], lambda: datetime.fromtimestamp(now[0], timezone.utc))
    with open_container(films["main"]) as container:
        stream = video_stream(container, films["main"])
        decoder = MainTap(main.ring, clocks)(stream, stream.codec_context, unheard, unheard, True)
        for number, packet in enumerate(p for p in packets(container, stream, unheard) if p.size):
            now[0] = NOON.timestamp() + max(number, 30) / FPS  # thirty come at once
            list(decoder.feed(packet))
    last = main.ring.from_key(now[0], main.ring.connection)[-1]
    assert last.at == pytest.approx(now[0], abs=0.05)


def test_a_connection_decodes_two_frames(films):
    main = [m for m, _ in live(films, "main")][-1]
    assert main.size == (960, 540)
    assert main.ring.connection == 2  # none, and this one


# --- what is kept


def result_of(frame, covered=True):
    meta = {"covered": np.zeros((0, 4), np.int32)} if covered else {}
    return FrameResult(replace(frame, meta=meta), found_in(frame), ("box",))


class Finder:
    "Finds nothing, or what it is told."

    name = "test"

    def __init__(self, boxes=()):
        self.boxes, self.sizes = boxes, []

    def find(self, images):
        self.sizes += [(i.shape[1], i.shape[0]) for i in images]
        return [Detections(np.array(self.boxes, np.float32).reshape(-1, 4)) for _ in images]


class Fails(Finder):
    def find(self, images):
        raise RuntimeError("no memory")


def seen(films, main="later", upto=150):
    source, frames = two(films, main), []
    frames = list(source)
    return source, frames[upto]


def test_with_privacy_a_result_that_did_not_pass_the_gate_stays_as_it_is(films):
    source, frame = seen(films)
    result = result_of(frame, covered=False)
    assert MainPictures(lambda: [source], CLOSED, ("box",), Finder())(result) is result
    assert source.main.counts == {"not covered": 1}


def test_with_privacy_nothing_is_taken_before_the_lag_is_measured(films):
    source, frame = seen(films)
    source.main.meter.sure = False
    result = result_of(frame)
    assert MainPictures(lambda: [source], CLOSED, ("box",), Finder())(result) is result
    assert source.main.counts == {"offset not measured": 1}


def test_a_main_picture_that_cannot_be_checked_is_not_kept(films):
    source, frame = seen(films)
    result = result_of(frame)
    assert MainPictures(lambda: [source], CLOSED, ("box",), Fails())(result) is result
    assert source.main.counts == {"not checked": 1}


def test_what_the_gate_covered_is_covered_in_the_main_picture(films):
    source, frame = seen(films)
    result = result_of(frame)
    result.frame.meta["covered"] = found_in(frame).xyxy.astype(np.int32)
    large = MainPictures(lambda: [source], CLOSED, ("box",), Finder())(result)
    assert large.frame.size == (960, 540)
    assert not (large.frame.image[..., 2].astype(int) - large.frame.image[..., 1] > 60).any()


def test_the_main_picture_is_searched_itself(films):
    source, frame = seen(films)
    finder = Finder([[100, 100, 200, 200]])
    large = MainPictures(lambda: [source], CLOSED, ("box",), finder)(result_of(frame))
    assert finder.sizes == [(960, 540)]
    assert np.ptp(large.frame.image[105:195, 105:195]) == 0


def test_masks_of_the_small_picture_cover_the_same_part(films):
    source, frame = seen(films)
    pixels = Mask(((0, 0), (160, 0), (160, 180), (0, 180)))
    shares = Mask(((0, 0), (0.5, 0), (0.5, 1), (0, 1)))
    for mask in (pixels, shares):
        privacy = Privacy(True, "masks are given", CoverSettings(masks=(mask,)))
        image = MainPictures(lambda: [source], privacy, ("box",), Finder())(result_of(frame)).frame.image
        assert np.ptp(image[:, :478]) == 0
        assert np.ptp(image[:, 490:]) > 0


def test_the_gate_says_what_it_covered():
    at = Frame(np.full((120, 160, 3), 200, np.uint8), "gate", 0, NOON)
    gate = CoverGate(CLOSED, ("box",), finder=Finder([[10, 10, 40, 40]]))
    gate.take(FrameResult(at, NONE, ("box",)))
    (passed,) = gate.drain()
    boxes = passed.result.frame.meta["covered"]
    assert (boxes[:, :2] < 10).all() and (boxes[:, 2:] > 40).all() and len(boxes)


def test_a_camera_with_one_stream_and_an_enlarged_result_stay_as_they_are(films):
    source, frame = seen(films)
    enlarge = MainPictures(lambda: [source], OPEN)
    other = FrameResult(replace(frame, source_id="other"), NONE)
    assert enlarge(other) is other
    large = enlarge(FrameResult(frame, NONE))
    assert enlarge(large) is large


# --- losses and bad input


def test_a_main_film_that_ends_sooner_gives_small_pictures_and_says_so(films):
    source = two(films, "short")
    enlarge, sizes = MainPictures(lambda: [source], OPEN), []
    for frame in source:
        if frame.frame_id % 25 == 12:
            sizes.append(enlarge(FrameResult(frame, NONE)).frame.size[0])
    assert sizes == [960] * 3 + [320] * 5
    told = source.status().main
    assert told["from_small"] == {"main film ended": 5}
    assert told["state"] == "ended"


def test_a_main_stream_without_key_frames_is_named(films):
    main = MainStream("gate").read_file(films["main"])
    main.ring.begin(main._file._stream)
    for packet in main._file._packets:
        if packet.size and not packet.is_keyframe:
            main.ring.add(packet, float(packet.pts * packet.time_base))
    main._file.ended_at = None
    source = open_source(films["small"], "gate")
    frame = next(iter(source))
    assert main.picture(frame) is None
    assert main.counts == {"no key frame": 1}
    assert "no key frame in 196 packets" in main.summary()["problem"]


def test_a_frame_without_a_time_has_no_main_picture(films):
    source, frame = seen(films)
    assert source.main.picture(replace(frame, pts=None)) is None
    assert source.main.counts == {"no time": 1}


def test_a_missing_main_film_is_an_error_at_once(tmp_path):
    with pytest.raises(SourceError, match="file not found"):
        MainStream("gate").read_file(tmp_path / "none.mp4")


def test_a_small_picture_that_changes_its_shape_is_noted_and_the_run_goes_on(films):
    source = two(films)
    frame = next(iter(source))
    odd = replace(frame, image=np.zeros((240, 320, 3), np.uint8))
    source.main.see(odd)
    result = FrameResult(odd, NONE)
    assert MainPictures(lambda: [source], OPEN)(result) is result
    assert source.main.counts == {"other view": 1}
    assert "different shapes" in source.main.summary()["problem"]


@pytest.mark.parametrize(
    "given, problem",
    [
        ({"uri": "a.mp4", "substream": "a.mp4"}, "the same address"),
        ({"uri": "rtsp://h/1", "substream": "rtsp://h/1"}, "the same address"),
        ({"uri": "rtsp://h/1", "substream": "b.mp4"}, "two streams or two films"),
        ({"uri": "0", "substream": "1"}, "two streams or two films"),
        ({"uri": "line:seed=1", "substream": "line:seed=2"}, "not folders or the factory line"),
    ],
)
def test_pairs_that_are_none_are_refused(given, problem):
    from cv_pipeline.service.assembly import check_run

    with pytest.raises(ConfigError, match=problem):
        check_run(RunConfig(sources=[{**given, "id": "gate"}]))


@pytest.mark.parametrize(
    "given, problem",
    [
        ({"substream": "b.mp4"}, "uri"),
        ({"uri": "a.mp4", "substream": {"fit": "same"}}, "substream.uri"),
        ({"uri": "a.mp4", "substream": {"uri": "b.mp4", "fit": "whole"}}, "substream.fit"),
        ({"uri": "a.mp4", "substream": {"uri": "b.mp4", "keep_s": 0}}, "substream.keep_s"),
    ],
)
def test_a_section_that_is_wrong_names_its_key(tmp_path, given, problem):
    from cv_pipeline.core.config import load_config

    file = tmp_path / "cameras.yaml"
    file.write_text(json.dumps({"sources": [given]}))
    with pytest.raises(ConfigError, match=problem):
        load_config(file)
