"""The centre with real devices: a real server on the loopback address, real outboxes and forwarders, kill -9
in the middle of a batch, and what strangers, full disks and old copies do to it."""

import gzip
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing

import pytest

from cv_pipeline.core.files import Busy
from cv_pipeline.core.http_server import Guard
from cv_pipeline.core.types import ConfigError, SinkError
from cv_pipeline.edge import central
from cv_pipeline.edge.central import (
    EVERY_DEVICE,
    Centre,
    CentreServer,
    CentreSettings,
    CentreStore,
    admit_device,
    archive_rows,
    changing,
    flush_beats,
    hear,
    new_code,
    revoke_device,
    take_parts,
    tidy,
)
from cv_pipeline.edge.forward import Forwarder, ForwardSettings, Inbox, Link, LinkSettings
from cv_pipeline.edge.outbox import Outbox, OutboxSettings, outbox_status, put_file
from tests.helpers.services import free_port, require
from tests.helpers.waiting import until

require("starlette")
require("uvicorn")

BARE = OutboxSettings(ballast_bytes=0)


class Site:
    "A centre that serves, and what devices need to talk to it."

    def __init__(self, folder, stack, now=None, guard=Guard(), releases=None, keys=None, **settings):
        self.folder, self.stack, self.clock = folder, stack, [1.8e9]
        how = {"now": now} if now else {}
        made = CentreSettings(**{"flush_s": 0.05, **settings})
        self.centre = stack.enter_context(closing(Centre(folder / "centre", releases, keys, made, **how)))
        self.server = stack.enter_context(CentreServer(self.centre, guard=guard))
        self.url = self.server.url

    def device(self, name, site=""):
        "Enrolled as an operator and a device do it; its token."
        token = secrets.token_hex(32)
        code = new_code(self.centre.store, name, site)
        assert self.ask("POST", "/enrol", {"device": name, "code": code, "token": token})[0] == 200
        return token

    def ask(self, method, path, body=None, token="", **headers):
        parts = http.client.HTTPConnection(self.url.partition("//")[2], timeout=20)
        with closing(parts) as line:
            data = (
                body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
            )
            more = {"Authorization": f"Bearer {token}"} if token else {}
            line.request(method, path, data, {**more, **headers})
            found = line.getresponse()
            text = found.read()
        return found.status, json.loads(text) if text[:1] == b"{" else text

    def drains(self, sender):
        "Steps until nothing waits."
        until(lambda: sender.step() == float("inf"))

    def sender(self, box, token, name="box-1", **how):
        link = Link(LinkSettings(self.url, connect_s=5, read_s=20))
        self.stack.callback(link.close)
        made = ForwardSettings(name, gather_s=0.01, first_s=0.05, longest_s=0.2, probe_s=0.05, **how)
        return Forwarder(box, link, lambda: token, made)


@pytest.fixture
def site(tmp_path):
    with ExitStack() as stack:
        yield Site(tmp_path, stack)


@pytest.fixture
def store(tmp_path):
    clock = [1.8e9]
    with closing(CentreStore(tmp_path / "store", now=lambda: clock[0])) as made:
        made.clock = clock
        yield made


def full(db):
    "From now on the file of a database may not grow: what a full disk is for SQLite."
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")


def free(db):
    db.execute("PRAGMA max_page_count = 1073741823")


# -- enrolment


def test_a_lost_answer_to_an_enrolment_is_asked_again(site):
    code, token = new_code(site.centre.store, "box-1"), secrets.token_hex(32)
    body = {"device": "box-1", "code": code, "token": token}
    answers = [site.ask("POST", "/enrol", body) for _ in range(2)]
    assert [a[0] for a in answers] == [200, 200]
    assert answers[0][1] == {"device": "box-1", "began": site.centre.inbox.began}


def test_another_token_for_a_known_device_is_a_conflict(site):
    code = new_code(site.centre.store, "box-1")
    body = {"device": "box-1", "code": code, "token": "a" * 64}
    assert site.ask("POST", "/enrol", body)[0] == 200
    assert site.ask("POST", "/enrol", {**body, "token": "b" * 64})[0] == 409


