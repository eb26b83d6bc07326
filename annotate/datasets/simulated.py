"""Endless clips with exact truth: rooms, things that fall, roll, swing and bend, simulated and rendered with MuJoCo.

`mujoco:100` is a hundred scenes; a number is all that a scene is made from. Depth and what each pixel shows are rendered. Where its
point is at any other time follows from the pose of its body, if that is rigid; on cloth and jelly it follows from the triangle that
the pixel's ray meets: the same point between the triangle's corners, wherever these have gone.
"""

import ctypes.util
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64
from pydantic import Field as Knob

from annotate.datasets import poses
from annotate.datasets.dataset import About, Choice, Facts, Field, Frame, Scene

STEPS_A_FRAME = (12, 48)
"""Of the simulation; the second where the first is too coarse for what meets there."""
TEXELS = 256
FAR_M = 40.0
CAMERAS = ("lateral", "orbit", "dolly", "handheld", "static")
_PREFIX = "mujoco://"
_NO_SCREEN = "mujoco: cannot draw without a screen ({}): apt install libosmesa6, or libegl1"
_REMEMBERED = 3
"""Frames whose depth and bodies are kept: neighbors ask for them again."""
_ON_FACE, _NEAR_FACE = 1e-4, 0.3
"""How far outside a triangle, as a share of it, a pixel's ray may pass: rounding, and pixels that drivers give to edges."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Seen:
    """What the pixels of one frame show."""

    z: Float32[np.ndarray, "H W"]
    """0 where it is far away."""
    geoms: Int64[np.ndarray, "H W"]
    """-1: none."""
    soft: Int64[np.ndarray, "H W"]
    """Which deforming thing; -1: none."""
    faces: Int64[np.ndarray, "H W"]
    """Which triangle of all that are drawn of deforming things; -1: none."""
    weights: Float32[np.ndarray, "H W 3"]
    """Of that triangle's corners, where the pixel's ray meets it."""


class Mujoco(Choice):
    """Simulated scenes with their truth."""

    kind: Literal["mujoco"] = "mujoco"
    licence: ClassVar[str] = "CC0-1.0"
    about: ClassVar[About] = About(
        title="MuJoCo",
        where="pip install mujoco; apt install libosmesa6 where there is no EGL",
        size="endless: mujoco:100 makes scenes 0 to 99, mujoco:100-199 the next hundred",
        layout="mujoco:COUNT or mujoco:FIRST-LAST",
        brings="metric depth, cameras, flow, exact scene flow (of rigid, jointed and deforming things), instances, dynamic pixels",
    )
    height: Annotated[int, Knob(ge=32)] = 240
    width: Annotated[int, Knob(ge=32)] = 368
    frames: Annotated[int, Knob(ge=2)] = 150
    fps: Annotated[float, Knob(gt=0)] = 24.0
    supersampling: Annotated[int, Knob(ge=1, le=4)] = 2
    """Pictures are the mean of so many squared samples a pixel; depth and bodies are of its center."""
    truth: bool = True
    """False: pictures alone, for annotators to be measured on."""

    def scenes(self, root: str) -> Iterator[str]:
        first, _, last = root.rpartition("-")
        if not (first or "0").isdigit() or not last.isdigit():
            raise ValueError(f"mujoco:{root}: expected a number of scenes, or the first and the last: 100-199")
        low, high = (int(first), int(last)) if first else (0, int(last) - 1)
        return (f"{_PREFIX}{seed:06d}" for seed in range(low, high + 1))

    def open(self, uri: str) -> "_Scene":
        return _Scene(uri, self)


class MujocoRgb(Mujoco):
    """The same scenes as plain pictures: annotate both, and compare."""

    kind: Literal["mujoco_rgb"] = "mujoco_rgb"  # pyright: ignore[reportIncompatibleVariableOverride]
    about: ClassVar[About] = replace(
        Mujoco.about,
        title="MuJoCo, pictures alone",
        layout="mujoco_rgb:COUNT or mujoco_rgb:FIRST-LAST",
        brings="the pictures of mujoco's scenes and no truth: annotators are measured on them (evaluate labels)",
    )
    truth: bool = False


class _Scene(Scene):
    def __init__(self, uri: str, knobs: Mujoco) -> None:
        self._mujoco, self._knobs, self._uri = _mujoco(), knobs, uri
        self._rng = np.random.default_rng(int(uri.removeprefix(_PREFIX)))
        focal = knobs.width * self._rng.uniform(0.75, 1.2)
        self._k = np.array([focal, focal, knobs.width / 2, knobs.height / 2])
        text, textures = _room(self._rng, self._k, knobs)
        self._model = self._mujoco.MjModel.from_xml_string(text, assets=textures)
        self._data = self._mujoco.MjData(self._model)
        self._world_from_cam = _path(self._rng, knobs.frames, knobs.fps)
        self._looks = self._mujoco.MjvOption()
        self._looks.flags[self._mujoco.mjtVisFlag.mjVIS_FLEXSKIN] = True
        rigid = (self._mujoco.mjtJoint.mjJNT_FREE, self._mujoco.mjtJoint.mjJNT_HINGE)
        moves = np.isin(self._model.jnt_type[self._model.dof_jntid], rigid)
        start = np.where(moves, self._rng.normal(0, 1.5, self._model.nv), 0)
        simulated = next((s for steps in STEPS_A_FRAME if (s := self._simulate(start, steps)) is not None), None)
        if simulated is None:
            raise ValueError(f"{uri}: its simulation is unstable, expected a steady one; leave this number out")
        self._states, self._places, self._turns, self._corners, self._owners = simulated
        self.first_soft = int(self._model.nbody)
        """Instances from this number on deform."""
        self._renderers: dict[int, Any] = {}
        self._known: dict[int, _Seen] = {}
        self.facts = Facts(
            uri=uri,
            licence=knobs.licence,
            fps=knobs.fps,
            height=knobs.height,
            width=knobs.width,
            shots=(np.arange(knobs.frames),),
        )

    def _simulate(
        self, start: Float64[np.ndarray, " V"], steps: int
    ) -> (
        tuple[
            list[np.ndarray],
            Float64[np.ndarray, "T G 3"],
            Float64[np.ndarray, "T G 3 3"],
            Float32[np.ndarray, "T F 3 3"],
            Int64[np.ndarray, " F"],
        ]
        | None
    ):
        """States, positions and rotations of every geom, and corners of every deforming triangle at every frame; whose each is.

        None if that many steps a frame do not keep it stable.
        """
        mj, model, data = self._mujoco, self._model, self._data
        mj.mj_resetData(model, data)
        model.opt.timestep = 1 / (self._knobs.fps * steps)
        data.qvel[:] = start
        drawn = mj.MjvScene(model, maxgeom=1000)
        states, places, turns, corners = [], [], [], []
        for _ in range(self._knobs.frames):
            mj.mj_forward(model, data)
            states.append(data.qpos.copy())
            places.append(data.geom_xpos.copy())
            turns.append(data.geom_xmat.reshape(-1, 3, 3).copy())
            mj.mjv_updateScene(model, data, self._looks, None, mj.MjvCamera(), mj.mjtCatBit.mjCAT_ALL, drawn)
            corners.append(_faces(drawn))
            for _ in range(steps):
                mj.mj_step(model, data)
            if any(warning.number for warning in data.warning):
                return None
        owners = np.repeat(np.arange(model.nflex), drawn.flexfaceused)
        return states, np.stack(places), np.stack(turns), np.stack(corners), owners

    def frame(self, number: int) -> Frame:
        self._pose(number)
        rgb = self._shrunk(self._drawn(self._knobs.supersampling).copy())
        if not self._knobs.truth:
            return Frame(rgb=rgb)
        seen = self._seen(number)
        return Frame(
            rgb=rgb,
            z=seen.z,
            instances=self._instances(seen),
            world_from_cam=self._world_from_cam[number],
            intrinsics=self._k,
        )

    def _instances(self, seen: _Seen) -> Int32[np.ndarray, "H W"]:
        """The body that a linkage hangs on; deforming things are counted after all bodies."""
        roots = self._model.body_rootid[self._model.geom_bodyid[np.maximum(seen.geoms, 0)]]
        rigid = np.where(seen.geoms >= 0, roots, 0)
        return np.where(seen.soft >= 0, self.first_soft + seen.soft, rigid).astype(np.int32)

    def flow(self, start: int, end: int) -> Field | None:
        """Where each pixel's point is seen at any other time, hidden or not."""
        if not self._knobs.truth:
            return None
        z = self._seen(start).z
        there = poses.moved(poses.inverse(self._world_from_cam[end]), self._carried(start, end)[1])
        valid = (z > 0) & (there[..., 2] > 0.05)
        safe = np.where(valid, there[..., 2], 1.0)[..., None]
        uv = there[..., :2] / safe * self._k[:2] + self._k[2:]
        here = poses.lifted(np.ones_like(z), self._k)[..., :2] * self._k[:2] + self._k[2:]
        return Field(values=np.where(valid[..., None], uv - here, 0).astype(np.float32), valid=valid)

    def scene_flow(self, start: int, end: int, frame: Frame) -> Field | None:
        if not self._knobs.truth:
            return None
        seen = self._seen(start)
        before, after = self._carried(start, end)
        valid = seen.z > 0
        moves = valid & ((self._model.geom_bodyid[np.maximum(seen.geoms, 0)] > 0) | (seen.soft >= 0))
        return Field(values=np.where(moves[..., None], after - before, 0).astype(np.float32), valid=valid)

    def caption(self, numbers: np.ndarray) -> str:
        return "things fall, roll, swing and bend in a room"

    def _carried(self, start: int, end: int) -> tuple[Float64[np.ndarray, "H W 3"], Float64[np.ndarray, "H W 3"]]:
        """World points of every pixel at the two times: each rides on its geom, or stays where it is in its triangle."""
        seen = self._seen(start)
        here = poses.moved(self._world_from_cam[start], poses.lifted(seen.z, self._k))
        g = np.maximum(seen.geoms, 0)
        turn = self._turns[end] @ self._turns[start].transpose(0, 2, 1)
        there = self._places[end][g] + (turn[g] @ (here - self._places[start][g])[..., None])[..., 0]
        on = seen.faces >= 0
        for points, number in ((here, start), (there, end)):
            corners = self._corners[number][seen.faces[on]].astype(np.float64)
            points[on] = np.einsum("nk,nkc->nc", seen.weights[on], corners)
        return here, there

    def _pose(self, number: int) -> None:
        """Bodies and camera as they are at this frame."""
        self._data.qpos[:] = self._states[number]
        pose = self._world_from_cam[number] @ poses.BLENDER_FROM_OPENCV
        quaternion = np.zeros(4)
        self._mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(pose[:3, :3]).ravel())
        self._data.mocap_pos[0], self._data.mocap_quat[0] = pose[:3, 3], quaternion
        self._mujoco.mj_forward(self._model, self._data)

    def _seen(self, number: int) -> _Seen:
        if number not in self._known:
            self._known[number] = self._truth_of(number)
            for old in list(self._known)[:-_REMEMBERED]:
                del self._known[old]
        return self._known[number]

    def _truth_of(self, number: int) -> _Seen:
        self._pose(number)
        z, ids, kinds = self.drawn_truth()
        geoms = np.where(kinds == int(self._mujoco.mjtObj.mjOBJ_GEOM), ids, -1)
        soft = np.where(kinds == int(self._mujoco.mjtObj.mjOBJ_FLEX), ids, -1)
        z = np.where(((geoms >= 0) | (soft >= 0)) & (z < FAR_M), z, 0).astype(np.float32)
        faces, weights = np.full(z.shape, -1), np.zeros((*z.shape, 3), np.float32)
        cam_from_world = poses.inverse(self._world_from_cam[number])
        for thing in np.unique(soft[soft >= 0]):
            mine = np.flatnonzero(self._owners == thing)
            p_cam = poses.moved(cam_from_world, self._corners[number][mine].astype(np.float64))
            on, corners, depth = met(p_cam, self._k, soft == thing)
            found = on >= 0
            faces[found], weights[found], z[found] = mine[on[found]], corners[found], depth[found]
        z[(soft >= 0) & (faces < 0)] = 0
        return _Seen(z=z, geoms=geoms, soft=soft, faces=faces, weights=weights)

    def drawn_truth(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As the driver draws them: depth, and number and kind of what each pixel shows."""
        renderer = self._renderer(1)
        renderer.enable_depth_rendering()
        z = self._drawn(1).copy()
        renderer.disable_depth_rendering()
        renderer.enable_segmentation_rendering()
        ids = self._drawn(1).astype(np.int64)
        renderer.disable_segmentation_rendering()
        return z, ids[..., 0], ids[..., 1]

    def _drawn(self, samples: int) -> np.ndarray:
        renderer = self._renderer(samples)
        renderer.update_scene(self._data, camera="eye", scene_option=self._looks)
        return renderer.render()

    def _renderer(self, samples: int) -> Any:
        if samples not in self._renderers:
            height, width = samples * self._knobs.height, samples * self._knobs.width
            try:
                self._renderers[samples] = self._mujoco.Renderer(self._model, height, width)
            except (AttributeError, ImportError, OSError, RuntimeError) as error:
                raise ValueError(_NO_SCREEN.format(error)) from None
        return self._renderers[samples]

    def _shrunk(self, rgb: np.ndarray) -> np.ndarray:
        import cv2

        size = (self._knobs.width, self._knobs.height)
        return rgb if rgb.shape[1] == size[0] else cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)


def _mujoco() -> Any:
    """The package, with a way to draw without a screen."""
    if "MUJOCO_GL" not in os.environ and not os.environ.get("DISPLAY"):
        os.environ["MUJOCO_GL"] = "osmesa" if ctypes.util.find_library("OSMesa") else "egl"
    if importlib.util.find_spec("mujoco") is None:
        raise ValueError("mujoco: is not installed: pip install mujoco")
    try:
        import mujoco
    except (AttributeError, ImportError, OSError, RuntimeError) as error:
        raise ValueError(_NO_SCREEN.format(" ".join(str(error).split()))) from None
    untyped: Any = mujoco  # its stubs lack what follows
    untyped.set_mju_user_warning(_unprinted)
    return untyped


def _unprinted(warning: str) -> None:
    """MuJoCo would write its warnings into a file of the current folder; they are asked for after every frame instead."""


def _faces(drawn: Any) -> Float32[np.ndarray, "F 3 3"]:
    """Corners of all triangles that are drawn of deforming things, always in the same order."""
    runs = zip(drawn.flexfaceadr, drawn.flexfaceused)
    corners = drawn.flexface.reshape(-1, 3, 3)
    return np.concatenate([np.zeros((0, 3, 3), np.float32), *(corners[first : first + count] for first, count in runs)])


def met(
    p_cam: Float64[np.ndarray, "F 3 3"], k: Float64[np.ndarray, " 4"], where: Bool[np.ndarray, "H W"]
) -> tuple[Int64[np.ndarray, "H W"], Float64[np.ndarray, "H W 3"], Float64[np.ndarray, "H W"]]:
    """The nearest triangle that each pixel's ray meets (-1: none), the weights of its corners there, and z.

    With a triangle's corners as columns of M, a ray r meets its plane at z r = M w, w = z M⁻¹ r, where the weights sum to 1.
    """
    rays = poses.lifted(np.ones(where.shape, np.float32), k)
    uv = p_cam[..., :2] / np.maximum(p_cam[..., 2:], 1e-6) * k[:2] + k[2:]
    good = (p_cam[..., 2].min(1) > 1e-2) & (np.abs(np.linalg.det(p_cam)) > 1e-12)
    inverse = np.linalg.inv(np.where(good[:, None, None], p_cam, np.eye(3)).transpose(0, 2, 1))
    low = np.maximum(np.floor(uv.min(1) - 1), 0).astype(int)
    high = np.minimum(np.ceil(uv.max(1) + 1), (where.shape[1], where.shape[0])).astype(int)
    faces, weights, nearest = np.full(where.shape, -1), np.zeros((*where.shape, 3)), np.full(where.shape, np.inf)
    for slack in (_ON_FACE, _NEAR_FACE):
        missing = where & (faces < 0)
        if not missing.any():
            break
        for f in np.flatnonzero(good & (high > low).all(1)):
            box = slice(low[f, 1], high[f, 1]), slice(low[f, 0], high[f, 0])
            if not (asked := missing[box]).any():
                continue
            w = rays[box] @ inverse[f].T
            total = w.sum(-1)
            hit = asked & (total > 0) & (w.min(-1) >= -slack * total) & (total * nearest[box] > 1)
            faces[box][hit], nearest[box][hit] = f, 1 / total[hit]
            weights[box][hit] = w[hit] / total[hit][:, None]
    return faces, weights, np.where(faces >= 0, nearest, 0)


def _path(rng: np.random.Generator, frames: int, fps: float) -> Float64[np.ndarray, "T 4 4"]:
    """The camera's way, looking about the middle of the room; MuJoCo's z is up."""
    kind = CAMERAS[rng.integers(len(CAMERAS))]
    t = np.arange(frames) / fps - frames / fps / 2
    turn, away, height = rng.uniform(-np.pi, np.pi), rng.uniform(3.0, 4.2), rng.uniform(0.9, 2.2)
    pace = rng.choice([-1, 1]) * rng.uniform(0.08, 0.25)
    angle = turn + (pace * t if kind == "orbit" else 0 * t)
    radius = away - (abs(pace) * t if kind == "dolly" else 0 * t)
    side = pace * 1.5 * t if kind == "lateral" else 0 * t
    wobble = _wobble(rng, t) * (0.12 if kind == "handheld" else 0.0)
    out, across = np.stack((np.cos(angle), np.sin(angle)), 1), np.stack((-np.sin(angle), np.cos(angle)), 1)
    place = (
        np.concatenate((radius[:, None] * out + side[:, None] * across, np.full((frames, 1), height)), axis=1) + wobble
    )
    aim = np.concatenate((side[:, None] * across, np.full((frames, 1), 0.7)), axis=1) + 0.5 * wobble[:, [1, 2, 0]]
    return np.stack([_looking(p, a) for p, a in zip(place, aim)])


def _wobble(rng: np.random.Generator, t: Float64[np.ndarray, " T"]) -> Float64[np.ndarray, "T 3"]:
    """Slow sways and a little quick ones."""
    rates, phases = np.array([0.31, 0.7, 1.9]), rng.uniform(0, 2 * np.pi, (3, 3))
    return np.stack(
        [(np.sin(2 * np.pi * rates * t[:, None] + phase) * (1, 0.5, 0.1)).sum(1) for phase in phases], axis=1
    )


def _looking(place: Float64[np.ndarray, " 3"], aim: Float64[np.ndarray, " 3"]) -> Float64[np.ndarray, "4 4"]:
    """world_from_cam of a level camera: x right, y down, z ahead."""
    ahead = (aim - place) / np.linalg.norm(aim - place)
    right = np.cross(ahead, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    return poses.pose(np.stack((right, np.cross(ahead, right), ahead), axis=1), place)


def _room(rng: np.random.Generator, k: Float64[np.ndarray, " 4"], knobs: Mujoco) -> tuple[str, dict[str, bytes]]:
    """MJCF of a textured, lit room with furniture, free bodies and swinging arms; and its textures."""
    names = [f"t{i}" for i in range(8)]
    textures = {f"{name}.png": _texture(rng) for name in names}
    assets = "".join(
        f'<texture name="{n}" type="2d" file="{n}.png"/>'
        f'<material name="{n}" texture="{n}" texrepeat="{r} {r}" texuniform="true" specular="{s:.2f}" shininess=".4"/>'
        for n, r, s in zip(names, rng.integers(1, 3, 8), rng.uniform(0, 0.6, 8))
    )
    size = 5.5
    walls = "".join(
        f'<geom type="plane" size="{size} {size} .1" pos="{-x * size} {-y * size} 0" zaxis="{x} {y} 0" material="{names[i]}"/>'
        for i, (x, y) in enumerate([(1, 0), (-1, 0), (0, 1), (0, -1)])
    )
    lights = "".join(
        f'<light pos="{x:.2f} {y:.2f} 4.5" dir="0 0 -1" diffuse=".5 .5 .5" cutoff="80" castshadow="{str(i == 0).lower()}"/>'
        for i, (x, y) in enumerate(rng.uniform(-2.5, 2.5, (3, 2)))
    )
    bodies = "".join(_still(rng, names) for _ in range(rng.integers(2, 5)))
    bodies += "".join(_free(rng, names) for _ in range(rng.integers(5, 11)))
    bodies += "".join(_arm(rng, names) for _ in range(rng.integers(1, 3)))
    bodies += _cloth(rng, names, hangs=bool(rng.random() < 0.6))
    bodies += "".join(_jelly(rng, names, i) for i in range(rng.integers(1, 3)))
    fovy = 2 * np.degrees(np.arctan(knobs.height / 2 / k[1]))
    big = f'offwidth="{knobs.width * knobs.supersampling}" offheight="{knobs.height * knobs.supersampling}"'
    return (
        f'<mujoco><option solver="CG" tolerance="1e-6"/>'
        f'<visual><quality offsamples="0" shadowsize="2048"/><global {big}/><map znear=".01" zfar="50"/>'
        f'<headlight ambient=".35 .35 .35" diffuse=".2 .2 .2"/></visual><statistic extent="1"/><asset>{assets}</asset><worldbody>'
        f'<geom type="plane" size="{size} {size} .1" material="{names[4]}"/>{walls}{lights}{bodies}'
        f'<body mocap="true"><camera name="eye" fovy="{fovy:.10f}"/></body></worldbody></mujoco>'
    ), textures


def _texture(rng: np.random.Generator) -> bytes:
    """Colored noise of many sizes, as PNG."""
    import cv2

    picture = np.full((TEXELS, TEXELS, 3), 128.0) + rng.uniform(-60, 60, 3)
    for cells in (4, 8, 16, 32, 64):
        coarse = rng.normal(0, 1, (cells, cells, 1)) * 0.8 + rng.normal(0, 1, (cells, cells, 3)) * 0.5
        picture += 42 / cells**0.35 * cv2.resize(coarse, (TEXELS, TEXELS), interpolation=cv2.INTER_CUBIC)
    done, data = cv2.imencode(".png", np.clip(picture, 0, 255).astype(np.uint8))
    assert done
    return data.tobytes()


def _shape(rng: np.random.Generator, low: float, high: float) -> str:
    kind = rng.choice(["box", "sphere", "capsule", "ellipsoid", "cylinder"])
    a, b, c = rng.uniform(low, high, 3)
    size = {"sphere": f"{a:.3f}", "capsule": f"{a * 0.6:.3f} {b:.3f}", "cylinder": f"{a:.3f} {b:.3f}"}
    return f'type="{kind}" size="{size.get(kind, f"{a:.3f} {b:.3f} {c:.3f}")}"'


def _place(rng: np.random.Generator, radius: float) -> tuple[float, float]:
    angle, away = rng.uniform(-np.pi, np.pi), radius * rng.uniform(0.1, 1) ** 0.5
    return away * np.cos(angle), away * np.sin(angle)


def _still(rng: np.random.Generator, names: list[str]) -> str:
    (x, y), (a, b, c) = _place(rng, 1.9), rng.uniform(0.15, 0.45, 3)
    yaw = rng.uniform(0, 360)
    size, place = f"{a:.3f} {b:.3f} {c:.3f}", f"{x:.3f} {y:.3f} {c:.3f}"
    return f'<geom type="box" size="{size}" pos="{place}" euler="0 0 {yaw:.1f}" material="{rng.choice(names)}"/>'


def _free(rng: np.random.Generator, names: list[str]) -> str:
    """A body that falls, rolls and bumps."""
    (x, y), z = _place(rng, 1.5), rng.uniform(0.6, 2.4)
    turn = " ".join(f"{angle:.1f}" for angle in rng.uniform(0, 360, 3))
    return (
        f'<body pos="{x:.3f} {y:.3f} {z:.3f}" euler="{turn}"><freejoint/>'
        f'<geom {_shape(rng, 0.14, 0.36)} material="{rng.choice(names)}" solref="-2000 -12" friction=".6 .02 .002"/></body>'
    )


def _arm(rng: np.random.Generator, names: list[str]) -> str:
    """Two or three links that swing from above."""
    (x, y), text, ends, before = _place(rng, 1.3), "", "", 0.0
    for link in range(rng.integers(2, 4)):
        length, thick = rng.uniform(0.3, 0.5), rng.uniform(0.07, 0.12)
        where = f"{x:.3f} {y:.3f} {rng.uniform(1.7, 2.3):.3f}" if link == 0 else f"0 0 {-before:.3f}"
        axis = "1 0 0" if rng.random() < 0.5 else "0 1 0"
        text += (
            f'<body pos="{where}"><joint type="hinge" axis="{axis}" damping=".02"/>'
            f'<geom type="capsule" fromto="0 0 0 0 0 {-length:.3f}" size="{thick:.3f}" material="{rng.choice(names)}"/>'
        )
        ends, before = ends + "</body>", length
    return text + ends


def _cloth(rng: np.random.Generator, names: list[str], *, hangs: bool) -> str:
    """A flag that hangs by a row and swings, or a cloth that falls over what lies there."""
    count, (x, y) = int(rng.integers(10, 14)), _place(rng, 1.0)
    spacing = rng.uniform(0.08, 0.11)
    z = rng.uniform(1.7, 2.2) if hangs else rng.uniform(1.1, 1.8)
    tilt = (rng.uniform(15, 80), 0.0) if hangs else tuple(rng.uniform(-25, 25, 2))
    pins = f'<pin gridrange="0 0 0 {count - 1}"/>' if hangs else ""
    return (
        f'<flexcomp name="cloth" type="grid" dim="2" count="{count} {count} 1" spacing="{spacing:.3f} {spacing:.3f} .1" '
        f'pos="{x:.3f} {y:.3f} {z:.3f}" euler="{tilt[1]:.1f} {tilt[0]:.1f} {rng.uniform(0, 360):.1f}" radius=".012" mass=".4" '
        f'material="{rng.choice(names)}">{pins}'
        '<contact selfcollide="none" solref=".01 1"/><edge equality="true" damping=".005"/></flexcomp>'
    )


def _jelly(rng: np.random.Generator, names: list[str], number: int) -> str:
    """A soft block or ball that falls, squashes and wobbles."""
    (x, y), side = _place(rng, 1.5), rng.uniform(0.1, 0.16)
    turn = " ".join(f"{angle:.1f}" for angle in rng.uniform(0, 360, 3))
    kind = rng.choice(["grid", "ellipsoid"])
    return (
        f'<flexcomp name="jelly{number}" type="{kind}" dim="3" dof="trilinear" count="5 5 5" '
        f'spacing="{side:.3f} {side:.3f} {side * rng.uniform(0.8, 1.3):.3f}" pos="{x:.3f} {y:.3f} {rng.uniform(0.9, 2.0):.3f}" '
        f'euler="{turn}" radius=".005" mass="1.5" material="{rng.choice(names)}">'
        f'<elasticity young="{rng.uniform(1.5e3, 5e3):.0f}" poisson=".3" damping=".02"/><contact selfcollide="none"/></flexcomp>'
    )
