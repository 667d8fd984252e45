"""Former names of everything that files and command lines can name, so that a rename breaks nothing.

Readers of older files translate former names to present ones, and so does the command line. The identity of
a run uses the first name of each thing instead, so that it depends on what is computed, and not on what that
is called or where its code is. Renaming something that a file or a command line can name takes one line here.

Every entry points to the present name: if a name changes again, add a second line, and point the first line
to the new name too. Of several former names of one thing, the first in the table is the oldest, and
identities use it. Never reuse a former name for something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

TARGETS: dict[str, str] = {
    "dino_exp.backbone.vit.vit": "dino_exp.backbone.vit.VisionTransformer",
    "dino_exp.augment.Augment": "dino_exp.data.augment.Augment",
    "dino_exp.crops.MultiCrop": "dino_exp.data.crops.MultiCrop",
    "dino_exp.ema.momentum_schedule": "dino_exp.dino.ema.momentum_schedule",
    "dino_exp.eval.attention_maps.AttentionMaps": "dino_exp.eval.attention.attention_maps.AttentionMaps",
    "dino_exp.eval.copy_detection.CopyDetection": "dino_exp.eval.ranking.copy_detection.CopyDetection",
    "dino_exp.eval.embed.Embed": "dino_exp.eval.embed.embedding.Embed",
    "dino_exp.eval.finetune.Finetune": "dino_exp.eval.finetune.finetuning.Finetune",
    "dino_exp.eval.linear.Linear": "dino_exp.eval.linear.linear_probe.Linear",
    "dino_exp.eval.low_shot.LowShot": "dino_exp.eval.linear.low_shot.LowShot",
    "dino_exp.eval.retrieval.Retrieval": "dino_exp.eval.ranking.retrieval.Retrieval",
    "dino_exp.eval.video_segmentation.VideoSegmentation": (
        "dino_exp.eval.davis.video_segmentation.VideoSegmentation"
    ),
    "dino_exp.eval.knn.KNN": "dino_exp.eval.periodic.PeriodicEvaluations",
    "dino_exp.head.DINOHead": "dino_exp.dino.head.DINOHead",
    "dino_exp.eval.nearest.NearestNeighbours": "dino_exp.eval.neighbors.NearestNeighbors",
    "dino_exp.loss.DINOLoss": "dino_exp.dino.loss.DINOLoss",
    "dino_exp.optimizer.adamw": "dino_exp.dino.optimizer.adamw",
    "dino_exp.optimizer.lars": "dino_exp.dino.optimizer.lars",
    "dino_exp.optimizer.sgd": "dino_exp.dino.optimizer.sgd",
}
"""Each `_target_`: "dino_exp.loss.DINOLoss": "dino_exp.dino.loss.DINOLoss"."""

KEYS: dict[str, str] = {
    "attention.pictures": "attention.images",
    "augment.grey": "augment.gray",
    "linear.standardise": "linear.standardize",
    "video_segmentation.neighbourhood": "video_segmentation.neighborhood",
    "video_segmentation.neighbours": "video_segmentation.neighbors",
}
"""Dotted keys of `train.py` and `evaluate.py`, and entire groups: "augment.grey": "augment.gray". Those of
launchers and sweepers begin with `hydra.launcher.` and `hydra.sweeper.`."""

OPTIONS: dict[str, str] = {"ablation=no_centring": "no_centering"}
"""Options, by present group: "ablation=no_centring": "no_centering"; of launchers "hydra/launcher=slurm"."""

VALUES: dict[str, str] = {}
"""Words that a key takes, by present key: "loss.centering=centred": "centered". Likewise words in the files
of a run, by the present name of what they are said of: "verdict=ok": "healthy"."""

METRICS: dict[str, str] = {
    "corrupt_pictures": "corrupt_images",
    "held_out_pictures": "held_out_images",
    "jaccard_centre": "jaccard_center",
    "pictures": "images",
    "pictures_compared": "images_compared",
    "whitening_pictures": "whitening_images",
}
"""Names in metrics.jsonl, summary.json, evaluations.json and checkpoints: metrics, figures of evaluations,
and the fields around them; the settings in evaluations.json are KEYS."""

LATER_KEYS: dict[str, Any] = dict.fromkeys(
    (
        *("data_content", "data.bands", "data.range", "data.probe.train", "data.probe.val"),
        *("data.content", "backbone.content", "backbone.width", "init_adapt"),
        *("fork_from", "fork_parent"),
    )
) | {
    "augment.vertical_flip": 0.0,
    "augment.quarter_turns": 0.0,
    "augment.channel_drop": 0.0,
    "augment.per_channel": False,
    "augment.gray_method": "luminance",
    "trainer.cuda_graph": False,
    "trainer.keep_checkpoints": None,
    "trainer.on_healthy": "continue",
    "trainer.reference_batch": None,
    "optimizer.lr_rule": "linear",
}
"""Present keys that came later than the first runs, each with the value that says what was computed before:
"backbone.registers": 0. With this value a key is no part of an identity, and a stored configuration without
the key has this value, whatever the default is."""

PARTS = {"data": "data", "backbone": "backbone", "settings": "{evaluation}"}
"""Fields of a record in evaluations.json that are part of a configuration, and of which group."""
OTHERS = frozenset({"weights", "environment"})
"""Fields of a record or summary whose content is not translated."""

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Names:
    """Tables of former names, with translations in both directions."""

    targets: Mapping[str, str] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    later_keys: Mapping[str, Any] = field(default_factory=dict)

    # ---- from former names to present ones -------------------------------------------------------

    def present_key(self, key: str) -> str:
        """Return the present name of a dotted key; renaming a group renames the keys in it."""
        return _renamed(key, self.keys)

    def present_value(self, key: str, value: Any) -> Any:
        """Return the present name of a present key's value; only text is ever translated."""
        if isinstance(value, list):
            return [self.present_value(key, item) for item in value]
        if not isinstance(value, str):
            return value
        if key.rpartition(".")[2] == "_target_":
            return self.targets.get(value, value)
        return self._words.get(f"{key}={value}", value)

    def present_config(self, config: Config) -> dict[str, Any]:
        """Return a configuration of plain dictionaries in present names.

        Raises:
            ValueError: The configuration has a key under its former and its present name.
        """
        if not (self.keys or self.targets or self._words):
            return dict(config)
        result: dict[str, Any] = {}
        for key, value in leaves(config):
            name = self.present_key(key)
            *path, last = name.split(".")
            node = result
            for part in path:
                node = node.setdefault(part, {})
            if last in node:
                raise ValueError(f"{key}: given twice; it is now called {name}")
            node[last] = self.present_value(name, value)
        return result

    def present_metric(self, name: str) -> str:
        """Return the present name of a metric or of another field in a run's files."""
        return self.metrics.get(name, name)

    def present_record(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a line of metrics.jsonl, a summary, or the state of a judge in present names."""
        if not (self.metrics or self._words):
            return record
        return {
            (name := self.present_metric(key)): value if name in OTHERS else self._present(name, value)
            for key, value in record.items()
        }

    def present_evaluation(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return a record of evaluations.json in present names."""
        fields = {self.present_metric(key): value for key, value in record.items()}
        result = self.present_record({key: value for key, value in fields.items() if key not in PARTS})
        for part, group in PARTS.items():
            group = group.format(evaluation=result.get("evaluation"))
            if isinstance(fields.get(part), dict):
                content = self.present_config({group: fields[part]})
                result[part] = content.get(self.present_key(group), {})
            elif part in fields:
                result[part] = fields[part]
        return {self.present_metric(key): result[self.present_metric(key)] for key in record}

    def present_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the content of a checkpoint in present names; tensors keep their names."""
        state = {self.present_metric(key): value for key, value in state.items()}
        records = {key: self.present_record(state[key]) for key in ("last_metrics", "judge") if key in state}
        return state | records

    def present_word(self, word: str) -> str:
        """Return an override in present names, including each value of a sweep or list."""
        found = re.fullmatch(r"([+~]*)([^=@]+)(@[^=]*)?(?:(=)(.*))?", word, re.DOTALL)
        if not found or not (self.keys or self.targets or self._words):
            return word
        sign, key, package, equals, text = (part or "" for part in found.groups())
        key = self.present_key(key)
        text = re.sub(r"\$\{([\w.]+)\}", lambda each: f"${{{self.present_key(each[1])}}}", text)
        text = re.sub(r"[^\s,()\[\]{}'\"]+", lambda each: self.present_value(key, each[0]), text)
        return f"{sign}{key}{package}{equals}{text}"

    def present_words(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return overrides in present names, and a sentence for each that has changed."""
        present = [self.present_word(word) for word in words]
        pairs = zip(words, present, strict=True)
        return present, [f"{old}: now called {new}." for old, new in pairs if old != new]

    # ---- from present names to first ones --------------------------------------------------------

    def first_key(self, key: str) -> str:
        """Return the first name of a present key."""
        return self._inverted.present_key(key)

    def first_value(self, key: str, value: Any) -> Any:
        """Return the first name of a present key's value."""
        return self._inverted.present_value(key, value)

    def first_metric(self, name: str) -> str:
        """Return the first name of a metric or of another field in a run's files."""
        return self._inverted.present_metric(name)

    def names_of_metric(self, name: str) -> list[str]:
        """Return the present name of a metric, followed by all its former names."""
        return [name, *(former for former, present in self.metrics.items() if present == name)]

    def is_as_before(self, key: str, value: Any) -> bool:
        """Return whether a key is a later one and has the value that reproduces runs from before it."""
        return key in self.later_keys and bool(self.later_keys[key] == value)

    def first_node(self, group: str, node: Config) -> dict[str, Any]:
        """Return a group of a configuration in first names, without later keys that change no result."""
        prefix, result = f"{self.first_key(group)}.", {}
        for name, value in node.items():
            key = f"{group}.{name}"
            if isinstance(value, Mapping) and value:
                value = self.first_node(key, value)
                if not value:
                    continue
            if not self.is_as_before(key, value):
                result[self.first_key(key).removeprefix(prefix)] = self.first_value(key, value)
        return result

    def _present(self, name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return self.present_record(value)
        if isinstance(value, list):
            return [self._present(name, item) for item in value]
        return self.present_value(name, value)

    @cached_property
    def _words(self) -> dict[str, str]:
        return {**self.options, **self.values}

    @cached_property
    def _inverted(self) -> Names:
        """The tables from present names to first ones."""
        words = {}
        for former, present in reversed(self._words.items()):
            key, _, word = former.partition("=")
            words[f"{key}={present}"] = word
        return Names(_first(self.targets), _first(self.keys), values=words, metrics=_first(self.metrics))


TABLE = Names(TARGETS, KEYS, OPTIONS, VALUES, METRICS, LATER_KEYS)


def _first(names: Mapping[str, str]) -> dict[str, str]:
    """Return the first former name of each present one."""
    return {present: former for former, present in reversed(dict(names).items())}


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """Return a dotted key after all renamings of it and of its groups; the longest match comes first."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        name = names.get(".".join(parts[:length]))
        if name is not None:
            return _renamed(".".join([name, *parts[length:]]), names)
    return key


def leaves(node: Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all values by dotted key; an empty group is a value, too."""
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
