"""The packet gate: numbers, times and pixels as without it, wakes, limits, and streams that are not as they
should be."""

import dataclasses
import threading

import av
import cv2
import numpy as np
import pytest

from cv_pipeline.core.config import GateConfig, RunConfig
from cv_pipeline.core.types import Clocks, ConfigError, Detections
from cv_pipeline.inference.loading import load_model
from cv_pipeline.service.assembly import run_config
from cv_pipeline.tracking.sort import SortTracker
from cv_pipeline.video import packets
from cv_pipeline.video.decoding import decode_video
from cv_pipeline.video.health import readyz
from cv_pipeline.video.packets import (
    Announced,
    GatedSelector,
    GateSettings,
    Need,
    PacketGate,
    Seen,
    SizeAlarm,
    SizeBaseline,
    Verdict,
    _probed,
    judge,
    packet_kind,
)
from cv_pipeline.video.pipeline import Pipeline
from cv_pipeline.video.reconnect import ReconnectingSource, SourceState
from cv_pipeline.video.sinks import CallbackSink
from cv_pipeline.video.sources import FileSource, open_source
from cv_pipeline.video.streams import StreamSource
from tests.helpers.cameras import Server, why_no_server
from tests.helpers.packets import FPS, film, new_gate, scene, visit


def play(path, gate, begins=(12.0,), selector=None):
    "Frames handed on, and how many tracks the box made."
    shown, tracker = [], SortTracker(frame_rate=FPS, lost_track_buffer=50)
    selector = selector or gate.selector
    source = open_source(path, "wall", gate=gate, threads=1)
    for frame in source:
        shown.append(frame)
        if selector is None or not selector.select(frame):
            continue
        x = visit(frame.pts or 0.0, begins)
        boxes = [[max(x, 0), 90, x + 50, 180]] if x is not None and x > -25 else []
        found = Detections(np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), 0.9, np.float32))
        selector.observe(frame, tracker.update(found, frame), tracker)
    return shown, tracker.confirmed, source


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packets")
    pictures = list(scene(22))
    made = {
        "plain": film(folder / "plain.mp4", pictures, tune="zerolatency"),
        "both": film(folder / "both.mp4", pictures),
        "long": film(folder / "long.mp4", pictures, gop=250, sc_threshold="0"),
        "open": film(
            folder / "open.mkv", pictures, **{"x264-params": "open-gop=1:keyint=27:bframes=3:b-adapt=0"}
        ),
        "cbr": film(
            folder / "cbr.mp4",
            pictures,
            b="600k",
            maxrate="600k",
            bufsize="150k",
            **{"x264-params": "nal-hrd=cbr:filler=1"},
        ),
        "mjpeg": film(folder / "mjpeg.avi", pictures[:200], "mjpeg"),
        "refresh": film(
            folder / "refresh.mp4", pictures, gop=10_000, **{"x264-params": "intra-refresh=1:keyint=infinite"}
        ),
        "ts": film(folder / "plain.ts", pictures, tune="zerolatency"),
    }
    if "libx265" in av.codecs_available:
        made["hevc"] = film(folder / "hevc.mp4", pictures, "libx265")
    return made


# --- sizes


def test_a_packet_is_a_key_frame_or_predicted_from_the_past_or_from_both_sides():
    kinds = [packet_kind(True, 0, -1, 0), packet_kind(False, 2, 1, 1), packet_kind(False, 1, 2, 30)]
    assert kinds == ["key", "past 1", "both inf"]


def test_the_baseline_follows_the_median_and_not_an_outlier():
    baseline, rng = SizeBaseline(), np.random.default_rng(0)
    for i in range(1000):
        baseline.learn("past", 50_000 if i % 10 == 5 else int(rng.normal(500, 20)), i / 25)
    assert baseline.usual("past") == pytest.approx(500, rel=0.2)


