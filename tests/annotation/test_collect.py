"""Collecting: the decision against a plain loop, exact probabilities, quotas, disk limits, restarts, logs of
every kind, pictures that are gone."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.annotation.cases import (
    REASONS,
    CollectPolicy,
    bounds,
    chance,
    decide,
    learn_usual,
    looks_of,
    reasons_of,
    usual_of,
)
from cv_pipeline.annotation.collect import (
    Collected,
    CollectSink,
    KeptFrames,
    Shelf,
    audited,
    collect,
    estimated_mean,
    read_books,
    read_collected,
    read_flags,
    read_log,
    write_collected,
)
from cv_pipeline.core.types import ConfigError, DataError, Detections, FrameResult, Sink, SinkError
from cv_pipeline.inference.calibrators import Calibrator
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.line import write_video
from cv_pipeline.video.sinks import JsonlSink, ParquetSink
from tests.helpers.made_up_camera import NAMES, NOON, fill, picture, result, stream

BIT = {r: 1 << i for i, r in enumerate(REASONS)}


def slow(results, p):
    "What `decide` should say, one look after the other."
    out = []
    near = lambda a, b: 0 <= (b.frame.captured_at - a.frame.captured_at).total_seconds() <= p.within_s
    table = lambda r: {
        int(t): int(c) for t, c in zip(r.detections.tracker_id, r.detections.class_id) if t >= 0
    }
    touch = lambda box, other: any(
        (min(box[2], o[2]) - max(box[0], o[0]) > 0) and (min(box[3], o[3]) - max(box[1], o[1]) > 0)
        for o in other.detections.xyxy
    )
    for i, r in enumerate(results):
        d, said = r.detections, set()
        if chance(p.seed, r.frame.source_id, r.frame.frame_id)[0] < p.random:
            said.add("random")
        if any(np.float32(p.low[0]) <= c < np.float32(p.low[1]) for c in d.confidence):
            said.add("low")
        if 0 < i < len(results) - 1 and near(results[i - 1], r) and near(r, results[i + 1]):
            before, now, after = map(table, results[i - 1 : i + 2])
            for t in before.keys() & after.keys():
                if t not in now or (before[t] == after[t] != now[t]):
                    said.add("flicker")
            for box, c, t in zip(d.xyxy, d.confidence, d.tracker_id):
                if (
                    c >= np.float32(p.high)
                    and t < 0
                    and not touch(box, results[i - 1])
                    and not touch(box, results[i + 1])
                ):
                    said.add("high")
        out.append(tuple(x for x in REASONS if x in said))
    return out


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([0.25, 1.0, 5.0]))
def test_the_decision_is_that_of_a_plain_loop(seed, n, within):
    p, results = CollectPolicy(random=0.2, within_s=within, seed=seed), list(stream(n, seed))
    assert [reasons_of(b) for b in decide(looks_of(results), p)] == slow(results, p)


def test_usual_is_learnt_from_the_past_and_only_there():
    counts = [5] * 300 + [0] * 100 + [5] * 50 + [60]
    results = [
        result(i, [(12 * k, 0, -1, 0, 0.95) for k in range(c)], image=np.zeros((8, 8, 3), np.uint8))
        for i, c in enumerate(counts)
    ]
    p = CollectPolicy(random=0, learn=200, low=None, high=None)
    looks = looks_of(results)
    said = [reasons_of(b) for b in decide(looks, p, *bounds(looks, p))]
    assert said[300:350] == [("none",)] * 50, "what was never empty is empty"
    assert said[400:450] == [()] * 50 and said[350:400] == [()] * 50, "after 50 of 350 it has become usual"
    assert said[450] == ("many",) and not any(said[:300])
    assert [reasons_of(b) for b in decide(looks, p)] == [()] * 451, "who knows nothing says nothing"
    sparse = looks_of(
        [result(i, [(0, 0, -1, 0, 0.95)] * (i % 2), image=np.zeros((8, 8, 3), np.uint8)) for i in range(600)]
    )
    assert not decide(sparse, p, *bounds(sparse, p)).any(), (
        "a belt that is empty half of the time makes no cases"
    )


def test_usual_of_histograms():
    counts = np.random.default_rng(0).poisson(7, 2001)
    u, mad = usual_of(np.bincount(counts)), np.median(np.abs(counts - np.median(counts)))
    assert (u.median, u.looks, u.empty) == (
        np.median(counts),
        2001,
        (counts == 0).mean(),
    ) and u.spread == max(1.4826 * mad, u.median**0.5)
    assert usual_of(np.zeros(4, int)).looks == 0


@pytest.mark.slow
@settings(max_examples=30)
@given(st.integers(0, 2**40), st.text(max_size=20), st.permutations(range(50)))
def test_lots_do_not_know_of_order(seed, source, order):
    assert np.array_equal(chance(seed, source, np.arange(50))[order], chance(seed, source, np.array(order)))


def test_lots_are_even_and_independent():
    from scipy.stats import kstest

    for seed in range(3):
        x = chance(seed, "gate", np.arange(20_000))
        assert kstest(x, "uniform").pvalue > 1e-3 and x.min() >= 0 and x.max() < 1
        assert (
            abs(np.corrcoef(x, chance(seed + 1, "gate", np.arange(20_000)))[0, 1]) < 0.03
            and abs(np.corrcoef(x, chance(seed, "gate", np.arange(20_000), "rank"))[0, 1]) < 0.03
        )


# ---- the sink and the log agree ----


@pytest.mark.slow
def test_live_and_afterwards_keep_the_same_pictures(tmp_path):
    frames = list(stream(500, 3)) + list(stream(500, 4, "yard"))
    mixed = [r for pair in zip(frames[:500], frames[500:]) for r in pair]  # two cameras take turns
    p = CollectPolicy(random=0.05, learn=100, quota=15, within_s=1, seed=9)
    sink = CollectSink(tmp_path / "live", p)
    assert isinstance(sink, Sink)
    fill(sink, mixed)
    fill(JsonlSink(tmp_path / "run" / "results.jsonl"), mixed)
    for source in ("cam", "yard"):
        (tmp_path / "kept" / source).mkdir(parents=True)
        for r in mixed:
            if r.frame.source_id == source:
                cv2.imwrite(str(tmp_path / "kept" / source / f"{r.frame.frame_id:08d}.png"), r.frame.image)
    got = collect(tmp_path / "run", tmp_path / "log", p, tmp_path / "kept")
    live = read_collected(tmp_path / "live")
    assert got.rows == live and len(live) > 100 and not got.missing and not got.notes
    a, b = read_books(tmp_path / "live"), read_books(tmp_path / "log")
    assert {k: a[k] for k in ("looks", "cases", "kept", "counts", "pictures")} == {
        k: b[k] for k in ("looks", "cases", "kept", "counts", "pictures")
    }
    assert (
        sum(a["looks"].values()) == 1000 and live[0].model == "m 1" and {r.size for r in live} == {(32, 24)}
    )
    for r in live:
        assert cv2.imread(str(tmp_path / "live" / r.picture)).shape == (24, 32, 3)
    assert live[0].found(NAMES).xyxy.shape[1] == 4


def test_frames_that_nobody_looked_at_are_no_looks(tmp_path):
    sink = CollectSink(tmp_path, CollectPolicy(random=1))
    fill(sink, [result(0, inferred=False), result(1, status="model_error"), result(2)])
    assert [r.frame_id for r in read_collected(tmp_path)] == [2] and read_books(tmp_path)["looks"] == {
        "cam/2026-06-01": 1
    }


def test_a_person_asks_for_a_picture_while_it_runs(tmp_path):
    sink = CollectSink(tmp_path, CollectPolicy(random=0, quota=0))
    sink.write(result(0))
    sink.write(result(1))
    sink.flag("cam", "lid missing")
    sink.write(result(2))
    sink.close()
    (row,) = read_collected(tmp_path)
    assert (row.frame_id, row.reasons, row.note, row.probability) == (1, ("flag",), "lid missing", 1.0)


def test_a_calibrator_moves_the_band(tmp_path):
    half = Calibrator(default={"kind": "isotonic", "x": [0.0, 1.0], "y": [0.0, 0.5]})
    results = [result(i, [(0, 0, 0, 1, 0.9)]) for i in range(4)]
    fill(JsonlSink(tmp_path / "results.jsonl"), results)
    p = CollectPolicy(random=0, hamming=-1)
    fill(CollectSink(tmp_path / "a", p), results)
    fill(CollectSink(tmp_path / "b", p, calibrator=half), results)
    assert (
        not read_collected(tmp_path / "a")
        and [r.reasons for r in read_collected(tmp_path / "b")] == [("low",)] * 4
    )
    assert read_collected(tmp_path / "b")[0].detections[0]["confidence"] == pytest.approx(0.45)
    log = read_log(tmp_path, half)
    assert np.allclose(log.confidence, 0.45) and reasons_of(decide(log, p)[0]) == ("low",)


# ---- probabilities ----


def simulated(tmp_path, p, seeds, n=240, max_bytes=None):
    "Value of every look, and for each lot the rows that were collected."
    results = list(stream(n, 11))
    value = {
        r.frame.frame_id: float(len(r.detections) + 5 * (r.detections.tracker_id < 0).sum()) for r in results
    }
    for seed in range(seeds):
        sink = CollectSink(tmp_path / str(seed), replace(p, seed=seed), max_bytes)
        fill(sink, results)
        yield value, read_collected(tmp_path / str(seed))


@pytest.mark.slow
@pytest.mark.parametrize("quota, hamming", [(6, -1), (6, 26), (None, 26)])
def test_estimates_are_unbiased_over_lots(tmp_path, quota, hamming):
    "26 bits make many of these random pictures alike, so that deduplication has work to do."
    p, found = CollectPolicy(random=0.12, quota=quota, hamming=hamming, quality=10), []
    for value, rows in simulated(tmp_path, p, 50):
        y, audit = (
            np.array([value[r.frame_id] for r in rows]),
            np.array(["random" in r.reasons for r in rows]),
        )
        total = estimated_mean(y, [r.probability for r in rows], len(value))
        alone = estimated_mean(y[audit], np.full(audit.sum(), p.random), len(value))
        found.append((total[0], alone[0], y.mean(), total[1], alone[1]))
    found, truth = np.array(found), np.mean(list(value.values()))
    error = found.std(axis=0) / np.sqrt(len(found))
    assert (
        abs(found[:, 0].mean() - truth) < 3.5 * error[0] and abs(found[:, 1].mean() - truth) < 3.5 * error[1]
    )
    assert abs(found[:, 2].mean() - truth) > 5 * error[2], (
        "the naive mean is biased, else this test could not fail"
    )
    assert 0.7 < found[:, 4].mean() / found[:, 1].std() < 1.4 and found[:, 3].mean() > 0.7 * found[:, 0].std()
    assert found[:, 0].std() < found[:, 1].std(), "cases help"


@pytest.mark.slow
def test_every_look_is_there_as_often_as_its_probability_says(tmp_path):
    seen, said, lots = {}, {}, 60
    for _, rows in simulated(
        tmp_path, CollectPolicy(random=0.1, quota=10, hamming=-1, quality=10), lots, 120
    ):
        for r in rows:
            seen[r.frame_id] = seen.get(r.frame_id, 0) + 1
            said.setdefault(r.frame_id, set()).add(round(r.probability, 6))
    assert all(len(v) == 1 for v in said.values()), "the probability belongs to the look, not to the lot"
    p, k = np.array([said[f].copy().pop() for f in said]), np.array([seen[f] for f in said])
    z = (k / lots - p) / np.sqrt(np.maximum(p * (1 - p), 1e-9) / lots)
    assert (np.abs(z[p < 1]) < 4.5).all() and abs(z[p < 1].mean()) < 0.5 and (k[p == 1] == lots).all()


def test_the_audit_is_neither_thinned_nor_deduplicated(tmp_path):
    same = picture(0)
    p = CollectPolicy(random=0.3, quota=1, seed=2)
    fill(CollectSink(tmp_path, p), [result(i, [(0, 0, 0, 0, 0.4)], image=same) for i in range(300)])
    rows = read_collected(tmp_path)
    wanted = set(np.flatnonzero(chance(2, "cam", np.arange(300)) < 0.3).tolist())
    assert wanted <= {r.frame_id for r in rows} and len(rows) <= len(wanted) + 1
    first = next(r for r in rows if r.case)
    assert first.frame_id == 0 and first.stands_for == 299 and first.probability == 1
    assert {r.probability for r in rows if not r.case} == {0.3}


def test_quotas_are_for_each_camera_day_and_kind(tmp_path):
    p = CollectPolicy(random=0, quota=4, hamming=-1, high=None)
    results = [
        result(i + 1000 * day, [(0, 0, 0, 0, 0.4)], source, t=86400 * day + i)
        for source in ("x", "y")
        for day in (0, 1)
        for i in range(9)
    ]
    fill(CollectSink(tmp_path, p), results)
    rows = read_collected(tmp_path)
    counts = {c: sum(r.case == c for r in rows) for c in {r.case for r in rows}}
    assert counts == {f"{s}/2026-06-0{d}/low": 4 for s in "xy" for d in (1, 2)} and {
        r.probability for r in rows
    } == {round(4 / 9, 9)}
    assert len(list((tmp_path / "frames").rglob("*.jpg"))) == 16, "what gave way has left the disk"


def test_one_scene_with_another_reason_is_another_case(tmp_path):
    still = picture(5)
    boxes = [[(0, 0, 0, 0, 0.4)], [(0, 0, 0, 0, 0.95)], [(0, 0, 0, 0, 0.4)], [(0, 0, 0, 0, 0.4)]]
    boxes = [[(0, 0, 1, 0, 0.95), *b] for b in boxes]
    boxes[1] = boxes[1][1:]  # track 1 is missed here
    fill(
        CollectSink(tmp_path, CollectPolicy(random=0)),
        [result(i, b, image=still) for i, b in enumerate(boxes)],
    )
    assert [(r.frame_id, r.reasons, r.stands_for) for r in read_collected(tmp_path)] == [
        (0, ("low",), 2),
        (1, ("flicker",), 0),
    ]


def test_the_same_image_under_two_names_is_one_case(tmp_path):
    fill(
        CollectSink(tmp_path, CollectPolicy(random=0)),
        [result(0, [(0, 0, 0, 0, 0.4)], s, image=picture(1)) for s in ("x", "copy of x")],
    )
    (row,) = read_collected(tmp_path)
    assert (row.source_id, row.stands_for) == ("x", 1) and read_books(tmp_path)["counts"] == {
        "like another": 1
    }


# ---- disk ----


def test_a_disk_limit_takes_cases_first_and_never_the_audit(tmp_path):
    p = CollectPolicy(random=0.1, quota=None, hamming=-1)
    results = [result(i, [(0, 0, 0, 0, 0.4)]) for i in range(200)]
    sink = CollectSink(tmp_path, p, max_bytes=60_000)
    biggest = 0
    for r in results:
        sink.write(r)
        biggest = max(biggest, sum(f.stat().st_size for f in tmp_path.rglob("*.jpg")))
    sink.close()
    rows, books = read_collected(tmp_path), read_books(tmp_path)
    audit = set(np.flatnonzero(chance(0, "cam", np.arange(200)) < 0.1).tolist())
    assert biggest <= 60_000 and audit <= {r.frame_id for r in rows} and books["audit_until"] is None
    kept = books["kept"]["cam/2026-06-01/low"]
    assert (
        0 < kept < 60
        and books["cases"]["cam/2026-06-01/low"] == 200
        and {round(r.probability, 6) for r in rows} == {round(1 - 0.9 * (1 - kept / 200), 6)}
    )
    assert books["bytes"] == sum(f.stat().st_size for f in tmp_path.rglob("*.jpg"))


def test_when_even_the_audit_does_not_fit_it_is_said_since_when(tmp_path):
    fill(CollectSink(tmp_path, CollectPolicy(random=1), max_bytes=10_000), [result(i) for i in range(50)])
    books, rows = read_books(tmp_path), read_collected(tmp_path)
    assert books["audit_until"] == (rows[-1].captured_at + timedelta(seconds=0.2)).isoformat() and books[
        "counts"
    ]["no room"] == 50 - len(rows)
    assert 0 < books["bytes"] <= 10_000
    counted, looks = audited(tmp_path)
    assert counted == rows and looks == len(rows), "the looks up to there, each of which is there"


@pytest.mark.slow
@pytest.mark.parametrize("live", [True, False])
def test_an_audit_that_was_cut_is_counted_back_to_its_own_time(tmp_path, live):
    """The model goes wrong only later: over the whole log a cut audit would be biased, of its own time it is
    not."""
    cams, p, found = ("x", "y"), CollectPolicy(random=0.2, quota=0, hamming=-1, quality=10), []
    results = [result(i, [(0, 0, 0, 0, 0.95)] * (i >= 60), s) for i in range(120) for s in cams]
    value = {(r.frame.source_id, r.frame.frame_id): float(len(r.detections)) for r in results}
    fill(JsonlSink(tmp_path / "run" / "results.jsonl"), results)
    places = {s: kept(tmp_path / s, [r.frame for r in results if r.frame.source_id == s]) for s in cams}
    for seed in range(12):
        out, limit = tmp_path / f"{seed}", 14_000
        if live:
            fill(CollectSink(out, replace(p, seed=seed), limit), results)
        else:
            notes = collect(tmp_path / "run", out, replace(p, seed=seed), places, max_bytes=limit).notes
        rows, looks = audited(out)
        book = read_books(out)
        inside = [
            v for (s, i), v in value.items() if s not in book["audit"] or i < book["audit"][s]["frame_id"]
        ]
        assert looks == len(inside) < len(value) and all(
            r.frame_id < book["audit"][r.source_id]["frame_id"] for r in rows if r.source_id in book["audit"]
        )
        if not live:
            assert any("did not fit into 0.014 MB" in n for n in notes) and any(
                "the audit ends at" in n and "are not counted" in n for n in notes
            )
        y = [value[r.source_id, r.frame_id] for r in rows]
        found.append(
            (
                estimated_mean(y, [r.probability for r in rows], looks)[0] - np.mean(inside),
                estimated_mean(y, [0.2] * len(y), len(value))[0] - np.mean(list(value.values())),
            )
        )
    found = np.array(found)
    assert (
        abs(found[:, 0].mean()) < 3.5 * found[:, 0].std() / 12**0.5 + 0.02
        and abs(found[:, 1].mean()) > 3.5 * found[:, 1].std() / 12**0.5
    )


def test_cases_after_the_cut_do_not_count_on_the_lot(tmp_path):
    p = CollectPolicy(random=0.5, quota=None, hamming=-1)
    fill(
        CollectSink(tmp_path, p, max_bytes=20_000),
        [
            result(
                i,
                [(0, 0, 0, 0, 0.4)] if i % 2 else [(0, 0, 0, 0, 0.95)],
                image=picture(i, (64, 48)) if 8 < i < 20 else picture(i),
            )
            for i in range(60)
        ],
    )
    book = read_books(tmp_path)
    until = datetime.fromisoformat(book["audit_until"])
    share = {c: book["kept"].get(c, 0) / n for c, n in book["cases"].items()}
    for r in read_collected(tmp_path):
        assert not ("random" in r.reasons and r.captured_at >= until)
        assert r.probability == pytest.approx(
            1 - (1 - 0.5 * (r.captured_at < until)) * (1 - share.get(r.case, 0)), abs=1e-8
        )


@pytest.mark.parametrize("room", [float("nan"), 0, -1])
def test_no_room_at_all_is_refused(tmp_path, room):
    with pytest.raises(ConfigError, match="above 0"):
        Shelf(tmp_path / "a", CollectPolicy(), room)
    assert not (tmp_path / "a").exists()


def test_a_full_disk_is_a_typed_error(tmp_path, monkeypatch):
    sink = CollectSink(tmp_path, CollectPolicy(random=1))
    sink.write(result(0))

    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(SinkError, match="No space left.*free some space"):
        sink.write(result(1))


@pytest.mark.parametrize("max_bytes", [None, 60_000])
def test_a_killed_run_goes_on_where_it_was(tmp_path, max_bytes):
    "Never flushed by hand: the books on disk are those of the start, whatever has been counted since."
    p = CollectPolicy(random=0.1, quota=7 if max_bytes is None else None, hamming=-1)
    results, halves = [result(i, [(0, 0, 0, 0, 0.4)]) for i in range(160)], tmp_path / "halves"
    fill(CollectSink(tmp_path / "whole", p, max_bytes), results)
    sink = CollectSink(halves, p, max_bytes, flush_s=1e9)
    for r in results[:81]:
        sink.write(r)
    assert json.loads((halves / "collection.json").read_text())["looks"] == {}, (
        "else this test could not fail"
    )
    sink.shelf._file.write(b'{"picture": "frames/cam/torn')
    sink.shelf._tally.write(b'["looks", "ca')  # killed here
    fill(CollectSink(tmp_path / "first half", p, max_bytes), results[:80])
    killed, closed = read_collected(halves, check=False), read_collected(tmp_path / "first half")
    assert {r.picture: r.probability for r in killed} == {r.picture: r.probability for r in closed}, (
        "read before anything is resumed"
    )
    assert read_books(halves)["looks"] == {"cam/2026-06-01": 80}
    fill(CollectSink(halves, p, max_bytes), results[80:])
    assert not (halves / "tally.jsonl").exists()
    assert {k: read_books(halves)[k] for k in ("cases", "kept", "counts", "audit")} == {
        k: read_books(tmp_path / "whole")[k] for k in ("cases", "kept", "counts", "audit")
    }
    assert [replace(r, probability=0) for r in read_collected(halves)] == [
        replace(r, probability=0) for r in read_collected(tmp_path / "whole")
    ]
    assert [r.probability for r in read_collected(halves)] == pytest.approx(
        [r.probability for r in read_collected(tmp_path / "whole")]
    )
    assert read_books(halves)["looks"] == read_books(tmp_path / "whole")["looks"]


@pytest.mark.slow
def test_a_kill_leaves_probabilities(tmp_path):
    "A process that is killed for good between two writes of the books; then one look more."
    code = f"""
