"The incident book: once for each event, one for each key, and what is due at its time."

import json
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.alerts.incidents import (
    CLOSED,
    OPEN,
    Anchor,
    Happening,
    IncidentBook,
    acknowledge,
    add_silence,
    best_pictures,
    end_silence,
    fire,
    forget_old,
    incident,
    incidents,
    ingest,
    keep_picture,
    next_anchor,
    next_due,
    note_clock,
    open_silences,
    resolve,
    take,
)
from cv_pipeline.alerts.policy import Subject, Window, read_policy
from cv_pipeline.core.types import ConfigError, DataError, SinkError
from cv_pipeline.edge.outbox import DeviceClock
from tests.helpers.disks import fill, small_disk
from tests.helpers.services import absent

GATE = Subject("brno", "gate", "fence")
FRIDAY = 1_780_656_000.0  # 2026-06-05 10:40 UTC
DESK = {"desk": {"kind": "webhook"}, "phone": {"kind": "webhook"}}
LEVELS = [
    {"after_s": 0, "channels": ["desk"]},
    {"after_s": 300, "channels": ["desk", "phone"], "repeat_s": 600},
]


class Played:
    "A clock that tests move: the wall may jump, the machine may be started again."

    def __init__(self):
        self.wall, self.mono, self.boot = FRIDAY, 50.0, "first"

    def clock(self):
        return DeviceClock(lambda: self.wall, lambda: self.mono, self.boot)

    def pass_time(self, seconds):
        self.wall += seconds
        self.mono += seconds


class Place:
    "A book with its daemon's work done by hand."

    def __init__(self, path, **more):
        self.time, self.path, self.n = Played(), path, 0
        self.policy = read_policy({"channels": DESK, "levels": LEVELS, **more})
        self.book = IncidentBook(path, self.time.clock())

    def event(self, subject=GATE, track=1, **more):
        self.n += 1
        how = {"id": f"e{self.n}", "kind": "zone_enter", **more}
        take(self.book, [Happening(subject=subject, at=self.time.wall, track=track, **how)])

    def round(self):
        while ingest(self.book, self.policy):
            pass
        while fire(self.book, self.policy):
            pass

    def after(self, seconds):
        self.time.pass_time(seconds)
        self.round()

    def again(self):
        "The process is started again."
        self.book.close()
        self.book = IncidentBook(self.path, self.time.clock())

    def calls(self, number=None, kind="call"):
        rows = self.book.query("SELECT * FROM notices WHERE kind = ? ORDER BY id", kind)
        return [f"{r['episode']}/{r['step']} {r['channel']}" for r in rows if number in (None, r["incident"])]

    @property
    def states(self):
        return [r["state"] for r in self.book.query("SELECT state FROM incidents ORDER BY id")]


@pytest.fixture
def place(tmp_path):
    made = Place(tmp_path / "book.sqlite")
    yield made
    made.book.close()


def made_with(tmp_path, **more):
    return Place(tmp_path / "other.sqlite", **more)


# -- intake


def test_an_event_is_taken_once(place):
    one = Happening("same", GATE, "zone_enter", FRIDAY)
    assert [take(place.book, [one]), take(place.book, [one, one])] == [1, 0]


def test_events_become_one_incident_with_its_tracks(place):
    for k in range(20):
        place.event(track=k % 3)
    place.round()
    (row,) = incidents(place.book)
    assert (row["count"], row["tracks"], place.calls()) == (20, 3, ["0/0.0 desk"])


def test_every_key_has_its_own(place):
    for subject in (GATE, GATE._replace(camera="yard"), GATE._replace(rule="door"), GATE._replace(site="x")):
        place.event(subject)
    place.round()
    assert len(incidents(place.book)) == 4


def test_a_policy_may_put_rules_together(tmp_path):
    place = made_with(tmp_path, one_per=["site", "camera"])
    place.event()
    place.event(GATE._replace(rule="door"))
    place.round()
    assert [r["count"] for r in incidents(place.book)] == [2]


