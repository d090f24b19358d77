"""Hash lists: copies of photographs looked up among a million hashes, pictures that are not listed, the speed
of both ways to search, and the reference implementation where it is installed (`pip install pdqhash`).

    python -m tests.benchmarks.try_hash_lists PHOTOS --others MORE_PHOTOS
"""

import argparse
import csv
import time
from pathlib import Path

import cv2
import numpy as np

from cv_pipeline.apps.hash_lists import (
    ASK_BITS,
    BLOCK_BITS,
    BitIndex,
    HashList,
    entries_of,
    look_up,
    parse_list,
)
from cv_pipeline.apps.pdq import as_words, handy, hashes_of, pdq_bits, pdq_samples
from cv_pipeline.core.images import read_image
from tests.helpers.scenes import COPIES, cut

OUT = Path(__file__).with_name("hash_lists.csv")


def pictures(folder):
    return [read_image(p) for p in sorted(Path(folder).rglob("*.jpg"))]


def long_list(photos, n, seed=0):
    "The photographs among random hashes: the list itself, without the text of a million lines."
    rng = np.random.default_rng(seed)
    entries = [
        e for k, p in enumerate(photos) for e in entries_of(p, "forbidden", f"photo {k}", "2026-06-01")
    ]
    known = parse_list("\n".join("\t".join(e) for e in entries))
    words = lambda width: (
        rng.integers(0, 1 << 63, (n, width), np.uint64) * np.uint64(2)
        + rng.integers(0, 2, (n, width), np.uint64)
    )
    made = HashList("", known.lines + ["\t".join(("0" * 64, "random", "random", "2026-06-01"))])
    last = len(known.lines)
    for kind, radius, width in (("pdq", BLOCK_BITS, 4), ("phash", ASK_BITS, 1)):
        own = known.index[kind]
        made.index[kind] = BitIndex(np.concatenate([own.words, words(width)]), radius)
        made.places[kind] = np.append(known.places[kind][own.first], np.full(n, last))
    return made


def speeds(known, queries, rounds=20):
    index, took = known.index["pdq"], {"drawers": [], "one by one": []}
    for k in range(rounds):
        for name, search in (("drawers", index.near), ("one by one", index.scan)):
            if name == "one by one" and k >= 3:
                continue
            began = time.process_time()
            search(queries[k % len(queries)])
            took[name].append(1e3 * (time.process_time() - began))
    return {name: f"{np.median(t):.2f} ms" for name, t in took.items()}


def crops(photos, n, seed=0):
    rng = np.random.default_rng(seed)
    for k in range(n):
        image = photos[k % len(photos)]
        h, w = image.shape[:2]
        a, b = rng.uniform(0.4, 0.9, 2)
        y, x = int(rng.uniform(0, 1 - a) * h), int(rng.uniform(0, 1 - b) * w)
        yield np.ascontiguousarray(image[y : y + int(a * h), x : x + int(b * w)])


def against_reference(photos):
    try:
        import pdqhash
    except ImportError:
        return "not installed"
    bits = []
    for photo in map(handy, photos):
        theirs, _ = pdqhash.compute(cv2.cvtColor(photo, cv2.COLOR_BGR2RGB))
        bits.append(int((pdq_bits(pdq_samples(photo), 1)[0] != theirs.astype(bool)).sum()))
    return f"{len(bits)} photographs: {np.mean(bits):.2f} of 256 bits differ on average, at most {max(bits)}"


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("photos", type=Path)
    ask.add_argument("--others", type=Path, action="append", default=[])
    ask.add_argument("--hashes", type=int, default=1_000_000)
    ask.add_argument("--unlisted", type=int, default=10_000)
    a = ask.parse_args()
    photos = pictures(a.photos)
    listed, left = photos[: len(photos) // 2], photos[len(photos) // 2 :]
    print("reference:", against_reference(photos))
    began = time.process_time()
    known = long_list(listed, a.hashes)
    print(f"index of {a.hashes:,} hashes of both kinds: {time.process_time() - began:.1f} CPU s")
    print("eight ways:", speeds(known, [as_words(pdq_bits(pdq_samples(p))) for p in left[:20]]))
    rows, took = [], []
    for name, change in {**COPIES, "cut 5 %": lambda i: cut(i, 0.05)}.items():
        found = []
        for p in listed:
            copy = np.ascontiguousarray(change(p))
            began = time.process_time()
            found.append(look_up(copy, known))
            took.append(time.process_time() - began)
        right = [
            bool(f.matches) and any(m.entry.source == f"photo {k}" for m in f.matches)
            for k, f in enumerate(found)
        ]
        counted = [f.action for f, r in zip(found, right) if r]
        share = {k: f"{counted.count(k) / len(found):.2f}" for k in ("block", "person")}
        rows.append({"copy": name, "blocked": share["block"], "to people": share["person"]})
        rows[-1] |= {"found": f"{sum(right) / len(found):.2f}", "pictures": len(found)}
        print(rows[-1])
    others = left + [p for folder in a.others for p in pictures(folder)]
    actions = [look_up(p, known).action for p in crops(others, a.unlisted)]
    counted = {k: actions.count(k) for k in ("block", "person", "none")}
    rows.append({"copy": "not listed", "blocked": counted["block"], "to people": counted["person"]})
    rows[-1] |= {"found": "–", "pictures": len(actions)}
    print(rows[-1], f"lookup {1e3 * np.median(took):.1f} CPU ms a picture, hashes included")
    began = time.process_time()
    for p in left:
        hashes_of(p)
    print(f"hashes alone: {1e3 * (time.process_time() - began) / len(left):.1f} CPU ms")
    with open(OUT, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
