"""Damaged input of every kind gives a typed error or a result, never a traceback, a hang or a large memory.

`CASES` is a tuple of (name, bytes of a whole file, what reads it); another format is one more line.
Seeded: `make fuzz` runs more rounds (`CV_PIPELINE_FUZZ_ROUNDS`) from another seed (`CV_PIPELINE_FUZZ_SEED`).
"""

import io
import json
import os
import resource
import tempfile
import time
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cv_pipeline.core.animations import picture_count
from cv_pipeline.core.config import load_config
from cv_pipeline.core.conversions import from_mot
from cv_pipeline.core.files import read_json, read_parquet, read_text
from cv_pipeline.core.formats import read_dataset
from cv_pipeline.core.images import read_image
from cv_pipeline.core.types import CVPipelineError
from cv_pipeline.evaluation.records import read_columns
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import ModelManifest
from cv_pipeline.video.sources import open_source
from tests.helpers.tiny_detectors import tiny

ROUNDS = int(os.environ.get("CV_PIPELINE_FUZZ_ROUNDS", "12"))
SEED = int(os.environ.get("CV_PIPELINE_FUZZ_SEED", "0"))
LONGEST_S, MOST_KB = 30, 1_000_000  # for one file; memory above what the process has before


def picture(suffix: str, *flags: int) -> bytes:
    "A small picture with texture."
    image = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    return cv2.imencode(suffix, image, list(flags))[1].tobytes()


