"""Engine files, their binding and their build: Ultralytics' own reader, damaged files, locks between
processes, and real builds with TensorRT-RTX."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.files import file_sha256
from cv_pipeline.core.model_files import artefact_sha256, weights_outside
from cv_pipeline.core.types import BackendError, ConfigError, ModelSpecMismatch
from cv_pipeline.inference.backends import OutOfMemory
from cv_pipeline.inference.cuda import DeviceInfo, NoDevice, find_devices
from cv_pipeline.inference.engines import (
    BrokenEngine,
    BuildOptions,
    EngineKey,
    EngineMismatch,
    Progress,
    build_engine,
    build_lock,
    check_engine,
    load_tensorrt,
    read_engine,
    write_engine,
)
from cv_pipeline.inference.manifest import ModelManifest, PreprocessSpec
from tests.helpers import tensorrt_imitation
from tests.helpers.services import place, require
from tests.helpers.tiny_detectors import manifest, tiny, with_suppression

FOUR = BuildOptions(max_batch=4)
CARD = DeviceInfo(0, "NVIDIA L4", (8, 9), "580.95.05 (CUDA 13.0)", 24 << 30)


@pytest.fixture
def world():
    return tensorrt_imitation.World()


@pytest.fixture
def build(tmp_path, world):
    "Build a tiny detector on the imitation."

    def make(onnx=None, options=FOUR, version="10.16.1.11", device=CARD, made_for=None, **more):
        onnx = onnx or (
            tmp_path / "tiny.onnx" if (tmp_path / "tiny.onnx").exists() else tiny(tmp_path / "tiny.onnx")
        )
        return build_engine(
            onnx,
            made_for or manifest(),
            options=options,
            device=device,
            trt=tensorrt_imitation.tensorrt(world, version),
            **more,
        )

    return make


# the file


@given(
    st.binary(min_size=1, max_size=300),
    st.dictionaries(
        st.text(max_size=8), st.one_of(st.integers(), st.text(max_size=20), st.booleans()), max_size=5
    ),
)
@settings(max_examples=60)
def test_round_trip(tmp_path_factory, plan, extra):
    path = tmp_path_factory.mktemp("e") / "m.engine"
    header = {**extra, "task": "detect", "cv_pipeline": {"precision": "fp16"}}
    write_engine(path, plan, header)
    engine = read_engine(path)
    assert engine.plan() == plan and engine.ours["precision"] == "fp16"
    assert {k: engine.header[k] for k in extra if k != "cv_pipeline"} == {
        k: header[k] for k in extra if k != "cv_pipeline"
    }
    assert list(path.parent.iterdir()) == [path]


def test_ultralytics_own_reader_reads_it(build):
    base = require("ultralytics.nn.backends.base")
    built = build()
    offset, header = base.BaseBackend.engine_header(built.path)
    assert built.path.read_bytes()[offset:].startswith(
        b"imitated "
    ) and header == base.BaseBackend.read_metadata(built.path)

    class Reader(base.BaseBackend):
        def load_model(self, weight):
            self.apply_metadata(self.read_metadata(weight))

        def forward(self, im):
            return None

    read = Reader(built.path, "cpu")
    assert (read.task, read.stride, read.imgsz, read.batch, read.channels, read.dynamic, read.end2end) == (
        "detect",
        32,
        [32, 32],
        4,
        3,
        True,
        False,
    )
    from ultralytics.nn.autobackend import check_class_names

    assert check_class_names(read.names) == {0: "nut", 1: "bolt"}


def test_a_file_that_ultralytics_writes_is_read_and_is_foreign(tmp_path):
    header = json.dumps(
        {
            "task": "detect",
            "stride": 32,
            "imgsz": [32, 32],
            "names": {"0": "nut"},
            "batch": 1,
            "args": {"half": True},
        }
    ).encode()
    path = tmp_path / "theirs.engine"
    path.write_bytes(len(header).to_bytes(4, "little", signed=True) + header + b"ftrt-plan")
    engine = read_engine(path)
    assert engine.plan() == b"ftrt-plan" and engine.header["names"] == {"0": "nut"}
    with pytest.raises(EngineMismatch, match="it does not record the GPU") as e:
        check_engine(engine, CARD, "10.16.1.11")
    assert e.value.differences == ("foreign",) and "allow=('foreign',)" in str(e.value)
    assert check_engine(engine, CARD, "10.16.1.11", allow=("foreign",)) is None


def test_a_bare_plan_has_no_header(tmp_path):
    (tmp_path / "bare.engine").write_bytes(b"ftrt" + bytes(100))
    engine = read_engine(tmp_path / "bare.engine")
    assert engine.header == {} and engine.offset == 0 and len(engine.plan()) == 104


@given(st.integers(0, 10**6), st.integers(0, 7))
@settings(max_examples=120)
def test_damage_anywhere_is_an_error_of_ours(tmp_path_factory, where, bit):
    path = tmp_path_factory.getbasetemp() / "damaged.engine"
    write_engine(path, bytes(range(200)), {"task": "detect", "cv_pipeline": {"key": KEY}})
    data = bytearray(path.read_bytes())
    data[where % len(data)] ^= 1 << bit
    path.write_bytes(data)
    try:
        engine = read_engine(path)
        check_engine(engine, CARD, "10.16.1.11")
        assert engine.plan() == bytes(range(200)), "damaged plans must not reach TensorRT"
    except BackendError:
        pass


@pytest.mark.parametrize("cut", [0, 1, 3, 4, 5, 40, -1, -200, -201])
def test_a_file_that_was_cut_off(tmp_path, cut):
    path = tmp_path / "cut.engine"
    write_engine(path, bytes(range(200)), {"cv_pipeline": {"key": KEY}})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BrokenEngine):
        read_engine(path).plan()


@pytest.mark.parametrize("data", [b"PK\x03\x04torch", b"\x08\x08\x12\x07pytorch" * 9])
def test_a_model_is_no_engine(tmp_path, data):
    (tmp_path / "m.engine").write_bytes(data)
    with pytest.raises(BrokenEngine, match="this is an ONNX model, not an engine"):
        read_engine(tmp_path / "m.engine")


# the binding

KEY = {
    "gpu": "NVIDIA L4",
    "capability": [8, 9],
    "driver": "580.95.05 (CUDA 13.0)",
    "tensorrt": "10.16.1.11",
    "model_sha256": "0" * 64,
    "batches": [1, 4, 8],
    "hardware": "none",
    "version_compatible": False,
}


@pytest.mark.parametrize(
    "device, version, changes, wanted",
    [
        ({}, "10.16.1.11", {}, ()),
        ({"name": "NVIDIA L40S"}, "10.16.1.11", {}, ("gpu",)),
        ({"capability": (9, 0)}, "10.16.1.11", {}, ("capability",)),
        ({"driver": "590.1"}, "10.16.1.11", {}, ("driver",)),
        ({}, "10.16.0.72", {}, ("tensorrt",)),
        ({}, "11.4.0.106", {}, ("tensorrt",)),
        ({"name": "NVIDIA L40S"}, "10.16.1.11", {"hardware": "same_compute_capability"}, ()),
        ({"capability": (8, 0)}, "10.16.1.11", {"hardware": "same_compute_capability"}, ("capability",)),
        ({"name": "NVIDIA H200", "capability": (9, 0)}, "10.16.1.11", {"hardware": "ampere_plus"}, ()),
        ({"capability": (7, 5)}, "10.16.1.11", {"hardware": "ampere_plus"}, ("capability",)),
        ({}, "10.17.0.1", {"version_compatible": True}, ()),
        ({}, "10.9.0.1", {"version_compatible": True}, ("tensorrt",)),
        ({}, "11.0.0.1", {"version_compatible": True}, ("tensorrt",)),
        ({}, "rtx 10.16.1.11", {"version_compatible": True}, ("tensorrt",)),
    ],
)
def test_what_an_engine_is_bound_to(device, version, changes, wanted):
    assert (
        tuple(EngineKey.from_dict({**KEY, **changes}).differences(replace(CARD, **device), version)) == wanted
    )


@pytest.mark.parametrize(
    "bad",
    [
        None,
        [],
        {},
        {**KEY, "capability": [8]},
        {**KEY, "batches": "abc"},
        {**KEY, "more": 1},
        {**KEY, "hardware": "all"},
    ],
)
def test_a_binding_that_cannot_be_read_is_a_broken_engine(tmp_path, bad):
    write_engine(tmp_path / "m.engine", b"plan", {"cv_pipeline": {"key": bad}})
    with pytest.raises(BrokenEngine, match="its binding is invalid"):
        check_engine(read_engine(tmp_path / "m.engine"), CARD, "10.16.1.11")


def test_all_differences_at_once_with_the_way_out(build):
    engine = read_engine(build().path)
    with pytest.raises(EngineMismatch) as e:
        check_engine(
            engine, replace(CARD, name="NVIDIA A10", capability=(8, 6), driver="535.1"), "11.4.0.106"
        )
    assert e.value.differences == ("capability", "driver", "tensorrt")
    assert all(
        text in str(e.value)
        for text in (
            "8.9, this device has 8.6",
            "580.95.05",
            "10.16.1.11, installed is 11.4.0.106",
            "cv-pipeline build",
        )
    )
    with pytest.raises(ConfigError, match="unknown difference: gpus"):
        check_engine(engine, CARD, "10.16.1.11", allow=("gpus",))


def test_the_model_beside_the_engine_has_changed(build, tmp_path):
    built = build()
    assert check_engine(read_engine(built.path), CARD, "10.16.1.11") == built.key
    tiny(tmp_path / "tiny.onnx", opset=16)
    with pytest.raises(EngineMismatch, match="it was built from another file than tiny.onnx beside it"):
        check_engine(read_engine(built.path), CARD, "10.16.1.11")
    assert check_engine(read_engine(built.path), CARD, "10.16.1.11", allow=("model",)) == built.key


def test_weights_in_other_files_belong_to_the_model(build, tmp_path):
    import onnx

    folder = tmp_path / "large"
    folder.mkdir()
    graph = onnx.load(tiny(tmp_path / "t.onnx"))
    onnx.save(
        graph, folder / "m.onnx", save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0
    )
    outside = weights_outside(folder / "m.onnx")
    assert len(outside) >= 2 and outside == sorted(p for p in folder.iterdir() if p.suffix != ".onnx")
    assert (
        artefact_sha256(tmp_path / "t.onnx") == file_sha256(tmp_path / "t.onnx")
        and weights_outside(tmp_path / "t.onnx") == []
    )
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert weights_outside(tmp_path / "empty.onnx") == []
    built = build(folder / "m.onnx")
    assert (
        check_engine(read_engine(built.path), CARD, "10.16.1.11") == built.key
        and not build(folder / "m.onnx").built
    )
    weights = max(outside, key=lambda p: p.stat().st_size)
    data = bytearray(weights.read_bytes())
    data[0] ^= 1
    weights.write_bytes(data)
    with pytest.raises(EngineMismatch, match="it was built from another file"):
        check_engine(read_engine(built.path), CARD, "10.16.1.11")
    assert build(folder / "m.onnx").built


# the build, call by call


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_the_golden_sequence_of_a_build_is_one_for_both_majors(build, world, tmp_path, version):
    options = BuildOptions(
        1,
        2,
        4,
        workspace_mb=512,
        timing_cache=tmp_path / "timings",
        version_compatible=True,
        hardware="ampere_plus",
        level=5,
        tf32=False,
    )
    build(options=options, version=version)
    monitor = next(call for call in world.story if call[0] == "config.progress_monitor")
    assert [call for call in world.story if call is not monitor] == [
        ("Builder",),
        ("create_network", 1 << 1),
        ("parse_from_file",),
        ("set_memory_pool_limit", "WORKSPACE", 512 << 20),
        ("set_flag", "VERSION_COMPATIBLE"),
        ("clear_flag", "TF32"),
        ("config.builder_optimization_level", 5),
        ("config.hardware_compatibility_level", 1),
        ("set_shape", "images", (1, 3, 32, 32), (2, 3, 32, 32), (4, 3, 32, 32)),
        ("add_optimization_profile",),
        ("create_timing_cache", b""),
        ("set_timing_cache", False),
        ("build_serialized_network",),
        ("get_timing_cache",),
    ]
    assert (tmp_path / "timings").read_bytes() == b"timings"


def test_the_second_build_gets_the_timings_of_the_first_and_a_refused_cache_is_started_anew(
    build, world, tmp_path
):
    options = BuildOptions(timing_cache=tmp_path / "timings")
    build(options=options)
    world.story.clear()
    world.fail["set_timing_cache"] = [False, True]
    build(options=replace(options, rebuild=True))
    assert [c for c in world.story if "timing" in c[0]] == [
        ("create_timing_cache", b"timings"),
        ("set_timing_cache", False),
        ("create_timing_cache", b""),
        ("set_timing_cache", False),
        ("get_timing_cache",),
    ]


def test_what_is_there_and_fits_is_not_built_again(build, world, tmp_path):
    first = build()
    assert first.built and first.key.batches == (1, 4, 4) and first.precision == "fp32"
    world.story.clear()
    again = build()
    assert not again.built and again.key == first.key and world.story == []
    for change in (
        dict(options=BuildOptions(max_batch=2)),
        dict(device=replace(CARD, driver="590")),
        dict(version="10.17.0.1"),
        dict(options=replace(FOUR, rebuild=True)),
    ):
        assert build(**change).built, change
    build()
    data = bytearray((tmp_path / "tiny.engine").read_bytes())
    data[-1] ^= 1
    (tmp_path / "tiny.engine").write_bytes(data)
    assert build().built, "a damaged one is no reason to skip a build"


def test_batches_of_fixed_and_dynamic_graphs(build, tmp_path):
    assert build(options=BuildOptions()).key.batches == (1, 8, 8)
    fixed = tiny(tmp_path / "fixed.onnx", batch=3)
    assert build(fixed, BuildOptions()).key.batches == (3, 3, 3)
    with pytest.raises(ConfigError, match="fixed batch of 3, max_batch 8 was requested"):
        build(fixed, BuildOptions(max_batch=8))


@pytest.mark.parametrize(
    "options, problems",
    [
        (dict(min_batch=0), 1),
        (dict(min_batch=4, max_batch=2), 1),
        (dict(opt_batch=True), 1),
        (dict(hardware="all", level=9, workspace_mb=-1), 3),
        (dict(max_batch=2.0), 1),
        (dict(wait_s=-1), 1),
    ],
)
def test_options_list_all_their_problems(options, problems):
    with pytest.raises(ConfigError) as e:
        BuildOptions(**options)
    assert len(e.value.problems) == problems


@pytest.mark.parametrize(
    "reason, kind, message",
    [
        ("Could not find any implementation for node X", BackendError, "Could not find any implementation"),
        ("Requested amount of GPU memory (9 GB): out of memory", OutOfMemory, "smaller max_batch"),
    ],
)
def test_failures_of_the_builder_have_names_and_leave_nothing(build, world, tmp_path, reason, kind, message):
    world.fail = {"build_serialized_network": tensorrt_imitation.NOTHING, "reason": reason}
    with pytest.raises(kind, match=message):
        build()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.onnx"]


def test_no_builder_is_a_backend_error(build, world):
    world.fail["Builder"] = tensorrt_imitation.NOTHING
    with pytest.raises(BackendError, match="TensorRT cannot create a builder"):
        build()


def test_progress_stops_a_build_and_its_errors_come_out(build, tmp_path):
    seen = []
    assert build(progress=lambda share, phase: seen.append((share, phase))).built
    assert seen[-1][0] == 1.0 and seen == sorted(seen)
    with pytest.raises(BackendError, match="the build was stopped"):
        build(options=replace(FOUR, rebuild=True), progress=lambda share, phase: False)
    with pytest.raises(KeyboardInterrupt):
        build(
            options=replace(FOUR, rebuild=True),
            progress=lambda share, phase: (_ for _ in ()).throw(KeyboardInterrupt()),
        )
    assert build().built is False, "the engine of before still stands"
    assert not (tmp_path / ".tiny.engine.lock").exists()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["start", "step", "finish"]),
            st.integers(0, 4),
            st.integers(0, 4),
            st.integers(0, 9),
        ),
        max_size=60,
    )
)
def test_progress_never_falls_and_stays_a_share(events):
    shares = []
    progress = Progress(lambda share, phase: shares.append(share))
    for what, name, parent, number in events:
        if what == "start":
            progress.start(str(name), str(parent) if parent < name else None, number)
        elif what == "step":
            progress.step(str(name), number)
        else:
            progress.finish(str(name))
    assert shares == sorted(shares) and all(0 <= s <= 1 for s in shares)


def test_a_graph_is_compared_with_the_manifest_before_minutes_are_spent(build, world):
    for wrong in (
        replace(manifest(), names=("one",)),
        replace(manifest(), preprocess=PreprocessSpec(imgsz=64)),
    ):
        with pytest.raises(ModelSpecMismatch):
            build(made_for=wrong)
    assert "build_serialized_network" not in world.names()


def test_no_driver_is_said_before_tensorrt_is_touched(tmp_path):
    try:
        find_devices()
    except NoDevice:
        pass
    else:
        pytest.skip("there is a card here")
    tiny(tmp_path / "tiny.onnx")
    code = f"""
