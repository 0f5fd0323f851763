"""Device kernels compile for a GPU, which takes none; what the interpreter accepts, the compiler may refuse."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import trimtab.kernels.{operation}.triton as twin

kernels = {{name: kernel for name, kernel in vars(twin).items() if isinstance(kernel, triton.JITFunction)}}
compiled = set()
for name, types, constants, fused in {cases!r}:
    kernel = kernels[name]
    if "PLAN" in constants:
        constants["PLAN"] = twin._plan(constants["WIDTH"])
    names = [argument for argument in kernel.arg_names if argument not in constants]
    signature = {{**dict(zip(names, types.split(), strict=True)), **dict.fromkeys(constants, "constexpr")}}
    source = ASTSource(kernel, signature=signature, constexprs=constants)
    options = {{}} if fused else {{"enable_fp_fusion": False}}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert made.asm["cubin"]
    assert fused or "fma." not in made.asm["ptx"], name
    compiled.add(name)
launched = {{name for name in kernels if f" {{name}}[" in open(twin.__file__).read()}} | {named!r}
assert compiled == launched, compiled ^ launched
"""

ONES = dict.fromkeys(("num", "rows_per_plane", "lane", "shift"), 1)  # a launch makes a constant of an argument 1
ROWS = "i32 *i64 i32 i64 i64 i64"
CASES = {
    "bitplanes": [
        ("_split", "*i64 *i32 *i32 *i32 i32", {"WIDTH": 3}, True),
        ("_merge", "*i32 *i32 *i64 *u8 i64 *i64 i32", {"WIDTH": 4}, True),
        ("_pack", "*u8 *i64 *i64 *u8 *u8 *i64 *i32", {"WIDTH": 2}, True),
        ("_count", "*u8 *i64 *i64 *i32", {"WIDTH": 2}, True),
        ("_gather", "*u8 *i64 *i64 *i16 *i64 *i64 *u8 i32", {"WIDTH": 3, "HALVES": True}, True),
        ("_gather", "*u8 *i64 *i64 *u8 *i64 *i64 *u8 i32", {"WIDTH": 3, "HALVES": False}, True),
        ("_unpack", "*u8 *i64 *i64 *i64 *u8 i64 *u8 *u8 *i64 *i32", {"WIDTH": 4}, True),
    ],
    "halving": [
        ("_pack", "*u8 *i64 *u8 i32", {"WIDTH": 3, "PLAN": "plan", "MAPPED": True}, True),
        ("_pack", "*u8 *i64 *u8 i32", {"WIDTH": 7, "PLAN": "plan", "MAPPED": False}, True),
        ("_unpack", "*u8 *i64 *u8", {"WIDTH": 5, "PLAN": "plan"}, True),
        ("_mark", "*u8 i64 i32 i32 i32 *u8 *i32", {}, True),
        ("_count", "*u8 i64 *i32", {}, True),
        ("_count", "*u8 *i32", {"num": 1}, True),
        ("_mark", "*u8 i32 i32 i32 *u8 *i32", {"num": 1}, True),
        ("_collect", "*u8 i32 i32 i32 *u8 *i64 *u8", {"num": 1}, True),
        ("_decode", "*u8 *u8 *u8 *i64 *u8 i32 i32 i32", {"num": 1, "WIDTH": 0, "PLAN": "plan", "MASKED": True}, True),
        ("_collect", "*u8 i64 i32 i32 i32 *u8 *i64 *u8", {}, True),
        ("_decode", "*u8 *u8 *u8 *i64 *u8 i64 i32 i32 i32", {"WIDTH": 3, "PLAN": "plan", "MASKED": True}, True),
    ],
    "xxh3": [("_digest", "*i64 i32 *i64 *i64", {}, True)],
    "quantiser": [
        ("_quantise", f"*fp32 {ROWS} i32 *i32 *i32", {"TILE": 256}, False),
        ("_quantise", f"*fp64 {ROWS} i32 *i32 *i32", {"TILE": 64}, False),
        ("_quantise", "*fp32 *i64 i64 i64 i64 i32 *i32 *i32", {"size": 1, "num": 1, "TILE": 1}, False),
        ("_list", "*fp64 *i64 i64 i64 i64 *i32 *i64 *i64 i32", {"size": 1, "num": 1, "TILE": 1}, False),
        ("_list", f"*fp32 {ROWS} *i32 *i64 *i64 i32", {"TILE": 256}, False),
        ("_dequantise", "*i32 *i64 i32 i64 i32 *fp32 i64", {"TILE": 256}, False),
        ("_dequantise", "*i32 *i64 i64 i32 *fp32", {"num": 1, "size": 1, "TILE": 1}, False),
        ("_dequantise_exp2", "*i32 *i64 i64 i32 *fp32", {"num": 1, "size": 1, "TILE": 1}, False),
        ("_dequantise_exp2", "*i32 *i64 i32 i64 i32 *fp64 i64", {"TILE": 256}, False),
    ],
    "predictor": [
        ("_fill", "*i32 i32 i32 i32", {"LINEAR": False, "SIZE": 2}, True),
        ("_fill", "*i32 i32 i32 i32", {"LINEAR": True, "SIZE": 8}, True),
        ("_fill", "*i32", {**dict.fromkeys(("num", "rows_per_plane", "lane"), 1), "LINEAR": False, "SIZE": 2}, True),
        ("_encode", "*i32 *i32 i32 i32 i32 *i32 *i32 i32", {"TAPS": 22, "TILE": 256}, True),
        ("_encode", "*i32 *i32 *i32 *i32", {**ONES, "TAPS": 9, "TILE": 1}, True),
        ("_sum_columns", "*i32 i32 i32 i32 i32 i32", {"TILE": 64}, True),
        ("_sum_columns", "*i32 i32 i32 i32 i32", {"num": 1, "TILE": 64}, True),
        ("_sum_within", "*i32 i32 i32 *i32", {"TILE": 512, "LANES": 1}, True),
        ("_sum_within", "*i32 i32 *i32", {"lane": 1, "TILE": 64, "LANES": 1}, True),
        ("_sum_within", "*i32 *i32", {"num": 1, "lane": 1, "TILE": 1, "LANES": 1}, True),
        ("_sum_within", "*i32 i32 i32 *i32", {"TILE": 256, "LANES": 4}, True),
    ],
}
GROUPS = {"GROUP": 128, "ROWS": 8, "BITS": 4, "LOG": 5}
TAIL = {"GROUP": 8, "ROWS": 128, "BITS": 7, "LOG": 0}
FLOAT8 = {"GROUP": 128, "ROWS": 8, "LOG": 7, "TRANSFORM": True}
CASES |= {
    "hadamard": [
        ("_transform", "*fp32 i32", {"TILE": 2048, "LOG": 5}, False),
        ("_transform", "*fp32 i64", {"TILE": 2048, "LOG": 9}, False),
    ],
    "groups": [
        (
            "_encode",
            "*fp32 *fp32 i32 i32 *u8 i32 i32 i32 i32 i32 i32",
            {**GROUPS, "DIFFERENCE": False, "NOISY": True},
            False,
        ),
        (
            "_encode",
            "*i16 *fp32 i64 i64 *u8 i64 i64 i64 i64 i32 i32",
            {**TAIL, "DIFFERENCE": True, "NOISY": False},
            False,
        ),
        ("_decode_sum", "*u8 i32 i32 i32 *fp32 i32 i32 i32 i32 i32 fp32", {**GROUPS, "ADDED": False}, False),
        ("_decode_sum", "*u8 i64 i64 *i16 i64 i64 i64 i64 i64 fp32", {**TAIL, "num_rows": 1, "ADDED": True}, False),
        (
            "_sum_encode",
            "*u8 i32 i32 i32 *u8 i32 i32 i32",
            {"TILE": 2048, "GROUP": 128, "BITS": 8, "OUT_GROUP": 2048, "OUT_BITS": 4, "NOISY": True},
            False,
        ),
    ],
    "float8": [
        ("_encode", "*fp32 i32 *u8 i32 i32 fp32 fp32 i32 fp32", {**FLOAT8, "SCALES": 2, "E4M3": True}, False),
        (
            "_encode",
            "*i16 i64 *u8 i64 fp32 fp32 i32 fp32",
            {**FLOAT8, "num_groups": 1, "SCALES": 1, "E4M3": False},
            False,
        ),
        ("_decode_sum", "*u8 i32 i32 *fp32 i32 i32 i32 fp32", {**FLOAT8, "SCALES": 2, "E4M3": True}, False),
        (
            "_decode_sum",
            "*u8 i64 *i16 i64 i64 fp32",
            {**FLOAT8, "num_rows": 1, "num_groups": 1, "SCALES": 1, "E4M3": False},
            False,
        ),
    ],
}
PLAIN = {"start": -1, "DITHERS": False}
CASES["blocks"] = [
    ("_encode", "*i32 i32 fp32 fp32 *i32 *i32 *i32 *fp32", {**PLAIN, "KIND": 0, "ITEM": 4, "WRITES": False}, False),
    ("_encode", "*i32 i64 fp32 fp32 *i32 *i64 *i32 *fp32", {**PLAIN, "KIND": 0, "ITEM": 4, "WRITES": True}, False),
    ("_encode", "*i16 i32 fp32 fp32 *i32 *i64 *i32 *fp32", {**PLAIN, "KIND": 1, "ITEM": 2, "WRITES": True}, False),
    (
        "_encode",
        "*i16 fp32 fp32 *i32 *i64 *i32 *fp32",
        {**PLAIN, "num": 1, "KIND": 2, "ITEM": 2, "WRITES": True},
        False,
    ),
    *(
        (
            "_encode",
            f"*i{8 * item} i32 fp32 fp32 i32 *i32 *i64 *i32 *fp32",
            {"DITHERS": True, "KIND": kind, "ITEM": item, "WRITES": True},
            False,
        )
        for kind, item in enumerate((4, 2, 2))
    ),
    ("_decode", "*u8 *i32 *i64 *i32 i64 fp32 *i32", {**PLAIN, "KIND": 0, "ITEM": 4}, False),
    ("_decode", "*u8 *i32 *i64 *i16 i32 fp32 *i32", {**PLAIN, "KIND": 1, "ITEM": 2}, False),
    ("_decode", "*u8 *i32 *i64 *i16 fp32 *i32", {**PLAIN, "num": 1, "KIND": 2, "ITEM": 2}, False),
    ("_decode", "*u8 *i32 *i64 *i32 i32 fp32 i32 *i32", {"DITHERS": True, "KIND": 0, "ITEM": 4}, False),
    ("_decode", "*u8 *i32 *i64 *i16 i64 fp32 i32 *i32", {"DITHERS": True, "KIND": 2, "ITEM": 2}, False),
]
PASSED_ON = {"quantiser": {"_dequantise", "_dequantise_exp2"}}
"""Kernels that are launched under another name."""


@pytest.mark.parametrize("operation", CASES)
def test_every_kernel_compiles_for_hopper(operation: str, tmp_path) -> None:
    """And where all machines must round alike, no product is fused with a sum."""
    code = COMPILE.format(operation=operation, cases=CASES[operation], named=PASSED_ON.get(operation, set()))
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
