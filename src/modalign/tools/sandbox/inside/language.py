"""The Python that a program may be written in: RestrictedPython's, without classes and imports of files.

RestrictedPython rewrites the program so that every attribute, item and assignment passes a guard; names
and attributes that begin with ``_`` do not exist. Two common constructs that it refuses are rewritten first:
annotations are dropped, ``counts[key] += 1`` becomes an assignment.
"""

from __future__ import annotations

import ast
import collections
import itertools
import json
import math
import operator
import re
import statistics
import unicodedata  # noqa: F401 - the parser asks for it at the first non-ASCII name
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

from RestrictedPython import RestrictingNodeTransformer, compile_restricted_exec
from RestrictedPython.Guards import (
    guarded_iter_unpack_sequence,
    guarded_unpack_sequence,
    safe_builtins,
    safer_getattr_raise,
)

NAME = "<program>"
ANSWER = "answer"
FINAL = "final_value"  # variable for the value of a final expression

_TAKEN_OUT = {"__build_class__", "_getattr_", "setattr", "delattr", "id"}
_ADDED = (
    all, any, dict, enumerate, filter, frozenset, iter, list, map, max, min, next, reversed, set,
    sorted, sum, tuple, zip,
)  # fmt: skip
_WRITABLE = {dict, list, set, collections.Counter, collections.defaultdict, collections.deque}
_MODULES: Mapping[str, tuple[Any, str]] = {
    "math": (math, " ".join(name for name in dir(math) if not name.startswith("_"))),
    "re": (
        re,
        "compile search match fullmatch findall finditer split sub escape"
        " IGNORECASE MULTILINE DOTALL I M S",
    ),
    "json": (json, "loads dumps"),
    "itertools": (itertools, "accumulate chain combinations count cycle groupby islice pairwise"
                  " permutations product repeat takewhile dropwhile zip_longest"),
    "collections": (collections, "Counter defaultdict deque"),
    "statistics": (statistics, "mean fmean median mode multimode stdev pstdev variance pvariance"),
}  # fmt: skip
_IN_PLACE: Mapping[str, Callable[[Any, Any], Any]] = {
    "+=": operator.iadd,
    "-=": operator.isub,
    "*=": operator.imul,
    "/=": operator.itruediv,
    "//=": operator.ifloordiv,
    "%=": operator.imod,
    "**=": operator.ipow,
    "<<=": operator.ilshift,
    ">>=": operator.irshift,
    "|=": operator.ior,
    "^=": operator.ixor,
    "&=": operator.iand,
}


class _Facade:
    """Selected names of a module; its own imports are not reachable."""

    def __init__(self, module: Any, names: str) -> None:
        for name in names.split():
            setattr(self, name, getattr(module, name))


_FACADES = {name: _Facade(module, names) for name, (module, names) in _MODULES.items()}


class _Simplify(ast.NodeTransformer):
    """Annotations dropped; augmented assignments of items written out."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        """``x: int = 1`` is ``x = 1``."""
        self.generic_visit(node)
        if node.value is None:
            return ast.copy_location(ast.Pass(), node)
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        """``def f(x: int)`` is ``def f(x)``."""
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """``def f() -> int`` is ``def f()``."""
        node.returns = None
        return self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        """``a[i] += x`` is ``a[i] = a[i] + x`` where ``a[i]`` calls nothing, so twice is safe."""
        self.generic_visit(node)
        target = node.target
        if not isinstance(target, ast.Subscript):
            return node
        if any(isinstance(part, ast.Call | ast.NamedExpr) for part in ast.walk(target)):
            return node  # refused later, with the reason
        read = ast.Subscript(target.value, target.slice, ast.Load())
        value = ast.BinOp(ast.copy_location(read, node), node.op, node.value)
        return ast.copy_location(ast.Assign([target], ast.copy_location(value, node)), node)


class _Policy(RestrictingNodeTransformer):
    """RestrictedPython's policy, and no classes: with them go metaclasses, ``__del__`` and hooks."""

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:  # noqa: N802
        """Refuse."""
        self.error(node, "classes are not allowed; use functions, lists and dictionaries")
        return node


def compile_program(source: str, restricted: bool) -> CodeType:
    """Compile a program; the value of a final expression is stored in ``FINAL``.

    Raises:
        SyntaxError: it is not Python, or contains something that is not allowed.
    """
    tree = ast.parse(source, NAME)
    if tree.body and isinstance(last := tree.body[-1], ast.Expr):
        target = ast.copy_location(ast.Name(FINAL, ast.Store()), last)
        tree.body[-1] = ast.copy_location(ast.Assign([target], last.value), last)
    if not restricted:
        return compile(ast.fix_missing_locations(tree), NAME, "exec")
    simple = ast.fix_missing_locations(_Simplify().visit(tree))
    result = compile_restricted_exec(simple, NAME, policy=_Policy)
    if result.errors:
        raise SyntaxError("; ".join(result.errors))
    assert result.code is not None
    return result.code


def names_for(write: Callable[[str], None], functions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the global names that a restricted program starts with.

    Args:
        write: where printed text goes.
        functions: the tools.
    """

    class Printer:
        """RestrictedPython's replacement for ``print``."""

        def __init__(self, _getattr_: Any = None) -> None:
            pass

        def _call_print(self, *values: Any, sep: str = " ", end: str = "\n", **_: Any) -> None:
            write(sep.join(map(str, values)) + end)

    kept = {name: value for name, value in safe_builtins.items() if name not in _TAKEN_OUT}
    added = {function.__name__: function for function in _ADDED}
    own = {"getattr": safer_getattr_raise, "__import__": _import}
    return {
        "__builtins__": kept | added | own,
        "__name__": "program",
        "_print_": Printer,
        "_getattr_": safer_getattr_raise,
        "_getitem_": operator.getitem,
        "_getiter_": iter,
        "_iter_unpack_sequence_": guarded_iter_unpack_sequence,
        "_unpack_sequence_": guarded_unpack_sequence,
        "_write_": _writable,
        "_inplacevar_": _in_place,
        **functions,
    }


def _writable(container: Any) -> Any:
    if type(container) not in _WRITABLE:
        raise TypeError(f"a {type(container).__name__} cannot be written to")
    return container


def _in_place(sign: str, left: Any, right: Any) -> Any:
    if sign not in _IN_PLACE:
        raise TypeError(f"{sign} is not allowed")
    return _IN_PLACE[sign](left, right)


def _import(name: str, *_: Any) -> _Facade:
    """Return the modules that may be imported, as their facades."""
    if name not in _FACADES:
        raise ImportError(f"{name} cannot be imported; there are {', '.join(sorted(_FACADES))}")
    return _FACADES[name]