import os, signal
from tests.annotation.test_collect import *
shelf = Shelf({str(tmp_path)!r}, CollectPolicy(hamming=-1, quality=10))
for i in range(5): shelf.offer(result(i).frame, BIT["low"], [])
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True)
    assert done.returncode == -9, done.stderr.decode()[-500:]
    assert json.loads((tmp_path / "collection.json").read_text())["cases"] == {}, "the books are old"
    assert [r.probability for r in read_collected(tmp_path)] == [1.0] * 5
    shelf = Shelf(tmp_path, CollectPolicy(hamming=-1, quality=10))
    shelf.offer(result(5).frame, BIT["low"], [])
    shelf.close()
    rows = read_collected(tmp_path)
    assert [r.probability for r in rows] == [1.0] * 6 and read_books(tmp_path)["cases"] == {
        "cam/2026-06-01/low": 6
    }
    assert estimated_mean([1] * 6, [r.probability for r in rows], 6) == (1, 0)


def test_books_that_are_older_than_the_pictures(tmp_path):
    "After a power failure: neither tally nor books know of what was kept; still no probability is above 1."
    shelf = Shelf(tmp_path, CollectPolicy(hamming=-1), flush_s=1e9)
    for i in range(5):
        shelf.offer(result(i).frame, BIT["low"], [])
    (tmp_path / "tally.jsonl").unlink()
    again = Shelf(tmp_path, CollectPolicy(hamming=-1))
    again.offer(result(5).frame, BIT["low"], [])
    again.close()
    assert [r.probability for r in read_collected(tmp_path)] == [1.0] * 6


