"""The stored configuration of a run is data, whoever wrote it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from omegaconf import OmegaConf

from dino_exp.config.compose import compose
from dino_exp.config.stored import parse, read_config, read_plain
from dino_exp.errors import UserError
from dino_exp.runs.run_directory import RunDirectory


@pytest.mark.parametrize("key", ["name", "data.root", "trainer.epochs", "crops.global_scale", "trainer"])
@pytest.mark.parametrize("value", ["${oc.env:MINE}", "a${name}", r"\${name}", ["${oc.env:MINE}"]])
def test_interpolations_of_another_person_are_not_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object
) -> None:
    monkeypatch.setenv("MINE", "secret")
    config: Any = OmegaConf.to_container(cast(Any, compose(["experiment=debug"])), resolve=True)
    group, _, name = key.rpartition(".")
    (config[group] if group else config)[name] = value
    directory = RunDirectory(tmp_path)
    directory.config_file.write_text(yaml.safe_dump(config))
    for read in (read_config, read_plain):
        with pytest.raises(UserError, match="an interpolation, which no program of ours stores") as told:
            read(directory)
        assert "secret" not in str(told.value)
    with pytest.raises(ValueError, match="an interpolation"):
        parse(directory.config_file.read_bytes())
