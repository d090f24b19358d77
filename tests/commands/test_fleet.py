"""`cv-pipeline central` and `fleet` as a user meets them: the service as a process, a real device against it,
and bad input as a sentence with what to do."""

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cv_pipeline.commands.main import app
from cv_pipeline.core.files import write_json
from cv_pipeline.core.types import CVPipelineError, MissingExtraError
from cv_pipeline.edge.central import CentreStore
from cv_pipeline.edge.devices import example_fleet, read_pushes
from cv_pipeline.edge.forward import Forwarder, ForwardSettings, Link, LinkSettings
from cv_pipeline.edge.outbox import Outbox, OutboxSettings, outbox_status
from tests.helpers.cli import CLI, called, hears_ctrl_c
from tests.helpers.services import require
from tests.helpers.waiting import until

require("starlette")
PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def ask(*words):
    "Exit code (None: a typed error) and all text."
    done = CliRunner().invoke(app, list(map(str, words)), env=PLAIN)
    if isinstance(done.exception, MissingExtraError):
        raise done.exception
    if isinstance(done.exception, CVPipelineError):
        return None, str(done.exception)
    return done.exit_code, " ".join(done.output.split())


@pytest.fixture
def centre(tmp_path):
    with closing(CentreStore(tmp_path / "centre")) as store:
        example_fleet(store)
    return tmp_path / "centre"


def stored(folder):
    return closing(CentreStore(folder))


def test_the_fleet_as_a_table_and_as_json(centre, capsys):
    code, text = ask("fleet", "list", "--centre", centre)
    shown = text + " ".join(capsys.readouterr().out.split())
    assert code == 0 and "12 devices" in shown
    assert shown.index("box-08") < shown.index("box-04") < shown.index("box-01")
    done = CliRunner().invoke(app, ["fleet", "list", "--centre", str(centre), "--state", "disk", "--json"])
    (found,) = json.loads(done.stdout)
    assert (found["name"], found["state"], found["disk_free"]) == ("box-09", "disk", 0.02)


def test_a_push_by_name_from_a_repository_and_its_end(centre, tmp_path):
    (tmp_path / "releases" / "metadata").mkdir(parents=True)
    custom = {"name": "line", "version": "1.1", "digest": "c3" * 32}
    listed = {"signed": {"targets": {"line/1.1.bundle": {"custom": custom}}}}
    write_json(tmp_path / "releases" / "metadata" / "1.targets.json", listed)
    how = ("--centre", centre, "--releases", tmp_path / "releases")
    code, text = ask("fleet", "push", "line@1.1", *how, "--steps", "0.5,1", "--hours", "2")
    assert code == 0 and "pushed: line 1.1 c3c3c3c3c3c3, first to box-" in text
    with stored(centre) as store:
        (push,) = read_pushes(store)
        assert (push.state.policy.steps, push.state.policy.hours) == ((0.5, 1.0), 2.0)
        assert len(store.wanted) == 6
    assert ask("fleet", "push", "line@1.1", *how)[1].startswith("line 1.1 is on its way")
    assert ask("fleet", "push", "line@1.1", "--abort", "--reason", "wrong file", "--centre", centre)[0] == 0
    with stored(centre) as store:
        assert read_pushes(store)[0].state.stage == "aborted"


def test_pause_and_resume(centre):
    assert ask("fleet", "pause", "box-01,box-02", "--reason", "rebuilt", "--centre", centre)[0] == 0
    assert ask("fleet", "pause", "--reason", "stocktaking", "--centre", centre)[0] == 0
    with stored(centre) as store:
        assert store.paused == {"box-01": "rebuilt", "box-02": "rebuilt", "*": "stocktaking"}
    assert ask("fleet", "resume", "--centre", centre)[0] == 0
    with stored(centre) as store:
        assert sorted(store.paused) == ["box-01", "box-02"]


