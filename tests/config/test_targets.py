"""Only components that the schema names are imported or called."""

from importlib import import_module

import pytest
import timm
import torchvision

from dino_exp.config.compose import compose
from dino_exp.config.library_names import model_names
from dino_exp.config.targets import KNOWN, build, check_target
from dino_exp.data.crops import MultiCrop
from dino_exp.errors import UserError


def test_a_component_gets_the_fields_as_plain_python_and_the_extras() -> None:
    crops = build(compose(["crops=small"]).crops, local_number=1)
    assert isinstance(crops, MultiCrop)
    assert crops.sizes == [32, 32, 16]
    assert crops.scales.tolist() == [[0.4, 1.0], [0.4, 1.0], [0.1, 0.4]]


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "dino_exp.training.trainer.os.system", "torch.load", "", None]
)
def test_other_targets_are_refused(target: str | None) -> None:
    with pytest.raises(UserError, match="not a component of this project"):
        check_target(target)
    with pytest.raises(UserError, match="not a component of this project"):
        build({"_target_": target})


def test_a_target_inside_a_field_is_not_called() -> None:
    node = {"_target_": "dino_exp.data.crops.MultiCrop", "global_size": {"_target_": "os.getcwd"}}
    crops = build(node, global_scale=[0.4, 1], local_size=1, local_number=0, local_scale=[0.4, 1])
    assert crops.global_size == {"_target_": "os.getcwd"}


@pytest.mark.parametrize("target", sorted(KNOWN))
def test_every_target_exists(target: str) -> None:
    module, _, name = target.rpartition(".")
    assert callable(getattr(import_module(module), name))


def test_model_names_are_those_of_the_libraries() -> None:
    assert model_names("timm") == set(timm.list_models())
    assert model_names("torchvision") == set(torchvision.models.list_models(module=torchvision.models))
