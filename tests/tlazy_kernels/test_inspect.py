"""The table for people who write kernels, and what has changed in it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from functools import cache

import pytest

from tests.tlazy_kernels.subprocesses import ROOT, inspected, output, start
from tlazy_kernels import inspect, machine_code, table
from tlazy_kernels.table import Row

pytestmark = pytest.mark.compiles


@cache
def a_few() -> list[Row]:
    return inspected({"sm_80": ("bfloat16", "float16")}, "--kernel", "linear_forward")


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which the program ends."""
    with pytest.raises(SystemExit) as ended:
        inspect.main(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


def test_the_table_has_a_line_for_each_row_with_its_figures():
    row = replace(a_few()[0], name="a name", registers=77, shared=4321, bytes=3_000_000)
    header, line = table.text([replace(row, least_bytes=2_000_000)]).splitlines()
    for title, figure in (("regs", "77"), ("shared", "4321"), ("MB", "3.0"), ("x least", "1.50")):
        assert line[header.index(title) :].startswith(figure)
    assert line.startswith("a name")
    assert "async.copy:" in line


def test_a_brief_table_has_each_kernel_once():
    printed = output(start("tlazy_kernels.inspect", "--brief", "--kernel", "linear_forward"))
    _, *rows = printed.splitlines()
    # Not the specialized one, another variant of the first.
    assert [row.split("  ")[0] for row in rows] == ["linear_forward", "linear_forward by pointers"]


def test_a_saved_table_is_loaded_as_it_was(tmp_path):
    table.save(a_few(), tmp_path / "t.json")
    assert table.load(tmp_path / "t.json") == a_few()


def test_differences_name_what_came_what_went_and_what_changed():
    one, two, three = a_few()[:3]
    changed = replace(two, registers=two.registers + 5, mix={"local": 2})
    lines = table.differences([one, two], [changed, three])
    assert f"{' '.join(one.key)}: gone" in lines
    assert f"{' '.join(three.key)}: new" in lines
    (line,) = (line for line in lines if line.startswith(" ".join(two.key)))
    assert f"registers {two.registers} -> {two.registers + 5}" in line
    assert "local 0 -> 2" in line
    assert f"async copy {two.mix['async copy']} -> 0" in line
    assert table.differences([one, two], [two, one]) == []


def test_a_git_revision_is_inspected_by_its_own_kernels(tmp_path):
    package = tmp_path / "tlazy_kernels"
    shutil.copytree(ROOT / "kernels/tlazy_kernels", package)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "kernels"]):
        subprocess.run([*git, *command], check=True)
    epilogue = package / "epilogue.py"
    epilogue.write_text(epilogue.read_text().replace("elements = 32 *", "elements = 8 *"))
    options = ["--kernel", "epilogue", "--diff", "HEAD"]
    line = output(start("tlazy_kernels.inspect", *options, path=tmp_path))
    assert line.startswith(
        "epilogue_backward gelu sm_90 bfloat16: config I1024 C1 warps4 -> I256 C1"
    )


@pytest.mark.parametrize("amount", [[], ["--brief"], ["--thorough"]], ids=str)
def test_of_a_git_revision_the_same_cases_are_inspected(amount, monkeypatch, capsys):
    asked = []

    def reference(_, options):
        asked.extend(options)
        return a_few()

    monkeypatch.setattr(inspect, "INTERPRETED", False)
    monkeypatch.setattr(inspect, "inspect_reference", reference)
    monkeypatch.setattr(inspect, "inspect", lambda *_, **__: a_few())
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    chosen = [*amount, "--kernel", "linear", "--target", "sm_80", "--dtype", "bfloat16", "float16"]
    inspect.main([*chosen, "--diff", "main"])
    assert inspect._parser().parse_args(asked) == inspect._parser().parse_args(chosen)
    assert capsys.readouterr().out == "nothing has changed\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--target", "sm_30"], "sm_30"),
        (["--dtype", "float8"], "float8"),
        (["--wrong"], "--wrong"),
        (["--kernel", "no such"], "no such"),
        (["--json", "/no/such/folder/t.json"], "/no/such/folder"),
        (["--diff", "no-such-revision"], "no-such-revision"),
        (["--diff", __file__], "test_inspect.py is not a table"),
    ],
    ids=str,
)
def test_bad_arguments_end_with_one_line_that_names_them(arguments, reason, capsys, monkeypatch):
    monkeypatch.setattr(inspect, "INTERPRETED", False)
    assert reason in refused(arguments, capsys)


