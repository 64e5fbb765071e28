"""The optional C++ kernels: found if they were built and this processor can run them.

`GRAFTWORK_NATIVE=off` keeps them out. Everything here is for tensors on the CPU.
Shapes: M rows, N outputs, K inputs.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch  # before the library is loaded: both must share torch's OpenMP runtime
from torch import Tensor

from models.nn.kernels.native.build import library_path

PANEL_WIDTH = 16
INPUT_STEP = 32
_LEVELS = {1: ("avx2",), 2: ("avx512",), 3: ("amx", "avx512")}
"""The forms that a processor is given, best first: not all have one of their own for tiles."""
_OFF = ("off", "0", "false")

NO_MEMORY = "The C++ kernels can't allocate memory."

Argument = Tensor | int | float | bytes | None
"""What functions take; tensors and bytes are passed by their address."""


class Unavailable(Exception):
    """Why there are no C++ kernels here."""


class Library:
    """The loaded kernels, bound to the best form of each for this processor.

    `forms` are instruction sets, the best one first.
    """

    def __init__(self, handle: ctypes.CDLL, *, forms: Sequence[str]) -> None:
        self.handle = handle
        self.forms = forms
        self.instructions = forms[0]
        self._functions: dict[str, Callable[..., None]] = {}

    @property
    def trains(self) -> bool:
        """Whether it trains in bfloat16: AVX2 multiplies that no faster than float32."""
        return self.instructions != "avx2"

    @property
    def reads_codes(self) -> bool:
        """Whether the best form of the step gains by a base in 12 bits a weight: not by AVX2."""
        return self.instructions != "avx2"

    @property
    def reads_rounded(self) -> bool:
        """Whether the best form of the step reads a base in block floating point: AVX2 alone."""
        return self.instructions == "avx2"

    @property
    def adds_by_tiles(self) -> bool:
        """Whether the best form of the step adds low-rank terms by tiles: AMX alone."""
        return self.instructions == "amx"

    def call(self, name: str, *arguments: Argument) -> None:
        """Call the form of a function that this processor runs best, `gw_<name>_<form>`, or the
        only one, `gw_<name>`.

        Tensors are passed as the address of their data, None as no address; the caller has checked
        dtypes and strides, which C++ cannot see. MemoryError if there was too little for it.
        """
        function = self._functions.get(name) or self._bind(name, arguments)
        function(*[each.data_ptr() if isinstance(each, Tensor) else each for each in arguments])
        self.check_memory()

    def check_memory(self) -> None:
        """Raise MemoryError if this thread's last call had too little, so that results are none."""
        if self.handle.gw_lacked_memory():
            raise MemoryError(NO_MEMORY)

    def _bind(self, name: str, arguments: Sequence[Argument]) -> Callable[..., None]:
        """Find a function, which takes what its first call is given: types are told once."""
        names = [*(f"gw_{name}_{form}" for form in self.forms), f"gw_{name}"]
        function = getattr(self.handle, next(each for each in names if hasattr(self.handle, each)))
        function.argtypes, function.restype = [_kind(each) for each in arguments], None
        self._functions[name] = function
        return self._functions[name]

    def pack_at(self, address: int, weight_nk: Tensor) -> None:
        """Pack a contiguous bfloat16 weight (N, K) into memory that is there.

        ValueError unless N is a multiple of 16 and K even; products by tiles need more.
        """
        outputs, inputs = weight_nk.shape
        if outputs % PANEL_WIDTH or inputs % 2 or not weight_nk.is_contiguous():
            raise ValueError(f"A weight of {outputs} x {inputs} cannot be packed.")
        self.call("pack", _of(weight_nk, torch.bfloat16), outputs, inputs, address)

    def pack_int8_at(self, address: int, weight_nk: Tensor) -> None:
        """Pack a contiguous int8 weight (N, K) into memory that is there."""
        self.call("pack_int8", _of(weight_nk, torch.int8), *weight_nk.shape, address)

    def coded_bytes(self, weight_nk: Tensor) -> int:
        """Return the bytes that a panel of a contiguous bfloat16 weight (N, K) takes if coded."""
        count = self.handle.gw_coded_bytes
        count.restype = ctypes.c_int64
        outputs, inputs = weight_nk.shape
        return int(count(_address(weight_nk, torch.bfloat16), _long(outputs), _long(inputs)))

    def pack_coded_at(self, address: int, weight_nk: Tensor, *, stride: int) -> None:
        """Pack a contiguous bfloat16 weight (N, K) into (N / 16, `stride`) bytes that are there."""
        self.call("pack_coded", _of(weight_nk, torch.bfloat16), *weight_nk.shape, stride, address)

    def rounded_bytes(self, weight_nk: Tensor) -> int:
        """Return the bytes that a weight (N, K) takes in block floating point."""
        count = self.handle.gw_rounded_bytes
        count.restype = ctypes.c_int64
        outputs, inputs = weight_nk.shape
        return outputs // PANEL_WIDTH * int(count(_long(inputs)))

    def pack_rounded_at(self, address: int, weight_nk: Tensor) -> None:
        """Pack a contiguous float32 weight (N, K) in block floating point.

        ValueError unless N and K are multiples of 16.
        """
        if any(size % PANEL_WIDTH for size in weight_nk.shape) or not weight_nk.is_contiguous():
            raise ValueError(f"A weight of {tuple(weight_nk.shape)} cannot be packed.")
        self.call("pack_rounded", _of(weight_nk, torch.float32), *weight_nk.shape, address)


