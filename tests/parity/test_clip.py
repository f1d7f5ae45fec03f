"""The CLIP text encoder gives what transformers' gives, to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.text_encoder.small_text_encoders import clip_model, clip_model_without_projection, clip_vocabulary
from triptych.checkpoints.opening import open_checkpoint
from triptych_text_encoder.components import load_text_model

END = clip_vocabulary()["<|endoftext|>"]
MODELS = {
    "CLIP-L's activation": lambda: clip_model(hidden_size=16, projection_dim=16, hidden_act="quick_gelu"),
    "CLIP-G's activation": lambda: clip_model(hidden_size=24, projection_dim=20, hidden_act="gelu"),
    "without projection": lambda: clip_model_without_projection(hidden_size=16),
    "the end mark of old configs": lambda: clip_model_without_projection(hidden_size=16, eos_token_id=2),
}


def saved(model: Any, folder: Path) -> Any:
    """The same model as the text encoder loads it."""
    model.save_pretrained(folder / "text_encoder")
    index = f'{{"_class_name": "FluxPipeline", "text_encoder": ["transformers", "{type(model).__name__}"]}}'
    (folder / "model_index.json").write_text(index)
    return load_text_model(open_checkpoint(str(folder)), "text_encoder", model.dtype, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_every_number_is_the_same(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = MODELS[name]().to(dtype)
    ours = saved(theirs, tmp_path)
    assert type(ours) is not type(theirs)
    token_ids = torch.randint(END, (2, 32), generator=torch.Generator().manual_seed(0))
    token_ids[0, 5:] = token_ids[1, -1] = END
    expected, found = theirs(token_ids, output_hidden_states=True), ours(token_ids)
    assert len(found.hidden_states) == len(expected.hidden_states) == 4
    assert all(map(torch.equal, found.hidden_states, expected.hidden_states))
    if found.text_embeds is None:
        assert torch.equal(found.pooler_output, expected.pooler_output)
    else:
        assert torch.equal(found.text_embeds, expected.text_embeds)


def test_the_model_inside_has_the_same_bits(tmp_path: Path) -> None:
    from transformers.models.clip.modeling_clip import CLIPTextModelWithProjection

    checkpoint = open_checkpoint("triptych-small")
    token_ids = torch.arange(32)[None] + 100
    token_ids[0, 9:] = checkpoint.config("text_encoder")["eos_token_id"]
    for component in ("text_encoder", "text_encoder_2"):
        folder = checkpoint.folder(component)
        theirs = CLIPTextModelWithProjection.from_pretrained(folder, dtype=torch.float32)
        ours = load_text_model(checkpoint, component, torch.float32, torch.device("cpu"))
        with torch.inference_mode():
            expected, found = theirs(token_ids, output_hidden_states=True), ours(token_ids)
        assert torch.equal(found.hidden_states[-2], expected.hidden_states[-2])
        assert torch.equal(found.text_embeds, expected.text_embeds)
