"""The recipe's pictures and trainings: painting, labels, read-outs, and runs that were cut off."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from training import text_encoders
from training.conditioning import TextConditioning
from training.grounds import Ground
from training.linear_codec import LinearCodec
from training.looks import COMPONENTS, looks_by_answer, principal_components
from training.meaning import EACH
from training.plans import LABELS, plan_of
from training.rendering import paint_grounds, render
from training.run_folder import RunFolder
from training.scenes import Item, Scene, compose, sample_scene
from training.sd3 import CONFIG
from training.sprites import SPRITES
from training.text_batches import TextBatches
from training.transformer import Recipe, Training, sample_sigmas
from training.whitening import FLOOR, whitening


class Squares:
    """A sprite bank of half-transparent squares, each of its own shade."""

    def at(self, side: int) -> torch.Tensor:
        shades = torch.arange(len(SPRITES)).remainder(128)[:, None, None, None]
        return shades.expand(-1, 4, side, side).clone().index_fill_(1, torch.tensor([3]), 128).to(torch.uint8)


def scene_on(ground: Ground) -> Scene:
    """A zebra above a tent."""
    return compose((Item("zebra"), Item("tent")), "above", ground, (128, 128), np.random.default_rng(1))


def test_sprites_are_blended_where_their_boxes_are() -> None:
    rng = np.random.default_rng(0)
    scenes = [scene_on(Ground("blue")), scene_on(Ground("red"))]
    plan = plan_of(scenes, rng)
    painted, bare = render(plan, Squares()), paint_grounds(plan).permute(0, 2, 3, 1)  # type: ignore[arg-type]
    for row, scene in enumerate(scenes):
        outside = torch.ones(128, 128, dtype=torch.bool)
        for item, (box,) in zip(scene.items, scene.boxes, strict=True):
            square = (slice(box.top, box.top + box.side), slice(box.left, box.left + box.side))
            outside[square] = False
            expected = bare[row][square] * (1 - 128 / 255) + SPRITES[item.name, None] % 128
            assert torch.allclose(painted[row][square], expected.round().clamp(0, 255), atol=1)
        assert torch.allclose(painted[row][outside], bare[row][outside].round())


def test_labels_tell_object_part_and_ground_of_every_token() -> None:
    scene = scene_on(Ground("grass"))
    labels = plan_of([scene], np.random.default_rng(0)).labels[0].reshape(len(LABELS), 8, 8)
    box = scene.boxes[0][0]
    top, left = box.top // 16, box.left // 16
    assert labels[0, top, left] == list(dict.fromkeys(name for name, _ in SPRITES)).index("zebra")
    assert labels[1, top, left] == 1
    assert labels[1, top + box.side // 16 - 1, left + box.side // 16 - 1] > 1
    assert (labels[1] > 0).sum() == sum((b.side // 16) ** 2 for (b,) in scene.boxes)


def test_places_have_texture_and_plain_grounds_none() -> None:
    rng = np.random.default_rng(0)
    scenes = [Scene((), "empty", Ground(kind), (96, 192), ()) for kind in ("sea", "night sky", "sky", "pink")]
    painted = paint_grounds(plan_of(scenes, rng))
    assert painted.shape == (4, 3, 96, 192)
    assert [bool(row.std(-1).max() > 1) for row in painted] == [True, True, True, False]
    assert painted.min() >= 0
    assert painted.max() <= 255


def test_looks_tell_sprites_apart_and_are_found_by_what_a_prompt_says() -> None:
    components = principal_components(Squares(), LinearCodec.load())  # type: ignore[arg-type]
    assert components.square().sum(1).mean() == pytest.approx(1, rel=1e-3)
    near, far = ((components[100] - components[other]).norm() for other in (101, 110))
    assert 0 < near < far
    table = looks_by_answer(components)
    name, colour = list(EACH["name"]).index("backpack"), list(EACH["colour"]).index("blue")
    assert torch.equal(table[name, 0], components[SPRITES["backpack", None]])
    assert torch.equal(table[name, colour], components[SPRITES["backpack", "blue"]])
    assert not table[0].any()


@pytest.fixture
def encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tokenizers made from few captions."""
    emoji = tmp_path / "data" / "emojibase-data" / "en" / "data.json"
    emoji.parent.mkdir(parents=True)
    emoji.write_text(json.dumps([{"label": "zebra", "tags": ["stripe"]}]))
    monkeypatch.setattr(text_encoders, "CORPUS", 50)
    text_encoders.write_tokenizers(tmp_path / "data", tmp_path / "model")
    return tmp_path / "model"


