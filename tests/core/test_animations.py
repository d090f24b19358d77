"""Files that hold many pictures: counted without decoding, played as Pillow plays them, damage named."""

import io
import struct

import cv2
import numpy as np
import pytest

from cv_pipeline.core.animations import moving_pictures, picture_count
from cv_pipeline.core.images import tiff_pages, webp_chunks
from cv_pipeline.core.types import SourceError
from cv_pipeline.video.sources import FolderSource, ImageSource, open_source
from tests.helpers.services import require

Image = require("PIL.Image")
ImageSequence = require("PIL.ImageSequence")

WAIT = [100, 50, 200, 100, 1000, 40, 100, 100, 70, 100, 100, 100]


def drawn(count=12, size=(96, 64)):
    "Pictures in which a box moves over a texture."
    texture = cv2.resize(np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8), size)
    pictures = []
    for i in range(count):
        image = texture.copy()
        image[10:40, 5 + 5 * i : 25 + 5 * i] = (30, 200, 40)
        pictures.append(Image.fromarray(image))
    return pictures


def saved(path, pictures=None, **options):
    "An animation, or pages."
    pictures = pictures or drawn()
    if path.suffix not in (".tif", ".tiff"):
        options = {"duration": WAIT[: len(pictures)], **options}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **options)
    return path


KINDS = {
    "a.gif": {},
    "a.png": {},
    "a.webp": {"lossless": True},
    "lossy.webp": {"quality": 80},
    "a.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
}


def by_pillow(path):
    "Pictures and times as Pillow has them."
    pictures, times, at = [], [], 0
    for frame in ImageSequence.Iterator(Image.open(path)):
        pictures.append(np.asarray(frame.convert("RGB"))[..., ::-1])
        times.append(at / 1000)
        at += frame.info.get("duration", 100)
    return pictures, times


@pytest.mark.parametrize("name", KINDS)
def test_all_pictures_are_played_with_their_times(tmp_path, name):
    path = saved(tmp_path / name, **KINDS[name])
    pictures, times = by_pillow(path)
    source = open_source(path)
    frames = list(source)
    assert len(frames) == len(pictures) == 12
    assert [f.pts for f in frames] == pytest.approx(times)
    assert max(np.abs(f.image.astype(int) - p).max() for f, p in zip(frames, pictures)) <= 1
    assert source.skipped_count == 0
    assert [f.pts for f in source] == pytest.approx(times)  # again


@pytest.mark.parametrize("name", KINDS)
def test_pictures_are_counted_as_pillow_counts_them(tmp_path, name):
    for count in (1, 2, 7):
        path = saved(tmp_path / name, drawn(count), **KINDS[name])
        assert picture_count(path) == count == getattr(Image.open(path), "n_frames", 1)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp"])
def test_a_still_picture_is_one_picture_and_one_frame(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    drawn(1)[0].save(path)
    source = open_source(path)
    assert picture_count(path) == 1 and isinstance(source, ImageSource)
    assert len(list(source)) == 1


def test_a_preview_in_a_tiff_is_no_page(tmp_path):
    path = saved(tmp_path / "x.tif", drawn(3))
    data = bytearray(path.read_bytes())
    at = tiff_pages(data)[1]
    count = struct.unpack_from("<H", data, at)[0]
    first = struct.unpack_from("<H", data, at + 2)[0]
    assert count and first == 256  # the width: made to be NewSubfileType 1, a smaller copy
    struct.pack_into("<HHII", data, at + 2, 254, 4, 1, 1)
    path.write_bytes(data)
    assert picture_count(path) == 2


def test_in_a_folder_the_other_pictures_of_a_file_are_counted(tmp_path):
    for name, options in KINDS.items():
        saved(tmp_path / name, **options)
    source = FolderSource(tmp_path)
    assert len(list(source)) == 6
    assert source.skipped_count == 6 * 11
    assert {name for name, _ in source.skipped} == set(KINDS)
    assert all("11 more pictures" in why for _, why in source.skipped)


def test_a_damaged_page_is_left_out_and_named(tmp_path):
    path = saved(tmp_path / "x.tif", compression="tiff_adobe_deflate")
    data = bytearray(path.read_bytes())
    at = tiff_pages(data)[5] - 60
    data[at : at + 30] = bytes(30)
    path.write_bytes(data)
    source = open_source(path)
    assert len(list(source)) == 11
    assert source.skipped_count == 1 and source.skipped[0][0].startswith("page ")


def test_a_damaged_frame_of_a_webp_is_left_out_and_those_after_it_marked(tmp_path):
    noise = np.random.default_rng(0)
    pictures = [Image.fromarray(noise.integers(0, 255, (64, 96, 3), np.uint8)) for _ in range(6)]
    path = saved(tmp_path / "x.webp", pictures, quality=90)
    data = bytearray(path.read_bytes())
    at, size = [(at, n) for name, at, n in webp_chunks(data) if name == b"ANMF"][3]
    data[at + size // 2 : at + size // 2 + 200] = bytes(200)
    path.write_bytes(data)
    source = open_source(path)
    frames = list(source)
    assert source.skipped_count == 1 and source.skipped[0][0] == "frame 3"
    assert [bool(f.meta.get("damaged")) for f in frames] == [False, False, False, True, True]


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_cut_animation_is_an_error_or_counts_what_is_missing(tmp_path, name, part):
    path = saved(tmp_path / name, **KINDS[name])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    try:
        source = open_source(path)
        came = len(list(source))
    except SourceError as e:
        assert e.hint and e.exit_code == 3
        return
    assert came + source.skipped_count >= 2 or came == 1
    assert came < 12


def test_a_large_animation_is_refused_before_it_is_decoded(tmp_path):
    path = saved(tmp_path / "x.webp", drawn(3))
    with pytest.raises(SourceError, match="above the limit"):
        list(moving_pictures(path, print, max_pixels=1000))


@pytest.mark.parametrize("name", ["x.png", "x.gif"])
def test_a_huge_one_for_ffmpeg_is_refused_too(tmp_path, name):
    path = saved(tmp_path / name, drawn(3))
    data = bytearray(path.read_bytes())
    size = struct.pack("<HH", 60_000, 60_000) if name == "x.gif" else struct.pack(">II", 30_000, 30_000)
    at = 6 if name == "x.gif" else 16
    data[at : at + len(size)] = size
    path.write_bytes(data)
    with pytest.raises(SourceError, match="above the limit of 100 megapixels"):
        open_source(path)


def test_no_count_is_made_of_what_is_no_image(tmp_path):
    for name, data in {"x.txt": b"hello", "x.gif": b"GIF89a" + bytes(7), "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
        assert picture_count(tmp_path / name) == 1
    assert picture_count(tmp_path / "nowhere") == 1


def test_a_moving_avif_is_played(tmp_path):
    buffer = io.BytesIO()
    try:
        pictures = drawn()
        pictures[0].save(buffer, "AVIF", save_all=True, append_images=pictures[1:], duration=100)
    except (KeyError, OSError):
        pytest.skip("Pillow writes no AVIF here")
    (tmp_path / "x.avif").write_bytes(buffer.getvalue())
    frames = list(open_source(tmp_path / "x.avif"))
    assert len(frames) == 12
    assert [f.pts for f in frames] == pytest.approx([i / 10 for i in range(12)], abs=1e-3)
