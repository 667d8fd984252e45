"""`format=transformers`: a folder that Hugging Face's `ViTModel.from_pretrained(folder)` reads.

The names of the tensors are those of the models on the hub, which all versions of transformers read.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from dino_exp.config.network_schema import VitConfig
from dino_exp.errors import UserError
from dino_exp.export.to_timm import TOLERANCE, relative_difference
from dino_exp.export.trained import Trained, not_exportable

NAMES = {
    r"cls_token": "embeddings.cls_token",
    r"pos_embed": "embeddings.position_embeddings",
    r"patch_embed\.proj": "embeddings.patch_embeddings.projection",
    r"norm": "layernorm",
    r"blocks\.(\d+)\.norm1": r"encoder.layer.\1.layernorm_before",
    r"blocks\.(\d+)\.norm2": r"encoder.layer.\1.layernorm_after",
    r"blocks\.(\d+)\.attn\.qkv": r"encoder.layer.\1.attention.attention.",
    r"blocks\.(\d+)\.attn\.proj": r"encoder.layer.\1.attention.output.dense",
    r"blocks\.(\d+)\.mlp\.fc1": r"encoder.layer.\1.intermediate.dense",
    r"blocks\.(\d+)\.mlp\.fc2": r"encoder.layer.\1.output.dense",
}
"""Their name of each of our modules and parameters."""
PARTS = ("query", "key", "value")
"""What they have in place of `qkv`."""
PROCESSED_CHANNELS = (1, 3)
"""Channels that an image processor of transformers takes."""


def write(trained: Trained, network: str, folder: Path) -> str:
    """Write weights, configuration and image processor, compare, and return how to use them, as Markdown.

    The comparison needs transformers; where it is not installed, the text says so.

    Raises:
        UserError: transformers has no such network, or its features differ.
    """
    node: Any = trained.cfg.backbone
    if trained.kind is not VitConfig:
        raise not_exportable(f"backbone.name = {node.name}: ViTModel is this project's ViT alone")
    if node.stem != "patch":
        raise not_exportable(f"backbone.stem = {node.stem}: ViTModel has no transformer with this stem")
    backbone = trained.backbone(network)
    save_file(their_tensors(backbone), folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", model_config(trained))
    imported, prepared, pixels = "ViTModel", "", "images"
    if trained.cfg.data.channels in PROCESSED_CHANNELS:
        write_json(folder / "preprocessor_config.json", processor_config(trained))
        imported, pixels = "AutoImageProcessor, ViTModel", "pixels"
        prepared = (
            'processor = AutoImageProcessor.from_pretrained("path/to/this/folder")\n'
            'pixels = processor(images, return_tensors="pt").pixel_values\n'
        )
    return (
        "```python\n"
        f"from transformers import {imported}\n\n"
        'model = ViTModel.from_pretrained("path/to/this/folder", add_pooling_layer=False)\n'
        f"{prepared}features = model({pixels}).last_hidden_state[:, 0]  # {trained.shapes()}\n"
        "```\n\n"
        f"{compared(trained, backbone, folder)} At other image sizes (`interpolate_pos_encoding=True`) "
        "transformers resizes the position embedding by another rule, and its features differ from those of "
        "the trained network."
    )


def their_tensors(backbone: nn.Module) -> dict[str, Tensor]:
    """Return a ViT's tensors under the names of `ViTModel`."""
    tensors = {}
    for name, value in backbone.state_dict().items():
        module, _, last = name.rpartition(".")
        ours, ending = (module, f".{last}") if last in ("weight", "bias") else (name, "")
        pattern = next(pattern for pattern in NAMES if re.fullmatch(pattern, ours))
        theirs = re.sub(pattern, NAMES[pattern], ours)
        if theirs.endswith("."):  # queries, keys and values are one tensor here
            for part, third in zip(PARTS, value.chunk(3), strict=True):
                tensors[f"{theirs}{part}{ending}"] = third.contiguous()
        else:
            tensors[f"{theirs}{ending}"] = value.contiguous()
    return tensors


def model_config(trained: Trained) -> dict[str, Any]:
    """Return the content of `config.json`: what `ViTConfig` needs to build the network."""
    node: Any = trained.cfg.backbone
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": node.embed_dim,
        "num_hidden_layers": node.depth,
        "num_attention_heads": node.num_heads,
        "intermediate_size": int(node.embed_dim * node.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "image_size": trained.image_size,
        "patch_size": node.patch_size,
        "num_channels": trained.cfg.data.channels,
        "torch_dtype": "float32",
    }


def processor_config(trained: Trained) -> dict[str, Any]:
    """Return the content of `preprocessor_config.json`: bytes resized and cropped as in the evaluations."""
    data, size = trained.cfg.data, trained.image_size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": data.channels == 3,
        "do_resize": True,
        "size": {"shortest_edge": round(size / trained.cfg.eval.crop_ratio)},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(data.mean),
        "image_std": list(data.std),
    }


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a file as transformers writes its own."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class ClassToken(nn.Module):
    """A `ViTModel` as a backbone: images (B, C, S, S) to class tokens (B, D)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Return the class token after the final norm."""
        return self.model(pixel_values=images).last_hidden_state[:, 0]


def compared(trained: Trained, backbone: nn.Module, folder: Path) -> str:
    """Load the folder in transformers, compare features, and return the result as a sentence.

    Raises:
        UserError: the features differ.
    """
    try:
        import transformers
    except ImportError:
        return "transformers was not installed when this was written, so it was not compared with it."
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = transformers.ViTModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True)
    difference = relative_difference(ClassToken(model).eval(), backbone, trained.images())
    if not difference <= TOLERANCE:
        raise UserError(
            f"format = transformers: in transformers {transformers.__version__} features differ by "
            f"{difference:.1e} of the largest; use format=torchhub or format=onnx."
        )
    return f"On noise, features differ from the trained network's by {difference:.1e} of the largest."
