"""ViPE, the real tool, out of process: cameras, near-metric depth and movable instances of a clip.

It lives in an environment of its own (it compiles CUDA code, pins other versions, and carries AGPL and non-commercial parts);
this file owns its process and reads its files. See `vipe_driver` for the protocol.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from annotate.annotator import Annotate, Annotator

NOTICE = (
    "ViPE: code Apache-2.0 with AGPL-3.0 and CC BY-NC parts inside; every default preset uses non-commercial weights "
    "(UniDepthV2 or Video-Depth-Anything, CC BY-NC 4.0)"
)


class Vipe(Annotator):
    """ViPE 1.2 (nv-tlabs/vipe) in its own Python. Needs CUDA there; fills cameras, depth, instances and sky."""

    licence: ClassVar[str] = "AGPL-3.0 AND CC-BY-NC-4.0"
    tries_small: ClassVar[bool] = False

    kind: Literal["vipe"] = "vipe"
    gpus: float = 1.0
    accept_licence: bool = False
    """Set it when you have read the notice and may use ViPE for what you do."""
    python: str = "python"
    """The interpreter of ViPE's environment, e.g. /opt/vipe/bin/python."""
    preset: Literal["default", "no_vda", "lyra", "static_vda"] = "default"
    overrides: tuple[str, ...] = ()
    """Hydra overrides, e.g. slam.ba.dense_disp_alpha=0.01."""
    weights_dir: str | None = None
    """Where TORCH_HOME and HF_HOME live; with it, nothing is downloaded."""
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    """For one clip; 120 + 2 a frame without."""
    clips_per_process: Annotated[int, Field(ge=1)] = 200
    """Leaks end with the process."""
    command: tuple[str, ...] | None = None
    """Another driver that speaks the protocol, in place of `python vipe_driver.py`."""

    def check(self) -> None:
        if not self.accept_licence:
            raise ValueError(f"{NOTICE}; set cameras.accept_licence=true if that suits you")

    def load(self) -> Annotate:
        """Start the driver and wait until its networks are in memory.

        Raises ValueError if the licence is not accepted or the weights are not there.
        """
        self.check()
        if self.weights_dir and not any((Path(self.weights_dir) / name).is_dir() for name in ("torch", "hf")):
            raise ValueError(
                f"cameras.weights_dir: {self.weights_dir} holds neither torch/ nor hf/, expected the caches of a run of ViPE "
                "with TORCH_HOME and HF_HOME set to them"
            )
        from annotate.cameras.vipe_session import Session

        return Session(self)

    def driver_command(self, preset: str, overrides: tuple[str, ...]) -> list[str]:
        """How to start the driver with this configuration."""
        from annotate.cameras.vipe_process import DRIVER

        base = list(self.command) if self.command else [self.python, str(DRIVER)]
        return [*base, preset, *overrides]

    def environment(self) -> dict[str, str]:
        """What the driver's process sees beside ours: caches pinned, hubs offline when the weights are given."""
        environment = {"PYTHONUNBUFFERED": "1"}
        if self.weights_dir:
            cache = Path(self.weights_dir)
            environment |= {"TORCH_HOME": str(cache / "torch"), "HF_HOME": str(cache / "hf"), "HF_HUB_OFFLINE": "1"}
        return environment

    def composed(self) -> str:
        """The composed configuration as ViPE sees it, without CUDA. Raises ValueError with ViPE's own words."""
        import subprocess

        command = [*self.driver_command(self.preset, self.overrides), "--check"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except OSError as error:
            raise ValueError(f"cameras.python: {command[0]}: {error.strerror}, expected ViPE's Python") from None
        if done.returncode:
            words = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["no word"]
            raise ValueError(f"ViPE's driver refused its configuration: {words[0]}")
        return done.stdout
