"""What loading a stage's model takes beside the model: peak memory of a fresh process, over what stays.

python -m benchmarks.memory.loading [--out loading.json]

Random checkpoints of some 330 MB in float32, one per stage, are written to a temporary folder; a process per
row loads one. "Peak" is VmHWM, reset right before loading, less the resident memory of that moment: anonymous
memory and pages of the mapped file alike. "Weights" are the bytes that the model's tensors hold.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from benchmarks import command_line
from benchmarks.memory.resident import resident, resident_from_here
from benchmarks.processes import answer_of

SD3 = {
    "num_layers": 9,
    "attention_head_dim": 64,
    "num_attention_heads": 8,
    "caption_projection_dim": 512,
    "joint_attention_dim": 512,
    "pooled_projection_dim": 512,
    "pos_embed_max_size": 64,
}
T5: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "num_heads": 8,
    "d_ff": 1024,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
"""The autoencoder of SD3 and FLUX."""

CASES = [
    (stage, dtype, quantization)
    for stage, quantizations in {
        "transformer": ("none", "int8-weight-only", "int8-dynamic", "int4-weight-only"),
        "text_encoder_3": ("none", "int8-weight-only", "int8-dynamic", "int4-weight-only"),
        "vae": ("none", "int8-weight-only"),
    }.items()
    for quantization in quantizations
    for dtype in ("float32", "bfloat16")
    if (quantization, dtype) != ("int4-weight-only", "float32")  # is refused
]


def write_checkpoint(folder: Path, component: str) -> Path:
    """A checkpoint folder with one component of some 330 MB, random weights in float32."""
    write: Mapping[str, Callable[[Path], str]] = {
        "transformer": _write_transformer,
        "text_encoder_3": _write_t5,
        "vae": _write_vae,
    }
    (folder / component).mkdir(parents=True)
    class_name = write[component](folder / component)
    index = {"_class_name": "StableDiffusion3Pipeline", component: ["", class_name]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def measure(folder: Path, component: str, dtype: str, quantization: str) -> dict[str, float]:
    """Loads a component in a fresh process: MB of its weights and of the peak for it, and their ratio."""
    return answer_of("benchmarks.memory.loading", "--load", str(folder), component, dtype, quantization)


def stored_bytes(model: Any) -> int:
    """Bytes of a module's parameters and buffers, as they are stored."""
    import itertools

    tensors = {
        id(tensor): tensor.data for tensor in itertools.chain(model.parameters(), model.buffers())
    }.values()
    return sum(_tensor_bytes(tensor) for tensor in tensors)


def _tensor_bytes(tensor: Any) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    names, _ = tensor.__tensor_flatten__()
    return sum(_tensor_bytes(getattr(tensor, name)) for name in names)


def _write_transformer(folder: Path) -> str:
    from triptych_denoiser.models.sd3 import SD3Transformer

    _write(folder, SD3, SD3Transformer.from_config(SD3).checkpoint_keys())
    return "SD3Transformer2DModel"


def _write_vae(folder: Path) -> str:
    from triptych_vae_codec.models.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig

    _write(folder, VAE, AutoencoderKL(AutoencoderKLConfig.from_dict(VAE)).state_dict())
    return "AutoencoderKL"


def _write(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Any]) -> None:
    from safetensors.torch import save_file

    (folder / "config.json").write_text(json.dumps(config))
    contiguous = {name: weight.detach().clone() for name, weight in weights.items()}
    save_file(contiguous, folder / "diffusion_pytorch_model.safetensors")


def _write_t5(folder: Path) -> str:
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    T5EncoderModel(T5Config(**cast(Any, T5))).save_pretrained(folder, max_shard_size="100MB")
    return "T5EncoderModel"


def _load(folder: str, component: str, dtype_name: str, mode: Any) -> dict[str, float]:
    """Loads in this process, whose peak is measured from here."""
    import torch

    from triptych.checkpoints.opening import open_checkpoint
    from triptych.compute.quantization import create_quantizer
    from triptych_denoiser.models import load_transformer
    from triptych_text_encoder.components import load_text_model
    from triptych_vae_codec.models.autoencoder_kl import build
    from triptych_vae_codec.quantization import quantize_convolution

    checkpoint, device, dtype = open_checkpoint(folder), torch.device("cpu"), getattr(torch, dtype_name)
    quantizer = create_quantizer("none" if component == "vae" else mode, device, dtype)
    if component == "text_encoder_3":
        import transformers.models.t5.modeling_t5  # noqa: F401 - the library is no part of what is measured
    before = resident_from_here()
    if component == "transformer":
        model: Any = load_transformer(checkpoint, "cpu", dtype, quantizer)
    elif component == "text_encoder_3":
        model = load_text_model(checkpoint, component, dtype, device, quantizer)
    else:
        quantize = None if mode == "none" else quantize_convolution
        model = build(checkpoint.config("vae"), checkpoint.tensors("vae"), "cpu", dtype, quantize)
    peak, weights = resident("VmHWM") - before, stored_bytes(model) / 1e6
    return {"weights_mb": weights, "peak_mb": peak, "ratio": peak / weights}


def main() -> None:
    """Reads the options, measures, prints the table."""
    parser = command_line.parser(__doc__, model=False)
    parser.add_argument("--load", nargs=4, metavar=("FOLDER", "COMPONENT", "DTYPE", "QUANTIZATION"))
    options = parser.parse_args()
    if options.load:
        print(json.dumps(_load(*options.load)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for component in dict.fromkeys(component for component, _, _ in CASES):
            write_checkpoint(Path(folder) / component, component)
        print(f"{'':48}{'weights MB':>12}{'peak MB':>10}{'ratio':>8}")
        for component, dtype, quantization in CASES:
            row = measure(Path(folder) / component, component, dtype, quantization)
            rows.append({"component": component, "dtype": dtype, "quantization": quantization, **row})
            name = f"{component} {dtype} {quantization}"
            print(f"{name:48}{row['weights_mb']:12.1f}{row['peak_mb']:10.1f}{row['ratio']:8.2f}", flush=True)
    command_line.write_json(options.out, rows)


if __name__ == "__main__":
    main()
