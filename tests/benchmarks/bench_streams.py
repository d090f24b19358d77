"""Network cameras: how old a picture is when it is handed over, and what a camera costs; readers side by side
on one camera over loopback."""

import io
import socket
import threading
import time
from contextlib import suppress

import av
import cv2
import numpy as np

from cv_pipeline.video.streams import StreamSource

FPS = 25


def film(size: tuple[int, int], seconds: int = 4) -> list[bytes]:
    "MPEG-TS of some seconds, a piece a frame; key frames every half second."
    pieces, store, written = [], io.BytesIO(), 0
    texture = cv2.resize(
        np.random.default_rng(0).integers(40, 200, (9, 16, 3), dtype=np.uint8),
        size,
        interpolation=cv2.INTER_CUBIC,
    )
    with av.open(store, "w", format="mpegts") as out:
        stream = out.add_stream(
            "libx264", rate=FPS, options={"preset": "ultrafast", "tune": "zerolatency", "g": "12"}
        )
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for k in range(seconds * FPS):
            out.mux(
                stream.encode(av.VideoFrame.from_ndarray(np.roll(texture, 6 * k, axis=1), format="bgr24"))
            )
            pieces.append(store.getvalue()[written:])
            written = store.tell()
    return pieces


class Camera:
    "Sends a film at its own pace to whoever connects; `sent[k]` is when frame k left."

    def __init__(self, pieces: list[bytes]):
        self.pieces, self.sent = pieces, {}
        self.door = socket.create_server(("127.0.0.1", 0))
        self.uri = f"tcp://127.0.0.1:{self.door.getsockname()[1]}"
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=self.send, args=(self.door.accept()[0],), daemon=True).start()

    def send(self, client: socket.socket) -> None:
        began = time.monotonic()
        with suppress(OSError), client:
            for k, piece in enumerate(self.pieces):
                time.sleep(max(0.0, began + k / FPS - time.monotonic()))
                self.sent[k] = time.monotonic()
                client.sendall(piece)


def naive(uri: str):
    with av.open(uri, options={"analyzeduration": "500000"}) as container:
        for k, frame in enumerate(container.decode(video=0)):
            yield k, frame.to_ndarray(format="bgr24")


def opencv(uri: str):
    capture, k = cv2.VideoCapture(uri, cv2.CAP_FFMPEG), 0
    while True:
        good, image = capture.read()
        if not good:
            return
        yield k, image
        k += 1


def ours(uri: str):
    with StreamSource(uri, hardware="none") as source, suppress(Exception):
        for frame in source:
            yield frame.frame_id, frame.image


def run(quick: bool = False) -> list[dict]:
    rows = []
    for size in [(1280, 720)] if quick else [(1920, 1080)]:
        pieces = film(size, 3 if quick else 8)
        for load, work_ms in (("keeps up", 0), ("2× overload", 2e3 / FPS)):
            for name, reader in (
                ("for frame in av.decode()", naive),
                ("cv2.VideoCapture", opencv),
                ("StreamSource", ours),
            ):
                camera, ages, cpu = Camera(pieces), [], time.process_time()
                for k, _image in reader(camera.uri):
                    ages.append(time.monotonic() - camera.sent.get(k, time.monotonic()))
                    time.sleep(work_ms / 1e3)
                    if len(camera.sent) == len(pieces):
                        break
                camera.door.close()
                cpu, late = (
                    (time.process_time() - cpu) / len(pieces) * 1e3,
                    np.array(ages[len(ages) // 4 :]) * 1e3,
                )
                rows.append(
                    {
                        "reader": f"{name}, {size[1]}p, {load}",
                        "age p50 ms": float(np.median(late)),
                        "age at the end ms": float(np.median(late[-5:])),
                        "frames taken": len(ages),
                        "of": len(pieces),
                        "CPU ms a sent frame": cpu,
                    }
                )
    return rows
