"""Images at a path, whatever they are stored in: a folder, a list, tar shards or a Hugging Face set."""

from __future__ import annotations

from dino_exp.data import folder, huggingface, webdataset
from dino_exp.data.content import ImagesWithContent
from dino_exp.data.decoding import Decoding
from dino_exp.data.file_sets import existing_path
from dino_exp.data.stored_kinds import ROWS, SHARDS, WORDS, kinds_at
from dino_exp.errors import UserError, in_words

LAYOUTS = (
    "class folders, a folder of images, a text file with one path per line, tar shards, or a Hugging Face set"
)


def kind_of(path: str, key: str = "path") -> str:
    """Return image_folder, webdataset or huggingface: the option of `data` that reads what lies there.

    Raises UserError, which names `key`, where there is nothing or more than one kind.
    """
    try:
        found = kinds_at(path)
        if len(found) == 1:
            return next(iter(found))
        if not found:
            existing_path(key, path, LAYOUTS)
            raise UserError(f"{key} = {path}: no images there. Give {LAYOUTS}.")
    except OSError as error:
        raise UserError(f"{key} = {path}: cannot be read: {in_words(error)}.") from error
    both = " and ".join(f"{WORDS[kind]} ({example})" for kind, example in found.items())
    raise UserError(
        f"{key} = {path}: {both}. Move one of them away, or give what has one kind: a folder in it, a text "
        "file that lists the images, or a pattern such as '/data/*.tar'."
    )


def open_images(key: str, path: str, decoding: Decoding, held_out: bool = False) -> ImagesWithContent:
    """Return the images at a path, with their own labels if they have any.

    Args:
        key: the key that names the path, for errors: data.probe.train.
        path: a folder, a list, shards or a Hugging Face set; also a pattern of shards or parquet files.
        held_out: of shards and splits named as training and as held out, take the latter.

    Raises UserError if there are none.
    """
    kind = kind_of(path, key)
    if kind == SHARDS:
        files = webdataset.files_of(key, path, held_out)
        return webdataset.ShardSource(key, path, files, decoding)
    if kind == ROWS:
        return huggingface.HuggingfaceSource(key, huggingface.files_of(key, path, held_out), decoding)
    return folder.find(key, path, decoding).source
