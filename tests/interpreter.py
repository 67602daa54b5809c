"""Takes from Triton's interpreter what it does again and again, a quarter of its time in the tests.

It replaces the functions of ``triton.language`` by its own when a kernel starts, and once more in
each call of a device function, where they mostly are its own already.
"""

from __future__ import annotations

import functools
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


@functools.cache
def _languages(fn: Any) -> frozenset[str]:
    """Those modules that a function of the language may use, which is what is replaced for it."""
    modules = fn.__globals__.values()
    return frozenset(lang.__name__ for lang in (tl, tl.core) if any(m is lang for m in modules))


def patch_once() -> None:
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
