"""What every stage agrees on. This package imports nothing else of ours.

The conventions, once for all:

* **Transforms** are named `target_from_source`; points `p_world`, `p_cam`. Stored poses are `world_from_cam`, 4x4, float64,
  and the world is the clip's first camera: `world_from_cam[0]` is the identity.
* **Camera axes** are OpenCV's: x right, y down, z forward.
* **Pixels** are (u, v); the *corner* of the top-left pixel is (0, 0), so pixel (column i, row j) has its center at
  (i + 0.5, j + 0.5). Intrinsics are `fx, fy, cx, cy` in pixels at stored size: resizing an image multiplies them, nothing else.
* **Depth** is z along the optical axis, in meters when `metric`, else in one unknown unit for the whole clip. It is 0 where
  not `valid`; never NaN, never a sentinel.
* **Flow** is in pixels at stored size, u right, v down: `forward[t]` leads from frame t to frame t + stride, `backward[t]` back.
* **Scene flow** is the *world-frame* displacement of the surface seen at a pixel, from frame t to the next: camera motion is
  not in it, and static pixels are exactly 0.
* **Tracks** are points of surfaces followed through the clip, world-frame and in the cameras' unit, (T, N, 3); 0 where not `valid`.
* **Masks** say what True means: `valid`, `dynamic`, `visible`, `sky`.
* **Axes**: `T` frames, `P` pairs, `H W` pixels, `N` points, `B` batch, `C` channels, `h w` latent cells. Channels come last and
  nothing is batched outside networks.
* Arrays that rest or travel between processes are numpy; arithmetic on them is torch.
"""
