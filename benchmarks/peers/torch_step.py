"""The training step of the paper in PyTorch, written from its text: a peer that train_step.py measures.

Not to be run by hand: `train_step.py --peers torch_eager torch_compile --engine-python PYTHON` starts it
under an interpreter that has torch, sends a line of JSON for each thing to do and reads a line of JSON. It
knows nothing of the package.

The step is the whole of it: indices into a data set on the device, flip and crop filled with random
integers (of ImageNet's networks, whose batch norm is all learned, a batch on the device and the flip),
forward and backward with kernels ``s sign(W)``, SGD with momentum and weight decay on the latent ones. Images
are channels-last; convolutions run in bfloat16 under autocast where asked.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class Sign(torch.autograd.Function):
    """Eq. 1: forward ``s sign(W)`` with sign(0) = 1, backward straight through."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, s: float) -> Tensor:
        return torch.where(w < 0, -s, s).to(w.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g, None


class Conv(nn.Module):
    """Without bias; the padding is (F - 1) / 2 on every side."""

    def __init__(self, c_in: int, c_out: int, window: int = 3, stride: int = 1, one_bit: bool = True) -> None:
        super().__init__()
        self.s = (2 / (window * window * c_in)) ** 0.5
        self.weight = nn.Parameter(torch.randn(c_out, c_in, window, window) * self.s)
        self.stride, self.padding, self.one_bit = stride, (window - 1) // 2, one_bit

    def forward(self, x: Tensor) -> Tensor:
        w = Sign.apply(self.weight, self.s) if self.one_bit else self.weight
        return F.conv2d(x, w, None, self.stride, self.padding)


def norm(channels: int, affine: bool) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.01, affine=affine)


class Block(nn.Module):
    """BN, ReLU, conv, twice; the skip of a down-sampling block is a pool, then zero channels."""

    def __init__(self, c_in: int, c_out: int, stride: int, one_bit: bool, affine: bool) -> None:
        super().__init__()
        self.bn1, self.conv1 = norm(c_in, affine), Conv(c_in, c_out, stride=stride, one_bit=one_bit)
        self.bn2, self.conv2 = norm(c_out, affine), Conv(c_out, c_out, one_bit=one_bit)
        self.stride, self.added = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        path = self.conv1(F.relu(self.bn1(x), inplace=True))
        path = self.conv2(F.relu(self.bn2(path), inplace=True))
        if self.stride == 2:
            x = F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False)
            x = F.pad(x, (0, 0, 0, 0, 0, self.added))
        return x + path


