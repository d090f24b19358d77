"""Triton: the repository that NVIDIA's own schema and server accept, and a client that loses no frame it has
promised."""

import json
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.core.types import Backend, BackendError, ConfigError, ModelSpecMismatch, SinkError
from cv_pipeline.inference.backends import SteadyBackend
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import ModelManifest
from cv_pipeline.inference.triton import (
    BackendRefusal,
    Line,
    RemoteDetector,
    RemoteOverloaded,
    RemoteTimeout,
    RemoteUnavailable,
    TritonBackend,
    parse_remote,
    remote_error,
)
from cv_pipeline.optimization.triton_repository import ServeOptions, graph_tensors, pbtxt, write_repository
from tests.helpers.services import require
from tests.helpers.triton_server import TritonServer, server_home
from tests.helpers.waiting import until

require("tritonclient", reason='pip install "cv_pipeline[triton]"')
from google.protobuf import text_format  # noqa: E402
from tritonclient.grpc import model_config_pb2  # noqa: E402

LOCAL = load_model("factory_line", threads=1)


def read_config(folder: Path):
    "config.pbtxt as Triton's own schema reads it: an unknown field or a wrong type is an error."
    return text_format.Parse(
        (folder / "config.pbtxt").read_text(encoding="utf-8"), model_config_pb2.ModelConfig()
    )


# --- the repository


@pytest.mark.parametrize("platform", ["onnxruntime", "python"])
def test_the_configuration_is_what_tritons_schema_says(tmp_path, platform):
    options = ServeOptions(
        platform,
        max_batch=16,
        preferred=(4, 8),
        max_queue_delay_ms=1.5,
        max_queue=7,
        instances=2,
        threads=3,
        timeout_s=0.25,
        ends=True,
    )
    folders = write_repository("factory_line", tmp_path, options, name="line")
    assert sorted(folders) == ["line", "line-before", "line-behind", "line-detect"]
    c = read_config(folders["line"])
    assert (c.name, c.backend, c.max_batch_size, list(c.input[0].dims), list(c.output[0].dims)) == (
        "line",
        platform,
        16,
        [3, 320, 320],
        [9, 2100],
    )
    assert (
        list(c.dynamic_batching.preferred_batch_size),
        c.dynamic_batching.max_queue_delay_microseconds,
    ) == ([4, 8], 1500)
    policy = c.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds, policy.allow_timeout_override) == (
        7,
        250_000,
        True,
    )
    assert (c.instance_group[0].count, c.instance_group[0].kind) == (
        2,
        model_config_pb2.ModelInstanceGroup.KIND_CPU,
    )
    assert c.parameters["threads"].string_value == "3"
    carried = ModelManifest.from_dict(json.loads(c.parameters["manifest"].string_value))
    assert (carried.names, carried.preprocess, carried.postprocess) == (
        LOCAL.manifest.names,
        LOCAL.manifest.preprocess,
        LOCAL.manifest.postprocess,
    )
    assert [s.model_name for s in read_config(folders["line-detect"]).ensemble_scheduling.step] == [
        "line-before",
        "line",
        "line-behind",
    ]
    assert (folders["line"] / "1" / "model.onnx").read_bytes() == LOCAL.path.read_bytes()
    assert (folders["line"] / "1" / "model.py").exists() == (platform == "python")


def test_a_tensorrt_plan_is_served_without_the_header_before_it(tmp_path):
    header = json.dumps({"task": "detect", "imgsz": [320, 320]}).encode()
    (tmp_path / "line.engine").write_bytes(len(header).to_bytes(4, "little") + header + b"the plan")
    (tmp_path / "line.json").write_text(
        json.dumps({"names": list(LOCAL.manifest.names), "preprocess": {"imgsz": 320}})
    )
    folder = write_repository(
        tmp_path / "line.engine", tmp_path / "out", ServeOptions("tensorrt", kind="gpu", instances=2)
    )["line"]
    c = read_config(folder)
    assert (c.platform, c.instance_group[0].kind, list(c.input[0].dims), list(c.output[0].dims)) == (
        "tensorrt_plan",
        model_config_pb2.ModelInstanceGroup.KIND_GPU,
        [3, 320, 320],
        [9, -1],
    )
    assert (folder / "1" / "model.plan").read_bytes() == b"the plan"


