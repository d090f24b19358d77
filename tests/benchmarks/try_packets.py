"""The packet gate on films with known visits: share of packets decoded, visits kept, delay, processor time.

Two kinds of films, H.264 at 25 fps, three lengths of a group of pictures, constant quality and constant bit
rate. `room`: a wall with sensor noise, into which somebody comes, stands, and goes. `belt`: the factory line,
whose belt never stops, with few parts. The model is the truth: what is lost is lost by the selection. The
same film goes through adaptive selection with every packet decoded, and through the gate. Delays are those of
tracks behind adaptive selection: `frame` of the first frame that has it, `alarm` of the packet with which
that frame was handed on (the frames before a wake are handed on late).

python -m tests.benchmarks.try_packets [--seeds 6] [--seconds 120] [--kinds room,belt]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import mean

import av
import cv2
import numpy as np

from cv_pipeline.core.types import Detections
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.tracking.sort import SortTracker
from cv_pipeline.video.adaptive import AdaptiveSelector
from cv_pipeline.video.packets import GatedSelector, GateSettings, PacketGate
from cv_pipeline.video.sources import open_source

FPS, GOPS = 25, (25, 50, 250)
RATES = {
    "CRF": {"crf": "23"},
    "CBR": {"b": "800k", "maxrate": "800k", "bufsize": "200k", "x264-params": "nal-hrd=cbr:filler=1"},
}
Boxes = list[tuple[float, float, float, float]]


def room(seed: int, seconds: float, size=(320, 240)) -> Iterator[tuple[np.ndarray, Boxes]]:
    "A visit of five seconds in every two minutes or so."
    rng = np.random.default_rng(seed)
    wall = cv2.resize(rng.integers(60, 160, (12, 16, 3), np.uint8), size, interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, 2, (31, *wall.shape)).astype(np.int16)
    begins = [20 + 120 * k + float(rng.uniform(0, 80)) for k in range(max(1, int(seconds // 120)))]
    for i in range(int(FPS * seconds)):
        image = np.clip(wall + noise[rng.integers(31)], 0, 255).astype(np.uint8)
        boxes = []
        for t in (i / FPS - begin for begin in begins):
            if 0 <= t < 6:
                x = int(-60 + 110 * min(t, 2.0) + 110 * max(0.0, t - 4.0))
                cv2.rectangle(image, (x, 90), (x + 50, 180), (40, 60, 220), -1)
                if x > -25 and x < size[0] - 20:
                    boxes.append((max(x, 0), 90.0, min(x + 50, size[0]), 180.0))
        yield image, boxes


def belt(seed: int, seconds: float) -> Iterator[tuple[np.ndarray, Boxes]]:
    config = LineConfig(seed=seed, density=0.06, speed=150.0, hand_every=0.0, overlap=0.0)
    for frame, truth in FactoryLine(config).frames(int(FPS * seconds)):
        yield frame.image, [tuple(box) for box in truth.labelled().xyxy.tolist()]


def films(folder: Path, pictures: Iterator, name: str) -> tuple[dict[tuple[str, int], Path], list[Boxes]]:
    "One film for each way to encode it, and the boxes of every frame."
    truth, made = [], {}
    with ExitStack() as stack:
        for rate, options in RATES.items():
            for gop in GOPS:
                made[rate, gop] = folder / f"{name}-{rate}-{gop}.mp4"
                container = stack.enter_context(av.open(str(made[rate, gop]), "w"))
                common = {"g": str(gop), "preset": "superfast", "threads": "1", "sc_threshold": "0"}
                stream = container.add_stream("libx264", rate=FPS, options={**common, **options})
                stream.pix_fmt = "yuv420p"
                made[rate, gop, "open"] = container, stream
        writers = [made.pop((rate, gop, "open")) for rate in RATES for gop in GOPS]
        for image, boxes in pictures:
            truth.append(boxes)
            frame = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(format="yuv420p")
            for container, stream in writers:
                if len(truth) == 1:
                    stream.height, stream.width = image.shape[:2]
                container.mux(stream.encode(frame))
        for container, stream in writers:
            container.mux(stream.encode(None))
    return made, truth


def play(path: Path, truth: list[Boxes], gate: PacketGate | None) -> dict:
    "What a selection finds on a film."
    selector = AdaptiveSelector() if gate is None else GatedSelector(gate=gate)
    tracker, first, calls, began = (
        SortTracker(frame_rate=FPS, lost_track_buffer=50),
        {},
        0,
        time.process_time(),
    )
    for frame in open_source(path, "cam", gate=gate, threads=1, hardware="none"):
        if not selector.select(frame):
            continue
        boxes = np.array(truth[frame.frame_id], np.float32).reshape(-1, 4)
        found = tracker.update(Detections(boxes, np.full(len(boxes), 0.9, np.float32)), frame)
        selector.observe(frame, found, tracker)
        calls += 1
        for track in found.tracker_id[found.tracker_id >= 0].tolist():
            lag = 0.0 if gate is None else gate.at - (frame.pts or 0.0)
            first.setdefault(track, (frame.frame_id, frame.frame_id + lag * FPS))
    spent = time.process_time() - began
    return {"first": sorted(first.values()), "calls": calls, "cpu": spent, "tracks": tracker.confirmed}


def compare(path: Path, truth: list[Boxes], blind: str) -> dict:
    "The gate beside adaptive selection on one film."
    plain, gate = play(path, truth, None), PacketGate(GateSettings(blind=blind))
    gated = play(path, truth, gate)
    late, alarm = [], []
    for frame, _ in plain["first"]:  # an event is kept when a track begins at most three seconds later
        after = [(abs(g - frame), g - frame, told - frame) for g, told in gated["first"] if g >= frame - FPS]
        _, begun, told = min(after, default=(0, 4 * FPS, 0))
        late.append(begun / FPS if begun <= 3 * FPS else None)
        alarm.append(told / FPS)
    return {
        "events": len(late),
        "kept": sum(one is not None for one in late),
        "tracks": (plain["tracks"], gated["tracks"]),
        "late s": [one for one in late if one is not None],
        "alarm s": [told for told, one in zip(alarm, late) if one is not None],
        "decoded": gate.summary()["decoded_share"],
        "state": gate.state,
        "calls": (plain["calls"], gated["calls"]),
        "cpu": (plain["cpu"], gated["cpu"]),
    }


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--seeds", type=int, default=6)
    ask.add_argument("--seconds", type=float, default=240)
    ask.add_argument("--kinds", default="room,belt")
    ask.add_argument("--json", type=Path)
    given = ask.parse_args()
    rows: dict[tuple, list[dict]] = {}
    for kind in given.kinds.split(","):
        for seed in range(given.seeds):
            with tempfile.TemporaryDirectory() as folder:
                made, truth = films(
                    Path(folder), {"room": room, "belt": belt}[kind](seed, given.seconds), kind
                )
                for (rate, gop), path in made.items():
                    for blind in ("plain", "glance"):
                        rows.setdefault((kind, rate, gop, blind), []).append(compare(path, truth, blind))
    print(
        "film  rate  GOP  blind   decoded  kept    tracks   frame s mean max  alarm s mean max  calls  CPU s"
    )
    for (kind, rate, gop, blind), found in rows.items():
        late, alarm = ([one for r in found for one in r[what]] or [0] for what in ("late s", "alarm s"))
        total = {key: [sum(r[key][k] for r in found) for k in (0, 1)] for key in ("tracks", "calls", "cpu")}
        print(
            f"{kind:5s} {rate} {gop:4d}  {blind:6s}  {mean(r['decoded'] for r in found):6.1%}  "
            f"{sum(r['kept'] for r in found)}/{sum(r['events'] for r in found)}  "
            f"{total['tracks'][0]} → {total['tracks'][1]}  {mean(late):5.2f} {max(late):5.2f}  "
            f"{mean(alarm):5.2f} {max(alarm):5.2f}  "
            f"{total['calls'][0]} → {total['calls'][1]}  {total['cpu'][0]:.1f} → {total['cpu'][1]:.1f}  "
            f"{'/'.join(sorted({r['state'] for r in found}))}",
            flush=True,
        )
    if given.json:
        given.json.write_text(
            json.dumps([{"film": key, "seeds": found} for key, found in rows.items()]) + "\n"
        )


if __name__ == "__main__":
    main()
