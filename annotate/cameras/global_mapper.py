"""pycolmap's global mapper on a folder of frames, alone in its process.

`python -m annotate.cameras.global_mapper FOLDER SEED [FOCAL]`; a focal length given in pixels is kept.
Reads FOLDER/images/%06d.png, and FOLDER/masks/%06d.png.png where there are some (black is ignored); writes FOLDER/out.npz.
"""

import sys
from pathlib import Path

import cv2
import numpy as np


def main(folder: Path, seed: int, focal: float | None) -> None:
    # with the headless build, importing pycolmap before cv2 was *used* aborts with a double free; hence also a process of its own
    cv2.ORB.create()
    import pycolmap

    names = sorted(path.name for path in (folder / "images").iterdir())
    database, out = folder / "database.db", folder / "sparse"
    out.mkdir()
    reader = pycolmap.ImageReaderOptions()
    reader.camera_model = "SIMPLE_PINHOLE"
    if (folder / "masks").exists():
        reader.mask_path = folder / "masks"
    if focal is not None:
        first = cv2.imread(str(folder / "images" / names[0]))
        assert first is not None
        height, width = first.shape[:2]
        reader.camera_params = f"{focal},{width / 2},{height / 2}"
    extraction, matching = pycolmap.FeatureExtractionOptions(), pycolmap.FeatureMatchingOptions()
    extraction.num_threads = matching.num_threads = 1
    extraction.use_gpu = matching.use_gpu = False
    pycolmap.extract_features(
        database,
        folder / "images",
        camera_mode=pycolmap.CameraMode.SINGLE,
        reader_options=reader,
        extraction_options=extraction,
    )
    pycolmap.match_exhaustive(database, matching_options=matching)
    options = pycolmap.GlobalPipelineOptions()
    options.num_threads, options.random_seed = 1, seed
    options.mapper.bundle_adjustment.refine_focal_length = focal is None
    models = pycolmap.global_mapping(database, folder / "images", out, options)
    write(folder / "out.npz", models, names)


def write(path: Path, models: dict, names: list[str]) -> None:
    """The largest model: poses (identity where a frame is not in it), focal length in pixels."""
    pose, registered, focal = np.tile(np.eye(4), (len(names), 1, 1)), np.zeros(len(names), bool), 0.0
    if models:
        model = max(models.values(), key=lambda one: one.num_reg_images())
        for image in model.images.values():
            if image.has_pose:
                at = names.index(image.name)
                pose[at, :3], registered[at] = image.cam_from_world().matrix(), True
        focal = next(iter(model.cameras.values())).mean_focal_length()
    np.savez(path, cam_from_world=pose, registered=registered, focal=focal)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else None)