@given(st.text(max_size=40), st.text(alphabet='"\\\n\r\t\x00{}: é😀', max_size=12))
def test_any_text_survives_the_configuration(a, b):
    table = {"name": a, "parameters": [{"key": "x", "value": {"string_value": b}}]}
    read = text_format.Parse(pbtxt(table), model_config_pb2.ModelConfig())
    assert (read.name, read.parameters["x"].string_value) == (a, b)


def fixed_batch_model(folder: Path) -> Path:
    "The bundled detector with a batch of exactly one."
    import onnx

    graph = onnx.load(LOCAL.path)
    for tensor in (*graph.graph.input, *graph.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    del graph.graph.value_info[:]
    onnx.save(graph, folder / "one.onnx")
    data = {**LOCAL.manifest.to_dict(), "sha256": "", "name": "one"}
    (folder / "one.json").write_text(json.dumps(data))
    return folder / "one.onnx"


def test_what_cannot_be_served_is_refused_before_anything_is_written(tmp_path):
    one, out = fixed_batch_model(tmp_path), tmp_path / "out"
    with pytest.raises(ConfigError, match="has a fixed batch of 1"):
        write_repository(one, out)
    with pytest.raises(ConfigError, match="needs .engine files"):
        write_repository(one, out, ServeOptions("tensorrt", kind="gpu"))
    with pytest.raises(ConfigError, match="not a valid model name"):
        write_repository("factory_line", out, name="../line")
    with pytest.raises(ConfigError, match="5 problems"):
        ServeOptions("tf", max_batch=-1, instances=0, max_queue_delay_ms=-1, timeout_s=0)
    assert not out.exists()
    write_repository(one, out, ServeOptions(max_batch=0), name="one")
    assert list(read_config(out / "one").input[0].dims) == [1, 3, 320, 320]
    (out / "one" / "mark").touch()
    with pytest.raises(ConfigError, match="models already exist: one"):
        write_repository(one, out, ServeOptions(max_batch=0), name="one")
    assert (out / "one" / "mark").exists()
    write_repository(one, out, ServeOptions(max_batch=0), name="one", overwrite=True)
    assert not (out / "one" / "mark").exists()


def test_any_file_of_a_family_can_be_served(tmp_path):
    folder = tmp_path / "family"
    folder.mkdir()
    for name in ("model.onnx", "half.onnx"):
        (folder / name).write_bytes(LOCAL.path.read_bytes())
    row = {"file": "half.onnx", "backend": "onnxruntime", "precision": "fp16"}
    (folder / "manifest.json").write_text(json.dumps({**LOCAL.manifest.to_dict(), "artefacts": [row]}))
    served = write_repository(folder, tmp_path / "out", name="half", artefact="fp16")["half"]
    carried = ModelManifest.from_dict(json.loads(read_config(served).parameters["manifest"].string_value))
    assert (carried.file, carried.artefacts, carried.names) == ("half.onnx", (), LOCAL.manifest.names)
    with pytest.raises(ConfigError, match="no file 'int8'"):
        write_repository(folder, tmp_path / "out", name="x", artefact="int8")


def test_a_folder_that_cannot_be_written_is_a_typed_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SinkError, match="cannot write the model repository"):
        write_repository("factory_line", tmp_path / "file" / "repository")


def test_a_graph_that_cannot_be_read_is_a_typed_error(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"rubbish")
    with pytest.raises(BackendError, match="cannot open"):
        graph_tensors(tmp_path / "x.onnx", LOCAL.manifest)


# --- the client


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (
            "[StatusCode.UNAVAILABLE] failed to connect to all addresses; last error: Connection refused",
            RemoteUnavailable,
        ),
        ("Request for unknown model: 'line' has no available versions", RemoteUnavailable),
        ("Stub process 'line' is unhealthy and it will be restarted.", RemoteUnavailable),
        ("Deadline Exceeded", RemoteTimeout),
        ("timed out", RemoteTimeout),
        ("Request timeout expired", RemoteTimeout),
        ("Exceeds maximum queue size", RemoteOverloaded),
        ("unexpected shape for input 'images' for model 'line'", BackendError),
    ],
)
def test_what_libraries_throw_gets_a_name(said, kind):
    assert type(remote_error(RuntimeError(said), parse_remote("triton://h/m"), "the call")) is kind
    assert (
        type(remote_error(ConnectionResetError(104, "x"), parse_remote("triton://h/m"), "the call"))
        is RemoteUnavailable
    )


