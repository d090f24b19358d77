"`cv-pipeline sites`: collected, shown and served, as a person types it."

import base64
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from typer.testing import CliRunner

from cv_pipeline.alerts.incidents import IncidentBook
from cv_pipeline.alerts.sites import example_sites
from cv_pipeline.commands import sites
from cv_pipeline.commands.main import app
from cv_pipeline.core.types import ConfigError
from cv_pipeline.privacy.access import read_access
from tests.helpers.services import require

TOKEN = "0123456789abcdef"


def run(*words):
    found = CliRunner().invoke(app, ["sites", *map(str, words)])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    return found.exit_code, found.output


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    place = tmp_path_factory.mktemp("store")
    example_sites(place, ("Aachen", "Brno", "Como", "Deal"), cameras=2, days=2)
    return place


def test_collect_copies_once_and_page_names_the_worst_first(store, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(sites, "records", lambda title, rows: shown.extend(rows))
    assert run("collect", store, "--sites", tmp_path / "all")[0] == 0
    code, text = run("collect", store, "--sites", tmp_path / "all")
    assert code == 0 and "copied 0 of" in text
    code, _ = run("page", "--sites", tmp_path / "all", "--out", tmp_path / "p.html")
    assert code == 1, "one of them is stale"
    assert shown[0]["site"] == "Deal" and shown[0]["state"] == "stale"
    assert "Aachen" in (tmp_path / "p.html").read_text()


def test_watch_takes_silent_sites_over_and_nothing_twice(store, tmp_path):
    (tmp_path / "centre.yaml").write_text(
        "channels: {desk: {kind: webhook, url: 'http://127.0.0.1:9/'}}\n"
        "levels: [{after_s: 0, channels: [desk], repeat_s: 60}]\n"
    )
    place = [
        "--book",
        tmp_path / "c.sqlite",
        "--policy",
        tmp_path / "centre.yaml",
        "--sites",
        tmp_path / "all",
    ]
    words = ["watch", store, *place, "--silent", 2, "--once"]
    code, text = run(*words)
    assert code == 0 and "Deal is silent: the centre calls" in " ".join(text.split())
    code, text = run(*words)
    assert code == 0 and "silent" not in text
    with IncidentBook(tmp_path / "c.sqlite") as book:
        assert [e["site"] for e in book.query("SELECT site FROM events WHERE kind = 'site_silent'")] == [
            "Deal"
        ]


def test_a_store_that_cannot_be_read_is_1_and_the_others_are_there(store, tmp_path):
    require("boto3")
    names = [store, "s3://nowhere/sites", "--endpoint", "http://127.0.0.1:9"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "x")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        code, text = run("collect", *names, "--sites", tmp_path / "all")
    assert code == 1 and "not read" in text
    assert json.loads(run("page", "--sites", tmp_path / "all", "--json")[1])[0]["name"] == "Deal"


def test_an_address_of_another_kind_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="not a store of sites"):
        run("collect", "ftp://x", "--sites", tmp_path)


def test_serve_refuses_to_begin_without_a_token_where_others_can_read(store, monkeypatch):
    with pytest.raises(ConfigError, match="no token"):
        run("serve", "--sites", store, "--host", "0.0.0.0", "--port", "0")
    monkeypatch.delenv("SITES_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="SITES_TOKEN is not set"):
        run("serve", "--sites", store, "--token-env", "SITES_TOKEN")


@pytest.mark.slow
def test_a_served_page_asks_for_the_token_notes_who_reads_and_ends_in_order(store, tmp_path):
    require("starlette")
    log = tmp_path / "access.jsonl"
    more = {"SITES_TOKEN": TOKEN, "CV_PIPELINE_ACCESS_LOG": str(log), "COLUMNS": "200", "NO_COLOR": "1"}
    words = ["serve", "--sites", str(store), "--port", "0", "--token-env", "SITES_TOKEN"]
    command = [sys.executable, "-c", "from cv_pipeline.commands.main import main; main()", "sites", *words]
    process = subprocess.Popen(command, env={**os.environ, **more}, stderr=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://[\d.:]+", process.stderr.readline())[0]
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url, timeout=30)
        secret = base64.b64encode(f"anna:{TOKEN}".encode()).decode()
        asked = urllib.request.Request(url, headers={"Authorization": f"Basic {secret}"})
        page = urllib.request.urlopen(asked, timeout=30).read().decode()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, 143)
    finally:
        process.kill()
        process.stderr.close()
    assert refused.value.code == 401 and "Aachen" in page
    assert [(row.what, "anna" in row.why) for row in read_access(log)] == [("sites page", True)]
