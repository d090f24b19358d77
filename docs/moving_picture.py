"""Makes README's moving picture, data/demo.webp, from an annotated video: `python docs/moving_picture.py
runs/demo/camera-1.mp4`."""

import sys
from pathlib import Path

import av
from PIL import Image

OUT = Path(__file__).resolve().parents[1] / "data" / "demo.webp"
WIDTH, FIRST, LAST, STEP = 480, 150, 270, 3  # pixels; frames of the video


def main(video: str, out: Path = OUT) -> None:
    with av.open(video) as film:
        frames = [
            f.to_image() for k, f in enumerate(film.decode(video=0)) if FIRST <= k < LAST and k % STEP == 0
        ]
    small = [f.resize((WIDTH, round(WIDTH * f.height / f.width)), Image.Resampling.LANCZOS) for f in frames]
    small[0].save(out, save_all=True, append_images=small[1:], duration=120, loop=0, quality=55, method=6)
    print(f"{out}: {len(small)} frames, {out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1])