def takes(*tensors: Tensor) -> bool:
    """Say whether these are on the CPU in what it trains in, with rows that have no gaps inside.

    That is bfloat16, or float32 where AVX2 is all that there is.
    """
    dtype = torch.bfloat16 if find().trains else torch.float32
    return all(
        tensor.dtype is dtype and tensor.is_cpu and tensor.stride(-1) == 1 for tensor in tensors
    )


def packs(outputs: int, inputs: int) -> bool:
    """Say whether a weight of these dimensions can be packed."""
    return outputs % PANEL_WIDTH == 0 and inputs % INPUT_STEP == 0


def find() -> Library:
    """Load the kernels; `Unavailable` says why there are none."""
    found = load()
    if isinstance(found, str):
        raise Unavailable(found)
    return found


def is_off() -> bool:
    """Say whether the environment turns the kernels off."""
    return os.environ.get("GRAFTWORK_NATIVE", "").lower() in _OFF


@cache
def load() -> Library | str:
    """Load the kernels once, or say once why there are none; a change of mind clears the cache."""
    if is_off():
        return "they are turned off by GRAFTWORK_NATIVE"
    path = library_path()
    if not path.exists():
        return "they are not built: `python -m models.nn.kernels.native`"
    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        return f"the library cannot be loaded ({error})"
    forms = _LEVELS.get(handle.gw_processor())
    return "this processor has no AVX2" if forms is None else Library(handle, forms=forms)


def library() -> Library | None:
    """Return the kernels, or None where plain torch has to do."""
    try:
        return find()
    except Unavailable:
        return None


def reason() -> str:
    """Say in a few words which form of the kernels runs here, or why not the C++ one."""
    try:
        found = find()
        used = "" if found.trains else ", which serve in bfloat16 and train in float32"
        return f"C++ kernels with {found.instructions}{used}"
    except Unavailable as error:
        return f"plain torch, without C++ kernels: {error}"


def _kind(argument: Argument) -> type[Any]:
    if isinstance(argument, int):
        return ctypes.c_int64
    return ctypes.c_float if isinstance(argument, float) else ctypes.c_void_p


def _of(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if tensor.dtype is not dtype or not tensor.is_cpu:
        raise ValueError(f"A {tensor.dtype} tensor on {tensor.device} where {dtype} is read.")
    return tensor


def _address(tensor: Tensor, dtype: torch.dtype) -> ctypes.c_void_p:
    return ctypes.c_void_p(_of(tensor, dtype).data_ptr())


def _long(value: int) -> ctypes.c_int64:
    return ctypes.c_int64(value)
