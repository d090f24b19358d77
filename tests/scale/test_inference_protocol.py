"""The inference protocol against the client that everybody uses for it, and against our own."""

import asyncio
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from cv_pipeline.core.types import BackendError, DataError
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.triton import (
    RemoteOverloaded,
    RemoteTimeout,
    RemoteUnavailable,
    Tensors,
    TritonBackend,
)
from cv_pipeline.optimization.triton_repository import ServeOptions
from cv_pipeline.scale.inference_protocol import (
    JSON_LENGTH,
    Gathered,
    Hosted,
    Overloaded,
    answer,
    read_request,
    write_answer,
)
from cv_pipeline.synthetic.line import open_line
from tests.helpers.services import require

FOUR = ServeOptions(max_batch=4)
SMALL = Tensors("images", "FP32", (-1, 3, 4, 5), "output0", "FP32", (-1, 6))
BYTES = Tensors("images", "UINT8", (-1, 4, 5, 3), "output0", "FP32", (-1, 6))


class Loop:
    "An event loop in a thread, as a server has one."

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def __call__(self, job, seconds=60):
        return asyncio.run_coroutine_threadsafe(job, self.loop).result(seconds)


@pytest.fixture(scope="module")
def loop():
    made = Loop()
    yield made
    made.loop.call_soon_threadsafe(made.loop.stop)


@contextmanager
def listening(hosted, loop):
    "A server on the loopback; its port."

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            made = loop(answer(hosted, self.command, self.path, self.headers, body))
            self.send_response(made.status)
            for name, value in (
                ("Content-Type", made.kind),
                ("Content-Length", str(len(made.body))),
                *made.headers,
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(made.body)

        do_GET = do_POST = reply

        def log_message(self, *what):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        loop.loop.call_soon_threadsafe(hosted.gathered.close)


@pytest.fixture(scope="module")
def model():
    with_model = load_model(threads=1)
    yield with_model
    with_model.backend.close()


@pytest.fixture(scope="module")
def frames():
    return [f.image for f in open_line("line:seed=3,frames=6", "line", False)]


def body_of(batch, t, binary=True, **parameters):
    "A request in the words of the protocol: body, length of its JSON."
    size = {"parameters": {"binary_data_size": batch.nbytes}} if binary else {"data": batch.ravel().tolist()}
    row = {"name": t.input, "datatype": t.input_type, "shape": list(batch.shape), **size}
    output = {"name": t.output, "parameters": {"binary_data": binary}}
    head = json.dumps({"inputs": [row], "outputs": [output], "parameters": parameters}).encode()
    return head + (batch.tobytes() if binary else b""), len(head)


# --- the client that everybody uses -----------------------------------------------------------------------


@pytest.mark.parametrize(("t", "kind"), [(SMALL, np.float32), (BYTES, np.uint8)])
@pytest.mark.parametrize("binary", [True, False])
def test_what_tritonclient_writes_is_read_and_what_is_written_it_reads(t, kind, binary):
    http = require("tritonclient.http")
    rows = np.random.default_rng(1).integers(0, 255, (3, *t.input_shape[1:])).astype(kind)
    given = http.InferInput(t.input, list(rows.shape), t.input_type)
    given.set_data_from_numpy(rows, binary_data=binary)
    wanted = http.InferRequestedOutput(t.output, binary_data=binary)
    words = http.InferenceServerClient
    body, length = words.generate_request_body([given], outputs=[wanted], request_id="a7", timeout=1_500_000)
    asked = read_request(body, length, t, 8)
    assert np.array_equal(asked.batch, rows) and asked.batch.dtype == kind
    assert (asked.timeout_s, asked.binary, asked.number) == (1.5, binary, "a7")
    raw = np.random.default_rng(2).random((3, 6), np.float32)
    text, length = write_answer("m", raw, t, asked)
    read = words.parse_response_body(text, header_length=length if binary else None)
    assert np.array_equal(read.as_numpy(t.output), raw) and read.get_response()["id"] == "a7"


def test_a_batch_that_came_as_bytes_is_not_copied():
    rows = np.zeros((2, 3, 4, 5), np.float32)
    body, length = body_of(rows, SMALL)
    assert np.shares_memory(read_request(body, length, SMALL, 8).batch, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "pictures"}, "takes 'images'"),
        ({"datatype": "INT8"}, "not 'images' INT8"),
        ({"shape": [2, 3, 4, 6]}, "[2, 3, 4, 6]"),
        ({"shape": [2, 3, 4]}, "takes"),
        ({"shape": [-2, 3, 4, 5]}, "takes"),
        ({"shape": [2.0, 3, 4, 5]}, "takes"),
        ({"shape": [9, 3, 4, 5]}, "at most 8"),
        ({"shape": [0, 3, 4, 5]}, "takes"),
        ({"shape": None}, "not an inference request"),
        ({"shape": [3, 3, 4, 5]}, "does not fit the bytes"),
        ({"parameters": {"binary_data_size": 10**12}}, "does not fit the bytes"),
        ({"parameters": {"binary_data_size": "480"}}, "does not fit the bytes"),
        ({"parameters": 7}, "not an inference request"),
    ],
)
def test_a_wrong_tensor_is_refused(change, why):
    rows = np.zeros((2, 3, 4, 5), np.float32)
    body, length = body_of(rows, SMALL)
    head = json.loads(body[:length])
    head["inputs"][0] |= change
    text = json.dumps(head).encode()
    with pytest.raises(DataError) as caught:
        read_request(text + rows.tobytes(), len(text), SMALL, 8)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"inputs": []}',
        b'{"inputs": [{}, {}]}',
        b'{"inputs": 3}',
        b"[" * 10000,
    ],
)
def test_rubbish_is_refused(text):
    with pytest.raises(DataError):
        read_request(text, None, SMALL, 8)


