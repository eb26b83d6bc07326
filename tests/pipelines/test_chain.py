"""All annotators of a recipe, and the trial that each worker makes before it takes a clip."""

from typing import Any

import numpy as np
import pytest

from annotate.flow.dis import Dis
from pipelines import chain
from pipelines.fleet import Inline
from pipelines.places import one
from pipelines.recipes import AnnotateRecipe


def test_a_trial_passes_every_annotator_of_the_embedded_recipe() -> None:
    chain.Chain(AnnotateRecipe(), 1).trial()


def test_a_model_that_fails_on_its_first_frames_ends_the_run_before_a_clip_is_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(self: Dis) -> Any:
        class Broken:
            source = "broken"

            def __call__(self, rgb: np.ndarray, pairs: np.ndarray) -> Any:
                raise RuntimeError("no kernel image is available for execution on the device")

        return Broken()

    monkeypatch.setattr(Dis, "load", load)
    crew = Inline()
    crew.start(0, one(AnnotateRecipe()))
    ((_, outcome),) = crew.wait(0.0)
    assert outcome.fault is not None
    assert outcome.fault.kind == "start_failed"
    assert outcome.fault.message == (
        "flow (dis): fails on a trial of 5 frames: RuntimeError: no kernel image is available for execution on the device"
    )


def test_cameras_that_cannot_be_tried_on_a_few_frames_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = AnnotateRecipe()
    monkeypatch.setattr(type(recipe.cameras), "tries_small", False)
    loaded = chain.Chain(recipe, 1)
    seen = []
    loaded._cameras = lambda clip, flow: (seen.append(clip.cameras), clip)[1]
    loaded.trial()
    assert seen[0].source == "trial"
