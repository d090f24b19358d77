"`cv-pipeline alerts` as a user meets it: the daemon as a process, answers, silences, and what is refused."

import json
import re
import signal
import subprocess
import threading
import time

import pytest
from typer.testing import CliRunner

from cv_pipeline.alerts.daemon import policy_of
from cv_pipeline.alerts.incidents import Happening, IncidentBook, fire, incidents, ingest, open_silences, take
from cv_pipeline.alerts.policy import Subject, read_policy
from cv_pipeline.commands.main import app
from cv_pipeline.core.http_server import Answer
from cv_pipeline.core.types import CVPipelineError
from cv_pipeline.edge.forward import InboxServer, Link, LinkSettings
from tests.helpers.cli import CLI, hears_ctrl_c
from tests.helpers.waiting import until

PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
POLICY = """
channels: {desk: {kind: webhook, url: "URL/hook", timeout_s: 5}}
levels:
  - {after_s: 0, channels: [desk]}
  - {after_s: 600, channels: [desk], severity: critical, repeat_s: 900}
"""


def ask(*words):
    "Exit code (that of the error, if there is one) and all text."
    done = CliRunner().invoke(app, list(map(str, words)), env=PLAIN)
    if isinstance(done.exception, CVPipelineError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, " ".join(done.output.split())


class Receiver:
    def __init__(self):
        self.got = []
        self.server = InboxServer(self.answer)

    def answer(self, request):
        self.got.append(json.loads(request.body))
        return Answer(204, "text/plain", b"")


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.server.close()


@pytest.fixture
def place(tmp_path, receiver):
    "A policy, and a book with one incident."
    (tmp_path / "policy.yaml").write_text(POLICY.replace("URL", receiver.server.url))
    policy = read_policy(tmp_path / "policy.yaml")
    with IncidentBook(tmp_path / "book.sqlite") as book:
        take(book, [Happening("e1", Subject("brno", "gate", "fence"), "enter", time.time(), 1, "a person")])
        ingest(book, policy)
        fire(book, policy)
    return tmp_path


def state(place):
    with IncidentBook(place / "book.sqlite") as book:
        return book.value("SELECT state FROM incidents WHERE id = 1")


def test_a_policy_is_checked_and_shown(place):
    code, text = ask("alerts", "policy", "check", place / "policy.yaml")
    assert code == 0 and "good" in text


def test_a_wrong_policy_is_refused_with_every_mistake(place):
    (place / "bad.yaml").write_text(POLICY.replace("[desk]", "[dsk]"))
    code, text = ask("alerts", "policy", "check", place / "bad.yaml")
    assert code == 2 and text.count("did you mean 'desk'") == 2


def test_a_policy_without_its_secret_is_refused_unless_channels_are_left_out(place):
    file = place / "secret.yaml"
    file.write_text(POLICY.replace('url: "URL/hook"', "url_env: NOWHERE"))
    assert "NOWHERE is not set" in ask("alerts", "policy", "check", file)[1]
    assert ask("alerts", "policy", "check", file, "--no-channels")[0] == 0


def test_incidents_as_json_with_their_answers(place):
    book, policy = place / "book.sqlite", place / "policy.yaml"
    code, text = ask(
        "alerts", "ack", 1, "--who", "Petra", "--note", "on my way", "--book", book, "--policy", policy
    )
    assert code == 0 and "acknowledged until" in text
    (row,) = json.loads(ask("alerts", "list", "--book", book, "--json")[1])
    assert (row["state"], row["ack"]["who"], row["ack"]["note"]) == ("acknowledged", "Petra", "on my way")
    assert ask("alerts", "resolve", 1, "--who", "Petra", "--book", book, "--policy", policy)[0] == 0
    assert json.loads(ask("alerts", "list", "--book", book, "--json")[1]) == []
    closed = json.loads(ask("alerts", "list", "--book", book, "--json", "--closed")[1])
    assert [r["state"] for r in closed] == ["resolved"]
    one = json.loads(ask("alerts", "list", "--book", book, "--json", "--incident", 1)[1])
    assert [h["what"] for h in one["history"]] == ["opened", "level 1", "acknowledged", "resolved"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["list", "--book", "nowhere.sqlite"], "there is no incident book"),
        (["ack", "1", "--book", "nowhere.sqlite"], "there is no incident book"),
        (["ack", "7", "--book", "BOOK", "--policy", "POLICY"], "incident 7 is unknown"),
        (["ack", "1", "--book", "BOOK"], "give --policy"),
        (["ack", "1", "--who", " ", "--book", "BOOK", "--policy", "POLICY"], "needs a name"),
        (["silence", "--book", "BOOK"], "needs a reason"),
        (["silence", "--book", "nowhere.sqlite", "--why", "x"], "there is no incident book"),
        (["silence", "--book", "BOOK", "--end", "3"], "unknown or over"),
        (["test", "--book", "BOOK", "--policy", "POLICY", "--channels", "dsk"], "unknown channel 'dsk'"),
        (["serve", "--book", "BOOK", "--policy", "POLICY", "--host", "0.0.0.0"], "there is no token"),
    ],
)
def test_what_is_refused_is_a_sentence(place, words, text):
    names = {"BOOK": place / "book.sqlite", "POLICY": place / "policy.yaml"}
    code, shown = ask("alerts", *(names.get(w, w) for w in words))
    assert code in (2, 5) and text in shown
    assert state(place) == "firing"


