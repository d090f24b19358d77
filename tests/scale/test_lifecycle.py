"What becomes of files with their age: errors planted into rules, and rules against their declaration."

import copy

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.core.types import ConfigError
from cv_pipeline.scale.lifecycle import (
    CLASSES,
    GONE,
    TIERS,
    Kind,
    Lifecycle,
    applies,
    check_s3_rules,
    class_at,
    forward,
    mc_lines,
    rclone_lines,
    read_lifecycle,
    s3_rules,
    tier_at,
)

KINDS = (
    Kind("video", "video/", warm=30, cold=60, delete=365, limit=365, mean_kb=9000),
    Kind("log", "log/", warm=60, delete=400, needed=42, mean_kb=900),
    Kind("models", "models/", keep="signed releases"),
)
LIFECYCLE = Lifecycle(KINDS, "line-1/")
RULE = {
    "ID": "video",
    "Status": "Enabled",
    "Filter": {"Prefix": "video/"},
    "Transitions": [{"Days": 30, "StorageClass": "STANDARD_IA"}, {"Days": 60, "StorageClass": "GLACIER"}],
    "Expiration": {"Days": 365},
}
ABORT = {
    "ID": "uploads",
    "Status": "Enabled",
    "Filter": {"Prefix": ""},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
}


def changed(**changes):
    "Rules in which one differs; None takes a key away."
    rule = {k: v for k, v in {**copy.deepcopy(RULE), **changes}.items() if v is not None}
    return {"Rules": [rule, ABORT]}


def moves(*pairs):
    return [{"Days": days, "StorageClass": name} for days, name in pairs]


