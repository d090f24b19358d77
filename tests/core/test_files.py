"""Properties of core.files: round trips, crashes at every step, several processes, hostile bytes, copies."""

import codecs
import json
import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cv_pipeline.core import files as F
from cv_pipeline.core.types import ConfigError, CVPipelineError, DataError, SinkError

FORK = multiprocessing.get_context("fork")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NUMBERS = st.integers(-(2**63), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXT


def branches(inner):
    return st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4)


TREES = st.recursive(SCALARS, branches, max_leaves=20)
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]  # the last three with the mark that says so
MARKED = {"utf-16-be": codecs.BOM_UTF16_BE, "utf-32-be": codecs.BOM_UTF32_BE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def in_processes(work, *argument_lists) -> list[int]:
    "Exit codes of processes that do this, all at once."
    processes = [FORK.Process(target=work, args=arguments) for arguments in argument_lists]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


# what is written is read


@given(TREES, st.sampled_from(ENCODINGS))
def test_json_comes_back_in_every_encoding(folder, value, encoding):
    F.write_whole(folder / "a.json", json.dumps(value, ensure_ascii=False).encode(encoding))
    assert F.read_json(folder / "a.json") == value


@given(TREES)
def test_what_write_json_writes_comes_back(folder, value):
    assert F.read_json(F.write_json(folder / "b.json", value)) == value


@pytest.mark.parametrize("encoding", MARKED)
def test_a_mark_of_the_other_byte_order_is_understood(tmp_path, encoding):
    F.write_whole(tmp_path / "a.json", MARKED[encoding] + '{"Tür": "ü"}'.encode(encoding))
    assert F.read_json(tmp_path / "a.json") == {"Tür": "ü"}


@given(TREES, st.sampled_from(ENCODINGS), st.booleans())
def test_yaml_comes_back_in_every_encoding(folder, value, encoding, unicode):
    text = yaml.safe_dump(value, allow_unicode=unicode)
    assume(yaml.safe_load(text) == value)  # PyYAML itself loses some line separators that it writes
    F.write_whole(folder / "a.yaml", text.encode(encoding))
    assert F.read_yaml(folder / "a.yaml", None) == value


@given(st.dictionaries(TEXT, TREES, max_size=4), st.sampled_from([".json", ".yaml", ".yml", ".JSON"]))
def test_a_table_is_read_by_its_ending(folder, value, ending):
    text = json.dumps(value) if ending.lower() == ".json" else yaml.safe_dump(value)
    assert F.read_table_file(F.write_whole(folder / f"t{ending}", text)) == value


@given(st.lists(st.dictionaries(TEXT, SCALARS, max_size=3), max_size=5), st.booleans())
def test_lines_come_back_with_their_numbers(folder, rows, cut_torn):
    (folder / "a.jsonl").unlink(missing_ok=True)
    F.append_lines(folder / "a.jsonl", rows, cut_torn=cut_torn)
    assert list(F.read_json_lines(folder / "a.jsonl")) == list(enumerate(rows, 1))


# killed at any moment


class Killed(BaseException):
    "The process ends here."


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
def test_a_crash_at_any_step_leaves_the_old_content(tmp_path, monkeypatch, step):
    path = F.write_whole(tmp_path / "a.bin", b"old")

    def die(*a, **k):
        raise Killed

    def torn(file):
        file.write(b"ne")
        raise Killed

    with monkeypatch.context() as m:
        if step != "write":
            m.setattr({"open": "builtins.open", "fsync": "os.fsync", "replace": "os.replace"}[step], die)
        with pytest.raises(Killed):
            F.write_whole(path, torn if step == "write" else b"new", durable=True)
    assert (path.read_bytes(), names(tmp_path)) == (b"old", ["a.bin"])


def test_a_crash_after_the_rename_leaves_the_new_content(tmp_path, monkeypatch):
    path, replace = F.write_whole(tmp_path / "a.bin", b"old"), os.replace

    def die(*a):
        replace(*a)
        raise Killed

    with monkeypatch.context() as m:
        m.setattr(os, "replace", die)
        with pytest.raises(Killed):
            F.write_whole(path, b"new")
    assert (path.read_bytes(), names(tmp_path)) == (b"new", ["a.bin"])


def dies_while_writing(path):
    F.write_whole(path, lambda file: (file.write(b"half"), file.flush(), os._exit(9)))


def test_a_killed_process_leaves_a_draft_that_is_swept(tmp_path):
    path = F.write_whole(tmp_path / "a.bin", b"old")
    assert in_processes(dies_while_writing, (path,)) == [9]
    assert (path.read_bytes(), len(names(tmp_path))) == (b"old", 2)
    F.sweep_drafts(path)
    assert names(tmp_path) == ["a.bin"]


@given(st.lists(st.dictionaries(TEXT, SCALARS, max_size=3), min_size=1, max_size=4), st.data())
def test_a_torn_journal_is_cut_or_ended(folder, rows, data):
    "Cut anywhere: `cut_torn` leaves only whole lines; without it the torn line is one bad line."
    path = folder / "torn.jsonl"
    path.unlink(missing_ok=True)
    whole = F.append_lines(path, rows).read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    kept = [row for row, end in zip(rows, [i for i, b in enumerate(whole) if b == 10]) if end <= cut]
    path.write_bytes(whole[:cut])
    F.append_lines(path, [{"next": 1}], cut_torn=True)
    assert [row for _, row in F.read_json_lines(path)] == [*kept, {"next": 1}]
    path.write_bytes(whole[:cut])
    F.append_lines(path, [{"next": 1}])
    read = [row for _, row in F.read_json_lines(path)]
    assert (read[: len(kept)], read[-1], len(read) - len(kept) in (1, 2)) == (kept, {"next": 1}, True)


def test_a_long_torn_line_is_cut_whole(tmp_path):
    path = F.append_lines(tmp_path / "a.jsonl", [{"a": 1}])
    with open(path, "ab") as file:
        file.write(b'{"a": "' + b"x" * 200_000)
    F.append_lines(path, [{"b": 2}], cut_torn=True)
    assert path.read_bytes() == b'{"a": 1}\n{"b": 2}\n'


# several processes


def append_200(path, who, cut_torn):
    for line in range(200):
        F.append_lines(path, [{"who": who, "line": line}], cut_torn=cut_torn)


@pytest.mark.parametrize("cut_torn", [False, True])
def test_four_processes_append_without_loss(tmp_path, cut_torn):
    path = tmp_path / "journal.jsonl"
    assert in_processes(append_200, *((path, who, cut_torn) for who in range(4))) == [0] * 4
    rows = sorted((row["who"], row["line"]) for _, row in F.read_json_lines(path))
    assert rows == [(who, line) for who in range(4) for line in range(200)]


def count_25(path):
    for _ in range(25):
        with F.locked(path, wait_s=60, sleep=lambda s: None):
            F.write_json(path, F.read_json(path) + 1)


def test_a_counter_under_a_lock_loses_nothing(tmp_path):
    path = F.write_json(tmp_path / "n.json", 0)
    assert in_processes(count_25, *[(path,)] * 4) == [0] * 4
    assert (F.read_json(path), names(tmp_path)) == (100, ["n.json"])


def test_a_held_lock_names_its_holder_and_a_killed_one_frees_it(tmp_path):
    path, (ours, theirs) = tmp_path / "a", FORK.Pipe()

    def hold():
        with F.locked(path):
            theirs.send("held")
            theirs.recv()

    process = FORK.Process(target=hold)
    process.start()
    assert ours.poll(60) and ours.recv() == "held"
    with pytest.raises(F.Busy) as caught, F.locked(path, wait_s=0):
        pass
    process.kill()
    process.join(60)
    assert caught.value.holder == str(process.pid)
    with F.locked(path, wait_s=0):
        assert (tmp_path / ".a.lock").read_text() == str(os.getpid())


def add_word(path, who):
    for k in range(20):
        with F.rewriting(path):
            F.write_json(path, [*F.read_json(path), f"{who} {k}"])


def test_what_four_processes_read_change_and_write_is_all_kept(tmp_path):
    path = F.write_json(tmp_path / "words.json", [])
    assert in_processes(add_word, *((path, who) for who in range(4))) == [0] * 4
    assert sorted(json.loads(path.read_text())) == sorted(f"{who} {k}" for who in range(4) for k in range(20))


def test_drafts_of_killed_writers_go_and_those_of_others_stay(tmp_path):
    gone, alive = (tmp_path / f".n.json.{pid}-0123abcd.part" for pid in (4194304, os.getpid()))
    for draft in (gone, alive):
        draft.write_text("half")
    with F.rewriting(tmp_path / "n.json"):
        pass
    assert names(tmp_path) == [alive.name]


def test_waiting_for_a_lock_asks_often_at_first(tmp_path):
    slept, now = [], [0.0]

    def sleep(seconds):
        slept.append(seconds)
        now[0] += max(seconds, 0.005)

    with F.locked(tmp_path / "a"), pytest.raises(F.Busy):
        with F.locked(tmp_path / "a", 15.0, clock=lambda: now[0], sleep=sleep):
            pass
    assert max(slept[:100]) <= 0.0101
    assert 0.0101 < max(slept) < 0.11


@pytest.mark.parametrize("replace", [True, False])
def test_a_folder_that_another_process_put_there_meanwhile(tmp_path, monkeypatch, replace):
    "Between the question whether there is one and the rename."
    draft, out = tmp_path / "draft", tmp_path / "out"
    for folder in (draft, out):
        folder.mkdir()
        (folder / "name").write_text(folder.name)
    monkeypatch.setattr(type(out), "exists", lambda self, **how: False)
    if replace:
        F.take_place(draft, out, replace=True)
        assert (out / "name").read_text() == "draft" and not draft.is_dir()
    else:
        with pytest.raises(OSError):
            F.take_place(draft, out, replace=False)
        assert (out / "name").read_text() == "out"


@pytest.mark.skipif(sys.platform != "linux", reason="two names are swapped at once on Linux only")
def test_a_folder_is_replaced_without_a_moment_in_which_it_is_gone(tmp_path, monkeypatch):
    F.write_whole(tmp_path / "v" / "old", "1")
    draft = F.write_whole(tmp_path / "draft" / "new", "2").parent

    def never(*names):
        raise AssertionError("one after the other")

    monkeypatch.setattr("os.replace", never)
    F.take_place(draft, tmp_path / "v", replace=True)
    assert [p.name for p in tmp_path.rglob("*")] == ["v", "new"]


def test_a_folder_is_replaced_where_names_cannot_be_swapped(tmp_path, monkeypatch):
    F.write_whole(tmp_path / "v" / "old", "1")
    draft = F.write_whole(tmp_path / "draft" / "new", "2").parent
    monkeypatch.setattr(F, "_exchange", lambda a, b: False)
    F.take_place(draft, tmp_path / "v", replace=True)
    assert [p.name for p in tmp_path.rglob("*")] == ["v", "new"]


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="a folder below it"):
        F.Staging(".")


