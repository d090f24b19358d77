"Films with a visitor, encoded as cameras do, and a packet gate for them."

from fractions import Fraction

import av
import cv2
import numpy as np

from cv_pipeline.video.packets import GatedSelector, GateSettings, PacketGate

FPS = 25


def visit(seconds, begins=(12.0,)):
    "Left edge of the box, or None: it walks in, stands, and goes."
    for begin in begins:
        t = seconds - begin
        if 0 <= t < 6:
            return int(-60 + 120 * min(t, 2.0) + 120 * max(0.0, t - 4.5))
    return None


def scene(seconds, begins=(12.0,), noise=2, size=(320, 240)):
    "A wall with sensor noise, and a box that comes in."
    rng = np.random.default_rng(0)
    wall = cv2.resize(rng.integers(60, 160, (12, 16, 3), np.uint8), size, interpolation=cv2.INTER_CUBIC)
    for i in range(int(FPS * seconds)):
        image = wall.astype(np.int16) + rng.normal(0, noise, wall.shape).astype(np.int16)
        image = np.clip(image, 0, 255).astype(np.uint8)
        if (x := visit(i / FPS, begins)) is not None:
            cv2.rectangle(image, (x, 90), (x + 50, 180), (40, 60, 220), -1)
        yield image


def film(path, images, codec="libx264", gop=25, change=None, **options):
    "Encode; `change(packet)` may alter a packet, or leave it out by False."
    with av.open(str(path), "w") as container:
        given = {"libx264": {"preset": "superfast", "threads": "1"}, "libx265": _X265}.get(codec, {})
        stream, rate = None, Fraction(FPS)
        for image in images:
            if stream is None:
                stream = container.add_stream(codec, rate=rate, options={"g": str(gop), **given, **options})
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            for packet in stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")):
                if change is None or change(packet) is not False:
                    container.mux(packet)
        for packet in stream.encode(None):
            if change is None or change(packet) is not False:
                container.mux(packet)
    return path


_X265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"}


def new_gate(live=False, **settings):
    gate = PacketGate(GateSettings(**{"learn_s": 4.0, **settings}), live)
    GatedSelector(gate=gate)
    return gate