def test_numbers_that_begin_anew_after_a_restart_get_their_own_files(tmp_path):
    for day in (0, 1):
        fill(
            CollectSink(tmp_path, CollectPolicy(random=1)),
            [result(i, t=86400 * day + i, image=picture(i + 100 * day)) for i in range(3)],
        )
    rows = read_collected(tmp_path)
    assert len(rows) == 6 == len({r.picture for r in rows}) and [r.frame_id for r in rows] == [
        0,
        1,
        2,
        0,
        1,
        2,
    ]
    with pytest.raises(ConfigError, match="another policy .random, seed."):
        CollectSink(tmp_path, CollectPolicy(random=0.5, seed=3))


# ---- logs ----


def film(tmp_path, n=40):
    line = FactoryLine(LineConfig(size=(160, 120), seed=2))
    write_video(tmp_path / "belt.mp4", (line.render(i)[0].image for i in range(n)))
    run = tmp_path / "run"
    sinks = JsonlSink(run / "results.jsonl"), ParquetSink(run)
    for i in range(n):
        frame, truth = line.render(i)
        d = truth.labelled()
        d.confidence[:] = 0.45 if i % 10 == 0 else 0.9
        if i == 25:
            d = Detections.empty()
        for s in sinks:
            s.write(FrameResult(replace(frame, source_id="belt", meta={}), d, NAMES + ("d", "e")))
    for s in sinks:
        s.close()
    (run / "summary.json").write_text(
        json.dumps({"config": {"sources": [{"uri": str(tmp_path / "belt.mp4"), "id": None}]}})
    )
    return run


