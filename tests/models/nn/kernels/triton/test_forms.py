import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="Triton is made for Linux only")

from models.nn.kernels import ops
from models.nn.kernels.triton.low_rank import low_rank

IMPORTS = "import sys; import models.nn.kernels as k, torch; k.ops(torch.device('cpu')); {extra}"
LOADED = "print([n for n in sys.modules if 'kernels.triton' in n or n == 'liger_kernel'])"


def test_the_device_chooses_the_forms():
    on_gpu, on_cpu = ops(torch.device("cuda")), ops(torch.device("cpu"))
    assert on_gpu.low_rank is low_rank
    assert on_cpu.low_rank is not low_rank
    assert on_gpu.row_scale is on_cpu.row_scale
    assert ops(torch.device("cuda", 1)) is on_gpu


@pytest.mark.parametrize("extra", ["import models.nn.backbone", "import worker.engine.app"])
def test_a_cpu_loads_no_library_of_a_gpu(extra):
    program = f"{IMPORTS.format(extra=extra)}; {LOADED}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
