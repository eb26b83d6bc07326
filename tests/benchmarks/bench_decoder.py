"""Does the decoder learn geometry? Trains it from scratch on closed-form scenes, and measures it on scenes it never saw.

    python tests/benchmarks/bench_decoder.py --minutes 6 --pictures decoder.png

Every scene is a ray-cast room with exact truth; held-out scenes have other seeds, so other furniture, paths and lenses' views.
Printed beside the decoder: the mean of the training labels (the rooms resemble each other, so this is the baseline to beat), and a
constant depth, a camera that never moves, a still world.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import scene

from train import evaluate, latents, models, pose, sample
from train.losses import CamerasTerm, Decoding
from train.models.parts import Models
from train.noise import Noise, generator
from train.sample import Batch, Predicted
from train.stages import Decoder

KINDS = ("lateral", "orbit", "dolly", "handheld", "many_moving", "follow")
FRAMES, HEIGHT, WIDTH, FOCAL = 9, 64, 96, 90.0
HELD_OUT = 10_000
"""Seeds from here on are never trained on."""


def clips(kinds: Sequence[str], first_seed: int, num_scenes: int) -> list[Batch]:
    """`num_scenes` of each kind, each a batch of one."""
    return [
        sample.collate(
            [
                sample.from_clip(
                    scene.clip(kind, frames=FRAMES, height=HEIGHT, width=WIDTH, focal=FOCAL, seed=seed),
                    FRAMES,
                    HEIGHT,
                    WIDTH,
                )
            ]
        )
        for kind in kinds
        for seed in range(first_seed, first_seed + num_scenes)
    ]


def train(built: Models, data: list[Batch], minutes: float, rate: float, cameras: float) -> None:
    """AdamW over random single scenes for so many minutes of processor time; the rate falls to zero."""
    stage, module = Decoder(decoding=Decoding(cameras=CamerasTerm(weight=cameras))), built.dpt
    module.requires_grad_(True)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=1e-4)
    begun, spent, step, running = time.process_time(), 0.0, 0, []
    while spent < 1:
        batch = data[int(torch.randint(len(data), (), generator=generator(0, step, "clip")))]
        losses = stage.loss(built, batch, Noise(seed=0, positions=(step,)))
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 50) * (1 - spent)
        optimizer.zero_grad()
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        running.append(losses["total"].item())
        step, spent = step + 1, (time.process_time() - begun) / max(60 * minutes, 1e-9)
        if step % 200 == 0:
            print(f"  step {step}: loss {np.mean(running[-200:]):.4f}", flush=True)
    module.requires_grad_(False)


def still(batch: Batch) -> Predicted:
    """What one would say without looking: one depth, a camera that never moves, nothing that moves."""
    nine = torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 1, 1]).expand(1, batch.key_depth.shape[1], 9)
    return Predicted(
        depth=torch.ones_like(batch.key_depth),
        points=torch.zeros_like(batch.points),
        camera=nine,
        dynamic_logit=torch.full_like(batch.key_depth, -1.0),
        scene_flow=torch.zeros_like(batch.scene_flow),
    )


def usual(data: list[Batch]) -> Predicted:
    """What one would say of any scene having seen the training labels: their mean, pixel by pixel."""
    nine = [pose.encode(batch.world_from_cam, batch.intrinsics, HEIGHT, WIDTH) for batch in data]
    return Predicted(
        depth=torch.stack([batch.key_depth for batch in data]).mean(0),
        points=torch.stack([batch.points for batch in data]).mean(0),
        camera=torch.stack(nine).mean(0),
        dynamic_logit=torch.stack([batch.dynamic.float() for batch in data]).mean(0).logit(1e-3),
        scene_flow=torch.stack([batch.scene_flow for batch in data]).mean(0),
    )


def errors(predicted: Predicted, batch: Batch) -> dict[str, float]:
    """See `evaluate.prediction`; of scene flow both what the head says and what is left where the mask says that things move."""
    gated = evaluate.prediction(evaluate.gated(predicted), batch)
    both = {f"{name}, gated": value for name, value in gated.items() if name.startswith("scene flow")}
    return evaluate.prediction(predicted, batch) | both


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in rows[0]}


def pictures(path: str, predicted: list[Predicted], data: list[Batch]) -> None:
    """Depth, scene flow and mask of the middle key frame: ours above, the truth below."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2 * len(data), 4, figsize=(12, 4 * len(data)), squeeze=False)
    for i, (ours, batch) in enumerate(zip(predicted, data)):
        axes[2 * i, 0].imshow(batch.rgb[0, 4])
        far, fast = batch.key_depth[0, 1].max(), batch.scene_flow[0, 1].norm(dim=-1).max()
        for row, one, seen in (
            (2 * i, ours, ours.dynamic_logit.sigmoid()),
            (2 * i + 1, batch, batch.dynamic.float()),
        ):
            depth = one.depth if isinstance(one, Predicted) else one.key_depth
            axes[row, 1].imshow(depth[0, 1], vmin=0, vmax=far)
            axes[row, 2].imshow(one.scene_flow[0, 1].norm(dim=-1), vmin=0, vmax=fast)
            axes[row, 3].imshow(seen[0, 1], vmin=0, vmax=1)
    for axis in axes.flat:
        axis.axis("off")
    figure.savefig(path, dpi=70, bbox_inches="tight")


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--minutes", type=float, default=6.0, help="processor time to train the decoder")
    parse.add_argument("--scenes", type=int, default=24, help="of each kind, to train on")
    parse.add_argument("--held-out", type=int, default=3, help="of each kind, to measure on")
    parse.add_argument("--base", default="tiny")
    parse.add_argument("--decoder", default="small")
    parse.add_argument("--rate", type=float, default=1e-3)
    parse.add_argument(
        "--cameras", type=float, default=100.0, help="weight of L_cam; the paper's is 1, for long training"
    )
    parse.add_argument("--kinds", default=",".join(KINDS), help="of rooms")
    parse.add_argument(
        "--min-flow-diagonals",
        type=float,
        default=0.01,
        help="least range of the latent's flow; a large one is the same in all",
    )
    parse.add_argument("--pictures", default="")
    asked = parse.parse_args()
    torch.set_num_threads(1)
    kinds, latent = asked.kinds.split(","), models.LatentKnobs(min_flow_diagonals=asked.min_flow_diagonals)
    built = models.build(models.ModelKnobs(base=asked.base, decoder=asked.decoder, latent=latent))
    data, unseen = (
        [replace(one, encoded=latents.encode_batch(built.vae, one, built.knobs.latent)) for one in batches]
        for batches in (clips(kinds, 0, asked.scenes), clips(kinds, HELD_OUT, asked.held_out))
    )
    train(built, data, asked.minutes, asked.rate, asked.cameras)
    with torch.no_grad():
        ours = [built.dpt(built.latents(batch).geometry.mean) for batch in unseen]
        seen = [built.dpt(built.latents(batch).geometry.mean) for batch in data[:: asked.scenes]]
    columns = {
        "held out": mean([errors(one, batch) for one, batch in zip(ours, unseen)]),
        "trained on": mean([errors(one, batch) for one, batch in zip(seen, data[:: asked.scenes])]),
        "training mean": mean([errors(usual(data), batch) for batch in unseen]),
        "nothing": mean([errors(still(batch), batch) for batch in unseen]),
    }
    print(f"{'':26}" + "".join(f"{name:>15}" for name in columns))
    for name in columns["held out"]:
        print(f"{name:26}" + "".join(f"{column[name]:15.4f}" for column in columns.values()))
    print("camera angle by kind of scene, held out, training mean, and nothing:")
    for number, kind in enumerate(kinds):
        part = slice(number * asked.held_out, (number + 1) * asked.held_out)
        both = [errors(one, batch) for one, batch in zip(ours[part], unseen[part])]
        plain = [errors(usual(data), batch) for batch in unseen[part]]
        none = [errors(still(batch), batch) for batch in unseen[part]]
        print(f"  {kind:24}" + "".join(f"{mean(rows)['camera angle']:15.4f}" for rows in (both, plain, none)))
    if asked.pictures:
        pictures(asked.pictures, ours[:: asked.held_out], unseen[:: asked.held_out])


if __name__ == "__main__":
    main()