# --- batches ----------------------------------------------------------------------------------------------


def test_every_request_gets_its_own_answer_whatever_the_batches(loop):
    "Requests of 1 to 4 pictures in any order of arrival: no call is too large, no answer is another's."
    rng = np.random.default_rng(5)
    jobs = [(int(rng.integers(1, 5)), float(rng.uniform(0, 0.02))) for _ in range(60)]

    async def one(g, k, n, wait):
        await asyncio.sleep(wait)
        return await g.ask(np.full((n, 2), k, np.float32), 30)

    async def every():
        g = Gathered(lambda b: b + 0.5, ServeOptions(max_batch=4, max_queue=0, max_queue_delay_ms=1))
        found = await asyncio.gather(*(one(g, k, n, w) for k, (n, w) in enumerate(jobs)))
        g.close()
        return found, dict(g.sizes)

    found, sizes = loop(every())
    assert [f.shape for f in found] == [(n, 2) for n, _ in jobs]
    assert all((f == k + 0.5).all() for k, f in enumerate(found))
    assert max(sizes) <= 4 and sum(n * k for n, k in sizes.items()) == sum(n for n, _ in jobs)


def test_while_the_model_works_what_arrives_gathers(loop):
    held, seen = threading.Event(), []

    def infer(batch):
        seen.append(len(batch))
        held.wait(30)
        return batch

    async def every():
        g = Gathered(infer, ServeOptions(max_batch=8, max_queue_delay_ms=0))
        first = asyncio.create_task(g.ask(np.zeros((1, 2), np.float32), 30))
        while not seen:
            await asyncio.sleep(0.001)
        rest = [asyncio.create_task(g.ask(np.zeros((1, 2), np.float32), 30)) for _ in range(16)]
        await asyncio.sleep(0)
        held.set()
        await asyncio.gather(first, *rest)
        g.close()

    loop(every())
    assert seen == [1, 8, 8]


def test_a_full_queue_refuses_and_a_request_that_was_given_up_costs_nothing(loop):
    held, seen = threading.Event(), []

    def infer(batch):
        seen.append(batch[:, 0].tolist())
        held.wait(30)
        return batch

    async def every():
        g = Gathered(infer, ServeOptions(max_batch=1, max_queue=2, max_queue_delay_ms=0))
        ask = lambda k, s=30.0: asyncio.create_task(g.ask(np.full((1, 1), k, np.float32), s))
        first = ask(0)
        while not seen:
            await asyncio.sleep(0.001)
        late, patient = ask(1, 0.01), ask(2)
        with pytest.raises(asyncio.TimeoutError):
            await late
        with pytest.raises(Overloaded):
            await g.ask(np.zeros((2, 1), np.float32), 30)
        held.set()
        await asyncio.gather(first, patient)
        g.close()

    loop(every())
    assert seen == [[0.0], [2.0]]


def test_a_model_that_fails_fails_its_own_requests_only(loop):
    def infer(batch):
        if batch[0, 0] == 13:
            raise BackendError("out of luck", "model")
        return batch

    async def every():
        g = Gathered(infer, ServeOptions(max_batch=1, max_queue_delay_ms=0))
        asking = [g.ask(np.full((1, 1), k, np.float32), 30) for k in (12, 13, 14)]
        found = await asyncio.gather(*asking, return_exceptions=True)
        g.close()
        return found

    good, bad, after = loop(every())
    assert isinstance(bad, BackendError) and (good[0, 0], after[0, 0]) == (12, 14)


# --- our client over a socket -----------------------------------------------------------------------------


def remote(port, name="factory_line", **settings):
    require("tritonclient.http")
    asked = "&".join(f"{k}={v}" for k, v in {"protocol": "http", "patience_s": 0, **settings}.items())
    return f"triton://127.0.0.1:{port}/{name}?{asked}"


def test_a_model_at_this_address_finds_what_the_local_one_finds(loop, model, frames):
    with listening(Hosted(model, ServeOptions(max_batch=4)), loop) as port:
        there = load_model(remote(port, deadline_s=30))
        assert there.manifest.names == model.manifest.names and there.backend.max_batch == 4
        for ours, theirs in zip(model.predict(frames), there.predict(frames), strict=True):
            assert np.array_equal(ours.xyxy, theirs.xyxy) and np.array_equal(ours.class_id, theirs.class_id)
            assert np.array_equal(ours.confidence, theirs.confidence) and len(ours) > 0
        assert there.backend.ready() and sum(there.backend.line.client().batches().values()) == 2
        there.backend.close()


