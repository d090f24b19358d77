"Incidents as states of MQTT, for a real broker."

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

from cv_pipeline.alerts.channels import Notice
from cv_pipeline.alerts.mqtt import Mqtt, messages, topic_part
from cv_pipeline.core.types import ConfigError, MissingExtraError, SinkError
from tests.helpers.services import absent, free_port, require
from tests.helpers.waiting import until

CALL = Notice("key-1", 7, site="Brno", camera="gate", rule="fence", opened=1_780_000_000.0)


@pytest.mark.parametrize("name", ["a/b", "+", "#", "a b", "", "x" * 200, "é", "a\x00b"])
def test_a_part_of_a_topic_is_one_level_without_wildcards(name):
    made = topic_part(name)
    assert made and not set(made) & set("/+# \x00") and len(made) < 60


def test_names_that_differ_have_parts_that_differ():
    names = ["a/b", "a_b", "a+b", "a b"]
    assert len({topic_part(n) for n in names}) == len(names)


def test_a_state_is_on_until_it_is_resolved():
    state = lambda kind: list(messages(Notice("k", 1, kind, camera="gate", rule="fence")))[-1]
    assert [state(k)[1] for k in ("call", "reminder", "resolved")] == ["ON", "ON", "OFF"]
    assert all(state(k)[2] for k in ("call", "resolved"))


def test_home_assistant_finds_the_topics():
    found = {topic: text for topic, text, _ in messages(CALL)}
    about = json.loads(found["homeassistant/binary_sensor/cvp-Brno-gate-fence/config"])
    assert about["state_topic"] in found and about["json_attributes_topic"] in found
    assert about["unique_id"] == "cvp-Brno-gate-fence"


def test_it_can_be_left_unannounced():
    assert all(t.startswith("cv_pipeline/") for t, _, _ in messages(CALL, discovery=None))


def test_plain_text_beyond_this_machine_is_refused():
    with pytest.raises(ConfigError, match="plain text"):
        Mqtt("home", {"kind": "mqtt", "host": "broker.example", "tls": False})


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "paho.mqtt", None)
    monkeypatch.setitem(sys.modules, "paho", None)
    with pytest.raises(MissingExtraError, match=r"cv_pipeline\[alerts\]"):
        Mqtt("home", {"kind": "mqtt", "host": "127.0.0.1", "tls": False})


def outlet(port, **more):
    require("paho.mqtt.client", "paho-mqtt is not installed: pip install 'cv_pipeline[alerts]'")
    given = {"kind": "mqtt", "host": "127.0.0.1", "port": port, "tls": False, "timeout_s": 5}
    return Mqtt("home", {**given, **more})


def test_a_broker_that_is_away_is_a_sentence():
    with pytest.raises(SinkError, match="was not reached: ConnectionRefused"):
        outlet(free_port()).send(CALL)


def test_a_broker_that_hangs_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(SinkError, match="did not respond"):
            outlet(silent.getsockname()[1], timeout_s=0.3).send(CALL)


@contextmanager
def mosquitto(folder, *lines):
    "A real Mosquitto with these lines of configuration; its port."
    program = shutil.which("mosquitto", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
    if program is None:
        absent("no broker of MQTT here: apt install mosquitto")
    port, log = free_port(), folder / "mosquitto.txt"
    config = folder / "mosquitto.conf"
    user = (
        ["user root"] if os.geteuid() == 0 else []
    )  # else it gives up its rights, and cannot read our files
    config.write_text("\n".join([f"listener {port} 127.0.0.1", "persistence false", *user, *lines, ""]))
    with open(log, "wb") as out:
        process = subprocess.Popen([program, "-v", "-c", config], stdout=out, stderr=out)
    try:
        until(lambda: b" running" in log.read_bytes(), 60, process)
        yield port
    finally:
        process.kill()
        process.wait(60)


@pytest.fixture
def broker(tmp_path):
    with mosquitto(tmp_path, "allow_anonymous true") as port:
        yield port


@contextmanager
def reading(port, **how):
    "What a program that subscribes now gets: topic → (payload, whether it was kept)."
    from paho.mqtt import client

    got = {}
    reader = client.Client(client.CallbackAPIVersion.VERSION2)
    if "user" in how:
        reader.username_pw_set(how["user"], how["password"])
    reader.on_message = lambda c, u, m: got.update({m.topic: (m.payload.decode(), m.retain)})
    reader.connect("127.0.0.1", port)
    reader.subscribe("#", qos=1)
    reader.loop_start()
    try:
        yield got
    finally:
        reader.loop_stop()
        reader.disconnect()


@pytest.mark.service
def test_a_program_that_connects_later_finds_state_and_call(broker):
    outlet(broker).send(CALL)
    with reading(broker) as got:
        until(lambda: len(got) >= 3, 30)
        assert got["cv_pipeline/Brno/gate/fence/state"] == ("ON", True)
        assert json.loads(got["cv_pipeline/Brno/gate/fence/call"][0])["key"] == "key-1"
        outlet(broker).send(Notice("key-2", 7, "resolved", site="Brno", camera="gate", rule="fence"))
        until(lambda: got["cv_pipeline/Brno/gate/fence/state"][0] == "OFF", 30)


@pytest.mark.service
def test_home_assistant_finds_the_device_by_itself(broker):
    outlet(broker).send(CALL)
    with reading(broker) as got:
        until(lambda: any(topic.startswith("homeassistant/") for topic in got), 30)
    (topic,) = (t for t in got if t.startswith("homeassistant/binary_sensor/"))
    about = json.loads(got[topic][0])
    assert about["state_topic"] == "cv_pipeline/Brno/gate/fence/state" and got[topic][1]


@pytest.fixture
def guarded(tmp_path):
    "A broker that asks for a name and a password, over TLS with a certificate of its own authority."
    trustme = require("trustme")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    if shutil.which("mosquitto_passwd") is None:
        absent("no mosquitto_passwd here: apt install mosquitto")
    words = ["mosquitto_passwd", "-b", "-c", tmp_path / "people", "line", "open sesame"]
    subprocess.run(words, check=True, timeout=30)
    lines = [f"password_file {tmp_path}/people", "allow_anonymous false"]
    lines += [f"certfile {tmp_path}/cert.pem", f"keyfile {tmp_path}/key.pem"]
    with mosquitto(tmp_path, *lines) as port:
        yield port, tmp_path / "ca.pem", tmp_path / "mosquitto.txt"


@pytest.mark.service
def test_over_tls_with_name_and_password(guarded, monkeypatch):
    port, ca, log = guarded
    monkeypatch.setenv("BROKER_PASSWORD", "open sesame")
    outlet(port, tls=True, ca=str(ca), user="line", password_env="BROKER_PASSWORD").send(CALL)
    until(lambda: b"PUBLISH" in log.read_bytes(), 30)
    assert log.read_bytes().count(b"Received PUBLISH") >= 3


@pytest.mark.service
@pytest.mark.parametrize(
    "more, words",
    [
        ({"password_env": "WRONG_PASSWORD", "user": "line"}, "[Nn]ot authori"),
        ({}, "[Nn]ot authori"),
        ({"ca": None, "user": "line", "password_env": "BROKER_PASSWORD"}, "certificate"),
    ],
)
def test_a_broker_that_refuses_says_why(guarded, monkeypatch, more, words):
    port, ca, _ = guarded
    monkeypatch.setenv("BROKER_PASSWORD", "open sesame")
    monkeypatch.setenv("WRONG_PASSWORD", "open barley")
    with pytest.raises(SinkError, match=words):
        outlet(port, **{"tls": True, "ca": str(ca), **more}).send(CALL)
