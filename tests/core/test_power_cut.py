"""What `durable=True` promises: after it has returned, a power cut takes nothing back, and at no moment
before is there half of anything. The disk that forgets is tests.helpers.power_cut."""

import os

import pytest

from cv_pipeline.core import files as F
from tests.helpers.power_cut import Disk


@pytest.fixture
def disk(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    made = Disk(tmp_path / "disk", monkeypatch)
    yield made
    made.close()


def tree(folder):
    "Path → content of all files that are no drafts or locks."
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {k: p.read_text() for k, p in found.items() if not any(x.startswith(".") for x in k.split("/"))}


def test_the_imitation_forgets_what_is_not_synced(disk, tmp_path):
    F.write_whole(disk.root / "a.txt", "gone")
    F.write_whole(disk.root / "b.txt", "safe", durable=True)
    (disk.root / "c.txt").write_text("no bytes")
    assert tree(disk.after_cut(tmp_path / "after")) == {"a.txt": "", "b.txt": "safe"}


@pytest.mark.parametrize("place", ["a.txt", "new/a.txt", "new/deep/er/a.txt"])
def test_a_file_that_was_written_is_there_and_new_folders_with_it(disk, tmp_path, place):
    F.write_whole(disk.root / place, "whole", durable=True)
    assert tree(disk.after_cut(tmp_path / "after")) == {place: "whole"}


def test_a_file_is_the_old_or_the_new_one_at_every_moment(disk, tmp_path):
    F.write_whole(disk.root / "a.txt", "old", durable=True)
    first = len(disk.moments)
    F.write_whole(disk.root / "a.txt", "new and longer", durable=True)
    seen = {
        tree(disk.after_cut(tmp_path / f"cut{i}", i))["a.txt"] for i in range(first - 1, len(disk.moments))
    }
    assert seen == {"old", "new and longer"}
    assert tree(disk.after_cut(tmp_path / "after")) == {"a.txt": "new and longer"}


@pytest.mark.parametrize("cut_torn", [False, True])
def test_lines_that_were_appended_are_there_from_the_first_on(disk, tmp_path, cut_torn):
    for k in range(3):
        F.append_lines(disk.root / "new" / "journal.jsonl", [{"k": k}], durable=True, cut_torn=cut_torn)
        after = disk.after_cut(tmp_path / f"cut{k}")
        assert [row["k"] for _, row in F.read_json_lines(after / "new" / "journal.jsonl")] == list(
            range(k + 1)
        )


def stage(folder, text, **how):
    with F.Staging(folder, durable=True, **how) as draft:
        F.write_whole(draft / "a.txt", text)
        F.write_whole(draft / "images" / "b.txt", text)


def test_a_folder_is_whole_or_not_there_at_every_moment(disk, tmp_path):
    stage(disk.root / "models" / "v1", "one")
    whole = {"models/v1/a.txt": "one", "models/v1/images/b.txt": "one"}
    seen = [tree(disk.after_cut(tmp_path / f"cut{i}", i)) for i in range(len(disk.moments))]
    assert all(found in ({}, whole) for found in seen) and seen[-1] == whole


@pytest.mark.parametrize("swap", [True, False])
def test_a_folder_that_is_replaced_is_the_old_or_the_new_one(disk, tmp_path, monkeypatch, swap):
    stage(disk.root / "v", "old")
    first = len(disk.moments)
    if not swap:
        monkeypatch.setattr(F, "_exchange", lambda a, b: False)
    stage(disk.root / "v", "new", replace=True)
    one = lambda text: {"v/a.txt": text, "v/images/b.txt": text}
    seen = [tree(disk.after_cut(tmp_path / f"cut{i}", i)) for i in range(first - 1, len(disk.moments))]
    assert all(found in (one("old"), one("new")) for found in seen) and seen[-1] == one("new")


@pytest.mark.parametrize("swap", [True, False])
def test_nothing_of_the_old_folder_is_removed_before_the_new_name_is_safe(disk, monkeypatch, swap):
    "A disk may write a removal before the rename that came first."
    stage(disk.root / "v", "old")
    steps, remove = [], F.shutil.rmtree
    sync = os.fsync
    monkeypatch.setattr(F.shutil, "rmtree", lambda p, **how: (steps.append("remove"), remove(p, **how)))
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("sync"), sync(handle)))
    if not swap:
        monkeypatch.setattr(F, "_exchange", lambda a, b: False)
    F.take_place(disk.root / "v", disk.root / "w", replace=False, durable=True)
    stage(disk.root / "w", "new", replace=True)
    last = [k for k, s in enumerate(steps) if s == "remove"][-2]  # the last one removes the empty draft
    assert steps[last - 1] == "sync"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_was_moved_is_there(disk, tmp_path, kind):
    source = disk.root / "draft"
    F.write_whole(source if kind == "file" else source / "in" / "a.txt", "whole")
    F.move_file(source, disk.root / "new" / "target", durable=True)
    found = tree(disk.after_cut(tmp_path / "after"))
    assert found == {"new/target" if kind == "file" else "new/target/in/a.txt": "whole"}


def test_without_durable_a_power_cut_may_take_all(disk, tmp_path):
    with F.Staging(disk.root / "v1") as draft:
        F.write_whole(draft / "a.txt", "one")
    assert tree(disk.after_cut(tmp_path / "after")) == {}


def test_a_disk_error_while_syncing_a_folder_is_not_passed_over(tmp_path, monkeypatch):
    real = os.fsync

    def broken(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(F.errno.EIO, os.strerror(F.errno.EIO))
        real(handle)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(F.SinkError, match="Input/output error"):
        F.write_whole(tmp_path / "a.txt", "one", durable=True)


def test_a_file_system_that_syncs_no_folders_is_no_error(tmp_path, monkeypatch):
    def odd(handle):
        raise OSError(F.errno.EINVAL, os.strerror(F.errno.EINVAL))

    monkeypatch.setattr(os, "fsync", odd)
    F.sync_tree(tmp_path)
    assert F.make_folder(tmp_path / "a" / "b", durable=True).is_dir()
