"""A load test: every request accounted for, a stall seen, its own lateness, verdicts on bounds, targets."""

import http.server
import os
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.core.config import load_config
from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.optimization.batch_advice import BatchAdvice
from cv_pipeline.scale.arrivals import DayProfile, camera_times, simulate_servers
from cv_pipeline.scale.capacity import CallTimes, Measured
from cv_pipeline.scale.loadtest import (
    ANSWERED,
    DROPPED,
    LOST,
    REFUSED,
    Dropped,
    Load,
    LoadSettings,
    Record,
    Refused,
    beside_others,
    check_plan,
    http_target,
    judged,
    open_loop,
    p99_bounds,
    percentile,
    pipeline_offer,
    read_loadtest,
    run_loadtest,
    write_loadtest,
)
from cv_pipeline.scale.scale_page import loadtest_page
from cv_pipeline.service.assembly import pipeline_over
from cv_pipeline.synthetic.line import open_line

EASY = LoadSettings(budget_ms=100, late_ms=1e9)


def played(latency, seconds=100.0, rate=20, spread=0.2, seed=0):
    "A phase with latencies as given."
    n = int(seconds * rate)
    record = Record(np.linspace(0, seconds * 1e3, n, endpoint=False))
    noise = np.random.default_rng(seed).lognormal(0, spread, n)
    record.sent[:], record.state[:] = record.due + 0.1, ANSWERED
    record.done[:] = record.due + latency * noise
    return record


@given(st.lists(st.sampled_from([ANSWERED, REFUSED, DROPPED, LOST, 4]), min_size=1, max_size=80))
def test_offered_is_the_sum_of_all_ends(states):
    record = Record(np.arange(float(len(states))))
    record.state[:] = states
    counts = record.counts()
    assert counts.pop("offered") == sum(counts.values()) == len(states)


def test_every_end_is_counted():
    def send(i):
        if i % 4 == 1:
            raise Refused
        if i % 4 == 2:
            raise Dropped
        if i % 4 == 3:
            raise ValueError("broken")

    found = open_loop(send, np.arange(40.0), 4, 30).counts()
    assert found == {"offered": 40, "answered": 10, "refused": 10, "dropped": 10, "lost": 10}


def test_what_is_never_answered_is_lost():
    never = threading.Event()
    try:
        record = open_loop(lambda i: never.wait(60) if i == 2 else None, np.arange(5.0), 3, 0.2)
        assert record.counts()["lost"] == 1
        assert np.isinf(record.latency[2])
    finally:
        never.set()


def test_an_unanswered_request_is_as_late_as_can_be():
    latency = np.array([5.0] * 98 + [np.inf] * 2)
    assert percentile(latency, 98) == 5.0
    assert percentile(latency, 99) == np.inf


def test_latency_begins_when_a_request_was_due():
    "One server that is held for 1.2 s: the frames that were due meanwhile are late, whatever the machine."
    gate, first = threading.Event(), threading.Event()
    lock = threading.Lock()

    def send(i):
        with lock:
            first.set()
            gate.wait(60)

    release = threading.Timer(1.2, gate.set)
    release.start()
    record = open_loop(send, np.arange(60) * 20.0, 64, 60)
    assert record.counts()["answered"] == 60
    held = record.latency[record.due < 600]
    assert held.min() > 550  # a client that waits for its answer would have sent one of them
    assert percentile(record.latency, 95) > 1000


@pytest.mark.parametrize(
    "record, verdict, reason",
    [
        (played(40), "PASS", "at most"),
        (played(150), "FAIL", "at least"),
        (played(63), "INSUFFICIENT", "between"),
        (played(40, seconds=60), "INSUFFICIENT", "6 blocks of 10 s"),
    ],
)
def test_bounds_decide(record, verdict, reason):
    found = judged(record, EASY)
    assert (found["verdict"], reason in found["reason"]) == (verdict, True)


