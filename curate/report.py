"""One page that explains a selection. It holds everything it shows, and opens from a file."""

import base64
from html import escape

from curate.contact_sheets import Strip
from curate.histograms import Histogram
from curate.recipe import CurateRecipe
from curate.report_style import STYLE
from curate.summary import Summary
from shared.knobs import dump


def page(
    out: str,
    summary: Summary,
    recipe: CurateRecipe,
    histograms: list[Histogram],
    sheets: dict[str, list[Strip]],
) -> str:
    """The whole page as HTML."""
    annotated = summary.status["annotated"]
    numbers = f"{summary.kept:,} of {annotated:,} annotated clips kept · {_duration(summary.kept_hours)}"
    body = [
        "<h1>What was kept, what was not, and why</h1>",
        f"<p class=dim>{escape(out)} · {numbers}</p>",
        "<h2>From found to kept</h2>",
        _funnel(summary),
        *_gates("Rejected", "A clip may be beyond several limits.", summary.failed_by, summary, "fail"),
        *_gates("Flagged", f"Kept is what is at worst {recipe.keep}.", summary.flagged_by, summary, "flag"),
        "<h2>Kept clips</h2>",
        _two(summary),
        "<h2>Scores and their limits</h2>",
        _sample_note(summary),
        f"<div class=cards>{''.join(map(_card, histograms))}</div>",
        *_sheets(sheets),
        f"<h2>Recipe</h2><details><summary>All knobs</summary><pre>{escape(dump(recipe))}</pre></details>",
    ]
    title = f"<title>Selection of {escape(out)}</title>"
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f"<!doctype html><html lang=en><head>{meta}{title}<style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"


def _duration(hours: float) -> str:
    return f"{hours:,.3g} hours" if hours >= 1 else f"{60 * hours:.3g} minutes"


def _funnel(summary: Summary) -> str:
    annotated = summary.status["annotated"]
    rows = [("found by annotation", summary.found, "pass")]
    rows += [(name, number, "fail") for name, number in sorted(summary.status.items()) if name != "annotated"]
    rows += [("annotated", annotated, "pass")]
    rows += [("flagged", summary.outcome["flag"], "flag"), ("passed", summary.outcome["pass"], "pass")]
    rows += [("kept", summary.kept, "pass")]
    return _bars([(escape(name), number, kind) for name, number, kind in rows], summary.found)


def _gates(title: str, note: str, counts: dict[str, int], summary: Summary, kind: str) -> list[str]:
    if not counts:
        return []
    rows = []
    for gate, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        alone = summary.failed_only_by.get(gate) if kind == "fail" else None
        text = escape(gate) + (f" <span class=dim>· {alone:,} by nothing else</span>" if alone is not None else "")
        rows.append((text, number, kind))
    return [f"<h2>{title}</h2><p class=dim>{note}</p>", _bars(rows, summary.status["annotated"])]


def _bars(rows: list[tuple[str, int, str]], whole: int) -> str:
    def line(text: str, number: int, kind: str) -> str:
        share = 100 * number / max(whole, 1)
        return (
            f"<tr><td class=gate>{text}</td><td class=n>{number:,}</td><td class=n>{share:.1f} %</td>"
            f'<td><div class=bar><i class="{kind}" style="width:{min(share, 100):.2f}%"></i></div></td></tr>'
        )

    return f"<table>{''.join(line(*row) for row in rows)}</table>"


def _two(summary: Summary) -> str:
    cells = []
    for title, counts in (("data set", summary.kept_of), ("split", summary.split)):
        lines = "".join(f"<tr><td>{escape(str(k))}</td><td class=n>{n:,}</td></tr>" for k, n in sorted(counts.items()))
        cells.append(f"<div class=card><table><tr><th>{title}</th><th></th></tr>{lines}</table></div>")
    if summary.newly_kept is not None:
        change = f"{summary.newly_kept:,} newly kept, {summary.newly_dropped:,} newly dropped"
        cells.append(f"<div class=card><b>Against the selection before</b><p class=dim>{change}</p></div>")
    return f"<div class=cards>{''.join(cells)}</div>"


def _sample_note(summary: Summary) -> str:
    number = len(summary.sample) if summary.sample is not None else 0
    return (
        f"<p class=dim>Of {number:,} clips drawn by hash. Red fails, amber is flagged. Below each: the share of clips that would "
        "be kept with the limit moved, everything else as it is, before look-alikes are removed.</p>"
    )


def _card(histogram: Histogram) -> str:
    rows = []
    for bound, shares in histogram.moves:
        rows.append(f"<tr><th>{escape(bound)}</th>" + "".join(f"<th>{b:.3g}</th>" for b, _ in shares) + "</tr>")
        rows.append("<tr><td>% kept</td>" + "".join(f"<td>{100 * share:.1f}</td>" for _, share in shares) + "</tr>")
    table = f"<table>{''.join(rows)}</table>" if rows else ""
    return (
        f"<div class=card><b>{escape(histogram.score)}</b> <span class=dim>{escape(histogram.check)} · "
        f"{histogram.measured:,} clips</span>{histogram.svg}{table}</div>"
    )


def _sheets(sheets: dict[str, list[Strip]]) -> list[str]:
    if not any(sheets.values()):
        return []
    parts = ["<h2>Clips</h2><p class=dim>First frame; middle frame; its depth, flow, moving pixels, and what a still world does "
             "not explain of the flow (red: 5 px at 720 wide).</p>"]  # fmt: skip
    for group, strips in sheets.items():
        parts.append(f"<h3>{escape(group)}</h3>")
        for strip in strips:
            data = base64.b64encode(strip.jpeg).decode()
            parts.append(
                f'<figure><img alt="{escape(strip.clip_id)}" src="data:image/jpeg;base64,{data}">'
                f"<figcaption>{escape(strip.clip_id)} · {escape(strip.caption)}</figcaption></figure>"
            )
    return parts
