"""Seconds of a map of N drawn pictures, by part, and the size of its page:
python -m tests.benchmarks.try_browse 500"""

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from cv_pipeline.apps.map_page import write_page
from cv_pipeline.apps.neighbours import nearest
from cv_pipeline.apps.picture_map import BrowseSettings, make_map, project
from cv_pipeline.core.vectors import unit_vectors


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "data"
        folder.mkdir()
        for k in range(count):
            small = np.random.default_rng(k).integers(0, 255, (12, 16, 3)).astype(np.uint8)
            cv2.imwrite(str(folder / f"{k:05d}.jpg"), cv2.resize(small, (640, 480)))
        begin = time.process_time()
        made = make_map(folder, settings=BrowseSettings(method="pca", most=max(count, 3)))
        print(f"{count} pictures of 640x480: {time.process_time() - begin:.1f} CPU s in all")
        page = write_page(made, Path(place) / "map.html")
        print(f"page: {page.stat().st_size / 1e6:.1f} MB")
    x = unit_vectors(np.random.default_rng(0).normal(size=(5000, 323)).astype(np.float32))
    for name, work in (("places", lambda: project(x)), ("neighbours", lambda: nearest(x, x, 9))):
        begin = time.process_time()
        work()
        print(f"{name} of 5,000 x 323: {time.process_time() - begin:.2f} CPU s")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