def test_one_lost_request_fails():
    record = played(40)
    record.state[77] = LOST
    found = judged(record, EASY)
    assert (found["verdict"], found["reason"]) == ("FAIL", "1 requests were lost")


def test_a_server_does_not_pass_by_refusing():
    record = played(10)
    record.state[::20] = REFUSED
    assert judged(record, EASY)["verdict"] == "FAIL"


def test_a_late_generator_makes_a_phase_void():
    record = played(40)
    record.sent[::10] += 50
    found = judged(record, replace(EASY, late_ms=5.0))
    assert found["verdict"] == "INSUFFICIENT" and found["reason"].startswith("void: the generator")


def test_a_stall_in_one_block_widens_the_bounds():
    calm, stalled = played(40, rate=50), played(40, rate=50)
    hit = (stalled.due > 42_000) & (stalled.due < 45_000)
    stalled.done[hit] = 45_000
    low, high, _ = p99_bounds(stalled)
    assert low < 100 < 1000 < high
    assert judged(calm, EASY)["verdict"] == "PASS"
    assert judged(stalled, EASY)["verdict"] != "PASS"


def test_bounds_hold_the_true_value_about_as_often_as_promised():
    truth = 40 * np.exp(0.2 * 2.3263)
    hits = [
        low <= truth <= high
        for low, high, _ in (p99_bounds(played(40, seed=k), draws=100) for k in range(60))
    ]
    assert np.mean(hits) >= 0.85


