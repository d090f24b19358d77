"""The way from a device to the centre, with everything that a link, a card and a backup can do."""

import hashlib
import json
import os
import random
import socket
import ssl
import threading
import zlib
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.http_server import Answer, Guard
from cv_pipeline.core.types import ConfigError, DataError, Detections, Frame, FrameResult, SinkError
from cv_pipeline.edge import forward
from cv_pipeline.edge.forward import (
    Batch,
    Forwarder,
    ForwardSettings,
    ForwardSink,
    Inbox,
    InboxServer,
    Link,
    LinkError,
    LinkSettings,
    Patience,
    Request,
    answer_device,
    file_state,
    happened,
    pack,
    take_piece,
    unpack,
)
from cv_pipeline.edge.outbox import (
    DeviceClock,
    Outbox,
    OutboxSettings,
    acknowledge,
    files_owed,
    line_of,
    next_offer,
    outbox_status,
    put_file,
)
from tests.helpers.cut_link import CutLink, whole_message
from tests.helpers.disks import fill, small_disk
from tests.helpers.kill_loop import kill_loop
from tests.helpers.services import absent, require
from tests.helpers.waiting import until

BARE = OutboxSettings(ballast_bytes=0)
TOKEN = "a-token-of-box-1"


def device_of(token):
    return {TOKEN: "box-1", "a-token-of-box-2": "box-2"}.get(token)


class Place:
    "A device and its centre; the clock of the sender is moved by hand."

    def __init__(self, folder, stack, url="", **how):
        self.folder, self.stack, self.now = folder, stack, 0.0
        self.inbox = stack.enter_context(closing(Inbox(folder / "centre")))
        self.server = stack.enter_context(InboxServer(partial(answer_device, self.inbox, device_of)))
        self.box = stack.enter_context(Outbox(folder / "box", BARE))
        self.token = TOKEN
        self.sender = self.sends(url or self.server.url, **how)

    def sends(self, url, **how):
        link = Link(LinkSettings(url, connect_s=2, read_s=2))
        self.stack.callback(link.close)
        made = ForwardSettings("box-1", **how)
        return Forwarder(self.box, link, lambda: self.token, made, clock=lambda: self.now, draw=lambda: 1.0)

    def run(self, sender=None, most=500):
        "Steps until nothing waits; waits cost nothing."
        sender = sender or self.sender
        for _ in range(most):
            delay = sender.step()
            if delay == float("inf"):
                return
            self.now += delay
        raise AssertionError(f"{most} steps were not enough: {sender.status}")

    def write(self, n, first=0, **more):
        self.box.write([("result", {"n": k, **more}) for k in range(first, first + n)])

    def arrived(self):
        return [json.loads(r["body"]).get("n") for r in self.inbox.query("SELECT body FROM rows ORDER BY id")]


@contextmanager
def a_place(folder, **how):
    with ExitStack() as stack:
        yield Place(folder, stack, **how)


@pytest.fixture
def place(tmp_path):
    with a_place(tmp_path) as made:
        yield made


def batch_of(box, device="box-1", gap=False, **changes):
    offer = next_offer(box)
    ours = (offer.spool, offer.base, offer.after, offer.after_digest, offer.offered)
    lines = [line_of(r) for r in offer.rows]
    made = Batch(device, "run", *ours, gap, 1.7e9, "boot", 100.0, lines)
    return replace(made, **changes)


# -- the batch

texts = st.text(st.characters(codec="utf-8"), max_size=30)


@given(
    st.lists(
        st.dictionaries(texts, st.one_of(texts, st.integers(-9, 9), st.booleans(), st.none())), max_size=8
    )
)
@settings(max_examples=15)
def test_a_batch_is_read_as_it_was_packed(bodies):
    lines = [
        json.dumps(
            {"seq": k + 1, "kind": "event", "at": 1.5, "boot": "b", "mono": 2.0, "body": body}
        ).encode()
        for k, body in enumerate(bodies)
    ]
    batch = Batch("box-1", "run", "s", 0, 0, "", 0, False, 1.0, "b", 2.0, lines)
    found, rows = unpack(pack(batch))
    assert replace(found, lines=list(found.lines)) == batch
    assert [r.body for r in rows] == bodies


def packed(head, *rows):
    good = asdict(Batch("box-1", "run", "s", 0, 0, "", 0, False, 1.0, "b", 2.0, []))
    lines = [json.dumps({"format": 1, **good, **head}).encode()]
    for row in rows:
        base = {"seq": 1, "kind": "event", "at": 1.0, "boot": "b", "mono": 1.0, "body": {}}
        lines.append(row if isinstance(row, bytes) else json.dumps({**base, **row}).encode())
    squeeze = zlib.compressobj(1, zlib.DEFLATED, 31)
    return squeeze.compress(b"\n".join(lines)) + squeeze.flush()


