"""The site: every command, setting, metric, file and exit code of the package has a place on a page."""

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import build_site  # noqa: E402
import reference  # noqa: E402

from cv_pipeline.core import types as errors  # noqa: E402
from cv_pipeline.core.config import RunConfig  # noqa: E402

TEMPORARY = {  # names of files that no user meets: of drafts, of demos, inside of other formats
    *(
        "agent.log",
        "brno.sqlite",
        "cut.html",
        "fleet.html",
        "hall.mp4",
        "story.json",
        "leaks.json",
        "run.yaml",
    ),
    *("sites.html", "net.bin", "made.onnx", "cv_pipeline.inference.onnx", "yolov8n.yaml", "yunet_n.onnx"),
    *("calibration_image_sample_data_20x128x128x3_float32.npy", "ai.onnx", "metadata.yaml", "readme.txt"),
    *(
        "track.jpg",
        "gt.txt",
        "det.txt",
        "-000000.parquet",
        "gt/gt.txt",
        "det/det.txt",
        "1.root.json",
        "val.json",
    ),
}
NAME = re.compile(
    r"[\w-]+\.(json|jsonl|parquet|yaml|yml|html|md|csv|sqlite|mp4|npy|npz|log|bin|webp|xml|txt|onnx|jpg|png)"
)


@pytest.fixture(scope="module")
def pages():
    "Every generated page."
    return reference.pages()


@pytest.mark.slow
def test_every_command_has_its_place_with_every_option(pages):
    text = "\n".join(t for name, t in pages.items() if name.startswith("commands_"))
    commands = reference.all_commands()
    assert len(commands) > 130
    for path, command in commands.items():
        section = text.partition(f"\n## {' '.join(path)}\n")[2].partition("\n## ")[0]
        assert section, path
        assert f"[`{' '.join(path)}`](commands_" in pages["commands.md"], path
        for parameter in command.params:
            if parameter.name != "help":
                names = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]
                assert all(f"`{n}`" in section for n in names), (path, names)


def test_a_command_that_is_new_has_no_page_until_the_site_is_built_again(pages, monkeypatch):
    real = reference.all_commands()
    monkeypatch.setattr(reference, "all_commands", lambda: {**real, ("run", "away"): real["run",]})
    assert "\n## run away\n" in reference.command_pages()["commands_run.md"]
    assert "\n## run away\n" not in pages["commands_run.md"]


def fields_of(kind, seen):
    "Every field below a class of settings."
    if kind in seen:
        return
    seen.add(kind)
    for name, info in kind.model_fields.items():
        yield kind.__name__, name
        for inner in reference.sections_in(info.annotation):
            yield from fields_of(inner, seen)


def test_every_setting_of_a_run_has_a_row(pages):
    page, found = pages["settings_cameras_yaml.md"], list(fields_of(RunConfig, set()))
    assert len(found) > 200
    for kind, name in found:
        section = page.partition(f"\n## {kind}\n")[2].partition("\n## ")[0]
        assert f"| `{name}` |" in section, (kind, name)


def test_settings_say_what_they_take_and_their_default(pages):
    rows = pages["settings_cameras_yaml.md"]
    assert "| `transport` | `tcp` · `udp` | `tcp` | RTSP transport. |" in rows
    assert "| `sources` | list of [SourceConfig](#sourceconfig) | **required** |" in rows
    for name, text in pages.items():
        if name.startswith("settings_"):
            assert not re.search(r"\| (Any|typing\.|<class|ForwardRef)", text), name


def readers():
    "Modules that read YAML of a person, by syntax."
    for path, tree in reference.trees():
        called = {getattr(n.func, "id", "") for n in ast.walk(tree) if isinstance(n, ast.Call)}
        if "read_yaml" in called and str(path) != "core/files.py":
            yield str(path.with_suffix("")).replace("/", ".")


def test_every_module_that_reads_yaml_is_on_the_page_of_settings():
    named = {w.partition(":")[0] for _, classes in reference.SETTINGS.values() for w in classes}
    named |= {module for module, _ in reference.SEVERAL.values()} | set(reference.OTHERS)
    assert not set(readers()) - named, "add it to docs/reference.py: SETTINGS, SEVERAL or OTHERS"


@pytest.mark.slow
def test_every_family_of_metrics_was_read():
    made = [
        call
        for _, tree in reference.trees()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "").endswith("MetricFamily")
    ]
    found = reference.metrics()
    constant = {c.args[0].value for c in made if isinstance(c.args[0], ast.Constant)}
    assert constant <= {n.removesuffix("_total") for n, *_ in found}
    for call in made:  # an f-string: its head begins a name that was found
        if not isinstance(call.args[0], ast.Constant):
            head = call.args[0].values[0].value
            assert any(n.startswith(head) for n, *_ in found), head
    assert all(text for _, _, text, _, _ in found)


def test_every_metric_of_the_rules_and_the_dashboard_is_on_the_page(pages):
    used = set()
    for path in (ROOT / "deploy" / "monitoring").glob("*"):
        used |= set(re.findall(r"\bcv_pipeline_[a-z_]+", path.read_text(encoding="utf-8")))
    ends = ("_bucket", "_sum", "_count")
    names = {n for n, *_ in reference.metrics()}
    missing = {u for u in used if u not in names and not any(u.removesuffix(e) in names for e in ends)}
    assert len(used) > 15 and missing <= {"cv_pipeline_rules"}  # a file


