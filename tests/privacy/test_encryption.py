"""Encrypted pictures: only with their key and their head; a destroyed key is the end of every copy."""

import os
import shutil
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.annotation.cases import CollectPolicy
from cv_pipeline.annotation.collect import CollectSink, read_collected
from cv_pipeline.core.files import append_lines, write_whole
from cv_pipeline.core.types import ConfigError, CVPipelineError, DataError, SinkError
from cv_pipeline.privacy import encryption as N
from cv_pipeline.privacy.certificate import certify, verify_certificate
from cv_pipeline.privacy.erasure import erase
from cv_pipeline.privacy.stores import Subject, encrypted_head, walk_files
from tests.helpers.made_up_camera import fill, result

EIGHT = datetime(2026, 6, 1, 8, tzinfo=timezone.utc)


def picture(k: int) -> bytes:
    return np.random.default_rng(k).bytes(2000)


@pytest.fixture
def project(tmp_path):
    "Two cameras, two days, encrypted; a plain copy of each picture in a data set, and a backup of all."
    for k in range(16):
        camera, at = ("yard", "gate")[k % 2], EIGHT + timedelta(days=k // 8, minutes=k)
        name = f"frames/{camera}/{k:08d}.jpg"
        write_whole(tmp_path / "project" / "collected" / name, picture(k))
        write_whole(tmp_path / "project" / "train" / f"{k}.jpg", picture(k))
        about = {"picture": name, "source_id": camera, "frame_id": k, "captured_at": at.isoformat()}
        row = {**about, "size": [9, 9], "reasons": [], "probability": 1.0, "phash": "0" * 16}
        append_lines(tmp_path / "project" / "collected" / "collected.jsonl", [row])
    keys = N.Keys(tmp_path / "project" / "privacy" / "keys")
    assert N.encrypt_collection(tmp_path / "project" / "collected", keys) == 16
    shutil.copytree(tmp_path / "project" / "collected", tmp_path / "backup")
    return tmp_path / "project", tmp_path / "backup", keys


def readable(folder, keys) -> set[int]:
    "Numbers of the pictures that the keys open."
    made = set()
    for path in walk_files(folder):
        if encrypted_head(path):
            try:
                assert N.decrypt_picture(path, keys) == picture(int(path.name[:8]))
                made.add(int(path.name[:8]))
            except N.KeyDestroyed:
                continue
    return made


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300), st.text(min_size=1, max_size=20).filter(str.strip))
def test_any_bytes_of_any_camera_come_back(tmp_path_factory, data, camera):
    folder = tmp_path_factory.mktemp("p")
    write_whole(folder / "a.jpg", data)
    keys = N.Keys(folder / "keys")
    assert N.decrypt_picture(N.encrypt_picture(folder / "a.jpg", keys, camera, "2026-06-01"), keys) == data


def test_nothing_plain_is_left_in_the_folder(project):
    root, backup, _ = project
    data = b"".join(p.read_bytes() for p in walk_files(backup))
    assert not any(picture(k)[:16] in data for k in range(16))


@pytest.mark.parametrize("place", [0.0, 0.5, 0.999])
def test_every_changed_byte_is_found(project, place):
    root, _, keys = project
    path = next(p for p in walk_files(root / "collected") if encrypted_head(p))
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError):
        N.decrypt_picture(path, keys)


def test_the_content_of_another_picture_does_not_fit_its_head(project):
    root, _, keys = project
    a, b = [p for p in sorted(walk_files(root / "collected")) if encrypted_head(p)][:2]
    heads, rests = zip(*(p.read_bytes()[len(N.MAGIC) :].split(b"\n", 1) for p in (a, b)))
    a.write_bytes(N.MAGIC + heads[0] + b"\n" + rests[1])
    with pytest.raises(DataError, match="was changed"):
        N.decrypt_picture(a, keys)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_key_that_others_can_read_is_refused(project):
    root, _, keys = project
    path = next((root / "privacy" / "keys").rglob("*.key"))
    assert path.stat().st_mode & 0o777 == 0o600
    for key in (root / "privacy" / "keys").rglob("*.key"):
        key.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        readable(root / "collected", keys)


def test_an_erased_camera_is_unreadable_in_every_copy(project):
    root, backup, keys = project
    assert readable(backup, keys) == set(range(16))
    c, path = certify(root, erase(root, Subject("gate")))
    yard = set(range(0, 16, 2))
    assert c.complete and readable(backup, keys) == readable(root, keys) == yard
    assert {int(p.stem) for p in (root / "train").glob("*.jpg")} == yard  # plain copies go by their checksum
    assert verify_certificate(path, root).problems == ()


