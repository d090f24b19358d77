"""The agent of a device: its judgement by a clock that is moved by hand, and its runs as real processes that
crash, hang, fail and kill their agent."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from cv_pipeline.core.types import ConfigError, SinkError
from cv_pipeline.edge import agent as A
from cv_pipeline.edge.outbox import Outbox, OutboxSettings
from cv_pipeline.edge.slots import Slots, install_version, read_state, resolve_current, version_folder
from cv_pipeline.monitoring.hardware import HardwareReading
from tests.helpers.device_player import mood_bundle, player_launcher, rows_of, write_player
from tests.helpers.waiting import until

BARE = OutboxSettings(ballast_bytes=0)
WELL = A.Health(True, "", 0.0, {"gate": "running"})
SICK = A.Health(False, "the model is failed", 0.0, {"gate": "running"})
BLIND = A.Health(False, "no source delivers frames", 0.0, {"gate": "stale"})
STUCK = A.Health(False, "deliver has not finished a frame for 99 s", 99.0, {"gate": "running"})


class Played:
    "A run that does what a test says; time is moved by hand."

    def __init__(self):
        self.now, self.health, self.codes, self.starts, self.stops = 100.0, WELL, [], [], []

    def __call__(self):
        return self.now

    def launch(self, place):
        self.starts.append(place.name)
        return SimpleNamespace(port=0, ended=self.ended, stop=self.stops.append)

    def ended(self):
        return self.codes.pop(0) if self.codes else None

    def ask(self, port, token):
        return self.health


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return [mood_bundle(folder, v) for v in ("1.0", "1.1")]


@pytest.fixture
def slots(tmp_path, bundles):
    "A device with a good model and another one that is installed."
    folder = tmp_path / "models" / "line"
    for bundle, digest in bundles:
        install_version(folder, bundle, digest)
    with Slots(folder) as opened:
        opened.begin(bundles[0][1])
        opened.commit()
        yield opened


@pytest.fixture
def box(tmp_path):
    with Outbox(tmp_path / "outbox", BARE) as opened:
        yield opened


@pytest.fixture
def played(monkeypatch):
    play = Played()
    monkeypatch.setattr(A, "ask_health", play.ask)
    monkeypatch.setattr(A, "ask_page", lambda *a, **k: None)
    monkeypatch.setattr(
        A, "read_hardware", lambda folder: HardwareReading()
    )  # this machine may be overloaded
    return play


@pytest.fixture
def agent(slots, box, played):
    made = A.Agent(slots, played.launch, box, A.AgentSettings(), clock=played)
    made.step()
    return made


def steps(agent, played, seconds, health=None, every=1.0):
    "So many seconds pass, with a step each."
    played.health = health if health is not None else played.health
    for _ in range(round(seconds / every)):
        played.now += every
        agent.step()


def trial(agent, bundles):
    agent.switch(bundles[1][1])
    agent.step()


# --- the judgement


def test_a_model_is_good_after_two_minutes_in_which_results_came(agent, played, slots, bundles):
    trial(agent, bundles)
    steps(agent, played, 119, WELL)
    assert slots.state.trying == bundles[1][1]
    steps(agent, played, 3, WELL)
    assert (slots.state.current, slots.state.previous) == (bundles[1][1], bundles[0][1])
    assert agent.status.update == f"update: committed {bundles[1][1][:12]}"


def test_a_model_that_is_never_ready_is_rolled_back_after_a_minute(agent, played, slots, bundles):
    trial(agent, bundles)
    steps(agent, played, 59, SICK)
    assert slots.state.trying
    steps(agent, played, 3, SICK)
    assert slots.state.current == bundles[0][1] and "was not ready for" in slots.state.blocked[bundles[1][1]]
    assert played.starts[-1] == bundles[0][1][:12]


def test_a_model_that_stops_delivering_is_rolled_back_within_ten_seconds(agent, played, slots, bundles):
    trial(agent, bundles)
    steps(agent, played, 60, WELL)
    steps(agent, played, 9, SICK)
    assert slots.state.trying
    steps(agent, played, 4, SICK)
    assert bundles[1][1] in slots.state.blocked and played.starts[-1] == bundles[0][1][:12]


def test_a_moment_of_doubt_is_forgiven(agent, played, slots, bundles):
    trial(agent, bundles)
    for _ in range(20):
        steps(agent, played, 3, WELL)
        steps(agent, played, 5, SICK)
    assert slots.state.trying == bundles[1][1]
    steps(agent, played, 90, WELL)
    assert slots.state.current == bundles[1][1]


def test_without_a_camera_a_model_is_neither_good_nor_bad(agent, played, slots, bundles):
    trial(agent, bundles)
    steps(agent, played, 3500, BLIND, every=10)
    assert slots.state.trying == bundles[1][1]
    steps(agent, played, 200, BLIND, every=10)
    assert slots.state.current == bundles[0][1] and slots.state.blocked == {}
    assert "could not be judged" in agent.status.rolled_back["why"]


@pytest.mark.parametrize("health", [STUCK, None])
def test_a_run_that_hangs_is_ended_and_on_trial_rolled_back(agent, played, slots, bundles, health):
    trial(agent, bundles)
    steps(agent, played, 5, WELL)
    played.health = health
    for _ in range(80):
        steps(agent, played, 1)
    assert (
        "it hangs" in slots.state.blocked[bundles[1][1]]
        or "was not ready" in slots.state.blocked[bundles[1][1]]
    )
    assert played.starts.count(bundles[1][1][:12]) <= 2


def test_a_run_that_hangs_without_a_trial_is_started_again(agent, played, slots, bundles):
    steps(agent, played, 5, WELL)
    played.health = None
    steps(agent, played, 29)
    assert len(played.starts) == 1
    steps(agent, played, 4)
    assert len(played.starts) == 2 and played.stops == [0.0] and slots.state.blocked == {}


def test_a_slow_start_is_not_a_hang(agent, played, slots):
    played.health = None
    steps(agent, played, 170)
    assert len(played.starts) == 1
    steps(agent, played, 15)
    assert len(played.starts) == 2


def test_a_model_that_is_not_on_trial_is_left_alone_when_it_is_not_ready(agent, played, slots):
    steps(agent, played, 900, SICK, every=10)
    assert len(played.starts) == 1 and agent.status.reason == "the model is failed"


@pytest.mark.parametrize("code", [4, -6, -9, -11, 70, 1, 2])
def test_a_model_that_ends_its_run_has_two_starts(agent, played, slots, bundles, code):
    agent.switch(bundles[1][1])
    for _ in range(6):
        played.codes = [code] if played.starts[-1:] == [bundles[1][1][:12]] else []
        agent.step()
    assert played.starts.count(bundles[1][1][:12]) == 2 and played.starts[-1] == bundles[0][1][:12]
    assert bundles[1][1] in slots.state.blocked


@pytest.mark.parametrize("code", [0, 3, 5, 130, 143, -15])
def test_an_end_that_is_not_the_models_fault_puts_it_back_without_blocking(
    agent, played, slots, bundles, code
):
    agent.switch(bundles[1][1])
    for _ in range(6):
        played.codes = [code] if played.starts[-1:] == [bundles[1][1][:12]] else []
        agent.step()
    assert slots.state.current == bundles[0][1] and slots.state.blocked == {}


def test_the_waits_between_starts_grow_and_end_at_a_minute(agent, played):
    waits = []
    for _ in range(10):
        played.codes = [4]
        agent.step()
        began = played.now
        while agent.child is None:
            played.now += 0.5
            agent.step()
        waits.append(played.now - began)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_after_a_good_while_patience_is_new(agent, played):
    for _ in range(5):
        played.codes = [4]
        agent.step()
        while agent.child is None:
            played.now += 1
            agent.step()
    steps(agent, played, 80, WELL)
    played.codes = [4]
    agent.step()
    agent.step()
    assert agent.child is not None


def test_a_good_model_that_lost_its_files_gives_way_to_the_one_before(agent, played, slots, bundles):
    trial(agent, bundles)
    steps(agent, played, 125, WELL)
    (version_folder(slots.folder, bundles[1][1]) / "net.bin").write_bytes(b"worn out")
    for _ in range(20):
        played.codes = [4] if played.starts[-1] == bundles[1][1][:12] else []
        steps(agent, played, 5, WELL)
    assert slots.state.current == bundles[0][1] and slots.state.blocked == {}
    assert "its files are damaged: not an installed version: 'net.bin' was changed" in agent.status.update
    place = install_version(slots.folder, *bundles[1])  # the next update makes it anew
    assert (place / "net.bin").read_bytes() != b"worn out"


def test_a_good_model_that_keeps_failing_with_whole_files_stays(agent, played, slots, bundles):
    trial(agent, bundles)
    steps(agent, played, 125, WELL)
    for _ in range(20):
        played.codes = [4]
        steps(agent, played, 5, WELL)
    assert slots.state.current == bundles[1][1] and agent.status.state in ("waiting", "starting")


def test_a_run_that_cannot_be_launched_is_not_the_models_fault(slots, bundles, played):
    def launch(place):
        raise OSError(12, "Cannot allocate memory")

    agent = A.Agent(slots, launch, None, clock=played)
    agent.switch(bundles[1][1])
    for _ in range(5):
        agent.step()
    assert slots.state.current == bundles[0][1] and slots.state.blocked == {}
    assert "cannot be started" in agent.status.reason


def test_a_restarted_agent_continues_the_trial_with_what_is_left_of_it(slots, bundles, played):
    "Only starts with the model on trial count, whoever makes them."
    first = A.Agent(slots, played.launch, None, clock=played)
    first.switch(bundles[1][1])
    first.step()
    assert slots.state.tries == 1
    second = A.Agent(slots, played.launch, None, clock=played)  # the machine was without power
    second.step()
    third = A.Agent(slots, played.launch, None, clock=played)
    third.step()
    assert played.starts == [bundles[1][1][:12]] * 2 + [bundles[0][1][:12]]
    assert "2 starts" in third.status.update


def test_a_device_that_is_switched_off_in_order_does_not_use_up_the_trial(slots, bundles, played):
    first = A.Agent(slots, played.launch, None, clock=played)
    first.switch(bundles[1][1])
    for _ in range(5):
        agent = A.Agent(slots, played.launch, None, clock=played)
        steps(agent, played, 30, WELL)
        agent.stop()
    assert slots.state.trying == bundles[1][1] and slots.state.tries == 2
    steps(A.Agent(slots, played.launch, None, clock=played), played, 125, WELL)
    assert slots.state.current == bundles[1][1]


def test_a_run_that_crashed_before_the_stop_was_a_failure(slots, bundles, played):
    agent = A.Agent(slots, played.launch, None, clock=played)
    agent.switch(bundles[1][1])
    agent.step()
    played.codes = [4]
    agent.stop()
    assert slots.state.tries == 1


def test_restarts_of_the_agent_count_for_nothing_without_a_trial(slots, bundles, played):
    for _ in range(20):
        A.Agent(slots, played.launch, None, clock=played).step()
    assert slots.state.blocked == {} and slots.state.current == bundles[0][1]


# --- what it reports


def test_a_commit_and_a_rollback_are_reported_after_they_happened(agent, played, slots, bundles, box):
    trial(agent, bundles)
    steps(agent, played, 125, WELL)
    agent.rollback("too many false alarms")
    events = rows_of(box, "event", "alarm")
    assert [e["what"] for e in events] == ["committed", "rolled back"]
    assert events[0]["digest"] == events[1]["digest"] == bundles[1][1]
    assert events[1] == {
        "what": "rolled back",
        "digest": bundles[1][1],
        "why": "too many false alarms",
        "blocked": True,
        "current": bundles[0][1],
    }


@pytest.mark.parametrize("broken", ["closed", "raises"])
def test_a_report_that_cannot_be_written_never_rolls_back(agent, played, slots, bundles, box, broken):
    if broken == "closed":
        box.close()
    else:
        agent.box = SimpleNamespace(put=lambda *a: 1 / 0)
    trial(agent, bundles)
    steps(agent, played, 125, WELL)
    assert slots.state.current == bundles[1][1] and slots.state.blocked == {}


@pytest.mark.parametrize("health", [WELL, SICK])
def test_a_disk_that_is_full_for_a_while_delays_the_verdict(
    agent, played, slots, bundles, monkeypatch, health
):
    from cv_pipeline.edge import slots as S

    trial(agent, bundles)
    whole, full = S.write_json, SinkError("could not be written: No space left on device")

    def refused(*args, **how):
        raise full

    monkeypatch.setattr(S, "write_json", refused)
    steps(agent, played, 140, health)
    assert slots.state.trying == bundles[1][1] and "No space left" in agent.status.reason
    assert "No space left" in agent.beat["reason"]  # heartbeats go on, and say so
    monkeypatch.setattr(S, "write_json", whole)
    steps(agent, played, 3, health)
    assert slots.state.current == bundles[1 if health is WELL else 0][1]
    assert read_state(slots.folder) == slots.state


def test_a_heartbeat_says_how_the_device_is(agent, played, slots, bundles, box):
    steps(agent, played, 61, A.Health(True, "", 0.0, {"gate": "running", "yard": "lost"}))
    beat = rows_of(box, "health")[-1]
    assert beat["state"] == "running" and beat["cameras"] == {"up": 1, "of": 2, "down": ["yard"]}
    assert beat["model"] == {"digest": bundles[0][1], "name": "line", "version": "1.0"}
    assert beat["outbox"]["state"] == "ok" and beat["outbox"]["waiting"] >= 1
    assert json.loads(json.dumps(beat)) == beat and {"hardware", "signals", "blocked", "run"} <= set(beat)


def test_rows_of_health_come_once_a_minute_and_when_the_state_changes(agent, played, box):
    steps(agent, played, 300, WELL)
    states = [r["state"] for r in rows_of(box, "health")]
    assert states[0] == "starting" and 5 <= states.count("running") <= 7 and len(states) <= 8


def test_figures_are_read_more_often_than_rows_are_written(agent, played, box):
    steps(agent, played, 20, WELL)
    before = agent.beat
    steps(agent, played, 12, A.Health(True, "", 0.0, {"gate": "lost"}))
    assert agent.beat is not before and agent.beat["cameras"]["up"] == 0
    assert len(rows_of(box, "health")) == 2


def test_hardware_that_is_too_hot_is_an_event(agent, played, box, monkeypatch):
    monkeypatch.setattr(A, "read_hardware", lambda folder: HardwareReading(temperature_c=92.0))
    steps(agent, played, 300, WELL)
    events = [e for e in rows_of(box, "event") if e["what"] == "hardware"]
    assert [(e["signal"], e["raised"], e["text"]) for e in events] == [("too hot", True, "92 °C")]
    assert agent.beat["signals"] == {"too hot": "92 °C"}


def test_a_listener_that_fails_does_not_end_the_run(agent, played, box):
    agent.listeners.append(lambda a: 1 / 0)
    steps(agent, played, 5, WELL)
    assert agent.status.state == "running" and "division by zero" in agent.status.update


def test_no_model_at_all_is_a_state(tmp_path, played, box):
    with Slots(tmp_path / "empty") as empty:
        agent = A.Agent(empty, played.launch, box, clock=played)
        agent.step()
        assert agent.status.state == "no model" and rows_of(box, "health")[0]["state"] == "no model"
        assert played.starts == []


def test_the_first_model_runs_until_a_release_has_come(tmp_path, played, bundles):
    first = tmp_path / "first"
    first.mkdir()
    with Slots(tmp_path / "empty") as empty:
        agent = A.Agent(empty, played.launch, None, first_model=first, clock=played)
        agent.step()
        install_version(empty.folder, *bundles[0])
        agent.switch(bundles[0][1])
        agent.step()
        agent.rollback("bad")
        agent.step()
    assert played.starts == ["first", bundles[0][1][:12], "first"]


def test_systemd_hears_of_it(agent, played, tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
        line.bind(str(tmp_path / "notify"))
        line.settimeout(10)
        agent.supervisor = A.Supervisor({"NOTIFY_SOCKET": str(tmp_path / "notify")})
        agent.step()
        words = line.recv(4096).decode()
        agent.stop()
        assert "WATCHDOG=1" in words and "STATUS=running" in words
        assert line.recv(4096) == b"STOPPING=1"


# --- orders by hand


def test_orders_are_done_once_and_refusals_have_their_reason(agent, played, slots, bundles, tmp_path):
    trial(agent, bundles)
    agent.listeners.append(lambda a: A.take_orders(a, tmp_path))
    done = A.give_order(tmp_path, "rollback", why="by ann")
    steps(agent, played, 1, WELL)
    assert not done.exists() and slots.state.blocked == {bundles[1][1]: "by ann"}
    for do, word in (("unblock", "blocked models"), ("dance", "unknown order")):
        wrong = A.give_order(tmp_path, do, digest="zzzzzzzz")
        steps(agent, played, 1, WELL)
        assert not wrong.exists() and word in A.order_refused(wrong)
    (tmp_path / "orders" / "x.json").write_text("{")
    steps(agent, played, 1, WELL)
    assert not list((tmp_path / "orders").glob("*.json"))


# --- real processes


QUICK = A.AgentSettings(
    ready_s=4, unready_s=0.3, probation_s=0.3, watchdog_s=1.5, grace_s=5, first_s=0.05, poll_s=0.02
)


@pytest.fixture
def real(slots, box, tmp_path):
    made = A.Agent(slots, player_launcher(tmp_path), box, QUICK)
    yield made
    made.stop()


def stepped(agent, happened, seconds=60.0):
    def look():
        agent.step()
        return happened()

    until(look, seconds)


@pytest.mark.parametrize(
    ("mood", "word"),
    [
        ("crashes", "SIGABRT"),
        ("exit 4", "the model failed"),
        ("hangs", "no response"),
        ("sick", "the model is failed"),
        ("stuck", "has not finished a frame"),
    ],
)
def test_a_bad_model_is_rolled_back_and_blocked(real, slots, bundles, tmp_path, mood, word):
    stepped(real, lambda: real.status.state == "running")
    bundle, digest = mood_bundle(tmp_path, "2.0", mood)
    install_version(slots.folder, bundle, digest)
    real.switch(digest)
    stepped(real, lambda: not slots.state.trying)
    stepped(real, lambda: real.status.state == "running")
    assert word in slots.state.blocked[digest]
    assert resolve_current(slots.folder).name == bundles[0][1][:12]


def test_a_good_model_is_committed_and_its_run_goes_on(real, slots, bundles, box):
    real.switch(bundles[1][1])
    stepped(real, lambda: slots.state.current == bundles[1][1])
    pid = real.child.process.pid
    stepped(real, lambda: real.beat["upkeep"] == {"gate": ["dirt"]} and real.status.state == "running")
    assert real.child.process.pid == pid


AGENT = """
import sys
from pathlib import Path
from cv_pipeline.edge.agent import Agent, AgentSettings, end_left
from cv_pipeline.edge.slots import Slots
from tests.helpers.device_player import player_launcher
folder, digest = Path(sys.argv[1]), sys.argv[2]
launch = player_launcher(folder)
with Slots(folder / "models" / "line") as slots:
    end_left(folder / "run.json")
    agent = Agent(slots, launch, None, AgentSettings(probation_s=0.3, poll_s=0.02, grace_s=2))
    if digest not in slots.state.blocked and not slots.state.trying and slots.state.current != digest:
        agent.switch(digest)
    import time
    end = time.monotonic() + 60
    while time.monotonic() < end and not (agent.status.state == "running" and not slots.state.trying):
        agent.step()
        time.sleep(0.02)
    if "--stay" in sys.argv:
        print("running", flush=True)
        sys.stdin.read()
    agent.stop()
