"""The whole device from its file: enrolment that may be repeated, heartbeats and orders, work without a link,
a small process, and the real thing once: a real run, a signed release, and one that crashes when it loads."""

import json
import shutil
import signal
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from cv_pipeline.core.files import Busy
from cv_pipeline.core.http_server import Answer
from cv_pipeline.core.types import ConfigError, SinkError
from cv_pipeline.edge import box as B
from cv_pipeline.edge.forward import Inbox, InboxServer, answer_device
from cv_pipeline.edge.slots import Slots, install_version, read_state
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.line import write_video
from tests.helpers.cli import CLI
from tests.helpers.device_player import mood_bundle, write_player
from tests.helpers.services import free_port
from tests.helpers.waiting import until

TEXT = """
device: box-7
run: line.yaml
model: line
first_model: factory_line
beat_s: 0.05
every_s: 0.2
agent: {probation_s: 0.3, poll_s: 0.02, grace_s: 3, beat_s: 0.2, ready_s: 60, first_s: 0.05}
"""


class Centre:
    "A centre that enrols, takes rows and heartbeats, and gives orders; `mood` makes it fail."

    def __init__(self, folder, port=0):
        self.codes, self.tokens, self.beats, self.mood = {"4711": "box-7"}, {}, [], ""
        self.orders = {"wanted": None, "paused": False, "began": "c1"}
        self.inbox = Inbox(folder)
        self.server = InboxServer(self.answer, port)

    def page(self, status, **found):
        return Answer(status, "application/json", json.dumps(found).encode())

    def answer(self, request):
        mood, self.mood = self.mood, "" if self.mood != "down" else "down"
        if mood in ("down", "before"):
            return self.page(503)
        found = self.enrol(request) if request.path == "/enrol" else self.beat(request)
        return Answer(200, "text/html", b"<html>log in") if mood == "after" else found

    def enrol(self, request):
        body = json.loads(request.body)
        known = next((t for t, d in self.tokens.items() if d == body["device"]), None)
        if known not in (None, body["token"]):
            return self.page(409, why="known")
        if known is None and self.codes.pop(body["code"], None) != body["device"]:
            return self.page(403, why="code")
        self.tokens[body["token"]] = body["device"]
        return self.page(200, device=body["device"])

    def beat(self, request):
        if request.path != "/beat":
            return answer_device(self.inbox, self.tokens.get, request)
        who = self.tokens.get(request.headers.get("authorization", "").removeprefix("Bearer "))
        if who is None:
            return self.page(401)
        self.beats.append(json.loads(request.body))
        return self.page(200, **self.orders)

    def rows(self, kind):
        found = self.inbox.query(f"SELECT body FROM rows WHERE kind = '{kind}' ORDER BY seq")
        return [json.loads(r["body"]) for r in found]

    def close(self):
        self.server.close()
        self.inbox.close()


@pytest.fixture
def centre(tmp_path):
    made = Centre(tmp_path / "centre")
    yield made
    made.close()


@pytest.fixture
def file(tmp_path, centre):
    "The file of a device whose run is played."
    (tmp_path / "line.yaml").write_text("sources: ['line:']\n")
    place = tmp_path / "device.yaml"
    more = f"centre: {{url: '{centre.server.url}'}}\nprogram: {write_player(tmp_path)}\n"
    place.write_text(TEXT + more)
    return place


@contextmanager
def running(config):
    "A device whose agent runs in a thread."
    with B.Device(config) as device:
        stop = threading.Event()
        loop = threading.Thread(target=device.run, args=(stop,))
        loop.start()
        try:
            yield device
        finally:
            stop.set()
            loop.join(60)


# --- the file


def test_paths_begin_at_the_folder_of_the_file(file, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    config = B.load_device(file)
    assert config.run == tmp_path / "line.yaml" and config.folder == tmp_path / "device"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("colour: red\n", "colour: Unexpected keyword"),
        ("agent: {patience: 3}\n", "unknown waiting times: patience"),
        ("agent: {ready_s: 0}\n", "ready_s: 0"),
        ("limits: 3\n", "limits: "),
        ("limits: {fast: 3}\n", "unknown limits: fast"),
        ("limits: {slower: -3}\n", "slower: -3 is not above 0"),
        ("beat_s: .nan\n", "beat_s: "),
        ("beat_s: 0\n", "beat_s: 0"),
        ("device: a b\n", "not a name"),
    ],
)
def test_what_is_wrong_in_the_file_is_listed(file, change, word):
    text = file.read_text()
    key = change.partition(":")[0]
    kept = [line for line in text.splitlines() if not line.startswith(f"{key}:")]
    file.write_text("\n".join(kept) + "\n" + change)
    with pytest.raises(ConfigError, match=word):
        B.load_device(file)