@pytest.mark.slow
def test_a_real_scrape_holds_no_metric_that_the_page_lacks(tmp_path):
    from prometheus_client import CollectorRegistry, generate_latest

    from cv_pipeline.service.assembly import build_pipeline
    from cv_pipeline.video.health import PipelineCollector

    config = RunConfig(
        sources=[{"uri": "line:frames=3"}], delivery={"out": str(tmp_path / "out")}, telemetry=True
    )
    pipeline = build_pipeline(config)
    pipeline.run()
    registry = CollectorRegistry()
    registry.register(PipelineCollector(pipeline))
    seen = set(re.findall(r"^# TYPE (\w+)", generate_latest(registry).decode(), re.M))
    names = {n for n, *_ in reference.metrics()}
    assert len(seen) > 10 and not seen - names


def test_every_file_that_the_package_names_is_on_the_page_of_files():
    page, missing = (ROOT / "docs" / "files.md").read_text(encoding="utf-8"), {}
    for path, tree in reference.trees():
        for text in reference._texts(tree):
            name = text.rpartition("/")[2]
            if NAME.fullmatch(name) and " " not in text and name not in TEMPORARY and f"`{name}`" not in page:
                missing.setdefault(name, str(path))
    assert not missing


def test_the_modules_of_the_page_of_files_exist():
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    modules = {
        m for row in re.findall(r"^\|.*\|([^|]*)\|$", page, re.M) for m in re.findall(r"`([\w.]+)`", row)
    }
    assert len(modules) > 40
    for module in modules:
        assert (ROOT / "cv_pipeline" / f"{module.replace('.', '/')}.py").exists(), module


def test_every_column_has_a_meaning(pages):
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \|(.*)\|$", pages["columns.md"], re.M)
    assert len(rows) > 60 and not [name for name, text in rows if not text.strip()]


def test_every_exit_code_and_error_is_on_its_page(pages):
    kinds = [v for v in vars(errors).values() if inspect.isclass(v) and issubclass(v, errors.CVPipelineError)]
    for kind in kinds:
        row = next(r for r in pages["exit_codes.md"].splitlines() if r.startswith(f"| {kind.exit_code} |"))
        assert f"`{kind.__name__}`" in row
    from cv_pipeline.commands.main import app

    for code in re.findall(r"(\d+)(?= [a-z]|,)", app.info.epilog):
        assert f"\n| {code} |" in pages["exit_codes.md"], code


def test_every_variable_has_a_meaning():
    assert reference.environment() == set(reference.ENVIRONMENT)


def test_every_exported_name_is_on_a_page_with_its_book(pages):
    for path, tree in reference.trees():
        if len(path.parts) < 2:
            continue
        page = pages.get(f"names_{path.parts[0]}.md", "")
        for name in reference.exported(tree):
            assert f"| `{name}` |" in page, (path, name)


def test_extras_of_the_page_are_those_of_the_package():
    import configparser

    given = configparser.ConfigParser(delimiters=["="])
    given.read(ROOT / "settings.ini", encoding="utf-8")
    extras = {k.removesuffix("_requirements") for k in given["DEFAULT"] if k.endswith("_requirements")}
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    table = page.partition("<!-- extras -->")[2].partition("<!-- end of extras -->")[0]
    assert set(re.findall(r"`\[(\w+)\]`", table)) == extras


def test_the_site_has_four_parts_every_page_and_its_sentence(tmp_path):
    names = ("00_core/00_escaping", "01_synthetic/01_belt", "reports/drift")
    chosen = [build_site.read_book(ROOT / "nbs" / f"{name}.ipynb") for name in names]
    src = tmp_path / "src"
    src.mkdir()
    chapters = build_site.write_pages(src, chosen)
    nav = build_site.navigation(src, chapters)
    assert [next(iter(part)) for part in nav] == ["Start", "Reference", "Books", "Operations"]
    listed = re.findall(r"\S+\.md\b", yaml.safe_dump(nav))
    there = {str(p.relative_to(src)) for p in src.rglob("*.md")}
    assert sorted(listed) == sorted(set(listed)) and set(listed) == there
    build_site.write_llms(src, nav)
    text = (src / "llms.txt").read_text(encoding="utf-8")
    links = re.findall(r"^- \[([^\]]+)\]\(([^)]+)\): (.+)$", text, re.M)
    assert {at for _, at, _ in links} == there - {"llms.txt"} and len(links) == len(there)
    whole = (src / "llms-full.txt").read_text(encoding="utf-8")
    assert "## run\n" in whole and "| `transport` |" in whole and "cv_pipeline.core.escaping" not in whole


def test_a_link_to_a_file_that_is_gone_stays_for_the_check(tmp_path):
    text = "[a](gone.md) [b](operations.md) `[c](gone.md)`"
    places = {(ROOT / "docs" / "operations.md").resolve(): "operations.md"}
    made = build_site.linked(text, ROOT / "docs", places, "x/y.md")
    assert made == "[a](gone.md) [b](../operations.md) `[c](gone.md)`"


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("# T\n\nOne `health: {port: 1}` thing. Two.", "One `health: {port: 1}` thing."),
        ("# T\n\n> Quoted [link](x.md).\n\nMore", "Quoted link."),
        ("# T\n\n| a |\n\n```bash\nx\n```\n\nText:", "Text"),
        ("# T", ""),
    ],
)
def test_the_first_sentence_of_a_page(text, sentence):
    assert build_site.summary_of(text) == sentence