@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "compressed data ends too early"),
        (b"PK not gzip", "not compressed as a batch is"),
        (packed({"format": 2}), "format 2 is unknown"),
        (packed({"after": "5"}), "after: '5' is not a int.*head of the batch"),
        (packed({"after": True}), "after: 'True' is not a int"),
        (packed({}, {}, {}), r"number 1 does not come after 1 \[row 2 of the batch\]"),
        (packed({"after": 7}, {"seq": 7}), "number 7 does not come after 7"),
        (packed({}, {"kind": "alert"}), "unknown class 'alert'.*row 1"),
        (packed({}, {"body": [1]}), "body: .* is not a dict"),
        (packed({}, b"{torn"), r"not JSON \[row 1 of the batch\]"),
        (packed({}, b"[" * 5000), r"not JSON \[row 1 of the batch\]"),
        (packed({}, {"seq": 1 << 70}), "seq: .* is not a int"),
        (packed({"base": 1 << 70}), "base: .* is not a int"),
        (packed({"at": float("nan")}), "at: 'nan' is not a float"),
        (packed({"spool": "\ud800"}), "spool: .* is not a str"),
    ],
)
def test_a_bad_batch_is_refused_with_what_is_wrong(data, words):
    with pytest.raises(DataError, match=words):
        unpack(data)


def test_a_bomb_is_not_unpacked():
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    with pytest.raises(DataError, match="unpacks to more than 16,000,000 bytes"):
        unpack(squeeze.compress(bytes(60_000_000)) + squeeze.flush())


# -- the inbox


def test_the_same_batch_again_changes_nothing(place):
    place.write(10)
    data = pack(batch_of(place.box))
    first, again = place.inbox.take(data, "box-1"), place.inbox.take(data, "box-1")
    assert (first.have, first.fresh, again.have, again.fresh, again.why) == (10, 10, 10, 0, "")
    assert place.arrived() == list(range(10))


def test_a_kill_before_the_commit_leaves_nothing_of_a_batch(tmp_path):
    def stop(name):
        if name == "inbox.inserted":
            raise KeyboardInterrupt

    with a_place(tmp_path) as place:
        place.write(5)
        data = pack(batch_of(place.box))
        place.inbox.step = stop
        with pytest.raises(KeyboardInterrupt):
            place.inbox.take(data, "box-1")
        assert place.arrived() == [] and place.inbox.query("SELECT * FROM spools") == []


def test_a_batch_with_the_token_of_another_device_is_refused(place):
    place.write(1)
    with pytest.raises(DataError, match="a batch of 'box-1' with the token of 'box-2'"):
        place.inbox.take(pack(batch_of(place.box)), "box-2")


@pytest.mark.parametrize("name", ["caf\udce9", "\ud800\udc00 \ud83d", "back\\slash\udcff"])
def test_a_camera_whose_name_is_not_utf8_does_not_hold_up_the_outbox(place, name):
    place.box.write([("result", {"camera": name, name: 1}), ("event", {"n": 2})])
    place.run()
    rows = [json.loads(r["body"]) for r in place.inbox.query("SELECT body FROM rows ORDER BY id")]
    assert rows == [json.loads(json.dumps({"camera": name, name: 1})), {"n": 2}]
    assert place.sender.status.state == "ok" and outbox_status(place.box).waiting == 0


def test_a_note_without_a_count_is_taken(place):
    place.inbox.take(packed({"device": "box-1"}, {"kind": "dropped", "body": {"n": "many"}}), "box-1")
    assert place.inbox.query("SELECT rows, dropped FROM spools") == [{"rows": 1, "dropped": 0}]


def test_a_database_keeps_the_id_of_its_beginning(tmp_path):
    with closing(Inbox(tmp_path, began="first")) as made:
        assert made.began == "first"
    with closing(Inbox(tmp_path, began="second")) as again:
        assert again.began == "first"


def test_the_beginning_of_the_database_comes_with_each_receipt(place):
    heard = []
    place.sender.listen = heard.append
    place.write(1)
    place.run()
    assert [h["began"] for h in heard] == [place.inbox.began]


def test_a_corrupt_inbox_says_what_to_do(tmp_path):
    (tmp_path / "inbox.sqlite").write_bytes(b"nothing of a database" * 500)
    with pytest.raises(SinkError, match="move it away.*newest backup"):
        Inbox(tmp_path)


def test_rows_that_are_kept_elsewhere_are_not_taken_again(place):
    place.write(3)
    data = pack(batch_of(place.box))
    place.inbox.take(data, "box-1")
    place.inbox.forget([r["id"] for r in place.inbox.query("SELECT id FROM rows WHERE seq < 3")])
    assert (place.inbox.take(data, "box-1").have, place.arrived()) == (3, [2])


