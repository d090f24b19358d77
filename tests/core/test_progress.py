"A progress bar for whoever watches: nothing is lost, nothing is left behind, nothing is shown to a log."

import io
import itertools
import sys

import pytest

from cv_pipeline.core import progress
from cv_pipeline.core.progress import WIDGETS, html_progress, live_front_end, progress_over, share_of
from tests.helpers.services import require


class Output:
    "The output of a cell."

    def __init__(self, monkeypatch):
        display = require("IPython").display
        self.pages = []
        monkeypatch.setattr(display, "display", self.display)
        monkeypatch.setattr(progress, "in_a_kernel", lambda: True)
        monkeypatch.setenv(WIDGETS, "1")

    def display(self, page, display_id):
        self.pages.append(page.data)
        return self

    def update(self, page):
        self.pages.append(page.data)


@pytest.fixture
def output(monkeypatch):
    return Output(monkeypatch)


def test_a_notebook_shows_how_far_it_is_and_keeps_nothing(output):
    clock = itertools.count(0, 10)
    assert list(progress_over("abcd", "letters", clock=lambda: next(clock))) == list("abcd")
    assert any("letters 2 of 4" in page for page in output.pages)
    assert output.pages[-1] == ""


def test_it_is_changed_a_few_times_a_second_at_most(output):
    clock = itertools.count(0, 0.001)
    assert sum(1 for _ in progress_over(range(10_000), clock=lambda: next(clock))) == 10_000
    assert len(output.pages) < 60


def test_a_loop_that_fails_leaves_no_bar(output):
    def items():
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(progress_over(items()))
    assert output.pages[-1] == ""


def test_a_loop_that_is_left_early_leaves_no_bar(output):
    for _ in progress_over(range(5)):
        break
    assert output.pages[-1] == ""


def test_a_stream_of_unknown_length_is_counted(output):
    clock = itertools.count(0, 1)
    list(progress_over(iter("abc"), "frames", clock=lambda: next(clock)))
    assert any("frames 2<" in page for page in output.pages)


def test_shares_are_shown_with_their_phase(output):
    clock = itertools.count(0, 1)
    with share_of("tuning", lambda: next(clock)) as bar:
        bar(0.5, "second half")
    assert any("width:50.0%" in page and "tuning second half" in page for page in output.pages)
    assert output.pages[-1] == ""


def test_a_kernel_that_nobody_watches_shows_nothing(output, monkeypatch):
    monkeypatch.setenv(WIDGETS, "0")
    assert list(progress_over("ab")) == ["a", "b"]
    with share_of("x") as bar:
        bar(0.1, "a")
    assert output.pages == []


def test_a_log_gets_no_line(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(progress_over("ab", "letters")) == ["a", "b"]
    with share_of("x") as bar:
        bar(0.1, "a")
    assert sys.stderr.getvalue() == ""


def test_a_title_is_text():
    assert "<b>" not in html_progress(0.1, "<b>")


@pytest.mark.parametrize("share", [None, -1.0, 0.0, 1.0, 7.0])
def test_a_share_stays_inside_of_the_bar(share):
    assert "width:0.0%" in html_progress(share, "") or "width:100.0%" in html_progress(share, "")


@pytest.mark.parametrize(
    "variables, shown",
    [
        ({}, False),
        ({"JPY_SESSION_NAME": "a.ipynb"}, True),
        ({"VSCODE_PID": "1"}, True),
        ({WIDGETS: "0", "JPY_SESSION_NAME": "a"}, False),
        ({WIDGETS: "1"}, True),
        ({WIDGETS: "perhaps"}, False),
    ],
)
def test_who_watches_is_known_by_what_started_the_kernel(variables, shown, monkeypatch):
    for name in (WIDGETS, "JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert live_front_end() is shown
