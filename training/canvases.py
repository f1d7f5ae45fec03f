"""The sizes of the training pictures: every level has about the same area in several shapes."""

from training.scenes import Canvas

# (height, width) by the side of the square; sides are multiples of 16 pixels, a token.
CANVASES: dict[int, tuple[Canvas, ...]] = {
    128: ((128, 128), (128, 192), (192, 128), (112, 160), (160, 112), (96, 192), (192, 96)),
    192: ((192, 192), (160, 224), (224, 160), (128, 256), (256, 128)),
    256: ((256, 256), (192, 256), (256, 192), (224, 288), (288, 224), (176, 352), (352, 176)),
}
SQUARE_SHARE = 0.6  # of the pictures of a level


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