def test_the_size_of_an_answer_has_a_limit_that_can_be_set():
    large = Answer(200, "application/json", b"[" + b" " * 8000 + b"]")
    with InboxServer(lambda request: large) as server, ExitStack() as stack:
        small, wide = (Link(LinkSettings(server.url, most_answer=n)) for n in (2000, 9000))
        stack.callback(small.close)
        stack.callback(wide.close)
        assert wide.ask("GET", "/", b"", {})[0].body == large.body
        with pytest.raises(LinkError, match="an answer of more than 2,000 bytes"):
            small.ask("GET", "/", b"", {})


def test_a_centre_out_of_an_older_copy_records_what_is_missing(place):
    place.write(30)
    place.run()
    with place.inbox.base.lock:  # the copy ends at number 12
        place.inbox.base.db.execute("DELETE FROM rows WHERE seq > 12")
        place.inbox.base.db.execute("UPDATE spools SET mark = 12, digest = ''")
    place.write(5, first=30)
    place.run()
    findings = place.inbox.query("SELECT what, first, last FROM findings")
    assert findings == [{"what": "gap", "first": 13, "last": 30}]
    assert place.arrived() == [*range(12), *range(30, 35)]
    assert place.sender.status.gaps == 1 and place.sender.status.state == "ok"


def test_an_empty_centre_is_a_gap_from_the_beginning(place, tmp_path):
    place.write(10)
    place.run()
    with a_place(tmp_path / "other") as other:
        place.write(3, first=10)
        place.run(place.sends(other.server.url))
        assert other.inbox.query("SELECT what, first, last FROM findings") == [
            {"what": "gap", "first": 1, "last": 10}
        ]
        assert other.arrived() == [10, 11, 12]


def cloned(place, folder):
    "The device's card is copied while it is switched off."
    import shutil

    place.box.close()
    shutil.copytree(place.folder / "box", folder)
    place.box = place.stack.enter_context(Outbox(place.folder / "box", BARE))
    place.sender = place.sends(place.server.url)
    return place.stack.enter_context(Outbox(folder, BARE))


@pytest.mark.parametrize("original, clone", [(1, 1), (7, 3), (3, 7), (600, 900)])
def test_a_copied_card_loses_and_doubles_nothing(place, tmp_path, original, clone):
    place.write(20)
    place.run()
    place.write(4, first=20)  # these wait on both cards
    other = cloned(place, tmp_path / "copy")
    second = Forwarder(other, Link(LinkSettings(place.server.url)), lambda: TOKEN, ForwardSettings("box-1"))
    place.box.write([("result", {"n": f"original {k}"}) for k in range(original)])
    other.write([("result", {"n": f"clone {k}"}) for k in range(clone)])
    place.run()
    place.run(second)
    found = Counter(place.arrived())
    wanted = [*range(24), *(f"original {k}" for k in range(original)), *(f"clone {k}" for k in range(clone))]
    assert found == Counter(wanted)
    assert second.status.forks == 1 and place.sender.status.forks == 0
    assert [f["what"] for f in place.inbox.query("SELECT what FROM findings")] == ["fork"]
    place.box.write([("result", {"n": "later"})])
    place.run()
    assert place.sender.status.forks == 0, "the original is left alone"


def test_an_old_image_of_the_card_that_is_put_back_is_noticed(place, tmp_path):
    place.write(10)
    place.run()
    old = cloned(place, tmp_path / "image")
    place.write(10, first=10)
    place.run()
    old.write([("result", {"n": f"after {k}"}) for k in range(3)])
    sender = Forwarder(old, Link(LinkSettings(place.server.url)), lambda: TOKEN, ForwardSettings("box-1"))
    place.run(sender)
    assert place.arrived() == [*range(20), "after 0", "after 1", "after 2"]
    assert sender.status.forks == 1


def test_rows_out_of_a_broken_file_that_are_here_are_not_taken_again(tmp_path):
    with a_place(tmp_path) as place:
        place.write(3000, text="x" * 300)
        for _ in range(2):
            place.sender.step()
        offer = next_offer(place.box)  # under way when the card lost its sectors: the answer was never read
        place.inbox.take(pack(batch_of(place.box)), "box-1")
        assert offer.rows[-1].seq == 1500
        place.box.close()
        with open(tmp_path / "box" / "outbox.sqlite", "r+b") as file:
            file.seek(200 * 4096)
            file.write(os.urandom(3 * 4096))
        place.box = place.stack.enter_context(Outbox(tmp_path / "box", BARE))
        assert place.box.tally["renewed"] == 1
        place.run(place.sends(place.server.url))
        found = [n for n in place.arrived() if n is not None]
    assert len(found) == len(set(found)) and 2900 < len(found) < 3000