"""


def agent_process(folder, digest, *more, **how):
    env = {**os.environ, "PLAYER_STARTS": str(folder / "starts")}
    return subprocess.Popen([sys.executable, "-c", AGENT, str(folder), digest, *more], env=env, **how)


@pytest.mark.slow
def test_a_model_that_kills_its_agent_is_started_twice_at_most(slots, bundles, tmp_path):
    bundle, digest = mood_bundle(tmp_path, "2.0", "kills its agent")
    install_version(slots.folder, bundle, digest)
    slots.close()
    codes = [agent_process(tmp_path, digest).wait(120) for _ in range(3)]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    starts = (tmp_path / "starts").read_text().split()
    assert starts.count(digest[:12]) == 2 and starts[-1] == bundles[0][1][:12]
    state = read_state(slots.folder)
    assert state.current == bundles[0][1] and digest in state.blocked
    slots.__init__(slots.folder)  # the fixture closes it again


@pytest.mark.slow
def test_the_run_of_an_agent_that_was_killed_is_ended_by_the_next_one(slots, bundles, tmp_path):
    slots.close()
    agent = agent_process(tmp_path, bundles[0][1], "--stay", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert agent.stdout.readline() == b"running\n"
    left = json.loads((tmp_path / "run.json").read_text())
    agent.kill()
    agent.wait()
    assert A._birth(left["pid"]) == left["birth"]
    assert agent_process(tmp_path, bundles[0][1]).wait(120) == 0
    assert A._birth(left["pid"]) != left["birth"]
    agent.stdin.close()
    agent.stdout.close()
    slots.__init__(slots.folder)


def test_a_process_that_only_has_the_same_number_is_left_alone(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"pid": os.getpid(), "birth": "12345"}))
    assert A.end_left(tmp_path / "run.json") is None
    for text in ("", "{}", '{"pid": "x", "birth": "1"}', '{"pid": 1, "birth": ""}'):
        (tmp_path / "run.json").write_text(text)
        assert A.end_left(tmp_path / "run.json") is None


def test_a_run_that_does_not_stop_is_killed(tmp_path):
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(99)"
    child = A.Child([sys.executable, "-u", "-c", code], 1, tmp_path / "run.json")
    assert child.ended() is None and child.stop(1.0) in (-signal.SIGKILL, -signal.SIGTERM)


def test_a_run_does_not_inherit_the_socket_of_systemd(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    monkeypatch.setenv("WATCHDOG_USEC", "5")
    code = f"import os; open({str(tmp_path / 'env')!r}, 'w').write(repr(sorted(os.environ)))"
    child = A.Child([sys.executable, "-c", code], 1, tmp_path / "run.json", {"MORE": "1"})
    assert child.process.wait(60) == 0
    found = (tmp_path / "env").read_text()
    assert "NOTIFY_SOCKET" not in found and "WATCHDOG" not in found and "MORE" in found


def test_the_loop_ends_when_it_is_told_to(slots, tmp_path):
    agent, stop = A.Agent(slots, player_launcher(tmp_path), None, QUICK), threading.Event()
    loop = threading.Thread(target=agent.run, args=(stop,))
    loop.start()
    until(lambda: agent.status.state == "running", 60)
    pid = agent.child.process.pid
    stop.set()
    loop.join(60)
    assert agent.status.state == "stopped" and not Path(f"/proc/{pid}").exists()


# --- pages of a run


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"reason": 5}', b'{"reason": null, "sources": []}', b"\xff"]
)
def test_what_is_not_a_page_of_a_run_is_no_health(monkeypatch, body):
    monkeypatch.setattr(A, "ask_page", lambda *a, **k: (200, body))
    assert A.ask_health(1) is None


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ConfigError, match="probation_s: 0 is not above 0"):
        A.AgentSettings(probation_s=0)


def test_the_player_is_a_program(tmp_path):
    assert os.access(write_player(tmp_path), os.X_OK)


def test_open_tracks_are_added_up_over_cameras():
    from cv_pipeline.edge.agent import open_tracks

    text = (
        "# HELP cv_pipeline_open_tracks Confirmed tracks\n"
        'cv_pipeline_open_tracks{source="gate"} 2.0\ncv_pipeline_open_tracks{source="dock"} 1.0\n'
        'cv_pipeline_tracks_total{source="gate"} 40.0\n'
    )
    assert open_tracks(text) == 3 and open_tracks("") == 0
