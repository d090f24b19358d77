"""How many planted incidents rules find, and how often they alarm for nothing: six yards of an hour.

python -m tests.benchmarks.try_rules [--seconds 3600] [--yards 6] [--fps 8] [--tracker bytetrack]
"""

import argparse
import time

import numpy as np

from cv_pipeline.core.config import EventsConfig
from cv_pipeline.core.stamp import describe_stamp, stamp
from cv_pipeline.synthetic.incidents import NAMES, IncidentLine, IncidentsConfig, score_incidents, yard_rules
from cv_pipeline.tracking.trackers import make_tracker
from cv_pipeline.tracking.watch import Watch, poisson_interval


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--yards", type=int, default=6)
    parser.add_argument("--fps", type=float, default=8.0)
    parser.add_argument("--tracker", default="bytetrack")
    asked = parser.parse_args()
    config, sums = EventsConfig(**yard_rules()), dict[str, np.ndarray]()
    rules, spent, frames = {r.name for r in config.rules}, np.zeros(2), 0
    for number in range(asked.yards):
        settings = IncidentsConfig(seconds=asked.seconds, fps=asked.fps, seed=1000 + 10 * number)
        yard, events = IncidentLine(settings), []
        tracker, watch = make_tracker(asked.tracker, frame_rate=asked.fps), Watch(config, "yard")
        for frame, found in yard:
            begun = time.perf_counter()
            found = tracker.update(found, frame)
            tracked = time.perf_counter()
            events += watch.update(found, frame, NAMES)
            spent += tracked - begun, time.perf_counter() - tracked
            frames += 1
        told = [(e.rule, (e.at - yard.start).total_seconds()) for e in events if e.rule in rules]
        for row in score_incidents(yard.truth, told):
            sums[row.rule] = sums.get(row.rule, np.zeros(3, int)) + row[1:]
    sums["all"] = np.sum(list(sums.values()), axis=0)
    hours = asked.yards * asked.seconds / 3600
    print(f"{'rule':14}{'planted':>8}{'found':>8}{'false':>8}")
    for rule, row in sums.items():
        print(f"{rule:14}" + "".join(f"{n:8}" for n in row))
    planted, found, false = (int(n) for n in sums["all"])
    low, high = (n / hours for n in poisson_interval(false))
    print(f"found {found / planted:.1%} of {planted} in {hours:g} hours")
    print(f"false {false / hours:.2f} an hour, 95 % {low:.2f} – {high:.2f}")
    tracker_ms, rules_ms = spent / frames * 1e3
    print(f"{tracker_ms:.2f} ms a frame for the tracker, {rules_ms:.2f} ms for {len(rules)} rules")
    print(describe_stamp(stamp(None, None, vars(asked))))


if __name__ == "__main__":
    main()