def video(form: str, codec: str, pix_fmt: str = "yuv420p") -> bytes:
    "A short video."
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=form) as out:
        stream = out.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for i in range(12):
            image = np.random.default_rng(i).integers(0, 255, (48, 64, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return buffer.getvalue()


def read_as_source(path: Path) -> None:
    "Every frame, as a run reads it."
    with open_source(path, hardware="none") as source:
        for number, frame in enumerate(source):
            assert frame.image.ndim == 3
            if number > 1000:
                break


def read_as_picture(path: Path) -> None:
    "One picture, as a dataset reads it."
    assert picture_count(path) >= 1
    assert read_image(path).dtype == np.uint8


CASES: tuple[tuple[str, Callable[[], bytes], Callable[[Path], object]], ...] = (
    ("x.mp4", lambda: video("mp4", "libx264"), read_as_source),
    ("x.ts", lambda: video("mpegts", "libx264"), read_as_source),
    ("x.mkv", lambda: video("matroska", "mpeg4"), read_as_source),
    ("x.avi", lambda: video("avi", "mjpeg", "yuvj420p"), read_as_source),
    ("moving.gif", lambda: video("gif", "gif", "rgb8"), read_as_source),
    ("moving.png", lambda: video("apng", "apng", "rgb24"), read_as_source),
    ("x.jpg", lambda: picture(".jpg"), read_as_picture),
    ("progressive.jpg", lambda: picture(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1), read_as_picture),
    ("x.png", lambda: picture(".png"), read_as_picture),
    ("x.webp", lambda: picture(".webp", cv2.IMWRITE_WEBP_QUALITY, 80), read_as_picture),
    ("lossless.webp", lambda: picture(".webp"), read_as_picture),
    ("x.tif", lambda: picture(".tiff"), read_as_picture),
    ("deflate.tif", lambda: picture(".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 8), read_as_picture),
    ("packbits.tif", lambda: picture(".tiff", cv2.IMWRITE_TIFF_COMPRESSION, 32773), read_as_picture),
    ("x.bmp", lambda: picture(".bmp"), read_as_picture),
    ("x.ppm", lambda: picture(".ppm"), read_as_picture),
)


# --- what people write by hand and tools export


def dataset_with(path: Path) -> Path:
    "A YOLO folder with one picture of 64 × 48 beside the file, for files that mean nothing alone."
    (path.parent / "images").mkdir(exist_ok=True)
    (path.parent / "labels").mkdir(exist_ok=True)
    (path.parent / "images" / "a.png").write_bytes(picture(".png"))
    return path.parent


def read_as_labels(path: Path) -> None:
    "A label file of a YOLO folder."
    folder = dataset_with(path)
    (folder / "labels" / "a.txt").write_bytes(path.read_bytes())
    (folder / "data.yaml").write_text("names: [gear, bolt]\n")
    for item in read_dataset(folder):
        item.truth((64, 48))


def read_as_data_yaml(path: Path) -> None:
    "The data.yaml of a YOLO folder."
    folder = dataset_with(path)
    (folder / "labels" / "a.txt").write_text("0 .5 .5 .2 .2\n")
    for item in read_dataset(path):
        item.truth((64, 48))


def read_as_labelled_file(path: Path) -> None:
    "COCO and VOC, by their file or folder."
    dataset_with(path).joinpath("a.png").write_bytes(picture(".png"))
    for item in read_dataset(path if path.suffix == ".json" else path.parent):
        item.truth((64, 48))


def run_model(path: Path) -> None:
    "A detector with its manifest beside it answers once."
    manifest = {"names": ["nut", "bolt"], "preprocess": {"imgsz": 32}, "postprocess": {"conf": 0.99}}
    path.with_suffix(".json").write_text(json.dumps(manifest))
    load_model(path, threads=1).predict([np.zeros((32, 32, 3), np.uint8)])


def onnx_detector() -> bytes:
    with tempfile.TemporaryDirectory() as place:
        return tiny(Path(place) / "m.onnx").read_bytes()


def parquet() -> bytes:
    buffer, rows = io.BytesIO(), [{"source_id": "a", "frame_id": i, "confidence": i / 50} for i in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 48}],
    "categories": [{"id": 1, "name": "gear"}, {"id": 2, "name": "bolt"}],
    "annotations": [
        {"id": i, "image_id": 1, "category_id": 1 + i % 2, "bbox": [i, 2, 9, 9], "area": 81, "iscrowd": 0}
        for i in range(1, 9)
    ],
}
VOC = """<annotation><folder>x</folder><filename>a.png</filename>
<size><width>64</width><height>48</height></size>
<object><name>gear</name><difficult>0</difficult><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>30</ymax>
</bndbox></object></annotation>"""
RUN = "sources: [{uri: clip.mp4, id: gate}]\n"
RUN += "postprocess: {conf: 0.4, accept_conf: 0.5}\nevents: {margin: 0.1}\n"
SPEC = {
    "name": "m",
    "file": "m.onnx",
    "names": ["a", "b"],
    "preprocess": {"imgsz": [32, 32]},
}


def read_as_manifest(path: Path) -> None:
    ModelManifest.from_dict(read_json(path, dict), path)


def read_as_tracks(path: Path) -> None:
    from_mot(read_text(path), path)


LABELS = b"0 .5 .5 .2 .2\n1 .25 .25 .1 .1\n0 .1 .1 .3 .1 .3 .3\n"
DATA = b"path: .\ntrain: images\nval: images\nnc: 2\nnames: {0: gear, 1: bolt}\n"
CASES += (
    ("labels.txt", lambda: LABELS * 4, read_as_labels),
    ("my.yaml", lambda: DATA, read_as_data_yaml),
    ("coco.json", lambda: json.dumps(COCO).encode(), read_as_labelled_file),
    ("a.xml", lambda: VOC.encode(), read_as_labelled_file),
    ("run.yaml", lambda: RUN.encode(), load_config),
    ("manifest.json", lambda: json.dumps(SPEC).encode(), read_as_manifest),
    ("x.onnx", onnx_detector, run_model),
    ("results.parquet", parquet, read_parquet),
    ("columns.csv", lambda: b"picture,camera\na.png,north\nb.png,south\n", read_columns),
    ("gt.txt", lambda: b"1,1,10,20,30,40,1,1,1\n2,1,12,21,30,40,1,1,1\n" * 4, read_as_tracks),
)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    "One of the things that happen to files."
    bad, at = bytearray(data), int(rng.integers(0, len(data)))
    kind = int(rng.integers(0, 7))
    if kind == 0:  # single bits
        for place in rng.integers(0, len(bad), 1 + int(rng.integers(0, 20))):
            bad[place] ^= 1 << int(rng.integers(0, 8))
    elif kind == 1:  # cut off
        del bad[at:]
    elif kind == 2:  # a piece is missing
        del bad[at : at + int(rng.integers(1, 200))]
    elif kind == 3:  # a hole
        bad[at : at + 128] = bytes(len(bad[at : at + 128]))
    elif kind == 4:  # noise
        size = len(bad[at : at + int(rng.integers(1, 100))])
        bad[at : at + size] = rng.integers(0, 256, size, np.uint8).tobytes()
    elif kind == 5:  # numbers in the header at their limits
        at = int(rng.integers(0, min(len(bad) - 4, 200)))
        bad[at : at + 4] = [b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x00\x00\x00\x01"][
            int(rng.integers(0, 4))
        ]
    else:  # twice
        bad[at:at] = bad[: int(rng.integers(0, len(bad)))]
    return bytes(bad)


@pytest.mark.parametrize("name, make, read", CASES, ids=[name for name, _, _ in CASES])
def test_damage_gives_a_typed_error_or_a_result(tmp_path, name, make, read):
    whole, path = make(), tmp_path / name
    path.write_bytes(whole)
    read(path)  # the whole file is read
    rng, errors = np.random.default_rng([SEED, zlib.crc32(name.encode())]), 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(ROUNDS):
        path.write_bytes(mutated(whole, rng))
        began = time.monotonic()
        try:
            read(path)
        except CVPipelineError as e:
            errors += 1
            assert e.exit_code in (2, 3, 4, 5), (number, e)
            assert str(e)
        assert time.monotonic() - began < LONGEST_S, f"round {number} took too long"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KB
    assert errors or name in ("x.bmp", "x.ppm", "moving.gif", "x.ts"), (
        "no round has hurt: the mutations do nothing"
    )
