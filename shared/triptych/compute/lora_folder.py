"""The LoRAs of a stage: those fused at start, and those that requests name from a folder."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from triptych.caches import Cache
from triptych.checkpoints.fingerprints import fingerprint
from triptych.compute.lora_changes import LoraFile, Loras, PlacedLora
from triptych.compute.lora_files import PEFT_FILE, SUFFIX, Modules, files_of, read_lora_file
from triptych.compute.lora_placing import place, weights_of
from triptych.errors import CheckpointError, TriptychError, failed_precondition
from triptych.loras import read_lora, unknown_lora, weight_of
from triptych.v1 import lora_pb2

log = logging.getLogger(__name__)

MAX_NAMES = 1000
"""Files of a folder that are served: the first ones by name."""
MAX_FOLDERS = 1000
"""Folders inside it that are looked into."""


class LoraFolder:
    """The .safetensors files of a folder and of the folders in it, by their paths without the ending.

    What PEFT saved, a folder with adapter_model.safetensors, has the folder's name. Those that come with the
    checkpoint are there too, under names that the folder does not have.
    """

    def __init__(self, path: Path | None, own: Path | None = None) -> None:
        """`own`: the checkpoint's. Without both, there are no LoRAs. Raises CheckpointError for no folder."""
        if path is not None and not path.is_dir():
            raise CheckpointError(f"--lora-folder: there is no folder {path}")
        self._paths = [each for each in (own, path) if each is not None]

    def files(self) -> dict[str, Path]:
        """The files there are now, by name and in order. A request's word is only looked up here.

        It never becomes a path. Hidden files and folders are left out, and links to folders not followed.
        """
        found: dict[str, Path] = {}
        for path in self._paths:
            found |= _loras_in(path)
        return {name: found[name] for name in sorted(found)[:MAX_NAMES]}

    def path_of(self, name: str) -> Path:
        """The file of a --lora option: one of the folder, or any with its ending. Raises CheckpointError."""
        if name.endswith(SUFFIX):
            return Path(name).expanduser()
        files = self.files()
        if name not in files:
            there_is = unknown_lora(name, list(files)).message
            raise CheckpointError(
                f"--lora: {there_is}; a file that is elsewhere is named by its path, with {SUFFIX}"
            )
        return files[name]


class LoraCache:
    """The LoRAs of a folder, each loaded when it is first asked for, and again if its file changed.

    The latest stay in memory, up to `max_bytes`. Safe to use from several threads.
    """

    def __init__(self, folder: LoraFolder, load: Callable[[Path], PlacedLora], max_bytes: int) -> None:
        """`load` raises CheckpointError for what cannot be used."""
        self.folder = folder
        self._load_file = load
        self._cache: Cache[tuple[object, ...], PlacedLora] = Cache(max_bytes, name="loras")
        self._loading = threading.Lock()

    @classmethod
    def of_model(cls, folder: LoraFolder, modules: Modules, model: nn.Module, max_bytes: int) -> LoraCache:
        """The LoRAs of a model with these modules, on its devices and in its dtypes."""
        return cls(
            folder,
            lambda path: place(read_lora_file(path, modules), modules.places, weights_of(model)),
            max_bytes,
        )

    def find(self, messages: Sequence[lora_pb2.Lora]) -> Loras:
        """The LoRAs of a checked request, those of weight 0 left out.

        Raises:
            TriptychError: NOT_FOUND for an unknown name; FAILED_PRECONDITION for a file that is no LoRA for
                this model.
        """
        if not messages:
            return ()
        files = self.folder.files()
        for message in messages:
            if message.name not in files:
                raise unknown_lora(message.name, list(files))
        wanted = [(message.name, weight_of(message)) for message in messages]
        return tuple(
            (self._load(name, files[name], list(files)), weight) for name, weight in wanted if weight
        )

    def _load(self, name: str, path: Path, names: Sequence[str]) -> PlacedLora:
        with self._loading:
            try:
                states = [(file.name, file.stat()) for file in files_of(path)]
                key = (
                    path,
                    *((file, state.st_mtime_ns, state.st_size, state.st_ino) for file, state in states),
                )
                found = self._cache.get(key)
                if found is None:
                    found = replace(self._load_file(path), name=name)
                    self._cache.put(key, found)
                    log.info("loaded the LoRA %s, %.1f MB", name, found.nbytes / 2**20)
                    log_warnings(name, found.warnings)
            except FileNotFoundError as error:
                raise unknown_lora(name, [other for other in names if other != name]) from error
            except (CheckpointError, OSError) as error:
                raise _unusable(name, error) from error
            return found


def _loras_in(folder: Path) -> dict[str, Path]:
    """The files of a folder and of those in it, by name."""
    found: dict[str, Path] = {}
    peft: dict[str, Path] = {}
    for number, (parent, folders, names) in enumerate(os.walk(folder)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if name.endswith(SUFFIX) and not name.startswith(".") and path.is_file():
                called = path.relative_to(folder).as_posix().removesuffix(SUFFIX)
                is_peft = name == PEFT_FILE and path.parent != folder
                (peft if is_peft else found)[called] = path
        if len(found) + len(peft) >= MAX_NAMES or number >= MAX_FOLDERS:
            break
    for called, path in peft.items():
        short = called.rpartition("/")[0]
        found[called if short in found else short] = path
    return {name: path for name, path in found.items() if _is_text(name)}


def read_fused(options: Sequence[str], folder: LoraFolder, modules: Modules) -> list[tuple[LoraFile, float]]:
    """The files and weights of --lora options; what is not applied is logged. Raises CheckpointError."""
    fused = []
    for option in options:
        name, weight = read_lora(option)
        file = read_lora_file(folder.path_of(name), modules)
        log_warnings(name, file.warnings)
        fused.append((file, weight))
    return fused


def warnings_of(loras: Loras) -> list[str]:
    """What of the files of a request's LoRAs is not applied."""
    return [f"the LoRA {lora.name!r}: {warning}" for lora, _ in loras for warning in lora.warnings]


def log_warnings(name: str, warnings: Sequence[str]) -> None:
    """The same for the log."""
    for warning in warnings:
        log.warning("the LoRA %r: %s", name, warning)


def fingerprint_with(base: str, loras: Sequence[tuple[LoraFile | PlacedLora, float]]) -> str:
    """The fingerprint of a stage whose own is `base`, with LoRAs in the order in which they are added."""
    parts = {f"LoRA {index}": f"{one.identity} x {weight!r}" for index, (one, weight) in enumerate(loras)}
    return fingerprint(parts | {"without LoRA": base}) if parts else base


def _unusable(name: str, error: Exception) -> TriptychError:
    return failed_precondition(f"the LoRA {name!r} cannot be used: {error}")


def _is_text(name: str) -> bool:
    """Whether a message can hold it: file names may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