@pytest.mark.parametrize(
    "change, status",
    [
        ({"code": "AAAAA-AAAAA-AAAAA-AAAAA"}, 403),
        ({"code": ""}, 403),
        ({"device": "box-2"}, 403),
        ({"token": "A" * 64}, 400),
        ({"token": "a" * 63}, 400),
        ({"device": "../box"}, 400),
        ({"device": "b\u00f6x"}, 400),
        ({"device": ["box-1"]}, 400),
        ({"code": "x" * 5000}, 413),
    ],
)
def test_an_enrolment_that_is_not_right_is_refused(site, change, status):
    code = new_code(site.centre.store, "box-1")
    body = {"device": "box-1", "code": code, "token": "a" * 64, **change}
    assert site.ask("POST", "/enrol", body)[0] == status
    assert site.centre.store.sites == {}


def test_a_code_is_for_a_day_and_for_once(store):
    code = new_code(store, "box-1", hours=24)
    store.clock[0] += 25 * 3600
    assert admit_device(store, "box-1", code, "a" * 64)[0] == 403
    code = new_code(store, "box-1")
    assert admit_device(store, "box-1", code, "a" * 64)[0] == 200
    revoke_device(store, "box-1")
    assert admit_device(store, "box-1", code, "b" * 64)[0] == 403


def test_a_new_code_makes_the_one_before_void(store):
    first, second = new_code(store, "box-1"), new_code(store, "box-1")
    assert admit_device(store, "box-1", first, "a" * 64)[0] == 403
    assert admit_device(store, "box-1", second, "a" * 64)[0] == 200


def test_a_code_is_typed_as_people_type(store):
    assert admit_device(store, "box-1", f" {new_code(store, 'box-1').lower()} ", "a" * 64)[0] == 200


def test_neither_tokens_nor_codes_are_on_the_disk(store, tmp_path):
    code, token = new_code(store, "box-1"), secrets.token_hex(32)
    admit_device(store, "box-1", code, token)
    store.close()
    kept = b"".join(p.read_bytes() for p in (tmp_path / "store").iterdir())
    assert b"box-1" in kept and token.encode() not in kept and code.encode() not in kept


def test_a_name_in_use_gets_no_code(store):
    admit_device(store, "box-1", new_code(store, "box-1"), "a" * 64)
    with pytest.raises(ConfigError, match="box-1 is enrolled.*central revoke box-1"):
        new_code(store, "box-1")


def test_a_revoked_device_is_refused_within_seconds_also_by_a_command(site):
    token = site.device("box-1")
    assert site.ask("POST", "/beat", {}, token)[0] == 200
    with closing(CentreStore(site.folder / "centre")) as command:
        revoke_device(command, "box-1")
    until(lambda: site.ask("POST", "/beat", {}, token)[0] == 401)


# -- heartbeats


def test_a_heartbeat_is_answered_with_what_is_wanted(site):
    token = site.device("box-1")
    status, found = site.ask("POST", "/beat", {"state": "running"}, token)
    assert (status, found["wanted"], found["paused"]) == (200, None, False)
    assert found["began"] == site.centre.inbox.began
    with changing(site.centre.store) as db:
        db.execute("INSERT INTO wanted VALUES ('box-1', 'line', ?)", ("ab" * 32,))
        db.execute("INSERT INTO paused VALUES (?, 'stocktaking', 0)", (EVERY_DEVICE,))
    found = site.ask("POST", "/beat", {"state": "running"}, token)[1]
    assert (found["wanted"], found["paused"]) == ({"model": "line", "digest": "ab" * 32}, True)


