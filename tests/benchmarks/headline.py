"""The rows of `bench_cameras_per_core`: kept in a file while the benchmark runs in parts, compared, and
written as the headline table of docs/benchmarks.md."""

import json
from pathlib import Path

from cv_pipeline.core.types import DataError

BEGIN, END = "<!-- cameras per core -->", "<!-- end of cameras per core -->"
KEY = ("clip", "contestant", "processor")
PROCESSORS = {"own": "as it is", "avx2": "AVX-512 hidden"}


class Rows:
    "Measured rows, one a line in a JSON lines file; each is there once."

    def __init__(self, path: Path | None):  # None: in memory only
        self.path, self.found = path, list[dict]()
        if path is not None and path.exists():
            self.found = _read(path)

    def has(self, clip: str, contestant: str, processor: str) -> bool:
        "Whether this row was measured."
        return (clip, contestant, processor) in {tuple(row[key] for key in KEY) for row in self.found}

    def add(self, row: dict) -> None:
        "Keep a row; it is in the file when this returns."
        self.found.append(row)
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def _read(path: Path) -> list[dict]:
    "Rows of a file. A last line without its end is a row that was cut off: it is taken out of the file."
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    found = dict[tuple, dict]()
    for number, one in enumerate(whole.splitlines(), 1):
        try:
            row = json.loads(one)
            found[tuple(row[key] for key in KEY)] = row
        except (ValueError, KeyError, TypeError) as e:
            raise DataError(
                f"line {number} is not a row of this benchmark", path, "take it out, or give another file"
            ) from e
    return list(found.values())


def compared(rows: list[dict]) -> list[dict]:
    """The rows with ratios to Ultralytics' stride 1, and to the best of its strides that keeps 95 % of the
    events, of the same clip and processor; without them where those rows are missing."""
    found = []
    for row in rows:
        peers = [
            r
            for r in rows
            if (r["clip"], r["processor"]) == (row["clip"], row["processor"])
            and r["contestant"].startswith("Ultralytics")
        ]
        first = [r for r in peers if r["contestant"].endswith("stride 1")]
        good = [r for r in peers if r["kept"] >= 0.95 * r["events"]]
        row = {key: value for key, value in row.items() if key not in ("gate", "energy", "begins")}
        row["× stride 1"] = first[0]["CPU s"] / row["CPU s"] if first else None
        row["× best stride"] = min(r["CPU s"] for r in good) / row["CPU s"] if good else None
        found.append(row)
    return found


def markdown(rows: list[dict]) -> str:
    "The table, a row a contestant, clip after clip."
    head = ("clip", "processor", "contestant", "CPU s a second of video", "cameras a core")
    head += ("× stride 1", "× best stride", "model calls", "decoded", "events kept", "within 1 s", "tracks")
    head += ("J a camera-hour",)
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in compared(rows):
        ratios = ["–" if row[key] is None else f"{row[key]:.1f}" for key in ("× stride 1", "× best stride")]
        cells = (
            row["clip"],
            PROCESSORS.get(row["processor"], row["processor"]),
            row["contestant"],
            f"{row['CPU s / s']:.3f}",
            f"{row['cameras a core']:.1f}",
            *ratios,
            str(row["model calls"]),
            f"{row['decoded']:.0%}",
            f"{row['kept']} of {row['events']}",
            str(row["in 1 s"]),
            str(row["tracks"]),
            "–" if row.get("J a camera-hour") is None else f"{row['J a camera-hour']:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" + _not_measured(rows)


def _not_measured(rows: list[dict]) -> str:
    "Why rows have no energy, in a paragraph of its own."
    missing = [row for row in rows if row.get("J a camera-hour") is None]
    why = sorted({row["energy"] for row in missing if row.get("energy")})
    text = f"Energy: not measured{' (' + '; '.join(why) + ')' if why else ''}.\n"
    return f"\n{text}" if missing else ""


def write_table(document: Path, table: str) -> None:
    "Put the table between its two marks in a document; DataError where they are missing."
    text = document.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"the marks {BEGIN} and {END} are missing", document, "put them where the table goes")
    document.write_text(f"{before}{BEGIN}\n{table}{END}{after}", encoding="utf-8")
