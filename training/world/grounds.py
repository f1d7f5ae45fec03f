"""What pictures stand on: plain colours, gradients and simple grounds, by the words for them."""

from dataclasses import dataclass

RGB = tuple[int, int, int]

PLAIN: dict[str, RGB] = {
    "white": (255, 255, 255),
    "black": (24, 24, 24),
    "gray": (150, 150, 150),
    "red": (200, 40, 40),
    "orange": (250, 150, 50),
    "yellow": (250, 225, 100),
    "green": (60, 160, 80),
    "turquoise": (60, 190, 180),
    "light blue": (165, 215, 245),
    "blue": (40, 90, 200),
    "purple": (130, 70, 170),
    "pink": (250, 180, 205),
    "brown": (125, 85, 55),
    "beige": (235, 220, 190),
}
GRADIENT_COLOURS = (
    "white",
    "black",
    "red",
    "orange",
    "yellow",
    "green",
    "light blue",
    "blue",
    "purple",
    "pink",
)


@dataclass(frozen=True)
class Look:
    """A ground that is a place: colours at the top, at the horizon (above and below it) and at the bottom.

    `horizon` is its height from the top as a part of the picture's; `tufts`, `waves` and `stars` are the
    strength, 0 to 1, of dark tufts and bright waves below it and of stars and clouds above it.
    """

    top: RGB
    above: RGB
    below: RGB
    bottom: RGB
    horizon: float = 0.45
    tufts: float = 0.0
    waves: float = 0.0
    stars: float = 0.0
    clouds: float = 0.0


PLACES: dict[str, Look] = {
    "grass": Look((150, 210, 245), (205, 235, 250), (130, 195, 85), (70, 145, 55), tufts=0.5),
    "sand": Look((140, 210, 240), (225, 240, 240), (245, 220, 160), (215, 175, 105), tufts=0.15),
    "snow": Look((130, 165, 205), (195, 215, 235), (240, 246, 252), (215, 228, 243), tufts=0.08),
    "sea": Look((160, 220, 250), (225, 245, 250), (60, 155, 205), (15, 75, 140), waves=0.4),
    "night sky": Look((10, 14, 45), (18, 24, 68), (24, 32, 84), (46, 52, 120), stars=1.0),
    "sky": Look((75, 155, 230), (110, 180, 240), (130, 195, 245), (190, 225, 250), clouds=0.5),
    "sunset": Look((85, 50, 120), (225, 95, 95), (240, 120, 85), (255, 195, 110)),
}
GRADIENT = "gradient"
KINDS = (*PLAIN, *PLACES, GRADIENT)


@dataclass(frozen=True)
class Ground:
    """A plain colour or a place by its name, or a gradient from `first` at the top to `second`."""

    kind: str
    first: str | None = None
    second: str | None = None

    @property
    def name(self) -> str:
        """One word for each different ground."""
        return f"{self.first} to {self.second}" if self.kind == GRADIENT else self.kind

    @property
    def look(self) -> Look:
        """Its colours; a plain one and a gradient are places without a horizon."""
        if self.kind in PLACES:
            return PLACES[self.kind]
        top, bottom = (PLAIN[self.first or self.kind], PLAIN[self.second or self.kind])
        r, g, b = ((a + z) // 2 for a, z in zip(top, bottom, strict=True))
        return Look(top, (r, g, b), (r, g, b), bottom, horizon=0.5)


GRADIENTS = tuple(
    Ground(GRADIENT, first, second)
    for first in GRADIENT_COLOURS
    for second in GRADIENT_COLOURS
    if first != second and {first, second} not in ({"light blue", "white"}, {"blue", "light blue"})
)
SOLID = tuple(Ground(name) for name in PLAIN)
SCENERY = tuple(Ground(name) for name in PLACES)
