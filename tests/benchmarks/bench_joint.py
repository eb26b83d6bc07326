"""What does the joint stage do to depth, and which part of it? From one trained model, so many joint steps in several ways.

    python tests/benchmarks/rooms.py OUT --recipe small --seeds 24 --kinds lateral,orbit,dolly,handheld,many_moving,follow
    worldreel ablate OUT DIR --recipe small --clips 12 --arms without_joint
    python tests/benchmarks/bench_joint.py OUT DIR/without_joint-0/model --steps 250

Printed for each way: errors on held-out clips, decoded of the clean latent and from behind noise; and of depth of the clean latent
its contrast (spread of log depth over the true one) and the log error near depth edges, within 8 pixels, and away from them.
"""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines import recipes
from train import ablation, evaluate, latents, models, objectives, reader
from train.losses import regularizers
from train.models.parts import Models
from train.noise import Noise, generator
from train.sample import Batch
from train.stages import LABELS, Joint
from train.stream import Stream, read_selection

WAYS = {
    "none": None,
    "reg_0": Joint(reg_weight=0.0),
    "reg_0.05": Joint(reg_weight=0.05),
    "full": Joint(),
    "no_edges": Joint(),  # L_reg looks away from depth edges
    "frozen": Joint(freeze_backbone=True),
    "frozen_reg_0": Joint(freeze_backbone=True, reg_weight=0.0),
}
REACH, STEP = 8, 1.5
"""A pixel is near an edge if depth differs by this ratio within so many pixels."""
SHOWN = {
    "L rgb": "diffusion_rgb",
    "L gm": "diffusion_geometry",
    "clean": "clean depth log-RMSE scaled",
    "noisy": "noisy depth log-RMSE scaled",
    "d1.25": "noisy d1.25 scaled",
    "angle": "noisy camera angle",
    "moving": "noisy scene flow moving",
    "IoU": "noisy mask IoU",
}


def read(out: str, split: Literal["train", "test"], most: int, built: Models) -> list[Batch]:
    """Clips of a split with their latents, each a batch of one."""
    recipe = recipes.train_recipe("small", [])
    stream = Stream(read_selection(out), seed=0, batch=1, sizes=recipe.sizes, splits=(split,))
    places = range(min(most, stream.table.num_rows))
    batches = [reader.read(stream, out, LABELS, recipe.reading, [place]).batch for place in places]
    return [replace(one, encoded=latents.encode_batch(built.vae, one, built.knobs.latent)) for one in batches]


def joined(first: Batch, second: Batch) -> Batch:
    """Both in one batch."""
    found = {}
    for field in fields(Batch):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, Tensor):
            found[field.name] = torch.cat((a, b))
        elif field.name == "encoded":
            found[field.name] = type(a)(
                **{name: torch.cat((value, getattr(b, name))) for name, value in vars(a).items()}
            )
        else:
            found[field.name] = a + b
    return Batch(**found)


def train(built: Models, stage: Joint, data: list[Batch], steps: int, rate: float) -> None:
    """Batches of two, as the recipe `small` has it."""
    modules = stage.trainable(built)
    for module in (built.dit, built.dpt):
        module.requires_grad_(False)
    for module in modules.values():
        module.requires_grad_(True)
    moving = [value for module in modules.values() for value in module.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=rate, betas=(0.9, 0.95), weight_decay=1e-4)
    for step in range(steps):
        first, second = torch.randint(len(data), (2,), generator=generator(0, step, "clip")).tolist()
        noise = Noise(seed=5, positions=(2 * step, 2 * step + 1))
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 20)
        optimizer.zero_grad()
        stage.loss(built, joined(data[first], data[second]), noise)["total"].backward()
        torch.nn.utils.clip_grad_norm_(moving, 1.0)
        optimizer.step()
    built.dpt.requires_grad_(False)
    built.dit.requires_grad_(False)


def flat(batch: Batch) -> Tensor:
    """B K H W, True away from depth edges."""
    z = batch.key_depth.flatten(0, 1)[:, None]
    far, near = (F.max_pool2d(sign * z, 2 * REACH + 1, 1, REACH) * sign for sign in (1, -1))
    return (far / near.clamp_min(1e-6) < STEP)[:, 0].view_as(batch.key_depth)


def looking_away_from_edges(batch: Batch, pairs: Tensor, gap: float) -> Tensor:
    """Takes the place of the regularizer's own mask."""
    uv, _, _ = regularizers.land(batch.key_depth, batch.world_from_cam, batch.intrinsics, pairs)
    source, target = pairs.unbind(-1)
    smooth = flat(batch).float()
    both = (regularizers.of(smooth, source) > 0) & (regularizers.at(smooth, target, uv) > 0.999)
    return VISIBLE(batch, pairs, gap) & both


VISIBLE = regularizers._static_and_visible


def shape(built: Models, test: list[Batch]) -> str:
    rows = []
    for batch in test:
        valid, away = batch.key_valid, flat(batch)[batch.key_valid]
        ours, true = built.dpt(objectives.clean(built, batch)).depth[valid].log(), batch.key_depth[valid].log()
        off = ours - true - (ours - true).median()
        rows.append([ours.std() / true.std(), *(off[part].square().mean().sqrt() for part in (~away, away))])
    contrast, edges, rest = np.nanmean(np.array(rows), axis=0)
    return f"contrast {contrast:.2f}, near edges {edges:.3f}, away {rest:.3f}"


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("out")
    parse.add_argument("model")
    parse.add_argument("--steps", type=int, default=250)
    parse.add_argument("--rate", type=float, default=3e-4)
    parse.add_argument("--clips", type=int, default=12, help="held out, to measure on")
    parse.add_argument("--most", type=int, default=1000, help="clips to train on")
    parse.add_argument("--ways", default=",".join(WAYS))
    asked = parse.parse_args()
    torch.set_num_threads(1)
    begun = models.load(asked.model)
    data, test = read(asked.out, "train", asked.most, begun), read(asked.out, "test", asked.clips, begun)
    for way in asked.ways.split(","):
        built, stage = models.load(asked.model), WAYS[way]
        regularizers._static_and_visible = looking_away_from_edges if way == "no_edges" else VISIBLE
        if stage is not None:
            train(built, stage, data, asked.steps, asked.rate)
        found = evaluate.averaged(
            [ablation.held_out(built, batch, index, decoder=True) for index, batch in enumerate(test)]
        )
        measures = ", ".join(f"{title} {found[name]:.3f}" for title, name in SHOWN.items())
        with torch.no_grad():
            print(f"{way}: {measures}; {shape(built, test)}", flush=True)


if __name__ == "__main__":
    main()