def test_a_visitor_is_unusual_after_quiet():
    baseline, rng = SizeBaseline(), np.random.default_rng(0)
    for i in range(500):
        baseline.learn("past", int(rng.normal(500, 20)), i / 25)
    assert baseline.deviation("past", 1500) > 5 > abs(baseline.deviation("past", 520))


def test_who_has_left_is_forgotten_sooner_than_who_has_come_is_believed():
    up, down = SizeBaseline(), SizeBaseline()
    for i in range(500):
        up.learn("past", 500, i / 25)
        down.learn("past", 5000, i / 25)
    for i in range(500, 525):
        up.learn("past", 5000, i / 25)
        down.learn("past", 500, i / 25)
    fallen, risen = np.log(5000 / down.usual("past")), np.log(up.usual("past") / 500)
    assert fallen > 2 * risen


def test_sizes_that_announce_nothing_are_known_to_be_blind():
    deaf = Announced()
    for second in range(0, 60, 10):
        deaf.motion(second, True)
        deaf.motion(second + 1, False)
    assert deaf.blind(0.001)


def test_a_quiet_stream_of_large_packets_is_believed_only_after_it_has_announced():
    heard = Announced()
    assert heard.blind(0.3) and heard.blind(None) and not heard.blind(0.01)
    for second in range(0, 100, 10):
        heard.alarm(second - 0.1)
        heard.motion(second, True)
        heard.motion(second + 1, False)
    assert not heard.blind(0.3)


@pytest.mark.parametrize(
    "wrong", [{"alarm": 0}, {"waste": 0}, {"glance_s": -1}, {"blind": "maybe"}, {"held_mb": 0}]
)
def test_invalid_settings_are_a_typed_error(wrong):
    with pytest.raises(ConfigError, match="invalid gate settings"):
        GateSettings(**wrong)


# --- as without the gate


@pytest.mark.parametrize("name", ["plain", "both", "long", "open", "ts", "hevc"])
@pytest.mark.slow
def test_frames_are_equal_in_number_time_and_every_byte(clips, name):
    if name not in clips:
        pytest.skip("this build of FFmpeg has no HEVC encoder")
    whole = {frame.frame_id: frame for frame in open_source(clips[name], "wall", threads=1)}
    shown, *_ = play(clips[name], new_gate())
    assert 0 < len(shown) < len(whole)
    for frame in shown:
        same = whole[frame.frame_id]
        assert (frame.pts, frame.captured_at, frame.meta) == (same.pts, same.captured_at, same.meta)
        assert np.array_equal(frame.image, same.image)


@pytest.mark.parametrize("name", ["plain", "both", "open", "ts", "hevc"])
def test_what_happens_is_seen_and_what_does_not_is_not_decoded(clips, name):
    if name not in clips:
        pytest.skip("this build of FFmpeg has no HEVC encoder")
    gate = new_gate()
    shown, count, _ = play(clips[name], gate)
    quiet = [frame for frame in shown if 5.5 <= frame.pts < 11.9]
    busy = [frame for frame in shown if 12.6 <= frame.pts < 14]
    assert count == 1
    assert len(quiet) <= 50, "of 160 frames"
    assert len(busy) >= 30, "of 35 frames"


def test_a_visitor_wakes_the_camera_within_half_a_second_of_its_first_pixel(clips):
    gate = new_gate()
    shown, *_ = play(clips["plain"], gate)
    first = min(frame.pts for frame in shown if frame.pts > 12.0 and frame.frame_id % 25)
    assert first < 12.7
    assert gate.counts["woken by sizes"] >= 1


def test_frames_since_the_sizes_went_up_are_handed_on(clips):
    "The selector sees the first frames of a visit as it would have seen them without the gate."
    shown, *_ = play(clips["plain"], new_gate())
    first = [frame.frame_id for frame in shown if 12.0 <= frame.pts < 13.0]
    assert first[-1] - first[0] == len(first) - 1
    assert first[0] <= 12.1 * FPS


