"""A scene of `miniatures.independent.world`, as tensorflow-datasets writes it with MOVi-E's features: what `movi_e-train…` here is.

Run where tensorflow-datasets is installed beside what the tests need: PYTHONPATH=.:tests python tests/golden/make_movi.py
The features are those that google-research/kubric declares in challenges/movi/movi_e.py; what no importer reads is zero.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from miniatures.independent import movi
from miniatures.independent.world import World
from tensorflow_datasets.core.features import (
    BBoxFeature,
    ClassLabel,
    FeaturesDict,
    Image,
    Sequence,
    Tensor,
    Text,
    Video,
)

WORLD = World(num_frames=4, width=32, height=24, focal=27.0, ceiling=True)
S, H, W = WORLD.num_frames, WORLD.height, WORLD.width


def _floats(*shape: int) -> Tensor:
    return Tensor(shape=shape, dtype=np.float32)


INSTANCE: dict[str, Any] = {
    "mass": np.float32,
    "friction": np.float32,
    "restitution": np.float32,
    "positions": _floats(S, 3),
    "quaternions": _floats(S, 4),
    "velocities": _floats(S, 3),
    "angular_velocities": _floats(S, 3),
    "bboxes_3d": _floats(S, 8, 3),
    "image_positions": _floats(S, 2),
    "bboxes": Sequence(BBoxFeature()),
    "bbox_frames": Sequence(Tensor(shape=(), dtype=np.int32)),
    "visibility": Tensor(shape=(S,), dtype=np.uint16),
    "asset_id": Text(),
    "category": ClassLabel(names=["Bag", "Shoe"]),
    "scale": np.float32,
    "is_dynamic": np.bool_,
}
COLLISION = {
    "instances": Tensor(shape=(2,), dtype=np.uint16),
    "frame": np.int32,
    "force": np.float32,
    "position": _floats(3),
    "image_position": _floats(2),
    "contact_normal": _floats(3),
}
FEATURES = {
    "metadata": {
        "video_name": Text(),
        "width": np.int32,
        "height": np.int32,
        "num_frames": np.int32,
        "num_instances": np.uint16,
        "depth_range": _floats(2),
        "forward_flow_range": _floats(2),
        "backward_flow_range": _floats(2),
    },
    "background": Text(),
    "instances": Sequence(INSTANCE),
    "camera": {
        "focal_length": np.float32,
        "sensor_width": np.float32,
        "field_of_view": np.float32,
        "positions": _floats(S, 3),
        "quaternions": _floats(S, 4),
    },
    "events": {"collisions": Sequence(COLLISION)},
    "video": Video(shape=(S, H, W, 3)),
    "segmentations": Sequence(Image(shape=(H, W, 1), dtype=np.uint8), length=S),
    "forward_flow": Sequence(Tensor(shape=(H, W, 2), dtype=np.uint16), length=S),
    "backward_flow": Sequence(Tensor(shape=(H, W, 2), dtype=np.uint16), length=S),
    "depth": Sequence(Image(shape=(H, W, 1), dtype=np.uint16), length=S),
    "normal": Video(shape=(S, H, W, 3), dtype=np.uint16),
    "object_coordinates": Video(shape=(S, H, W, 3), dtype=np.uint16),
}


class MoviE(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, features=FeaturesDict(FEATURES))

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[str, dict[str, Any]]]:
        told = movi.sample(WORLD)
        told["camera"] |= {"field_of_view": 0.8}
        told["instances"] = [{**_unread(INSTANCE, boxes=k + 1), **one} for k, one in enumerate(told["instances"])]
        told["events"] = {"collisions": [_unread(COLLISION)]}
        for name in ("normal", "object_coordinates"):
            told[name] = np.zeros((S, H, W, 3), np.uint16)
        for name in ("segmentations", "forward_flow", "backward_flow", "depth"):
            told[name] = list(told[name])
        yield "17", told


def _unread(features: dict[str, Any], boxes: int = 1) -> dict[str, Any]:
    """Zeros; a box in `boxes` of the frames, so that rows differ in length."""
    known = {
        "bboxes": [tfds.features.BBox(0.1, 0.1, 0.5, 0.5)] * boxes,
        "bbox_frames": list(range(boxes)),
        "asset_id": "a",
        "category": 0,
    }
    zeros = {
        name: np.zeros(feature.shape, feature.np_dtype) if isinstance(feature, Tensor) else feature(0)
        for name, feature in features.items()
        if name not in known
    }
    return zeros | {name: value for name, value in known.items() if name in features}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        MoviE(data_dir=temporary).download_and_prepare()
        (shard,) = Path(temporary).rglob("*.tfrecord-*")
        shutil.copy(shard, Path(__file__).parent / shard.name)