def test_a_file_with_several_problems_names_them_all(file):
    file.write_text("device: 5\nrun: line.yaml\nextra: 1\n")
    with pytest.raises(ConfigError) as e:
        B.load_device(file)
    assert len(e.value.problems) == 3


def test_a_run_that_is_missing_is_a_sentence(file, tmp_path):
    (tmp_path / "line.yaml").unlink()
    with pytest.raises(ConfigError, match="configuration of the run is missing"):
        B.load_device(file)


def test_a_device_without_any_model_is_refused(file):
    file.write_text("device: box-7\nrun: line.yaml\nmodel: line\n")
    with pytest.raises(ConfigError, match="no model can ever come"):
        B.load_device(file)


def test_the_example_is_one(tmp_path):
    shutil.copytree(Path(__file__).parents[2] / "deploy", tmp_path / "deploy")
    config = B.load_device(tmp_path / "deploy" / "device.yaml")
    assert config.device == "box-7" and config.centre.url.startswith("https://")


# --- enrolment


def test_a_device_makes_its_own_token_and_sends_it_again(file, centre):
    config = B.load_device(file)
    centre.mood = "before"
    with pytest.raises(SinkError, match="503"):
        B.enrol_device(config, "4711")
    centre.mood = "after"  # enrolled, and the answer is lost
    with pytest.raises(SinkError, match="not the response of a centre"):
        B.enrol_device(config, "4711")
    assert B.enrolled(config.folder) is None and len(centre.tokens) == 1
    assert B.enrol_device(config, "4711")["device"] == "box-7"
    assert centre.tokens == {B.own_token(config.folder): "box-7"} and B.enrolled(config.folder)


def test_the_token_is_readable_by_its_owner_alone(file):
    folder = B.load_device(file).folder
    token, path = B.own_token(folder), B.device_secret(folder)
    assert len(token) == 64 and token == B.own_token(folder)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_damaged_token_is_a_sentence(file):
    folder = B.load_device(file).folder
    B.own_token(folder)
    B.device_secret(folder).write_text("short")
    with pytest.raises(ConfigError, match="not the token of a device"):
        B.own_token(folder)


@pytest.mark.parametrize(("code", "word"), [("wrong", "refuses the code"), ("4711", "knows another device")])
def test_a_centre_that_refuses_says_why(file, centre, code, word):
    config = B.load_device(file)
    if code == "4711":
        centre.tokens["f" * 64] = "box-7"
    with pytest.raises(ConfigError, match=word):
        B.enrol_device(config, code)


def test_a_centre_that_is_away_is_a_sentence(file):
    config = B.load_device(file)
    config.centre.url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(SinkError, match="run the same command again"):
        B.enrol_device(config, "4711")


def test_a_token_is_not_sent_in_plain_text(file):
    config = B.load_device(file)
    config.centre.url = "http://centre.example"
    with pytest.raises(ConfigError, match="plain text"):
        B.enrol_device(config, "4711")


# --- heartbeats and orders


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"wanted": null}',
        b'{"wanted": {"model": "line", "digest": "../../etc"}, "paused": false, "began": ""}',
        b'{"wanted": 5, "paused": false, "began": ""}',
        b"<html>log in",
    ],
)
def test_what_is_not_an_order_is_not_obeyed(body):
    assert B.read_orders(body) is None


def test_orders_are_read():
    body = {"wanted": {"model": "line", "digest": "ab" * 32}, "paused": True, "began": "c1", "more": 1}
    assert B.read_orders(json.dumps(body).encode()) == B.Orders("line", "ab" * 32, True, "c1")


def beats(answers, back=lambda: None):
    "Heartbeats over a link that answers with these."
    link = SimpleNamespace(ask=lambda *a: answers.pop(0), close=lambda: None)
    return B.Beats(link, lambda: "t", dict, 10, back, lambda: 0.5)


GOOD = (Answer(200, "application/json", b'{"wanted": null, "paused": false, "began": "c"}'), 0.0)


def test_a_refused_token_is_tried_rarely_and_a_busy_centre_when_it_wants():
    heart = beats([(Answer(401, "", b""), 0.0), (Answer(503, "", b""), 77.0), GOOD])
    assert (heart.step(), heart.state) == (B.REFUSED_S, "refused")
    assert (heart.step(), heart.state) == (77.0, "unexpected")
    assert (heart.step(), heart.state) == (10.0, "ok")


def test_the_sender_of_rows_is_woken_when_the_link_is_back_and_only_then():
    woken = []
    heart = beats([GOOD, GOOD, (Answer(500, "", b""), 0.0), GOOD], lambda: woken.append(1))
    for _ in range(4):
        heart.step()
    assert len(woken) == 2 and heart.sent == 3


# --- the device


