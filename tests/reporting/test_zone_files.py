"Shapes into a YAML file and back: nothing else in it changes, and a run reads what was drawn."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.config import load_config
from cv_pipeline.core.files import parse_yaml, write_whole
from cv_pipeline.core.types import ConfigError
from cv_pipeline.reporting.zone_files import (
    KINDS,
    POINTS,
    Shape,
    events_of,
    read_zone_file,
    section_problems,
    section_with,
    shapes_of,
    with_section,
    write_shapes,
)
from cv_pipeline.tracking.conditions import read_events_config
from cv_pipeline.tracking.watch import ground_of
from cv_pipeline.tracking.zones import read_rules

SIZE = (1280, 720)
CONFIG = """# the yard
sources:   # two cameras
  - {uri: gate.mp4, id: gate}
  - {uri: yard.mp4, id: yard}

events:
  # agreed on 3 May
  zones:
    - name: dock        # the lorry's side
      polygon: [[0.1, 0.4], [0.6, 0.4], [0.6, 1], [0.1, 1]]
      dwell_s: 5
    - {name: lane, polygon: [[640, 100], [1280, 100], [1280, 720]], sources: [yard]}

  rules:
    - {name: intruder, kind: enter, zone: dock}   # at night
tracker: {kind: bytetrack}
"""
TRIANGLE = "{name: z, polygon: [[0, 0], [1, 0], [1, 1]]}"
RING = [(0.9, 0.5), (0.7, 0.9), (0.3, 0.9), (0.1, 0.5), (0.3, 0.1), (0.7, 0.1)]


@st.composite
def polygons(draw):
    "Stars around a middle: they never cross themselves."
    n = draw(st.integers(3, 9))
    angles = np.sort(
        draw(st.lists(st.floats(0, 6.2), min_size=n, max_size=n, unique_by=lambda a: round(a, 1)))
    )
    radius = np.array(draw(st.lists(st.floats(0.1, 0.45), min_size=n, max_size=n)))
    points = np.stack([0.5 + radius * np.cos(angles), 0.5 + radius * np.sin(angles)], axis=1)
    return tuple(map(tuple, np.round(points, 4).tolist()))


names = st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=12).filter(str.strip)


@given(polygons(), names)
@settings(max_examples=60, deadline=None)
@pytest.mark.slow
def test_what_is_drawn_is_what_a_run_reads(points, name):
    shape = Shape("zone", name, points)
    section = section_with({}, [shape], SIZE)
    if section_problems(section):
        return  # a star of points on one line
    for text in ("", CONFIG.replace("tracker", "\ntracker"), "sources: [{uri: a.mp4}]"):
        made = parse_yaml(with_section(text, section_with(events_of(text), [shape], SIZE)))
        rules = read_rules({"zones": made.get("events", made)["zones"]})
        assert rules.zones[-1].name == name
        assert np.allclose(rules.zones[-1].polygon, points, atol=1e-4)


@given(polygons(), st.sampled_from(sorted(KINDS)))
@settings(max_examples=60, deadline=None)
def test_writing_and_reading_again_gives_the_same_shapes(points, kind):
    points = (points * 2)[: POINTS[kind]] if kind in ("line", "ground") else points
    more = {"metres": [[0, 0], [1, 0], [1, 2], [0, 2]]} if kind == "ground" else {}
    shape = Shape(kind, "a", points, more)
    once = shapes_of(events_of(with_section(CONFIG, section_with(events_of(CONFIG), [shape], SIZE))), SIZE)
    (back,) = [s for s in once if s.kind == kind and s.at == max(t.at for t in once if t.kind == kind)]
    assert np.allclose(back.points, points, atol=1e-4)
    assert back.more == more


def test_shapes_that_were_not_moved_leave_the_file_as_it_is():
    section = events_of(CONFIG)
    for source in ("", "gate", "yard"):
        same = section_with(section, shapes_of(section, SIZE, source), SIZE, source)
        assert with_section(CONFIG, same) == CONFIG


def test_every_comment_outside_of_what_changed_stays():
    shape = Shape("zone", "new", ((0.1, 0.1), (0.2, 0.1), (0.2, 0.2)))
    made = with_section(
        CONFIG, section_with(events_of(CONFIG), [*shapes_of(events_of(CONFIG), SIZE), shape], SIZE)
    )
    for comment in ("# the yard", "# two cameras", "# agreed on 3 May", "# at night"):
        assert comment in made


def test_a_moved_corner_in_pixels_stays_in_pixels():
    lane = shapes_of(events_of(CONFIG), SIZE, "yard")[1]
    moved = Shape("zone", "lane", ((0.5, 0.2), *lane.points[1:]), lane.more, lane.at, lane.given)
    assert moved.entry(SIZE)["polygon"] == [[640.0, 144.0], [1280.0, 100.0], [1280.0, 720.0]]


