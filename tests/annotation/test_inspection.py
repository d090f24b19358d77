"""One call for a labelled folder: what is checked in which classes, the verdict against limits, one name for
one picture, and what is kept."""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cv_pipeline.annotation import inspection as I
from cv_pipeline.annotation.annotations import Annotation, write_annotations
from cv_pipeline.annotation.label_errors import KINDS, plant_errors
from cv_pipeline.annotation.qa import Suspect
from cv_pipeline.annotation.review import Review
from cv_pipeline.core.formats import LabelledImage, read_dataset
from cv_pipeline.core.types import ConfigError, DataError, Detections
from cv_pipeline.evaluation.intervals import Verdict, overall
from cv_pipeline.inference.loading import load_model
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.line import write_dataset
from tests.helpers.services import require


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out, line = tmp_path_factory.mktemp("inspection"), FactoryLine(LineConfig(seed=71, density=7))
    write_dataset(out, (line.render(k * 10) for k in range(24)), ["yolo"])
    return out


@pytest.fixture(scope="module")
def s(folder):
    return I.labelled_set(read_dataset(folder), load_model("factory_line", threads=1))


def listed(n: int, labels: int, **more) -> Review:
    return Review(
        [Suspect(f"{i}.jpg", "spurious", 0.9, "why", (0.0, 0.0, 9.0, 9.0), "nut", {}, i) for i in range(n)],
        [],
        [],
        **{"power": dict.fromkeys(KINDS, 0.95), "labels": labels, "pictures": labels, **more},
    )


@given(st.integers(0, 60), st.integers(1, 200), st.floats(0, 1))
def test_the_limit_is_a_share_of_the_labels(n, labels, limit):
    found = {f.what: f.verdict for f in I.judge_review(listed(n, labels), {"doubtful": limit})}
    assert (found["doubtful"] is Verdict.PASS) == (n / labels <= limit) and found["power"] is Verdict.PASS


def test_a_check_that_was_not_made_never_passes():
    blind = listed(0, 100, power={}, left_out=("label errors: no predictions",))
    assert (
        overall(I.judge_review(blind)) is Verdict.INSUFFICIENT
        and "no predictions" in I.judge_review(blind)[-1].reason
    )
    weak = listed(0, 100, power={**dict.fromkeys(KINDS, 0.99), "missed": 0.6, "scaled": None})
    assert "missed 0.60, scaled not measured" in next(
        f.reason for f in I.judge_review(weak) if f.what == "power"
    )
    assert overall(I.judge_review(blind, {"power": None})) is Verdict.PASS
    one = listed(
        0,
        100,
        agreement={
            "verdict": "insufficient",
            "reason": "only one annotator (ana): agreement needs two",
            "alpha": None,
        },
    )
    assert (
        overall(I.judge_review(one)) is Verdict.INSUFFICIENT
        and overall(I.judge_review(one, {"agreement": None})) is Verdict.PASS
    )
    told = lambda low: listed(
        0,
        100,
        agreement={"verdict": "reliable", "reason": "α", "alpha": {"value": 0.9, "low": low, "high": 1.0}},
    )
    assert (
        overall(I.judge_review(told(0.85))) is Verdict.PASS
        and overall(I.judge_review(told(0.79))) is Verdict.FAIL
    )
    with pytest.raises(ConfigError, match="unknown limit: quality"):
        I.judge_review(blind, {"quality": 1})


@pytest.mark.slow
def test_errors_in_the_labels_lengthen_the_list(s):
    shares = [
        len(I.inspect_set(plant_errors(s, share, 1).set).suspects)
        if share
        else len(I.inspect_set(s).suspects)
        for share in (0, 0.02, 0.06)
    ]
    assert shares[0] < shares[1] < shares[2]


@pytest.mark.slow
def test_a_class_that_the_model_does_not_know_is_not_blamed_and_rows_still_point_at_their_labels(s):
    noisy = plant_errors(s, 0.05, 3).set
    lid = np.arange(len(noisy.truth)) % 7 == 0
    strange = replace(
        noisy,
        names=(*noisy.names, "lid"),
        truth=replace(
            noisy.truth, class_id=np.where(lid, len(noisy.names), noisy.truth.class_id).astype(np.int32)
        ),
    )
    r = I.inspect_set(strange, noisy.names)
    assert not [x for x in r.suspects if x.class_name == "lid" and x.kind in KINDS] and any(
        "label errors in lid" in t for t in r.left_out
    )
    found = [x for x in r.suspects if x.row >= 0]
    assert found and all(
        strange.names[strange.truth.class_id[x.row]] == x.class_name
        and np.allclose(strange.truth.xyxy[x.row], x.xyxy)
        for x in found
    )
    assert {b["class"] for b in r.balance} == set(strange.names)
    assert (
        I.inspect_set(strange, strange.names).to_dict() != r.to_dict()
    )  # asked as if it knew, it would blame them