import sys
from cv_pipeline.inference.engines import build_engine
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.helpers.tiny_detectors import manifest
try: build_engine({str(tmp_path / "tiny.onnx")!r}, manifest())
finally: print("tensorrt imported:", "tensorrt" in sys.modules)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (
        answer.returncode == 1
        and "NoDevice: no NVIDIA driver" in answer.stderr
        and "imported: False" in answer.stdout
    )


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is not supported"),
        ("__version__ = '8.6.1'", "TensorRT 8.6.1 is not supported"),
        ("__version__ = '12.0'", "TensorRT 12.0 is not supported"),
        ("__version__ = '10.3.0'", "this TensorRT has no Builder"),
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "libnvinfer.so.10"),
        (None, "No module named 'tensorrt'"),
    ],
)
def test_a_wrong_tensorrt_is_an_error_with_a_name(tmp_path, text, message):
    if text is not None:
        (tmp_path / "tensorrt.py").write_text(text)
    code = "from cv_pipeline.inference.engines import load_tensorrt\nload_tensorrt()"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 1 and "BackendError" in answer.stderr and message in answer.stderr, (
        answer.stderr
    )


# two processes, folders that cannot be written


def test_two_processes_never_build_at_once(tmp_path):
    code = f"""
import sys, time
from cv_pipeline.inference.engines import build_lock
with build_lock({str(tmp_path / "m.engine")!r}):
    print("held", flush=True)
    sys.stdin.read(1)
"""
    first = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "held\n"
        with (
            pytest.raises(BackendError, match=f"process {first.pid} is already building it"),
            build_lock(tmp_path / "m.engine"),
        ):
            pass
        released = []

        def sleep(seconds):
            if not released:
                first.stdin.write("x")
                first.stdin.flush()
                released.append(first.wait(timeout=30))

        with build_lock(tmp_path / "m.engine", wait_s=60, sleep=sleep):
            assert released == [0]
    finally:
        first.kill()
        first.wait()
    assert not (tmp_path / ".m.engine.lock").exists()


