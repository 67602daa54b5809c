"""Takes from Triton's interpreter what it does again and again, half of the tests' time.

It replaces the functions of ``triton.language`` by its own when a kernel starts, and once more in
each call of a device function, where they mostly are its own already. It writes its table of numpy
dtypes anew for each look-up, and the name of a block's type for each block. And it computes every
sum and product of integers a second time in 64 bits, to see whether the first overflowed: tests of
tensors so large that one could ask for that.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


@functools.cache
def _languages(fn: Any) -> frozenset[str]:
    """Those modules that a function of the language may use, which is what is replaced for it."""
    modules = fn.__globals__.values()
    return frozenset(lang.__name__ for lang in (tl, tl.core) if any(m is lang for m in modules))


def quicken() -> None:
    """Let the interpreter do once what it would do again and again."""
    _patch_once()
    _find_builtins_once()
    _look_dtypes_up_once()
    _describe_blocks_once()
    _shape_tensors_once()
    _promote_dtypes_once()
    _check_overflow(False)


@contextmanager
def overflow_is_an_error() -> Iterator[None]:
    """Where integers may get large."""
    _check_overflow(True)
    try:
        yield
    finally:
        _check_overflow(False)


def _patch_once() -> None:
    """Let a call of a device function leave as they are what the kernel has replaced before."""
    patch = interpreter._patch_lang
    replaced: set[str] = set()  # while a kernel runs

    def patch_lang(fn: Any) -> Any:
        if _languages(fn) <= replaced:
            return interpreter._LangPatchScope()
        scope = patch(fn)
        replaced.update(_languages(fn))
        restore = scope.restore

        def restored() -> None:
            replaced.clear()
            restore()

        scope.restore = restored
        return scope

    interpreter._patch_lang = patch_lang


def _find_builtins_once() -> None:
    """What is replaced in a module or a class when a kernel starts is the same each time."""

    @functools.cache
    def builtins(place: Any) -> list[tuple[str, Any]]:
        return [(k, v) for k, v in inspect.getmembers(place) if tl.core.is_builtin(v)]

    def patch_builtin(place: Any, builder: Any, scope: Any) -> None:
        for name, member in builtins(place):
            interpreter._patch_attr(place, name, member, builder, scope)

    interpreter._patch_builtin = patch_builtin


def _look_dtypes_up_once() -> None:
    """A block's dtype is that of its elements; pointers are looked up in no table."""
    find = interpreter._get_np_dtype
    known = functools.cache(find)

    def numpy_dtype(dtype: Any) -> Any:
        element = dtype.scalar
        return find(element) if element.is_ptr() else known(element)

    interpreter._get_np_dtype = numpy_dtype


def _describe_blocks_once() -> None:
    """The type of a block follows from that of its elements and its shape."""
    describe = tl.block_type.__init__
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def described(block: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *[getattr(size, "value", size) for size in shape])
        if key not in known:
            describe(block, element_ty, shape)
            known[key] = dict(vars(block))
        else:
            vars(block).update(known[key])

    tl.block_type.__init__ = described


def _shape_tensors_once() -> None:
    """A tensor's shape and its number of elements follow from its type."""
    make = tl.tensor.__init__
    known: dict[str, tuple[Any, Any]] = {}

    def made(tensor: Any, handle: Any, type: Any) -> None:
        if type.name not in known:
            make(tensor, handle, type)
            known[type.name] = tensor.shape, tensor.numel
        tensor.handle, tensor.type, tensor.dtype = handle, type, type.scalar
        tensor.shape, tensor.numel = known[type.name]

    tl.tensor.__init__ = made


def _promote_dtypes_once() -> None:
    """What two dtypes are computed in follows from them, and from which of them are scalars'."""
    promote = TritonSemantic.computation_type_impl
    known: dict[tuple[Any, ...], Any] = {}

    def promoted(semantic: Any, a: Any, a_scalar: bool, b: Any, b_scalar: bool, div: bool) -> Any:
        key = (a.name, a_scalar, b.name, b_scalar, div)
        if key not in known:
            known[key] = promote(semantic, a, a_scalar, b, b_scalar, div)
        return known[key]

    TritonSemantic.computation_type_impl = promoted


def _check_overflow(checked: bool) -> None:
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=checked, debug=checked)
