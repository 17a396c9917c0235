"""Rules of style that no linter holds, read off the syntax tree; each rule is shown to catch its own fault."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.house.repository import DEFINITION_FOLDERS, PACKAGE, ROOT, package_sources, relative

MAX_LINES = 400
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}

# Packages that are pure: what they may import besides the standard library and difalign itself.
PURE_PACKAGES = {
    "core": {"torch"},
    "process": {"torch", "numpy"},  # grids repeat the arithmetic of diffusers' schedulers, which is numpy's
    "objective": {"torch"},
    "embedded": {"numpy", "scipy"},
}
# The part of the core that reads configuration may know how.
CONFIG_MODULES = {
    "config_distill",
    "config_fields",
    "config_plans",
    "config_rewards",
    "config",
    "config_errors",
    "config_yaml",
    "cross_checks",
    "overrides",
}
CONFIG_LIBRARIES = {"pydantic", "pydantic_core", "yaml"}
# The part of it that reads prompts may know a table's format; it is an extra, imported where one is read.
PROMPT_MODULES = {"prompt_rows"}
PROMPT_LIBRARIES = {"pyarrow"}

# Seconds to import each: they are imported inside functions, or under TYPE_CHECKING.
MODEL_LIBRARIES = {"diffusers", "transformers", "open_clip"}

Rule = Callable[[ast.Module], Iterator[int]]


def prints(tree: ast.Module) -> Iterator[int]:
    """Lines that call print."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno


def moves_to_cuda(tree: ast.Module) -> Iterator[int]:
    """Lines that call a method named cuda: the device comes from the inputs."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
            yield node.lineno


def swallows_keywords(tree: ast.Module) -> Iterator[int]:
    """Functions with ``**kwargs``: a misspelt name must be an error."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and node.args.kwarg is not None:
            yield node.lineno


def hides_errors(tree: ast.Module) -> Iterator[int]:
    """Handlers of everything that do not raise again."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not _raises(node):
            yield node.lineno


def _raises(handler: ast.ExceptHandler) -> bool:
    return any(isinstance(inner, ast.Raise) for inner in ast.walk(handler))


def _is_broad(caught: ast.expr | None) -> bool:
    if caught is None:
        return True
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(isinstance(name, ast.Name) and name.id in {"Exception", "BaseException"} for name in names)


def seeds_globally(tree: ast.Module) -> Iterator[int]:
    """Lines that seed a global generator: randomness is an argument."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "torch.manual_seed",
            "torch.cuda.manual_seed_all",
            "np.random.seed",
            "numpy.random.seed",
            "random.seed",
        }:
            yield node.lineno


RULES: dict[Rule, str] = {
    prints: "print(1)",
    moves_to_cuda: "x.cuda()",
    swallows_keywords: "def f(**kwargs): ...",
    hides_errors: "try:\n    f()\nexcept Exception:\n    pass",
    seeds_globally: "import torch\ntorch.manual_seed(0)",
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_catches_its_fault(rule: Rule):
    assert list(rule(ast.parse(RULES[rule])))


def test_re_raising_is_allowed():
    assert not list(hides_errors(ast.parse("try:\n    f()\nexcept Exception as error:\n    raise E() from error")))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_rule(rule: Rule):
    broken = [f"{relative(path)}:{line}" for path in package_sources() for line in rule(_parse(path))]
    assert not broken, f"{rule.__doc__}: {broken}"


def test_package_files_are_short_and_named_for_what_they_hold():
    too_long = [
        f"{relative(path)} ({lines} lines)"
        for path in package_sources()
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    ]
    nameless = [relative(path) for path in package_sources() if path.stem in BANNED_NAMES]
    assert not too_long
    assert not nameless


@pytest.mark.parametrize("folder", DEFINITION_FOLDERS)
def test_definition_folders_hold_no_python(folder: str):
    assert (ROOT / folder).is_dir()
    assert not [relative(path) for path in (ROOT / folder).rglob("*.py")]


def test_model_libraries_are_imported_inside_functions():
    eager = [
        f"{relative(path)}: {name}"
        for path in package_sources()
        for name in sorted(_imported_on_load(_parse(path)) & MODEL_LIBRARIES)
    ]
    assert not eager


def test_eager_import_is_told_from_lazy():
    assert _imported_on_load(ast.parse("try:\n    import diffusers\nexcept ImportError:\n    raise")) == {"diffusers"}
    assert not _imported_on_load(ast.parse("def f():\n    import diffusers"))
    assert not _imported_on_load(ast.parse("if TYPE_CHECKING:\n    import diffusers"))


@pytest.mark.parametrize("package", PURE_PACKAGES)
def test_pure_packages_import_only_what_they_may(package: str):
    foreign = [
        f"{relative(path)}: {name}"
        for path in sorted((PACKAGE / package).rglob("*.py"))
        for name in sorted(_imported(_parse(path)) - _allowed(package, path))
    ]
    assert not foreign


def _allowed(package: str, path: Path) -> set[str]:
    extra = set()
    if package == "core":
        extra = CONFIG_LIBRARIES if path.stem in CONFIG_MODULES else extra
        extra = PROMPT_LIBRARIES if path.stem in PROMPT_MODULES else extra
    return {"difalign", *sys.stdlib_module_names} | PURE_PACKAGES[package] | extra


def _imported(tree: ast.AST) -> set[str]:
    """Top-level names of every absolute import, wherever it stands."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


def _imported_on_load(node: ast.AST) -> set[str]:
    """Top-level names of the imports that run when the module is imported."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        return set()
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return set()
    if isinstance(node, ast.Import | ast.ImportFrom):
        return _imported(node)
    return {name for child in ast.iter_child_nodes(node) for name in _imported_on_load(child)}


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))
