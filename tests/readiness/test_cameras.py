"""What cameras are like, from their packets: against PyAV's decoding, a real RTSP server, and bad input."""

import json

import av
import numpy as np
import pytest

from cv_pipeline.core.config import SourceConfig, load_config
from cv_pipeline.core.types import SourceError
from cv_pipeline.readiness.cameras import check_cameras, packet_advice, packets_of, read_packets
from tests.helpers.cli import called


def clip(path, codec="libx264", rate=25, group=25, frames=75, size=(64, 48), **options):
    "Moving stripes."
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, options={k: str(v) for k, v in options.items()})
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = group
        for k in range(frames):
            picture = np.roll(np.tile(np.arange(size[0], dtype=np.uint8) * 3, (size[1], 1)), 3 * k, axis=1)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.dstack([picture] * 3), format="bgr24")))
        file.mux(stream.encode())
    return str(path)


def keys_apart(path):
    "Seconds between key frames, of decoded frames."
    with av.open(path) as file:
        times = [f.time for f in file.decode(video=0) if f.key_frame]
    return float(np.median(np.diff(times)))


@pytest.mark.parametrize("group", [10, 25])
@pytest.mark.parametrize("later", [0, 2])
def test_packets_say_what_decoding_says(tmp_path, group, later):
    path = clip(tmp_path / "a.mp4", group=group, **{"bf": later, "sc_threshold": 0})
    found = read_packets(SourceConfig(uri=path))
    with av.open(path) as file:
        frames = list(file.decode(video=0))
    assert found.fps == pytest.approx((len(frames) - 1) / (frames[-1].time - frames[0].time))
    assert found.key_s == pytest.approx(keys_apart(path), abs=1e-6)
    assert found.later is (later > 0)
    assert (found.codec, found.width, found.height, found.seen) == ("h264", 64, 48, 75)
    with av.open(path) as file:
        sizes = [p.size for p in file.demux(video=0)]
    assert found.mbit_s == pytest.approx(8e-6 * sum(sizes) / (frames[-1].time - frames[0].time))
    assert (found.without_time, found.backwards, found.pace) == (0, 0, None)


def test_mjpeg_is_all_key_frames(tmp_path):
    found = read_packets(SourceConfig(uri=clip(tmp_path / "a.avi", codec="mjpeg")))
    assert found.codec == "mjpeg" and found.key_s == pytest.approx(0.04)
    assert any(line.startswith("MJPEG") for line in packet_advice(found))


@pytest.mark.parametrize("uri", ["line:", "0"])
def test_what_has_no_packets_has_none(uri):
    assert read_packets(SourceConfig(uri=uri)) is None


