"""Augmentation of training pictures: every kind leaves shape and boxes alone, the same seed the same bytes,
kinds hit independently, and it works inside Ultralytics' own transform."""

import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.services import require

require("albumentations", reason='albumentations is not installed: pip install "cv_pipeline[train]"')

from cv_pipeline.core.types import ConfigError
from cv_pipeline.training.augment import (
    AUGMENTS,
    Augment,
    augment_settings,
    bad_day,
    failing_lamp,
    painters,
    transforms,
)

KINDS = tuple(Augment.__dataclass_fields__)
NOTHING = AUGMENTS["none"].to_dict()


def picture(width=96, height=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@settings(max_examples=40)
@given(
    st.sampled_from(KINDS), st.floats(0.05, 1), st.integers(8, 70), st.integers(8, 70), st.integers(0, 2**31)
)
def test_every_kind_keeps_shape_and_type_and_does_not_touch_its_input(kind, strength, width, height, seed):
    before = picture(width, height)
    kept = before.copy()
    made = bad_day(
        before, Augment(**{**NOTHING, kind: (1.0, round(strength, 2))}), np.random.default_rng(seed)
    )
    assert made.shape == before.shape and made.dtype == np.uint8
    np.testing.assert_array_equal(before, kept)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_does_something_and_repeats_itself(kind):
    strong = Augment(**{**NOTHING, kind: (1.0, 1.0)})
    before = picture(320, 240)
    made = [bad_day(before, strong, np.random.default_rng(s)) for s in range(4)]
    assert sum((m != before).any() for m in made) >= 3
    np.testing.assert_array_equal(made[0], bad_day(before, strong, np.random.default_rng(0)))
    assert any((made[0] != m).any() for m in made[1:])


def test_probability_zero_or_strength_zero_is_nothing():
    for dead in (Augment(**dict.fromkeys(KINDS, (0.0, 1.0))), Augment(**dict.fromkeys(KINDS, (1.0, 0.0)))):
        assert not dead.active and not painters(dead) and transforms(dead) == []
        np.testing.assert_array_equal(bad_day(picture(), dead, np.random.default_rng(0)), picture())


def test_a_failing_lamp_darkens_one_side_and_brightens_nothing():
    grey = np.full((80, 120, 3), 150, np.uint8)
    for seed in range(12):
        made = failing_lamp(grey, 0.8, np.random.default_rng(seed))
        assert made.max() <= 150 and made.min() < 140
        assert int(made.max()) - int(made.min()) > 40  # not everywhere alike


def test_kinds_hit_independently_inside_ultralytics():
    "Naively composed, transforms seeded by Ultralytics hit the same pictures; these do not."
    require("ultralytics")
    import albumentations as A
    import torch
    from ultralytics.data.augment import Albumentations

    half = transforms({**NOTHING, "cast": (0.5, 1.0), "light": (0.5, 1.0)})
    inside = Albumentations(transforms=[A.to_dict(t) for t in half])
    assert not inside.contains_spatial
    torch.manual_seed(3)
    plain = np.full((16, 16, 3), (90, 100, 110), np.uint8)
    share = np.mean([(inside({"img": plain.copy()})["img"] == plain).all() for _ in range(600)])
    assert 0.19 < share < 0.32  # 0.25 where lots are independent, 0.5 where they are one


def test_boxes_come_out_as_they_went_in():
    require("ultralytics")
    import albumentations as A
    from ultralytics.data.augment import Albumentations
    from ultralytics.utils.instance import Instances

    boxes = np.array([[3, 4, 40, 50], [0, 0, 96, 64]], np.float32)
    inside = Albumentations(transforms=[A.to_dict(t) for t in transforms("strong")])
    for _ in range(20):
        after = inside(
            {
                "img": picture(),
                "cls": np.array([[0], [3]]),
                "instances": Instances(boxes.copy(), bbox_format="xyxy", normalized=False),
            }
        )
        np.testing.assert_array_equal(after["instances"].bboxes, boxes)
        np.testing.assert_array_equal(after["cls"], [[0], [3]])


@pytest.mark.slow
def test_the_transform_survives_dictionaries_and_another_process():
    import albumentations as A

    (made,) = transforms("usual")
    (again,) = [A.from_dict(A.to_dict(made))]
    assert A.to_dict(again) == A.to_dict(made)
    code = (
        "import pickle, sys; t = pickle.loads(sys.stdin.buffer.read()); print(type(t).__name__, "
        "sorted(t.settings))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(made),
        capture_output=True,
        check=True,
        env={**__import__("os").environ, "NO_ALBUMENTATIONS_UPDATE": "1"},
    ).stdout.decode()
    assert told.split()[0] == "BadDay" and "lamp" in told


@pytest.mark.parametrize(
    "given, contains",
    [
        ("rainy", "unknown augmentation 'rainy'"),
        ({"rain": (1, 1)}, "unknown settings"),
        ({"fog": (1.5, 0.5)}, "fog"),
        ({"fog": 0.5}, "fog"),
        ({"fog": (True, 0.5)}, "fog"),
        ({"fog": ("a", 0.5)}, "fog"),
        ({"fog": (0.1, 0.2, 0.3)}, "fog"),
    ],
)
def test_wrong_settings_are_named(given, contains):
    with pytest.raises(ConfigError, match=contains.replace("(", r"\(")):
        augment_settings(given)


@pytest.mark.slow
def test_without_albumentations_the_install_hint():
    code = (
        "import sys; sys.modules['albumentations'] = None\nfrom cv_pipeline.training.augment import "
        "transforms, augment_settings\nassert augment_settings('none').active is False and "
        "transforms('none') == []\n"
        "try: transforms('usual')\nexcept Exception as e: print(type(e).__name__, e)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "MissingExtraError" in told and 'pip install "cv_pipeline[train]"' in told
