"Calls that are owed are sent until they are taken: once for who looks at the key, whatever fails."

import threading
from collections import Counter

import pytest

from cv_pipeline.alerts.incidents import (
    Happening,
    IncidentBook,
    acknowledge,
    fire,
    ingest,
    keep_picture,
    take,
)
from cv_pipeline.alerts.outbox_of_alerts import (
    Sender,
    Senders,
    SendSettings,
    bring_forward,
    key_of_notice,
    notice_of,
)
from cv_pipeline.alerts.policy import Subject, read_policy
from cv_pipeline.core.types import ConfigError, SinkError
from cv_pipeline.edge.outbox import DeviceClock
from tests.helpers.waiting import until

POLICY = read_policy(
    {
        "channels": {"desk": {"kind": "webhook"}, "phone": {"kind": "webhook"}},
        "levels": [
            {"after_s": 0, "channels": ["desk"]},
            {"after_s": 900, "channels": ["desk", "phone"], "repeat_s": 900},
        ],
    }
)


class Channel:
    "Fails as a list says: None is taken, an error is raised, a function is called."

    def __init__(self, name="desk", plan=()):
        self.name, self.plan, self.got, self.calls = name, list(plan), [], 0

    def send(self, notice):
        self.calls += 1
        what = self.plan.pop(0) if self.plan else None
        if isinstance(what, Exception):
            raise what
        if what is not None:
            what(notice)
        self.got.append(notice)

    def close(self): ...


AWAY = SinkError("the receiver was not reached", "desk")


class Place:
    def __init__(self, path):
        self.mono = 100.0
        clock = DeviceClock(lambda: 1_780_000_000.0 + self.mono, lambda: self.mono, "boot")
        self.book = IncidentBook(path, clock)

    def open(self, n):
        "So many incidents, each with its first call."
        done = self.book.value("SELECT count(*) FROM events")
        ids = range(done, done + n)
        take(
            self.book,
            [Happening(f"e{k}", Subject("brno", f"c{k}", "fence"), "enter", 1.78e9, k) for k in ids],
        )
        self.round()

    def round(self):
        ingest(self.book, POLICY)
        fire(self.book, POLICY)

    def states(self):
        return Counter(r["state"] for r in self.book.query("SELECT state FROM notices"))


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path / "book.sqlite")
    yield made
    made.book.close()


def test_a_call_is_sent_once(place):
    place.open(3)
    desk = Sender(place.book, Channel())
    assert [desk.step(), desk.step()] == [3, 0]
    assert place.states() == {"sent": 3}


def test_a_call_that_failed_waits_longer_and_longer(place):
    place.open(1)
    desk = Sender(place.book, Channel(plan=[AWAY] * 12), draw=lambda: 1.0)
    times = []
    while not desk.channel.got:
        before = desk.channel.calls
        desk.step()
        if desk.channel.calls > before:
            times.append(place.mono)
        place.mono += 0.5
    gaps = [b - a for a, b in zip(times, times[1:])]
    assert gaps == sorted(gaps) and gaps[0] <= 1.5 and 299 <= gaps[-1] <= 301


def test_jitter_never_makes_a_call_wait_for_nothing():
    assert SendSettings().wait(0, 0.0) > 0
    assert SendSettings().wait(50, 1.0) == 300


def test_the_key_and_the_words_are_the_same_when_it_is_sent_again(place):
    place.open(1)
    sent = []
    desk = Sender(place.book, Channel(plan=[lambda n: sent.append(n), None]), draw=lambda: 0.0)

    def lost(notice):
        sent.append(notice)
        raise AWAY

    desk.channel.plan = [lost, None]
    desk.step()
    place.mono += 5
    desk.step()
    assert sent == desk.channel.got


def test_two_books_have_other_keys(place, tmp_path):
    other = Place(tmp_path / "other.sqlite")
    place.open(1)
    other.open(1)
    keys = {key_of_notice(p.book, p.book.query("SELECT * FROM notices")[0]) for p in (place, other)}
    other.book.close()
    assert len(keys) == 2


def test_a_call_says_how_things_stand_when_it_is_sent(place):
    place.open(1)
    keep_picture(place.book, "e0", b"jpeg", 1.0)
    take(place.book, [Happening("more", Subject("brno", "c0", "fence"), "enter", 1.78e9, 9)])
    place.round()
    (row,) = place.book.query("SELECT * FROM notices")
    notice = notice_of(place.book, row, lambda row, key: f"https://x/{key}")
    assert (notice.count, notice.tracks, notice.pictures, notice.level) == (2, 2, (b"jpeg",), 1)
    assert notice.link.endswith(notice.key)


