"""What is looked at: parts of pictures, embedders by name, and when faces are covered."""

import numpy as np
import pytest

from cv_pipeline.apps.picture_items import cover_of_index, open_embedder, part_of
from cv_pipeline.core.types import ConfigError, CVPipelineError, DataError
from tests.helpers.scenes import scene


@pytest.mark.parametrize("box", [(70, 0, 90, 10), (5, 5, 5, 9), (9, 9, 3, 20), (np.nan, 0, 9, 9)])
def test_a_box_outside_the_picture(box):
    with pytest.raises(DataError, match="not within 64x48"):
        part_of(scene(0, (48, 64)), box)


@pytest.mark.parametrize(("names", "on"), [((), True), (("person", "bolt"), True), (("bolt", "nut"), False)])
def test_faces_are_covered_unless_the_classes_say_that_there_are_none(names, on):
    assert cover_of_index(names).privacy.on is on


def test_open_embedder_names_what_is_wrong(tmp_path):
    with pytest.raises(CVPipelineError):
        open_embedder("nothing.onnx")
    with pytest.raises(ConfigError, match="unknown depth"):
        open_embedder("factory_line:sideways")
