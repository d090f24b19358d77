"""The record of processing and the sign: what the configuration says, and what is missing."""

import pytest

from cv_pipeline.core.types import ConfigError
from cv_pipeline.privacy.record import OPEN, facts_of, record_text, sign_text

RUN = "sources: [belt.mp4, {uri: yard.mp4, id: 'yard | <b>'}]\n"


def facts(tmp_path, more: str = "", stores: str = "") -> dict[str, str]:
    (tmp_path / "line.yaml").write_text(RUN + more)
    if stores:
        (tmp_path / "stores.yaml").write_text(stores)
    return {f.name: f.value for f in facts_of(tmp_path / "line.yaml", tmp_path)}


def test_what_only_people_know_is_open_until_it_is_given(tmp_path):
    assert facts(tmp_path)["Purpose"] == OPEN
    assert facts(tmp_path, "privacy: {about: {purpose: counting}}\n")["Purpose"] == "counting"


def test_what_is_stored_is_what_runs(tmp_path):
    plain = facts(tmp_path)["Data that are stored"]
    more = facts(tmp_path, "telemetry: true\ncollect: true\ndelivery: {video: true}\n")[
        "Data that are stored"
    ]
    assert "film" not in plain and all(w in more for w in ("film", "single pictures", "statistics"))


def test_a_cover_that_is_off_says_why(tmp_path):
    assert (
        "works council agreed"
        in facts(tmp_path, "privacy: {off: works council agreed}\n")["Covered before anything is stored"]
    )


def test_limits_are_shown_and_their_absence_too(tmp_path):
    found = facts(tmp_path, "privacy: {retain: {pictures: 30d, films: 2w}}\n")
    assert (found["Kept: pictures"], found["Kept: films"]) == ("30 days", "14 days")
    assert found["Kept: log"] == "no limit is set"


def test_servers_are_recipients_without_their_passwords(tmp_path):
    address = "http:" + "//ann:" + "y" * 9 + "@labels:8080"
    found = facts(
        tmp_path, stores=f"stores: [{{kind: label_studio, url: '{address}'}}, {{kind: s3, bucket: line}}]\n"
    )
    assert "label_studio" in found["Recipients"] and "s3 line" in found["Recipients"]
    assert "y" * 9 not in str(found)


def test_names_are_texts_on_the_page_and_in_the_table(tmp_path):
    (tmp_path / "line.yaml").write_text(RUN + "privacy: {about: {controller: '<script>x</script> | y'}}\n")
    made = facts_of(tmp_path / "line.yaml", tmp_path)
    assert "<script>" not in sign_text(made) + record_text(made)
    assert all(line.count(" | ") == 1 for line in record_text(made).splitlines() if line.startswith("| C"))


def test_a_limit_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a time to keep"):
        facts(tmp_path, "privacy: {retain: {pictures: forever}}\n")
