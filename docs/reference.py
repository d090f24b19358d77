"""The reference pages of the site, made from the package itself: commands, settings, metrics, exit codes,
environment variables and the names of every module. `python docs/reference.py [FOLDER]` writes them;
docs/build_site.py does it too.

Nothing is written a second time here: a command's page is its help, a setting's row its declaration, a
metric's row the place where it is made. Needs nothing but the core.
"""

import ast
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cv_pipeline"

SETTINGS = {  # a page each: file → (what it is, the classes that read it)
    "cameras.yaml": (
        "A run: cameras, model, thresholds, tracker, rules, what is written. `cv-pipeline config --show` "
        "prints it with every default, `cv-pipeline config --schema` as JSON schema.",
        ["core.config:RunConfig"],
    ),
    "manifest.json": (
        "A model folder: how a picture becomes the model's input, how its output becomes detections, and its "
        "files. `manifest.yaml` and `manifest.yml` are read too.",
        [
            "inference.manifest:ModelManifest",
            "inference.manifest:PreprocessSpec",
            "inference.manifest:PostprocessSpec",
            "inference.manifest:Artefact",
        ],
    ),
    "device.yaml": (
        "A device in the field: its run, its folder, its centre. "
        "`cv-pipeline device run --config device.yaml`.",
        ["edge.box:DeviceConfig", "edge.box:CentreConfig", "edge.agent:AgentSettings"],
    ),
    "policy.yaml": (
        "Who is called, by which way, at which hours. `cv-pipeline alerts policy check policy.yaml`.",
        ["alerts.policy:Policy"],
    ),
    "plan.yaml": (
        "A capacity plan. `cv-pipeline plan plan.yaml`; `--example` prints one, and the prices.",
        ["scale.capacity:PlanConfig"],
    ),
    "cluster.yaml": (
        "What `cv-pipeline manifests write` needs to know of a cluster.",
        ["scale.manifests:Cluster", "scale.manifests:Hours"],
    ),
    "lifecycle.yaml": (
        "How long each kind of file is kept, and in which tier: `prefix`, `versioned`, and `kinds`, a name "
        "and its ages each. `cv-pipeline lifecycle check lifecycle.yaml`.",
        ["scale.lifecycle:Kind"],
    ),
    "serve.yaml": (
        "A model behind Ray Serve, as `cv-pipeline serve-ray --out` writes it: arguments of its application.",
        ["scale.serve:ServeArgs"],
    ),
    "moderation.json": (
        "What a machine may decide alone. `cv-pipeline moderate run --policy policy.json`.",
        ["apps.decisions:Policy", "apps.context:Context"],
    ),
    "retraining": (
        "When to train again: the options of `cv-pipeline retrain-check`.",
        ["monitoring.retraining:RetrainPolicy"],
    ),
}
PLAN = "`as_of`, `currency`, `source`, `items`: name → [low, high]. `cv-pipeline plan --example` prints them."
DATA = "Ultralytics' file of a dataset: `path`, `train`, `val`, `names`. [What is read](../what_is_read.md)"
KEEP = "`privacy: {retain: {pictures: 30d}}` in the file of a run, or alone. [Privacy](../privacy.md)"
READY = "[Are we ready?](../checklist.md)"
SEVERAL = {  # files that are read without a class: the module, and where their keys are explained
    "prices.yaml": ("scale.prices", PLAN),
    "stores.yaml": (
        "privacy.places",
        "`stores`: a list of {kind, path, url, bucket}. [Privacy](../privacy.md)",
    ),
    "privacy.yaml": ("privacy.retention", KEEP),
    "changes.yaml": (
        "monitoring.retraining",
        "`changes`: a list of {kind: class or environment, name, since}",
    ),
    "data.yaml": ("core.data_yaml", DATA),
    "rules.yaml": ("tracking.conditions", "`events` of a run, alone. [Rules](../rules.md)"),
    "names.yaml": ("core.class_names", "class names in seven shapes. [What is read](../what_is_read.md)"),
    "checklist.yaml": ("readiness.evidence", "what is in service, where evidence lies. " + READY),
    "ontology.yaml": ("readiness.checks_labels", "definitions of classes. " + READY),
    "decisions/NAME.yaml": ("readiness.decide", "answers, and what follows from them. `cv-pipeline decide`"),
    "metadata.yaml": ("inference.openvino", "Ultralytics' file beside an OpenVINO export"),
}
OTHERS = {  # modules that read YAML which is described elsewhere
    "annotation.versions": "data.yaml of a version",
    "privacy.record": "stores.yaml",
    "commands.cluster": "definitions of resources, as Kubernetes' projects publish them",
    "core.config": "cameras.yaml",
    "edge.box": "device.yaml",
    "alerts.policy": "policy.yaml",
    "scale.capacity": "plan.yaml",
    "scale.manifests": "cluster.yaml",
    "scale.lifecycle": "lifecycle.yaml",
    "readiness.demo_project": "a decision of the demo, which it edits",
}
STATES = {  # outside of the exceptions
    1: "a cell of a report failed, its gate is closed, or what was checked is not as it must be",
    70: "something unexpected: a bug, or no memory left; `CV_PIPELINE_TRACEBACK=1` shows where",
    129: "ended by SIGHUP; files are complete up to there",
    130: "ended by Ctrl-C; files are complete up to there",
    143: "ended by SIGTERM; files are complete up to there",
}
ENVIRONMENT = {  # what a user may set
    "CV_PIPELINE_ACCESS_LOG": "path of the access log: who looked at which pictures",
    "CV_PIPELINE_ALERTS_TOKEN": "token of the alerts daemon for /metrics, /incidents and webhooks",
    "CV_PIPELINE_CACHE": "folder for measurements of a machine; else the user's cache folder",
    "CV_PIPELINE_DEVICE_TOKEN": "token of a device, from its enrolment",
    "CV_PIPELINE_KEY_PASSPHRASE": "encrypts the private keys that sign releases",
    "CV_PIPELINE_ONNX2TF": "the program onnx2tf, in an environment of its own: LiteRT files",
    "CV_PIPELINE_OPERATOR": "password of the fleet page, and token of its interface",
    "CV_PIPELINE_PNNX": "the program pnnx: NCNN files",
    "CV_PIPELINE_PRIVACY_OFF": "a reason: copies of stored pictures are not covered; it is stamped on them",
    "CV_PIPELINE_RFDETR_PYTHON": "Python of an environment that has rfdetr, for `train --with rfdetr`",
    "CV_PIPELINE_TRACEBACK": "1: an error is printed with its whole traceback",
    "CV_PIPELINE_TRUST_CHECKPOINTS": "1: opens any checkpoint of torch; only for files of your own",
    "CV_PIPELINE_WIDGETS": "1: panels are widgets, 0: still cards; else by what started the kernel",
}
TABLES = {  # file → the function that gives its columns
    "results.parquet": "core.results:results_schema",
    "events.parquet": "video.events:events_schema",
    "frames of the prediction log": "monitoring.telemetry:frames_schema",
    "detections of the prediction log": "monitoring.telemetry:detections_schema",
    "frames.parquet of a unit": "scale.units:frames_schema",
    "rows of an index of vectors": "core.vectors:row_schema",
    "counts of a site": "alerts.snapshots:counts_schema",
}
COLUMNS = {  # what a column means wherever it occurs
    "area_share": "area of the box / area of the picture",
    "at": "when it happened, UTC",
    "blur": "0 sharp … 1 nothing is sharp",
    "box": "device that wrote the row",
    "brightness": "mean of the grey picture, 0–255",
    "camera": "id of the source",
    "captured_at": "when the frame was taken, UTC: the camera's clock where it can be believed",
    "class_id": "number of the class, as in the manifest",
    "class_name": "name of the class",
    "confidence": "0–1, calibrated where the model folder says so",
    "contrast": "standard deviation of the grey picture",
    "decision": "accept, or review (between `conf` and `accept_conf`)",
    "detections": "boxes of the frame: a count, or a list",
    "direction": "of a line that was crossed",
    "dwell_s": "seconds in the zone",
    "embedding": "of the picture or box",
    "anomaly": "how unlike good parts of its class a box is, 0..1; -1: it was not judged",
    "event_id": "a hash: the same event has the same id in every copy",
    "frame_id": "number of the frame in its source, from 0",
    "height": "pixels",
    "hour": "begin of the hour, UTC",
    "inferred": "whether the model was asked",
    "keypoints": "x, y, visibility by turns, pixels of the original picture",
    "kind": "of the event, or of what is counted",
    "latency_ms": "preprocessing, model call and postprocessing of the frame",
    "lost": "the track ended inside of the zone",
    "mask": "COCO's compressed run lengths",
    "model": "name, version and digest",
    "n": "count",
    "noise": "estimated standard deviation of the noise, grey levels",
    "path": "of the picture",
    "picture": "path of the file",
    "plus_minus": "half width of the interval of `value`",
    "rule": "name of the zone, line or rule",
    "run": "id of the run",
    "saturation": "mean distance between the strongest and the weakest colour, 0–255",
    "scores": "a score a class",
    "selected": "whether frame selection took the frame",
    "sha256": "of the file",
    "site": "name of the site",
    "source_id": "id of the source",
    "status": "ok, or why there is no result",
    "tracker_id": "number of the track; −1: not confirmed, never counted",
    "uncertain": "boxes in the uncertain band",
    "value": "what the rule measured: speed, count, seconds",
    "width": "pixels",
    "x": "where it happened, pixels",
    "xywhr": "centre, size and angle (radians) of an oriented box",
    "y": "where it happened, pixels",
    **dict.fromkeys(("x1", "y1", "x2", "y2"), "corner of the box, pixels of the original picture"),
    **{f"c{k}": f"of these, confidence in {k / 10:g}–{(k + 1) / 10:g}" for k in range(10)},
}


