"""One list from all checks: complete, honest about what was left out, whole in its file, as drafts, and as
tags in a real FiftyOne."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cv_pipeline.annotation.annotations import write_drafts
from cv_pipeline.annotation.label_errors import plant_errors
from cv_pipeline.annotation.qa import Suspect
from cv_pipeline.annotation.review import build_review, read_suspects, review, review_drafts, write_review
from cv_pipeline.core.formats import read_dataset
from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.evaluation.records import predict_set
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.line import domain_randomised, write_dataset
from tests.helpers.annotators import people


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("review")
    write_dataset(folder, domain_randomised(93, 24), ["yolo"])
    return folder


@pytest.fixture(scope="module")
def noisy(folder):
    return plant_errors(
        predict_set(load_model("factory_line", threads=1), read_dataset(folder), conf=0.005), seed=1
    )


@pytest.fixture(scope="module")
def found(noisy):
    return review(noisy.set)


@pytest.mark.slow
def test_planted_errors_lead_the_list(noisy, found):
    rows = [s.row for s in found.suspects if s.row >= 0][:15]
    assert np.mean([noisy.kind[r] > 0 for r in rows]) > 0.6  # chance is .2
    assert len({(s.picture, s.row) for s in found.suspects if s.row >= 0}) == len(
        [s for s in found.suspects if s.row >= 0]
    )
    assert all(s.reason and 0 <= s.score <= 1 for s in found.suspects)


def test_what_was_left_out_is_said(noisy, found):
    assert any("agreement" in t for t in found.left_out) and not any(
        "label errors" in t for t in found.left_out
    )
    bare = review(replace(noisy.set, predictions=noisy.set.predictions[:0], paths=()))
    assert (
        any("no predictions" in t for t in bare.left_out)
        and any("files are missing" in t for t in bare.left_out)
        and bare.power == {}
    )
    assert any("only one annotator" in t for t in review(noisy.set, people("ana", 1)).left_out)
    both = review(noisy.set, people("a", 1) + people("b", 2, wrong=0.2))
    assert both.agreement["alpha"]["value"] < 1 and both.counts()["people differ"] > 0


def test_the_file_is_whole_and_comes_back(found, tmp_path):
    file = write_review(found, tmp_path / "deep" / "qa.json")
    assert (
        [s.to_dict() for s in read_suspects(file)] == [s.to_dict() for s in found.suspects]
        and "NaN" not in file.read_text()
        and "Infinity" not in file.read_text()
    )
    assert [p.name for p in file.parent.iterdir()] == ["qa.json"]
    for text in ("", "[]", '{"problems": [{}]}'):
        file.write_text(text)
        with pytest.raises(DataError, match="not a review list"):
            read_suspects(file)
    with pytest.raises(DataError):
        read_suspects(tmp_path / "nowhere.json")


def test_drafts_keep_the_labels_and_tell_the_reasons(noisy, found, folder, tmp_path):
    drafts = review_drafts(found.suspects, noisy.set, folder, budget=6)
    assert len(drafts) == 6 and [d.meta["score"] for d in drafts] == sorted(
        (d.meta["score"] for d in drafts), reverse=True
    )
    for d in drafts:
        i = noisy.set.images.index(d.path.name)
        assert (
            len(d.boxes) == (noisy.set.truth.image == i).sum()
            and d.meta["reasons"]
            and (folder / d.picture) == d.path
        )
    write_drafts(drafts, tmp_path / "out", "coco")
    assert list((tmp_path / "out").rglob("*.json"))


def test_drafts_refuse_what_is_not_there(noisy, found, folder):
    with pytest.raises(DataError, match="not in the set"):
        review_drafts([Suspect("other.png", "x", 1, "y")], noisy.set, folder)
    with pytest.raises(ConfigError, match="budget"):
        review_drafts(found.suspects, noisy.set, folder, budget=0)
    lost = replace(noisy.set, paths=tuple(folder / "gone" / p.name for p in noisy.set.paths))
    with pytest.raises(DataError, match="is missing"):
        review_drafts(found.suspects, lost, folder)
    with pytest.raises(DataError, match="are missing"):
        build_review(lost, found.suspects)


def test_an_unusable_set_is_refused(noisy):
    box = noisy.set.truth.xyxy.copy()
    box[0, 0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        review(replace(noisy.set, truth=replace(noisy.set.truth, xyxy=box)))


def test_tags_in_a_real_fiftyone(fo, noisy, found):
    made = build_review(noisy.set, found.suspects, "qa test")
    tags = made.count_values("ground_truth.detections.tags")
    rows = [s for s in found.suspects if s.row >= 0]
    assert sum(tags.values()) == len(rows) and made.count("suspects.detections") == len(
        [s for s in found.suspects if s.row < 0]
    )
    first = made.load_saved_view("most doubtful").first()
    assert first.suspicion == pytest.approx(max(s.score for s in found.suspects))
    with pytest.raises(ConfigError, match="already"):
        build_review(noisy.set, found.suspects, "qa test")
    assert len(build_review(noisy.set, [], "qa test", replace_old=True)) == len(noisy.set)
    assert [n for n in fo.list_datasets() if "in progress" in n] == []