# hostile bytes


def damaged(data, whole: bytes) -> bytes:
    "Cut off somewhere, some bits flipped."
    spoilt = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    bits = st.lists(st.integers(0, max(len(spoilt) * 8 - 1, 0)), max_size=8)
    for place in data.draw(bits) if spoilt else ():
        spoilt[place // 8] ^= 1 << place % 8
    return bytes(spoilt)


def only_typed(read) -> None:
    "Reads, or fails in the way that callers count on."
    try:
        read()
    except CVPipelineError as e:
        assert e.what


@given(st.data(), TREES, st.sampled_from(ENCODINGS))
def test_damaged_json_only_raises_typed_errors(folder, data, value, encoding):
    text = json.dumps(value, ensure_ascii=False)
    path = F.write_whole(folder / "bad.json", damaged(data, text.encode(encoding)))
    only_typed(lambda: F.read_json(path, dict))
    only_typed(lambda: list(F.read_json_lines(path)))


@pytest.mark.parametrize(
    "text",
    [
        r'a: "\Uffffffff"',
        "a: !!bool maybe",
        'a: !!int ""',
        'a: !!float ""',
        "a: !!timestamp soon",
        "a: !!binary é",
        "a: 2026-99-99",
    ],
)
def test_yaml_that_means_no_value_is_a_typed_error(text):
    with pytest.raises(ConfigError, match="invalid YAML"):
        F.parse_yaml(text, "x.yaml")


@given(st.data(), TREES, st.sampled_from(ENCODINGS))
def test_damaged_yaml_only_raises_typed_errors(folder, data, value, encoding):
    text = yaml.safe_dump(value, allow_unicode=True)
    path = F.write_whole(folder / "bad.yaml", damaged(data, text.encode(encoding)))
    only_typed(lambda: F.read_yaml(path))


@given(st.binary(max_size=200))
def test_any_bytes_only_raise_typed_errors(folder, content):
    path = F.write_whole(folder / "any.json", content)
    for read in (F.read_json, F.read_text, F.read_parquet):
        only_typed(lambda read=read: read(path))
    only_typed(lambda: F.read_yaml(path, None))
    only_typed(lambda: list(F.read_json_lines(path)))


HOSTILE = [
    *("[" * 100_000, "{a: " * 5_000, "1" * 10_000, "\x00"),
    *("a: &a [*a]", "a: &a\n  <<: *a", "? [1]\n: 2", "a: 1\na: 2"),
    *("!!python/object:os.system {}", "2026-02-31", "- !!binary x", "!!timestamp no"),
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12])
def test_hostile_texts_only_raise_typed_errors(text):
    only_typed(lambda: F.parse_yaml(text))
    only_typed(lambda: F.parse_json(text))


