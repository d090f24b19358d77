"The centre calls for a site that fell silent, and no longer when it is heard again: once each, kill or not."

import itertools

import pytest

from cv_pipeline.alerts.handover import SILENT, HandoverSettings, hand_over, owner_of, silent_for
from cv_pipeline.alerts.incidents import IncidentBook, acknowledge, fire, incident, incidents, ingest, resolve
from cv_pipeline.alerts.policy import read_policy
from cv_pipeline.alerts.sites import BoxState, SiteState
from cv_pipeline.alerts.snapshots import OpenIncident, Snapshot
from cv_pipeline.core.types import ConfigError

LAST = "2026-06-01T22:00:00+00:00"
FENCE = OpenIncident("7", "fence: a person", "critical", "2026-06-01T21:58:00+00:00", "open", "gate")
DOOR = OpenIncident("8", "door: a person", "warning", "2026-06-01T21:40:00+00:00", "acknowledged", "hall")
POLICY = {
    "channels": {"desk": {"kind": "webhook", "url": "http://127.0.0.1:9/"}},
    "levels": [{"after_s": 0, "channels": ["desk"], "repeat_s": 60}],
}


def box(state, age_s, *open_incidents, name="box-1", at=LAST):
    return BoxState(
        name, state, age_s=age_s, snapshot=Snapshot("brno", name, "run", at, incidents=open_incidents)
    )


def site(*boxes, name="brno"):
    return SiteState(name, min((b.state for b in boxes), default="unreadable"), (), boxes)


class Centre:
    "A book with its daemon's rounds."

    def __init__(self, path):
        self.book, self.policy = IncidentBook(path), read_policy(POLICY)

    def round(self, *sites):
        done = hand_over(self.book, self.policy, sites)
        ingest(self.book, self.policy)
        fire(self.book, self.policy)
        return done

    @property
    def rules(self):
        return sorted(i["rule"] for i in incidents(self.book))


@pytest.fixture
def centre(tmp_path):
    made = Centre(tmp_path / "centre.sqlite")
    yield made
    made.book.close()


@pytest.mark.parametrize(
    "boxes, owner",
    [
        ((box("ok", 10),), "site"),
        ((box("stale", 599),), "site"),
        ((box("stale", 600),), "centre"),
        ((box("ended", 90_000),), "site"),
        ((box("failed", 90_000),), "site"),
        ((box("stale", 900), box("ok", 5, name="box-2")), "site"),
        ((box("stale", 900), box("stale", 700, name="box-2")), "centre"),
        ((BoxState("box-1", "unreadable", age_s=900),), "centre"),
        ((), "site"),
    ],
)
def test_who_calls(boxes, owner):
    assert owner_of(site(*boxes)) == owner


def test_a_site_of_two_boxes_is_silent_since_the_last_of_them():
    assert silent_for(site(box("stale", 900), box("stale", 700, name="box-2"))) == 700


def test_what_was_open_without_an_answer_is_taken_over_with_the_silence(centre):
    assert centre.round(site(box("stale", 700, FENCE, DOOR))).taken == ("brno",)
    assert centre.rules == ["fence: a person", SILENT]
    by = {i["rule"]: i for i in incidents(centre.book)}
    assert by[SILENT]["text"] == "no state for 12 min; 1 incidents were open there without an answer"
    assert (by["fence: a person"]["camera"], by["fence: a person"]["severity"]) == ("gate", "critical")
    assert centre.book.value("SELECT count(*) FROM notices") == 2


def test_one_silence_is_taken_over_once(centre):
    for age in (700, 730, 5000):
        centre.round(site(box("stale", age, FENCE)))
    assert centre.book.value("SELECT count(*) FROM events") == 2


def test_a_site_that_is_heard_again_gets_its_incidents_back(centre):
    centre.round(site(box("stale", 700, FENCE)))
    assert len(centre.round(site(box("ok", 5, FENCE))).back) == 2
    assert centre.rules == []
    assert incident(centre.book, 1)["history"][-1]["who"] == "centre"
    assert centre.round(site(box("ok", 5, FENCE))).back == ()


def test_a_short_gap_after_it_gives_nothing_back_and_takes_nothing_over(centre):
    centre.round(site(box("stale", 700, FENCE)))
    late = box("stale", 60, FENCE, at="2026-06-01T23:00:00+00:00")  # it was heard, and is stale again
    assert centre.round(site(late)) == ((), ())


def test_the_next_silence_is_another_one(centre):
    centre.round(site(box("stale", 700, FENCE)))
    centre.round(site(box("ok", 5)))
    assert centre.round(site(box("stale", 700, FENCE, at="2026-06-02T22:00:00+00:00"))).taken == ("brno",)
    assert centre.rules == ["fence: a person", SILENT]


def test_what_a_person_ended_stays_ended_and_what_one_answers_is_ended_for_them(centre):
    centre.round(site(box("stale", 700, FENCE)))
    by = {i["rule"]: i["id"] for i in incidents(centre.book)}
    resolve(centre.book, centre.policy, by["fence: a person"], "Petra")
    acknowledge(centre.book, centre.policy, by[SILENT], "Petra")
    assert centre.round(site(box("ok", 5))).back == (by[SILENT],)
    assert incident(centre.book, by["fence: a person"])["history"][-1]["who"] == "Petra"


def test_sites_do_not_mix(centre):
    centre.round(site(box("stale", 700, FENCE)), site(box("stale", 800, FENCE), name="lyon"))
    centre.round(site(box("stale", 730, FENCE)), site(box("ok", 5), name="lyon"))
    assert {i["site"] for i in incidents(centre.book)} == {"brno"}


def test_other_incidents_of_the_centre_are_left_alone(centre):
    from cv_pipeline.alerts.incidents import Happening, take
    from cv_pipeline.alerts.policy import Subject

    take(centre.book, [Happening("e1", Subject("brno", "gate", "fence"), "zone_enter", 1e9, 1)])
    assert centre.round(site(box("ok", 5))).back == () and centre.rules == ["fence"]


def test_killed_anywhere_it_is_repeated_to_the_same_end(tmp_path):
    class Killed(BaseException):
        pass

    for step in itertools.count():
        left, path = [step], tmp_path / f"{step}.sqlite"

        def dies(name, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        book, policy, killed = IncidentBook(path, step=dies), read_policy(POLICY), False
        try:
            hand_over(book, policy, [site(box("stale", 700, FENCE))])
            ingest(book, policy)
        except Killed:
            killed = True
        book.close()
        again = Centre(path)
        again.round(site(box("stale", 730, FENCE)))
        assert again.rules == ["fence: a person", SILENT]
        assert again.book.value("SELECT count(*) FROM events") == 2
        again.book.close()
        if not killed:
            break
    assert step > 2


def test_titles_of_a_site_are_text(centre):
    bad = OpenIncident("9", "<script>alert(1)</script>\n" + "x" * 900, "critical", "", "open", "ga\x00te")
    centre.round(site(box("stale", 700, bad)))
    rule = next(i["rule"] for i in incidents(centre.book) if i["rule"] != SILENT)
    assert len(rule) <= 80 and "\n" not in rule


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_silence_of_no_time_is_refused(seconds):
    with pytest.raises(ConfigError, match="silent_s"):
        HandoverSettings(seconds)
