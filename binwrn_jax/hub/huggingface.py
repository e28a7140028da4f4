"""Packed files of the Hugging Face hub: ``hf:OWNER/NAME`` becomes a path in that library's cache."""

from __future__ import annotations

from pathlib import Path

from binwrn_jax.errors import UserError, require

PREFIX = "hf:"
MODEL = "model.safetensors"  # of a repository, as a run's workdir has it


def resolve(name: str | Path) -> Path:
    """The path of a model: the name itself, or where the hub's cache has the file of ``hf:OWNER/NAME``.

    A file that is not in the cache is downloaded, unless HF_HUB_OFFLINE is set. HF_HOME says where the cache
    is; a token that ``hf auth login`` has stored opens private repositories.

    Args:
      name: ``hf:OWNER/NAME``, ``hf:OWNER/NAME@REVISION`` (a branch, a tag or a commit), or any path.

    Raises:
      UserError: no such repository, revision or file, no access, or it is not in the cache and the hub cannot
        be reached.
    """
    text = str(name)
    if not text.startswith(PREFIX):
        return Path(name)
    hub = require("huggingface_hub", "opening a model of the Hugging Face hub")
    errors = require("huggingface_hub.errors", "opening a model of the Hugging Face hub")
    repository, _, revision = text.removeprefix(PREFIX).partition("@")
    try:
        return Path(hub.hf_hub_download(repository, MODEL, revision=revision or None))
    except errors.HFValidationError as error:
        raise UserError(f"{text}: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION") from error
    except errors.LocalEntryNotFoundError as error:
        raise UserError(
            f"{text} is not in the cache, and the hub is not reached (or HF_HUB_OFFLINE is set): "
            f"run `hf download {repository} {MODEL}` where there is a network"
        ) from error
    except errors.GatedRepoError as error:
        raise UserError(f"{text} is gated: ask for access on its page, then `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{text}: there is no such repository, or it is private: `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{text}: the repository has no revision {revision!r}") from error
    except errors.EntryNotFoundError as error:
        raise UserError(
            f"{text} has no file {MODEL}: it is no model of `binwrn export --format packed`"
        ) from error
    except (OSError, errors.HTTPError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{text} cannot be downloaded ({reason})") from error
