"""Print a Triton kernel's intermediate code for an H200 and the method's defaults; needs no GPU.

Run it in a separate process (`python hopper.py KERNEL`), since Triton's interpreter does not compile.
"""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from afdcd_hf.ops import contrast_triton

kernel = getattr(contrast_triton, sys.argv[1])
constants = {"PATCH_SIZE": 4, "VECTORS": 256, "CHANNELS": 128, "GROUP_SIZE": 16, "SQUARED": False, "UNROLL": 4}
constants |= {"BLOCK_A": 64, "BLOCK_V": 64, "BLOCK_C": 64}
constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
types = {name: "*fp32" if name.endswith("_ptr") else "i32" for name in kernel.arg_names}
types |= {"inverse_temperature": "fp32"} if "inverse_temperature" in types else {}
types |= dict.fromkeys(constants, "constexpr")
aligned = {
    (index,): [["tt.divisibility", 16]]
    for index, name in enumerate(kernel.arg_names)
    if name.endswith("_ptr") or name in ("anchors", "first_anchor")
}
source = ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=aligned)
print(triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm["ttgir"])
