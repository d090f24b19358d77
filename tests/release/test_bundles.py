"""Bundles: the same bytes everywhere, read back whole, and refused when anything is not as listed; golden
pictures that notice what bytes do not show."""

import io
import json
import os
import shutil
import struct
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cv_pipeline.core.files import read_json
from cv_pipeline.core.types import BackendError, ConfigError, DataError, ModelSpecMismatch, SinkError
from cv_pipeline.evaluation.intervals import Verdict
from cv_pipeline.inference.backends import make_postprocessor
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import (
    Artefact,
    ModelManifest,
    bundled_models,
    load_manifest,
    save_manifest,
)
from cv_pipeline.inference.preprocess import Preprocessor
from cv_pipeline.release import bundles as B
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig
from tests.helpers.power_cut import Disk


def small_model(folder, weights=b"weights" * 100, **fields):
    "A model folder for everything that never runs it: five files, one of them below a folder."
    folder.mkdir(parents=True)
    (folder / "net.bin").write_bytes(weights)
    save_manifest(ModelManifest("small", "net.bin", ("part",), **{"version": "1.0", **fields}), folder)
    (folder / "gate.json").write_text("{}")
    (folder / "extra" / "deep").mkdir(parents=True)
    (folder / "extra" / "deep" / "curve.csv").write_text("a,b\n")
    (folder / "extra" / "empty.txt").write_text("")
    return folder


@pytest.fixture
def small(tmp_path):
    return small_model(tmp_path / "small")


@pytest.fixture
def bundle(small, tmp_path):
    return B.make_bundle(small, tmp_path / "small.bundle"), tmp_path / "small.bundle"


def files_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_bundle_comes_back_as_it_was(bundle, small, tmp_path):
    index = B.unpack_bundle(bundle[1], tmp_path / "out")
    made = files_of(tmp_path / "out")
    assert made.pop("bundle.json") == index.to_bytes()
    assert made == files_of(small)


def test_a_bundle_of_an_unpacked_bundle_is_the_same_file(bundle, tmp_path):
    B.unpack_bundle(bundle[1], tmp_path / "out")
    B.make_bundle(tmp_path / "out", tmp_path / "again.bundle")
    assert (tmp_path / "again.bundle").read_bytes() == bundle[1].read_bytes()


def test_the_bytes_are_the_same_for_ever(tmp_path):
    "A pinned digest: neither another Python nor another machine may give another one."
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "net.bin").write_bytes(bytes(range(256)))
    (folder / "manifest.json").write_text('{"name": "m", "file": "net.bin", "names": ["ü"]}')
    made = B.make_bundle(folder, tmp_path / "m.bundle")
    assert made.index.digest == "1fc649a24e78f2db9888f386c2301ef957f1ea2b544c3c6470441d3c3ac9a156"
    assert B.file_sha256(tmp_path / "m.bundle") == (
        "c33a30f7ea08fed4941b1ed1573ca05bb44f00978dbcbf15c4325721495db550"
    )


