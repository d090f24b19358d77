"""The command line as a user meets it: real files, exit codes, and bad input of every kind; real processes
where signals, locks, disks or the whole run are the point, the entry point called in this one elsewhere."""

import json
import os
import re
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest

from cv_pipeline.core.results import read_results
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from cv_pipeline.synthetic.line import open_line, write_dataset, write_video
from tests.helpers.cli import CLI, as_process, lines_in, start_endless
from tests.helpers.cli import called as cli
from tests.helpers.waiting import until

pytestmark = pytest.mark.slow

COLUMNS = [
    "source_id",
    "frame_id",
    "captured_at",
    "class_id",
    "class_name",
    "confidence",
    "x1",
    "y1",
    "x2",
    "y2",
    "tracker_id",
    "decision",
]


def line_frames(n, seed=3):
    return [f.image for f in open_line(f"line:frames={n},seed={seed}", "x")]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "belt.mp4"
    write_video(path, line_frames(40))
    return path


@pytest.fixture(scope="module")
def done(clip, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    result = as_process("run", clip, "--out", out, "--save-video")
    assert result.returncode == 0, result.stderr
    return out, result


def test_run_writes_the_promised_results(done):
    out, result = done
    table = pq.read_table(out / "results.parquet")
    assert table.column_names == COLUMNS
    rows = table.to_pylist()
    assert (
        rows
        and {r["source_id"] for r in rows} == {"belt"}
        and {r["decision"] for r in rows} <= {"accept", "review"}
    )
    assert all(0 <= r["x1"] <= r["x2"] <= 640 and 0 <= r["y1"] <= r["y2"] <= 480 for r in rows)
    assert str(table.schema.field("captured_at").type) == "timestamp[us, tz=UTC]"
    lines = [json.loads(text) for text in (out / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 40
    assert not (out / "results.parts").exists()


def test_summary_has_the_promised_keys(done):
    out, _ = done
    summary = json.loads((out / "summary.json").read_text())
    rows = pq.read_table(out / "results.parquet").num_rows
    assert summary["frames_read"] == summary["frames_inferred"] == 40 and summary["frames_dropped"] == 0
    assert summary["detections"] == rows and summary["tracks"] >= 3
    for stage in ("ingest", "preprocess", "inference", "postprocess", "deliver", "total"):
        p = summary["latency_ms"][stage]
        assert 0 < p["p50"] <= p["p95"] <= p["p99"]
    assert summary["model"]["provider"] == "CPUExecutionProvider" and summary["model"]["sha256"]
    assert summary["config"]["delivery"]["video"] is True and summary["environment"]["cv_pipeline"]


def test_annotated_video_plays(done):
    import av

    out, _ = done
    videos = list(out.rglob("*.mp4"))
    assert len(videos) == 1
    with av.open(str(videos[0])) as container:
        frames = [f.to_ndarray(format="bgr24") for f in container.decode(video=0)]
    assert len(frames) == 40 and frames[0].shape == (480, 640, 3)


def test_help_has_examples():
    assert as_process("--help").returncode == 0
    for args in (
        ["--help"],
        ["run", "--help"],
        ["demo", "--help"],
        ["tune", "--help"],
        ["config", "--help"],
        ["models", "--help"],
    ):
        result = cli(*args)
        assert result.returncode == 0 and "cv-pipeline" in result.stdout
        if len(args) > 1:
            assert "Example" in result.stdout, args


def test_config_round_trip(tmp_path, clip):
    shown = cli("config", "--show")
    assert shown.returncode == 0
    file = tmp_path / "line.yaml"
    file.write_text(shown.stdout)
    assert cli("config", file).returncode == 0
    assert json.loads(cli("config", "--schema").stdout)["title"] == "RunConfig"
    file.write_text(f"sources: [{clip}]\nselection: {{every: 10}}\ndelivery: {{out: {tmp_path / 'out'}}}\n")
    assert cli("run", "--config", file, "--conf", "0.5").returncode == 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["frames_inferred"] == 4 and summary["config"]["postprocess"]["conf"] == 0.5


def test_all_problems_of_a_config_at_once(tmp_path):
    file = tmp_path / "bad.yaml"
    file.write_text("sources: []\npostprocess: {confidence: 1}\nruntime: {queue_size: many}\nmodle: {}\n")
    result = cli("run", "--config", file)
    assert result.returncode == 2
    text = " ".join(result.stderr.split())
    for word in ("4 problem", "sources", "did you mean 'conf'", "queue_size", "did you mean 'model'"):
        assert word in text


@pytest.mark.parametrize(
    "args,code,words",
    [
        (["run"], 2, "nothing to run"),
        (["run", "line:frames=2", "--conf", "7"], 2, "postprocess.conf"),
        (["run", "line:frames=2", "--tracker", "magic"], 2, "'magic' is not one of"),
        (["run", "line:frames=2", "--classes", "unicorn"], 2, "unicorn"),
        (["run", "line:frames=2", "--nonsense"], 2, "nonsense"),
        (["run", "line:speeed=2"], 2, "speeed"),
        (["run", "line:frames=2", "--config", "/no/such.yaml"], 2, "file not found"),
        (["run", "line:frames=2", "--model", "/no/such.onnx"], 4, "model not found"),
        (["run", "/no/such.mp4"], 3, "such.mp4"),
        (["run", "a.mp4", "b.mp4"], 3, "cannot open any of the 2 sources"),
        (["models", "nobody"], 4, "model not found"),
    ],
)
def test_bad_usage_has_the_right_code_and_one_sentence(args, code, words, tmp_path):
    result = cli(*args, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_unwritable_output(tmp_path):
    (tmp_path / "file").write_text("")
    result = cli("run", "line:frames=2", "--out", tmp_path / "file" / "out")
    assert result.returncode == 2 and "cannot write to the output folder" in " ".join(result.stderr.split())


def bad_files(folder: Path, clip: Path) -> dict[str, Path]:
    files = {
        name: folder / name for name in ("empty.mp4", "text.mp4", "truncated.mp4", "empty.jpg", "broken.jpg")
    }
    files["empty.mp4"].write_bytes(b"")
    files["text.mp4"].write_text("this is not a video\n" * 100)
    files["truncated.mp4"].write_bytes(clip.read_bytes()[:2000])
    files["empty.jpg"].write_bytes(b"")
    files["broken.jpg"].write_bytes(cv2.imencode(".jpg", line_frames(1)[0])[1].tobytes()[:300])
    return files


@pytest.mark.parametrize("name", ["empty.mp4", "text.mp4", "truncated.mp4", "empty.jpg", "broken.jpg"])
def test_bad_source_files_exit_3_and_name_the_file(name, tmp_path, clip):
    result = cli("run", bad_files(tmp_path, clip)[name], "--out", tmp_path / "out")
    assert result.returncode == 3, result.stderr
    assert name in result.stderr.replace("\n", "") and "Traceback" not in result.stderr


def test_one_bad_file_among_good_ones(tmp_path, clip):
    bad = bad_files(tmp_path, clip)["text.mp4"]
    result = cli("run", clip, bad, "--out", tmp_path / "out")
    assert result.returncode == 3
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (
        summary["sources"]["belt"]["state"] == "done" and summary["sources"]["belt"]["frames_inferred"] == 40
    )
    assert summary["sources"]["text"]["state"] == "failed"
    assert pq.read_table(tmp_path / "out/results.parquet").num_rows > 0


def test_a_folder_with_one_broken_picture(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for k, image in enumerate(line_frames(4)):
        cv2.imwrite(str(folder / f"{k}.png"), image)
    grey = cv2.imread(str(folder / "1.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(folder / "grey.png"), grey)
    cv2.imwrite(str(folder / "deep.png"), grey.astype(np.uint16) * 257)
    cv2.imwrite(str(folder / "alpha.png"), np.dstack([line_frames(1)[0], np.full(grey.shape, 255, np.uint8)]))
    (folder / "broken.png").write_bytes((folder / "2.png").read_bytes()[:500])
    result = cli("run", folder, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["frames_inferred"] == 7 and summary["frames_skipped"] == 1
    assert "broken.png" in str(
        summary["sources"]["photos"]["skipped"]
    ) and "broken.png" in result.stderr.replace("\n", "")


def test_what_is_shown_as_players_do_is_said_once(tmp_path):
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        for image in line_frames(3):
            small = cv2.resize(image, (320, 240))
            out.mux(stream.encode(av.VideoFrame.from_ndarray(small, format="bgr24")))
        out.mux(stream.encode())
    result = cli("run", path, "--out", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    note = "pixels of 4:3: 320×240 is shown as 426×240, as players do"
    assert summary["sources"]["wide"]["notes"] == [note]
    assert summary["sources"]["wide"]["size"] == [426, 240]
    printed = " ".join((result.stdout + result.stderr).split())
    assert printed.count("320×240 is shown as 426×240") == 1


def small_onnx(path: Path, outputs: list[tuple[int, ...]], imgsz=320, opset=17) -> Path:
    "A model with the input of a detector and outputs of any shape."
    import onnx
    from onnx import TensorProto, helper

    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, imgsz, imgsz])
    nodes, infos = [], []
    for i, shape in enumerate(outputs):
        value = helper.make_tensor(f"v{i}", TensorProto.FLOAT, shape, np.zeros(shape, np.float32).ravel())
        nodes.append(helper.make_node("Constant", [], [f"output{i}"], value=value))
        infos.append(helper.make_tensor_value_info(f"output{i}", TensorProto.FLOAT, shape))
    model = helper.make_model(
        helper.make_graph(nodes, "g", [image], infos),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    "outputs,words",
    [
        ([(1, 1000)], "classifier"),
        ([(1, 7, 2100), (1, 32, 80, 80)], "2 outputs"),
        ([(1, 99, 2100)], "classes"),
    ],
    ids=["classifier", "segmentation", "other classes"],
)
def test_onnx_of_another_task_is_refused(outputs, words, tmp_path):
    model = small_onnx(tmp_path / "other.onnx", outputs)
    (tmp_path / "other.yaml").write_text("names: [a, b, c]\npreprocess: {imgsz: [320, 320]}\n")
    result = cli("run", "line:frames=2", "--model", model, "--out", tmp_path / "out")
    assert (
        result.returncode == 4
        and words in " ".join(result.stderr.split())
        and "other.onnx" in result.stderr.replace("\n", "")
    )


def test_an_onnx_without_a_manifest_needs_a_spec(tmp_path):
    model = small_onnx(tmp_path / "bare.onnx", [(1, 7, 2100)])
    result = cli("run", "line:frames=2", "--model", model, "--out", tmp_path / "out")
    assert result.returncode == 4 and "--spec" in result.stderr
    (tmp_path / "my.yaml").write_text("names: [a, b, c]\npreprocess: {imgsz: [320, 320]}\n")
    result = cli(
        "run", "line:frames=2", "--model", model, "--spec", tmp_path / "my.yaml", "--out", tmp_path / "out"
    )
    assert result.returncode == 0, result.stderr


def test_a_manifest_that_disagrees_with_the_graph(tmp_path):
    model = small_onnx(tmp_path / "m.onnx", [(1, 7, 2100)])
    (tmp_path / "m.yaml").write_text("names: [a, b, c]\npreprocess: {imgsz: [640, 640]}\n")
    result = cli("run", "line:frames=2", "--model", model, "--out", tmp_path / "out")
    assert result.returncode == 4 and "640" in result.stderr and "320" in result.stderr


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "fake.onnx").write_text("not a protobuf")
    result = cli("run", "line:frames=2", "--model", tmp_path / "fake.onnx", "--out", tmp_path / "out")
    assert result.returncode == 4 and "fake.onnx" in result.stderr.replace("\n", "")


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_runs_finish_their_files(tmp_path, sig):
    process = start_endless(tmp_path, "--save-video")
    until(lambda: lines_in(tmp_path / "results.jsonl") > 30, 60, process)
    process.send_signal(sig)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + sig, err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["interrupted"] and summary["frames_read"] == lines_in(tmp_path / "results.jsonl")
    assert pq.read_table(tmp_path / "results.parquet").num_rows == summary["detections"]


def test_kill_9_leaves_readable_results(tmp_path):
    process = start_endless(tmp_path)
    until(lambda: any((tmp_path / "results.parts").glob("*.parquet")), 60, process)
    process.kill()
    process.communicate()
    table = read_results(tmp_path)
    assert table.num_rows > 0 and table.column_names == COLUMNS
    text = (tmp_path / "results.jsonl").read_text().splitlines()
    frames = [json.loads(line) for line in text[:-1]]  # the last line may be half written
    assert [f["frame_id"] for f in frames] == list(range(len(frames)))


def test_disk_full_keeps_what_was_written(tmp_path):
    "RLIMIT_FSIZE makes every file stop growing at 200 kB, as a full disk would."
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000)); "
        "from cv_pipeline.commands.main import main; sys.argv[1:] = ['run', 'line:', '--out', sys.argv[1]]; "
        "main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 5, result.stderr
    assert "Traceback" not in result.stderr
    text = (tmp_path / "results.jsonl").read_bytes().splitlines()
    frames = [json.loads(line) for line in text[:-1]]
    assert len(frames) > 20 and [f["frame_id"] for f in frames] == list(range(len(frames)))
    assert read_results(tmp_path).num_rows > 0


@pytest.fixture
def tiny_disk(tmp_path):
    "A file system of 600 kB that really runs full."
    folder = tmp_path / "tiny"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], capture_output=True
    ).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_disk_that_is_really_full(tiny_disk):
    result = as_process("run", "line:", "--out", tiny_disk, "--save-video")
    assert result.returncode == 5 and "Traceback" not in result.stderr, result.stderr
    frames = [json.loads(line) for line in (tiny_disk / "results.jsonl").read_bytes().splitlines()[:-1]]
    assert len(frames) > 5 and [f["frame_id"] for f in frames] == list(range(len(frames)))
    assert not list(tiny_disk.glob(".*.part"))


def test_a_mistake_does_not_destroy_the_results_of_the_run_before(tmp_path, clip):
    import socket

    out = tmp_path / "out"
    assert cli("run", clip, "--out", out).returncode == 0
    before = {p.name: p.read_bytes() for p in out.iterdir() if p.name != ".lock"}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        wrong = [
            ["--serve-health", taken.getsockname()[1]],
            ["--model", "/no/such.onnx"],
            ["--classes", "unicorn"],
            ["--motion", "6"],
        ]
        for args in wrong:
            assert cli("run", clip, "--out", out, *args).returncode in (2, 4)
            assert {p.name: p.read_bytes() for p in out.iterdir() if p.name != ".lock"} == before, args


def test_two_runs_do_not_share_a_folder(tmp_path):
    first = start_endless(tmp_path)
    try:
        until(lambda: lines_in(tmp_path / "results.jsonl") > 5, 60, first)
        second = as_process("run", "line:frames=5", "--out", tmp_path)
        assert second.returncode == 2 and "another run" in second.stderr
    finally:
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=60)
    assert cli("run", "line:frames=5", "--out", tmp_path).returncode == 0  # the lock ends with the run


def test_realtime_also_holds_for_sources_of_a_file(tmp_path, clip):
    (tmp_path / "c.yaml").write_text(f"sources: [{{uri: '{clip}'}}]\nmodel:\n")
    result = cli(
        "run", "--config", tmp_path / "c.yaml", "--realtime", "--conf", "0.4", "--out", tmp_path / "out"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "out/summary.json").read_text())["sources"]["belt"]["live"] is True