def test_a_failing_channel_delays_no_other(place):
    place.open(1)
    place.mono += 900
    place.round()
    Sender(place.book, Channel("desk", [AWAY] * 9)).step()
    phone = Sender(place.book, Channel("phone"))
    assert phone.step() == 1


def test_a_channel_that_keeps_failing_gets_one_call_at_a_time(place):
    place.open(50)
    desk = Sender(place.book, Channel(plan=[AWAY] * 100))
    desk.step()
    assert desk.channel.calls == 3  # then it pauses
    assert desk.step() == 0 and desk.channel.calls == 3
    place.mono += 3
    desk.step()
    assert desk.channel.calls == 4


def test_one_bad_call_does_not_hold_the_others(place):
    place.open(5)
    desk = Sender(place.book, Channel(plan=[ValueError("a bug")]))
    assert desk.step() == 4
    assert place.states() == {"sent": 4, "waiting": 1}
    assert "a bug" in place.book.value("SELECT problem FROM notices WHERE state = 'waiting'")


def test_a_person_who_answers_stops_calls_that_wait(place):
    place.open(2)
    answer = lambda notice: acknowledge(place.book, POLICY, 2, "Petra")
    desk = Sender(place.book, Channel(plan=[answer]))
    assert desk.step() == 1
    assert place.states() == {"sent": 1, "cancelled": 1}


def test_when_no_channel_takes_it_the_next_level_is_called(place):
    place.open(1)
    desk = Sender(place.book, Channel(plan=[AWAY] * 99))
    desk.step()
    place.mono += 299
    assert bring_forward(place.book, POLICY) == 0
    place.mono += 2
    assert bring_forward(place.book, POLICY) == 1
    place.round()
    rows = place.book.query("SELECT step, channel FROM notices ORDER BY id")
    assert [(r["step"], r["channel"]) for r in rows] == [("0.0", "desk"), ("1.0", "desk"), ("1.0", "phone")]
    assert bring_forward(place.book, POLICY) == 0


def test_a_call_that_was_taken_brings_nothing_forward(place):
    place.open(1)
    Sender(place.book, Channel()).step()
    place.mono += 500
    assert bring_forward(place.book, POLICY) == 0


def test_a_call_that_nobody_tried_brings_nothing_forward(place):
    place.open(1)  # e.g. the daemon was down
    place.mono += 500
    assert bring_forward(place.book, POLICY) == 0


def test_the_ladder_continues_after_it_was_brought_forward(place):
    place.open(1)
    Sender(place.book, Channel(plan=[AWAY] * 99)).step()
    place.mono += 301
    bring_forward(place.book, POLICY)
    place.round()
    place.mono += 900
    place.round()
    steps = [r["step"] for r in place.book.query("SELECT DISTINCT step FROM notices ORDER BY id")]
    assert steps == ["0.0", "1.0", "1.1"]


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="first_s is not above 0"):
        SendSettings(first_s=0)


def test_a_receiver_that_hangs_holds_its_own_thread_only(tmp_path):
    book, release = IncidentBook(tmp_path / "book.sqlite"), threading.Event()
    take(book, [Happening("e", Subject("", "gate", "fence"), "enter", 1.78e9)])
    ingest(book, POLICY)
    fire(book, POLICY)
    with book.changing() as db:
        rest = "incident, episode, step, kind, severity, late, planned, wall, due"
        db.execute(f"INSERT INTO notices(channel, {rest}) SELECT 'phone', {rest} FROM notices")
    hanging, phone = Channel("desk", [lambda n: release.wait(30)]), Channel("phone")
    senders = Senders(book, {"desk": hanging, "phone": phone})
    try:
        until(lambda: phone.got and hanging.calls, 30)
        assert hanging.got == []
    finally:
        release.set()
        senders.close()
    assert len(hanging.got) == 1  # a call that is under way is finished
    assert book.value("SELECT count(*) FROM notices WHERE state = 'sent'") == 2
    book.close()


def test_a_book_that_cannot_be_written_is_a_problem_and_no_end(tmp_path):
    book = IncidentBook(tmp_path / "book.sqlite")
    take(book, [Happening("e", Subject("", "gate", "fence"), "enter", 1.78e9)])
    ingest(book, POLICY)
    fire(book, POLICY)
    desk, real, broken = Channel(), book.query, threading.Event()
    broken.set()

    def query(sql, *values):
        if broken.is_set() and "notices" in sql:
            raise SinkError("the incident book cannot be read: disk I/O error", book.path, "free some space")
        return real(sql, *values)

    book.query = query
    senders = Senders(book, {"desk": desk})
    try:
        until(lambda: "cannot be read" in senders.problems.get("desk", ""), 30)
        broken.clear()
        until(lambda: desk.got, 30)
    finally:
        senders.close()
        book.close()
