"""Every kernel operation is a folder with twins of the same functions."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

import trimtab.kernels
from trimtab import kernels

FOLDER = Path(trimtab.kernels.__file__).parent


def functions(operation: str, twin: str) -> set[str]:
    """Return the names of the public functions that stand in a twin's own file."""
    tree = ast.parse((FOLDER / operation / f"{twin}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}


def parameters(function: Callable) -> list[str]:
    return list(inspect.signature(getattr(function, "py_func", function)).parameters)


def test_there_are_operations():
    assert kernels.operations()


@pytest.mark.parametrize("operation", kernels.operations())
def test_twins_have_the_same_functions(operation):
    """The fast twin may take over functions of the reference that compute sizes, but adds none of its own."""
    ref, fast = (importlib.import_module(f"trimtab.kernels.{operation}.{twin}") for twin in ("ref", "numba"))
    names = functions(operation, "ref")
    assert names
    assert functions(operation, "numba") <= names
    for name in names:
        assert parameters(getattr(fast, name)) == parameters(getattr(ref, name)), name


@pytest.mark.parametrize("operation", kernels.operations())
@pytest.mark.parametrize("name", ["numba", "ref"])
def test_both_twins_load(operation, name):
    with kernels.backend(name):
        module = kernels.load(operation)
    assert module.__name__ == f"trimtab.kernels.{operation}.{name}"
    for function in functions(operation, name):
        assert callable(getattr(module, function))


@pytest.mark.parametrize("operation", kernels.operations())
def test_references_are_numpy(operation):
    """A reference that called the compiled twin could not check it."""
    source = (FOLDER / operation / "ref.py").read_text()
    imports = [
        ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert not [line for line in imports if "numba" in line or "jit" in line]


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*/triton.py")), ids=lambda path: path.parent.name)
def test_device_twins_stand_beside_a_reference(path):
    """What they share with it has the same parameters; what they add, for many pieces at once, says what it is."""
    tree = ast.parse(path.read_text())
    kernels_of_triton = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    assert kernels_of_triton
    assert all(node.name.startswith("_") for node in kernels_of_triton)
    reference = importlib.import_module(f"trimtab.kernels.{path.parent.name}.ref")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            twin = getattr(reference, node.name, None)
            assert twin is None or parameters(twin) == [argument.arg for argument in node.args.args], node.name
            assert ast.get_docstring(node)


def test_functions_are_documented():
    for operation in kernels.operations():
        with kernels.backend("ref"):
            module = kernels.load(operation)
        for name in functions(operation, "ref"):
            assert inspect.getdoc(getattr(module, name)), f"{operation}.ref.{name}"
