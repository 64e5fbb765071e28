"""Compiles for a GPU that need not be here every kernel that the ops launch, as they launch it.

Run as a program without Triton's interpreter: launches are caught and compiled instead, and a
line is written for each. What the ops return here means nothing.
"""

import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from models.nn.kernels.table import Update, Weight
from models.nn.kernels.triton.bottleneck import bottleneck
from models.nn.kernels.triton.gated_attention import gated_attention
from models.nn.kernels.triton.low_rank import low_rank
from models.nn.kernels.triton.project import project
from models.nn.kernels.triton.rms_norm import add_rms_norm, rms_norm
from models.nn.kernels.triton.rotate import rotate
from models.nn.kernels.triton.swiglu import swiglu

DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32", torch.int64: "i64", torch.bool: "i1"}
seen: set[Any] = set()


def compile_launch(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **named: Any) -> None:
    """Compile what would be launched; an integer of 1 is a constant, as when it is launched."""
    stages = named.pop("num_stages", 3)
    bound = kernel.signature.bind(*arguments, **named)
    constants = {param.name for param in kernel.params if param.is_constexpr}
    signature, fixed = {}, {}
    for name, value in bound.arguments.items():
        if isinstance(value, torch.Tensor):
            signature[name] = f"*{DTYPES[value.dtype]}"
        elif name in constants or (isinstance(value, int) and value == 1):
            signature[name], fixed[name] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    key = (kernel, tuple(signature.items()), tuple(fixed.items()))
    if key in seen:
        return
    seen.add(key)
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed)
    options = {"enable_fp_fusion": True, "num_stages": stages}
    made = triton.compile(source, target=target, options=options)
    name, size, shared = kernel.__name__, len(made.asm["cubin"]), made.metadata.shared
    sys.stdout.write(f"{kernel.__module__}:{name} {size} {shared}\n")


def draw(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*sizes, dtype=dtype, requires_grad=True)


def attend_with_wide_heads(rows: int) -> torch.Tensor:
    """Take much shared memory: float32, 128 dimensions a head."""
    sizes = ((rows, 2, 128), (2, rows, 128), (1, 10, 128), (1, 10, 128), (2,))
    output, query, keys, values, gate = (draw(*size, dtype=torch.float32) for size in sizes)
    sides = {"keys_kph": keys, "values_kph": values, "scale": 0.1}
    return gated_attention(output, query, gate=gate, **sides)


def main() -> None:
    triton.JITFunction.run = compile_launch
    rows, hidden, rank = 70, 576, 16
    x, y = draw(rows, hidden), draw(rows, hidden)
    down, up, bias = draw(rank, hidden), draw(hidden, rank), draw(rank)
    weight = Weight(draw(hidden, hidden).detach())
    update = Update((0, rows), (0, hidden), down, up, 2.0)
    outputs = [project(x, weight=weight, updates=[update])]
    narrow = {"down_md": down, "down_bias_m": bias, "up_dm": up, "activation": "gelu"}
    outputs.append(bottleneck(y, x, weight=0.5, **narrow))
    query, gate = draw(9, rows, 64), draw(9)
    sides = {"keys_kph": draw(3, 10, 64), "values_kph": draw(3, 10, 64), "scale": 0.125}
    outputs.append(gated_attention(draw(rows, 9, 64), query, gate=gate, **sides))
    outputs.append(attend_with_wide_heads(rows))
    outputs += [rms_norm(x, gain=draw(hidden), epsilon=1e-5)]
    outputs += add_rms_norm(x, y, gain=draw(rows, hidden), epsilon=1e-5)
    angles = torch.randn(rows, 64).bfloat16()
    outputs.append(rotate(draw(rows, 15, 64), cos_th=angles, sin_th=angles, rotated=12))
    outputs.append(swiglu(draw(rows, 2 * 1536)))
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
    with torch.no_grad():
        mask = torch.rand(rows, rank)
        low_rank(y, x, down_ri=down, up_or=up, weight=mask)
        bottleneck(y, x, weight=mask, **narrow)
        sees = torch.rand(rows, 10) < 0.5
        gated_attention(draw(rows, 9, 64), query, gate=draw(rows, 9), visible_tp=sees, **sides)


if __name__ == "__main__":
    main()
