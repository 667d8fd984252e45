"""Loading of a file's tensors into a network: completely, or with an error that says what does not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dino_exp.backbone.vit import resize_positions
from dino_exp.dino.model import DINONetwork
from dino_exp.errors import UserError
from dino_exp.weights.describe import describe_backbone, head_options
from dino_exp.weights.released_layout import State

CLASSIFIERS = ("fc.", "head.", "heads.", "head_dist.", "classifier.", "aux1.", "aux2.", "AuxLogits.")
"""Names of classifiers in the libraries' models, which a backbone does not need."""
POSITIONS = "backbone.pos_embed"
COUNTER = "num_batches_tracked"
"""A counter of batch norm that old files do not have, and that nothing here uses."""


@dataclass(frozen=True)
class LoadReport:
    """Names of the tensors that were loaded from a file, and of those that were not."""

    matched: list[str]
    missing: list[str]
    """Tensors of the network that the file does not have: at most counters of batches."""
    unexpected: list[str]
    """Tensors of the file that were not loaded: a classifier, a head that was not asked for, others."""
    resized: str = ""
    """How the position embedding was resized, in words; empty if it was not."""

    def sentence(self) -> str:
        """Return the report as a run prints it."""
        parts = [f"{len(self.matched)} tensors"]
        if self.resized:
            parts.append(self.resized)
        if self.unexpected:
            names = ", ".join(self.unexpected[:3]) + (", ..." if len(self.unexpected) > 3 else "")
            parts.append(f"{len(self.unexpected)} unused ({names})")
        return "; ".join(parts)


def load_into(network: DINONetwork, state: Mapping[str, Tensor], file: Path, *, head: bool) -> LoadReport:
    """Load the backbone, and with `head` also the head, into a network in place.

    The position embedding is resized to the network's size by the released rule; everything else must fit.

    Args:
        network: the network to change.
        state: tensors under our names; must include the head if `head`.
        file: the file that they come from, for errors.
        head: whether to load the head too.

    Raises:
        UserError: nothing matches, something is missing, or a shape differs. The network is unchanged.
    """
    own = network.state_dict()
    given, resized = _with_our_positions(state, own.get(POSITIONS))
    matched, missing = [], []
    for part in ("backbone.", "head.") if head else ("backbone.",):
        wanted = {key: value for key, value in own.items() if key.startswith(part)}
        matched += [key for key in wanted if key in given]
        missing += [key for key in wanted if key not in given]
        problem = _misfit(part, {key: given[key] for key in given if key.startswith(part)}, wanted)
        if problem:
            raise UserError(f"{file}: {problem}.")
    unexpected = [key for key in given if key not in matched]
    network.load_state_dict(own | {key: given[key] for key in matched})
    return LoadReport(matched, missing, unexpected, resized)


def has_head(state: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors include a DINO head."""
    return "head.last_layer.weight_v" in state


def _with_our_positions(state: Mapping[str, Tensor], wanted: Tensor | None) -> tuple[State, str]:
    """Resize the position embedding to the size of `wanted`; return all tensors, and the change in words."""
    result, stored = dict(state), state.get(POSITIONS)
    if stored is None or wanted is None or stored.shape == wanted.shape:
        return result, ""
    if stored.ndim != 3 or wanted.ndim != 3 or stored.shape[2] != wanted.shape[2]:
        return result, ""
    before, after = math.isqrt(stored.shape[1]), math.isqrt(wanted.shape[1])
    tokens = stored.shape[1] - before**2  # the class token, and in some models others
    if tokens != wanted.shape[1] - after**2:
        return result, ""
    stored = stored.to(torch.promote_types(stored.dtype, torch.float32))
    patches = resize_positions(stored[:, tokens:], after, after)
    result[POSITIONS] = torch.cat([stored[:, :tokens], patches], dim=1)
    return result, f"position embedding resized from {before}x{before} to {after}x{after} patches"


def _misfit(part: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Return why tensors do not fit a part of the network and what would fit; empty if they do."""
    differing = [key for key in wanted if key in given and given[key].shape != wanted[key].shape]
    missing = [key for key in wanted if key not in given and not key.endswith(COUNTER)]
    foreign = [key for key in given if key not in wanted and not _is_classifier(key)]
    wrong = [*differing, *missing, *foreign]
    if not wrong:
        return ""
    if part == "head.":
        options = head_options(given)
        fix = f"{f'set {options}, or ' if options else ''}load only the backbone with init_parts=backbone"
    else:
        found, options = describe_backbone(given)
        right = f"set {options}" if options else "choose that backbone"
        fix = f"the file contains {found}: {right}"
    key = wrong[0]
    if not any(key in given for key in wanted):
        names = ", ".join(key.removeprefix(part) for key in list(wanted)[:2])
        what = f"no tensor has a name of the {part[:-1]}'s ({names}, ...)"
    elif differing:
        what = f"{key} has shape {tuple(given[key].shape)}, the network's {tuple(wanted[key].shape)}"
    else:
        what = f"{key} is missing" if missing else f"the network has no {key}"
    more = f", and {len(wrong) - 1} more do not fit" if len(wrong) > 1 and wrong[0] in what else ""
    return f"{what}{more}; {fix}"


def _is_classifier(key: str) -> bool:
    return key.startswith("backbone.") and key.removeprefix("backbone.").startswith(CLASSIFIERS)
