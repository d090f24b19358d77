"`cv-pipeline health`, and who may ask a run's health endpoint."

import json
import threading
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from typer.testing import CliRunner

from cv_pipeline.commands.main import app
from cv_pipeline.core.config import HealthConfig, load_config
from cv_pipeline.core.http_server import Answer, Guard, HttpServer
from cv_pipeline.core.types import ConfigError
from cv_pipeline.service.assembly import health_guard, run_config

TOKEN = "0123456789abcdef"


def asked(*words):
    "Exit code and text of the command."
    said = CliRunner().invoke(app, ["health", *map(str, words)])
    if said.exception is not None and not isinstance(said.exception, SystemExit):
        raise said.exception
    return said.exit_code, said.output


def server(status: int, guard: Guard = Guard()) -> HttpServer:
    answer = Answer(status, "application/json", b'{"status": "as it is"}')
    return HttpServer({"/readyz": lambda: answer, "/healthz": lambda: answer}, 0, guard=guard)


@pytest.mark.parametrize("alive", [(), ("--alive",)])
def test_exit_code_0_when_it_is_well_and_1_when_not(alive):
    for status, code in ((200, 0), (503, 1)):
        with server(status) as run:
            got, text = asked(run.url, *alive)
        assert got == code and "as it is" in text


def test_the_token_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("EDGE_TOKEN", TOKEN)
    with server(200, Guard(TOKEN)) as run:
        assert asked(run.url, "--token-env", "EDGE_TOKEN")[0] == 0
        code, text = asked(run.url)
    assert code == 1 and "401" in text
    monkeypatch.delenv("EDGE_TOKEN")
    with pytest.raises(ConfigError, match="EDGE_TOKEN is not set"):
        asked("http://127.0.0.1:1", "--token-env", "EDGE_TOKEN")


def test_nobody_there_is_1_and_no_address_is_an_error():
    code, text = asked("http://127.0.0.1:1")
    assert code == 1 and "no answer" in text
    with pytest.raises(ConfigError, match="not an address"):
        asked("ftp://user:secret@edge")


def test_a_run_asks_for_the_token_of_its_configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGE_TOKEN", TOKEN)
    settings = {
        "sources": ["line:width=160,height=120,frames=20"],
        "delivery.out": str(tmp_path),
        "health.port": 0,
        "health.host": "0.0.0.0",
        "health.token_env": "EDGE_TOKEN",
        "model.threads": 1,
    }
    heard = {}

    def ready(url, pipeline):
        page = f"{url.replace('0.0.0.0', '127.0.0.1')}/healthz"
        headers = {"Authorization": f"Bearer {TOKEN}"}
        heard["with"] = json.load(urlopen(Request(page, headers=headers), timeout=10))["status"]
        with pytest.raises(HTTPError) as refused:
            urlopen(page, timeout=10)
        heard["without"] = refused.value.code

    run_config(load_config(None, settings), on_ready=ready)
    assert heard == {"with": "alive", "without": 401}
    assert TOKEN not in (tmp_path / "summary.json").read_text()
    assert not [t for t in threading.enumerate() if t.name.startswith("health")]


def test_a_token_that_is_not_there_is_said_before_the_run(monkeypatch):
    monkeypatch.delenv("NO_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="NO_TOKEN is not set"):
        health_guard(HealthConfig(port=0, token_env="NO_TOKEN"))
    assert health_guard(HealthConfig(port=0, insecure=True)) == Guard(insecure=True)