@pytest.fixture(scope="module")
def table(folder) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ["a", "bc", None, "d", ""] * 100
    rows = pa.table({"n": list(range(500)), "name": names, "x": [[0.5, 1.5]] * 500})
    pq.write_table(rows, folder / "good.parquet", compression="zstd")
    return (folder / "good.parquet").read_bytes()


@settings(max_examples=60)
@given(st.data())
def test_damaged_parquet_only_raises_typed_errors(folder, table, data):
    path = F.write_whole(folder / "bad.parquet", damaged(data, table))
    for read in (F.read_parquet, F.read_parquet_metadata, F.read_parquet_schema):
        only_typed(lambda read=read: read(path))


def test_a_missing_column_is_named(folder, table):
    with pytest.raises(DataError, match="missing columns: class"):
        F.read_parquet(folder / "good.parquet", ["n", "class"])


PARQUET = [F.read_parquet, F.read_parquet_schema, F.read_parquet_metadata]


@pytest.mark.parametrize("read", [F.read_json, F.read_yaml, F.read_text, *PARQUET])
def test_a_file_that_is_not_there_and_a_folder_are_typed_errors(tmp_path, read):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(CVPipelineError):
            read(path)


# copies


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_a_copy_never_overwrites(folder, ours, theirs):
    for name, content in (("source", ours), ("target", theirs)):
        F.write_whole(folder / name, content)
    with pytest.raises(SinkError, match="nothing is overwritten|file of this name"):
        F.copy_file(folder / "source", folder / "target")
    assert ((folder / "source").read_bytes(), (folder / "target").read_bytes()) == (ours, theirs)


