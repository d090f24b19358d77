"""Pictures: the frame is never touched, uncertain findings look different, wild boxes do no harm."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cv_pipeline.core.types import DataError, Decision, Detections, MissingExtraError
from cv_pipeline.core.viz import (
    PALETTE,
    Trails,
    colour_of,
    contact_sheet,
    draw_detections,
    jpeg,
    plot_pr,
    plot_reliability,
)
from tests.helpers.services import require

GREY = np.full((120, 200, 3), 90, np.uint8)


def one(decision=Decision.ACCEPT, track=-1, cls=0):
    return Detections([[40, 30, 140, 100]], [0.8], [cls], [track], {"decision": np.int8([decision])})


def drawn(detections, **kwargs):
    return (draw_detections(GREY, detections, ("gear", "bolt"), labels=False, **kwargs) != GREY).any(axis=2)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float32, (5, 4), elements=st.floats(width=32)),
    st.lists(st.integers(-3, 300), min_size=5, max_size=5),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_any_box_can_be_drawn_and_the_frame_stays(boxes, ids, h, w):
    image = np.full((h, w, 3), 7, np.uint8)
    d = Detections(boxes, None, np.abs(ids), ids, {"decision": np.int8([0, 1, 2, 0, 1])})
    out = draw_detections(image, d, ("a",), Trails())
    assert out.shape == image.shape and out.dtype == np.uint8 and (image == 7).all() and out is not image


def test_review_is_dashed_drop_is_absent():
    sure, unsure, dropped = (drawn(one(d)) for d in (Decision.ACCEPT, Decision.REVIEW, Decision.DROP))
    assert not dropped.any()
    top = slice(41, 139)
    assert sure[30, top].all() and 0.3 < unsure[30, top].mean() < 0.7
    ys, xs = np.nonzero(unsure)
    assert (xs.min(), ys.min(), xs.max(), ys.max()) == (40, 30, 139, 99)


def test_colours_belong_to_tracks_then_to_classes():
    assert colour_of(3) == colour_of(3) and len(set(PALETTE)) == len(PALETTE) == 64
    pixel = lambda d, **k: tuple(draw_detections(GREY, d, labels=False, **k)[30, 90].tolist())
    assert pixel(one(track=9)) == colour_of(9) and pixel(one(track=-1, cls=1)) == colour_of(1)
    assert pixel(one(track=9, cls=1), by="class") == colour_of(1)
    with pytest.raises(DataError, match="auto, class or track"):
        draw_detections(GREY, one(), by="age")


def test_trails_follow_confirmed_tracks_and_forget():
    trails = Trails(length=4, patience=5)
    for t in range(20):
        trails.update(Detections([[t, 0, t + 10, 10], [50, t, 60, t + 10]], None, None, [3, -1]))
    assert len(trails) == 1 and len(trails._points[3]) == 4
    for t in range(1000):
        trails.update(Detections([[0, 0, 9, 9]], None, None, [100 + t]))
    assert len(trails) <= 7
    assert drawn(Detections.empty(), trails=trails).sum() == 0  # nothing seen now, nothing drawn


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90), st.booleans()), min_size=1, max_size=9),
    st.integers(1, 5),
    st.integers(8, 80),
)
def test_contact_sheets_take_any_sizes(sizes, columns, width):
    images = [np.zeros((h, w) if grey else (h, w, 3), np.uint8) for h, w, grey in sizes]
    sheet = contact_sheet(images, [str(i) for i in range(len(images))], columns, width, gap=3)
    used = min(columns, len(images))
    assert sheet.shape[1] == used * (width + 3) - 3 and sheet.shape[2] == 3
    assert jpeg(sheet)[:2] == b"\xff\xd8"


def test_empty_sheets_and_uneven_curves_are_refused():
    with pytest.raises(DataError, match="at least one image"):
        contact_sheet([])
    with pytest.raises(DataError, match="columns=0"):
        contact_sheet([GREY], columns=0)
    require("matplotlib")
    with pytest.raises(DataError, match="2 precisions for 3 recalls"):
        plot_pr([0, 0.5, 1], [1, 1])
    with pytest.raises(DataError, match="2 confidences, 1 accuracies"):
        plot_reliability([0, 1], [1])


def test_reliability_leaves_empty_bins_out():
    require("matplotlib").use("Agg")
    title = plot_reliability([0.2, 0.5, 0.9], [0.4, np.nan, 0.8], [1, 0, 3]).get_title()
    assert title.endswith(f"ECE {(0.2 * 1 + 0.1 * 3) / 4:.3f}")


def test_a_missing_matplotlib_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(MissingExtraError, match=r"cv_pipeline\[viz\]"):
        plot_pr([0, 1], [1, 1])


@pytest.mark.parametrize("name", ["a $5 bill$", r"$\frac{", "x_{", r"\textbf", "<b>", "$", "^", "\u202e$a$"])
def test_names_with_signs_of_formulas_are_drawn_as_they_are(name):
    require("matplotlib")
    axes = plot_pr([0.0, 1.0], {name: [1.0, 0.5]}, title=name)
    axes.figure.canvas.draw()
    assert name in axes.get_legend().get_texts()[0].get_text()
