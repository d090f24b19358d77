"""The index: exact and approximate search, additions, byte-clean erasure, broken files."""

import json
import subprocess
import sys
import threading

import numpy as np
import pytest

from cv_pipeline.apps.neighbours import KINDS, SearchSettings, nearest
from cv_pipeline.apps.search import Index, measure
from cv_pipeline.core.types import ConfigError, DataError
from cv_pipeline.core.vectors import (
    BOOK,
    append_vectors,
    create_vectors,
    erase_vectors,
    open_block,
    read_rows,
    read_vector_book,
    unit_vectors,
)
from tests.helpers.services import require

DIM = 32
MINE = {"name": "heaps", "sha256": "ab" * 32}


def heaps(n, seed=0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1, (40, DIM))
    return unit_vectors(centres[rng.integers(0, 40, n)] + 0.5 * rng.normal(0, 1, (n, DIM)))


def rows(n, first=0):
    return [{"picture": f"p{first + i:05d}.jpg", "camera": f"cam{(first + i) % 20:02d}"} for i in range(n)]


def filled(folder, n=1500, settings=None):
    index = Index.create(folder, MINE, DIM, settings)
    index.add(heaps(n), rows(n))
    return index


def settings_of(kind):
    if kind != "exact":
        require("faiss")
    return SearchSettings(kind, code_bytes=8, probe=16)


def files_of(folder):
    return b"".join(p.read_bytes() for p in folder.iterdir() if p.is_file())


def from_camera(name):
    return lambda table: [c == name for c in table["camera"].to_pylist()]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_stored_is_found_first(tmp_path, kind):
    index = filled(tmp_path / "i", settings=settings_of(kind))
    found = index.search(heaps(1500)[::100], 5)
    assert found.rows[:, 0].tolist() == list(range(0, 1500, 100))
    assert (np.diff(found.score, axis=1) <= 1e-6).all()


@pytest.mark.parametrize("kind", ["ivf", "ivfpq", "hnsw"])
def test_recall_of_an_approximate_index(tmp_path, kind):
    index = filled(tmp_path / "i", settings=settings_of(kind))
    assert measure(index, 50).recall >= 0.95