def test_a_batch_of_a_renewed_file_whose_answer_was_lost_is_no_fork(tmp_path):
    with a_place(tmp_path) as place:
        place.write(100)
        place.inbox.take(pack(batch_of(place.box)), "box-1")
        place.box.close()
        (tmp_path / "box" / "outbox.sqlite-wal").unlink(missing_ok=True)
        with open(tmp_path / "box" / "outbox.sqlite", "r+b") as file:
            file.seek(2 * 4096)
            file.write(bytes(100))
        place.box = place.stack.enter_context(Outbox(tmp_path / "box", BARE))
        data = pack(batch_of(place.box))
        first, again = place.inbox.take(data, "box-1"), place.inbox.take(data, "box-1")
        assert first.why == again.why == "" and first.have == again.have


def test_when_it_happened_is_worked_out_from_the_age():
    row = forward.Received(1, "event", 5.0, "boot-1", 50.0, {}, None, b"")
    batch = Batch("b", "run", "s", 0, 0, "", 0, False, 99.0, "boot-1", 170.0, [])
    assert happened(row, batch, 1.7e9) == (1.7e9 - 120.0, True)
    assert happened(row._replace(boot="boot-0"), batch, 1.7e9) == (5.0, False)
    assert happened(row._replace(boot="boot-0", at=4e9), batch, 1.7e9) == (1.7e9, False), (
        "never in the future"
    )


@pytest.mark.parametrize("wrong", [-365 * 86400.0, 365 * 86400.0, -1.7e9])
def test_a_wrong_clock_is_known_at_the_centre_and_changes_nothing_else(tmp_path, wrong):
    with a_place(tmp_path) as place:
        place.inbox.now = lambda: 1.7e9
        place.box.clock = DeviceClock(now=lambda: 1.7e9 + wrong, mono=lambda: 1000.0, boot="boot")
        place.write(3)
        place.run()
        (spool,) = place.inbox.query("SELECT clock_error FROM spools")
        assert spool["clock_error"] == pytest.approx(wrong)
        assert {r["happened"] for r in place.inbox.query("SELECT happened FROM rows")} == {1.7e9}
        assert place.arrived() == [0, 1, 2]


def test_a_full_disk_at_the_centre_takes_nothing_half_and_devices_wait(tmp_path):
    with small_disk(tmp_path / "disk", 3_000) as disk:
        if disk is None:
            absent("mounting is not allowed here")
        with a_place(tmp_path) as place, closing(Inbox(disk / "centre")) as inbox:
            place.inbox = inbox
            place.server._server.answer = partial(answer_device, inbox, device_of)
            place.write(100)
            place.run()
            other = fill(disk)
            place.write(2000, first=100, text=os.urandom(300).hex())
            for _ in range(30):
                delay = place.sender.step()
                if place.sender.status.state == "busy":
                    break
            assert place.sender.status.state == "busy" and "507" in place.sender.status.problem and delay > 0
            assert outbox_status(place.box).waiting > 0
            other.unlink()
            place.now += 100
            inbox.base.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            place.run()
            assert place.arrived() == list(range(2100))


# -- files


@given(st.lists(st.integers(0, 4000), max_size=6), st.integers(0, 20_000))
@settings(max_examples=12)
def test_pieces_in_any_order_make_the_file_or_nothing(tmp_path_factory, starts, size):
    data = random.Random(size).randbytes(size)
    sha = hashlib.sha256(data).hexdigest()
    with closing(Inbox(tmp_path_factory.mktemp("centre"))) as inbox:
        for start in starts:
            take_piece(inbox, sha, min(start, size), size, data[min(start, size) : start + 1000])
        have, whole = file_state(inbox, sha)
        while not whole:
            have, whole = take_piece(inbox, sha, have, size, data[have : have + 7000])
        stored = (inbox.folder / "files" / sha[:2] / sha).read_bytes()
    assert stored == data


@pytest.mark.parametrize(
    "name, start, total, words",
    [
        ("../../etc/passwd", 0, 3, "is not a SHA-256"),
        ("A" * 64, 0, 3, "is not a SHA-256"),
        ("a" * 64, 2, 3, "pieces lie within a file"),
        ("a" * 64, -1, 3, "pieces lie within a file"),
        ("a" * 64, 0, 10**12, "at most 4,000,000,000 bytes"),
    ],
)
def test_bad_pieces_are_refused(tmp_path, name, start, total, words):
    with closing(Inbox(tmp_path)) as inbox, pytest.raises(DataError, match=words):
        take_piece(inbox, name, start, total, b"abc")


