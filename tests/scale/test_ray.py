"""The Ray engine: over a stand-in that loses actors, and over a real Ray where it is installed (own
environment: `pip install ray[default]`)."""

import os
import sys
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
import yaml

from cv_pipeline.core.config import load_config
from cv_pipeline.core.results import read_results
from cv_pipeline.core.types import BackendError, ConfigError, MissingExtraError
from cv_pipeline.core.viz import jpeg
from cv_pipeline.scale.batch import BatchSettings, Ledger, LocalEngine, run_batch
from cv_pipeline.scale.ray import (
    JobSettings,
    RayEngine,
    RaySettings,
    advice,
    environment_of,
    ray_cluster,
    work_left_s,
    write_jobs,
)
from cv_pipeline.scale.units import find_work, part_path, plan_units, run_unit
from cv_pipeline.service.assembly import UnitOpener, batch_config, run_config
from cv_pipeline.synthetic.line import open_line
from tests.helpers.batch_work import PlayedWork, archive
from tests.helpers.schemas import closed
from tests.helpers.services import require

COMMAND = ("batch", "/data/my photos", "--out", "/data/done")


class Stage:
    "What the engine calls of Ray, in this process; actors die before or after their unit is on disk."

    class exceptions:
        class RayError(Exception):
            pass

    def __init__(self, deaths=()):
        self.deaths, self.given, self.killed, self.started = list(deaths), [], 0, 0

    def remote(self, **how):
        return lambda cls: _Kind(self, cls)

    def wait(self, refs, num_returns):
        return refs[:num_returns], refs[num_returns:]

    def get(self, ref):
        station, unit = ref
        name = os.path.basename(unit.paths[0])
        for when in ("before", "after"):
            if (name, when) in self.deaths:
                self.deaths.remove((name, when))
                if when == "after":
                    station.do(unit)
                raise self.exceptions.RayError(f"the node is gone {when} {name}")
        return station.do(unit)

    def kill(self, actor):
        self.killed += 1

    @contextmanager
    def cluster(self, settings):
        self.started += 1
        yield self


class _Kind:
    def __init__(self, stage, cls):
        self.stage, self.cls = stage, cls

    def remote(self, opener, folder):
        return _Actor(self.stage, self.cls(opener, folder))


class _Actor:
    def __init__(self, stage, station):
        self.stage, self.station, self.do = stage, station, self

    def remote(self, unit):
        self.stage.given.append(unit)
        return self.station, unit


@pytest.fixture
def units(tmp_path):
    return plan_units(find_work([archive(tmp_path / "photos", [f"{k}.jpg" for k in range(12)])]), "", 2)


def as_local(units, out):
    for unit in units:
        run_unit(unit, out, PlayedWork().work)
    run_batch(units, out, PlayedWork(), LocalEngine(BatchSettings(processes=1)))
    return (out / "results.parquet").read_bytes()


@pytest.mark.slow
def test_actors_that_die_lose_and_double_nothing(units, tmp_path):
    stage = Stage([("4.jpg", "before"), ("6.jpg", "after"), ("4.jpg", "after")])
    engine = RayEngine(RaySettings(), cluster=stage.cluster)
    report = run_batch(units, tmp_path / "out", PlayedWork(), engine)
    assert (report.done, report.left, engine.deaths, stage.killed) == (6, 0, 3, 3)
    assert (tmp_path / "out" / "results.parquet").read_bytes() == as_local(units, tmp_path / "calm")


@pytest.mark.slow
def test_a_unit_that_kills_every_actor_is_set_aside(units, tmp_path):
    stage = Stage([("4.jpg", "before")] * 3)
    report = run_batch(units, tmp_path / "out", PlayedWork(), RayEngine(RaySettings(), cluster=stage.cluster))
    assert (report.done, len(report.set_aside)) == (5, 1)
    assert "the actor died while it worked on this unit" in report.set_aside[0]["error"]


@pytest.mark.slow
def test_little_work_is_advised_to_stay_and_one_unit_needs_no_cluster(units, tmp_path):
    stage, heard = Stage(), []
    engine = RayEngine(RaySettings(), heard.append, stage.cluster)
    engine(Ledger(units[:1], BatchSettings(), lambda o: None), tmp_path, PlayedWork())
    assert (stage.started, heard) == (0, [])
    engine(Ledger(units[1:3], BatchSettings(), lambda o: None), tmp_path, PlayedWork())
    assert stage.started == 1 and len(stage.given) == 1
    assert "stay in one process" in heard[0]


def test_much_work_is_worth_a_cluster(units):
    assert advice(work_left_s(units[0], 30.0, units * 100)) == ""
    assert "stay in one process" in advice(1.0)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"cv_pipeline\[ray\]"), ray_cluster(RaySettings()):
        pass


class Late:
    "A Ray that does not get up the first times."

    def __init__(self, times):
        self.times, self.tries = times, 0

    def init(self, **how):
        self.tries += 1
        if self.tries <= self.times:
            raise TimeoutError("Timed out waiting for file\n/tmp/ray/metrics_agent_port_1")

    def shutdown(self):
        pass


@pytest.mark.parametrize("address, tries", [(None, 4), ("10.0.0.1:6379", 1)])
def test_a_cluster_that_does_not_start_is_a_sentence(monkeypatch, address, tries):
    late = Late(99)
    monkeypatch.setitem(sys.modules, "ray", late)
    with pytest.raises(BackendError) as raised, ray_cluster(RaySettings(address=address)):
        pass
    assert str(raised.value).startswith("Ray did not start: Timed out waiting for file /tmp")
    assert "less busy" in str(raised.value) and (address or "own cluster") in str(raised.value)
    assert late.tries == tries  # an own cluster is tried again, another one is asked once


