"""Text encoders and tokenizers of a checkpoint through transformers: offline, safetensors only, no code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from triptych.checkpoints import CheckpointError

if TYPE_CHECKING:
    import torch

    from triptych.checkpoints import Checkpoint


def load_text_model(checkpoint: Checkpoint, component: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel or Qwen3Model, ready for inference.

    transformers accepts keys with and without the `text_model.` or `model.` prefix and T5's embedding under
    any of its names, and keeps T5's `wo` in float32 when dtype is float16.

    Raises CheckpointError if the class is another one or the weights do not fit the config.
    """
    model_class, config_class = _model_classes(checkpoint, component)
    with _quiet():
        try:
            config = config_class.from_dict(checkpoint.config(component))
            model, report = model_class.from_pretrained(
                None,
                config=config,
                state_dict=dict(checkpoint.tensors(component)),
                dtype=dtype,
                attn_implementation="sdpa",
                ignore_mismatched_sizes=True,  # they are reported below
                output_loading_info=True,
            )
        except (
            Exception
        ) as error:  # a config can be wrong in many ways, and transformers has as many exceptions
            raise _broken(checkpoint, component, error) from error
    wrong = [str(key) for kind in ("missing_keys", "mismatched_keys") for key in sorted(report[kind])]
    if wrong:
        raise CheckpointError(
            f"{checkpoint.folder(component)} lacks {len(wrong)} weights that its config.json asks for, "
            f"or has them in another shape; the first is {wrong[0]}"
        )
    return model.to(device).eval()


def load_tokenizer(checkpoint: Checkpoint, component: str) -> Any:
    """Load a CLIP, T5 or Qwen tokenizer.

    Raises CheckpointError if the class is another one or the files are missing or broken.
    """
    tokenizer_class = _tokenizer_class(checkpoint, component)
    folder = checkpoint.folder(component)
    # Without any of its files transformers makes up an empty vocabulary.
    if not any((folder / name).is_file() for name in tokenizer_class.vocab_files_names.values()):
        raise CheckpointError(f"{folder} has none of {', '.join(tokenizer_class.vocab_files_names.values())}")
    with _quiet():
        try:
            return tokenizer_class.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # the tokenizers library raises bare Exception for a broken file
            raise _broken(checkpoint, component, error) from error


def _model_classes(checkpoint: Checkpoint, component: str) -> tuple[Any, Any]:
    """The model class that model_index.json names for `component`, and its config class."""
    match checkpoint.class_name(component):
        case "CLIPTextModel":
            from transformers.models.clip.configuration_clip import CLIPTextConfig
            from transformers.models.clip.modeling_clip import CLIPTextModel

            return CLIPTextModel, CLIPTextConfig
        case "CLIPTextModelWithProjection":
            from transformers.models.clip.configuration_clip import CLIPTextConfig
            from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

            return CLIPTextModelWithProjection, CLIPTextConfig
        case "T5EncoderModel":
            from transformers.models.t5.configuration_t5 import T5Config
            from transformers.models.t5.modeling_t5 import T5EncoderModel

            return T5EncoderModel, T5Config
        case "Qwen3Model" | "Qwen3ForCausalLM":  # the head, which gives words, is left out
            from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
            from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

            return Qwen3Model, Qwen3Config
        case other:
            supported = "CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel and Qwen3Model"
            raise _unsupported(checkpoint, component, other, supported)


def _tokenizer_class(checkpoint: Checkpoint, component: str) -> Any:
    """The tokenizer class for the one that model_index.json names: transformers 5 has one per family."""
    match checkpoint.class_name(component):
        case "CLIPTokenizer" | "CLIPTokenizerFast":
            from transformers.models.clip.tokenization_clip import CLIPTokenizer

            return CLIPTokenizer
        case "T5Tokenizer" | "T5TokenizerFast":
            from transformers.models.t5.tokenization_t5 import T5Tokenizer

            return T5Tokenizer
        case "Qwen2Tokenizer" | "Qwen2TokenizerFast":
            from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

            return Qwen2Tokenizer
        case other:
            supported = "CLIPTokenizer, T5Tokenizer and Qwen2Tokenizer, with and without Fast"
            raise _unsupported(checkpoint, component, other, supported)


def _broken(checkpoint: Checkpoint, component: str, error: Exception) -> CheckpointError:
    """The error in one line; one that says already which file is wrong as it is."""
    if isinstance(error, CheckpointError):
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
