"""Films and pictures that lie there: covered into another folder, checked with a bound."""

import numpy as np
import pytest

from cv_pipeline.core.types import ConfigError, DataError, Detections, FrameResult
from cv_pipeline.evaluation.intervals import Verdict
from cv_pipeline.privacy.pictures import blur_files, check_folder, folder_verdict, picture_files
from cv_pipeline.synthetic.passers import Passers, PassersConfig
from cv_pipeline.video.cover import GREY, encoded
from cv_pipeline.video.decoding import decode_video
from cv_pipeline.video.faces import NO_FACES, Faces
from cv_pipeline.video.sinks import VideoSink


class Everywhere:
    "Finds a face in the middle of each picture."

    name = "everywhere"

    def find(self, images):
        return [
            Faces(np.array([[20, 20, 40, 40]], np.float32), np.ones(1, np.float32), np.zeros((1, 5, 2)))
            for _ in images
        ]


class Nowhere:
    name = "nowhere"

    def find(self, images):
        return [NO_FACES for _ in images]


class Broken:
    name = "broken"

    def find(self, images):
        raise RuntimeError("no device")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    folder = tmp_path_factory.mktemp("film")
    sink = VideoSink(folder, draw=lambda r, trails: r.frame.image, preset="ultrafast", threads=1)
    for frame in Passers(PassersConfig(frames=25, faces=0, plates=0)):
        sink.write(FrameResult(frame, Detections.empty()))
    sink.close()
    return sink.files[0]


def picture(folder, name="a.png", value=200):
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(encoded(np.full((60, 80, 3), value, np.uint8), ".png"))
    return folder / name


def test_a_film_keeps_its_frames_and_loses_its_faces(film, tmp_path):
    (done,) = blur_files([film], tmp_path / "out", finder=Everywhere())
    frames = [p.image for p in decode_video(done.target)]
    assert len(frames) == done.frames == 25
    assert done.hidden == 0
    assert all(np.abs(f[22:38, 22:38].astype(int) - GREY).mean() < 6 for f in frames)


def test_both_side_by_side_is_a_film_of_double_width_in_its_own_folder(film, tmp_path):
    list(blur_files([film], tmp_path / "out", beside=tmp_path / "both", finder=Everywhere()))
    (both,) = (tmp_path / "both").glob("*.mp4")
    frames = [p.image for p in decode_video(both)]
    assert len(frames) == 25
    assert frames[0].shape == (360, 1280, 3)
    assert np.abs(frames[9][22:38, 662:678].astype(int) - GREY).mean() < 6
    assert np.abs(frames[9][22:38, 22:38].astype(int) - GREY).mean() > 6


def test_a_film_that_cannot_be_checked_leaves_no_file(film, tmp_path):
    (done,) = blur_files([film], tmp_path / "out", finder=Broken())
    assert done.target is None
    assert done.hidden == 25
    assert "no device" in done.problem
    assert list((tmp_path / "out").iterdir()) == []


def test_nothing_is_written_over(tmp_path):
    picture(tmp_path / "in")
    first, second = (next(blur_files([tmp_path / "in"], tmp_path / "out")).target for _ in range(2))
    assert first != second
    assert first.exists() and second.exists()


def test_two_pictures_of_one_name_are_two(tmp_path):
    picture(tmp_path / "in")
    picture(tmp_path / "in" / "deep", value=9)
    targets = {done.target for done in blur_files([tmp_path / "in"], tmp_path / "out")}
    assert len(targets) == 2


def test_the_output_folder_is_not_its_own_source(tmp_path):
    picture(tmp_path / "in")
    with pytest.raises(ConfigError, match="lies in the output folder"):
        list(blur_files([tmp_path], tmp_path / "in"))


def test_a_broken_picture_is_reported_and_the_others_are_covered(tmp_path):
    picture(tmp_path / "in", "b.png")
    (tmp_path / "in" / "a.jpg").write_bytes(b"nothing")
    broken, good = blur_files([tmp_path / "in"], tmp_path / "out", finder=Everywhere())
    assert broken.target is None and broken.problem
    assert good.covered == 1


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="missing"):
        list(picture_files([tmp_path / "none.mp4"]))


@pytest.mark.parametrize(
    "bad, n, verdict",
    [(0, 299, "PASS"), (0, 298, "INSUFFICIENT"), (1, 473, "PASS"), (9, 100, "FAIL"), (0, 0, "INSUFFICIENT")],
)
def test_verdicts_at_one_percent(bad, n, verdict):
    assert folder_verdict(bad, n, 0.01) is Verdict(verdict)


def test_a_film_counts_a_picture_a_second(film):
    check = check_folder([film], finder=Nowhere())
    assert check.pictures == 3  # 2.5 seconds: 0, 1 and 2
    assert check.verdict is Verdict.INSUFFICIENT


def test_findings_name_the_file_and_the_second(film):
    check = check_folder([film], finder=Everywhere())
    assert check.verdict is Verdict.FAIL
    assert [round(at) for _, at, _ in check.found] == [0, 1, 2]
    assert check.found[0][2] == (20, 20, 40, 40)


@pytest.mark.parametrize("limit", [0, 1, -0.1])
def test_a_limit_that_is_not_a_share_is_refused(tmp_path, limit):
    with pytest.raises(ConfigError, match="limit"):
        check_folder([tmp_path], limit)
