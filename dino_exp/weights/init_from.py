"""`init_from`: a run that starts from given weights, and what it takes from them."""

from __future__ import annotations

from torch import Tensor

from dino_exp.config.schema import Config
from dino_exp.dino.loss import DINOLoss
from dino_exp.dino.model import DINONetwork
from dino_exp.errors import UserError
from dino_exp.installation import as_typed
from dino_exp.runs.weights_file import digest, weights_file
from dino_exp.weights.adapt_input import Adaptation, input_convolutions
from dino_exp.weights.load_into import has_head, load_into
from dino_exp.weights.read_weights import Weights, read_weights


def begin_with_weights(
    cfg: Config, student: DINONetwork, teacher: DINONetwork, dino_loss: DINOLoss
) -> dict[str, str]:
    """Load networks and center from the file `cfg.init_from`; return what was loaded, by part of the run.

    A file with one network is loaded into both. Head and center (the mean of the teacher's outputs) are
    loaded if the file has them; otherwise they stay as the configuration built them. They see features alone,
    so this is so too where the backbone's input is adapted.

    Raises:
        UserError: the file has changed since the configuration was composed, cannot be read, or does not fit.
    """
    assert cfg.init_from is not None
    file = weights_file(cfg.init_from)
    found = digest(cfg.init_from)
    if found != cfg.init_sha256:
        raise UserError(
            f"{file}: not the weights that the run was configured with (SHA-256 {str(found)[:12]}..., not "
            f"{str(cfg.init_sha256)[:12]}...). Restore that file, or repeat the {as_typed('train.py')} "
            "command to start another run with this one."
        )
    adapt = Adaptation(cfg.data.channels, frozenset(cfg.init_adapt or ()))
    adaptable = input_convolutions(teacher.backbone) if adapt.allowed else ()
    weights = read_weights(file, teacher.backbone.state_dict(), adaptable)
    rows = {"from": f"{file}: {weights.kind}"}
    for role, network in (("teacher", teacher), ("student", student)):
        own = weights.student if role == "student" and weights.student else weights.teacher
        head = cfg.init_parts == "all" and has_head(own)
        report = load_into(network, own, file, head=head, adapt=adapt)
        whose = f"its {role}'s" if weights.student else "its"
        rows[role] = f"{whose} {'backbone and head' if head else 'backbone'}: {report.sentence()}"
        if not head:
            rows[role] += "; the head starts from the seed"
        if adapt.allowed and not report.adapted:
            rows[role] += "; its input needs no adapting"
    rows["center"] = _center(cfg, weights, dino_loss)
    rows["new"] = "the optimizer; lr, weight decay, λ and τ_t follow this run's schedules from step 0"
    return rows


def _center(cfg: Config, weights: Weights, dino_loss: DINOLoss) -> str:
    """Load the file's center if it belongs to this run's head; return what was done, in words."""
    as_configured = f"starts as configured (loss.center_init = {cfg.loss.center_init})"
    if cfg.loss.centering != "mean":
        return f"not used (loss.centering = {cfg.loss.centering})"
    if cfg.init_parts == "backbone" or not has_head(weights.teacher):
        return f"{as_configured}, as the head does"
    why_not = _why_not(weights.center, dino_loss.center)
    if weights.center is None or why_not:
        return f"{as_configured}: {why_not}"
    dino_loss.center.copy_(weights.center)
    dino_loss.center_initialized.fill_(True)
    return f"the file's, with norm {dino_loss.center.norm().item():.3g}"


def _why_not(found: Tensor | None, own: Tensor) -> str:
    if found is None:
        return "the file has none"
    if found.shape != own.shape:
        return f"the file's has shape {tuple(found.shape)}, this run's {tuple(own.shape)}"
    return "" if found.any() else "the file's is zero"
