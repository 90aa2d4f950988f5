"""House: imports run downwards and in no circle, files and functions stay short, and nobody reaches past a border.

Everything is read from the source alone; nothing of llmlab is imported.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOUSE = ROOT / "llmlab"

FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "assets"),
    ("kv",),
    ("models",),
    ("runtime",),
    ("techniques",),
    ("measure",),
    ("serving",),
    ("training",),
    ("lab",),
    ("studies",),
    ("ui", "cli"),
    ("__main__",),
)
"""The parts of llmlab from the ground up. A part imports itself and what lies below it, and no neighbour on its floor.
The one exception is made at run time and by name: `runtime.configurable` looks for what lies above it."""

FLAT, FOLDERS, FILE, FUNCTION, COMPLEXITY, MEDIAN = 4, 12, 400, 60, 20, 130

TOO_LONG: frozenset[str] = frozenset()
"""Functions, by qualified name, that are longer or more complex than allowed. May only shrink."""

DISCOVERERS = {"llmlab.runtime.configurable.discover"}
"""Who imports modules by name."""

LAYER_BY_LAYER = {
    "llmlab.runtime.calibration.walk_layers",  # a transform changes a layer before the next one runs
    "llmlab.runtime.calibration.layer_influence",  # compares what goes into each layer with what comes out
    "llmlab.runtime.token_drop_plan.TokenDropPlan.__call__",  # rows may leave after every layer
    "llmlab.techniques.early_exit.skip_layer.fitted",  # a router per layer, from its input and output
    "llmlab.techniques.early_exit.skip_layer.SkipLayer.plan.plan",  # each layer is run or skipped
    "llmlab.studies.support.classification.classify.Ends.__call__",  # reads the last token after every layer
    "llmlab.studies.support.token_drop.saliency._Texts.through",  # rows leave at the layer that is asked about
}
"""Who runs layers one at a time, through `run_layers` like everyone, and why."""

BUFFERS = {"_kv", "_k", "_v", "_mirror"}

Sources = Mapping[str, str]
"""Modules by dotted name, with their text."""


@cache
def _tree(text: str) -> ast.Module:
    return ast.parse(text)


@cache
def sources() -> dict[str, str]:
    return {_dotted(path): path.read_text(encoding="utf-8") for path in sorted(HOUSE.rglob("*.py"))}


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


# Imports ----------------------------------------------------------------------------------------------------------


def imports(modules: Sources) -> dict[str, set[str]]:
    """Which modules each imports, under TYPE_CHECKING and inside functions included."""
    return {name: set(_imported(name, text, modules)) - {name} for name, text in modules.items()}


def _imported(name: str, text: str, modules: Sources) -> Iterator[str]:
    for node in ast.walk(_tree(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively"
            for alias in node.names:
                target = f"{node.module}.{alias.name}"
                if target in modules or node.module in modules:
                    yield target if target in modules else str(node.module)


def circles(modules: Sources) -> list[str]:
    """Modules that can be reached from themselves."""
    graph = imports(modules)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [*graph[start]]
        while waiting:
            if (at := waiting.pop()) not in seen:
                seen.add(at)
                waiting += graph[at]
        return seen

    return [name for name in graph if name in reached(name)]


def upward_imports(modules: Sources) -> list[str]:
    """Imports that do not lead downwards, and imports by name where nobody may make them."""
    level = {part: i for i, floor in enumerate(FLOORS) for part in floor}
    found = []
    for name, targets in imports(modules).items():
        for target in targets:
            above, below = _part(name), _part(target)
            if above != below and level.get(above, -1) <= level.get(below, len(FLOORS)):
                found.append(f"{name} imports {target}")
    return found + _users(modules, lambda call: _called(call) in ("import_module", "__import__"), DISCOVERERS)


def _part(module: str) -> str:
    return module.split(".")[1] if "." in module else module


# Sizes ------------------------------------------------------------------------------------------------------------

BRANCHES = (
    *(ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While),
    *(ast.ExceptHandler, ast.comprehension, ast.match_case),
)
Function = ast.FunctionDef | ast.AsyncFunctionDef


def too_long(modules: Sources) -> set[str]:
    """Functions with too many lines or too many branches (McCabe; comprehensions and conditional values count too)."""
    return {
        name + inside
        for name, text in modules.items()
        for inside, node in _functions(_tree(text))
        if _lines(node) > FUNCTION or complexity(node) > COMPLEXITY
    }


def _functions(node: ast.AST, inside: str = "") -> Iterator[tuple[str, Function]]:
    """Every function and its qualified name, after a dot."""
    for child in ast.iter_child_nodes(node):
        named = f"{inside}.{child.name}" if isinstance(child, Function | ast.ClassDef) else inside
        if isinstance(child, Function):
            yield named, child
        yield from _functions(child, named)


def _lines(node: Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def complexity(node: ast.AST) -> int:
    return 1 + sum(isinstance(inner, BRANCHES) for inner in ast.walk(node))


def long_files(files: Iterable[tuple[str, str]]) -> list[str]:
    return [name for name, text in files if text.count("\n") > FILE]


# Borders ----------------------------------------------------------------------------------------------------------


def _users(modules: Sources, wanted: Callable[[ast.Call], bool], allowed: Iterable[str]) -> list[str]:
    """Functions by qualified name that make a call like this though they are not among the `allowed`."""
    found = {name + f for name, text in modules.items() for f, call in _calls(_tree(text)) if wanted(call)}
    return sorted(found - {*allowed})


def _calls(node: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.Call]]:
    """Every call, and the classes and functions that it stands in: "", ".f" or ".C.f"."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Call):
            yield inside, child
        yield from _calls(child, f"{inside}.{child.name}" if isinstance(child, Function | ast.ClassDef) else inside)


