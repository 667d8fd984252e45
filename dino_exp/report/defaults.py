"""How a run's configuration differs from the defaults of its experiment."""

from __future__ import annotations

from omegaconf import OmegaConf

from dino_exp.config.compose import check
from dino_exp.config.identity import differing_keys
from dino_exp.installation import CONF
from dino_exp.report.run_data import RunData
from dino_exp.report.values import config_text


def differences(run: RunData) -> tuple[str, list[tuple[str, str, str]]]:
    """Return a sentence about the comparison, and key, default and own value of each key that differs.

    If nothing could be compared, as with a configuration of another version, the sentence says why.
    """
    if not run.config:
        return "config.yaml is missing or not readable.", []
    name = run.config.get("name")
    known = isinstance(name, str) and (CONF / "experiment" / f"{name}.yaml").is_file()
    base = f"experiment={name}" if known else "the defaults of conf/config.yaml"
    try:
        words = [f"experiment={name}"] if known else []
        checked = check(words)
        if checked.cfg is not None and OmegaConf.is_missing(checked.cfg.data, "root"):
            checked = check([*words, "data.root=null"])  # required, and different for everybody
        if checked.cfg is None:
            return f"{base} can no longer be composed: {' '.join(checked.errors)}", []
        found = differing_keys(checked.cfg, run.config)
    except Exception as error:  # whatever an old configuration contains, the page must be written
        return f"Cannot be compared with {base}: {type(error).__name__}: {error}", []
    rows = [(key, config_text(theirs), config_text(own)) for key, (theirs, own) in found.items()]
    return f"Compared with {base}.", rows
