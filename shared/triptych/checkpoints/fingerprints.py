"""Fingerprints: one digest over everything that decides the bits of a stage's results."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from triptych.checkpoints.checkpoint import Checkpoint
from triptych.version import version_of

FULL_HASH_BYTES = 1 << 30
_SAMPLES = 64
_SAMPLE_BYTES = 1 << 20


def fingerprint(parts: Mapping[str, str]) -> str:
    """Returns the SHA-256 of the parts as 64 hexadecimal digits, whatever their order."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()


def stage_fingerprint(
    checkpoint: Checkpoint,
    components: Iterable[str],
    device: str,
    dtype: str,
    determinism: str,
    quantization: str = "none",
    others: Mapping[str, str] | None = None,
) -> str:
    """The fingerprint of a stage that computes `components` of a checkpoint on a torch device.

    Two replicas with equal fingerprints have the same weights and config, torch version, kind of processor,
    thread count, choice of kernels (see compute/kernels.py), dtype, determinism and quantization, and what
    `others` names: the stage's own options that decide bits.
    """
    parts = _runtime(device) | {"dtype": dtype, "determinism": determinism, "quantization": quantization}
    parts |= others or {}
    if quantization != "none":
        parts["torchao"] = version_of("torchao")  # the VAE codec quantizes without it
    for component in components:
        parts[f"config of {component}"] = json.dumps(checkpoint.config(component), sort_keys=True)
        parts[f"weights of {component}"] = weights_identity(checkpoint.files(component))
    return fingerprint(parts)


def weights_identity(files: Iterable[Path]) -> str:
    """A digest of weight files, whatever their names.

    Files up to 1 GiB are hashed whole. Of a larger one, hashed are its size, its first MiB (which holds the
    header: names, shapes and offsets) and 63 more spread evenly over it, because hashing all would take
    longer than loading: a change of a few weights elsewhere is not seen. The result says which was done.
    """
    whole, digests = True, []
    for file in files:
        size = file.stat().st_size
        whole &= size <= FULL_HASH_BYTES
        digests.append(_hash_of_all(file) if size <= FULL_HASH_BYTES else _hash_of_samples(file, size))
    joined = hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()
    return f"{'whole' if whole else 'sampled'}:{joined}"


def _runtime(device: str) -> dict[str, str]:
    import torch

    kind = torch.device(device).type
    parts = {"torch": torch.__version__, "device type": kind}
    if kind == "cpu":
        parts["processor"] = torch.backends.cpu.get_cpu_capability()
        parts["threads"] = str(torch.get_num_threads())
        parts["MKL_CBWR"] = os.environ.get("MKL_CBWR", "")
    if kind == "cuda":
        parts["processor"] = torch.cuda.get_device_name(device)
    return parts


def _hash_of_all(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hash_of_samples(file: Path, size: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        for index in range(_SAMPLES):
            stream.seek((size - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