def test_times_owners_and_order_do_not_get_in(small, bundle, tmp_path):
    shutil.copytree(small, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    B.make_bundle(tmp_path / "copy", tmp_path / "copy.bundle")
    assert (tmp_path / "copy.bundle").read_bytes() == bundle[1].read_bytes()


def test_every_tar_reads_it(bundle, small):
    with tarfile.open(bundle[1]) as archive:
        found = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
    assert found.pop("bundle.json") == bundle[0].index.to_bytes()
    assert found == files_of(small)


@pytest.mark.parametrize("path", ["a" * 90 + "/" + "b" * 90 + ".txt", "dir/" + "ü" * 40 + ".txt", "c" * 100])
def test_long_names_come_back(small, tmp_path, path):
    (small / path).parent.mkdir(exist_ok=True)
    (small / path).write_text("x")
    B.make_bundle(small, tmp_path / "b")
    B.unpack_bundle(tmp_path / "b", tmp_path / "out")
    assert (tmp_path / "out" / path).read_text() == "x"
    assert path in tarfile.open(tmp_path / "b").getnames()


@pytest.mark.parametrize("change", ["net.bin", "gate.json", "manifest.json", "extra/deep/curve.csv"])
def test_another_byte_is_another_digest(small, bundle, change):
    place = small / change
    if change == "net.bin":
        place.write_bytes(b"others" * 100)
        save_manifest(load_manifest_of(small), small)
    elif change == "manifest.json":
        save_manifest(replace(load_manifest_of(small), version="1.1"), small)
    else:
        place.write_text("{} ")
    assert B.contents_of(small).index.digest != bundle[0].index.digest


def load_manifest_of(folder):
    data = read_json(folder / "manifest.json")
    return ModelManifest.from_dict({**data, "sha256": ""})


def test_hidden_files_and_engines_stay_at_home(small, tmp_path):
    (small / ".net.bin.123-0.part").write_text("a draft")
    (small / "fast.engine").write_bytes(b"for this card")
    manifest = load_manifest_of(small)
    rows = (Artefact("fast.engine", "tensorrt", "fp16"), Artefact("net.bin", "onnxruntime", "fp32"))
    save_manifest(replace(manifest, artefacts=rows), small)
    made = B.make_bundle(small, tmp_path / "b")
    B.unpack_bundle(tmp_path / "b", tmp_path / "out")
    assert [a.file for a in load_manifest(tmp_path / "out")[0].artefacts] == ["net.bin"]
    assert [f.path for f in made.index.files if f.path.startswith((".", "fast"))] == []
    assert made.left_out == ("fast.engine: its entry in the manifest with it",)
    assert B.contents_of(tmp_path / "out").index.digest == made.index.digest


def test_an_artefact_that_is_not_the_judged_one_is_not_bundled(small):
    (small / "half.bin").write_bytes(b"half")
    save_manifest(
        replace(load_manifest_of(small), artefacts=(Artefact("half.bin", "onnxruntime", "fp16"),)), small
    )
    (small / "half.bin").write_bytes(b"other")
    with pytest.raises(ModelSpecMismatch, match="not the file that passed the gate"):
        B.contents_of(small)


@pytest.mark.parametrize(
    "spoil, text",
    [
        (lambda f: os.symlink("/etc/passwd", f / "x"), "'x' is a symbolic link"),
        (lambda f: os.symlink("/", f / "extra" / "root"), "'root' is a symbolic link"),
        (lambda f: os.mkfifo(f / "pipe"), "neither a file nor a folder"),
        (lambda f: (f / "aux.txt").write_text("x"), "'aux.txt' cannot be kept"),
        (lambda f: (f / "a:b").write_text("x"), "'a:b' cannot be kept"),
        (lambda f: (f / os.fsdecode(b"caf\xe9")).write_text("x"), "cannot be kept on every system"),
        (lambda f: [(f / n).write_text("x") for n in ("A.txt", "a.txt")], "duplicate on some systems"),
        (
            lambda f: (f / "n" / ("x" * 101)).parent.mkdir() or (f / "n" / ("x" * 101)).write_text(""),
            "too long",
        ),
    ],
)
def test_what_no_bundle_can_hold_is_named(small, tmp_path, spoil, text):
    spoil(small)
    with pytest.raises(B.BundleError, match=text):
        B.make_bundle(small, tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "what, error, text",
    [
        ("nothing", BackendError, "model not found"),
        ("empty", ModelSpecMismatch, "no manifest.json"),
        ("small/net.bin", ModelSpecMismatch, "unknown"),
        ("small/manifest.json", B.BundleError, "made of a model folder"),
    ],
)
def test_what_is_not_a_model_folder_is_refused(small, tmp_path, what, error, text):
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=text):
        B.contents_of(tmp_path / what)


def test_a_file_that_changes_while_it_is_written_is_refused(small, tmp_path, monkeypatch):
    monkeypatch.setattr(B, "_pieces", lambda path: iter([b"x" * path.stat().st_size]))
    with pytest.raises(B.BundleError, match="has changed meanwhile"):
        B.make_bundle(small, tmp_path / "b")
    assert not (tmp_path / "b").exists()


