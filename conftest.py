"""Tiers of the tests, and what each file costs: service tests are marked by the fixtures they use, CPU
seconds are printed by file."""

import json
import os
import resource
import sys
from collections import defaultdict
from pathlib import Path

import hypothesis
import pytest

# the same examples on every machine and in every run, however slow it is; HYPOTHESIS_PROFILE=search draws new
# ones
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("search", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

SERVICES = {
    "fo",
    "studio",
    "gstreamer",
    "server",
    "serve",
}  # fixtures that start a server: FiftyOne's database, Label Studio, RTSP, Triton
SERVICE_FILES = {"test_exporter.py"}  # starts Prometheus where it is needed
SLOW = {  # fixtures that take seconds, by file: who uses one is slow, or the next to use it would pay
    "test_label_errors.py": {"line"},
    "test_benchmark.py": {"bundled"},
    "test_review.py": {"noisy"},
    "test_cameras.py": {"fleet", "overload"},
    "test_interrupts.py": {"hundred"},
    "test_trackers.py": {"belts"},
    "test_notebook_runner.py": {"done"},
}
FIRST = """service/test_fleet_demo commands/test_main video/test_interrupts training/test_train
reporting/test_runner core/test_cameras_yaml optimization/test_optimize inference/test_models_real
service/test_sites_demo service/test_processes video/test_liveness edge/test_box edge/test_agent
scale/test_batch""".split()  # minutes by the clock: at the end one worker would be alone with them
CPU, EACH = (
    defaultdict(float),
    defaultdict(float),
)  # seconds by file and by test; with xdist sent by the workers


def pytest_addoption(parser):
    parser.addoption(
        "--cpu-seconds", metavar="FILE", help="write the CPU seconds of every test as JSON, dearest first"
    )


def cpu_seconds() -> float:
    "User and system time of this process and the children it waited for."
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    "What setup, call and teardown took, in CPU seconds, travels with the report."
    report = yield
    now = cpu_seconds()
    report.cpu_seconds = now - getattr(item.config, "cpu_before", now)
    item.config.cpu_before = now
    return report


def pytest_collection_modifyitems(items):
    "What uses a server is marked `service`, what uses a dear fixture `slow`; the longest files come first."
    place = {name: k for k, name in enumerate(FIRST)}
    items.sort(key=lambda item: place.get(f"{item.path.parent.name}/{item.path.stem}", len(place)))
    for item in items:
        if SLOW.get(item.path.name, set()) & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
        if SERVICES & set(getattr(item, "fixturenames", ())) or item.path.name in SERVICE_FILES:
            item.add_marker("service")


def pytest_runtest_teardown():
    "No endless run outlives the test that started it."
    if helper := sys.modules.get("tests.helpers.cli"):
        helper.end_started()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    "How a worker of pytest-xdist ended that was not asked to: the signal, or its exit code."
    if error:
        code = node.gateway._io.popen.wait(10)
        print(f"\nthe worker {node.gateway.id} ended with {code} (negative: killed by this signal): {error}")


def pytest_collection_finish(session):
    "Imports are charged to no file."
    session.config.cpu_before = cpu_seconds()


def pytest_runtest_logreport(report):
    "The sum by file; with xdist only the controller prints it."
    seconds = getattr(report, "cpu_seconds", 0.0)
    CPU[report.nodeid.split("::")[0]] += seconds
    EACH[report.nodeid] += seconds


def pytest_terminal_summary(terminalreporter, config):
    "The dearest files and tests."
    if config.getoption("--cpu-seconds"):
        dearest = dict(sorted(((name, round(s, 2)) for name, s in EACH.items()), key=lambda row: -row[1]))
        Path(config.getoption("--cpu-seconds")).write_text(json.dumps(dearest, indent=0), encoding="utf-8")
    for what, table in (("file", CPU), ("test", EACH)):
        terminalreporter.write_sep("=", f"CPU seconds by {what}")
        rows = sorted(table.items(), key=lambda row: -row[1])
        for name, seconds in [row for row in rows if row[1] >= 1][:25]:
            terminalreporter.write_line(f"{seconds:8.1f}  {name}")
    terminalreporter.write_line(f"{sum(CPU.values()) / 60:8.1f}  CPU minutes in all tests")
