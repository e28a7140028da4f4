"""The passes of one convolution in PyTorch: a peer that convolutions.py measures.

Not to be run by hand: `convolutions.py --engine-python PYTHON` starts it under an interpreter that has torch,
sends a line of JSON for each thing to do and reads a line of JSON. It knows nothing of the package.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from arrays import arrays, mark
from torch import Tensor


class Passes:
    """Forward, input gradient and weight gradient; images and kernels are channels-last."""

    def __init__(self, setting: dict[str, Any]) -> None:
        torch.set_num_threads(setting["threads"])
        dtype = getattr(torch, setting["dtype"])
        x, kernel, g = map(torch.from_numpy, arrays(setting))

        def laid(a: Tensor) -> Tensor:
            return a.to(dtype).contiguous(memory_format=torch.channels_last)

        x, g = (laid(a.permute(0, 3, 1, 2)) for a in (x, g))
        kernel = laid(kernel.permute(3, 2, 0, 1))
        strides = [setting["stride"]] * 2
        rest = (None, strides, [1, 1], [1, 1], False, [0, 0], 1)

        def gradient(which: int) -> Tensor:
            wanted = [which == i for i in range(3)]
            return torch.ops.aten.convolution_backward(g, x, kernel, *rest, wanted)[which]

        self._passes = {
            "forward": lambda: torch.nn.functional.conv2d(x, kernel, None, strides, 1),
            "input gradient": lambda: gradient(0),
            "weight gradient": lambda: gradient(1),
        }

    def marks(self) -> dict[str, list[float]]:
        """See `arrays.mark`, by pass."""
        orders = {"weight gradient": (2, 3, 1, 0)}
        return {
            name: mark(run().float().permute(orders.get(name, (0, 2, 3, 1))).contiguous().numpy())
            for name, run in self._passes.items()
        }

    def time(self, what: str, steps: int) -> dict[str, float]:
        """Seconds of one pass, over so many."""
        run = self._passes[what]
        begin = time.perf_counter()
        for _ in range(steps):
            run()
        return {"wall": (time.perf_counter() - begin) / steps}


@torch.no_grad()
def main() -> None:
    passes = Passes(json.loads(sys.stdin.readline()))
    print(json.dumps({"versions": {"torch": f"torch {torch.__version__}"}}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = (
            passes.marks() if request["do"] == "marks" else passes.time(request["what"], request["steps"])
        )
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
