"""Drawn passers-by: the same frames in any order, and a truth that is the picture."""

import numpy as np
import pytest

from cv_pipeline.core.types import ConfigError, Source
from cv_pipeline.synthetic.passers import Passers, PassersConfig, draw_face, draw_plate


@pytest.fixture(scope="module")
def film():
    return Passers(PassersConfig(frames=50, faces=5, plates=2, pillars=2, seed=11))


def test_a_film_is_a_source_and_a_frame_is_a_function_of_its_number(film):
    assert isinstance(film, Source)
    one = film.frame(30)[0]
    again = Passers(PassersConfig(frames=50, faces=5, plates=2, pillars=2, seed=11)).frame(30)[0]
    assert np.array_equal(one.image, again.image)
    assert one.captured_at == again.captured_at


def test_what_is_fully_visible_is_the_drawing_at_that_place():
    film = Passers(PassersConfig(frames=40, faces=1, plates=0, pillars=0, widths=(60, 60), seed=2))
    frame, truth = next(film.frame(n) for n in range(40) if (film.frame(n)[1].visible > 0.99).any())
    x1, y1, x2, y2 = truth.xyxy[0].round().astype(int)
    face = draw_face(film._ways[0].seed, 60)
    a, b, c, d = np.round(face.box).astype(int)
    seen = frame.image[y1:y2, x1:x2].astype(int)[:70, :50]
    drawn = face.image[b:d, a:c].astype(int)[:70, :50]
    inner = np.s_[20:60, 12:40]  # inside the oval, where nothing shows through
    assert np.abs(seen[inner] - drawn[inner]).mean() < 8


def test_boxes_lie_in_the_frame_and_shares_in_0_to_1(film):
    for number in range(0, 50, 7):
        truth = film.frame(number)[1]
        assert (truth.xyxy[:, :2] >= 0).all()
        assert (truth.xyxy[:, 2:] <= (640, 360)).all()
        assert ((truth.visible > 0) & (truth.visible <= 1)).all()


def test_a_pillar_hides_what_is_behind_it():
    config = PassersConfig(frames=60, faces=1, plates=0, pillars=0, widths=(60, 60), seed=2)
    film = Passers(config)
    number = next(n for n in range(60) if (film.frame(n)[1].visible > 0.99).any())
    x1, _, x2, _ = film.frame(number)[1].xyxy[0]
    film._pillars = [(int(x1), int((x1 + x2) / 2))]
    assert film.frame(number)[1].visible[0] == pytest.approx(0.5, abs=0.07)


@pytest.mark.parametrize("width", [4, 16, 120, 300])
def test_faces_and_plates_have_the_requested_width(width):
    x1, y1, x2, y2 = draw_face(5, width).box
    assert x2 - x1 == pytest.approx(width, abs=0.01)
    assert draw_plate(5, width).image.shape[1] == width


def test_seeds_are_people():
    first, second = (draw_face(seed, 64).image.astype(int) for seed in (1, 2))
    assert np.abs(first - second).mean() > 5


@pytest.mark.parametrize(
    "bad", [{"frames": 0}, {"size": (10, 10)}, {"fps": 0}, {"widths": (9, 5)}, {"faces": -1}]
)
def test_invalid_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        PassersConfig(**bad)
