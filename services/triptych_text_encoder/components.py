"""A checkpoint's text encoders and tokenizers: CLIP's are our own, the others transformers', offline."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from triptych.checkpoints.text_encoder_names import text_config
from triptych.compute.quantization import Exceptions, torchao_quietly
from triptych.errors import CheckpointError, StartError
from triptych_text_encoder.vision import VisionTower

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from triptych.checkpoints.checkpoint import Checkpoint
    from triptych.compute.quantization import Quantizer


_PROJECTED_CLIP = "CLIPTextModelWithProjection"
_CLIP_CLASSES = ("CLIPTextModel", _PROJECTED_CLIP)
_CLIP_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast")

#: The linears of a class that are not quantized like the others.
_EXCEPTIONS = {
    # One product per prompt, and the pooled vector is its result.
    _PROJECTED_CLIP: Exceptions(full_precision=("text_projection",)),
    # A few of its inputs are thousands of times the others (in T5 more than float16 holds): rounded by one
    # scale, the others would be lost. So in Qwen2.5 and Qwen3.
    "T5EncoderModel": Exceptions(weights_only=("wo",)),
    "Qwen2_5_VLForConditionalGeneration": Exceptions(weights_only=("down_proj",)),
    "Qwen3Model": Exceptions(weights_only=("down_proj",)),
    "Qwen3ForCausalLM": Exceptions(weights_only=("down_proj",)),
    "Qwen3VLModel": Exceptions(weights_only=("down_proj",)),
    "Qwen3VLForConditionalGeneration": Exceptions(weights_only=("down_proj",)),
    "Mistral3ForConditionalGeneration": Exceptions(weights_only=("down_proj",)),
}
#: What a checkpoint's names may begin with although transformers' do not, and the other way round.
_PREFIXES = ("text_model.", "model.", "language_model.", "model.language_model.", "language_model.model.")
#: What files have besides: tables that are computed here, CLIP's other half, heads for words, T5's decoder,
#: eyes, and tokenizers in the files of node editors.
_UNUSED = re.compile(
    r"(?:^|\.)(?:position_ids|inv_freq|logit_scale|text_projection\.weight|visual_projection\.weight"
    r"|lm_head\.weight|spiece_model|tekken_model)$"
    r"|^(?:vision_model|decoder|(?:model\.)?(?:visual|vision_tower|multi_modal_projector))\."
)

#: The tensors of a vision encoder, and what transformers calls them there.
_VISION = re.compile(r"(?:model\.)?visual\.(.+)")

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def load_text_model(
    checkpoint: Checkpoint,
    component: str,
    dtype: torch.dtype,
    device: torch.device,
    quantizer: Quantizer | None = None,
    layers: int | None = None,
    offload: bool = False,
) -> Any:
    """Load a text encoder of CLIP, T5, Qwen3, a Qwen-VL or Mistral 3, ready for inference.

    Weights go to the device one by one, linears quantized on the way. Names with and without the prefixes of
    _PREFIXES are accepted, T5's embedding under any of its names; T5's `wo` is float32 when dtype is float16.
    Of a Qwen's or Mistral's layers, those behind the first `layers` are left out; with `offload` the weights
    of layers wait in the host's memory. What sees pictures is loaded by itself.

    Raises CheckpointError if the class is another one, the weights do not fit the config, or a linear cannot
    be quantized.
    """
    import torch

    from triptych.compute.loading import fill
    from triptych.compute.offload import fill_offloaded

    class_name = checkpoint.class_name(component)
    with nullcontext() if class_name in _CLIP_CLASSES else _quiet():
        try:
            model = _without_memory(checkpoint, component, dtype, device, layers)
            if dtype == torch.float16 and class_name == "T5EncoderModel":
                _keep_wo_in_float32(model)
            tensors = checkpoint.tensors(component)
            targets, missing = _targets(model, set(tensors))
            unknown = [name for name in _unknown(model, set(tensors)) if not _is_behind(name, layers)]
            _check_fit(checkpoint.folder(component), missing, unknown)
            exceptions = _EXCEPTIONS.get(class_name, Exceptions())
            finish = None if quantizer is None else partial(quantizer.finish, exceptions=exceptions)
            (fill_offloaded if offload else fill)(model, targets, tensors, device, finish)
        except Exception as error:  # a config can be wrong in many ways, with an exception of its own each
            raise _broken(checkpoint, component, error) from error
    return model.requires_grad_(False).eval()


def _check_fit(folder: Path, missing: list[str], unknown: list[str]) -> None:
    """Raises CheckpointError where weights are missing or unknown to the config."""
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights that its config.json asks for; the first is {missing[0]}"
        )
    if unknown:
        raise CheckpointError(
            f"{folder} has {len(unknown)} weights that its config.json does not ask for: "
            f"{', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}"
        )


def _without_memory(
    checkpoint: Checkpoint, component: str, dtype: torch.dtype, device: torch.device, layers: int | None
) -> Any:
    """The model with its weights on "meta"; buffers that no checkpoint has are real, on the device."""
    import torch

    class_name, config = checkpoint.class_name(component), text_config(checkpoint.config(component))
    if class_name in _CLIP_CLASSES:
        from triptych_text_encoder.clip import ClipConfig, ClipTextModel

        with torch.device("meta"):
            return ClipTextModel(ClipConfig.from_dict(config), class_name == _PROJECTED_CLIP).to(dtype)
    with torchao_quietly():  # transformers imports it where it is installed
        model_class, config_class = _transformers_classes(checkpoint, component)
    if layers is not None:
        config = _with_first(layers, config)
    return _of_config(model_class, config_class.from_dict(config), dtype, device)


def _of_config(model_class: Any, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """A model with its weights on "meta"; buffers that no checkpoint has are real, on the device."""
    import torch

    with torch.device("meta"):
        model = model_class._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.tie_weights()
    for module in model.modules():
        computed = [
            (name, buffer)
            for name, buffer in module.named_buffers(recurse=False)
            if name in module._non_persistent_buffers_set
        ]
        for name, buffer in computed:
            setattr(module, name, torch.empty_like(buffer, device=device))
        if computed:
            model._init_weights(module)  # transformers' way to compute them; weights on "meta" stay there
    return model


def _with_first(layers: int, config: dict[str, Any]) -> dict[str, Any]:
    """The config of a model with no more than so many layers."""
    layers = min(layers, config["num_hidden_layers"])
    kinds = {"layer_types": config["layer_types"][:layers]} if config.get("layer_types") else {}
    return config | {"num_hidden_layers": layers} | kinds


def _is_behind(name: str, layers: int | None) -> bool:
    """Whether a weight is of a layer behind the first `layers`."""
    match = _LAYER.search(name)
    return layers is not None and match is not None and int(match[1]) >= layers


def _keep_wo_in_float32(model: Any) -> None:
    for path, module in model.named_modules():
        if path.endswith(".wo"):
            module.float()


def _targets(model: Any, names: set[str]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The model's weights by the checkpoint's names, and the model's names of those that it lacks."""
    weights = model.state_dict()
    own_names: dict[int, list[str]] = {}  # one weight has several if modules share it
    for name, weight in weights.items():
        own_names.setdefault(weight.untyped_storage()._cdata, []).append(name)
    targets, missing = {}, []
    for shared in own_names.values():
        known = [spelling for name in shared for spelling in spellings(name) if spelling in names]
        if known:
            targets[known[0]] = weights[shared[0]]
        else:
            missing.append(shared[0])
    return targets, missing


