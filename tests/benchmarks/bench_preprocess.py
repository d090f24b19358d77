"""From a picture to the input tensor: this package beside Ultralytics' LetterBox + tensor conversion and
cv2.dnn.blobFromImage, alternating rounds.

Every road gets the same uint8 BGR pictures and ends in a (1, 3, 640, 640) float32 tensor.
Run: python tests/benchmarks/bench_preprocess.py [--quick]
"""

import sys
from statistics import median
from time import perf_counter

import cv2
import numpy as np


def picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return cv2.resize(
        rng.integers(0, 256, (max(height // 8, 1), max(width // 8, 1), 3), dtype=np.uint8), (width, height)
    )


def alternate(calls: list, rounds: int) -> list[float]:
    "Median milliseconds of each call; the calls take turns."
    times = [[] for _ in calls]
    for _ in range(rounds):
        for call, spent in zip(calls, times):
            start = perf_counter()
            call()
            spent.append(perf_counter() - start)
    return [1e3 * median(spent) for spent in times]


def compare(width: int, height: int, threads: int, rounds: int) -> dict:
    import torch
    from ultralytics.data.augment import LetterBox

    from cv_pipeline.inference.manifest import PreprocessSpec
    from cv_pipeline.inference.preprocess import Preprocessor, letterbox

    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    image, pad, prepare, tensor = (
        picture(width, height),
        LetterBox((640, 640), auto=False),
        Preprocessor(PreprocessSpec()),
        np.empty((1, 3, 640, 640), np.float32),
    )

    def ultralytics():
        batch = torch.from_numpy(pad(image=image)).unsqueeze(0).permute(0, 3, 1, 2).contiguous().flip(1)
        return batch.float().div_(255)

    def blob():
        return cv2.dnn.blobFromImage(letterbox(image, (640, 640)).image, 1 / 255, swapRB=True)

    same = np.array_equal(prepare.batch([image], tensor)[0], ultralytics().numpy())
    last = prepare.into(image, tensor[0])
    a, b, c, d = alternate(
        [
            ultralytics,
            blob,
            lambda: prepare.into(image, tensor[0]),
            lambda: prepare.into(image, tensor[0], last),
        ],
        rounds,
    )
    return {
        "input": f"{width}×{height}",
        "threads": threads,
        "same": same,
        "ultralytics_ms": a,
        "blob_ms": b,
        "ours_ms": c,
        "ours_border_kept_ms": d,
        "ratio": a / c,
        "ratio_border_kept": a / d,
    }


def run(quick: bool = False) -> list[dict]:
    "One row for each picture size and thread count."
    before = cv2.getNumThreads()
    try:
        return [
            compare(w, h, n, 15 if quick else 200)
            for n in (1, 2)
            for w, h in ((768, 432), (640, 480), (1280, 720), (1920, 1080), (3840, 2160))
        ]
    finally:
        cv2.setNumThreads(before)


def main() -> None:
    print("picture → 1×3×640×640 float32; medians of alternating rounds, milliseconds")
    print(
        f"{'picture':>10} threads same | Ultralytics  blobFromImage  ours (ratio)   ours, border kept (ratio)"
    )
    for r in run("--quick" in sys.argv):
        print(
            f"{r['input']:>10} {r['threads']:7} {'yes' if r['same'] else 'NO':4} | "
            f"{r['ultralytics_ms']:11.2f} {r['blob_ms']:14.2f} {r['ours_ms']:6.2f} "
            f"({r['ratio']:.1f}x)"
            f" {r['ours_border_kept_ms']:12.2f} ({r['ratio_border_kept']:.1f}x)"
        )


if __name__ == "__main__":
    main()
