"""Maps in FiftyOne, with a real database."""

from datetime import timedelta

import numpy as np
import pytest

from cv_pipeline.apps import browse as B
from cv_pipeline.apps.picture_map import make_map
from cv_pipeline.core.types import ConfigError, MissingExtraError
from tests.helpers.fiftyone_service import open_fiftyone
from tests.helpers.picture_folders import AT


@pytest.fixture(scope="module")
def fo(tmp_path_factory):
    return open_fiftyone(tmp_path_factory.mktemp("fiftyone"))


def test_the_dataset_has_the_views_and_both_keys(fo, collection):
    m = make_map(collection, since=AT + timedelta(minutes=45))
    made = B.build_browse(m, "browse test", replace_old=True)
    try:
        counts = {name: len(made.load_saved_view(name)) for name in made.list_saved_views()}
        assert counts == {k: len(v) for k, v in m.views().items()}
        assert set(made.list_brain_runs()) == {"map", "alike"}
    finally:
        made.delete()


def test_similarity_in_fiftyone_is_ours(fo, collection):
    m = make_map(collection)
    made = B.build_browse(m, "browse alike", replace_old=True)
    try:
        ids = made.values("id")
        like = made.sort_by_similarity(ids[7], k=4, brain_key="alike").values("id")
        assert [ids.index(i) for i in like[1:]] == m.near[7, :3].tolist()
    finally:
        made.delete()


def test_places_in_fiftyone_are_ours(fo, folder):
    m = make_map(folder)
    made = B.build_browse(m, "browse places", replace_old=True)
    try:
        points = made.load_brain_results("map").points
        assert np.allclose(points, m.xy, atol=1e-5)
    finally:
        made.delete()


def test_failures_get_the_map(fo, folder, tmp_path):
    from dataclasses import replace

    from cv_pipeline.commands.main import failures
    from cv_pipeline.evaluation.failures import write_records
    from tests.helpers.eval_sets import random_set

    s = random_set(4, classes=2)
    write_records(
        replace(s, paths=tuple(folder / f"{i % 8}.png" for i in range(len(s)))), 0.3, tmp_path / "report"
    )
    failures(tmp_path / "report", name="failures map", replace=True, app=False)
    made = fo.load_dataset("failures map")
    try:
        assert set(made.list_brain_runs()) == {"map", "alike"}
    finally:
        made.delete()


def test_a_name_that_is_taken(fo, folder):
    m = make_map(folder)
    made = B.build_browse(m, "browse taken", replace_old=True)
    try:
        with pytest.raises(ConfigError, match="already has a dataset"):
            B.build_browse(m, "browse taken")
    finally:
        made.delete()


def test_what_fails_leaves_no_half_dataset(fo, folder, monkeypatch):
    m = make_map(folder)
    monkeypatch.setattr(B, "attach_map", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        B.build_browse(m, "browse broken")
    assert not [n for n in fo.list_datasets() if n.startswith("browse broken")]


def test_without_fiftyone_the_command_writes_the_page(folder, tmp_path, monkeypatch):
    from cv_pipeline.apps.picture_map import BrowseSettings
    from cv_pipeline.commands.browse import browse

    def missing():
        raise MissingExtraError("fiftyone", "failures")

    monkeypatch.setattr(B, "fiftyone_package", missing)
    monkeypatch.chdir(tmp_path)
    browse(folder, settings=BrowseSettings())
    assert (tmp_path / "map.html").stat().st_size > 5000
    with pytest.raises(MissingExtraError):
        browse(folder, fiftyone="mine", settings=BrowseSettings())
