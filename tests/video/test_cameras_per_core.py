"""The headline benchmark in parts: rows that are there are not measured again, a torn file, the table."""

import json
from pathlib import Path

import pytest

from cv_pipeline.core.types import DataError
from tests.benchmarks import bench_cameras_per_core as bench
from tests.benchmarks.headline import BEGIN, END, Rows, compared, markdown, write_table


def made_up(clip="line, 5 %", contestant="ours, adaptive", processor="own", cpu=2.0, kept=10):
    return {
        "clip": clip,
        "contestant": contestant,
        "processor": processor,
        "CPU s": cpu,
        "CPU s / s": cpu / 60,
        "cameras a core": 60 / cpu,
        "model calls": 7,
        "decoded": 0.25,
        "events": 10,
        "seen": 10,
        "kept": kept,
        "in 1 s": 9,
        "tracks": 11,
        "gate": {"state": "asleep"},
    }


@pytest.fixture
def measured(monkeypatch):
    "What was measured, clip and contestant; nothing is run."
    asked = []

    def measure(clip, case, name, processor):
        asked.append((clip, name))
        return made_up(clip, name, processor)

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr(bench, "line", lambda *a: {})
    monkeypatch.setattr(bench, "person", lambda cache: {})
    return asked


def test_a_row_that_is_there_is_not_measured_again(measured, tmp_path):
    names = ["ours, every 10", "ours, adaptive"]
    for chosen in (names[:1], names):
        bench.run(rows=Rows(tmp_path / "rows"), clips=["line, 5 %"], contestants=chosen, cache=tmp_path)
    assert measured == [("line, 5 %", name) for name in names]


def test_another_processor_is_another_row(measured, tmp_path):
    for processor in ("own", "avx2", "avx2"):
        rows = Rows(tmp_path / "rows")
        bench.run(
            rows=rows,
            clips=["line, 5 %"],
            contestants=["ours, adaptive"],
            processor=processor,
            cache=tmp_path,
        )
    assert [row["processor"] for row in rows.found] == ["own", "avx2"]


def test_what_was_measured_before_a_failure_is_kept(measured, monkeypatch, tmp_path):
    def breaks(clip, case, name, processor):
        if name == "ours, adaptive":
            raise RuntimeError("killed")
        return made_up(clip, name)

    monkeypatch.setattr(bench, "measure", breaks)
    with pytest.raises(RuntimeError, match="killed"):
        bench.run(rows=Rows(tmp_path / "rows"), clips=["line, 1 %"], cache=tmp_path)
    before = [name for _, name in bench.planned(["line, 1 %"], None, False)]
    before = before[: before.index("ours, adaptive")]
    assert [row["contestant"] for row in Rows(tmp_path / "rows").found] == before


def test_a_row_that_was_cut_off_is_measured_again(tmp_path):
    path, rows = tmp_path / "rows", Rows(tmp_path / "rows")
    rows.add(made_up())
    rows.add(made_up(contestant="ours, every 10"))
    path.write_bytes(path.read_bytes()[:-20])
    again = Rows(path)
    assert [row["contestant"] for row in again.found] == ["ours, adaptive"]
    again.add(made_up(contestant="ours, every 10"))
    assert Rows(path).has("line, 5 %", "ours, every 10", "own")


@pytest.mark.parametrize("bad", ["{}", "no row", "[1]", json.dumps({"clip": "a", "contestant": "b"})])
def test_a_file_of_something_else_is_refused(bad, tmp_path):
    (tmp_path / "rows").write_text(json.dumps(made_up()) + "\n" + bad + "\n")
    with pytest.raises(DataError, match="line 2"):
        Rows(tmp_path / "rows")


def test_eight_bits_are_measured_where_the_gate_accepted_them():
    with_int8 = [clip for clip, name in bench.planned([*bench.CLIPS], None, False) if "INT8" in name]
    assert with_int8 == [bench.PERSON]


@pytest.mark.parametrize(
    "begins, found",
    [
        ([100, 200], 2),
        ([99, 195], 2),  # a tracker that believes sooner
        ([94, 194], 0),  # too early
        ([100, 151], 1),  # in the gap
        ([100, 149, 210], 2),
    ],
)
def test_a_visit_is_kept_by_a_track_that_begins_with_it(begins, found):
    assert bench.kept(begins, [(100, 150), (200, 250)], early=5) == found


def test_a_track_of_the_visit_before_is_not_an_early_one():
    assert bench.kept([148], [(100, 147), (149, 250)], early=5) == 1
    assert bench.kept([148], [(100, 148), (149, 250)], early=5) == 1
    assert bench.kept([100], [(100, 200), (150, 250)], early=60) == 1


def test_a_late_track_is_not_within_the_time():
    assert bench.kept([110], [(100, 150)], early=5, within=9) == 0


def test_ratios_are_to_the_cheapest_stride_that_keeps_the_events():
    rows = [
        made_up(contestant="Ultralytics, stride 1", cpu=100.0),
        made_up(contestant="Ultralytics, stride 5", cpu=20.0),
        made_up(contestant="Ultralytics, stride 10", cpu=10.0, kept=9),  # .9 of the events
        made_up(clip="line, 1 %", contestant="Ultralytics, stride 10", cpu=1.0),
        made_up(cpu=2.0),
    ]
    ours = compared(rows)[-1]
    assert (ours["× stride 1"], ours["× best stride"]) == (50.0, 10.0)


def test_without_peers_there_is_no_ratio():
    (row,) = compared([made_up()])
    assert row["× stride 1"] is None and row["× best stride"] is None
    assert "| – | – |" in markdown([made_up()])


def test_energy_that_was_not_measured_has_its_reason():
    row = made_up() | {"J a camera-hour": None, "energy": "no RAPL counters, no perf"}
    assert markdown([row]).endswith("| – |\n\nEnergy: not measured (no RAPL counters, no perf).\n")


def test_energy_that_was_measured_is_in_the_table():
    assert markdown([made_up() | {"J a camera-hour": 1234.4, "energy": ""}]).endswith("| 1234 |\n")


def test_the_table_goes_between_its_marks(tmp_path):
    document = tmp_path / "page.md"
    document.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    write_table(document, markdown([made_up()]))
    text = document.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| line, 5 % | as it is | ours, adaptive | 0.033 | 30.0 |" in text


def test_the_benchmarks_page_has_the_marks():
    text = (Path(__file__).parents[2] / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1


def test_a_document_without_the_marks_is_refused_and_stays(tmp_path):
    document = tmp_path / "page.md"
    document.write_text("nothing here\n")
    with pytest.raises(DataError, match="marks"):
        write_table(document, "table\n")
    assert document.read_text() == "nothing here\n"


def test_a_contestant_that_fails_is_an_error_with_its_words():
    with pytest.raises(RuntimeError, match="ours failed(.|\n)*missing.onnx"):
        bench.contest("ours", "missing.mp4", "missing.onnx", "auto", 0.3, {}, None)
