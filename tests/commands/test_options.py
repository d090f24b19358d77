"""Options are written once: help, types and defaults of every command come from its signature, its comments
and the settings of the library."""

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Annotated, Any, Literal, get_args, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from cv_pipeline.annotation.select import STRATEGIES, SelectSettings
from cv_pipeline.commands import (
    alerts,
    annotation,
    applications,
    browse,
    cluster,
    device,
    erasure,
    fleet,
    main,
    models,
    moderation,
    monitoring,
    privacy,
    project,
    readiness,
    release,
    rules,
    scale,
    search,
    sites,
    storage,
    thresholds,
)
from cv_pipeline.commands.options import (
    Fields,
    Item,
    Keys,
    command,
    comments,
    fields_of,
    form_of,
    group,
    help_and_default,
    items_of,
    read_mapping,
    read_sequence,
    typed,
)
from cv_pipeline.core.types import ConfigError
from cv_pipeline.training.augment import AUGMENTS

BOOKS = (
    alerts,
    project,
    models,
    annotation,
    cluster,
    monitoring,
    thresholds,
    release,
    device,
    fleet,
    privacy,
    erasure,
    scale,
    storage,
    rules,
    sites,
    search,
    applications,
    browse,
    main,
    moderation,
    readiness,
)
PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def whole(found: Any) -> Any:
    "The command with its options, for the one that the list shows."
    make = getattr(found.callback, "make", None)
    return found if make is None else make()


def walk(found: Any, path: tuple[str, ...] = ()):
    if hasattr(found, "commands"):
        for name, inner in found.commands.items():
            yield from walk(inner, (*path, name))
    else:
        yield path, whole(found)


COMMANDS = dict(walk(typer.main.get_command(main.app)))


def ask(*words: str):
    return CliRunner().invoke(main.app, list(words), env=PLAIN)


def functions() -> dict[str, Any]:
    "The functions behind the commands: those whose parameters are options."
    found = {}
    for book in BOOKS:
        tree = ast.parse(inspect.getsource(book))
        for n in tree.body:
            if isinstance(n, ast.FunctionDef) and any("command(" in ast.unparse(d) for d in n.decorator_list):
                found[f"{book.__name__}.{n.name}"] = getattr(book, n.name)
    return found


FUNCTIONS = functions()


def beside(cls: type, name: str) -> str:
    "The comment of a field, read in another way than the library does: `#` in its lines, else above them."
    for base in cls.__mro__[:-1]:
        lines = inspect.getsource(base).splitlines()
        fields = [n for n in ast.parse("\n".join(lines)).body[0].body if isinstance(n, ast.AnnAssign)]
        for node in (n for n in fields if n.target.id == name):
            inside = [
                line.split("# ", 1)[1] for line in lines[node.lineno - 1 : node.end_lineno] if "# " in line
            ]
            above = list(takewhile(lambda line: line.strip().startswith("# "), lines[node.lineno - 2 :: -1]))
            return " ".join(inside or [line.strip()[2:] for line in reversed(above)])
    return ""


def expanded() -> list[tuple[str, str, Item, type]]:
    "Command, option and class of every option that comes from a settings dataclass."
    rows = []
    for where, function in FUNCTIONS.items():
        for p in inspect.signature(function).parameters.values():
            if isinstance(p.default, Fields) and not isinstance(p.default, Keys):
                for item in items_of(function):
                    if item.place[0] == p.name:
                        cls = p.default.load()
                        for part in item.place[1:-1]:
                            kind = get_type_hints(cls)[part]
                            cls = next(k for k in (kind, *get_args(kind)) if dataclasses.is_dataclass(k))
                        rows.append((where, ".".join(item.place[1:]), item, cls))
    return rows


EXPANDED = expanded()


def test_all_commands_are_walked_over():
    assert len(COMMANDS) == len(FUNCTIONS) >= 34 and len(EXPANDED) >= 80


@pytest.mark.parametrize("path", COMMANDS, ids="-".join)
def test_every_option_has_a_help(path):
    assert [p.name for p in COMMANDS[path].params if not (getattr(p, "help", "") or "").strip()] == []


@pytest.mark.parametrize("path", COMMANDS, ids="-".join)
def test_the_help_of_every_command_can_be_shown_and_has_an_example(path):
    shown = ask(*path, "--help")
    assert shown.exit_code == 0 and f"cv-pipeline {' '.join(path)}" in " ".join(shown.output.split())


@pytest.mark.parametrize("where, field, item, cls", EXPANDED, ids=[f"{w} {f}" for w, f, *_ in EXPANDED])
def test_the_help_of_an_expanded_option_is_the_comment_in_the_library(where, field, item, cls):
    assert item.comment == beside(cls, field.split(".")[-1]) != ""


OWN_DEFAULTS = {"main.robustness severities", "main.robustness budget_s"}  # minutes, not an evening


