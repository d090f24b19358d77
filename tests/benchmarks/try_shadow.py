"""What a shadow costs the frames of a run: the same cameras with and without it, and with one that crashes,
hangs, wants two gigabytes, or answers NaN, side by side.

    python -m tests.benchmarks.try_shadow            # 5 rounds of 20 s each: ten minutes
    python -m tests.benchmarks.try_shadow 1 6        # a look: one round of 6 s

Every case is the line as a camera (its own speed, so that the machine is not full) under the bundled
detector; rounds alternate between the cases. Printed are the median of the rounds' p95 of a frame from its
arrival to its delivery, its ratio to the runs without a shadow, frames lost, and what the shadow did.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cv_pipeline.inference.loading import load_model
from cv_pipeline.release.evidence import Column
from cv_pipeline.release.shadow import Limits, ShadowSettings, ShadowSink
from cv_pipeline.synthetic.line import open_line
from cv_pipeline.video.pipeline import Pipeline
from tests.helpers.bad_shadow import OPENER

FPS = 10
CASES = {  # what the shadow is; None: there is none
    "without": None,
    "factory_line": "factory_line",
    "crash": "crash at 5",
    "hang": "hang at 5",
    "two gigabytes": "hungry at 5",
    "NaN": "nan at 5",
}
LIMITS = Limits(lambda names: [Column("disagree", 0.02)])


class Arrivals:
    "A source at its own speed, as a camera."

    live = True

    def __init__(self, seconds: float, seed: int):
        self._line = open_line(f"line:seed={seed},frames={round(seconds * FPS)},fps={FPS}", "gate")
        self.source_id = "gate"

    def __iter__(self):
        began = time.perf_counter()
        for k, frame in enumerate(self._line):
            wait = began + k / FPS - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            yield frame

    def close(self):
        self._line.close()


class Seen:
    "Total time of each frame."

    def __init__(self):
        self.results = []

    def write(self, result):
        self.results.append(result)

    def close(self):
        pass


def one(case: str, seconds: float, seed: int) -> tuple[float, int, str]:
    "p95 of a frame (ms), frames delivered, and what the shadow says about itself."
    folder, seen, sinks = Path(tempfile.mkdtemp(prefix="shadow-")), Seen(), []
    if (kind := CASES[case]) is not None:
        own = kind == "factory_line"
        path = kind if own else str(folder / "model.txt")
        if not own:
            Path(path).write_text(kind)
        how = ShadowSettings(path, learn=0, hang_s=2.0, pictures=20, **({} if own else {"opener": OPENER}))
        sinks.append(ShadowSink(folder / "shadow", how, LIMITS))
    pipeline = Pipeline([Arrivals(seconds, seed)], load_model("factory_line", threads=1), [*sinks, seen])
    pipeline.run()
    pipeline.close()
    times = [r.timings_ms["total"] for r in seen.results]
    known = sinks[0].summary() if sinks else {}
    words = ", ".join(f"{known[k]} {k}" for k in ("compared", "skipped", "restarts") if k in known)
    return float(np.percentile(times, 95)), len(seen.results), f"{known.get('state', '')} {words}"


def main(rounds: int = 5, seconds: float = 20.0) -> None:
    found: dict[str, list] = {case: [] for case in CASES}
    for k in range(rounds):
        for case in list(CASES)[:: 1 if k % 2 == 0 else -1]:
            found[case].append(one(case, seconds, k))
    usual = statistics.median(p for p, _, _ in found["without"])
    for case, rows in found.items():
        p95 = statistics.median(p for p, _, _ in rows)
        lost = sum(round(seconds * FPS) - n for _, n, _ in rows)
        print(f"{case:15s} p95 {p95:7.2f} ms  ratio {p95 / usual:5.2f}  lost {lost}  {rows[-1][2]}")


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((int, float), sys.argv[1:])))