def test_exact_search_equals_the_product_whatever_is_kept_in_memory(tmp_path):
    index = filled(tmp_path / "i")
    half = heaps(1500).astype(np.float16).astype(np.float32)
    wanted = nearest(half, heaps(9, 5), 20)
    for memory in (0.0, 512.0):
        got = Index(tmp_path / "i", SearchSettings(memory_mb=memory)).search(heaps(9, 5), 20)
        assert np.array_equal(got.rows, wanted[0])
    assert np.allclose(index.search(heaps(9, 5), 20).score, wanted[1], atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_added_rows_are_found_at_once(tmp_path, kind):
    index = filled(tmp_path / "i", settings=settings_of(kind)).build()
    new = heaps(30, seed=8)
    index.add(new, rows(30, 1500))
    assert index.search(new, 1).rows[:, 0].tolist() == list(range(1500, 1530))
    again = Index(tmp_path / "i")
    assert again.search(new, 1).rows[:, 0].tolist() == list(range(1500, 1530))


@pytest.mark.parametrize("kind", KINDS)
def test_an_erased_camera_is_in_no_byte_and_the_rest_is_found(tmp_path, kind):
    index = filled(tmp_path / "i", settings=settings_of(kind)).build()
    before = measure(index, 50).recall
    marks = [v.tobytes() for v in heaps(1500)[7::20].astype(np.float16)]
    assert all(m in files_of(tmp_path / "i") for m in marks)
    assert index.erase(from_camera("cam07")) == 75
    data = files_of(tmp_path / "i")
    assert not [m for m in marks if m in data]
    assert {r["camera"] for r in index.rows()} == {f"cam{i:02d}" for i in range(20)} - {"cam07"}
    assert abs(measure(index, 50).recall - before) <= 0.05
    left = np.delete(heaps(1500), np.s_[7::20], axis=0)
    assert index.search(left[:40], 1).rows[:, 0].tolist() == list(range(40))


def test_names_of_an_erased_camera_are_in_no_file(tmp_path):
    create_vectors(tmp_path / "i", MINE, 3)
    append_vectors(tmp_path / "i", np.eye(3), [{"camera": c} for c in ("secretgate", "yard", "roof")])
    assert b"secretgate" in files_of(tmp_path / "i")
    erase_vectors(tmp_path / "i", from_camera("secretgate"))
    assert b"secretgate" not in files_of(tmp_path / "i")
    assert read_rows(tmp_path / "i", read_vector_book(tmp_path / "i"))["camera"].to_pylist() == [
        "yard",
        "roof",
    ]


def test_files_that_a_killed_process_left_go_with_the_next_change(tmp_path):
    index = filled(tmp_path / "i", 50)
    for name in ("vectors-dead.npy", "rows-dead.parquet", "derived-dead.faiss"):
        (tmp_path / "i" / name).write_bytes(b"of the erased")
    index.add(heaps(1, 3), rows(1, 50))
    assert b"of the erased" not in files_of(tmp_path / "i")


KILLED = """
import os, sys
import numpy as np
from cv_pipeline.core import vectors
count = 0
real = vectors.write_whole
def writing(*a, **k):
    global count
    count += 1
    if count > int(sys.argv[2]):
        os._exit(9)
    return real(*a, **k)
vectors.write_whole = writing
put = vectors.put_book
vectors.put_book = lambda *a: os._exit(9) if int(sys.argv[2]) == 9 else put(*a)
vectors.erase_vectors(sys.argv[1], lambda t: [c == "cam07" for c in t["camera"].to_pylist()])
"""


@pytest.mark.parametrize("after", [0, 1, 9])
def test_a_process_that_is_killed_while_it_erases_leaves_an_index_and_a_second_call_finishes(tmp_path, after):
    filled(tmp_path / "i", 200)
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "i", str(after)], timeout=120)
    assert done.returncode == 9
    index = Index(tmp_path / "i")
    assert len(index) == 200
    assert index.search(heaps(200)[:20], 1).rows[:, 0].tolist() == list(range(20))
    assert index.erase(from_camera("cam07")) == 10
    names = {p.name for p in (tmp_path / "i").iterdir() if not p.name.endswith(".lock")}
    assert names == index.book.files


def test_two_writers_add_everything(tmp_path):
    create_vectors(tmp_path / "i", MINE, DIM)
    add = lambda k: append_vectors(tmp_path / "i", heaps(20, k), rows(20, 20 * k), MINE)
    threads = [threading.Thread(target=add, args=(k,)) for k in range(6)]
    [t.start() for t in threads]
    [t.join(timeout=60) for t in threads]
    index = Index(tmp_path / "i")
    assert sorted(r["picture"] for r in index.rows()) == [r["picture"] for r in rows(120)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: {**b, "format": "cv_pipeline vectors 2"}, "this index has version 2"),
        (lambda b: {**b, "format": "a cat"}, "not an index"),
        (lambda b: {**b, "dim": 0}, "damaged"),
        (lambda b: {**b, "count": 7}, "damaged"),
        (lambda b: {k: v for k, v in b.items() if k != "blocks"}, "cannot be read"),
        (lambda b: {**b, "blocks": [{**b["blocks"][0], "vectors": "../x.npy"}]}, "damaged"),
        (lambda b: {**b, "settings": {"kind": "best"}}, "settings of this index are invalid"),
        (lambda b: {**b, "blocks": [{**b["blocks"][0], "count": 49}], "count": 49}, "49"),
    ],
)
def test_a_broken_list_is_a_typed_error(tmp_path, change, message):
    filled(tmp_path / "i", 50)
    path = tmp_path / "i" / BOOK
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=message):
        Index(tmp_path / "i").rows()


@pytest.mark.parametrize("name", ["vectors", "rows"])
@pytest.mark.parametrize("how", ["cut", "missing", "other"])
def test_a_broken_file_is_a_typed_error(tmp_path, name, how):
    index = filled(tmp_path / "i", 50)
    path = tmp_path / "i" / getattr(index.book.blocks[0], name)
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-40] if how == "cut" else b"a cat")
    with pytest.raises(DataError):
        opened = Index(tmp_path / "i")
        opened.rows()


