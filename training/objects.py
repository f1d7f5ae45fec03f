"""The things the default model knows: what a person calls each, and the emoji that shows it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Object:
    """One sprite.

    `hexcode` names its file in @lobehub/fluent-emoji-3d, `label` is its name in emojibase-data (and, with
    dashes, in Microsoft's own MIT set, @iconify-json/fluent-emoji), `synonyms` are other words for it.
    """

    hexcode: str
    label: str
    synonyms: tuple[str, ...]


OBJECTS = {
    "airplane": Object("2708-fe0f", "airplane", ("plane", "aeroplane")),
    "apple": Object("1f34e", "red apple", ("red apple",)),
    "avocado": Object("1f951", "avocado", ()),
    "balloon": Object("1f388", "balloon", ("red balloon",)),
    "banana": Object("1f34c", "banana", ()),
    "basketball": Object("1f3c0", "basketball", ()),
    "bee": Object("1f41d", "honeybee", ("honeybee",)),
    "bell": Object("1f514", "bell", ("golden bell",)),
    "bicycle": Object("1f6b2", "bicycle", ("bike",)),
    "birthday cake": Object("1f382", "birthday cake", ("cake",)),
    "broccoli": Object("1f966", "broccoli", ()),
    "butterfly": Object("1f98b", "butterfly", ()),
    "cactus": Object("1f335", "cactus", ()),
    "carrot": Object("1f955", "carrot", ()),
    "chair": Object("1fa91", "chair", ()),
    "cow": Object("1f404", "cow", ()),
    "crab": Object("1f980", "crab", ()),
    "crown": Object("1f451", "crown", ()),
    "donut": Object("1f369", "doughnut", ("doughnut",)),
    "drum": Object("1f941", "drum", ()),
    "duck": Object("1f986", "duck", ()),
    "elephant": Object("1f418", "elephant", ()),
    "ferris wheel": Object("1f3a1", "ferris wheel", ("big wheel",)),
    "fire truck": Object("1f692", "fire engine", ("fire engine",)),
    "flamingo": Object("1f9a9", "flamingo", ()),
    "fox": Object("1f98a", "fox", ()),
    "frog": Object("1f438", "frog", ()),
    "gift": Object("1f381", "wrapped gift", ("present", "wrapped gift")),
    "giraffe": Object("1f992", "giraffe", ()),
    "grapes": Object("1f347", "grapes", ("bunch of grapes",)),
    "guitar": Object("1f3b8", "guitar", ("electric guitar",)),
    "hamburger": Object("1f354", "hamburger", ("burger",)),
    "helicopter": Object("1f681", "helicopter", ()),
    "house": Object("1f3e0", "house", ("cottage",)),
    "key": Object("1f511", "key", ("golden key",)),
    "koala": Object("1f428", "koala", ("koala bear",)),
    "ladybug": Object("1f41e", "lady beetle", ("ladybird",)),
    "lemon": Object("1f34b", "lemon", ()),
    "light bulb": Object("1f4a1", "light bulb", ("lightbulb", "bulb")),
    "lion": Object("1f981", "lion", ()),
    "lollipop": Object("1f36d", "lollipop", ("candy",)),
    "mushroom": Object("1f344", "mushroom", ("toadstool",)),
    "octopus": Object("1f419", "octopus", ()),
    "owl": Object("1f989", "owl", ()),
    "palm tree": Object("1f334", "palm tree", ()),
    "panda": Object("1f43c", "panda", ("panda bear",)),
    "parrot": Object("1f99c", "parrot", ()),
    "penguin": Object("1f427", "penguin", ()),
    "pig": Object("1f416", "pig", ()),
    "pine tree": Object("1f332", "evergreen tree", ("evergreen tree",)),
    "pineapple": Object("1f34d", "pineapple", ()),
    "pizza": Object("1f355", "pizza", ("slice of pizza",)),
    "police car": Object("1f693", "police car", ("patrol car",)),
    "pretzel": Object("1f968", "pretzel", ()),
    "rainbow": Object("1f308", "rainbow", ()),
    "rocket": Object("1f680", "rocket", ()),
    "rose": Object("1f339", "rose", ("red rose",)),
    "sailboat": Object("26f5", "sailboat", ("sailing boat",)),
    "snail": Object("1f40c", "snail", ()),
    "snake": Object("1f40d", "snake", ("green snake",)),
    "snowman": Object("2603-fe0f", "snowman", ()),
    "soccer ball": Object("26bd", "soccer ball", ("football",)),
    "strawberry": Object("1f353", "strawberry", ()),
    "sunflower": Object("1f33b", "sunflower", ()),
    "teapot": Object("1fad6", "teapot", ()),
    "teddy bear": Object("1f9f8", "teddy bear", ("teddy",)),
    "television": Object("1f4fa", "television", ("tv",)),
    "tent": Object("26fa", "tent", ()),
    "tiger": Object("1f405", "tiger", ()),
    "tomato": Object("1f345", "tomato", ()),
    "top hat": Object("1f3a9", "top hat", ()),
    "tractor": Object("1f69c", "tractor", ("farm tractor",)),
    "tropical fish": Object("1f420", "tropical fish", ("fish",)),
    "trumpet": Object("1f3ba", "trumpet", ()),
    "tulip": Object("1f337", "tulip", ()),
    "turtle": Object("1f422", "turtle", ()),
    "umbrella": Object("2602-fe0f", "umbrella", ()),
    "watermelon": Object("1f349", "watermelon", ("slice of watermelon",)),
    "whale": Object("1f40b", "whale", ()),
    "zebra": Object("1f993", "zebra", ()),
}
