"""Pictures in, pictures out: what is indexed, what is found, and that people are neither kept nor shown."""

import json
from datetime import datetime, timezone

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cv_pipeline.apps.picture_items import items_of
from cv_pipeline.apps.search_files import Matches, PictureIndex, build_index
from cv_pipeline.commands.main import app
from cv_pipeline.core.types import ConfigError, CVPipelineError, DataError
from cv_pipeline.privacy.erasure import erase, plan_erasure
from cv_pipeline.privacy.stores import Subject

NOON = datetime(2026, 6, 1, 12, tzinfo=timezone.utc)


def noisy(seed, size=(48, 64)):
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (4, 4, 3), np.uint8)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)


def write_coco(folder, names=("bolt", "person"), n=6):
    (folder / "images").mkdir(parents=True)
    images, notes = [], []
    for k in range(n):
        cv2.imwrite(str(folder / "images" / f"{k}.png"), noisy(k))
        images.append({"id": k, "file_name": f"{k}.png", "width": 64, "height": 48})
        for c in range(len(names)):
            box = [5 + 20 * c, 5, 20, 30]
            notes.append(
                {
                    "id": len(notes) + 1,
                    "image_id": k,
                    "category_id": c,
                    "bbox": box,
                    "area": 600,
                    "iscrowd": 0,
                }
            )
    kinds = [{"id": i, "name": n} for i, n in enumerate(names)]
    path = folder / "labels.json"
    path.write_text(json.dumps({"images": images, "annotations": notes, "categories": kinds}))
    return path


