"""The command line of `evaluate.py` as a checked configuration, before anything is created."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf

from dino_exp.config import messages, relations
from dino_exp.config.compose import typed
from dino_exp.config.evaluation_schema import EVALUATIONS
from dino_exp.config.hydra_loader import EVALUATE, CompositionError, Loader, loader, parse_arguments, to_paste
from dino_exp.config.network_schema import VitConfig
from dino_exp.config.nodes import has_key, set_value
from dino_exp.config.overrides import OverrideReader
from dino_exp.config.plugins import take, unnamed
from dino_exp.config.schema import schema_of
from dino_exp.config.stored import read_config
from dino_exp.config.text_keys import takes_one_text, typed_words
from dino_exp.config.validate import keys_of, node_problems
from dino_exp.errors import UserError, in_words
from dino_exp.installation import as_typed
from dino_exp.paths import expanded
from dino_exp.runs.run_directory import RunDirectory
from dino_exp.runs.weights_file import weights_file

GROUPS = ("backbone", "data", "tracker")
FROM_DATA = {"knn", "linear", "low_shot", "finetune"}
"""Evaluations that need the images of `data`; the others have, or can have, their own images."""


@dataclass
class CheckedEvaluation:
    """A command line as it was understood."""

    problems: list[str] = field(default_factory=list)
    """Errors, one line each; empty if it can run."""
    warnings: list[str] = field(default_factory=list)
    """Uses of former names, one line each."""
    cfg: DictConfig | None = None
    """The configuration, as far as it could be composed; `eval` is a list."""
    choices: dict[str, str] = field(default_factory=dict)
    """Selected option, by group."""


def check(argv: Sequence[str]) -> CheckedEvaluation:
    """Compose and validate a command line; nothing is created."""
    checked = CheckedEvaluation()
    try:
        arguments = parse_arguments(argv, "evaluate.py", "eval=knn")
        if arguments.multirun:
            text = "-m: evaluate.py evaluates one network; give eval=[knn,linear] for several."
            raise UserError(as_typed(text))
        options = loader(arguments.config_dir, EVALUATE)
        words, checked.warnings = typed_words(take(arguments.overrides))
        _fill(checked, options, words)
    except UserError as error:
        checked.problems.append(str(error))
    except CompositionError as error:
        checked.problems.append(f"{error.source}.yaml: {error}" if error.source else str(error))
    except OSError as error:
        checked.problems.append(f"{in_words(error)}.")
    return checked


def needs_data(name: str, cfg: Any) -> bool:
    """Return whether an evaluation uses the images of `data`."""
    return name in FROM_DATA or (name in ("attention", "embed") and cfg[name].source is None)


def own_size(name: str, cfg: Any) -> bool:
    """Return whether an evaluation uses the general `image_size`; the others have their own sizes."""
    if name == "attention":
        return cfg.attention.source is None and cfg.attention.image_size is None
    return name not in ("retrieval", "copy_detection", "video_segmentation")


def _fill(checked: CheckedEvaluation, options: Loader, texts: Sequence[str]) -> None:
    reader = OverrideReader(options)
    overrides = reader.read(texts)
    single = [each for each in overrides if not each.is_sweep_override()]
    chosen = [each for each in single if options.is_group(each.key_or_group)]
    composition = options.compose(typed(chosen))
    checked.choices = composition.choices
    cfg = copy.deepcopy(composition.run)
    values = [_as_list(each, cfg, options) for each in overrides if each not in chosen]
    for override in values:
        if override.is_sweep_override():
            key = override.key_or_group
            fix = f"; quote it as one text: {to_paste(key, override.get_value_string())}"
            fix = fix if takes_one_text(key) else "."
            reader.drop(key, f"{override.input_line}: several values; {key} takes one{fix}")
    checked.problems += reader.problems
    checked.problems += _from_run(cfg, values, {override.key_or_group for override in chosen})
    if checked.problems:
        return
    for override in values:
        if not has_key(cfg, override.key_or_group):
            checked.problems.append(_unknown(override.key_or_group, cfg, options, checked.choices))
        else:
            problem = set_value(cfg, override)
            checked.problems += [problem] if problem else []
    checked.cfg = cfg
    if not checked.problems:
        checked.problems += problems(cfg)


def _as_list(override: Override, cfg: DictConfig, options: Loader) -> Override:
    """Return an override with `eval=knn,linear` or `knn.k=20` as the list that the key takes."""
    key, text = override.key_or_group, override.get_value_string()
    takes_list = has_key(cfg, key) and OmegaConf.is_list(OmegaConf.select(cfg, key))
    is_list = not override.is_sweep_override() and isinstance(override.value(), list)
    return options.parse(f"{key}=[{text}]") if takes_list and text and not is_list else override


def _unknown(key: str, cfg: DictConfig, options: Loader, choices: dict[str, str]) -> str:
    names = [name for name in keys_of(cfg) if not name.endswith("_target_")]
    return messages.unknown_key(key, names, options.groups, choices, "evaluate.py")


def _from_run(cfg: DictConfig, values: Sequence[Override], groups: set[str]) -> Iterator[str]:
    """Take network and images from the run, if one is given; yield what is wrong with run and weights."""
    given = {override.key_or_group: override.value() for override in values}
    run, weights = given.get("run"), given.get("weights")
    if (run is None) == (weights is None):
        neither = "give run=outputs/EXPERIMENT/RUN, or weights=FILE backbone=OPTION"
        yield f"run, weights: {'both are set; keep one' if run else neither}."
        return
    if run is None:
        return
    if "backbone" in groups or any(key.startswith("backbone.") for key in given):
        yield f"backbone: a run has its own; drop it, or replace run by weights={run}/checkpoints/last.pt."
    try:
        directory = RunDirectory(expanded(str(run)))
        if not directory.config_file.is_file():
            yield f"run = {run}: not a run, it has no config.yaml; give outputs/EXPERIMENT/RUN."
            return
        own: Any = read_config(directory)
    except UserError as error:
        yield str(error)
        return
    for group in ("backbone", *({"data", "tracker"} - groups)):
        cfg[group] = own[group]
    if "data" in groups:  # other images, prepared as those of the run
        for key in ("channels", "mean", "std", "bands", "range"):
            if key in own.data and key in cfg.data:
                cfg.data[key] = own.data[key]
    cfg.image_size, cfg.crop_ratio = own.crops.global_size, own.eval.crop_ratio


def problems(cfg: DictConfig) -> list[str]:
    """Return what is wrong with a composed configuration, one line each."""
    found = list(_words(cfg))
    nodes = [("", cfg), *((f"{group}.", cfg[group]) for group in ("backbone", "tracker"))]
    nodes += [(f"{name}.", cfg[name]) for name in cfg.eval if name in EVALUATIONS]
    from_data = any(needs_data(name, cfg) for name in cfg.eval)
    nodes += [("data.", cfg.data)] if from_data else []
    for prefix, node in nodes:
        found += [problem for _, problem in node_problems(prefix, node, cfg)]
        empty = [key for key in node if _is_empty(node, str(key))]
        found += [f"{prefix}{key} = []: give at least one value." for key in empty]
    if found:
        return found
    found += unnamed(cfg.plugins) or relations.backbone(cfg)
    if from_data:
        found += relations.data(cfg)
        found = found or list(relations.folder_problems(cfg))
    return found + list(_relations(cfg))


def _is_empty(node: DictConfig, key: str) -> bool:
    """Return whether a list is empty that may not be; `eval` has its own message."""
    value = None if OmegaConf.is_missing(node, key) else node[key]
    return key not in ("eval", "plugins") and isinstance(value, ListConfig) and not len(value)


def _words(cfg: DictConfig) -> Iterator[str]:
    if not cfg.eval:
        yield f"eval = []: give one or more of {', '.join(EVALUATIONS)}."
    for name in cfg.eval:
        if name not in EVALUATIONS:
            near = messages.did_you_mean(messages.closest(str(name), EVALUATIONS)[:1])
            yield f"eval = {name}: no such evaluation{near or '.'} There are: {', '.join(EVALUATIONS)}."
    if len(set(cfg.eval)) < len(cfg.eval):
        yield f"eval = {messages.show(list(cfg.eval))}: the same evaluation twice; keep one."


def _relations(cfg: DictConfig) -> Iterator[str]:
    if cfg.weights is not None:
        try:
            weights_file(cfg.weights)
        except UserError as error:
            yield f"weights = {error}"
    if cfg.checkpoint == "best" and cfg.run is None:
        yield "checkpoint = best: only with run; with weights give the file itself."
    if cfg.precision == "fp16" and cfg.device == "cpu":
        yield "precision = fp16: not on device = cpu; use precision=bf16 or fp32."
    if schema_of(cfg.backbone) is VitConfig:
        patch = cfg.backbone.patch_size
        sizes = {"image_size": cfg.image_size}
        if "copy_detection" in cfg.eval:
            sizes["copy_detection.image_size"] = cfg.copy_detection.image_size
        for key, size in sizes.items():
            if size and size % patch:
                near = relations.nearest(size, patch)
                yield f"{key} = {size}: not a multiple of the patch of {patch} pixels; {near}."
