"""Whether two class names look the same: in another spelling, or one the more exact form of the other.

Data sets write one class in many ways: `back_pack`, `Backpack`, `backpacks`, `grey-wolf`, `gray wolf`,
`n02088364-beagle`, `062.eiffel-tower`. What is left of a name without all that is its plain form. It costs nothing and
knows no meaning: `sofa` and `couch` are as far apart as `sofa` and `dog`.
"""

import re
import unicodedata
from collections.abc import Iterable
from difflib import SequenceMatcher

NEAR = 0.85  # of two plain forms that may be one name mistyped
_SHORTEST = 6  # letters, below which a near form is another word
_IDS = (r"\bn\d{8}\b", r"\.\d+$", r"[ -]0\d*$", r"^\d+[. -]")  # of WordNet, and numbers of classes
_BRITISH = {
    "aeroplane": "airplane", "armour": "armor", "axe": "ax", "catalogue": "catalog", "centre": "center",
    "cheque": "check", "colour": "color", "doughnut": "donut", "fibre": "fiber", "flavour": "flavor", "grey": "gray",
    "harbour": "harbor", "jewellery": "jewelry", "kerb": "curb", "labour": "labor", "litre": "liter", "metre": "meter",
    "mould": "mold", "moustache": "mustache", "neighbour": "neighbor", "plough": "plow", "programme": "program",
    "pyjama": "pajama", "sabre": "saber", "sceptre": "scepter", "theatre": "theater", "tyre": "tire",
    "whisky": "whiskey", "yoghurt": "yogurt",
}  # fmt: skip
_PLURALS = {
    "buses": "bus", "children": "child", "feet": "foot", "geese": "goose", "knives": "knife", "leaves": "leaf",
    "loaves": "loaf", "men": "man", "mice": "mouse", "people": "person", "scarves": "scarf", "shelves": "shelf",
    "teeth": "tooth", "wolves": "wolf", "women": "woman",
}  # fmt: skip


def words(name: str) -> list[str]:
    """The words of a plain form: no ids, no case, American, the last one in the singular; the name itself where
    nothing else would be left.
    """
    text = unicodedata.normalize("NFKC", name).replace("_", " ").strip()
    for pattern in _IDS:
        text = re.sub(pattern, "", text).strip() or text
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    found = [word for word in re.split(r"[\W_]+", text.casefold()) if word]
    if not found:
        return [name]
    return [_BRITISH.get(word, word) for word in (*found[:-1], _singular(found[-1]))]


def _singular(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    return word[:-2] if word.endswith(("ches", "shes", "sses", "xes", "zzes")) else word[:-1]


def plain(names: Iterable[str]) -> dict[str, str]:
    """The plain form of each class of one source, without spaces: `back_pack` is `backpack`. Names that would be one
    are told apart by their numbers, so these stay.
    """
    forms = {name: "".join(words(name)) for name in names}
    found = list(forms.values())
    return {name: "".join(name.casefold().split()) if found.count(form) > 1 else form for name, form in forms.items()}


def likeness(one: str, other: str) -> float:
    """Of two plain forms: 1 if they are equal, else the part of their letters that agree in order (Ratcliff & Metzener,
    Pattern Matching: The Gestalt Approach, 1988); 0 of short ones, where a letter makes another word.
    """
    if one == other:
        return 1.0
    if min(len(one), len(other)) < _SHORTEST:
        return 0.0
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def is_kind_of(name: str, other: str) -> bool:
    """Whether a name is another with more said before it: `mountain_bike` of `bikes`."""
    one, two = words(name), words(other)
    return len(one) > len(two) and one[-len(two) :] == two
