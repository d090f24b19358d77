"""Sources and images: real files, broken on purpose."""

import io
import os
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.images import image_header, natural_key, read_image
from cv_pipeline.core.masking import masked
from cv_pipeline.core.types import Clocks, ConfigError, Source, SourceError
from cv_pipeline.video.decoding import decode_video
from cv_pipeline.video.sources import (
    CameraSource,
    FileSource,
    FolderSource,
    ImageSource,
    open_source,
    open_sources,
    unique_ids,
)
from tests.helpers.services import require

ROOT = Path(__file__).resolve().parents[2]
NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


def make_clip(
    path, times=None, size=(160, 120), rotate=0, codec="libx264", bframes=2, gop=15, start=0.0, **options
):
    "A small video whose picture i has a bright bar at column i."
    times = [i / 30 for i in range(60)] if times is None else times
    with av.open(str(path), "w", **options) as out:
        stream = out.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.gop_size = (
            Fraction(1, 1000) if codec != "mpeg4" else Fraction(1, 30),
            gop,
        )
        if codec == "libx264":
            stream.codec_context.max_b_frames = bframes
        if rotate and not hasattr(av.VideoStream, "set_display_rotation"):
            pytest.skip(f"PyAV {av.__version__} cannot write a rotation")
        if rotate:
            stream.set_display_rotation(rotate)
        texture = cv2.resize(
            np.random.default_rng(0).integers(40, 160, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8), size
        )
        for i, seconds in enumerate(times):
            picture = np.roll(texture, i, axis=0)
            picture[:, 2 * i % size[0] : 2 * i % size[0] + 8] = 255
            picture[:20, :20] = (0, 0, 255)
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts, frame.time_base = (
                round((seconds + start) / stream.codec_context.time_base),
                stream.codec_context.time_base,
            )
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return Path(path)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


# --- video files


def test_frames_are_those_of_opencv_with_true_times(clip):
    capture, source = cv2.VideoCapture(str(clip)), FileSource(clip, start=NOON)
    assert isinstance(source, Source) and not source.live
    frames = list(source)
    assert len(frames) == 60 == source.info.frame_count
    assert (source.info.kind, source.info.width, source.info.height, round(source.info.fps)) == (
        "video",
        160,
        120,
        30,
    )
    assert "h264" in source.info.decoder and "thread" in source.info.decoder
    for i, frame in enumerate(frames):
        assert np.array_equal(frame.image, capture.read()[1])
        assert (frame.frame_id, frame.source_id) == (i, "clip")
        assert frame.pts == pytest.approx(i / 30, abs=2e-3)
        assert frame.captured_at == NOON + timedelta(seconds=frame.pts)
    assert source.skipped_count == 0


def test_start_defaults_to_the_modification_time_in_utc(clip):
    first = next(iter(FileSource(clip)))
    assert first.captured_at == datetime.fromtimestamp(clip.stat().st_mtime, timezone.utc)
    with pytest.raises(SourceError, match="has no time zone"):
        FileSource(clip, start=datetime(2026, 6, 1))


@settings(max_examples=8, deadline=None)
@given(
    gaps=st.lists(st.integers(10, 3000), min_size=1, max_size=20), start=st.sampled_from([0.0, 5.0, 36_000.0])
)
def test_variable_rate_and_ten_hour_timestamps(tmp_path_factory, gaps, start):
    times = np.cumsum([0, *gaps]) / 1000
    path = make_clip(tmp_path_factory.mktemp("vfr") / "v.mkv", times, size=(32, 32), start=start)
    got = [p.pts for p in decode_video(path)]
    assert len(got) == len(times)
    assert np.allclose(np.diff(got), np.diff(times), atol=2e-3)


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_is_applied_as_opencv_does(tmp_path, degrees):
    path = make_clip(tmp_path / "r.mp4", rotate=degrees, times=[0, 0.1, 0.2])
    source = FileSource(path)
    frame, expected = next(iter(source)), cv2.VideoCapture(str(path)).read()[1]
    assert np.array_equal(frame.image, expected)
    assert frame.size == (source.info.width, source.info.height) == expected.shape[1::-1]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.ts", "libx264"), ("a.mov", "mpeg4")]
)
def test_other_containers_and_codecs(tmp_path, name, codec):
    times = [i / 30 for i in range(30)]
    frames = list(FileSource(make_clip(tmp_path / name, times, codec=codec)))
    assert len(frames) == 30
    assert np.allclose([f.pts for f in frames], times, atol=2e-3)


