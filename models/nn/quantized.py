"""Linear weights held in 4 or 8 bits by bitsandbytes, and products with them (QLoRA).

Dettmers et al., arXiv 2305.14314 and 2208.07339. Only the weight is packed: `nf4` is 4-bit
NormalFloat in blocks of 64 with doubly quantised block maxima; `int8` has one scale a row. A
product unpacks the weight to the dtype of its input, in the forward and again in the backward, so
that it is, to the bit, that of a network which holds the unpacked weights. The library's own
layers are not asked: on the CPU its 4-bit layer repacks the weight once it runs without
gradients; its 8-bit layer rounds the inputs too, by outliers that depend on the whole batch.

Shapes: T rows, i in features, o out features.
"""

import copy
from collections.abc import Callable
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available

from core.errors import InvalidRequest
from models.nn.autograd import apply
from models.nn.kernels import rows
from models.nn.shape import HEAD
from models.nn.tensor_file import DTYPES

_INT8_MAX = 127


def loading_options(quantization: str, *, dtype: torch.dtype, device: str) -> dict[str, Any]:
    """Return what `from_pretrained` is told to pack all linear weights but the head's."""
    if quantization == "none":
        return {}
    if not is_bitsandbytes_available():
        raise InvalidRequest(
            f"Quantization to {quantization} needs bitsandbytes, which this worker lacks; "
            "install it there, or train with quantization `none`.",
            code="quantization_unavailable",
            param="training.quantization",
        )
    config = BitsAndBytesConfig(
        load_in_4bit=quantization == "nf4",
        load_in_8bit=quantization == "int8",
        llm_int8_skip_modules=[HEAD],
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def leave_files(network: nn.Module, folder: Path) -> None:
    """Copy the parameters that may be views of a mapped file: one of them keeps all of it.

    Those of a dtype that no tensor of the folder's files has were made from what was read.
    """
    there = _dtypes_in(folder)
    for parameter in network.parameters():
        if not is_packed(parameter) and parameter.dtype in there:
            parameter.data = parameter.data.clone()


def _dtypes_in(folder: Path) -> set[torch.dtype | None]:
    found: set[torch.dtype | None] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            names = tensors.keys()
            found |= {DTYPES.get(tensors.get_slice(name).get_dtype()) for name in names}
    return found


def is_packed(weight: Tensor) -> bool:
    """Say whether a weight is held in 4 or 8 bits."""
    return not weight.is_floating_point()


def unpack(weight: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Return the (o, i) weight that a product in this dtype multiplies by."""
    if not is_packed(weight):
        return weight.detach().to(dtype)
    packed: Any = weight
    unpacked: Tensor
    if (state := getattr(packed, "quant_state", None)) is not None:
        # Not at the top: it is large, optional and slow to load, and few trainers have use for it.
        functional = import_module("bitsandbytes").functional
        unpacked = functional.dequantize_4bit(packed.data, _by_blocks(state))
        return unpacked.to(dtype).view(state.shape)
    unpacked = packed.data.to(dtype).mul_(packed.SCB.div(_INT8_MAX)[:, None])
    return unpacked


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return (..., o) from (..., i), as `F.linear`; gradients flow to x alone."""
    return _multiply(F.linear, x, weight, bias)


def shared_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return (T, o) from (T, i), as `rows.linear`; gradients flow to x alone."""
    return _multiply(rows.multiply, x, weight, bias)


def _multiply(
    multiply: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    product: Tensor = apply(_Product, multiply, x, weight, bias)
    return product


def _by_blocks(state: Any) -> Any:
    """Return the state of the same weight with a block a row.

    On the CPU the library starts a new block at every row, which its packing does not.
    """
    count, size = prod(state.shape), state.blocksize
    view = copy.copy(state)
    view.shape = torch.Size((1, count) if count % size else (count // size, size))
    return view


class _Product(torch.autograd.Function):
    """y = x W^T + b, which keeps the packed weight for the backward and not the unpacked one."""

    @staticmethod
    def forward(
        ctx: Any,
        multiply: Callable[..., Tensor],
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.multiply, ctx.weight = multiply, weight
        return multiply(x, unpack(weight, dtype=x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[None, Tensor | None, None, None]:
        if not ctx.needs_input_grad[1]:
            return None, None, None, None
        return None, ctx.multiply(grad_y, unpack(ctx.weight, dtype=grad_y.dtype).t()), None, None