# --- bundles from elsewhere


def refused(data, tmp_path, **how):
    "What unpacking these bytes says; nothing may be left of them."
    (tmp_path / "bad.bundle").write_bytes(data)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(B.BundleError) as e:
        B.unpack_bundle(tmp_path / "bad.bundle", tmp_path / "out", **how)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    return str(e.value)


@settings(max_examples=60, deadline=None)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_bit_can_be_changed(tmp_path_factory, where, bit):
    folder = tmp_path_factory.mktemp("bits")
    B.make_bundle(small_model(folder / "small"), folder / "b")
    data = bytearray((folder / "b").read_bytes())
    data[int(where * len(data))] ^= 1 << bit
    refused(bytes(data), folder)


@pytest.mark.parametrize("left", [0, 1, 511, 512, 700, 1500, 3000, -1, -1024])
def test_a_bundle_that_is_cut_off_is_refused(bundle, tmp_path, left):
    data = bundle[1].read_bytes()
    text = refused(data[:left] if left >= 0 else data[:left], tmp_path)
    assert "cut off" in text or "not a bundle" in text


@pytest.mark.parametrize("more", [b"\0", b"x", b"\0" * 512])
def test_trailing_bytes_are_refused(bundle, tmp_path, more):
    assert "holds more than its list" in refused(bundle[1].read_bytes() + more, tmp_path)


def archive_of(index_bytes, members):
    "A tar with these members, made by the standard library."
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(*member("bundle.json", index_bytes))
        for one in members:
            archive.addfile(*one)
    head = B._header("bundle.json", len(index_bytes))
    return head + out.getvalue()[512:]


def member(path, data=b"", **how):
    info = tarfile.TarInfo(path)
    info.size = len(data)
    for key, value in how.items():
        setattr(info, key, value)
    return info, io.BytesIO(data)


@pytest.mark.parametrize(
    "kind, text",
    [
        (tarfile.SYMTYPE, "'extra/deep/curve.csv' is a symbolic link"),
        (tarfile.LNKTYPE, "'extra/deep/curve.csv' is a link"),
        (tarfile.CHRTYPE, "'extra/deep/curve.csv' is a device"),
        (tarfile.BLKTYPE, "'extra/deep/curve.csv' is a device"),
        (tarfile.FIFOTYPE, "'extra/deep/curve.csv' is a named pipe"),
        (tarfile.DIRTYPE, "'extra/deep/curve.csv/' is a folder"),
    ],
)
def test_what_is_not_a_file_is_refused(bundle, tmp_path, kind, text):
    one = member("extra/deep/curve.csv", type=kind, linkname="/etc/passwd")
    assert text in refused(archive_of(bundle[0].index.to_bytes(), [one]), tmp_path)


def test_a_path_that_leads_out_is_refused(bundle, tmp_path):
    data = archive_of(bundle[0].index.to_bytes(), [member("../evil", b"x")])
    assert "'../evil' is found where 'extra/deep/curve.csv' is expected" in refused(data, tmp_path)


@pytest.mark.parametrize(
    "paths, text",
    [
        (["../x"], "cannot be kept"),
        (["/x"], "cannot be kept"),
        (["a/../../x"], "cannot be kept"),
        (["C:/x"], "cannot be kept"),
        ([".ssh/authorized_keys"], "cannot be kept"),
        (["a\\b"], "cannot be kept"),
        (["a\0b"], "cannot be kept"),
        (["BUNDLE.json"], "is reserved"),
        (["A", "a"], "duplicate on some systems"),
        (["a", "a/b"], "is a file and a folder"),
    ],
)
def test_a_list_with_hostile_paths_is_refused(tmp_path, paths, text):
    rows = tuple(B.BundleFile(p, 0, B.hashlib.sha256(b"").hexdigest()) for p in sorted(paths))
    assert text in refused(archive_of(B.BundleIndex("m", "1", rows).to_bytes(), []), tmp_path)


