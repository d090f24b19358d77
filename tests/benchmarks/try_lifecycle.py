"""Ten thousand objects of a bucket against their ages and an index, in both directions.

    python -m tests.benchmarks.try_lifecycle            # 10,000 objects: half a minute
    python -m tests.benchmarks.try_lifecycle 50000      # the imitation of S3 sorts all of them for every page

The bucket is moto's, in a process of its own, filled behind its back (so many uploads would take longer than
what is measured); ages are those of a mixed year, with kinds of mistakes planted. Printed are
seconds and CPU seconds of listing, comparing and reading the index, and whether every mistake was found.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from cv_pipeline.scale.ageing import DAY, list_bucket, read_index, s3_client, verify, write_index
from cv_pipeline.scale.lifecycle import Kind, Lifecycle, tier_at

LINE = Lifecycle(
    (
        Kind("log", "log/", warm=60, delete=400, needed=42),
        Kind("video", "video/", warm=30, cold=60, delete=365, limit=365),
        Kind("models", "models/", keep="signed releases"),
    )
)
SERVER = """
import logging, sys, time
from datetime import datetime, timedelta
from moto.s3.models import s3_backends, FakeKey
from moto.server import ThreadedMotoServer
from tests.benchmarks.try_lifecycle import objects
backend = s3_backends["123456789012"]["aws"]
backend.create_bucket("site", "us-east-1")
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
keys = backend.get_bucket("site").keys
logging.getLogger("werkzeug").setLevel(logging.ERROR)
CLASSES = ["STANDARD", "STANDARD_IA", "GLACIER"]
now = datetime(*time.gmtime()[:6])
for key, size, days, tier in objects(int(sys.argv[1])):
    made = FakeKey(key, b"", "123456789012", "us-east-1", storage=CLASSES[tier])
    made.last_modified = now - timedelta(days=days, minutes=1)
    made.contentsize = size
    keys[key] = made
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


def objects(n: int):  # (key, bytes, days, tier) each
    "Objects of a year, each where it should be; some of every kind of mistake."
    rng = np.random.default_rng(0)
    kinds = rng.choice(3, n, p=[0.6, 0.39, 0.01])
    days, sizes = rng.integers(0, 350, n), rng.integers(1 << 18, 9 << 20, n)
    for k in range(n):
        kind, age = LINE.kinds[kinds[k]], int(days[k])
        tier = int(tier_at(kind, np.array([age]))[0])
        if k % 1000 == 1 and kind.name == "video":
            age, tier = 500, 2  # overdue
        if k % 1000 == 2 and kind.name == "video" and age < 25:
            tier = 2  # too cold
        if k % 1000 == 3 and age > 70 and kind.name == "video":
            tier = 0  # too hot
        key = f"tmp/{k}" if k % 10_000 == 4 else f"{kind.prefix}camera={k % 40}/{k:07}.bin"
        yield key, int(sizes[k]), age, tier


def main(n: int = 10_000) -> None:
    os.environ.update(AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test", AWS_DEFAULT_REGION="us-east-1")
    words = [sys.executable, "-c", SERVER, str(n)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        host, port = server.stdout.readline().split()
        index = Path(tempfile.mkdtemp()) / "index.parquet"
        began, cpu = time.perf_counter(), time.process_time()
        stored = list_bucket("s3://site/", s3_client(f"http://{host}:{port}"))
        listed, listed_cpu = time.perf_counter() - began, time.process_time() - cpu
        write_index(index, stored)
        gone = {stored.keys[k] for k in range(7, len(stored), 9001)}
        began, cpu = time.perf_counter(), time.process_time()
        known = read_index(index)
        for key in list(known)[11::12_007]:  # unknown
            del known[key]
        known |= {f"log/lost-{k}": (1, time.time() - 20 * DAY) for k in range(len(gone))}  # missing
        found = verify(LINE, stored, known)
        took, took_cpu = time.perf_counter() - began, time.process_time() - cpu
        server.stdin.close()
    made = list(objects(n))
    video = [(k, o) for k, o in enumerate(made) if o[0].startswith("video/")]
    planted = Counter({"of no kind": sum(o[0].startswith("tmp/") for o in made), "missing": len(gone)})
    planted["unknown"] = len(range(11, n, 12_007))
    planted["overdue"] = sum(k % 1000 == 1 for k, _ in video)
    planted["too cold"] = sum(k % 1000 == 2 and o[2] < 25 for k, o in video)
    planted["too hot"] = sum(k % 1000 == 3 and o[2] > 70 for k, o in video)
    print(f"{n} objects: listed in {listed:.1f} s ({listed_cpu:.1f} CPU s of ours)")
    print(f"read an index and compared in {took:.2f} s ({took_cpu:.2f} CPU s)")
    print(f"planted {dict(planted)}")
    print(f"found   {dict(found.counts)}: {'all' if found.counts == planted else 'NOT ALL'}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
