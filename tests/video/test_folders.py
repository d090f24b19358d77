"""A folder says what it does not read: clips, text, sub-folders, formats that need an extra."""

import io

import cv2
import numpy as np
import pytest

from cv_pipeline.core import images
from cv_pipeline.core.types import SourceError
from cv_pipeline.video.sources import FolderSource, open_source
from tests.helpers.services import require


def picture(path, value=0):
    "A small picture in a file."
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((48, 64, 3), value, np.uint8)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())


def read(folder):
    "Frames of a folder, and what is left out by name."
    source = open_source(folder)
    frames = list(source)
    return frames, dict(source.skipped), source.skipped_count


def test_everything_that_is_not_read_is_counted_and_named(tmp_path):
    for name in ("a.jpg", "b.PNG", "day2/x.jpg", "day2/deep/y.jpg"):
        picture(tmp_path / name)
    for name in ("clip.mp4", "MOVE.MOV", "notes.txt", "noend", "broken.jpg", "photo.heic", "photo.avif"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / ".hidden").mkdir()
    picture(tmp_path / ".hidden/z.jpg")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    frames, skipped, count = read(tmp_path)
    assert len(frames) == 2
    assert set(skipped) == {
        *("clip.mp4", "MOVE.MOV", "notes.txt", "noend", "broken.jpg", "photo.heic", "photo.avif"),
        *("day2/", "logs/"),
    }
    assert count == 7 + 2 + 1  # files, pictures below, a folder without any
    assert "2 pictures" in skipped["day2/"] and "a video" in skipped["clip.mp4"] == skipped["MOVE.MOV"]


def test_a_second_reading_counts_the_same(tmp_path):
    picture(tmp_path / "a.jpg")
    (tmp_path / "x.mp4").write_bytes(b"x")
    source = FolderSource(tmp_path)
    assert [(len(list(source)), source.skipped_count) for _ in range(2)] == [(1, 1)] * 2
    assert source.status().frames_skipped == 1


def test_a_folder_of_label_files_does_not_hide_the_rest(tmp_path):
    for i in range(300):
        (tmp_path / f"{i}.txt").write_text("0 .5 .5 .1 .1")
    picture(tmp_path / "a.jpg")
    (tmp_path / "z.jpg").write_bytes(b"broken")
    _, skipped, count = read(tmp_path)
    assert count == 301 and set(skipped) == {"*.txt", "z.jpg"} and "300 files" in skipped["*.txt"]


@pytest.mark.parametrize("folders", [["day1"], ["day1", "day2", "day 3"]])
def test_when_all_pictures_lie_one_level_down_the_error_names_the_folders(tmp_path, folders):
    for name in folders:
        picture(tmp_path / name / "a.jpg")
        picture(tmp_path / name / "b.jpg")
    with pytest.raises(SourceError, match=f"{2 * len(folders)} lie in its sub-folders") as caught:
        open_source(tmp_path)
    assert all(name in caught.value.what for name in folders)
    assert str(tmp_path / sorted(folders, key=len)[0])[:-1] in caught.value.hint


def test_a_folder_of_clips_says_so(tmp_path):
    for name in ("a.mp4", "b.mov"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SourceError, match="but 2 videos: a.mp4, b.mov") as caught:
        open_source(tmp_path)
    assert "a.mp4" in caught.value.hint
    with pytest.raises(SourceError, match="no images in this folder"):
        FolderSource(tmp_path / "nowhere", paths=[])
    (tmp_path / "none").mkdir()
    with pytest.raises(SourceError, match="no images in this folder"):
        open_source(tmp_path / "none")


def test_pictures_of_phones_are_read_with_the_extra_and_named_without(tmp_path, monkeypatch):
    Image = require("PIL.Image")
    require("pillow_heif").register_heif_opener()
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (10, 200, 30)).save(buffer, "HEIF")
    (tmp_path / "IMG_1.HEIC").write_bytes(buffer.getvalue())
    picture(tmp_path / "a.jpg")
    frames, skipped, count = read(tmp_path)
    assert len(frames) == 2 and count == 0
    assert np.abs(frames[1].image[5, 5].astype(int) - (30, 200, 10)).max() < 12
    monkeypatch.setattr(images, "_pillow", lambda kind: False)
    frames, skipped, count = read(tmp_path)
    assert len(frames) == 1 and count == 1 and "extra 'heif'" in skipped["IMG_1.HEIC"]
    with pytest.raises(SourceError) as caught:
        open_source(tmp_path / "IMG_1.HEIC")
    assert 'pip install "cv_pipeline[heif]"' in caught.value.hint