def _unknown(model: Any, names: set[str]) -> list[str]:
    """What of a checkpoint's names is neither a weight of the model nor known to be of no use to it."""
    known = {spelling for name in model.state_dict() for spelling in spellings(name)}
    return sorted(name for name in names - known if not _UNUSED.search(name))


def spellings(name: str) -> list[str]:
    """The names that checkpoints may have for one of a model's modules or weights."""
    return [
        name,
        *(prefix + name for prefix in _PREFIXES),
        *(name.removeprefix(prefix) for prefix in _PREFIXES),
    ]


def load_vision_tower(
    checkpoint: Checkpoint, component: str, image_processor: str, dtype: torch.dtype, device: torch.device
) -> VisionTower | None:
    """Load what sees pictures for a text encoder of Qwen's, and the image processor in another folder.

    It is not quantized: a tenth of the weights, and pictures depend on it. None if the checkpoint has none: a
    file of a text encoder alone, or no image processor.

    Raises CheckpointError if it is broken.
    """
    from triptych.compute.loading import check_names, fill

    folder, config = checkpoint.folder(image_processor), checkpoint.config(component).get("vision_config")
    tensors = checkpoint.tensors(component)
    names = {match[1]: match[0] for match in map(_VISION.fullmatch, tensors) if match}
    if not (folder / "preprocessor_config.json").is_file() or not config or not names:
        return None
    with _quiet():
        try:
            from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

            processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
            model_class, config_class = _vision_classes(checkpoint, component)
            model = _of_config(model_class, config_class.from_dict(config), dtype, device)
            weights = model.state_dict()
            check_names(weights, names)
            fill(model, {names[name]: weight for name, weight in weights.items()}, tensors, device)
        except Exception as error:  # as in load_text_model
            raise _broken(checkpoint, component, error) from error
    return VisionTower(processor, model.requires_grad_(False).eval())


