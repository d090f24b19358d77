"""The demos of four applications: what they find, the page, and what is not theirs."""

import pytest

from cv_pipeline.core.types import ConfigError
from cv_pipeline.service.apps_demo import APP_DEMOS, apps_demo


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    heard, out = [], tmp_path_factory.mktemp("demo") / "apps"
    return {one.name: one for one in apps_demo(out, tell=heard.append)}, heard, out


@pytest.mark.slow
def test_every_application_shows_a_table_and_pictures(told):
    shown, heard, out = told
    assert list(shown) == list(APP_DEMOS) and len(heard) == 4
    for one in shown.values():
        assert one.rows and one.says and all(p.stat().st_size > 1000 for p in one.pictures)
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<h2>") == page.count("<img ") == 4


@pytest.mark.slow
def test_the_search_finds_more_of_the_class_than_chance(told):
    rows = [row["value"] for row in told[0]["search"].rows]
    assert rows[1] >= 2 * rows[2] and rows[3] > 0


@pytest.mark.slow
def test_moderation_blocks_hardly_another_part_and_gives_what_is_no_picture_to_people(told):
    rows = {row["upload"]: row for row in told[0]["moderation"].rows}
    assert rows["another part"]["block"] <= 2  # of 63: networks differ a little from processor to processor
    assert rows["a copy"]["pass"] == 0 and rows["a copy"]["block"] >= 10
    assert rows["a bolt"]["block"] > rows["a bolt"]["pass"]
    assert (rows["no picture"]["block"], rows["no picture"]["person"]) == (0, 1)
    assert "0 decisions come out differently" in told[0]["moderation"].says


@pytest.mark.slow
def test_the_inspection_tells_flawed_nuts_from_good_ones(told):
    good, *flawed = told[0]["anomaly"].rows
    assert good["called anomalous"] <= 5
    assert all(row["AUROC"] > 0.85 for row in flawed) and len(flawed) == 3


@pytest.mark.slow
def test_the_cascade_keeps_the_tracks(told):
    cascade, alone = told[0]["cascade"].rows
    assert cascade["tracks found"] >= alone["tracks found"] - 1 > 0


def test_an_unknown_application_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match="no application 'haiku'.*search, moderation, anomaly, cascade"):
        apps_demo(tmp_path / "apps", ["search", "haiku"])
    assert not (tmp_path / "apps").exists()


def test_a_folder_of_something_else_stays(tmp_path):
    mine = tmp_path / "search" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("years")
    with pytest.raises(ConfigError, match="not of an earlier demo"):
        apps_demo(tmp_path, ["search"])
    assert mine.read_text() == "years"
