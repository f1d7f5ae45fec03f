"""What pictures stand on: plain colours and simple places, by the words for them."""

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


@dataclass(frozen=True)
class Look:
    """A ground that is a place: colours at the top, at the horizon (above and below it) and at the bottom.

    `horizon` is its height from the top as a part of the picture's. The others are strengths, 0 to 1: of
    dark tufts and bright waves below it, of stars and clouds everywhere, and of dark trunks above it.
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
    trunks: float = 0.0

    @property
    def texture(self) -> tuple[float, ...]:
        """The strengths, in the order in which `rendering` takes them."""
        return self.tufts, self.waves, self.stars, self.clouds, self.trunks


PLACES: dict[str, Look] = {
    "grass": Look((150, 210, 245), (205, 235, 250), (130, 195, 85), (70, 145, 55), tufts=0.5),
    "beach": Look((170, 220, 245), (80, 170, 205), (245, 220, 160), (225, 185, 115), tufts=0.15),
    "desert": Look((250, 215, 150), (255, 235, 190), (225, 160, 90), (190, 115, 55), tufts=0.15),
    "forest": Look((35, 80, 50), (70, 125, 75), (75, 110, 50), (45, 75, 35), 0.6, tufts=0.5, trunks=0.5),
    "snow": Look((130, 165, 205), (195, 215, 235), (240, 246, 252), (215, 228, 243), tufts=0.08),
    "sea": Look((160, 220, 250), (225, 245, 250), (60, 155, 205), (15, 75, 140), waves=0.4),
    "night sky": Look((10, 14, 45), (18, 24, 68), (24, 32, 84), (46, 52, 120), stars=1.0),
    "sky": Look((75, 155, 230), (110, 180, 240), (130, 195, 245), (190, 225, 250), clouds=0.5),
    "sunset": Look((85, 50, 120), (225, 95, 95), (240, 120, 85), (255, 195, 110)),
    "street": Look((185, 215, 235), (215, 225, 230), (105, 105, 112), (75, 75, 82), 0.55),
    "room": Look((240, 228, 205), (225, 208, 178), (165, 110, 70), (130, 82, 48), 0.65),
}
KINDS = (*PLAIN, *PLACES)


@dataclass(frozen=True)
class Ground:
    """A plain colour or a place, by its name."""

    kind: str

    @property
    def look(self) -> Look:
        """Its colours; a plain one is a place without a horizon."""
        if self.kind in PLACES:
            return PLACES[self.kind]
        colour = PLAIN[self.kind]
        return Look(colour, colour, colour, colour, horizon=0.5)


SOLID = tuple(Ground(name) for name in PLAIN)
SCENERY = tuple(Ground(name) for name in PLACES)
