"""Orbax behind one file: checkpoints of a run in progress, each with a proof of its files."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import jax

from binwrn_jax.errors import UserError
from binwrn_jax.store.manifest import Damaged, check_files, describe_files, open_sealed, readable, seal
from binwrn_jax.store.orbax import silence_closed_loops
from binwrn_jax.system.files import replace_file, sync_folder

MANIFEST_FILE = "binwrn-manifest.json"
MANIFEST_FORMAT = "binwrn-jax files 1"
# Orbax writes these when it gives a checkpoint its name, after the manifest. They hold times and class names.
_WRITTEN_LAST = ("_CHECKPOINT_METADATA", "commit_success.txt")


class Checkpoints:
    """Checkpoints of a state, any tree of arrays, in ``directory``, written in the background.

    The last ``keep`` are kept, and those at ``milestones`` (the cycle ends) for ever. Each has a manifest; it
    and the files reach the disk before Orbax gives the checkpoint its name.
    """

    def __init__(self, directory: Path, keep: int, milestones: Iterable[int] = ()) -> None:
        import orbax.checkpoint as ocp
        from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

        silence_closed_loops()
        self._directory = directory
        self._ocp = ocp
        self._saving = -1
        milestones = list(milestones)
        directory.mkdir(parents=True, exist_ok=True)
        self._check_foreign()
        if jax.process_index() == 0:  # before the others look: Orbax waits for all when it opens the folder
            _remove_surplus(directory, keep, milestones)
        # Every device has the whole state. By default each process would write a slice of each array, and a
        # checkpoint would hang on what all of them have on disk; so process 0 writes it.
        first_alone = ocp.type_handlers.ArrayHandler(use_replica_parallel=False)
        registry = ocp.type_handlers.create_type_handler_registry((jax.Array, first_alone))
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            item_handlers=ocp.PyTreeCheckpointHandler(type_handler_registry=registry),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy.AnyPreservationPolicy(
                    [policy.LatestN(keep), policy.CustomSteps(milestones)]
                ),
                cleanup_tmp_directories=True,
                enable_async_checkpointing=True,
                async_options=ocp.options.AsyncOptions(post_finalization_callback=self._write_manifest),
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
            self.wait()  # one at a time, or `_write_manifest` could take the one for the other
            self._saving = step
            self._manager.save(step, args=self._ocp.args.PyTreeSave(state), force=True)

    def _write_manifest(self) -> None:
        """Called in Orbax's thread, in process 0, when all is written and before it gets its name."""
        names = self._directory.glob(f"{self._saving}*")
        unnamed = [p for p in names if re.fullmatch(rf"{self._saving}\.orbax-checkpoint-tmp.*", p.name)]
        write_manifest(unnamed[0] if unnamed else self._directory / str(self._saving))

    def restore(self, step: int, like: Any) -> Any:
        """Reads a checkpoint into the structure, dtypes and shardings of ``like``.

        Raises:
          UserError: it is corrupt or of another network.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        path = self._directory / str(step)
        remedy = "move this folder away to resume from the checkpoint before it, or choose another --workdir"
        with readable(f"checkpoint {path}", remedy):
            how = self._ocp.checkpoint_utils.construct_restore_args(abstract)
            return self._manager.restore(step, args=self._ocp.args.PyTreeRestore(abstract, restore_args=how))

    def wait(self) -> None:
        """Returns when everything saved is on disk; raises errors of the background thread."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and stops the background threads."""
        self._manager.close()


def _remove_surplus(directory: Path, keep: int, milestones: Collection[int]) -> None:
    """Finishes removals that a kill interrupted."""
    for step in sorted(_steps(directory))[:-keep]:
        if step not in milestones:
            unnamed = directory / f"{step}.orbax-checkpoint-tmp"  # Orbax removes it if a kill comes now
            shutil.rmtree(unnamed, ignore_errors=True)
            (directory / str(step)).rename(unnamed)
            shutil.rmtree(unnamed)


def _steps(directory: Path) -> list[int]:
    return [int(path.name) for path in directory.glob("*") if path.name.isdigit()]


def write_manifest(checkpoint: Path) -> None:
    """Brings the files of a checkpoint to the disk and then writes the proof of them beside them."""
    sync_folder(checkpoint)
    content = {"format": MANIFEST_FORMAT, "files": describe_files(checkpoint, _WRITTEN_LAST)}
    replace_file(checkpoint / MANIFEST_FILE, seal(content))


def prove(checkpoint: Path) -> bool:
    """Reads all files of a checkpoint and compares them with its manifest.

    Returns:
      False if it has no manifest: an earlier version of this program wrote it.

    Raises:
      Damaged: it is not what was written.
      OSError: it cannot be read.
    """
    try:
        content = (checkpoint / MANIFEST_FILE).read_bytes()
    except FileNotFoundError:
        return False
    try:
        manifest = open_sealed(content)
    except Damaged as error:
        raise Damaged(f"{MANIFEST_FILE}: {error}") from None
    check_files(checkpoint, manifest.get("files"))
    return True


def set_damaged_aside(directory: Path) -> list[str]:
    """Looks for the newest checkpoint that proves itself and moves newer ones, which do not, out of the way.

    To be called by one process, before `Checkpoints` opens the folder. A checkpoint that is moved is renamed
    to ``.STEP.damaged`` in the same folder; training computes it anew.

    Args:
      directory: of the checkpoints; may not exist.

    Returns:
      Lines that say what was found; none where the newest checkpoint proves itself.

    Raises:
      UserError: there are checkpoints and none proves itself, or one cannot be read; nothing is moved.
    """
    steps = sorted(_steps(directory), reverse=True)
    damaged: list[tuple[int, str]] = []
    lines: list[str] = []
    for step in steps:
        path = directory / str(step)
        try:
            if not prove(path):
                lines = [f"checkpoint {path} has no proof of its files: an earlier version wrote it"]
            break
        except Damaged as error:
            damaged.append((step, str(error)))
        except OSError as error:
            raise UserError(
                f"checkpoint {path} cannot be read ({error.strerror}: {error.filename})"
            ) from error
    else:
        if damaged:
            found = "; ".join(f"{step}: {reason}" for step, reason in damaged)
            raise UserError(
                f"no checkpoint in {directory} is what was written ({found}): restore one from a copy, or "
                "choose another --workdir"
            )
    for step, reason in damaged:
        aside = directory / f".{step}.damaged"
        shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
        (directory / str(step)).rename(aside)
        lines.append(
            f"checkpoint {directory / str(step)} is damaged ({reason}): it is now .{step}.damaged there, for "
            "you to look at or delete, and the run goes on from the one before it"
        )
    return lines