@pytest.mark.slow
def test_a_model_that_knows_a_class_badly_is_doubted_before_the_labels(s):
    nut = s.names.index("nut")
    deaf = replace(
        s,
        predictions=replace(
            s.predictions,
            class_id=np.where(
                s.predictions.class_id == nut, (nut + 1) % len(s.names), s.predictions.class_id
            ).astype(np.int32),
        ),
    )
    assert any(
        t.startswith("label errors in nut") and "the model may not know it" in t
        for t in I.inspect_set(deaf).left_out
    )
    assert not any("the model may not know it" in t for t in I.inspect_set(s).left_out)


def test_labels_are_checked_in_the_classes_of_the_dataset(folder, s):
    items = [
        replace(i, names=tuple(reversed(i.names))) for i in read_dataset(folder)
    ]  # the same numbers now mean other classes
    turned = I.labelled_set(items, load_model("factory_line", threads=1))
    assert turned.names == tuple(reversed(s.names)) and len(turned.predictions) == len(s.predictions)
    assert [turned.names[c] for c in turned.predictions.class_id] == [
        s.names[c] for c in s.predictions.class_id
    ]
    with pytest.raises(DataError, match="no class in common"):
        I.labelled_set(
            [replace(i, names=("a", "b", "c", "d", "e")) for i in items],
            load_model("factory_line", threads=1),
        )


def test_one_name_for_one_picture(s):
    a = Annotation("frames/gate/x.jpg", "ana", tuple(s.size[0]), s.names, Detections.empty())
    by_hash = replace(a, sha256=I.file_sha256(s.paths[3]))
    by_name = replace(a, picture=f"anywhere/{s.images[5]}")
    flat = replace(a, picture=s.images[7].replace("_", "/", 1))
    got, lost = I.named_like([by_hash, by_name, flat, replace(a, picture="other.jpg")], s)
    assert [x.picture for x in got] == [s.images[3], s.images[5], s.images[7], "other.jpg"] and lost == [
        "other.jpg"
    ]


def cameras(tmp_path, *names):
    "A set of pictures at these paths; all of another content."
    for k, n in enumerate(names):
        (tmp_path / n).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / n), np.full((8, 8, 3), k, np.uint8))
    (tmp_path / "label.txt").write_text("0 .5 .5 .5 .5\n")
    return I.labelled_set([LabelledImage(tmp_path / n, ("nut",), tmp_path / "label.txt") for n in names])


def said_about(*pictures):
    return [Annotation(p, "ana", (8, 8), ("nut",), Detections.empty()) for p in pictures]


@pytest.mark.parametrize(
    "told, meant",
    [
        ("images/cam0/0.png", "cam0/0.png"),
        ("images/cam1/0.png", "cam1/0.png"),
        ("cam0/0.png", "cam0/0.png"),
        ("some/where/images/cam1/0.png", "cam1/0.png"),
        ("0.png", None),
        ("cam2/0.png", None),
        ("images/cam2/0.png", None),
        ("images_cam1_0.png", None),
    ],
)
def test_cameras_that_number_alike(tmp_path, told, meant):
    s = cameras(tmp_path, "images/cam0/0.png", "images/cam1/0.png")
    assert s.images == ("cam0/0.png", "cam1/0.png")
    got, lost = I.named_like(said_about(told), s)
    assert (got[0].picture, lost) == ((meant, []) if meant else (told, [told]))


def test_a_picture_that_is_not_there_is_not_its_sibling(tmp_path):
    s = cameras(tmp_path, "images/cam1/0.png", "images/cam1/1.png")
    assert s.images == ("0.png", "1.png")
    assert I.named_like(said_about("images/cam0/0.png", "images/cam1/1.png"), s)[1] == [
        "images/cam0/0.png"
    ], "of the camera beside it"
    got, lost = I.named_like(said_about("a/0.png", "b/0.png", "a/1.png"), s)
    assert lost == ["a/0.png", "b/0.png"] and got[2].picture == "1.png", (
        "two pictures cannot both be this one"
    )