def test_a_run_over_a_video_is_read_again(tmp_path):
    run = film(tmp_path)
    p = CollectPolicy(random=0.1, hamming=-1, high=None, flicker=False)
    got = collect(run, tmp_path / "out", p)
    audit = set(np.flatnonzero(chance(0, "belt", np.arange(40)) < 0.1).tolist())
    assert (
        {r.frame_id for r in got.rows} == audit | {0, 10, 20, 30} and not got.notes and got.found["low"] == 4
    )
    line = FactoryLine(LineConfig(size=(160, 120), seed=2))
    for r in got.rows:  # each is the picture of its number
        seen = cv2.imread(str(tmp_path / "out" / r.picture)).astype(float)
        gaps = [
            np.abs(seen - line.render(k)[0].image).mean()
            for k in range(max(r.frame_id - 5, 0), r.frame_id + 6)
        ]
        assert (
            np.argmin(gaps) == r.frame_id - max(r.frame_id - 5, 0)
            and r.captured_at == line.render(r.frame_id)[0].captured_at
        )
    (run / "results.jsonl").unlink()
    again = collect(run, tmp_path / "parquet", p)
    assert any("not in results.parquet" in n for n in again.notes) and {r.frame_id for r in again.rows} == {
        r.frame_id for r in got.rows
    } - {25}
    same = read_log(run)
    assert not same.complete and len(same) == 39 and same.names[:3] == NAMES


