"""What train_step.py measures beside its peers: our step and its parts, and a matrix product in NumPy."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import process_mb, serve, timed

STEPS_PER_DISPATCH = 8
SGEMM = 2048
CHECKED = 32  # images of the batch on which a peer must give the same


class Ours:
    """The compiled programs of one setting: the step as the loop compiles it, and it without its parts."""

    def __init__(self, setting: dict[str, Any]) -> None:
        import jax

        from binwrn_jax.cli.allocator import retain_freed_memory
        from binwrn_jax.parallel import sharding

        retain_freed_memory()  # as train.py does
        self.setting, self.jax = setting, jax
        self.config = network_config(setting)
        self.mesh = sharding.make_mesh(1)
        self.whole = sharding.replicated(self.mesh)
        rng = np.random.default_rng(0)
        count = setting["images"]
        data = {
            "images": rng.integers(0, 256, (count, *setting["image_shape"]), np.uint8),
            "labels": rng.integers(0, setting["classes"], count).astype(np.int32),
        }
        indices = [
            rng.integers(0, count, setting["batch"]).astype(np.int32) for _ in range(STEPS_PER_DISPATCH)
        ]
        if setting["streamed"]:  # batches from the host, here already on the device
            shared: dict[str, Any] = {}
            each = [{name: x[i] for name, x in data.items()} for i in indices]
        else:  # indices into a data set on the device
            shared = sharding.put(data, self.whole)
            each = [{"indices": i} for i in indices]
        self.batches = [
            {**shared, **sharding.put(e, sharding.inputs(self.mesh, setting["streamed"]))} for e in each
        ]
        stacked = self.jax.tree.map(lambda *leaves: np.stack(leaves), *each)
        self.stacked = shared, sharding.put(stacked, self.whole)
        few = {name: x[: min(CHECKED, setting["batch"])] for name, x in data.items()}
        self.checked = sharding.put(few, sharding.split(self.mesh))
        self.programs = {part: self._compile(part) for part in ("whole", *setting["parts"])}

    def _compile(self, part: str) -> dict[str, Any]:
        """The step without a part, its state, and what compiling took."""
        import dataclasses

        from binwrn_jax.data.catalog import lookup
        from binwrn_jax.parallel import sharding
        from binwrn_jax.training import config as configs
        from binwrn_jax.training.resolve import resolve
        from binwrn_jax.training.state import init_state
        from binwrn_jax.training.step import jit_train_step
        from binwrn_jax.training.variants import apply_variants

        config = configs.ConfigDict(self.config.to_dict())
        if part in ("augmentation", "gradients"):
            config.augmentation = "none"
        if part == "binarisation":
            config.model.weights = "32bit"
        if part == "batch_norm":
            apply_variants(config, "nobn")
        streamed = part == "gradients" or self.setting["streamed"]
        facts = dataclasses.replace(
            lookup(config.data.name),
            num_classes=self.setting["classes"],
            streamed=streamed,
            image_shape=self.setting["image_shape"],
        )
        resolved = resolve(config, facts, 400 * config.batch_size)
        if part in ("update", "gradients"):
            resolved = dataclasses.replace(resolved, optimizer=gradients_as_state())
        model, optimizer = resolved.network, resolved.optimizer
        step = jit_train_step(resolved, self.mesh)
        if part == "dispatch":
            step = self.jax.jit(several(step), donate_argnums=0)
        state = init_state(model, optimizer, tuple(self.setting["image_shape"]), config.seed)
        state = sharding.put(state, self.whole)
        inputs = {"dispatch": self.stacked, "gradients": self.checked}.get(part, self.batches[0])
        begin = time.perf_counter()
        traced = step.lower(state, inputs)
        lowered = time.perf_counter()
        program = traced.compile()
        compiled = time.perf_counter()
        memory = program.memory_analysis()
        return {
            "run": program,
            "state": state,
            "trace_s": lowered - begin,
            "compile_s": compiled - lowered,
            "program_mb": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20,
        }

    def ready(self) -> dict[str, Any]:
        """What there is to know before the first step."""
        jax = self.jax
        keys = ("trace_s", "compile_s", "program_mb")
        return {
            "version": f"jax {jax.__version__}",
            "device": jax.devices()[0].device_kind,
            "programs": {name: {key: p[key] for key in keys} for name, p in self.programs.items()},
        }

    def time(self, steps: int, part: str = "whole") -> dict[str, float]:
        """Seconds per step of one program, of so many steps in a row."""
        program = self.programs[part]
        calls = math.ceil(steps / STEPS_PER_DISPATCH) if part == "dispatch" else steps

        def run(_: int) -> None:
            state = program["state"]
            for call in range(calls):
                inputs = self.stacked if part == "dispatch" else self.batches[call % len(self.batches)]
                state, metrics = program["run"](state, inputs)
            self.jax.block_until_ready((state, metrics))
            program["state"] = state

        return timed(run, calls * STEPS_PER_DISPATCH if part == "dispatch" else steps)

    def check(self, path: str) -> dict[str, float]:
        """Writes weights, batch, loss and gradients of the step, without augmentation, to an NPZ file."""
        program = self._compile("gradients")
        arrays = {
            f"params/{layer}/{name}": x
            for layer, p in program["state"].params.items()
            for name, x in p.items()
        }
        arrays = {name: np.array(x) for name, x in arrays.items()}
        arrays |= {name: np.asarray(x) for name, x in self.checked.items()}
        state, metrics = program["run"](program["state"], self.checked)
        for layer, p in state.opt_state.items():
            arrays |= {f"grads/{layer}/{name}": np.asarray(x) for name, x in p.items()}
        np.savez(path, loss=np.asarray(metrics["loss"]), **arrays)
        return {"loss": float(metrics["loss"])}

    def memory(self) -> dict[str, float]:
        """Peak MiB of this process, and of the device where it counts them."""
        found = {"process_mb": process_mb()}
        statistics_ = self.jax.devices()[0].memory_stats()
        if statistics_:
            found["device_mb"] = statistics_["peak_bytes_in_use"] / 2**20
        return found


def gradients_as_state() -> Any:
    """An optimiser that updates nothing and keeps the gradients, so that XLA cannot leave them out."""
    import jax
    import jax.numpy as jnp
    import optax

    def zeros(tree: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, tree)

    return optax.GradientTransformation(zeros, lambda grads, state, params=None: (zeros(grads), grads))


def several(step: Any) -> Any:
    """As many steps in one program as there are batches: inputs are what they share, and the rest stacked."""
    import jax

    def steps(state: Any, inputs: tuple[Any, Any]) -> Any:
        shared, stacked = inputs
        return jax.lax.scan(lambda state, batch: step(state, {**shared, **batch}), state, stacked)

    return steps


def network_config(setting: dict[str, Any]) -> Any:
    """What is trained: for ImageNet by configs/imagenet.py, without ghost groups; else by the paper's text.

    The groups are left out because the peer has none: PyTorch's batch norm knows only the whole batch.
    """
    from binwrn_jax.training import config as configs
    from binwrn_jax.training.variants import apply_variants

    if setting["streamed"]:
        sys.path.insert(0, str(Path(__file__).parents[2] / "configs"))
        config = __import__("imagenet").get_config(setting["network"])
        config.model.ghost_size = 0
    else:
        config = configs.base_config()
        apply_variants(config, setting["network"])
    config.model.weights, config.model.dtype = setting["weights"], setting["dtype"]
    config.batch_size = setting["batch"]
    return config


class Sgemm:
    """The rate of a large float32 matrix product in NumPy, on the same cores: what a CPU can do."""

    def __init__(self) -> None:
        self._a = np.random.default_rng(0).normal(size=(SGEMM, SGEMM)).astype(np.float32)
        self._out = np.empty_like(self._a)

    def time(self, steps: int) -> dict[str, float]:
        def run(steps: int) -> None:
            for _ in range(steps):
                np.matmul(self._a, self._a, out=self._out)

        return timed(run, steps)


def worker() -> None:
    """Reads the setting, then requests."""
    setting = json.loads(sys.stdin.readline())
    if setting["engine"] == "sgemm":
        engine: Any = Sgemm()
        print(json.dumps({"version": f"numpy {np.__version__}"}), flush=True)
    else:
        engine = Ours(setting)
        print(json.dumps(engine.ready()), flush=True)
    serve(engine)
