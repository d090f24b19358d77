"""`cv-pipeline device` as a person in front of a box meets it: help with examples, sentences for what is
wrong, orders with and without an agent, and the service as a process."""

import json
import subprocess
import threading
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner

from cv_pipeline.commands.main import app
from cv_pipeline.core.types import CVPipelineError
from cv_pipeline.edge.box import Device, load_device, model_folder
from cv_pipeline.edge.slots import Slots, install_version, read_state
from tests.helpers.cli import CLI
from tests.helpers.device_player import mood_bundle, write_player
from tests.helpers.waiting import until

PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def ask(*words):
    "Exit code (None: a typed error) and all text."
    done = CliRunner().invoke(app, ["device", *map(str, words)], env=PLAIN)
    if isinstance(done.exception, CVPipelineError):
        return None, str(done.exception)
    return done.exit_code, " ".join(done.output.split())


@pytest.fixture
def file(tmp_path):
    "A device without a centre whose run is played, with two versions of its model."
    (tmp_path / "line.yaml").write_text("sources: ['line:']\n")
    text = "device: box-7\nrun: line.yaml\nmodel: line\nfirst_model: factory_line\n"
    text += f"program: {write_player(tmp_path)}\nagent: {{poll_s: 0.02, grace_s: 2}}\n"
    (tmp_path / "device.yaml").write_text(text)
    config = load_device(tmp_path / "device.yaml")
    for version in ("1.0", "1.1"):
        bundle, digest = mood_bundle(tmp_path, version)
        install_version(model_folder(config), bundle, digest)
        with Slots(model_folder(config)) as slots:
            slots.begin(digest)
            slots.commit()
    return tmp_path / "device.yaml"


def state(file):
    return read_state(model_folder(load_device(file)))


@contextmanager
def running(file):
    with Device(load_device(file)) as device:
        stop = threading.Event()
        loop = threading.Thread(target=device.run, args=(stop,))
        loop.start()
        try:
            until(lambda: device.agent.status.state == "running", 60)
            yield device
        finally:
            stop.set()
            loop.join(60)


@pytest.mark.parametrize("name", ["enrol", "run", "status", "rollback", "unblock"])
def test_each_command_has_help_with_an_example(name):
    code, text = ask(name, "--help")
    assert code == 0 and f"cv-pipeline device {name}" in text and "--config" in text


def test_the_commands_are_in_a_panel_of_their_own():
    text = CliRunner().invoke(app, ["--help"], env=PLAIN).output
    assert "Devices" in text and "A device in the field" in text


def test_a_rollback_without_an_agent_is_done_here(file):
    before = state(file)
    code, text = ask("rollback", "--reason", "scratches are missed", "--config", file)
    assert code == 0 and before.previous[:12] in text
    assert state(file).current == before.previous
    assert state(file).blocked == {before.current: "scratches are missed"}
    assert ask("unblock", before.current[:8], "--config", file)[0] == 0
    assert state(file).blocked == {}


def test_orders_reach_an_agent_that_runs(file):
    before = state(file)
    with running(file) as device:
        pid = device.agent.child.process.pid
        assert ask("rollback", "--reason", "too slow", "--config", file)[0] == 0
        until(lambda: device.agent.child is not None and device.agent.child.process.pid != pid, 60)
        code, text = ask("rollback", "--reason", "again", "--config", file)
        assert code is None and "the agent refuses" in text and "no previous model" in text
        assert ask("unblock", before.current[:8], "--config", file)[0] == 0
    assert (state(file).current, state(file).blocked) == (before.previous, {})


def test_an_agent_that_does_not_answer_is_a_sentence_and_the_order_is_taken_back(file):
    config = load_device(file)
    with Slots(model_folder(config)):  # held, and nobody takes orders
        code, text = ask("rollback", "--reason", "x", "--wait-s", "1", "--config", file)
    assert code is None and "has not done it within 1 s" in text
    assert not list((config.folder / "orders").glob("*.json"))


def test_a_reason_is_needed(file):
    code, _ = ask("rollback", "--config", file)
    assert code == 2 and state(file).blocked == {}


def test_status_shows_models_and_journal(file, capsys):
    ask("rollback", "--reason", "scratches are missed", "--config", file)
    before = state(file)
    code, text = ask("status", "--config", file)
    text += " ".join(capsys.readouterr().out.split())
    assert code == 0 and before.current[:12] in text and "scratches are missed" in text
    found = json.loads(
        CliRunner().invoke(app, ["device", "status", "--as-json", "--config", str(file)]).output
    )
    assert found["current"] == before.current and found["journal"][-1]["what"] == "rolled back"


def test_a_device_that_runs_shows_its_heartbeat(file):
    with running(file) as device:
        until(lambda: (device.config.folder / "beat.json").exists(), 60)
        found = json.loads(
            CliRunner().invoke(app, ["device", "status", "--as-json", "--config", str(file)]).output
        )
    assert found["beat"]["device"] == "box-7" and found["beat"]["state"] in ("starting", "running")


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["unblock", "3f1c09"], "blocked: none"),
        (["enrol", "4711"], "this device has no centre"),
        (["status", "--config", "nowhere.yaml"], "file not found"),
    ],
)
def test_what_is_wrong_is_a_sentence(file, words, word):
    more = [] if "--config" in words else ["--config", file]
    code, text = ask(*words, *more)
    assert code is None and word in text


def test_a_root_is_trusted_before_the_centre_is_asked(file, tmp_path):
    (tmp_path / "root.json").write_text("{}")
    code, text = ask("enrol", "4711", "--root", tmp_path / "root.json", "--config", file)
    assert code is None and "not signed metadata" in text


@pytest.mark.slow
def test_the_service_is_a_process_that_ends_in_order(file):
    agent = subprocess.Popen([CLI, "device", "run", "--config", str(file)], stderr=subprocess.PIPE, text=True)
    folder = load_device(file).folder
    until(lambda: (folder / "beat.json").exists(), 60, agent)
    second = subprocess.run(
        [CLI, "device", "run", "--config", str(file)], capture_output=True, text=True, timeout=60
    )
    agent.terminate()
    _, text = agent.communicate(timeout=60)
    assert agent.returncode == 0 and "device box-7" in text
    assert second.returncode == 2 and "another agent has this folder open" in second.stderr
    assert "Traceback" not in text + second.stderr
