"""Clips of events: pre-roll, whole groups, pixels as in the stream, bounds, kills, never past the cover."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import av
import numpy as np
import pytest

from cv_pipeline.core.config import RunConfig
from cv_pipeline.core.types import ConfigError, Detections, Frame, FrameResult, SinkError
from cv_pipeline.privacy.places import RunStore
from cv_pipeline.privacy.stores import Subject, Wanted
from cv_pipeline.service.assembly import copies_packets, gate_factory, run_config
from cv_pipeline.tracking.zones import Event
from cv_pipeline.video import clips
from cv_pipeline.video.clips import ClipSettings, ClipSink, PacketRing, PacketTap
from cv_pipeline.video.cover import Covered, CoverGate, CoverSettings, Mask, PictureUse, Privacy
from cv_pipeline.video.decoding import decode_video
from cv_pipeline.video.sources import SourceSettings, open_source
from tests.helpers.packets import FPS, film, new_gate, scene

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)
NONE = Detections.empty()
SHORT = ClipSettings(pre_s=3.0, post_s=2.0)


def event(at=NOON, name="e1", frame=0):
    return Event("line_cross", "wall", "gate", 1, 0, "box", at, frame, "in", None, 0.0, 0.0, event_id=name)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder, pictures = tmp_path_factory.mktemp("clips"), list(scene(18))
    made = {
        "plain": film(folder / "plain.mp4", pictures, tune="zerolatency"),
        "both": film(folder / "both.mp4", pictures, gop=50),
        "ts": film(folder / "plain.ts", pictures, tune="zerolatency"),
    }
    if "libx265" in av.codecs_available:
        made["hevc"] = film(folder / "hevc.mp4", pictures, "libx265")
    return made


def record(path, folder, at=(12.5,), settings=SHORT, gate=None):
    "A run of one source with an event at these seconds; the sink, and the frames that came."
    tap, sink = PacketTap(PacketRing(settings.keep_s), gate), ClipSink(folder, settings)
    sink.copy_packets({"wall": tap.ring})
    due, shown = list(at), []
    for frame in open_source(path, "wall", SourceSettings(start=NOON, gate=tap, threads=1)):
        shown.append(frame)
        if gate is not None:
            gate.selector.select(frame)
        while due and frame.pts >= due[0]:
            moment = NOON + timedelta(seconds=due[0])
            sink.event(event(moment, f"e{due.pop(0):g}".replace(".", "-"), frame.frame_id))
        sink.write(FrameResult(frame, NONE))
    sink.close()
    return sink, shown


def rows(folder):
    return [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["plain", "both", "ts", "hevc"])
@pytest.mark.slow
def test_a_clip_has_its_seconds_before_and_shows_every_pixel(films, tmp_path, name):
    if name not in films:
        pytest.skip("this build of FFmpeg has no HEVC encoder")
    record(films[name], tmp_path)
    clip = list(decode_video(tmp_path / "e12-5.mp4", threads=1))
    (row,) = rows(tmp_path)
    assert row["before_s"] >= 3.0
    first = round((12.5 - row["before_s"]) * FPS)
    whole = {p.number: p.image for p in decode_video(films[name], threads=1)}
    assert all(np.array_equal(p.image, whole[first + i]) for i, p in enumerate(clip))
    assert len(clip) == pytest.approx((row["before_s"] + 2.0) * FPS, abs=4)


def test_a_clip_begins_with_a_key_frame(films, tmp_path):
    record(films["both"], tmp_path)
    with av.open(str(tmp_path / "e12-5.mp4")) as clip:
        packets = [p for p in clip.demux(video=0) if p.size]
    assert packets[0].is_keyframe and len(packets) > 100


def test_a_camera_that_slept_has_a_whole_clip(films, tmp_path):
    gate = new_gate()
    _, shown = record(films["both"], tmp_path, gate=gate)
    clip = list(decode_video(tmp_path / "e12-5.mp4", threads=1))
    (row,) = rows(tmp_path)
    begin = 12.5 - row["before_s"]
    seen = [frame for frame in shown if begin <= frame.pts < 12.0]
    assert len(clip) >= 5 * FPS
    assert len(seen) < 40, "most of the seconds before were never decoded"


def test_events_of_one_moment_share_a_clip(films, tmp_path):
    sink, _ = record(films["plain"], tmp_path, (9.0, 10.0, 15.5))
    assert [row["events"] for row in rows(tmp_path)] == [["e9", "e10"], ["e15-5"]]
    assert sink.summary() == {"of": "copied packets", "written": 2}
    assert len(list(decode_video(tmp_path / "e9.mp4", threads=1))) >= 6 * FPS


def test_the_end_of_a_run_ends_its_clips(films, tmp_path):
    record(films["plain"], tmp_path, (17.5,))
    assert len(list(decode_video(tmp_path / "e17-5.mp4", threads=1))) >= 3 * FPS


def test_a_lost_connection_does_not_lose_the_clip(films, tmp_path):
    tap, sink = PacketTap(PacketRing(SHORT.keep_s)), ClipSink(tmp_path, SHORT)
    sink.copy_packets({"wall": tap.ring})
    for again in range(2):
        start = NOON + timedelta(seconds=60 * again)
        for frame in open_source(films["plain"], "wall", SourceSettings(start=start, gate=tap, threads=1)):
            if again == 0 and frame.pts >= 17.0 and not sink._windows:
                sink.event(event(frame.captured_at, "lost"))
            if again == 0 or frame.pts > 4:
                sink.write(FrameResult(frame, NONE))
    sink.close()
    assert sink.counts["written"] == 1
    assert rows(tmp_path)[0]["before_s"] >= 3.0


def test_a_ring_holds_its_seconds_and_at_most_a_group_more(films):
    tap, longest = PacketTap(PacketRing(5.0)), 0.0
    for frame in open_source(films["both"], "wall", SourceSettings(gate=tap, threads=1)):
        _, kept = tap.ring.cut(-1e9, 1e9)
        held = kept[-1].at - kept[0].at
        longest = max(longest, held)
        assert frame.pts < 6 or held >= 4.5
    assert longest <= 5.0 + 2.2
    assert tap.ring.group_s == pytest.approx(2.0)


def test_a_ring_is_bounded_in_bytes_and_says_what_left_too_soon(films):
    tap = PacketTap(PacketRing(1e9, max_mb=0.05))
    for _ in open_source(films["plain"], "wall", SourceSettings(gate=tap, threads=1)):
        assert tap.ring.bytes <= 50_000
    assert tap.ring.cut_short > 0


def test_a_group_that_is_too_large_gives_no_half_group():
    ring = PacketRing(5.0, max_mb=0.001)
    for i in range(40):
        packet = av.Packet(bytes(100))
        packet.is_keyframe = i == 0
        ring.add(packet, i / 25)
    assert ring.cut(-1e9, 1e9)[1] == [] and ring.bytes <= 1000


def test_the_oldest_clips_go_first_and_their_names_are_recorded(films, tmp_path):
    sink, _ = record(films["plain"], tmp_path, (5.0, 11.0, 16.5), replace(SHORT, max_gb=1e-9))
    assert [path.name for path in tmp_path.glob("*.mp4")] == ["e16-5.mp4"]
    gone = [json.loads(line)["what"] for line in (tmp_path / "deleted.jsonl").read_text().splitlines()]
    assert gone == ["e5.mp4", "e11.mp4"] and sink.counts["deleted"] == 2


def test_packets_that_no_film_can_hold_are_counted_and_nothing_else_ends(films, tmp_path, monkeypatch):
    def broken(*what):
        raise av.error.InvalidDataError(1, "no")

    monkeypatch.setattr(clips, "remuxed", broken)
    sink, _ = record(films["plain"], tmp_path)
    assert sink.counts["failed"] == 1 and "e12-5" in sink.summary()["problem"]
    assert list(tmp_path.glob("*.mp4")) == []


def test_a_disk_that_fails_is_an_error_of_the_sink(films, tmp_path, monkeypatch):
    def full(path, *what, **how):
        raise SinkError("could not be written: No space left on device", path)

    monkeypatch.setattr(clips, "write_whole", full)
    with pytest.raises(SinkError, match="No space left"):
        record(films["plain"], tmp_path)


def test_frames_go_on_while_a_clip_is_encoded(tmp_path, monkeypatch):
    go, made, real = threading.Event(), [], clips.film_of

    def slow(shots):
        go.wait(60)
        made.append(len(shots))
        return real(shots)

    monkeypatch.setattr(clips, "film_of", slow)
    sink = ClipSink(tmp_path, SHORT)
    for i in range(60):
        frame = Frame(np.full((32, 32, 3), 90, np.uint8), "wall", i, NOON + timedelta(seconds=i), float(i))
        if i in (5, 25):
            sink.event(event(frame.captured_at, f"e{i}"))
        sink.write(FrameResult(frame, NONE))
    assert made == [] and sink.counts["written"] == 0  # both are due, and every frame was taken
    go.set()
    sink.close()
    assert sink.counts["written"] == 2 and [row["file"] for row in rows(tmp_path)] == ["e5.mp4", "e25.mp4"]


def test_the_run_learns_of_a_full_disk_with_the_next_frame(tmp_path, monkeypatch):
    failed = threading.Event()

    def full(path, *what, **how):
        failed.set()
        raise SinkError("could not be written: No space left on device", path)

    monkeypatch.setattr(clips, "write_whole", full)
    sink, taken = ClipSink(tmp_path, SHORT), []
    with pytest.raises(SinkError, match="No space left"):
        for i in range(10_000):
            frame = Frame(np.full((32, 32, 3), 9, np.uint8), "wall", i, NOON + timedelta(seconds=i), float(i))
            if i == 5:
                sink.event(event(frame.captured_at, "e5"))
            if i == 20:
                assert failed.wait(60)
            sink.write(FrameResult(frame, NONE))
            taken.append(i)
    assert 15 < len(taken) < 10_000
    sink.close()  # it was raised once


def test_a_camera_that_never_gave_a_frame_has_no_clip(tmp_path):
    sink = ClipSink(tmp_path, SHORT)
    sink.copy_packets({})
    sink.event(event())
    sink.close()
    assert sink.counts["empty"] == 1 and list(tmp_path.glob("*.mp4")) == []


def test_a_camera_without_packets_has_a_clip_of_its_pictures(films, tmp_path):
    sink = ClipSink(tmp_path, SHORT)
    sink.copy_packets({})
    for frame in open_source(films["plain"], "wall", SourceSettings(start=NOON, threads=1)):
        if frame.frame_id == 12 * FPS:
            sink.event(event(frame.captured_at, "webcam"))
        sink.write(FrameResult(frame, NONE))
    sink.close()
    assert len(list(decode_video(tmp_path / "webcam.mp4", threads=1))) == pytest.approx(25, abs=3)


def test_the_name_of_an_event_cannot_leave_the_folder(films, tmp_path):
    folder = tmp_path / "a" / "b"
    sink = ClipSink(folder, SHORT)
    for i in range(10):
        image = np.full((32, 32, 3), 90, np.uint8)
        frame = Frame(image, "wall", i, NOON + timedelta(seconds=i), float(i))
        if i == 5:
            sink.event(event(frame.captured_at, "../../out"))
        sink.write(FrameResult(frame, NONE))
    sink.close()
    assert len(list(folder.glob("*.mp4"))) == 1
    assert [p for p in tmp_path.rglob("*.mp4") if p.parent != folder] == []


_ENDLESS = """
import sys
import threading
from dataclasses import replace
from pathlib import Path
from tests.video.test_clips import ClipSink, PacketRing, PacketTap, SHORT, SourceSettings, event, open_source

