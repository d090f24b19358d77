"The editor of zones without a browser: what a hand does, what a browser sends, what stands in the file."

import numpy as np
import pytest

from cv_pipeline.core.progress import WIDGETS
from cv_pipeline.core.types import ConfigError, DataError, Frame, MissingExtraError, utc_now
from cv_pipeline.reporting import panels
from cv_pipeline.reporting.draw_zones import CSS, ESM, draw_zones, drawing_problems, obey, save_drawing
from cv_pipeline.tracking.conditions import read_events_config
from tests.helpers.services import require

require("anywidget")
SQUARE = [[0.2, 0.2], [0.6, 0.2], [0.6, 0.6], [0.2, 0.6]]
BOW = [[0.2, 0.2], [0.6, 0.6], [0.6, 0.2], [0.2, 0.6]]


@pytest.fixture
def editor(tmp_path):
    return draw_zones(np.full((300, 400, 3), 90, np.uint8), tmp_path / "yard.yaml", bare=True)


def test_a_zone_is_drawn_saved_and_read_back(editor):
    save_drawing(editor.add("zone", SQUARE, "dock", dwell_s=4.0))
    again = draw_zones(editor.image, editor.path, bare=True)
    assert [(s.name, dict(s.more)) for s in again.shapes] == [("dock", {"dwell_s": 4.0})]
    assert read_events_config(editor.path).zones[0].dwell_s == 4.0


def test_pixels_and_shares_are_the_same_place(editor):
    editor.add("zone", SQUARE, "a").add("zone", [[x * 400, y * 300] for x, y in SQUARE], "b")
    assert np.allclose(editor.shapes[0].points, editor.shapes[1].points)


def test_undo_goes_back_step_by_step_and_stops_at_the_beginning(editor):
    editor.add("zone", SQUARE, "a").add("line", SQUARE[:2], "b").remove("a")
    names = []
    for _ in range(5):
        editor.undo()
        names.append([s.name for s in editor.shapes])
    assert names == [["a", "b"], ["a"], [], [], []]


def test_new_shapes_get_names_that_are_free(editor):
    for _ in range(3):
        editor.add("zone", SQUARE)
    assert [s.name for s in editor.shapes] == ["zone 1", "zone 2", "zone 3"]


def test_a_shape_of_a_camera_counts_for_that_camera_alone(tmp_path):
    frame = Frame(np.zeros((30, 40, 3), np.uint8), "gate", 0, utc_now())
    editor = draw_zones(frame, tmp_path / "a.yaml", bare=True).add("zone", SQUARE)
    assert editor.shapes[0].more["sources"] == ["gate"]


def test_problems_are_those_of_a_run(editor):
    assert drawing_problems(editor.add("zone", BOW, "bow")) == ["zone 'bow': its border crosses itself"]
    with pytest.raises(ConfigError, match="crosses itself"):
        save_drawing(editor)
    assert not editor.path.exists()


def test_the_widget_follows_the_hand_and_the_editor_follows_the_widget(editor):
    canvas = editor.widget
    obey(editor, {"do": "add", "kind": "zone", "points": SQUARE})
    sent = [{"kind": "zone", "name": "renamed", "points": BOW, "more": {}, "at": None}]
    canvas.shapes = sent
    assert editor.shapes[0].name == "renamed"
    assert canvas.problems == ["zone 'renamed': its border crosses itself"]
    editor.undo()
    assert editor.shapes[0].name == "zone 1"


def test_a_message_of_the_browser_comes_back_as_its_state(editor):
    canvas = editor.widget
    canvas._handle_custom_msg({"do": "add", "kind": "line", "points": SQUARE[:2]}, [])
    assert [s["kind"] for s in canvas.shapes] == ["line"]
    canvas._handle_custom_msg({"do": "save"}, [])
    assert canvas.outcome == "written: yard.yaml"


@pytest.mark.parametrize(
    "sent",
    [
        [None],
        [{"kind": "zone"}],
        [{"kind": "moon", "points": SQUARE, "more": {}}],
        [{"kind": "zone", "points": [[2, 0], [0, 0], [0, 1]], "more": {}}],
        [{"kind": "zone", "points": [["a", 0]], "more": {}}],
        [{"kind": "zone", "points": SQUARE, "more": 7}],
    ],
)
def test_what_is_not_a_shape_changes_nothing(sent, editor):
    editor.add("zone", SQUARE, "a")
    canvas = editor.widget
    canvas.shapes = sent
    assert [s.name for s in editor.shapes] == ["a"]
    assert "reload the page" in canvas.problems[0]


@pytest.mark.parametrize(
    "message", [{}, {"do": "format"}, {"do": "add"}, {"do": "add", "kind": [], "points": {}}]
)
def test_a_strange_message_raises_nothing_and_draws_nothing(message, editor):
    obey(editor, message)
    assert editor.shapes == []


def test_a_disk_that_cannot_be_written_is_told_in_place(editor, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("cv_pipeline.core.files.os.replace", full)
    obey(editor.add("zone", SQUARE, "a"), {"do": "save"})
    assert "No space left" in editor.outcome
    assert [s.name for s in editor.shapes] == ["a"]


def test_faces_are_covered_unless_the_picture_is_bare(monkeypatch, tmp_path):
    seen = []

    class Cover:
        def __init__(self, privacy):
            seen.append(privacy.on)

        def __call__(self, image):
            return image

    monkeypatch.setattr("cv_pipeline.reporting.draw_zones.PictureCover", Cover)
    draw_zones(np.zeros((30, 40, 3), np.uint8), tmp_path / "a.yaml")
    draw_zones(np.zeros((30, 40, 3), np.uint8), tmp_path / "a.yaml", bare=True)
    assert seen == [True, False]


def test_without_a_front_end_it_is_the_frame_with_the_shapes(editor, monkeypatch):
    monkeypatch.setenv(WIDGETS, "0")
    shown = editor.add("zone", SQUARE, "<script>")._repr_mimebundle_()
    assert "data:image/jpeg" in shown["text/html"] and "<script" not in shown["text/html"]
    assert sorted(shown) == ["text/html", "text/plain"]


def test_with_one_it_is_a_widget(editor, monkeypatch):
    monkeypatch.setenv(WIDGETS, "1")
    assert "application/vnd.jupyter.widget-view+json" in editor._repr_mimebundle_()


def test_without_anywidget_the_extra_is_named(monkeypatch, tmp_path):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(panels, "import_module", missing)
    with pytest.raises(MissingExtraError, match=r'pip install "cv_pipeline\[lab\]"'):
        draw_zones(np.zeros((30, 40, 3), np.uint8), tmp_path / "a.yaml", bare=True)


@pytest.mark.parametrize("frame", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_what_is_not_a_picture_is_refused(frame, tmp_path):
    with pytest.raises(DataError, match="not a picture"):
        draw_zones(frame, tmp_path / "a.yaml")


def test_the_page_needs_no_network_and_writes_no_markup():
    for word in ("http:", "https:", "innerHTML", "eval(", "import "):
        assert word not in ESM.replace("http://www.w3.org/2000/svg", "")
    assert "url(" not in CSS and "@import" not in CSS
