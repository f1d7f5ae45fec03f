"""Whole pipelines: diffusers and Triptych make the same pictures from a folder that diffusers saved."""

import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.flux import pipeline_flux_kontext
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit, pipeline_qwenimage_edit_plus
from numpy.typing import NDArray
from PIL import Image

import triptych.families
from tests import qwen_processor, tiny_flux2_dev, tiny_flux3
from tests.parity.loras import peft_lora, written
from tests.tiny_checkpoint import sd3_pipeline
from tests.tiny_flux import flux_fill_pipeline, flux_pipeline
from tests.tiny_flux2 import flux2_pipeline
from tests.tiny_flux2_dev import flux2_dev_pipeline
from tests.tiny_flux3 import flux3_pipeline
from tests.tiny_krea2 import krea2_pipeline
from tests.tiny_qwen_image import qwen_image_edit_pipeline, qwen_image_pipeline
from tests.tiny_qwen_image21 import qwen_image21_pipeline
from tests.tiny_z_image import z_image_pipeline
from triptych.families import flux2, flux_kontext, qwen_image21, qwen_image_edit
from triptych.families.reference_sizes import References, nearest, of_area
from triptych_coordinator.request.pictures import read_reference
from triptych_local.running.fused import fused_client
from triptych_local.running.settings import ModelChoice

reference_library: Any = diffusers  # most of it has no types

PROMPTS = ["a red cat", "a dog and a bone, and a cat that is red"]
SEEDS = [7, 2**40 + 3]
SIZES = pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96)])


async def assert_same_pictures(
    pipeline: Any,
    folder: Path,
    their_options: dict[str, Any],
    our_options: dict[str, Any],
    save: Callable[[Any, Path], None] = lambda pipeline, folder: pipeline.save_pretrained(folder),
    one_by_one: bool = False,
    per_call: Mapping[str, Any] = MappingProxyType({}),
    lora_folder: Path | None = None,
    **both: Any,
) -> None:
    """Every pixel of both pictures is within 1/255; `both` are options with one name and meaning.

    one_by_one: diffusers makes the pictures apart, for in a batch it changes them.
    per_call: options of diffusers that are the same for both then.
    """
    save(pipeline, folder / "checkpoint")
    pipeline.set_progress_bar_config(disable=True)
    batches = [slice(k, k + 1) for k in range(2)] if one_by_one else [slice(0, 2)]
    expected = np.concatenate(
        [
            pipeline(
                prompt=PROMPTS[batch],
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS[batch]],
                output_type="np",
                **{
                    name: each[batch] if isinstance(each, list) else each
                    for name, each in their_options.items()
                },
                **per_call,
                **both,
            ).images
            for batch in batches
        ]
    )
    choice = ModelChoice(model=str(folder / "checkpoint"), lora_folder=lora_folder)
    async with fused_client(choice) as client:
        generation = await client.generate(PROMPTS, seeds=SEEDS, **our_options, **both)
    ours = np.stack([pixels(image.png) for image in generation.images])
    assert expected.std() > 0.02  # a picture of something
    assert np.abs(ours - (expected * 255).round()).max() <= 1
    assert np.abs(ours[0] - ours[1]).max() > 8


def pixels(png: bytes) -> NDArray[np.int64]:
    return np.asarray(Image.open(io.BytesIO(png))).astype(np.int64)


@SIZES
@pytest.mark.parametrize("t5", [False, True], ids=["without T5", "T5"])
async def test_sd3(t5: bool, height: int, width: int, tmp_path: Path) -> None:
    pipeline = sd3_pipeline(t5)
    negative = ["mud", ""]
    await assert_same_pictures(
        pipeline,
        tmp_path,
        {"negative_prompt": negative},
        {"negative_prompt": negative},
        height=height,
        width=width,
        num_inference_steps=5,
        guidance_scale=4.5,
    )


