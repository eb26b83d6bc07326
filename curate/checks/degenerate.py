"""What the camera annotator said of its own cameras."""

from typing import TYPE_CHECKING

from curate.check import Limit
from shared.knobs import Knobs

if TYPE_CHECKING:
    from curate.view import View

_POSES_UNUSABLE = Limit(fail_above=0)
_TELL = Limit(flag_above=0)


class Degenerate(Knobs):
    """1 where a flag is raised, else 0. Wrong poses fail; what only limits the use of good ones is flagged."""

    is_poor_fit: Limit | None = _POSES_UNUSABLE
    is_dynamic_dominated: Limit | None = _POSES_UNUSABLE
    is_flow_unreliable: Limit | None = _POSES_UNUSABLE
    is_static_camera: Limit | None = _TELL
    is_rotation_only: Limit | None = _TELL
    is_low_parallax: Limit | None = _TELL
    is_focal_weak: Limit | None = _TELL

    @staticmethod
    def measure(view: "View") -> dict[str, float]:
        if view.clip.cameras is None:
            return {}
        raised = (view.clip.cameras.degenerate or "").split(",")
        return {name: float(name.removeprefix("is_") in raised) for name in Degenerate.model_fields}