def test_a_silence_is_set_listed_and_ended(place):
    book = place / "book.sqlite"
    words = ("--cameras", "yard", "--hours", 2, "--why", "stocktaking", "--who", "Petra")
    assert ask("alerts", "silence", "--book", book, *words)[0] == 0
    with IncidentBook(book) as opened:
        (row,) = open_silences(opened)
    assert (row["cameras"], row["why"], row["who"]) == ("yard", "stocktaking", "Petra")
    assert ask("alerts", "silence", "--book", book, "--list")[0] == 0
    assert ask("alerts", "silence", "--book", book, "--end", row["number"])[0] == 0


def test_a_receiver_that_takes_calls_and_drops_them_is_found(place, receiver):
    words = ("--book", place / "book.sqlite", "--policy", place / "policy.yaml", "--wait-s", 1)
    code, text = ask("alerts", "test", *words)
    assert code == 5 and "no person has answered" in text
    assert [c["kind"] for c in receiver.got if c["camera"] == "test"][0] == "test"  # it was taken


def test_a_test_that_is_answered_by_its_link(place, receiver):
    def person():
        until(lambda: [c for c in receiver.got if c["kind"] == "test"], 60)
        link = next(c["link"] for c in receiver.got if c["kind"] == "test")
        page = Link(LinkSettings(link.rpartition("/a/")[0]))
        page.ask("POST", "/a/" + link.rpartition("/")[2], b"who=Petra", {})
        page.close()

    thread = threading.Thread(target=person)
    thread.start()
    words = ("--book", place / "book.sqlite", "--policy", place / "policy.yaml", "--wait-s", 60)
    code, text = ask("alerts", "test", *words)
    thread.join()
    assert code == 0 and "answered by Petra" in text


@pytest.mark.slow
def test_the_daemon_as_a_process_ends_in_order_and_is_alone(place, receiver):
    words = [
        CLI,
        "alerts",
        "serve",
        "--book",
        str(place / "book.sqlite"),
        "--policy",
        str(place / "policy.yaml"),
    ]
    process = subprocess.Popen(
        [*words, "--port", "0"], stderr=subprocess.PIPE, text=True, preexec_fn=hears_ctrl_c
    )
    try:
        url = re.search(r"http://[\d.:]+", process.stderr.readline())[0]
        until(lambda: receiver.got, 60, process)
        again = subprocess.run([*words, "--port", "0"], capture_output=True, text=True, timeout=60)
        assert again.returncode == 2 and "another daemon serves this file" in " ".join(again.stderr.split())
        page = Link(LinkSettings(url))
        assert page.ask("GET", "/healthz", b"", {})[0].status == 200
        page.close()
        assert ask("alerts", "ack", 1, "--who", "Petra", "--book", place / "book.sqlite")[0] == 0
        policy = place / "policy.yaml"
        policy.write_text(policy.read_text() + "ack_hours: 9\n")
        process.send_signal(signal.SIGHUP)
        with IncidentBook(place / "book.sqlite") as book:
            until(lambda: policy_of(book).ack_hours == 9, 60, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "ended" in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()
    with IncidentBook(place / "book.sqlite") as book:
        assert incidents(book)[0]["ack"]["who"] == "Petra"
