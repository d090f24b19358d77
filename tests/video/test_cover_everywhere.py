"""Every place where a picture leaves memory goes through video.cover.

The package is searched for calls that encode, write, copy or send pictures. Each of them is in one of the two
tables below: COVERED names the function and what in it covers, EXEMPT gives the reason why nothing has to be
covered there. A new writer of pictures that is in neither fails here.
"""

import ast
import importlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from cv_pipeline.core.types import Detections, Frame, FrameResult
from cv_pipeline.synthetic.passers import Passers, PassersConfig, draw_face
from cv_pipeline.video.cover import GREY, PictureCover, PictureUse, Privacy, encoded

ROOT = Path(__file__).resolve().parents[2]
LIB = ROOT / "cv_pipeline"
WRITERS = {  # functions that write, encode, copy or show pictures
    "imwrite",
    "imencode",
    "imwritemulti",
    "VideoWriter",
    "encode_jpeg",
    "savefig",
    "tofile",
    "contact_sheet",
    "jpeg",
    "encoded",
    "video_frame",
    "savez_compressed",
    "fo.Sample",
    "VideoSink",
    "CollectSink",
    "LiveCollection",
    "Shelf",
    "remuxed",
    "film_of",
    "copy_packets",
    "let_copy",
}
COVERED = {  # module, function → what has to be in it
    ("annotation/collect", "encoded"): "self.cover(",
    ("annotation/collect", "_keep"): "shelf.encoded(",
    ("annotation/review", "_fo_samples"): "cover.shown(",
    ("annotation/suggest", "_request"): "encoded(",  # suggest covers what leaves for another host
    ("annotation/inspection", "suspect_sheet"): "cover(",
    ("evaluation/failures", "_samples"): "cover.shown(",
    ("evaluation/worst", "worst_sheet"): "cover(",
    ("monitoring/audit", "_picture"): "encoded(",  # its callers cover: see below
    ("release/bundles", "_encoded"): "imencode",  # write_golden covers what is chosen from
    ("training/samples", "_stage_one"): "made.cover(",
    ("video/cover", "file"): "self(image",
    ("video/cover", "_shown"): "cover(image)",
    ("video/cover", "encoded"): "imencode",  # gets what it is given
    ("service/assembly", "_own_sinks"): "VideoSink(",  # run_config attaches them: behind the gate
    ("annotation/collect", "open_collect"): "LiveCollection(",  # the same
    ("annotation/collect", "_held"): "Shelf(",  # of a CollectSink, which keeps pictures: behind the gate
    ("release/shadow", "_keep"): "s._shelf.cover = PictureCover(",
    ("privacy/pictures", "_blurred_film"): "Covered(",
    ("privacy/pictures", "blur_files"): "cover(image",
    ("video/sinks", "__init__"): "av.open",
    ("video/sinks", "write"): "video_frame",  # VideoSink keeps pictures: it is behind the gate
    ("monitoring/upkeep", "save"): "savez_compressed",  # _store covers the background
    ("alerts/daemon", "_finish"): "encoded(",  # AlertSink keeps pictures: it is behind the gate
    ("commands/rules", "rules_draw"): "PictureCover(",
    ("apps/context", "_request"): "self._cover(image)",
    ("apps/picture_map", "_thumbnail"): "encoded(",  # of what `add` has covered
    ("apps/browse", "_file_of"): "cover(picture_of(row)",
    ("apps/browse", "_samples"): "_file_of(m, i, cover",
    ("apps/search_files", "write"): "self.sheet()",  # of covered tiles: see below
    ("apps/search_files", "_shown"): "self.sheet()",
    ("apps/search_files", "_sheet"): "_tile(",
    ("apps/anomaly_model", "odd_sheet"): "PictureCover(",
    ("reporting/panels", "jpeg"): "self.covered(number)",
    ("reporting/thresholds", "explorer_picture"): "x.album.jpeg(",
    ("reporting/scrubber", "picture"): "self.album.jpeg(",
    ("reporting/failure_browser", "browser_picture"): "x.album.jpeg(",
    ("reporting/draw_zones", "_card"): "editor.image",  # `draw_zones` has covered it
    ("reporting/draw_zones", "_build"): "editor.image",
    ("alerts/live", "_draw"): "jpeg(",  # `take` hands over what the gate let through: see below
}
COVERED |= {
    ("video/clips", "_take_shot"): "encoded(frame.image",  # ClipSink keeps pictures: it is behind the gate
    ("video/clips", "film_of"): "_decoded(data)",  # of what `_take_shot` was given
    ("video/clips", "_film"): "not in (sink.rings or {})",  # packets only by permission: see below
    ("service/assembly", "let_copy"): "isinstance(sink, ClipSink)",  # its callers ask: see below
    ("service/assembly", "run_config"): "if copies_packets(config, pipeline.privacy):",
    ("service/reload", "get_ready"): "copies_packets(new, pipeline.privacy)",
    ("video/clips", "remuxed"): "known.streams",  # packets; only `_copy_of` calls it
    ("video/clips", "_copy_of"): "ring: PacketRing",  # only `_film` calls it, for rings that it was let have
}
ALSO = {  # where the cover is one call further away
    ("apps/picture_map", "add"): "self.cover(item.image",
    ("apps/search_files", "_tile"): "m.cover(image",
    ("reporting/panels", "covered"): "self.cover(self.read(number))",
    ("reporting/draw_zones", "draw_zones"): "ZoneEditor(covered",
    ("alerts/live", "take"): "self._gate.take(result)",
    ("annotation/suggest", "suggest"): "self.cover(image)",
    ("monitoring/audit", "take_pictures"): "cover(",
    ("monitoring/drift_report", "drifted_pictures"): "cover(",
    ("monitoring/upkeep", "_store"): "covered_reference(",
    ("release/bundles", "write_golden"): "map(cover, pictures)",
    ("annotation/label_studio", "_send_tasks"): "_covered(part",
    ("annotation/collect", "_gathered"): "shelf.cover = ",
    ("service/assembly", "build_pipeline"): "for_the_model(",
    ("service/assembly", "__call__"): "for_the_model(",
    ("service/assembly", "for_the_model"): "CoveredSource(",
    ("video/pipeline", "_behind_gate"): "behind_gate(",
    ("service/assembly", "copies_packets"): "not privacy.on",
    ("video/clips", "__init__"): "None",
}
EXEMPT = {  # module, function → why nothing has to be covered
    ("core/viz", "jpeg"): "encodes what it is given, for notebooks",
    ("video/clips", "stream_header"): "in memory, of a ring; see `_film`",
    ("synthetic/conditions", "compressed"): "drawn pictures, in memory",
    ("synthetic/line", "*"): "drawn pictures",
    ("service/apps_demo", "*"): "drawn pictures",
    ("synthetic/regions", "write_task_data"): "drawn pictures",
    ("monitoring/season_line", "*"): "drawn pictures",
    ("monitoring/trust", "write_example"): "drawn pictures",
    ("commands/main", "*"): "a plot of latencies",
    ("service/privacy_demo", "*"): "drawn pictures",
    ("service/erasure_demo", "*"): "drawn pictures",
    ("service/scale_demo", "batch_it"): "drawn pictures",
    ("alerts/snapshots", "plan_bytes"): "a floor plan that the user names",
    ("commands/scale", "_offer"): "a load test: the user names the folder of pictures and the address",
}