def test_fields_of_any_kind_are_kept_as_text(place):
    nasty = Subject("a\x00\n<b>", "caf\udce9 ✓", "x" * 2000)
    place.event(nasty, text="line\r\nanother \u202e")
    place.round()
    (row,) = incidents(place.book)
    assert "\n" not in row["site"] + row["text"] and len(row["rule"]) == 500


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2)), max_size=40), st.integers(1, 7))
def test_in_whatever_pieces_events_are_read_they_are_counted_once(tmp_path_factory, events, most):
    place = Place(tmp_path_factory.mktemp("b") / "book.sqlite")
    taken = [
        Happening(f"{n}", GATE._replace(camera=f"c{camera}"), "zone_enter", FRIDAY, n) for n, camera in events
    ]
    take(place.book, taken)
    while ingest(place.book, place.policy, most):
        pass
    count = place.book.value("SELECT ifnull(sum(count), 0) FROM incidents")
    place.book.close()
    assert count == len({n for n, _ in events})


def test_two_open_incidents_of_a_key_are_refused_by_the_database(place):
    place.event()
    place.round()
    with pytest.raises(SinkError, match="UNIQUE"), place.book.changing() as db:
        names = (
            "key, site, camera, rule, severity, ladder, state, opened, last_at, count, openings, ladder_at"
        )
        db.execute(f"INSERT INTO incidents({names}) SELECT {names} FROM incidents")


# -- the ladder


def test_levels_are_called_at_their_times(place):
    place.event()
    place.round()
    place.after(299)
    assert place.calls() == ["0/0.0 desk"]
    place.after(1)
    assert place.calls()[1:] == ["0/1.0 desk", "0/1.0 phone"]
    place.event()  # a repeat keeps it open
    place.after(600)
    assert place.calls()[3:] == ["0/1.1 desk", "0/1.1 phone"]


def test_the_ladder_counts_from_the_event_not_from_its_reading(place):
    place.event()
    place.time.pass_time(200)
    place.round()
    place.after(100)
    assert "0/1.0 phone" in place.calls()


def test_after_three_hours_the_newest_call_once_and_late(tmp_path):
    place = made_with(tmp_path, resolve_s=86_400)
    place.event()
    place.round()
    place.time.pass_time(3 * 3600)
    place.again()
    place.round()
    rows = place.book.query("SELECT step, late FROM notices WHERE id > 1")
    assert [(r["step"], r["late"]) for r in rows] == [("1.17", 1), ("1.17", 1)]
    place.again()
    place.round()
    assert len(place.calls()) == 3


def test_after_a_restart_nothing_is_called_again(place):
    place.event()
    place.round()
    for _ in range(3):
        place.again()
        place.round()
    assert place.calls() == ["0/0.0 desk"]


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_wall_clock_that_jumps_moves_no_timer(place, jump):
    place.event()
    place.round()
    place.time.wall += jump
    place.after(299)
    assert len(place.calls()) == 1
    place.after(1)
    assert len(place.calls()) == 3


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_wall_clock_that_jumps_while_the_daemon_is_down(place, jump):
    place.event()
    place.round()
    place.time.wall += jump
    place.time.pass_time(299)
    place.again()
    place.round()
    assert len(place.calls()) == 1
    place.after(1)
    assert len(place.calls()) == 3


def test_another_start_of_the_machine_continues_by_the_wall_clock(place):
    place.event()
    place.round()
    note_clock(place.book)
    place.time.wall += 400
    place.time.mono, place.time.boot = 3.0, "second"
    place.again()
    place.round()
    assert place.calls()[1:] == ["0/1.0 desk", "0/1.0 phone"]


def test_a_start_with_the_clock_of_1970_fires_nothing_early_and_nothing_twice(place):
    place.event()
    place.round()
    note_clock(place.book)
    place.time.wall, place.time.mono, place.time.boot = 5.0, 3.0, "second"
    place.again()
    place.round()
    assert len(place.calls()) == 1
    place.after(300)
    assert len(place.calls()) == 3


def test_an_anchor_holds_for_one_start_of_the_machine():
    old = Anchor("a", 5.0, 1000.0, 1000.0)
    assert next_anchor(old, DeviceClock(lambda: 9e9, lambda: 6.0, "a")) is old
    assert next_anchor(old, DeviceClock(lambda: 1400.0, lambda: 1.0, "b")).steady == 1400.0


def test_a_ladder_whose_policy_was_changed_continues_with_the_default(place):
    place.event()
    place.round()
    with place.book.changing() as db:
        db.execute("UPDATE incidents SET ladder = 'removed'")
    place.after(300)
    assert len(place.calls()) == 3


# -- ends


def test_without_an_event_for_long_it_expires_unanswered(place):
    place.event()
    place.round()
    place.after(3600)
    assert place.states == ["expired"]
    assert next_due(place.book) is None


