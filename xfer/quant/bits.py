"""How many bits each layer gets: named groups of layers, and the map from layer to width.

A person can read, and a search can try, seven numbers rather than fifty; so widths are given per group and spelled out
per layer. Whoever has a width for every layer (`front` over `sensitivity`) hands that map on instead, the better choice
at equal bytes. Which group a layer belongs to follows from its name alone (as torchvision has them: conv1, layer1 to
layer4, fc), for any number of branches.
Layers under `fusion` and `side` have no group: they are a few kilobytes that steer everything, and stay in float.
"""

from collections.abc import Mapping

from torch import nn

FLOAT = 32  # "leave this layer alone"
WIDTHS = (2, 3, 4, 5, 6, 7, 8)  # packed widths; 2 is ternary: -1, 0, 1
OTHER = "other"  # a layer whose name says nothing; absent from torchvision ResNets and FusionModel

_GROUP_OF = {
    "conv1": "stem",
    "stem": "stem",
    "layer1": "layer1",
    "layer2": "layer2",
    "layer3": "layer3",
    "layer4": "layer4",
    "projections": "project",
    "project": "project",
    "head": "head",
    "heads": "head",
    "classifier": "head",
    "fc": "head",
}


def layers(model: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Every layer that can be quantized, by name, in registration order; the fusion operator and what encodes side
    inputs are left out.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and name.split(".")[0] not in ("fusion", "side")
    }


def groups(model: nn.Module) -> dict[str, list[str]]:
    """Layer names by group: stem, layer1 to layer4, project, head, and `other` where a name fits none of them."""
    found: dict[str, list[str]] = {}
    for name in layers(model):
        found.setdefault(group_of(name), []).append(name)
    order = [*dict.fromkeys(_GROUP_OF.values()), OTHER]
    return {group: found[group] for group in order if group in found}


def layer_bits(model: nn.Module, default: int, groups: Mapping[str, int]) -> dict[str, int]:
    """Width per layer name: `groups[group]` where given, `default` elsewhere.

    ValueError for a group this model lacks and for a width other than 2 to 8 or 32 (float).
    """
    by_name = {name: group_of(name) for name in layers(model)}
    known = dict.fromkeys(by_name.values())
    if unknown := sorted(set(groups) - set(known)):
        raise ValueError(f"unknown layer groups {', '.join(unknown)}; this model has {', '.join(known)}")
    for owner, width in {"default": default, **groups}.items():
        check_width(width, owner)
    return {name: groups.get(group, default) for name, group in by_name.items()}


def check_width(width: int, owner: str) -> None:
    if type(width) is not int or width not in (*WIDTHS, FLOAT):
        accepted = ", ".join(map(str, (*WIDTHS, FLOAT)))
        raise ValueError(f"{owner}: {width!r} bits; accepted are {accepted} ({FLOAT} keeps float)")


def group_of(name: str) -> str:
    """The group of a layer, by its name."""
    parts = name.split(".")
    # The name after `branches` is the user's own: a branch called "head" is still a branch.
    skip = 2 if parts[0] == "branches" else 0
    # From the left, so that layer4.0.conv1 is layer4 and not stem.
    return next((_GROUP_OF[part] for part in parts[skip:] if part in _GROUP_OF), OTHER)