def called(node: ast.Call) -> str:
    "The last part of a called name; of FiftyOne the whole."
    name = ast.unparse(node.func)
    return name if name.startswith("fo.") else name.rpartition(".")[2]


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def writes(tree: ast.AST) -> dict[str, set[str]]:
    "Innermost function → writers that it calls; '' for the module itself."
    found: dict[str, set[str]] = {}
    inside: dict[int, str] = {}
    for function in functions(tree):  # ast.walk goes from the outside to the inside
        for node in ast.walk(function):
            inside[id(node)] = function.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) in WRITERS:
            found.setdefault(inside.get(id(node), ""), set()).add(called(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "av.open" and _for_writing(node):
            found.setdefault(inside.get(id(node), ""), set()).add("av.open")
    return found


def _for_writing(node: ast.Call) -> bool:
    return any(isinstance(a, ast.Constant) and a.value == "w" for a in node.args)


def modules() -> dict[str, ast.Module]:
    files = (p for p in sorted(LIB.rglob("*.py")) if p.name not in ("_modidx.py", "__init__.py"))
    return {p.relative_to(LIB).with_suffix("").as_posix(): ast.parse(p.read_text("utf-8")) for p in files}


MODULES = modules()
FOUND = {
    (module, function): what for module, tree in MODULES.items() for function, what in writes(tree).items()
}


def known(place: tuple[str, str]) -> bool:
    return place in COVERED or place in EXEMPT or (place[0], "*") in EXEMPT


def test_every_writer_of_pictures_is_covered_or_has_a_reason():
    strange = {f"{m}.{f}": sorted(what) for (m, f), what in FOUND.items() if not known((m, f))}
    assert strange == {}, (
        "a picture may leave memory uncovered: go through video.cover, or give the reason here"
    )


def test_the_tables_name_nothing_that_has_gone():
    assert {place for place in COVERED if place not in FOUND} == set()
    gone = {p for p in EXEMPT if p[1] != "*" and p not in FOUND}
    assert gone == set()
    assert {m for m, f in EXEMPT if f == "*" and not any(m == module for module, _ in FOUND)} == set()


@pytest.mark.parametrize("place, words", [*COVERED.items(), *ALSO.items()], ids=lambda v: str(v))
def test_the_cover_is_where_the_table_says(place, words):
    module, name = place
    sources = [ast.unparse(f) for f in functions(MODULES[module]) if f.name == name]
    assert any(words in source for source in sources), f"{module}.{name} does not hold {words!r}"


def test_a_new_writer_would_be_found():
    tree = ast.parse("def keep(frame):\n    cv2.imwrite('a.jpg', frame)\n    av.open('a.mp4', 'w')\n")
    assert writes(tree) == {"keep": {"imwrite", "av.open"}}


def sinks() -> list[type]:
    "Every class of the package that writes results."
    found = []
    for module, tree in MODULES.items():
        for node in (n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)):
            methods = {f.name: f for f in node.body if isinstance(f, ast.FunctionDef)}
            takes = "write" in methods and [a.arg for a in methods["write"].args.args[1:]] == ["result"]
            if takes and "close" in methods:
                found.append((module, node.name))
    return found


NO_PICTURES = {  # sinks that write rows, numbers or nothing
    "JsonlSink",
    "ParquetSink",
    "EventSink",
    "TelemetrySink",
    "DeliverySink",
    "DueSink",  # of a load test: times
    "ForwardSink",
    "ShadowSink",  # its shelf covers
    "SiteSink",
    "LiveSink",  # has a gate of its own
    "CoverGate",
    "Covered",
    "Sink",
    "SummarySink",
    "CallbackSink",  # the user's function: `pictures` is its argument
    "PluginSink",  # as its sink says: see below
}


@pytest.mark.parametrize("module, name", sinks(), ids=lambda v: v)
def test_every_sink_says_what_it_does_with_pictures(module, name):
    kind = getattr(importlib.import_module(f"cv_pipeline.{module.replace('/', '.')}"), name)
    declared = getattr(kind, "pictures", None)
    assert name in NO_PICTURES or declared in (PictureUse.KEEPS, PictureUse.BLANK)


@pytest.mark.slow
def test_the_sinks_that_keep_pictures_are_those_known_to():
    keeps = {
        name
        for module, name in sinks()
        if isinstance(
            getattr(
                getattr(importlib.import_module(f"cv_pipeline.{module.replace('/', '.')}"), name),
                "pictures",
                None,
            ),
            PictureUse,
        )
    }
    assert {"VideoSink", "CollectSink"} <= keeps


def test_a_plugin_is_behind_the_gate_unless_it_says_that_it_keeps_none():
    from cv_pipeline.service.assembly import PluginSink

    class Silent:
        def write(self, result): ...
        def close(self): ...

    class Rows(Silent):
        pictures = PictureUse.NONE

    assert PluginSink("mail", Silent()).pictures is PictureUse.BLANK
    assert PluginSink("rows", Rows()).pictures is PictureUse.NONE


# --- the writers themselves, with a face in the picture


@pytest.fixture(scope="module")
def portrait():
    image, head = np.full((240, 320, 3), 140, np.uint8), draw_face(3, 90)
    h, w = head.alpha.shape
    image[20 : 20 + h, 60 : 60 + w] = head.image
    return image, tuple(int(v) for v in np.array(head.box) + (60, 20, 60, 20))


def uncovered(image: np.ndarray, box) -> float:
    "Share of a box that is not grey, with room for JPEG."
    x1, y1, x2, y2 = box
    return float((np.abs(image[y1:y2, x1:x2].astype(int) - GREY).max(axis=2) > 12).mean())


def person_result(portrait, number=0):
    from datetime import datetime, timedelta, timezone

    at = datetime(2026, 6, 1, 12, tzinfo=timezone.utc) + timedelta(seconds=number / 10)
    return FrameResult(Frame(portrait[0], "gate", number, at), Detections.empty(), ("person",))


def test_a_collection_that_is_filled_afterwards(tmp_path, portrait):
    from cv_pipeline.annotation.cases import REASON_BIT, CollectPolicy
    from cv_pipeline.annotation.collect import Shelf

    shelf = Shelf(tmp_path, CollectPolicy(random=1))
    shelf.cover = PictureCover(Privacy(True, "tested"), ("person",))
    shelf.offer(person_result(portrait).frame, REASON_BIT["random"], [])
    shelf.close()
    (picture,) = tmp_path.rglob("*.jpg")
    assert uncovered(cv2.imread(str(picture)), portrait[1]) < 0.05


def test_the_worst_pictures_of_an_evaluation(monkeypatch, portrait):
    from dataclasses import replace

    from cv_pipeline.evaluation import worst
    from tests.helpers.eval_sets import random_set

    seen = []
    monkeypatch.setattr(worst, "draw_case", lambda s, case, image: seen.append(image) or image)
    few = replace(random_set(3, classes=1), names=("person",))
    worst.worst_sheet(few, 0.4, most=2, picture=lambda i: portrait[0])
    assert seen
    assert max(uncovered(image, portrait[1]) for image in seen) < 0.05


def test_golden_pictures_are_chosen_from_covered_ones(monkeypatch, tmp_path, portrait):
    from types import SimpleNamespace

    from cv_pipeline.release import bundles

    seen = []
    monkeypatch.setattr(bundles, "choose_golden", lambda model, pictures, n: seen.extend(pictures) or seen)
    monkeypatch.setattr(bundles, "_encoded", lambda pictures, limit: [])
    model = SimpleNamespace(
        manifest=SimpleNamespace(names=("person",)),
        postprocess=SimpleNamespace(rules=SimpleNamespace(floor=np.zeros(1))),
        identity={},
    )
    bundles.write_golden(model, [portrait[0]], tmp_path)
    assert uncovered(seen[0], portrait[1]) < 0.05


def test_pictures_for_annotators_are_covered_and_count_as_the_same(tmp_path, portrait):
    from cv_pipeline.annotation.annotations import Draft
    from cv_pipeline.annotation.label_studio import _covered

    (tmp_path / "a.png").write_bytes(encoded(portrait[0], ".png"))
    draft = Draft("a.png", tmp_path / "a.png", (320, 240), ("person",))
    (sent,) = _covered([draft], tmp_path / "covered")
    assert sent.sha256 == draft.sha256
    assert sent.path != draft.path
    assert uncovered(cv2.imread(str(sent.path)), portrait[1]) < 0.05


def test_pictures_without_people_are_sent_as_they_are(tmp_path, portrait):
    from cv_pipeline.annotation.annotations import Draft
    from cv_pipeline.annotation.label_studio import _covered

    (tmp_path / "a.png").write_bytes(encoded(portrait[0], ".png"))
    draft = Draft("a.png", tmp_path / "a.png", (320, 240), ("gear",))
    assert _covered([draft], tmp_path / "covered")[0].path == draft.path


@pytest.mark.slow
def test_a_film_and_a_collection_of_a_run_over_people(tmp_path):
    "The whole way: a pipeline with a model of people, its film and its collection."
    from cv_pipeline.annotation.cases import CollectPolicy
    from cv_pipeline.annotation.collect import CollectSink
    from cv_pipeline.inference.loading import load_model
    from cv_pipeline.video.decoding import decode_video
    from cv_pipeline.video.pipeline import Pipeline
    from cv_pipeline.video.sinks import VideoSink

    film = Passers(PassersConfig(frames=24, faces=4, plates=0, seed=3))
    model = load_model("factory_line", threads=1).with_postprocess(
        conf=0.999
    )  # nothing is drawn over the cover
    try:
        pipeline = Pipeline([film], model)
        pipeline.privacy = Privacy(True, "tested")
        pipeline.attach(
            [VideoSink(tmp_path), CollectSink(tmp_path / "c", CollectPolicy(random=1, hamming=-1))]
        )
        pipeline.run()
    finally:
        model.close()
    shown = {n: frame.image for n, frame in enumerate(decode_video(tmp_path / "passers.mp4"))}
    assert len(shown) == 24
    kept = sorted((tmp_path / "c").rglob("*.jpg"))
    assert len(kept) == 24
    leaks = 0
    for n in range(24):
        frame, truth = film.frame(n)
        for box in truth.xyxy[truth.visible > 0.5].round().astype(int):
            leaks += uncovered(shown[n], box) > 0.3
            leaks += uncovered(cv2.imread(str(kept[n])), box) > 0.3
    assert leaks == 0
