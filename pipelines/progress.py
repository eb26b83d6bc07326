"""What a person sees while a run works: one live block on a terminal, plain lines elsewhere; and a text file for Prometheus."""

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipelines.funnel import Funnel, number
from shared import files

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

_LIVE_S, _LINE_S, _METRICS_S = 0.5, 15.0, 15.0


class Display:
    """Shows the funnel as it fills. Made before the workers, so that the wait for the first clip is counted."""

    def __init__(self, out: str, console: "Console | None" = None) -> None:
        from rich.console import Console

        self._out, self._console = out, console or Console(stderr=True)
        self._live: Live | None = None
        self._began = time.monotonic()
        self._shown = self._measured = float("-inf")
        self._start: Funnel | None = None
        self._last: tuple[Funnel, int, int, int] | None = None
        self._said_first = False

    def update(self, funnel: Funnel, videos: int, busy: int, seats: int) -> None:
        """Called often; shows and writes only now and then."""
        now = time.monotonic()
        self._start, self._last = self._start or funnel, (funnel, videos, busy, seats)
        if not self._said_first and funnel.annotated > self._start.annotated:
            self._said_first = True
            self._console.print(f"first clip annotated after {now - self._began:.1f} s", highlight=False)
        if now - self._shown >= (_LIVE_S if self._console.is_terminal else _LINE_S):
            self._shown = now
            self._show()
        if now - self._measured >= _METRICS_S:
            self._measured = now
            files.write_whole(files.join(self._out, "metrics.prom"), prometheus(funnel, videos).encode())

    def close(self) -> None:
        """Shows the last state once more, and lets go of the terminal."""
        if self._last is not None:
            self._show()
            metrics = prometheus(self._last[0], self._last[1])
            files.write_whole(files.join(self._out, "metrics.prom"), metrics.encode())
        if self._live is not None:
            self._live.stop()

    def _show(self) -> None:
        assert self._last is not None
        assert self._start is not None
        funnel, videos, busy, seats = self._last
        pace = rate(funnel.annotated - self._start.annotated, time.monotonic() - self._began)
        head = f"{busy} of {seats} workers busy, {pace * 60:.1f} clips/min, {eta(funnel, videos, pace)}"
        if not self._console.is_terminal:
            self._console.print("; ".join([*told(funnel, videos), head]), highlight=False, soft_wrap=True)
            return
        from rich.console import Group
        from rich.live import Live
        from rich.padding import Padding
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        done = funnel.videos_cut + funnel.videos_failed
        clips = expected_clips(funnel, videos)
        bar = ProgressBar(total=max(clips, 1), completed=min(settled(funnel), clips), width=60)
        if self._live is None:
            self._live = Live(console=self._console, refresh_per_second=4)
            self._live.start()
        below = [*told(funnel, videos), head if done else f"{head}, starting"]
        self._live.update(Group(Padding(bar, 0), *map(Text, below)))  # a bare bar would not end its line


def told(funnel: Funnel, videos: int) -> Iterator[str]:
    """The funnel in words, a line a level."""
    unread = f", {funnel.videos_failed} failed" if funnel.videos_failed else ""
    yield f"{number(videos, 'video')}, {funnel.videos_cut} cut{unread}"
    reasons = ", ".join(f"{times} {reason}" for reason, times in funnel.screened.most_common(4))
    screened = sum(funnel.screened.values())
    yield f"{number(funnel.clips_found, 'clip')}, {screened} screened out{f' ({reasons})' if reasons else ''}"
    faults = ", ".join(f"{times} {kind}" for kind, times in funnel.failed.most_common(4))
    quarantined = f"; {funnel.quarantined} quarantined" if funnel.quarantined else ""
    failed = f", {sum(funnel.failed.values())} failed ({faults}{quarantined})" if faults else ""
    yield f"{funnel.annotated} annotated{failed}"
    yield f"{number(funnel.blocks_committed, 'block')} committed, {number(funnel.clips_committed, 'row')} of index"


def settled(funnel: Funnel) -> int:
    """Clips of which it is known what became of them."""
    return funnel.annotated + sum(funnel.screened.values()) + funnel.clips_failed


def expected_clips(funnel: Funnel, videos: int) -> int:
    """Clips found, and as many more as the videos still to cut may give."""
    left = max(videos - funnel.videos_cut - funnel.videos_failed, 0)
    return funnel.clips_found + round(left * funnel.clips_found / max(funnel.videos_cut, 1))


def rate(clips: int, seconds: float) -> float:
    """Clips a second."""
    return clips / seconds if seconds > 0 else 0.0


def eta(funnel: Funnel, videos: int, pace: float) -> str:
    """How long the rest will take at this pace, were the rest like what was seen."""
    found = expected_clips(funnel, videos)
    left = found - settled(funnel)
    if left <= 0 and funnel.videos_cut + funnel.videos_failed >= videos > 0:
        return "no clip left"
    kept = 1 - sum(funnel.screened.values()) / max(funnel.clips_found, 1)
    waiting = left if funnel.videos_cut + funnel.videos_failed == videos else left * kept
    if pace <= 0 or found == 0:
        return "time left unknown"
    minutes = waiting / pace / 60
    return f"about {minutes / 60:.1f} h left" if minutes > 90 else f"about {minutes:.0f} min left"


def prometheus(funnel: Funnel, videos: int) -> str:
    """The funnel in Prometheus' text format, for a node exporter's textfile collector."""
    numbers = {
        "worldreel_videos": videos,
        "worldreel_videos_cut": funnel.videos_cut,
        "worldreel_videos_failed": funnel.videos_failed,
        "worldreel_clips_found": funnel.clips_found,
        "worldreel_clips_annotated": funnel.annotated,
        "worldreel_clips_quarantined": funnel.quarantined,
        "worldreel_clips_committed": funnel.clips_committed,
        "worldreel_blocks_committed": funnel.blocks_committed,
        "worldreel_attempts": funnel.attempts,
        "worldreel_video_seconds_annotated": round(funnel.video_seconds, 3),
    }
    lines = [f"# TYPE {name} gauge\n{name} {value}\n" for name, value in numbers.items()]
    for name, label, counter in (
        ("worldreel_clips_screened", "reason", funnel.screened),
        ("worldreel_failed", "class", funnel.failed),
        ("worldreel_stage_seconds", "stage", funnel.stage_seconds),
    ):
        lines.append(f"# TYPE {name} gauge\n")
        lines += [f'{name}{{{label}="{_escaped(key)}"}} {round(value, 3)}\n' for key, value in sorted(counter.items())]
    return "".join(lines)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
