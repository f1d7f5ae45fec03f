"""A stand-in for the processors of Qwen's vision-language models, for which torchvision would be needed."""

import json
import re
from pathlib import Path
from typing import Any

from transformers.feature_extraction_utils import BatchFeature

MARK = "<|image_pad|>"


class Processor:
    """What pipelines ask of one: text, and pictures whose marks become as many as they have slots."""

    def __init__(self, name: str, tokenizer: Any, image_processor: Any) -> None:
        """`name` is that of the class for which it stands."""
        self.name, self.tokenizer, self.image_processor = name, tokenizer, image_processor

    def __call__(self, text: list[str], images: Any = None, **options: Any) -> Any:
        if images is None:
            return self.tokenizer(text, **options)
        seen = self.image_processor(images, return_tensors="pt")
        slots = iter((seen.image_grid_thw.prod(dim=1) // self.image_processor.merge_size**2).tolist())
        texts = [re.sub(re.escape(MARK), lambda _: MARK * next(slots), one) for one in text]
        tokens = self.tokenizer(texts, **options)
        is_picture = tokens.input_ids == self.tokenizer.convert_tokens_to_ids(MARK)
        return BatchFeature({**tokens, **seen, "mm_token_type_ids": is_picture.int()})

    def apply_chat_template(self, messages: Any, tokenize: bool, return_dict: bool) -> Any:
        ids = self.tokenizer(self.tokenizer.apply_chat_template(messages, tokenize=False))
        return [ids.input_ids]


def pipeline_of(kind: Any, processor: Processor, **parts: Any) -> Any:
    """A pipeline of diffusers with a processor."""
    pipeline = kind.__new__(kind)
    register = pipeline.register_modules

    def register_without_processor(**modules: Any) -> None:  # it is of no library that diffusers knows
        pipeline.__dict__["processor"] = modules.pop("processor")
        register(**modules)
        pipeline.register_to_config(processor=("transformers", processor.name))

    pipeline.__dict__["register_modules"] = register_without_processor
    pipeline.__init__(processor=processor, **parts)
    return pipeline


def save(pipeline: Any, folder: Path) -> None:
    """As save_pretrained, with a processor's parts in its folder."""
    type(pipeline).save_pretrained(pipeline, folder)
    pipeline.processor.tokenizer.save_pretrained(folder / "processor")
    pipeline.processor.image_processor.save_pretrained(folder / "processor")
    index = json.loads((folder / "model_index.json").read_text())
    index["processor"] = ["transformers", pipeline.processor.name]
    (folder / "model_index.json").write_text(json.dumps(index))