def cell(text: object) -> str:
    "A text in a cell of a Markdown table."
    return re.sub(r"\s*\n\s*", " ", str(text)).replace("|", "\\|").replace("<", "&lt;").strip()


def table(head: list[str], rows: list[list[object]]) -> str:
    "A Markdown table."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell(v) for v in row) + " |" for row in lines) + "\n"


def anchor(text: str) -> str:
    "The address of a heading, as MkDocs makes it."
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text.lower()).strip())


# commands ------------------------------------------------------------------------------------------


def leaves(found, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], object]]:
    "Every command below this one, with the words that call it."
    make = getattr(getattr(found, "callback", None), "make", None)
    found = make() if make is not None else found
    if hasattr(found, "list_commands"):
        for name in found.list_commands(None):
            yield from leaves(found.get_command(None, name), (*path, name))
    else:
        yield path, found


def application():
    "The command line as click sees it."
    import typer

    from cv_pipeline.commands.main import app

    return typer.main.get_command(app)


def all_commands() -> dict[tuple[str, ...], object]:
    "Words → command, for each that does something."
    root = application()
    return {
        p: c for name in root.list_commands(None) for p, c in leaves(root.get_command(None, name), (name,))
    }


def _kind(parameter: Any) -> str:
    "What is typed after an option; empty for a switch."
    described = getattr(parameter, "type_descriptor", None)  # of Typer since 0.20; before, click's type
    kind: Any = described.annotation if described is not None else parameter.type
    if getattr(parameter, "is_flag", False):
        return ""
    origin, given = typing.get_origin(kind), typing.get_args(kind)
    several = ", several" if origin in (list, tuple) else ""
    kind = given[0] if origin is not None else kind
    if inspect.isclass(kind) and issubclass(kind, Enum):
        return " · ".join(f"`{m.value}`" for m in kind) + several
    if choices := getattr(kind, "choices", None):
        return " · ".join(f"`{getattr(c, 'value', c)}`" for c in choices) + several
    name = str(getattr(kind, "__name__", getattr(kind, "name", kind))).split()[0].lower()
    words = {
        "int": "whole number",
        "integer": "whole number",
        "float": "number",
        "str": "text",
        "path": "path",
    }
    return words.get(name, name) + several


