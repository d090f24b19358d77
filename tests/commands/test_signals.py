"""Signals, streams that are gone, letters that nobody knows: how a command ends, and what is left."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cv_pipeline.commands import main as commands
from cv_pipeline.commands.terminal import Ends, SteadyStream, ended_by_signals, exit_code
from cv_pipeline.core.results import read_jsonl, read_results
from cv_pipeline.core.types import SinkError
from tests.helpers.cli import CLI, hears_ctrl_c
from tests.helpers.waiting import until

ROOT = Path(__file__).resolve().parents[2]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def program(code: str, **how) -> subprocess.Popen:
    "A program that talks to us through pipes."
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **{"preexec_fn": hears_ctrl_c, **how},
    )


# --- signals

LONG = """
import threading
from cv_pipeline.commands import main as commands
def app():
    try:
        print("begun", flush=True)
        threading.Event().wait(60)
    finally:
        print("put in order", flush=True)
commands.app = app
commands.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_command_ends_in_order(number):
    process = program(LONG)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "put in order\n"), err
    assert "Traceback" not in err


def test_a_hang_up_that_is_ignored_stays_ignored():
    def nohup():
        hears_ctrl_c()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = program(LONG, preexec_fn=nohup)
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def test_handlers_come_back():
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)]
    with ended_by_signals():
        pass
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)] == before


def test_the_first_signal_counts():
    heard = Ends()
    for number in (signal.SIGTERM, signal.SIGHUP):
        with pytest.raises(KeyboardInterrupt):
            heard(number, None)
    assert heard.number == signal.SIGTERM


@pytest.mark.parametrize(
    "code, number, ended",
    [
        (0, None, 0),
        (None, None, 0),
        (130, None, 130),
        (130, 15, 143),
        (130, 1, 129),
        (5, 15, 5),
        ("no", 0, 1),
    ],
)
def test_the_exit_code_names_the_signal(code, number, ended):
    assert exit_code(code, number) == ended


@pytest.mark.parametrize(
    "error, code, words",
    [
        (MemoryError(), 70, "no memory is left"),
        (ZeroDivisionError("a bug"), 70, "ZeroDivisionError: a bug"),
        (PermissionError(13, "Permission denied", "out"), 2, "Permission denied [out]"),
        (SinkError("disk full"), 5, "disk full"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (SystemExit(3), 3, ""),
    ],
)
def test_whatever_ends_a_command_is_a_sentence(monkeypatch, capsys, error, code, words):
    def app():
        raise error

    monkeypatch.setattr(commands, "app", app)
    assert commands._outcome() == code
    assert words in " ".join(capsys.readouterr().err.split())


def test_who_mends_a_bug_sees_the_traceback(monkeypatch):
    def app():
        raise ZeroDivisionError

    monkeypatch.setattr(commands, "app", app)
    monkeypatch.setenv("CV_PIPELINE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        commands._outcome()


@pytest.mark.slow
def test_a_long_command_of_the_library_ends_in_order(tmp_path):
    "It holds a folder; the folder is given back."
    process = subprocess.Popen(
        [CLI, "robustness", "--out", str(tmp_path / "out"), "--budget-s", "600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hears_ctrl_c,
    )
    until((tmp_path / "out").is_dir, 60, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, list((tmp_path / "out").iterdir())) == (143, []), err


# --- streams


def test_a_pipe_that_nobody_reads_ends_nothing():
    read, write = os.pipe()
    os.close(read)
    stream = SteadyStream(open(write, "wb"), "utf-8")
    print("x" * 100_000, file=stream, flush=True)
    print("more", file=stream, flush=True)
    assert isinstance(stream.lost, BrokenPipeError)
    stream.close()


def test_what_cannot_be_encoded_is_escaped(tmp_path):
    with open(tmp_path / "out.txt", "wb") as raw:
        print("é \udcff", file=SteadyStream(raw, "ascii", "backslashreplace"), flush=True)
        assert (tmp_path / "out.txt").read_bytes() == b"\\xe9 \\udcff\n"


def closed(*numbers: int):
    "Close descriptors of a program before it begins."

    def close():
        for number in numbers:
            os.close(number)

    return close


PRINTS = """
import sys
from cv_pipeline.commands.terminal import steady_streams
steady_streams()
with open({path!r}, "w") as file:
    print("to nobody", flush=True)
    print("to nobody", file=sys.stderr, flush=True)
    file.write(f"{{file.fileno()}} kept")
"""


def test_closed_descriptors_are_never_those_of_a_file(tmp_path):
    path = tmp_path / "results.txt"
    done = subprocess.run(
        [sys.executable, "-c", PRINTS.format(path=str(path))], cwd=ROOT, preexec_fn=closed(0, 1, 2)
    )
    number, word = path.read_text().split()
    assert (done.returncode, int(number) > 2, word) == (0, True, "kept")


FULL = """
from cv_pipeline.commands import main as commands
commands.app = lambda: print("the only result")
commands.main()
"""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_result_that_could_not_be_printed_is_not_delivered():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", FULL], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, "No space left on device" in done.stderr) == (5, True)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.slow
def test_a_run_whose_reader_has_gone_writes_everything(tmp_path):
    process = subprocess.Popen(
        [CLI, "run", "line:frames=20,width=160,height=120", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()  # as `| head -0`
    err = process.stderr.read()
    assert process.wait(60) == 0, err
    assert json.loads((tmp_path / "summary.json").read_text())["frames_delivered"] == 20
    assert "Traceback" not in err and "Exception ignored" not in err


# --- memory


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
@pytest.mark.parametrize("megabytes", [600, 900, 1200])
def test_a_limit_that_is_too_low_is_said_before_anything_begins(megabytes):
    size = megabytes << 20
    done = subprocess.run(
        [CLI, "run", "line:frames=5"],
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size)),
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert (done.returncode, "ulimit -v" in done.stderr) == (2, True), done.stderr


# --- names


@pytest.fixture
def odd(tmp_path):
    "A folder of pictures; neither it nor they have names in UTF-8."
    import cv2

    from cv_pipeline.synthetic.line import open_line

    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    for k, frame in enumerate(open_line("line:width=160,height=120,frames=3", "line")):
        data = cv2.imencode(".jpg", frame.image)[1].tobytes()
        (folder / os.fsdecode(b"fra\xefs%d.jpg" % k)).write_bytes(data)
    (folder / os.fsdecode(b"br\xfcken.jpg")).write_bytes(b"no picture")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [{}, ASCII, {"PYTHONIOENCODING": "ascii"}], ids=["utf8", "C", "ascii"]
)
def test_names_that_are_no_utf8(tmp_path, odd, environment):
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe4us"))
    yaml = tmp_path / os.fsdecode(b"conf\xefg.yaml")
    yaml.write_text("telemetry: true\ncollect: {random: 1.0}\ndelivery: {video: true}\n")
    command = [CLI, "run", odd, "--config", yaml, "--out", out]
    done = subprocess.run(
        [os.fsencode(part) for part in command], capture_output=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert (summary["error"], list(summary["sources"])) == (None, ["caf\\xe9"])
    lines = list(read_jsonl(out / "results.jsonl"))
    assert all(Path(line["meta"]["path"]).is_file() for line in lines) and len(lines) == 3
    assert set(read_results(out)["source_id"].to_pylist()) <= {"caf\\xe9"}
    assert len(list((out / "collected").rglob("*.jpg"))) == 3
    assert [name for name, _ in summary["sources"]["caf\\xe9"]["skipped"]] == [os.fsdecode(b"br\xfcken.jpg")]