def test_a_device_reports_and_its_rows_arrive(file, centre):
    config = B.load_device(file)
    B.enrol_device(config, "4711")
    with running(config):
        until(lambda: centre.beats and centre.beats[-1].get("cameras", {}).get("up") == 1, 60)
        until(lambda: any(r["state"] == "running" for r in centre.rows("health")), 60)
    beat = centre.beats[-1]
    assert beat["device"] == "box-7" and beat["model"] == {"digest": ""} and beat["clock_behind_s"] == 0
    shown = B.device_status(config)
    assert shown["enrolled"] and shown["beat"]["cameras"]["of"] in (0, 1)


def test_losing_the_link_never_ends_a_run_and_nothing_is_lost(file, centre, tmp_path):
    config = B.load_device(file)
    B.enrol_device(config, "4711")
    with running(config) as device:
        until(lambda: centre.beats and device.agent.status.state == "running", 60)
        pid = device.agent.child.process.pid
        centre.mood = "down"
        until(lambda: device.beats.state != "ok", 60)
        bundle, digest = mood_bundle(tmp_path, "1.0")
        install_version(B.model_folder(config), bundle, digest)
        device.agent.listeners.append(lambda a: digest in a.status.update or a.switch(digest))
        until(lambda: device.agent.slots.state.current == digest, 60)
        assert device.agent.status.restarts == 0 and device.agent.child.process.pid != pid
        centre.mood = ""
        until(lambda: device.beats.state == "ok", 60)
        committed = lambda: [r for r in centre.rows("event") if r["what"] == "committed"]
        until(committed, 60)
    assert [r["what"] for r in centre.rows("event") if r["what"] != "hardware"] == ["committed"]


def test_a_device_that_is_not_known_works(file, centre):
    config = B.load_device(file)  # never enrolled
    with running(config) as device:
        until(lambda: device.agent.status.state == "running" and device.beats.state == "refused", 60)
    assert centre.beats == [] and centre.rows("health") == []


def test_a_device_without_a_centre_works(file, tmp_path):
    file.write_text(TEXT + f"program: {write_player(tmp_path)}\n")
    with running(B.load_device(file)) as device:
        until(lambda: device.agent.status.state == "running", 60)
        assert device.beats is None and device.updates is None and device.agent.box is None


def test_a_wish_for_another_model_is_refused_in_words(file, centre):
    config = B.load_device(file)
    B.enrol_device(config, "4711")
    centre.orders["wanted"] = {"model": "yard", "digest": "ab" * 32}
    with running(config) as device:
        until(lambda: "the centre wants the model 'yard'" in device.agent.status.update, 60)
        assert device.updates.wanted is None


def test_the_centre_pauses_updates(file, centre):
    config = B.load_device(file)
    B.enrol_device(config, "4711")
    centre.orders |= {"paused": True, "wanted": {"model": "line", "digest": "ab" * 32}}
    with running(config) as device:
        until(lambda: device.updates.wanted, 60)
        assert device.updates.paused and device.updates.process is None


def test_two_agents_in_one_folder_are_refused(file):
    config = B.load_device(file)
    with B.Device(config):
        with pytest.raises(Busy, match="another agent has this folder open"):
            B.Device(config)
    B.Device(config).close()


def test_a_program_that_is_missing_is_a_sentence(file, monkeypatch):
    config = B.load_device(file)
    config.program = None
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match="program cv-pipeline is missing"):
        B.launch_run(config, "model")


@pytest.mark.slow
def test_the_agent_is_small(file, centre):
    "No picture, no model, no library of either: 60 MB at most, as `cv-pipeline device run` starts it."
    config = B.load_device(file)
    B.enrol_device(config, "4711")
    agent = subprocess.Popen([CLI, "device", "run", "--config", str(file)])
    try:
        until(lambda: len(centre.beats) > 20 and centre.beats[-1].get("state") == "running", 120, agent)
        status = Path(f"/proc/{agent.pid}/status").read_text()
        maps = Path(f"/proc/{agent.pid}/maps").read_text()
    finally:
        agent.terminate()
        assert agent.wait(60) == 0
    assert int(status.partition("VmRSS:")[2].split()[0]) / 1024 <= 60
    assert not any(
        name in maps for name in ("cv2", "onnxruntime", "pydantic_core", "pyarrow", "cryptography")
    )