def write_collection(folder, cameras=("gate", "yard"), n=5):
    lines = []
    for camera in cameras:
        (folder / "frames" / camera).mkdir(parents=True)
        for k in range(n):
            picture = f"frames/{camera}/{k:08d}.jpg"
            cv2.imwrite(str(folder / picture), noisy(hash((camera, k)) % 1000))
            lines.append(
                {
                    "picture": picture,
                    "source_id": camera,
                    "frame_id": k,
                    "captured_at": NOON.isoformat(),
                    "size": [64, 48],
                    "reasons": ["low"],
                    "probability": 1.0,
                    "phash": "0" * 16,
                    "detections": [
                        {"class_name": "bolt", "confidence": 0.5, "xyxy": [5, 5, 30, 40], "tracker_id": k}
                    ],
                }
            )
    (folder / "collected.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


def test_a_picture_is_most_like_itself(tmp_path):
    index = build_index(tmp_path / "i", items_of(write_coco(tmp_path / "d")))
    for k in range(6):
        found = index.like(tmp_path / "d" / "images" / f"{k}.png", 3)
        assert found.rows[0]["picture"].endswith(f"{k}.png")
        assert found.score[0] > 0.999


def test_people_get_no_vector(tmp_path):
    items = list(items_of(write_coco(tmp_path / "d"), boxes=True))
    assert {i.row["class_name"] for i in items} == {"bolt"}
    assert len(items) == 6


def test_a_collection_gives_camera_time_and_track(tmp_path):
    row = next(iter(items_of(write_collection(tmp_path / "c"), boxes=True))).row
    assert (row["camera"], row["frame_id"], row["captured_at"], row["tracker_id"]) == ("gate", 0, NOON, 0)


def test_known_pictures_are_not_added_again(tmp_path):
    data = write_collection(tmp_path / "c")
    index = build_index(tmp_path / "i", items_of(data, boxes=True))
    assert index.add_items(items_of(data, boxes=True)) == (0, 10)
    assert index.add_items(items_of(data)) == (10, 0)


def test_an_index_opens_the_model_that_it_was_built_with(tmp_path):
    build_index(tmp_path / "i", items_of(write_coco(tmp_path / "d")), "factory_line")
    assert PictureIndex(tmp_path / "i").embedder.identity["name"] == "factory_line"


def test_a_model_that_has_changed_is_refused(tmp_path):
    build_index(tmp_path / "i", items_of(write_coco(tmp_path / "d")))
    path = tmp_path / "i" / "index.json"
    path.write_text(path.read_text().replace("light descriptor 1", "light descriptor 0"))
    with pytest.raises(DataError, match="has changed since this index was built"):
        PictureIndex(tmp_path / "i").like(noisy(0))


def test_an_object_with_embed_is_an_embedder(tmp_path):
    class Mean:
        identity = {"name": "mean", "sha256": "a1"}

        def embed(self, images):
            return np.stack([i.reshape(-1, 3).mean(axis=0) for i in images])

    build_index(tmp_path / "i", items_of(write_coco(tmp_path / "d")), Mean())
    assert (
        PictureIndex(tmp_path / "i", embedder=Mean()).like(noisy(2), 1).rows[0]["picture"].endswith("2.png")
    )
    with pytest.raises(DataError, match="these are of light"):
        PictureIndex(tmp_path / "i", embedder="light")


def test_a_missing_picture_is_a_grey_tile(tmp_path):
    row = {"picture": str(tmp_path / "gone.jpg"), "x1": None, "camera": None}
    sheet = Matches([row], [0.5]).sheet()
    assert np.median(sheet) == 128


def test_a_picture_that_cannot_be_checked_is_not_shown(tmp_path):
    def broken(image, *more, **known):
        raise CVPipelineError("no finder", "here")

    cv2.imwrite(str(tmp_path / "a.png"), np.full((48, 64, 3), 7, np.uint8))
    row = {"picture": str(tmp_path / "a.png"), "x1": None, "camera": None}
    assert np.median(Matches([row], [0.5], broken).sheet()) == 128
    assert np.median(Matches([row], [0.5]).sheet()) == 7


def test_a_page_escapes_the_name_of_the_index(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), noisy(0))
    row = {"picture": str(tmp_path / "a.png"), "x1": None, "camera": None}
    page = Matches([row], [0.5], None, "<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in page and "data:image/jpeg;base64," in page


def test_an_unknown_suffix(tmp_path):
    with pytest.raises(ConfigError, match="cannot write .gif"):
        Matches([], []).write(tmp_path / "a.gif")


def test_privacy_erase_takes_a_camera_out_of_an_index(tmp_path):
    data = write_collection(tmp_path / "project" / "c")
    index = build_index(tmp_path / "project" / "search", items_of(data))
    gate = [v.astype(np.float16).tobytes() for v in index.vectors(np.arange(5))]
    erase(tmp_path / "project", Subject("gate"), why="test")
    again = PictureIndex(tmp_path / "project" / "search")
    assert {r["camera"] for r in again.rows()} == {"yard"}
    files = b"".join(p.read_bytes() for p in again.folder.iterdir())
    assert not [v for v in gate if v in files]
    assert b"frames/gate" not in files
    assert not [f for f in plan_erasure(tmp_path / "project", Subject("gate")).found if "search" in f.store]


def run(*words):
    return CliRunner().invoke(app, [str(w) for w in words], env={"COLUMNS": "200", "NO_COLOR": "1"})


def test_the_commands_from_build_to_erase(tmp_path):
    write_coco(tmp_path / "d")
    place, pictures = tmp_path / "i", tmp_path / "d" / "images"
    assert run("search", "build", place, pictures).exit_code == 0
    assert run("search", "add", place, pictures).exit_code == 0
    assert len(PictureIndex(place)) == 6
    asked = run(
        "search",
        "query",
        place,
        pictures / "2.png",
        "--box",
        "5,5,40,40",
        "-k",
        2,
        "--out",
        tmp_path / "o.html",
    )
    assert asked.exit_code == 0, asked.output
    assert "data:image/jpeg" in (tmp_path / "o.html").read_text()
    assert run("search", "measure", place, "--queries", 3).exit_code == 0
    assert run("search", "erase", place, "--picture", pictures / "2.png").exit_code == 0
    assert len(PictureIndex(place)) == 5


@pytest.mark.parametrize(
    "words",
    [
        ("search", "query", "{i}"),
        ("search", "query", "{i}", "{p}", "--run", "{i}"),
        ("search", "query", "{i}", "{p}", "--box", "1,2,3"),
        ("search", "query", "{i}", "{p}", "--out", "a.gif"),
        ("search", "query", "{d}", "{p}"),
        ("search", "erase", "{i}"),
        ("search", "build", "{i}", "{d}"),
        ("search", "build", "{n}", "{i}/nothing"),
        ("search", "measure", "{i}", "--kind", "best"),
    ],
)
def test_bad_usage_is_a_typed_error(tmp_path, words):
    write_coco(tmp_path / "d")
    build_index(tmp_path / "i", items_of(tmp_path / "d" / "labels.json"))
    known = {"i": tmp_path / "i", "d": tmp_path / "d", "n": tmp_path / "n"}
    known["p"] = tmp_path / "d" / "images" / "0.png"
    done = run(*(w.format(**known) for w in words))
    assert isinstance(done.exception, ConfigError | DataError) or done.exit_code == 2, done.output
