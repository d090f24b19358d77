"""What tests of applications share: a desk of moderation, folders of pictures."""

from datetime import timedelta

import cv2
import pytest

from cv_pipeline.annotation.collect import Collected, write_collected
from cv_pipeline.apps.moderation import Moderator
from tests.helpers.moderation_desk import CLOCK, Told, policy_of
from tests.helpers.picture_folders import AT, picture


@pytest.fixture
def desk(tmp_path):
    return Moderator(policy_of(sha="a" * 64), tmp_path / "trail.jsonl", Told(), now=CLOCK)


@pytest.fixture
def folder(tmp_path):
    "Nine pictures: five dark, three bright, and a copy of the first."
    made = tmp_path / "data"
    made.mkdir()
    for k in range(8):
        cv2.imwrite(str(made / f"{k}.png"), picture(k, 60 if k < 5 else 190))
    cv2.imwrite(str(made / "copy.png"), picture(0, 60))
    return made


@pytest.fixture
def collection(tmp_path):
    "Sixty frames of two cameras; the last ten are another world."
    made, rows = tmp_path / "collected", []
    made.mkdir()
    for k in range(60):
        cv2.imwrite(str(made / f"{k:02d}.png"), picture(k, 70 if k < 50 else 210))
        found = [{"class_name": "gear", "confidence": 0.7, "xyxy": [5, 5, 40, 40], "tracker_id": -1}]
        at = AT + timedelta(minutes=k)
        name, camera = f"{k:02d}.png", "gate" if k % 2 else "dock"
        row = Collected(name, camera, k, at, (80, 60), ("random",), 0.1, f"{k:016x}", 0, "line", found)
        rows.append(row)
    write_collected(made, rows)
    return made
