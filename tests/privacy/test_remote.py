"""Servers and buckets: the real Label Studio, the real MongoDB behind FiftyOne, moto's S3 over HTTP."""

import json
import os
from pathlib import Path

import pytest

from cv_pipeline.annotation import label_studio as L
from cv_pipeline.annotation.annotations import Draft
from cv_pipeline.annotation.collect import read_collected
from cv_pipeline.core.types import ConfigError, Detections
from cv_pipeline.privacy import remote as R
from cv_pipeline.privacy.certificate import Markers, certify, verify_certificate
from cv_pipeline.privacy.erasure import erase
from cv_pipeline.privacy.places import open_stores
from cv_pipeline.privacy.stores import Subject, Wanted
from tests.helpers.label_studio_server import TOKEN, LabelStudio
from tests.helpers.services import free_port, require
from tests.helpers.watched_project import FRAMES, found_markers

GATE = Subject("gate")
SHOWN = {f"{k:08d}" for k in range(0, FRAMES, 5)}  # pictures that are in the bucket


def listed(project: Path, **row) -> None:
    "One store in stores.yaml."
    (project / "stores.yaml").write_text(f"stores: [{json.dumps(row)}]\n")


@pytest.fixture(scope="module")
def s3():
    moto = require("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    before = {
        k: os.environ.get(k) for k in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    }
    os.environ |= dict.fromkeys(before, "testing") | {"AWS_DEFAULT_REGION": "us-east-1"}
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()
    for k, v in before.items():
        os.environ.pop(k) if v is None else os.environ.update({k: v})


def bucket_of(project: Path, endpoint: str, name: str, versions: bool):
    "A copy of a project in a bucket; with versions everything was uploaded twice."
    client = R.s3_client(endpoint)
    client.create_bucket(Bucket=name)
    if versions:
        client.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    names = ("run/results.jsonl", "run/results.parquet", "collected/collected.jsonl")
    pictures = [p for p in (project / "collected").rglob("*.jpg") if p.stem in SHOWN]
    copies = [p for p in (project / "data").rglob("*.jpg") if p.stem.rpartition("-")[2].zfill(8) in SHOWN]
    for path in [*(project / n for n in names), *pictures, *copies]:
        for _ in range(1 + versions):
            key = f"line/{path.relative_to(project).as_posix()}"
            client.put_object(Bucket=name, Key=key, Body=path.read_bytes())
    listed(project, kind="s3", bucket=name, prefix="line/", endpoint=endpoint)
    return client


@pytest.mark.service
@pytest.mark.parametrize("versions", [False, True])
def test_no_version_of_an_object_is_left(project, s3, versions):
    client = bucket_of(project, s3, f"line-{int(versions)}", versions)
    marks = Markers([f"marker-gate-picture-{k:03d}".encode() for k in range(FRAMES)])
    store = R.BucketStore(client, f"line-{int(versions)}")
    assert len(list(store.search(marks))) == 2 * len(SHOWN) * (1 + versions)
    c, path = certify(project, erase(project, GATE))
    assert c.complete and c.unreached == ()
    assert list(store.search(marks)) == [] and list(store.find(Wanted(GATE))) == []
    assert verify_certificate(path, project).problems == ()


@pytest.mark.service
def test_the_other_cameras_objects_are_the_same_bytes(project, s3):
    client = bucket_of(project, s3, "others", False)
    get = lambda key: client.get_object(Bucket="others", Key=key)["Body"].read()
    keys = [v["Key"] for v in R.BucketStore(client, "others").versions()]
    before = {k: get(k) for k in keys if k.endswith(".jpg") and "gate" not in k}
    erase(project, GATE)
    assert {k: get(k) for k in before} == before and len(before) == 2 * 2 * len(SHOWN)
    lines = get("line/run/results.jsonl").splitlines()
    assert len(lines) == 2 * FRAMES and not any(b"gate" in x for x in lines)


@pytest.mark.service
def test_a_bucket_that_is_offline_is_listed(project, s3):
    listed(project, kind="s3", bucket="line", endpoint=f"http://127.0.0.1:{free_port()}")
    c, _ = certify(project, erase(project, GATE))
    assert [u.store for u in c.unreached] == ["s3 line/"] and not c.complete
    assert found_markers(project, "gate") == set()


@pytest.mark.service
def test_a_bucket_that_does_not_exist_is_listed(project, s3):
    listed(project, kind="s3", bucket="nowhere", endpoint=s3)
    assert "NoSuchBucket" in certify(project, erase(project, GATE))[0].unreached[0].why


@pytest.fixture(scope="module")
def labels(tmp_path_factory):
    started = LabelStudio(tmp_path_factory.mktemp("labelstudio"))
    yield started
    started.stop()