def test_a_glance_decodes_the_key_frame_alone(clips):
    "With frames that are predicted from both sides a decoder keeps it until more packets come."
    gate, decoded = new_gate(), []
    for frame in open_source(clips["both"], "wall", gate=gate, threads=1):
        gate.selector.select(frame)
        if gate.state == "asleep" and frame.frame_id % 25 == 0 and 6 < frame.pts < 11.9:
            decoded.append(gate.counts["decoded"])
    assert np.diff(decoded).min() == 1


def test_an_open_group_is_not_cut_off_behind_its_key_frame(clips, monkeypatch):
    "What is shown before the key frame comes behind it: alone it would have another number."
    with av.open(str(clips["open"])) as source:
        stream = source.streams.video[0]
        tick = float(stream.time_base)
        ahead = keys = 0
        newest = -1.0
        for packet in source.demux(stream):
            if packet.size and packet.is_keyframe:
                keys, newest = keys + 1, packet.pts * tick
            elif packet.size:
                ahead += packet.pts * tick < newest
    assert keys > 3 and ahead > 3, "the film is one of open groups"
    alone = []
    monkeypatch.setattr(packets, "_alone", lambda *what: alone.append(what) or [])
    play(clips["open"], new_gate())
    assert alone == []


def test_waking_for_nothing_makes_a_camera_more_patient_for_a_while():
    gate = new_gate(waste=0.1)
    gate._probe = 9.0, 10.0, 50
    _probed(gate, Need(10.1, 3.0, 12.0, 0.3))
    assert gate.waste.caution == pytest.approx(4.0)
    assert gate.summary()["for_nothing"] == {"wakes": 1, "packets": 50}
    for _ in range(250):
        gate.waste.packet()
    assert gate.waste.caution == pytest.approx(2.0)


def test_waking_for_something_costs_nothing():
    gate = new_gate()
    gate._probe = 9.0, 10.0, 50
    _probed(gate, Need(10.1, 9.5, 12.0, 0.3))
    assert gate.waste.caution == 1.0 and gate.summary()["for_nothing"]["wakes"] == 0


def test_one_large_packet_is_no_alarm_and_a_few_are():
    alarm, rng = SizeAlarm(), np.random.default_rng(0)
    for i in range(500):
        kind, _ = alarm.score(i % 50 == 0, i / 25, size := int(rng.normal(500, 20)))
        alarm.baseline.learn(kind, size, i / 25)
    _, once = alarm.score(False, 20.04, 50_000)
    sums = [alarm.score(False, 20.08 + i / 25, 2000)[1] for i in range(4)]
    assert once < 6 <= sums[-1]
    assert alarm.since == pytest.approx(20.04, abs=0.05)


def test_without_a_selector_every_packet_is_decoded(clips):
    gate = PacketGate()
    shown, *_ = play(clips["plain"], gate)
    assert len(shown) == 22 * FPS


def test_a_second_reading_begins_learning_anew_and_gives_the_same(clips):
    gate = new_gate()
    first = [frame.frame_id for frame in play(clips["plain"], gate)[0]]
    again = [frame.frame_id for frame in play(clips["plain"], new_gate())[0]]
    assert first == again


# --- streams that are not as they should be


def test_constant_bit_rate_is_known_and_every_packet_is_decoded(clips):
    gate = new_gate()
    shown, count, source = play(clips["cbr"], gate)
    assert gate.state == "blind" and "uninformative" in gate.reason
    assert len(shown) == 22 * FPS and count == 1
    assert any("uninformative" in note for note in source.notes)


def test_constant_bit_rate_with_glances_decodes_key_frames_and_still_counts(clips):
    gate = new_gate(blind="glance")
    shown, count, _ = play(clips["cbr"], gate)
    assert count == 1
    assert gate.summary()["decoded_share"] < 0.7


