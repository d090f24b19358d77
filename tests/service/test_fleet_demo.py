"""The demo of a fleet: every number on its page."""

import html
import json
import re
import signal

import pytest

from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.edge.central import Heard
from cv_pipeline.edge.devices import read_device
from cv_pipeline.service.fleet_demo import LIMITS, PLANTED, Relay, Story, run_fleet_demo, until


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    "The demo, run once: what happened, the last count, the page."
    before = signal.getsignal(signal.SIGINT)
    out = tmp_path_factory.mktemp("fleet") / "demo"
    story, counts, page = run_fleet_demo(out, print)
    assert signal.getsignal(signal.SIGINT) is before
    return story, counts, page


def value(demo, name):
    return demo[0].value(name)


pytestmark = pytest.mark.slow


def test_a_good_model_goes_through_the_shadow_and_a_canary_to_all_devices(demo):
    assert value(demo, "shadow") == "PROMOTE"
    assert value(demo, "canary") in ("box-1", "box-2", "box-3")
    assert value(demo, "trial") == "promoted" and value(demo, "promoted") == "promoted"
    text = next(f["text"] for f in demo[0].facts if f["name"] == "promoted")
    assert "3 of 3 devices run it" in text


def test_the_evidence_is_as_long_as_the_policy_asks_for(demo):
    text = next(f["text"] for f in demo[0].facts if f["name"] == "shadow")
    assert int(re.search(r"(\d+) blocks of evidence", text)[1]) >= 36  # ln(1 / .05) / ln(1 / (1 − .08))


def test_a_changed_byte_is_refused_by_its_signature(demo):
    assert value(demo, "changed").startswith(
        "update: refused — changed: a file is not the one that was signed"
    )


def test_a_model_that_cannot_be_opened_is_rolled_back_and_blocked(demo):
    steps = value(demo, "crash")
    assert steps[0] == "trying" and "rolled back" in steps and "committed" not in steps


def test_a_worse_threshold_is_rolled_back_by_statistics(demo):
    assert value(demo, "worse") == "ROLLBACK"
    text = next(f["text"] for f in demo[0].facts if f["name"] == "worse")
    assert re.search(r"ROLLBACK, (lost|count|class|disagree)", text) and "proven beyond" in text


def test_a_link_that_was_cut_and_a_killed_device_come_back(demo):
    assert value(demo, "restarted") is True and value(demo, "healed") >= 0
    assert {value(demo, "cut"), value(demo, "killed")} <= {"box-1", "box-2", "box-3"}
    assert value(demo, "cut") != value(demo, "killed")


def test_the_counts_at_the_centre_are_those_of_the_devices(demo):
    counts = demo[1]
    assert len(counts) == 6 and all(c["numbered"] == c["at the centre"] for c in counts), counts
    assert {c["twice"] for c in counts} == {0, None}
    assert all(c["numbered"] > 20 for c in counts)
    assert sum(c["kill -9"] > 0 for c in counts) >= 4  # two devices, two outboxes each


def test_every_number_of_the_page_is_one_of_the_story(demo):
    story, counts, page = demo
    text = html.unescape(page.read_text())
    for fact in story.facts:
        assert f"{round(fact['s'])} s" in text and fact["text"] in text
    for row in counts:
        assert all(f"<td>{'–' if v is None else v}</td>" in text for v in row.values())
    assert (
        f"{sum(c['at the centre'] for c in counts):,} rows of three devices reached the centre; 0 are missing"
        in text
    )
    kept = json.loads((page.parent / "story.json").read_text())
    assert kept["counts"] == counts and len(kept["facts"]) == len(story.facts)


def test_the_fleet_page_names_the_devices_and_what_happened_to_them(demo):
    page = (demo[2].parent / "fleet.html").read_text()
    assert all(name in page for name in ("box-1", "box-2", "box-3"))


def test_the_releases_are_the_planted_ones(demo):
    assert value(demo, "releases") == len(PLANTED) == 5
    names = {p.name for p in (demo[2].parent / "registry" / "versions" / "line").iterdir()}
    assert names == set(PLANTED)


def test_a_folder_that_is_not_empty_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(ConfigError, match="not an empty folder"):
        run_fleet_demo(tmp_path)


def test_waiting_ends_with_what_was_waited_for():
    with pytest.raises(DataError, match="for: rain; instead: box-1 disk: 4.9% free"):
        until("rain", lambda: False, 0.1, lambda: "box-1 disk: 4.9% free")
    assert until("sun", lambda: "sun", 0.1) == "sun"


def test_the_disk_of_this_machine_may_be_nearly_full():
    now = 1.8e9
    for free in (0.04, 1e-4):  # three devices of the demo share it: it is not what the demo is about
        heard = Heard(now, {"state": "running", "at": now, "hardware": {"disk_free": free}})
        assert read_device("box-1", "hall", heard, now, limits=LIMITS).state == "ok"
        assert read_device("box-1", "hall", heard, now).state == "disk"


def test_a_relay_to_a_server_that_is_gone_refuses():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    relay = Relay(port)
    with socket.create_connection(("127.0.0.1", int(relay.url.rpartition(":")[2])), 5) as line:
        line.settimeout(5)
        assert line.recv(10) == b""
    relay.close()


def test_a_story_keeps_the_last_value():
    told = []
    story = Story(told.append)
    story.note("a", "first", 1)
    story.note("a", "second", 2)
    assert story.value("a") == 2 and story.value("b") is None and "second" in told[1]