def test_a_file_that_is_another_one_is_not_kept(tmp_path):
    with closing(Inbox(tmp_path)) as inbox:
        with pytest.raises(DataError, match="not those of this SHA-256"):
            take_piece(inbox, "a" * 64, 0, 3, b"abc")
        assert file_state(inbox, "a" * 64) == (0, False)


def test_files_go_between_rows_and_continue_where_they_were_cut(tmp_path):
    with a_place(tmp_path, piece_bytes=1000) as place:
        content = os.urandom(10_500)
        (tmp_path / "picture.jpg").write_bytes(content)
        sha = put_file(place.box, tmp_path / "picture.jpg")
        while file_state(place.inbox, sha)[0] < 4000:
            place.sender.step()
        place.write(5)
        place.sender.step()
        assert place.arrived()[-1] == 4, "rows do not wait for the file"
        place.run(place.sends(place.server.url, piece_bytes=2000))  # after a restart
        assert (place.inbox.folder / "files" / sha[:2] / sha).read_bytes() == content
        assert files_owed(place.box) == []


def test_an_empty_file_and_the_same_file_twice(place):
    for name in ("a", "b"):
        (place.folder / name).write_bytes(b"same")
    (place.folder / "empty").write_bytes(b"")
    shas = {name: put_file(place.box, place.folder / name) for name in ("a", "b", "empty")}
    place.run()
    assert files_owed(place.box) == [] and shas["a"] == shas["b"]
    assert file_state(place.inbox, shas["empty"]) == (0, True)
    assert len(list((place.inbox.folder / "files").rglob("*"))) == 2 * 2


@pytest.mark.parametrize("what", ["deleted", "longer", "other bytes"])
def test_a_file_that_was_changed_is_given_up_with_a_note(place, what):
    path = place.folder / "picture.jpg"
    path.write_bytes(b"x" * 2000)
    put_file(place.box, path)
    path.unlink() if what == "deleted" else path.write_bytes(b"y" * (2000 if what == "other bytes" else 3000))
    place.run()
    assert files_owed(place.box) == []
    notes = place.inbox.query("SELECT body FROM rows WHERE kind = 'dropped'")
    assert [json.loads(n["body"])["why"] for n in notes] == ["file missing or changed: picture.jpg"]


# -- the answers


def test_a_row_that_the_centre_refuses_does_not_hold_up_the_others(place, monkeypatch):
    take = forward._take

    def picky(db, batch, rows, received):
        for n, row in enumerate(rows, 1):
            if row.body.get("n") == 13:
                raise DataError("thirteen", f"row {n} of the batch", "another number")
        return take(db, batch, rows, received)

    monkeypatch.setattr(forward, "_take", picky)
    place.write(40)
    place.run()
    assert [n for n in place.arrived() if n is not None] == [*range(13), 1, *range(14, 40)]
    (note,) = place.inbox.query("SELECT seq, body FROM rows WHERE kind = 'dropped'")
    assert note["seq"] == 14 and "thirteen" in json.loads(note["body"])["why"]


@pytest.mark.parametrize(
    "status, kind, body, state",
    [
        (200, "text/html", b"<html>Welcome to the hotel</html>", "unexpected"),
        (200, "application/json", b'{"have": 3', "unexpected"),
        (200, "application/json", b'{"have": 99999999, "first": 0, "spool": "SPOOL"}', "unexpected"),
        (200, "application/json", b'{"have": 3, "first": 0, "spool": "another"}', "unexpected"),
        (200, "application/json", b'{"have": true, "first": 0, "spool": "SPOOL"}', "unexpected"),
        (
            409,
            "application/json",
            b'{"have": 0, "first": 7000, "why": "fork", "spool": "SPOOL"}',
            "unexpected",
        ),
        (302, "text/html", b"", "unexpected"),
        (404, "text/html", b"", "unexpected"),
        (400, "text/html", b"a proxy does not like this", "unexpected"),
        (400, "application/json", b'{"why": "batch", "problem": "wrong device"}', "unexpected"),
        (503, "text/html", b"", "busy"),
        (429, "text/html", b"", "busy"),
        (401, "application/json", b"{}", "refused"),
        (403, "text/html", b"", "refused"),
        (200, "application/json", b"x" * 100_000, "down"),
    ],
)
def test_an_answer_that_is_not_a_confirmation_deletes_nothing(place, status, kind, body, state):
    place.write(5)
    spool = next_offer(place.box).spool
    made = forward.Answer(status, kind, body.replace(b"SPOOL", spool.encode()))
    place.server._server.answer = lambda request: made
    delay = place.sender.step()
    assert delay > 0 and place.sender.status.state == state and place.sender.status.failures == 1
    assert outbox_status(place.box).waiting == 5 and place.sender.status.rows == 0
    place.server._server.answer = partial(answer_device, place.inbox, device_of)
    place.now += 10_000
    place.run()
    assert place.arrived() == list(range(5))