class WideResNet(nn.Module):
    """``depth-width``; see section 3.1 of the paper."""

    def __init__(
        self, depth: int, width: float, in_channels: int, classes: int, one_bit: bool, affine: bool
    ) -> None:
        super().__init__()
        self.imagenet = depth in IMAGENET_BLOCKS
        blocks = IMAGENET_BLOCKS[depth] if self.imagenet else ((depth - 2) // 6,) * 3
        first = round((64 if self.imagenet else 16) * width)
        self.bn_in = norm(in_channels, affine=True)
        window, stride = (7, 2) if self.imagenet else (3, 1)
        self.conv_in = Conv(in_channels, first, window, stride, one_bit)
        layers, channels = [], first
        for scale, count in enumerate(blocks):
            for block in range(count):
                stride = 2 if scale and not block else 1
                layers.append(Block(channels, first * 2**scale, stride, one_bit, affine))
                channels = first * 2**scale
        self.blocks = nn.Sequential(*layers)
        self.bn_out, self.conv_out = norm(channels, affine), Conv(channels, classes, 1, one_bit=one_bit)
        self.bn_last = norm(classes, affine)

    def forward(self, images: Tensor) -> Tensor:
        """uint8 ``[N, C, H, W]`` to logits."""
        x = self.conv_in(F.relu(self.bn_in(images.to(self.conv_in.weight.dtype))))
        if self.imagenet:
            x = F.max_pool2d(x, 3, 2, padding=1)
        x = self.conv_out(F.relu(self.bn_out(self.blocks(x))))
        return self.bn_last(x).to(self.conv_in.weight.dtype).mean((2, 3))

    def convolutions(self) -> list[Conv]:
        """In order of use."""
        inner = [conv for block in self.blocks for conv in (block.conv1, block.conv2)]
        return [self.conv_in, *inner, self.conv_out]

    def norms(self) -> list[nn.BatchNorm2d]:
        """In order of use."""
        inner = [bn for block in self.blocks for bn in (block.bn1, block.bn2)]
        return [self.bn_in, *inner, self.bn_out, self.bn_last]


def flip(images: Tensor) -> Tensor:
    """Half of them. uint8 ``[N, C, H, W]``."""
    flipped = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(flipped, images.flip(3), images)


def augment(images: Tensor) -> Tensor:
    """Flip, half of them; pad by 4 (of 32) with random integers and crop back. uint8 ``[N, C, H, W]``."""
    n, _, height, width = images.shape
    device = images.device
    pad = round(4 * height / 32)
    rows = torch.arange(height, device=device) + torch.randint(-pad, pad + 1, (n, 1), device=device)
    columns = torch.arange(width, device=device) + torch.randint(-pad, pad + 1, (n, 1), device=device)
    inside = (((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :])[
        :, None
    ]
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    flipped = torch.rand(n, 1, device=device) < 0.5
    columns = torch.where(flipped, width - 1 - columns, columns)
    each = torch.arange(n, device=device)
    # Gathered as [N, H, W, C], which is how channels-last images lie.
    moved = images.permute(0, 2, 3, 1)[each[:, None, None], rows[:, :, None], columns[:, None, :]]
    noise = torch.randint(0, 256, moved.shape, dtype=torch.uint8, device=device)
    return torch.where(inside, moved.permute(0, 3, 1, 2), noise.permute(0, 3, 1, 2))


class Peer:
    """The network of a setting, its optimiser and its step."""

    def __init__(self, setting: dict[str, Any]) -> None:
        self.device = torch.device("cuda" if setting["cuda"] else "cpu")
        torch.set_num_threads(setting["threads"])
        if setting["cuda"]:  # TF32, as JAX has by default; on a CPU it would allow less than float32
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)
        height, width, channels = setting["image_shape"]
        self.net = WideResNet(
            setting["depth"],
            setting["width"],
            channels,
            setting["classes"],
            setting["weights"] == "1bit",
            setting["affine"],
        ).to(self.device, memory_format=torch.channels_last)
        self.bfloat16 = setting["dtype"] == "bfloat16"
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (setting["images"], channels, height, width), dtype=np.uint8)
        self.images = torch.from_numpy(images).to(self.device).contiguous(memory_format=torch.channels_last)
        self.labels = torch.from_numpy(rng.integers(0, setting["classes"], setting["images"])).to(self.device)
        self.batch, self.streamed = setting["batch"], setting["streamed"]
        kernels = [conv.weight for conv in self.net.convolutions()]
        others = [p for p in self.net.parameters() if all(p is not kernel for kernel in kernels)]
        groups = [
            {"params": kernels, "weight_decay": setting["weight_decay"]},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, fused=True)
        wrap = torch.compile if setting["compile"] else lambda function: function
        self.loss, self.augmented_loss = wrap(self._loss), wrap(self._augmented_loss)

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits = self.net(images)
        return F.cross_entropy(logits, labels)

    def _augmented_loss(self, images: Tensor, labels: Tensor, indices: Tensor | None) -> Tensor:
        if indices is None:  # a batch that was cropped while it was decoded
            return self._loss(flip(images), labels)
        return self._loss(augment(images[indices]), labels[indices])

    def batches(self, count: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """So many: pieces of the images if they are streamed, else all of them with indices."""
        if self.streamed:
            pieces = list(zip(self.images.split(self.batch), self.labels.split(self.batch), strict=True))
            return [(*pieces[i % len(pieces)], None) for i in range(count)]
        chosen = [torch.randint(0, len(self.labels), (self.batch,)) for _ in range(count)]
        return [(self.images, self.labels, indices.to(self.device)) for indices in chosen]

    def step(self, batch: tuple[Tensor, Tensor, Tensor | None]) -> Tensor:
        """One update; the loss stays on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.augmented_loss(*batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def time(self, steps: int) -> dict[str, float]:
        """Seconds per step, of so many in a row."""
        batches = self.batches(steps)
        self.finish()
        wall, processor = time.perf_counter(), time.process_time()
        for batch in batches:
            self.step(batch)
        self.finish()
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        return {"wall": wall / steps, "cpu": processor / steps}

    def check(self, path: str) -> dict[str, Any]:
        """The loss and the gradients of the weights and batch in an NPZ file, against those in it.

        Returns:
          ``loss`` and ``loss_ours``; ``gradient_error``, the largest of any tensor, relative to its norm;
          ``exact_error``, the same where this network computes in float64.
        """
        given = np.load(path)
        names = {f"conv{i}/kernel": conv.weight for i, conv in enumerate(self.net.convolutions())}
        learned = {i: bn for i, bn in enumerate(self.net.norms()) if bn.affine}
        names |= {f"bn{i}/scale": bn.weight for i, bn in learned.items()}
        names |= {f"bn{i}/offset": bn.bias for i, bn in learned.items()}
        kept = {name.removeprefix("params/") for name in given.files if name.startswith("params/")}
        if kept != set(names):
            raise SystemExit(f"other parameters: {sorted(kept ^ set(names))}")

        def value(kind: str, name: str) -> Tensor:
            x = torch.from_numpy(given[f"{kind}/{name}"])
            return (x.permute(3, 2, 0, 1) if x.ndim == 4 else x).to(self.device)

        images = torch.from_numpy(given["images"]).permute(0, 3, 1, 2).to(self.device)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(given["labels"]).long().to(self.device)

        def compared(loss_function: Any) -> tuple[float, float]:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, parameter in names.items():
                    parameter.copy_(value("params", name))
            loss = loss_function(images, labels)
            loss.backward()
            errors = [
                (parameter.grad - value("grads", name)).norm() / value("grads", name).norm()
                for name, parameter in names.items()
            ]
            self.optimizer.zero_grad(set_to_none=True)
            return loss.item(), max(float(error) for error in errors)

        before = {name: parameter.detach().clone() for name, parameter in names.items()}
        loss, error = compared(self.loss)
        half, self.bfloat16 = self.bfloat16, False
        self.net.double()
        _, exact = compared(self._loss)
        self.net.float()
        self.bfloat16 = half
        with torch.no_grad():
            for name, parameter in names.items():
                parameter.copy_(before[name])
        return {
            "loss": loss,
            "loss_ours": float(given["loss"]),
            "gradient_error": error,
            "exact_error": exact,
        }

    def memory(self) -> dict[str, float]:
        """Peak MB of this process, and of the device where it counts them."""
        status = Path("/proc/self/status").read_text()
        found = {"process_mb": int(status.split("VmHWM:")[1].split()[0]) / 1024}
        if self.device.type == "cuda":
            found["device_mb"] = torch.cuda.max_memory_allocated() / 2**20
        return found


def main() -> None:
    setting = json.loads(sys.stdin.readline())
    begin = time.perf_counter()
    peer = Peer(setting)
    made = time.perf_counter()
    peer.time(1)
    first = time.perf_counter() - made
    name = torch.cuda.get_device_name() if setting["cuda"] else "cpu"
    report = {
        "version": f"torch {torch.__version__}",
        "device": name,
        "made_s": made - begin,
        "first_step_s": first,
    }
    print(json.dumps(report), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "time":
            answer: dict[str, Any] = peer.time(request["steps"])
        elif request["do"] == "check":
            answer = peer.check(request["path"])
        else:
            answer = peer.memory()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