def test_the_content_tells_cameras_apart(tmp_path):
    s = cameras(tmp_path, "images/cam0/0.png", "images/cam1/0.png")
    told = [replace(a, sha256=I.file_sha256(s.paths[1])) for a in said_about("0.png", "images/cam0/0.png")]
    assert [a.picture for a in I.named_like(told, s)[0]] == ["cam1/0.png"] * 2
    (tmp_path / "images/cam0/0.png").write_bytes((tmp_path / "images/cam1/0.png").read_bytes())
    got, lost = I.named_like(told, s)
    assert [a.picture for a in got] == ["0.png", "cam0/0.png"] and lost == ["0.png"], (
        "the same content twice: the name decides"
    )


def test_flat_names_of_folders(tmp_path):
    s = cameras(tmp_path, "images/frames_cam0_0.png", "images/frames_cam1_0.png")
    assert [
        a.picture for a in I.named_like(said_about("frames/cam0/0.png", "all/frames/cam1/0.png"), s)[0]
    ] == ["frames_cam0_0.png", "frames_cam1_0.png"]


@pytest.mark.parametrize(
    "limits",
    [{"power": float("nan")}, {"doubtful": float("inf")}, {"agreement": "0.8"}, {"impossible": True}],
)
def test_limits_that_are_no_numbers(limits):
    with pytest.raises(ConfigError, match=f"not a number: {next(iter(limits))}="):
        I.judge_review(listed(0, 100), limits)
    with pytest.raises(ConfigError, match="not a number"):
        I.InspectionSettings(limits=limits)


@pytest.mark.parametrize(
    "wrong",
    [
        {"least": -0.1},
        {"least": 1.1},
        {"least": float("nan")},
        {"least": "low"},
        {"seed": -1},
        {"seed": 0.5},
        {"pictures": 0},
        {"pictures": 1.5},
        {"planted": 0.3},
        {"planted": -0.01},
        {"planted": None},
        {"threads": -1},
        {"threads": True},
    ],
)
def test_a_wrong_setting_is_named(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)) + ": "):
        I.InspectionSettings(**wrong)


def test_an_unknown_limit_is_refused_before_anything_is_read():
    with pytest.raises(ConfigError, match="unknown limit: doubt"):
        I.InspectionSettings(limits={"doubt": 0.1})


def test_one_class_can_pass(s):
    "Its labels cannot be of another class: that kind is not asked for, the others are."
    parts = (
        replace(s.truth, class_id=np.zeros_like(s.truth.class_id)),
        replace(s.predictions, class_id=np.zeros_like(s.predictions.class_id)),
    )
    one = replace(s, names=("part",), truth=parts[0], predictions=parts[1])
    r = I.inspect_set(one)
    assert r.power["wrong class"] is None
    power = next(f for f in I.judge_review(r, {"power": 0.5}) if f.what == "power")
    assert power.verdict is Verdict.PASS and "one class" in power.reason
    assert (
        next(
            f for f in I.judge_review(replace(r, power={**r.power, "missed": None})) if f.what == "power"
        ).verdict
        is Verdict.INSUFFICIENT
    )
    two = replace(r, balance=[*r.balance, {"class": "other"}])
    assert "wrong class not measured" in next(f for f in I.judge_review(two) if f.what == "power").reason


def test_kept_and_read_again(s, tmp_path):
    one = I.Inspection(s, I.inspect_set(s), tuple(I.judge_review(I.inspect_set(s))))
    one.save(tmp_path)
    back = I.read_inspection(tmp_path)
    assert (
        back.review.to_dict() == one.review.to_dict()
        and back.findings == one.findings
        and len(back.set.truth) == len(s.truth)
    )
    assert "NaN" not in (tmp_path / "qa.json").read_text() and not list(tmp_path.glob(".*"))
    book = json.loads((tmp_path / "qa.json").read_text())
    (tmp_path / "qa.json").write_text(json.dumps({k: v for k, v in book.items() if k != "findings"}))
    with pytest.raises(DataError, match="not an inspection"):
        I.read_inspection(tmp_path)
    with pytest.raises(DataError):
        I.read_inspection(tmp_path / "nowhere")


