"""Metrics of a running pipeline, as a real Prometheus sees them: scraped, judged by our rules, and an alarm
that fires."""

import json
import re
import subprocess
import threading
from datetime import timedelta
from urllib.request import urlopen

import numpy as np
import pytest
import yaml

from cv_pipeline.core.config import TelemetryConfig, load_config
from cv_pipeline.core.types import ConfigError, Detections, Frame, FrameResult, utc_now
from cv_pipeline.inference.loading import load_model
from cv_pipeline.monitoring.exporter import (
    OTHER,
    AlertLimits,
    Histogram,
    LogMetrics,
    MonitoringSink,
    alert_rules,
    dashboard,
    open_telemetry,
    scrape_config,
    write_monitoring_files,
)
from cv_pipeline.monitoring.frame_statistics import FrameStatistics
from cv_pipeline.monitoring.upkeep import Upkeep, UpkeepSettings
from cv_pipeline.service.assembly import open_sinks
from cv_pipeline.synthetic.line import open_line
from cv_pipeline.video.health import HealthServer
from cv_pipeline.video.pipeline import Pipeline
from tests.helpers.prometheus_service import find, prometheus


class Held:
    """A line that goes dark after some frames and then waits, so that somebody can look at the metrics while
    it runs."""

    live = False

    def __init__(self, name, frames, dark_from):
        self.source_id, self.frames, self.dark_from, self.go, self.shown = (
            name,
            frames,
            dark_from,
            threading.Event(),
            threading.Event(),
        )

    def __iter__(self):
        for k, frame in enumerate(open_line(f"line:frames={self.frames},density=5,fps=10", self.source_id)):
            if k >= self.dark_from:
                frame.image = (frame.image * 0.3).astype(np.uint8)
            yield frame
        self.shown.set()
        self.go.wait(120)

    def close(self):
        self.go.set()


def test_a_real_prometheus_scrapes_a_running_pipeline_and_a_rule_fires(tmp_path):
    source = Held("gate", 260, 150)
    sink = MonitoringSink(
        tmp_path / "log", Upkeep(tmp_path / "upkeep", UpkeepSettings(learn=100, learn_s=10))
    )
    pipeline = Pipeline(
        [source, open_line("line:camera=1,frames=60,density=5", "exit")],
        load_model("factory_line", threads=1),
        [sink],
    )
    with HealthServer(pipeline, 0) as health:
        write_monitoring_files(
            tmp_path / "prometheus",
            [health.url.removeprefix("http://")],
            AlertLimits(hold_s=0.5, silent_s=1e6),
            every_s=0.2,
        )
        runs = threading.Thread(target=pipeline.run, daemon=True)
        runs.start()
        try:
            with prometheus(tmp_path, tmp_path / "prometheus" / "prometheus.yml") as server:
                fired = server.until(
                    lambda: [
                        a
                        for a in server.alerts().get("firing", [])
                        if a["labels"]["alertname"] == "CameraNeedsUpkeep"
                    ],
                    "the alarm",
                    90,
                )
                assert [
                    (a["labels"]["source"], a["labels"]["signal"], a["labels"]["severity"]) for a in fired
                ] == [("gate", "dark", "warning")]
                assert fired[0]["annotations"]["summary"] == "gate: dark"
                assert source.shown.wait(60)
                server.until(
                    lambda: (
                        server.query("cv_pipeline_detections_per_image_count").get((("source", "gate"),))
                        == 260
                    ),
                    "the last scrape",
                )
                server.until(
                    lambda: (
                        set(server.query("cv_pipeline_source_up"))
                        == set(server.query("cv_pipeline_frame_age_seconds"))
                        == {(("source", "gate"),)}
                    ),
                    "the end of the other source",
                    10,
                )
                assert pipeline.summary()["sources"]["exit"]["state"] == "done"
                # it has ended: nobody is woken for it. Alarms that name no source (Slow) may come from a
                # loaded machine
                named = {
                    (a["labels"]["alertname"], a["labels"]["source"])
                    for a in server.alerts()["firing"]
                    if "source" in a["labels"]
                }
                assert named == {("CameraNeedsUpkeep", "gate")}
                boxes = server.query("cv_pipeline_detections_per_image_sum")
                assert (
                    boxes
                    == server.query("cv_pipeline_detections_total")
                    == server.query("cv_pipeline_confidence_count")
                )
                assert server.query('cv_pipeline_confidence_bucket{le="+Inf"}').keys() == {
                    (("le", "+Inf"), ("source", s)) for s in ("gate", "exit")
                }
                assert sum(server.query("cv_pipeline_class_detections_total").values()) == sum(boxes.values())
                assert (
                    server.query(
                        'cv_pipeline_image_statistic{source="gate",statistic="brightness"}'
                    ).popitem()[1]
                    < 30
                )
                assert server.query("up") == {(): 1.0}
                bad = [r for g in server.ask("rules")["groups"] for r in g["rules"] if r["health"] != "ok"]
                assert bad == []
                for panel in dashboard()["panels"]:
                    for target in panel["targets"]:
                        server.ask(
                            "query", query=target["expr"]
                        )  # Prometheus' own parser refuses what is no expression
        finally:
            source.close()
            runs.join(30)
    assert not runs.is_alive() and sink.summary()["upkeep"] == {"gate: dark": 1}