def load_tokenizer(checkpoint: Checkpoint, component: str) -> Any:
    """Load a CLIP, T5, Qwen or Mistral tokenizer.

    Raises CheckpointError if the class is another one or the files are missing or broken.
    """
    tokenizer_class = _tokenizer_class(checkpoint, component)
    folder = checkpoint.folder(component)
    # Without any of its files transformers makes up an empty vocabulary.
    if not any((folder / name).is_file() for name in tokenizer_class.vocab_files_names.values()):
        raise CheckpointError(f"{folder} has none of {', '.join(tokenizer_class.vocab_files_names.values())}")
    with nullcontext() if checkpoint.class_name(component) in _CLIP_TOKENIZERS else _quiet():
        try:
            return tokenizer_class.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the tokenizers library raises bare Exception for a broken file
            raise _broken(checkpoint, component, error) from error


def _transformers_classes(checkpoint: Checkpoint, component: str) -> tuple[Any, Any]:
    """The model class that model_index.json names for `component`, and its config class."""
    match checkpoint.class_name(component):
        case "T5EncoderModel":
            from transformers.models.t5.configuration_t5 import T5Config
            from transformers.models.t5.modeling_t5 import T5EncoderModel

            return T5EncoderModel, T5Config
        case "Qwen3Model" | "Qwen3ForCausalLM":  # the head, which gives words, is left out
            from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
            from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

            return Qwen3Model, Qwen3Config
        case "Qwen3VLModel" | "Qwen3VLForConditionalGeneration":
            from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
            from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

            return Qwen3VLTextModel, Qwen3VLTextConfig
        case "Qwen2_5_VLForConditionalGeneration":
            from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
            from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

            return Qwen2_5_VLTextModel, Qwen2_5_VLTextConfig
        case "Mistral3ForConditionalGeneration":
            from transformers.models.mistral.configuration_mistral import MistralConfig
            from transformers.models.mistral.modeling_mistral import MistralModel

            return MistralModel, MistralConfig
        case other:
            supported = (
                "CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel, Qwen3Model, Qwen3VLModel, "
                "Qwen2_5_VLForConditionalGeneration and Mistral3ForConditionalGeneration"
            )
            raise _unsupported(checkpoint, component, other, supported)


def _vision_classes(checkpoint: Checkpoint, component: str) -> tuple[Any, Any]:
    """The class of the part that sees pictures for `component`, and its config class."""
    match checkpoint.class_name(component):
        case "Qwen3VLModel" | "Qwen3VLForConditionalGeneration":
            from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
            from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

            return Qwen3VLVisionModel, Qwen3VLVisionConfig
        case "Qwen2_5_VLForConditionalGeneration":
            from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
            from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
                Qwen2_5_VisionTransformerPretrainedModel,
            )

            return Qwen2_5_VisionTransformerPretrainedModel, Qwen2_5_VLVisionConfig
        case other:
            raise _unsupported(checkpoint, component, other, "Qwen3VLModel and Qwen2.5-VL")


def _tokenizer_class(checkpoint: Checkpoint, component: str) -> Any:
    """The tokenizer class for the one that model_index.json names: transformers 5 has one per family."""
    match checkpoint.class_name(component):
        case "CLIPTokenizer" | "CLIPTokenizerFast":
            from triptych_text_encoder.clip_tokenizer import ClipTokenizer

            return ClipTokenizer
        case "T5Tokenizer" | "T5TokenizerFast":
            from transformers.models.t5.tokenization_t5 import T5Tokenizer

            return T5Tokenizer
        # Pictures are not read here. FLUX.3's index names transformers' way to find Qwen3-VL's processor.
        case "Qwen2Tokenizer" | "Qwen2TokenizerFast" | "Qwen3VLProcessor" | "AutoProcessor":
            from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

            return Qwen2Tokenizer
        case "PixtralProcessor":  # the same
            from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast
        case other:
            supported = (
                "CLIPTokenizer, T5Tokenizer, Qwen2Tokenizer, with and without Fast, Qwen3VLProcessor and "
                "PixtralProcessor"
            )
            raise _unsupported(checkpoint, component, other, supported)


def _broken(checkpoint: Checkpoint, component: str, error: Exception) -> StartError:
    """The error in one line; one that says already what is wrong as it is."""
    if isinstance(error, StartError):
        return error
    return CheckpointError(f"{checkpoint.folder(component)} cannot be loaded: {' '.join(str(error).split())}")


def _unsupported(checkpoint: Checkpoint, component: str, found: str, supported: str) -> CheckpointError:
    return CheckpointError(f"{component} of {checkpoint.path} is a {found}; supported are {supported}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and warnings off the terminal."""
    from transformers.utils import logging

    verbosity, progress_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress_bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
