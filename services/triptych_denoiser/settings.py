"""What the denoiser can be told."""

from typing import Literal

from pydantic import Field

from triptych.compute.settings import CompileOptions, LoraOptions, OffloadOptions, QuantizedStageSettings
from triptych.serving.settings import SharedMemoryOptions

MAX_BRANCHES = 4
"""Guidance branches in one call."""


class DenoiserOptions(LoraOptions, OffloadOptions, CompileOptions):
    """How rows share forward passes, what computes them, and how much waits and is remembered."""

    determinism: Literal["batch-invariant", "fast"] = Field(
        default="batch-invariant",
        description="batch-invariant: a row's bits do not depend on the rows it runs with, and where the "
        "machine cannot promise that, rows run with those of their own size and text length alone, or one at "
        "a time. fast: rows always run together.",
    )
    attention: Literal["auto", "flash-attn", "varlen", "efficient", "sdpa", "math"] = Field(
        default="auto",
        description="What computes attention: the package flash-attn, torch's own kernels (varlen and "
        "efficient on CUDA alone, sdpa anywhere), or the plain formula. auto: flash-attn where it is "
        "installed and runs, else sdpa; batch-invariant on CUDA varlen or, where that does not run, "
        "efficient.",
    )
    max_batch_rows: int = Field(default=16, gt=0, description="Rows in one forward pass.")
    max_queued_rows: int = Field(
        default=256,
        ge=MAX_BRANCHES,
        description="Rows that wait for a forward pass; calls with more are refused.",
    )
    max_batch_tokens: int = Field(
        default=65536,
        gt=0,
        description="Image and text tokens in one forward pass, which bounds its memory; a row that has more "
        "runs alone. Out of memory, the denoiser lowers it by itself.",
    )
    max_batching_window_milliseconds: float = Field(
        default=5.0,
        ge=0,
        description="How long a forward pass may wait for rows to share it: at most this, and a tenth of "
        "what the pass before took.",
    )
    conditioning_cache_mb: int = Field(
        default=512, gt=0, description="Memory for conditioning, in MB (2^20 bytes)."
    )
    feature_cache_mb: int = Field(
        default=1024,
        gt=0,
        description="Memory for the features of requests that reuse them between steps, in MB (2^20 bytes).",
    )
    static_text_cache_mb: int = Field(
        default=4096,
        ge=0,
        description="Memory for what a part of the model that sees text alone made of it (Krea 2's text "
        "fusion, keys and values of Qwen-Image 2.1's text and references), in MB (2^20 bytes). 0: computed "
        "anew in every pass, to the same bits.",
    )


class DenoiserSettings(DenoiserOptions, SharedMemoryOptions, QuantizedStageSettings):
    """The denoiser's command line and environment."""
