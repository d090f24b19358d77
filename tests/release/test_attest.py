"""What a device reports about a file that cannot be run here: a real kit, a process of its own, and every way
in which a parity file is not what it claims."""

import json
import shutil
import subprocess
import sys

import pytest

from cv_pipeline.core.types import CVPipelineError, DataError
from cv_pipeline.inference.loading import load_model
from cv_pipeline.inference.manifest import find_model, load_manifest
from cv_pipeline.release import attest as A
from cv_pipeline.release.bundles import read_golden, write_golden
from cv_pipeline.synthetic.belt import FactoryLine, LineConfig


@pytest.fixture(scope="module")
def proven(tmp_path_factory):
    "A model folder with golden pictures and a file for a chip, and the parity file of a device."
    root = tmp_path_factory.mktemp("attest")
    folder = root / "model"
    shutil.copytree(find_model("factory_line"), folder)
    model = load_model(folder, threads=1)
    lines = (FactoryLine(LineConfig(size=(320, 240), seed=s)).render(30 * s) for s in range(16))
    write_golden(model, (frame.image for frame, _ in lines), folder, n=8)
    model.close()
    (folder / "model.rknn").write_bytes(b"a file for the chip")
    kit, names = A.write_kit(folder, root / "kit"), list(read_golden(folder)[1])
    known = {
        p.name: [
            {"class": names[c], "confidence": float(s), "xyxy": (b + 0.3).tolist()}
            for c, s, b in zip(p.expected.class_id, p.expected.confidence, p.expected.xyxy)
        ]
        for p in read_golden(folder)[0]
    }
    (kit / "answers.json").write_text(json.dumps(known))
    (kit / "chip.py").write_text(
        "import json, pathlib\n"
        "known = json.loads((pathlib.Path(__file__).parent / 'answers.json').read_text())\n"
        "def run(path):\n    return known[pathlib.Path(path).name]\n"
    )
    words = ["--file", str(folder / "model.rknn"), "--runtime", "rknn", "--precision", "int8"]
    words += ["--device", "A board", "--version", "2.3", "--run", "chip:run"]
    subprocess.run(
        [sys.executable, "-I", str(kit / "device_parity.py"), *words], cwd=kit, check=True, timeout=120
    )
    return folder, kit / "parity.json"


@pytest.fixture
def folder(proven, tmp_path):
    return shutil.copytree(proven[0], tmp_path / "model")


@pytest.fixture
def given(proven, tmp_path):
    "A parity file with changes; signed again unless `signed` is False."

    def make(signed=True, **changes):
        book = {**json.loads(proven[1].read_text()), **changes}
        book["digest"] = A.digest_of(book) if signed else book["digest"]
        path = tmp_path / "given.json"
        path.write_text(json.dumps(book))
        return path

    return make


@pytest.mark.slow
def test_a_device_that_agrees_is_recorded(folder, proven):
    check, artefact = A.attest(folder, proven[1])
    assert check.matched == 1.0 and check.pictures == 8
    (listed,) = [a for a in load_manifest(folder)[0].artefacts if a.backend == "rknn"]
    record = listed.verdict("device: A board")
    assert (record["accepted"], record["runtime version"]) == (True, "2.3")
    assert record["attested"] == json.loads(proven[1].read_text())["digest"]


def test_it_is_not_accepted_on_this_machine(folder, proven):
    from cv_pipeline.inference.choice import candidates

    A.attest(folder, proven[1])
    (row,) = [c for c in candidates(load_manifest(folder)[0], folder) if c.artefact.backend == "rknn"]
    assert "device: A board" in row.refused


def test_the_model_still_runs_with_such_a_file_beside_it(folder, proven):
    A.attest(folder, proven[1])
    model = load_model(folder, backend="auto", threads=1)
    assert "rknn" not in model.backend.provider
    model.close()


def test_what_is_not_proven_is_listed_so(folder, proven):
    before = {r["runtime"]: r["status"] for r in A.proofs(load_manifest(folder)[0])}
    assert all(s.startswith("not proven") for s in before.values()) and set(before) == {"rknn", "hailo"}
    A.attest(folder, proven[1])
    after = {r["runtime"]: r["status"] for r in A.proofs(load_manifest(folder)[0])}
    assert after["rknn"] == "proven on A board by 8 golden pictures"
    assert after["hailo"].startswith("not proven")