def test_a_lock_that_its_owner_removed_in_between_is_no_lock(tmp_path, monkeypatch):
    """Opened, then removed by the one who held it, then grabbed: another process could make and hold a new
    file at that place."""
    from cv_pipeline.core import files

    lock, grab, grabbed = tmp_path / ".m.engine.lock", files._grab, []

    def late(file):
        if not grabbed:
            lock.unlink()
        grabbed.append(grab(file))
        return grabbed[-1]

    monkeypatch.setattr(files, "_grab", late)
    with build_lock(tmp_path / "m.engine"):
        assert lock.read_text().strip() == str(os.getpid()) and grabbed == [True, True]


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = (
        "import time\nfrom cv_pipeline.inference.engines import build_lock\nwith "
        f"build_lock({str(tmp_path / 'm.engine')!r}):\n    print('held', flush=True)\n    "
        "time.sleep(600)"
    )
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    first.kill()
    first.wait()
    with build_lock(tmp_path / "m.engine"):
        pass


def test_many_threads_of_builders_hold_the_lock_one_by_one(tmp_path):
    code = f"""
import os, sys
from pathlib import Path
from cv_pipeline.inference.engines import build_lock
mark = Path({str(tmp_path / "mark")!r})
for _ in range(15):
    with build_lock({str(tmp_path / "m.engine")!r}, wait_s=60, sleep=lambda s: None):
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL)); mark.unlink()
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    assert [(p.communicate(timeout=120)[1], p.returncode) for p in processes] == [("", 0)] * 3


def test_a_folder_that_cannot_be_written(build, tmp_path):
    with pytest.raises(BackendError, match="cannot write to this folder"):
        build(out=tmp_path / "no such folder" / "m.engine")
    if os.name != "posix":
        return
    folder = tmp_path / "readonly"
    folder.mkdir()
    folder.chmod(0o555)
    code = f"""