def test_a_person_resolves_and_who_was_called_hears_of_it(place):
    place.event()
    place.round()
    with place.book.changing() as db:
        db.execute("UPDATE notices SET state = 'sent'")
    resolve(place.book, place.policy, 1, "Petra", "a fox")
    assert (place.states, place.calls(kind="resolved")) == (["resolved"], ["0/end desk"])


def test_who_was_not_called_hears_nothing(place):
    place.event()
    place.round()
    resolve(place.book, place.policy, 1, "Petra")
    assert place.calls(kind="resolved") == []
    assert place.book.value("SELECT state FROM notices") == "cancelled"


def test_a_track_that_leaves_ends_nothing_unless_the_route_says_so(tmp_path, place):
    place.event()
    place.event(kind="zone_leave", ends=True)
    place.round()
    assert place.states == ["firing"]
    other = made_with(tmp_path, routes=[{"leave_ends": True}])
    other.event(track=1)
    other.event(track=2)
    other.event(track=1, kind="zone_leave", ends=True)
    other.round()
    assert other.states == ["firing"]
    other.event(track=2, kind="zone_leave", ends=True)
    other.round()
    assert other.states == ["resolved"]


def test_an_end_without_a_beginning_is_nothing(place):
    place.event(kind="zone_leave", ends=True)
    place.round()
    assert place.states == []


def test_an_event_soon_after_the_end_opens_the_same_incident_again(place):
    place.event()
    place.round()
    resolve(place.book, place.policy, 1, "Petra")
    place.time.pass_time(599)
    place.event()
    place.round()
    assert (place.states, place.calls()[-1]) == (["firing"], "1/0.0 desk")


def test_an_event_long_after_the_end_is_another_one(place):
    place.event()
    place.round()
    resolve(place.book, place.policy, 1, "Petra")
    place.time.pass_time(601)
    place.event()
    place.round()
    assert place.states == ["resolved", "firing"]


def test_thirty_openings_are_one_incident_called_a_few_times(place):
    for _ in range(30):
        place.event()
        place.round()
        place.after(10)
        resolve(place.book, place.policy, 1, "sensor")
        place.after(10)
    (row,) = incidents(place.book, CLOSED)
    assert (row["count"], row["flapping"], "flapping" in row["why"]) == (30, 1, True)
    assert len([c for c in place.calls() if "0.0" in c]) == 4


# -- people


def test_an_acknowledgement_stops_the_ladder_at_once(place):
    place.event()
    place.round()
    acknowledge(place.book, place.policy, 1, "Petra", "on my way")
    place.after(3600)
    assert (place.calls(), place.states) == (["0/0.0 desk"], ["acknowledged"])


def test_calls_that_wait_when_somebody_answers_are_not_made(place):
    place.event()
    place.round()
    acknowledge(place.book, place.policy, 1, "Petra")
    assert place.book.query("SELECT state, problem FROM notices") == [
        {"state": "cancelled", "problem": "acknowledged by Petra"}
    ]


def test_an_acknowledgement_reminds_ends_and_the_ladder_continues_where_it_was(place):
    place.event()
    place.round()
    place.after(300)
    acknowledge(place.book, place.policy, 1, "Petra", hours=1)
    place.after(2999)
    assert place.calls(kind="reminder") == []
    place.after(1)
    assert place.calls(kind="reminder") == ["0/reminder-1 desk", "0/reminder-1 phone"]
    place.after(600)
    assert place.states == ["firing"]
    assert place.calls()[3:] == ["1/1.0 desk", "1/1.0 phone"]


def test_an_acknowledgement_before_any_call_resumes_with_the_first_level(tmp_path):
    place = made_with(tmp_path, quiet=[{"from": "00:00", "to": "23:00"}])
    place.event()
    place.round()
    acknowledge(place.book, place.policy, 1, "Petra", hours=13)
    place.after(13 * 3600)
    assert place.calls() == ["1/0.0 desk"]


def test_a_second_answer_takes_the_place_of_the_first(place):
    place.event()
    place.round()
    acknowledge(place.book, place.policy, 1, "Petra", hours=1)
    acknowledge(place.book, place.policy, 1, "Ivan", hours=8)
    place.after(4 * 3600)
    (row,) = incidents(place.book)
    assert (row["state"], row["ack"]["who"]) == ("acknowledged", "Ivan")


