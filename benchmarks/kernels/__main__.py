"""`python -m benchmarks.kernels`: each op of the table against its plain form, on this machine.

Both forms get the same inputs in turns; outputs and gradients are compared, with those of the op's
meaning, in the same run. The last line is one JSON object; `ratios` holds how many times faster
than plain torch the form that runs here is.
"""

import argparse
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks import record
from benchmarks.kernels.cases import Case, make_cases
from benchmarks.sides import JSON
from models.nn.backbone import pick_dtype
from models.nn.kernels import OpTable, ops, reference
from models.nn.kernels.plain import PLAIN

REFERENCE = OpTable(
    **{
        field.name: getattr(reference, field.name)
        for field in fields(OpTable)
        if field.default is MISSING
    }
)
TOLERANCE = 0.02
"""Of the norm of a difference over the norm, where both forms round to bfloat16."""


def main() -> None:
    """Measure every op and leave the figures."""
    options = read_options()
    record.announce()
    if options.threads:
        torch.set_num_threads(options.threads)
    table = ops(torch.device("cpu"))
    repeats = 5 if options.quick else 25
    cases = make_cases(options.tokens, dtype=pick_dtype("cpu"))
    found = {case.op: compare(case, table, repeats=repeats) for case in cases}
    for name, said in found.items():
        print(f"{name:<22} {said['form']:<46} {said['ratio']:6.2f}x  {said['milliseconds']}")
    failures = [
        name for name, said in found.items() if max(said["apart"], said["plain_apart"]) > TOLERANCE
    ]
    result = {
        "benchmark": "kernels",
        "quick": options.quick,
        "tokens": options.tokens,
        "threads": torch.get_num_threads(),
        **record.gather(),
        "ops": found,
        "failures": failures,
        "ratios": {name: said["ratio"] for name, said in found.items() if name not in failures},
    }
    record.save("kernels", result, folder=options.out)
    record.finish(result)
    if failures:
        sys.exit(1)


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="benchmarks.kernels", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--tokens", type=int, default=1024, help="rows of the packed stream")
    parser.add_argument("--threads", type=int, help="default: torch's own")
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    return parser.parse_args(arguments)


def compare(case: Case, table: OpTable, *, repeats: int) -> JSON:
    """Return the times of both forms, with gradients, and how far ours is from the meaning."""
    forms = {"plain": PLAIN, "here": table}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for round_ in range(repeats + 1):
        for name in sorted(forms, reverse=bool(round_ % 2)):
            taken, _ = run(case, forms[name])
            if round_ > 0:  # the first one warms up
                seconds[name].append(taken)
    medians = {name: median(values) for name, values in seconds.items()}
    chosen = getattr(table, case.op)
    meant = run(case, REFERENCE)[1]
    return {
        "form": f"{getattr(chosen, '__module__', '?')}.{getattr(chosen, '__qualname__', chosen)}",
        "milliseconds": {name: round(1000 * value, 3) for name, value in medians.items()},
        "ratio": round(medians["plain"] / medians["here"], 3),
        "apart": furthest(run(case, table)[1], meant),
        "plain_apart": furthest(run(case, PLAIN)[1], meant),
    }


def run(case: Case, form: OpTable) -> tuple[float, list[Tensor]]:
    """Call an op forward, and backward where it trains; return seconds, output and gradients."""
    leaves = {
        name: tensor.clone().requires_grad_(name in case.trained)
        for name, tensor in case.inputs.items()
    }
    given = {name: leaf.clone() for name, leaf in leaves.items()}  # a form may write into them
    began = time.perf_counter()
    output = case.call(form, given)
    seconds = time.perf_counter() - began
    if not case.trained:
        return seconds, [output]
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    upstream = upstream.to(output.dtype)
    began = time.perf_counter()
    output.backward(upstream)
    seconds += time.perf_counter() - began
    gradients = [leaf.grad for name, leaf in leaves.items() if name in case.trained]
    return seconds, [output.detach(), *(grad for grad in gradients if grad is not None)]


def furthest(mine: list[Tensor], theirs: list[Tensor]) -> float:
    """Return how far the most differing of several tensors are apart."""
    return round(max(apart(one, other) for one, other in zip(mine, theirs, strict=True)), 5)


def apart(mine: Tensor, theirs: Tensor) -> float:
    """Return the norm of the difference over the norm."""
    difference = (mine.double() - theirs.double()).norm()
    return float(difference / theirs.double().norm().clamp_min(1e-12))


if __name__ == "__main__":
    main()