tap, ring_film = PacketTap(PacketRing(60.0)), sys.argv[1]
frames = list(open_source(ring_film, "wall", SourceSettings(gate=tap, threads=1)))
sink = ClipSink(Path(sys.argv[2]), replace(SHORT, pre_s=15.0))
sink.copy_packets({"wall": tap.ring})
sink._offsets["wall"] = frames[-1].captured_at.timestamp() - frames[-1].pts
for i in range(100_000):
    sink.event(event(frames[-1].captured_at, f"clip{i}"))
    sink.close()
"""


@pytest.mark.slow
def test_a_kill_leaves_no_half_clip(films, tmp_path):
    child = subprocess.Popen([sys.executable, "-c", _ENDLESS, str(films["plain"]), str(tmp_path)])
    try:
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("*.mp4"))) < 3:
            assert child.poll() is None and time.monotonic() < deadline
            child_waits(child)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(timeout=60)
    made = list(tmp_path.glob("*.mp4"))
    assert made and all(len(list(decode_video(path, threads=1))) > 14 * FPS for path in made[:5])
    ClipSink(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def child_waits(child):
    "Until the child has had some time, or has ended."
    try:
        child.wait(timeout=0.05)
    except subprocess.TimeoutExpired:
        pass


# --- never past the cover


def test_without_permission_clips_are_made_of_the_pictures_that_the_sink_is_given(tmp_path):
    assert ClipSink(tmp_path).pictures == PictureUse.KEEPS and ClipSink(tmp_path).rings is None


def test_behind_the_cover_a_clip_shows_covered_pictures_only(films, tmp_path):
    "A mask over the whole view: what was behind it is in no frame of the clip."
    everywhere = Mask(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)))
    privacy = Privacy(True, "a test", CoverSettings(regions=("masks",), masks=(everywhere,)))
    sink = ClipSink(tmp_path, SHORT)
    covered = Covered(sink, CoverGate(privacy))
    for frame in open_source(films["plain"], "wall", SourceSettings(start=NOON, threads=1)):
        if frame.frame_id == 12 * FPS:
            sink.event(event(frame.captured_at, "grey"))
        covered.write(FrameResult(frame, NONE))
    covered.close()
    clip = [p.image.astype(int) for p in decode_video(tmp_path / "grey.mp4", threads=1)]
    assert all(abs(image - 96).max() < 10 for image in clip)
    assert rows(tmp_path)[0]["covered"] and rows(tmp_path)[0]["before_s"] >= 3.0
    assert sink.summary()["of"] == "covered pictures"


def config(out, uri, **more):
    zone = {"name": "all", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}
    delivery = {"out": str(out), "jsonl": False, "clips": {"pre_s": 1, "post_s": 1}}
    given = {"sources": [{"uri": str(uri), "id": "line"}], "delivery": delivery, "events": {"zones": [zone]}}
    return RunConfig.model_validate({**given, "model": {"threads": 1}, **more})


@pytest.fixture(scope="module")
def line(tmp_path_factory):
    from cv_pipeline.synthetic.belt import FactoryLine, LineConfig

    pictures = [FactoryLine(LineConfig(seed=3, size=(320, 240))).render(i)[0].image for i in range(150)]
    return film(tmp_path_factory.mktemp("line") / "line.mp4", pictures)


@pytest.mark.parametrize("selection", [{}, {"gate": {"learn_s": 1}}])
@pytest.mark.slow
def test_a_run_that_covers_nothing_copies_packets(line, tmp_path, selection):
    summary = run_config(config(tmp_path / "out", line, selection=selection))
    told = summary["sinks"]["clips"]
    assert told["of"] == "copied packets" and told["written"] >= 1
    assert all(not row["covered"] for row in rows(tmp_path / "out/clips"))
    assert ("gate" in summary["sources"]["line"]) == bool(selection)


@pytest.mark.slow
def test_a_run_that_covers_pictures_keeps_no_packets(line, tmp_path):
    given = config(tmp_path / "out", line, privacy={"always": True, "regions": ["masks"]})
    given.privacy.masks = RunConfig.model_validate(
        {"sources": ["x"], "privacy": {"masks": [{"polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}]}}
    ).privacy.masks
    told = run_config(given)["sinks"]["clips"]
    assert told["of"] == "covered pictures" and told["written"] >= 1
    for row in rows(tmp_path / "out/clips"):
        for picture in decode_video(tmp_path / "out/clips" / row["file"], threads=1):
            assert abs(picture.image.astype(int) - 96).max() < 10


def test_packets_are_kept_only_where_nothing_is_covered(tmp_path):
    given = config(tmp_path, "x.mp4")
    assert copies_packets(given, Privacy(False, "no")) and not copies_packets(given, Privacy(True, "yes"))
    assert gate_factory(given, False) is None
    assert isinstance(gate_factory(given, True)(True), PacketTap)


def test_clips_without_events_are_refused(tmp_path, line):
    given = config(tmp_path / "out", line, events={})
    with pytest.raises(ConfigError, match="clips are made of events"):
        run_config(given)


def test_an_erasure_finds_the_clips_of_a_camera(films, tmp_path):
    "They are named after events: the list beside them says whose they are."
    record(films["plain"], tmp_path / "clips", (5.0, 12.5))
    lines = (tmp_path / "clips/clips.jsonl").read_text().splitlines()
    other = lines[1].replace('"wall"', '"yard"')
    (tmp_path / "clips/clips.jsonl").write_text(f"{lines[0]}\n{other}\n")
    found = RunStore(tmp_path).find(Wanted(Subject("wall")))
    assert [one.place for one in found if one.what == "film"] == ["clips/e5.mp4"]


@pytest.mark.parametrize("wrong", [{"pre_s": 0}, {"max_gb": -1}, {"covered_fps": 0}, {"pre": 1}])
def test_invalid_settings_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="clips"):
        RunConfig.model_validate({"sources": ["x"], "delivery": {"clips": wrong}})


@pytest.mark.parametrize("wrong", [{"pre_s": 0}, {"post_s": -1}, {"ring_mb": 0}])
def test_invalid_settings_of_the_sink_are_a_typed_error(wrong):
    with pytest.raises(ConfigError, match="clip settings"):
        ClipSettings(**wrong)


def test_the_folder_of_clips_is_made(tmp_path):
    assert ClipSink(tmp_path / "deep/clips").folder == Path(tmp_path / "deep/clips")
