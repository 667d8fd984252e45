"""Conversion between our tensor names and checkpoint layout and those of the released code, values unchanged.

Our names are `backbone.*` and `head.*`, with the library's own names inside `backbone`. The released code's
full checkpoint (facebookresearch/dino, `main_dino.py`) is a dictionary with `student`, `teacher`,
`dino_loss`, `epoch`, `args` and more. Its student is wrapped for several GPUs (`module.`), and so is the
teacher if there is batch norm.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]

GAIN = ("last_layer.parametrizations.weight.original0", "last_layer.weight_g")
DIRECTION = ("last_layer.parametrizations.weight.original1", "last_layer.weight_v")
"""Names of gain and direction: in torch's newer weight norm, and in the released code."""


WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Attributes of torch's wrappers, which may be anywhere in a name."""
RENAMED = {
    "pos_embeder.": "pos_embed.",  # XCiT
    "register_tokens": "reg_token",  # DINOv2, as are the others
    ".mlp.w12.": ".mlp.fc1.",
    ".mlp.w3.": ".mlp.fc2.",
}
"""timm's names of what the released networks call otherwise, and that no network of a library calls so."""


def our_names(state: Mapping[str, Tensor], *, chunks: bool = False) -> State:
    """Return tensors under timm's names and ours; prefixes stay.

    With `chunks`, blocks in chunks (`blocks.0.3.norm1`, as DINOv2 trains them) become one list of blocks.
    """
    result: State = {}
    for key, value in state.items():
        key = WRAPPERS.sub("", key)
        for theirs, ours in {**RENAMED, GAIN[0]: GAIN[1], DIRECTION[0]: DIRECTION[1]}.items():
            key = key.replace(theirs, ours)
        if chunks:
            key = re.sub(r"\bblocks\.\d+\.(\d+)\.", r"blocks.\1.", key)
        if "cls_attn_blocks." in key and ".attn.qkv." in key:
            # timm's XCiT computes only the class token's query, and so has separate q, k and v layers
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                result[key.replace(".qkv.", f".{letter}.")] = part
        else:
            result[key] = value
    return result


def released_names(state: Mapping[str, Tensor], *, wrapped: bool) -> State:
    """Invert `our_names` for a network with a head; `wrapped` adds `module.` before every name."""
    result: State = {}
    for key, value in state.items():
        name = key.replace("backbone.pos_embed.", "backbone.pos_embeder.")
        if "cls_attn_blocks." in key and ".attn.q." in key:
            value = torch.cat([state[key.replace(".q.", f".{letter}.")] for letter in "qkv"])
            name = key.replace(".q.", ".qkv.")
        elif "cls_attn_blocks." in key and (".attn.k." in key or ".attn.v." in key):
            continue
        result[f"module.{name}" if wrapped else name] = value
    return result


def released_layout(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    center: Tensor,
    *,
    epoch: int,
    args: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a full checkpoint as `main_dino.py` writes it, without the optimizer's state.

    Args:
        student: all tensors of the student under our names.
        teacher: all tensors of the teacher under our names.
        center: (1, K).
        epoch: the next epoch, counted from 0.
        args: command-line values by the released names.
    """
    has_batch_norm = any(key.endswith(".running_mean") for key in student)
    return {
        "student": released_names(student, wrapped=True),
        "teacher": released_names(teacher, wrapped=has_batch_norm),
        "epoch": epoch,
        "args": Namespace(**args),
        "dino_loss": {"center": center},
    }
