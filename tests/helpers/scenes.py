"""Made-up pictures that differ from each other, and what people do to a picture on its way."""

import cv2
import numpy as np


def scene(seed, size=(240, 320)):
    "Soft colours, shapes, fine texture: (h, w, 3) uint8."
    rng = np.random.default_rng(seed)
    soft = rng.integers(0, 256, (5, 6, 3)).astype(np.uint8)
    image = cv2.resize(soft, size[::-1], interpolation=cv2.INTER_CUBIC)
    for _ in range(14):
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        at = rng.uniform(0, 1, 2) * size[::-1]
        spread = rng.uniform(8, 0.3 * min(size), (6, 2)) * rng.choice([-1, 1], (6, 2))
        cv2.fillPoly(image, [(at + spread).astype(np.int32)], colour, cv2.LINE_AA)
    return np.clip(image + rng.normal(0, 12, image.shape), 0, 255).astype(np.uint8)


def compressed(image, quality=20):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)


def framed(image, width=30, grey=20):
    return cv2.copyMakeBorder(image, *[width] * 4, cv2.BORDER_CONSTANT, value=(grey,) * 3)


def cut(image, share=0.025):
    (h, w), k = image.shape[:2], share
    return np.ascontiguousarray(image[round(h * k) : h - round(h * k), round(w * k) : w - round(w * k)])


COPIES = {
    "as it is": lambda i: i,
    "JPEG 20": compressed,
    "half size": lambda i: cv2.resize(i, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "mirrored": lambda i: np.ascontiguousarray(i[:, ::-1]),
    "border 30 px": framed,
    "cut 2.5 %": cut,
    "brighter": lambda i: cv2.convertScaleAbs(i, alpha=1.0, beta=40),
}