@pytest.mark.parametrize("where, field, item, cls", EXPANDED, ids=[f"{w} {f}" for w, f, *_ in EXPANDED])
def test_the_default_of_an_expanded_option_is_the_one_of_the_library(where, field, item, cls):
    f = next(f for f in dataclasses.fields(cls) if f.name == field.split(".")[-1])
    default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    name = f"{where.rsplit('.', 2)[-2]}.{where.rsplit('.', 1)[-1]} {field}"
    assert (item.default != default) == (name in OWN_DEFAULTS)


def test_nothing_given_is_the_default_of_the_library():
    seen = {}

    def spied(*, settings: Any = fields_of("annotation.select:SelectSettings")):
        "A command."
        seen["settings"] = settings

    app = group()
    command(app, "spied")(spied)
    assert CliRunner().invoke(app, ["spied"]).exit_code == 0
    assert seen["settings"] == SelectSettings()


@pytest.mark.parametrize("book", BOOKS, ids=lambda b: b.__name__)
def test_no_command_writes_a_help_a_second_time(book):
    for n in ast.walk(ast.parse(inspect.getsource(book))):
        if isinstance(n, ast.FunctionDef) and any("command(" in ast.unparse(d) for d in n.decorator_list):
            annotations = " ".join(ast.unparse(a.annotation) for a in [*n.args.args, *n.args.kwonlyargs])
            assert "help=" not in annotations, n.name


@pytest.mark.parametrize("where", FUNCTIONS)
def test_no_option_of_a_command_stands_in_its_settings_too(where):
    names = [i.name for i in items_of(FUNCTIONS[where])]
    assert sorted({n for n in names if names.count(n) > 1}) == []


def test_every_command_has_a_panel():
    listed = " ".join(main.PANELS.values()).split()
    assert sorted(listed) == sorted({path[0] for path in COMMANDS})


def test_the_panels_stand_in_the_order_of_the_work():
    shown = ask("--help").output
    places = [shown.index(f" {panel} ─") for panel in main.PANELS]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "path, option, choices",
    [
        (("select",), "--strategy", tuple(STRATEGIES)),
        (("train",), "--augment", tuple(AUGMENTS)),
        (("merge",), "--leaks", ("leave-out", "refuse")),
        (("run",), "--tracker", ("none", "sort", "bytetrack", "ocsort", "deepsort")),
        (("gate",), "--thin", ("block", "report")),
        (("label", "files"), "--unchanged", ("leave-out", "accept")),
        (("build",), "--hardware", ("none", "same_compute_capability", "ampere_plus")),
        (("audit", "draw"), "--by", ("confidence", "class", "camera")),
    ],
)
def test_closed_sets_are_choices(path, option, choices):
    shown = " ".join(ask(*path, "--help").output.split())
    listed = re.search(rf"{option} +[<\[]([^>\]]+)[>\]]", shown)[1].split("|")
    assert sorted(listed) == sorted(choices)


def test_an_unknown_choice_is_bad_usage():
    said = ask("select", "c", "--out", "s", "--budget", "3", "--strategy", "best")
    assert said.exit_code == 2 and "'best' is not one of" in " ".join(said.output.split())


def test_the_version():
    from cv_pipeline import __version__

    assert ask("--version").output.strip() == f"cv-pipeline {__version__}"


