"""Names of colours: the eleven basic terms of Berlin and Kay (1969), by rules on hue and lightness."""

import cv2
import numpy as np
from numpy.typing import NDArray

NAMES = ("black", "grey", "white", "red", "orange", "brown", "yellow", "green", "blue", "purple", "pink")

# Upper ends of the hue ranges in OpenCV's degrees / 2, and the names inside them; red is where the circle closes.
_HUES = ((8, "red"), (21, "orange"), (34, "yellow"), (87, "green"), (128, "blue"), (150, "purple"), (170, "pink"))
# Below this saturation (0 to 255) a colour is a grey; black and white by value.
_GREY_SATURATION, _BLACK_VALUE, _WHITE_VALUE = 42, 58, 205
# Dark orange and dim yellow are what people call brown; a pale red is pink.
_BROWN_VALUE, _PINK_SATURATION, _PINK_VALUE = 150, 120, 170


def names_of(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB [..., h, w, 3] as indices into `NAMES` [..., h, w]."""
    flat = np.ascontiguousarray(picture.reshape(-1, 1, 3))
    hue, saturation, value = (channel[:, 0].astype(int) for channel in cv2.split(cv2.cvtColor(flat, cv2.COLOR_RGB2HSV)))
    table = np.array([NAMES.index(next((name for top, name in _HUES if h < top), "red")) for h in range(181)])
    named = table[hue]
    warm = np.isin(named, [NAMES.index("orange"), NAMES.index("yellow")])
    named[warm & (value < _BROWN_VALUE)] = NAMES.index("brown")
    named[(named == NAMES.index("red")) & (saturation < _PINK_SATURATION) & (value > _PINK_VALUE)] = NAMES.index("pink")
    grey = saturation < _GREY_SATURATION
    named[grey] = NAMES.index("grey")
    named[grey & (value >= _WHITE_VALUE)] = NAMES.index("white")
    named[value < _BLACK_VALUE] = NAMES.index("black")
    return named.reshape(picture.shape[:-1]).astype(np.uint8)


def dominant(named: NDArray[np.uint8], most: int, least_share: float) -> list[str]:
    """The most frequent names, at most `most`, each with at least `least_share` of the pixels; the first always."""
    counts = np.bincount(named.ravel(), minlength=len(NAMES))
    order = np.argsort(-counts, kind="stable")[:most]
    return [NAMES[i] for rank, i in enumerate(order) if rank == 0 or counts[i] >= least_share * named.size]


# Mean value (0 to 255) below which a colour is called dark; a pale one, bright but hardly saturated, is called light.
_DARK_VALUE, _PALE_VALUE, _PALE_SATURATION, _LIGHT_GREY_VALUE = 110, 190, 130, 165


def shaded(name: str, pixels: NDArray[np.uint8]) -> str:
    """A colour's name with `dark` or `light` before it where its RGB pixels [count, 3] are."""
    if name in ("black", "white", "pink"):
        return name
    value = float(pixels.max(axis=-1).mean())
    saturation = 255 * (1 - float(pixels.min(axis=-1).mean()) / max(value, 1.0))
    if value < _DARK_VALUE:
        return f"dark {name}"
    light = value > (_LIGHT_GREY_VALUE if name == "grey" else _PALE_VALUE)
    return f"light {name}" if light and saturation < _PALE_SATURATION else name
