"""The second half of the demo of privacy: one camera goes, the others stay as they are."""

import pytest

from cv_pipeline.service.erasure_demo import CAMERAS, erase_one_camera


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return erase_one_camera(tmp_path_factory.mktemp("demo"), frames=5)


def test_the_certificate_is_complete_and_verified(done):
    assert done.certificate.complete and done.verified.problems == () and done.verified.unreached == ()


def test_files_of_the_other_cameras_are_the_same_bytes(done):
    assert done.changed == 0 and done.unchanged == 2 * (5 + 5 + 1)  # collected, data set, film


def test_nothing_names_the_camera_any_more(done):
    named = [p for p in done.folder.rglob("*") if CAMERAS[0] in p.name and "privacy" not in p.parts]
    assert named == []


def test_the_table_names_every_kind(done):
    assert {r["what"] for r in done.rows()} == {"rows", "picture", "label", "film"}