@pytest.mark.parametrize("hours", [1, 4])
def test_the_hours_are_those_of_the_route_or_the_policy(tmp_path, hours):
    place = made_with(tmp_path, routes=[{"ack_hours": 1}] if hours == 1 else [])
    place.event()
    place.round()
    assert acknowledge(place.book, place.policy, 1, "Petra") == FRIDAY + 3600 * hours


def test_answers_that_cannot_be(place):
    place.event()
    place.round()
    with pytest.raises(ConfigError, match="needs a name"):
        acknowledge(place.book, place.policy, 1, " \n")
    with pytest.raises(DataError, match="incident 7 is unknown"):
        acknowledge(place.book, place.policy, 7, "Petra")
    resolve(place.book, place.policy, 1, "Petra")
    with pytest.raises(DataError, match="is resolved"):
        acknowledge(place.book, place.policy, 1, "Petra")
    with pytest.raises(DataError, match="is resolved"):
        resolve(place.book, place.policy, 1, "Petra")


def test_two_people_at_once_leave_one_state(place):
    place.event()
    place.round()
    other = IncidentBook(place.path, place.time.clock())
    errors = []

    def answer(book, who):
        try:
            acknowledge(book, place.policy, 1, who)
        except Exception as e:
            errors.append(e)

    people = [
        threading.Thread(target=answer, args=(b, f"p{k}")) for k, b in enumerate((place.book, other) * 4)
    ]
    for p in people:
        p.start()
    for p in people:
        p.join()
    other.close()
    assert errors == [] and place.states == ["acknowledged"]
    assert place.book.value("SELECT count(*) FROM acks") == 8


def test_the_history_says_who_when_and_what(place):
    place.event()
    place.round()
    acknowledge(place.book, place.policy, 1, "Petra", "on my way")
    resolve(place.book, place.policy, 1, "Ivan", "a fox")
    history = [(h["what"], h["who"], h["detail"]) for h in incident(place.book, 1)["history"]]
    assert history == [
        ("opened", "", ""),
        ("level 1", "", ""),
        ("acknowledged", "Petra", "on my way"),
        ("resolved", "Ivan", "a fox"),
    ]


# -- quiet


def test_in_quiet_hours_nothing_is_called_and_then_the_ladder_begins(tmp_path):
    place = made_with(tmp_path, quiet=[{"from": "10:00", "to": "12:00"}], resolve_s=86_400)
    place.event()
    place.round()
    assert (place.calls(), place.states) == ([], ["suppressed"])
    place.after(3600)
    assert place.calls() == []
    place.after(20 * 60)
    assert (place.calls(), place.states) == (["0/0.0 desk"], ["firing"])
    place.after(300)
    assert len(place.calls()) == 3


def test_a_level_that_is_severe_enough_passes_quiet_hours(tmp_path):
    levels = [LEVELS[0], {**LEVELS[1], "severity": "critical"}]
    place = made_with(tmp_path, levels=levels, quiet=[{"from": "10:00", "to": "12:00"}], resolve_s=86_400)
    place.event()
    place.round()
    place.after(299)
    assert place.calls() == []
    place.after(1)
    assert place.calls() == ["0/1.0 desk", "0/1.0 phone"]
    place.after(600)
    assert place.calls()[2:] == ["0/1.1 desk", "0/1.1 phone"]


def test_a_wall_clock_that_is_set_ends_quiet_hours_within_the_hour(tmp_path):
    place = made_with(tmp_path, quiet=[{"from": "10:00", "to": "20:00"}], resolve_s=86_400)
    place.event()
    place.round()
    place.time.wall += 10 * 3600
    place.after(3600)
    assert place.calls() == ["0/0.0 desk"]


def test_maintenance_is_kept_counted_and_not_called(tmp_path):
    place = made_with(tmp_path, maintenance=[{"from": "10:00", "to": "11:00", "why": "crane"}])
    place.event()
    place.event()
    place.round()
    assert (place.calls(), place.states) == ([], ["suppressed"])
    place.after(3600)
    (row,) = incidents(place.book, CLOSED)
    assert (row["state"], row["count"], row["why"], place.calls()) == ("expired", 2, "crane", [])


def test_an_event_after_maintenance_is_called(tmp_path):
    place = made_with(tmp_path, maintenance=[{"from": "10:00", "to": "10:45", "why": "crane"}])
    place.event()
    place.round()
    place.after(310)
    place.event()
    place.round()
    assert place.calls() == ["1/0.0 desk"]


