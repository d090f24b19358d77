"""Exceptions at places of the code that are found in the code itself: every call of a function or method,
inside of any function of the modules that are named.

`instrument` must come before those modules are imported. Each call `f(x)` becomes `strike(k, f)(x)`, which
counts, and raises when it is the turn of the call that is armed.
"""

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

NAME = "__strike__"


@dataclass(frozen=True)
class Point:
    "A call in the code."

    module: str
    line: int
    function: str  # in which it stands
    call: str  # what is called

    def __str__(self) -> str:
        return f"{self.module.removeprefix('cv_pipeline.')}:{self.line} {self.function}: {self.call}()"


@dataclass
class Strikes:
    "Which calls there are, how often each was made, and the one that fails."

    points: list[Point] = field(default_factory=list)
    counts: Counter = field(default_factory=Counter)  # point → calls, since `arm`
    threads: dict[int, set[str]] = field(default_factory=dict)  # point → names of threads, since `arm`
    target: int | None = None
    nth: int = 1
    error: type[BaseException] = MemoryError
    struck: str | None = None  # the thread in which it failed
    counting: bool = False

    def arm(self, target: int | None, nth: int = 1, error: type[BaseException] = MemoryError) -> None:
        "From now on the n-th call at this point fails, once; None: nothing fails, calls are counted."
        self.counts.clear()
        self.threads.clear()
        self.target, self.nth, self.error, self.struck = target, nth, error, None
        self.counting = True

    def rest(self) -> None:
        "From now on nothing fails and nothing is counted."
        self.counting, self.target = False, None

    def __call__(self, number: int, function: Any) -> Any:
        if not self.counting or (self.target is not None and number != self.target):
            return function
        self.counts[number] += 1
        name = threading.current_thread().name
        if self.target is None:
            self.threads.setdefault(number, set()).add(name)
        elif self.counts[number] == self.nth:
            self.struck = name
            raise self.error(f"struck at {self.points[number]}")
        return function


STRIKES = Strikes()


class _Rewrite(ast.NodeTransformer):
    "Puts the strike around whatever is called inside of functions."

    def __init__(self, module: str):
        self.module, self.inside = module, list[str]()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self.inside.append(node.name)
        node.body = [self.visit(statement) for statement in node.body]
        self.inside.pop()
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        self.inside.append("lambda")
        node.body = self.visit(node.body)
        self.inside.pop()
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not self.inside:
            return node
        STRIKES.points.append(
            Point(self.module, node.lineno, ".".join(self.inside), ast.unparse(_plain(node.func))[:60])
        )
        number = ast.Constant(len(STRIKES.points) - 1)
        node.func = ast.Call(ast.Name(NAME, ast.Load()), [number, node.func], [])
        return node


def _plain(node: ast.expr) -> ast.expr:
    "What is called, without the strikes that stand inside of it."

    class Back(ast.NodeTransformer):
        def visit_Call(self, call: ast.Call) -> ast.AST:
            self.generic_visit(call)
            if isinstance(call.func, ast.Call) and getattr(call.func.func, "id", None) == NAME:
                return ast.Call(call.func.args[1], call.args, call.keywords)
            return call

    return Back().visit(ast.parse(ast.unparse(node), mode="eval").body)


class _Loader(importlib.machinery.SourceFileLoader):
    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> Any:
        tree = ast.fix_missing_locations(_Rewrite(self.name).visit(ast.parse(data)))
        return compile(tree, path, "exec", dont_inherit=True)

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)  # never from a cache
        return self.source_to_code(self.get_data(path), path)

    def exec_module(self, module: Any) -> None:
        setattr(module, NAME, STRIKES)
        super().exec_module(module)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, modules: Iterable[str]):
        self.modules = set(modules)

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in self.modules:
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        if found is None or found.origin is None:
            return None
        return importlib.util.spec_from_file_location(name, found.origin, loader=_Loader(name, found.origin))


def instrument(modules: Iterable[str]) -> Strikes:
    "Rewrite these modules when they are imported; RuntimeError when one of them has been."
    modules = list(modules)
    if there := [m for m in modules if m in sys.modules]:
        raise RuntimeError(f"imported before they could be rewritten: {', '.join(there)}")
    sys.meta_path.insert(0, _Finder(modules))
    return STRIKES
