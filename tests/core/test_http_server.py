"The small HTTP server under guests who mean no good: it answers others, and gives everything back."

import http.client
import os
import socket
import ssl
import threading
from contextlib import ExitStack

import pytest

from cv_pipeline.core.http_server import Answer, Guard, HttpServer, Limits, check_guard
from cv_pipeline.core.types import ConfigError
from tests.helpers.services import require
from tests.helpers.waiting import until

PAGE = {"/page": lambda: Answer(200, "text/plain", b"hello\n")}
TOKEN = "a-token-of-some-length"


def port(server: HttpServer) -> int:
    return int(server.url.rpartition(":")[2])


def asked(server: HttpServer, path="/page", method="GET", context=None, **headers) -> tuple[int, bytes]:
    "Status and body, by the client of the standard library."
    kind = http.client.HTTPSConnection if context else http.client.HTTPConnection
    talk = kind("localhost", port(server), timeout=10, **({"context": context} if context else {}))
    try:
        talk.request(method, path, headers=headers)
        answer = talk.getresponse()
        return answer.status, answer.read()
    finally:
        talk.close()


def raw(server: HttpServer, data: bytes) -> bytes:
    "What comes back for these bytes until the server hangs up."
    with socket.create_connection(("127.0.0.1", port(server)), timeout=10) as guest:
        guest.sendall(data)
        return b"".join(iter(lambda: guest.recv(65536), b""))


def guests(server: HttpServer, n: int, stack: ExitStack) -> list[socket.socket]:
    return [
        stack.enter_context(socket.create_connection(("127.0.0.1", port(server)), timeout=10))
        for _ in range(n)
    ]


def test_silent_guests_are_let_go_and_others_are_answered():
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    with HttpServer(PAGE, 0, limits=Limits(connections=16)) as server, ExitStack() as stack:
        silent = guests(server, 200, stack)
        assert asked(server) == (200, b"hello\n")
        assert server.connections <= 16
        assert threading.active_count() <= threads + 2
        until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors + 200 + 16 + 8)
        silent[0].settimeout(10)
        assert silent[0].recv(100) == b""  # the oldest was hung up on
    until(lambda: threading.active_count() <= threads)
    until(lambda: len(os.listdir("/proc/self/fd")) <= descriptors)


def test_a_byte_now_and_then_does_not_prolong_a_request():
    with HttpServer(PAGE, 0, limits=Limits(request_s=0.3)) as server, ExitStack() as stack:
        (slow,) = guests(server, 1, stack)
        answer = b""
        slow.settimeout(0.05)
        for byte in b"GET /page HTTP/1.1\r\nX: " + b"y" * 400:
            try:
                slow.sendall(bytes([byte]))
                answer += slow.recv(1000)
            except TimeoutError:
                continue
            except OSError:
                break
            if answer:
                break
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_who_does_not_read_the_answer_is_let_go():
    large = {"/page": lambda: Answer(200, "text/plain", b"x" * 50_000_000)}
    with HttpServer(large, 0, limits=Limits(request_s=0.3)) as server, ExitStack() as stack:
        (deaf,) = guests(server, 1, stack)
        deaf.sendall(b"GET /page HTTP/1.1\r\n\r\n")
        until(lambda: server.connections == 1)
        until(lambda: server.connections == 0)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET /page\r\n\r\n", 400),
        (b"GET http://elsewhere/page HTTP/1.1\r\n\r\n", 400),
        (b"GET /page HTTP/1.1\r\nX: " + b"y" * 9000 + b"\r\n\r\n", 431),
        (b"POST /page HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd", 405),
        (b"DELETE /page HTTP/1.1\r\n\r\n", 405),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", 404),
        (b"GET /page%00 HTTP/1.1\r\n\r\n", 404),
        (b"GET /page?x=<script> HTTP/1.1\r\n\r\n", 200),
    ],
)
def test_what_is_no_good_request_gets_its_status(data, status):
    with HttpServer(PAGE, 0) as server:
        answer = raw(server, data)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"<script>" not in answer
        assert asked(server)[0] == 200


def test_head_is_get_without_the_body():
    with HttpServer(PAGE, 0) as server:
        whole, head = raw(server, b"GET /page HTTP/1.1\r\n\r\n"), raw(server, b"HEAD /page HTTP/1.1\r\n\r\n")
    assert whole == head + b"hello\n" and b"Content-Length: 6" in head


def test_only_who_knows_the_token_is_answered():
    with HttpServer(PAGE, 0, guard=Guard(token=TOKEN)) as server:
        given = ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \xff"]
        assert [asked(server, Authorization=a)[0] for a in given] == [401] * 6
        assert asked(server, "/no/such/page")[0] == 401  # nor do they hear what there is
        assert asked(server, Authorization=f"Bearer {TOKEN}") == (200, b"hello\n")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "edge-7", "", "::ffff:8.8.8.8"])