def _default(parameter: Any) -> str:
    "What holds when an option is not given."
    text = getattr(parameter, "show_default", None)
    if isinstance(text, str):
        return f"`{text}`"
    value = parameter.default
    if callable(value) or value in (None, (), [], "") or getattr(parameter, "is_flag", False):
        return "on" if value is True else ""
    return f"`{getattr(value, 'value', value)}`"


def command_section(path: tuple[str, ...], command) -> str:
    "Heading, sentence, examples and options of a command."
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    words = [a.name.upper() if a.required else f"[{a.name.upper()}]" for a in arguments]
    usage = " ".join(["cv-pipeline", *path, *(["[OPTIONS]"] if options else []), *words])
    examples = re.findall(r"`([^`]+)`", command.epilog or "")
    lines = [
        f"## {' '.join(path)}",
        "",
        (command.help or "").replace("<", "&lt;"),
        "",
        "```bash",
        *examples,
        "```",
        "",
    ]
    lines += [f"`{usage}`", ""]
    rows = [[f"`{a.name.upper()}`", _kind(a), _default(a), getattr(a, "help", "") or ""] for a in arguments]
    for o in options:
        names = ", ".join(f"`{n}`" for n in [*o.opts, *o.secondary_opts])
        rows.append([names, _kind(o), _default(o), ("required; " if o.required else "") + (o.help or "")])
    return "\n".join(lines) + ("\n" + table(["", "takes", "default", ""], rows) if rows else "") + "\n"