def test_text_encoders_learn_and_a_cut_off_run_goes_on(encoders: Path, tmp_path: Path) -> None:
    batch = next(iter(TextBatches(encoders, 4, "train", 0)))
    assert batch.ids.shape[1] <= text_encoders.MAX_TOKENS
    device, looks = (
        torch.device("cpu"),
        looks_by_answer(torch.randn(len(SPRITES), COMPONENTS) / COMPONENTS**0.5),
    )
    first = text_encoders.Training(encoders, RunFolder(tmp_path / "run"), device, 3e-3, looks)
    losses = [first.update(batch, 1.0) for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]
    first.save()
    again = text_encoders.Training(encoders, RunFolder(tmp_path / "run"), device, 3e-3, looks)
    assert again.step == 12
    assert first.measure([batch]) == again.measure([batch])
    first.export(encoders, batch)
    width = json.loads((encoders / "text_encoder_2" / "config.json").read_text())["hidden_size"]
    assert 2 * width == CONFIG.joint_attention_dim
    with torch.autocast("cpu", torch.bfloat16):
        sequence, pooled = (text := TextConditioning(encoders, device)).encode(["a zebra", ""])
    assert sequence.shape == (2, text_encoders.MAX_TOKENS + 1, CONFIG.joint_attention_dim)
    assert torch.isfinite(pooled).all()
    assert sequence[:, :-1].float().square().mean() == pytest.approx(1, rel=0.7)
    basis = whitening(text)
    assert torch.allclose(basis, basis.T, atol=1e-5)
    assert 0 < torch.linalg.eigvalsh(basis).min() <= torch.linalg.eigvalsh(basis).max() <= FLOOR**-0.5 + 1e-3


def test_the_transformer_s_run_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    def batch(rows: int) -> tuple[torch.Tensor, ...]:
        labels = torch.stack([torch.randint(count, (rows, 6)) for count in LABELS.values()], 1)
        return (
            torch.randn(rows, 16, 4, 6),
            labels.to(torch.int16),
            torch.randn(rows, 3, CONFIG.joint_attention_dim),
            torch.randn(rows, CONFIG.pooled_projection_dim),
        )

    torch.manual_seed(0)
    recipe, device = Recipe(1e-3), torch.device("cpu")
    basis = torch.diag(torch.linspace(0.2, 9, CONFIG.joint_attention_dim))
    first = Training(recipe, RunFolder(tmp_path / "run"), device, 0, basis)
    read = first.model.text_embed.weight
    assert torch.allclose(read, (first.ema["text_embed.weight"] @ basis).bfloat16())
    assert torch.isfinite(first.update(*batch(2), factor=1.0)).all()
    first.save(tmp_path / "model")
    again = Training(recipe, RunFolder(tmp_path / "run"), device, 0, torch.eye(len(basis)))
    assert (again.step, again.samples) == (1, 2)
    for name, parameter in again.model.named_parameters():
        assert torch.equal(parameter, dict(first.model.named_parameters())[name]), name
    written = load_file(tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(written["context_embedder.weight"], first.averaged()["text_embed.weight"].bfloat16())


def test_larger_pictures_get_more_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    small, large = (sample_sigmas(4000, tokens, Recipe(1e-3), generator).mean() for tokens in (64, 256))
    assert small + 0.05 < large < 1


def test_held_out_scenes_are_drawn_for_every_shape() -> None:
    rng = np.random.default_rng(0)
    assert sample_scene(rng, (96, 192), "heldout").canvas == (96, 192)