def test_a_copy_does_not_write_through_a_broken_link(tmp_path):
    F.write_whole(tmp_path / "source", b"new")
    os.symlink(tmp_path / "elsewhere", tmp_path / "target")
    with pytest.raises(SinkError):
        F.copy_file(tmp_path / "source", tmp_path / "target")
    assert names(tmp_path) == ["source", "target"]


def test_copy_over_replaces_the_name_and_not_the_file(tmp_path):
    F.write_whole(tmp_path / "picture", b"the user's own")
    os.link(tmp_path / "picture", tmp_path / "version")
    F.copy_over(F.write_whole(tmp_path / "newer", b"newer"), tmp_path / "version")
    assert [(tmp_path / n).read_bytes() for n in names(tmp_path)] == [b"newer", b"the user's own", b"newer"]


def test_copy_over_the_same_file_leaves_no_draft(tmp_path):
    F.write_whole(tmp_path / "a", b"a")
    os.link(tmp_path / "a", tmp_path / "b")
    F.copy_over(tmp_path / "a", tmp_path / "b")
    assert (names(tmp_path), (tmp_path / "b").read_bytes()) == (["a", "b"], b"a")


def test_a_crash_in_copy_over_leaves_the_old_file(tmp_path, monkeypatch):
    F.write_whole(tmp_path / "a", b"new")
    F.write_whole(tmp_path / "b", b"old")

    def die(*a):
        raise Killed

    with monkeypatch.context() as m:
        m.setattr(os, "replace", die)
        with pytest.raises(Killed):
            F.copy_over(tmp_path / "a", tmp_path / "b")
    assert (names(tmp_path), (tmp_path / "b").read_bytes()) == (["a", "b"], b"old")


def dies_in_a_draft_folder(out):
    with F.draft_folder(out) as draft:
        F.write_whole(draft / "half", b"half")
        os._exit(9)


def test_the_next_draft_folder_sweeps_that_of_a_killed_process(tmp_path):
    assert in_processes(dies_in_a_draft_folder, (tmp_path / "m",)) == [9]
    assert len(names(tmp_path)) == 1
    with F.draft_folder(tmp_path / "m") as draft:
        assert names(tmp_path) == [draft.name]
    assert names(tmp_path) == []


# errors say what was meant


@pytest.mark.parametrize("text", [None, "{", "{}", "[1]"])
def test_expecting_says_what_the_file_is_not(tmp_path, text):
    if text is not None:
        F.write_whole(tmp_path / "a.json", text)
    with pytest.raises(ConfigError, match="^not a list of cameras: ") as caught:
        with F.expecting("not a list of cameras", tmp_path / "a.json", "write one", ConfigError):
            F.read_json(tmp_path / "a.json", dict)["cameras"]
    assert (caught.value.where, caught.value.hint) == (tmp_path / "a.json", "write one")


def test_writing_says_what_could_not_be_written_and_why(tmp_path):
    (tmp_path / "state.json").mkdir()
    with (
        pytest.raises(ConfigError) as caught,
        F.writing("the state cannot be kept", tmp_path, error=ConfigError),
    ):
        F.write_json(tmp_path / "state.json", {})
    assert (caught.value.what, caught.value.where) == ("the state cannot be kept: Is a directory", tmp_path)