def test_a_body_that_is_too_large_for_a_proxy_is_halved(place):
    answer = partial(answer_device, place.inbox, device_of)
    place.server._server.answer = lambda r: (
        forward.Answer(413, "text/html", b"") if len(r.body) > 900 else answer(r)
    )
    for k in range(60):
        place.box.write([("result", {"n": k, "text": os.urandom(60).hex()})])
    place.run()
    assert place.arrived() == list(range(60))


def test_a_refused_token_is_tried_rarely_or_when_there_is_another(place):
    asked = []
    answer = partial(answer_device, place.inbox, device_of)
    place.server._server.answer = lambda r: (asked.append(1), answer(r))[1]
    place.token = "stolen"
    place.write(3)
    for _ in range(50):
        place.now += min(place.sender.step(), 10.0)
    assert place.sender.status.state == "refused" and len(asked) == 1
    place.token = TOKEN
    place.run()
    assert place.arrived() == [0, 1, 2]


def test_a_centre_that_asks_to_wait_is_left_alone(place):
    link = place.sender.link
    answers = iter([(forward.Answer(503, "text/plain", b""), 120.0)])
    link.ask, ask = lambda *a: next(answers), link.ask
    place.write(1)
    assert place.sender.step() == 120.0
    link.ask = ask
    place.now += 119
    assert place.sender.step() == 1.0 and place.arrived() == []


def test_the_server_answers_every_request(place):
    ask = lambda method, path, body=b"", **headers: (
        answer_device(
            place.inbox,
            device_of,
            Request(method, path, {"authorization": f"Bearer {TOKEN}", **headers}, body),
        ).status
    )
    assert ask("GET", "/") == 404
    assert ask("DELETE", "/batches") == 404
    assert ask("POST", "/batches", b"x") == 400
    assert ask("PUT", "/parts/" + "a" * 64, b"x") == 400  # no range
    assert ask("PUT", "/parts/" + "a" * 64, b"x", **{"content-range": "bytes 0-0/1"}) == 422
    assert ask("GET", "/parts/..") == 400
    assert answer_device(place.inbox, device_of, Request("GET", "/", {}, b"")).status == 401
    place.inbox.base.db.close()
    assert ask("POST", "/batches", packed({}, {})) == 507


# -- the link


def test_cut_exchanges_lose_and_double_nothing(tmp_path):
    with a_place(tmp_path, batch_rows=7) as place:
        link = CutLink(place.server._server.server_address[1], 0.5, seed=3)
        place.stack.callback(link.close)
        sender = place.sends(link.url, batch_rows=7)
        place.write(300)
        place.run(sender, 2000)
        assert place.arrived() == list(range(300))
        assert all(link.tally[mode] > 5 for mode in ("before", "after", "half"))


def test_a_connection_that_was_cut_while_idle_is_opened_again_at_once(place):
    place.write(1)
    place.run()
    reused = place.sender.link._open
    assert reused is not None
    reused.sock.shutdown(socket.SHUT_RDWR)
    place.write(1, first=1)
    place.sender.step()
    assert place.arrived() == [0, 1] and place.sender.status.failures == 0


def test_a_connection_that_was_idle_for_long_is_not_used_again(place):
    seconds = [0.0]
    link = Link(LinkSettings(place.server.url), clock=lambda: seconds[0])
    ask = lambda: link.ask("GET", "/parts/" + "a" * 64, b"", {"Authorization": f"Bearer {TOKEN}"})
    ask()
    first = link._open
    seconds[0] = 19.0
    ask()
    assert link._open is first
    seconds[0] = 60.0
    ask()
    assert link._open is not first
    link.close()


def test_a_centre_that_never_answers_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        link = Link(LinkSettings(f"http://127.0.0.1:{silent.getsockname()[1]}", read_s=0.2))
        with pytest.raises(LinkError, match="was not reached: TimeoutError"):
            link.ask("GET", "/", b"", {})


def test_the_proxy_of_the_environment_is_used(place, monkeypatch):
    seen, port = [], place.server._server.server_address[1]

    def proxy(listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                if not (asked := whole_message(client)):
                    continue  # a look whether it is there
                seen.append(asked)
                with socket.create_connection(("127.0.0.1", port)) as server:
                    server.sendall(asked.replace(b"http://centre.example:1234", b""))
                    client.sendall(whole_message(server))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=proxy, args=(listener,), daemon=True)
        thread.start()
        monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        link = Link(LinkSettings("http://centre.example:1234", insecure=True))
        assert link.reachable(), "the proxy is what can be reached"
        answer, _ = link.ask("GET", "/parts/" + "a" * 64, b"", {"Authorization": f"Bearer {TOKEN}"})
        link.close()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    assert answer.status == 200
    assert seen[0].startswith(b"GET http://centre.example:1234/parts/")
    assert b"Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" in seen[0]
    monkeypatch.setenv("no_proxy", "centre.example")
    made, before, _ = forward._connection(link.settings, None)
    assert (made.host, made.port, before) == ("centre.example", 1234, "")


