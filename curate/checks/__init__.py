"""Every check. To add one: its file, and a field here."""

from curate.checks.camera_path import CameraPath
from curate.checks.coverage import Coverage
from curate.checks.degenerate import Degenerate
from curate.checks.depth_edges import DepthEdges
from curate.checks.depth_reprojection import DepthReprojection
from curate.checks.flow_cycle import FlowCycle
from curate.checks.focal import Focal
from curate.checks.motion import Motion
from curate.checks.picture import Picture
from curate.checks.rigid_flow import RigidFlow
from curate.checks.sampson import Sampson
from curate.checks.scale_drift import ScaleDrift
from curate.checks.scene_flow import SceneFlow
from shared.knobs import Knobs


class Checks(Knobs):
    """Which checks judge, with which limits; None switches one off. The limits are from `docs/calibration.md`."""

    picture: Picture | None = Picture()
    degenerate: Degenerate | None = Degenerate()
    coverage: Coverage | None = Coverage()
    flow_cycle: FlowCycle | None = FlowCycle()
    rigid_flow: RigidFlow | None = RigidFlow()
    depth_reprojection: DepthReprojection | None = DepthReprojection()
    depth_edges: DepthEdges | None = DepthEdges()
    scale_drift: ScaleDrift | None = ScaleDrift()
    sampson: Sampson | None = Sampson()
    focal: Focal | None = Focal()
    camera_path: CameraPath | None = CameraPath()
    motion: Motion | None = Motion()
    scene_flow: SceneFlow | None = SceneFlow()
