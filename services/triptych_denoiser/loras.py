"""The LoRAs of a denoiser: those fused at start, and those that requests name from a folder."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from triptych.caches import Cache
from triptych.checkpoints.fingerprints import fingerprint
from triptych.errors import CheckpointError, TriptychError, failed_precondition
from triptych.loras import read_lora, unknown_lora, weight_of
from triptych.v1 import lora_pb2
from triptych_denoiser.models import lora
from triptych_denoiser.models.lora import Linears, LoraFile, Loras, PlacedLora

log = logging.getLogger(__name__)

MAX_NAMES = 1000
"""Files of a folder that are served: the first ones by name."""

_SUFFIX = ".safetensors"


class LoraFolder:
    """A folder of NAME.safetensors files. Each is loaded when it is first asked for, and again if it changed.

    The latest stay in memory, up to `max_bytes`. Safe to use from several threads.
    """

    def __init__(
        self, path: Path | None, linears: Linears, device: torch.device, dtype: torch.dtype, max_bytes: int
    ) -> None:
        """Without a path, there are no LoRAs. Raises CheckpointError if it is no folder."""
        if path is not None and not path.is_dir():
            raise CheckpointError(f"--lora-folder: there is no folder {path}")
        self._path = path
        self._linears = linears
        self._device = device
        self._dtype = dtype
        self._cache: Cache[tuple[str, int, int], PlacedLora] = Cache(max_bytes)
        self._loading = threading.Lock()

    def files(self) -> dict[str, Path]:
        """The files by name, in order. A request's word is only looked up here, and never becomes a path."""
        if self._path is None:
            return {}
        with os.scandir(self._path) as entries:
            found = {
                entry.name.removesuffix(_SUFFIX): Path(entry.path)
                for entry in entries
                if entry.name.endswith(_SUFFIX) and not entry.name.startswith(".") and entry.is_file()
            }
        return {name: found[name] for name in sorted(filter(_is_text, found))[:MAX_NAMES]}

    def find(self, messages: Sequence[lora_pb2.Lora]) -> Loras:
        """The LoRAs of a checked request, those of weight 0 left out.

        Raises:
            TriptychError: NOT_FOUND for an unknown name; FAILED_PRECONDITION for a file that is no LoRA for
                this transformer.
        """
        files = self.files()
        for message in messages:
            if message.name not in files:
                raise unknown_lora(message.name, list(files))
        wanted = [(message.name, weight_of(message)) for message in messages]
        return tuple((self._load(name, files), weight) for name, weight in wanted if weight)

    def _load(self, name: str, files: Mapping[str, Path]) -> PlacedLora:
        with self._loading:
            try:
                status = files[name].stat()
                key = (name, status.st_mtime_ns, status.st_size)
                found = self._cache.get(key)
                if found is None:
                    file = lora.read_lora_file(files[name], self._linears)
                    found = lora.place(file, self._linears, self._device, self._dtype)
                    self._cache.put(key, found)
                    log.info("loaded the LoRA %s, %.1f MB", name, found.nbytes / 2**20)
            except FileNotFoundError as error:
                raise unknown_lora(name, [other for other in files if other != name]) from error
            except (CheckpointError, OSError) as error:
                raise _unusable(name, error) from error
            return found


def read_fused(options: Sequence[str], folder: LoraFolder, linears: Linears) -> list[tuple[LoraFile, float]]:
    """The files and weights of --lora options. Raises CheckpointError."""
    wanted = [read_lora(option) for option in options]
    return [(lora.read_lora_file(_file(name, folder), linears), weight) for name, weight in wanted]


def fingerprint_with(base: str, loras: Sequence[tuple[LoraFile | PlacedLora, float]]) -> str:
    """The fingerprint of a stage whose own is `base`, with LoRAs in the order in which they are added."""
    if not loras:
        return base
    parts = {f"LoRA {index}": f"{one.identity} x {weight!r}" for index, (one, weight) in enumerate(loras)}
    return fingerprint(parts | {"without LoRA": base})


def _file(name: str, folder: LoraFolder) -> Path:
    if name.endswith(_SUFFIX):
        return Path(name).expanduser()
    files = folder.files()
    if name not in files:
        there_is = unknown_lora(name, list(files)).message
        raise CheckpointError(
            f"--lora: {there_is}; a file that is elsewhere is named by its path, with {_SUFFIX}"
        )
    return files[name]


def _unusable(name: str, error: Exception) -> TriptychError:
    return failed_precondition(f"the LoRA {name!r} cannot be used: {error}")


def _is_text(name: str) -> bool:
    """Whether a message can hold it: file names may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