def test_https_goes_through_a_proxy_in_a_tunnel(monkeypatch):
    monkeypatch.setenv("https_proxy", "proxy.example:8888")
    monkeypatch.delenv("no_proxy", raising=False)
    made, before, _ = forward._connection(
        LinkSettings("https://centre.example/x/"), ssl.create_default_context()
    )
    assert (made.host, made.port, before) == ("proxy.example", 8888, "/x")
    assert (made._tunnel_host, made._tunnel_port) == ("centre.example", 443)


def test_tls_with_an_authority_of_ones_own(tmp_path):
    trustme = require("trustme")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    made = ca.issue_cert("localhost", "127.0.0.1")
    made.private_key_pem.write_to_path(tmp_path / "key.pem")
    made.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    guard = Guard(cert=tmp_path / "cert.pem", key=tmp_path / "key.pem")
    with closing(Inbox(tmp_path / "centre")) as inbox:
        with InboxServer(partial(answer_device, inbox, device_of), guard=guard) as server:
            with socket.create_connection(("127.0.0.1", server._server.server_address[1])):  # says nothing
                good, bad = (
                    Link(LinkSettings(server.url, ca=tmp_path / "ca.pem")),
                    Link(LinkSettings(server.url)),
                )
                head = {"Authorization": f"Bearer {TOKEN}"}
                assert good.ask("GET", "/parts/" + "a" * 64, b"", head)[0].status == 200
                with pytest.raises(LinkError, match="certificate verify failed"):
                    bad.ask("GET", "/", b"", head)
                good.close()


@pytest.mark.parametrize(
    "url, words",
    [
        ("http://centre.example:8080", "plain text.*use https"),
        ("ftp://centre.example", "is not an address of a centre"),
        ("centre.example:8443", "is not an address of a centre"),
        ("https://", "is not an address of a centre"),
    ],
)
def test_bad_addresses_are_refused(url, words):
    with pytest.raises(ConfigError, match=words):
        LinkSettings(url)


def test_bad_settings_are_listed():
    with pytest.raises(ConfigError, match="3 invalid settings of forwarding"):
        ForwardSettings("box 1", batch_rows=0, batch_bytes=10**9)
    with pytest.raises(ConfigError, match="certificate cannot be read"):
        Link(LinkSettings("https://centre.example", ca="/none.pem"))
    with pytest.raises(ConfigError, match="plain text on 0.0.0.0"):
        InboxServer(print, host="0.0.0.0")


# -- when to try again


def test_waits_double_up_to_a_minute_with_full_jitter():
    now = [0.0]
    patience = Patience(ForwardSettings("box-1"), lambda: now[0], random.Random(0).random)
    waits = [[patience.failure() for _ in range(12)] for _ in range(200) if not patience.success()]
    most = [max(w[k] for w in waits) for k in range(12)]
    for k, limit in enumerate([0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]):
        assert 0.9 * limit < most[k] <= limit
        assert min(w[k] for w in waits) < 0.1 * limit
    assert patience.failure(least=33.0) >= 33.0


def test_after_a_connection_in_vain_only_an_answer_of_the_centre_counts(place):
    place.write(3)
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def closes():
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    asked.append(client.recv(65536))

        thread = threading.Thread(target=closes, daemon=True)
        thread.start()
        sender = place.sends(f"http://127.0.0.1:{listener.getsockname()[1]}")
        while place.now < 60.0:
            place.now += sender.step()
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    assert sender.status.state == "down" and outbox_status(place.box).waiting == 3
    batches = [a for a in asked if a.startswith(b"POST /batches")]
    questions = [a for a in asked if a.startswith(b"GET /parts/000")]
    assert len(questions) > 20 and len(batches) < 8, "the rows are not sent every second"
    sender.link.settings = LinkSettings(place.server.url)
    place.run(sender)
    assert place.arrived() == [0, 1, 2] and not sender.patience.in_vain


def test_a_link_that_is_back_is_seen_within_two_looks(tmp_path):
    with a_place(tmp_path) as place:
        link = CutLink(place.server._server.server_address[1])
        place.stack.callback(link.close)
        sender = place.sends(link.url)
        link.refuse()
        place.write(3)
        while place.now < 300.0:
            place.now += sender.step()
        assert sender.patience.due - place.now > 0 and sender.status.failures > 5
        link.heal()
        healed = place.now
        while not place.arrived():
            place.now += sender.step()
        assert place.now - healed <= 2.0


