"""What the adapter calls of TensorRT exists, with these signatures, in the real bindings of both majors; and
the imitation knows nothing else."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from cv_pipeline.inference.engines import TENSORRT_API
from tests.helpers import tensorrt_imitation
from tests.helpers.services import place

pytestmark = pytest.mark.slow

VERSIONS = {"trt10": (10, "10.16"), "trt11": (11, "11.4")}
STUB = """
void* createInferBuilder_INTERNAL(void* l, int v) { return 0; }
void* createInferRefitter_INTERNAL(void* e, void* l, int v) { return 0; }
void* createInferRuntime_INTERNAL(void* l, int v) { return 0; }
void* createNvOnnxParser_INTERNAL(void* n, void* l, int v) { return 0; }
void* createNvOnnxParserRefitter_INTERNAL(void* r, void* l, int v) { return 0; }
void* getPluginRegistry(void) { return 0; }
void* getBuilderPluginRegistry(int c) { return 0; }
int getNvOnnxParserVersion(void) { return 0; }
int initLibNvInferPlugins(void* l, const char* n) { return 0; }
"""
REFLECT = """
import json, sys
import tensorrt_bindings as trt
found = {"version": trt.__version__, "members": {}, "docs": {}}
for name in json.loads(sys.argv[1]):
    kind = getattr(trt, name) if name else trt
    found["members"][name] = sorted(n for n in dir(kind) if n == "__version__" or not n.startswith("_"))
    found["docs"][name] = {n: getattr(kind, n).__doc__ or "" for n in found["members"][name]} if name else {}
log = type("Log", (trt.ILogger,), {"log": lambda self, severity, message: None})()
try: trt.Builder(log); found["builder"] = "an object"
except TypeError as e: found["builder"] = str(e)
nothing = lambda *a: None
phases = {"phase_start": nothing, "step_complete": lambda *a: True, "phase_finish": nothing}
monitor = type("M", (trt.IProgressMonitor,), phases)()
levels = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
found["severity"] = [int(getattr(trt.ILogger.Severity, s)) for s in levels]
found["strong"] = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
print(json.dumps(found))
"""


@pytest.fixture(scope="module", params=VERSIONS)
def real(request, tmp_path_factory):
    """What the real bindings say about themselves, asked in a process of its own, over a library that does
    nothing."""
    folder, major = place(request.param), VERSIONS[request.param][0]
    if not shutil.which("gcc"):
        pytest.skip("no C compiler for the stub")
    stub = tmp_path_factory.mktemp(request.param)
    (stub / "stub.c").write_text(STUB)
    for library in ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser"):
        name = f"{library}.so.{major}"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-o", stub / name, stub / "stub.c", f"-Wl,-soname,{name}"], check=True
        )
    environment = {**os.environ, "LD_LIBRARY_PATH": str(stub), "PYTHONPATH": str(folder)}
    answer = subprocess.run(
        [sys.executable, "-c", REFLECT, json.dumps(list(TENSORRT_API))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 0, answer.stderr
    return request.param, json.loads(answer.stdout)


def test_every_name_exists(real):
    name, found = real
    assert found["version"].startswith(VERSIONS[name][1])
    missing = {
        kind: absent
        for kind, names in TENSORRT_API.items()
        if (absent := sorted(set(names) - set(found["members"][kind])))
    }
    assert missing == {}


def test_signatures_are_those_that_are_called(real):
    docs = real[1]["docs"]
    for kind, method, arguments in [
        ("Builder", "create_network", "flags: typing.SupportsInt"),
        (
            "Builder",
            "build_serialized_network",
            "network: tensorrt_bindings.tensorrt.INetworkDefinition, config:",
        ),
        ("IBuilderConfig", "create_timing_cache", "serialized_timing_cache: typing_extensions.Buffer"),
        ("IBuilderConfig", "set_timing_cache", "ignore_mismatch: bool) -> bool"),
        ("IBuilderConfig", "set_memory_pool_limit", "pool_size: typing.SupportsInt"),
        ("IOptimizationProfile", "set_shape", "input: str, min: tensorrt_bindings.tensorrt.Dims, opt:"),
        ("OnnxParser", "parse_from_file", "model: str) -> bool"),
        (
            "IProgressMonitor",
            "phase_start",
            "phase_name: str, parent_phase: str, num_steps: typing.SupportsInt",
        ),
        ("IProgressMonitor", "step_complete", "phase_name: str, step: typing.SupportsInt) -> bool"),
        ("Runtime", "deserialize_cuda_engine", "serialized_engine: typing_extensions.Buffer"),
        ("ICudaEngine", "get_tensor_profile_shape", "name: str, profile_index: typing.SupportsInt) -> list["),
        ("IExecutionContext", "set_input_shape", "name: str, shape: tuple) -> bool"),
        ("IExecutionContext", "set_tensor_address", "name: str, memory: typing.SupportsInt) -> bool"),
        ("IExecutionContext", "execute_async_v3", "stream_handle: typing.SupportsInt) -> bool"),
    ]:
        assert arguments in docs[kind][method], (kind, method, docs[kind][method])


def test_the_old_precision_flags_are_really_gone_in_11_and_are_not_needed_in_10(real):
    name, found = real
    flags = set(found["members"]["BuilderFlag"])
    assert ("FP16" in flags) == (name == "trt10")
    assert not {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"} & set(TENSORRT_API["BuilderFlag"])


def test_severities_and_a_refused_builder(real):
    assert real[1]["severity"] == [0, 1, 2, 3, 4]
    assert "nullptr" in real[1]["builder"], "the adapter turns exactly this TypeError into a BackendError"
    assert real[1]["strong"] > 0


def test_the_imitation_has_no_name_that_the_real_ones_lack():
    trt = tensorrt_imitation.tensorrt(tensorrt_imitation.World())
    extra = {}
    for kind, names in TENSORRT_API.items():
        imitated = tensorrt_imitation.CLASSES.get(kind) or getattr(trt, kind, None) if kind else None
        if imitated is None:
            continue
        public = {n for n in vars(imitated) if not n.startswith("_")} - {
            "EXPLICIT_BATCH",
            "INT32",
            "OTHER",
            "NONE",
            "BF16",
            "name",
            "value",
        }
        if public - set(names):
            extra[kind] = sorted(public - set(names))
    assert extra == {}, "a test could pass on a call that TensorRT does not have"
