"""The truth of outlines, axes and key points on the line."""

import numpy as np
import pytest

from cv_pipeline.core.images import decode_mask
from cv_pipeline.inference.heads import turned_corners
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.conditions import Conditions
from cv_pipeline.synthetic.parts import CLASS_NAMES
from cv_pipeline.synthetic.regions import label_lines, regions


@pytest.mark.parametrize("conditions", [None, Conditions(vibration=2.0)])
def test_masks_are_the_pixels_of_the_boxes(conditions):
    line = FactoryLine(LineConfig(seed=3, overlap=0.4), conditions)
    for index in (10, 90):
        truth, parts = line.render(index)[1].detections, regions(line, index)
        masks = [decode_mask(m) for m in parts.data["mask"]]
        assert len(parts) > 2
        assert np.sum(masks, axis=0).max() == 1, "a pixel belongs to one part"
        for box, mask, seen in zip(parts.xyxy, masks, parts.data["visibility"]):
            y, x = np.nonzero(mask)
            assert (
                np.abs([x.min() - box[0], y.min() - box[1], x.max() + 1 - box[2], y.max() + 1 - box[3]]).max()
                < 1
            )
            if seen > 0.999:
                assert np.abs(truth.xyxy - box).max(axis=1).min() <= 1


def test_a_turned_box_holds_its_mask():
    line = FactoryLine(LineConfig(seed=3))
    parts = regions(line, 30)
    for corners, mask in zip(turned_corners(parts.data["xywhr"].astype(float)), parts.data["mask"]):
        y, x = np.nonzero(decode_mask(mask))
        points, edges = np.stack([x, y], 1) + 0.5, np.roll(corners, -1, 0) - corners
        side = edges[:, None, 0] * (points[:, 1] - corners[:, None, 1]) - edges[:, None, 1] * (
            points[:, 0] - corners[:, None, 0]
        )
        inside = (side <= 1.5 * np.linalg.norm(edges, axis=1)[:, None]).all(0) | (
            side >= -1.5 * np.linalg.norm(edges, axis=1)[:, None]
        ).all(0)
        assert inside.mean() > 0.99


def test_key_points_lie_on_the_bolt_and_on_nothing_else():
    line = FactoryLine(LineConfig(seed=5, class_weights=(0.2, 1, 0, 0, 0)))
    parts = regions(line, 60, least=0.95)
    bolt = parts.class_id == CLASS_NAMES.index("bolt")
    assert bolt.any() and not parts.data["keypoints"][~bolt][:, :, 2].any()
    for points, mask in zip(parts.data["keypoints"][bolt], parts.data["mask"][bolt]):
        seen = points[points[:, 2] > 0]
        x, y = seen[1:2, :2].round().astype(int).T if len(seen) == 3 else ([], [])
        assert decode_mask(mask)[y, x].all(), "the middle of a bolt is bolt"


def test_labels_are_shares_of_the_frame():
    line = FactoryLine(LineConfig(size=(320, 240), seed=5))
    parts = regions(line, 60)
    for task in ("segment", "obb", "pose"):
        for row in label_lines(parts, task, (320, 240)).splitlines():
            values = np.array(row.split(), float)
            assert values[0] in range(5) and len(values) >= 9
            assert (values[1:] >= 0).all() and (values[1:5] <= 1).all()
