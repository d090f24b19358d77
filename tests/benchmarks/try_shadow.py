"""What a shadow costs the frames of a run: the same cameras with and without it, and with one that crashes,
hangs, wants two gigabytes, or answers NaN, side by side.

    python -m tests.benchmarks.try_shadow            # 8 pairs of 12 s for each of six cases: twenty minutes
    python -m tests.benchmarks.try_shadow 1 6        # a look: one pair of 6 s

Every case is the line as a camera (its own speed, so that the machine is not full) under the bundled
detector. Each run with a shadow has a run of the same frames without one right before or after it, in turn:
what changes on the machine over minutes is in both. Printed are the p95 of a frame from its arrival to its
delivery over all frames, the ratio with its 95 % interval (pairs drawn again), frames lost, and what the
shadow did.
"""

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
CASES = {  # what the shadow is
    "nothing": None,  # the machine against itself: how far two runs of the same differ
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


def one(case: str | None, seconds: float, seed: int) -> tuple[np.ndarray, str]:
    "Time of each delivered frame (ms), and what the shadow says about itself."
    folder, seen, sinks = Path(tempfile.mkdtemp(prefix="shadow-")), Seen(), []
    if (kind := CASES.get(case)) is not None:
        own = kind == "factory_line"
        path = kind if own else str(folder / "model.txt")
        if not own:
            Path(path).write_text(kind)
        how = ShadowSettings(path, learn=0, hang_s=2.0, pictures=20, **({} if own else {"opener": OPENER}))
        sinks.append(ShadowSink(folder / "shadow", how, LIMITS))
    pipeline = Pipeline([Arrivals(seconds, seed)], load_model("factory_line", threads=1), [*sinks, seen])
    pipeline.run()
    pipeline.close()
    times = np.array([r.timings_ms["total"] for r in seen.results])
    known = sinks[0].summary() if sinks else {}
    words = ", ".join(f"{known[k]} {k}" for k in ("compared", "skipped", "restarts") if k in known)
    return times, f"{known.get('state', '')} {words}"


def ratios(pairs: list[tuple[np.ndarray, np.ndarray]], draws: int = 2000) -> tuple[float, float, float]:
    "p95 of all frames with the shadow over p95 of all without; 95 % interval from drawing pairs again."
    rng = np.random.default_rng(0)

    def ratio(chosen) -> float:
        with_it, without = zip(*(pairs[k] for k in chosen))
        return float(np.percentile(np.concatenate(with_it), 95) / np.percentile(np.concatenate(without), 95))

    drawn = [ratio(rng.integers(0, len(pairs), len(pairs))) for _ in range(draws)]
    return ratio(range(len(pairs))), *np.percentile(drawn, [2.5, 97.5])


def measured(rounds: int, seconds: float):
    "(case, what was found) for each case: p95 with and without in ms, ratio and its interval, frames lost."
    pairs: dict[str, list] = {case: [] for case in CASES}
    lost, says = dict.fromkeys(CASES, 0), {}
    for k in range(rounds):
        for case in CASES:
            both = {}
            for kind in (case, None)[:: 1 if k % 2 == 0 else -1]:
                both[kind], words = one(kind, seconds, k)
                lost[case] += round(seconds * FPS) - len(both[kind])
                says.update({case: words} if kind == case else {})
            pairs[case].append((both[case], both[None]))
    for case, found in pairs.items():
        usual = float(np.percentile(np.concatenate([without for _, without in found]), 95))
        ratio, low, high = (round(v, 2) for v in ratios(found))
        yield (
            case,
            {"without, ms": round(usual, 2), "ratio": ratio, "from": low, "to": high, "lost": lost[case]},
            says[case],
        )


def main(rounds: int = 8, seconds: float = 12.0) -> None:
    for case, f, says in measured(rounds, seconds):
        print(
            f"{case:15s} p95 without {f['without, ms']:7.2f} ms, with it {f['ratio']:5.2f} times"
            f" [{f['from']:.2f}, {f['to']:.2f}], lost {f['lost']}  {says}"
        )


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((int, float), sys.argv[1:])))
