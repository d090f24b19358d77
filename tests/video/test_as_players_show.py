"""What players show is what is read: clock jumps, edit lists, odd names, pixel shapes, colours, streams."""

import os
from datetime import datetime, timezone
from fractions import Fraction

import av
import numpy as np
import pytest

from cv_pipeline.core.types import Clocks, SourceError
from cv_pipeline.synthetic.line import write_video
from cv_pipeline.video.decoding import TimeLine, decode_video, square_size
from cv_pipeline.video.sources import FileSource, open_source

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


def film(
    path, count=100, size=(64, 48), rate=25, at=0.0, codec="libx264", form=None, options=None, **context
):
    "A video of grey pictures, each lighter than the one before, from `at` seconds on."
    with av.open(os.path.abspath(path), "w", format=form) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {"g": "100"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        tick = Fraction(1, 25) if codec == "mpeg4" else Fraction(1, 90_000)
        stream.codec_context.time_base = tick
        for i in range(count):
            image = np.full((size[1], size[0], 3), 2 * i % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = round((at + i / float(rate)) / tick), tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def joined(target, *parts):
    "Files one behind the other, as `cat` joins them."
    target.write_bytes(b"".join(p.read_bytes() for p in parts))
    return target


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    "Two recordings of four seconds, the second one 5,000 s later by its clock."
    folder = tmp_path_factory.mktemp("parts")
    return film(folder / "a.ts", form="mpegts"), film(folder / "b.ts", form="mpegts", at=5000)


# --- one clock


@pytest.mark.parametrize("order, jumps", [("ab", 1), ("ba", 1), ("aa", 1), ("aba", 2), ("bab", 2), ("a", 0)])
def test_joined_transport_streams_go_on_at_their_rate(parts, tmp_path, order, jumps):
    pieces = [parts["ab".index(letter)] for letter in order]
    source = FileSource(joined(tmp_path / "x.ts", *pieces), start=NOON)
    frames = list(source)
    times = [f.pts for f in frames]
    assert len(times) == 100 * len(order)
    assert np.allclose(np.diff(times), 0.04, atol=1e-6)
    assert [(f.captured_at - NOON).total_seconds() for f in frames] == pytest.approx(times)
    assert source.clock_jumps == source.status().clock_jumps == jumps


def test_a_jump_is_named(parts, tmp_path):
    source = FileSource(joined(tmp_path / "x.ts", *parts))
    list(source)
    assert source.status().notes == ("clock jumped by 4996 s at frame 100",)
    assert source.skipped_count == 0


def test_realtime_does_not_sleep_through_a_jump(parts, tmp_path):
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    path = joined(tmp_path / "x.ts", *parts)
    list(FileSource(path, realtime=True, clocks=Clocks(lambda: now[0], lambda: NOON, sleep)))
    assert sum(slept) == pytest.approx(199 * 0.04, abs=0.1)


def test_a_counter_of_33_bits_goes_round(tmp_path):
    wrap = 2**33 / 90_000
    source = FileSource(film(tmp_path / "x.ts", form="mpegts", at=wrap - 2))
    times = [f.pts for f in source]
    assert len(times) == 100
    assert np.allclose(np.diff(times), 0.04, atol=1e-6)


def test_long_intervals_of_an_mp4_are_true(tmp_path):
    source = FileSource(film(tmp_path / "x.mp4", count=12, rate=Fraction(1, 30)))
    assert [f.pts for f in source] == pytest.approx([30 * i for i in range(12)])
    assert source.clock_jumps == 0


def test_an_hour_without_frames_in_an_mkv_is_a_gap(tmp_path):
    path = tmp_path / "x.mkv"
    times = [*range(5), *range(3600, 3605)]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for seconds in times:
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="bgr24")
            frame.pts, frame.time_base = seconds * 1000, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    source = FileSource(path)
    assert [f.pts for f in source] == pytest.approx(times)
    assert source.clock_jumps == 0


@pytest.mark.parametrize("every", [5, 9.5])
def test_a_slow_transport_stream_is_not_a_stream_of_jumps(tmp_path, every):
    source = FileSource(film(tmp_path / "x.ts", count=12, rate=Fraction(1) / Fraction(every), form="mpegts"))
    assert np.diff([f.pts for f in source]) == pytest.approx([every] * 11)
    assert source.clock_jumps == 0


def test_a_very_slow_one_loses_one_interval_at_most():
    line = TimeLine(ahead_s=10)
    times = [line.at(60.0 * i) for i in range(20)]
    assert line.jumps <= 1
    assert np.diff(times)[1:] == pytest.approx([60] * 18)


@pytest.mark.parametrize("away", [1.5, 11, 60, 3600])
def test_an_outage_of_a_camera_is_a_gap(away):
    "Its counter moved on, or began anew: what passed on the wall is what passed."
    wall = [0.04 * i for i in range(50)] + [2 + away + 0.04 * i for i in range(50)]
    for stamps in (wall, [t if t < 2 else t - 2 - away for t in wall]):
        line = TimeLine(ahead_s=10)
        times = [line.at(t, 1000 + t_wall) for t, t_wall in zip(stamps, wall)]
        assert times == pytest.approx(wall, abs=0.05)


@pytest.mark.parametrize("jump", [86_400, -86_400, 11, -2, 2**33 / 90_000])
def test_a_camera_whose_clock_jumps_goes_on(jump):
    wall = [0.04 * i for i in range(100)]
    line = TimeLine(ahead_s=10)
    times = [line.at(t + (jump if i >= 50 else 0), 1000 + t) for i, t in enumerate(wall)]
    assert times == pytest.approx(wall)
    assert line.jumps == 1 and line.jumped == pytest.approx(jump)


# --- edit lists


def trimmed(source, target, begin):
    "A copy whose edit list hides what lies before `begin` seconds, as a phone or `ffmpeg -ss -c copy` trims."
    with av.open(str(source)) as a, av.open(str(target), "w") as out:
        stream = a.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in a.demux(stream):
            if packet.dts is not None:
                packet.pts -= round(begin / stream.time_base)
                packet.dts -= round(begin / stream.time_base)
                packet.stream = copy
                out.mux(packet)
    return target


def decoded(path):
    "Frames by PyAV alone, which honours edit lists."
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("begin", [0.4, 2.5, 3.9])
def test_what_is_trimmed_away_is_not_missing(tmp_path, begin):
    path = trimmed(film(tmp_path / "whole.mp4"), tmp_path / "trimmed.mp4", begin)
    source = open_source(path)
    assert sum(1 for _ in source) == decoded(path) < 100
    assert (source.skipped_count, source.skipped) == (0, [])


def test_what_is_cut_off_is_missing_also_in_a_trimmed_file(tmp_path):
    noise = np.random.default_rng(0)
    whole = tmp_path / "whole.mp4"
    with av.open(str(whole), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("libx264", rate=25, options={"g": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(100):
            image = noise.integers(0, 255, (48, 64, 3), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        out.mux(stream.encode())
    data = whole.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    source = open_source(tmp_path / "cut.mp4")
    came = sum(1 for _ in source)
    assert 30 < came < 70
    assert source.skipped_count == 100 - came


# --- names

NAMES = [
    "cam1:2.mp4",
    "2024-01-01T10:00:00.mp4",
    "-dash.mp4",
    "a%03d.mp4",
    "50%.mp4",
    "file:x.mp4",
    "concat:a|b.mp4",
    "http:x.mp4",
    "new\nline.mp4",
    "pipe:0.mp4",
    "a b'c\"d.mp4",
    "%d.gif",
    "cam:%02d.gif",
]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_any_name_is_a_file(tmp_path, monkeypatch, name):
    codec = {"codec": "gif", "form": "gif", "options": {}} if name.endswith("gif") else {}
    with av.open(str(tmp_path / "x"), "w", format=codec.get("form", "mp4")) as out:
        stream = out.add_stream(codec.get("codec", "libx264"), rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8" if codec else "yuv420p"
        for i in range(5):
            image = np.full((48, 64, 3), 50 * i, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=stream.pix_fmt)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    (tmp_path / "x").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for uri in (name, f"./{name}", str(tmp_path / name)):
        assert sum(1 for _ in open_source(uri)) == 5


# --- pixels


@pytest.mark.parametrize(
    "size, aspect, shown",
    [
        ((720, 576), Fraction(64, 45), (1024, 576)),
        ((720, 576), Fraction(16, 15), (768, 576)),
        ((720, 480), Fraction(8, 9), (640, 480)),
        ((1440, 1080), Fraction(4, 3), (1920, 1080)),
        ((352, 576), Fraction(24, 11), (768, 576)),
        ((640, 480), Fraction(1), None),
        ((640, 480), None, None),
        ((640, 480), Fraction(0), None),
        ((640, 480), Fraction(1, 255), None),
    ],
)
def test_square_sizes(size, aspect, shown):
    assert square_size(*size, aspect) == shown


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.avi", "x.ts"])
def test_pixels_that_are_not_square_are_stretched_as_players_do(tmp_path, name):
    codec = "mpeg4" if name == "x.avi" else "libx264"
    path = film(tmp_path / name, 5, (180, 144), codec=codec, options={}, sample_aspect_ratio=Fraction(64, 45))
    source = open_source(path)
    assert (source.info.width, source.info.height) == (256, 144)
    assert {f.image.shape for f in source} == {(144, 256, 3)}
    assert source.status().notes == ("pixels of 64:45: 180×144 is shown as 256×144, as players do",)


def test_the_stretched_picture_is_the_stored_one_stretched(tmp_path):
    "A ramp from left to right stays one, over the whole width."
    path = tmp_path / "x.mp4"
    ramp = np.repeat(np.linspace(0, 255, 180).astype(np.uint8)[None, :, None], 144, 0).repeat(3, 2)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 180, 144, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(64, 45)
        out.mux(stream.encode(av.VideoFrame.from_ndarray(ramp, format="bgr24")))
        out.mux(stream.encode())
    row = next(iter(open_source(path))).image[72, :, 1].astype(int)
    assert np.abs(row - np.linspace(0, 255, 256)).max() < 6


def test_square_pixels_and_progressive_pictures_have_no_note(tmp_path):
    source = open_source(film(tmp_path / "x.mp4", 5))
    list(source)
    assert source.status().notes == ()


def test_interlaced_pictures_are_said_to_be_combed(tmp_path):
    options = {"x264-params": "tff=1:interlaced=1"}
    source = open_source(film(tmp_path / "x.mp4", 5, (64, 64), options=options))
    assert len(list(source)) == 5
    assert len(source.notes) == 1 and source.notes[0].startswith("interlaced") and "bwdif" in source.notes[0]


# --- colours


def by_formula(rgb, kr, kb):
    "Y, Cb and Cr of the limited range, from the definition of BT.601 (.299, .114) or BT.709 (.2126, .0722)."
    r, g, b = (v / 255 for v in rgb)
    luma = kr * r + (1 - kr - kb) * g + kb * b
    return 16 + 219 * luma, 128 + 224 * (b - luma) / (2 * (1 - kb)), 128 + 224 * (r - luma) / (2 * (1 - kr))


def coloured(path, height, stored, tag):
    "A lossless video of one stored colour; tag: FFmpeg's number of the colour space, 2 for none."
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, height, "yuv420p"
        stream.codec_context.colorspace = tag
        frame = av.VideoFrame(64, height, "yuv420p")
        for plane, value in zip(frame.planes, stored):
            plane.update(bytes([round(value)]) * plane.buffer_size)
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("rgb", [(200, 60, 40), (30, 180, 70), (40, 50, 210), (128, 128, 128)])
@pytest.mark.parametrize(
    "height, tag, formula",
    [
        (720, 2, (0.2126, 0.0722)),
        (1080, 2, (0.2126, 0.0722)),
        (576, 2, (0.299, 0.114)),
        (480, 2, (0.299, 0.114)),
        (480, 1, (0.2126, 0.0722)),
        (720, 6, (0.299, 0.114)),
        (720, 1, (0.2126, 0.0722)),
    ],
)
def test_colours_are_those_of_the_formula(tmp_path, rgb, height, tag, formula):
    path = coloured(tmp_path / "x.mkv", height, by_formula(rgb, *formula), tag)
    seen = next(iter(open_source(path))).image[5, 5, ::-1].astype(int)
    assert np.abs(seen - rgb).max() <= 3


@pytest.mark.parametrize("rgb", [(200, 60, 40), (30, 180, 70), (40, 50, 210)])
@pytest.mark.parametrize("height", [480, 720])
def test_what_is_written_here_comes_back_in_its_colours(tmp_path, rgb, height):
    image = np.full((height, 64, 3), rgb[::-1], np.uint8)
    write_video(tmp_path / "x.mp4", [image] * 3, crf=1)
    seen = next(iter(open_source(tmp_path / "x.mp4"))).image[9, 9, ::-1].astype(int)
    assert np.abs(seen - rgb).max() <= 5
    with av.open(str(tmp_path / "x.mp4")) as container:  # and says how: for players that guess otherwise
        assert next(container.decode(video=0)).colorspace == (1 if height > 576 else 6)


# --- streams


def two_streams(path, sizes, counts):
    "A file with a video stream a size."
    with av.open(str(path), "w") as out:
        streams = []
        for width, height in sizes:
            stream = out.add_stream("libx264", rate=25, options={"crf": "20"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            streams.append(stream)
        noise = np.random.default_rng(0)
        for stream, count in zip(streams, counts):
            for _ in range(count):
                image = noise.integers(0, 255, (stream.height, stream.width, 3), np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
            out.mux(stream.encode())
    return path


@pytest.mark.parametrize("sizes", [[(64, 48), (320, 240)], [(320, 240), (64, 48)]])
def test_of_two_video_streams_the_best_is_read_and_the_other_named(tmp_path, sizes):
    path = two_streams(tmp_path / "x.mkv", sizes, (20, 20))
    with av.open(str(path)) as container:
        best = container.streams.best("video").index
    source = open_source(path)
    shapes = {f.image.shape[1::-1] for f in source}
    assert shapes == {sizes[best]}
    (note,) = source.status().notes
    assert (
        note.startswith("2 video streams")
        and f"{sizes[1 - best][0]}×{sizes[1 - best][1]}" in note.split("left out")[1]
    )


def test_the_end_is_an_error_when_there_is_nothing_to_see(tmp_path):
    (tmp_path / "x.ts").write_bytes(bytes(188 * 50))
    with pytest.raises(SourceError):
        list(decode_video(tmp_path / "x.ts"))