def test_nothing_is_served_to_other_machines_without_a_token(host):
    with pytest.raises(ConfigError, match="no token") as error:
        HttpServer(PAGE, 0, host)
    assert "--insecure" in str(error.value)
    check_guard(host, Guard(insecure=True))
    check_guard(host, Guard(token=TOKEN))


@pytest.mark.parametrize("token", ["", "short", "\u00fc" * 20])
def test_a_token_that_is_easily_guessed_is_refused(token):
    with pytest.raises(ConfigError, match="too short"):
        check_guard("127.0.0.1", Guard(token=token))


def test_a_port_in_use_is_a_typed_error():
    with HttpServer(PAGE, 0) as server, pytest.raises(ConfigError, match="cannot serve on"):
        HttpServer(PAGE, port(server))
    with pytest.raises(ConfigError, match="cannot serve on"):
        HttpServer(PAGE, 0, "no.such.host.invalid", Guard(insecure=True))


def test_https_with_a_certificate_and_nothing_for_who_speaks_plainly(tmp_path):
    trustme = require("trustme")
    authority = trustme.CA()
    made = authority.issue_cert("localhost")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in made.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    context = ssl.create_default_context()
    authority.configure_trust(context)
    guard = Guard(TOKEN, tmp_path / "cert.pem", tmp_path / "key.pem")
    with HttpServer(PAGE, 0, guard=guard, limits=Limits(connections=8, request_s=1.0)) as server:
        with ExitStack() as stack:
            guests(server, 40, stack)  # no handshake ever
            assert server.url.startswith("https://")
            assert asked(server, context=context, Authorization=f"Bearer {TOKEN}") == (200, b"hello\n")
            assert server.connections <= 8
        with pytest.raises(ssl.SSLCertVerificationError):
            asked(server, context=ssl.create_default_context())
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            asked(server)
    with pytest.raises(ConfigError, match="cannot be used"):
        Guard(cert=tmp_path / "key.pem", key=tmp_path / "cert.pem").context()


def test_a_page_that_fails_or_hangs_is_said_and_the_next_one_is_made():
    go, calls = threading.Event(), []

    def broken():
        calls.append(1)
        raise MemoryError

    def hangs():
        go.wait(20)
        return Answer(200, "text/plain", b"late\n")

    routes = {**PAGE, "/broken": broken, "/hangs": hangs}
    with HttpServer(routes, 0, limits=Limits(page_s=0.2)) as server:
        assert asked(server, "/broken") == (500, b"MemoryError while making this page\n")
        assert asked(server)[0] == 200
        assert asked(server, "/hangs")[0] == 503
        assert asked(server)[0] == 503  # one thread makes all pages: who asks hears that it is stuck
        go.set()
        until(lambda: asked(server)[0] == 200)
    assert calls == [1]


def test_a_probe_never_hears_of_a_moment_that_is_over():
    state = ["alive"]
    routes = {"/page": lambda: Answer(200, "text/plain", state[0].encode())}
    for fresh, heard in (({}, b"dead"), ({"/page": 60.0}, b"alive")):
        state[0] = "alive"
        with HttpServer(routes, 0, limits=Limits(fresh_s=fresh)) as server:
            assert asked(server)[1] == b"alive"
            state[0] = "dead"
            assert asked(server)[1] == heard


def test_many_who_ask_at_once_get_one_page():
    made, go = [], threading.Event()

    def page():
        made.append(1)
        go.wait(20)
        return Answer(200, "text/plain", b"hello\n")

    with (
        HttpServer({"/page": page}, 0, limits=Limits(fresh_s={"/page": 60.0})) as server,
        ExitStack() as stack,
    ):
        crowd = guests(server, 30, stack)
        for one in crowd:
            one.sendall(b"GET /page HTTP/1.1\r\n\r\n")
        until(lambda: server.connections == 30 and made)
        go.set()
        answers = [b"".join(iter(lambda one=one: one.recv(4096), b"")) for one in crowd]
    assert all(a.endswith(b"\r\n\r\nhello\n") for a in answers)
    assert made == [1]


def test_guests_that_hang_up_leave_no_word(capfd):
    with HttpServer(PAGE, 0) as server:
        for data in (b"", b"GET /pa", b"GET /page HTTP/1.1\r\n\r\n"):
            for _ in range(20):
                guest = socket.create_connection(("127.0.0.1", port(server)))
                guest.sendall(data)
                guest.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # RST at closing
                guest.close()
        until(lambda: server.connections == 0)
        assert asked(server)[0] == 200
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("refused", [1, 2])
def test_without_room_for_its_threads_nothing_of_it_is_left(monkeypatch, refused):
    start, asked_for, threads = threading.Thread.start, [], threading.active_count()

    def no_room(self):
        asked_for.append(1)
        if len(asked_for) == refused:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", no_room)
    with pytest.raises(RuntimeError, match="can't start"):
        HttpServer(PAGE, 0)
    until(lambda: threading.active_count() <= threads)
