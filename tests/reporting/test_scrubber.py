"A film by frames: the same pictures as decoding from the beginning, with what a run found in them."

import numpy as np
import pytest

from cv_pipeline.core.config import load_config
from cv_pipeline.core.files import write_whole
from cv_pipeline.core.progress import WIDGETS
from cv_pipeline.core.types import CVPipelineError, DataError, SourceError
from cv_pipeline.reporting.scrubber import Film, Found, events_in, frame_scrubber, frame_ticks
from cv_pipeline.service.assembly import run_config
from cv_pipeline.synthetic.line import make_demo
from cv_pipeline.video.decoding import decode_video
from tests.helpers.services import require

require("ipywidgets")


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    "A film of the line and the run over it."
    folder = tmp_path_factory.mktemp("film")
    clip = make_demo(folder / "clips", 3.0)[0]
    zone = {"name": "station", "polygon": [[0.3, 0], [0.7, 0], [0.7, 1], [0.3, 1]]}
    given = {"sources": [str(clip)], "delivery.out": str(folder / "out"), "events": {"zones": [zone]}}
    run_config(load_config(None, given))
    return clip, folder / "out"


@pytest.mark.slow
def test_frames_in_any_order_are_those_of_decoding_all(watched):
    every = {p.number: p.image for p in decode_video(watched[0])}
    with Film(watched[0], keep=4) as film:
        assert len(film) == len(every)
        for n in np.random.default_rng(3).permutation(len(film)).tolist():
            assert (film[n] == every[n]).all()


def test_going_on_decodes_no_frame_twice(watched):
    with Film(watched[0]) as film:
        for n in range(20):
            _ = film[n]
        assert film.jumps == 1


def test_only_so_many_frames_are_kept(watched):
    with Film(watched[0], keep=5) as film:
        for n in (40, 3, 60, 12):
            _ = film[n]
        assert len(film._kept) <= 5


def test_a_film_that_cannot_jump_is_read_from_the_beginning(watched, monkeypatch):
    every = {p.number: p.image for p in decode_video(watched[0])}
    monkeypatch.setattr("cv_pipeline.reporting.scrubber.frame_ticks", lambda path: np.zeros(0, np.int64))
    with Film(watched[0]) as film:
        assert len(film) == len(every)
        for n in (30, 5, 31):
            assert (film[n] == every[n]).all()


def test_times_are_read_without_decoding(watched):
    ticks = frame_ticks(watched[0])
    assert len(ticks) == sum(1 for _ in decode_video(watched[0]))
    assert (np.diff(ticks) > 0).all()


@pytest.mark.parametrize("number", [-1, 10**6])
def test_a_frame_that_does_not_exist_is_named(watched, number):
    with Film(watched[0]) as film, pytest.raises(DataError, match="does not exist"):
        _ = film[number]


@pytest.mark.parametrize("content", [b"", b"not a film", b"\x00" * 5000])
def test_a_file_that_is_not_a_film_is_a_typed_error(content, tmp_path):
    path = write_whole(tmp_path / "a.mp4", content)
    with pytest.raises(CVPipelineError, match="a.mp4"):
        Film(path)


def test_a_film_that_is_cut_off_is_read_as_far_as_it_goes(watched, tmp_path):
    data = watched[0].read_bytes()
    path = write_whole(tmp_path / "cut.mp4", data[: int(len(data) * 0.7)])
    try:
        with Film(path) as film:
            assert film[0].ndim == 3
            with pytest.raises(DataError, match="cannot be decoded|does not exist"):
                for n in range(len(film) + 1):
                    _ = film[n]
    except SourceError:
        pass  # its index was at the end


def test_moving_the_slider_changes_the_picture(watched):
    scrubber = frame_scrubber(*watched)
    _ = scrubber.widget
    before = scrubber.parts["image"].value
    scrubber.parts["slider"].value = 40
    assert scrubber.parts["image"].value != before
    assert scrubber.parts["text"].value.startswith("frame 40 of")


def test_an_event_is_jumped_to(watched):
    scrubber = frame_scrubber(*watched)
    _ = scrubber.widget
    text, frame = scrubber.events[-1]
    scrubber.parts["events"].value = frame
    assert scrubber.frame == frame and str(frame) in text


def test_boxes_are_those_of_the_results(watched):
    from cv_pipeline.core.results import read_results

    table = read_results(watched[1])
    found = Found(table, watched[0].stem)
    assert sum(len(found[n]) for n in range(200)) == len(table)
    assert len(found[10**6]) == 0


def test_results_of_another_camera_are_refused(watched):
    from cv_pipeline.core.results import read_results

    table = read_results(watched[1])
    import pyarrow as pa

    other = table.set_column(0, "source_id", pa.array(["b"] * len(table)))
    with pytest.raises(DataError, match="give source=, one of"):
        Found(pa.concat_tables([table, other]), "c")


def test_a_run_without_events_has_none_to_jump_to(tmp_path):
    assert events_in(tmp_path, "a") == []


def test_without_a_front_end_it_is_a_card_with_the_picture(watched, monkeypatch):
    monkeypatch.setenv(WIDGETS, "0")
    shown = frame_scrubber(*watched).go(20)._repr_mimebundle_()
    assert sorted(shown) == ["text/html", "text/plain"]
    assert "data:image/jpeg" in shown["text/html"] and "frame 20 of" in shown["text/html"]


def test_a_run_that_covered_its_pictures_is_shown_covered(watched, monkeypatch):
    from cv_pipeline.video.cover import Privacy

    monkeypatch.setattr("cv_pipeline.reporting.scrubber.privacy_of_run", lambda *_: Privacy(True, "live"))
    assert frame_scrubber(*watched).album.cover.privacy.on
