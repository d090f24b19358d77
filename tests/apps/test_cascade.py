"""Cascades: what goes where, limits with promises, costs, the folder as a model, and bad input."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from cv_pipeline.apps.cascade import (
    CascadeSettings,
    Costs,
    Example,
    costs_of,
    fit_cascade,
    look_at,
    prove_limits,
    save_cascade,
    timed,
)
from cv_pipeline.core.files import write_json
from cv_pipeline.core.model_files import artefact_sha256, model_parts
from cv_pipeline.core.types import ConfigError, DataError, Detections, ModelSpecMismatch
from cv_pipeline.inference.choice import own_file
from cv_pipeline.inference.loading import CASCADE, Stages, cut_out, load_model, staged
from cv_pipeline.inference.manifest import ModelManifest, PostprocessSpec, PreprocessSpec
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from tests.helpers.services import require

CANVAS = PreprocessSpec((64, 64), layout="nhwc-uint8")


class Imitation:
    """A model that reads its result from the picture: the grey level of pixel (0, k) is the score of class k;
    a detector sees one box, x1 = 8 … y2 = 40, where that is above its conf."""

    def __init__(self, task, names=("cat", "dog"), row=0, cost=0):
        head = {"detect": "yolov8", "multilabel": "sigmoid", "classify": "softmax"}[task]
        conf = PostprocessSpec(head=head, conf=0.25)
        own = PreprocessSpec((64, 64))
        self.manifest = ModelManifest(
            f"{task}-imitation", "m.onnx", names, task=task, postprocess=conf, preprocess=own
        )
        self.row, self.cost, self.asked, self.conf, self.path = row, cost, 0, 0.25, None
        self.preprocess, self.postprocess, self.backend, self.max_batch = self, self, self, 8
        self.identity = {"name": task, "version": "0", "file": "m.onnx", "sha256": "a" * 64}

    def scores(self, image):
        return image[self.row, : len(self.manifest.names), 0] / 255

    def batch(self, images):
        self.asked += len(images)
        return np.array([self.scores(i) for i in images], np.float32), None

    def infer(self, batch):
        return batch

    def checked(self, raw, n):
        return raw

    def with_postprocess(self, conf=None, **_):
        other = Imitation.__new__(Imitation)
        other.__dict__ |= {**self.__dict__, "conf": conf, "of": self}
        return other

    def predict(self, images):
        self.asked += len(images)
        if "of" in self.__dict__:
            self.of.asked += len(images)
        made = []
        for image in images:
            s = self.scores(image)
            ids = np.flatnonzero(s > self.conf)
            made.append(Detections([[8, 8, 40, 40]] * len(ids), s[ids], ids))
        return made


def picture(*rows):
    "A picture of 64 × 64 with scores written into its first rows."
    image = np.full((64, 64, 3), 114, np.uint8)
    for y, scores in enumerate(rows):
        image[y, : len(scores)] = np.round(255 * np.array(scores))[:, None]
    return image


def test_what_the_first_stage_does_not_pass_is_not_shown_to_the_large_model():
    large = Imitation("detect", row=1)
    stages = Stages(Imitation("multilabel"), large, limits={"first": 0.5})
    found = staged(stages, [picture((0.4, 0.2), (0.9, 0.9)), picture((0.1, 0.8), (0.9, 0.3))])
    assert [len(f) for f in found] == [0, 2] and large.asked == 1
    assert dict(stages.counts) == {"pictures": 2, "passed": 1, "large": 1}


def test_only_targets_are_found():
    stages = Stages(
        Imitation("multilabel"), Imitation("detect", row=1), limits={"first": 0.5}, targets=("dog",)
    )
    found = staged(stages, [picture((0.9, 0.1), (0.9, 0.9)), picture((0.1, 0.9), (0.9, 0.9))])
    assert [f[:, 5].tolist() for f in found] == [[], [1.0]]


def crops(first, second, third):
    "A picture whose box begins at (8, 8), where the second stage reads it without a margin."
    image = picture((first, 0.0), (third, 0.0))
    image[8, 8:10] = np.round(255 * np.array(second))[:, None]
    return image


@pytest.mark.parametrize(
    "second, wanted, asked", [((0.1, 0.05), [], 0), ((0.95, 0.2), [0.95], 0), ((0.5, 0.2), [0.7], 1)]
)
def test_the_second_stage_rejects_accepts_or_doubts(second, wanted, asked):
    large = Imitation("detect", row=1)
    limits = {"first": 0.5, "reject": 0.3, "accept": 0.9}
    stages = Stages(Imitation("detect"), large, Imitation("classify"), limits, margin=0.0)
    [found] = staged(stages, [crops(0.8, second, 0.7)])
    assert np.allclose(found[:, 4], wanted, atol=0.01) and large.asked == asked


def test_without_limits_of_the_second_stage_the_large_model_decides_all():
    large = Imitation("detect", row=1)
    limits = {"first": 0.5, "reject": None, "accept": None}
    stages = Stages(Imitation("detect"), large, Imitation("classify"), limits, margin=0.0)
    staged(stages, [crops(0.8, (0.0, 0.0), 0.7), crops(0.8, (1.0, 1.0), 0.7)])
    assert large.asked == 2


def test_a_second_stage_cannot_accept_what_has_no_box():
    large = Imitation("detect", row=1)
    limits = {"first": 0.5, "reject": 0.1, "accept": 0.2}
    stages = Stages(Imitation("multilabel"), large, Imitation("classify"), limits)
    staged(stages, [picture((0.9, 0.9), (0.9, 0.9))])
    assert large.asked == 1


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (-5, -5, 70, 70), (63, 63, 64, 64), (10, 10, 10, 10)])
def test_a_crop_is_never_empty(box):
    assert min(cut_out(picture(), box, 0.1).shape[:2]) >= 2


@pytest.mark.parametrize(
    "how, what",
    [
        ({"first": Imitation("detect"), "large": Imitation("multilabel")}, "stage 'large'"),
        ({"second": Imitation("detect")}, "stage 'second'"),
        ({"targets": ("bird",)}, "does not know bird"),
    ],
)
def test_models_that_do_not_fit(how, what):
    with pytest.raises(ConfigError, match=what):
        Stages(**{"first": Imitation("multilabel"), "large": Imitation("detect"), **how})


def examples(n, good=lambda k: 0.9, empty=40, scores=(0.05,)):
    "Tracks of two frames each, of which the first stage sees the second one better; and empty pictures."
    box, made = np.array([[8, 8, 40, 40]], np.float32), []
    for k in range(n):
        for s in (0.3 * good(k), good(k)):
            made.append(Example(picture((s, 0.0), (0.9, 0.0)), box, ["cat"], [k]))
    return made + [
        Example(picture((scores[k % len(scores)], 0.0)), np.zeros((0, 4)), [], []) for k in range(empty)
    ]


def pair(**more):
    return Stages(Imitation("multilabel"), Imitation("detect", row=1), **more)


def test_a_track_counts_once_by_its_best_frame():
    seen = look_at(pair(), examples(160), CascadeSettings())
    limits, [proven] = prove_limits(seen, False, CascadeSettings())
    assert (proven.n, proven.good) == (160, 160) and 0.85 < limits["first"] < 0.91


def test_too_few_tracks_are_named_with_the_number_that_is_needed():
    with pytest.raises(DataError, match="149 tracks without a miss") as e:
        prove_limits(look_at(pair(), examples(148), CascadeSettings()), False, CascadeSettings())
    assert "1 more without a further error" in str(e.value)


def test_a_first_stage_that_misses_too_much_has_no_limit():
    with pytest.raises(DataError, match="not good enough"):
        blind = examples(300, lambda k: 0.9 if k % 5 else 0.0)
        prove_limits(look_at(pair(), blind, CascadeSettings()), False, CascadeSettings())


def test_the_promise_holds_on_other_tracks():
    rng = np.random.default_rng(0)
    scores = rng.beta(5, 2, 4000)
    seen = look_at(pair(), examples(600, lambda k: scores[k]), CascadeSettings())
    limits, _ = prove_limits(seen, False, CascadeSettings())
    assert (scores[600:] <= limits["first"]).mean() <= 0.02


def test_a_second_stage_has_promises_of_its_own():
    first, second = Imitation("detect"), Imitation("classify")
    stages = Stages(first, Imitation("detect", row=1), second, margin=0.0)
    box, made = np.array([[8, 8, 40, 40]], np.float32), []
    for k in range(500):
        good = k % 2 == 0
        image = crops(0.8, (0.9, 0.0) if good else (0.2, 0.0), 0.9)
        made.append(Example(image, box if good else np.zeros((0, 4)), ["cat"] * good, [k] * good))
    settings = CascadeSettings(miss=0.05)
    limits, promises = prove_limits(look_at(stages, made, settings), True, settings)
    assert [p.promise.text for p in promises] == ["recall>=0.975@97.5%"] * 2 + ["precision>=0.95@95%"]
    assert 0.2 <= limits["accept"] < 0.9 and 0.85 < limits["reject"] < 0.91


def test_the_cost_of_a_frame_and_the_break_even_prevalence():
    c = Costs(1.0, 0.5, 10.0, (0.2, 2.0), (0.1, 0.8))
    assert c.of(0.0) == pytest.approx(1 + 0.1 + 1.0) and c.of(1.0) == pytest.approx(1 + 1.0 + 8.0)
    assert c.of(c.break_even if c.break_even < 1 else 1.0) <= 10.0 + 1e-9
    assert Costs(1.0, 0.0, 10.0, (0, 0), (0.0, 1.0)).break_even == pytest.approx(0.9)
    assert Costs(11.0, 0.0, 10.0, (0, 0), (0.0, 1.0)).break_even == 0.0
    assert Costs(1.0, 0.0, 10.0, (0, 0), (0.0, 0.5)).break_even == 1.0


def ticking(*costs):
    "A clock on which calls take these seconds, one after the other, again and again."
    state = {"now": 0.0, "calls": 0}

    def clock():
        if state["calls"] % 2:
            state["now"] += costs[state["calls"] // 2 % len(costs)]
        state["calls"] += 1
        return state["now"]

    return clock


def test_calls_are_timed_in_turn():
    order = []
    ms = timed({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, ticking(1.0, 2.0))
    assert order == ["a", "b"] * 3 and ms == {"a": 1000.0, "b": 2000.0}


def costs(clock, second=None, limits=None):
    stages = pair(limits=limits or {"first": 0.5, "reject": 0.1, "accept": None}, second=second)
    seen = look_at(stages, examples(160), CascadeSettings())
    return costs_of(stages, seen, [picture()] * 8, clock)


def test_a_first_stage_as_slow_as_the_large_model_is_named():
    with pytest.raises(ConfigError, match="the first stage costs"):
        costs(ticking(1.0, 1.0))


def test_a_second_stage_as_slow_as_the_large_model_is_named():
    with pytest.raises(ConfigError, match="the second stage costs"):
        costs(ticking(0.1, 1.0, 4.0), Imitation("classify"))


def test_costs_follow_from_what_was_seen():
    made = costs(ticking(0.08, 0.8))
    assert (made.first, made.large) == (pytest.approx(10), pytest.approx(100))
    assert made.asks == (0.0, 0.5)  # of each track the first frame stays below the limit


@pytest.mark.parametrize(
    "how", [{"miss": 0}, {"confidence": 1}, {"precision": 2}, {"margin": -1}, {"overlap": 0}]
)
def test_bad_settings(how):
    with pytest.raises(ConfigError, match="cascade"):
        CascadeSettings(**how)


def test_nothing_that_matters_is_labelled():
    with pytest.raises(DataError, match="no object of dog"):
        chosen = CascadeSettings(targets=("dog",))
        fit_cascade(Imitation("multilabel"), Imitation("detect", row=1), examples(160), settings=chosen)


def test_a_stage_without_a_file_is_not_written(tmp_path):
    stages = pair(limits={"first": 0.5})
    seen = look_at(stages, examples(160), CascadeSettings())
    limits, promises = prove_limits(seen, False, CascadeSettings())
    made = fit_cascade.__globals__["Cascade"](
        stages, promises, Costs(1, 0, 9, (0, 0), (0, 1)), CascadeSettings()
    )
    with pytest.raises(ConfigError, match="is not a file here"):
        save_cascade(made, tmp_path / "c")
    assert not (tmp_path / "c").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A cascade of the bundled detector behind a head on its first layers, with limits that are not proven."
    require("onnx")
    from cv_pipeline.apps.cascade import Cascade
    from cv_pipeline.training.feature_head import HeadSettings, fit_head

    root, large = tmp_path_factory.mktemp("cascade"), load_model("factory_line", threads=1)
    lines = [FactoryLine(LineConfig(seed=s, density=0.5, hand_every=0, size=(320, 240))) for s in range(4)]
    shots = [f for line in lines for f in line.frames(20 * 60, every=60)]
    y = np.array([[len(t.detections) > 0] for _, t in shots])
    fit_head(
        large, [f.image for f, _ in shots], y, ["part"], root / "small", HeadSettings(stride=8, imgsz=96)
    )
    stages = Stages(
        load_model(root / "small", threads=1), large, limits={"first": 0.3, "reject": None, "accept": None}
    )
    save_cascade(Cascade(stages, [], Costs(1, 0, 9, (0, 0), (0, 1)), CascadeSettings()), root / "c")
    return root / "c"


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "c")
    return tmp_path / "c"


def test_the_folder_is_a_model_and_finds_what_the_large_one_finds(folder):
    model, large = load_model(folder, threads=1), load_model("factory_line", threads=1)
    frame = FactoryLine(LineConfig(seed=8, hand_every=0, density=6)).render(40)[0].image
    [ours], [theirs] = model.predict([frame]), large.predict([frame])
    assert (
        len(ours) == len(theirs) > 0 and np.abs(np.sort(ours.xyxy, 0) - np.sort(theirs.xyxy, 0)).max() < 1.0
    )
    [none] = model.predict([np.full((240, 320, 3), 90, np.uint8)])
    assert len(none) == 0 and model.backend.stages.counts["large"] == 1


def test_many_pictures_of_different_sizes_in_one_call(folder):
    model = load_model(folder, threads=1)
    line = FactoryLine(LineConfig(seed=9, hand_every=0, density=2))
    shots = [line.render(60 * k)[0].image[: 480 - 8 * k] for k in range(20)]
    alone = [len(model.predict([i])[0]) for i in shots]
    assert [len(d) for d in model.predict(shots)] == alone


def test_all_files_of_a_cascade_are_its_parts(folder):
    names = [str(p.relative_to(folder)) for p in model_parts(folder / "stages.cascade")]
    assert names[0] == "stages.cascade" and {"first/model.onnx", "large/model.onnx"} < set(names)
    assert load_model(folder, threads=1).manifest.sha256 == artefact_sha256(folder / "stages.cascade")


def test_a_cascade_has_one_file_to_choose_from(folder):
    assert own_file(load_model(folder, threads=1).manifest).backend == "cascade"
    assert load_model(folder, threads=1, backend="cascade").backend.state == "ready"


def test_a_closed_cascade_is_opened_again(folder):
    model = load_model(folder, threads=1)
    model.close()
    model.reopen().warmup()


def edited(folder, **more):
    book = json.loads((folder / "stages.cascade").read_text())
    write_json(folder / "stages.cascade", {**book, **more})
    known = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", {**known, "sha256": ""})
    return folder


@pytest.mark.parametrize(
    "more, what",
    [
        ({"format": "other"}, "is expected"),
        ({"files": None}, "lists its files"),
        ({"files": ["../../etc/passwd"]}, "outside of its folder"),
        ({"files": ["first/none.onnx"]}, "is missing"),
        ({"stages": {"first": {"folder": "first", "sha256": "x"}}}, "its stages are"),
        ({"stages": {"first": {}, "large": {}}}, "not a cascade"),
        ({"limits": []}, "not a cascade"),
    ],
)
def test_a_file_that_is_no_cascade(copy, more, what):
    with pytest.raises(ModelSpecMismatch, match=what):
        load_model(edited(copy, **more), threads=1)


def test_a_stage_outside_of_the_folder_is_refused(copy):
    stages = {"first": {"folder": "../x", "sha256": ""}, "large": {"folder": "large", "sha256": ""}}
    with pytest.raises(ModelSpecMismatch, match="outside of its folder"):
        load_model(edited(copy, stages=stages), threads=1)


def test_another_model_in_the_place_of_a_stage(copy):
    book = json.loads((copy / "stages.cascade").read_text())
    book["stages"]["first"]["sha256"] = "0" * 64
    with pytest.raises(ModelSpecMismatch, match="stage 'first' is another model"):
        load_model(edited(copy, stages=book["stages"]), threads=1)


def test_a_changed_stage_changes_the_model(copy):
    with open(copy / "first" / "model.onnx", "ab") as file:
        file.write(b"\0")
    with pytest.raises(ModelSpecMismatch, match="SHA-256 differs"):
        load_model(copy, threads=1)


def test_a_manifest_that_does_not_take_pictures(copy):
    known = json.loads((copy / "manifest.json").read_text())
    known["preprocess"].pop("layout")
    write_json(copy / "manifest.json", known)
    with pytest.raises(ModelSpecMismatch, match="takes pictures and gives boxes"):
        load_model(copy, threads=1)


def test_the_format_is_the_one_that_is_written(folder):
    assert json.loads((folder / "stages.cascade").read_text())["format"] == CASCADE
    assert replace(load_model(folder, threads=1).manifest, name="x").task == "detect"
