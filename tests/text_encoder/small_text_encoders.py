"""Small text encoders with random weights, tokenizers of few tokens, and a checkpoint folder of them."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel, CLIPTextModelWithProjection
from transformers.models.clip.tokenization_clip import CLIPTokenizer
from transformers.models.mistral3.configuration_mistral3 import Mistral3Config
from transformers.models.mistral3.modeling_mistral3 import Mistral3ForConditionalGeneration
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLForConditionalGeneration, Qwen3VLModel
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5EncoderModel
from transformers.models.t5.tokenization_t5 import T5Tokenizer
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

MAX_LENGTH = 32
JOINT_ATTENTION_DIM = 64
CLIP_MERGES = [("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>")]
CHAT_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif -%}
{%- if not enable_thinking %}<think></think>{% endif -%}"""
MISTRAL_TEMPLATE = """{{- bos_token -}}
{%- for message in messages -%}
{%- set name = "SYSTEM_PROMPT" if message.role == "system" else "INST" -%}
[{{ name }}]{{ message.content[0].text }}[/{{ name }}]
{%- endfor -%}"""
T5_PIECES = "abcdefghijklmnopqrstuvwxyz0123456789,.!?'ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def clip_vocabulary() -> dict[str, int]:
    """CLIP's kind of vocabulary: every byte, every byte at the end of a word, some merges, the two marks."""
    bytes_ = sorted(ByteLevel.alphabet())
    pieces = bytes_ + [byte + "</w>" for byte in bytes_] + [left + right for left, right in CLIP_MERGES]
    return {piece: index for index, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> Any:
    merges: Any = CLIP_MERGES  # transformers' annotation knows only strings
    return CLIPTokenizer(clip_vocabulary(), merges, pad_token=pad_token, model_max_length=MAX_LENGTH)


def t5_tokenizer() -> Any:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -5.0) for letter in T5_PIECES] + [("▁cat", -3.0), ("▁red", -3.0)]
    return T5Tokenizer(pieces, extra_ids=0, model_max_length=512)


#: The last of the vocabulary, the last first: see qwen3_vl_model.
PICTURE_MARKS = ["<|vision_end|>", "<|vision_start|>", "<|video_pad|>", "<|image_pad|>"]


def qwen_tokenizer() -> Any:
    """Qwen's kind of tokenizer: a token per byte, marks of a chat and of pictures, a template."""
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *PICTURE_MARKS]
    vocabulary = {piece: index for index, piece in enumerate([*sorted(ByteLevel.alphabet()), *marks])}
    return Qwen2Tokenizer(
        vocabulary,
        [],
        additional_special_tokens=marks[1:],
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )


