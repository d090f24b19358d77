"""Small packages with entry points, as `pip` leaves them: a module and a folder with the metadata."""

from pathlib import Path

SINK = """
from collections import Counter


class TallySink:
    "Counts classes, and does what a test asks for."

    def __init__(self, out, fails=None, summary=None):
        if fails == "open": raise ConnectionError("no broker at tcp://ann:S3cretPw@broker")
        self.file, self.fails, self.counts, self.told = out / "tally.txt", fails, Counter(), summary

    def write(self, result):
        if self.fails == "write" and result.frame.frame_id == 3: raise KeyError("oven")
        self.counts.update(map(result.class_name, result.detections.class_id.tolist()))

    def close(self):
        if self.fails == "close": raise ValueError("still busy")
        self.file.write_text(str(sum(self.counts.values())))

    def summary(self):
        if self.fails == "summary": raise ZeroDivisionError("no frames")
        return self.told or {"boxes": sum(self.counts.values()), "file": self.file}

    def metric_families(self):
        if self.fails == "metrics": raise OSError("no gauge")
        return ["a family"]


class Odd:
    "No sink."

    def __init__(self, out): pass
"""


def install(
    site: Path,
    offers: dict[str, str],
    package: str = "factory-tally",
    module: str = "factory_tally",
    code: str = SINK,
) -> Path:
    "Put a package into a folder that stands on the path; `offers`: name of a sink → module:class."
    info = site / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[cv_pipeline.sinks]\n" + "".join(f"{name} = {value}\n" for name, value in offers.items())
    )
    (site / f"{module}.py").write_text(code)
    return site