def test_in_the_interpreter_there_is_nothing_to_compile(capsys, monkeypatch):
    monkeypatch.setattr(inspect, "INTERPRETED", True)
    assert "unset TRITON_INTERPRET" in refused([], capsys)


SASS = """
        /*0100*/  @!P1 LDG.E.U16.CONSTANT R4, desc[UR4][R2.64] ;
        /*0110*/  LDG.E.128 R8, desc[UR4][R2.64] ;
        /*0120*/  LDG.E R8, desc[UR4][R2.64] ;
        /*0130*/  LDGSTS.E.BYPASS.128 [R5], desc[UR4][R2.64] ;
        /*0140*/  LDGDEPBAR ;
        /*0150*/  HGMMA.64x64x16.F32.BF16 R24, R152, gdesc[UR8], R24 ;
        /*0158*/  HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8].tnspB, R24, gsb0 ;
        /*0160*/  STL [R1], R4 ;
        /*0170*/  STG.E.U16 desc[UR4][R2.64], R4 ;
        /*0180*/  USETMAXREG.DEALLOC.CTAPOOL 0x18 ;
        /*0190*/  UTMALDG.2D [UR4], [UR6] ;
"""


def test_instructions_are_counted_by_what_they_do():
    assert machine_code.count_kinds(SASS, machine_code.NVIDIA_KINDS) == {
        "async copy": 1,
        "bulk copy": 1,
        "load 16": 1,
        "load 2": 1,
        "load 4": 1,
        "local": 1,
        "setmaxnreg": 1,
        "store 2": 1,
        "wgmma": 1,
        "wgmma from registers": 1,
    }


def test_every_instruction_kind_of_amd_is_told_apart():
    lines = {
        "v_mfma_f32_32x32x8_bf16 a[0:15], v[2:3], v[4:5], a[0:15]": "mfma",
        "global_load_ushort v1, v[2:3], off": "load 2",
        "buffer_load_dwordx4 v[0:3], v4, s[0:3], 0 offen": "load 16",
        "buffer_load_dword v4, s[0:3], 0 offen lds": "async copy",
        "global_store_short v[0:1], v2, off": "store 2",
        "scratch_store_dword off, v1, s32": "local",
    }
    for line, kind in lines.items():
        assert machine_code.count_kinds(f"\t{line}", machine_code.AMD_KINDS) == {kind: 1}


LOOPS = {
    "nvidia": (
        machine_code.NVIDIA_KINDS,
        "/*00{:02x}*/  STL [R1], R4 ;",
        "/*0010*/  MOV R1, R2 ;",
        "/*0020*/  @P0 BRA 0x50 ;",
        "/*0040*/  @P1 BRA 0x10 ;",
        "/*0050*/  EXIT ;",
    ),
    "amd": (
        machine_code.AMD_KINDS,
        "\tscratch_store_dword off, v1, s{}",
        ".LBB0_1:",
        "\ts_cbranch_execz .LBB0_2",
        "\ts_cbranch_scc1 .LBB0_1",
        ".LBB0_2:",
    ),
}


@pytest.mark.parametrize("brand", LOOPS)
def test_a_spill_in_a_loop_is_told_from_one_beside_it(brand):
    kinds, spill, start, leave, back, end = LOOPS[brand]
    beside = "\n".join([spill.format(0), start, leave, back, end, spill.format(0x60)])
    assert machine_code.count_kinds(beside, kinds) == {"local": 2}
    within = "\n".join([spill.format(0), start, leave, spill.format(0x30), back, end])
    assert machine_code.count_kinds(within, kinds) == {"local": 2, "local in a loop": 1}
