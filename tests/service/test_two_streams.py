"""Runs of cameras with two streams: what is kept is large, agrees with the boxes, and never leaves uncovered;
a lost main stream costs size, not the run."""

import json
import shutil
import threading
from contextlib import closing

import av
import cv2
import numpy as np
import pytest

from cv_pipeline.alerts.incidents import IncidentBook
from cv_pipeline.annotation.collect import audited, collect, recorded_sources
from cv_pipeline.core.config import RunConfig, SourceConfig
from cv_pipeline.core.formats import LabelledImage
from cv_pipeline.core.images import read_image
from cv_pipeline.core.results import read_jsonl
from cv_pipeline.core.types import ConfigError, Detections, FrameResult, SourceError
from cv_pipeline.monitoring.audit import AuditPlan, draw_audit, score_audit, take_pictures
from cv_pipeline.monitoring.prediction_log import read_log
from cv_pipeline.service.assembly import build_pipeline, mains_of, open_configured, run_config
from cv_pipeline.synthetic.line import open_line
from cv_pipeline.synthetic.passers import Passers, PassersConfig
from cv_pipeline.video.cover import Privacy
from cv_pipeline.video.decoding import decode_video
from cv_pipeline.video.health import PipelineCollector, readyz
from cv_pipeline.video.substream import MainPictures
from tests.helpers.waiting import until

LIMIT = 60.0  # seconds after which a test hangs
FPS = 10


def write(path, images, size):
    "A film of these pictures, scaled."
    options = {"g": "20", "preset": "ultrafast", "threads": "1"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
        (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
        for image in images:
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="bgr24")))
        container.mux(stream.encode(None))
    return str(path)


@pytest.fixture(scope="module")
def belt(tmp_path_factory):
    "One line as two films: the main one, the small one."
    folder = tmp_path_factory.mktemp("belt")
    images = [frame.image for frame in open_line("line:frames=60,seed=3,fps=10")]
    return write(folder / "main.mp4", images, (1280, 960)), write(folder / "small.mp4", images, (640, 480))


def config(belt, out, **more):
    main, small = belt
    given = {
        "sources": [{"uri": main, "id": "belt", "substream": small}],
        "privacy": {"off": "a belt without people"},
        "events": {"lines": [{"name": "middle", "start": [0.5, 1], "end": [0.5, 0]}]},
        "delivery": {"out": str(out), "parquet": False, "clips": {"pre_s": 1, "post_s": 1}},
        "collect": {"random": 0.3},
        **more,
    }
    return RunConfig.model_validate(given)


@pytest.fixture(scope="module")
def run(belt, tmp_path_factory):
    "A run that keeps everything: its folder, its summary."
    out = tmp_path_factory.mktemp("run")
    return out, run_config(config(belt, out / "run", alerts={"book": str(out / "book.db")}, telemetry=True))


