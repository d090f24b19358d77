"""Pictures of cameras are not for the other users of a machine, whatever the umask of the run."""

import os

import pytest

from cv_pipeline.core.config import load_config
from cv_pipeline.core.files import write_whole
from cv_pipeline.service.assembly import run_config

posix = pytest.mark.skipif(os.name != "posix", reason="no rights of others here")
PICTURES = {".jpg", ".png", ".mp4"}


@pytest.fixture
def umask():
    "Sets the process's mask, and puts the old one back."
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@posix
@pytest.mark.parametrize(
    ("mask", "private", "plain"), [(0o022, 0o640, 0o644), (0o077, 0o600, 0o600), (0, 0o660, 0o666)]
)
def test_a_private_file_is_for_owner_and_group(tmp_path, umask, mask, private, plain):
    umask(mask)
    assert write_whole(tmp_path / "a.jpg", b"1", private=True).stat().st_mode & 0o777 == private
    assert write_whole(tmp_path / "b.jpg", b"1").stat().st_mode & 0o777 == plain


@posix
def test_no_picture_of_a_run_is_for_everybody(tmp_path, umask):
    umask(0o022)
    settings = {
        "sources": [{"uri": "line:seed=3,frames=60", "id": "gate"}],
        "events": {"zones": [{"name": "all", "polygon": [[0, 0], [1, 0], [1, 1], [0, 1]]}]},
        "delivery": {"out": str(tmp_path / "run"), "video": True, "clips": {"pre_s": 0.5, "post_s": 0.5}},
        "collect": {"random": 0.5},
        "model": {"threads": 1},
    }
    summary = run_config(load_config(None, settings))
    found = [p for p in (tmp_path / "run").rglob("*") if p.suffix in PICTURES]
    assert {p.suffix for p in found} == {".jpg", ".mp4"} and len(found) > 3, summary["sinks"]
    assert [p.name for p in found if p.stat().st_mode & 0o007] == []
