"""CIFAR-10 trained in PyTorch, written from the paper's text: an independent check of this package's errors.

    python benchmarks/peers/torch_training.py --data cifar10.npz --weights 1bit --seed 1 --output FOLDER

needs an interpreter with torch and numpy, and nothing of this package. The network and the augmentation are
those of `torch_step.py`; the order of the images (Philox with the key (seed, epoch)), the
schedule, weight decay, momentum set to zero at restarts and the moments over the training set after the last
step (section 3.2.1) are the paper's. Initial weights and the augmentation's random numbers are torch's own.

``--data`` is an NPZ file with ``train_images`` (uint8 ``[N, H, W, C]``), ``train_labels``, ``test_images``
and ``test_labels``. The state is saved after each epoch; the same command goes on with a stopped run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_step import WideResNet, augment

BATCH, PEAK, FLOOR, MOMENTUM, WEIGHT_DECAY = 125, 0.1, 1e-4, 0.9, 5e-4


def cycles(epochs: int) -> list[tuple[int, int]]:
    """First and last epoch of each SGDR cycle: 2, 4, 8, ... epochs long."""
    bounds, length = [0], 2
    while bounds[-1] < epochs:
        bounds.append(min(bounds[-1] + length, epochs))
        length *= 2
    return list(itertools.pairwise(bounds))


def rate(step: int, steps_per_epoch: int, epochs: int) -> tuple[float, bool]:
    """The learning rate of a step, and whether a cycle begins with it."""
    for start, end in cycles(epochs):
        if step < end * steps_per_epoch:
            t = step - start * steps_per_epoch
            total = (end - start) * steps_per_epoch
            return FLOOR + (PEAK - FLOOR) * (1 + math.cos(math.pi * t / total)) / 2, t == 0
    raise ValueError(step)


class Run:
    """Network, optimiser and data of one run."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.folder, self.seed, self.epochs = arguments.output, arguments.seed, arguments.epochs
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.seed)
        data = np.load(arguments.data)
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        self.images, self.tests = (
            torch.from_numpy(data[f"{split}_images"]).permute(0, 3, 1, 2).contiguous(**layout)
            for split in ("train", "test")
        )
        self.labels, self.answers = (
            torch.from_numpy(data[f"{split}_labels"]).long() for split in ("train", "test")
        )
        one_bit = arguments.weights == "1bit"
        self.network = WideResNet(arguments.depth, arguments.width, 3, 10, one_bit, affine=False).to(**layout)
        kernels = [conv.weight for conv in self.network.convolutions()]
        first = [*self.network.bn_in.parameters()]
        groups = [{"params": kernels, "weight_decay": WEIGHT_DECAY}, {"params": first, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=PEAK, momentum=MOMENTUM)
        self.steps = len(self.labels) // BATCH

    def batches(self, epoch: int) -> list[Tensor]:
        """Indices of the batches of an epoch."""
        order = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self.labels))
        return list(torch.from_numpy(order[: self.steps * BATCH]).split(BATCH))

    def train(self, epoch: int) -> dict[str, float]:
        """One epoch."""
        torch.manual_seed(self.seed * 1000 + epoch + 1)  # a resumed run draws the same numbers
        self.network.train()
        total = wrong = 0.0
        for place, indices in enumerate(self.batches(epoch)):
            lr, restart = rate(epoch * self.steps + place, self.steps, self.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            if restart:
                self.optimizer.state.clear()
            labels = self.labels[indices]
            logits = self.network(augment(self.images[indices]))
            loss = F.cross_entropy(logits, labels)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            total += loss.item()
            wrong += (logits.argmax(1) != labels).sum().item()
        return {"loss": total / self.steps, "train_error": 100 * wrong / (self.steps * BATCH)}

    @torch.no_grad()
    def set_moments(self) -> None:
        """Means and standard deviations of the batches, averaged over the augmented training set."""
        torch.manual_seed(self.seed * 1000)
        norms = [m for m in self.network.modules() if isinstance(m, nn.BatchNorm2d)]
        sums = {bn: [torch.zeros(bn.num_features), torch.zeros(bn.num_features)] for bn in norms}

        def add(bn: nn.BatchNorm2d, inputs: tuple[Tensor]) -> None:
            sums[bn][0] += inputs[0].mean((0, 2, 3))
            sums[bn][1] += (inputs[0].var((0, 2, 3), unbiased=False) + bn.eps).sqrt()

        hooks = [bn.register_forward_pre_hook(add) for bn in norms]
        self.network.train()
        batches = self.batches(self.epochs)
        for indices in batches:
            self.network(augment(self.images[indices]))
        for hook in hooks:
            hook.remove()
        for bn in norms:
            mean, std = (value / len(batches) for value in sums[bn])
            bn.running_mean.copy_(mean)
            bn.running_var.copy_((std.square() - bn.eps).clamp(min=0))

    @torch.no_grad()
    def test_error(self) -> float:
        """In percent, over all test images."""
        self.network.eval()
        pairs = zip(self.tests.split(500), self.answers.split(500), strict=True)
        wrong = sum(int((self.network(images).argmax(1) != labels).sum()) for images, labels in pairs)
        return 100 * wrong / len(self.answers)

    def save(self, epoch: int, records: list[dict[str, float]]) -> None:
        """Replaces the state."""
        state = {"epoch": epoch, "records": records, "network": self.network.state_dict()}
        new = self.folder / "state.pt.new"
        torch.save({**state, "optimizer": self.optimizer.state_dict()}, new)
        os.replace(new, self.folder / "state.pt")

    def load(self) -> tuple[int, list[dict[str, float]]]:
        """The epoch to go on with, and the records so far."""
        path = self.folder / "state.pt"
        if not path.is_file():
            return 0, []
        state = torch.load(path, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        return state["epoch"], state["records"]


def main() -> None:
    """Trains to the end and writes ``result.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--weights", choices=("1bit", "32bit"), default="1bit")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--width", type=float, default=1)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    run = Run(arguments)
    epoch, records = run.load()
    while epoch < run.epochs:
        start = time.perf_counter()
        records.append({"epoch": epoch + 1, **run.train(epoch), "seconds": time.perf_counter() - start})
        print(json.dumps(records[-1]), flush=True)
        epoch += 1
        run.save(epoch, records)
    run.set_moments()
    settings = {key: str(value) for key, value in vars(arguments).items() if key not in ("data", "output")}
    result = {**settings, "torch": torch.__version__, "test_error": run.test_error(), "records": records}
    (run.folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"test error {result['test_error']:.2f} %", flush=True)


if __name__ == "__main__":
    main()
