"""Loading of a file's tensors into a network: completely, or with an error that says what does not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dino_exp.backbone.vit import resize_positions
from dino_exp.dino.model import DINONetwork
from dino_exp.errors import UserError
from dino_exp.weights.adapt_input import Adaptation, adapt_input, needed
from dino_exp.weights.describe import describe_backbone, head_options, other_layout
from dino_exp.weights.networks_in_file import COUNTER, foreign_names
from dino_exp.weights.released_layout import State

POSITIONS, CLASS_TOKEN, REGISTERS = "backbone.pos_embed", "backbone.cls_token", "backbone.reg_token"


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
    adapted: Sequence[str] = ()
    """What else was adapted to the network (`init_adapt`), in words."""

    def sentence(self) -> str:
        """Return the report as a run prints it."""
        parts = [f"{len(self.matched)} tensors", *self.adapted]
        if self.resized:
            parts.append(self.resized)
        if self.unexpected:
            names = ", ".join(self.unexpected[:3]) + (", ..." if len(self.unexpected) > 3 else "")
            parts.append(f"{len(self.unexpected)} unused ({names})")
        return "; ".join(parts)


def load_into(
    network: DINONetwork,
    state: Mapping[str, Tensor],
    file: Path,
    *,
    head: bool,
    adapt: Adaptation | None = None,
) -> LoadReport:
    """Load the backbone, and with `head` also the head, into a network in place.

    The position embedding is resized to the network's size by the released rule; everything else must fit,
    or be adapted if `adapt` allows it.

    Args:
        network: the network to change.
        state: tensors under our names; must include the head if `head`.
        file: the file that they come from, for errors.
        head: whether to load the head too.
        adapt: what of the backbone's input may be adapted; None where there is no such choice.

    Raises:
        UserError: nothing matches, something is missing, or a shape differs. The network is unchanged.
    """
    own = network.state_dict()
    state, adapted = adapt_input(state, network.backbone, adapt) if adapt else (state, [])
    given, resized = _with_our_positions(_with_our_class_token(state, own), own.get(POSITIONS))
    matched, missing = [], []
    for part in ("backbone.", "head.") if head else ("backbone.",):
        wanted = {key: value for key, value in own.items() if key.startswith(part)}
        matched += [key for key in wanted if key in given]
        missing += [key for key in wanted if key not in given]
        changes = needed(given, network.backbone, adapt.channels) if adapt and part == "backbone." else {}
        stored = {key: value for key, value in given.items() if key.startswith(part)}
        problem = _misfit(part, stored, wanted, _how_to_adapt(stored, wanted, changes))
        if problem:
            raise UserError(f"{file}: {problem}.")
    unexpected = [key for key in given if key not in matched]
    network.load_state_dict(own | {key: given[key] for key in matched})
    return LoadReport(matched, missing, unexpected, resized, adapted)


def _how_to_adapt(
    stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor], changes: Mapping[str, Mapping[str, str]]
) -> str:
    """Return how changes to the backbone's input are made; empty if they would not be enough."""
    rest = {**stored, **{f"backbone.{name}": wanted[f"backbone.{name}"] for name in changes}}
    if not changes or _misfit("backbone.", rest, wanted):
        return ""
    kinds = sorted({kind for each in changes.values() for kind in each})
    what = " and ".join(dict.fromkeys(words for each in changes.values() for words in each.values()))
    return f"adapt it ({what}) with init_adapt=[{','.join(kinds)}], or choose a network with the file's input"


def has_head(state: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors include a DINO head."""
    return "head.last_layer.weight_v" in state


def _with_our_class_token(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Add the class token's position to the token, as timm's DINOv2 with registers has it."""
    ours, stored = own.get(POSITIONS), state.get(POSITIONS)
    if not (REGISTERS in own and REGISTERS in state and CLASS_TOKEN in state):
        return state
    if ours is None or stored is None or ours.ndim != 3 or stored.ndim != 3:
        return state
    if _extra_tokens(ours) != 0 or _extra_tokens(stored) != 1:
        return state
    class_token = state[CLASS_TOKEN] + stored[:, :1]
    return {**state, CLASS_TOKEN: class_token, POSITIONS: stored[:, 1:]}


def _extra_tokens(positions: Tensor) -> int:
    return positions.shape[1] - math.isqrt(positions.shape[1]) ** 2


def _with_our_positions(state: Mapping[str, Tensor], wanted: Tensor | None) -> tuple[State, str]:
    """Resize the position embedding to the size of `wanted`; return all tensors, and the change in words."""
    result, stored = dict(state), state.get(POSITIONS)
    if stored is None or wanted is None or stored.shape == wanted.shape:
        return result, ""
    if stored.ndim != 3 or wanted.ndim != 3 or stored.shape[2] != wanted.shape[2]:
        return result, ""
    before, after = math.isqrt(stored.shape[1]), math.isqrt(wanted.shape[1])
    tokens = _extra_tokens(stored)  # the class token, and in some models others
    if tokens != _extra_tokens(wanted):
        return result, ""
    stored = stored.to(torch.promote_types(stored.dtype, torch.float32))
    patches = resize_positions(stored[:, tokens:], after, after)
    result[POSITIONS] = torch.cat([stored[:, :tokens], patches], dim=1)
    return result, f"position embedding resized from {before}x{before} to {after}x{after} patches"


def _misfit(part: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], fix: str = "") -> str:
    """Return why tensors do not fit a part of the network and what would fit; empty if they do."""
    differing = [key for key in wanted if key in given and given[key].shape != wanted[key].shape]
    missing = [key for key in wanted if key not in given and not key.endswith(COUNTER)]
    foreign = [key for key in given if key not in wanted]
    if part == "backbone.":
        bare = [{key.removeprefix(part): value for key, value in each.items()} for each in (given, wanted)]
        foreign = [f"{part}{name}" for name in foreign_names(*bare)]
    wrong = [*differing, *missing, *foreign]
    if not wrong:
        return ""
    if fix:
        pass
    elif part == "head.":
        options = head_options(given)
        fix = f"{f'set {options}, or ' if options else ''}load only the backbone with init_parts=backbone"
    else:
        found, options = describe_backbone(given)
        right = f"set {options}" if options else (other_layout(given) or "choose that backbone")
        if not options and not differing and not missing:
            right = "choose a backbone that has it, or save the file without it"
        elif not options and not differing and len(missing) < len(wanted) / 2:
            right = "save it completely, or choose the backbone that it belongs to"
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
