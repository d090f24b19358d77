"""A real RTSP server, a process of its own: a camera that can be killed, stopped and told to change."""

import os
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent
SYSTEM_PYTHON = "/usr/bin/python3"  # GStreamer's bindings belong to the system's Python


def why_no_server() -> str | None:
    check = (
        "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import Gst, "
        "GstRtspServer; Gst.init(None); assert all(map(Gst.ElementFactory.find, ['x264enc', "
        "'rtph264pay', 'videotestsrc']))"
    )
    try:
        done = subprocess.run([SYSTEM_PYTHON, "-c", check], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as e:
        return f"no GStreamer RTSP server: {e}"
    return (
        None if done.returncode == 0 else f"no GStreamer RTSP server: {done.stderr.strip().splitlines()[-1]}"
    )


class Server:
    "One camera: a process of its own, in a group of its own, that ends when its input ends."

    def __init__(self, *args, port=0):
        self.process = subprocess.Popen(
            [SYSTEM_PYTHON, str(HERE / "rtsp_server.py"), "--port", str(port), *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        word = self.process.stdout.readline().split()
        assert word and word[0] == "ready", "the RTSP server did not start"
        self.port = int(word[1])
        self.uri = f"rtsp://127.0.0.1:{self.port}/live"

    def tell(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def signal(self, number):
        os.killpg(self.process.pid, number)

    def kill(self):
        with suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self.process.wait(10)
        self.process.stdin.close()
        self.process.stdout.close()