# --- the real thing


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    "Releases of the bundled detector: one that is well, and one whose file cannot be loaded."
    from cv_pipeline.inference.loading import load_model
    from cv_pipeline.inference.manifest import find_model
    from cv_pipeline.release import trust as T
    from cv_pipeline.release.bundles import make_bundle, write_golden

    root = tmp_path_factory.mktemp("world")
    T.new_repository(root / "releases", root / "keys")
    line = FactoryLine(LineConfig(seed=5))
    pictures = [line.render(8 * k)[0].image for k in range(9)]
    made = {}
    for version in ("1.1", "1.2"):
        place = root / version
        shutil.copytree(find_model("factory_line"), place)
        write_golden(load_model(place, threads=1), pictures, place, 8)
        book = json.loads((place / "manifest.json").read_text()) | {"name": "line", "version": version}
        if version == "1.2":
            book.pop("sha256", None)
            (place / "model.onnx").write_bytes(b"this opens nowhere")
        (place / "manifest.json").write_text(json.dumps(book))
        make_bundle(place, root / f"{version}.bundle")
        release = lambda v=version: T.sign_release(root / "releases", root / "keys", root / f"{v}.bundle")[0]
        made[version] = release
    return SimpleNamespace(root=root, release=made)


def device_file(folder, world, preflight):
    "A device whose run is the real one, on the synthetic line."
    from cv_pipeline.release import trust as T

    film = world.root / "line.mp4"  # the line at its own speed, which a source `line:` does not keep
    if not film.exists():
        line = FactoryLine(LineConfig(seed=5, fps=2))
        write_video(film, (line.render(k)[0].image for k in range(120)), 2)
    (folder / "line.yaml").write_text(
        f"sources: [{{uri: '{film}', id: belt, realtime: true}}]\n"
        f"delivery: {{out: '{folder / 'out'}', jsonl: false}}\nmodel: {{threads: 1}}\n"
    )
    text = (
        TEXT.replace("every_s: 0.2", "every_s: 8")
        + f"releases: {world.root / 'releases'}\nfollow: true\npreflight: {str(preflight).lower()}\n"
    )
    (folder / "device.yaml").write_text(text + "limits: {seconds: 0.2, slower: 50, larger: 3}\n")
    T.enrol(folder / "device" / "trust", T.root_of(world.root / "releases"))
    return folder / "device.yaml"


@pytest.mark.slow
def test_a_real_run_gets_a_signed_release_and_returns_from_one_that_crashes(world, tmp_path):
    "`cv-pipeline device run` in a process of its own, a release by TUF from a folder, then a bad one."
    file = device_file(tmp_path, world, preflight=False)
    config = B.load_device(file)
    good = world.release["1.1"]()
    agent = subprocess.Popen([CLI, "device", "run", "--config", str(file)], stderr=subprocess.DEVNULL)
    try:
        state = lambda: read_state(B.model_folder(config))
        until(lambda: state().current == good.digest, 120, agent)
        bad = world.release["1.2"]()
        until(lambda: bad.digest in state().blocked, 120, agent)
        beat = lambda: B.device_status(config)["beat"]
        until(lambda: beat().get("state") == "running" and beat()["cameras"]["up"] == 1, 120, agent)
    finally:
        agent.send_signal(signal.SIGTERM)
        code = agent.wait(60)
    assert code == 0
    assert (state().current, state().trying) == (good.digest, "")
    assert state().blocked[bad.digest] == "the model failed"
    what = [(r["what"], r["digest"][:12]) for r in B.device_status(config)["journal"]]
    assert what[-2:] == [("trying", bad.digest[:12]), ("rolled back", bad.digest[:12])]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["sources"]["belt"]["frames_delivered"] > 0
    assert summary["config"]["model"]["path"].endswith(f"versions/{good.digest[:12]}")


@pytest.mark.slow
def test_the_preflight_of_a_real_device_keeps_a_broken_model_away(world, tmp_path):
    "The same file, tried before the switch: it never becomes the model of the run."
    bad = world.release["1.2"]()
    file = device_file(tmp_path, world, preflight=True)
    file.write_text(file.read_text() + f"program: {write_player(tmp_path)}\n")
    with running(B.load_device(file)) as device:
        until(lambda: bad.digest in device.agent.slots.state.blocked, 120)
        assert "cannot be opened and run" in device.agent.slots.state.blocked[bad.digest]
        assert device.agent.status.restarts == 0
    assert [r["what"] for r in B.device_status(B.load_device(file))["journal"]][0] == "blocked"


def test_orders_by_hand_reach_a_device_that_runs(file, tmp_path):
    config = B.load_device(file)
    for version in ("1.0", "1.1"):
        bundle, digest = mood_bundle(tmp_path, version)
        install_version(B.model_folder(config), bundle, digest)
        with Slots(B.model_folder(config)) as slots:
            slots.begin(digest)
            slots.commit()
            first = slots.state.previous
    from cv_pipeline.edge.agent import give_order

    with running(config) as device:
        until(lambda: device.agent.status.state == "running", 60)
        order = give_order(config.folder, "rollback", why="too slow")
        until(lambda: not order.exists(), 60)
    assert read_state(B.model_folder(config)).current == first