def command_pages() -> dict[str, str]:
    "A page a panel, and the list of all."
    from cv_pipeline.commands.main import PANELS

    commands, pages = all_commands(), {}
    root = application()
    index = [
        "# Commands",
        "",
        "What `cv-pipeline --help` lists, in the order of the work. [Exit codes](exit_codes.md).",
        "",
    ]
    for panel, names in PANELS.items():
        page = f"commands_{anchor(panel).replace('-', '_')}.md"
        mine = {p: c for p, c in commands.items() if p[0] in names.split()}
        groups = {n: root.get_command(None, n) for n in names.split()}
        head = [f"# {panel}", "", f"Commands: {', '.join(f'`{n}`' for n in groups)}.", ""]
        for name, found in groups.items():
            if hasattr(found, "list_commands"):
                head += [f"`{name}`: {found.help}", ""]
        pages[page] = "\n".join(head) + "\n" + "\n".join(command_section(p, c) for p, c in mine.items())
        rows = [
            [f"[`{' '.join(p)}`]({page}#{anchor(' '.join(p))})", (c.help or "").split("\n\n")[0]]
            for p, c in mine.items()
        ]
        index += [f"## {panel}", "", table(["command", ""], rows)]
    return {"commands.md": "\n".join(index), **pages}


# settings ------------------------------------------------------------------------------------------


def named(where: str) -> type:
    "`core.config:RunConfig` → the class."
    module, _, name = where.partition(":")
    return getattr(import_module(f"cv_pipeline.{module}"), name)


def is_section(kind: object) -> bool:
    "Whether a type has fields of its own."
    return inspect.isclass(kind) and (hasattr(kind, "model_fields") or is_dataclass(kind))


def sections_in(kind: object) -> list[type]:
    "The classes with fields that a type names, in order."
    if is_section(kind):
        return [kind]  # type: ignore[list-item]
    return [s for part in typing.get_args(kind) for s in sections_in(part)]