import os, sys
from cv_pipeline.inference.engines import build_lock, write_engine
from cv_pipeline.core.types import BackendError
if os.getuid() == 0: os.setuid(65534)
engine = {str(folder / "m.engine")!r}
for call in (lambda: build_lock(engine).__enter__(), lambda: write_engine(engine, b'plan', {{}})):
    try: call()
    except BackendError as e: print(e.what)
"""
    for parent in [tmp_path, *tmp_path.parents][:3]:
        parent.chmod(0o755)
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert answer.stdout.splitlines() == [
        "cannot write to this folder: Permission denied",
        "cannot be written: Permission denied",
    ], answer.stderr


def test_a_full_disk_leaves_the_old_engine(build, tmp_path, monkeypatch):
    built = build()
    before = built.path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackendError, match="No space left on device"):
        build(options=replace(FOUR, rebuild=True))
    assert built.path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == [
        "tiny.engine",
        "tiny.onnx",
    ]


# a real builder of the family, on the host


@pytest.fixture(scope="module")
def rtx():
    folder = place("trtrtx")
    sys.path.append(str(folder))
    yield load_tensorrt("tensorrt_rtx_bindings")
    sys.path.remove(str(folder))


@pytest.mark.parametrize(
    "kind, precision",
    [("fp32", "fp32"), ("fp16", "fp16"), ("half", "fp16"), ("int8", "int8"), ("bytes", "fp32")],
)
def test_a_real_build_in_every_precision(rtx, tmp_path, kind, precision):
    shares, layout = [], "nhwc-uint8" if kind == "bytes" else "nchw-float"
    built = build_engine(
        tiny(tmp_path / "tiny.onnx", kind),
        manifest(layout=layout),
        options=BuildOptions(1, 2, 4),
        device=CARD,
        trt=rtx,
        progress=lambda share, phase: shares.append(share),
    )
    assert (
        built.precision == precision
        and built.key.tensorrt == f"rtx {rtx.__version__}"
        and built.key.batches == (1, 2, 4)
    )
    assert shares == sorted(shares) and shares[-1] == 1.0
    engine = read_engine(built.path)
    assert len(engine.plan()) > 1000 and check_engine(engine, CARD, built.key.tensorrt) == built.key
    with pytest.raises(EngineMismatch):
        check_engine(engine, CARD, "10.16.1.11")


def test_what_a_real_parser_refuses_comes_out_with_its_words(rtx, tmp_path):
    import onnx

    make = lambda path, made_for=None, **more: build_engine(
        path, made_for or manifest(), device=CARD, trt=rtx, **more
    )
    (tmp_path / "garbage.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(BackendError, match="TensorRT cannot read the graph"):
        make(tmp_path / "garbage.onnx")
    with pytest.raises(BackendError, match="Sparkle.*without custom operators"):
        make(tiny(tmp_path / "custom.onnx", custom=True))
    outside = tmp_path / "outside.onnx"
    onnx.save(
        onnx.load(tiny(tmp_path / "tiny.onnx")),
        outside,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    assert make(outside, options=BuildOptions(max_batch=1)).built, "external data beside the file is found"
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(BackendError, match="weights.bin.*is missing"):
        make(outside, options=BuildOptions(rebuild=True))
    assert not (tmp_path / "custom.engine").exists()


def test_suppression_inside_is_refused_before_the_build(rtx, tmp_path):
    made_for = ModelManifest(
        name="nms", version="1", file="nms.onnx", names=("nut",), preprocess=PreprocessSpec(imgsz=(32, 32))
    )
    with pytest.raises(BackendError) as e:
        build_engine(with_suppression(tmp_path / "nms.onnx"), made_for, device=CARD, trt=rtx)
    assert "NMS in the graph" in str(e.value) or "data-dependent size" in str(e.value), str(e.value)


def test_a_garbage_timing_cache_is_no_reason_to_fail(rtx, tmp_path):
    (tmp_path / "timings").write_bytes(b"garbage" * 100)
    assert build_engine(
        tiny(tmp_path / "tiny.onnx"),
        manifest(),
        options=BuildOptions(timing_cache=tmp_path / "timings"),
        device=CARD,
        trt=rtx,
    ).built


@pytest.mark.slow
@pytest.mark.real
def test_yolov8n_is_really_built(rtx, tmp_path, real_data, capsys):
    import onnxruntime as ort

    from cv_pipeline.inference.onnx import read_metadata

    model = real_data / "models/yolov8n_fp32_reconstructed.onnx"
    names = tuple(f"class{i}" for i in range(80))
    made_for = ModelManifest(name="yolov8n", version="8", file=model.name, names=names)
    start = time.perf_counter()
    built = build_engine(model, made_for, tmp_path / "yolov8n.engine", device=CARD, trt=rtx)
    with capsys.disabled():
        print(
            f"\n  yolov8n at 640 with {built.key.tensorrt} on the host: {time.perf_counter() - start:.2f} s, "
            f"{built.path.stat().st_size / 1e6:.1f} MB"
        )
    assert (
        built.key.batches == (1, 1, 1)
        and read_metadata
        and np.prod(ort.InferenceSession(model).get_inputs()[0].shape) > 0
    )
    dynamic = _with_dynamic_batch(model, tmp_path / "dynamic.onnx")
    assert build_engine(
        dynamic, made_for, options=BuildOptions(1, 4, 8), device=CARD, trt=rtx
    ).key.batches == (1, 4, 8)
    with pytest.raises(ModelSpecMismatch):
        build_engine(model, replace(made_for, names=names[:79]), tmp_path / "x.engine", device=CARD, trt=rtx)


@pytest.mark.slow
@pytest.mark.real
def test_yolov8n_in_half_precision_and_int8_is_built_and_the_int8_of_a_cpu_is_refused(
    rtx, tmp_path, real_data
):
    import cv2

    from cv_pipeline.inference.preprocess import Preprocessor
    from cv_pipeline.optimization.graphs import (
        dynamic_batch,
        half_precision,
        open_graph,
        save_graph,
        simplify,
    )
    from cv_pipeline.optimization.quantize import activation_ranges, quantize_cpu, quantize_tensorrt

    names = tuple(f"class{i}" for i in range(80))
    made_for = ModelManifest(name="yolov8n", version="8", file="m.onnx", names=names)
    graph = dynamic_batch(simplify(open_graph(real_data / "models/yolov8n_fp32_reconstructed.onnx")))
    images = [cv2.imread(str(p)) for p in sorted((real_data / "coco8").rglob("*.jpg"))[:2]]
    ranges = activation_ranges(graph, [Preprocessor(made_for.preprocess).batch([i])[0] for i in images])
    for kind, made in (("fp16", half_precision(graph)), ("int8", quantize_tensorrt(graph, ranges))):
        save_graph(made, tmp_path / f"{kind}.onnx")
        built = build_engine(
            tmp_path / f"{kind}.onnx", made_for, device=CARD, trt=rtx, options=BuildOptions(1, 4, 8)
        )
        assert (built.precision, built.key.batches) == (kind, (1, 4, 8))
    save_graph(quantize_cpu(graph, ranges), tmp_path / "cpu.onnx")
    with pytest.raises(BackendError, match="quantised for a CPU"):
        build_engine(tmp_path / "cpu.onnx", made_for, device=CARD, trt=rtx)


def _with_dynamic_batch(model: Path, to: Path) -> Path:
    """The same graph for any batch: the first axis of input and output gets a name, and constant shapes that
    begin with 1 begin with 0 (as it was) or −1."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(model)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.graph.value_info[:]
    shapes = {node.input[1] for node in graph.graph.node if node.op_type == "Reshape"}
    for tensor in graph.graph.initializer:
        if tensor.name in shapes:
            array = numpy_helper.to_array(tensor).copy()
            array[0] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for node in graph.graph.node:
        if node.op_type == "Constant" and node.output[0] in shapes:
            array = numpy_helper.to_array(node.attribute[0].t).copy()
            array[0] = 0
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(array))
    onnx.save(graph, to)
    return to
