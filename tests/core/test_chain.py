"""A chain of lines: every edit is found, the head tells a shortened log, and writers do not break it."""

import json
import multiprocessing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.chain import FIRST, ChainError, append_chain, knows_head, read_chain

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    "Five lines."
    path = tmp_path_factory.mktemp("chain") / "log.jsonl"
    for n in range(5):
        append_chain(path, {"what": f"look {n}", "who": "ann", "seconds": n / 3})
    return path


def test_a_line_carries_its_number_and_the_hash_of_the_line_before(chain):
    rows, head = read_chain(chain)
    assert [row["number"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[0]["previous"] == FIRST and len({row["previous"] for row in rows} | {head}) == 6


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_every_changed_byte_is_found(chain, tmp_path_factory, data):
    whole = chain.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 2))  # the last end of line may be missing
    other = data.draw(st.integers(0, 255).filter(lambda b: b != whole[place]))
    copy = tmp_path_factory.mktemp("edit") / "log.jsonl"
    copy.write_bytes(whole[:place] + bytes([other]) + whole[place + 1 :])
    try:
        found = read_chain(copy)
    except ChainError:
        return
    assert not knows_head(found, read_chain(chain).head)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(5)), st.integers(0, 5))
def test_removed_and_moved_lines_are_found(chain, tmp_path_factory, order, kept):
    lines = chain.read_bytes().splitlines(keepends=True)
    copy = tmp_path_factory.mktemp("edit") / "log.jsonl"
    copy.write_bytes(b"".join(lines[k] for k in order[:kept]))
    if list(order[:kept]) == list(range(kept)):
        assert len(read_chain(copy).rows) == kept
        assert knows_head(read_chain(copy), read_chain(chain).head) is (kept == 5)
    else:
        with pytest.raises(ChainError, match="of the log is invalid"):
            read_chain(copy)


@pytest.mark.parametrize("cut", [1, 20, -2])
def test_a_torn_last_line_does_not_count_and_is_replaced(chain, tmp_path, cut):
    lines = chain.read_bytes().splitlines(keepends=True)
    copy = tmp_path / "log.jsonl"
    copy.write_bytes(b"".join(lines[:3]) + lines[3][:cut])
    assert len(read_chain(copy).rows) == 3
    assert append_chain(copy, {"what": "again"})["number"] == 4
    assert [row["number"] for row in read_chain(copy).rows] == [1, 2, 3, 4]


def test_a_last_line_that_lacks_only_its_end_counts(chain, tmp_path):
    copy = tmp_path / "log.jsonl"
    copy.write_bytes(chain.read_bytes().rstrip(b"\n"))
    assert len(read_chain(copy).rows) == 5
    append_chain(copy, {"what": "next"})
    assert len(read_chain(copy).rows) == 6


def test_a_line_longer_than_what_is_read_of_the_end_is_continued(tmp_path):
    path = tmp_path / "log.jsonl"
    append_chain(path, {"what": "long", "text": "ä" * 200_000})
    append_chain(path, {"what": "long", "text": "x" * 70_000})
    append_chain(path, {"what": "short"})
    assert [len(row.get("text", "")) for row in read_chain(path).rows] == [200_000, 70_000, 0]


def _write(path, who):
    for n in range(25):
        append_chain(path, {"who": who, "n": n})


def test_four_writers_at_once_make_one_chain(tmp_path):
    path = tmp_path / "log.jsonl"
    writers = [FORK.Process(target=_write, args=(path, k)) for k in range(4)]
    for w in writers:
        w.start()
    for w in writers:
        w.join(120)
    rows = read_chain(path).rows
    assert [row["number"] for row in rows] == list(range(1, 101))
    assert all([r["n"] for r in rows if r["who"] == k] == list(range(25)) for k in range(4))


@pytest.mark.parametrize(
    "line",
    [b"", b"[1]", b"\xff\xfe", b'"text"', b"{", b'{"number": true, "previous": ""}', b'{"number": 2}'],
)
def test_what_is_not_a_line_of_a_log_is_a_typed_error(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(line + b"\n" + json.dumps({"number": 2, "previous": FIRST}).encode() + b"\n")
    with pytest.raises(ChainError, match="line 1 of the log is invalid"):
        read_chain(path)


def test_a_short_head_is_not_enough(chain):
    found = read_chain(chain)
    assert not knows_head(found, found.head[:11]) and knows_head(found, found.head[:12].upper())