def type_words(kind: object) -> str:
    "A type as a reader of YAML sees it."
    origin, given = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return type_words(given[0])
    if origin is typing.Literal:
        return " · ".join(f"`{v}`" for v in given)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(type_words(g) for g in given))
    if origin is not None:
        name = {"list": "list", "tuple": "list", "dict": "mapping", "Sequence": "list", "Mapping": "mapping"}
        inner = ", ".join(dict.fromkeys(type_words(g) for g in given if g is not Ellipsis))
        word = name.get(getattr(origin, "__name__", ""), getattr(origin, "__name__", str(origin)))
        return f"{word} of {inner}" if inner else word
    if is_section(kind):
        return f"[{kind.__name__}](#{anchor(kind.__name__)})"  # type: ignore[union-attr]
    words = {
        "NoneType": "nothing",
        "str": "text",
        "int": "whole number",
        "float": "number",
        "bool": "true or false",
    }
    name = getattr(kind, "__name__", str(kind))
    return words.get(name, name.lower() if name in ("Path",) else name)


def rows_of(kind: type) -> Iterator[tuple[str, object, object, str]]:
    "Name, type, default and text of each field; ... where it must be given."
    if hasattr(kind, "model_fields"):
        for name, info in kind.model_fields.items():
            default = ... if info.is_required() else info.get_default(call_default_factory=True)
            yield info.alias or name, info.annotation, default, info.description or ""
        return
    from cv_pipeline.commands.options import comments

    hints, texts = typing.get_type_hints(kind, include_extras=True), comments(kind)
    for f in fields(kind):
        made = f.default_factory() if f.default_factory is not MISSING else f.default
        yield f.name, hints[f.name], ... if made is MISSING else made, texts.get(f.name, "")


def default_words(value: object) -> str:
    "A default as YAML has it; nested sections have their own table."
    if value is ...:
        return "**required**"
    if value in (None, ""):
        return ""
    if is_section(type(value)):
        return "its defaults"
    if isinstance(value, (tuple, list, dict)) and not value:
        return "none"
    if isinstance(value, (tuple, list)) and any(is_section(type(v)) for v in value):
        return "its defaults"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def settings_page(name: str) -> str:
    "Every key of a file, a table a section."
    about, classes = SETTINGS[name]
    lines, waiting, seen = [f"# {name}", "", about, ""], [named(c) for c in classes], set()
    while waiting:
        kind = waiting.pop(0)
        if kind in seen:
            continue
        seen.add(kind)
        found = list(rows_of(kind))
        own = lambda t: " ".join(sentence_of(k) for k in sections_in(t)[:1])
        rows = [[f"`{n}`", type_words(t), default_words(d), text or own(t)] for n, t, d, text in found]
        lines += [
            f"## {kind.__name__}",
            "",
            cell(inspect.getdoc(kind) or ""),
            "",
            table(["key", "takes", "default", ""], rows),
        ]
        waiting = [s for _, t, _, _ in found for s in sections_in(t)] + waiting
    return "\n".join(lines)


def settings_pages() -> dict[str, str]:
    "A page a file, and the list of all."
    pages = {f"settings_{n.replace('.', '_')}.md": settings_page(n) for n in SETTINGS}
    rows = [[f"[{n}]({page})", SETTINGS[n][0]] for n, page in zip(SETTINGS, pages)]
    rows += [[f"`{n}`", text] for n, (_, text) in SEVERAL.items()]
    return {
        "settings.md": "# Settings\n\nEvery file that a person writes, with every key.\n\n"
        + table(["file", ""], rows),
        **pages,
    }


# metrics -------------------------------------------------------------------------------------------


@cache
def trees() -> list[tuple[Path, ast.Module]]:
    "Every module of the package as a syntax tree."
    paths = [p for p in sorted(PACKAGE.rglob("*.py")) if p.name != "_modidx.py"]
    return [(p.relative_to(PACKAGE), ast.parse(p.read_text(encoding="utf-8"))) for p in paths]