def test_a_nudge_tries_at_once(place):
    place.write(1)
    sender = place.sends("http://127.0.0.1:9")
    for _ in range(20):
        forward._failed(sender, "busy", "test")
    assert sender.step() == 60.0
    sender.nudge()
    assert sender.step() < 2.0 and sender.status.state == "down", "it was tried"


# -- the thread


def test_the_thread_sends_and_an_alarm_does_not_wait(tmp_path):
    with a_place(tmp_path, gather_s=60.0) as place:
        accepted = []
        place.sender.listen = accepted.append
        place.sender.start()
        place.box.put("result", {"n": 0})
        assert until(lambda: len(accepted) == 1)
        place.box.put("result", {"n": 1})
        place.box.put("alarm", {"n": 2})
        assert until(lambda: len(accepted) == 2)
        place.sender.close()
        assert place.arrived() == [0, 1, 2]
        assert not place.sender._thread.is_alive()


def test_rows_that_come_while_the_sender_finds_nothing_are_not_forgotten(tmp_path):
    with a_place(tmp_path) as place:
        step, raced = place.sender.step, []

        def late():
            delay = step()
            if delay == float("inf") and not raced:
                raced.append(1)
                place.write(3)  # after it has looked, before it waits
            return delay

        place.sender.step = late
        place.sender.start()
        assert until(lambda: len(place.arrived()) == 3)
        place.sender.close()


def test_the_thread_survives_what_nobody_thought_of(tmp_path, caplog):
    with a_place(tmp_path) as place:
        link, broken = place.sender.link, threading.Event()

        def fails(*what):
            broken.set()
            link.ask = ask
            raise MemoryError

        ask, link.ask = link.ask, fails
        place.sender.patience.draw = lambda: 0.0
        place.sender.start()
        place.box.put("alarm", {"n": 0})
        assert broken.wait(10) and until(lambda: place.arrived() == [0])
        place.sender.close()
        assert "forwarding failed" in caplog.text


def result(n=0):
    return FrameResult(
        Frame(np.zeros((4, 4, 3), np.uint8), "gate", n, datetime.now(timezone.utc)), Detections.empty()
    )


def test_a_sink_never_raises_for_link_or_disk(tmp_path):
    with small_disk(tmp_path / "disk", 4_000) as disk:
        if disk is None:
            absent("mounting is not allowed here")
        box = Outbox(disk / "box", BARE)
        sender = Forwarder(
            box, Link(LinkSettings("http://127.0.0.1:9")), lambda: TOKEN, ForwardSettings("box-1")
        ).start()
        sink = ForwardSink(box, lambda r: {"n": r.frame.frame_id}, sender)
        fill(disk)
        for n in range(50):
            sink.write(result(n))
        sink.close()
        sink.write(result())
        problems = sink.summary()["problems"]
    assert sum("could not be written" in p for p in problems) == 1
    assert problems["the outbox is closed"] == 1


def test_a_sink_delivers_through_to_the_centre(place):
    sink = ForwardSink(place.box, lambda r: {"n": r.frame.frame_id}, place.sender.start())
    for n in range(250):
        sink.write(result(n))
    assert until(lambda: len(place.arrived()) == 250)
    sink.close()
    assert place.arrived() == list(range(250))
    assert sink.summary()["rows"] == 250 and sink.summary()["state"] == "ok"


# -- kills


@pytest.mark.slow
def test_killed_again_and_again_nothing_is_lost_twice_or_out_of_order(tmp_path):
    found = kill_loop(tmp_path, 4, devices=2, seed=11, cuts=6)
    assert found["kills in all"] >= 4 and sum(found["cut"].values()) >= 6
    assert found["rows"] > 100 and found["promised"] > 0
    names = ("lost", "written and lost", "twice", "out of order", "holes", "findings")
    assert {n: found[n] for n in names} == dict.fromkeys(names, 0)
    assert found["most of one kill"] <= 130, "what `put` had not committed: 200 ms or 100 rows"


def test_a_full_local_disk_is_said_and_does_not_end_the_sender(place, monkeypatch):
    place.write(2)

    def full(*what, **how):
        raise SinkError("the outbox cannot be written: disk full", "x", "free some space")

    monkeypatch.setattr(forward, "acknowledge", full)
    assert place.sender.step() > 0 and place.sender.status.state == "disk"
    monkeypatch.setattr(forward, "acknowledge", acknowledge)
    place.now += 100
    place.run()
    assert place.arrived() == [0, 1] and outbox_status(place.box).waiting == 0