def test_interrupted_demo_gives_no_scores(tmp_path):
    process = subprocess.Popen(
        [CLI, "demo", "--seconds", "10", "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: lines_in(tmp_path / "results.jsonl") > 10, 180, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "known truth" not in out and not (tmp_path / "index.html").exists()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    "A YOLO folder of line pictures whose classes are numbered in another order than the model's."
    from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
    from cv_pipeline.synthetic.line import write_dataset

    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, FactoryLine(LineConfig(seed=31)).frames(12), ["yolo"], split="val")
    names = ["defect", "nut", "gear", "bracket", "bolt"]
    ours = ["gear", "bolt", "nut", "bracket", "defect"]
    for file in (folder / "labels/val").glob("*.txt"):
        rows = [line.split(" ", 1) for line in file.read_text().splitlines()]
        file.write_text("".join(f"{names.index(ours[int(c)])} {rest}\n" for c, rest in rows))
    (folder / "data.yaml").write_text(f"path: .\nval: images/val\nnames: {names}\n")
    return folder


def test_tune_matches_classes_by_name_and_writes_a_tuned_copy(labelled, tmp_path):
    result = cli(
        "tune", "factory_line", labelled / "data.yaml", "--split", "val", "--out", tmp_path / "tuned"
    )
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "tuned/manifest.json").read_text())
    assert (
        manifest["metrics"]["tuning"]["after"]["recall"] > 0.9
    )  # by number instead of name it would find next to nothing
    assert (
        cli("run", "line:frames=3", "--model", tmp_path / "tuned", "--out", tmp_path / "run").returncode == 0
    )
    assert cli("tune", "factory_line", labelled).returncode == 2  # a bundled model is not changed


