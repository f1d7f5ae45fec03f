"""How a model is opened: by the name of a bundled one, a path, or a name on the hub."""

from collections.abc import Sequence
from pathlib import Path

import triptych
from triptych.checkpoints.checkpoint import Checkpoint, find_index
from triptych.checkpoints.hub import is_hub_name, open_repository
from triptych.checkpoints.single_file import SingleFile, WithFile
from triptych.errors import CheckpointError

MODELS = Path(triptych.__file__).parent / "models"
"""The folder of the models that the package brings."""


def open_checkpoint(
    model: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    base: str | None = None,
    variant: str | None = None,
    weights: Sequence[str] = (),
) -> Checkpoint:
    """Opens a model: by name one that the package brings or one on the hub, by path a folder or a file.

    What is on the disk wins over a name on the hub.

    model: e.g. "triptych-small", "org/name", "/path/to/folder", "/path/to/file.safetensors".
    revision: a branch, tag or commit of the name on the hub; None: its main branch.
    offline: the hub is not asked, only its cache.
    base: for a single file: the checkpoint, by name or path, that has the components which the file lacks.
        None: the one in whose folders the file is, if it is in one.
    variant: of a checkpoint's variants of weights, e.g. "fp16" for model.fp16.safetensors; None: the plain
        one, or the only one.
    weights: files of text encoders or a VAE, which take the place of the model's own.

    Raises:
        CheckpointError: there is no such model, or its index or header cannot be read.
    """
    checkpoint = _open(model, revision, offline, base, variant)
    for file in weights:
        checkpoint = WithFile(_given(file), checkpoint)
    return checkpoint


def _open(
    model: str, revision: str | None, offline: bool, base: str | None, variant: str | None
) -> Checkpoint:
    path = MODELS / model if model in bundled_models() else _given(model)
    if path.is_file():
        base = base or _checkpoint_around(path)
        whole = open_checkpoint(base, revision=revision, offline=offline, variant=variant) if base else None
        return SingleFile(path, whole)
    if base is not None:
        raise CheckpointError(f"a base is for a single file, and '{model}' is none")
    if not path.exists() and is_hub_name(model):
        repository = open_repository(model, revision, offline)
        return Checkpoint(repository.folder, repository, variant, offline)
    if revision is not None:
        raise CheckpointError(f"a revision is for a name on the hub, and '{model}' is none")
    if not path.is_dir():
        raise CheckpointError(
            f"'{model}' is neither a known model nor a folder, a file or a name on the hub (org/name); "
            f"the models by name are: {', '.join(bundled_models())}"
        )
    if not find_index(path).is_file():
        raise CheckpointError(f"{path} is no checkpoint: it has no model_index.json")
    return Checkpoint(path, variant=variant, offline=offline)


def _given(model: str) -> Path:
    """The path as it was given, links and all: its name may say more than that of what it links to."""
    path = Path(model).expanduser().absolute()
    return path.resolve() if path.name == ".." else path


def _checkpoint_around(file: Path) -> str | None:
    """The checkpoint in whose folders a component's own file is, as its base."""
    folder = file.parent.parent
    return str(folder) if find_index(folder).is_file() else None


def bundled_models() -> list[str]:
    """The names of the models that the package brings."""
    return sorted(index.parent.name for index in MODELS.glob("*/model_index.json"))