@pytest.mark.parametrize(
    "body, status",
    [
        (b"", 400),
        (b"[1]", 400),
        (b"{torn", 400),
        (b"\xff\xfe", 400),
        (b"[" * 30_000, 400),
        (b"x" * 40_000, 413),
    ],
)
def test_a_heartbeat_that_is_not_one_is_refused(site, body, status):
    token = site.device("box-1")
    assert site.ask("POST", "/beat", body, token)[0] == status
    assert site.ask("POST", "/beat", {}, token)[0] == 200


def test_names_outside_utf8_in_a_heartbeat_are_kept(site):
    token = site.device("box-1")
    assert site.ask("POST", "/beat", b'{"upkeep": {"caf\\udce9": ["dark"]}}', token)[0] == 200
    flush_beats(site.centre.store)
    with closing(CentreStore(site.folder / "centre")) as again:
        assert again.beats["box-1"].body == {"upkeep": {"caf\udce9": ["dark"]}}


def test_heartbeats_that_cannot_be_written_wait_and_the_newest_is_written_later(store):
    with changing(store) as db:
        db.execute("INSERT INTO devices VALUES ('box-1', 'x', '', 0, NULL)")
    full(store.base.db)
    for k in range(40):
        store.clock[0] += 10
        hear(store, "box-1", {"state": f"{k}", "pad": "x" * 9000})
    with pytest.raises(SinkError, match="cannot be written.*free some space"):
        flush_beats(store)
    free(store.base.db)
    assert flush_beats(store) == 1
    (row,) = store.query("SELECT body FROM beats")
    assert json.loads(row["body"])["state"] == "39"
    assert len(store.query("SELECT id FROM history")) == 40


def test_only_news_and_one_heartbeat_an_hour_become_history(store):
    for k in range(361):  # an hour and ten seconds
        store.clock[0] += 10
        hear(store, "box-1", {"state": "running", "outbox": {"waiting": k}})
    assert len(store._history) == 2
    hear(store, "box-1", {"state": "running", "rolled_back": {"digest": "x"}})
    assert len(store._history) == 3


# -- rows and files


def test_rows_and_files_of_a_device_arrive_once(site, tmp_path):
    token = site.device("box-1")
    (tmp_path / "picture.bin").write_bytes(os.urandom(300_000))
    with Outbox(tmp_path / "box", BARE) as box:
        box.write([("result", {"n": k}) for k in range(1500)])
        put_file(box, tmp_path / "picture.bin")
        sender = site.sender(box, token, piece_bytes=100_000).start()
        until(lambda: outbox_status(box).waiting + outbox_status(box).files == 0)
        sender.close()
    rows = site.centre.inbox.query("SELECT body FROM rows WHERE kind = 'result' ORDER BY id")
    assert [json.loads(r["body"])["n"] for r in rows] == list(range(1500))
    (kept,) = (site.folder / "centre" / "inbox" / "files").glob("*/*")
    assert kept.read_bytes() == (tmp_path / "picture.bin").read_bytes()


PROCESS = """
import os, signal, sys, threading
from pathlib import Path
from cv_pipeline.edge.central import Centre, CentreServer, CentreSettings
folder, port, at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
centre, seen = Centre(folder), [0]
def step(name):
    seen[0] += name == "inbox.inserted" if at % 2 else name == "inbox.committed"
    if at and seen[0] == at:
        os.kill(os.getpid(), signal.SIGKILL)
centre.inbox.step = step
with CentreServer(centre, port) as server:
    print("ready", flush=True)
    threading.Event().wait()
"""


