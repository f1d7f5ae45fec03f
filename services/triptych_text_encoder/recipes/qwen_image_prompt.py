"""What Qwen-Image and Krea 2 lay around a prompt, whatever the tokenizer's own chat template says.

Source: `QwenImagePipeline.__init__` of diffusers.
"""

PREFIX = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, "
    "spatial relationships of the objects and background:<|im_end|>\n<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
#: Tokens of the prefix, whose states the transformers do not see.
PREFIX_TOKENS = 34
