"""The networks in a file, found by their tensors' names, whatever the file wraps them in.

Training scripts put a network below keys such as `state_dict` or `model`, and wrappers below attributes such
as `module.`, `_orig_mod.`, `backbone.` or `encoder_q.`. Both are parts of one path here, so that no list of
them is needed: a network is where the names of the one that is to be loaded follow one and the same prefix.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from dino_exp.weights.released_layout import State

TEACHERS = {"teacher", "momentum", "ema", "target", "averaged", "key", "k", "m"}
"""Words in the prefix of a network that follows another one."""
STUDENTS = {"student", "online", "query", "q"}
"""Words in the prefix of a network that another one follows."""
POSITIONS = "pos_embed"
COUNTER = "num_batches_tracked"
"""A counter of batch norm that old files do not have, and that nothing here uses."""
UNUSED = (
    *("fc.", "head.", "heads.", "head_dist.", "classifier.", "aux1.", "aux2.", "AuxLogits."),
    "mask_token",
)
"""Names of what a backbone does not need: classifiers of the libraries' models, and what stands for masked
patches in the training of DINOv2."""
LEAST_SHARE = 0.1
"""Share of a network's names below which a prefix is not its own, but a coincidence."""


def mappings_in(content: Mapping[Any, Any]) -> dict[str, State]:
    """Return the tensors of a mapping and of all mappings in it, by path: its keys with a dot after each."""
    found: dict[str, State] = {}
    waiting: list[tuple[str, Mapping[Any, Any]]] = [("", content)]
    seen: set[int] = set()
    for path, mapping in waiting:
        if id(mapping) in seen:  # a hostile file could nest one mapping in itself, or a thousandfold
            continue
        seen.add(id(mapping))
        found[path] = {str(key): value for key, value in mapping.items() if isinstance(value, Tensor)}
        waiting += [(f"{path}{key}.", value) for key, value in mapping.items() if isinstance(value, Mapping)]
    return found


def matching_prefixes(
    tensors: Mapping[str, Tensor], backbone: Mapping[str, Tensor], adaptable: Collection[str] = ()
) -> list[str]:
    """Return the prefixes after which the backbone's names are found, sorted.

    These are the prefixes of all its tensors in their shapes; else the one with most of them, and none if
    none has a tenth.

    Args:
        tensors: all tensors of a file by their path.
        backbone: the tensors of the backbone that is to be loaded, by its own names.
        adaptable: those that may have another shape.
    """
    needed, adaptable = _needed(backbone), {POSITIONS, *adaptable}
    longest = max(map(len, needed), default=0)
    named: Counter[str] = Counter()
    fitting: Counter[str] = Counter()
    for path, tensor in tensors.items():
        start = max(0, path.rfind(".", 0, max(0, len(path) - longest)) + 1)
        while True:
            shape = needed.get(path[start:])
            if shape is not None:
                named[path[:start]] += 1
                # other than the rest, positions are resized
                fitting[path[:start]] += shape == tensor.shape or path[start:] in adaptable
            start = path.find(".", start) + 1
            if not start:
                break
    complete = sorted(prefix for prefix in fitting if fitting[prefix] == len(needed))
    if complete or not named:
        return complete
    best = max(sorted(named), key=lambda each: (fitting[each], named[each], has_word(each, TEACHERS)))
    return [best] if named[best] >= LEAST_SHARE * len(needed) else []


def is_the_network(found: Mapping[str, Tensor], backbone: Mapping[str, Tensor]) -> bool:
    """Return whether tensors are exactly those of a backbone, but for the number of positions."""
    complete = all(
        name in found and (found[name].shape == shape or name == POSITIONS)
        for name, shape in _needed(backbone).items()
    )
    return complete and not foreign_names(found, backbone)


def _needed(backbone: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in backbone.items() if not name.endswith(COUNTER)}


def foreign_names(found: Mapping[str, Tensor], backbone: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that the backbone would need if it were the network they belong to."""
    return [name for name in found if name not in backbone and not name.startswith(UNUSED)]


def likely_prefix(mappings: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Return the prefix of what is likely a network, for a file in which the wanted one is not."""
    networks = [path for path in mappings if not path.startswith("optimizer")]
    path = max(networks, key=lambda each: (len(mappings[each]), has_word(each, TEACHERS)), default="")
    names = list(mappings.get(path, ()))
    backbones = Counter(found[0] for name in names if (found := re.match(r"(?:.*\.)?\w*backbone\.", name)))
    if backbones:
        return path + max(sorted(backbones), key=lambda each: (backbones[each], has_word(each, TEACHERS)))
    while len(names) > 1 and len({name.partition(".")[:2] for name in names}) == 1 and "." in names[0]:
        path += f"{names[0].partition('.')[0]}."
        names = [name.partition(".")[2] for name in names]
    return path


def has_word(prefix: str, words: set[str]) -> bool:
    """Return whether a prefix contains one of these words."""
    return not words.isdisjoint(re.split(r"\W|_", prefix.lower()))


def network_at(tensors: Mapping[str, Tensor], prefix: str) -> State:
    """Return the tensors after a prefix as `backbone.*`, and those of the head beside it as `head.*`."""
    parts = {"backbone.": prefix}
    if prefix.endswith("backbone."):
        parts["head."] = f"{prefix.removesuffix('backbone.')}head."
    return {
        f"{part}{path.removeprefix(prefix)}": tensor
        for part, prefix in parts.items()
        for path, tensor in tensors.items()
        if path.startswith(prefix)
    }