def test_people_and_files_in_one_call(folder, tmp_path):
    items, said = read_dataset(folder), []
    for who in ("ana", "ben"):
        for i in items:
            h, w = cv2.imread(str(i.path)).shape[:2]
            said.append(Annotation(f"frames/{i.path.name}", who, (w, h), i.names, i.truth((w, h))))
    write_annotations(
        [*said, replace(said[0], boxes=Detections.empty()), replace(said[1], picture="frames/gone.jpg")],
        tmp_path / "a.jsonl",
    )
    one = I.look_into(
        folder, None, [tmp_path / "a.jsonl"], settings=I.InspectionSettings(limits={"power": None})
    )
    assert any("conflicting answers" in t for t in one.review.left_out) and any(
        "1 annotated images are not in the dataset" in t for t in one.review.left_out
    )
    assert one.review.agreement["people"] == ["ana", "ben"] and "agreement" in {f.what for f in one.findings}
    assert "PASS" in I.inspection_html(one) or "FAIL" in I.inspection_html(one)
    with pytest.raises(DataError, match="unknown labels"):
        I.look_into(_other_names(folder, tmp_path / "other"), None, [tmp_path / "a.jsonl"])


def _other_names(folder: Path, out: Path) -> Path:
    "The same pictures with classes that nobody has."
    import shutil

    shutil.copytree(folder, out)
    (out / "data.yaml").write_text(json.dumps({"names": [f"c{k}" for k in range(5)]}))
    return out


def test_pictures_that_are_gone_are_named(tmp_path):
    (tmp_path / "labels.json").write_text(
        json.dumps(
            {
                "images": [{"id": 0, "file_name": "gone.png", "width": 9, "height": 9}],
                "categories": [{"id": 1, "name": "gear"}],
                "annotations": [],
            }
        )
    )
    with pytest.raises(DataError, match="1 of 1 images are missing"):
        I.look_into(tmp_path / "labels.json")


def test_the_sheet_shows_what_can_be_shown(s):
    found = I.inspect_set(plant_errors(s, 0.05, 2).set).suspects
    sheet = I.suspect_sheet(s, found, 4, 2, 100)
    assert sheet.shape[1] == 204 and I.suspect_sheet(replace(s, paths=()), found) is None
    edge = replace(found[0], picture=s.images[0], xyxy=(-5.0, -5.0, 3.0, 700.0))
    assert I.draw_suspect(s, edge, cv2.imread(str(s.paths[0]))).size > 0


@pytest.mark.slow
def test_words_of_people_are_no_markup_on_the_page(s, tmp_path):
    require("papermill")
    from cv_pipeline.reporting.runner import run_report

    evil = "<img src=x onerror=alert(1)>"
    said = {
        "alpha": None,
        "verdict": "insufficient",
        "reason": f"only one annotator ({evil})",
        "people": [evil],
        "units": 0,
        "by_iou": {"0.5": None},
        "by_class": [{"class": evil}],
        "by_person": [{"person": evil}],
        "by_picture": [{"picture": evil}],
        "overlap": None,
    }
    r = replace(
        I.inspect_set(replace(s, predictions=s.predictions[:0])),
        left_out=(f"1 annotated images are not in the dataset, e.g. {evil}",),
        agreement=said,
    )
    I.Inspection(s, r, tuple(I.judge_review(r))).save(tmp_path / "found")
    text = (
        run_report("qa", {"found": str(tmp_path / "found"), "model": None}, root=tmp_path / "reports").folder
        / "report.html"
    ).read_text()
    assert evil not in text and text.count("&lt;img src=x onerror") >= 5


@pytest.mark.slow
def test_the_report_on_the_line_finds_what_was_planted(tmp_path):
    require("papermill")
    from cv_pipeline.reporting.runner import check_parameters, find_template, read_parameters, run_report

    done = run_report("qa", {"pictures": 24, "planted": 0.06, "limits": {"doubtful": 0.1}}, root=tmp_path)
    text = (done.folder / "report.html").read_text()
    assert (
        done.verdict == "FAIL"
        and done.metrics["pictures"] == 24
        and sum(done.metrics["counts"].get(k, 0) for k in KINDS) > 10
        and set(done.metrics["power"]) == set(KINDS)
    )
    assert (
        "image/jpeg" in text
        and "search power" in text
        and (done.folder / "qa.json").exists()
        and "http" not in "".join(line for line in text.splitlines() if "<script" in line and "src=" in line)
    )
    known = read_parameters(find_template("qa"))
    for wrong in ({"budget": "many"}, {"modle": "x"}, {"limits": "strict"}):
        with pytest.raises(ConfigError):
            check_parameters(known, wrong)
