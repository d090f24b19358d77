"How objects show themselves: one line for a terminal, a card for JupyterLab, nothing a browser would run."

from datetime import datetime, timezone
from html.parser import HTMLParser

import faster_coco_eval  # noqa: F401  # cards of an evaluation are made when this file is read
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.core.escaping import LONGEST, cell_text, html_badge, html_card, html_rows
from cv_pipeline.core.runs import Run, begin_run
from cv_pipeline.core.types import Classification, Detections, Frame, FrameResult
from cv_pipeline.evaluation.intervals import Finding, Verdict
from cv_pipeline.evaluation.records import EvalSet, box_table
from cv_pipeline.evaluation.summary import evaluate_set
from cv_pipeline.inference.loading import load_model
from cv_pipeline.monitoring.drift import Drift, FamilyResult
from cv_pipeline.optimization.benchmark import Benchmark
from cv_pipeline.release.rollout import RolloutFinding, RolloutReport, RolloutVerdict
from cv_pipeline.training.gate import Comparison, SliceResult

HOSTILE = "<script>alert(1)</script>\u202e\x1b[31m'\">"
TAGS = {"div", "span", "b", "table", "thead", "tbody", "tr", "th", "td"}
AT = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


class Seen(HTMLParser):
    "Tags, handlers and text of a page."

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.names, self.text = set(), set(), ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def boxes(n, **data):
    rng = np.random.default_rng(3)
    corners = rng.uniform(0, 300, (n, 2))
    xyxy = np.concatenate([corners, corners + rng.uniform(1, 99, (n, 2))], axis=1)
    return Detections(xyxy, rng.uniform(0, 1, n), rng.integers(0, 3, n), rng.integers(-1, 5, n), data)


def result(detections, names=("gear", HOSTILE, "nut"), **how):
    frame = Frame(np.zeros((48, 64, 3), np.uint8), HOSTILE, 7, AT)
    return FrameResult(frame, detections, names, **how)


def labelled(n=60):
    rows, square = np.arange(n), np.tile([10.0, 10.0, 40.0, 40.0], (n, 1))
    names, images = ("gear", HOSTILE), tuple(f"{i}.jpg" for i in range(n))
    truth = box_table(rows, square, rows % 2)
    said = box_table(rows, square + 1, rows % 2, np.linspace(0.2, 0.9, n))
    return EvalSet(names, images, np.full((n, 2), 64), truth, said, notes=(HOSTILE,))


def shown():
    "One of each, with names of strangers in it."
    scores = np.float32([[0.1, 0.7, 0.2]] * 2)
    whole = Detections([[0, 0, 64, 48]] * 2, [0.7, 0.2], [1, 2], data={"scores": scores})
    families = [
        FamilyResult(HOSTILE, 0.1, 0.1, float("nan"), 0.9, 0.1, (9, 9), state="RED", devices=(HOSTILE,))
    ]
    slices = (SliceResult(HOSTILE, Verdict.FAIL, HOSTILE, 3, 4),)
    row = {"artefact": HOSTILE, "threads": 1, "batch": 1, "error": HOSTILE}
    finding = RolloutFinding(HOSTILE, RolloutVerdict.ROLLBACK, HOSTILE)
    return {
        "detections": boxes(30),
        "result": result(boxes(3)),
        "result of a whole frame": result(whole),
        "classification": Classification.of(whole),
        "model": load_model("factory_line"),
        "set": labelled(),
        "evaluation": evaluate_set(labelled(), floors={"AP": 0.9}, draws=30, with_calibration=False),
        "drift": Drift("RED", "device fault", families, [], [], [HOSTILE], {}),
        "gate": Comparison(Verdict.FAIL, slices, ("gear",), (HOSTILE,)),
        "rollout": RolloutReport(RolloutVerdict.ROLLBACK, (finding,), (HOSTILE,), more_hours=float("inf")),
        "benchmark": Benchmark(
            HOSTILE, {"processor": HOSTILE}, "now", (0.0, 0.0), {}, [row], notes=[HOSTILE]
        ),
    }


