"""Virtual KITTI 2: drives through copies of KITTI's streets, with flow and scene flow. Its K has its origin at a pixel's center."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import numpy as np
from jaxtyping import Float64, Int32
from pydantic import Field as Knob

from annotate.datasets import poses, reading
from annotate.datasets.dataset import About, Choice, Facts, Field, Frame, Scene
from shared import files

SKY_CM = 65500
MOST_SCENE_FLOW_M = 10.0
_KINDS = (
    "rgb",
    "depth",
    "instanceSegmentation",
    "forwardFlow",
    "backwardFlow",
    "forwardSceneFlow",
    "backwardSceneFlow",
)


class VirtualKitti2(Choice):
    """Each camera of each variation of each scene."""

    kind: Literal["virtual_kitti2"] = "virtual_kitti2"
    licence: ClassVar[str] = "CC-BY-NC-SA-3.0"
    about: ClassVar[About] = About(
        title="Virtual KITTI 2",
        where="https://europe.naverlabs.com/proxy-virtual-worlds-vkitti-2",
        size="5 scenes in 10 variations at 1242 x 375",
        layout="Scene01/clone/frames/{rgb,depth,instanceSegmentation,forwardFlow,backwardFlow,forwardSceneFlow}/Camera_0/, "
        "Scene01/clone/{intrinsic,extrinsic}.txt",
        brings="metric depth, cameras, flow, scene flow, instances, dynamic pixels",
    )
    fps: Annotated[float, Knob(gt=0)] = 10.0
    cameras: tuple[str, ...] = ("Camera_0", "Camera_1")

    def scenes(self, root: str) -> Iterator[str]:
        for variation in reading.scenes_below(root, lambda names: "frames/" in names):
            for camera in reading.folder(files.join(variation, "frames/rgb")):
                if camera.rstrip("/") in self.cameras:
                    yield files.join(variation, camera.rstrip("/"))

    def open(self, uri: str) -> Scene:
        return _Scene(uri, self)


class _Scene(Scene):
    def __init__(self, uri: str, knobs: VirtualKitti2) -> None:
        variation, _, camera = uri.rpartition("/")
        self._folders = {kind: files.join(variation, "frames", kind, camera) for kind in _KINDS}
        self._files = {kind: reading.numbered(folder, reading.last_number) for kind, folder in self._folders.items()}
        number = int(camera.rpartition("_")[2])
        self._cam_from_world = _rows(files.join(variation, "extrinsic.txt"), number, 16)
        self._k = _rows(files.join(variation, "intrinsic.txt"), number, 4)
        frames = set(self._files["rgb"]) & set(self._files["depth"]) & set(self._cam_from_world) & set(self._k)
        if not frames:
            raise ValueError(f"{uri}: no frame has picture, depth and camera")
        numbers = np.array(sorted(frames), np.int64)
        height, width = reading.first_size(self._uri("rgb", int(numbers[0])))
        shots = (numbers,)
        self.facts = Facts(uri=uri, licence=knobs.licence, fps=knobs.fps, height=height, width=width, shots=shots)

    def _uri(self, kind: str, number: int) -> str:
        return files.join(self._folders[kind], self._files[kind][number])

    def frame(self, number: int) -> Frame:
        raw = reading.uint16(self._uri("depth", number))
        sky = raw >= SKY_CM
        return Frame(
            rgb=reading.picture(self._uri("rgb", number)),
            z=np.where(sky, 0, raw / 100).astype(np.float32),
            sky=sky,
            instances=self._instances(number),
            world_from_cam=self._world_from_cam(number),
            intrinsics=self._k[number] + (0, 0, 0.5, 0.5),
        )

    def _instances(self, number: int) -> Int32[np.ndarray, "H W"] | None:
        if number not in self._files["instanceSegmentation"]:
            return None
        return reading.indexes(self._uri("instanceSegmentation", number)).astype(np.int32)

    def _world_from_cam(self, number: int) -> Float64[np.ndarray, "4 4"]:
        return poses.inverse(poses.checked(self.facts.uri, self._cam_from_world[number].reshape(4, 4)))

    def flow(self, start: int, end: int) -> Field | None:
        kind = {1: "forwardFlow", -1: "backwardFlow"}.get(end - start)
        if kind is None or start not in self._files[kind]:
            return None
        raw = reading.uint16(self._uri(kind, start)).astype(np.float64)
        size = np.array([self.facts.width - 1, self.facts.height - 1])
        valid = raw[..., 2] > 0
        values = (2 * raw[..., :2] / 65535 - 1) * size * valid[..., None]
        return Field(values=values.astype(np.float32), valid=valid)

    def scene_flow(self, start: int, end: int, frame: Frame) -> Field | None:
        """Given as p_cam(t + 1) - p_cam(t), so the camera's own motion is in it; here in the world's frame."""
        kind = {1: "forwardSceneFlow", -1: "backwardSceneFlow"}.get(end - start)
        if kind is None or start not in self._files[kind] or end not in self._cam_from_world:
            return None
        raw = reading.uint16(self._uri(kind, start))[..., :3].astype(np.float64)
        assert frame.z is not None
        assert frame.intrinsics is not None
        assert frame.world_from_cam is not None
        p_cam = poses.lifted(frame.z, frame.intrinsics)
        moved = p_cam + (2 * raw / 65535 - 1) * MOST_SCENE_FLOW_M
        vectors = poses.moved(self._world_from_cam(end), moved) - poses.moved(frame.world_from_cam, p_cam)
        valid = (frame.z > 0) & ((raw > 0) & (raw < 65535)).all(-1)
        return Field(values=np.where(valid[..., None], vectors, 0).astype(np.float32), valid=valid)


def _rows(uri: str, camera: int, count: int) -> dict[int, Float64[np.ndarray, " N"]]:
    """Frame -> numbers of one camera."""
    table = reading.numbers(uri, skip=1)
    if table.ndim != 2 or table.shape[1] != count + 2:
        raise ValueError(f"{uri}: rows of shape {table.shape}, expected frame, camera and {count} numbers")
    return {int(row[0]): row[2:] for row in table if int(row[1]) == camera}
