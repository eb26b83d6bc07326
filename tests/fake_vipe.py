"""Speaks the driver's protocol and writes files byte-compatible with ViPE's, from a world known in closed form.

`python fake_vipe.py PRESET [mode=...]`. The mode `oom` and `align` fail until a lighter configuration is asked for.
"""

import ctypes
import io
import json
import struct
import sys
import time
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np

STEP_X = 0.1
FOCAL = 50.0
SKY, PERSON = 2, 1


def main(arguments):
    preset = next(a for a in arguments if "=" not in a and a != "--check")
    mode = next((a.split("=")[1] for a in arguments if a.startswith("mode=")), "good")
    poses_only = "pipeline.post.depth_align_model=null" in arguments
    print("a library that prints where it should not", file=sys.stderr)
    if "--check" in arguments:
        say(event="checked", config={"preset": preset})
        return 0
    if mode == "no_cuda":
        say(event="fatal", kind="no_cuda", msg="ViPE needs a CUDA device, torch sees none")
        return 3
    if mode == "load":
        say(event="fatal", kind="load", msg="vipe_ext: undefined symbol", trace="")
        return 2
    say(event="ready", vipe="1.2.0", torch="2.9.0", device="fake")
    for line in sys.stdin:
        answer(json.loads(line), preset, mode, poses_only)
    return 0


def say(**message):
    print(json.dumps(message), flush=True)


def answer(request, preset, mode, poses_only):
    if mode == "crash":
        ctypes.string_at(0)
    if mode == "hang":
        time.sleep(3600)
    if mode == "oom" and preset != "no_vda":
        return say(event="error", id=request["id"], kind="oom", msg="CUDA out of memory", trace="", retry=True)
    if mode == "oom_twice" and not poses_only:
        return say(event="error", id=request["id"], kind="oom", msg="CUDA out of memory", trace="", retry=True)
    if mode == "weights":
        return say(event="error", id=request["id"], kind="weights", msg="<urlopen error>", trace="", retry=False)
    if mode == "keyframes":
        return say(event="error", id=request["id"], kind="IndexError", msg="index 1024", trace="", retry=False)
    if mode == "align" and not poses_only:
        return say(event="error", id=request["id"], kind="RuntimeError", msg="no map points", trace="", retry=False)
    write(request, mode, poses_only)
    return say(event="done", id=request["id"], wall_s=0.1, peak_mem=1)


def write(request, mode, poses_only):
    images = sorted(Path(request["image_dir"]).glob("*.png"))
    frames = len(images)
    height, width = cv2.imread(str(images[0])).shape[:2]
    out, name = Path(request["out"]), request["id"]
    for folder in ("pose", "intrinsics", "depth", "mask"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    inds = np.arange(frames)
    focal = {"focal": 5.0, "long": 3.0 * width}.get(mode, FOCAL)
    step = 1e-4 if mode == "still" else STEP_X
    np.savez(out / "pose" / f"{name}.npz", data=poses(frames, step), inds=inds)
    intrinsics = np.tile((focal, focal, width / 2, height / 2), (frames, 1)).astype(np.float32)
    np.savez(out / "intrinsics" / f"{name}.npz", data=intrinsics, inds=inds)
    (out / "intrinsics" / f"{name}_camera.txt").write_text("".join(f"{i}: PINHOLE\n" for i in inds))
    (out / "mask" / f"{name}.txt").write_text(f"0: background\n{PERSON}: person\n{SKY}: sky\n")
    missing = frames - 1 if mode == "missing" else frames
    if not poses_only:
        with zipfile.ZipFile(out / "depth" / f"{name}.zip", "w") as file:
            for i in range(missing):
                data = exr_half(depth(i, height, width), zipped=i % 2 == 0)
                file.writestr(f"{i:05d}.exr", data[:80] if mode == "torn" and i == 1 else data)
    with zipfile.ZipFile(out / "mask" / f"{name}.zip", "w") as file:
        for i in range(frames):
            file.writestr(f"{i:05d}.png", cv2.imencode(".png", mask(height, width))[1].tobytes())


def poses(frames, step=STEP_X):
    """Starts away from the origin, so that a reader has to canonicalise."""
    world_from_cam = np.tile(np.eye(4, dtype=np.float32), (frames, 1, 1))
    world_from_cam[:, :3, 3] = (1.0, 2.0, 3.0)
    world_from_cam[:, 0, 3] += step * np.arange(frames)
    return world_from_cam


def depth(i, height, width):
    z = 2 + 0.01 * np.arange(height)[:, None] + 0.02 * np.arange(width)[None] + 0.1 * i
    z[0, 0], z[0, 1] = np.inf, 1000
    return z.astype(np.float16)


def mask(height, width):
    ids = np.zeros((height, width), np.uint8)
    ids[: height // 4], ids[height // 2 :, : width // 4] = SKY, PERSON
    return ids


def exr_half(z, zipped):
    """One half-float channel Z, in chunks of sixteen rows (ZIP) or of one (none)."""
    height, width = z.shape
    box = struct.pack("<4i", 0, 0, width - 1, height - 1)
    header = b"\x76\x2f\x31\x01" + struct.pack("<I", 2)
    for name, kind, value in (
        ("channels", "chlist", b"Z\0" + struct.pack("<iIii", 1, 0, 1, 1) + b"\0"),
        ("compression", "compression", bytes([3 if zipped else 0])),
        ("dataWindow", "box2i", box),
        ("displayWindow", "box2i", box),
        ("lineOrder", "lineOrder", b"\0"),
    ):
        header += name.encode() + b"\0" + kind.encode() + b"\0" + struct.pack("<i", len(value)) + value
    header += b"\0"
    rows = 16 if zipped else 1
    chunks = [chunk(y, z[y : y + rows].astype("<f2").tobytes(), zipped) for y in range(0, height, rows)]
    table, at = io.BytesIO(), len(header) + 8 * len(chunks)
    for one in chunks:
        table.write(struct.pack("<Q", at))
        at += len(one)
    return header + table.getvalue() + b"".join(chunks)


def chunk(y, raw, zipped):
    data = raw
    if zipped:
        split = np.frombuffer(raw[0::2] + raw[1::2], np.uint8).astype(int)
        steps = split.copy()
        steps[1:] = (split[1:] - split[:-1] + 128) % 256
        packed = zlib.compress(steps.astype(np.uint8).tobytes())
        data = packed if len(packed) < len(raw) else raw
    return struct.pack("<ii", y, len(data)) + data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