@pytest.mark.parametrize("kind", ["constant", "burst", "together", "log"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_profiles_offer_what_they_promise(kind, factor):
    flat = DayProfile((1.0,) * 96)
    due = Load(8, 5.0, kind, flat).due_ms(factor, 60)
    assert len(due) == pytest.approx(8 * 5 * factor * 60, rel=0.01)
    assert (np.diff(due) >= 0).all() and due[0] >= 0 and due[-1] < 60_200


def test_a_log_is_played_with_its_peak_at_the_peak():
    shape = DayProfile((0.0,) * 90 + (1.0, 2.0, 4.0, 4.0, 2.0, 1.0))
    due = Load(10, 2.0, "log", shape).due_ms(1.0, 96)
    busiest = np.bincount((due // 1000).astype(int)).max()
    assert busiest == pytest.approx(20, abs=1)


def test_profiles_that_cannot_be_played():
    with pytest.raises(ConfigError, match="cannot be played"):
        Load(1, 1.0, "log").due_ms(1, 10)
    with pytest.raises(ConfigError, match="0 requests a second"):
        Load(0, 1.0).due_ms(1, 10)


@pytest.mark.parametrize(
    "wrong",
    [{"budget_ms": 0}, {"seconds": 0}, {"factors": ()}, {"factors": (0,)}, {"block_s": 0}, {"clients": 0}],
)
def test_wrong_settings(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LoadSettings(**wrong)


def simulated(due, tick):
    "A server of 20 ms in virtual time."
    record = Record(due)
    record.sent[:], record.state[:] = due, ANSWERED
    record.done[:] = due + simulate_servers(due, lambda n: 20.0, 1).latency_ms
    tick(record)
    return record


def test_the_knee_and_the_verdict_at_the_highest_load(tmp_path):
    heard = []
    load = Load(5, 5.0)  # 25 a second of the 50 that are possible
    settings = LoadSettings(budget_ms=100, factors=(0.5, 1.0, 1.5, 2.5))
    report = run_loadtest(simulated, load, settings, progress=lambda share, what: heard.append(share))
    assert [p["verdict"] for p in report["phases"]] == ["PASS", "PASS", "PASS", "FAIL"]
    assert (report["knee"], report["verdict"]) == (1.5, "FAIL")
    assert heard == [0.25, 0.5, 0.75, 1.0]
    write_loadtest(report, tmp_path)
    assert read_loadtest(tmp_path)["knee"] == 1.5
    page = loadtest_page(report | {"target": "<script>"})
    assert "<script>" not in page and page.count("<svg") == 2 + 4


def known_server(ms=20.0):
    return Measured(BatchAdvice(1, 0, 0, 0, 50, "x", 1, ""), CallTimes({1: np.full(9, ms)}), 1, False, None)


def test_the_prediction_of_a_known_server_is_exact():
    report = run_loadtest(simulated, Load(5, 5.0), LoadSettings(factors=(0.5, 1.0, 1.5)))
    rows = check_plan(report, known_server())
    assert [abs(r["p99_ms error"]) < 1e-3 and abs(r["answered_per_s error"]) < 1e-3 for r in rows] == [
        True
    ] * 3
    wrong = check_plan(report, known_server(30.0))
    assert wrong[0]["p50_ms error"] == pytest.approx(0.5, rel=0.01)


def test_void_phases_are_not_compared():
    report = run_loadtest(simulated, Load(5, 5.0), LoadSettings(factors=(0.5,)))
    report["phases"][0]["reason"] = "void: the generator itself was late"
    with pytest.raises(DataError, match="no phase can be compared"):
        check_plan(report, known_server())


def test_a_load_test_beside_other_processes_is_named(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (90.0, 0, 0))
    report = run_loadtest(simulated, Load(5, 5.0), LoadSettings(factors=(0.5,)))
    assert report["load"] == [90.0, 90.0]
    assert "beside other processes (load 90.0 on" in beside_others(report)
    assert beside_others(report | {"load": [0.0, 90.0]}) == ""


def test_another_file_is_no_load_test(tmp_path):
    (tmp_path / "loadtest.json").write_text("{}")
    with pytest.raises(DataError, match="not a load test"):
        read_loadtest(tmp_path)


class Answers(http.server.BaseHTTPRequestHandler):
    "Answers with the status that the path names; 0: hangs up."

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status = int(self.path.strip("/"))
        if not status:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def web():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize(
    "status, end", [(200, "answered"), (429, "refused"), (503, "refused"), (500, "lost"), (0, "lost")]
)
def test_answers_of_an_http_server(web, status, end):
    record = open_loop(http_target(f"{web}/{status}", b"jpeg", 20), np.arange(6.0), 2, 40)
    assert record.counts()[end] == 6


def test_an_address_that_is_none():
    with pytest.raises(ConfigError, match="not an address"):
        http_target("127.0.0.1:80", b"")


@pytest.fixture(scope="module")
def frames():
    return [f.image for f in open_line("line:seed=3,frames=3", "line", False)]


def test_a_configured_pipeline_is_offered_every_frame(frames):
    config = load_config(None, {"sources": ["line:"], "model.threads": 1})
    record = pipeline_offer(pipeline_over(config), 3, frames)(camera_times(3, 4.0, 2.0), lambda r: None)
    counts = record.counts()
    assert counts["offered"] == 24 and counts["lost"] == 0
    assert counts["answered"] + counts["dropped"] == 24 and counts["answered"] >= 12
    assert (record.latency[record.state == ANSWERED] > 0).all()


def test_what_a_pipeline_drops_is_counted(frames):
    "A sink that blocks until all frames were delivered: the freshest-frame queue lets the others go."
    config = load_config(None, {"sources": ["line:"], "model.threads": 1, "tracker.name": "none"})
    inner = pipeline_over(config)

    def run(sources, sinks, tick):
        class Slow:
            name = "slow"

            def write(self, result):
                end = time.monotonic() + 30
                while np.isnan(sources[0].record.sent).any() and time.monotonic() < end:
                    threading.Event().wait(0.01)

            def close(self):
                pass

        return inner(sources, [Slow(), *sinks], tick)

    counts = pipeline_offer(run, 1, frames)(camera_times(1, 40.0, 1.0), lambda r: None).counts()
    assert counts["dropped"] > 10 and counts["lost"] == 0
    assert counts["offered"] == 40 == counts["answered"] + counts["dropped"]