OLD = "NoncurrentVersionExpiration"
ABORTS = "AbortIncompleteMultipartUpload"
PLANTED = {
    "unknown key": (changed(Expire={"Days": 3}), "refused", "Expire is unknown in a rule"),
    "unknown key inside": (changed(Expiration={"Day": 365}), "refused", "Day is unknown in Expiration"),
    "unknown key of a move": (
        changed(Transitions=[{"Days": 30, "StorageClass": "STANDARD_IA", "Class": "x"}]),
        "refused",
        "Class is unknown in a transition",
    ),
    "long ID": (changed(ID="x" * 256), "refused", "255 characters"),
    "status": (changed(Status="On"), "refused", "Enabled or Disabled"),
    "disabled": (changed(Status="Disabled"), "stays", "it is disabled"),
    "filter and prefix": (changed(Prefix="video/"), "refused", "Filter or Prefix"),
    "neither filter nor prefix": (changed(Filter=None), "refused", "Filter or Prefix"),
    "no action": (changed(Transitions=None, Expiration=None), "refused", "it does nothing"),
    "slash in front": (changed(Filter={"Prefix": "/video/"}), "stays", "neither a slash in front"),
    "bucket in the prefix": (changed(Filter={"Prefix": "s3://b/video/"}), "stays", "nor a bucket"),
    "two conditions": (
        changed(Filter={"Prefix": "video/", "ObjectSizeGreaterThan": 1}),
        "refused",
        "several conditions",
    ),
    "one condition in And": (changed(Filter={"And": {"Prefix": "video/"}}), "refused", "a single condition"),
    "sizes": (
        changed(Filter={"And": {"Prefix": "v/", "ObjectSizeGreaterThan": 9, "ObjectSizeLessThan": 9}}),
        "refused",
        "no object is larger",
    ),
    "tag twice": (
        changed(Filter={"And": {"Tags": [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}]}}),
        "refused",
        "a tag appears twice",
    ),
    "uploads by size": (
        changed(Filter={"ObjectSizeGreaterThan": 9}, **{ABORTS: {"DaysAfterInitiation": 7}}),
        "refused",
        "a rule of their own",
    ),
    "infrequent too early": (
        changed(Transitions=moves((5, "STANDARD_IA"))),
        "refused",
        "STANDARD_IA begins after 30 days, not 5",
    ),
    "infrequent too short": (
        changed(Transitions=moves((30, "STANDARD_IA"), (45, "GLACIER"))),
        "refused",
        "STANDARD_IA to GLACIER after 15 days: 30 at least",
    ),
    "upwards": (
        changed(Transitions=moves((30, "GLACIER"), (200, "STANDARD_IA"))),
        "refused",
        "nothing moves up from GLACIER to STANDARD_IA",
    ),
    "unknown class": (changed(Transitions=moves((30, "COLD"))), "refused", "'COLD' cannot be the class"),
    "to the standard class": (changed(Transitions=moves((30, "STANDARD"))), "refused", "cannot be the class"),
    "class twice": (
        changed(Transitions=moves((30, "GLACIER"), (130, "GLACIER"))),
        "refused",
        "a storage class appears twice",
    ),
    "days as text": (changed(Transitions=moves(("30", "GLACIER"))), "refused", "Days is '30'"),
    "neither days nor date": (
        changed(Transitions=[{"StorageClass": "GLACIER"}]),
        "refused",
        "has Days or Date",
    ),
    "date in the morning": (
        changed(Transitions=[{"Date": "2027-01-01T08:00:00", "StorageClass": "GLACIER"}], Expiration=None),
        "refused",
        "is not midnight UTC",
    ),
    "days and date": (
        changed(Transitions=[{"Date": "2027-01-01", "StorageClass": "GLACIER"}]),
        "refused",
        "Days and Date in one rule",
    ),
    "expiry of no days": (changed(Expiration={"Days": 0}), "refused", "a whole number from 1"),
    "expiry twice": (changed(Expiration={"Days": 365, "Date": "2027-01-01"}), "refused", "not both"),
    "marker with days": (
        changed(Expiration={"Days": 365, "ExpiredObjectDeleteMarker": True}),
        "refused",
        "goes with neither",
    ),
    "gone before it moves": (changed(Expiration={"Days": 50}), "refused", "before it moves at 60"),
    "least stay, deleted": (changed(Expiration={"Days": 100}), "costs", "of which 90 are paid for"),
    "least stay, moved": (
        changed(Transitions=moves((30, "GLACIER_IR"), (60, "DEEP_ARCHIVE"))),
        "costs",
        "moves on to DEEP_ARCHIVE after 30 days in GLACIER_IR",
    ),
    "old versions": (changed(**{OLD: {"NoncurrentDays": 0}}), "refused", "NoncurrentDays"),
    "too many old versions": (
        changed(**{OLD: {"NoncurrentDays": 1, "NewerNoncurrentVersions": 101}}),
        "refused",
        "1 to 100",
    ),
    "uploads of no days": (changed(**{ABORTS: {"DaysAfterInitiation": 0}}), "refused", "DaysAfterInitiation"),
    "ID twice": ({"Rules": [RULE, {**RULE, "Filter": {"Prefix": "log/"}}, ABORT]}, "refused", "this ID"),
    "same files": (
        {"Rules": [RULE, {**RULE, "ID": "all", "Filter": {"Prefix": ""}}, ABORT]},
        "lost",
        "are both about 'video/'",
    ),
    "no rule for uploads": ({"Rules": [RULE]}, "stays", "unfinished uploads"),
    "too many rules": (
        {"Rules": [{**RULE, "ID": str(k), "Filter": {"Prefix": f"{k:04}/"}} for k in range(1001)]},
        "refused",
        "1001 rules",
    ),
    "no rules": ({"Rules": []}, "refused", "0 rules"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_error_is_found_and_alone(name):
    rules, effect, says = PLANTED[name]
    found = check_s3_rules(rules)
    assert any(f.effect == effect and says in f.says for f in found), found


def test_the_rule_that_the_errors_were_planted_into_is_sound():
    assert check_s3_rules(changed()) == [] and len(PLANTED) >= 30


PROJECT = {
    "deleted though read": (Kind("log", "log/", delete=30, needed=42), "lost", "read up to 42"),
    "cold though read": (Kind("log", "log/", cold=30, delete=400, needed=42), "lost", "refuses to be read"),
    "longer than promised": (Kind("log", "log/", delete=400, limit=90), "stays", "allowed: 90"),
    "never deleted": (Kind("log", "log/"), "stays", "no rule deletes it"),
    "too small to move": (Kind("log", "log/", warm=30, delete=400, mean_kb=12), "costs", "merge them first"),
}


@pytest.mark.parametrize("name", PROJECT)
def test_what_the_project_needs_or_forbids_is_compared(name):
    kind, effect, says = PROJECT[name]
    lifecycle = Lifecycle((kind,))
    found = check_s3_rules(s3_rules(lifecycle), lifecycle)
    assert [(f.effect, f.where) for f in found] == [(effect, "log")] and says in found[0].says


def test_a_kept_kind_that_a_rule_deletes_is_lost():
    rules = {"Rules": [{**RULE, "Filter": {"Prefix": "models/"}}, ABORT]}
    found = check_s3_rules(rules, Lifecycle((KINDS[2],)))
    assert [(f.effect, f.says) for f in found] == [
        ("lost", "deleted after 365 days, to be kept: signed releases")
    ]


def test_versions_keep_what_was_deleted_unless_a_rule_ends_them():
    lifecycle = Lifecycle((KINDS[1],), versioned=True)
    assert check_s3_rules(s3_rules(lifecycle), lifecycle) == []
    plain = s3_rules(Lifecycle((KINDS[1],)))
    assert [f.effect for f in check_s3_rules(plain, lifecycle)] == ["stays"]


def test_rules_say_what_the_declaration_says_and_nothing_is_wrong_with_them():
    rules = s3_rules(LIFECYCLE)
    assert check_s3_rules(rules, LIFECYCLE) == []
    named = {"hot": "STANDARD", **CLASSES}
    for kind in KINDS:
        tiers = tier_at(kind, np.arange(500))
        says = [None if c == GONE else named[TIERS[c]] for c in tiers.tolist()]
        assert class_at(rules, LIFECYCLE.where(kind) + "x", 1 << 20, range(500)) == says


@given(st.data())
def test_any_declaration_that_can_be_written_survives_the_way_through_rules(data):
    ages = sorted(data.draw(st.sets(st.integers(1, 400), min_size=3, max_size=3)))
    wanted = data.draw(st.lists(st.booleans(), min_size=3, max_size=3))
    warm, cold, delete = (a if w else None for a, w in zip(ages, wanted))
    kind = Kind("k", "k/", warm=warm, cold=cold, delete=delete)
    lifecycle = Lifecycle((kind,))
    named = {"hot": "STANDARD", **CLASSES}
    says = [None if c == GONE else named[TIERS[c]] for c in tier_at(kind, np.arange(410)).tolist()]
    assert class_at(s3_rules(lifecycle), "k/x", 1 << 20, range(410)) == says


def test_gigabytes_by_day_are_those_of_a_loop():
    held = forward(LIFECYCLE, {"video": 2.0, "log": 0.5}, 450)
    for name, gb, kind in (("video", 2.0, KINDS[0]), ("log", 0.5, KINDS[1])):
        for day in (0, 29, 30, 75, 364, 365, 449):
            slow = [0.0] * 3
            for written in range(day + 1):
                code = int(tier_at(kind, np.array([day - written]))[0])
                if code < GONE:
                    slow[code] += gb
            assert np.allclose(held[name][day], slow)


def test_sizes_and_tags_of_a_filter():
    rule = {"Status": "Enabled", "Filter": {"And": {"Prefix": "a/", "ObjectSizeGreaterThan": 10}}}
    assert applies(rule, "a/x", 11) and not applies(rule, "a/x", 10) and not applies(rule, "b/x", 11)
    tagged = {"Status": "Enabled", "Filter": {"Tag": {"Key": "k", "Value": "v"}}}
    assert not applies(tagged, "a/x", 11), "an object without tags"
    small = {**RULE, "Filter": {"And": {"Prefix": "video/", "ObjectSizeGreaterThan": 10}}}
    assert class_at({"Rules": [small]}, "video/x", 11, [31]) == ["STANDARD_IA"], "a size moves small ones too"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kinds: {log: {delete: -100}}", "delete: -100 is not a number of days from 1"),
        ("kinds: {log: {delete: 30.5}}", "delete: 30.5"),
        ("kinds: {log: {delete: true}}", "delete: True"),
        ("kinds: {log: {keep: 3}}", "keep: 3 is not a reason"),
        ("kinds: {log: {prefix: 3}}", "prefix: 3 is not a path"),
        ("kinds: {log: {mean_kb: .nan}}", "mean_kb"),
        ("kinds: []", "no kinds of files"),
        ("kinds: {log: {}}\nprefix: /x/", "give a path such as line-1/"),
        ("kinds: {log: {}}\nversioned: maybe", "true or false"),
        ("[1, 2]", "lifecycle.yaml"),
        ("kinds: {log: {warm: 1, wrm: 2}}", "unknown wrm"),
    ],
)
def test_a_declaration_that_is_wrong_names_its_file_and_its_kind(tmp_path, text, says):
    path = tmp_path / "lifecycle.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="lifecycle.yaml") as e:
        read_lifecycle(path)
    assert says in str(e.value)


@pytest.mark.parametrize("rules", [None, [], {"Rules": None}, {"Rules": ["x"]}, {}])
def test_what_are_no_rules_is_an_error(rules):
    with pytest.raises(ConfigError, match="not a list of lifecycle rules"):
        check_s3_rules(rules)


def test_lines_for_other_stores():
    lines = rclone_lines(LIFECYCLE, {"hot": "/srv", "warm": "nas:v", "cold": "tape:v"})
    assert lines[0] == "rclone move --min-age 30d '/srv/line-1/video/' 'nas:v/line-1/video/'"
    assert lines[2] == "rclone delete --min-age 365d 'tape:v/line-1/video/'" and len(lines) == 5
    assert mc_lines(LIFECYCLE, "a/b")[1] == "mc ilm rule add --prefix 'line-1/log/' --expire-days 400 a/b"
