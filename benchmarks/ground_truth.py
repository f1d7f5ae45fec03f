"""The detector's own error on pictures whose contents are known.

python -m benchmarks.ground_truth --data node_modules [--codec training/results/linear_codec.safetensors]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from benchmarks.scoring import judge_image, share, sprite_detector
from training.objects import OBJECTS
from training.scenes import (
    BACKGROUNDS,
    CANVAS,
    SPRITE_SIZES,
    Scene,
    Sprites,
    load_sprites,
    render,
    sample_scene,
)

Pixels = NDArray[np.uint8]
Degradation = Callable[[Pixels], Pixels]


def blurred(radius: float, noise: float, seed: int = 0) -> Degradation:
    """Gaussian blur of a radius in pixels, then Gaussian noise of a standard deviation in levels of 255."""

    def degrade(image: Pixels) -> Pixels:
        soft = Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))
        grain = np.random.default_rng(seed).normal(0, noise, image.shape)
        return (np.asarray(soft) + grain).round().clip(0, 255).astype(np.uint8)

    return degrade


DEGRADATIONS: dict[str, Degradation] = {
    "clean": lambda image: image,
    "blur 1 px, noise 4": blurred(1, 4),
    "blur 2 px, noise 8": blurred(2, 8),
}


def through_codec(path: Path) -> Degradation:
    """The picture as a linear codec (see training.linear_codec) gives it back."""
    import torch

    from training.linear_codec import LinearCodec

    codec = LinearCodec.load(path)

    def degrade(image: Pixels) -> Pixels:
        return codec.decode(codec.encode(torch.from_numpy(image)[None]))[0].numpy()

    return degrade


def through_vae(model: str) -> Degradation:
    """The picture as the VAE of a checkpoint (name or folder) gives it back."""
    import torch

    from triptych.checkpoints.opening import open_checkpoint
    from triptych_vae_codec.codec import VaeCodec
    from triptych_vae_codec.models.autoencoder_kl import build

    checkpoint = open_checkpoint(model)
    codec = VaeCodec(build(checkpoint.config("vae"), checkpoint.tensors("vae"), "cpu", torch.float32))

    def degrade(image: Pixels) -> Pixels:
        mean, _ = codec.encode(torch.from_numpy(image)[None])
        return codec.decode(mean)[0].numpy()

    return degrade


def detector_error(
    scenes: Sequence[Scene], sprites: Sprites, degradations: Mapping[str, Degradation]
) -> dict[str, float]:
    """Share of rendered scenes that are not judged fully right, by what was done to the picture."""
    detector = sprite_detector(sprites)
    pictures = [render(scene, sprites) for scene in scenes]
    return {
        name: 1
        - share(
            judge_image(degrade(p), s, detector).everything for p, s in zip(pictures, scenes, strict=True)
        )
        for name, degrade in degradations.items()
    }


def wrongly_accepted(scenes: Sequence[Scene], sprites: Sprites) -> float:
    """Share of rendered scenes in which anything is found that is not there."""
    detector = sprite_detector(sprites)
    return share(
        not {found.name for found in detector.detect(render(scene, sprites))}
        <= {o.name for o in scene.objects}
        for scene in scenes
    )


def strangers_accepted(data: Path, sprites: Sprites, count: int, rng: np.random.Generator) -> float:
    """Share of pictures of an emoji that the model does not know, in which a known object is found."""
    known = {thing.hexcode for thing in OBJECTS.values()}
    folder = data / "@lobehub" / "fluent-emoji-3d" / "assets"
    strangers = sorted(
        path for path in folder.glob("1f*.webp") if path.stem not in known and "-" not in path.stem
    )
    chosen = rng.choice(len(strangers), min(count, len(strangers)), replace=False)
    detector = sprite_detector(sprites)
    return share(bool(detector.detect(_stranger(strangers[index], rng))) for index in chosen)


def _stranger(path: Path, rng: np.random.Generator) -> Pixels:
    size = int(rng.choice(list(SPRITE_SIZES.values())))
    canvas = Image.new("RGB", (CANVAS, CANVAS), list(BACKGROUNDS.values())[rng.integers(len(BACKGROUNDS))])
    with Image.open(path, formats=["WEBP"]) as file:
        emoji = file.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
    canvas.paste(emoji, ((CANVAS - size) // 2, (CANVAS - size) // 2), emoji)
    return np.asarray(canvas)


def main() -> None:
    """Prints the detector's error on held-out scenes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the node_modules folder with the sprites")
    parser.add_argument("--codec", type=Path, help="also through this linear codec")
    parser.add_argument("--model", help="also through this model's VAE")
    parser.add_argument("--count", type=int, default=300, help="scenes (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    sprites = load_sprites(arguments.data)
    scenes = [sample_scene(rng, "heldout") for _ in range(arguments.count)]
    degradations = dict(DEGRADATIONS)
    if arguments.codec is not None:
        degradations["linear codec"] = through_codec(arguments.codec)
    if arguments.model is not None:
        degradations[f"VAE of {arguments.model}"] = through_vae(arguments.model)
    for name, error in detector_error(scenes, sprites, degradations).items():
        print(f"{name:38} {100 * error:5.1f} % wrong", flush=True)
    print(f"{'something that is not there':38} {100 * wrongly_accepted(scenes, sprites):5.1f} %")
    strangers = strangers_accepted(arguments.data, sprites, arguments.count, rng)
    print(f"{'an unknown emoji taken for an object':38} {100 * strangers:5.1f} %")


if __name__ == "__main__":
    main()