def _texts(node: ast.AST | None) -> list[str]:
    "Constant texts in a node, in order."
    return (
        [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        if node
        else []
    )


def _filled(function: ast.AST, variable: str) -> Iterator[tuple[str, str]]:
    "Constants that a variable of an f-string takes, with the text beside each: from a loop, or from calls."
    for loop in ast.walk(function):
        if not isinstance(loop, ast.For) or variable not in [
            n.id for n in ast.walk(loop.target) if isinstance(n, ast.Name)
        ]:
            continue
        listed = loop.iter
        if isinstance(listed, ast.Name):
            given = [
                a.value
                for a in ast.walk(function)
                if isinstance(a, ast.Assign) and a.targets[0].id == listed.id
            ]
            listed = given[0] if given else listed
        for row in getattr(listed, "elts", []):
            yield row.elts[0].value, row.elts[1].value
    inner = [
        f
        for f in ast.walk(function)
        if isinstance(f, ast.FunctionDef) and variable in [a.arg for a in f.args.args]
    ]
    for helper in inner:
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == helper.name:
                yield call.args[0].value, call.args[1].value


def metrics() -> list[tuple[str, str, str, list[str], str]]:
    "Name, kind, text, labels and module of every family; counters as they are scraped, with `_total`."
    found = []
    for path, tree in trees():
        for function in [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))]:
            for call in ast.walk(function):
                kind = getattr(getattr(call, "func", None), "id", "")
                if not kind.endswith("MetricFamily"):
                    continue
                labels = [t for k in call.keywords if k.arg == "labels" for t in _texts(k.value)]
                first, text = call.args[0], call.args[1]
                if isinstance(first, ast.Constant):
                    names = [(first.value, "".join(_texts(text)))]
                else:
                    head, tail = first.values[0].value, first.values[1].value.id
                    names = [(head + n, t) for n, t in _filled(function, tail)]
                word = kind.removesuffix("MetricFamily").lower()
                found += [(n + "_total" * (word == "counter"), word, t, labels, str(path)) for n, t in names]
    return sorted(set((n, k, t, tuple(lb), p) for n, k, t, lb, p in found))


def metrics_page() -> str:
    "Every metric of every `/metrics`."
    rows = [[f"`{n}`", k, ", ".join(f"`{x}`" for x in lb), t] for n, k, t, lb, _ in metrics()]
    text = (
        "# Metrics\n\nWhat `/metrics` of a run (`health: {port: 8080}`), a device, a centre and the alerts "
        "daemon give to Prometheus. A run with a `site` has it as a label of every metric. Rules and a "
        "dashboard: `cv-pipeline monitoring-files`.\n\n"
    )
    return text + table(["metric", "kind", "labels", ""], rows)


# exit codes, environment, names --------------------------------------------------------------------


def exit_codes_page() -> str:
    "What a command ends with, and which error means it."
    from cv_pipeline.core import types as errors

    kinds: dict[int, list[type]] = {}
    for value in vars(errors).values():
        if inspect.isclass(value) and issubclass(value, errors.CVPipelineError):
            kinds.setdefault(value.exit_code, []).append(value)
    rows = [["0", "", "done"]]
    for code in sorted({*kinds, *STATES}):
        its = sorted(kinds.get(code, []), key=lambda k: k.__name__)
        text = "; ".join([STATES[code]] if code in STATES else [cell(inspect.getdoc(k)) for k in its])
        rows.append([str(code), ", ".join(f"`{k.__name__}`" for k in its), text])
    head = "# Exit codes\n\nOf every command; an error says what is wrong, where, and what to do.\n\n"
    return head + table(["code", "error", ""], rows)


def environment() -> set[str]:
    "Variables of our own that the package reads."
    found = set()
    for _, tree in trees():
        found |= {t for t in _texts(tree) if re.fullmatch(r"CV_PIPELINE_[A-Z0-9_]+", t)}
    return found