def test_a_second_attempt_may_succeed(monkeypatch):
    late = Late(2)
    monkeypatch.setitem(sys.modules, "ray", late)
    with ray_cluster(RaySettings()) as ray:
        assert ray is late and late.tries == 3


def test_an_own_cluster_writes_no_token_and_reports_no_usage():
    found = environment_of(RaySettings(niceness=3))
    assert len(found["RAY_AUTH_TOKEN"]) == 64
    assert found["RAY_USAGE_STATS_ENABLED"] == "0"
    assert found["RAY_worker_niceness"] == "3"
    assert "RAY_AUTH_TOKEN" not in environment_of(RaySettings(address="auto"))


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"cpus": 0.0}, {"start_s": 0}, {"niceness": 20}])
def test_wrong_settings_of_a_cluster(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RaySettings(**wrong)


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"cpus": 0}, {"memory_gb": 0}, {"gpus": -1}, {"data": "here"}]
)
def test_wrong_settings_of_a_job(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        JobSettings(**wrong)


@pytest.mark.parametrize("command", [(), ("run", "0")])
def test_only_a_batch_is_a_job(command, tmp_path):
    with pytest.raises(ConfigError, match="not a batch"):
        write_jobs(command, JobSettings(), tmp_path)


def test_names_with_spaces_survive_in_every_file(tmp_path):
    submit, *others = write_jobs(COMMAND, JobSettings(spot=True, gpus=1), tmp_path)
    assert "'/data/my photos'" in submit.read_text()
    up, job, sky = (yaml.safe_load(p.read_text()) for p in others)
    assert "'/data/my photos'" in job["spec"]["entrypoint"] and "'/data/my photos'" in sky["run"]
    assert (
        up["available_node_types"]["workers"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    )
    assert sky["resources"]["use_spot"] is True and sky["resources"]["accelerators"] == "T4:1"


@pytest.mark.slow
def test_the_ray_job_is_valid_by_the_schema_of_kuberay(real_data, tmp_path):
    jsonschema = require("jsonschema")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load((real_data / "kubernetes" / "ray.io_rayjobs.yaml").read_bytes(), loader)
    version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    job = yaml.safe_load(write_jobs(COMMAND, JobSettings(gpus=1), tmp_path)[2].read_text())
    kind = jsonschema.Draft7Validator(schema)
    assert [e.message for e in kind.iter_errors(job)] == []
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 3
    assert ["'replica' was unexpected" in e.message for e in kind.iter_errors(job)] == [True]


@pytest.fixture(scope="module")
def cluster():
    "A real Ray of two workers; skipped where it is not installed or does not start."
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed: pip install 'cv_pipeline[ray]'")  # never promised: 240 MB
    try:
        with ray_cluster(RaySettings(workers=2, start_s=150)) as ray:

            @contextmanager
            def same(settings):
                yield ray

            yield same
    except BackendError as e:
        pytest.skip(f"Ray did not start on this machine: {e.what}")


def test_real_actors_killed_in_the_middle(cluster, units, tmp_path):
    (tmp_path / "marks").mkdir()
    engine = RayEngine(RaySettings(workers=2), cluster=cluster)
    settings = BatchSettings(tries=4)
    opener = PlayedWork(str(tmp_path / "marks"), ("middle", "end"))
    done = as_local(units, tmp_path / "calm")
    run_batch(units[:1], tmp_path / "out", PlayedWork(), LocalEngine(BatchSettings(processes=1)))
    run_batch(units[1:2], tmp_path / "out", PlayedWork(), LocalEngine(BatchSettings(processes=1)))
    smallest = min(units[2:5], key=lambda u: u.bytes)
    for point in ("middle", "end"):  # the first unit is done by a process of this machine: it is not killed
        (tmp_path / "marks" / f"{point}-{smallest.id}").touch()
    report = run_batch(units[:5], tmp_path / "out", opener, engine, settings=settings)
    assert (report.before, report.done, report.left) == (2, 3, 0)
    assert engine.deaths == 2 * 2  # two units, each killed its actor twice
    run_batch(units, tmp_path / "out", PlayedWork(), LocalEngine(BatchSettings(processes=1)))
    assert (tmp_path / "out" / "results.parquet").read_bytes() == done
    assert all(part_path(tmp_path / "out", u).exists() for u in units)


def test_rows_of_a_real_ray_are_those_of_a_run(cluster, tmp_path):
    (tmp_path / "photos").mkdir()
    for k, frame in enumerate(open_line("line:seed=5,frames=8", "line", False)):
        (tmp_path / "photos" / f"{k}.jpg").write_bytes(jpeg(frame.image * (k != 2)))
    given = {"sources": [str(tmp_path / "photos")], "tracker.name": "none", "model.threads": 1}
    run_config(load_config(None, {**given, "delivery.out": str(tmp_path / "run")}))
    worker, _, identity = batch_config(load_config(None, given), 1, pictures=True)
    units = plan_units(find_work([tmp_path / "photos"]), identity, pictures=2)
    engine = RayEngine(RaySettings(workers=2), cluster=cluster)
    report = run_batch(units, tmp_path / "batch", UnitOpener(worker.model_dump_json()), engine)
    assert report.left == 0 and engine.deaths == 0
    assert read_results(tmp_path / "batch").equals(read_results(tmp_path / "run"))