def test_every_packet_of_mjpeg_is_a_picture_and_nothing_is_gained(clips):
    gate = new_gate()
    shown, _, source = play(clips["mjpeg"], gate)
    assert gate.state == "plain" and "nothing to gain" in gate.reason
    assert len(shown) == 200
    assert source.notes == [
        "packet gate off: mjpeg: every packet is a picture of its own, there is nothing to gain"
    ]


def test_a_stream_without_key_frames_is_decoded_ahead_and_holds_a_bounded_number(clips, monkeypatch):
    monkeypatch.setattr(packets.GatedDecoder, "most_held", 40)
    held = []
    full = packets._full
    monkeypatch.setattr(packets, "_full", lambda d: held.append(len(d._held)) or full(d))
    gate = new_gate()
    _, count, _ = play(clips["refresh"], gate)
    assert max(held) <= 40 and count == 1


def test_held_packets_are_bounded_in_bytes(clips):
    gate = new_gate(held_mb=0.002)
    play(clips["long"], gate)
    assert gate.summary()["decoded_share"] > 0.9


def test_a_live_camera_decodes_ahead_when_waking_would_take_too_long(clips):
    gate = new_gate(live=True, wake_ms=1e-6)
    play(clips["long"], gate)
    assert gate.summary()["decoded_share"] >= 1.0
    assert gate.counts["shown"] < gate.counts["decoded"]


@pytest.mark.slow
def test_a_camera_that_lies_about_key_frames_is_decoded_in_full(tmp_path, clips):
    source = av.open(str(clips["plain"]))
    stream = source.streams.video[0]
    gate = new_gate(glance_s=0.3, blind="glance")
    context = stream.codec_context
    context.thread_type = "SLICE"
    decoder = gate(stream, context, lambda *what: None, lambda *what: None, False)
    shown = []
    for number, packet in enumerate(source.demux(stream)):
        if packet.size and number % 7 == 3:
            packet.is_keyframe = True
        for decoded in decoder.feed(packet):
            shown.append(decoded.frame)
            gate.selector.select(_frame(decoded))
    assert gate.state == "plain" and "marked as key frames are none" in gate.reason
    whole = [p.image for p in decode_video(clips["plain"], threads=1)]
    last = shown[-1].to_ndarray(format="bgr24")
    assert np.array_equal(last, whole[-1]), "it has recovered"


def _frame(decoded):
    from datetime import datetime, timedelta, timezone

    from cv_pipeline.core.types import Frame

    noon = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
    image = decoded.frame.to_ndarray(format="bgr24")
    return Frame(image, "wall", decoded.number, noon + timedelta(seconds=decoded.pts), decoded.pts)


def _feed(path, gate, alter):
    "Every packet of a file through the gate's decoder, altered; the frames that came, and what was skipped."
    skipped, shown = [], []
    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        stream.codec_context.thread_type = "SLICE"
        decoder = gate(
            stream, stream.codec_context, lambda *what: skipped.append(what), lambda *what: None, False
        )
        for number, packet in enumerate(source.demux(stream)):
            for one in alter(number, packet):
                for decoded in decoder.feed(one):
                    shown.append(decoded if decoded.pts is None else _frame(decoded))
                    if decoded.pts is not None:
                        gate.selector.select(shown[-1])
    return shown, skipped


def _noise(packet, key=False):
    "A packet of the same place with nothing of use in it."
    data = np.random.default_rng(0).integers(0, 255, packet.size, np.uint8).tobytes()
    broken = av.Packet(data)
    broken.pts, broken.dts, broken.time_base = packet.pts, packet.dts, packet.time_base
    broken.is_keyframe = packet.is_keyframe
    return broken