@pytest.mark.parametrize(
    "transformer",
    [
        {"num_layers": 3, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
        {"num_layers": 1, "qk_norm": None},
    ],
    ids=["SD3.5-medium's kind", "SD3's kind"],
)
async def test_sd3_of_other_configs(transformer: dict[str, Any], tmp_path: Path) -> None:
    scheduler = {"use_dynamic_shifting": True, "base_image_seq_len": 16, "max_image_seq_len": 64}
    await assert_same_pictures(
        sd3_pipeline(t5=False, scheduler=scheduler, **transformer),
        tmp_path,
        {},
        {},
        height=96,
        width=64,
        num_inference_steps=4,
        guidance_scale=1.0,
    )


@SIZES
@pytest.mark.parametrize("guidance_scale", [3.5, 1.0])
async def test_flux_dev(guidance_scale: float, height: int, width: int, tmp_path: Path) -> None:
    await assert_same_pictures(
        flux_pipeline(guidance=True, eos_token_id=2),
        tmp_path,
        {},
        {},
        height=height,
        width=width,
        num_inference_steps=5,
        guidance_scale=guidance_scale,
    )


@SIZES
@pytest.mark.parametrize("guidance", [True, False], ids=["dev", "schnell"])
async def test_flux_with_negative_prompts(guidance: bool, height: int, width: int, tmp_path: Path) -> None:
    negative = ["mud", "a long and muddy road with nobody on it"]
    scale = {"guidance_scale": 3.5} if guidance else {}
    await assert_same_pictures(
        flux_pipeline(guidance),
        tmp_path,
        {"negative_prompt": negative} | ({} if guidance else {"max_sequence_length": 256}),
        {"negative_prompt": negative},
        height=height,
        width=width,
        num_inference_steps=5,
        true_cfg_scale=3.0,
        **scale,
    )


@SIZES
async def test_flux_schnell(height: int, width: int, tmp_path: Path) -> None:
    await assert_same_pictures(
        flux_pipeline(guidance=False, num_layers=1, num_single_layers=2),
        tmp_path,
        {"guidance_scale": 0.0, "max_sequence_length": 256, "num_inference_steps": 4},
        {},  # 4 steps are the default
        height=height,
        width=width,
    )


@SIZES
async def test_z_image(height: int, width: int, tmp_path: Path) -> None:
    negative = ["mud", "a long and muddy road with nobody on it"]
    await assert_same_pictures(
        z_image_pipeline({"shift": 6.0}),
        tmp_path,
        {"negative_prompt": list(negative), "guidance_scale": 4.0},  # it writes into the list
        {"negative_prompt": negative, "guidance_scale": 5.0},  # c + 4 (c - u) = u + 5 (c - u)
        height=height,
        width=width,
        num_inference_steps=5,
    )


async def test_z_image_turbo(tmp_path: Path) -> None:
    await assert_same_pictures(
        z_image_pipeline({"shift": 3.0}, n_refiner_layers=2, n_layers=1),
        tmp_path,
        {"guidance_scale": 0.0},
        {"guidance_scale": 1.0},
        height=64,
        width=48,
        num_inference_steps=8,
    )


@SIZES
async def test_flux2_klein_base(height: int, width: int, tmp_path: Path) -> None:
    await assert_same_pictures(
        flux2_pipeline(),
        tmp_path,
        {"guidance_scale": 3.0},  # whose negative prompt is ""
        {"guidance_scale": 3.0},
        height=height,
        width=width,
        num_inference_steps=5,
    )


@SIZES
async def test_flux2_dev(height: int, width: int, tmp_path: Path) -> None:
    await assert_same_pictures(
        flux2_dev_pipeline(),
        tmp_path,
        {},
        {},
        save=tiny_flux2_dev.save,
        height=height,
        width=width,
        num_inference_steps=5,
        guidance_scale=2.5,
    )


async def test_flux2_dev_with_references(tmp_path: Path) -> None:
    pictures = [a_picture(size) for size in [(64, 130), (97, 66)]]
    await assert_same_pictures(
        flux2_dev_pipeline(num_layers=2, num_single_layers=1),
        tmp_path,
        {"image": pictures},  # as large as the first one
        {"references": [png(picture) for picture in pictures]},
        save=tiny_flux2_dev.save,
        num_inference_steps=4,
    )


async def test_flux2_klein_distilled(tmp_path: Path) -> None:
    await assert_same_pictures(
        flux2_pipeline(is_distilled=True, num_layers=2, num_single_layers=1),
        tmp_path,
        {"num_inference_steps": 4},
        {},  # the defaults: 4 steps, and there is no guidance
        height=80,
        width=112,
    )


class OneByOne:
    """A modular pipeline of FLUX.3, which takes one prompt, as diffusers' other pipelines are called."""

    def __init__(self, distilled: bool) -> None:
        self.pipeline = flux3_pipeline(distilled)

    def set_progress_bar_config(self, **options: Any) -> None:
        self.pipeline.set_progress_bar_config(**options)

    def __call__(self, prompt: list[str], generator: list[Any], **options: Any) -> SimpleNamespace:
        if "guidance_scale" in options:
            guider = reference_library.ClassifierFreeGuidance(guidance_scale=options.pop("guidance_scale"))
            self.pipeline.update_components(guider=guider)
        if "negative_prompt" in options:
            options["negative_prompt"] = options["negative_prompt"][0]
        if "image" in options:
            options["image"] = list(options["image"])
        images = self.pipeline(prompt=prompt[0], generator=generator[0], output="images", **options)
        return SimpleNamespace(images=images)


async def assert_same_pictures_of_flux3(
    distilled: bool, folder: Path, theirs: Any, ours: Any, **both: Any
) -> None:
    def save(pipeline: OneByOne, folder: Path) -> None:
        tiny_flux3.save(pipeline.pipeline, folder)

    await assert_same_pictures(OneByOne(distilled), folder, theirs, ours, save, one_by_one=True, **both)


@SIZES
async def test_flux3_klein_base(height: int, width: int, tmp_path: Path) -> None:
    negative = {"negative_prompt": ["mud", ""]}
    scale = {"guidance_scale": 3.0}
    await assert_same_pictures_of_flux3(
        *(False, tmp_path, scale | negative, scale | negative),
        height=height,
        width=width,
        num_inference_steps=5,
    )


async def test_flux3_klein_distilled(tmp_path: Path) -> None:
    # the defaults: 16 steps, and there is no guidance
    await assert_same_pictures_of_flux3(True, tmp_path, {}, {}, height=80, width=112)


@pytest.mark.parametrize(
    ("distilled", "sizes"),
    [(True, [(101, 79)]), (False, [(64, 130), (97, 66)]), (True, [(70, 15)])],
    ids=["one, kept whole", "two, cut", "one, smaller than a token"],
)
async def test_flux3_klein_with_references(
    distilled: bool, sizes: list[tuple[int, int]], tmp_path: Path
) -> None:
    pictures = [a_picture(size) for size in sizes]
    await assert_same_pictures_of_flux3(
        *(distilled, tmp_path, {"image": tuple(pictures)}),  # a list would be cut for each picture
        {"references": [png(picture) for picture in pictures]},  # as large as the first one
        num_inference_steps=4,
    )


@SIZES
async def test_krea2_raw(height: int, width: int, tmp_path: Path) -> None:
    negative = ["mud", ""]
    await assert_same_pictures(
        krea2_pipeline(),
        tmp_path,
        {"negative_prompt": negative, "guidance_scale": 3.0},
        {"negative_prompt": negative, "guidance_scale": 4.0},  # c + 3 (c - u) = u + 4 (c - u)
        height=height,
        width=width,
        num_inference_steps=5,
    )


async def test_krea2_turbo(tmp_path: Path) -> None:
    await assert_same_pictures(
        krea2_pipeline(is_distilled=True, num_key_value_heads=4),
        tmp_path,
        {"num_inference_steps": 8, "guidance_scale": 0.0},
        {},  # the defaults: 8 steps, and no guidance
        height=80,
        width=112,
    )


@pytest.mark.parametrize(
    ("size", "true_cfg_scale"), [((70, 94), 1.0), ((150, 90), 3.0)], ids=["upright", "wide, true guidance"]
)
async def test_flux_kontext(
    size: tuple[int, int], true_cfg_scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(flux_kontext.SIZES) == set(pipeline_flux_kontext.PREFERRED_KONTEXT_RESOLUTIONS)
    small = [(width // 16 // 8 * 16, height // 16 // 8 * 16) for width, height in flux_kontext.SIZES]
    monkeypatch.setattr(pipeline_flux_kontext, "PREFERRED_KONTEXT_RESOLUTIONS", small)
    family = replace(flux_kontext.FAMILY, references=References(1, nearest(small, 16)))
    monkeypatch.setattr(triptych.families, "FAMILIES", (family,))
    pipeline = reference_library.FluxKontextPipeline(**flux_pipeline(guidance=True).components)
    negative = {"negative_prompt": ["mud", "a road"]} if true_cfg_scale > 1 else {}
    picture = a_picture(size)
    await assert_same_pictures(
        pipeline,
        tmp_path,
        {"image": picture, "max_area": 96 * 64} | negative,
        {"references": [png(picture)]} | negative,
        height=64,
        width=96,
        num_inference_steps=4,
        guidance_scale=2.5,
        true_cfg_scale=true_cfg_scale,
    )


@pytest.mark.parametrize("sizes", [[(101, 79)], [(64, 130), (97, 66)]], ids=["one", "two"])
@pytest.mark.parametrize("is_distilled", [False, True], ids=["base", "distilled"])
async def test_flux2_klein_with_references(
    sizes: list[tuple[int, int]], is_distilled: bool, tmp_path: Path
) -> None:
    pictures = [a_picture(size) for size in sizes]
    scale = {} if is_distilled else {"guidance_scale": 3.0}
    await assert_same_pictures(
        flux2_pipeline(is_distilled=is_distilled),
        tmp_path,
        {"image": pictures} | scale,  # as large as the first one
        {"references": [png(picture) for picture in pictures]} | scale,
        num_inference_steps=4,
    )


def test_a_large_reference_of_flux2_has_the_pixels_that_diffusers_gives_it() -> None:
    picture, processor = a_picture((1301, 902)), flux2_pipeline().image_processor
    shrunk = processor._resize_to_target_area(picture, 1024 * 1024)
    width, height = (side // 16 * 16 for side in shrunk.size)
    expected = processor.preprocess(shrunk, height=height, width=width, resize_mode="crop")
    assert flux2.FAMILY.references is not None
    (ours,) = read_reference(png(picture), flux2.FAMILY.references.sized(*picture.size))
    assert np.array_equal(ours.pixels, ((expected[0] + 1) * 127.5).round().permute(1, 2, 0).numpy())


def a_picture(size: tuple[int, int]) -> Image.Image:
    """Smooth colours."""
    noise = np.random.default_rng(sum(size)).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@SIZES
@pytest.mark.parametrize("negative", [["mud", ""], [" ", " "]], ids=["prompts", "none"])
async def test_qwen_image(height: int, width: int, negative: list[str], tmp_path: Path) -> None:
    """Without a negative prompt the one of its card is taken."""
    await assert_same_pictures(
        qwen_image_pipeline(),
        tmp_path,
        {"negative_prompt": negative, "true_cfg_scale": 4.0},
        {"negative_prompt": negative} if any(map(str.strip, negative)) else {},  # the default scale: 4
        height=height,
        width=width,
        num_inference_steps=5,
    )


@pytest.mark.parametrize("of", ["the request", "the denoiser's start"])
async def test_qwen_image_lightning(of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoRA, with the scheduler's config of its authors and their steps: its name says so."""
    name = "Qwen-Image-Lightning-4steps-V1.0"
    (tmp_path / "loras").mkdir()
    pipeline = qwen_image_pipeline()
    lora = peft_lora(pipeline.transformer, only="attn")
    file = written(tmp_path / "loras" / f"{name}.safetensors", lora, "transformer.")
    if of == "the request":
        ours: dict[str, Any] = {"loras": {name: 0.5}}
    else:
        ours = {}
        monkeypatch.setenv("TRIPTYCH_LORA", json.dumps([f"{name}=0.5"]))
    lightning = {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}

    def save(pipeline: Any, folder: Path) -> None:
        pipeline.save_pretrained(folder)
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **lightning)
        pipeline.load_lora_weights(file, adapter_name="lightning")
        pipeline.set_adapters("lightning", 0.5)

    await assert_same_pictures(
        pipeline,
        tmp_path,
        {"true_cfg_scale": 1.0, "num_inference_steps": 4},
        ours,  # the defaults: 4 steps, and no guidance
        save=save,
        lora_folder=tmp_path / "loras",
        height=80,
        width=112,
    )


@pytest.mark.parametrize(("height", "width"), [(64, 64), (96, 160)])
async def test_qwen_image21(height: int, width: int, tmp_path: Path) -> None:
    """In a batch of diffusers' a picture's position is behind the longest of its prompts, not its own."""
    negative = ["mud", ""]
    await assert_same_pictures(
        qwen_image21_pipeline(),
        tmp_path,
        {"negative_prompt": list(negative), "true_cfg_scale": 3.0},
        {"negative_prompt": negative, "guidance_scale": 3.0},
        save=qwen_processor.save,
        one_by_one=True,
        height=height,
        width=width,
        num_inference_steps=5,
    )


@pytest.mark.parametrize("sizes", [[(101, 79)], [(64, 130), (90, 60)]], ids=["one", "two"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
async def test_qwen_image21_with_references(
    sizes: list[tuple[int, int]], guidance_scale: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = of_area(96**2, 32, most_aspect=16)
    references = References(2, rule, shown=rule, size_of="last")
    family = replace(qwen_image21.FAMILY, references=references)
    monkeypatch.setattr(triptych.families, "FAMILIES", (family,))
    pictures = [a_picture(size) for size in sizes]
    pictures[0].putalpha(Image.linear_gradient("L").resize(pictures[0].size))
    negative = {"negative_prompt": ["mud", ""]} if guidance_scale > 1 else {}
    await assert_same_pictures(
        qwen_image21_pipeline(),
        tmp_path,
        {"true_cfg_scale": guidance_scale, **{name: list(each) for name, each in negative.items()}},
        {"guidance_scale": guidance_scale, "references": [png(picture) for picture in pictures], **negative},
        save=qwen_processor.save,
        one_by_one=True,
        per_call={"image": pictures, "output_resolution": 96},
        num_inference_steps=4,
    )


@pytest.mark.parametrize(
    ("plus", "sizes"),
    [(False, [(101, 79)]), (True, [(64, 110)]), (True, [(64, 110), (90, 70)])],
    ids=["Edit", "Edit-Plus, one", "Edit-Plus, two"],
)
async def test_qwen_image_edit(
    plus: bool, sizes: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pipeline_qwenimage_edit_plus if plus else pipeline_qwenimage_edit
    dimensions = module.calculate_dimensions
    monkeypatch.setattr(module, "calculate_dimensions", lambda area, ratio: dimensions(area // 100, ratio))
    family = qwen_image_edit.PLUS if plus else qwen_image_edit.FAMILY
    assert family.references is not None
    rules = {name: of_area(side**2 // 100, 32, 16) for name, side in (("sized", 1024), ("shown", 384))}
    if not plus:
        rules["shown"] = rules["sized"]
    family = replace(family, references=replace(family.references, **rules))
    monkeypatch.setattr(triptych.families, "FAMILIES", (family,))
    pictures, negative = [a_picture(size) for size in sizes], ["mud", " "]
    await assert_same_pictures(
        qwen_image_edit_pipeline(plus, zero_cond_t=plus and len(sizes) > 1),
        tmp_path,
        {"negative_prompt": list(negative), "true_cfg_scale": 3.0},
        {
            "negative_prompt": negative,
            "guidance_scale": 3.0,
            "references": [png(picture) for picture in pictures],
        },
        save=qwen_processor.save,
        one_by_one=True,
        per_call={"image": pictures if plus else pictures[0]},
        num_inference_steps=4,
    )


async def test_qwen_image21_turbo(tmp_path: Path) -> None:
    levels = [1.0, 0.95, 0.8, 0.4]
    await assert_same_pictures(
        qwen_image21_pipeline(levels, shift=1.0),
        tmp_path,
        {},
        {},  # the defaults: as many steps as there are levels, and no guidance
        save=qwen_processor.save,
        one_by_one=True,
        height=64,
        width=96,
    )


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)).resize((80, 64), 3)
MASK = Image.new("L", PICTURE.size, 0)
MASK.paste(255, (21, 10, 62, 64))


@pytest.mark.parametrize("strength", [0.4, 1.0])
@pytest.mark.parametrize(
    ("text_to_image", "image_to_image"),
    [
        (partial(flux_pipeline, guidance=True), "FluxImg2ImgPipeline"),
        (z_image_pipeline, "ZImageImg2ImgPipeline"),
    ],
    ids=["FLUX.1-dev", "Z-Image"],
)
async def test_image_to_image(
    text_to_image: Callable[[], Any], image_to_image: str, strength: float, tmp_path: Path
) -> None:
    pipeline = text_to_image()
    pipeline.save_pretrained(tmp_path / "checkpoint")
    edit = getattr(diffusers, image_to_image)(**pipeline.components)
    await assert_same_edits(edit, tmp_path, strength, {"image": [PICTURE] * 2}, {"image": png(PICTURE)})


@pytest.mark.parametrize("strength", [0.4, 1.0])
async def test_flux_inpainting(strength: float, tmp_path: Path) -> None:
    pipeline = flux_pipeline(guidance=True)
    pipeline.save_pretrained(tmp_path / "checkpoint")
    edit = diffusers.FluxInpaintPipeline(**pipeline.components)
    await assert_same_edits(
        edit,
        tmp_path,
        strength,
        {"image": [PICTURE] * 2, "mask_image": [MASK] * 2},
        {"image": png(PICTURE), "mask": png(MASK), "read_as_diffusers": True},
    )


@pytest.mark.parametrize("strength", [0.6, 1.0])
async def test_flux_fill(strength: float, tmp_path: Path) -> None:
    pipeline = flux_fill_pipeline()
    pipeline.save_pretrained(tmp_path / "checkpoint")
    await assert_same_edits(
        pipeline,
        tmp_path,
        strength,
        {"image": [PICTURE] * 2, "mask_image": [MASK] * 2},
        {"image": png(PICTURE), "mask": png(MASK), "read_as_diffusers": True},
    )


async def assert_same_edits(
    edit: Any, folder: Path, strength: float, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    """Every pixel of both pictures is within 1/255, at as many steps as either counts."""
    edit.set_progress_bar_config(disable=True)
    both: dict[str, Any] = {"strength": strength, "num_inference_steps": 5, "guidance_scale": 3.0}
    expected = edit(
        list(PROMPTS),
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in SEEDS],
        output_type="np",
        height=PICTURE.height,
        width=PICTURE.width,
        **theirs,
        **both,
    ).images
    if "ZImage" in type(edit).__name__:  # where diffusers' scale g is c + g (c - u)
        both["guidance_scale"] += 1
    async with fused_client(ModelChoice(model=str(folder / "checkpoint"))) as client:
        generation = await client.generate(PROMPTS, seeds=SEEDS, **ours, **both)
    made = np.stack([pixels(image.png) for image in generation.images])
    assert np.abs(made - (expected * 255).round()).max() <= 1
    assert np.abs(made[0] - made[1]).max() > 8


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
