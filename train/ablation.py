"""The paper's ablation at any size: an arm's recipe, and what is measured of its model where the truth is known."""

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from shared import metrics, pictures
from shared.clip import KEY_STRIDE, AnnotatedClip
from train import evaluate, objectives
from train.generate import generate
from train.models.parts import Models
from train.recipe import Phase, TrainRecipe
from train.sample import Batch, Predicted
from train.stages import ARMS, STAGES, Arm, Generator
from train.validation import NUM_TIMES, FixedTimes

CLEAN, NOISY = "clean", "noisy"
"""Decoded from the latent of the true clip; and from what the transformer takes it to be behind noise."""


def recipe_of(base: TrainRecipe, name: str, seed: int) -> TrainRecipe:
    """`base` with the arm's model and stages. Every stage is the base's phase of its kind, steps, rate and knobs of the stage too;
    only what makes the arm, such as a frozen backbone, is changed.

    Raises ValueError for an arm that does not exist, and for a stage that the base has no phase of.
    """
    arm = _arm(name)
    phases = tuple(phase for stage in arm.stages for phase in _phases(base, stage, name))
    model = base.model.changed(geometry_latent=arm.geometry_latent, seed=seed)
    return TrainRecipe.model_validate(base.model_dump() | {"model": model, "phases": phases, "seed": seed})


def begins_with(recipe: TrainRecipe, other: TrainRecipe) -> bool:
    """Whether a run of `recipe` is one of `other` that goes on: the same model, and `other`'s phases first."""
    count = len(other.phases)
    return (
        count < len(recipe.phases)
        and recipe.phases[:count] == other.phases
        and recipe.model == other.model
        and has_decoder(recipe) == has_decoder(other)  # a checkpoint holds the modules that some phase trains
    )


def has_decoder(recipe: TrainRecipe) -> bool:
    """Whether some phase trains the decoder; without one, what the model says of geometry means nothing."""
    return any(phase.stage.kind != "generator" for phase in recipe.phases)


@torch.no_grad()
def held_out(models: Models, batch: Batch, index: int, *, decoder: bool) -> dict[str, float]:
    """Measures of one clip (a batch of one) that was not trained on; `index` gives it noise of its own, the same for every arm.

    The diffusion losses and, with a `decoder`, the errors of what it decodes are means over nine times spread evenly.
    """
    labels, batch = batch, batch.to(models.device)
    found = _named(CLEAN, _errors(models, objectives.clean(models, batch), labels)) if decoder else {}
    sums: dict[str, list[float]] = {}
    for time in range(NUM_TIMES):
        noise = FixedTimes(seed=0, positions=(index * NUM_TIMES + time,))
        denoised = objectives.denoise(Generator(caption_dropout=0, image_dropout=0), models, batch, noise)
        at_time = {name: float(value) for name, value in denoised.terms.items()}
        if decoder:
            at_time |= _named(NOISY, _errors(models, objectives.readable(models, denoised.x0), labels))
        for name, value in at_time.items():
            sums.setdefault(name, []).append(value)
    return found | {name: sum(values) / len(values) for name, values in sums.items()}


def nothing(batch: Batch) -> dict[str, float]:
    """The same errors of one depth everywhere, a camera that never moves and a still world: what anything learned has to beat."""
    nine = batch.world_from_cam.new_tensor([0.0, 0, 0, 0, 0, 0, 1, 1, 1]).expand(1, batch.key_depth.shape[1], 9)
    still = Predicted(
        depth=torch.ones_like(batch.key_depth),
        points=torch.zeros_like(batch.points),
        camera=nine,
        dynamic_logit=torch.full_like(batch.key_depth, -1.0),
        scene_flow=torch.zeros_like(batch.scene_flow),
    )
    found = evaluate.prediction(still, batch)
    return _named(CLEAN, found) | _named(NOISY, found)


