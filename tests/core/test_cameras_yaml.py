"""`cv-pipeline run cameras.yaml`: sixteen sources in one process, a real RTSP camera among them, dead and
broken ones too."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cv_pipeline.core.results import read_results
from cv_pipeline.synthetic.line import open_line, write_video
from cv_pipeline.video.events import read_events
from tests.helpers.cli import CLI, called, hears_ctrl_c
from tests.helpers.waiting import until

SECRET = "p%40ss:w/rd?"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "belt.mp4"
    write_video(path, [f.image for f in open_line("line:frames=40,seed=3,fps=5", "x")], fps=5)
    return path


def run_for(folder: Path, config: dict, seconds: float, done=lambda out: False) -> tuple[dict, str, int]:
    """Run the command, end it with Ctrl-C when `done`, which may take so many seconds, and return summary,
    output and exit code."""
    (folder / "cameras.yaml").write_text(json.dumps(config))  # JSON is YAML
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(
            [CLI, "run", str(folder / "cameras.yaml")],
            stdout=log,
            stderr=log,
            env={**os.environ, "GATE_PASSWORD": SECRET},
            preexec_fn=hears_ctrl_c,
        )
        try:
            asked = [0.0]

            def ready():  # the results are read twice a second: the run needs the processor
                if time.monotonic() - asked[0] < 0.5:
                    return False
                asked[0] = time.monotonic()
                return done(folder / "out")

            with suppress(AssertionError):
                until(
                    lambda: process.poll() is not None or ready(), seconds
                )  # what has come by then is judged below
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            code = process.wait(60)
        finally:
            process.kill()
    return json.loads((folder / "out" / "summary.json").read_text()), (folder / "log").read_text(), code


def frames_of(out: Path, source: str) -> int:
    try:
        return sum(
            json.loads(line)["source_id"] == source
            for line in (out / "results.jsonl").read_text().splitlines()[:-1]
        )
    except (OSError, ValueError):
        return 0


def test_sixteen_sources_one_of_them_rtsp_and_four_that_misbehave(tmp_path, clip, serve):
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:2000])
    camera = serve("--size", "320x240", "--fps", "10")
    guarded = serve("--size", "320x240", "--fps", "10", "--user", "me", "--password", "right")
    good = [{"uri": str(clip), "id": f"file{i:02d}", "realtime": True} for i in range(11)]
    config = {
        "sources": [
            *good,
            {"uri": camera.uri, "id": "rtsp"},
            {"uri": "rtsp://admin:hunter2@127.0.0.1:9/none", "id": "dead"},
            {"uri": str(tmp_path / "broken.mp4"), "id": "broken"},
            {"uri": guarded.uri, "id": "guarded", "user": "me", "password_env": "GATE_PASSWORD"},
            {"uri": str(tmp_path / "gone.mp4"), "id": "gone"},
        ],
        "tracker": {"name": "bytetrack"},
        "selection": {"adaptive": {"budget": 20}},
        "health": {"port": 0},
        "events": {"lines": [{"name": "gate", "start": [0.5, 1], "end": [0.5, 0]}]},
        "delivery": {"out": str(tmp_path / "out")},
    }
    summary, log, code = run_for(
        tmp_path,
        config,
        60,
        lambda out: frames_of(out, "rtsp") > 20 and all(frames_of(out, s["id"]) >= 30 for s in good),
    )
    sources = summary["sources"]
    assert code == 130 and len(sources) == 16
    for s in good:
        assert sources[s["id"]]["frames_read"] >= 30 and sources[s["id"]]["error"] is None
    assert (
        sources["rtsp"]["frames_read"] > 20
        and sources["rtsp"]["size"] == [320, 240]
        and "h264" in sources["rtsp"]["decoder"]
    )
    assert sources["dead"]["frames_read"] == 0 and sources["dead"]["error"]
    assert (
        sources["broken"]["state"] == "failed"
        and sources["gone"]["state"] == "failed"
        and "file not found" in sources["gone"]["error"]
    )
    assert sources["guarded"]["frames_read"] == 0 and "password" in sources["guarded"]["error"]
    assert 0 < summary["frames_inferred"] < summary["frames_read"]  # the budget was kept
    order = {}
    for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["frame_id"] > order.get(row["source_id"], -1)
        order[row["source_id"]] = row["frame_id"]
    everything = log + (tmp_path / "out" / "summary.json").read_text()
    for secret in ("hunter2", SECRET, "p@ss", "GATE_PASSWORD="):
        assert secret not in everything, "credentials are masked everywhere"
    assert read_results(tmp_path / "out").num_rows > 0


@pytest.mark.slow
def test_zones_and_lines_come_out_as_events(tmp_path):
    config = {
        "sources": [{"uri": "line:seed=5,frames=120", "id": "belt"}],
        "delivery": {"out": str(tmp_path / "out")},
        "events": {
            "zones": [
                {"name": "middle", "polygon": [[0.3, 0], [0.7, 0], [0.7, 1], [0.3, 1]], "dwell_s": 1.0}
            ],
            "lines": [{"name": "gate", "start": [0.5, 1], "end": [0.5, 0]}],
        },
    }
    summary, log, code = run_for(tmp_path, config, 60)
    events = read_events(tmp_path / "out").to_pylist()
    assert code == 0 and summary["sinks"]["events"]["events"] == len(events) > 5 and "Zones and lines" in log
    assert {e["kind"] for e in events} >= {"zone_enter", "zone_leave", "line_cross"} and all(
        e["tracker_id"] >= 0 for e in events
    )
    crossed = [e for e in events if e["kind"] == "line_cross"]
    assert {e["direction"] for e in crossed} == {"in"}  # the belt runs one way
    counts = summary["sinks"]["events"]["counts"]["belt"]["gate"]
    assert sum(c["in"] for c in counts.values()) == len(crossed) == len({e["tracker_id"] for e in crossed})


@pytest.mark.slow
@pytest.mark.parametrize(
    "change, words",
    [
        ({"events": {"zones": [{"name": "z", "polygon": [[0, 0], [1, 1]]}]}}, "polygon"),
        ({"events": {"zones": [{"name": "z", "polygon": [[0, 0], [1, 1], [1, 0], [0, 1]]}]}}, "cross"),
        ({"events": {"lines": [{"name": "l", "start": [0.1, 0.1], "end": [0.1, 0.1]}]}}, "line"),
        (
            {"events": {"zones": [{"name": "z", "polygon": [[0, 0], [1, 0], [1, 1]], "classes": ["cat"]}]}},
            "cat",
        ),
        ({"tracker": {"name": "bytetrack", "options": {"delta_t": 3}}}, "delta_t"),
        ({"tracker": {"name": "deepsort", "embedder": "none.onnx"}}, "none.onnx"),
        ({"tracker": {"name": "magic"}}, "magic"),
        ({"selection": {"adaptive": {"floor_fps": 9, "ceiling_fps": 1}}}, "floor_fps"),
        ({"selection": {"adaptive": True, "every": 3}}, "adaptive cannot be combined"),
        (
            {"sources": [{"uri": "rtsp://x/y", "user": "me", "password_env": "NOT_THERE_AT_ALL"}]},
            "NOT_THERE_AT_ALL",
        ),
        ({"sources": [{"uri": "rtsp://x/y", "password_env": "NOT_THERE_AT_ALL"}]}, "without user"),
        ({"sources": [{"uri": "line:", "hardware": "d3d11va"}]}, "hardware"),
        (
            {"events": {"zones": [{"name": "z", "polygon": [[0, 0], [1, 0], [1, 1]], "sources": ["bgi"]}]}},
            "names the unknown source 'bgi'",
        ),
        ({"sources": [{"uri": "line:", "transport": "pigeon"}]}, "transport"),
        ({"delivery": {"sinks": ["mail"]}}, "delivery.sinks"),
        ({"delivery": {"sinks": {"mail": "loud"}}}, "delivery.sinks.mail"),
        ({"events": {"zones": [{"nmae": "z"}]}}, "did you mean 'name'"),
    ],
)
def test_mistakes_in_the_yaml_are_said_before_anything_runs(tmp_path, change, words):
    config = {"sources": ["line:frames=5"], "delivery": {"out": str(tmp_path / "out")}, **change}
    (tmp_path / "cameras.yaml").write_text(json.dumps(config))
    result = called("run", str(tmp_path / "cameras.yaml"))
    assert result.returncode in (2, 4) and words in result.stderr and "Traceback" not in result.stderr, (
        result.stderr
    )
    assert not (tmp_path / "out" / "results.jsonl").exists()
    checked = called("config", str(tmp_path / "cameras.yaml"))
    assert checked.returncode in (2, 4) or words == "cat", (
        "what `run` refuses, `config` does not call good (a model's classes are only known with the model)"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "sources:\n  - {uri: 'rtsp://admin:S3cretPw@h/a', id: x}\n  - {uri: 'rtsp://admin:S3cretPw@h/b', id: "
        "x}\n",
        "sources: {uri: 'rtsp://admin:S3cretPw@h/a'}\n",
        "sources:\n  - uri: 'rtsp://admin:S3cretPw@h/a'\n   id: x\n",
        "sources: [['rtsp://admin:S3cretPw@h/a']]\n",
        "sources: ['line:']\nmodel: 'rtsp://admin:S3cretPw@h/a'\n",
    ],
)
def test_errors_in_a_configuration_do_not_print_its_passwords(tmp_path, text):
    (tmp_path / "cameras.yaml").write_text(text)
    result = called("run", str(tmp_path / "cameras.yaml"))
    assert result.returncode == 2 and "S3cretPw" not in result.stderr + result.stdout, result.stderr
    address = called("run", "rtsp://u:S3cretPw@127.0.0.1:9/cfg.yaml")
    assert address.returncode == 3 and "S3cretPw" not in address.stderr


def test_names_that_are_made_keep_clear_of_names_that_are_given():
    from cv_pipeline.core.config import SourceConfig
    from cv_pipeline.service.assembly import source_names

    assert source_names(
        [
            SourceConfig(uri="belt0.mp4"),
            SourceConfig(uri="belt1.mp4", id="belt0"),
            SourceConfig(uri="a/belt0.mp4"),
        ]
    ) == ["belt0-2", "belt0", "a_belt0"]


@pytest.mark.slow
def test_when_no_stream_answers_the_run_does_not_start(tmp_path):
    (tmp_path / "cameras.yaml").write_text(
        json.dumps(
            {
                "sources": ["rtsp://u:pw1@127.0.0.1:9/a", "rtsp://u:pw2@127.0.0.1:9/b"],
                "delivery": {"out": str(tmp_path / "out")},
            }
        )
    )
    result = called("run", str(tmp_path / "cameras.yaml"))
    assert (
        result.returncode == 3
        and "cannot open any of the 2 sources" in result.stderr
        and "pw1" not in result.stderr
        and "pw2" not in result.stderr
    )
