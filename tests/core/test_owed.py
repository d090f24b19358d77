"""The list of files that have still to be sent: two processes, kills and damage lose nothing of it."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core import owed
from cv_pipeline.core.owed import OWED, owe, owed_files, settle
from cv_pipeline.core.types import DataError

NAMES = [f"frames/part-{k}.parquet" for k in range(5)]


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.sampled_from(NAMES), max_size=3)), max_size=12))
def test_what_was_entered_and_not_settled_is_owed(tmp_path_factory, acts):
    folder, wanted = tmp_path_factory.mktemp("log"), set()
    for entered, names in acts:
        (owe if entered else settle)(folder, [folder / n for n in sorted(names)])
        wanted = wanted | names if entered else wanted - names
    assert owed_files(folder) == {folder / n for n in wanted}


def test_a_folder_without_a_list_owes_nothing(tmp_path):
    assert owed_files(tmp_path) == frozenset() and not (tmp_path / OWED).exists()


def test_a_torn_last_line_counts_for_nothing_and_the_next_one_is_whole(tmp_path):
    owe(tmp_path, [tmp_path / "a"])
    with open(tmp_path / OWED, "ab") as file:
        file.write(b'{"owed": ["b')
    assert owed_files(tmp_path) == {tmp_path / "a"}
    owe(tmp_path, [tmp_path / "c"])
    assert owed_files(tmp_path) == {tmp_path / "a", tmp_path / "c"}


@pytest.mark.parametrize(
    "line", [b"[1]", b'{"owed": "x"}', b'{"owed": [1, null]}', b'{"owed": ["../../etc"]}', b"\xff"]
)
def test_a_strange_line_leads_nowhere(tmp_path, line):
    (tmp_path / OWED).write_bytes(line + b'\n{"owed": ["a"]}\n')
    assert owed_files(tmp_path) == {tmp_path / "a"}


def test_files_of_another_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not lie in the folder.*give files of this folder"):
        owe(tmp_path / "log", [tmp_path / "other" / "part"])


def test_a_list_that_has_grown_is_written_again_without_what_is_settled(tmp_path, monkeypatch):
    monkeypatch.setattr(owed, "_LARGE", 2000)
    for k in range(60):
        owe(tmp_path, [tmp_path / f"part-{k}"])
        if k != 7:
            settle(tmp_path, [tmp_path / f"part-{k}"])
    assert (tmp_path / OWED).stat().st_size < 2200
    assert owed_files(tmp_path) == {tmp_path / "part-7"}


def test_many_writers_lose_no_entry(tmp_path, monkeypatch):
    monkeypatch.setattr(owed, "_LARGE", 500)

    def work(t):
        for k in range(15):
            owe(tmp_path, [tmp_path / f"{t}-{k}"])
            if k % 2:
                settle(tmp_path, [tmp_path / f"{t}-{k}"])

    threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert owed_files(tmp_path) == {tmp_path / f"{t}-{k}" for t in range(4) for k in range(0, 15, 2)}