def test_sizes_are_refused_before_anything_is_written(tmp_path):
    huge = B.BundleIndex("m", "1", (B.BundleFile("net.bin", 5 << 40, "0" * 64),))
    assert "5,242,880 MiB; at most 4,096" in refused(archive_of(huge.to_bytes(), []), tmp_path)
    many = tuple(B.BundleFile(f"f{k:05}", 0, "0" * 64) for k in range(3))
    data = archive_of(B.BundleIndex("m", "1", many).to_bytes(), [])
    assert "3 files; at most 2" in refused(data, tmp_path, limits=B.BundleLimits(files=2))
    head = B._header("bundle.json", 3 << 20)
    assert "its list has 3 MiB; at most 2" in refused(head + bytes(3 << 20), tmp_path)


@pytest.mark.parametrize("size", [-1, 2**70])
def test_sizes_that_are_none_are_refused(tmp_path, size):
    odd = B.BundleIndex("m", "1", (B.BundleFile("net.bin", size, "0" * 64),))
    assert "is refused" in refused(archive_of(odd.to_bytes(), []), tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"", b"PK\3\4" + bytes(2000), b"\x1f\x8b" + bytes(2000), bytes(5000), b"\xff" * 5000],
    ids=["empty", "zip", "gzip", "zeros", "ones"],
)
def test_foreign_files_are_refused(tmp_path, data):
    assert "not a bundle" in refused(data, tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "{", '{"format": "cv_pipeline bundle 2", "files": []}', '{"format": 3}']
)
def test_foreign_lists_are_refused(tmp_path, text):
    assert "not the list of a bundle" in refused(archive_of(text.encode(), []), tmp_path)


def test_a_list_in_another_order_or_spelling_is_refused(bundle, tmp_path):
    index = bundle[0].index
    turned = replace(index, files=index.files[::-1])
    assert "not sorted" in refused(archive_of(turned.to_bytes(), []), tmp_path)
    spelled = json.dumps(json.loads(index.to_bytes())).encode()
    assert "it was changed" in refused(archive_of(spelled, []), tmp_path)


def test_a_list_that_names_another_model_than_its_manifest_is_refused(bundle, tmp_path, small):
    contents = bundle[0]
    with open(tmp_path / "odd.bundle", "wb") as file:
        B._write_archive(replace(contents, index=replace(contents.index, version="9.9")), file)
    text = refused((tmp_path / "odd.bundle").read_bytes(), tmp_path)
    assert "its manifest is of small 1.0, its list of small 9.9" in text


def test_another_model_than_the_expected_one_is_refused(bundle, tmp_path):
    assert "expected ffff" in refused(bundle[1].read_bytes(), tmp_path, digest="f" * 64)


def test_nothing_is_unpacked_over_a_folder_that_exists(bundle, small):
    before = files_of(small)
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        B.unpack_bundle(bundle[1], small)
    assert files_of(small) == before


def test_a_disk_without_space_is_noticed_before_writing(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(B.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 100))
    with pytest.raises(SinkError, match="the disk has 0 MB left"):
        B.unpack_bundle(bundle[1], tmp_path / "deep" / "out")
    assert not (tmp_path / "deep").exists()