def continued(models: Models, batch: Batch, *, steps: int, seed: int) -> AnnotatedClip:
    """What the model makes of a clip's first frame and caption (a batch of one)."""
    image = batch.rgb[0, 0].numpy()
    frames, height, width = batch.rgb.shape[1:4]
    return generate(models, image, batch.captions[0], frames=frames, height=height, width=width, steps=steps, seed=seed)


def first_depth_error(made: AnnotatedClip, batch: Batch) -> float:
    """log-RMSE of a generated clip's first depth, by its median scale: the one frame whose truth is known."""
    assert made.depth is not None
    valid = batch.depth_valid[0, 0]
    ours, true = torch.tensor(made.depth.z[0])[valid], batch.depth[0, 0][valid]
    return metrics.depth(ours * (true / ours).median(), true)["log_rmse"]


@torch.no_grad()
def maps(models: Models, batch: Batch) -> UInt8[np.ndarray, "H W 3"]:
    """Of the middle key frame of one clip: RGB, then depth, movers and length of scene flow.

    Rows: the truth, what is decoded of the clean latent, and of what the transformer makes of it behind a middling noise.
    """
    there, noise = batch.to(models.device), FixedTimes(seed=0, positions=(NUM_TIMES // 2 - 1,))
    denoised = objectives.denoise(Generator(caption_dropout=0, image_dropout=0), models, there, noise)
    latents = objectives.clean(models, there), objectives.readable(models, denoised.x0)
    k = batch.key_depth.shape[1] // 2
    rgb = batch.rgb[0, KEY_STRIDE * k].numpy()
    truth = batch.key_depth, batch.dynamic.float(), batch.scene_flow
    rows = [truth, *(_maps_of(models.dpt(latent)) for latent in latents)]
    far, fast = float(batch.key_depth[0, k].max()), max(float(batch.scene_flow[0, k].norm(dim=-1).max()), 1e-3)
    return np.concatenate([np.concatenate((rgb, *_colored(row, k, far, fast)), axis=1) for row in rows])


def _maps_of(predicted: Predicted) -> tuple[Tensor, Tensor, Tensor]:
    gated = evaluate.gated(predicted)
    return gated.depth.cpu(), gated.dynamic_logit.sigmoid().cpu(), gated.scene_flow.cpu()


def _colored(row: tuple[Tensor, Tensor, Tensor], k: int, far: float, fast: float) -> list[np.ndarray]:
    depth, moves, flow = (one[0, k : k + 1] for one in row)
    values = (depth, far), (moves, 1.0), (flow.norm(dim=-1), fast)
    return [pictures.heat(value.float().numpy(), largest)[0] for value, largest in values]


def _errors(models: Models, latent: Tensor, batch: Batch) -> dict[str, float]:
    """`batch` is on the CPU, wherever the model is."""
    predicted = models.dpt(latent)
    there = Predicted(**{name: value.cpu() for name, value in vars(predicted).items()})
    return evaluate.prediction(evaluate.gated(there), batch)


def _named(prefix: str, found: dict[str, float]) -> dict[str, float]:
    return {f"{prefix} {name}": value for name, value in found.items()}


def _arm(name: str) -> Arm:
    if name not in ARMS:
        raise ValueError(f"arm {name!r}: expected one of {', '.join(ARMS)}")
    return ARMS[name]


def _phases(base: TrainRecipe, stage: STAGES, name: str) -> list[Phase]:
    """The base's phases of the stage's kind, with the knobs that the arm sets."""
    found = [phase for phase in base.phases if phase.stage.kind == stage.kind]
    if found:
        own = {knob: getattr(stage, knob) for knob in stage.model_fields_set}
        return [phase.changed(stage=phase.stage.changed(**own)) for phase in found]
    if stage.kind == "self_supervised":  # takes the decoder's place
        decoders = [phase for phase in base.phases if phase.stage.kind == "decoder"]
        if decoders:
            return [phase.changed(stage=stage) for phase in decoders]
    raise ValueError(f"arm {name}: the recipe has no phase of kind {stage.kind} to take its steps from")
