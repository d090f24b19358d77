"""The detector that ships: good on lines it has never seen, honest about what hurts it, the same answer in
any batch."""

import numpy as np
import pytest

from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import bundled_models, load_manifest
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.conditions import CONDITION_NAMES, Conditions
from cv_pipeline.synthetic.line import average_precision
from cv_pipeline.synthetic.parts import CLASS_NAMES
from tests.helpers.services import require

pytestmark = pytest.mark.slow

SEED = 4_200_000  # neither in training (100,000…), validation (200,000…) nor in the report (900,000…)


@pytest.fixture(scope="module")
def model():
    model = load_model("factory_line", threads=1)
    yield model
    model.close()


def shots(condition=None, lines=6, frames=30, step=12):
    for k in range(lines):
        line = FactoryLine(LineConfig(seed=SEED + k), condition)
        yield from (line.render(i * step) for i in range(frames))


def score(model, **kwargs):
    wide = model.with_postprocess(
        conf=0.001, accept_conf=0.001, agnostic_nms=False
    )  # the usual protocol of AP
    pairs = list(shots(**kwargs))
    return average_precision([t for _, t in pairs], wide.predict([f.image for f, _ in pairs]))


def test_it_finds_the_parts_on_unseen_clean_video(model):
    require("pycocotools")
    result = score(model)
    assert result["objects"] > 800
    assert result["AP50"] >= 0.95 and result["AP"] >= 0.75, result
    assert min(v for v in result["AP_by_class"].values() if v is not None) >= 0.65, result


def test_the_manifest_tells_what_hurts(model):
    """The report in the manifest covers every condition, and a fresh measurement of the worst one agrees with
    it."""
    require("pycocotools")
    said = load_manifest("factory_line")[0].metrics
    assert set(said["severity_3"]) == set(CONDITION_NAMES)
    assert said["clean"]["AP50"] >= 0.95 and said["clean"]["AP"] >= 0.75 and said["clean"]["frames"] >= 200
    worst = min(said["severity_3"], key=lambda n: said["severity_3"][n]["AP"])
    fresh = score(model, condition=Conditions(**{worst: 3}), lines=4, frames=20)
    assert abs(fresh["AP"] - said["severity_3"][worst]["AP"]) < 0.12, (worst, fresh)


def test_it_is_small_and_says_where_it_comes_from():
    manifest, path = load_manifest("factory_line")
    assert "factory_line" in bundled_models() and path.stat().st_size <= 4_000_000
    assert manifest.names == CLASS_NAMES and manifest.sha256 and "AGPL" in manifest.license
    assert {"seeds", "recipe", "data_sha256", "ultralytics", "torch"} <= set(manifest.training)
    text = path.read_bytes()
    assert b"/home/" not in text and b".yaml" not in text  # no path of a developer's disk inside


def test_batches_of_any_size_give_the_same_answer(model):
    images = [f.image for f, _ in shots(lines=1, frames=5)]
    batch, geometries = model.preprocess.batch(images)
    together = model.backend.infer(batch)
    single = np.concatenate([model.backend.infer(batch[i : i + 1]) for i in range(5)])
    assert together.shape == (5, 4 + len(CLASS_NAMES), 2100) and np.abs(together - single).max() < 1e-4
    for a, b in zip(model.postprocess(together, geometries), model.postprocess(single, geometries)):
        assert np.abs(a.xyxy - b.xyxy).max(initial=0) < 1e-2 and a.class_id.tolist() == b.class_id.tolist()


def test_an_empty_belt_is_empty(model):
    line = FactoryLine(LineConfig(seed=SEED, density=0.01, hand_every=3))
    found = model.with_postprocess(conf=0.5).predict([line.render(i * 10)[0].image for i in range(30)])
    assert sum(map(len, found)) <= 1  # hands and belt seams are no parts