def test_tune_writes_back_to_the_manifest_that_was_read(labelled, tmp_path):
    import shutil

    from cv_pipeline.inference.manifest import bundled_models

    source = bundled_models()["factory_line"]
    shutil.copy(source / "model.onnx", tmp_path / "b.onnx")
    manifest = json.loads((source / "manifest.json").read_text())
    (tmp_path / "b.json").write_text(json.dumps({**manifest, "file": "b.onnx"}))
    (tmp_path / "manifest.json").write_text("{}")  # somebody else's
    result = cli("tune", tmp_path / "b.onnx", labelled)
    assert result.returncode == 0, result.stderr
    assert (
        "tuning" in json.loads((tmp_path / "b.json").read_text())["metrics"]
        and (tmp_path / "manifest.json").read_text() == "{}"
    )


def test_tune_refuses_a_folder_with_another_model(labelled, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"another model")
    result = cli("tune", "factory_line", labelled, "--out", tmp_path)
    assert (
        result.returncode == 2
        and "another model" in result.stderr
        and not (tmp_path / "manifest.json").exists()
    )


@pytest.mark.parametrize(
    "args,words",
    [
        (["tune", "factory_line", "CLIP", "--dry-run"], "not a COCO file"),
        (["tune", "factory_line", "DATA", "--out", "FILE"], "cannot write to the output folder"),
        (["tune", "factory_line", "DATA", "--out", "FILE/x"], "cannot write to the output folder"),
        (["tune", "factory_line", "DATA", "--objective", "beauty", "--dry-run"], "beauty"),
        (["demo", "--out", "FILE"], "cannot write to the output folder"),
        (["run", "line:frames=3", "--threads", "9999"], "less than or equal to 256"),
        (["run", "line:frames=3", "--motion", "6"], "selection.motion"),
    ],
)
def test_more_bad_usage(args, words, labelled, clip, tmp_path):
    (tmp_path / "file").write_text("")
    places = {
        "CLIP": str(clip),
        "DATA": str(labelled),
        "FILE": str(tmp_path / "file"),
        "FILE/x": str(tmp_path / "file/x"),
    }
    result = cli(*(places.get(a, a) for a in args), cwd=tmp_path)
    assert result.returncode == 2 and words in " ".join(result.stderr.split()), result.stderr
    assert "Traceback" not in result.stderr


