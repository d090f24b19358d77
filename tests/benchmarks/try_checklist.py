"""How many changed fixtures the checklist withstands, and how long it takes on a project with a thousand
reports. Printed, not asserted: `python -m tests.benchmarks.try_checklist`."""

import json
import tempfile
import time
from pathlib import Path

from cv_pipeline.readiness.checklist import run_checklist
from cv_pipeline.readiness.evidence import open_project
from tests.helpers.ready_project import NOW, write_ready_project

REPORTS = 1000


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = write_ready_project(Path(folder) / "project")
        report = (root / "reports" / "e" / "metrics.json").read_text()
        opened = lambda: open_project(root, now=lambda: NOW)
        made = run_checklist(opened(), note=False)
        places = sum(len(x["pointers"]) for f in made.findings for x in f.proofs)
        print(f"{len(made.findings)} items, {made.counts}; {places} places read, 4 changes each")
        for k in range(REPORTS):
            path = root / "reports" / "old" / f"{k:04d}" / "metrics.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({**json.loads(report), "number": k}))
        wall, cpu = time.perf_counter(), time.process_time()
        made = run_checklist(opened(), note=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"{REPORTS} more reports: {wall:.2f} s, {cpu:.2f} CPU s, {made.counts}")


if __name__ == "__main__":
    main()