class Broken:
    "A backend that does as it is asked."

    max_batch = 4

    def __init__(self, model, held=None, error=None, entered=None):
        self.model, self.held, self.error = model, held, error
        self.entered = entered or threading.Event()

    def infer(self, batch):
        self.entered.set()
        if self.held:
            self.held.wait(30)
        if self.error:
            raise self.error
        return self.model.backend.infer(batch)


def hosted_with(model, options=FOUR, **how):
    made = Hosted(model, options)
    made.gathered.infer = Broken(model, **how).infer
    return made


def test_a_model_that_has_failed_is_unavailable_until_it_works_again(loop, model):
    hosted = hosted_with(model, error=BackendError("the card is gone", "model"))
    with listening(hosted, loop) as port:
        client = TritonBackend(remote(port, deadline_s=30))
        with pytest.raises(RemoteUnavailable, match="the card is gone"):
            client.warmup()
        assert not client.ready()
        hosted.gathered.infer = model.backend.infer
        client.warmup()
        assert client.ready() and client.state == "ready"
        client.close()


def test_the_deadline_of_the_server_is_a_timeout_of_the_client(loop, model):
    held = threading.Event()
    hosted = hosted_with(model, ServeOptions(max_batch=4, timeout_s=0.2), held=held)
    with listening(hosted, loop) as port:
        client = TritonBackend(remote(port, deadline_s=30))
        with pytest.raises(RemoteTimeout):
            client.warmup()
        held.set()
        client.close()


def test_a_full_server_is_overloaded(loop, model):
    held, entered = threading.Event(), threading.Event()
    hosted = hosted_with(model, ServeOptions(max_batch=1, max_queue=1), held=held, entered=entered)
    with listening(hosted, loop) as port:
        client = TritonBackend(remote(port, deadline_s=30))
        asking = [threading.Thread(target=client.warmup, daemon=True) for _ in range(2)]
        asking[0].start()
        loop(_until(entered.is_set))
        asking[1].start()
        loop(_until(lambda: len(hosted.gathered._batcher) == 1))
        with pytest.raises(RemoteOverloaded):
            client.warmup()
        held.set()
        for thread in asking:
            thread.join(30)
        client.close()


async def _until(true, seconds=30):
    end = asyncio.get_running_loop().time() + seconds
    while not true():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.005)


def test_another_name_is_unknown(loop, model):
    with listening(Hosted(model), loop) as port:
        with pytest.raises(RemoteUnavailable, match="unknown model"):
            TritonBackend(remote(port, "another", deadline_s=30))


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("GET", "/v2/health/live", {}, b"", 200),
        ("GET", "/v2/health/ready", {}, b"", 200),
        ("GET", "/v2/models/factory_line/versions/1", {}, b"", 200),
        ("GET", "/v2/models/factory_line/versions/2", {}, b"", 404),
        ("GET", "/", {}, b"", 404),
        ("GET", "/v2/models/factory_line/../x", {}, b"", 404),
        ("DELETE", "/v2/models/factory_line", {}, b"", 405),
        ("POST", "/v2/models/another/infer", {}, b"{}", 405),
        ("POST", "/v2/models/factory_line/infer", {JSON_LENGTH: "-1"}, b"{}", 400),
        ("POST", "/v2/models/factory_line/infer", {JSON_LENGTH: "3"}, b"{}", 400),
        ("POST", "/v2/models/factory_line/infer", {JSON_LENGTH: "²"}, b"{}", 400),
        ("POST", "/v2/models/factory_line/infer", {}, b"x" * 10**7, 413),
    ],
)
def test_every_request_has_an_answer(loop, model, method, path, headers, body, status):
    made = loop(answer(Hosted(model, ServeOptions(max_batch=1)), method, path, headers, body))
    assert made.status == status
    assert status == 200 or json.loads(made.body)["error"]


def test_answers_in_json_hold_the_same_numbers(loop, model):
    hosted = Hosted(model, ServeOptions(max_batch=1))
    picture = np.random.default_rng(0).random((1, *hosted.tensors.input_shape[1:]), np.float32)
    body, _ = body_of(picture, hosted.tensors, binary=False)
    made = loop(answer(hosted, "POST", "/v2/models/factory_line/infer", {}, body.ljust(10)))
    if made.status == 413:  # a picture as text is longer than as bytes
        hosted._body = len(body)
        made = loop(answer(hosted, "POST", "/v2/models/factory_line/infer", {}, body))
    loop.loop.call_soon_threadsafe(hosted.gathered.close)
    row = json.loads(made.body)["outputs"][0]
    assert np.array_equal(np.float32(row["data"]).reshape(row["shape"]), model.backend.infer(picture))
