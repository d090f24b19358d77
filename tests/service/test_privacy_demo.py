"""The demo of privacy: the films, the table and the page say the same."""

import numpy as np
import pytest

from cv_pipeline.core.files import read_json
from cv_pipeline.core.types import ConfigError
from cv_pipeline.service.privacy_demo import WAYS, LeakCount, count_leaks, covered_film, stand_in
from cv_pipeline.synthetic.passers import Passers, PassersConfig
from cv_pipeline.video.cover import GREY
from cv_pipeline.video.decoding import decode_video


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return covered_film(tmp_path_factory.mktemp("demo"), seconds=4)


def row(demo, way, what):
    return next(r for r in demo.rows if (r["way"], r["what"]) == (way, what))


@pytest.mark.slow
def test_the_gate_leaks_less_than_frames_alone(demo):
    gate, alone = (row(demo, way, "faces")["leaks"] for way in (WAYS[2], WAYS[0]))
    assert gate <= alone
    assert row(demo, WAYS[2], "faces")["covered"] >= 0.98
    assert row(demo, WAYS[2], "plates")["leaks"] <= row(demo, WAYS[1], "plates")["leaks"]


@pytest.mark.slow
def test_all_ways_were_asked_about_the_same_faces(demo):
    assert len({row(demo, way, "faces")["visible"] for way in WAYS}) == 1
    assert row(demo, WAYS[0], "faces")["visible"] > 50


def test_both_films_have_every_frame(demo):
    assert len(list(decode_video(demo.film))) == demo.frames == 40
    beside = [p.image for p in decode_video(demo.beside)]
    assert len(beside) == 40
    assert beside[0].shape[1] == 1280


def test_the_page_shows_the_film_and_the_table(demo):
    page = (demo.folder / "index.html").read_text()
    assert "beside/hall.mp4" in page
    assert str(row(demo, WAYS[2], "faces")["visible"]) in page


def test_what_is_kept_is_stamped(demo):
    kept = read_json(demo.folder / "leaks.json", dict)
    assert kept["leaks"][0]["way"] == WAYS[0]
    assert kept["gate"]["frames"] == 40
    assert "cv_pipeline" in str(kept["stamp"])


def test_a_leak_is_less_than_four_fifths_covered():
    frame, truth = Passers(PassersConfig(frames=60, plates=0, seed=5)).frame(30)
    image, count = frame.image.copy(), LeakCount("x", "faces")
    x1, y1, x2, y2 = truth.xyxy[0].round().astype(int)
    image[y1:y2, x1:x2] = GREY
    one = truth._replace(**{k: getattr(truth, k)[:1] for k in truth._fields})._replace(visible=np.ones(1))
    count_leaks(count, image, one, plates=False)
    image[y1 : (y1 + y2) // 2, x1:x2] = 0
    count_leaks(count, image, one, plates=False)
    assert (count.seen, count.leaks) == (2, 1)


def test_the_stand_in_misses_plates_and_finds_no_faces():
    film, rng = (
        Passers(PassersConfig(frames=40, faces=0, plates=3, pillars=0, seed=1)),
        np.random.default_rng(0),
    )
    pairs = [(film.frame(n)[1], stand_in(film.frame(n)[1], rng)) for n in range(40)]
    there = sum(int((t.visible > 0.5).sum()) for t, _ in pairs)
    found = sum(len(d) for _, d in pairs)
    assert 0.7 * there < found < there


@pytest.mark.parametrize("seconds", [0, 601])
def test_a_length_that_makes_no_film_is_refused(tmp_path, seconds):
    with pytest.raises(ConfigError, match="seconds of film"):
        covered_film(tmp_path, seconds)
