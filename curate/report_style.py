"""The look of the report: quiet, in the reader's own light or dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c1c1f; --dim: #66666e; --paper: #fbfbfa; --line: #dcdcd8; --card: #ffffff;
  --pass: #8a9aa8; --flag: #d99a2b; --fail: #c8503c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e8e8ea; --dim: #a0a0a8; --paper: #17171a; --line: #34343a; --card: #1f1f23;
    --pass: #74828f; --flag: #d9a441; --fail: #dd6a55;
  }
}
body {
  background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  margin: 2rem auto; max-width: 72rem; padding: 0 1.5rem;
}
h1 { font-size: 1.5rem; margin: 0 0 .2rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
.dim { color: var(--dim); }
p.dim { margin: .1rem 0 .7rem; }
table { border-collapse: collapse; width: 100%; }
td, th { padding: .18rem .7rem .18rem 0; text-align: left; }
td.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; width: 1%; }
td.gate { width: 55%; }
th { color: var(--dim); font-weight: 500; font-size: .85rem; }
.bar { background: var(--line); border-radius: 3px; height: .7rem; overflow: hidden; min-width: 8rem; }
.bar i { display: block; height: 100%; background: var(--pass); }
.bar i.flag { background: var(--flag); }
.bar i.fail { background: var(--fail); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; }
.card table { font-size: .82rem; font-variant-numeric: tabular-nums; }
.card td, .card th { padding: .05rem .4rem .05rem 0; white-space: nowrap; }
svg { width: 100%; display: block; margin: .4rem 0 .2rem; }
svg text { fill: var(--dim); font-size: 10px; paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
svg text.flag, rect.flag { fill: var(--flag); }
svg text.fail, rect.fail { fill: var(--fail); }
rect.pass { fill: var(--pass); }
line { stroke-width: 1.2; stroke-dasharray: 3 2; }
line.flag { stroke: var(--flag); }
line.fail { stroke: var(--fail); }
figure { margin: 0 0 .9rem; }
figure img { width: 100%; border-radius: 4px; display: block; }
figcaption { color: var(--dim); font-size: .85rem; overflow-wrap: anywhere; }
details pre {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 1rem; overflow: auto; font-size: .82rem;
}
"""