def _called(call: ast.Call) -> str:
    """The last name of what is called: `c` of `a.b.c()` and of `a.c[0]()`."""
    func = call.func.value if isinstance(call.func, ast.Subscript) else call.func
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _outside(modules: Sources, part: str) -> dict[str, str]:
    return {name: text for name, text in modules.items() if _part(name) != part}


def touched_buffers(modules: Sources) -> list[str]:
    """Uses of a storage's buffers outside kv/."""
    return [
        f"{name}:{node.lineno} {node.attr}"
        for name, text in _outside(modules, "kv").items()
        for node in ast.walk(_tree(text))
        if isinstance(node, ast.Attribute) and node.attr in BUFFERS
    ]


def blocks_called(modules: Sources) -> list[str]:
    """Calls of a block, or of a part or a kernel that runs one, outside models/."""
    found = []
    for name, text in _outside(modules, "models").items():
        tree = _tree(text)
        looped = _layers_of(tree)
        for _, call in _calls(tree):
            by_loop = isinstance(call.func, ast.Name) and call.func.id in looped
            if by_loop or _called(call) in ("block", "blocks", "layer", "layers", "mix", "feed"):
                found.append(f"{name}:{call.lineno}")
    return found


def _layers_of(tree: ast.AST) -> set[str]:
    """The names of what a loop over a model's `layers` yields."""
    return {
        inner.id
        for node in ast.walk(tree)
        if isinstance(node, ast.For | ast.comprehension) and "layers" in _attributes(node.iter)
        for inner in ast.walk(node.target)
        if isinstance(inner, ast.Name)
    }


def _attributes(node: ast.AST) -> set[str]:
    return {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}


def layer_by_layer(modules: Sources) -> set[str]:
    """Functions outside models/ that call `run_layers` for one layer: from i to i + 1, or from i - 1 to i."""

    def single(call: ast.Call) -> bool:
        named = {k.arg: k.value for k in call.keywords}
        start, stop = (
            named.get(k, call.args[i] if i < len(call.args) else None) for i, k in ((2, "start"), (3, "stop"))
        )
        if _called(call) != "run_layers" or start is None or stop is None:
            return False
        return ast.unparse(stop) == f"{ast.unparse(start)} + 1" or ast.unparse(start) == f"{ast.unparse(stop)} - 1"

    return {*_users(_outside(modules, "models"), single, ())}


