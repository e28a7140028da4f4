"""Orbax behind one file: checkpoints of a run in progress, and trained models to keep."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from binwrn_jax.errors import UserError
from binwrn_jax.store.files import readable


class Checkpoints:
    """Checkpoints of a state, any tree of arrays, in ``directory``, written in the background.

    The last ``keep`` are kept, and those at ``milestones`` (the cycle ends) for ever.
    """

    def __init__(self, directory: Path, keep: int, milestones: Iterable[int] = ()) -> None:
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

        self._directory = directory
        self._ocp = ocp
        directory.mkdir(parents=True, exist_ok=True)
        self._check_foreign()
        # Every device has the whole state. By default each process would write a slice of each array, and a
        # checkpoint would hang on what all of them have on disk; so process 0 writes it.
        first_alone = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, first_alone))
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            item_handlers=ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy.AnyPreservationPolicy(
                    [policy.LatestN(keep), policy.CustomSteps(list(milestones))]
                ),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
            ),
        )

    def _check_foreign(self) -> None:
        known = re.compile(r"\d+|.*orbax-checkpoint-tmp.*|descriptor|_CHECKPOINT_METADATA|\..*")
        foreign = [p.name for p in self._directory.iterdir() if not known.fullmatch(p.name)]
        if foreign:
            raise UserError(
                f"{self._directory} holds {foreign[0]!r}, no checkpoint of this program: "
                "choose another --workdir"
            )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, state: Any) -> None:
        """Copies the state from the devices and writes it in the background; no-op if already saved."""
        if self.latest() != step:
            self._manager.save(step, args=self._ocp.args.PyTreeSave(state), force=True)

    def restore(self, step: int, like: Any) -> Any:
        """Reads a checkpoint into the structure, dtypes and shardings of ``like``.

        Raises:
          UserError: it is corrupt or of another network.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        path = self._directory / str(step)
        remedy = "delete this folder to resume from the checkpoint before it, or choose another --workdir"
        with readable(path, remedy):
            how = self._ocp.checkpoint_utils.construct_restore_args(abstract)
            return self._manager.restore(step, args=self._ocp.args.PyTreeRestore(abstract, restore_args=how))

    def wait(self) -> None:
        """Returns when all that was saved is on disk; raises what went wrong in the background."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and stops the background threads."""
        self._manager.close()