def test_iterating_again_starts_again_and_two_iterations_do_not_disturb_each_other(clip):
    source = FileSource(clip)
    a, b = iter(source), iter(source)
    first = next(a)
    assert [f.frame_id for f in b] == list(range(60))
    assert np.array_equal(next(iter(source)).image, first.image)
    assert [f.frame_id for f in a] == list(range(1, 60))


def test_close_from_another_thread_ends_the_iteration(clip):
    source, seen = FileSource(clip), []
    with source:
        for frame in source:
            seen.append(frame.frame_id)
            if frame.frame_id == 5:
                thread = threading.Thread(target=source.close)
                thread.start()
                thread.join()
    assert seen == list(range(6))
    source.close()
    with pytest.raises(SourceError, match="the source is closed"):
        next(iter(source))


def test_realtime_delivers_when_due_without_sleeping_here(clip):
    now = [50.0]

    def sleep(seconds):
        now[0] += seconds

    source = FileSource(clip, realtime=True, clocks=Clocks(lambda: now[0], lambda: NOON, sleep))
    assert source.live
    for frame in source:
        assert now[0] - 50 == pytest.approx(frame.pts, abs=1e-6)
        assert frame.captured_at == NOON + timedelta(seconds=frame.pts)
    stream = iter(source)
    now[0], began = 80.0, 80.0
    next(stream)
    now[0] += 0.51  # a slow consumer: what is overdue comes at once, with the time at which it was due
    assert [round(next(stream).pts * 30) for _ in range(15)] == list(range(1, 16)) and now[0] == began + 0.51
    next(stream)
    assert now[0] == pytest.approx(began + 16 / 30, abs=1e-3)


# --- broken video files