def test_broken_packets_while_asleep_cost_nothing_and_are_not_shown(clips):
    whole = {n: p.image for n, p in enumerate(decode_video(clips["plain"], threads=1))}
    gate = new_gate()
    between = range(180, 190)  # asleep; not a key frame among them
    shown, skipped = _feed(
        clips["plain"], gate, lambda n, p: [_noise(p)] if n in between and not p.is_keyframe else [p]
    )
    late = [frame for frame in shown if frame.frame_id >= 200]
    assert skipped == [] and late
    assert all(np.array_equal(frame.image, whole[frame.frame_id]) for frame in late)


def test_a_broken_key_frame_while_asleep_is_skipped_and_the_next_one_is_seen(clips):
    gate = new_gate()
    shown, skipped = _feed(clips["plain"], gate, lambda n, p: [_noise(p)] if n == 200 else [p])
    whole = {round(p.pts * FPS): p.image for p in decode_video(clips["plain"], threads=1)}
    assert skipped and gate.state != "plain"
    assert not [frame for frame in shown if 8.0 <= frame.pts < 9.0]
    late = [frame for frame in shown if frame.pts >= 9.0]
    assert late
    assert all(np.array_equal(frame.image, whole[round(frame.pts * FPS)]) for frame in late)


def test_empty_packets_are_counted_and_do_not_end_the_decoder(clips):
    def alter(number, packet):
        if number % 50 != 10 or not packet.size:
            return [packet]
        empty = av.Packet(0)
        empty.pts, empty.dts, empty.time_base = packet.pts, packet.dts, packet.time_base
        return [empty, packet]

    gate = new_gate()
    shown, _ = _feed(clips["plain"], gate, alter)
    assert gate.counts["empty"] == 11
    assert shown[-1].pts > 20


def test_packets_without_any_time_are_all_decoded(clips):
    def alter(number, packet):
        if packet.size and number > 150:
            packet.pts = packet.dts = None
        return [packet]

    gate = new_gate()
    shown, _ = _feed(clips["plain"], gate, alter)
    assert gate.state == "plain" and "no time stamps" in gate.reason
    assert len(shown) > 22 * FPS - 160


def test_a_clock_that_jumps_begins_learning_anew(clips):
    def alter(number, packet):
        if packet.size and number >= 250:
            packet.pts, packet.dts = packet.pts - 100_000, packet.dts - 100_000
        return [packet]

    gate = new_gate()
    shown, _ = _feed(clips["plain"], gate, alter)
    after = [frame for frame in shown if 250 <= frame.frame_id < 300]
    assert len(after) == 50
    assert all(a.pts < b.pts for a, b in zip(shown, shown[1:]))


@pytest.mark.slow
def test_another_picture_size_while_asleep_is_seen_at_the_next_glance(tmp_path):
    small, large = list(scene(10, ())), list(scene(6, (), size=(480, 360)))
    first = film(tmp_path / "small.ts", small, tune="zerolatency")
    second = film(tmp_path / "large.ts", large, tune="zerolatency")
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() + second.read_bytes())
    gate = new_gate()
    shown, *_ = play(joined, gate, ())
    assert {frame.size for frame in shown} == {(320, 240), (480, 360)}


def test_a_folder_of_pictures_is_read_as_it_is(tmp_path):
    for i, image in enumerate(scene(0.2, ())):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
    gate = new_gate()
    assert len(play(tmp_path, gate, ())[0]) == 5
    assert gate.counts["packets"] == 0


# --- the policy alone


def test_a_due_track_is_looked_at_without_a_key_frame(clips):
    gate = new_gate(glance_s=100.0)
    gate.state, gate._first, gate._decoded, gate._key, gate.key_s = "asleep", 0.0, 100.0, 100.0, 50.0
    gate.announced.announced = 10
    need = Need(seen=100.0, stirred=90.0, due=103.0, patience=0.3)
    assert packets._glance(gate, need, Seen(102.9, 500, False)) == Verdict.HOLD
    assert packets._glance(gate, need, Seen(103.1, 500, False)) == Verdict.LOOK


