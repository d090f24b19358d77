"""A device for tests: model folders with a mood, a script that plays a run and does what the mood says, and
an agent with short waiting times."""

import json
import shutil
import sys
from pathlib import Path

from cv_pipeline.edge.agent import Child, free_port
from cv_pipeline.inference.manifest import ModelManifest, save_manifest
from cv_pipeline.release.bundles import make_bundle

PLAYER = """#!PYTHON
import json, os, signal, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
words = sys.argv[1:]
option = lambda name: words[words.index(name) + 1]
model, port = Path(option("--model")), int(option("--serve-health"))
mood = (model / "mood.txt").read_text() if (model / "mood.txt").exists() else "well"
if "PLAYER_STARTS" in os.environ:
    with open(os.environ["PLAYER_STARTS"], "a") as file:
        file.write(model.name + "\\n")
if mood == "kills its agent":
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(30)
if mood == "crashes":
    os.abort()
if mood.startswith("exit "):
    sys.exit(int(mood[5:]))
REASON = {"well": None, "blind": "no source delivers frames"}
REASON["stuck"] = "deliver has not finished a frame for 99 s"
class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        if mood == "hangs":
            time.sleep(600)
        reason = REASON.get(mood, "the model is failed")
        body = {"reason": reason, "sources": {"gate": {"state": "stale" if mood == "blind" else "running"}}}
        text = json.dumps(body).encode()
        if self.path == "/metrics":
            text = b'cv_pipeline_camera_upkeep{signal="dirt",source="gate"} 1.0\\n'
        self.send_response(503 if reason else 200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
    def log_message(self, *what): pass
HTTPServer(("127.0.0.1", port), Page).serve_forever()
"""


def write_player(folder: Path) -> Path:
    "The script, as a program."
    path = folder / "player"
    path.write_text(PLAYER.replace("PYTHON", sys.executable))
    path.chmod(0o755)
    return path


def mood_bundle(folder: Path, version: str, mood: str = "well", name: str = "line") -> tuple[Path, str]:
    "A bundle whose run does what the mood says, and its digest."
    place = folder / "made" / f"{version}-{mood.replace(' ', '-')}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "net.bin").write_bytes(version.encode())
    (place / "mood.txt").write_text(mood)
    save_manifest(ModelManifest(name, "net.bin", ("part",), version=version), place)
    path = folder / f"{place.name}.bundle"
    return path, make_bundle(place, path).index.digest


def player_launcher(folder: Path):
    "Starts the script with the model of a folder."
    program = write_player(folder)

    def launch(place: Path) -> Child:
        port = free_port()
        command = [str(program), "--model", str(place), "--serve-health", str(port)]
        return Child(command, port, folder / "run.json")

    return launch


def rows_of(box, *kinds: str) -> list[dict]:
    "Bodies of the rows in an outbox of these kinds, in order."
    box.write([])
    found = box._db.execute("SELECT kind, body FROM outbox ORDER BY seq").fetchall()
    return [json.loads(body) for kind, body in found if not kinds or kind in kinds]