def test_a_folder_is_read_by_file_name_not_by_place(tmp_path):
    shots = tmp_path / "shots"
    shots.mkdir()
    results = []
    for i in range(6):
        cv2.imwrite(str(shots / f"{i}.png"), picture(i))
        results.append(result(i, [(0, 0, -1, 0, 0.4)], "shots", meta={"path": str(shots / f"{i}.png")}))
    fill(JsonlSink(tmp_path / "run" / "results.jsonl"), results)
    (shots / "2.png").unlink()
    cv2.imwrite(str(shots / "4.png"), picture(4, (64, 48)))  # replaced by another
    got = collect(tmp_path / "run", tmp_path / "out", CollectPolicy(random=0.999, hamming=-1))
    assert [r.frame_id for r in got.rows] == [0, 1, 3, 5] and got.missing == [("shots", 2), ("shots", 4)]
    assert any("2 of 6 images are missing or were replaced" in n for n in got.notes) and any(
        "no longer random" in n for n in got.notes
    )
    for r in got.rows:
        seen = cv2.imread(str(tmp_path / "out" / r.picture)).astype(int)
        assert np.argmin([np.abs(seen - picture(k)).mean() for k in range(6)]) == r.frame_id
    for f in shots.iterdir():
        f.unlink()
    with pytest.raises(DataError, match="none of the 6 requested images"):
        collect(tmp_path / "run", tmp_path / "out2", CollectPolicy(random=1))


