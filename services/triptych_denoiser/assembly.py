"""A denoiser put together: checkpoint, transformer, LoRAs, predictor and batcher, as the options say."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path, PurePath

import torch

from triptych.compute.compilation import compile_modules, compiler_identity, try_compiler, warming_up
from triptych.compute.devices import usable_device
from triptych.compute.lora_folder import LoraCache, LoraFolder, fingerprint_with, read_fused
from triptych.compute.model_info import model_info
from triptych.compute.quantization import Quantization, create_quantizer
from triptych.compute.settings import StageSettings
from triptych.errors import StartError
from triptych.loras import read_lora
from triptych_denoiser.batcher import Batcher
from triptych_denoiser.conditioning import ConditioningCache
from triptych_denoiser.models import load_transformer, modules_of
from triptych_denoiser.models.attention import Backend, backend_identity, choose_backend, use_backend
from triptych_denoiser.models.transformer import Transformer, blocks
from triptych_denoiser.predictor import Predictor, create_predictor, warm_up
from triptych_denoiser.requests import ModelLimits
from triptych_denoiser.servicer import DenoiserServicer
from triptych_denoiser.settings import DenoiserOptions
from triptych_denoiser.verdicts import verdict_file

log = logging.getLogger(__name__)


def _check_compilable(options: DenoiserOptions, quantization: Quantization) -> None:
    """Raises StartError for blocks that cannot be compiled as they are.

    Those of tiles of quantized weights would be compiled for every number of tiles.
    """
    if options.offload:
        raise StartError(
            "--compile cannot be used with --offload: a compiled block is one program, with no place for the "
            "copies of its weights; and what a pass waits for is those copies"
        )
    if quantization != "none" and options.determinism == "batch-invariant":
        raise StartError(
            f"--compile with --quantization {quantization} needs --determinism fast: "
            "batch-invariant products of quantized weights would be compiled for every number of rows"
        )


def create_servicer(
    settings: StageSettings, options: DenoiserOptions | None = None, quantization: Quantization = "none"
) -> DenoiserServicer:
    """Loads the transformer that the settings name. Takes seconds. Raises StartError."""
    options = options or DenoiserOptions()
    device = usable_device(settings.device)
    checkpoint = settings.open_checkpoint()
    dtype = getattr(torch, settings.dtype)
    invariant = options.determinism == "batch-invariant"
    attention = choose_backend(options.attention, device, dtype, invariant)
    if options.compile:
        _check_compilable(options, quantization)
        try_compiler(device)
    quantizer = create_quantizer(quantization, device, dtype)
    modules, folder = modules_of(checkpoint), LoraFolder(options.lora_folder, checkpoint.own_loras)
    fused = read_fused(options.lora, folder, modules)
    transformer = load_transformer(checkpoint, str(device), dtype, quantizer, fused, options.offload)
    use_backend(transformer, attention)
    log.info("attention is computed by %s", _described(attention, transformer))
    others = {
        "attention": backend_identity(attention),
        "compiler": compiler_identity(device, options.compile),
    }
    model = model_info(
        *(checkpoint, ["transformer"], settings, device, quantization, options.determinism),
        family=checkpoint.class_name("transformer"),
        parameters=sum(parameter.numel() for parameter in transformer.parameters()),
        others=others,
    )
    model.fingerprint = fingerprint_with(model.fingerprint, fused)
    file = verdict_file(model.fingerprint, options.max_batch_rows, not options.compile)
    predictor = _create_predictor(transformer, device, dtype, options, quantizer is not None, file)
    return DenoiserServicer(
        predictor,
        Batcher(predictor, options),
        ConditioningCache(options.conditioning_cache_mb << 20, name="conditioning"),
        LoraCache.of_model(folder, modules, transformer, options.lora_cache_mb << 20),
        ModelLimits.of(transformer.inputs, dtype, options.max_queued_rows, settings.max_message_bytes),
        model,
        attention,
        [PurePath(name).stem for name, weight in map(read_lora, options.lora) if weight > 0],
    )


def _described(attention: Backend, transformer: Transformer) -> str:
    if attention in ("flash-attn", "varlen") and not transformer.inputs.text_positions:
        return f"{attention}, and by efficient for text that ends in equal tokens: they are one with a bias"
    return attention


def _create_predictor(
    transformer: Transformer,
    device: torch.device,
    dtype: torch.dtype,
    options: DenoiserOptions,
    quantized: bool,
    verdict_file: Path | None,
) -> Predictor:
    """The predictor that the options describe, its transformer compiled if they say so."""
    create = partial(create_predictor, transformer, device, dtype, options, quantized, verdict_file)
    if not options.compile:
        return create()
    compile_modules(blocks(transformer))
    size = transformer.inputs.default_size
    with warming_up(device, f"latents of {size} x {size} and other sizes"):
        predictor = create()
        warm_up(predictor)
    return predictor