def test_a_file_that_is_no_video_is_a_source_error(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing" * 100)
    with pytest.raises(SourceError, match="cannot be opened"):
        read_packets(SourceConfig(uri=str(tmp_path / "a.mp4")))


def stamps(n=100, step=0.04, group=25, wall=1.0):
    return [(k * step, k * step, k % group == 0, 1000, k * step * wall) for k in range(n)]


@pytest.mark.parametrize(
    ("given", "size", "claimed", "words"),
    [
        (stamps(), (1920, 1080), 25, []),
        (stamps(n=600, group=200), (1920, 1080), 25, ["a key frame every 8.0 s"]),
        (stamps(step=0.1), (1920, 1080), 25, ["it sends 10.0 of 25 frames a second"]),
        (stamps(), (3840, 2160), 25, ["4.0 times the pixels of 1080p"]),
        (stamps(wall=2.0), (1920, 1080), 25, ["its clock runs 0.50 times as fast as ours"]),
        ([(None, None, False, 9, 0.0), *stamps()], (640, 480), 25, ["1 of 101 packets have no time"]),
        ([*stamps(), (0.5, 0.5, False, 9, 4.0)], (640, 480), 25, ["went backwards 1 times"]),
    ],
)
def test_each_fault_is_named_with_its_number_and_nothing_else_is(given, size, claimed, words):
    found = packet_advice(packets_of(given, "h264", size, claimed, live=True))
    assert len(found) == len(words), found
    assert all(word in line for word, line in zip(words, found))


def test_frames_that_are_decoded_for_nothing_are_named():
    facts = packets_of(stamps(), "h264", (640, 480), 25)
    assert packet_advice(facts, most_fps=5)[0].startswith("25 frames a second are decoded and 5 used")
    assert packet_advice(facts, most_fps=20) == []


def test_one_packet_is_enough_to_say_little():
    found = packets_of(stamps(n=1), "h264", (640, 480))
    assert (found.fps, found.key_s, found.mbit_s, found.pace) == (None, None, None, None)
    assert packet_advice(found) == []


def test_a_camera_that_fails_is_named_and_the_others_are_checked(tmp_path):
    path = clip(tmp_path / "a.mp4")
    about = {"sources": [path, "nowhere.mp4", "line:frames=40"], "delivery.out": str(tmp_path / "out")}
    found = check_cameras(load_config(None, about))
    assert [bool(c.error) for c in found.cameras] == [False, True, False]
    assert not found.good and found.cores > 0
    assert found.cameras[0].cost.decode_ms > 0


def test_when_no_camera_opens_each_is_named(tmp_path):
    about = {"sources": ["nowhere.mp4", "neither.mp4"], "delivery.out": str(tmp_path / "out")}
    found = check_cameras(load_config(None, about))
    assert all("file not found" in c.error for c in found.cameras)
    assert not found.good


def test_a_machine_that_is_too_small_is_named(tmp_path, monkeypatch):
    from cv_pipeline.readiness import cameras

    monkeypatch.setattr(cameras, "usable_cores", lambda: 0.001)
    path = clip(tmp_path / "a.mp4")
    found = check_cameras(load_config(None, {"sources": [path], "delivery.out": str(tmp_path / "out")}))
    assert not found.good and "cores are needed" in found.notes[0]


@pytest.mark.slow
def test_the_command_shows_a_table_and_ends_with_three_for_a_lost_camera(tmp_path):
    path = clip(tmp_path / "a.mp4")
    (tmp_path / "cameras.yaml").write_text(
        f"sources: [{path}, nowhere.mp4]\ndelivery: {{out: {tmp_path / 'out'}}}\n"
    )
    done = called("check", str(tmp_path / "cameras.yaml"), "--json")
    assert done.returncode == 3, done.stderr
    found = json.loads(done.stdout)
    assert [c["packets"] and c["packets"]["codec"] for c in found["cameras"]] == ["h264", None]
    assert not (tmp_path / "out" / "results.jsonl").exists()  # a check is no run


def test_a_live_camera_is_read_over_rtsp(serve):
    found = read_packets(SourceConfig(uri=serve("--gop", 12, "--fps", 25).uri), seconds=3)
    assert found.codec == "h264" and found.seen > 10
    assert found.key_s == pytest.approx(12 / 25, abs=0.1)
    assert found.pace == pytest.approx(1, abs=0.5)


def test_an_unreachable_camera_does_not_print_its_password(monkeypatch):
    monkeypatch.setenv("CAMERA_PASSWORD", "hush-hush-77")
    config = SourceConfig(
        uri="rtsp://127.0.0.1:9/x", user="admin", password_env="CAMERA_PASSWORD", open_timeout_s=3
    )
    with pytest.raises(SourceError) as e:
        read_packets(config)
    assert "hush-hush-77" not in str(e.value) and e.value.__cause__ is None and e.value.__context__ is None


# --- two streams


def pair(path, size, late_s=0.0, seconds=8, group=50):
    "A block that walks about, shown later by so much."
    (w, h), rate = size, 25
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "g": str(group)})
        stream.width, stream.height, stream.pix_fmt = w, h, "yuv420p"
        for k in range(seconds * rate):
            t, picture = k / rate - late_s, np.full((h, w, 3), 90, np.uint8)
            x = 0.4 + 0.25 * np.sin(1.3 * t) + 0.06 * np.sin(4.1 * t)
            picture[h // 3 : 3 * h // 4, int(x * w) : int((x + 0.15) * w)] = 220
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        file.mux(stream.encode())
    return str(path)


def checked(main, small, out, **sub):
    source = {"uri": main, "id": "gate", "substream": {"uri": small, **sub}}
    (camera,) = check_cameras(load_config(None, {"sources": [source], "delivery.out": str(out)})).cameras
    return camera


def test_both_streams_of_a_camera_are_looked_at(tmp_path):
    main, small = pair(tmp_path / "m.mp4", (960, 540), 0.4), pair(tmp_path / "s.mp4", (320, 180))
    camera = checked(main, small, tmp_path / "out")
    assert camera.error == ""
    assert camera.row()["video"] == "h264 320×180 + 960×540"
    assert abs(camera.main.offset_ms - 400) <= 40
    assert any("+" in line and "against the small one" in line for line in camera.advice)
    assert json.loads(json.dumps(camera.to_dict()))["main"]["packets"]["width"] == 960
    assert camera.cost is not None and camera.cost.decode_ms > 0


def test_a_main_stream_whose_key_frames_are_far_apart_is_named(tmp_path):
    main = pair(tmp_path / "m.mp4", (640, 360), group=150, seconds=13)
    camera = checked(main, pair(tmp_path / "s.mp4", (320, 180)), tmp_path / "out")
    assert any(line.startswith("main stream: a key frame every 6.0 s") for line in camera.advice)


def test_two_streams_of_different_shapes_fail_the_check_with_the_setting(tmp_path):
    main, small = pair(tmp_path / "m.mp4", (640, 360)), pair(tmp_path / "s.mp4", (160, 120), seconds=2)
    assert "different shapes" in checked(main, small, tmp_path / "out").error
    assert checked(main, small, tmp_path / "out", fit="stretch").error == ""


def test_a_main_stream_that_cannot_be_opened_fails_the_check(tmp_path):
    small = pair(tmp_path / "s.mp4", (320, 180), seconds=2)
    (tmp_path / "words.mp4").write_text("no video")
    camera = checked(str(tmp_path / "words.mp4"), small, tmp_path / "out")
    assert camera.error.startswith("main stream: ")
    assert "same address" in checked(small, small, tmp_path / "out").error


def test_a_camera_with_one_stream_says_nothing_of_a_main_one(tmp_path):
    source = {"uri": pair(tmp_path / "s.mp4", (320, 180), seconds=2), "id": "gate"}
    (camera,) = check_cameras(load_config(None, {"sources": [source], "delivery.out": str(tmp_path)})).cameras
    assert camera.main is None and "main" not in camera.to_dict()