@pytest.mark.parametrize(
    ("address", "said", "kind"),
    [
        (
            "triton://10.0.0.1:42943/m",
            "[StatusCode.UNAVAILABLE] ipv4:10.0.0.1:42943: Connection refused",
            RemoteUnavailable,
        ),
        (
            "triton://h/timeout",
            "HTTP 500: Failed to process the request(s) for model 'timeout': ValueError",
            BackendError,
        ),
        ("triton://reset-503/m", "HTTP 400: reset-503:8001 wants 2 inputs", BackendError),
        ("triton://h/m", "HTTP 429: busy", RemoteOverloaded),
        ("triton://h/m", "HTTP 503: x", RemoteUnavailable),
        ("triton://h/m", "HTTP 504: x", RemoteTimeout),
    ],
)
def test_names_and_ports_are_not_mistaken_for_causes(address, said, kind):
    error = (
        ConnectionError(said)
        if said.startswith("HTTP 5") and kind is not BackendError or "429" in said[:9]
        else BackendRefusal(said)
    )
    assert type(remote_error(error, parse_remote(address), "the call")) is kind


class Flaky:
    "Calls that fail so often, on a clock that only pauses move."

    def __init__(self, failures, error):
        self.failures, self.error, self.calls, self.now, self.pauses = failures, error, 0, 0.0, []

    def wait(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds

    def __call__(self, client):
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "answer"

    def line(self, **settings):
        line = Line(
            replace(parse_remote("triton://127.0.0.1:9/m"), **settings),
            lambda: self.now,
            self.wait,
            lambda: 0.5,
        )
        line.client = lambda: None
        return line


@given(st.integers(0, 30), st.floats(0, 20))
def test_patience_bounds_the_attempts_and_pauses_grow(failures, patience):
    flaky = Flaky(failures, RuntimeError("connection refused"))
    line = flaky.line(patience_s=patience)
    try:
        assert line.ask(flaky) == "answer" and flaky.calls == failures + 1
    except RemoteUnavailable:
        assert (line.events["gave_up"], line.state) == (1, "unreachable")
    assert flaky.now <= patience + 1e-6 and flaky.calls == line.events["retry"] + 1
    assert flaky.pauses == sorted(flaky.pauses) and all(p <= 1.0 for p in flaky.pauses)
    assert line.events["retry"] + line.events["gave_up"] == line.events["unreachable"]


def test_an_error_of_the_model_is_not_asked_for_again():
    flaky = Flaky(5, RuntimeError("unexpected shape for input"))
    with pytest.raises(BackendError, match="unexpected shape"):
        flaky.line().ask(flaky)
    assert flaky.calls == 1


def test_a_full_house_is_refused_after_the_deadline():
    line = Flaky(0, None).line(in_flight=1, deadline_s=0.05, patience_s=0.0)
    inside, leave = threading.Event(), threading.Event()
    busy = threading.Thread(target=lambda: line.ask(lambda c: (inside.set(), leave.wait(10))))
    busy.start()
    inside.wait(10)
    with pytest.raises(RemoteOverloaded, match="1 calls are already in flight"):
        line.ask(lambda c: None)
    leave.set()
    busy.join()
    assert line.ask(lambda c: "again") == "again"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_nobody_there_is_a_typed_error_soon(protocol):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with pytest.raises(RemoteUnavailable, match="check that the server is running"):
        TritonBackend(f"triton://127.0.0.1:{port}/line?protocol={protocol}")


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_server_that_accepts_and_never_answers_is_a_timeout(protocol):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        with pytest.raises((RemoteTimeout, RemoteUnavailable)):
            TritonBackend(f"triton://127.0.0.1:{s.getsockname()[1]}/line?protocol={protocol}&deadline_s=0.3")


# --- the real tritonserver


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = server_home()
    if home is None:
        assert not os.environ.get("CV_PIPELINE_REQUIRE_SERVICES"), (
            "no tritonserver: make its environment (see the Makefile) or set CV_PIPELINE_TRITON"
        )
        pytest.skip(
            "no tritonserver here: it lies in its own environment, see the Makefile, or CV_PIPELINE_TRITON"
        )
    work = tmp_path_factory.mktemp("triton")
    options = ServeOptions("python", max_batch=8, preferred=(4, 8), max_queue_delay_ms=20, threads=1)
    write_repository("factory_line", work / "repository", replace(options, ends=True), name="line")
    write_repository(
        fixed_batch_model(work), work / "repository", replace(options, max_batch=0, preferred=()), name="one"
    )
    write_repository(
        "factory_line",
        work / "repository",
        replace(options, max_batch=1, preferred=(), max_queue=1),
        name="small",
    )
    made = TritonServer(home, work / "repository", work)
    yield made.start()
    made.kill()


@pytest.fixture
def up(server):
    "The server, running whatever the test before did to it."
    if server.process is None or server.process.poll() is not None or not server.ready():
        server.kill()
        server.start()
    return server


def address(server, model="line", protocol="grpc", **settings):
    port = server.http if protocol == "http" else server.grpc
    return f"triton://127.0.0.1:{port}/{model}?" + "&".join(
        f"{k}={v}" for k, v in {"protocol": protocol, **settings}.items()
    )


def images(count, seed=0):
    return np.random.default_rng(seed).random((count, 3, 320, 320), np.float32)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("model", ["line", "one"])
def test_remote_results_equal_local_ones(up, protocol, model):
    remote = load_model(address(up, model, protocol))
    assert isinstance(remote.backend, Backend) and remote.manifest.names == LOCAL.manifest.names
    assert (
        remote.backend.max_batch == (8 if model == "line" else 1)
        and remote.backend.ready()
        and remote.backend.state == "ready"
    )
    remote.backend.warmup()
    batch = images(11)  # more than the server takes at once
    np.testing.assert_allclose(remote.backend.infer(batch), LOCAL.backend.infer(batch), atol=1e-4)
    pictures = [
        np.random.default_rng(i).integers(0, 255, size, np.uint8)
        for i, size in enumerate([(300, 417, 3), (97, 33, 3), (640, 480, 3)])
    ]
    for mine, theirs in zip(LOCAL.predict(pictures), remote.predict(pictures)):
        np.testing.assert_allclose(mine.xyxy, theirs.xyxy, atol=1e-2)
    remote.close()
    assert remote.backend.state == "closed"
    with pytest.raises(BackendError, match="the backend is closed"):
        remote.backend.infer(batch)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_pictures_in_detections_out_equal_the_local_model(up, protocol):
    from cv_pipeline.synthetic.line import open_line

    frames = [frame.image for frame in open_line("line:camera=0,seed=3,frames=3", "line")][:3]
    detector = RemoteDetector(address(up, "line-detect", protocol))
    expected, found = LOCAL.predict(frames), detector.predict(frames)
    assert detector.names == LOCAL.manifest.names and sum(map(len, expected)) > 0
    for a, b in zip(expected, found):
        np.testing.assert_array_equal(a.class_id, b.class_id)
        np.testing.assert_allclose(a.xyxy, b.xyxy, atol=1e-3)
        np.testing.assert_allclose(a.confidence, b.confidence, atol=1e-5)
    with pytest.raises(BackendError, match="picture|dims|shape|image"):
        detector.predict([np.zeros((4, 4), np.uint8)])
    detector.close()


def test_a_wrong_model_or_name_is_refused_before_the_first_frame(up):
    with pytest.raises(BackendError, match="nosuch"):
        TritonBackend(address(up, "nosuch"))
    with pytest.raises(ModelSpecMismatch, match="RemoteDetector"):
        TritonBackend(address(up, "line-behind"))
    with pytest.raises(ModelSpecMismatch, match="expects"):
        TritonBackend(
            address(up), ModelManifest(name="x", file="x.onnx", names=("a",), preprocess={"imgsz": 320})
        )


def test_batches_form_under_concurrent_load_and_everyone_gets_their_own_answer(up):
    before = up.statistics("line")
    data, backend = images(48, seed=7), TritonBackend(address(up, in_flight=16, deadline_s=10))
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda i: backend.infer(data[i : i + 1]), range(len(data))))
    np.testing.assert_allclose(np.concatenate(answers), LOCAL.backend.infer(data), atol=1e-4)
    after = up.statistics("line")
    asked, ran = (int(after[k]) - int(before[k]) for k in ("inference_count", "execution_count"))
    assert asked == 48 and ran < 24, f"{asked} requests in {ran} model calls"
    assert max(backend.line.ask(lambda c: c.batches())) > 1
    backend.close()