@pytest.mark.slow
def test_a_centre_that_is_killed_in_mid_batch_loses_and_doubles_nothing(tmp_path):
    "kill -9 inside the transaction, then right after it, before the answer: a device notices neither."
    port, folder, token = free_port(), tmp_path / "centre", "ab" * 32
    with closing(CentreStore(folder)) as store:
        admit_device(store, "box-1", new_code(store, "box-1"), token)

    def start(at):
        command = [sys.executable, "-c", PROCESS, str(folder), str(port), str(at)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        return process

    with ExitStack() as stack:
        box = stack.enter_context(Outbox(tmp_path / "box", BARE))
        box.write([("result", {"n": k}) for k in range(3000)])
        link = Link(LinkSettings(f"http://127.0.0.1:{port}", connect_s=5, read_s=20))
        quick = ForwardSettings("box-1", gather_s=0.01, first_s=0.05, longest_s=0.2, probe_s=0.05)
        sender, codes = Forwarder(box, link, lambda: token, quick), []
        for at in (3, 2, 0):
            process = start(at)
            stack.callback(process.kill)
            if at == 3:
                sender.start()
                stack.callback(sender.close)
            if at:
                codes.append(process.wait(60))
        until(lambda: outbox_status(box).waiting == 0, 60)
        process.kill()
        process.wait(60)
    assert codes == [-signal.SIGKILL] * 2
    with closing(Inbox(folder / "inbox")) as inbox:
        rows = inbox.query("SELECT body FROM rows ORDER BY id")
        assert [json.loads(r["body"])["n"] for r in rows] == list(range(3000))
        assert inbox.query("SELECT * FROM findings") == []


def test_a_centre_out_of_an_older_copy_records_the_gap(tmp_path):
    with ExitStack() as stack:
        site = Site(tmp_path, stack)
        token = site.device("box-1")
        box = stack.enter_context(Outbox(tmp_path / "box", BARE))
        sender = site.sender(box, token)
        for k in range(2):
            box.write([("result", {"n": 10 * k + j}) for j in range(10)])
            site.drains(sender)
            if k == 0:
                site.server.close()
                site.centre.close()
                shutil.copytree(tmp_path / "centre", tmp_path / "yesterday")
                site = Site(tmp_path, stack)
                sender = site.sender(box, token)
        site.server.close()
        site.centre.close()
        shutil.rmtree(tmp_path / "centre")
        shutil.move(tmp_path / "yesterday", tmp_path / "centre")
        site = Site(tmp_path, stack)
        box.write([("result", {"n": 20})])
        sender = site.sender(box, token)
        site.drains(sender)
        found = site.centre.inbox.query("SELECT what, first, last FROM findings")
        assert found == [{"what": "gap", "first": 11, "last": 20}]
        assert site.ask("POST", "/beat", {}, token)[0] == 200


def test_a_full_disk_at_the_centre_is_507_and_devices_keep_their_rows(site, tmp_path):
    token = site.device("box-1")
    with Outbox(tmp_path / "box", BARE) as box:
        box.write([("result", {"n": k, "pad": os.urandom(400).hex()}) for k in range(400)])
        full(site.centre.inbox.base.db)
        sender = site.sender(box, token)
        sender.step()
        assert (sender.status.state, sender.status.problem[:8]) == ("busy", "507 the ")
        assert outbox_status(box).waiting == 400
        free(site.centre.inbox.base.db)
        site.drains(sender)
        assert outbox_status(box).waiting == 0


@pytest.mark.parametrize("name", ["centre.sqlite", "inbox/inbox.sqlite"])
def test_a_corrupt_database_says_what_to_do(tmp_path, name):
    Centre(tmp_path / "centre").close()
    file = tmp_path / "centre" / name
    for path in file.parent.glob(f"{file.name}-*"):
        path.unlink()
    file.write_bytes(b"\0" * 100 + os.urandom(20_000))
    with pytest.raises(SinkError, match="move it away.*newest backup"):
        Centre(tmp_path / "centre")


# -- releases


def test_devices_read_releases_through_the_centre(tmp_path):
    require("tuf")
    from cv_pipeline.release.trust import CURRENT, UNREACHABLE, TrustClient, enrol, new_repository, root_of

    new_repository(tmp_path / "releases", tmp_path / "keys")
    with ExitStack() as stack:
        site = Site(tmp_path, stack, releases=tmp_path / "releases", keys=tmp_path / "keys")
        token = site.device("box-1")
        enrol(tmp_path / "trust", root_of(tmp_path / "releases"))
        for place in ("tuf", "releases"):
            headers = {"Authorization": f"Bearer {token}"}
            assert TrustClient(tmp_path / "trust", f"{site.url}/{place}", headers).check().state == CURRENT
        assert TrustClient(tmp_path / "trust", f"{site.url}/tuf").check().state == UNREACHABLE
        root = (tmp_path / "releases" / "metadata" / "1.root.json").read_bytes()
        status, tail = site.ask("GET", "/tuf/metadata/1.root.json", token=token, Range="bytes=500-")
        assert (status, tail) == (206, root[500:])


@pytest.mark.parametrize(
    "path",
    ["metadata/../../keys/k.pem", "metadata/%2e%2e/%2e%2e/keys/k.pem", "keys/k.pem", "metadata/link.json",
     "/etc/passwd", "metadata", "", "metadata/a%00b", "metadata\\..\\..\\keys"],
)  # fmt: skip
def test_nothing_beside_the_releases_is_read(tmp_path, path):
    (tmp_path / "releases" / "metadata").mkdir(parents=True)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "k.pem").write_text("secret")
    (tmp_path / "releases" / "metadata" / "link.json").symlink_to(tmp_path / "keys" / "k.pem")
    with ExitStack() as stack:
        site = Site(tmp_path, stack, releases=tmp_path / "releases")
        token = site.device("box-1")
        assert site.ask("GET", f"/tuf/{path}", token=token)[0] == 404


