"""``binwrn card RUN``: a README with the metadata of the Hugging Face hub, from what a run has recorded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from binwrn_jax.cli.output import check_file_output, print_line
from binwrn_jax.deploy.layers import layers_of
from binwrn_jax.deploy.packed import read_packed
from binwrn_jax.errors import UserError
from binwrn_jax.hub.card import MARK, Facts, write_card
from binwrn_jax.hub.huggingface import MODEL, resolve
from binwrn_jax.system.files import replace_file
from binwrn_jax.training.compare import read_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="workdir of a finished run, or a packed file")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: README.md beside the packed file"
    )
    parser.add_argument("--repo", metavar="OWNER/NAME", help="on the hub; default: your-name/NAME-OF-RUN")
    parser.add_argument(
        "--license", metavar="TEXT", help="of the weights, as 'mit'; default: what the file says"
    )


def run(arguments: argparse.Namespace) -> int:
    """Writes the card and says where."""
    run_folder = arguments.run if arguments.run.is_dir() else None
    model = run_folder / MODEL if run_folder else resolve(arguments.run)
    if run_folder and not model.is_file():
        raise UserError(
            f"{run_folder} has no {MODEL}: give the workdir of a finished 1-bit run, or a packed file"
        )
    output = arguments.output or (run_folder or arguments.run.parent) / "README.md"
    check_file_output(output, [model], "model card of `binwrn card`", _is_card)
    packed = read_packed(model)
    description = dict(packed.description)
    if arguments.license:
        description["license"] = arguments.license
    name = (run_folder or arguments.run.parent / arguments.run.stem).absolute().name
    facts = Facts(
        repository=arguments.repo or f"your-name/{name}",
        description=description,
        weights=sum(row.bits for row in layers_of(packed) if row.values <= 2),
        file_bytes=model.stat().st_size,
        config=read_runs([run_folder])[0].config if run_folder else {},
        summary=_read_summary(run_folder) if run_folder else {},
    )
    replace_file(output, write_card(facts))
    print_line(f"{output}: a model card for {facts.repository}")
    print_line(f"upload both: hf upload {facts.repository} {output} README.md, and {model} {MODEL}")
    return 0


def _read_summary(folder: Path) -> dict[str, Any]:
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{folder / 'summary.json'} is damaged") from error
    return summary if isinstance(summary, dict) else {}


def _is_card(path: Path) -> bool:
    return MARK in path.read_text(encoding="utf-8", errors="replace")
