"""A power cut, imitated: a library that is loaded before all others copies a file whenever it is synced to
disk, and forgets deleted ones when their folder is synced. After kill −9 the copies take the place of the
files: what was never synced has never been written."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.helpers.kill_loop import ROOT, judged
from tests.helpers.services import absent, free_port

SHIM = r"""
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void forget(const char *from, const char *to) {
    char path[PATH_MAX];
    DIR *copies = opendir(to);
    struct dirent *one;
    while (copies && (one = readdir(copies)))
        if (one->d_name[0] != '.' || !strncmp(one->d_name, ".outbox", 7)) {
            snprintf(path, sizeof path, "%s/%s", from, one->d_name);
            if (access(path, F_OK)) {
                snprintf(path, sizeof path, "%s/%s", to, one->d_name);
                unlink(path);
            }
        }
    if (copies) closedir(copies);
}

static void keep(int fd) {
    const char *from = getenv("SYNCED_FROM"), *to = getenv("SYNCED_TO");
    char link[64], path[PATH_MAX], draft[PATH_MAX + 32], name[PATH_MAX + 32], block[65536];
    if (!from || !to) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return;
    path[n] = 0;
    if (!strcmp(path, from)) { forget(from, to); return; }
    if (strncmp(path, from, strlen(from)) || path[strlen(from)] != '/') return;
    const char *base = strrchr(path, '/') + 1;
    snprintf(draft, sizeof draft, "%s/.draft-%s", to, base);
    snprintf(name, sizeof name, "%s/%s", to, base);
    int in = open(path, O_RDONLY), out = open(draft, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (in < 0 || out < 0) { if (in >= 0) close(in); if (out >= 0) close(out); return; }
    while ((n = read(in, block, sizeof block)) > 0)
        if (write(out, block, n) != n) abort();
    close(in);
    close(out);
    rename(draft, name);
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    int rc = real(fd);
    keep(fd);
    return rc;
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    int rc = real(fd);
    keep(fd);
    return rc;
}
"""


def shim(folder: Path) -> Path:
    "The library; skips where there is no C compiler."
    cc = shutil.which("cc")
    if cc is None or sys.platform != "linux":
        absent("the imitation of a power cut needs Linux and a C compiler")
    source, made = folder / "shim.c", folder / "shim.so"
    source.write_text(SHIM)
    subprocess.run([cc, "-shared", "-fPIC", "-o", made, source, "-ldl"], check=True)
    return made


class PowerCuts:
    "A device that loses its power again and again; its centre does not."

    def __init__(self, folder: Path, seed: int = 0, naive: bool = False):
        self.folder, self.draw, self.naive = folder, random.Random(seed), naive
        self.synced, self.home, self.port = folder / "synced", folder / "box-1", free_port()
        for path in (self.synced, self.home):
            path.mkdir(parents=True)
        self.library, self.tally = shim(folder), Counter()

    def process(self, *args: str, cut: bool = False) -> subprocess.Popen:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "NAIVE": "1" if self.naive else ""}
        if cut:
            env |= {
                "LD_PRELOAD": str(self.library),
                "SYNCED_FROM": str(self.home),
                "SYNCED_TO": str(self.synced),
            }
        command = [sys.executable, "-m", "tests.helpers.kill_loop", *args]
        return subprocess.Popen(command, env=env, cwd=ROOT, stderr=subprocess.PIPE)

    def life(self, number: int) -> None:
        "Write and send for a while, then the power fails."
        args = [
            str(self.home),
            "box-1",
            f"http://127.0.0.1:{self.port}",
            str(number),
            str(self.draw.randrange(10**9)),
        ]
        process = self.process("device", *args, cut=True)
        started = self.folder / f"promised-box-1-{number}"
        while not started.exists() or not started.stat().st_size:
            assert process.poll() is None, process.stderr.read().decode()[-3000:]
            time.sleep(0.01)
        time.sleep(self.draw.uniform(0.05, 0.8))
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.tally["unsynced bytes"] += sum(
            (self.home / n).stat().st_size != (self.synced / n).stat().st_size
            or (self.home / n).read_bytes() != (self.synced / n).read_bytes()
            for n in ("outbox.sqlite", "outbox.sqlite-wal")
            if (self.home / n).exists() and (self.synced / n).exists()
        )
        shutil.rmtree(self.home)
        shutil.copytree(self.synced, self.home, ignore=shutil.ignore_patterns(".draft-*"))

    def run(self, cuts: int) -> dict[str, int]:
        began = time.monotonic()
        centre = self.process("receiver", str(self.folder / "centre"), str(self.port))
        try:
            for number in range(1, cuts + 1):
                self.life(number)
            last = self.process("sender", str(self.home), "box-1", f"http://127.0.0.1:{self.port}")
            assert last.wait(120) == 0, last.stderr.read().decode()[-3000:]
        finally:
            centre.kill()
            centre.wait()
        found = judged(self.folder, ["box-1"])
        seconds = round(time.monotonic() - began, 1)
        return {
            "cuts": cuts,
            "files with unsynced bytes": self.tally["unsynced bytes"],
            "seconds": seconds,
            **found,
        }
