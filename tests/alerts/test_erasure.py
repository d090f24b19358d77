"An erasure reaches the incident book: pictures, texts and notes go, numbers stay."

from datetime import datetime, timedelta, timezone

import pytest

from cv_pipeline.alerts.daemon import AlertDaemon
from cv_pipeline.alerts.incidents import (
    Happening,
    IncidentBook,
    acknowledge,
    fire,
    incident,
    incidents,
    ingest,
    keep_picture,
    take,
)
from cv_pipeline.alerts.policy import Subject, read_policy
from cv_pipeline.privacy.places import open_stores
from cv_pipeline.privacy.stores import StoreError, Wanted
from cv_pipeline.privacy.stores import Subject as Erased

POLICY = read_policy(
    {
        "channels": {"desk": {"kind": "webhook", "url": "http://127.0.0.1:1/"}},
        "levels": [{"after_s": 0, "channels": ["desk"], "repeat_s": 60}],
    }
)
NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


@pytest.fixture
def project(tmp_path):
    "A gate and a yard, two tracks an hour each, with pictures and an answer."
    path = tmp_path / "alerts" / "incidents.sqlite"
    with IncidentBook(path) as book:
        for camera in ("gate", "yard"):
            for k in range(4):
                at = (NOON + timedelta(minutes=30 * k)).timestamp()
                name = f"{camera}-{k}"
                take(
                    book,
                    [
                        Happening(
                            name, Subject("x", camera, "fence"), "enter", at, k % 2, f"marker {name} text"
                        )
                    ],
                )
                keep_picture(book, name, f"picture of {name} ".encode() * 300, 1.0)
        ingest(book, POLICY)
        fire(book, POLICY)
        acknowledge(book, POLICY, 1, "Petra", "marker note")
    return tmp_path


def erase(project, subject):
    "Everything that is found goes; how many events that were."
    (store,) = [s for s in open_stores(project)[0] if s.kind == "incidents"]
    rows = 0
    for found in store.find(Wanted(subject)):
        rows += found.rows
        store.erase(found, Wanted(subject, reason="1"))
    assert list(store.find(Wanted(subject))) == []
    return rows


def bytes_of(project):
    return b"".join(p.read_bytes() for p in sorted((project / "alerts").iterdir()) if p.is_file())


def test_a_camera_goes_with_its_pictures_and_notes(project):
    assert erase(project, Erased("gate")) == 4
    data = bytes_of(project)
    assert b"of gate" not in data and b"marker gate" not in data and b"marker note" not in data
    assert b"of yard-3" in data and b"marker yard-3" in data
    with IncidentBook(project / "alerts" / "incidents.sqlite") as book:
        counts = {r["camera"]: (r["count"], r["tracks"]) for r in incidents(book)}
        assert [h["what"] for h in incident(book, 1)["history"]] == ["opened", "level 1", "acknowledged"]
    assert counts == {"gate": (4, 0), "yard": (4, 2)}


def test_a_period_goes_and_the_rest_stays(project):
    assert erase(project, Erased("gate", NOON, NOON + timedelta(hours=1))) == 2
    data = bytes_of(project)
    assert b"of gate-0" not in data and b"of gate-1" not in data and b"of gate-2" in data


def test_a_track_goes(project):
    assert erase(project, Erased("gate", track=1)) == 2
    data = bytes_of(project)
    assert b"of gate-1" not in data and b"of gate-3" not in data and b"of gate-2" in data
    with IncidentBook(project / "alerts" / "incidents.sqlite") as book:
        assert [t["track"] for t in incident(book, 1)["tracks"]] == [0]


def test_while_the_daemon_has_the_file_nothing_is_erased_and_that_is_reported(project):
    with AlertDaemon(project / "alerts" / "incidents.sqlite", POLICY):
        with pytest.raises(StoreError, match="daemon of alerts has this file.*stop"):
            erase(project, Erased("gate"))
    assert erase(project, Erased("gate")) == 4


def test_the_same_recording_played_again_does_not_bring_an_event_back(project):
    erase(project, Erased("gate"))
    with IncidentBook(project / "alerts" / "incidents.sqlite") as book:
        again = Happening(
            "gate-0", Subject("x", "gate", "fence"), "enter", NOON.timestamp(), 0, "marker gate-0 text"
        )
        assert take(book, [again]) == 0