def test_flags_from_a_file(tmp_path):
    run = film(tmp_path)
    file = tmp_path / "flags.jsonl"
    file.write_text(
        '{"source_id": "belt", "frame_id": 7, "note": "crack"}\n\n{"source_id": "belt", "at": '
        '"2026-06-01T12:00:00.500+00:00"}\n'
        '{"source_id": "roof", "frame_id": 1}\n{"source_id": "belt", "at": '
        '"2026-07-01T12:00:00+00:00"}\n{"source_id": "belt", "frame_id": 4000}\n'
    )
    got = collect(run, tmp_path / "out", CollectPolicy(random=0, quota=0), flags=read_flags(file))
    assert [(r.frame_id, r.reasons, r.note, r.probability) for r in got.rows] == [
        (7, ("flag",), "crack", 1),
        (12, ("flag",), "", 1),
    ]
    assert [w for w in ("roof", "nearest frame", "frame 4000") if not any(w in n for n in got.notes)] == []
    assert got.missing == [("belt", 4000)]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"source_id": "x"}',
        '{"source_id": "x", "frame_id": 1, "at": "2026-06-01T12:00:00+00:00"}',
        '{"source_id": "x", "at": "2026-06-01T12:00:00"}',
        '{"source_id": "x", "frame_id": "one"}',
        '{"frame_id": 3}',
    ],
)
def test_bad_flags_are_named_by_line(tmp_path, line):
    (tmp_path / "f").write_text('{"source_id": "x", "frame_id": 1}\n' + line)
    with pytest.raises(DataError, match="line 2 is not a flag"):
        read_flags(tmp_path / "f")
    with pytest.raises(DataError, match="cannot read the flags"):
        read_flags(tmp_path / "none")


