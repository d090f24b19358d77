"The budget of type errors: what counts as an error of a chapter, and when a chapter fails."

import pytest

from tests import typecheck
from tests.typecheck import Row, all_chapters, chapter_of, count_errors, judge, main, read_budget

LINES = [
    "cv_pipeline/core/types.py:93: error: Incompatible return value type  [return-value]",
    "cv_pipeline/core/types.py:93: note: a note is no error",
    "cv_pipeline/video/sinks.py:47: error: Item has no attribute  [union-attr]",
    "cv_pipeline/core/files.py:51: error: Argument 1 has an incompatible type  [arg-type]",
]


def test_errors_are_counted_by_chapter_and_notes_are_not():
    assert count_errors(LINES) == {"core": 2, "video": 1}


def test_a_windows_path_counts_too():
    assert chapter_of(r"cv_pipeline\video\sinks.py:47: error: Item") == "video"


def test_an_error_outside_of_all_chapters_is_counted_under_the_package():
    assert chapter_of("cv_pipeline/__init__.py:1: error: x") == "cv_pipeline"


@pytest.mark.parametrize(
    "errors, budget, advice",
    [
        (3, 2, "ABOVE ITS BUDGET by 1"),
        (1, 2, "lower the budget to 1"),
        (0, 2, "lower the budget to 0"),
        (2, 2, ""),
    ],
)
def test_a_row_says_what_to_do(errors, budget, advice):
    assert Row("core", errors, budget).advice == advice


def test_a_chapter_that_is_not_listed_has_a_budget_of_nothing():
    assert judge({"new": 1}, {"core": 5}, ["core", "new"]) == [Row("core", 0, 5), Row("new", 1, 0)]


def run(monkeypatch, capsys, budget, *argv):
    monkeypatch.setattr(typecheck, "run_mypy", lambda: LINES)
    monkeypatch.setattr(typecheck, "read_budget", lambda: budget)
    return main(list(argv)), capsys.readouterr().out


def test_above_the_budget_fails(monkeypatch, capsys):
    assert run(monkeypatch, capsys, {"core": 1, "video": 1})[0] == 1


def test_above_the_budget_lists_the_errors_of_that_chapter(monkeypatch, capsys):
    assert LINES[3] in run(monkeypatch, capsys, {"core": 1, "video": 1})[1]


def test_above_the_budget_does_not_list_other_chapters(monkeypatch, capsys):
    assert LINES[2] not in run(monkeypatch, capsys, {"core": 1, "video": 1})[1]


def test_below_the_budget_passes(monkeypatch, capsys):
    assert run(monkeypatch, capsys, {"core": 9, "video": 1})[0] == 0


def test_below_the_budget_names_the_lower_one(monkeypatch, capsys):
    assert "lower the budget to 2" in run(monkeypatch, capsys, {"core": 9, "video": 1})[1]


def test_not_listed_fails(monkeypatch, capsys):
    assert run(monkeypatch, capsys, {"core": 2})[0] == 1


def test_a_chapter_that_is_asked_for_is_listed(monkeypatch, capsys):
    assert LINES[2] in run(monkeypatch, capsys, {"core": 2, "video": 1}, "video")[1]


def test_the_budgets_of_the_project_name_chapters_that_exist():
    assert set(read_budget()) <= set(all_chapters())


@pytest.mark.parametrize("chapter", ["core", "inference", "tracking", "video"])
def test_a_chapter_that_has_reached_nothing_stays_there(chapter):
    assert chapter not in read_budget()