@pytest.mark.slow
def test_a_missing_key_is_a_problem_that_stops_nothing_else(tmp_path):
    require("tuf")
    from cv_pipeline.release.trust import new_repository

    new_repository(tmp_path / "releases", tmp_path / "keys")
    for key in (tmp_path / "keys").glob("timestamp-*"):
        key.rename(tmp_path / "kept.pem")
    with ExitStack() as stack:
        site = Site(tmp_path, stack, releases=tmp_path / "releases", keys=tmp_path / "keys")
        until(lambda: "timestamp" in site.centre.problems)
        assert "'timestamp' is not in this folder" in site.centre.problems["timestamp"]
        assert site.ask("GET", "/healthz")[0] == 503
        token = site.device("box-1")
        assert site.ask("POST", "/beat", {}, token)[0] == 200


# -- strangers, slow lines, TLS


@pytest.mark.parametrize(
    "method, path",
    [
        ("POST", "/beat"),
        ("POST", "/batches"),
        ("GET", "/tuf/metadata/x"),
        ("PUT", f"/parts/{'0' * 64}"),
        ("GET", f"/parts/{'0' * 64}"),
    ],
)
def test_without_a_token_nothing_is_answered(site, method, path):
    assert site.ask(method, path, b"")[0] == 401
    assert site.ask(method, path, b"", "ab" * 32)[0] == 401


def test_who_says_nothing_or_a_byte_at_a_time_is_let_go(tmp_path):
    with ExitStack() as stack:
        site = Site(tmp_path, stack, head_s=0.3)
        port = int(site.url.rpartition(":")[2])
        silent, slow = (stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(2))
        slow.sendall(b"POST /beat HTTP/1.1\r\nHost:")
        for line in (silent, slow):
            line.settimeout(20)
            try:
                assert line.recv(100) == b""
            except ConnectionResetError:
                pass


def test_a_body_that_does_not_come_is_408(tmp_path):
    with ExitStack() as stack:
        site = Site(tmp_path, stack, head_s=1.0)
        token, port = "ab" * 32, int(site.url.rpartition(":")[2])
        admit_device(site.centre.store, "box-1", new_code(site.centre.store, "box-1"), token)
        with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
            head = f"POST /beat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
            line.sendall(f"{head}Content-Length: 99\r\n\r\n{{".encode())
            assert line.recv(100).startswith(b"HTTP/1.1 408 ")


def test_too_many_connections_are_asked_to_come_later(tmp_path):
    with ExitStack() as stack:
        site = Site(tmp_path, stack, connections=3)
        port = int(site.url.rpartition(":")[2])
        for _ in range(3):
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        until(lambda: site.ask("GET", "/healthz")[0] == 503)