def test_a_due_look_waits_for_a_key_frame_that_comes_soon(clips):
    gate = new_gate(glance_s=100.0)
    gate.state, gate._decoded, gate._key, gate.key_s = "asleep", 100.0, 102.2, 1.0
    need = Need(seen=100.0, stirred=90.0, due=103.0, patience=0.3)
    assert packets._glance(gate, need, Seen(103.1, 500, False)) == Verdict.HOLD
    assert packets._glance(gate, need, Seen(103.2, 5000, True)) == Verdict.LOOK


def test_judge_shows_everything_while_it_learns():
    gate = new_gate()
    assert all(judge(gate, Seen(i / 25, 500, i % 25 == 0)) == Verdict.SHOW for i in range(75))


# --- in a run


@pytest.mark.slow
def test_a_run_with_a_gate_selects_and_counts_as_one_frame_after_another(clips):
    "The reader waits for the outcome of every frame, so a run does what a loop does."
    results, gate = [], new_gate()
    source = open_source(clips["both"], "wall", gate=gate, threads=1)
    model = load_model("factory_line")
    summary = Pipeline([source], model, [CallbackSink(results.append)], None, lambda s: gate.selector).run()
    alone = new_gate()
    loop = [
        (frame.frame_id, alone.selector.select(frame) and _observed(alone, frame, model))
        for frame in open_source(clips["both"], "wall", gate=alone, threads=1)
    ]
    assert [(r.frame.frame_id, r.inferred) for r in results] == loop
    told = summary["sources"]["wall"]["gate"]
    assert told["packets"] == 22 * FPS and told["decoded"] == alone.counts["decoded"]


def _observed(gate, frame, model):
    gate.selector.observe(frame, model.predict([frame.image])[0], None)
    return True


def test_a_run_says_how_its_gates_are_doing(clips, tmp_path):
    config = RunConfig.model_validate(
        {
            "sources": [{"uri": str(clips["plain"]), "id": "wall"}],
            "selection": {"gate": {"learn_s": 4, "blind": "glance"}},
            "delivery": {"out": str(tmp_path / "out"), "jsonl": False},
            "model": {"threads": 1},
        }
    )
    told = run_config(config)["sources"]["wall"]
    assert told["gate"]["packets"] == 22 * FPS
    assert told["gate"]["decoded_share"] < 1
    assert told["frames_read"] == told["gate"]["shown"] == told["frames_delivered"]