def test_an_unpacked_bundle_survives_a_power_cut_and_is_never_half_there(bundle, tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk", monkeypatch)
    B.unpack_bundle(bundle[1], tmp_path / "disk" / "models" / "v1")
    there = []
    for k in range(len(disk.moments)):
        place = disk.after_cut(tmp_path / f"cut{k}", k) / "models" / "v1"
        there.append(place.exists())
        if place.exists():
            assert B.verify_folder(place).digest == bundle[0].index.digest
    disk.close()
    assert there[-1] is True


def test_reading_writes_nothing_and_reads_all(bundle, tmp_path):
    assert B.read_bundle(bundle[1]) == bundle[0].index
    data = bytearray(bundle[1].read_bytes())
    data[-1025] ^= 1
    (tmp_path / "bad").write_bytes(data)
    with pytest.raises(B.BundleError):
        B.read_bundle(tmp_path / "bad")


@pytest.mark.parametrize(
    "name, text", [("none", "cannot be read"), (".", "this is a folder"), ("a\0", "cannot")]
)
def test_what_is_not_a_file_is_a_typed_error(tmp_path, name, text):
    with pytest.raises(B.BundleError, match=text):
        B.read_bundle(tmp_path / name)


# --- folders that were unpacked


@pytest.mark.parametrize(
    "spoil, text",
    [
        (lambda f: (f / "net.bin").write_bytes(b"x"), "'net.bin' was changed"),
        (lambda f: (f / "gate.json").unlink(), "'gate.json' is missing"),
        (lambda f: (f / "run.sh").write_text("x"), "'run.sh' does not belong to it"),
        (lambda f: (f / "extra" / "deep" / "x").write_text("x"), "'extra/deep/x' does not belong"),
        (lambda f: (f / "bundle.json").unlink(), "file not found"),
        (lambda f: (f / "bundle.json").write_text("{}"), "not the list of a bundle"),
        (lambda f: (f / "gate.json").unlink() or os.symlink("net.bin", f / "gate.json"), "a symbolic link"),
    ],
)
def test_a_folder_that_changed_is_noticed(bundle, tmp_path, spoil, text):
    B.unpack_bundle(bundle[1], tmp_path / "out")
    spoil(tmp_path / "out")
    with pytest.raises(B.BundleError, match=text):
        B.verify_folder(tmp_path / "out")


def test_an_engine_built_on_the_device_belongs_to_it(bundle, tmp_path):
    B.unpack_bundle(bundle[1], tmp_path / "out")
    (tmp_path / "out" / "fast.engine").write_bytes(b"for this card")
    assert B.verify_folder(tmp_path / "out") == bundle[0].index


@pytest.mark.parametrize("name", ["files", "total_mb", "index_mb"])
def test_limits_without_room_are_refused(name):
    with pytest.raises(ConfigError, match="must be above 0"):
        B.BundleLimits(**{name: 0})


def test_numbers_of_the_header_are_those_of_the_standard():
    head = B._header("a/b.txt", 1234)
    info = tarfile.TarInfo.frombuf(head, "utf-8", "strict")
    assert (info.name, info.size, info.mode, info.mtime, info.uid, info.type) == (
        "a/b.txt",
        1234,
        0o644,
        0,
        0,
        b"0",
    )
    assert struct.calcsize("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12s") == len(head) == 512


# --- golden pictures


@pytest.fixture(scope="module")
def model():
    return load_model("factory_line", threads=1)


@pytest.fixture(scope="module")
def pictures():
    return [f.image for f, _ in FactoryLine(LineConfig(seed=9)).frames(240, every=15)]


@pytest.fixture(scope="module")
def golden(model, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden") / "line"
    shutil.copytree(bundled_models()["factory_line"], folder)
    B.write_golden(model, pictures, folder, n=9)
    return folder


@pytest.mark.slow
def test_golden_pictures_are_small_few_and_exact(model, golden):
    files = sorted((golden / "golden").glob("*.jpg"))
    assert len(files) == 9
    assert sum(p.stat().st_size for p in files) <= 1_000_000
    check = B.check_golden(model, golden)
    assert (check.verdict, check.pictures, check.matched) == (Verdict.PASS, 9, 1.0)
    assert check.boxes > 20 and check.agreement > 0.999


def fault(model, **changes):
    return replace(model, preprocess=Preprocessor(replace(model.manifest.preprocess, **changes)))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.slow
def test_mixed_up_colours_are_caught_at_every_precision(model, golden, precision):
    check = B.check_golden(fault(model, color="BGR"), golden, precision)
    assert check.verdict is Verdict.FAIL
    assert any(reason.startswith("colours:") for reason in check.reasons)


@pytest.mark.parametrize(
    "spoil, what",
    [
        (lambda m: m.with_postprocess(conf=0.85), "boxes"),
        (lambda m: fault(m, letterbox="stretch"), "places"),
        (lambda m: fault(m, scale=1.0), "boxes"),
        (lambda m: renamed(m, ("bolt", "gear", "nut", "bracket", "defect")), "classes"),
        (lambda m: renamed(m, ("a", "b", "c", "d", "e")), "boxes"),
    ],
)
def test_faults_are_caught_and_named(model, golden, spoil, what):
    check = B.check_golden(spoil(model), golden)
    assert check.verdict is Verdict.FAIL
    assert any(reason.startswith(f"{what}:") for reason in check.reasons)


def renamed(model, names):
    manifest = replace(model.manifest, names=names)
    return replace(model, manifest=manifest, postprocess=make_postprocessor(manifest))


def test_a_model_that_raises_fails_and_says_why(model, golden):
    class Broken:
        max_batch, provider, name = 1, "broken", "broken"

        def infer(self, batch):
            raise BackendError("the output contains NaN", "broken")

    check = B.check_golden(replace(model, backend=Broken()), golden)
    assert check.verdict is Verdict.FAIL and check.reasons == ["runs: the output contains NaN"]


@pytest.mark.parametrize(
    "spoil, text",
    [
        (lambda g: shutil.rmtree(g), "no golden pictures"),
        (lambda g: (g / "01.jpg").write_bytes(b"x"), "'01.jpg' was changed"),
        (lambda g: (g / "01.jpg").unlink(), "No such file"),
        (lambda g: (g / "golden.json").write_text("{"), "not readable golden pictures: invalid JSON"),
        (lambda g: (g / "golden.json").write_text("{}"), "not readable golden pictures"),
        (lambda g: edit(g, lambda b: b.update(pictures=[])), "lists no pictures"),
        (lambda g: edit(g, lambda b: b["pictures"][0].update(file="../../manifest.json")), "was changed"),
        (lambda g: edit(g, lambda b: b["pictures"][0]["boxes"][0].update({"class": "cat"})), "'cat'"),
        (lambda g: edit(g, lambda b: b["pictures"][0]["boxes"][0].update(xyxy=[1, 2])), "not readable"),
    ],
)
def test_damaged_golden_pictures_are_a_typed_error(model, golden, tmp_path, spoil, text):
    shutil.copytree(golden, tmp_path / "m")
    spoil(tmp_path / "m" / "golden")
    with pytest.raises(DataError, match=text):
        B.check_golden(model, tmp_path / "m")


def edit(folder, change):
    book = read_json(folder / "golden.json")
    change(book)
    (folder / "golden.json").write_text(json.dumps(book))


@pytest.mark.parametrize("n", [7, 17])
def test_a_number_of_golden_pictures_outside_the_range_is_refused(model, pictures, n):
    with pytest.raises(ConfigError, match="choose 8 to 16"):
        B.choose_golden(model, pictures, n)


def test_too_few_or_empty_pictures_are_refused(model, pictures):
    with pytest.raises(DataError, match="3 pictures"):
        B.choose_golden(model, pictures[:3])
    with pytest.raises(DataError, match="0 detections"):
        B.choose_golden(model, [np.full((48, 64, 3), 90, np.uint8)] * 12)


@pytest.mark.slow
def test_large_pictures_are_made_smaller_until_they_fit(pictures):
    large = [np.kron(p, np.ones((3, 3, 1), np.uint8)) for p in pictures[:8]]
    assert sum(map(len, B._encoded(large, 300_000))) <= 300_000
    with pytest.raises(ConfigError, match="do not fit"):
        B._encoded(large, 1000)


def test_an_unknown_precision_is_refused(model, golden):
    with pytest.raises(ConfigError, match="unknown precision 'fp8'"):
        B.check_golden(model, golden, "fp8")


def test_chosen_pictures_are_unlike_each_other():
    points = np.repeat(np.eye(4) * 10, 25, axis=0) + np.random.default_rng(0).normal(0, 0.1, (100, 4))
    assert len({k // 25 for k in B._farthest(points, 4)}) == 4
