"""Hash lists: the index against comparing all, files, copies, and bad input."""

import numpy as np
import pytest

from cv_pipeline.apps.hash_lists import (
    BitIndex,
    Entry,
    add_entries,
    entries_of,
    look_up,
    parse_list,
    read_list,
)
from cv_pipeline.apps.pdq import as_hex, hashes_of
from cv_pipeline.core.types import DataError
from tests.helpers.scenes import COPIES, cut, scene

FLAT = np.full((120, 160, 3), 90, np.uint8)


def apart(a, b):
    return int(np.bitwise_count(a ^ b).sum())


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    path = tmp_path_factory.mktemp("list") / "known.tsv"
    add_entries(path, [e for k in range(12) for e in entries_of(scene(k), "forbidden", f"case {k}")])
    return read_list(path)


@pytest.mark.parametrize("image", [FLAT, np.zeros((1, 1, 3), np.uint8), np.full((9, 2000, 3), 255, np.uint8)])
def test_a_flat_picture_has_no_quality_and_never_acts(image, known):
    found = look_up(image, known)
    assert (found.action, found.quality) == ("none", 0) and "too little happens" in found.reason


def test_a_flat_picture_is_not_listed():
    with pytest.raises(DataError, match="too little happens"):
        entries_of(FLAT, "forbidden", "case 1")


def test_a_listed_hash_of_a_flat_picture_does_not_act():
    words = hashes_of(FLAT)[0].pdq[0]
    found = look_up(FLAT, parse_list(f"{as_hex(words)}\tforbidden\telsewhere\t2026-01-01"))
    assert found.action == "person" and "quality 0" in found.reason


@pytest.mark.parametrize("name", [n for n in COPIES if n != "cut 2.5 %"])
def test_copies_are_blocked(name, known):
    found = [look_up(COPIES[name](scene(k)), known) for k in range(12)]
    assert [f.action for f in found] == ["block"] * 12
    assert [f.matches[0].entry.source for f in found] == [f"case {k}" for k in range(12)]


def test_a_picture_with_a_cut_edge_goes_to_people(known):
    found = [look_up(cut(scene(k)), known) for k in range(12)]
    assert {f.action for f in found} == {"person"} and {f.matches[0].kind for f in found} == {"phash"}


def test_pictures_that_are_not_listed_are_not_blocked(known):
    assert "block" not in {look_up(scene(500 + k), known).action for k in range(40)}


def planted(n, width, radius, seed=0):
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 1 << 63, (n, width), np.uint64) * np.uint64(2) + rng.integers(
        0, 2, (n, width), np.uint64
    )
    query = words[:3].copy()
    for row, bits in zip(query, (0, radius, radius + 1)):
        for b in rng.choice(64 * width, bits, replace=False):
            row[b // 64] ^= np.uint64(1) << np.uint64(b % 64)
    return words, query


@pytest.mark.parametrize("width, radius", [(4, 31), (1, 10), (4, 0), (1, 0)])
def test_the_index_finds_what_comparing_all_finds(width, radius):
    words, query = planted(30_000, width, radius)
    index = BitIndex(words, radius)
    near, all_ = index.near(query), index.scan(query)
    assert near[0].tolist() == all_[0].tolist() and near[1].tolist() == all_[1].tolist()
    assert {0, radius} <= set(near[1].tolist()) and near[1].max() <= radius


def test_every_difference_within_the_radius_is_found():
    words, _ = planted(200, 4, 31)
    index, rng = BitIndex(words, 31), np.random.default_rng(1)
    for _ in range(300):
        query = words[7:8].copy()
        for b in rng.choice(256, 31, replace=False):
            query[0, b // 64] ^= np.uint64(1) << np.uint64(b % 64)
        rows, bits = index.near(query)
        assert 7 in index.first[rows] and 31 in bits


def test_a_million_times_the_same_hash():
    index = BitIndex(np.broadcast_to(planted(1, 4, 0)[0], (1_000_000, 4)), 31)
    assert len(index.words) == 1 and index.times.tolist() == [1_000_000]


def test_full_compartments_are_searched_by_comparing_all():
    words, query = planted(5_000, 4, 31)
    words[:, 0] = query[:, 0] = 0
    index = BitIndex(words, 31)
    assert index.near(query)[0].tolist() == index.scan(query)[0].tolist()


def test_an_empty_index_finds_nothing():
    assert len(BitIndex(np.zeros((0, 4), np.uint64), 31).near(np.zeros((2, 4), np.uint64))[0]) == 0


def test_entries_are_added_once_and_the_version_follows(tmp_path):
    path = tmp_path / "known.tsv"
    entries = entries_of(scene(1), "a", "b")
    assert add_entries(path, entries) == 2
    first = read_list(path).digest
    assert add_entries(path, [e._replace(added="2030-01-01") for e in entries]) == 0
    assert read_list(path).digest == first
    assert add_entries(path, entries_of(scene(2), "a", "b")) == 2 and read_list(path).digest != first


def test_equal_hashes_are_counted_and_the_first_is_named():
    h = as_hex(hashes_of(scene(1))[0].pdq[0])
    listed = parse_list("".join(f"{h}\tforbidden\tcase {k}\t2026-01-01\n" for k in range(3)))
    match = look_up(scene(1), listed).matches[0]
    assert (match.times, match.entry.source, len(listed)) == (3, "case 0", 3)


@pytest.mark.parametrize(
    "text, line",
    [("abc\ta\tb\tc", 1), ("# x\n\n" + "0" * 64 + "\ta\tb", 3), ("0" * 63 + "x\ta\tb\tc", 1), ("0" * 16, 1)],
)
def test_a_bad_line_is_named(text, line):
    with pytest.raises(DataError, match=f"line {line} of the hash list"):
        parse_list(text)


@pytest.mark.parametrize("label", ["", "two\tcolumns", "two\nlines", "# comment"])
def test_labels_that_would_break_the_file(label):
    with pytest.raises(DataError, match="cannot be a label"):
        entries_of(scene(1), label, "b")


def test_a_list_that_is_missing(tmp_path):
    with pytest.raises(DataError, match="hash list not found"):
        read_list(tmp_path / "none.tsv")


def test_a_broken_list_is_not_overwritten(tmp_path):
    path = tmp_path / "known.tsv"
    path.write_text("rubbish\n")
    with pytest.raises(DataError, match="line 1"):
        add_entries(path, [Entry("0" * 16, "a", "b", "c")])
    assert path.read_text() == "rubbish\n"
