"""Run notebooks as nbdev_test does, each in a process of its own.

`python -m tests.notebooks [--workers 2] [PATHS]`. nbdev keeps everything that a notebook imported until its
worker ends, some gigabytes at the end of the tree; a process of its own gives memory back, and its CPU time
and peak memory are known. Children of the notebook that it waited for are counted. Each has a folder for
temporary files of its own, which is removed when it ends.

What a book imports at the beginning of a line is imported before its process is forked, so the next book has
it too. Books run in order and import only earlier ones: the module that a book writes is never there before
it.
"""

import argparse
import ast
import gc
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MEMORY_MB, CPU_S, WALL_S = (
    2048,
    60,
    900,
)  # more is named; a notebook past the last one is ended and has failed
THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
)  # BLAS and torch; ONNX Runtime is told by the notebooks
TRAIN = {"06_optimization", "08_training"}  # torch is imported once, when the first of their books comes
LEFT = {"onnxruntime"}  # to the notebooks: its import starts a thread, which a fork would lose


@dataclass
class Job:
    "One notebook that runs, or has run."

    path: Path
    pid: int
    began: float
    log: object
    scratch: Path  # its temporary files
    killed: bool = False
    cpu: float = 0.0  # seconds, user and system, with waited-for children
    peak: int = 0  # MB resident, of the largest process
    wall: float = 0.0
    code: int = 0

    def line(self) -> str:
        name = self.path.relative_to(ROOT) if self.path.is_relative_to(ROOT) else self.path
        return f"{self.cpu:7.1f} s CPU {self.wall:7.1f} s {self.peak:6d} MB  {name}" + (
            "" if self.code == 0 else "  FAILED"
        )


def found(paths: list[str]) -> list[Path]:
    "The notebooks that nbdev_test would run: nbdev's own glob, without folders that hold a `.notest`."
    from nbdev.doclinks import nbglob
    from nbdev.test import _keep_file

    books = [Path(p).resolve() for path in (paths or [None]) for p in nbglob(path, as_path=True)]
    return sorted({book for book in books if _keep_file(book, ".notest")})


def preload() -> None:
    """What nearly every notebook imports: once here, and never again in the processes that are forked from
    this one. Nothing that starts a thread: a fork would lose it."""
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")  # the one that pyarrow starts
    import matplotlib

    matplotlib.use("agg")
    import cv2  # noqa: F401
    import fastcore.test  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import nbdev.test
    import numpy  # noqa: F401
    import pandas  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import pydantic  # noqa: F401
    import scipy.optimize  # noqa: F401
    import scipy.stats  # noqa: F401

    # these pictures are not kept: a quarter of the pixels is enough
    nbdev.test.CaptureShell = partial(nbdev.test.CaptureShell, mpl_format="png")


def imports(book: Path) -> list[str]:
    "The modules of the package that a notebook imports at the beginning of a line, in its order."
    found = []
    for cell in json.loads(book.read_text(encoding="utf-8"))["cells"]:
        try:
            body = ast.parse("".join(cell["source"])).body if cell["cell_type"] == "code" else []
        except SyntaxError:  # a line of IPython's, or a cell that shows an error
            continue
        for node in body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cv_pipeline."):
                found.append(node.module)
    return found


class Refused(Exception):
    "A module that the notebook's own process has to import; no ImportError, which a module may expect."


class Refuse:
    "A finder that ends every import of what is LEFT, and so of each module that begins with one."

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> None:
        if name in LEFT:
            raise Refused(name)


def warm(book: Path) -> None:
    """Import here what a notebook will import. What cannot be imported is left to the notebook, with its
    error."""
    more = ["ultralytics"] if book.parent.name in TRAIN else []
    sys.meta_path.insert(0, Refuse)
    try:
        for name in [*imports(book), *more]:
            try:
                importlib.import_module(name)
            except Exception:
                LEFT.add(name)
    finally:
        sys.meta_path.remove(Refuse)


def run_one(path: Path, log, scratch: Path) -> int:
    "In the child: the notebook from top to bottom by nbdev's own test_nb; 0 where it passed."
    from nbdev.config import get_config
    from nbdev.test import test_nb

    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    os.environ["TMPDIR"], tempfile.tempdir = str(scratch), None
    os.chdir(get_config().nbs_path)
    passed, _ = test_nb(
        path, skip_flags=get_config().tst_flags.split(), force_flags=[], basepath=get_config().config_path
    )
    return 0 if passed else 1


