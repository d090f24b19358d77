"""The name of a site: in the log, the events, the metrics, the rows of a device and the summary; old files
have none."""

import json
import socket
from urllib.request import urlopen

import pyarrow.parquet as pq
import pytest

from cv_pipeline.core.config import load_config, site_of
from cv_pipeline.core.types import ConfigError
from cv_pipeline.monitoring.prediction_log import read_log
from cv_pipeline.service.assembly import run_config
from cv_pipeline.video.events import read_events

LINE = "line:width=160,height=120,frames=24"
ZONE = {"name": "belt", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run at a site: its folder, and its metrics while it lasted."
    out, page = tmp_path_factory.mktemp("run"), []
    settings = {"sources": [LINE], "delivery.out": str(out), "health.port": 0, "model.threads": 1}
    settings |= {"site": "Werk Süd", "telemetry": True, "events.zones": [ZONE]}

    def ready(url, pipeline):
        page.append(urlopen(f"{url}/metrics", timeout=20).read().decode())

    run_config(load_config(None, settings), on_ready=ready)
    return out, page[0]


def test_every_row_of_the_log_names_the_site(run):
    log = read_log(run[0] / "log")
    assert log.sites == ("Werk Süd",) and not log.notes
    for part in (run[0] / "log").glob("*/date=*/camera=*/*.parquet"):
        assert set(pq.read_table(part)["site"].to_pylist()) == {"Werk Süd"}


def test_every_event_names_the_site(run):
    assert set(read_events(run[0])["site"].to_pylist()) == {"Werk Süd"}


def test_every_metric_of_a_pipeline_has_the_site_as_a_label(run):
    lines = [line for line in run[1].splitlines() if line.startswith("cv_pipeline_")]
    assert len(lines) > 30 and all('site="Werk Süd"' in line for line in lines)


def test_the_summary_names_the_site(run):
    assert json.loads((run[0] / "summary.json").read_text())["site"] == "Werk Süd"


def test_a_log_from_before_there_were_sites_is_read_as_ever(run, tmp_path):
    for part in (run[0] / "log").glob("*/date=*/camera=*/*.parquet"):
        old = tmp_path / part.relative_to(run[0] / "log")
        old.parent.mkdir(parents=True)
        pq.write_table(pq.read_table(part).drop_columns(["site"]), old)
    before, now = read_log(tmp_path), read_log(run[0] / "log")
    assert before.sites == () and not before.notes and len(before) == len(now)


def test_without_a_name_it_is_that_of_the_host():
    assert site_of(load_config(None, {"sources": ["line:"]})) == socket.gethostname()


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_a_name_is_short_and_not_empty(name):
    with pytest.raises(ConfigError):
        load_config(None, {"sources": ["line:"], "site": name})