def test_bad_logs_are_typed(tmp_path):
    with pytest.raises(DataError, match="folder not found"):
        read_log(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no log found"):
        read_log(tmp_path)
    fill(JsonlSink(tmp_path / "results.jsonl"), [result(0, inferred=False)])
    with pytest.raises(DataError, match="the log is empty"):
        collect(tmp_path, tmp_path / "out")
    fill(JsonlSink(tmp_path / "results.jsonl"), [result(0), result(0)])
    with pytest.raises(DataError, match="cam frame 0 is a duplicate"):
        read_log(tmp_path)
    (tmp_path / "results.jsonl").write_text('{"source_id": "x"}\n')
    with pytest.raises(DataError, match="line 1 is not a result"):
        read_log(tmp_path)
    (tmp_path / "results.jsonl").unlink()
    fill(ParquetSink(tmp_path), [])
    with pytest.raises(DataError, match="no detections"):
        read_log(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"xyxy": [1, 2, 3]},
        {"xyxy": None},
        {"xyxy": [1, 2, 3, float("nan")]},
        {"xyxy": [1, 2, 3, "x"]},
        {"class_id": None},
        {"class_id": "x"},
        {"class_id": 2**40},
        {"class_id": -1},
        {"tracker_id": None},
        {"tracker_id": 1.5},
        {"confidence": "high"},
        {"confidence": None},
        {"confidence": float("nan")},
        {"confidence": 90},
    ],
)
def test_a_detection_that_is_none_is_named_by_line(tmp_path, wrong):
    fill(JsonlSink(tmp_path / "results.jsonl"), [result(i, [(0, 0, 0, 0, 0.4)]) for i in range(3)])
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    rows[2]["detections"][0] |= wrong
    lines = [json.dumps(r) for r in rows]
    (tmp_path / "results.jsonl").write_text("\n".join([lines[0], '{"torn', *lines[1:]]) + "\n")
    with pytest.raises(DataError, match="line 4 is not a result") as e:
        read_log(tmp_path)
    assert "results.jsonl" in str(e.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"meta": None},
        {"meta": 3},
        {"size": None},
        {"size": [1]},
        {"size": ["a", "b"]},
        {"frame_id": None},
        {"frame_id": 2**70},
        {"captured_at": 5},
        {"captured_at": "noon"},
        {"detections": None},
        {"detections": [3]},
    ],
)
def test_a_look_that_is_none_is_named_by_line(tmp_path, wrong):
    fill(JsonlSink(tmp_path / "results.jsonl"), [result(i) for i in range(2)])
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    (tmp_path / "results.jsonl").write_text("\n".join(json.dumps(r) for r in (rows[0], rows[1] | wrong)))
    with pytest.raises(DataError, match="line 2 is not a result"):
        read_log(tmp_path)


@pytest.mark.parametrize(
    "column, value",
    [("confidence", float("nan")), ("confidence", None), ("confidence", 7.0), ("x2", float("inf"))],
)
def test_a_row_that_is_no_detection_is_named(tmp_path, column, value):
    import pyarrow as pa
    import pyarrow.parquet as pq

    fill(ParquetSink(tmp_path), [result(i, [(0, 0, 0, 0, 0.4)]) for i in range(3)])
    assert len(read_log(tmp_path)) == 3
    table = pq.read_table(tmp_path / "results.parquet")
    values = [*table[column].to_pylist()[:2], value]
    pq.write_table(
        table.set_column(
            table.column_names.index(column), column, pa.array(values, table.schema.field(column).type)
        ),
        tmp_path / "results.parquet",
    )
    with pytest.raises(DataError, match="row 2 is not a valid detection"):
        read_log(tmp_path)


def test_a_line_ends_where_json_says(tmp_path):
    "U+2028 and U+0085 are letters of a name or a note."
    fill(JsonlSink(tmp_path / "results.jsonl"), [result(0, source="a\u2028b"), result(1, source="a\u2028b")])
    assert read_log(tmp_path).sources == ("a\u2028b",)
    (tmp_path / "f").write_text(
        '{"source_id": "x", "frame_id": 1, "note": "one\u2028two\u0085three"}\r\n{"source_id": "x", '
        '"frame_id": 2}\n',
        newline="",
    )
    assert [f.note for f in read_flags(tmp_path / "f")] == ["one\u2028two\u0085three", ""]


