"""The sizes of the training pictures: every level has about the same area in five shapes."""

from training.world.scenes import Canvas

# (height, width) by the side of the square; sides are multiples of 16 pixels, a token.
CANVASES: dict[int, tuple[Canvas, ...]] = {
    128: ((128, 128), (128, 160), (160, 128), (96, 192), (192, 96)),
    192: ((192, 192), (160, 224), (224, 160), (144, 288), (288, 144)),
    256: ((256, 256), (224, 288), (288, 224), (192, 352), (352, 192)),
    384: ((384, 384), (320, 432), (432, 320), (272, 528), (528, 272)),
}
SQUARE_SHARE = 0.5  # of the pictures of a level


def tokens(canvas: Canvas) -> int:
    """How many 16 x 16 tokens a canvas has."""
    return (canvas[0] // 16) * (canvas[1] // 16)


def parse_levels(text: str) -> dict[int, float]:
    """ "128:0.8,256:0.2" to shares of the training's steps that sum to 1."""
    shares = {int(level): float(share) for level, share in (part.split(":") for part in text.split(","))}
    unknown = [level for level in shares if level not in CANVASES]
    if unknown or min(shares.values()) < 0 or sum(shares.values()) <= 0:
        raise ValueError(
            f"levels are {[*CANVASES]} with positive shares, as in 128:0.8,256:0.2, not {text!r}"
        )
    return {level: share / sum(shares.values()) for level, share in shares.items()}
