"""Which columns of a Hugging Face data set hold the images and the labels, and the classes of the labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dino_exp.data.arrow_files import holds_bytes, holds_paths, is_text
from dino_exp.errors import UserError

USUAL_LABELS = ("label", "labels", "class", "cls", "target")
"""Names of columns that are taken as labels, the first that exists, where none has the type ClassLabel."""


class Columns:
    """The columns of a data set: their Arrow types, and their features where the library has noted them.

    where: the key and the path, for messages.
    features: specifications in JSON by column, as in `dataset_info.json`.
    """

    def __init__(self, where: str, schema: Any, features: dict[str, Any]) -> None:
        self.where, self.schema = where, schema
        self.features = {
            name: spec for name, spec in features.items() if isinstance(spec, dict) and name in schema.names
        }

    def image(self, chosen: str | None) -> str:
        """Return the column of the images: the chosen one, or the only one that can be it."""
        if chosen is not None:
            self._check("image_column", chosen)
            if not self._holds_images(chosen):
                raise UserError(
                    f"data.image_column = {chosen}: {self.where} has {self._described(chosen)} there, not "
                    "one image per row (bytes, a struct with bytes and path, or paths)."
                )
            return chosen
        found = self._of_type("Image") or [
            name
            for name in self.schema.names
            if holds_bytes(self.schema.field(name).type) and self._type(name) in (None, "Value")
        ]
        if len(found) == 1 and self._holds_images(found[0]):
            return found[0]
        what = f"{len(found)} columns that can be the images" if found else "no column of images"
        listed = ", ".join(f"{name} ({self._described(name)})" for name in found or self.schema.names)
        raise UserError(f"{self.where}: {what}; choose with data.image_column from {listed}.")

    def label(self, chosen: str | None) -> str | None:
        """Return the column of the labels, if there is one: the chosen one, a ClassLabel, or by name."""
        if chosen is not None:
            self._check("label_column", chosen)
            return chosen
        found = self._of_type("ClassLabel")
        if len(found) > 1:
            raise UserError(
                f"{self.where}: {len(found)} columns of the type ClassLabel; choose with data.label_column "
                f"from {', '.join(found)}."
            )
        if found:
            return found[0]
        return next((name for name in USUAL_LABELS if name in self.schema.names), None)

    def labels(self, column: str, parts: Sequence[Any]) -> tuple[np.ndarray, list[str]]:
        """Return the label int64 (N,) of each row, negative for none, and the classes.

        The classes are those of the type ClassLabel; without it, the numbers or texts that occur, sorted.

        Args:
            parts: the column of each file.
        Raises UserError if the values cannot be classes.
        """
        self._check_labels(column)
        values = [self._plain(column, part) for part in parts]
        kinds = {value.type for value in values if not pa.types.is_null(value.type)}
        if len(kinds) > 1:
            raise self._no_labels(column, "numbers in some files and text in others")
        kind = kinds.pop() if kinds else pa.int64()
        joined = pa.chunked_array([chunk for value in values for chunk in value.cast(kind).chunks], kind)
        if kind == pa.int64():
            numbers, names = pc.fill_null(joined, -1).to_numpy().copy(), self.names(column)
            return _counted(numbers) if names is None else (numbers, names)
        texts = joined.combine_chunks().dictionary_encode()
        found = texts.dictionary.to_pylist()
        classes = sorted(name for name in found if name.strip())
        position = {name: number for number, name in enumerate(classes)}
        numbers = np.array([*(position.get(name, -1) for name in found), -1])  # the last is that of null
        return numbers[pc.fill_null(texts.indices, -1).to_numpy()], classes

    def _plain(self, column: str, values: Any) -> Any:
        """Return values as int64 or text, null where there is none."""
        kind = values.type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
            values = values.cast(kind)
        if pa.types.is_floating(kind):
            numbers = values.cast(pa.float64()).to_numpy()
            odd = ~np.isnan(numbers) & (numbers != np.rint(np.clip(numbers, -(2.0**53), 2.0**53)))
            if odd.any():
                row = int(np.argmax(odd))
                raise self._no_labels(column, f"the number {numbers[row]} in row {row}, which is no class")
            return pa.chunked_array([np.where(np.isnan(numbers), -1, numbers).astype(np.int64)])
        if pa.types.is_uint64(kind) and (pc.max(values).as_py() or 0) >= 2**63:
            raise self._no_labels(column, f"the number {pc.max(values)}, which is too large for a class")
        if pa.types.is_integer(kind):
            return values.cast(pa.int64())
        return values if pa.types.is_null(kind) else values.cast(pa.large_string())

    def _check(self, option: str, name: str) -> None:
        if self.schema.names.count(name) != 1:
            many = "several columns have that name; " if name in self.schema.names else ""
            raise UserError(
                f"data.{option} = {name}: {many}{self.where} has the columns {', '.join(self.schema.names)}."
            )

    def _check_labels(self, name: str) -> None:
        kind = self.schema.field(name).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        scalar = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null, is_text)
        if not any(check(kind) for check in scalar):
            raise self._no_labels(name, self._described(name))

    def _no_labels(self, column: str, what: str) -> UserError:
        return UserError(
            f"{self.where}: the column {column} has {what}; labels are one number or text per image. Choose "
            "another with data.label_column."
        )

    def names(self, column: str) -> list[str] | None:
        """Return the names of a ClassLabel, each once; None for other types."""
        names = self.features.get(column, {}).get("names")
        if self._type(column) != "ClassLabel" or not isinstance(names, list):
            return None
        names = list(map(str, names))
        count = Counter(names)
        return [f"{name} ({number})" if count[name] > 1 else name for number, name in enumerate(names)]

    def _of_type(self, kind: str) -> list[str]:
        return [name for name in self.schema.names if self._type(name) == kind]

    def _type(self, name: str) -> str | None:
        kind = self.features.get(name, {}).get("_type")
        return kind if isinstance(kind, str) else None

    def _holds_images(self, name: str) -> bool:
        kind = self.schema.field(name).type
        return holds_bytes(kind) or holds_paths(kind)

    def _described(self, name: str) -> str:
        """Return in words what a column holds."""
        kind, spec = self.schema.field(name).type, self._type(name)
        if spec and spec.startswith("Array"):
            return f"decoded pixels ({spec})"
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            return f"a list per row ({str(kind)[:60]})"
        return spec if spec and spec != "Value" else str(kind)[:60]


def features_of(schema: Any) -> dict[str, Any]:
    """Return the features that the library has noted in a schema; {} where another program wrote it."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _counted(numbers: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return consecutive labels instead of numbers, and the numbers' names; negative numbers stay."""
    found, labels = np.unique(numbers, return_inverse=True)
    negative = int(np.searchsorted(found, 0))
    return labels - negative, [str(number) for number in found[negative:]]