def pushed(project: Path, labels, title: str):
    "The collection of a project as tasks, uploaded."
    server = L.Server(labels.url, pause_s=0.01)
    boxes = Detections([[1, 1, 20, 20]], [0.9], [0])
    made = []
    for r in read_collected(project / "collected"):
        meta = {"source_id": r.source_id, "captured_at": r.captured_at.isoformat(), "frame_id": r.frame_id}
        path = project / "collected" / r.picture
        made.append(Draft(r.picture, path, r.size, ("part",), boxes, meta=meta))
    L.push(server, made, title)
    return server


@pytest.mark.service
def test_tasks_and_uploaded_files_are_gone_from_the_server_and_its_disk(project, labels, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    server = pushed(project, labels, "Line, June")
    media = labels.folder / "media"
    files = lambda: [p for p in media.rglob("*.jpg") if b"marker-gate-picture" in p.read_bytes()]
    assert len(files()) == FRAMES
    listed(project, kind="label_studio", url=labels.url, title="Line, June", media=str(media))
    c, path = certify(project, erase(project, GATE))
    counts = {(r["store"].split()[0], r["what"]): r["files"] for r in c.counts()}
    assert c.complete and counts["label_studio", "task"] == counts["label_studio", "upload"] == FRAMES
    assert files() == [] and len(list(media.rglob("*.jpg"))) == 2 * FRAMES
    number = L.find_project(server, "Line, June")["id"]
    left = list(L.pages(server, f"/api/tasks?project={number}&include=id,data", "tasks", "total"))
    assert {t["data"]["meta"]["source_id"] for t in left} == {"yard", "hall 2"} and len(left) == 2 * FRAMES
    assert verify_certificate(path, project).problems == ()


@pytest.mark.service
def test_a_server_whose_disk_is_out_of_reach_is_listed_with_its_files(project, labels, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    pushed(project, labels, "Line, July")
    listed(project, kind="label_studio", url=labels.url, title="Line, July")
    for _ in range(2):  # and it is not forgotten when the command is repeated
        c, _ = certify(project, erase(project, GATE))
        (one,) = c.unreached
        assert (
            one.why == "the server keeps the file of a deleted upload on its disk"
            and "media/upload/" in one.hint
        )


@pytest.mark.service
def test_a_label_server_that_is_offline_is_listed(project, monkeypatch):
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", TOKEN)
    monkeypatch.setattr("time.sleep", lambda s: None)
    listed(project, kind="label_studio", url=f"http://127.0.0.1:{free_port()}")
    c, _ = certify(project, erase(project, GATE))
    assert "does not respond" in c.unreached[0].why and found_markers(project, "gate") == set()


def test_without_a_token_the_server_is_listed(project, monkeypatch):
    monkeypatch.delenv("LABEL_STUDIO_API_KEY", raising=False)
    listed(project, kind="label_studio", url="http://labels:8080")
    (missed,) = open_stores(project)[1]
    assert "LABEL_STUDIO_API_KEY is not set" in missed.why


@pytest.mark.service
def test_samples_of_the_camera_leave_the_database(project, fo):
    data = fo.Dataset("watched", persistent=True)
    try:
        rows = [
            (str((project / "collected" / r.picture).resolve()), r)
            for r in read_collected(project / "collected")
        ]
        samples = [fo.Sample(filepath=p, camera=r.source_id, captured_at=r.captured_at) for p, r in rows]
        data.add_samples(samples, progress=False)
        copies = sorted((project / "data").rglob("gate-*.jpg"))[:4]  # known by their bytes only
        data.add_samples([fo.Sample(filepath=str(p), camera="unknown") for p in copies], progress=False)
        listed(project, kind="fiftyone", name="watched")
        c, path = certify(project, erase(project, GATE))
        assert c.complete and sum(f.what == "sample" for f in c.found) == FRAMES + 4
        assert set(data.values("camera")) == {"yard", "hall 2"} and len(data) == 2 * FRAMES
        assert verify_certificate(path, project).problems == ()
    finally:
        data.delete()


@pytest.mark.service
def test_a_data_set_that_does_not_exist_holds_nothing(project, fo):
    assert list(R.FiftyOneStore("never made").find(Wanted(GATE))) == []


@pytest.mark.parametrize(
    "row, text",
    [
        ({"kind": "s3"}, "name of a bucket"),
        ({"kind": "fiftyone"}, "name of a data set"),
        ({"kind": "label_studio"}, "an address"),
    ],
)
def test_a_row_without_its_name_is_listed(project, row, text):
    listed(project, **row)
    assert text in open_stores(project)[1][0].why


def test_kinds_are_defined_once():
    with pytest.raises(ConfigError, match="defined twice"):
        R.add_kind("s3", lambda row, root: None)