def test_the_rules_pass_prometheus_own_check(tmp_path):
    files = write_monitoring_files(tmp_path, ["a:1", "b:2"])
    for kind, file in (("rules", files[0]), ("config", files[1])):
        done = subprocess.run([find("promtool"), "check", kind, str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert yaml.safe_load(files[1].read_text())["scrape_configs"][0]["static_configs"][0]["targets"] == [
        "a:1",
        "b:2",
    ]


def test_each_rule_fires_on_the_series_that_it_is_for(tmp_path):
    "promtool's unit tests: made-up series, and which alarm they must raise."
    rule_file = tmp_path / "rules.yml"
    rule_file.write_text(alert_rules(AlertLimits()))
    flat, rise = "0+0x120", "0+60x120"
    cases = [
        ("CameraDown", {"source": "gate"}, {'cv_pipeline_source_up{source="gate"}': flat}),
        ("CameraSilent", {"source": "gate"}, {'cv_pipeline_frame_age_seconds{source="gate"}': "31+60x120"}),
        (
            "FramesDropped",
            {"source": "gate"},
            {
                'cv_pipeline_frames_dropped_total{source="gate"}': "0+30x120",
                'cv_pipeline_frames_read_total{source="gate"}': rise,
            },
        ),
        (
            "UnsureModel",
            {"source": "gate"},
            {
                'cv_pipeline_uncertain_total{source="gate"}': "0+30x120",
                'cv_pipeline_detections_total{source="gate"}': rise,
            },
        ),
        (
            "SeesNothing",
            {"source": "gate"},
            {
                'cv_pipeline_detections_per_image_sum{source="gate"}': flat,
                'cv_pipeline_detections_per_image_count{source="gate"}': rise,
            },
        ),
        (
            "LogNotWritten",
            {"instance": "a"},
            {
                'cv_pipeline_log_frames_total{instance="a"}': flat,
                'cv_pipeline_frames_inferred_total{instance="a",source="gate"}': rise,
            },
        ),
        (
            "CameraNeedsUpkeep",
            {"source": "gate", "signal": "dark"},
            {'cv_pipeline_camera_upkeep{source="gate",signal="dark"}': "1+0x120"},
        ),
        (
            "StageFails",
            {"stage": "inference"},
            {'cv_pipeline_stage_errors_total{stage="inference"}': "0+1x120"},
        ),
        (
            "Slow",
            {},
            {
                f'cv_pipeline_stage_seconds_bucket{{stage="total",le="{le}"}}': f"0+{n}x120"
                for le, n in (("1", 1), ("5", 60), ("+Inf", 60))
            },
        ),
        (
            "PipelineDown",
            {"job": "cv_pipeline", "instance": "a"},
            {'up{job="cv_pipeline",instance="a"}': flat},
        ),
        ("DeviceStale", {}, {'cv_pipeline_fleet_beat_age_seconds{device="box-1"}': "0+60x120"}),
        ("OutboxGrows", {}, {'cv_pipeline_fleet_outbox_oldest_seconds{device="box-1"}': "0+60x120"}),
        ("RolloutStuck", {}, {'cv_pipeline_fleet_step_seconds{model="line 1.1"}': "86000+60x120"}),
        ("RolledBack", {}, {'cv_pipeline_fleet_rolled_back{device="box-1"}': "1+0x120"}),
        ("AlertsDown", {}, {"cv_pipeline_alerts_heartbeat_timestamp_seconds": "5+0x120"}),
        ("CallsNotTaken", {}, {"cv_pipeline_alerts_notification_oldest_seconds": "0+60x120"}),
        (
            "IncidentUnanswered",
            {},
            {'cv_pipeline_incidents{site="Brno",level="1",state="firing"}': "1+0x120"},
        ),
        ("ClockOff", {}, {'cv_pipeline_fleet_clock_error_seconds{device="box-1"}': "-3600+0x120"}),
    ]
    tests = [
        {
            "interval": "1m",
            "input_series": [{"series": s, "values": v} for s, v in series.items()],
            "promql_expr_test": [
                {
                    "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})',
                    "eval_time": "100m",
                    "exp_samples": [{"labels": "{}", "value": 1}],
                }
            ],
        }
        for name, _, series in cases
    ]
    quiet = {
        'cv_pipeline_frames_dropped_total{source="gate"}': flat,
        'cv_pipeline_frames_read_total{source="gate"}': rise,
        'cv_pipeline_source_up{source="gate"}': "1+0x120",
        'cv_pipeline_uncertain_total{source="gate"}': "0+1x120",
        'cv_pipeline_detections_total{source="gate"}': rise,
        'cv_pipeline_frame_age_seconds{source="gate"}': "1+0x120",
        'cv_pipeline_fleet_beat_age_seconds{device="box-1"}': "9+0x120",
        'cv_pipeline_fleet_outbox_oldest_seconds{device="box-1"}': "40+0x120",
        'cv_pipeline_fleet_step_seconds{model="line 1.1"}': "0+60x120",
        'cv_pipeline_fleet_rolled_back{device="box-1"}': flat,
        "cv_pipeline_alerts_heartbeat_timestamp_seconds": "0+60x120",
        "cv_pipeline_alerts_notification_oldest_seconds": "20+0x120",
        'cv_pipeline_incidents{site="Brno",level="1",state="acknowledged"}': "1+0x120",
        'cv_pipeline_fleet_clock_error_seconds{device="box-1"}': "-2+0x120",
    }
    ended = {
        f'cv_pipeline_{name}{{source="clip.mp4"}}': values
        for name, values in (  # a file that was read to its end beside a camera
            ("source_up", "1+0x5 stale"),
            ("frame_age_seconds", "1+0x5 stale"),
            ("frames_read_total", "0+60x5 300+0x114"),
            ("frames_dropped_total", flat),
            ("detections_total", "0+60x5 300+0x114"),
            ("uncertain_total", "0+60x2 120+0x117"),
            ("detections_per_image_sum", "0+60x5 300+0x114"),
            ("detections_per_image_count", "0+60x5 300+0x114"),
        )
    }
    seldom = {
        'cv_pipeline_log_frames_total{instance="a"}': " ".join(f"{6000 * k}+0x9" for k in range(12)),
        'cv_pipeline_frames_inferred_total{instance="a",source="gate"}': rise,
    }  # parts of ten minutes, the longest that the configuration allows
    calm = {
        'cv_pipeline_camera_upkeep{source="gate",signal="dark"}': flat,
        'cv_pipeline_confidence_sum{source="gate"}': "0+45x120",
        'cv_pipeline_confidence_count{source="gate"}': rise,
    }
    tests.append(
        {
            "interval": "1m",
            "input_series": [
                {"series": s, "values": v} for s, v in {**quiet, **ended, **seldom, **calm}.items()
            ],
            "promql_expr_test": [
                {"expr": 'ALERTS{alertstate="firing"}', "eval_time": f"{m}m", "exp_samples": []}
                for m in (10, 40, 100)
            ],
        }
    )
    day = {
        'cv_pipeline_confidence_sum{source="gate"}': "0+48x1500 72020+20x300",
        'cv_pipeline_confidence_count{source="gate"}': "0+60x1801",
    }  # .8 for a day, then .33
    fell = 'count(ALERTS{alertname="ConfidenceFell",alertstate="firing"})'
    tests.append(
        {
            "interval": "1m",
            "input_series": [{"series": s, "values": v} for s, v in day.items()],
            "promql_expr_test": [
                {"expr": fell, "eval_time": "1490m", "exp_samples": []},
                {"expr": fell, "eval_time": "1700m", "exp_samples": [{"labels": "{}", "value": 1}]},
            ],
        }
    )
    assert {r["alert"] for r in yaml.safe_load(rule_file.read_text())["groups"][0]["rules"]} == {
        name for name, _, _ in cases
    } | {"ConfidenceFell"}  # no rule without a case
    (tmp_path / "test.yml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests})
    )
    done = subprocess.run(
        [find("promtool"), "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def result(camera="gate", boxes=3, number=0, classes=("bolt",), asked=True, status="ok"):
    found = (
        Detections(np.tile([0, 0, 9, 9], (boxes, 1)), np.linspace(0.2, 0.9, boxes), np.zeros(boxes))
        if boxes
        else Detections.empty()
    )
    return FrameResult(
        Frame(np.zeros((8, 8, 3), np.uint8), camera, number, utc_now() + timedelta(seconds=number)),
        found,
        tuple(classes),
        {},
        asked,
        status,
    )


def test_series_are_bounded():
    metrics = LogMetrics(most_cameras=5, most_classes=3)
    for k in range(200):
        metrics(result(f"camera-{k}", classes=[f"class-{k}"]), FrameStatistics(1, 2, 3, 4, 5))
    series = [s for family in metrics.families() for s in family.samples]
    assert len({s.labels.get("source") for s in series} - {None}) == 6 and OTHER in metrics.statistics
    assert len({s.labels["class"] for s in series if "class" in s.labels}) == 4
    assert sum(h.counts.sum() for h in metrics.boxes.values()) == 200 and sum(metrics.classes.values()) == 600


def test_series_of_the_upkeep_are_bounded_too(tmp_path):
    sink = MonitoringSink(
        tmp_path,
        Upkeep(
            tmp_path / "upkeep", UpkeepSettings(dark=(1.1, 1.2), learn=1, learn_s=0, looks=1, hold_s=1e-9)
        ),
    )
    sink.metrics.most_cameras = 4
    for number in range(3):
        for k in range(30):
            sink.write(result(f"camera-{k}", number=number))
    series = [
        s
        for family in sink.metric_families()
        for s in family.samples
        if s.name == "cv_pipeline_camera_upkeep"
    ]
    assert {s.labels["source"] for s in series} == {*(f"camera-{k}" for k in range(4)), OTHER} and len(
        series
    ) == 5 * 8
    assert {s.labels["source"] for s in series if s.value} == {
        *(f"camera-{k}" for k in range(4)),
        OTHER,
    }  # raised for one of the others: raised
    values = {
        s.labels["source"]
        for family in sink.metric_families()
        for s in family.samples
        if s.name == "cv_pipeline_camera_upkeep_value"
    }
    assert values == {f"camera-{k}" for k in range(4)}
    sink.close()


def test_parts_that_are_written_too_seldom_are_refused():
    with pytest.raises(ConfigError, match="part_seconds"):
        load_config(None, {"sources": ["line:"], "telemetry": {"part_seconds": 601}})


def test_histograms_count_every_value_once():
    rng = np.random.default_rng(0)
    values, edges = rng.random(1000), np.array([0.1, 0.5, 1.0])
    h = Histogram(edges)
    for part in np.array_split(values, 7):
        h.add(part)
    assert [n for _, n in h.buckets()] == [*((values <= e).sum() for e in edges), 1000] and abs(
        h.total - values.sum()
    ) < 1e-9


def test_frames_that_were_not_asked_or_failed_do_not_count_as_looks():
    metrics = LogMetrics()
    metrics(result(boxes=0, asked=False), FrameStatistics(1, 2, 3, 4, 5))
    metrics(result(boxes=0, asked=False, status="model_error"), FrameStatistics(1, 2, 3, 4, 5))
    assert not metrics.boxes and metrics.failures == {("gate", "model_error"): 1}


def test_telemetry_is_served_by_the_runs_own_endpoint(tmp_path):
    config = load_config(
        None,
        {
            "sources": ["line:frames=20"],
            "delivery.out": str(tmp_path),
            "telemetry": {"max_gb": 1.0, "upkeep": False},
            "model.threads": 1,
        },
    )
    sinks = open_sinks(config)
    pipeline = Pipeline([open_line("line:frames=20", "gate")], load_model("factory_line", threads=1), sinks)
    with HealthServer(pipeline, 0) as server:
        pipeline.run()
        page = urlopen(f"{server.url}/metrics").read().decode()
    assert (
        re.search(r"^cv_pipeline_log_frames_total 20.0$", page, re.M)
        and "cv_pipeline_confidence_bucket" in page
    )
    assert (tmp_path / "log" / "frames").is_dir() and not (tmp_path / "log" / "upkeep").exists()
    assert sinks[-1]._writer.max_bytes == 10**9


def test_without_telemetry_nothing_of_it_is_there(tmp_path):
    assert not any(
        isinstance(s, MonitoringSink)
        for s in open_sinks(load_config(None, {"sources": ["line:"], "delivery.out": str(tmp_path)}))
    )
    assert (
        open_telemetry(TelemetryConfig(folder=tmp_path / "elsewhere"), tmp_path).folder
        == tmp_path / "elsewhere"
    )


def test_wrong_limits_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="2 invalid limits"):
        AlertLimits(dropped=0, hold_s=-1)
    with pytest.raises(ConfigError, match="no targets"):
        scrape_config([])
    assert json.loads(write_monitoring_files(tmp_path)[2].read_text())["panels"]
