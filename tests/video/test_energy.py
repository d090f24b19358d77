"""Joules of the packages: counters that begin again, ones that cannot be read, and perf instead."""

import os
import sys

import pytest

from tests.benchmarks.energy import Joules, joules_of_perf, measure, packages, used
from tests.helpers.waiting import until


@pytest.fixture
def powercap(tmp_path):
    "Two packages, their parts, and the whole board."

    def domain(name, what, energy, most=262143328850):
        folder = tmp_path / name
        folder.mkdir()
        for file, value in (("name", what), ("energy_uj", energy), ("max_energy_range_uj", most)):
            (folder / file).write_text(f"{value}\n")
        return folder

    domain("intel-rapl:0", "package-0", 5_000_000)
    domain("intel-rapl:0:0", "core", 4_000_000)
    domain("intel-rapl:1", "package-1", 900_000, most=1_000_000)
    domain("intel-rapl:2", "psys", 9_000_000)
    domain("intel-rapl-mmio:0", "package-0", 5_000_000)
    return tmp_path


def test_packages_are_counted_once_and_nothing_else(powercap):
    assert [one.file.parent.name for one in packages(powercap)] == ["intel-rapl:0", "intel-rapl:1"]


def test_a_counter_that_begins_again_goes_on(powercap):
    def work():
        (powercap / "intel-rapl:0/energy_uj").write_text("7500000\n")  # 2.5 J
        (powercap / "intel-rapl:1/energy_uj").write_text("300000\n")  # 0.1 J to its end, 0.3 J after it

    found = measure(work, powercap, perf="")
    assert found.value == pytest.approx(2.9) and found.reason == ""


def test_nothing_used_is_zero():
    assert used([5], [5], [10]) == 0.0


@pytest.mark.parametrize("bad", ["", "no number\n"])
def test_a_broken_counter_is_not_measured_and_the_work_is_done(powercap, bad):
    done = []
    (powercap / "intel-rapl:0/energy_uj").write_text(bad)
    found = measure(lambda: done.append(1), powercap, perf="")
    assert found.value is None and found.reason.startswith("RAPL cannot be read") and done == [1]


def test_an_unreadable_counter_is_not_measured_and_says_so(powercap):
    (powercap / "intel-rapl:0/energy_uj").unlink()
    (powercap / "intel-rapl:0/energy_uj").mkdir()  # cannot be read, even by root
    found = measure(lambda: None, powercap, perf="")
    assert found == Joules(None, "RAPL cannot be read (Is a directory), no perf")


def test_a_counter_that_is_lost_meanwhile_is_not_measured(powercap):
    found = measure(lambda: (powercap / "intel-rapl:1/energy_uj").unlink(), powercap, perf="")
    assert found.value is None and "at the end" in found.reason


def test_without_counters_the_reason_is_given(tmp_path):
    found = measure(lambda: None, tmp_path / "none", perf="")
    assert found == Joules(None, f"no RAPL counters in {tmp_path / 'none'}, no perf")


def made_up_perf(folder, line):
    "A perf that writes a line into its file when it is interrupted."
    path = folder / "perf"
    path.write_text(
        f"""#!{sys.executable}
import pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
pathlib.Path({str(folder / "ready")!r}).touch()
signal.sigwait([signal.SIGINT])
pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).write_text({line!r} + chr(10))
"""
    )
    os.chmod(path, 0o755)
    return str(path)


def test_perf_is_asked_where_there_are_no_counters(tmp_path):
    program = made_up_perf(tmp_path, "12.50,Joules,power/energy-pkg/,100,100.00,,")
    found = measure(lambda: until((tmp_path / "ready").exists), tmp_path / "none", perf=program)
    assert found == Joules(12.5)


def test_perf_without_the_counter_is_not_measured(tmp_path):
    program = made_up_perf(tmp_path, "<not supported>,Joules,power/energy-pkg/,0,100.00,,")
    found = measure(lambda: until((tmp_path / "ready").exists), tmp_path / "none", perf=program)
    assert found.value is None and "perf cannot measure it" in found.reason


def test_a_perf_that_ends_at_once_is_not_measured(tmp_path):
    found = measure(lambda: None, tmp_path / "none", perf="/bin/false")
    assert found.value is None and "perf cannot measure it" in found.reason


def test_what_perf_writes_is_read():
    assert joules_of_perf("# started\n\n12.50,Joules,power/energy-pkg/,100,100.00,,\n") == 12.5
    with pytest.raises(ValueError):
        joules_of_perf("<not counted>,Joules,power/energy-pkg/,0,100.00,,\n")
    with pytest.raises(ValueError, match="no energy"):
        joules_of_perf("")
