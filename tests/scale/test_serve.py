"""A model in Ray Serve: its settings, its files, and a real Serve on the loopback where Ray is installed."""

import asyncio
import json
import threading
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from cv_pipeline.core.types import BackendError, ConfigError, MissingExtraError
from cv_pipeline.edge.agent import free_port
from cv_pipeline.inference.loading import load_model
from cv_pipeline.scale.ray import JobSettings
from cv_pipeline.scale.serve import (
    ServeArgs,
    ServedModel,
    application,
    ray_service,
    serve_config,
    serving,
    write_serve,
)
from cv_pipeline.synthetic.line import open_line
from tests.helpers.schemas import closed
from tests.helpers.services import require


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_batch": 0},
        {"delay_ms": -1},
        {"max_queue": 0},
        {"replicas": 0},
        {"cpus": 0},
        {"batch": 3},
        {"gpus": -1},
    ],
)
def test_wrong_settings_are_refused_by_name(wrong):
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ServeArgs(**wrong)


def test_settings_come_as_text_from_a_command_line():
    args = ServeArgs(model="line", max_batch="4", delay_ms="0.5", replicas="2")
    o = args.options
    assert (o.max_batch, o.max_queue_delay_ms, o.instances, o.max_queue) == (4, 0.5, 2, 64)


def test_the_files_hold_the_settings(tmp_path):
    args = ServeArgs(model="/models/line", max_batch=4, replicas=3)
    config, service = (
        yaml.safe_load(p.read_text()) for p in write_serve(args, JobSettings(workers=3), tmp_path)
    )
    (one,) = config["applications"]
    assert ServeArgs(**one["args"]) == args and one["import_path"] == "cv_pipeline.scale.serve:application"
    inner = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert inner == config and service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["replicas"] == 3
    assert serve_config(args, port=9000)["http_options"]["port"] == 9000


@pytest.mark.real
def test_the_service_is_valid_for_kuberay_to_the_letter(real_data):
    jsonschema = require("jsonschema")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load((real_data / "kubernetes" / "ray.io_rayservices.yaml").read_bytes(), loader)
    version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema = closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    kind, service = jsonschema.Draft7Validator(schema), ray_service(ServeArgs(), JobSettings(gpus=1))
    assert [e.message for e in kind.iter_errors(service)] == []
    service["spec"]["serveConfigV3"] = ""
    assert ["'serveConfigV3' was unexpected" in e.message for e in kind.iter_errors(service)] == [True]


def test_an_address_of_a_server_is_not_served_again():
    with pytest.raises(ConfigError, match="served already"):
        ServedModel(ServeArgs(model="triton://box/line").model_dump_json())


def test_a_copy_answers_and_says_when_its_model_has_failed():
    require("starlette")
    served = ServedModel(ServeArgs(max_batch=2).model_dump_json())

    async def get(path):
        async def body():
            return b""

        return await served(
            SimpleNamespace(method="GET", url=SimpleNamespace(path=path), headers={}, body=body)
        )

    found = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(get("/v2/models/factory_line"))))
    thread.start()
    thread.join(60)
    assert found[0].status_code == 200 and json.loads(found[0].body)["name"] == "factory_line"
    served.check_health()
    served.hosted.broken = "out of memory"
    with pytest.raises(BackendError, match="out of memory"):
        served.check_health()


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_the_extra_is_named():
    with pytest.raises(MissingExtraError, match=r"cv_pipeline\[serve\]"):
        application(ServeArgs())


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'cv_pipeline[serve]'")
def test_a_real_ray_serve_finds_what_the_model_finds():
    require("tritonclient.http")
    frames = [f.image for f in open_line("line:seed=3,frames=12", "line", False)]
    here = load_model(threads=1).predict(frames)
    try:
        with serving(ServeArgs(max_batch=4), port=free_port(), start_s=150) as address:
            there = load_model(f"{address}&deadline_s=30")
            for ours, theirs in zip(here, there.predict(frames), strict=True):
                assert np.array_equal(ours.xyxy, theirs.xyxy)
                assert np.array_equal(ours.confidence, theirs.confidence)
            assert set(there.backend.line.client().batches()) == {4}
            there.backend.close()
    except BackendError as e:
        if "did not start" in str(e):
            pytest.skip(f"Ray did not start on this machine: {e.what}")
        raise
