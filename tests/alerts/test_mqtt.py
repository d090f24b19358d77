"Incidents as states of MQTT, for a real broker."

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

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


BROKER = """
import asyncio, sys
from amqtt.broker import Broker
async def main(port):
    plugins = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}
    listeners = {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}}
    broker = Broker({"listeners": listeners, "plugins": plugins})
    await broker.start()
    print("ready", flush=True)
    await asyncio.Event().wait()
asyncio.run(main(int(sys.argv[1])))
"""


@pytest.fixture
def broker(tmp_path):
    "A real broker in a process of its own: amqtt, in an environment of its own."
    python = Path(os.environ.get("CV_PIPELINE_MQTT", sys.prefix)) / "mqtt" / "bin" / "python"
    if not python.exists():
        absent(f"no broker of MQTT here: amqtt in {python.parents[1]} (see the Makefile)")
    port = free_port()
    out = open(tmp_path / "broker.txt", "wb")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = subprocess.Popen([python, "-c", BROKER, str(port)], stdout=out, stderr=out, env=env)
    until(lambda: b"ready" in (tmp_path / "broker.txt").read_bytes(), 60, process)
    yield port
    process.kill()
    process.wait()
    out.close()


@pytest.mark.service
def test_a_program_that_connects_later_finds_state_and_call(broker):
    outlet(broker).send(CALL)
    from paho.mqtt import client

    got = {}
    reader = client.Client(client.CallbackAPIVersion.VERSION2)
    reader.on_message = lambda c, u, m: got.update({m.topic: (m.payload.decode(), m.retain)})
    reader.connect("127.0.0.1", broker)
    reader.subscribe("#", qos=1)
    reader.loop_start()
    until(lambda: len(got) >= 3, 30)
    assert got["cv_pipeline/Brno/gate/fence/state"] == ("ON", True)
    assert json.loads(got["cv_pipeline/Brno/gate/fence/call"][0])["key"] == "key-1"
    outlet(broker).send(Notice("key-2", 7, "resolved", site="Brno", camera="gate", rule="fence"))
    until(lambda: got["cv_pipeline/Brno/gate/fence/state"][0] == "OFF", 30)
    reader.loop_stop()
    reader.disconnect()
