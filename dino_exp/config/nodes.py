"""Keys of a composed configuration by their dotted names: found, set, and similar ones."""

from __future__ import annotations

from dataclasses import Field
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from dino_exp.config import messages
from dino_exp.config.hydra_loader import to_paste
from dino_exp.config.schema import fields_of, schema_of
from dino_exp.config.text_keys import takes_one_text


def set_value(cfg: DictConfig, override: Override) -> str | None:
    """Set an existing key to the typed value; return what is wrong with it."""
    key, value = override.key_or_group, override.value()
    if override.is_add() or override.is_force_add():
        return f"{override.input_line}: the key exists already; write it without '+'."
    try:
        OmegaConf.update(cfg, key, value, merge=True)
    except GrammarParseError:
        return f"{key} = {messages.show(value)}: not an interpolation, such as ${{loss.student_temp}}."
    except (OmegaConfBaseException, ValueError, TypeError, AttributeError):
        problem = messages.wrong_value(key, value, field_of(parent_of(cfg, key), key))
        if takes_one_text(key) and isinstance(value, (list, dict)):
            proposal = to_paste(key, override.get_value_string())
            return f"{problem[:-1]}; quote it to give this very text: {proposal}"
        return problem
    return None


def has_key(cfg: DictConfig, key: str) -> bool:
    """Return whether a dotted key exists, set or not."""
    return parent_of(cfg, key) is not None


def parent_of(cfg: DictConfig, key: str) -> DictConfig | ListConfig | None:
    """Return the node that holds `key`; None if the key does not exist."""
    node: Any = cfg
    *path, last = key.split(".")
    for name in path:
        node = node[name] if name in names_in(node) else None
    return node if last in names_in(node) else None


def field_of(node: DictConfig | ListConfig | None, key: str) -> Field[Any] | None:
    """Return the schema's field for `key`, from the node that holds it; None for an item of a list."""
    return fields_of(schema_of(node)).get(key.rpartition(".")[2])


def names_in(node: Any) -> list[str]:
    """Return the keys or indices of a node, set or not."""
    if isinstance(node, ListConfig):
        return [str(index) for index in range(len(node))]
    return [str(key) for key in node] if isinstance(node, DictConfig) else []


def similar_siblings(cfg: DictConfig, key: str) -> list[str]:
    """Return keys that an unknown key of Hydra's configuration may have meant."""
    path, _, last = key.rpartition(".")
    names = names_in(OmegaConf.select(cfg, path))
    return [] if last in names else [f"{path}.{name}" for name in messages.closest(last, names)[:1]]