ONE_OF_EACH = shown()


@pytest.mark.parametrize("what", ONE_OF_EACH)
def test_it_shows_itself_with_nothing_that_runs(what):
    page = Seen(ONE_OF_EACH[what]._repr_html_())
    assert page.tags <= TAGS
    assert page.names <= {"style", "colspan"}
    assert "\x1b" not in page.text and "\u202e" not in page.text


@pytest.mark.parametrize("what", ONE_OF_EACH)
def test_its_repr_is_one_short_line_without_arrays(what):
    text = repr(ONE_OF_EACH[what])
    assert "array(" not in text
    assert "\n" not in text.replace(HOSTILE, "")
    assert len(text) < 1200


def test_names_of_classes_stand_in_the_card_as_text():
    assert "<script>alert(1)</script>" in Seen(result(boxes(30))._repr_html_()).text


def test_a_table_ends_after_ten_rows_and_says_what_is_left_out():
    page = Seen(boxes(47)._repr_html_())
    assert "… 37 more" in page.text


@pytest.mark.parametrize("made", [Detections.empty(), result(Detections.empty())], ids=["boxes", "result"])
def test_nothing_is_shown_as_nothing(made):
    page = Seen(made._repr_html_())
    assert "table" not in page.tags
    assert repr(made)


def test_broken_values_are_shown_and_raise_nothing():
    broken = Detections([[np.nan, np.inf, -np.inf, 1e38]], [np.nan], [-7], data={"decision": np.int8([99])})
    assert "99" in Seen(result(broken)._repr_html_()).text
    assert "\n" not in repr(broken)


def test_a_hundred_thousand_boxes_cost_as_much_html_as_a_hundred():
    few, many = boxes(100), boxes(100_000)
    assert abs(len(many._repr_html_()) - len(few._repr_html_())) < 400
    assert len(repr(many)) < 200


def test_the_state_is_a_word_and_a_colour():
    page = html_badge(Verdict.PASS)
    assert "#1a7f37" in page and ">PASS<" in page


def test_a_failed_evaluation_says_so_in_its_badge():
    assert html_badge(ONE_OF_EACH["evaluation"].verdict) in ONE_OF_EACH["evaluation"]._repr_html_()


def test_colours_are_those_of_the_theme_with_a_fallback():
    page = ONE_OF_EACH["set"]._repr_html_()
    assert "var(--jp-border-color2, " in page and "var(--jp-ui-font-color2, " in page


def test_a_result_carries_no_picture():
    assert "<img" not in ONE_OF_EACH["result"]._repr_html_()


@given(
    st.lists(
        st.dictionaries(st.text(max_size=5), st.one_of(st.none(), st.text(), st.floats(), st.integers()))
    )
)
@pytest.mark.slow
def test_any_rows_become_one_table_of_text(rows):
    page = Seen(f"<div>{html_rows(rows)}</div>")
    assert page.tags <= TAGS


@given(st.one_of(st.text(), st.floats(), st.integers(), st.none(), st.booleans()))
def test_a_cell_is_short_and_on_one_line(value):
    text = cell_text(value)
    assert len(text) <= max(LONGEST, len(str(value)) if isinstance(value, int) else 0)
    assert len(text.splitlines()) <= 1


def test_the_picture_of_a_card_is_inside_of_it():
    assert 'src="data:image/jpeg;base64,/9g=' in html_card("a", picture=b"\xff\xd8").replace("'", '"')


def test_a_finding_keeps_its_own_repr():
    assert repr(Finding("AP", Verdict.PASS, "x")).startswith("Finding(")


def test_a_run_shows_what_its_folder_holds(tmp_path):
    begin_run(tmp_path / "out")
    assert ">running<" in Run(tmp_path / "out")._repr_html_()