def sessions_written(modules: Sources) -> list[str]:
    """Assignments to a session's attributes, `setattr` and its private attributes included, outside its module."""
    found = []
    for name, text in modules.items():
        if name == "llmlab.runtime.session":
            continue
        tree = _tree(text)
        held = {"session", "sessions"} | _sessions_of(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and _last(node.value) in held:
                if not isinstance(node.ctx, ast.Load) or node.attr.startswith("_"):
                    found.append(f"{name}:{node.lineno} {ast.unparse(node)}")
            elif isinstance(node, ast.Call) and _called(node) in ("setattr", "delattr", "vars"):
                found += [f"{name}:{node.lineno} {ast.unparse(node)}" for a in node.args[:1] if _last(a) in held]
    return found


def _sessions_of(tree: ast.AST) -> set[str]:
    """The names that stand for a session: annotated as one, made by a call of `Session` or `session`, or by a scope."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation and _mentions_session(node.annotation):
            names.add(node.arg if isinstance(node, ast.arg) else _last(node.target))
        elif isinstance(node, ast.Assign) and _makes_session(node.value):
            names |= {_last(target) for target in node.targets}
        elif isinstance(node, ast.withitem) and node.optional_vars and _makes_session(node.context_expr):
            names.add(_last(node.optional_vars))
    return names - {""}


def _mentions_session(annotation: ast.AST) -> bool:
    return any(isinstance(n, ast.Name) and n.id == "Session" for n in ast.walk(annotation))


def _makes_session(value: ast.AST) -> bool:
    return isinstance(value, ast.Call) and _called(value) in ("Session", "session", "speculative_scope")


def _last(node: ast.AST) -> str:
    """The last name: `b` of `a.b` and of `a.b[0]`."""
    if isinstance(node, ast.Subscript):
        return _last(node.value)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


# Techniques -------------------------------------------------------------------------------------------------------


def misplaced_techniques(modules: Sources) -> list[str]:
    """Files that hold two techniques, techniques that stand elsewhere, and those that say not what they cover."""
    classes = [(n, c) for n, text in modules.items() for c in ast.walk(_tree(text)) if isinstance(c, ast.ClassDef)]
    kinds, size = {"Technique"}, 0
    while len(kinds) > size:
        size = len(kinds)
        kinds |= {c.name for _, c in classes if kinds & {_last(base) for base in c.bases}}
    held = [(name, c.name, _covers(c)) for name, c in classes if kinds & {_last(base) for base in c.bases}]
    files = [name for name, _, covers in held if covers]
    return [
        *(f"{name} holds more than one" for name in sorted({n for n in files if files.count(n) > 1})),
        *(
            f"{name}.{c} stands outside techniques/"
            for name, c, covers in held
            if covers and _part(name) != "techniques"
        ),
        *(f"{name}.{c} covers nothing" for name, c, covers in held if not covers and _part(name) == "techniques"),
    ]


def _covers(node: ast.ClassDef) -> bool:
    targets = [t for s in node.body if isinstance(s, ast.Assign) for t in s.targets]
    targets += [s.target for s in node.body if isinstance(s, ast.AnnAssign) and s.value]
    return any(_last(t) == "covers" for t in targets)


# The laws ---------------------------------------------------------------------------------------------------------


def test_there_is_no_import_circle() -> None:
    assert circles(sources()) == []


def test_imports_run_downwards() -> None:
    assert upward_imports(sources()) == []


def test_every_part_has_its_floor() -> None:
    parts = {_part(name) for name in sources()} - {"llmlab"}
    assert parts == {part for floor in FLOORS for part in floor}


def test_little_lies_flat() -> None:
    flat = [p.name for p in HOUSE.glob("*.py") if p.name not in ("__init__.py", "__main__.py")]
    folders = [p.name for p in HOUSE.iterdir() if p.is_dir() and any(p.rglob("*.py"))]
    assert len(flat) <= FLAT, flat
    assert len(folders) <= FOLDERS, folders


def test_files_are_short() -> None:
    files = [
        (str(p.relative_to(ROOT)), p.read_text(encoding="utf-8")) for s in ("py", "js") for p in HOUSE.rglob(f"*.{s}")
    ]
    assert long_files(files) == []


def test_the_median_file_is_short() -> None:
    lengths = [text.count("\n") for text in sources().values() if text]
    assert statistics.median(lengths) <= MEDIAN


def test_functions_are_short_and_simple() -> None:
    """The list may only shrink: a function that has become short must leave it."""
    assert too_long(sources()) == TOO_LONG


def test_every_technique_is_one_file() -> None:
    assert misplaced_techniques(sources()) == []


def test_a_storage_owns_its_buffers() -> None:
    assert touched_buffers(sources()) == []


def test_nobody_calls_a_block() -> None:
    assert blocks_called(sources()) == []


def test_few_run_layers_one_by_one() -> None:
    """The list may only shrink."""
    assert layer_by_layer(sources()) == set(LAYER_BY_LAYER)


def test_nobody_writes_into_a_session() -> None:
    assert sessions_written(sources()) == []


# The laws bite ----------------------------------------------------------------------------------------------------

BITES: dict[str, tuple[Callable[[Sources], object], Sources]] = {
    "a circle for type checkers": (
        circles,
        {
            "llmlab.kv.a": "if TYPE_CHECKING:\n    from llmlab.kv import b",
            "llmlab.kv.b": "def f():\n    import llmlab.kv.a",
        },
    ),
    "an import upwards": (
        upward_imports,
        {"llmlab.kv.a": "def f():\n    from llmlab.lab.b import c", "llmlab.lab.b": ""},
    ),
    "an import by name": (upward_imports, {"llmlab.kv.a": "def f():\n    importlib.import_module('llmlab.lab')"}),
    "cli and ui": (upward_imports, {"llmlab.ui.a": "import llmlab.cli.b", "llmlab.cli.b": ""}),
    "a long function": (too_long, {"llmlab.a": "def f():\n" + "    a = 1\n" * FUNCTION}),
    "a tangled function": (too_long, {"llmlab.a": "def f():\n" + "    a = 1 if b else [c for c in d]\n" * 10}),
    "a long file": (lambda modules: long_files(modules.items()), {"llmlab.a": "\n" * (FILE + 1)}),
    "two techniques in a file": (
        misplaced_techniques,
        {
            "llmlab.runtime.roles": "class Role(Technique): ...",
            "llmlab.techniques.a": "class A(Role):\n    covers = ()\nclass B(A):\n    covers = ()",
        },
    ),
    "a technique elsewhere": (misplaced_techniques, {"llmlab.lab.a": "class A(Technique):\n    covers = ()"}),
    "a technique without covers": (misplaced_techniques, {"llmlab.techniques.a": "class A(Technique): ..."}),
    "a buffer": (touched_buffers, {"llmlab.models.a": "rows.storage._kv[0] = 1"}),
    "a block by name": (blocks_called, {"llmlab.lab.a": "h = block(h, batch)"}),
    "a block by place": (blocks_called, {"llmlab.lab.a": "h = model.layers[3](h, batch)"}),
    "a block in a loop": (blocks_called, {"llmlab.lab.a": "for i, b in enumerate(m.layers):\n    h = b(h)"}),
    "a mixer": (blocks_called, {"llmlab.lab.a": "for b in m.layers:\n    h = b.mixer.mix(h, batch, 0, False)"}),
    "layer by layer": (layer_by_layer, {"llmlab.lab.a": "def f():\n    m.run_layers(h, batch, i, stop=i + 1)"}),
    "a session's attribute": (sessions_written, {"llmlab.lab.a": "lane.session.tokens = []"}),
    "a session by another name": (sessions_written, {"llmlab.lab.a": "def f(s: Session):\n    s.uncached += 1"}),
    "a session in a scope": (sessions_written, {"llmlab.lab.a": "with x.speculative_scope() as y:\n    del y.plan"}),
    "a session's setattr": (sessions_written, {"llmlab.lab.a": "setattr(session, 'plan', None)"}),
}


@pytest.mark.parametrize("case", BITES)
def test_the_law_bites(case: str) -> None:
    law, modules = BITES[case]
    assert law(modules)


def test_the_laws_let_honest_code_pass() -> None:
    modules = {
        "llmlab.errors": "class Refused(Exception): ...",
        "llmlab.kv.a": "from llmlab.errors import Refused\nself._kv = storage._mirror",
        "llmlab.models.a": "import llmlab.kv.a\nfor block in self.layers:\n    h = block(h)",
        "llmlab.techniques.a": "class A(Technique):\n    covers = ()\n    def f(self, session): return session.tokens",
        "llmlab.lab.a": "for block in model.layers:\n    block.store('qkv', W)\nmodel.run_layers(h, batch, 0, layer)",
    }
    laws = (circles, upward_imports, too_long, misplaced_techniques, touched_buffers, blocks_called, layer_by_layer)
    assert not any([*(law(modules) for law in laws), sessions_written(modules)])