def mistral_tokenizer() -> Any:
    """Mistral's kind of tokenizer: a token per byte, marks of a chat, padding on the left."""
    marks = ["<unk>", "<s>", "</s>", "<pad>"]
    chat = [f"[{end}{name}]" for name in ("SYSTEM_PROMPT", "INST") for end in ("", "/")]
    pieces = [*marks, *chat, "[IMG]", *sorted(ByteLevel.alphabet())]
    tokenizer = Tokenizer(BPE({piece: index for index, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([*marks, *chat, "[IMG]"])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        chat_template=MISTRAL_TEMPLATE,
        model_max_length=2048,
    )


def mistral3_model(hidden_size: int, layers: int = 3) -> Any:
    """A Mistral 3 with its eyes and its head for words."""
    text = {
        "model_type": "mistral",
        "vocab_size": len(mistral_tokenizer()),
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": max(hidden_size // 4, 8),
        "max_position_embeddings": 2048,
        "sliding_window": None,
        "rope_theta": 1e6,
    }
    vision = {
        "model_type": "pixtral",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": 8,
        "image_size": 32,
        "patch_size": 16,
    }
    config = Mistral3Config(text_config=text, vision_config=vision)
    return _with_random_weights(Mistral3ForConditionalGeneration(config))


def clip_model(hidden_size: int, projection_dim: int, hidden_act: str) -> Any:
    return _with_random_weights(
        CLIPTextModelWithProjection(
            _clip_config(hidden_size, projection_dim=projection_dim, hidden_act=hidden_act)
        )
    )


def clip_model_without_projection(hidden_size: int, **config: Any) -> Any:
    return _with_random_weights(CLIPTextModel(_clip_config(hidden_size, **config)))


def _clip_config(hidden_size: int, **config: Any) -> CLIPTextConfig:
    vocabulary = clip_vocabulary()
    marks = {"bos_token_id": vocabulary["<|startoftext|>"], "eos_token_id": vocabulary["<|endoftext|>"]}
    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=MAX_LENGTH,
        **marks | config,
    )


def qwen_model(hidden_size: int, layers: int = 3, head: bool = False) -> Any:
    """A Qwen3, with a head for words or without."""
    return _with_random_weights(
        (Qwen3ForCausalLM if head else Qwen3Model)(
            Qwen3Config(
                vocab_size=len(qwen_tokenizer()),
                hidden_size=hidden_size,
                intermediate_size=2 * hidden_size,
                num_hidden_layers=layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=8,
                max_position_embeddings=2048,
            )
        )
    )


def qwen3_vl_model(hidden_size: int, layers: int = 3, head: bool = False) -> Any:
    """A Qwen3-VL with its eyes, with a head for words or without."""
    vocabulary = len(qwen_tokenizer())
    text = {
        "vocab_size": vocabulary,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": hidden_size,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    marks = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        **{mark: vocabulary - 1 - index for index, mark in enumerate(marks)},
    )
    return _with_random_weights((Qwen3VLForConditionalGeneration if head else Qwen3VLModel)(config))


def qwen2_5_vl_model(hidden_size: int, layers: int = 3) -> Any:
    """A Qwen2.5-VL with its eyes and its head for words."""
    vocabulary = len(qwen_tokenizer())
    text = {
        "vocab_size": vocabulary,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": hidden_size,
        "fullatt_block_indexes": [1],
    }
    marks = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        **{mark: vocabulary - 1 - index for index, mark in enumerate(marks)},
    )
    return _with_random_weights(Qwen2_5_VLForConditionalGeneration(config))


def t5_model(d_model: int) -> Any:
    return _with_random_weights(
        T5EncoderModel(
            T5Config(
                vocab_size=len(t5_tokenizer()),
                d_model=d_model,
                d_kv=8,
                d_ff=48,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
            )
        )
    )


def _with_random_weights(model: Any) -> Any:
    """Every weight, biases and norms too, moved away from its initial value, so that each one matters."""
    generator = torch.Generator().manual_seed(model.num_parameters())
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def text_components(with_t5: bool) -> dict[str, Any]:
    """The text part of an SD3 pipeline, by diffusers' component names."""
    return {
        "text_encoder": clip_model(hidden_size=16, projection_dim=16, hidden_act="quick_gelu"),
        "text_encoder_2": clip_model(hidden_size=24, projection_dim=20, hidden_act="gelu"),
        "text_encoder_3": t5_model(JOINT_ATTENTION_DIM) if with_t5 else None,
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(pad_token="!"),
        "tokenizer_3": t5_tokenizer() if with_t5 else None,
    }


def write_checkpoint(folder: Path, with_t5: bool) -> Path:
    """Write the text part of an SD3 checkpoint in diffusers' folder layout."""
    components = text_components(with_t5)
    index: dict[str, Any] = {"_class_name": "StableDiffusion3Pipeline"}
    for name, component in components.items():
        index[name] = ["transformers", type(component).__name__] if component is not None else [None, None]
        if component is not None:
            component.save_pretrained(folder / name)
    index["transformer"] = ["diffusers", "SD3Transformer2DModel"]
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text(
        json.dumps({"joint_attention_dim": JOINT_ATTENTION_DIM})
    )
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