def complete(words: str) -> list[str]:
    "What bash is offered behind these words."
    env = {"_CV_PIPELINE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    call = "from cv_pipeline.commands.main import app; app(prog_name='cv-pipeline')"
    done = subprocess.run(
        [sys.executable, "-c", call], env={**os.environ, **env}, capture_output=True, text=True, timeout=60
    )
    return done.stdout.split()


@pytest.mark.slow
def test_bash_gets_a_completion_script():
    call = "from cv_pipeline.commands.main import app; app(prog_name='cv-pipeline')"
    env = {
        **os.environ,
        "_CV_PIPELINE_COMPLETE": "source_bash",
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    done = subprocess.run([sys.executable, "-c", call], env=env, capture_output=True, text=True, timeout=60)
    assert "complete -o default -F" in done.stdout and "cv-pipeline" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, offered",
    [
        ("cv-pipeline rob", "robustness"),
        ("cv-pipeline optimize --max", "--max-loss"),
        ("cv-pipeline select --strategy d", "diversity"),
        ("cv-pipeline label set", "settle"),
    ],
)
def test_the_shell_completes_commands_options_and_choices(words, offered):
    assert offered in complete(words)


@pytest.mark.slow
def test_the_list_of_commands_imports_no_settings():
    text = (
        "import sys; from typer.testing import CliRunner; from cv_pipeline.commands.main import app; "
        "CliRunner().invoke(app, ['--help']); mine = [m.split('.') for m in sys.modules]; "
        "print([m for m in mine if m[0] == 'cv_pipeline' and m[1:] and m[1] not in ('commands', 'core')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


# ---- the parts


def example(
    first: int,  # beside
    *,
    # above,
    # on two lines
    second: Mapping[str, str] | None = None,
    third: tuple[int, ...] = (
        1,
        2,
    ),  # behind a long default
    bare: bool = False,
):
    "An example."
    return first, second, third, bare


def test_comments_beside_above_and_behind():
    assert comments(example) == {
        "first": "beside",
        "second": "above, on two lines",
        "third": "behind a long default",
        "bare": "",
    }


def test_inherited_fields_keep_their_comments():
    from cv_pipeline.evaluation.robustness import FilmSettings, RobustnessSettings

    assert comments(RobustnessSettings)["budget_s"] == comments(FilmSettings)["budget_s"] != ""


def test_a_function_without_source_has_no_comments():
    scope: dict[str, Any] = {}
    exec("def f(a=1): ...", scope)
    assert comments(scope["f"]) == {}


@pytest.mark.parametrize(
    "comment, help, default",
    [
        ("a file; None: the usual one", "a file", "the usual one"),
        ("Most frames. None: no limit.", "Most frames", "no limit"),
        ("labels; (): all", "labels", "all"),
        ("None: no limit", "", "no limit"),
        ("just a help", "just a help", ""),
    ],
)
def test_what_holds_when_nothing_is_given(comment, help, default):
    assert help_and_default(comment) == (help, default)


def item(kind: Any, default: Any, **more: Any) -> Item:
    return Item("some_thing", kind, default, "what it is", ("some_thing",), **more)


@pytest.mark.parametrize(
    "kind, default, text, value",
    [
        (Sequence[str], (), "fog, jpeg", ("fog", "jpeg")),
        (Sequence[int], (1, 2), "4,8", (4, 8)),
        (Sequence[int], (1, 2), "1,2", (1, 2)),
        (Sequence[str] | None, None, None, None),
        (tuple[float, float] | None, (0.3, 0.6), "off", None),
        (float | None, 0.9, "-1", None),
        (float | None, 0.9, "0.5", 0.5),
        (int | None, 90, "off", None),
        (Mapping[str, str], {}, ["a=b=c"], {"a": "b=c"}),
        (Mapping[str, float | None], {}, ["a=off", "b=0"], {"a": None, "b": 0.0}),
        (list[str] | None, None, None, []),
        (Sequence[str], ("all",), "none", ("none",)),
    ],
)
def test_what_is_typed_becomes_what_the_library_takes(kind, default, text, value):
    assert form_of(item(kind, default)).read(text) == value


def test_a_choice_with_a_space_is_typed_with_a_dash():
    form = form_of(item(Literal["leave out", "refuse"], "leave out"))
    assert form.read(form.kind("leave-out")) == "leave out"


def test_one_more_word_for_none():
    assert form_of(item(int | None, 90, off=("off", "0"))).read("0") is None


@pytest.mark.parametrize(
    "read, words",
    [
        (lambda: read_sequence("1,x", (int, ...), "--batches"), "'x' is not a whole number"),
        (lambda: read_sequence("0.3", (float, float), "--low"), "2 values are needed"),
        (lambda: read_mapping(["gear"], (str, str), "--rename"), "--rename"),
        (lambda: read_mapping(["a=b"], (str, float), "--floor"), "'b' is not a number"),
        (lambda: form_of(item(float | None, 0.9)).read("much"), "--some-thing"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_option(read, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        read()


def test_a_type_that_is_no_option_is_refused_when_the_command_is_made():
    with pytest.raises(TypeError, match="some_thing: no option can be made of"):
        form_of(item(dict, None))


def test_a_command_is_called_with_what_was_typed():
    app = group()
    got = []

    def both(a: int, *, b: Annotated[int, typer.Option(min=1)] = 2, on: bool = True):
        "A command."
        got.append((a, b, on))

    command(app, "both 3")(both)
    for words in (["3"], ["3", "--b", "5"], ["3", "--no-on"]):
        assert CliRunner().invoke(app, ["both", *words]).exit_code == 0
    assert got == [(3, 2, True), (3, 5, True), (3, 2, False)]


def test_limits_of_typer_hold():
    app = group()
    command(app, "few")(few)
    assert CliRunner().invoke(app, ["few", "--count", "0"]).exit_code == 2


def few(*, count: Annotated[int, typer.Option(min=1)] = 2):
    "A command."


def test_a_settings_class_inside_another_is_made_only_when_it_was_asked_for():
    seen = []

    def fit(
        *,
        settings: Any = fields_of(
            "training.train:TrainSettings",
            leave_out="overrides trainer replay.keeper replay.share replay.labelled "
            "replay.sure replay.unsure replay.doubt",
            rename={"replay.data": "replay", "replay.teacher": "teacher"},
        ),
    ):
        "A command."
        seen.append(settings)

    usual = {p: v.default for p, v in inspect.signature(typed(fit)).parameters.items()}
    usual = {k: getattr(v, "value", v) for k, v in usual.items()}
    typed(fit)(**usual)
    typed(fit)(**{**usual, "settings_replay_data": "datasets/v1"})
    assert seen[0].replay is None and seen[1].replay.data == "datasets/v1"
