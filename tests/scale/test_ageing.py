"Stores against their ages: kill -9 while files move, a store that speaks S3, and what a listing can be."

import os
import random
import signal
import socket
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from cv_pipeline.core.files import locked, read_json_lines
from cv_pipeline.core.types import ConfigError, CVPipelineError, DataError, SourceError
from cv_pipeline.scale import ageing
from cv_pipeline.scale.ageing import (
    DAY,
    Stored,
    age_folder,
    list_bucket,
    list_folder,
    put_rules,
    read_index,
    rules_of,
    s3_client,
    steps_of,
    verified_dict,
    verify,
    write_index,
    written_on,
)
from cv_pipeline.scale.lifecycle import Kind, Lifecycle, class_at, s3_rules
from tests.helpers.services import require
from tests.helpers.waiting import until

NOW = 1_795_953_600.0  # noon of 2026-11-29
LINE = Lifecycle(
    (
        Kind("log", "log/", warm=60, delete=400, needed=42),
        Kind("video", "video/", warm=30, cold=60, delete=365, limit=365),
        Kind("models", "models/", keep="signed releases"),
    )
)


def put(root, key, days, data=b"x" * 100):
    "A file of this age."
    path = root / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (NOW - days * DAY, NOW - days * DAY))
    return path


def day_before(days):
    return date.fromtimestamp(NOW - days * DAY).isoformat()


@pytest.fixture
def places(tmp_path):
    made = {"hot": tmp_path / "disk", "warm": tmp_path / "nas"}
    for place in made.values():
        place.mkdir()
    return made


def test_files_move_and_go_by_the_day_in_their_name(places):
    put(places["hot"], f"log/date={day_before(70)}/a", 0.5)  # copied today, of seventy days ago
    put(places["hot"], f"log/date={day_before(10)}/a", 500)
    put(places["hot"], "video/old.mp4", 366)
    put(places["hot"], "models/1.0.bin", 3000)
    done = age_folder(LINE, places, NOW)
    assert (done.moved, done.deleted, done.left) == (1, 1, [])
    assert [k for k in list_folder(places).keys if k.startswith("log")] == [
        f"log/date={day_before(10)}/a",
        f"log/date={day_before(70)}/a",
    ]
    assert (places["warm"] / f"log/date={day_before(70)}/a").is_file()
    assert (places["hot"] / "models/1.0.bin").is_file() and not (places["hot"] / "video").exists()
    moved = [row for _, row in read_json_lines(places["hot"] / "moved.jsonl")]
    deleted = [row for _, row in read_json_lines(places["hot"] / "deleted.jsonl")]
    assert [r["to"] for r in moved] == ["warm"] and [r["key"] for r in deleted] == ["video/old.mp4"]
    assert verify(LINE, list_folder(places), now=NOW).verdict == "PASS"


def test_a_file_in_use_a_link_and_a_draft_stay(places):
    put(places["hot"], f"log/date={day_before(70)}/busy", 0.01)
    (places["hot"] / "video").mkdir()
    (places["hot"] / "video/link.mp4").symlink_to(put(places["warm"], "elsewhere", 0))
    put(places["hot"], "video/.draft", 400)
    done = age_folder(LINE, places, NOW)
    assert (done.moved, done.deleted) == (0, 0) and "changed a moment ago" in done.left[0]
    assert (places["hot"] / "video/link.mp4").is_symlink() and (places["hot"] / "video/.draft").is_file()


def test_another_file_of_the_same_name_is_neither_overwritten_nor_lost(places):
    key = f"log/date={day_before(70)}/a"
    put(places["hot"], key, 70, b"one")
    put(places["warm"], key, 70, b"two")
    done = age_folder(LINE, places, NOW)
    assert "another file of this name" in done.left[0]
    assert (places["hot"] / key).read_bytes() == b"one" and (places["warm"] / key).read_bytes() == b"two"
    assert verify(LINE, list_folder(places), now=NOW).counts["twice"] == 1


def test_a_full_disk_leaves_the_file_where_it_is(places, monkeypatch):
    key = f"log/date={day_before(70)}/a"
    put(places["hot"], key, 70)

    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ageing, "copy_file", full)
    done = age_folder(LINE, places, NOW)
    assert "No space left" in done.left[0] and (places["hot"] / key).read_bytes() == b"x" * 100
    assert [p for p in places["warm"].rglob("*") if p.is_file()] == []


