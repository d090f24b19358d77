"""A real tritonserver on this machine's loopback, from the wheel nvidia-pytriton in its own environment, for
tests."""

import ctypes
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def server_home() -> Path | None:
    "The environment that holds nvidia-pytriton: CV_PIPELINE_TRITON, or `triton` inside this one."
    home = Path(os.environ.get("CV_PIPELINE_TRITON", Path(sys.prefix) / "triton"))
    return (
        home if list(home.glob("lib/python*/site-packages/pytriton/tritonserver/bin/tritonserver")) else None
    )


def free_ports(count: int) -> list[int]:
    """Free ports below those that outgoing connections get: a client that tries again and again must not take
    the port of the server that is to come back."""
    found = []
    for port in random.Random(os.getpid()).sample(range(20000, 32000), 400):
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


def _dies_with_us() -> None:
    ctypes.CDLL(None).prctl(
        1, signal.SIGKILL
    )  # PR_SET_PDEATHSIG: nothing is left when the tests are killed, or when the thread that called ends


class TritonServer:
    "Starts, kills and restarts one server; ports stay the same."

    def __init__(self, home: Path, repository: Path, work: Path):
        site = next(home.glob("lib/python*/site-packages"))
        version = site.parent.name.removeprefix("python")
        shipped = site / "pytriton" / "tritonserver"
        backends = work / "backends"
        shutil.copytree(shipped / "backends", backends)
        shutil.copy(
            shipped / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python"
        )
        (backends / "python" / "cv_pipeline").symlink_to(
            ROOT / "cv_pipeline"
        )  # the stub looks here; on a real server the package is installed
        ask = "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"
        libs = subprocess.run(
            [home / "bin" / "python", "-c", ask], capture_output=True, text=True, check=True
        ).stdout.strip()
        self.http, self.grpc, metrics = free_ports(3)
        self.log = work / "server.log"
        self.command = [
            shipped / "bin" / "tritonserver",
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            f"--http-port={self.http}",
            f"--grpc-port={self.grpc}",
            "--allow-metrics=false",
            "--exit-on-error=true",
            "--exit-timeout-secs=5",
            "--disable-auto-complete-config",
            f"--backend-config=python,shm-region-prefix-name=cvp{self.grpc}_",
        ]
        self.env = {
            **os.environ,
            "LD_LIBRARY_PATH": f"{libs}:{site / 'nvidia_pytriton.libs'}",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(site),
            "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
        }
        self.process = None

    def start(self, tries: int = 3) -> "TritonServer":
        """Ready when this returns. Starts again when it hangs: seen once in some hundred starts, it listened
        and never became ready (its log: epoll_wait, bad file descriptor)."""
        for _ in range(tries):
            with open(self.log, "ab") as log:
                self.process = subprocess.Popen(
                    list(map(str, self.command)),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self.env,
                    start_new_session=True,
                    preexec_fn=_dies_with_us,
                )
            until = time.monotonic() + 15
            while self.process.poll() is None and time.monotonic() < until:
                if self.ready():
                    return self
                time.sleep(0.05)
            self.kill()
        raise RuntimeError(f"tritonserver did not start:\n{self.log.read_text(errors='replace')[-4000:]}")

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/v2/health/ready", timeout=1) as answer:
                return answer.status == 200
        except OSError:
            return False

    def statistics(self, model: str) -> dict:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.http}/v2/models/{model}/stats", timeout=5
        ) as answer:
            return json.load(answer)["model_stats"][0]

    def signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        "kill -9, the server and its Python stubs."
        if self.process is None:
            return
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(10)
        self.process = None
        for left in Path("/dev/shm").glob(f"cvp{self.grpc}_*"):
            left.unlink(missing_ok=True)
