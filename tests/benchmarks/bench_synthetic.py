"""Frames a second of the factory line on one core, against the 30 that a camera wants; conditions at severity
3, new parts drawn as they enter."""

import statistics
import time

import cv2

from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.conditions import CONDITION_NAMES, Conditions


def seconds(line: FactoryLine, first: int, frames: int) -> float:
    started = time.perf_counter()
    for _ in line.frames(frames, first=first):
        pass
    return time.perf_counter() - started


def run(quick: bool = False) -> list[dict]:
    frames, rounds = (20, 3) if quick else (60, 7)
    cases = {
        "640x480 clean": (LineConfig(seed=1), None),
        "1920x1080 clean": (LineConfig(seed=1, size=(1920, 1080)), None),
    }
    cases |= {f"640x480 {n}": (LineConfig(seed=1), Conditions(**{n: 3})) for n in CONDITION_NAMES}
    cases["640x480 all at once"] = LineConfig(seed=1), Conditions(**dict.fromkeys(CONDITION_NAMES, 3))
    lines = {name: FactoryLine(*case) for name, case in cases.items()}
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for line in lines.values():
            line.render(0)
        times = {name: [] for name in lines}
        for k in range(rounds):  # alternating: every case meets every mood of the machine
            for name, line in lines.items():
                times[name].append(seconds(line, k * frames, frames))
    finally:
        cv2.setNumThreads(before)
    fps = {name: frames / statistics.median(t) for name, t in times.items()}
    return [
        {"line": name, "frames/s": v, "of 30 frames/s": v / 30, "rounds": rounds, "threads": 1}
        for name, v in fps.items()
    ]


def main() -> None:
    for row in run():
        print(f"{row['line']:28s} {row['frames/s']:7.1f} frames/s   {row['of 30 frames/s']:5.2f}×")


if __name__ == "__main__":
    main()
