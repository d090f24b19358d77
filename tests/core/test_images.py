"""Still images: turned once whatever OpenCV does, damage refused, the odd but whole read, HEIC and AVIF."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest

from cv_pipeline.core import images
from cv_pipeline.core.images import decode_mask, encode_mask, image_header, read_image, tiff_pages, upright
from cv_pipeline.core.types import DataError, SourceError
from tests.helpers.services import require

Image = require("PIL.Image")
ImageOps = require("PIL.ImageOps")


def scene(size=(320, 240), seed=0, noise=12):
    "A picture with structure and sensor noise, RGB."
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (12, 16, 3), np.uint8)
    smooth = cv2.resize(small, size, interpolation=cv2.INTER_CUBIC).astype(float)
    return Image.fromarray(np.clip(smooth + rng.normal(0, noise, smooth.shape), 0, 255).astype(np.uint8))


def saved(picture, form, **options):
    "A picture as Pillow writes it."
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def by_pillow(data):
    "What Pillow shows, upright, BGR."
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    return np.asarray(picture.convert("RGB"))[..., ::-1]


def difference(a, b):
    "Mean difference of two pictures; huge when their shapes differ."
    return np.abs(a.astype(int) - b).mean() if a.shape == b.shape else 1e9


# --- turned once


FORMS = {"jpeg": {"quality": 98}, "png": {}, "webp": {"lossless": True}, "tiff": {}}


def turned(form, orientation):
    "A picture whose tag says that it is to be turned."
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(scene((64, 40), noise=0), form.upper(), exif=exif, **FORMS[form])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_tag_is_taken_out_of_the_bytes(form, orientation):
    data, said = upright(turned(form, orientation), form)
    assert said == orientation
    left = Image.open(io.BytesIO(data))
    left.load()  # checksums included
    assert left.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("orientation", [3, 5, 6, 8])
def test_a_decoder_that_turns_everything_changes_nothing(form, orientation, monkeypatch):
    "As a newer OpenCV may do it: by EXIF in every format, whatever the flags say."
    data, real = turned(form, orientation), cv2.imdecode
    expected = by_pillow(data)

    def newer(buffer, flags):
        try:
            tag = Image.open(io.BytesIO(bytes(buffer))).getexif().get(0x0112, 1)
        except OSError:  # a file that is cut on purpose
            tag = 1
        image = real(np.frombuffer(upright(bytes(buffer), form)[0], np.uint8), flags)
        return image if image is None else images._TURN.get(tag, np.asarray)(image)

    monkeypatch.setattr(cv2, "imdecode", newer)
    assert difference(read_image(data), expected) < 1.5


def test_a_picture_without_a_tag_or_with_a_broken_one_is_left_alone():
    plain = saved(scene(), "JPEG")
    assert upright(plain, "jpeg") == (plain, 1)
    broken = turned("jpeg", 6)
    at = broken.index(b"Exif\0\0") + 6
    broken = broken[: at + 4] + b"\xff\xff\xff\x7f" + broken[at + 8 :]  # the directory lies nowhere
    assert upright(broken, "jpeg") == (broken, 1)
    assert read_image(broken).shape == (40, 64, 3)


# --- the same pixels, and what is odd and whole


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"optimize": True},
        {"quality": 100, "subsampling": 0},
        {"subsampling": 1},
        {"restart_marker_blocks": 4},
        {"keep_rgb": True},
    ],
    ids=str,
)
def test_jpeg_pixels_are_those_of_opencv(options):
    data = saved(scene(), "JPEG", **options)
    assert np.array_equal(read_image(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpeg_pixels_are_those_of_opencv(mode):
    data = saved(scene().convert(mode), "JPEG")
    assert np.array_equal(read_image(data), cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))


BASE, PROGRESSIVE = saved(scene(), "JPEG", quality=85), saved(scene(), "JPEG", progressive=True)
TABLE = BASE.index(b"\xff\xdb")
ODD = {
    "no end marker": BASE[:-2],
    "half an end marker": BASE[:-1],
    "progressive, no end marker": PROGRESSIVE[:-2],
    "stray bytes before the end": BASE[:-2] + b"\x12\x34\x56\x78\x9a\xbc" + BASE[-2:],
    "fill bytes before the end": BASE[:-2] + b"\xff\xff\xff" + BASE[-2:],
    "junk between segments": BASE[:TABLE] + b"\0\0\0" + BASE[TABLE:],
    "zeros behind the end": BASE + bytes(5000),
    "another picture behind the end": BASE + PROGRESSIVE,
    "text behind the end": BASE + b"hello",
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_jpeg_that_is_whole_is_read(name):
    whole = PROGRESSIVE if name.startswith("progressive") else BASE
    assert np.array_equal(read_image(ODD[name]), read_image(whole))


INTACT = [
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_lzw", "tiffinfo": {317: 2}}),
    ("TIFF", {"compression": "tiff_adobe_deflate"}),
    ("TIFF", {"compression": "packbits"}),
    ("TIFF", {"compression": "jpeg"}),
    ("TIFF", {"compression": "group4"}),
    ("WEBP", {}),
    ("WEBP", {"quality": 1}),
    ("WEBP", {"quality": 100, "method": 6}),
    ("WEBP", {"lossless": True}),
    ("WEBP", {"lossless": True, "method": 6}),
]
PICTURES = {
    "scene": scene(),
    "tiny": scene((31, 17)),
    "one pixel": scene((1, 1)),
    "black": Image.new("RGB", (640, 480)),
    "one colour": Image.new("RGB", (333, 77), (200, 30, 40)),
    "grey": scene().convert("L"),
    "alpha": scene().convert("RGBA"),
    "palette": scene().convert("P"),
    "bits": scene().convert("1"),
    "grey and alpha": scene().convert("LA"),
}


@pytest.mark.parametrize("form, options", INTACT, ids=str)
@pytest.mark.parametrize("name", PICTURES)
def test_no_intact_picture_is_refused(form, options, name):
    try:
        data = saved(PICTURES[name], form, **options)
    except (OSError, ValueError, KeyError):
        pytest.skip("Pillow does not write this")
    assert read_image(data).shape[1::-1] == PICTURES[name].size


@pytest.mark.parametrize("packed", [1, 5, 8, 32773])
@pytest.mark.parametrize("size", [(64, 48), (301, 77)])
def test_no_intact_tiff_of_opencv_is_refused(packed, size):
    image = np.asarray(scene(size))
    for stored in (image, image[..., 0], np.dstack([image, image[..., :1]]), image.astype(np.uint16) * 257):
        data = cv2.imencode(".tiff", stored, [cv2.IMWRITE_TIFF_COMPRESSION, packed])[1].tobytes()
        assert np.array_equal(read_image(data)[..., 0], image[..., 0])


# --- damage


def overwritten(data, seed, count):
    "A file with so many random bytes in its middle."
    rng = np.random.default_rng(seed)
    at = int(rng.integers(len(data) // 4, len(data) * 3 // 4 - count))
    return data[:at] + rng.integers(0, 256, count, np.uint8).tobytes() + data[at + count :]


DAMAGED = {
    "jpeg": saved(scene(), "JPEG", quality=90),
    "jpeg with restart markers": saved(scene(), "JPEG", quality=90, restart_marker_blocks=8),
    "webp": saved(scene(), "WEBP", quality=80),
    "png": saved(scene(), "PNG"),
    "lzw": saved(scene(), "TIFF", compression="tiff_lzw"),
    "deflate": saved(scene(), "TIFF", compression="tiff_adobe_deflate"),
    "jpeg in tiff": saved(scene(), "TIFF", compression="jpeg"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_overwritten_in_the_middle_is_refused(name):
    "Of 20 files with 400 random bytes in the middle 18 at least; the others have to be lucky."
    seen = []
    for seed in range(20):
        try:
            read_image(overwritten(DAMAGED[name], seed, 400))
            seen.append(seed)
        except SourceError as e:
            assert e.hint and e.exit_code == 3
    assert len(seen) <= 2


@pytest.mark.parametrize("name", ["jpeg", "jpeg with restart markers", "webp", "png", "lzw", "deflate"])
@pytest.mark.parametrize("hole", [1024, 4096])
def test_a_hole_of_zeros_is_refused(name, hole):
    data = DAMAGED[name]
    at = len(data) // 2
    with pytest.raises(SourceError, match="damaged|broken"):
        read_image(data[:at] + bytes(hole) + data[at + hole :])


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("rest", ["nothing", "zeros", "an end marker"])
def test_half_a_file_is_refused(name, rest):
    data = DAMAGED[name]
    half = (
        data[: len(data) // 2] if not name.startswith("j") or "tiff" in name else data[: len(data) * 2 // 3]
    )
    more = {"nothing": b"", "zeros": bytes(len(data) - len(half)), "an end marker": b"\xff\xd9"}[rest]
    with pytest.raises(SourceError, match="damaged|broken"):
        read_image(half + more)


def test_a_progressive_jpeg_without_its_last_scans_and_end_is_refused():
    last = PROGRESSIVE.rindex(b"\xff\xda")
    with pytest.raises(SourceError, match="Premature end"):
        read_image(PROGRESSIVE[:last])


@pytest.mark.slow
def test_a_deflated_strip_of_a_bomb_is_checked_in_pieces():
    "A strip that unpacks to a gigabyte is judged without a gigabyte."
    import tracemalloc

    squeeze, strip = zlib.compressobj(1), []
    for _ in range(100):
        strip.append(squeeze.compress(bytes(10_000_000)))
    strip = b"".join([*strip, squeeze.flush()])
    tracemalloc.start()
    assert images._inflates(strip, {1}) is True
    assert images._inflates(strip[:-1], {1}) is False
    assert tracemalloc.get_traced_memory()[1] < 40_000_000
    tracemalloc.stop()


def test_a_strip_outside_of_the_file_and_a_loop_of_pages_end():
    data = saved(scene((32, 20)), "TIFF")
    first = tiff_pages(data)
    assert len(first) == 1
    at = first[0]
    count = struct.unpack_from("<H", data, at)[0]
    looped = bytearray(data)
    struct.pack_into("<I", looped, at + 2 + 12 * count, at)
    assert tiff_pages(bytes(looped)) == first
    with pytest.raises(SourceError, match="broken|damaged"):
        read_image(data[: len(data) - 500])


# --- HEIC and AVIF


def heif(kind, **options):
    "A picture that a phone might send."
    if kind == "heic":
        require("pillow_heif").register_heif_opener()
    try:
        return saved(scene(), "HEIF" if kind == "heic" else "AVIF", quality=90, **options)
    except (KeyError, OSError):
        pytest.skip(f"Pillow writes no {kind} here")


@pytest.mark.parametrize("kind", ["heic", "avif"])
def test_heic_and_avif_are_read(kind):
    data = heif(kind)
    assert image_header(io.BytesIO(data)) == (kind, 320, 240)
    assert difference(read_image(data), by_pillow(data)) < 2


@pytest.mark.parametrize("orientation", range(2, 9))
def test_avif_is_turned_by_its_boxes(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = heif("avif", exif=exif)  # Pillow writes it as boxes irot and imir
    assert b"irot" in data or b"imir" in data
    expected = np.asarray(ImageOps.exif_transpose(_tagged(scene(), orientation)))[..., ::-1]
    assert difference(read_image(data), expected) < 8


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic_is_turned_by_its_boxes_and_not_by_exif(orientation):
    "As libheif and every viewer: the standard says that EXIF is information only."
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = heif("heic", exif=exif)  # this writer makes no boxes
    assert difference(read_image(data), by_pillow(data)) == 0


def _tagged(picture, orientation):
    "A picture in memory with an orientation."
    picture.getexif()[0x0112] = orientation
    return picture


@pytest.mark.parametrize("kind", ["heic", "avif"])
def test_a_broken_heif_is_an_error(kind):
    data = heif(kind)
    for bad in (data[:200], data[: len(data) // 2], data[:24] + bytes(64)):
        with pytest.raises(SourceError, match=f"{kind}"):
            read_image(bad)


@pytest.mark.parametrize("kind", ["heic", "avif"])
def test_without_the_extra_the_error_names_it(kind, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6  # an AVIF that is not turned needs no extra
    data = heif(kind, exif=exif)
    monkeypatch.setattr(images, "_pillow", lambda kind: False)
    with pytest.raises(SourceError, match="needs the extra 'heif'") as caught:
        read_image(data)
    assert 'pip install "cv_pipeline[heif]"' in caught.value.hint


# --- masks as run lengths


@pytest.mark.parametrize("seed", range(30))
def test_masks_are_written_as_pycocotools_writes_them(seed):
    coco = require("pycocotools.mask")
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 120, 2))
    mask = cv2.resize(rng.random((rng.integers(1, 12), rng.integers(1, 12))), size) < rng.random()
    theirs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    ours = encode_mask(mask)
    assert ours == {"size": theirs["size"], "counts": theirs["counts"].decode()}
    assert np.array_equal(decode_mask(theirs), mask)


@pytest.mark.parametrize("seed", range(20))
def test_a_region_is_written_as_its_whole_picture(seed):
    rng = np.random.default_rng(seed)
    (height, width), mask = rng.integers(5, 60, 2), None
    y1, x1 = rng.integers(0, height), rng.integers(0, width)
    y2, x2 = rng.integers(y1, height) + 1, rng.integers(x1, width) + 1
    mask = np.zeros((height, width), bool)
    mask[y1:y2, x1:x2] = rng.random((y2 - y1, x2 - x1)) < 0.7
    assert encode_mask(mask[y1:y2, x1:x2], (x1, y1), mask.shape) == encode_mask(mask)


@pytest.mark.parametrize(
    "broken",
    [
        None,
        {},
        {"size": [2, 2]},
        {"size": [2], "counts": "04"},
        {"size": [2, 2], "counts": "0"},
        {"size": [2, 2], "counts": "P"},
        {"size": [2, 2], "counts": ""},
        {"size": [2, 2], "counts": [5, -1]},
        {"size": [2, 2], "counts": [[4]]},
        {"size": [2, 2], "counts": "\u2713"},
        {"size": ["a", 2], "counts": "04"},
    ],
)
def test_run_lengths_that_are_no_mask_are_named(broken):
    with pytest.raises(DataError, match=r"run lengths.*\[labels.json row 3\]"):
        decode_mask(broken, "labels.json row 3")