def environment_page() -> str:
    "The variables, and those that name secrets."
    rows = [[f"`{n}`", ENVIRONMENT.get(n, "")] for n in sorted(environment())]
    text = (
        "# Environment variables\n\nSettings live in files; a variable is for what a file must not hold, and "
        "for looking into a failure.\n\n"
    )
    secrets = (
        "\nPasswords and keys are in no file: a setting that ends in `_env` takes the *name* of a variable.\n"
    )
    return text + table(["variable", ""], rows) + secrets


def columns_page() -> str:
    "The columns of every Parquet file."
    from cv_pipeline.core.results import RESULT_COLUMNS

    lines = ["# Columns", "", "Of the Parquet files that [runs and logs](../files.md) leave.", ""]
    for title, where in TABLES.items():
        module, _, name = where.partition(":")
        function = getattr(import_module(f"cv_pipeline.{module}"), name)
        schema = function(tuple(RESULT_COLUMNS)) if name == "results_schema" else function()
        rows = [[f"`{f.name}`", str(f.type).split("<")[0], COLUMNS.get(f.name, "")] for f in schema]
        lines += [f"## {title}", "", sentence_of(function), "", table(["column", "type", ""], rows)]
    return "\n".join(lines)


def sentence_of(of: Any) -> str:
    "The docstring of a function, on one line."
    return cell(inspect.getdoc(of) or "")


def exported(tree: ast.Module) -> list[str]:
    "`__all__` of a module."
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [e.value for e in node.value.elts]
    return []


def sentence(node: Any) -> str:
    "The first paragraph of a docstring."
    return (ast.get_docstring(node) or "").split("\n\n")[0] if node is not None else ""


def names_pages() -> dict[str, str]:
    "Every exported name with its first sentence, a page a chapter."
    chapters: dict[str, list[str]] = {}
    for path, tree in trees():
        names = exported(tree)
        if not names or len(path.parts) < 2:
            continue
        made = re.search(
            r"File to edit: \.\./\.\./(\S+)\.ipynb\.", (PACKAGE / path).read_text(encoding="utf-8")
        )
        book = f"[book](../{made[1].replace('nbs/', 'books/')}.md)" if made else ""
        nodes = {n.name: n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
        rows = [[f"`{n}`", sentence(nodes.get(n))] for n in names]
        module = str(path.with_suffix("")).replace("/", ".")
        lines = [
            f"## cv_pipeline.{module}",
            "",
            f"{cell(ast.get_docstring(tree) or '')} {book}",
            "",
            table(["name", ""], rows),
        ]
        chapters.setdefault(path.parts[0], []).append("\n".join(lines))
    pages = {f"names_{c}.md": f"# cv_pipeline.{c}\n\n" + "\n".join(parts) for c, parts in chapters.items()}
    rows = [[f"[cv_pipeline.{c}](names_{c}.md)", f"{len(parts)} modules"] for c, parts in chapters.items()]
    from cv_pipeline import __all__ as offered

    short = ", ".join(f"`{n}`" for n in sorted(offered))
    index = f"# Names\n\n`import cv_pipeline as cvp` offers, loaded when it is used: {short}.\n\n" + table(
        ["package", ""], rows
    )
    return {"names.md": index, **pages}


@cache
def pages() -> dict[str, str]:
    "Every page, name → Markdown."
    return {
        **command_pages(),
        **settings_pages(),
        "metrics.md": metrics_page(),
        "columns.md": columns_page(),
        "exit_codes.md": exit_codes_page(),
        "environment.md": environment_page(),
        **names_pages(),
    }


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "_docs" / "reference")
    out.mkdir(parents=True, exist_ok=True)
    made = pages()
    for name, text in made.items():
        (out / name).write_text(text, encoding="utf-8")
    print(f"{len(made)} pages in {out}")
