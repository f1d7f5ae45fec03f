"""How a model is opened: by the name of a bundled one, a path, or a name on the hub."""

from pathlib import Path

import triptych
from triptych.checkpoints.checkpoint import Checkpoint
from triptych.checkpoints.hub import is_hub_name, open_repository
from triptych.checkpoints.single_file import SingleFile
from triptych.errors import CheckpointError

MODELS = Path(triptych.__file__).parent / "models"
"""The folder of the models that the package brings."""


def open_checkpoint(
    model: str, *, revision: str | None = None, offline: bool = False, base: str | None = None
) -> Checkpoint:
    """Opens a model: by name one that the package brings or one on the hub, by path a folder or a file.

    What is on the disk wins over a name on the hub.

    model: e.g. "triptych-small", "org/name", "/path/to/folder", "/path/to/file.safetensors".
    revision: a branch, tag or commit of the name on the hub; None: its main branch.
    offline: the hub is not asked, only its cache.
    base: for a single file: the checkpoint, by name or path, that has the components which the file lacks.

    Raises:
        CheckpointError: there is no such model, or its index or header cannot be read.
    """
    path = MODELS / model if model in bundled_models() else Path(model).expanduser().resolve()
    if path.is_file():
        return SingleFile(path, open_checkpoint(base, revision=revision, offline=offline) if base else None)
    if base is not None:
        raise CheckpointError(f"a base is for a single file, and '{model}' is none")
    if not path.exists() and is_hub_name(model):
        repository = open_repository(model, revision, offline)
        return Checkpoint(repository.folder, repository)
    if revision is not None:
        raise CheckpointError(f"a revision is for a name on the hub, and '{model}' is none")
    if not path.is_dir():
        raise CheckpointError(
            f"'{model}' is neither a known model nor a folder, a file or a name on the hub (org/name); "
            f"the models by name are: {', '.join(bundled_models())}"
        )
    if not (path / "model_index.json").is_file():
        raise CheckpointError(f"{path} is no checkpoint: it has no model_index.json")
    return Checkpoint(path)


def bundled_models() -> list[str]:
    """The names of the models that the package brings."""
    return sorted(index.parent.name for index in MODELS.glob("*/model_index.json"))
