"""The page of a map, as a browser has made it."""

import json
import re

import cv2
import numpy as np
import pytest

from cv_pipeline.apps.map_page import search_command, write_page
from cv_pipeline.apps.picture_map import (
    make_map,
)
from cv_pipeline.core.types import ConfigError
from tests.helpers.browser import page_of, picture_of


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_holds_every_picture_and_view(folder, tmp_path):
    m = make_map(folder)
    page = write_page(m, tmp_path / "map.html").read_text("utf-8")
    data = data_of(page)
    assert len(data["items"]) == len(m)
    assert dict(data["views"])["near duplicates"] == np.flatnonzero(m.group >= 0).tolist()


def test_no_address_leaves_the_page(folder, tmp_path):
    page = write_page(make_map(folder), tmp_path / "map.html").read_text("utf-8")
    assert "http://" not in page and "https://" not in page and 'src="' not in page


NASTY = "</script><img src=x onerror=alert(1)>&amp;\u202e"


def test_a_nasty_name_stays_text(folder, tmp_path):
    m = make_map(folder)
    m.rows[0]["camera"] = m.rows[1]["class_name"] = NASTY
    page = write_page(m, tmp_path / "map.html").read_text("utf-8")
    assert "<img" not in page and page.count("</script>") == 2
    assert any("onerror" in str(i["f"]) for i in data_of(page)["items"])


def test_a_browser_shows_the_map_and_more_like_this(folder, tmp_path):
    m = make_map(folder)
    m.rows[0]["camera"] = NASTY
    page = write_page(m, tmp_path / "map.html", "my index/")
    seen = page_of(tmp_path, page.as_uri())
    assert seen.count("More like this") == 2  # in the script, and on the page
    assert "near duplicates (2)" in seen
    assert "cv-pipeline search query 'my index/'" in seen
    assert "<img src=x" not in seen
    image = cv2.imread(str(picture_of(tmp_path, page.as_uri(), (900, 600))))
    assert image[80:, :550].std() > 5  # something is drawn on the canvas


def test_commands_survive_a_shell():
    import shlex

    row = {"picture": "runs/a b/$(x)#gate;1#17", "x1": 1.0, "y1": 2.0, "x2": 30.0, "y2": 40.0}
    words = shlex.split(search_command(row, "in dex"))
    assert words[3:] == [
        "in dex",
        "--run",
        "runs/a b/$(x)",
        "--source",
        "gate;1",
        "--frame",
        "17",
        "--box",
        "1,2,30,40",
    ]


def test_a_page_that_cannot_be_written_is_named(folder, tmp_path):
    with pytest.raises(ConfigError, match=".html"):
        write_page(make_map(folder), tmp_path / "map.svg")