def corrupt(clip, path, at=0.5, n=300, seed=0):
    data = bytearray(clip.read_bytes())
    begin = data.find(b"mdat") + 8
    end = data.find(b"moov") if data.find(b"moov") > begin else len(data)
    place = begin + int((end - begin) * at)
    data[place : place + n] = np.random.default_rng(seed).integers(0, 256, n, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("seed", range(4))
def test_overwritten_bytes_are_skipped_counted_and_marked(clip, tmp_path, seed):
    whole = {round(p.pts * 30): p.image for p in decode_video(clip)}
    source = FileSource(corrupt(clip, tmp_path / "worn.mp4", seed=seed))
    frames = list(source)
    assert 30 <= len(frames) < 60 and source.skipped and source.skipped_count + len(frames) >= 60
    numbers = [round(f.pts * 30) for f in frames]
    assert numbers == sorted(set(numbers)) and numbers[-1] == 59  # true times, in order, to the end
    assert [f.frame_id for f in frames] == list(range(len(frames)))
    changed = [n for n, f in zip(numbers, frames) if not np.array_equal(f.image, whole[n])]
    marked = [n for n, f in zip(numbers, frames) if "damaged" in f.meta]
    assert set(changed) <= set(marked)  # nothing smeared is delivered as if it were whole
    assert len(marked) < 20  # the next key frame heals it
    list(source)
    assert source.skipped_count >= 1  # counts start anew with every iteration


@settings(max_examples=15, deadline=None)
@given(at=st.floats(0.02, 0.98), n=st.integers(1, 4000), seed=st.integers(0, 1000))
def test_whatever_is_overwritten_nothing_but_a_source_error_comes_out(clip, tmp_path_factory, at, n, seed):
    path = corrupt(clip, tmp_path_factory.mktemp("x") / "x.mp4", at, n, seed)
    try:
        frames = list(FileSource(path))
        assert 0 < len(frames) <= 60
    except SourceError as e:
        assert e.hint


def test_a_file_cut_behind_its_index_delivers_what_is_there_and_says_so(clip, tmp_path):
    front = tmp_path / "front.mp4"
    with av.open(str(front), "w", options={"movflags": "faststart"}) as out, av.open(str(clip)) as into:
        stream = out.add_stream_from_template(into.streams.video[0])
        for packet in into.demux(video=0):
            if packet.dts is None:
                continue
            packet.stream = stream
            out.mux(packet)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(front.read_bytes()[: front.stat().st_size * 6 // 10])
    source = FileSource(cut)
    frames = list(source)
    assert 10 < len(frames) < 60
    assert any(
        "the header promises 60 frames" in reason for _, reason in source.skipped
    ) and source.skipped_count >= 60 - len(frames)


def audio_only(path):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=44100)
        for _ in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 44100
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def test_unusable_files_are_source_errors_with_a_hint(clip, tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    (tmp_path / "text.mp4").write_text("not a video\n" * 99)
    (tmp_path / "notes.txt").write_text("not a video\n" * 99)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(50_000))
    (tmp_path / "list.ffconcat").write_text(f"ffconcat version 1.0\nfile '{clip.name}'\n")
    audio_only(tmp_path / "sound.mp4")
    empty = tmp_path / "nothing"
    empty.mkdir()
    cases = {
        "empty.mp4": "0 bytes",
        "cut.mp4": r"index \(moov\) is missing",
        "text.mp4": "not a video",
        "notes.txt": "a text file",
        "noise.mp4": "not a video",
        "list.ffconcat": "text file",
        "sound.mp4": "no video in this file, only audio",
        "missing.mp4": "file not found",
        "nothing": "no images in this folder",
    }
    for name, message in cases.items():
        with pytest.raises(SourceError, match=message) as caught:
            open_source(tmp_path / name)
        assert caught.value.hint and name in str(caught.value) and caught.value.exit_code == 3


def test_no_frame_is_made_up_when_none_can_be_decoded(clip, tmp_path):
    data = bytearray(clip.read_bytes())
    begin, end = data.find(b"mdat") + 8, data.find(b"moov")
    data[begin:end] = bytes(end - begin)
    (tmp_path / "zero.mp4").write_bytes(data)
    with pytest.raises(SourceError, match="no frame could be decoded"):
        open_source(tmp_path / "zero.mp4")


# --- images

WRITTEN = [
    s for s in (".png", ".jpg", ".bmp", ".webp", ".tiff", ".ppm", ".gif") if cv2.haveImageWriter(f"x{s}")
]  # OpenCV 4.11 writes no GIF


@settings(max_examples=40, deadline=None)
@given(width=st.integers(1, 400), height=st.integers(1, 400), suffix=st.sampled_from(WRITTEN))
def test_header_and_decoder_agree(width, height, suffix):
    data = cv2.imencode(suffix, np.full((height, width, 3), 77, np.uint8))[1].tobytes()
    assert image_header(io.BytesIO(data))[1:] == (width, height)
    assert read_image(data).shape == (height, width, 3)


@settings(max_examples=60, deadline=None)
@given(
    suffix=st.sampled_from([".png", ".jpg", ".bmp", ".webp", ".tiff"]),
    cut=st.floats(0, 0.97),
    flip=st.integers(0, 10_000),
)
def test_broken_images_are_errors_or_pictures_never_crashes(suffix, cut, flip):
    texture = cv2.resize(np.random.default_rng(0).integers(0, 255, (9, 13, 3), dtype=np.uint8), (130, 90))
    data = bytearray(cv2.imencode(suffix, texture)[1].tobytes())
    short = bytes(data[: int(len(data) * cut)])
    with pytest.raises(SourceError) as caught:
        read_image(short)
    assert caught.value.hint
    data[flip % len(data)] ^= 0xFF
    try:
        assert read_image(bytes(data)).dtype == np.uint8
    except SourceError:
        pass


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_pillow_does_it(tmp_path, form, orientation):
    Image, ImageOps = require("PIL.Image"), require("PIL.ImageOps")
    picture = np.zeros((40, 64, 3), np.uint8)
    picture[:16, :16], picture[24:, 40:] = (255, 0, 0), (0, 255, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{form.lower()}"
    Image.fromarray(picture).save(
        path,
        form,
        exif=exif,
        **({"lossless": True} if form == "WEBP" else {"quality": 100} if form == "JPEG" else {}),
    )
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))[..., ::-1]
    ours = read_image(path)
    assert ours.shape == expected.shape
    assert np.abs(ours.astype(int) - expected).mean() < 1.5


def test_depths_and_channels(tmp_path):
    colour = np.random.default_rng(0).integers(0, 256, (31, 17, 3), dtype=np.uint8)
    for name, stored, expected in [
        ("c.png", colour, colour),
        ("deep.png", colour.astype(np.uint16) * 257, colour),
        ("grey.png", colour[..., 0], np.dstack([colour[..., 0]] * 3)),
        ("rgba.png", np.dstack([colour, colour[..., :1]]), colour),
        ("deepgrey.png", colour[..., 0].astype(np.uint16) * 257, np.dstack([colour[..., 0]] * 3)),
    ]:
        cv2.imwrite(str(tmp_path / name), stored)
        assert np.array_equal(read_image(tmp_path / name), expected), name
    sixteen = np.random.default_rng(1).integers(0, 65536, (50, 50), dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "s.png"), sixteen)
    assert np.array_equal(read_image(tmp_path / "s.png")[..., 0], np.round(sixteen / 257).astype(np.uint8))
    twelve = sixteen >> 4
    cv2.imwrite(str(tmp_path / "t.png"), twelve)
    assert np.array_equal(
        read_image(tmp_path / "t.png", bits=12)[..., 0], np.round(twelve * (255 / 4095)).astype(np.uint8)
    )
    cv2.imwrite(str(tmp_path / "f.tiff"), colour.astype(np.float32) / 255)
    with pytest.raises(SourceError, match="float32 samples"):
        read_image(tmp_path / "f.tiff")