def test_health_endpoint_of_a_running_process(tmp_path):
    from urllib.request import urlopen

    with open(tmp_path / "stderr", "w") as stderr:
        process = subprocess.Popen(
            [CLI, "run", "line:", "--out", str(tmp_path), "--serve-health", "0"],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        until(lambda: lines_in(tmp_path / "results.jsonl") > 10, 60)
        url = re.search(r"http://127\.0\.0\.1:\d+", (tmp_path / "stderr").read_text())[0]
        assert json.load(urlopen(url + "/readyz", timeout=10))["status"] == "ready"
        assert json.load(urlopen(url + "/healthz", timeout=10))["status"] == "alive"
        metrics = urlopen(url + "/metrics", timeout=10).read().decode()
        assert (
            'cv_pipeline_frames_read_total{site="' in metrics
            and 'source="line"} ' in metrics
            and 'stage="inference"' in metrics
        )
    finally:
        process.kill()
        process.wait()


def test_importing_the_core_pulls_in_no_extra():
    code = (
        "import sys, cv_pipeline, cv_pipeline.commands.main, cv_pipeline.service.assembly; "
        "heavy = {'torch', 'ultralytics', 'matplotlib', 'supervision', 'IPython', 'fastcore', 'nbdev', "
        "'pandas'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""}
    )
    assert result.returncode == 0, result.stderr


def test_eval_tracking_prints_the_scores_of_a_run_and_of_files(tmp_path, done):
    "The command on a run folder, on files, as JSON; wrong paths are one sentence."
    out, _ = done
    runs = pq.read_table(out / "results.parquet").to_pylist()
    rows = [r for r in runs if r["tracker_id"] >= 0]
    (tmp_path / "gt.txt").write_text(
        "".join(
            f"{r['frame_id'] + 1},{r['tracker_id']},{r['x1']},{r['y1']},"
            f"{r['x2'] - r['x1']},{r['y2'] - r['y1']},1,1,1\n"
            for r in rows
        )
    )
    found = cli("eval-tracking", tmp_path / "gt.txt", out, "--json")
    assert found.returncode == 0, found.stderr
    scores = json.loads(found.stdout)["gt"]
    assert (
        scores["HOTA"] == pytest.approx(1, abs=1e-3)
        and scores["FN"] == scores["FP"] == scores["IDSW"] == 0
        and scores["switches"] == []
    )
    half = (tmp_path / "gt.txt").read_text().splitlines()
    (tmp_path / "res.txt").write_text(
        "\n".join(line if int(line.split(",")[0]) < 20 else line.replace(",", ",1", 1) for line in half)
    )  # other ids later
    table = cli("eval-tracking", tmp_path / "gt.txt", tmp_path / "res.txt", "--switches")
    assert (
        table.returncode == 0
        and "HOTA" in table.stdout
        and "IDF1" in table.stdout
        and "switch" in table.stderr
    )
    wrong = cli("eval-tracking", tmp_path / "gt.txt", tmp_path / "nothing.txt")
    assert (
        wrong.returncode == 2
        and "file or folder not found" in wrong.stderr
        and "Traceback" not in wrong.stderr
    )


def test_a_yaml_may_stand_in_the_place_of_a_source(tmp_path, clip):
    (tmp_path / "cameras.yaml").write_text(
        f"sources:\n  - {{uri: '{clip}', id: belt}}\ndelivery: {{out: '{tmp_path / 'out'}'}}\n"
    )
    result = cli("run", tmp_path / "cameras.yaml", "--every", "10")
    assert result.returncode == 0, result.stderr
    assert (
        json.loads((tmp_path / "out" / "summary.json").read_text())["frames_inferred"] == 4
        and "decoding: h264" in result.stderr
    )
    twice = cli("run", tmp_path / "cameras.yaml", "--config", tmp_path / "cameras.yaml")
    assert twice.returncode == 2 and "one configuration at a time" in twice.stderr
    nowhere = cli("run", tmp_path / "none.yaml")
    assert nowhere.returncode == 2 and "file not found" in nowhere.stderr


def test_robustness_writes_numbers_and_refuses_what_it_does_not_know(tmp_path):
    result = cli(
        "robustness", "--conditions", "fog", "--severities", "1,5", "--budget-s", "4", "--out", tmp_path / "r"
    )
    assert result.returncode == 0, result.stderr
    found = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert (
        [c["condition"] for c in found["conditions"]] == ["fog"]
        and found["severities"] == [1, 5]
        and found["about"]["asked"] > 10
    )
    wrong = cli("robustness", "--conditions", "locusts", "--out", tmp_path / "w")
    assert wrong.returncode == 2 and "locusts" in wrong.stderr and "Traceback" not in wrong.stderr
    assert cli("robustness", "--severities", "many", "--out", tmp_path / "v").returncode == 2


def test_data_is_checked_frozen_and_verified(labelled, tmp_path):
    "The commands around a test set: good data, a changed label, a leak."
    import shutil

    data = tmp_path / "data"
    shutil.copytree(labelled, data)
    assert cli("data", "check", data).returncode == 0
    frozen = tmp_path / "test_set.json"
    assert (
        cli("data", "freeze", data, "--out", frozen).returncode == 0
        and cli("data", "verify", frozen).returncode == 0
    )
    assert (
        cli("data", "freeze", data, "--out", frozen).returncode == 2
    )  # what is frozen is not overwritten by accident
    leaked = cli("data", "verify", frozen, "--train", labelled)
    assert leaked.returncode == 2 and "Traceback" not in leaked.stderr
    label = next(p for p in sorted(data.rglob("*.txt")) if p.read_text().strip() and "labels" in p.parts)
    label.write_text("99 0.5 0.5 0.1 0.1\n")
    changed = cli("data", "verify", frozen)
    assert changed.returncode == 2 and label.stem in changed.stderr.replace("\n", "")
    broken = cli("data", "check", data)
    assert broken.returncode == 2 and label.name in broken.stderr.replace("\n", "")
    divided = cli("data", "split", labelled, "--out", tmp_path / "sides", "--sequences", r"line-0_0*(\d+)")
    assert (
        divided.returncode == 2 and "too few" in divided.stderr
    )  # consecutive frames of one line look alike: one group cannot be divided


# ---- models: optimize, build, benchmark, serve-files


@pytest.fixture(scope="module")
def optimised(labelled, tmp_path_factory):
    "The bundled detector as two files that went through the gate; twelve pictures are too few for it."
    from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
    from cv_pipeline.synthetic.line import write_dataset

    out = tmp_path_factory.mktemp("models") / "line"
    few = cli("optimize", "--data", labelled, "--out", out, "--steps", "fp32,fp16", "--threads", 1)
    assert few.returncode == 1 and "12 pictures" in few.stderr
    data = tmp_path_factory.mktemp("judge")
    write_dataset(data, FactoryLine(LineConfig(seed=77, density=6)).frames(40), ["yolo"], split="val")
    result = cli(
        "optimize", "--data", data, "--out", out, "--steps", "fp32,fp16", "--threads", 1, "--replace"
    )
    assert result.returncode == 0, result.stderr
    return out


def test_optimize_keeps_what_passes_and_run_takes_it(optimised, clip, tmp_path):
    manifest = json.loads((optimised / "manifest.json").read_text())
    assert {a["file"] for a in manifest["artefacts"]} >= {"model.onnx"} and all(
        a["gate"]["accepted"] for a in manifest["artefacts"]
    )
    assert {s["step"] for s in json.loads((optimised / "optimize.json").read_text())["steps"]} == {
        "fp32",
        "fp16",
    }
    for wanted in ("model.onnx", "auto"):
        made = cli(
            "run", clip, "--every", 10, "--model", optimised, "--backend", wanted, "--out", tmp_path / wanted
        )
        assert made.returncode == 0, made.stderr
        said = json.loads((tmp_path / wanted / "summary.json").read_text())["model"]
        assert said["state"] == "ready" and ("fastest" in said["chosen"] if wanted == "auto" else True), said
    assert cli(
        "run", clip, "--model", optimised, "--backend", "steam", "--out", tmp_path / "steam"
    ).returncode in (2, 4)
    again = cli("optimize", optimised, "--data", "line", "--out", optimised)
    assert again.returncode == 2 and "Traceback" not in again.stderr
    assert (
        cli("optimize", "--data", "nowhere", "--out", tmp_path / "x").returncode == 2
        and not (tmp_path / "x").exists()
    )


def test_build_without_a_card_is_a_sentence(optimised):
    result = cli("build", optimised)
    assert result.returncode == 4 and "Traceback" not in result.stderr and "error" in result.stderr
    assert not list(optimised.glob("*.engine*"))


def test_benchmark_writes_a_document_and_compares(optimised, tmp_path):
    short = [
        "--batches",
        "1",
        "--threads",
        "1",
        "--seconds",
        "0.1",
        "--rounds",
        "2",
        "--no-fit",
        "--backends",
        "onnxruntime",
    ]
    first = cli("benchmark", optimised, *short, "--out", tmp_path / "a")
    assert first.returncode == 0, first.stderr
    assert {p.name for p in (tmp_path / "a").iterdir()} >= {
        "benchmark.json",
        "benchmark.md",
        "benchmark.html",
    }
    second = cli("benchmark", optimised, *short, "--out", tmp_path / "b", "--compare", tmp_path / "a")
    assert second.returncode == 0 and "below 1 is faster" in second.stdout, second.stderr
    wrong = cli("benchmark", optimised, "--batches", "one", "--out", tmp_path / "c")
    assert wrong.returncode == 2 and "--batches" in wrong.stderr
    assert (
        cli("benchmark", optimised, "--compare", tmp_path / "nowhere", "--out", tmp_path / "d").returncode
        == 2
    )


def test_serve_files_writes_a_repository(optimised, tmp_path):
    result = cli(
        "serve-files", optimised, "--out", tmp_path / "repository", "--name", "line", "--max-batch", 4
    )
    assert result.returncode == 0, result.stderr
    assert "max_batch_size: 4" in (tmp_path / "repository" / "line" / "config.pbtxt").read_text()
    assert (
        cli("serve-files", optimised, "--out", tmp_path / "repository", "--name", "line").returncode == 2
    )  # what is there stays
    assert cli("serve-files", optimised, "--out", tmp_path / "r2", "--platform", "magic").returncode == 2


@pytest.mark.parametrize(
    "args, words",
    [
        (["data", "freeze", "{data}", "--out", "{tmp}/afile/t.json"], "afile"),
        (["select", "x" * 300, "--budget", "3", "--out", "{tmp}/s"], "File name too long"),
        (
            ["label", "settle", "{tmp}", "--pictures", ".", "--out", "{tmp}/b"],
            "cannot read the annotation file: this is a folder, not a file",
        ),
    ],
)
def test_places_that_are_not_what_they_are_taken_for_are_one_line(tmp_path, args, words):
    "What no command has foreseen about files and folders is a line with its path, not a traceback."
    (tmp_path / "afile").write_text("")
    write_dataset(tmp_path / "data", (f for f in [open_frame()]), ["yolo"], split="train")
    result = cli(*(a.format(tmp=tmp_path, data=tmp_path / "data") for a in args))
    assert result.returncode in (2, 5), result.stderr  # 5: nothing can be written there
    assert (
        words.replace(" ", "") in "".join(result.stderr.split())  # a long path is broken anywhere
        and "Traceback" not in result.stderr
        and "\nerror " in f"\n{result.stderr}"
    ), result.stderr


def open_frame():
    return FactoryLine(LineConfig(seed=3, density=4)).render(10)
