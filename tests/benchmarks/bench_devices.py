"""Bundle adjustment on a GPU beside the CPU: the same clip, the same flow; do the cameras agree, and what does each cost?

    python tests/benchmarks/bench_devices.py [--only NAMES] [--device cuda]

Clips as in `bench_labels.py`. Seconds of the clock, second run of each, flows known already: cameras, then depth and motion with
the cameras of that run (these two always run on the CPU).
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import bench_labels

from annotate import flow_slots
from annotate.cameras import estimate, flow_ba
from annotate.depth.multiview import Multiview
from annotate.flow.dis import Dis
from annotate.flow.pairs import PairFlows
from annotate.motion import Motion
from shared.clip import AnnotatedClip


def main() -> None:
    """A line a clip and device, and how far the cameras are apart."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=["orbit", "handheld", "pure_rotation"])
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing to compare")
        return
    for name, clip, _ in bench_labels.clips(False, asked.only):
        flow = PairFlows.of(clip.rgb, Dis().load())
        clip = flow_slots.fill_flow(clip, flow)
        found = {device: labeled(clip, flow, device) for device in ("cpu", asked.device)}
        print(f"{name}: {apart(found['cpu'], found[asked.device])}", flush=True)


def labeled(clip: AnnotatedClip, flow: PairFlows, device: str) -> AnnotatedClip:
    """Cameras on the device, then depth and motion; prints what they took."""
    for _ in range(2):
        start = time.perf_counter()
        found = estimate.estimate(flow, None, device)
        cameras = time.perf_counter() - start
    clip = clip.with_(cameras=flow_ba.to_cameras(found, flow.size, flow.source))
    start = time.perf_counter()
    for annotate in (Multiview().load(), Motion().load()):
        clip = annotate(clip, flow)
    rest = time.perf_counter() - start
    print(
        f"{clip.id} on {device}: cameras {cameras:.2f} s, depth and motion {rest:.2f} s, flags {found.flags}",
        flush=True,
    )
    return clip


def apart(a: AnnotatedClip, b: AnnotatedClip) -> str:
    """The largest differences of the cameras, and the share of pixels that only one of the two calls moving."""
    assert a.cameras is not None
    assert b.cameras is not None
    assert a.motion is not None
    assert b.motion is not None
    pose_a, pose_b = a.cameras.world_from_cam, b.cameras.world_from_cam
    turn = pose_a[:, :3, :3].mT @ pose_b[:, :3, :3]
    sine = np.linalg.norm(turn - turn.mT, axis=(1, 2)).max() / np.sqrt(8)
    path = np.linalg.norm(np.diff(pose_a[:, :3, 3], axis=0), axis=1).sum()
    shift = np.linalg.norm(pose_a[:, :3, 3] - pose_b[:, :3, 3], axis=1).max() / max(path, 1e-9)
    focal = abs(b.cameras.intrinsics[0, 0] / a.cameras.intrinsics[0, 0] - 1)
    other = (a.motion.dynamic != b.motion.dynamic).mean()
    return (
        f"rotations differ by {np.degrees(np.arcsin(min(sine, 1))):.2e} degrees, positions by {100 * shift:.2e} % of the path, "
        f"focal lengths by {100 * focal:.2e} %, moving pixels by {100 * other:.3f} %"
    )


if __name__ == "__main__":
    torch.set_num_threads(4)
    main()