def start(path: Path) -> Job:
    "Fork a process, leader of a group of its own, for one notebook."
    warm(path)
    log, scratch = tempfile.TemporaryFile(mode="w+b"), Path(tempfile.mkdtemp(prefix="nb-"))
    sys.stdout.flush()
    sys.stderr.flush()
    gc.freeze()  # the collector of the child leaves these pages alone, and shared
    pid = os.fork()
    if pid:
        return Job(path, pid, time.monotonic(), log, scratch)
    code = 1
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        code = run_one(path, log, scratch)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def kill(job: Job) -> None:
    "End a notebook and what it started."
    try:
        os.killpg(job.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def reap(jobs: dict[int, Job]) -> list[Job]:
    "The notebooks that have ended, with what they used; waits a second at most."
    signal.sigtimedwait({signal.SIGCHLD}, 1)
    ended = []
    for job in list(jobs.values()):
        pid, status, used = os.wait4(job.pid, os.WNOHANG)
        if pid:
            job.cpu, job.peak = used.ru_utime + used.ru_stime, used.ru_maxrss // 1024
            job.wall, job.code = time.monotonic() - job.began, os.waitstatus_to_exitcode(status)
            kill(job)  # whatever it left behind
            shutil.rmtree(job.scratch, ignore_errors=True)
            ended.append(jobs.pop(pid))
        elif not job.killed and time.monotonic() - job.began > WALL_S:
            job.killed = True
            kill(job)
    return ended


def show(job: Job) -> None:
    "One line, and what a failed notebook had to say."
    print(job.line(), flush=True)
    if job.killed:
        print(f"  ended after {WALL_S} s")
    if job.code != 0:
        job.log.seek(0)
        print(job.log.read().decode(errors="replace"), flush=True)
    job.log.close()


def run_all(books: list[Path], workers: int) -> list[Job]:
    "All notebooks, `workers` at a time, in order."
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    waiting, jobs, done = list(books), {}, []
    try:
        while waiting or jobs:
            while waiting and len(jobs) < workers:
                job = start(waiting.pop(0))
                jobs[job.pid] = job
            for job in reap(jobs):
                show(job)
                done.append(job)
    finally:
        for job in jobs.values():
            kill(job)
            shutil.rmtree(job.scratch, ignore_errors=True)
    return done


def report(done: list[Job], wall: float) -> int:
    "The dearest notebooks, the sum, warnings; the exit code."
    print(f"\nthe {min(25, len(done))} dearest notebooks")
    for job in sorted(done, key=lambda job: -job.cpu)[:25]:
        print(job.line())
    own = resource.getrusage(resource.RUSAGE_SELF)
    cpu = sum(job.cpu for job in done) + own.ru_utime + own.ru_stime
    print(
        f"{len(done)} notebooks: {cpu / 60:.1f} CPU minutes in {wall / 60:.1f} minutes; largest process "
        f"{max(j.peak for j in done)} MB"
    )
    for job in done:
        if job.peak > MEMORY_MB:
            print(f"warning: {job.path.name} took {job.peak} MB, more than {MEMORY_MB}")
        if job.cpu > CPU_S:
            print(f"warning: {job.path.name} took {job.cpu:.0f} CPU seconds, more than {CPU_S}")
    failed = sorted(job.path.name for job in done if job.code != 0)
    print("failed: " + ", ".join(failed) if failed else "all passed")
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    "The command line."
    parser = argparse.ArgumentParser(prog="python -m tests.notebooks", description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", help="notebooks or folders; default all")
    parser.add_argument("--workers", type=int, default=2, help="notebooks at a time (default 2)")
    parser.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of BLAS and torch in each; 0 leaves it to them (default 1)",
    )
    args = parser.parse_args(argv)
    if args.threads:
        os.environ.update({name: os.environ.get(name, str(args.threads)) for name in THREADS})
    began = time.monotonic()
    preload()
    books = found(args.paths)
    if not books:
        parser.error("no notebook found")
    return report(run_all(books, args.workers), time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