def test_of_a_part_of_a_day_the_rest_stays_readable_in_the_project_only(project):
    root, backup, keys = project
    part = Subject("gate", EIGHT + timedelta(minutes=2), EIGHT + timedelta(minutes=6))
    c, _ = certify(root, erase(root, part))
    yard, gate = set(range(0, 16, 2)), set(range(1, 16, 2))
    assert c.complete and readable(root / "collected", keys) == yard | gate - {3, 5}
    assert readable(backup, keys) == yard | {k for k in gate if k >= 8}


def test_killed_while_a_key_is_exchanged_it_is_finished_by_the_same_command(project, monkeypatch):
    root, backup, keys = project
    part = Subject("gate", EIGHT + timedelta(minutes=2), EIGHT + timedelta(minutes=6))

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(N, "append_lines", killed)
        erase(root, part)
    assert readable(backup, keys) == set(range(16))  # the old key is still there
    c, _ = certify(root, erase(root, part))
    assert c.complete and not readable(backup, keys) & {1, 3, 5, 7}


def test_a_session_is_plain_and_leaves_nothing(project):
    root, _, keys = project
    with N.decrypted(root / "collected", keys) as plain:
        assert {p.read_bytes() for p in plain.rglob("*.jpg")} == {picture(k) for k in range(16)}
    assert not plain.exists()


# --- while a run goes on


def encrypted_run(folder, keys, numbers=range(30), quota=4):
    "A collection that is encrypted picture by picture; the same policy each time."
    sink = CollectSink(folder, CollectPolicy(random=0, quota=quota, hamming=-1, high=None))
    sink.shelf.seal = N.sealer(keys)
    fill(sink, [result(i, [(0, 0, 0, 0, 0.4)], t=i) for i in numbers])


def test_a_run_never_writes_a_plain_picture(tmp_path):
    keys = N.Keys(tmp_path / "keys")
    encrypted_run(tmp_path / "sealed", keys)
    fill(
        CollectSink(tmp_path / "plain", CollectPolicy(random=0, quota=4, hamming=-1, high=None)),
        [result(i, [(0, 0, 0, 0, 0.4)], t=i) for i in range(30)],
    )
    rows = read_collected(tmp_path / "plain")
    wanted = {row.picture: (tmp_path / "plain" / row.picture).read_bytes() for row in rows}
    sealed = [p for p in walk_files(tmp_path / "sealed" / "frames")]
    assert len(sealed) == len(wanted) == 4 and all(encrypted_head(p) for p in sealed)
    with N.decrypted(tmp_path / "sealed", keys) as folder:
        assert {row.picture: (folder / row.picture).read_bytes() for row in read_collected(folder)} == wanted


def test_a_second_run_goes_on_with_what_the_first_one_encrypted(tmp_path):
    keys = N.Keys(tmp_path / "keys")
    encrypted_run(tmp_path / "twice", keys, range(15))
    encrypted_run(tmp_path / "twice", keys, range(15, 30))
    encrypted_run(tmp_path / "once", keys)
    chosen = [sorted(p.name for p in walk_files(tmp_path / name / "frames")) for name in ("twice", "once")]
    assert chosen[0] == chosen[1] and len(chosen[0]) == 4, "what gave way left the disk in both"


def test_a_reader_of_an_encrypted_collection_learns_how_to_open_it(tmp_path):
    encrypted_run(tmp_path / "sealed", N.Keys(tmp_path / "keys"))
    with pytest.raises(DataError, match="4 of 4 images are encrypted.*privacy open"):
        read_collected(tmp_path / "sealed")


def test_a_key_that_cannot_be_made_ends_the_collection_and_nothing_plain_is_left(tmp_path, monkeypatch):
    keys = N.Keys(tmp_path / "keys")
    sink = CollectSink(tmp_path / "sealed", CollectPolicy(random=0, hamming=-1, high=None))
    sink.shelf.seal = N.sealer(keys)

    def broken(camera, day):
        raise SinkError("the disk of the keys is full", tmp_path)

    monkeypatch.setattr(keys, "newest", broken)
    with pytest.raises(SinkError, match="disk of the keys"):
        fill(sink, [result(i, [(0, 0, 0, 0, 0.4)], t=i) for i in range(3)])
    assert not list(walk_files(tmp_path / "sealed" / "frames"))


def test_keys_that_lie_where_a_file_is_are_refused_before_the_first_picture(tmp_path):
    (tmp_path / "keys").write_text("")
    with pytest.raises(CVPipelineError):
        N.sealer(N.Keys(tmp_path / "keys"))
