"""`worldreel look`: one clip as a folder that opens from disk. No server, nothing fetched."""

import html
import json
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from shared import codecs, pictures, shards
from shared.clip import AnnotatedClip

PLY_POINTS = 400_000
"""What a laptop's viewer turns smoothly."""


def look(out: str, clip_id: str | None, to: str) -> Path:
    """Write `to`/index.html, a video per label and points.ply; returns the page.

    Raises ValueError if the run holds no such clip.
    """
    clip = _find(out, clip_id)
    folder = Path(to)
    folder.mkdir(parents=True, exist_ok=True)
    panels = {name: video for name, video in _panels(clip).items() if len(video)}
    for name, video in panels.items():
        (folder / f"{name}.mp4").write_bytes(codecs.encode_rgb(video, clip.fps, crf=14))
    if clip.cameras is not None and (clip.depth is not None or clip.points is not None):
        (folder / "points.ply").write_bytes(ply(clip))
    page = folder / "index.html"
    page.write_text(_page(clip, list(panels)))
    print(f"{page}  (points: {folder / 'points.ply'})" if (folder / "points.ply").exists() else page)
    return page


def ply(clip: AnnotatedClip) -> bytes:
    """The clip's points in the world frame as a binary PLY: static pixels of all frames, and where things move, frame 0 only."""
    p_world, rgb = clip.pointmap(), clip.rgb
    parts = [part for part in (clip.points, clip.depth) if part is not None]
    shown = parts[0].valid.copy()
    if clip.motion is not None:
        shown[1:] &= ~clip.motion.dynamic[1:]
    p, color = p_world[shown], rgb[shown]
    step = max(1, len(p) // PLY_POINTS)
    rows = np.empty(len(p[::step]), [("p", "<f4", 3), ("color", "u1", 3)])
    rows["p"], rows["color"] = p[::step], color[::step]
    axes = "".join(f"property float {axis}\n" for axis in "xyz")
    colors = "".join(f"property uchar {channel}\n" for channel in ("red", "green", "blue"))
    head = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(rows)}\n{axes}{colors}end_header\n"
    return head.encode() + rows.tobytes()


def _find(out: str, clip_id: str | None) -> AnnotatedClip:
    for clip in shards.read_clips(out):
        if clip_id is None or clip.id == clip_id:
            return clip
    wanted = f"clip {clip_id}" if clip_id else "an annotated clip"
    raise ValueError(f"{out}: holds no such thing as {wanted}; `worldreel status {out}` tells what is there")


def _panels(clip: AnnotatedClip) -> dict[str, UInt8[np.ndarray, "T H W 3"]]:
    """A video per label the clip has. Those of pairs repeat their last picture, so that all run in step."""
    panels = {"rgb": clip.rgb}
    if clip.depth is not None:
        panels["depth"] = pictures.depth(clip.depth.z, clip.depth.valid)
    if clip.flow is not None and len(clip.flow.forward):
        panels["flow"] = _held(pictures.flow(clip.flow.forward))
    if clip.motion is not None:
        panels["dynamic"] = pictures.marked(clip.rgb, clip.motion.dynamic)
        speed = np.linalg.norm(clip.motion.scene_flow, axis=-1)
        if (speed > 0).any():
            largest = float(np.percentile(speed[speed > 0], 99))
            panels["scene_flow"] = _held(pictures.heat(speed, largest, clip.motion.scene_flow_valid))
    return panels


def _held(pairs: UInt8[np.ndarray, "P H W 3"]) -> UInt8[np.ndarray, "T H W 3"]:
    return np.concatenate((pairs, pairs[-1:]))


def _facts(clip: AnnotatedClip) -> dict[str, str]:
    facts = {
        "clip": clip.id,
        "source": f"{clip.source}, frames {clip.frames[0]} to {clip.frames[-1]}",
        "frames": f"{len(clip.rgb)} at {clip.fps:g} per second, {clip.shape[2]}x{clip.shape[1]}",
        "caption": clip.caption,
        "licence": clip.licence,
    }
    if clip.cameras is not None:
        facts["cameras"] = f"{clip.cameras.source}; {clip.cameras.degenerate or 'no flag'}"
        facts["focal"] = f"{clip.cameras.intrinsics[0, 0]:.1f} px ({clip.cameras.focal_source})"
    if clip.depth is not None:
        facts["depth"] = f"{clip.depth.source}; valid on {clip.depth.valid.mean():.0%} of the pixels"
    if clip.motion is not None:
        facts["dynamic"] = f"{clip.motion.dynamic.mean():.1%} of the pixels"
    return {name: value for name, value in facts.items() if value}


def _page(clip: AnnotatedClip, panels: list[str]) -> str:
    videos = "\n".join(
        f'<figure><video src="{name}.mp4" muted playsinline preload="auto"></video>'
        f"<figcaption>{name.replace('_', ' ')}</figcaption></figure>"
        for name in panels
    )
    escape = html.escape
    facts = "\n".join(f"<div><span>{escape(k)}</span><b>{escape(v)}</b></div>" for k, v in _facts(clip).items())
    scores = "\n".join(f"<div><span>{escape(k)}</span><b>{v:.4g}</b></div>" for k, v in sorted(clip.scores.items()))
    return (
        _PAGE.replace("@title", escape(clip.id))
        .replace("@videos", videos)
        .replace("@facts", facts)
        .replace("@scores", scores)
        .replace("@timing", json.dumps({"frames": len(clip.rgb), "fps": clip.fps}))
    )


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>@title</title>
<style>
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif }
body { margin: 1.2rem auto; max-width: 1400px; padding: 0 1rem }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: .8rem }
figure { margin: 0 } video { width: 100%; display: block; border-radius: 6px; background: #222 }
figcaption { opacity: .7; padding: .2rem 0 }
nav { position: sticky; top: 0; display: flex; gap: .8rem; align-items: center; padding: .6rem 0; background: Canvas; z-index: 1 }
nav input { flex: 1 } nav output { min-width: 6ch; text-align: right; font-variant-numeric: tabular-nums }
section { margin-top: 1rem } section + section { columns: 19rem; column-gap: 2.5rem }
section div { display: flex; gap: 1rem; break-inside: avoid }
span { opacity: .7; flex: 0 0 12rem } section + section b { margin-left: auto; white-space: nowrap }
b { font-weight: 400; font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
</style>
<nav><button id="play">play</button><input id="scrub" type="range" min="0" value="0"><output id="at">0</output></nav>
<main>
@videos
</main>
<section>@facts</section>
<section>@scores</section>
<script>
const {frames, fps} = @timing, videos = [...document.querySelectorAll("video")];
const scrub = document.getElementById("scrub"), at = document.getElementById("at"), play = document.getElementById("play");
let timer = null;
scrub.max = frames - 1;
function show() { at.value = scrub.value; for (const v of videos) v.currentTime = (Number(scrub.value) + 0.5) / fps; }
function step() { scrub.value = (Number(scrub.value) + 1) % frames; show(); }
scrub.oninput = show;
play.onclick = () => {
  timer = timer ? clearInterval(timer) : setInterval(step, 1000 / fps);
  play.textContent = timer ? "pause" : "play";
};
show();
</script>
</html>
"""