def rows_of(run):
    lines = (run[0] / "run" / "collected" / "collected.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_objects_are_found_on_the_small_stream(run):
    assert tuple(run[1]["sources"]["belt"]["size"]) == (640, 480)


def test_the_summary_has_both_sizes_and_the_offset(run):
    told = run[1]["sources"]["belt"]["main"]
    assert (tuple(told["size"]), tuple(told["small_size"])) == ((1280, 960), (640, 480))
    assert abs(told["offset_ms"]) <= 100
    assert told["offset_by"] == "pictures"


def test_collected_pictures_are_of_the_main_stream(run):
    sizes = {read_image(run[0] / "run" / "collected" / row["picture"]).shape[:2] for row in rows_of(run)}
    assert sizes == {(960, 1280)}
    assert {tuple(row["size"]) for row in rows_of(run)} == {(1280, 960)}


def boxes_of(run):
    "frame → (n, 4) boxes in the small picture."
    return {
        row["frame_id"]: np.array([d["xyxy"] for d in row["detections"]]).reshape(-1, 4)
        for row in read_jsonl(run[0] / "run" / "results.jsonl")
    }


def test_collected_boxes_are_those_of_the_results_as_shares(run):
    found = boxes_of(run)
    for row in rows_of(run):
        boxes = np.array([d["xyxy"] for d in row["detections"]]).reshape(-1, 4)
        assert np.allclose(boxes, 2 * found[row["frame_id"]], atol=0.1)


def test_a_collected_picture_shows_its_own_frame(run, belt):
    whole = {p.number: p.image for p in decode_video(belt[0], threads=1)}
    row = rows_of(run)[5]
    image = read_image(run[0] / "run" / "collected" / row["picture"])
    away = {n: np.abs(image.astype(int) - other).mean() for n, other in whole.items()}
    assert min(away, key=away.get) == row["frame_id"]


def test_clips_are_of_the_main_stream(run):
    films = sorted((run[0] / "run" / "clips").glob("*.mp4"))
    assert films
    assert {next(decode_video(path, threads=1)).image.shape[:2] for path in films} == {(960, 1280)}


def test_clips_are_of_the_small_stream_while_the_main_one_is_away(belt, tmp_path):
    images = [p.image for p in decode_video(belt[0], threads=1)]
    short = write(tmp_path / "short.mp4", images[:12], (1280, 960))
    source = {"uri": short, "id": "belt", "substream": belt[1]}
    told = run_config(config(belt, tmp_path / "run", sources=[source], collect=None))
    films = sorted((tmp_path / "run" / "clips").glob("*.mp4"))
    assert len(films) == 3
    assert {next(decode_video(path, threads=1)).image.shape[:2] for path in films} == {(480, 640)}
    assert told["sinks"]["clips"]["from_small"] == 3


def test_pictures_of_alerts_are_cut_out_of_the_main_stream(run):
    with closing(IncidentBook(run[0] / "book.db")) as book:
        rows = book.query("SELECT jpeg FROM pictures")
    heights = [cv2.imdecode(np.frombuffer(row["jpeg"], np.uint8), 1).shape[0] for row in rows]
    tallest = max(box[3] - box[1] for boxes in boxes_of(run).values() for box in boxes)
    assert len(heights) == 3
    assert max(heights) > 2 * tallest + 2  # of a small picture: with its margins at most twice as tall


def test_a_finished_run_is_collected_again_from_the_stream_of_its_boxes(run, belt, tmp_path):
    assert recorded_sources(run[0] / "run") == {"belt": belt[1]}
    again = collect(run[0] / "run", tmp_path / "again")
    assert {tuple(row.size) for row in again.rows} == {(640, 480)}


def audited_labels(run, folder, form):
    "An audit of the run with its pictures, and labels drawn on them: what was found, as shares or pixels."
    log, (kept, _) = read_log(run[0] / "run" / "log"), audited(run[0] / "run" / "collected")
    audit = draw_audit(log, AuditPlan(looks=12), [(row.source_id, row.frame_id) for row in kept])
    assert take_pictures(audit, folder, None, run[0] / "run" / "collected") == []
    items = []
    for look in audit.looks:
        path = folder / look.picture
        height, width = read_image(path).shape[:2]
        boxes = np.array([d["xyxy"] for d in look.detections]).reshape(-1, 4) * width / look.size[0]
        sides = boxes[:, 2:] - boxes[:, :2]
        ids = [audit.names.index(d["class_name"]) for d in look.detections]
        if form == "yolo":
            rows = np.column_stack([(boxes[:, :2] + sides / 2) / (width, height), sides / (width, height)])
            label = path.with_suffix(".txt")
            label.write_text("".join(f"{c} {' '.join(map(str, row))}\n" for c, row in zip(ids, rows)))
            items.append(LabelledImage(path, audit.names, label))
        else:
            found = [
                {
                    "bbox": [*map(float, (*b[:2], *wh))],
                    "category_id": c,
                    "iscrowd": 0,
                    "area": float(wh.prod()),
                }
                for c, b, wh in zip(ids, boxes, sides)
            ]
            numbers = tuple(range(len(audit.names)))
            items.append(LabelledImage(path, audit.names, None, found, numbers, claimed=(width, height)))
    return audit, items


@pytest.mark.parametrize("form", ["yolo", "coco"])
def test_an_audit_labels_large_pictures_and_scores_the_boxes_of_the_small_ones(run, tmp_path, form):
    audit, items = audited_labels(run, tmp_path, form)
    assert {read_image(item.path).shape[1] for item in items} == {1280}
    assert {look.size for look in audit.looks} == {(640, 480)}
    numbers = score_audit(audit, items, draws=50).numbers
    assert (numbers["precision"].value, numbers["recall"].value) == (1.0, 1.0)


def test_an_audit_takes_no_picture_whose_shares_are_of_another_view(run, tmp_path):
    log, (kept, _) = read_log(run[0] / "run" / "log"), audited(run[0] / "run" / "collected")
    audit = draw_audit(log, AuditPlan(looks=5), [(row.source_id, row.frame_id) for row in kept])
    folder = tmp_path / "collected"
    shutil.copytree(run[0] / "run" / "collected", folder)
    rows = [json.loads(line) for line in (folder / "collected.jsonl").read_text().splitlines()]
    for row in rows:  # as of a small picture that is the middle of the main one
        for found in row["detections"]:
            found["xyxy"] = [160 + 0.75 * found["xyxy"][0], found["xyxy"][1], *found["xyxy"][2:]]
    (folder / "collected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    missing = take_pictures(audit, tmp_path / "audit", None, folder)
    assert [look.frame_id for look in missing] == [look.frame_id for look in audit.looks if look.detections]


def test_metrics_and_readiness_say_how_the_main_stream_is(belt, tmp_path):
    with closing(build_pipeline(config(belt, tmp_path))) as pipeline:
        pipeline.run()
        found = {f.name: f.samples for f in PipelineCollector(pipeline).collect()}
        assert readyz(pipeline.summary(), 10.0)[1]["sources"]["belt"]["main"] == "file"
    assert found["cv_pipeline_main_up"][0].value == 1.0
    assert abs(found["cv_pipeline_main_offset_seconds"][0].value) <= 0.1
    assert {s.labels["stream"] for s in found["cv_pipeline_main_pictures"]} == {"main", "small"}


def test_a_camera_with_one_stream_has_no_such_metrics(belt, tmp_path):
    one = config(belt, tmp_path, sources=[{"uri": belt[1], "id": "belt"}])
    with closing(build_pipeline(one)) as pipeline:
        names = {f.name for f in PipelineCollector(pipeline).collect()}
        assert "main" not in pipeline.summary()["sources"]["belt"]
    assert not any("main_" in name for name in names)


# --- privacy


class FindsNothing:
    "A finder of faces that sees none: the gate's boxes alone must do."

    name = "none"

    def find(self, images):
        return [Detections.empty() for _ in images]


@pytest.fixture(scope="module")
def street(tmp_path_factory):
    folder, film = (
        tmp_path_factory.mktemp("street"),
        Passers(PassersConfig(frames=48, size=(1280, 720), faces=5, plates=0, widths=(50, 110), seed=4)),
    )
    images, truths = zip(*((f.image, t) for f, t in map(film.frame, range(48))))
    return write(folder / "m.mp4", images, (1280, 720)), write(folder / "s.mp4", images, (640, 360)), truths


def test_with_privacy_nothing_uncovered_of_the_main_stream_is_kept(street, tmp_path):
    main, small, truths = street
    out = tmp_path / "run"
    given = {
        "sources": [{"uri": main, "id": "street", "substream": small}],
        "privacy": {"always": True},
        "delivery": {"out": str(out), "parquet": False},
        "collect": {"random": 1.0},
    }
    told = run_config(RunConfig.model_validate(given))["sources"]["street"]["main"]
    assert told["pictures"] >= 12 and told["from_small"]["offset not measured"] >= 10
    whole = {p.number: p.image for p in decode_video(main, threads=1)}
    large, bare, there = 0, 0, 0
    for line in (out / "collected" / "collected.jsonl").read_text().splitlines():
        row = json.loads(line)
        image = read_image(out / "collected" / row["picture"])
        if image.shape[1] == 1280:
            large += 1
            bare += faces_in(image, truths[row["frame_id"]])
            there += faces_in(whole[row["frame_id"]], truths[row["frame_id"]])
    assert large == told["pictures"]
    assert (bare, there >= 12) == (0, True)


def faces_in(image, truth):
    "How many of the faces that show wholly can be seen in a picture."
    inner = [(box + [12, 12, -12, -12]).astype(int) for box in truth.xyxy[truth.visible > 0.9]]
    return sum(image[y1:y2, x1:x2].std() > 12 for x1, y1, x2, y2 in inner)


def test_a_run_that_covers_makes_no_clip_of_packets(street, tmp_path):
    main, small, _ = street
    given = {
        "sources": [{"uri": main, "id": "street", "substream": small}],
        "privacy": {"always": True},
        "events": {"lines": [{"name": "middle", "start": [0.5, 1], "end": [0.5, 0]}]},
        "delivery": {
            "out": str(tmp_path),
            "parquet": False,
            "jsonl": False,
            "clips": {"pre_s": 1, "post_s": 1},
        },
    }
    summary = run_config(RunConfig.model_validate(given))
    assert summary["sinks"]["clips"]["of"] == "covered pictures"


# --- bad pairs


def test_films_of_another_shape_end_the_run_before_it_begins(belt, street, tmp_path):
    pair = {"uri": belt[0], "id": "belt", "substream": street[1]}
    with pytest.raises(ConfigError, match="different shapes"):
        run_config(config(belt, tmp_path, sources=[pair]))


def test_films_the_wrong_way_round_are_named(belt, tmp_path):
    pair = {"uri": belt[1], "id": "belt", "substream": belt[0]}
    with pytest.raises(ConfigError, match="`uri` is the large stream"):
        run_config(config(belt, tmp_path, sources=[pair]))


def test_a_main_film_that_is_missing_is_named(belt, tmp_path):
    pair = {"uri": str(tmp_path / "none.mp4"), "id": "belt", "substream": belt[1]}
    with pytest.raises(SourceError, match="none.mp4"):
        run_config(config(belt, tmp_path, sources=[pair]))


@pytest.mark.parametrize(
    "where",
    [
        {"events": {"zones": [{"name": "door", "polygon": [[0, 0], [300, 0], [300, 200]]}]}},
        {"events": {"lines": [{"name": "door", "start": [10, 10], "end": [10, 200]}]}},
        {"events": {"ignore": [{"polygon": [[0, 0], [300, 0], [300, 200]], "sources": ["belt"]}]}},
        {"privacy": {"masks": [{"polygon": [[0, 0], [300, 0], [300, 200]]}]}},
    ],
)
def test_places_in_pixels_are_refused_where_there_are_two_pictures(belt, tmp_path, where):
    with pytest.raises(ConfigError, match="given in pixels, and the camera has two pictures"):
        run_config(config(belt, tmp_path, **where))


def test_pixels_of_the_small_picture_count_where_it_is_said(belt, tmp_path):
    source = {"uri": belt[0], "id": "belt", "substream": {"uri": belt[1], "pixels": "small"}}
    line = {"lines": [{"name": "middle", "start": [320, 480], "end": [320, 0]}]}
    told = run_config(config(belt, tmp_path / "pixels", sources=[source], events=line))
    assert told["sinks"]["events"]["events"] == 3


def test_shares_mean_the_same_as_on_the_small_stream_alone(run, belt, tmp_path):
    alone = run_config(config(belt, tmp_path, sources=[{"uri": belt[1], "id": "belt"}], collect=None))
    assert alone["sinks"]["events"]["counts"] == run[1]["sinks"]["events"]["counts"]


# --- cameras


def test_a_lost_main_stream_gives_small_pictures_and_comes_back(serve):
    main = serve("--size", "640x480", "--gop", "12")
    small = serve("--size", "320x240", "--gop", "12")
    source = SourceConfig(uri=main.uri, id="gate", substream={"uri": small.uri}, stale_after_s=30)
    (camera,) = open_configured([source])
    newest, ended = [], threading.Event()

    def read():
        for frame in camera:
            newest[:] = [frame]
        ended.set()

    threading.Thread(target=read, daemon=True).start()
    enlarge = MainPictures(lambda: [camera], Privacy(False, "a ball"))
    width = lambda: newest and enlarge(FrameResult(newest[0], Detections.empty())).frame.size[0]
    stream = mains_of([camera])["gate"]
    try:
        until(lambda: width() == 640, LIMIT)
        until(lambda: stream.state == "live", LIMIT)
        main.kill()
        until(lambda: stream.state == "lost", LIMIT)
        until(lambda: width() == 320, LIMIT)
        assert stream.summary()["from_small"]
        serve("--size", "640x480", "--gop", "12", port=main.port)
        until(lambda: width() == 640, LIMIT)
        assert stream.summary()["reconnects"] == 1
        assert camera.status().reconnects == 0  # the small one never noticed
    finally:
        camera.close()
    assert ended.wait(LIMIT)


def test_a_main_stream_that_never_comes_is_waited_for_without_delay(serve):
    small = serve("--size", "320x240", "--gop", "12")
    gone = "rtsp://127.0.0.1:9/main"
    (camera,) = open_configured([SourceConfig(uri=gone, id="gate", substream={"uri": small.uri})])
    with closing(camera):
        frames = iter(camera)
        frame = next(frames)
        assert frame.size == (320, 240)
        until(lambda: camera.status().main["state"] == "lost", LIMIT)
        assert "refused" in camera.status().main["problem"]
        assert camera.main.picture(frame) is None
        assert camera.main.counts == {"main stream lost": 1}