def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path):
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeeze, row = zlib.compressobj(1), bytes(20_001)
    body = b"".join(squeeze.compress(row) for _ in range(20_000)) + squeeze.flush()
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )
    (tmp_path / "huge.png").write_bytes(png)
    (tmp_path / "ok.png").write_bytes(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    with pytest.raises(SourceError, match="20000×20000 is 400 megapixels, above the limit of 100"):
        read_image(tmp_path / "huge.png")
    with pytest.raises(SourceError, match="above the limit of 5e-05"):
        read_image(tmp_path / "ok.png", max_pixels=50)
    source = FolderSource(tmp_path)
    assert [Path(f.meta["path"]).name for f in source] == ["ok.png"]
    assert source.skipped[0][0] == "huge.png" and "megapixels" in source.skipped[0][1]
    script = (
        "import resource, sys; from cv_pipeline.core.images import read_image; from cv_pipeline.core.types "
        "import SourceError\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; before = peak()\n"
        "try: read_image(sys.argv[1])\nexcept SourceError: print(peak() - before)"
    )
    grown = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "huge.png"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert int(grown.stdout) < 20_000  # kilobytes; decoding takes 400,000 or 1,200,000


def test_natural_order_and_unicode_names(tmp_path):
    for name in ("b10.png", "b2.png", "a 1.PNG", "Größe_3.jpg", "猫.png", "notes.txt", ".hidden.png"):
        data = (
            cv2.imencode(Path(name).suffix.lower() or ".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
            if name != "notes.txt"
            else b"x"
        )
        (tmp_path / name).write_bytes(data)
    source = FolderSource(tmp_path)
    assert [Path(f.meta["path"]).name for f in source] == [
        "a 1.PNG",
        "b2.png",
        "b10.png",
        "Größe_3.jpg",
        "猫.png",
    ]
    assert [name for name, _ in source.skipped] == ["notes.txt"]
    assert source.info.frame_count == 5


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=1, unique=True))
def test_natural_key_orders_numbers(numbers):
    names = [f"f{n}.png" for n in numbers]
    assert sorted(names, key=natural_key) == [f"f{n}.png" for n in sorted(numbers)]