def test_a_full_server_says_so_and_is_asked_again(up):
    data, backend = (
        images(24, seed=8),
        TritonBackend(address(up, "small", in_flight=12, deadline_s=10, patience_s=60)),
    )
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda i: backend.infer(data[i : i + 1]), range(len(data))))
    np.testing.assert_allclose(np.concatenate(answers), LOCAL.backend.infer(data), atol=1e-4)
    assert backend.events["overloaded"] > 0 and backend.events["gave_up"] == 0
    backend.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_kill_minus_nine_and_restart_loses_no_promised_frame(up, protocol):
    data, backend = (
        images(40, seed=9),
        TritonBackend(address(up, protocol=protocol, deadline_s=5, patience_s=60)),
    )
    answers, killed = [None] * len(data), threading.Event()

    def caller(k):
        for i in range(k, len(data), 4):
            answers[i] = backend.infer(data[i : i + 1])
            if i >= 8:
                killed.wait(30)  # so that calls are made around the kill, not only before it

    threads = [threading.Thread(target=caller, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    until(lambda: sum(a is not None for a in answers) >= 8, 60)
    up.kill()
    killed.set()
    assert not backend.ready()
    up.start()
    for t in threads:
        t.join(60)
    assert not any(t.is_alive() for t in threads) and all(a is not None for a in answers)
    np.testing.assert_allclose(np.concatenate(answers), LOCAL.backend.infer(data), atol=1e-4)
    assert (
        backend.events["unreachable"] + backend.events["timeout"] > 0
        and backend.events["gave_up"] == 0
        and backend.state == "ready"
    )
    backend.close()


def test_a_server_that_stops_answering_is_a_timeout_and_is_found_again(up):
    backend, data = TritonBackend(address(up, deadline_s=1, patience_s=0)), images(1)
    steady, expected = SteadyBackend(backend), LOCAL.backend.infer(data)
    np.testing.assert_allclose(steady.infer(data), expected, atol=1e-4)
    up.signal(signal.SIGSTOP)
    try:
        with pytest.raises((RemoteTimeout, RemoteUnavailable)):
            steady.infer(data)
        assert not backend.ready() and backend.state in ("timeout", "unreachable")
    finally:
        up.kill()
        up.start()  # another server in its place: what the stopped one had still to answer does not matter
    np.testing.assert_allclose(backend.infer(data), expected, atol=1e-4)
    assert backend.state == "ready" and backend.events["recovered"] >= 1
    backend.close()


def test_a_pipeline_delivers_every_frame_though_its_server_is_killed(up):
    from cv_pipeline.synthetic.line import open_line
    from cv_pipeline.video.pipeline import Pipeline

    class Keeper:
        def __init__(self):
            self.results = []

        def write(self, result):
            self.results.append(result)

        def close(self):
            pass

    class Killing:
        "Kills the server before the third model call."

        def __init__(self, inner):
            self.inner, self.calls = inner, 0

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def infer(self, batch):
            self.calls += 1
            if self.calls == 3:
                up.kill()
                killed.set()
            return self.inner.infer(batch)

    def ran(model):
        keeper = Keeper()
        pipeline = Pipeline(
            [open_line("line:camera=0,seed=3,frames=40", "line")], model, [keeper], recover=model.reopen
        )
        summary = pipeline.run()
        pipeline.close()
        return summary, keeper.results

    killed, remote = threading.Event(), load_model(address(up, deadline_s=5, patience_s=60))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(ran, replace(remote, backend=Killing(remote.backend)))
        assert killed.wait(30)
        until(lambda: remote.backend.events["retry"], 60)
        up.start()  # by this thread: the server dies with the thread that has started it
        summary, results = running.result(60)
    _, expected = ran(load_model("factory_line", threads=1))
    assert (
        [r.frame.frame_id for r in results] == list(range(40))
        and {r.status for r in results} == {"ok"}
        and summary["frames_inferred"] == 40
    )
    for mine, theirs in zip(results, expected):
        np.testing.assert_allclose(mine.detections.xyxy, theirs.detections.xyxy, atol=1e-2)
    assert summary["model"]["events"]["retry"] > 0 and "gave_up" not in summary["model"]["events"]


def test_closing_ends_a_call_that_waits_for_a_server(up):
    backend = TritonBackend(address(up, patience_s=600, deadline_s=1))
    up.kill()
    outcome = []

    def call():
        try:
            backend.infer(images(1))
        except BackendError as e:
            outcome.append(e)

    waiting = threading.Thread(target=call)
    waiting.start()
    until(lambda: backend.events["retry"], 60)
    backend.close()
    waiting.join(10)
    assert not waiting.is_alive() and len(outcome) == 1