def test_a_copy_that_differs_is_thrown_away(places, monkeypatch):
    key = f"log/date={day_before(70)}/a"
    put(places["hot"], key, 70)
    monkeypatch.setattr(ageing, "copy_file", lambda source, target: Path(target).write_bytes(b"bad"))
    done = age_folder(LINE, places, NOW)
    assert "the copy differs" in done.left[0] and (places["hot"] / key).is_file()
    assert [p for p in places["warm"].rglob("*") if p.is_file()] == []


def test_two_of_them_at_once_wait_for_each_other(places, monkeypatch):
    monkeypatch.setattr(ageing, "locked", lambda path, **how: locked(path, wait_s=0, **how))
    with locked(places["hot"] / "lifecycle"), pytest.raises(ConfigError, match="another process is moving"):
        age_folder(LINE, places, NOW)


KILLED = """
import sys
from tests.scale.test_ageing import LINE, NOW
from cv_pipeline.scale.ageing import age_folder
print("go", flush=True)
age_folder(LINE, {"hot": sys.argv[1], "warm": sys.argv[2]}, NOW)
print("done", flush=True)
"""


def done_in(places):
    "Lines of what was done."
    logs = [places["hot"] / name for name in ageing.LOGS]
    return sum(log.read_bytes().count(b"\n") for log in logs if log.is_file())


@pytest.mark.slow
def test_killed_at_any_point_nothing_is_lost_and_it_goes_on(places):
    rng = random.Random(1)
    data = {}
    for n in range(32):
        key = f"log/date={day_before(61 + n)}/{n}"
        data[key] = rng.randbytes(20_000)
        put(places["hot"], key, 61 + n, data[key])
    for n in range(8):
        put(places["hot"], f"video/{n}", 400)
    words = [sys.executable, "-c", KILLED, str(places["hot"]), str(places["warm"])]
    kills = 0
    for _ in range(40):
        aim = done_in(places) + rng.randint(2, 6)
        with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
            process.stdout.readline()
            until(lambda aim=aim, p=process: done_in(places) >= aim or p.poll() is not None, 60)
            process.kill()
            ended = process.stdout.read()
        kills += process.returncode == -signal.SIGKILL
        for key, content in data.items():  # in one of the two places, whole
            there = [p / key for p in places.values() if (p / key).is_file()]
            assert there and all(p.read_bytes() == content for p in there)
        if b"done" in ended:
            break
    assert kills >= 5
    assert age_folder(LINE, places, NOW).left == []
    assert verify(LINE, list_folder(places), now=NOW).counts == {}
    gone = [row["key"] for _, row in read_json_lines(places["hot"] / "deleted.jsonl")]
    assert set(gone) == {f"video/{n}" for n in range(8)}
    drafts = [p for p in places["warm"].rglob(".*") if p.is_file()]
    assert len(drafts) <= kills and all(p.name.startswith(".") for p in drafts), "a cut copy stays hidden"


def test_a_move_that_would_hide_files_from_programs_is_refused(places):
    eager = Lifecycle((Kind("log", "log/", warm=30, delete=400, needed=42),))
    with pytest.raises(ConfigError, match="leaves the folder after 30 days, and is read up to 42"):
        steps_of(eager, places, NOW)


def test_an_index_only_grows_and_finds_both_directions(places, tmp_path):
    put(places["hot"], "log/a", 5)
    put(places["hot"], "log/b", 5)
    put(places["hot"], "log/c", 450)
    index = tmp_path / "index.parquet"
    assert write_index(index, list_folder(places)) == 3
    (places["hot"] / "log/b").unlink()
    put(places["hot"], "log/d", 5)
    put(places["hot"], "log/a", 5, b"cut")
    age_folder(LINE, places, NOW)  # takes c
    found = verify(LINE, list_folder(places), read_index(index), NOW)
    assert {(a.problem, a.key) for a in found.astray} == {
        ("missing", "log/b"),
        ("unknown", "log/d"),
        ("cut", "log/a"),
    }
    assert write_index(index, list_folder(places)) == 4
    book = verified_dict(found)
    assert book["verdict"] == "FAIL" and book["counts"]["missing"] == 1 and "stamp" in book


def test_a_wrong_index_names_what_is_missing(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "i.parquet")
    with pytest.raises(DataError, match="bytes, changed, key missing"):
        read_index(tmp_path / "i.parquet")


@pytest.mark.parametrize(
    ("key", "day"),
    [
        ("log/date=2026-11-01/a", "2026-11-01"),
        ("runs/2026-11-01T10-00/a", "2026-11-01"),
        ("gate_2026-11-01.mp4", "2026-11-01"),
        ("log/date=2026-13-01/a", None),
        ("log/20261101/a", None),
        ("v1234-56-789", None),
    ],
)
def test_the_day_of_a_name(key, day):
    at = float(written_on([key], np.array([5.0]))[0])
    assert at == (5.0 if day is None else np.datetime64(day).astype("datetime64[s]").astype(float))


