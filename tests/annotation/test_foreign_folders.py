"Folders that somebody else wrote: nothing outside of them is read or written, no address in them is visited."

import json
import socket

import pytest

from cv_pipeline.annotation.collect import (
    RecordedAddress,
    read_collected,
    recorded_sources,
)
from cv_pipeline.core.files import path_below
from cv_pipeline.core.types import DataError

OUTSIDE = [
    "../up.jpg",
    "/etc/passwd",
    "a/../../up.jpg",
    "..\\up.jpg",
    "C:\\x.jpg",
    "http://host/x.jpg",
    "",
    "a\0b",
]
ROW = {
    "picture": "frames/gate/1.jpg",
    "source_id": "gate",
    "frame_id": 1,
    "captured_at": "2026-06-01T12:00:00+00:00",
    "size": [64, 48],
    "reasons": ["random"],
    "probability": 0.1,
    "phash": "0" * 16,
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_is_none(name):
    assert not path_below(name)


@pytest.mark.parametrize(
    "name", ["a.jpg", "a/b.jpg", "12:30:00.jpg", "a..b.jpg", "größe/寸.png", "-x", "a\\b.jpg"]
)
def test_a_name_that_stays_is_one(name):
    assert path_below(name)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_collection_cannot_name_pictures_outside(tmp_path, name):
    (tmp_path / "frames" / "gate").mkdir(parents=True)
    (tmp_path / "frames" / "gate" / "1.jpg").write_bytes(b"x")
    rows = [{**ROW, "picture": name}, ROW]
    (tmp_path / "collected.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.raises(DataError, match="line 1 .*not a path below the folder"):
        read_collected(tmp_path)


@pytest.mark.parametrize("name", ["../../up.jpg", "/etc/passwd"])
def test_a_version_cannot_name_pictures_outside(tmp_path, name):
    from cv_pipeline.annotation.versions import DatasetVersion, read_version

    row = {"picture": "0" * 64, "labels": "0" * 64, "side": "train", "asked": 0}
    made = DatasetVersion(tmp_path, "v", 1, ("a",), {name: row}, ((),), {})
    (tmp_path / "version.json").write_text(json.dumps(made.to_dict(), default=str))
    with pytest.raises(DataError, match="not a path below the folder"):
        read_version(tmp_path)


def test_an_audit_cannot_name_pictures_outside(tmp_path):
    from cv_pipeline.monitoring.audit import read_audit

    look = {
        "picture": "../../up.jpg",
        "camera": "gate",
        "frame_id": 1,
        "captured_at": "2026-06-01T12:00:00+00:00",
        "size": [64, 48],
        "stratum": "gate",
        "repeated": False,
    }
    from dataclasses import fields

    from cv_pipeline.monitoring.audit import AuditLook

    row = {f.name: look.get(f.name, [] if "tuple" in str(f.type) else 0) for f in fields(AuditLook)}
    (tmp_path / "sample.jsonl").write_text(json.dumps(row) + "\n")
    book = {
        "strata": {"gate": {"drawn": 1}},
        "names": [],
        "models": [],
        "window": [],
        "plan": {},
        "notes": [],
    }
    (tmp_path / "audit.json").write_text(json.dumps(book))
    with pytest.raises(DataError, match="not a path below the folder"):
        read_audit(tmp_path)


def foreign(tmp_path, *uris):
    "A run's folder with these sources."
    listed = [{"uri": uri, "id": f"s{k}"} for k, uri in enumerate(uris)]
    (tmp_path / "summary.json").write_text(json.dumps({"config": {"sources": listed}}))
    return tmp_path


@pytest.mark.parametrize(
    "uri",
    ["rtsp://admin:secret@10.0.0.7/x", "http://169.254.169.254/latest", "0", "/dev/video0", "udp://@:1234"],
)
def test_addresses_are_recorded_and_not_visited(tmp_path, uri):
    place = recorded_sources(foreign(tmp_path, uri, "belt.mp4", "line:"))
    assert isinstance(place["s0"], RecordedAddress) and "secret" not in place["s0"].hint
    assert (place["s1"], place["s2"]) == ("belt.mp4", "line:")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"config": {"sources": [1]}}', '{"config": {"sources": [{"id": 3}]}}']
)
def test_a_summary_that_is_none_is_a_typed_error(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(DataError, match="does not say what its sources were"):
        recorded_sources(tmp_path)


def test_collecting_from_a_foreign_run_calls_nobody(tmp_path):
    from cv_pipeline.annotation.collect import collect

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        (tmp_path / "run").mkdir()
        run = foreign(tmp_path / "run", f"http://127.0.0.1:{server.getsockname()[1]}/x.mp4")
        lines = [
            {
                "source_id": "s0",
                "frame_id": k,
                "captured_at": f"2026-06-01T12:00:{k:02d}+00:00",
                "size": [64, 48],
                "inferred": True,
                "status": "ok",
                "model": "m",
                "detections": [
                    {
                        "class_id": 0,
                        "class_name": "a",
                        "confidence": 0.4,
                        "xyxy": [1, 1, 9, 9],
                        "tracker_id": 1,
                    }
                ],
            }
            for k in range(20)
        ]
        (run / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(DataError, match="not visited"):
            collect(run, tmp_path / "out")
        with pytest.raises(BlockingIOError):
            server.accept()
