"Failures one after the other: filters, pictures, notes that a colleague can open."

import csv

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.files import write_whole
from cv_pipeline.core.progress import WIDGETS
from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.evaluation.failures import find_failures, write_records
from cv_pipeline.evaluation.records import EvalSet, box_table
from cv_pipeline.reporting.failure_browser import (
    failure_browser,
    failures_of,
    note_key,
    read_notes,
    write_notes,
)
from tests.helpers.services import require

require("ipywidgets")


def made(n=30):
    "A hit, a miss and a false box a picture; two cameras."
    image, square = np.repeat(np.arange(n), 2), np.tile([[20.0, 20, 60, 60], [120.0, 120, 160, 160]], (n, 1))
    truth = box_table(image, square, np.tile([0, 1], n))
    spots = np.tile([[20.0, 20, 60, 60], [200.0, 30, 240, 70]], (n, 1))
    said = box_table(image, spots, np.tile([0, 1], n), np.linspace(0.3, 0.9, 2 * n))
    columns = {"camera": np.array(["north", "<south>"] * (n // 2), object)}
    images = tuple(f"{i}.jpg" for i in range(n))
    return EvalSet(("gear", "bolt"), images, np.full((n, 2), 300), truth, said, columns)


def picture(number):
    return np.full((300, 300, 3), 3 * number + 20, np.uint8)


@pytest.fixture
def browser(tmp_path):
    return failure_browser(made(), notes=tmp_path / "notes.csv", picture=picture)


def test_every_miss_and_every_false_box_is_listed_once(browser):
    kinds = [x.kind for x in browser.all]
    assert (kinds.count("Miss"), kinds.count("Bkg"), len(kinds)) == (30, 30, 60)


def test_counts_are_those_of_the_evaluation():
    f = find_failures(made(), twins=())
    counts = {k: v for k, v in f.counts().items() if k not in ("hit", "ignored")}
    listed = [x.kind for x in failures_of(f)]
    assert {k: listed.count(k) for k in counts} == counts


@pytest.mark.parametrize(
    "choice, count",
    [
        ({}, 60),
        ({"kind": "Miss"}, 30),
        ({"class_name": "bolt", "where": "camera = north"}, 30),
        ({"kind": "Miss", "where": "camera = <south>"}, 15),
        ({"kind": "Dupe"}, 0),
    ],
)
def test_filters_leave_what_fits_all_of_them(browser, choice, count):
    assert len(browser.choose(**choice).shown()) == count


def test_the_buttons_go_through_the_list_and_stop_at_its_ends(browser):
    _ = browser.widget
    images = {browser.parts["image"].value}
    browser.parts["previous"].click()
    assert browser.at == 0
    for _ in range(70):
        browser.parts["next"].click()
        images.add(browser.parts["image"].value)
    assert browser.at == 59
    assert len(images) == 60


def test_a_filter_that_leaves_nothing_says_so(browser):
    _ = browser.widget
    browser.choose(kind="Dupe")
    browser.parts["next"].click()
    assert browser.parts["text"].value == "no failure is left by these filters"
    assert browser.parts["image"].value == b""


def test_the_menus_begin_where_the_choice_was_made(browser):
    _ = browser.choose(kind="Miss", where="camera = north").widget
    assert (browser.parts["kind"].value, browser.parts["where"].value) == ("Miss", "camera = north")


def test_a_note_is_there_when_the_failure_comes_again(browser):
    _ = browser.widget
    browser.parts["note"].value = "dirty lens"
    browser.parts["next"].click()
    assert browser.parts["note"].value == ""
    browser.parts["previous"].click()
    assert browser.parts["note"].value == "dirty lens"
    again = failure_browser(made(), thresholds=0.31, notes=browser.path, picture=picture)
    assert list(again.notes.values()) == ["dirty lens"]


def test_looking_at_failures_writes_nothing(browser):
    _ = browser.widget
    for _ in range(3):
        browser.parts["next"].click()
    assert not browser.path.exists()


def test_an_empty_note_is_removed(browser):
    browser.note("a").note("  ")
    assert read_notes(browser.path) == {}


def test_notes_of_two_people_are_both_kept(browser):
    other = failure_browser(made(), notes=browser.path, picture=picture).step(1)
    browser.note("mine")
    other.note("yours")
    assert sorted(read_notes(browser.path).values()) == ["mine", "yours"]


@given(st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=20))
@settings(max_examples=40, deadline=None)
def test_any_note_comes_back_and_computes_nothing(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("n") / "notes.csv"
    key = ("a=1.jpg", "Miss", "=gear", "1 2 3 4")
    write_notes(path, {key: text})
    assert read_notes(path) == {key: text}
    with open(path, encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for cell in cells)


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "picture,kind,class,box,note\nx\n", "\x00"])
def test_a_table_of_another_kind_is_not_overwritten(content, tmp_path):
    path = write_whole(tmp_path / "notes.csv", content)
    with pytest.raises(DataError, match="not a table of notes"):
        failure_browser(made(), notes=path, picture=picture)
    assert path.read_text() == content


def test_the_report_of_an_evaluation_is_opened_by_its_folder(tmp_path):
    folder = write_records(made(), 0.35, tmp_path / "report")
    browser = failure_browser(folder).choose(kind="Miss").note("why")
    assert (folder / "failure_notes.csv").read_text().startswith("picture,kind,class,box,note")
    assert "the image is missing" in browser.card()


def test_a_folder_that_is_not_a_report_is_refused(tmp_path):
    with pytest.raises(DataError, match="pass a folder written by"):
        failure_browser(tmp_path)


def test_an_unknown_condition_is_refused(browser):
    with pytest.raises(ConfigError, match="known: camera = "):
        browser.choose(where="moon = full")


def test_without_a_front_end_it_is_a_card(browser, monkeypatch):
    monkeypatch.setenv(WIDGETS, "0")
    shown = browser._repr_mimebundle_()
    assert sorted(shown) == ["text/html", "text/plain"]
    assert "data:image/jpeg" in shown["text/html"] and "<south>" not in shown["text/html"]


def test_a_key_names_picture_class_and_place():
    f = find_failures(made(), twins=())
    keys = [note_key(f.set, x) for x in failures_of(f)]
    assert len(set(keys)) == len(keys)