@pytest.mark.parametrize(
    "words, text",
    [
        (("fleet", "list", "--centre", "nowhere"), "not the folder of a centre .*central serve makes one"),
        (("fleet", "list", "--state", "sad"), "unknown state 'sad' .*known: no model, offline"),
        (("fleet", "push", "line@9"), r"unknown release 'line@9' .*give --releases"),
        (("fleet", "push", "c3", "--abort", "--reason", "x"), "no push of 'c3' is on its way"),
        (("fleet", "pause", "box-99", "--reason", "x"), "unknown devices: box-99"),
        (("central", "revoke", "box-99"), "'box-99' is not enrolled"),
        (("central", "code", "box 1"), "'box 1' is not a name of a device"),
        (("central", "code", "box-01"), "box-01 is enrolled .*central revoke box-01"),
        (("central", "serve", "--cert", "x.pem"), "a certificate and its key belong together"),
        (("central", "serve", "--host", "0.0.0.0"), "0.0.0.0 can be reached from other machines"),
        (("central", "serve", "--releases", "."), "not a repository of releases"),
    ],
)
def test_bad_input_is_a_sentence(centre, tmp_path, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CV_PIPELINE_OPERATOR", raising=False)
    code, said = ask(*words)
    assert code is None and re.search(text, said, re.S), said


@pytest.mark.slow
def test_the_service_from_a_code_to_a_row_and_a_clean_end(tmp_path):
    folder = tmp_path / "centre"
    made = CliRunner().invoke(app, ["central", "code", "box-01", "--site", "Brno", "--centre", str(folder)])
    code = made.stdout.split()[0]
    words = [CLI, "central", "serve", "--centre", str(folder), "--port", "0"]
    secret = {"CV_PIPELINE_OPERATOR": "correct horse battery", **PLAIN}
    service = subprocess.Popen(
        words, env={**os.environ, **secret}, stderr=subprocess.PIPE, text=True, preexec_fn=hears_ctrl_c
    )
    try:
        url = re.search(r"http://127.0.0.1:\d+", service.stderr.readline())[0]
        token, link = secrets.token_hex(32), Link(LinkSettings(url))
        body = json.dumps({"device": "box-01", "code": code, "token": token}).encode()
        assert link.ask("POST", "/enrol", body, {})[0].status == 200
        bearer = {"Authorization": f"Bearer {token}"}
        assert link.ask("POST", "/beat", b'{"state": "running"}', bearer)[0].status == 200
        with Outbox(tmp_path / "box", OutboxSettings(ballast_bytes=0)) as box:
            box.write([("event", {"n": 1})], durable=True)
            sender = Forwarder(box, link, lambda: token, ForwardSettings("box-01"))
            until(lambda: sender.step() == float("inf"))
            assert outbox_status(box).waiting == 0
        page = urllib.request.Request(
            f"{url}/metrics", headers={"Authorization": "Bearer correct horse battery"}
        )
        with urllib.request.urlopen(page, timeout=20) as answer:
            assert b'cv_pipeline_fleet_state{device="box-01",state="ok"} 1.0' in answer.read()
        assert ask("central", "revoke", "box-01", "--centre", folder)[0] == 0
        until(lambda: link.ask("POST", "/beat", b"{}", bearer)[0].status == 401)
        link.close()
        service.send_signal(signal.SIGTERM)
        _, rest = service.communicate(timeout=60)
    finally:
        service.kill()
    assert service.returncode == 0 and "Traceback" not in rest


UNIT = Path(__file__).resolve().parents[2] / "deploy" / "cv-pipeline-central.service"


def test_systemd_accepts_the_unit_of_the_centre(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    program = tmp_path / "cv-pipeline"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = UNIT.read_text().replace("/opt/cv_pipeline/bin/cv-pipeline", str(program))
    (tmp_path / UNIT.name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / UNIT.name)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0 and str(tmp_path) not in said.stderr, said.stderr


def test_the_unit_of_the_centre_runs_a_command_with_options_that_exist():
    line = re.search(r"^ExecStart=(.*)$", UNIT.read_text(), re.M)[1]
    program, *words = shlex.split(line)
    assert Path(program).name == "cv-pipeline" and words[:2] == ["central", "serve"]
    help_ = CliRunner().invoke(app, ["central", "serve", "--help"], env=PLAIN).output
    assert [w for w in words if w.startswith("--") and w not in help_] == []


@pytest.mark.slow
def test_the_report_of_a_fleet_runs_without_a_centre(tmp_path):
    done = called("report", "fleet", "--root", str(tmp_path), "--gate", "-p", "permutations=999")
    assert done.returncode == 1, done.stderr  # RED: a box is offline, and a model was halted
    metrics = json.loads(next(tmp_path.glob("*/fleet/metrics.json")).read_text())
    assert (metrics["verdict"], len(metrics["devices"])) == ("RED", 12)
    assert [p["stage"] for p in metrics["pushes"]] == ["promoted", "halted"]
    assert {r["reason"] for r in metrics["rollbacks"]} == {"golden pictures differ: 5 of 12"}
    assert [(g["device"], g["what"], g["rows"]) for g in metrics["gaps"]] == [("box-07", "gap", 900)]
    assert {d: v["drift"] for d, v in metrics["devices"].items() if v["drift"]}.keys() == {"box-01", "box-02"}


def test_the_verdict_of_a_trial_advances_a_push(centre, tmp_path):
    from cv_pipeline.release.rollout import Policy
    from cv_pipeline.release.trial import (
        Drawn,
        collect_runs,
        drawn_run,
        read_trial,
        small_registry,
        start_trial,
    )

    small_registry(tmp_path / "registry")
    off = dict.fromkeys(
        ("empty", "moved", "confidence", "slow", "dropped", "tracks", "class_disagree", "class_count")
    )
    policy = Policy(hours=0.0, steps=(1.0,), **off)
    trial = start_trial(tmp_path / "trial", tmp_path / "registry", "line@1.1", {"gate": "hall"}, policy)
    digest, how = read_trial(trial.folder).new_digest, ("--rollout", tmp_path / "trial", "--centre", centre)
    assert ask("fleet", "push", digest, "--centre", centre, "--steps", "0.5,1", "--hours", "9")[0] == 0
    code, text = ask("fleet", "advance", digest[:12], *how)
    assert code == 0 and text.startswith("INSUFFICIENT: canary on 6 devices"), "nothing was collected"
    drawn = Drawn({"disagree": 0.5, "lost": 0.5, "count": -0.5}, hours=4, fps=0.2)
    collect_runs(trial.folder, [drawn_run(tmp_path / "run" / "evidence.json", trial, {"gate": {}}, drawn)])
    code, text = ask("fleet", "advance", digest[:12], *how)
    assert code == 1 and text.startswith("ROLLBACK: rolled back on 0 devices")
    code, text = ask("fleet", "advance", "e" * 12, *how)
    assert code is None and "this trial is of line 1.1, not of" in text
