"""Context models: verdicts, rubbish, deadlines, keys, covered pictures."""

import json
import threading
from dataclasses import replace

import pytest

from cv_pipeline.apps.context import Context, ContextReader, read_verdict
from cv_pipeline.core.http_server import Answer, HttpServer
from cv_pipeline.core.types import ConfigError, DataError
from tests.helpers.scenes import scene

CHAT = "http://127.0.0.1:{}/v1/chat/completions"


def context(port=9, **more):
    return Context(
        CHAT.format(port), "vlm", "Is it forbidden?", **{"timeout_s": 20.0, "cover": False, **more}
    )


def reply(text):
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        reply("yes"),
        reply('{"verdict": "maybe"}'),
        reply('{"verdict": ["allowed"]}'),
        reply("{"),
        b'{"choices": []}',
        b'{"choices": [{"message": null}]}',
        b"\xff\xfe",
    ],
)
def test_rubbish_of_a_context_model_is_no_answer(body):
    with pytest.raises(DataError):
        read_verdict(body)
    assert ContextReader(context(), lambda *a: body)(scene(0))["score"] is None


@pytest.mark.parametrize("verdict, score", [("allowed", 0.0), ("unsure", 0.5), ("forbidden", 1.0)])
def test_a_verdict_inside_of_other_text(verdict, score):
    found = read_verdict(reply(f'Well:\n```json\n{{"verdict": "{verdict}", "reason": "so"}}\n```'))
    assert found == {"score": score, "note": "so"}


def test_a_late_context_model_is_no_answer_and_requests_do_not_pile_up():
    free, asked = threading.Event(), []

    def send(*a):
        asked.append(a)
        free.wait(30)
        return b""

    ask = ContextReader(context(timeout_s=0.02), send)
    found = [ask(scene(0)) for _ in range(7)]
    free.set()
    assert {f["score"] for f in found} == {None} and len(asked) <= 4


def test_a_context_model_over_http_gets_the_picture_and_the_key(monkeypatch):
    monkeypatch.setenv("KEY_OF_TEST", "k-123")
    seen = []

    class Sent:
        def __call__(self, url, headers, body, timeout_s):
            seen.append((url, headers, json.loads(body)))
            return reply('{"verdict": "allowed"}')

    assert ContextReader(context(key_env="KEY_OF_TEST"), Sent())(scene(0))["score"] == 0.0
    [(url, headers, body)] = seen
    assert headers["Authorization"] == "Bearer k-123" and "k-123" not in json.dumps(body)
    assert body["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,")


def test_an_address_where_no_one_listens_is_no_answer():
    with HttpServer({}, port=0, name="silent") as server:
        port = int(server.url.rsplit(":", 1)[1])
    assert "no answer" in ContextReader(context(port))(scene(0))["note"]


def test_an_address_that_answers_something_else_is_no_answer():
    with HttpServer({"/": lambda: Answer(200, "text/plain", b"hello")}, port=0, name="other") as server:
        assert ContextReader(context(int(server.url.rsplit(":", 1)[1])))(scene(0))["score"] is None


def test_a_picture_that_cannot_be_covered_is_not_sent():
    sent = []

    def refuses(image):
        raise DataError("no finder", "cover")

    found = ContextReader(context(), lambda *a: sent.append(a), refuses)(scene(0))
    assert found["score"] is None and not sent


@pytest.mark.parametrize(
    "how, what",
    [
        ({"url": "file:///etc/passwd"}, "address"),
        ({"url": "http://a:b@c/"}, "password"),
        ({"prompt": " "}, "empty"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"key_env": "NOT_SET_X"}, "NOT_SET_X"),
    ],
)
def test_bad_settings_of_a_context_model(how, what):
    with pytest.raises(ConfigError, match=what):
        replace(context(), **how)