def test_a_camera_cannot_be_asked_again(tmp_path):
    fill(JsonlSink(tmp_path / "results.jsonl"), [result(i) for i in range(3)])
    with pytest.raises(DataError, match="requested images is available"):
        collect(tmp_path, tmp_path / "out", CollectPolicy(random=1))
    with pytest.raises(DataError, match="no images of these sources"):
        collect(tmp_path, tmp_path / "out2", CollectPolicy(random=1), tmp_path)
    got = collect(
        tmp_path,
        tmp_path / "out3",
        CollectPolicy(random=1),
        {"cam": kept(tmp_path, [result(i).frame for i in (0, 2)])},
    )
    assert [r.frame_id for r in got.rows] == [0, 2] and got.missing == [("cam", 1)]


def kept(tmp_path, frames):
    folder = tmp_path / "some" / "cam"
    folder.mkdir(parents=True)
    for f in frames:
        cv2.imwrite(str(folder / f"cam_{f.frame_id:06d}.png"), f.image)
    (folder / "readme.txt").write_text("not a picture")
    return KeptFrames(folder, frames[0].source_id)


# ---- files ----


def test_collections_that_were_damaged(tmp_path):
    with pytest.raises(DataError, match="no collection found"):
        read_collected(tmp_path)
    fill(CollectSink(tmp_path, CollectPolicy(random=1)), [result(i) for i in range(4)])
    rows = read_collected(tmp_path)
    (tmp_path / rows[1].picture).unlink()
    with pytest.raises(DataError, match="1 of 4 images are missing\n  - frames/cam/00000001.jpg"):
        read_collected(tmp_path)
    assert [r.frame_id for r in read_collected(tmp_path, check=False)] == [0, 2, 3]
    text = (tmp_path / "collected.jsonl").read_text().splitlines()
    (tmp_path / "collected.jsonl").write_text(
        "\n".join([text[0], text[2].replace("2026-06", "2026-99"), text[3]]) + "\n"
    )
    with pytest.raises(DataError, match="line 2 is not a valid collection entry"):
        read_collected(tmp_path)
    (tmp_path / "collection.json").write_text("{")
    with pytest.raises(DataError, match="counters"):
        read_books(tmp_path)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=8), st.floats(0.01, 1), st.integers(0, 10**9)), max_size=5
    )
)
def test_rows_survive_the_file(tmp_path_factory, specs):
    folder = tmp_path_factory.mktemp("rows")
    (folder / "p.jpg").write_bytes(b"x")
    for name, p, number in specs:
        row = Collected(
            "p.jpg",
            name,
            number,
            NOON,
            (3, 2),
            ("random", "low"),
            p,
            "0" * 16,
            4,
            "m",
            [{"class_name": name, "confidence": p, "xyxy": [0, 1, 2, 3], "tracker_id": -1}],
            "c",
            name,
        )
        write_collected(folder, [row])
        assert read_collected(folder) == [row] and row.found([name]).xyxy.tolist() == [[0, 1, 2, 3]]
        with pytest.raises(DataError, match="not known here"):
            row.found(["none of these"])


def test_estimates_refuse_nonsense():
    assert estimated_mean([], [], 10) == (0, 0) and estimated_mean([1, 2], [1, 1], 2) == (1.5, 0)
    for args in (([1], [], 3), ([1], [0.0], 3), ([1], [1.5], 3), ([1], [0.5], 0)):
        with pytest.raises(DataError):
            estimated_mean(*args)


@pytest.mark.parametrize(
    "wrong",
    [
        {"random": -1},
        {"random": True},
        {"low": (0.6, 0.3)},
        {"high": 90},
        {"none": 2},
        {"many": 0},
        {"within_s": 0},
        {"quota": -1},
        {"hamming": 65},
        {"quality": 0},
        {"learn": 0},
        {"within_s": "1"},
        {"within_s": float("nan")},
        {"low": 0.3},
        {"low": "ab"},
        {"low": (None, 0.6)},
        {"quality": None},
        {"quality": 95.5},
        {"many": "5"},
        {"quota": "all"},
        {"quota": 1.5},
        {"hamming": None},
        {"learn": None},
        {"high": float("nan")},
        {"random": None},
        {"seed": "x"},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CollectPolicy(**wrong)


def test_learnt_habits_go_with_the_books(tmp_path):
    results = [result(i, [(0, 0, 0, 0, 0.95)]) for i in range(300)]
    fill(CollectSink(tmp_path, p := CollectPolicy(random=0, low=None)), results)
    assert read_books(tmp_path)["usual"]["cam"] == {"looks": 300, "empty": 0.0, "median": 1.0, "spread": 1.0}
    fill(
        CollectSink(tmp_path, p),
        [result(1000 + i, [] if i == 5 else [(0, 0, 0, 0, 0.95)]) for i in range(20)],
    )
    assert [r.reasons for r in read_collected(tmp_path)] == [("flicker", "none")], (
        "after a restart it need not learn anew"
    )
    assert learn_usual(looks_of(results))["cam"].median == 1