def test_a_body_without_an_announced_length_is_bounded(site):
    token, port = site.device("box-1"), int(site.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        head = f"POST /beat HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        line.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        line.sendall(b"fa00\r\n" + b"x" * 64_000 + b"\r\n")
        assert line.recv(100).startswith(b"HTTP/1.1 413 ")


def test_tls_with_an_authority_of_ones_own(tmp_path):
    trustme = require("trustme")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued.private_key_and_cert_chain_pem.write_to_path(tmp_path / "cert.pem")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    with ExitStack() as stack:
        site = Site(tmp_path, stack, guard=Guard(cert=tmp_path / "cert.pem", key=tmp_path / "key.pem"))
        assert site.url.startswith("https://127.0.0.1:")
        link = Link(LinkSettings(site.url, tmp_path / "ca.pem"))
        stack.callback(link.close)
        assert link.ask("GET", "/healthz", b"", {})[0].status == 200


def test_two_centres_in_one_folder_are_refused(site):
    with closing(Centre(site.folder / "centre")) as second:
        with pytest.raises(Busy, match="another centre serves this folder"):
            CentreServer(second)
        site.server.close()
        CentreServer(second).close()


def test_a_port_that_is_taken_is_named_and_leaves_no_lock(tmp_path):
    with closing(Centre(tmp_path / "centre")) as centre, socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(ConfigError, match="cannot serve on 127.0.0.1.*free port"):
            CentreServer(centre, port=taken.getsockname()[1])
        CentreServer(centre).close()


def test_plain_http_for_other_machines_is_refused(tmp_path):
    with closing(Centre(tmp_path / "centre")) as centre:
        with pytest.raises(ConfigError, match="plain text on 0.0.0.0.*certificate"):
            CentreServer(centre, host="0.0.0.0")


def test_the_supervisor_hears_that_it_is_ready_and_that_it_stops(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd, ExitStack() as stack:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        site = Site(tmp_path, stack)
        assert f"READY=1\nSTATUS=serves on {site.url}" == systemd.recv(1000).decode()
        site.server.close()
        assert systemd.recv(1000) == b"STOPPING=1"


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(central.MissingExtraError, match=r'pip install "cv_pipeline\[central\]"'):
        central.web()


# -- the log of the fleet, the archive


@pytest.fixture(scope="module")
def week(tmp_path_factory):
    from cv_pipeline.monitoring.season_line import write_weeks

    folder = tmp_path_factory.mktemp("week") / "log"
    return write_weeks(folder, a_day=24, days=4, cameras=1, fails=None, keep=10_000)


def parts_of(log):
    return sorted(log.glob("*/date=*/camera=*/part-*.parquet"))


@pytest.mark.slow
def test_parts_of_devices_become_one_log_that_drift_reads_unchanged(site, week, tmp_path):
    from cv_pipeline.edge.devices import keep_drift, kept_drift
    from cv_pipeline.monitoring.drift_report import drift_of_log
    from cv_pipeline.monitoring.observed import DriftSettings
    from cv_pipeline.monitoring.prediction_log import read_log

    for name in ("box-1", "box-2"):
        token = site.device(name)
        with Outbox(tmp_path / name, BARE) as box:
            for part in parts_of(week):
                put_file(box, part, {"what": "log"}, week)
            sender = site.sender(box, token, name)
            site.drains(sender)
    take_parts(site.centre.store, site.centre.inbox, site.centre.log, 500)
    until(lambda: not site.centre.store.query("SELECT id FROM parts WHERE state = 'waits'"))
    one, fleet = read_log(week), read_log(site.centre.log)
    assert fleet.cameras == ("box-1/camera-1", "box-2/camera-1")
    assert len(fleet) == 2 * len(one) and fleet.counts["orphans"] == 0
    assert len(fleet.detections["confidence"]) == 2 * len(one.detections["confidence"])
    settings = DriftSettings(permutations=999, least=20)
    found = drift_of_log(fleet, settings=settings, window=None, with_before=False)
    verdicts = keep_drift(site.centre.store, found.drift)
    assert set(verdicts) == {"box-1", "box-2"} and kept_drift(site.centre.store) == verdicts


@pytest.mark.slow
def test_a_part_that_is_none_is_refused_once_and_the_others_are_taken(site, week, tmp_path):
    token, log = site.device("box-1"), tmp_path / "own"
    shutil.copytree(week, log)
    good = parts_of(log)[0]
    bad = good.with_name("part-bad-000001.parquet")
    bad.write_bytes(b"PAR1" + os.urandom(300))
    with Outbox(tmp_path / "box", BARE) as box:
        for part in (bad, good):
            put_file(box, part, {"what": "log"}, log)
        put_file(box, good, {"what": "picture"})
        sender = site.sender(box, token)
        site.drains(sender)
    states = lambda: [r["state"] for r in site.centre.store.query("SELECT state FROM parts ORDER BY id")]
    until(lambda: states() == ["refused", "done", "other"])
    assert len(parts_of(site.centre.log)) == 1


def a_thousand_old_rows(tmp_path, monkeypatch):
    from cv_pipeline.edge.forward import Batch, pack

    monkeypatch.setattr(central, "_SPARED", 100)
    clock = [1.8e9]
    store = CentreStore(tmp_path / "c", now=lambda: clock[0])
    inbox = Inbox(tmp_path / "c" / "inbox", now=lambda: clock[0])
    line = '{"seq":%d,"kind":"event","at":1.8e9,"boot":"b","mono":1.0,"body":{"n":%d}}'
    lines = [(line % (k, k)).encode() for k in range(1, 1001)]
    inbox.take(pack(Batch("box-1", "run", "5f", 0, 0, "", 0, False, 1.8e9, "b", 1.0, lines)), "box-1")
    clock[0] += 31 * 86400
    return store, inbox, tmp_path / "archive"


def archived(folder):
    return [
        json.loads(x)
        for p in sorted(folder.glob("*.gz"))
        for x in gzip.decompress(p.read_bytes()).splitlines()
    ]


def test_a_kill_between_the_archive_and_the_database_doubles_nothing(tmp_path, monkeypatch):
    store, inbox, folder = a_thousand_old_rows(tmp_path, monkeypatch)
    with closing(store), closing(inbox):
        with monkeypatch.context() as killed:
            killed.setattr(inbox, "forget", lambda ids: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                archive_rows(store, inbox, folder, 300)
        store.now = lambda: 1.8e9 + 60 * 86400
        while archive_rows(store, inbox, folder, 300):
            pass
        kept = inbox.query("SELECT seq FROM rows ORDER BY seq")
        assert [r["seq"] for r in archived(folder)] + [r["seq"] for r in kept] == list(range(1, 1001))
        assert len(kept) == 101


def test_files_leave_the_inbox_when_they_are_old_and_not_awaited(tmp_path):
    clock = [1.8e9]
    with (
        closing(CentreStore(tmp_path, now=lambda: clock[0])) as store,
        closing(Inbox(tmp_path / "i")) as inbox,
    ):
        for sha256 in ("aa" * 32, "bb" * 32, "cc" * 32):
            file = inbox.folder / "files" / sha256[:2] / sha256
            file.parent.mkdir(parents=True)
            file.write_bytes(b"x")
            os.utime(file, (1.8e9, 1.8e9 - (0 if sha256[0] == "c" else 3 * 86400)))
        with changing(store) as db:
            db.execute("INSERT INTO parts VALUES (1, 'box-1', 'n', ?, 'waits')", ("bb" * 32,))
        assert tidy(store, inbox) == 1
        assert sorted(p.name[:2] for p in inbox.folder.glob("files/*/*")) == ["bb", "cc"]


def test_bad_settings_are_listed():
    with pytest.raises(ConfigError, match="2 invalid settings of the centre"):
        CentreSettings(head_s=0, keep_days=-1)
