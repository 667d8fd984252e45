"""Images at a path, whatever they are stored in: a folder, a list, tar shards or a Hugging Face set."""

from __future__ import annotations

from dino_exp.data import folder
from dino_exp.data.content import ImagesWithContent
from dino_exp.data.decoding import Decoding


def kind_of(path: str) -> str:
    """Return image_folder, webdataset or huggingface: the option of `data` that reads what lies there."""
    return "image_folder"


def open_images(key: str, path: str, decoding: Decoding) -> ImagesWithContent:
    """Return all images at a path, with their own labels if they have any.

    Args:
        key: the key that names the path, for errors: data.probe.train.
        path: a folder, a list, shards or a Hugging Face set; also a pattern of shards or parquet files.

    Raises UserError if there are none.
    """
    return folder._found(key, folder.existing_path(key, path, folder.LAYOUTS), decoding).source
