"""Decoding: who decodes and why, and recordings as the field delivers them."""

import io
import itertools
from fractions import Fraction
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError, SourceError
from cv_pipeline.video import decoding
from cv_pipeline.video.decoding import (
    DEVICES,
    HARDWARE,
    DecoderChoice,
    TimeLine,
    choose_decoder,
    decode_video,
    describe_decoder,
    nominal_rate,
    probe_device,
    probe_video,
)
from cv_pipeline.video.sources import FileSource, open_source


def picture(i, size):
    "Texture that moves, and the number i in eight black or white fields at the top: survives any codec."
    width, height = size
    texture = cv2.resize(
        np.random.default_rng(0).integers(40, 160, (9, 12, 3), dtype=np.uint8),
        size,
        interpolation=cv2.INTER_CUBIC,
    )
    image = np.roll(texture, 3 * i, axis=1)
    for bit in range(8):
        image[: height // 4, bit * width // 8 : (bit + 1) * width // 8] = 255 * (i >> bit & 1)
    return image


def number(image):
    "The number that `picture` wrote."
    height, width = image.shape[:2]
    return sum(1 << bit for bit in range(8) if image[height // 8, (2 * bit + 1) * width // 16].mean() > 128)


def make(
    target,
    times,
    size=(160, 120),
    codec="libx264",
    pix_fmt="yuv420p",
    form=None,
    options=None,
    rate=25,
    tick=Fraction(1, 1000),
    mux=None,
):
    "Encode `picture(i)` at `times` (seconds) into a file or buffer."
    with av.open(
        target if isinstance(target, io.BytesIO) else str(target), "w", format=form, options=mux or {}
    ) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = tick
        for i, seconds in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(i, size), format="bgr24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = round(seconds / tick), tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return target


# --- who decodes


@given(
    st.dictionaries(st.sampled_from(DEVICES), st.none() | st.text(min_size=1, max_size=5)),
    st.sampled_from(HARDWARE),
)
def test_the_first_device_that_works_decodes_and_else_the_reason_is_kept(answers, hardware):
    asked = []

    def probe(device):
        asked.append(device)
        return answers.get(device, "not there")

    choice = choose_decoder(hardware, probe)
    tried = [] if hardware == "none" else DEVICES if hardware == "auto" else [hardware]
    works = [d for d in tried if d in answers and answers[d] is None]
    assert choice.requested == hardware and choice.used == (works[0] if works else "software")
    assert asked == list(itertools.takewhile(lambda d: d not in works, tried)) + works[:1]
    assert bool(choice.reason) == (not works and hardware != "none")
    assert all(device in choice.reason for device in tried if not works)
    assert choose_decoder(choice) is choice
    text = describe_decoder("h264", choice, 2)
    assert text == f"h264, {choice.used}" if works else text.startswith("h264, software, 2 threads")


@pytest.mark.parametrize("hardware", ["gpu", "", "CUDA", None])
def test_a_device_that_does_not_exist_is_a_configuration_error(hardware):
    with pytest.raises(ConfigError, match="unknown decoder"):
        choose_decoder(hardware)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_missing_here_is_said(device):
    why = probe_device(device)
    if why is None:
        pytest.skip(f"{device} is here")
    assert any(
        part in why
        for part in (
            "not supported by this build",
            "no NVIDIA driver",
            "no graphics device",
            "the device rejects it",
        )
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return make(
        tmp_path_factory.mktemp("clip") / "clip.mp4",
        [i / 25 for i in range(50)],
        options={"bf": "2", "g": "10"},
    )


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_that_promises_and_then_fails_is_replaced(clip, device, monkeypatch):
    "The probe says yes; PyAV, really called, says no. Frames come all the same, and the reason is kept."
    if probe_device(device) is None:
        pytest.skip(f"{device} is here")
    monkeypatch.setattr(decoding, "probe_device", lambda device: None)
    info = probe_video(clip, hardware=choose_decoder(device, lambda device: None))
    assert info.choice.requested == device and info.choice.used == "software" and info.choice.reason
    assert [number(p.image) for p in decode_video(clip, hardware=info.choice)] == list(range(50))


def test_sources_report_the_choice(clip):
    for hardware in ("auto", "none", "cuda"):
        source = FileSource(clip, hardware=hardware)
        assert (
            source.info.choice.requested == hardware
            and source.info.decoder.startswith("h264, ")
            and len(list(source)) == 50
        )
    assert open_source(clip, hardware="none").info.choice == DecoderChoice("none")
    with pytest.raises(ConfigError, match="unknown decoder"):
        FileSource(clip, hardware="gpu")


def test_a_decoder_by_name_gives_the_same_pictures(clip):
    """What QSV is given (a context of its own, with the stream's extradata) is enough: shown with the
    software decoder by name."""
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        named = av.CodecContext.create("h264", "r")
        named.extradata = stream.codec_context.extradata
        decoder = decoding.PacketDecoder(stream, named, lambda *what: pytest.fail(str(what)))
        got = [
            (d.pts, decoding.to_bgr(d.frame))
            for packet in container.demux(stream)
            for d in decoder.feed(packet)
        ]
    for (pts, image), expected in zip(got, decode_video(clip), strict=True):
        assert pts == expected.pts and np.array_equal(image, expected.image)


# --- recordings as the field delivers them


@settings(max_examples=25, deadline=None)
@given(
    bframes=st.integers(0, 4),
    gop=st.integers(1, 30),
    count=st.integers(1, 40),
    container=st.sampled_from(["mp4", "matroska", "mpegts"]),
)
def test_b_frames_come_in_display_order(tmp_path_factory, bframes, gop, count, container):
    path = tmp_path_factory.mktemp("b") / "x.bin"
    make(
        path,
        [i / 25 for i in range(count)],
        size=(64, 48),
        form=container,
        options={"bf": str(bframes), "g": str(gop), "b-adapt": "0", "preset": "ultrafast"},
    )
    pictures = list(decode_video(path))
    assert [number(p.image) for p in pictures] == list(range(count))
    assert np.allclose([p.pts for p in pictures], np.arange(count) / 25, atol=2e-3)


@pytest.mark.parametrize(
    ("form", "start"),
    [
        *itertools.product(["matroska", "mp4", "mpegts"], [0.0, 36_000.0, 95_000.0]),
        ("mpegts", -3.0),
        ("mov", 7.3),
    ],
)
def test_wherever_the_stamps_begin_a_file_begins_at_zero(tmp_path, start, form):
    "Ten hours, and past the 26.5 hours that MPEG-TS can count."
    path = make(tmp_path / "x.bin", [start + i / 25 for i in range(40)], form=form, options={"bf": "2"})
    assert np.allclose([p.pts for p in decode_video(path)], np.arange(40) / 25, atol=2e-3)
    frames = list(FileSource(path))
    assert (frames[-1].captured_at - frames[0].captured_at).total_seconds() == pytest.approx(
        39 / 25, abs=3e-3
    )


def test_what_lies_before_zero_in_an_mp4_is_not_shown_and_the_rest_begins_at_zero(tmp_path):
    path = make(tmp_path / "x.mp4", [-0.4 + i / 25 for i in range(40)], options={"bf": "2"})
    pictures = list(decode_video(path))
    assert [number(p.image) for p in pictures] == list(range(10, 40)) and np.allclose(
        [p.pts for p in pictures], np.arange(30) / 25, atol=2e-3
    )


def test_stamps_that_wrap_around_in_the_middle(tmp_path):
    wrap = 2**33 / 90_000  # MPEG-TS counts in 33 bits
    path = make(
        tmp_path / "x.ts", [wrap - 2 + i / 25 for i in range(100)], form="mpegts", options={"bf": "0"}
    )
    pts = [p.pts for p in decode_video(path)]
    assert len(pts) == 100 and np.allclose(np.diff(pts), 0.04, atol=2e-3)


def test_a_long_pause_is_a_long_pause(tmp_path):
    "Ten hours between two frames of a camera that films on motion."
    path = make(tmp_path / "x.mkv", [0, 0.04, 36_000, 36_000.04])
    frames = list(FileSource(path))
    assert [round(f.pts, 2) for f in frames] == [0, 0.04, 36_000, 36_000.04]
    assert (frames[2].captured_at - frames[1].captured_at).total_seconds() == pytest.approx(
        35_999.96, abs=1e-2
    )


def test_a_header_without_a_rate_or_with_an_impossible_one(tmp_path):
    raw = io.BytesIO()
    make(raw, [i / 25 for i in range(20)], form="h264", options={"bf": "0"})
    (tmp_path / "raw.h264").write_bytes(raw.getvalue())
    source = FileSource(tmp_path / "raw.h264")
    frames = list(source)
    assert len(frames) == 20 and [number(f.image) for f in frames] == list(range(20))
    assert source.info.fps is None or 0 < source.info.fps <= 1000
    data = bytearray(
        make(
            tmp_path / "x.avi", [i / 25 for i in range(20)], codec="mpeg4", tick=Fraction(1, 25)
        ).read_bytes()
    )
    at = data.find(b"strh") + 8 + 20  # dwScale, dwRate of the video's stream header
    assert int.from_bytes(data[at + 4 : at + 8], "little") / int.from_bytes(data[at : at + 4], "little") == 25
    for name, scale, rate in (("zero.avi", 0, 0), ("rate0.avi", 1, 0), ("clock.avi", 1, 90_000)):
        data[at : at + 8] = scale.to_bytes(4, "little") + rate.to_bytes(4, "little")
        (tmp_path / name).write_bytes(data)
        source = FileSource(tmp_path / name)
        times = [f.captured_at for f in source]
        assert len(times) == 20 and times == sorted(set(times)), name
        assert source.info.fps is None or 0 < source.info.fps <= 1000, name


@pytest.mark.parametrize(
    ("average", "guessed", "expected"),
    [
        (0, None, None),
        (None, 25, 25.0),
        (Fraction(90_000), Fraction(30_000, 1001), 30_000 / 1001),
        (90_000, 90_000, None),
    ],
)
def test_a_rate_is_believed_only_where_it_can_be_true(average, guessed, expected):
    assert nominal_rate(SimpleNamespace(average_rate=average, guessed_rate=guessed)) == expected


def test_pieces_glued_together_go_on_in_time(tmp_path):
    pieces = [
        make(
            tmp_path / f"{k}.ts", [i / 25 for i in range(60)], size=size, form="mpegts", options={"g": "10"}
        ).read_bytes()
        for k, size in enumerate([(160, 120), (320, 240), (160, 120)])
    ]
    (tmp_path / "glued.ts").write_bytes(b"".join(pieces))
    source = FileSource(tmp_path / "glued.ts")
    frames = list(source)
    assert {f.size for f in frames} == {(160, 120), (320, 240)} and len(frames) >= 175
    steps = np.diff([f.pts for f in frames])
    assert (steps > 0).all() and steps.max() < 0.5


@given(st.lists(st.floats(-1e5, 1e5), max_size=60), st.floats(0.1, 5))
def test_a_time_line_never_stands_still(stamps, jump):
    line = TimeLine(jump)
    times = [line.at(t) for t in stamps]
    assert all(b > a for a, b in zip(times, times[1:]))
    assert times[:1] == stamps[:1]


@given(st.lists(st.integers(1, 900), max_size=60))
def test_a_time_line_leaves_good_times_alone(gaps):
    stamps = [float(t) / 1000 for t in np.cumsum([0, *gaps])]
    line = TimeLine()
    assert [line.at(t) for t in stamps] == stamps and line.jumps == 0


@pytest.mark.parametrize(
    ("pix_fmt", "codec"),
    [
        ("yuv444p", "libx264"),
        ("yuv422p", "libx264"),
        ("yuv420p10le", "libx264"),
        ("yuvj420p", "mjpeg"),
        ("gray", "libx264"),
    ],
)
def test_pixel_formats(tmp_path, pix_fmt, codec):
    path = make(
        tmp_path / "x.mkv", [i / 25 for i in range(5)], codec=codec, pix_fmt=pix_fmt, tick=Fraction(1, 25)
    )
    images = [p.image for p in decode_video(path)]
    assert [number(i) for i in images] == list(range(5)) and all(
        i.dtype == np.uint8 and i.shape == (120, 160, 3) for i in images
    )


@pytest.mark.parametrize("size", [(161, 121), (34, 2), (2, 34), (1922, 2)])
@pytest.mark.slow
def test_odd_sizes(tmp_path, size):
    path = make(tmp_path / "x.mkv", [0, 0.04], size=size, pix_fmt="yuv444p")
    source = FileSource(path)
    assert [f.size for f in source] == [size, size] and (source.info.width, source.info.height) == size


@pytest.mark.parametrize(
    ("form", "options"),
    [("matroska", None), ("mpegts", None), ("mp4", {"movflags": "frag_keyframe+empty_moov"}), ("avi", None)],
)
@pytest.mark.parametrize("keep", [0.35, 0.8])
def test_a_recording_that_was_cut_off_plays_to_where_it_goes(tmp_path, form, options, keep):
    path = make(
        tmp_path / "x.bin",
        [i / 25 for i in range(80)],
        codec="mpeg4" if form == "avi" else "libx264",
        form=form,
        mux=options,
        tick=Fraction(1, 25),
        options={"g": "10"},
    )
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    frames = list(FileSource(path))
    assert 3 < len(frames) < 80 and [number(f.image) for f in frames[:-2]] == list(range(len(frames) - 2))


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    form=st.sampled_from(["matroska", "mpegts", "avi"]),
    at=st.floats(0.1, 0.9),
    n=st.integers(1, 3000),
    seed=st.integers(0, 99),
)
def test_broken_bytes_in_any_container_are_skipped_and_time_goes_on(tmp_path_factory, form, at, n, seed):
    path = tmp_path_factory.mktemp("x") / "x.bin"
    make(
        path,
        [i / 25 for i in range(60)],
        codec="mpeg4" if form == "avi" else "libx264",
        form=form,
        tick=Fraction(1, 25),
        options={"g": "12"},
    )
    data = bytearray(path.read_bytes())
    place = int(len(data) * at)
    data[place : place + n] = np.random.default_rng(seed).bytes(n)
    path.write_bytes(data[:])
    try:
        frames = list(FileSource(path))
    except SourceError as e:
        assert e.hint
    else:
        pts = [f.pts for f in frames if f.pts is not None]
        assert frames and all(b > a for a, b in zip(pts, pts[1:]))


def test_pictures_beside_sound_and_cover_art(tmp_path):
    "Sound in the same file changes nothing; a song with a cover is no video."
    path = tmp_path / "both.mp4"
    with av.open(str(path), "w") as out:
        sound, stream = out.add_stream("aac", rate=44100), out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for i in range(25):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i, (160, 120)), format="bgr24")))
            wave = av.AudioFrame.from_ndarray(np.zeros((1, 1764), np.float32), format="fltp", layout="mono")
            wave.sample_rate = 44100
            out.mux(sound.encode(wave))
        out.mux(stream.encode())
        out.mux(sound.encode())
    assert [number(p.image) for p in decode_video(path)] == list(range(25))


@pytest.mark.parametrize("cores, threads", [(0.5, 1), (1.0, 1), (1.9, 1), (2.0, 2), (64.0, 4)])
def test_a_decoder_takes_no_more_threads_than_cores_it_may_use(monkeypatch, cores, threads):
    "Of a container's quota and an affinity, not of the machine."
    monkeypatch.setattr(decoding, "usable_cores", lambda: cores)
    assert decoding.thread_count(None) == threads


def test_a_number_of_decoder_threads_that_is_given_stays(monkeypatch):
    monkeypatch.setattr(decoding, "usable_cores", lambda: 1.0)
    assert decoding.thread_count(3) == 3