def test_a_failing_model_does_not_leave_the_reader_waiting(clips, tmp_path):
    class Breaks:
        closed = False

        def select(self, frame):
            raise RuntimeError("no")

        def reset(self):
            pass

    gate = new_gate()
    source = open_source(clips["plain"], "wall", gate=gate, threads=1)
    done = []

    def go():
        done.append(Pipeline([source], load_model("factory_line"), [], None, lambda s: Breaks()).run())

    thread = threading.Thread(target=go, daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert done and done[0]["sources"]["wall"]["state"] == "failed"


@pytest.mark.parametrize(
    "selection, problem",
    [
        ({"gate": True, "every": 3}, "gate cannot be combined"),
        ({"gate": {"alarm": 0}}, "alarm"),
        ({"gate": {"blind": "no"}}, "blind"),
        ({"gate": {"alram": 3}}, "alram"),
    ],
)
def test_a_configuration_with_a_wrong_gate_is_refused(selection, problem):
    with pytest.raises(ValueError, match=problem):
        RunConfig.model_validate({"sources": ["x.mp4"], "selection": selection})


def test_a_configuration_has_the_defaults_of_the_gate():
    assert GateConfig().model_dump() == dataclasses.asdict(GateSettings())


def test_a_gate_brings_adaptive_selection():
    config = RunConfig.model_validate({"sources": ["x.mp4"], "selection": {"gate": True}})
    assert config.selection.adaptive is not None


# --- live


def test_a_file_played_like_a_camera_gives_packets_when_a_camera_would(clips):
    "The gate decides about a packet when it comes: no packet is read ahead of the clock."
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    gate = PacketGate(GateSettings(learn_s=4.0), live=True)
    GatedSelector(gate=gate)
    judged, feed = [], gate.alarm.score
    gate.alarm.score = lambda key, at, size: judged.append((at, now[0])) or feed(key, at, size)
    source = FileSource(
        clips["plain"],
        realtime=True,
        threads=1,
        hardware="none",
        gate=gate,
        clocks=Clocks(lambda: now[0], sleep=sleep),
    )
    for frame in source:
        gate.selector.select(frame)
    assert len(judged) == 22 * FPS
    assert all(clock == pytest.approx(at, abs=0.05) for at, clock in judged)


def test_packets_that_nobody_decodes_keep_a_camera_from_being_stale():
    now = [0.0]
    clocks = Clocks(lambda: now[0])
    inner = type(
        "Inner", (), {"source_id": "cam", "live": True, "heard_at": None, "close": lambda self: None}
    )()
    camera = ReconnectingSource(lambda: inner, "cam", connected=inner, stale_after_s=3.0, clocks=clocks)
    camera._log.set(SourceState.LIVE)
    camera._log.waiting(True)
    now[0] = 5.0
    inner.heard_at = 4.9
    assert camera.state == SourceState.LIVE
    now[0] = 8.0
    assert camera.state == SourceState.STALE


def test_ready_counts_packets_of_a_sleeping_camera():
    source = {"state": "running", "connection": "live", "error": None, "seconds_since_frame": 60.0}
    summary = {"sources": {"cam": source}, "seconds": 100.0, "error": None, "warm": True}
    summary["model"] = {"state": "ready"}
    assert readyz(summary, 10.0)[1]["sources"]["cam"]["state"] == "stale"
    source["seconds_since_packet"] = 0.04
    assert readyz(summary, 10.0)[1]["sources"]["cam"]["state"] == "running"


@pytest.mark.service
@pytest.mark.skipif(why_no_server() is not None, reason=str(why_no_server()))
def test_a_camera_over_rtsp_is_gated_and_numbers_its_frames():
    server = Server("--gop", 12, "--fps", 25)
    gate = PacketGate(GateSettings(learn_s=1.0, blind="glance"), live=True)
    selector, numbers = GatedSelector(gate=gate), []
    try:
        with StreamSource(server.uri, "cam", gate=gate, hardware="none") as source:
            for frame in source:
                numbers.append((frame.frame_id, frame.pts))
                selector.select(frame)
                if gate.counts["packets"] > 75 or len(numbers) > 200:
                    break
    finally:
        server.kill()
    assert numbers == sorted(numbers) and len(set(numbers)) == len(numbers)
    assert gate.counts["packets"] > 75
    assert source.heard_at is not None


def test_the_summary_names_what_every_decoded_packet_was_for(clips):
    gate = new_gate()
    play(clips["plain"], gate)
    told = gate.summary()
    assert sum(told["decoded_for"].values()) == told["decoded"]
    assert (
        {"learning", "tracks", "glances", "catching up"} <= set(told["decoded_for"]) <= set(packets.PURPOSES)
    )


def test_a_gate_that_gave_up_decodes_for_nothing_else(clips):
    gate = new_gate()
    play(clips["mjpeg"], gate)
    assert set(gate.summary()["decoded_for"]) <= {"plain"}


@pytest.mark.parametrize("blind, most", [("plain", 1.0), ("glance", 0.4)])
def test_a_film_of_key_frames_only_is_blind(tmp_path, blind, most):
    "Sizes of key frames are not judged; each can be decoded alone, so glances are cheap."
    path, gate = film(tmp_path / "intra.mp4", scene(16, begins=()), gop=1), new_gate(blind=blind)
    play(path, gate)
    share = gate.summary()["decoded_share"]
    assert (share == 1.0 and gate.state == "blind") if blind == "plain" else share < most
