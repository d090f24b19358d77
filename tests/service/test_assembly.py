"""A configuration becomes a run: sinks of installed packages, summaries by name, and what is imported only
when it is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cv_pipeline.annotation.collect import KeptFrames, LiveCollection
from cv_pipeline.core.config import load_config
from cv_pipeline.core.results import read_jsonl, read_results
from cv_pipeline.core.types import (
    ConfigError,
    Detections,
    FrameResult,
    SinkError,
    SourceError,
    SourceStatus,
    StatusSource,
    status_of,
)
from cv_pipeline.monitoring.exporter import MonitoringSink
from cv_pipeline.service.assembly import (
    OWN_SINKS,
    PluginSink,
    UnopenedSource,
    check_run,
    installed_sinks,
    open_configured,
    open_plugin,
    open_sinks,
    plugin_class,
    rolling,
    run_config,
)
from cv_pipeline.synthetic.line import open_line
from cv_pipeline.video.events import EventSink
from cv_pipeline.video.sinks import CallbackSink, JsonlSink, ParquetSink, VideoSink
from tests.helpers.cli import lines_in
from tests.helpers.plugins import install
from tests.helpers.waiting import until

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def site(tmp_path, monkeypatch):
    "An installed package that offers sinks."
    folder = install(tmp_path / "site", {"tally": "factory_tally:TallySink", "odd": "factory_tally:Odd"})
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("factory_tally", None)


def wanted(tmp_path, sinks, **more):
    return load_config(
        None,
        {
            "sources": ["line:frames=6,seed=5"],
            "model.threads": 1,
            "delivery.out": str(tmp_path / "out"),
            "delivery.sinks": sinks,
            **more,
        },
    )


# --- sinks of other packages


@pytest.mark.slow
def test_a_configured_run_in_a_process_of_its_own_finds_and_uses_an_installed_sink(tmp_path):
    folder = install(tmp_path / "site", {"tally": "factory_tally:TallySink"})
    config = {
        "sources": ["line:frames=6,seed=5"],
        "delivery": {"out": str(tmp_path / "out"), "sinks": {"tally": None}},
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    command = [
        sys.executable,
        "-c",
        "from cv_pipeline.commands.main import main; main()",
        "run",
        str(tmp_path / "run.yaml"),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"},
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["sinks"]["tally"] == {
        "boxes": summary["detections"],
        "file": str(tmp_path / "out" / "tally.txt"),
    }
    assert (tmp_path / "out" / "tally.txt").read_text() == str(summary["detections"])
    assert summary["detections"] > 0


def test_installed_sinks_are_listed_by_name(site):
    assert list(installed_sinks()) == ["odd", "tally"]


def test_a_sink_that_is_not_installed_is_an_error_that_lists_those_that_are(site, tmp_path):
    with pytest.raises(
        ConfigError, match="no sink plug-in 'telly' is installed.*delivery.sinks.telly.*installed: odd, tally"
    ):
        check_run(wanted(tmp_path, {"telly": {}}))


def test_where_no_sink_is_installed_the_error_says_so(tmp_path):
    with pytest.raises(ConfigError, match="installed: none"):
        check_run(wanted(tmp_path, {"telly": {}}))


def test_a_sink_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install(tmp_path / "site", {"tally": "no_such_module_at_all:Sink"}))
    with pytest.raises(
        ConfigError,
        match="the sink plug-in 'tally' cannot be imported: ModuleNotFoundError.*no_such_module_at_all:Sink",
    ):
        check_run(wanted(tmp_path, {"tally": {}}))


@pytest.mark.parametrize("settings", [{"evry": 3}, {"out": "elsewhere"}])
def test_settings_that_a_sink_does_not_take_are_said_before_anything_is_opened(site, tmp_path, settings):
    with pytest.raises(
        ConfigError,
        match=r"invalid settings of the sink plug-in 'tally'.*its signature is tally\(out, "
        r"fails=None, summary=None\)",
    ):
        check_run(wanted(tmp_path, {"tally": settings}))
    assert not (tmp_path / "out").exists()


def test_what_is_no_sink_is_refused(site, tmp_path):
    with pytest.raises(ConfigError, match="the sink plug-in 'odd' created a Odd, which is not a sink"):
        open_plugin("odd", tmp_path, {})


@pytest.mark.parametrize(
    "own", [ParquetSink, JsonlSink, VideoSink, EventSink, CallbackSink, MonitoringSink, LiveCollection]
)
def test_every_sink_of_this_package_has_a_name_that_no_plugin_can_take(own, tmp_path):
    assert own.name in OWN_SINKS
    with pytest.raises(ConfigError, match=f"'{own.name}' is a sink of this package"):
        plugin_class(own.name, tmp_path, {})


def test_a_name_that_two_packages_offer_is_not_guessed(site, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(
        install(tmp_path / "other", {"tally": "other_tally:Sink"}, "other-tally", "other_tally")
    )
    with pytest.raises(ConfigError, match="the sink plug-in 'tally' is provided 2 times: .*factory-tally"):
        check_run(wanted(tmp_path, {"tally": {}}))


def test_a_package_that_is_found_twice_counts_once(site, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(install(tmp_path / "again", {"tally": "factory_tally:TallySink"}))
    assert len(installed_sinks()["tally"]) == 1


# --- a plug-in that fails


def test_one_that_cannot_be_opened_costs_nothing_of_the_run_before(site, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.jsonl").write_text("of yesterday\n")
    with pytest.raises(
        SinkError, match="the sink plug-in 'tally' cannot be opened: ConnectionError: no broker"
    ) as raised:
        open_sinks(wanted(tmp_path, {"tally": {"fails": "open"}}))
    assert "S3cretPw" not in str(raised.value)
    assert (tmp_path / "out" / "results.jsonl").read_text() == "of yesterday\n"


def test_when_a_later_sink_cannot_be_opened_those_before_it_are_closed(site, tmp_path):
    (tmp_path / "out" / "results.jsonl").mkdir(parents=True)  # our own file cannot be opened
    with pytest.raises(SinkError, match="results.jsonl"):
        open_sinks(wanted(tmp_path, {"tally": {}}))
    assert (tmp_path / "out" / "tally.txt").read_text() == "0"


def test_one_that_fails_while_it_writes_ends_the_run_and_is_named(site, tmp_path):
    with pytest.raises(
        SinkError, match="the sink plug-in 'tally' failed at frame 3 of line: KeyError: 'oven'"
    ):
        run_config(wanted(tmp_path, {"tally": {"fails": "write"}}))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "the sink plug-in 'tally' failed" in summary["error"]
    assert (
        len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == summary["frames_delivered"] > 3
    )  # the other sinks have all


def test_one_that_cannot_be_closed_is_named(site, tmp_path):
    with pytest.raises(SinkError, match="the sink plug-in 'tally' cannot be closed: ValueError: still busy"):
        run_config(wanted(tmp_path, {"tally": {"fails": "close"}}))


def test_one_without_a_usable_summary_has_a_problem_there(site, tmp_path):
    sink = open_plugin("tally", tmp_path, {"fails": "summary"})
    assert sink.summary()["problem"].startswith("the sink plug-in 'tally' has no summary: ZeroDivisionError")


def test_a_summary_becomes_plain_values_without_credentials(site, tmp_path):
    sink = open_plugin(
        "tally",
        tmp_path,
        {"summary": {"to": "mqtt://ann:S3cretPw@broker", "at": tmp_path, "password": "S3cretPw"}},
    )
    assert sink.summary() == {"to": "mqtt://***@broker", "at": str(tmp_path), "password": "***"}


@pytest.mark.parametrize("fails, families", [("metrics", []), (None, ["a family"])])
def test_metrics_of_one_that_fails_do_not_spoil_those_of_the_others(site, tmp_path, fails, families):
    assert open_plugin("tally", tmp_path, {"fails": fails}).metric_families() == families


def test_one_without_a_summary_is_not_in_the_summary():
    class Plain:
        def write(self, result):
            pass

        def close(self):
            pass

    assert PluginSink("plain", Plain()).summary() is None


# --- the summary


def test_summaries_stand_under_the_names_of_the_sinks(site, tmp_path):
    more = {
        "events.lines": [{"name": "gate", "start": [0.5, 1], "end": [0.5, 0]}],
        "telemetry": True,
        "collect": True,
    }
    summary = run_config(wanted(tmp_path, {"tally": {}}, **more))
    assert set(summary["sinks"]) == {"events", "telemetry", "collect", "tally"}
    assert set(summary["sinks"]["events"]) == {"events", "counts", "problems", "callback_errors"}


def test_what_is_collected_is_encrypted_where_the_configuration_has_keys(site, tmp_path):
    more = {"collect": {"random": 0.5}, "privacy": {"encrypt": str(tmp_path / "keys")}}
    run_config(wanted(tmp_path, {"tally": {}}, **more))
    names = [p.name for p in (tmp_path / "out" / "collected").rglob("*.jpg*")]
    assert names and all(name.endswith(".jpg.enc") for name in names)


def test_keys_without_anything_that_is_collected_are_an_error(tmp_path):
    with pytest.raises(ConfigError, match="privacy.encrypt needs `collect`"):
        wanted(tmp_path, {"tally": {}}, privacy={"encrypt": "keys"})


@pytest.mark.parametrize(
    "given, settings",
    [
        ({"mail": None}, {"mail": {}}),
        ({"mail": True}, {"mail": {}}),
        ({"mail": False}, {}),
        ({"mail": {"to": 1}}, {"mail": {"to": 1}}),
    ],
)
def test_a_bare_name_takes_the_defaults(tmp_path, given, settings):
    assert wanted(tmp_path, given).delivery.sinks == settings


@pytest.mark.slow
def test_chapters_that_few_runs_need_are_imported_when_they_are_needed():
    code = (
        "import sys, cv_pipeline.service.assembly; print(*(m for m in sys.modules if "
        "m.startswith(('cv_pipeline.monitoring', 'cv_pipeline.annotation'))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "", done.stderr


# --- what sources tell


def test_every_source_that_is_opened_tells_its_status(tmp_path, monkeypatch):
    (tmp_path / "gate").mkdir()
    sources = [
        *open_configured(load_config(None, {"sources": ["line:frames=2,fps=12", "gone.mp4"]}).sources),
        KeptFrames(tmp_path / "gate", "gate"),
    ]
    assert [isinstance(source, StatusSource) for source in sources] == [True] * 3
    assert status_of(sources[0]) == SourceStatus(fps=12.0, decoder="synthetic")


def test_an_unopened_source_tells_why():
    error = SourceError("file not found", "gone.mp4")
    assert status_of(UnopenedSource("gone", error)).error is error


def test_a_source_without_status_gets_the_default():
    class Plain:
        source_id, live = "plain", False

        def __iter__(self):
            return iter(open_line("line:frames=1"))

        def close(self):
            pass

    assert status_of(Plain()) == SourceStatus()


@pytest.mark.parametrize(
    "answer, words", [(None, "returned NoneType"), (OSError("no answer"), "raised OSError: no answer")]
)
def test_a_status_that_fails_is_the_source_s_error_and_not_the_run_s(answer, words):
    class Odd:
        source_id, live = "odd", False

        def __iter__(self):
            return iter(())

        def close(self):
            pass

        def status(self):
            if answer is not None:
                raise answer

    assert words in str(status_of(Odd()).error)


# --- the folder of a run


def endless(out, *more):
    "The command over a source that never ends, killed when a hundred lines are there."
    main = "from cv_pipeline.commands.main import main; main()"
    command = [sys.executable, "-c", main, "run", "line:width=160,height=120", "--out", str(out), *more]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT) as process:
        until(lambda: lines_in(out / "results.jsonl") > 100, 60, process)
        process.kill()


@pytest.mark.slow
def test_the_run_after_a_kill_in_the_same_folder_sets_everything_aside_and_says_so(tmp_path, caplog):
    out = tmp_path / "out"
    rules = {"events": {"zones": [{"name": "a", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}]}}
    (tmp_path / "rules.yaml").write_text(json.dumps(rules))
    endless(out, "--save-video", "--config", str(tmp_path / "rules.yaml"))
    (out / "flags.jsonl").write_text('{"source_id": "line", "frame_id": 50}\n')
    killed = {p.name: p.read_bytes() for p in out.glob("[!.]*.*") if p.is_file() and p.name != "running.json"}
    summary = run_config(wanted(tmp_path, {}))
    aside = out / "interrupted-1"
    assert {name: (aside / name).read_bytes() for name in killed} == killed
    assert {"line.mp4", "flags.jsonl", "results.jsonl"} <= set(killed) and (aside / "results.parts").is_dir()
    whole = read_results(aside)["frame_id"].to_pylist()
    with_boxes = [r["frame_id"] for r in read_jsonl(aside) for _ in r["detections"]]
    assert whole == with_boxes and len(whole) > 100
    assert [r["frame_id"] for r in read_jsonl(out)] == list(range(6))
    assert "interrupted-1" in summary["notes"][0] and "interrupted-1" in caplog.text
    assert json.loads((out / "summary.json").read_text())["notes"] == summary["notes"]
    assert not (out / "running.json").exists() and "notes" not in run_config(wanted(tmp_path, {}))


def test_a_run_that_fails_has_closed_its_folder(site, tmp_path):
    with pytest.raises(SinkError):
        run_config(wanted(tmp_path, {"tally": {"fails": "write"}}))
    assert not (tmp_path / "out" / "running.json").exists()


def test_a_run_that_does_not_begin_leaves_the_one_before_as_it_was(site, tmp_path):
    run_config(wanted(tmp_path, {}))
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(SinkError, match="cannot be opened"):
        run_config(wanted(tmp_path, {"tally": {"fails": "open"}}))
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.name in before} == before


def test_the_next_run_over_files_leaves_no_film_of_another_source(tmp_path):
    run_config(wanted(tmp_path, {}, **{"delivery.video": True}))
    assert (tmp_path / "out" / "line.mp4").exists()
    run_config(wanted(tmp_path, {}, **{"delivery.parquet": False}))
    left = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert left == ["results.jsonl", "summary.json"]


@pytest.mark.parametrize(
    "given, rolls",
    [
        ({}, False),
        ({"delivery.roll": "hour"}, True),
        ({"sources": ["rtsp://camera/live"]}, True),
        ({"sources": ["0"]}, True),
        ({"sources": [{"uri": "film.mp4", "realtime": True}]}, True),
        ({"sources": ["rtsp://camera/live"], "delivery.roll": "never"}, False),
    ],
)
def test_who_rolls(tmp_path, given, rolls):
    hours = rolling(load_config(None, {"sources": ["line:"], "delivery.out": str(tmp_path), **given}))
    assert (hours is not None) == rolls
    assert hours is None or hours.max_bytes == 20e9


@pytest.mark.parametrize(
    "given", [{"delivery.roll": "day"}, {"delivery.max_gb": 0}, {"delivery.max_gb": "x"}]
)
def test_invalid_settings_of_rolling_are_refused(given):
    with pytest.raises(ConfigError, match="roll|max_gb"):
        load_config(None, {"sources": ["line:"], **given})


@pytest.fixture
def belt(tmp_path):
    "A film in the working folder."
    sink = VideoSink(tmp_path, fps=10)
    for frame in open_line("line:width=160,height=120,frames=5", "belt"):
        sink.write(FrameResult(frame, Detections.empty(), (), {}, True, "ok", ""))
    sink.close()
    return sink.files[0]


def saved(out, *sources):
    settings = {"sources": [str(s) for s in sources], "delivery.out": str(out), "delivery.video": True}
    return run_config(load_config(None, {**settings, "model.threads": 1}))


def test_a_film_is_never_written_over_its_source(tmp_path, belt):
    before = belt.read_bytes()
    for _ in range(2):
        summary = saved(tmp_path, belt)
        assert summary["frames_read"] == 5 and belt.read_bytes() == before
    assert len(list(tmp_path.glob("*.mp4"))) == 2


def test_a_source_that_the_run_before_wrote_is_refused_and_stays(tmp_path, belt):
    out = tmp_path / "out"
    saved(out, belt)
    made = next(out.glob("*.mp4"))
    with pytest.raises(ConfigError, match="was written by the run before"):
        saved(out, made)
    assert made.exists()
