"""`format=onnx`: one file for ONNX Runtime and other runtimes, for any number of images of one size."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from dino_exp.errors import UserError
from dino_exp.export.trained import Trained

TOLERANCE = 1e-4
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
FILE = "model.onnx"


def write(trained: Trained, network: str, folder: Path) -> str:
    """Write `model.onnx`, compare its features in ONNX Runtime, and return how to use it, as Markdown.

    Raises:
        UserError: a library is missing, the network cannot be exported, or the features differ.
    """
    backbone, images = trained.backbone(network), trained.images()
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in LIBRARIES:
            raise
        raise UserError(
            f"format = onnx: {error.name} is missing; install it with pip install 'dino-exp[export]'."
        ) from None
    try:
        export_graph(backbone, images, folder / FILE)
    except torch.onnx.OnnxExporterError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"format = onnx: torch.onnx cannot express {trained.cfg.backbone.name} ({reason}); use "
            "format=torchhub."
        ) from None
    session = onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
    difference = 0.0
    for some in (images, images[:1]):
        (found,) = session.run(None, {"images": some.numpy()})
        with torch.no_grad():
            difference = max(difference, (torch.from_numpy(found) - backbone(some)).abs().max().item())
    if not difference <= TOLERANCE:
        raise UserError(
            f"format = onnx: ONNX Runtime's features differ by {difference:.1e}; use format=torchhub."
        )
    return (
        "```python\n"
        "import onnxruntime\n\n"
        f'session = onnxruntime.InferenceSession("{FILE}")\n'
        f'(features,) = session.run(None, {{"images": images}})  # {trained.shapes()}\n'
        "```\n\n"
        f"On noise, ONNX Runtime's features on a CPU differ from the trained network's by {difference:.1e}."
    )


def export_graph(backbone: nn.Module, images: Tensor, file: Path) -> None:
    """Write the graph with its weights, in float32, for any number of images of this size."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            backbone,
            (images,),
            str(file),
            input_names=["images"],
            output_names=["features"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            dynamo=True,
            external_data=False,
        )
