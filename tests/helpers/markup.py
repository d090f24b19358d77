"""Reads code for HTML that is put together from text that nobody has escaped.

Every value in an f-string with a tag must be escaped, a number, or itself put together from such values.
"""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*[\s>=/]|<!")
ESCAPE = {"html_text", "link_text", "quoteattr"}
NUMBERS = {"len", "int", "float", "round", "sum", "abs"}
MARKUP = {  # functions whose result is markup: their own f-strings are read like all others
    "html_badge",
    "html_banner",
    "html_card",
    "html_rows",
    "html_table",
    "html_verdict",
    "html_drift",
    "inspection_html",
    "timeline",
}


def sources(root: Path) -> Iterator[tuple[str, str]]:
    "Where and code: of the package, and of the report templates."
    for path in sorted((root / "cv_pipeline").rglob("*.py")):
        yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
    for path in sorted((root / "nbs" / "reports").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        plain = (line for text in code for line in text.split("\n") if not line.startswith(("%", "!")))
        yield path.relative_to(root).as_posix(), "\n".join(plain)


class _Scope:
    "What names stand for in a module or a function, without the functions inside it."

    def __init__(self, node: ast.AST, outer: "_Scope | None"):
        self.outer, self.given, self.made = outer, {}, {}
        arguments = getattr(node, "args", None)
        self.taken = {a.arg for a in [*arguments.args, *arguments.kwonlyargs]} if arguments else set()
        for inner in self.inside(node):
            if isinstance(inner, ast.Assign):
                for target in inner.targets:
                    self.assigned(target, inner.value)
            elif isinstance(inner, (ast.AnnAssign, ast.NamedExpr, ast.AugAssign)) and inner.value is not None:
                self.assigned(inner.target, inner.value)
            elif isinstance(inner, ast.FunctionDef):
                returns = [n.value for n in ast.walk(inner) if isinstance(n, ast.Return) and n.value]
                self.made[inner.name] = (returns, _Scope(inner, self))
            elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute):
                if inner.func.attr == "append" and isinstance(inner.func.value, ast.Name):
                    self.given.setdefault(inner.func.value.id, []).extend(inner.args)

    def inside(self, node: ast.AST) -> Iterator[ast.AST]:
        for child in ast.iter_child_nodes(node):
            yield child
            if not isinstance(child, ast.FunctionDef):
                yield from self.inside(child)

    def assigned(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.given.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, what in zip(target.elts, value.elts):
                self.assigned(one, what)

    def find(self, name: str) -> "tuple[list[ast.expr], _Scope] | None":
        "What a name was given, and where; None for an argument and for what is not known."
        if name in self.given:
            return self.given[name], self
        if name in self.taken or self.outer is None:
            return None
        return self.outer.find(name)

    def function(self, name: str) -> "tuple[list[ast.expr], _Scope] | None":
        "What a function of this file returns, and where; of a lambda its body."
        if name in self.made:
            return self.made[name]
        found = [v.body for v in self.given.get(name, ()) if isinstance(v, ast.Lambda)]
        return (found, self) if found else self.outer.function(name) if self.outer else None


class _Reader:
    def __init__(self, tree: ast.Module):
        self.scope, self.busy = _Scope(tree, None), set()

    def unsafe(self, node: ast.AST, scope: _Scope) -> Iterator[tuple[int, str]]:
        "Line and expression of what goes into markup as it is."
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef):
                yield from self.unsafe(child, _Scope(child, scope))
                continue
            if isinstance(child, ast.JoinedStr):
                constant = "".join(str(p.value) for p in child.values if isinstance(p, ast.Constant))
                for part in child.values if TAG.search(constant) else ():
                    self.scope = scope
                    if isinstance(part, ast.FormattedValue) and not self.safe(part):
                        yield part.lineno, ast.unparse(part.value)
            yield from self.unsafe(child, scope)

    def all_safe(self, key: object, found: tuple[list[ast.expr], _Scope] | None) -> bool:
        "Whether everything that a name may stand for is safe."
        if found is None:
            return False
        if key in self.busy:
            return True
        before, self.scope = self.scope, found[1]
        self.busy.add(key)
        try:
            return bool(found[0]) and all(map(self.safe, found[0]))
        finally:
            self.busy.discard(key)
            self.scope = before

    def call(self, node: ast.Call) -> bool:
        if isinstance(node.func, ast.Name):
            name = node.func.id
            known = name in ESCAPE | NUMBERS | MARKUP
            return known or self.all_safe(("call", name), self.scope.function(name))
        if not isinstance(node.func, ast.Attribute):
            return False
        if node.func.attr == "join":
            return self.safe(node.func.value) and all(map(self.safe, node.args))
        if node.func.attr == "replace":
            return self.safe(node.func.value) and all(map(self.safe, node.args))
        table = isinstance(node.func.value, ast.Name) and node.func.value.id.lstrip("_").isupper()
        return table and node.func.attr == "get" and all(map(self.safe, node.args[1:]))

    def safe(self, node: ast.expr) -> bool:
        match node:
            case ast.Constant():
                return True
            case ast.FormattedValue(format_spec=ast.JoinedStr(values=[ast.Constant(value=str(spec))])):
                return bool(re.fullmatch(r"[+,]*(\d*\.\d+)?[dfge%,]|,|%[-%YmdHMSZ: ]+", spec)) or self.safe(
                    node.value
                )
            case ast.FormattedValue(value=value):
                return self.safe(value)
            case ast.JoinedStr(values=values) | ast.List(elts=values) | ast.Tuple(elts=values):
                return all(map(self.safe, values))
            case ast.GeneratorExp(elt=elt) | ast.ListComp(elt=elt) | ast.Starred(value=elt):
                return self.safe(elt)
            case ast.IfExp(body=body, orelse=orelse):
                return self.safe(body) and self.safe(orelse)
            case ast.BoolOp(values=values):
                return all(map(self.safe, values))
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                number = any(isinstance(x, ast.Constant) and isinstance(x.value, int) for x in (left, right))
                return number or (self.safe(left) and self.safe(right))
            case ast.BinOp(op=ast.Mult() | ast.Sub() | ast.Div() | ast.FloorDiv()):
                return True
            case ast.Name(id="tag"):
                return True  # of a table's cell: "th" or "td"
            case ast.Name(id=name):
                return self.all_safe((id(self.scope), name), self.scope.find(name))
            case ast.Call():
                return self.call(node)
            case ast.Subscript(value=ast.Name(id=name)) if name.lstrip("_").isupper():
                return True  # a table of constants
            case ast.Dict(values=values):
                return all(v is not None and self.safe(v) for v in values)
        return False


def unescaped(code: str) -> list[tuple[int, str]]:
    "Line and expression of everything that goes into HTML without being escaped."
    tree = ast.parse(code)
    reader = _Reader(tree)
    return sorted(set(reader.unsafe(tree, reader.scope)))