def test_folder_with_a_broken_image_goes_on(tmp_path):
    for i in range(5):
        cv2.imwrite(str(tmp_path / f"{i}.png"), np.full((20, 30, 3), 10 * i, np.uint8))
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:30])
    (tmp_path / "3.png").write_bytes(b"")
    for i in range(5):
        os.utime(tmp_path / f"{i}.png", (1000 + i, 1000 + i))
    source = FolderSource(tmp_path, "photos")
    frames = list(source)
    assert [int(f.image[0, 0, 0]) for f in frames] == [0, 10, 40]
    assert [f.frame_id for f in frames] == [0, 1, 2]
    assert [f.captured_at.timestamp() for f in frames] == [1000, 1001, 1004]
    assert (
        source.skipped_count == 2
        and [name for name, _ in source.skipped] == ["2.png", "3.png"]
        and "0 bytes" in source.skipped[1][1]
    )
    timed = list(FolderSource(tmp_path, fps=10, start=NOON))
    assert [(f.captured_at - NOON).total_seconds() for f in timed] == [0, 0.1, 0.4]
    assert len(list(source)) == 3 and source.skipped_count == 2
    for i in (0, 1, 4):
        (tmp_path / f"{i}.png").write_bytes(b"no")
    with pytest.raises(SourceError, match="none of 5 images could be read"):
        list(FolderSource(tmp_path))


def test_skipped_names_are_bounded_their_count_is_not(tmp_path):
    for i in range(130):
        (tmp_path / f"{i}.jpg").write_bytes(b"broken")
    cv2.imwrite(str(tmp_path / "z.jpg"), np.zeros((4, 4, 3), np.uint8))
    source = FolderSource(tmp_path)
    assert len(list(source)) == 1
    assert (source.skipped_count, len(source.skipped)) == (130, 100)


# --- cameras


class FakeCapture:
    "Plays a list: an array, 'broken' (grabbed, not decodable); at its end nothing comes any more."

    def __init__(self, frames):
        self.frames, self.at, self.released, self.opened = frames, -1, 0, True

    def isOpened(self):
        return self.opened

    def get(self, key):
        return float("nan") if key == cv2.CAP_PROP_FPS else 64

    def grab(self):
        assert not self.released
        self.at += 1
        return self.at < len(self.frames)

    def retrieve(self):
        return (False, None) if isinstance(self.frames[self.at], str) else (True, self.frames[self.at])

    def release(self):
        self.released += 1


def camera(frames, **options):
    device, times = FakeCapture(frames), iter(NOON + timedelta(seconds=i) for i in range(1000))
    return CameraSource(0, open_capture=lambda *_: device, now=lambda: next(times), **options), device