def test_two_devices_keep_their_verdicts(folder, given):
    A.attest(folder, given())
    A.attest(folder, given(device="Another board"))
    (listed,) = [a for a in load_manifest(folder)[0].artefacts if a.backend == "rknn"]
    assert {"device: A board", "device: Another board"} <= {
        listed.gate["instruction set"],
        *listed.gate["elsewhere"],
    }


@pytest.mark.parametrize("field", ["device", "precision", "pictures", "artefact", "runtime_version"])
def test_an_edited_file_is_refused(folder, given, field):
    changed = [] if field == "pictures" else {} if field == "artefact" else "fp16"
    with pytest.raises(DataError, match="edited after it was written"):
        A.attest(folder, given(signed=False, **{field: changed}))


def test_one_changed_digit_is_refused(folder, proven, tmp_path):
    text = proven[1].read_text()
    at = text.index('"confidence": 0.') + len('"confidence": 0.')
    (tmp_path / "p.json").write_text(text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :])
    with pytest.raises(DataError, match="edited after it was written"):
        A.attest(folder, tmp_path / "p.json")


def test_a_device_that_is_blind_is_refused_with_reasons(folder, given, proven):
    rows = [{**p, "boxes": []} for p in json.loads(proven[1].read_text())["pictures"]]
    with pytest.raises(DataError, match="boxes: 0.0% of them match"):
        A.attest(folder, given(pictures=rows))
    assert not [a for a in load_manifest(folder)[0].artefacts if a.backend == "rknn"]


def test_a_device_that_moves_boxes_is_refused(folder, given, proven):
    rows = json.loads(proven[1].read_text())["pictures"]
    for p in rows:
        for b in p["boxes"]:
            b["xyxy"] = [v + 12 for v in b["xyxy"]]
    with pytest.raises(DataError, match="does not find what the model finds"):
        A.attest(folder, given(pictures=rows))


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"format": "x"}, "not a parity file"),
        ({"runtime": "magic"}, "unknown"),
        ({"precision": "fp8"}, "unknown"),
        ({"device": " "}, "not a parity file"),
        ({"pictures": 3}, "not a parity file"),
        ({"pictures": []}, "no answer about the golden picture"),
        ({"artefact": {"file": "../x", "sha256": ""}}, "not in the model folder"),
        ({"artefact": {"file": "gone.rknn", "sha256": ""}}, "not in the model folder"),
        ({"artefact": {"file": "model.rknn", "sha256": "0"}}, "another file"),
        ({"artefact": {}}, "not a parity file"),
    ],
    ids=str,
)
def test_what_a_parity_file_is_not(folder, given, changes, why):
    with pytest.raises(DataError, match=why):
        A.attest(folder, given(**changes))


@pytest.mark.parametrize(
    "box",
    [
        {"class": "cat", "confidence": 0.5, "xyxy": [1, 2, 3, 4]},
        {"class": "gear", "confidence": 1.5, "xyxy": [1, 2, 3, 4]},
        {"class": "gear", "confidence": 0.5, "xyxy": [1, 2, 3]},
        {"class": "gear", "confidence": 0.5, "xyxy": [1, 2, 3, float("nan")]},
        {"confidence": 0.5},
        7,
    ],
    ids=str,
)
def test_boxes_are_checked(folder, given, proven, box):
    rows = json.loads(proven[1].read_text())["pictures"]
    rows[0]["boxes"] = [box]
    with pytest.raises(DataError):
        A.attest(folder, given(pictures=rows))


@pytest.mark.parametrize("text", ["", "[]", "{", "nonsense"])
def test_a_file_that_is_no_json(folder, tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(CVPipelineError):
        A.attest(folder, tmp_path / "p.json")


def test_a_folder_without_golden_pictures(tmp_path, proven):
    shutil.copytree(find_model("factory_line"), tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "golden", ignore_errors=True)
    (tmp_path / "bare" / "model.rknn").write_bytes(b"a file for the chip")
    with pytest.raises(CVPipelineError, match="no golden pictures"):
        A.attest(tmp_path / "bare", proven[1])


def test_the_command_writes_the_kit_and_takes_the_file(folder, proven, tmp_path, capsys):
    from cv_pipeline.commands.models import optimize
    from cv_pipeline.core.types import ConfigError

    optimize(str(folder), kit=tmp_path / "kit")
    assert sorted(p.name for p in (tmp_path / "kit").iterdir()) == ["device_parity.py", "golden"]
    optimize(str(folder), attest=proven[1])
    assert [a for a in load_manifest(folder)[0].artefacts if a.backend == "rknn"]
    with pytest.raises(ConfigError, match="give one of"):
        optimize(str(folder))
