"""`format=torchhub`: a folder that `torch.hub.load(folder, name, source="local")` loads.

It does not need this project: the code of the backbone is copied into the folder.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dino_exp.backbone import image_size, library, vit
from dino_exp.backbone.initialization import initialize_linears
from dino_exp.config.network_schema import VitConfig
from dino_exp.errors import UserError
from dino_exp.export.to_timm import relative_difference
from dino_exp.export.trained import Trained

HUBCONF = '''\
"""A backbone pretrained with DINO, for `torch.hub.load`; see README.md for data and settings."""

from pathlib import Path as _Path

import torch
from {code} import {function} as _build

dependencies = {dependencies!r}


def {name}(pretrained=True):
    """{shapes}"""
    backbone = _build(**{fields!r})
    if pretrained:
        weights = torch.load(_Path(__file__).parent / "backbone.pth", map_location="cpu", weights_only=True)
        backbone.load_state_dict(weights)
    return backbone.eval()
'''


def write(trained: Trained, network: str, folder: Path) -> str:
    """Write `hubconf.py`, the backbone's code and weights, compare, and return how to use them, as Markdown.

    Raises:
        UserError: the exported copy has other features.
    """
    backbone, node = trained.backbone(network), trained.cfg.backbone
    name, function = entry_point(node.name), node._target_.rpartition(".")[2]
    module = vit if trained.kind is VitConfig else library
    torch.save(backbone.state_dict(), folder / "backbone.pth")
    source = standalone(module)
    # Python keeps one module per name, and a program may load several folders
    code = f"dino_backbone_{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    (folder / f"{code}.py").write_text(source, encoding="utf-8")
    hubconf = HUBCONF.format(
        code=code,
        function=function,
        dependencies=["torch"] if module is vit else ["torch", "torchvision", "timm"],
        name=name,
        shapes=trained.shapes(),
        fields=fields_of(trained, getattr(module, function)),
    )
    (folder / "hubconf.py").write_text(hubconf, encoding="utf-8")
    copy = torch.hub.load(str(folder), name, source="local")
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    difference = relative_difference(copy, backbone, trained.images())
    if difference != 0:
        raise UserError(
            f"format = torchhub: the copy's features differ by {difference:.1e}; use format=onnx."
        )
    return (
        "```python\n"
        "import torch\n\n"
        f'model = torch.hub.load("path/to/this/folder", "{name}", source="local")\n'
        f"features = model(images)  # {trained.shapes()}\n"
        "```\n\n"
        "The code in the folder is that of the trained backbone; on noise its features were bit-identical."
    )


def entry_point(name: str) -> str:
    """Return a Python function name for a backbone's name."""
    return "dino_" + re.sub(r"\W", "_", name)


def fields_of(trained: Trained, function: Callable[..., Any]) -> dict[str, Any]:
    """Return the arguments that build the teacher's backbone."""
    node: Any = trained.cfg.backbone
    named = inspect.signature(function).parameters
    fields = {str(key): value for key, value in node.items() if key in named}
    if "drop_path_rate" in fields:
        fields["drop_path_rate"] = 0.0
    return fields | {"in_channels": trained.cfg.data.channels, "image_size": trained.image_size}


def standalone(module: types.ModuleType) -> str:
    """Return the source of a module, with the code that it imports from this project included."""
    source = re.sub(r"^from dino_exp\..*\n", "", inspect.getsource(module), flags=re.MULTILINE)
    imported: list[Any] = [UserError, initialize_linears if module is vit else image_size.output_dim]
    included = "\n\n".join(inspect.getsource(thing) for thing in imported)
    imports, function, rest = source.partition("\n\n\ndef ")
    return f"{imports}\nimport torch\nfrom torch import Tensor, nn\n\n\n{included}{function}{rest}"