def test_a_broken_file_of_faiss_is_a_typed_error(tmp_path):
    index = filled(tmp_path / "i", 300, settings_of("ivf")).build()
    [name] = index.book.derived
    (tmp_path / "i" / name).write_bytes(b"a cat")
    with pytest.raises(DataError, match="the file of faiss cannot be read"):
        Index(tmp_path / "i").search(heaps(1), 3)


def test_vectors_of_another_model_are_refused(tmp_path):
    index = filled(tmp_path / "i", 20)
    other = {"name": "clip", "sha256": "cd" * 32}
    with pytest.raises(DataError, match="these are of clip"):
        Index(tmp_path / "i", embedder=other)
    with pytest.raises(DataError, match="these are of clip"):
        index.add(heaps(1), rows(1), other)
    assert len(Index(tmp_path / "i")) == 20


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_refused_and_nothing_is_added(tmp_path, bad):
    index, vectors = filled(tmp_path / "i", 20), heaps(3).copy()
    vectors[1, 4] = bad
    with pytest.raises(DataError, match="vector 1 contains NaN or infinity"):
        index.add(vectors, rows(3))
    with pytest.raises(DataError, match="contains NaN"):
        index.search(vectors[1])
    assert len(Index(tmp_path / "i")) == 20


def test_more_than_there_are(tmp_path):
    index = filled(tmp_path / "i", 3)
    assert index.search(heaps(2, 4), 50).rows.shape == (2, 3)


def test_an_empty_index(tmp_path):
    index = Index.create(tmp_path / "i", MINE, DIM)
    with pytest.raises(DataError, match="the index is empty"):
        index.search(heaps(1))
    assert index.erase(lambda table: [True] * len(table)) == 0


def test_everything_erased_is_an_empty_index(tmp_path):
    index = filled(tmp_path / "i", 30, settings_of("ivf")).build()
    assert index.erase(lambda table: [True] * len(table)) == 30
    assert [p.name for p in (tmp_path / "i").iterdir()] == [BOOK]


def test_a_small_index_of_every_kind(tmp_path):
    for kind in KINDS:
        index = filled(tmp_path / kind, 2, settings_of(kind))
        assert index.search(heaps(2), 1).rows[:, 0].tolist() == [0, 1]


@pytest.mark.parametrize("k", [0, -1, 1.5, True, None])
def test_a_wrong_k(tmp_path, k):
    with pytest.raises(ConfigError, match="k:"):
        filled(tmp_path / "i", 3).search(heaps(1), k)


def test_blocks_are_divided_and_read_across(tmp_path, monkeypatch):
    monkeypatch.setattr("cv_pipeline.core.vectors.BLOCK", 64)
    index = filled(tmp_path / "i", 200)
    index.add(heaps(10, 7), rows(10, 200))
    assert [b.count for b in index.book.blocks] == [64, 64, 64, 18]
    assert index.search(heaps(200)[::9], 1).rows[:, 0].tolist() == list(range(0, 200, 9))
    assert index.erase(from_camera("cam03")) == 11
    assert sum(len(open_block(index.folder, index.book, b)) for b in index.book.blocks) == len(index) == 199


def test_one_query_is_found_as_among_many():
    stock, asked = heaps(900), heaps(5, 3)
    alone = np.concatenate([nearest(stock, q[None], 7)[0] for q in asked])
    assert np.array_equal(alone, nearest(stock, asked, 7)[0])


def test_a_measurement_has_the_time_of_the_machine_and_of_the_processor(tmp_path):
    ticks = {"wall": 0.0, "cpu": 0.0}

    def clock(name, step):
        def read():
            ticks[name] += step
            return ticks[name]

        return read

    made = measure(filled(tmp_path / "i"), 20, 5, clock("wall", 0.008), clock("cpu", 0.002))
    assert (round(made.p50_ms, 6), round(made.cpu_p99_ms, 6)) == (8, 2)