def test_camera_skips_broken_frames_and_a_lost_one_is_an_error():
    good = np.zeros((4, 4, 3), np.uint8)
    source, device = camera([good, "broken", np.zeros((8, 6), np.uint8), good])
    frames = []
    with pytest.raises(SourceError, match="camera lost after 3 frames"):
        for frame in source:
            frames.append(frame)
    assert [f.captured_at for f in frames] == [
        NOON + timedelta(seconds=s) for s in (0, 2, 3)
    ]  # the broken one took its second
    assert frames[1].image.shape == (8, 6, 3) and source.skipped_count == 1 and source.live
    assert source.info.fps is None and source.source_id == "camera-0"
    source.close()
    source.close()
    assert device.released


def test_camera_that_only_sends_rubbish_is_lost():
    source, _ = camera(["broken"] * 50, max_failures=7)
    with pytest.raises(SourceError, match="7 consecutive broken frames"):
        list(source)


def test_camera_closes_while_somebody_holds_the_iteration():
    source, device = camera([np.zeros((4, 4, 3), np.uint8)] * 10)
    stream = iter(source)
    next(stream)
    source.close()
    assert device.released and list(stream) == []


def test_a_camera_that_cannot_be_opened():
    device = FakeCapture([])
    device.opened = False
    with pytest.raises(SourceError, match="cannot open the camera"):
        CameraSource(3, open_capture=lambda *_: device)


# --- one door


def test_open_source_looks_at_the_content(clip, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 6, 3), np.uint8))
    (tmp_path / "a.png").rename(tmp_path / "no_suffix")
    (tmp_path / "video.png").write_bytes(clip.read_bytes())
    assert isinstance(open_source(tmp_path / "no_suffix"), ImageSource)
    assert isinstance(open_source(str(clip), realtime=True, fps=3, bits=12), FileSource)
    assert isinstance(open_source(tmp_path), FolderSource)
    with pytest.raises(SourceError, match="not an image"):
        open_source(tmp_path / "video.png")
    with pytest.raises(SourceError) as caught:
        open_source("rtsp://user:pass@host/1")
    assert "pass" not in str(caught.value)
    assert masked("http://a:b@c/d") == "http://***@c/d" and masked(Path("x.mp4")) == "x.mp4"


def test_the_drawn_line_is_a_source_like_others(clip):
    film, line, other = open_sources([clip, "line:frames=2,width=320,height=240", "line:frames=1,seed=3"])
    assert (line.source_id, other.source_id) == ("line", "line-2")
    assert [frame.size for frame in line] == [(320, 240)] * 2 and line.status().fps == 25
    assert open_source("line:", realtime=True).live and not line.live
    film.close()
    with pytest.raises(ConfigError, match="unknown setting of the line: 'colour'"):
        open_source("line:colour=red")


def test_many_sources_have_names_of_their_own(clip, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "v.mp4").write_bytes(clip.read_bytes())
    with_names = open_sources([tmp_path / "a/v.mp4", tmp_path / "b/v.mp4", clip])
    assert [s.source_id for s in with_names] == ["a_v", "b_v", "clip"]
    for s in with_names:
        s.close()
    with pytest.raises(SourceError, match="cannot open 2 of 3 sources") as caught:
        open_sources([clip, tmp_path / "no", tmp_path / "nono"])
    assert "file not found" in str(caught.value)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["a/x.mp4", "b/x.mp4", "x.mp4", "0", "1", "y", "a/x-2.mp4", "/"]), max_size=12)
)
def test_unique_ids_are_unique(uris):
    names = unique_ids(uris)
    assert len(set(names)) == len(uris) and all(names)


@pytest.mark.slow
@pytest.mark.real
def test_person_video_equals_opencv(real_data):
    path = real_data / "videos/one-by-one-person-detection.mp4"
    source, capture = FileSource(path, start=NOON), cv2.VideoCapture(str(path))
    count = 0
    for frame in source:
        good, expected = capture.read()
        assert good and frame.pts == pytest.approx(count / 10, abs=1e-3)
        if count % 50 == 0:
            assert np.array_equal(frame.image, expected)
        count += 1
    assert count == 1394 == source.info.frame_count and source.info.fps == 10 and source.skipped_count == 0
