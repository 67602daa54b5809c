"""Reads what the compiler made: registers, stack, and how many instructions of each kind.

NVIDIA's are read from the cubin with the ``cuobjdump`` and ``nvdisasm`` that come with Triton,
AMD's from the assembly that the binary was made of.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import triton

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"

# What each instruction counts as; the first pattern that matches decides.
NVIDIA_KINDS = {
    "wgmma from registers": r"[HQIB]GMMA\S*\s+R\d+, R\d",
    "wgmma": r"[HQIB]GMMA",
    "tcgen05": r"UTC\w*MMA",
    "mma": r"[HQIBD]MMA",
    "bulk copy": r"UTMALDG|UBLKCP",
    "async copy": r"LDGSTS",
    "load 16": r"LDG\.\S*\.128",
    "load 8": r"LDG\.\S*\.64",
    "load 2": r"LDG\.\S*\.[US]16",
    "load 1": r"LDG\.\S*\.[US]8",
    "load 4": r"LDG\.",
    "store 2": r"STG\.\S*\.[US]16",
    "store 1": r"STG\.\S*\.[US]8",
    "store": r"STG\.|UTMASTG",
    "local": r"LDL|STL",
    "setmaxnreg": r"USETMAXREG",
}
AMD_KINDS = {
    "mfma": r"v_s?mfmac?_",
    "async copy": r"(buffer|global)_load_\S+ .*\blds\b|global_load_lds",
    "load 16": r"(buffer|global)_load_dwordx4",
    "load 8": r"(buffer|global)_load_dwordx2",
    "load 2": r"(buffer|global)_load_\S*short",
    "load 1": r"(buffer|global)_load_\S*byte",
    "load 4": r"(buffer|global)_load_dword",
    "store 2": r"(buffer|global)_store_short",
    "store 1": r"(buffer|global)_store_byte",
    "store": r"(buffer|global)_store",
    "local": r"scratch_(load|store)",
}

# Where a branch may lead to, and a branch: by address in NVIDIA's assembly, by label in AMD's.
_LABEL = re.compile(r"\s*/\*0*([0-9a-f]+)\*/|(\.?L\w+):")
_BRANCH = re.compile(r"\b(?:BRA\S*|s_c?branch\w*)\s(?:.*?0x([0-9a-f]+)|\s*(\.?L\w+))")


def usage(asm: Mapping[str, Any]) -> tuple[int, int]:
    """(registers, bytes of stack) a thread; spilled registers count as stack. A scalar register
    that AMD's compiler keeps in a lane of a vector register does not: it never leaves the chip."""
    if "amdgcn" in asm:
        found = dict(re.findall(r"\.(\w+):\s+(\d+)", asm["amdgcn"]))
        spilled = 4 * int(found["vgpr_spill_count"])
        return int(found["vgpr_count"]), int(found["private_segment_fixed_size"]) + spilled
    printed = _run("cuobjdump", asm["cubin"], "-res-usage")
    found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", printed))
    return int(found["REG"]), int(found["STACK"]) + int(found["LOCAL"])


def instruction_mixes(binaries: Sequence[Mapping[str, Any]]) -> list[dict[str, int]]:
    """Of each binary, how many instructions of each kind that matters there are; only those that
    there are.

    Kinds: the matrix units' (``wgmma``, ``tcgen05``, ``mma``, ``mfma``), of Hopper those whose
    left operand passes through registers (``wgmma from registers``); copies from global to shared
    memory (``bulk copy``, ``async copy``); global loads and stores, with the bytes that one thread
    moves; ``local`` for spills, ``local in a loop`` for those among them that may run often;
    ``setmaxnreg``, by which specialized warps trade registers.
    """
    by_architecture: dict[str, list[bytes]] = {}
    for asm in binaries:
        if "cubin" in asm:
            by_architecture.setdefault(_architecture(asm), []).append(asm["cubin"])
    mixes = {
        cubin: count_kinds(text, NVIDIA_KINDS)
        for architecture, cubins in by_architecture.items()
        for cubin, text in _disassembled(architecture, dict.fromkeys(cubins)).items()
    }
    return [
        dict(mixes[asm["cubin"]]) if "cubin" in asm else count_kinds(asm["amdgcn"], AMD_KINDS)
        for asm in binaries
    ]


def _architecture(asm: Mapping[str, Any]) -> str:
    """As nvdisasm names it, such as SM90a."""
    (found,) = re.findall(r"^\.target sm_(\w+)", asm["ptx"], re.MULTILINE)
    return f"SM{found}"


def _disassembled(architecture: str, cubins: Iterable[bytes]) -> dict[bytes, str]:
    """The assembly of each, by one nvdisasm: it takes a third of a second to start. ``-ndf`` leaves
    out the analysis of the data flow, which the instructions' text does not show."""
    codes = {cubin: _code(cubin) for cubin in cubins}
    listing = _run("nvdisasm", b"".join(codes.values()), "--binary", architecture, "-ndf")
    lines = iter(re.findall(r"^\s*/\*([0-9a-f]+)\*/(.*)$", listing, re.MULTILINE))
    address, instruction = next(lines)
    found, end = {}, 0
    for cubin, code in codes.items():
        end += len(code)
        own = []
        while int(address, 16) < end:
            own.append(f"/*{address}*/{instruction}")
            address, instruction = next(lines, ("f" * 16, ""))
        found[cubin] = "\n".join(own)
    return found


def _code(cubin: bytes) -> bytes:
    """The section of an ELF file's that holds the kernel's instructions."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    start_of_names = sections[names][4]
    (code,) = (
        cubin[offset : offset + length]
        for name, _, _, _, offset, length in sections
        if cubin.startswith(b".text.", start_of_names + name)
    )
    return code


def count_kinds(text: str, kinds: Mapping[str, str]) -> dict[str, int]:
    """Count the lines of assembly by the first of `kinds` whose pattern they hold."""
    any_kind = re.compile("|".join(rf"(?P<k{i}>\b(?:{p}))" for i, p in enumerate(kinds.values())))
    names = dict(zip((f"k{i}" for i in range(len(kinds))), kinds, strict=True))
    found: Counter[str] = Counter()
    lines = text.splitlines()
    local = []
    for i, line in enumerate(lines):
        match = any_kind.search(line)
        if match:
            kind = names[str(match.lastgroup)]
            found[kind] += 1
            local += [i] * (kind == "local")
    loops = _loops(lines) if local else []
    looped = sum(any(first <= i <= last for first, last in loops) for i in local)
    if looped:
        found["local in a loop"] = looped
    return dict(sorted(found.items()))


def _loops(lines: Sequence[str]) -> list[tuple[int, int]]:
    """First and last line of each loop: from a label to a branch back to it."""
    labels: dict[str, int] = {}
    found = []
    for i, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label[1] or label[2]] = i
        if branch := _BRANCH.search(line):
            start = labels.get(branch[1] or branch[2])
            found += [] if start is None else [(start, i)]
    return found


def _run(tool: str, binary: bytes, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(TOOLS / tool), *options, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
