"""The files under deploy/: checked by the programs that will read them, where they are here."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from cv_pipeline.core.config import load_config
from cv_pipeline.edge.agent import AgentSettings
from tests.helpers.services import absent, require

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "cv-pipeline@.service"
AGENT = DEPLOY / "cv-pipeline-device.service"
ALERTS = DEPLOY / "cv-pipeline-alerts.service"


def unit(file: Path = UNIT) -> dict[str, dict[str, list[str]]]:
    "Section → key → values: keys may be repeated, which configparser does not allow."
    found: dict[str, dict[str, list[str]]] = {}
    for line in file.read_text().splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("file", [UNIT, AGENT, ALERTS], ids=lambda p: p.stem)
def test_systemd_accepts_the_unit(tmp_path, file):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    program = tmp_path / "cv-pipeline"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    text = file.read_text().replace("/opt/cv_pipeline/bin/cv-pipeline", str(program))
    place = tmp_path / file.name.replace("@", "@line")
    place.write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(place)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    assert str(tmp_path) not in said.stderr, said.stderr


def test_the_unit_restarts_what_fails_and_stops_what_hangs():
    service = unit()["Service"]
    assert service["Type"] == ["notify"] and int(service["WatchdogSec"][0]) >= 30
    assert service["Restart"] == ["on-failure"] and service["RestartPreventExitStatus"] == ["2"]
    assert "143" in service["SuccessExitStatus"][0].split()
    assert service["ProtectSystem"] == ["strict"] and service["NoNewPrivileges"] == ["yes"]


def test_the_unit_of_an_agent_is_as_closed_as_that_of_a_run():
    "It may do nothing more than a run; it gets more time to end, since the run ends before it."
    run, agent = unit()["Service"], unit(AGENT)["Service"]
    own = {
        "ExecStart",
        "ExecReload",
        "EnvironmentFile",
        "TimeoutStartSec",
        "TimeoutStopSec",
        "MemoryMax",
        "KillMode",
    }
    assert {k: v for k, v in agent.items() if k not in own} == {k: v for k, v in run.items() if k not in own}
    assert int(agent["TimeoutStopSec"][0]) > AgentSettings().grace_s and agent["KillMode"] == ["mixed"]
    assert int(agent["WatchdogSec"][0]) > AgentSettings().grace_s + 10


def test_the_unit_of_an_agent_runs_a_command_that_exists():
    from typer.testing import CliRunner

    from cv_pipeline.commands.main import app

    program, *words = shlex.split(unit(AGENT)["Service"]["ExecStart"][0])
    assert Path(program).name == "cv-pipeline" and words[-1] == "/etc/cv-pipeline/device.yaml"
    assert CliRunner().invoke(app, [*words[:-2], "--help"]).exit_code == 0


def test_the_unit_of_alerts_is_as_closed_as_that_of_a_run_and_its_command_exists():
    from typer.testing import CliRunner

    from cv_pipeline.commands.main import app

    run, alerts = unit()["Service"], unit(ALERTS)["Service"]
    for key in ("ProtectSystem", "NoNewPrivileges", "CapabilityBoundingSet", "PrivateTmp", "Restart"):
        assert alerts[key] == run[key], key
    program, *words = shlex.split(alerts["ExecStart"][0])
    said = CliRunner().invoke(app, [*words[:2], "--help"], env={"COLUMNS": "200"})
    assert said.exit_code == 0 and all(w in said.output for w in words if w.startswith("--"))


def test_the_unit_runs_a_command_that_exists():
    from typer.testing import CliRunner

    from cv_pipeline.commands.main import app

    program, *words = shlex.split(unit()["Service"]["ExecStart"][0])
    assert Path(program).name == "cv-pipeline"
    said = CliRunner().invoke(app, [words[0], "--help"])
    assert said.exit_code == 0 and "--config" in said.output


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_an_image_runs_as_nobody_and_says_how_it_is(name):
    text = (DEPLOY / name).read_text()
    last = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001:10001$", last, re.M)
    assert re.search(r"^HEALTHCHECK .* CMD \[\"cv-pipeline\", \"health\"", last, re.M)
    assert "--require-hashes" in text and ":latest" not in text
    assert not re.search(r"(?i)password|secret|api_key", text)


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.gpu"])
def test_a_linter_finds_nothing_in_the_image(name):
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if linter is None:
        absent("no hadolint here")
    said = subprocess.run([linter, str(DEPLOY / name)], capture_output=True, text=True, timeout=60)
    assert (said.returncode, said.stdout) == (0, "")


def test_the_compose_file_refers_to_what_is_there():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert set(services) == {"pipeline", "prometheus", "alertmanager"}
    for name, service in services.items():
        assert service["read_only"] is True and service["cap_drop"] == ["ALL"], name
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            there = (DEPLOY / source).exists() if source.startswith(".") else source in compose["volumes"]
            assert there, volume
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
    build = services["pipeline"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()


def test_the_configuration_of_the_container_is_one(monkeypatch):
    config = load_config(DEPLOY / "line.yaml")
    assert config.health.token_env == "HEALTH_TOKEN" and config.health.port == 8080
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    assert config.health.token_env in compose["services"]["pipeline"]["environment"]


def test_the_files_for_prometheus_are_those_that_the_command_writes(tmp_path):
    from cv_pipeline.monitoring.exporter import ScrapeAccess, write_monitoring_files

    access = ScrapeAccess(token_file="/run/secrets/health_token", alertmanagers=("alertmanager:9093",))
    for path in write_monitoring_files(tmp_path, ["pipeline:8080"], access=access):
        assert path.read_text() == (DEPLOY / "monitoring" / path.name).read_text(), path.name


def test_a_real_prometheus_accepts_them(tmp_path):
    tool = shutil.which("promtool")
    if tool is None:
        absent("no promtool here")
    (tmp_path / "token").write_text("x" * 16)
    shutil.copytree(DEPLOY / "monitoring", tmp_path / "monitoring")
    file = tmp_path / "monitoring" / "prometheus.yml"
    file.write_text(file.read_text().replace("/run/secrets/health_token", str(tmp_path / "token")))
    said = subprocess.run([tool, "check", "config", str(file)], capture_output=True, text=True, timeout=60)
    assert said.returncode == 0, said.stderr


def locked(name: str) -> dict[str, tuple[str, int]]:
    "package → version, and how many hashes it has."
    text = (DEPLOY / f"{name}.lock").read_text()
    found = {}
    for block in re.split(r"\n(?=\S)", text):
        if head := re.match(r"([A-Za-z0-9_.-]+)==(\S+)", block):
            found[head[1].lower().replace("_", "-")] = head[2], block.count("--hash=sha256:")
    return found


@pytest.mark.parametrize("name", ["core", "edge"])
def test_every_locked_package_has_hashes_and_all_that_is_asked_for_is_locked(name):
    packaging = require("packaging.requirements")
    found = locked(name)
    assert found and all(hashes for _, hashes in found.values())
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    asked = settings["DEFAULT"]["requirements"]
    if name == "edge":
        asked += " " + settings["DEFAULT"]["edge_requirements"]
    for text in asked.split():
        wanted = packaging.Requirement(text)
        version, _ = found[wanted.name.lower()]
        assert wanted.specifier.contains(version), text


@pytest.mark.parametrize("name", ["core", "edge"])
def test_a_lock_names_no_index_of_whoever_made_it(name):
    text = (DEPLOY / f"{name}.lock").read_text()
    assert not re.search(r"--(extra-)?index-url|--find-links|--trusted-host|file:|https?:", text)


def test_copyleft_over_the_network_comes_with_training_alone():
    rows = (ROOT / "docs" / "licences.md").read_text().splitlines()
    table = [[c.strip() for c in row.strip("|").split("|")] for row in rows if row.startswith("| ")]
    of = {name: (licence, where) for name, licence, where in table[1:]}
    assert {where for licence, where in of.values() if "AGPL" in licence} == {"train"}
    assert not any("GPL" in of[name][0] for name in locked("core") if name in of)
    missing = set(locked("edge")) - set(of)
    assert not missing, f"python docs/licences.py: {missing}"
    assert "AGPL" in (ROOT / "README.md").read_text()