def test_age_counts_from_the_upload_in_a_bucket_and_what_is_too_old_by_its_name_is_found():
    key = "video/date=2025-11-01/a"  # 393 days
    stored = Stored(
        "s3://b/", [key], np.array([1 << 20]), np.array([NOW - 3 * DAY]), np.zeros(1, np.int8), True
    )
    assert verify(LINE, stored, now=NOW).counts == {"too old": 1}
    folder = Stored("/data", [key], stored.sizes, stored.changed, stored.tiers)
    assert verify(LINE, folder, now=NOW).counts == {"overdue": 1}


def test_a_small_object_that_did_not_move_is_in_its_place():
    rows = (["log/a", "log/b"], np.array([1000, 1 << 20]), np.full(2, NOW - 100 * DAY), np.zeros(2, np.int8))
    found = verify(LINE, Stored("s3://b/", *rows, rules=True), now=NOW)
    assert [(a.problem, a.key) for a in found.astray] == [("too hot", "log/b")]


def test_an_empty_store_is_in_order():
    empty = Stored("s3://b/", [], np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int8), True)
    assert verify(LINE, empty, {}, NOW).verdict == "PASS"


# --- stores that speak S3


@pytest.fixture(scope="module")
def moto():
    "A server that imitates S3."
    server = require("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def client(moto, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return s3_client(moto)


def test_a_bucket_keeps_the_rules_and_those_of_others(client):
    client.create_bucket(Bucket="rules")
    assert rules_of("s3://rules", client) == []
    other = {"ID": "others", "Status": "Enabled", "Filter": {"Prefix": "tmp/"}, "Expiration": {"Days": 1}}
    client.put_bucket_lifecycle_configuration(Bucket="rules", LifecycleConfiguration={"Rules": [other]})
    names = put_rules(LINE, "s3://rules", client)
    assert names == ["others", "log", "video", "unfinished uploads"]
    assert put_rules(LINE, "s3://rules", client) == names, "twice is once"
    there = {"Rules": rules_of("s3://rules", client)}
    for kind in LINE.kinds:
        key = f"{kind.prefix}a"
        assert class_at(there, key, 1 << 20, range(500)) == class_at(s3_rules(LINE), key, 1 << 20, range(500))


def test_what_the_imitation_would_accept_and_amazon_would_not_is_refused(client):
    client.create_bucket(Bucket="hasty")
    hasty = Lifecycle((Kind("video", "video/", warm=5, cold=7, delete=365),))
    client.put_bucket_lifecycle_configuration(Bucket="hasty", LifecycleConfiguration=s3_rules(hasty))
    assert len(rules_of("s3://hasty", client)) == 2, "moto takes them"
    with pytest.raises(ConfigError, match="STANDARD_IA begins after 30 days, not 5"):
        put_rules(hasty, "s3://hasty", client)


@pytest.mark.slow
def test_objects_are_listed_with_their_class_over_many_pages(client):
    client.create_bucket(Bucket="many")
    for n in range(1005):
        client.put_object(Bucket="many", Key=f"site/log/{n:04}", Body=b"")
    client.put_object(Bucket="many", Key="site/video/a", Body=b"xy", StorageClass="GLACIER")
    client.put_object(Bucket="many", Key="other/a", Body=b"xy")
    pages = []
    stored = list_bucket("s3://many/site/", client, watch=lambda p: (pages.append(1) or page for page in p))
    assert len(stored) == 1006 and len(pages) == 2
    assert (stored.keys[-1], stored.sizes[-1], stored.tiers[-1]) == ("site/video/a", 2, 2)
    line = Lifecycle((Kind("log", "log/", delete=10), Kind("video", "video/", warm=30, delete=60)), "site/")
    found = verify(line, stored, now=time.time())
    assert found.counts == {"too cold": 1}


@pytest.mark.parametrize("address", ["s3://nobody-has-this", "s3://"])
def test_a_bucket_that_cannot_be_listed(client, address):
    with pytest.raises(CVPipelineError) as e:
        list_bucket(address, client)
    assert isinstance(e.value, (SourceError, ConfigError)) and address in str(e.value)


def test_a_store_that_is_off_is_an_error_in_time(client, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(SourceError, match="cannot be listed after 0 objects"):
        list_bucket("s3://b/", s3_client(f"http://127.0.0.1:{port}"))
    with pytest.raises(SourceError, match="its rules cannot be read"):
        rules_of("s3://b/", s3_client(f"http://127.0.0.1:{port}"))