def test_shapes_of_another_camera_are_neither_shown_nor_changed():
    section = events_of(CONFIG)
    assert [s.name for s in shapes_of(section, SIZE, "gate")] == ["dock"]
    made = section_with(section, [], SIZE, "gate")
    assert made["zones"] == [section["zones"][1]]


def test_a_configuration_with_a_drawing_is_one_that_a_run_loads(tmp_path):
    path = write_whole(tmp_path / "cameras.yaml", "sources:\n  - {uri: 'line:', id: belt}\n")
    ground = Shape(
        "ground",
        "floor",
        ((0.2, 0.9), (0.8, 0.9), (0.7, 0.4), (0.3, 0.4)),
        {"metres": [[0, 0], [6, 0], [6, 12], [0, 12]]},
    )
    ignore = Shape("ignore", "sky", ((0, 0), (1, 0), (1, 0.1), (0, 0.1)))
    write_shapes(path, [Shape("line", "door", ((0.5, 1), (0.5, 0))), ground, ignore], SIZE)
    config = load_config(path)
    assert [line.name for line in config.events.lines] == ["door"]
    assert ground_of(config.events, "belt", SIZE) is not None
    assert len(config.events.ignore) == 1
    assert read_events_config(path) == config.events


@pytest.mark.parametrize(
    "shapes, words",
    [
        ([Shape("zone", "a", ((0, 0), (1, 1), (1, 0), (0, 1)))], "crosses itself"),
        ([Shape("zone", "a", ((0, 0), (1, 1)))], "polygon"),
        ([Shape("line", "a", ((0.5, 0.5), (0.5, 0.5)))], "has no length"),
        ([Shape("zone", "a", RING[:3]), Shape("line", "a", ((0, 0), (1, 1)))], "duplicate name 'a'"),
        ([Shape("ground", "", RING[:4], {"metres": [[0, 0], [1, 1], [2, 2], [3, 3]]})], "on one line"),
        ([Shape("zone", "a", RING, {"dwell_s": -1})], "dwell_s"),
        ([Shape("zone", "a", RING, {"colour": "red"})], "colour"),
    ],
)
def test_what_a_run_would_refuse_is_not_written(shapes, words, tmp_path):
    path = tmp_path / "a.yaml"
    with pytest.raises(ConfigError, match=words):
        write_shapes(path, shapes, SIZE)
    assert not path.exists()


def test_a_zone_that_a_rule_needs_is_not_removed():
    problems = section_problems(section_with(events_of(CONFIG), [], SIZE, "gate"))
    assert problems == ["rules[0].zone: unknown zone 'dock'"]


def test_a_file_that_somebody_else_changed_is_not_overwritten(tmp_path):
    path = write_whole(tmp_path / "a.yaml", CONFIG)
    before = read_zone_file(path)
    write_whole(path, CONFIG.replace("dwell_s: 5", "dwell_s: 6"))
    with pytest.raises(ConfigError, match="has been changed since it was read"):
        write_shapes(path, [], SIZE, before=before)
    assert "dwell_s: 6" in path.read_text()


@pytest.mark.parametrize(
    "text",
    [
        "zones: 7",
        "zones: [{name: a}]",
        "zones: [{name: a, polygon: [[0, .nan], [1, 1], [1, 0]]}]",
        "events: 3",
        "a: [",
        "- 1",
    ],
)
def test_a_file_that_cannot_be_drawn_is_named(text, tmp_path):
    path = write_whole(tmp_path / "a.yaml", text)
    with pytest.raises(ConfigError, match="a.yaml"):
        shapes_of(events_of(read_zone_file(path), path), SIZE, where=path)


@pytest.mark.parametrize(
    "text",
    [
        "events: {zones: [], rules: [{name: r, kind: enter, zone: z}]}\n",
        "events: # none yet\n",
        f"events:\n  zones: &all\n    - {TRIANGLE}\n  lines: []\nother: *all\n",
        "events:\r\n  zones: []\r\n",
        "events:\n  zones:\n  - name: z\n    polygon: [[0, 0],\n      [1, 0], [1, 1]]\n  margin: 0.2",
    ],
    ids=["braces", "empty", "anchors", "windows", "no last newline"],
)
def test_whatever_the_text_looks_like_it_means_what_was_meant(text):
    text = "sources: [a]\n" + text.replace("\r\n", "\n")
    section = {**events_of(text), "zones": [{"name": "w", "polygon": [[0, 0], [1, 0], [1, 1]]}]}
    made = parse_yaml(with_section(text, section))
    assert made["events"] == section
    assert made["sources"] == ["a"]