def test_maintenance_that_begins_later_holds_the_ladder(tmp_path):
    place = made_with(
        tmp_path, maintenance=[{"from": "10:43", "to": "11:43", "why": "crane"}], resolve_s=86_400
    )
    place.event()
    place.round()
    place.after(300)
    assert place.calls() == ["0/0.0 desk"]
    place.after(3600)
    assert place.calls() == ["0/0.0 desk", "0/1.0 desk", "0/1.0 phone"]


def test_a_silence_of_a_person_holds_and_can_be_ended(place):
    number = add_silence(place.book, Window(cameras=("gate",), why="stocktaking"), 2, "Petra")
    assert open_silences(place.book)[0]["why"] == "stocktaking"
    place.event()
    place.event(GATE._replace(camera="yard"))
    place.round()
    assert sorted(place.states) == ["firing", "suppressed"]
    end_silence(place.book, number)
    assert open_silences(place.book) == []
    with pytest.raises(DataError, match="unknown or over"):
        end_silence(place.book, number)


def test_a_silence_has_an_end(place):
    with pytest.raises(ConfigError, match="at most 720"):
        add_silence(place.book, Window(why="for ever"), 1000, "Petra")


# -- the file


def test_an_event_and_its_incident_are_one_transaction(place):
    place.event()

    def stop(name):
        if name == "ingest.applied":
            raise KeyboardInterrupt

    place.book.step = stop
    with pytest.raises(KeyboardInterrupt):
        ingest(place.book, place.policy)
    place.book.step = lambda name: None
    place.again()
    assert place.states == []
    place.round()
    assert incidents(place.book)[0]["count"] == 1


def test_a_damaged_book_says_what_to_do(tmp_path):
    (tmp_path / "book.sqlite").write_bytes(os.urandom(9000))
    with pytest.raises(SinkError, match="incident book is corrupt.*move it away"):
        IncidentBook(tmp_path / "book.sqlite")


def test_a_full_disk_takes_none_of_a_batch_and_all_of_it_later(tmp_path):
    with small_disk(tmp_path / "disk", 700) as disk:
        if disk is None:
            absent("mounting is not allowed here")
        place = Place(disk / "book.sqlite")
        ballast = fill(disk)
        many = [Happening(f"e{k}", GATE, "zone_enter", FRIDAY, k, "x" * 400) for k in range(300)]
        with pytest.raises(SinkError, match="free some space"):
            take(place.book, many)
        assert place.book.value("SELECT count(*) FROM events") == 0
        ballast.unlink()
        assert take(place.book, many[:50]) == 50
        place.round()
        assert incidents(place.book)[0]["count"] == 50
        place.book.close()


def test_the_best_picture_of_each_track(place):
    for track, name in ((1, "e1"), (2, "e2"), (1, "e3")):
        place.event(track=track)
        keep_picture(place.book, name, name.encode(), {"e1": 0.3, "e2": 0.5, "e3": 0.9}[name])
    place.round()
    keep_picture(place.book, "e2", b"worse", 0.1)
    assert best_pictures(place.book, 1) == [(1, b"e3"), (2, b"e2")]


def test_old_incidents_go_with_everything_and_open_ones_stay(place):
    place.event()
    place.event(GATE._replace(camera="yard"))
    keep_picture(place.book, "e1", b"jpeg", 1.0)
    place.round()
    resolve(place.book, place.policy, 1, "Petra")
    acknowledge(place.book, place.policy, 2, "Petra", hours=700)
    place.time.pass_time(89 * 86_400)
    assert forget_old(place.book, place.policy) == 0
    place.time.pass_time(2 * 86_400)
    assert forget_old(place.book, place.policy) == 1
    left = {
        t: place.book.value(f"SELECT count(*) FROM {t}")
        for t in ("events", "pictures", "incidents", "tracks")
    }
    assert left == {"events": 1, "pictures": 0, "incidents": 1, "tracks": 1}


def test_what_no_incident_names_goes_too_but_not_before_it_was_read(place):
    place.event(kind="zone_leave", ends=True)
    place.round()
    place.event(kind="zone_leave", ends=True)
    place.time.pass_time(100 * 86_400)
    forget_old(place.book, place.policy)
    assert [r["seq"] for r in place.book.query("SELECT seq FROM events")] == [2]


def test_states_are_those_of_the_field(place):
    assert set(OPEN) & set(CLOSED) == set()
    place.event()
    place.round()
    assert json.loads(json.dumps(incidents(place.book)))[0]["state"] in OPEN
