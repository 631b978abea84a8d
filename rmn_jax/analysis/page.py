"""The frame of a self-contained HTML page: style, a few lines of script, and a policy that forbids requests."""

from html import escape

# The palette of Okabe and Ito, which is safe for colour-blind readers, without black (the colour of the text).
_UNITS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#0072b2", "#d55e00", "#d9cc1f", "#8c8c8c")

_STYLE = """
:root { color-scheme: light dark; --paper: #f7f6f3; --card: #ffffff; --ink: #1c2127; --soft: #59626c; --line: #dedbd4;
  --heat: #08519c; --track: #eceae5; --warn: #9c3700; }
@media (prefers-color-scheme: dark) { :root { --paper: #121519; --card: #1a1e24; --ink: #e9e7e2; --soft: #a2abb5;
  --line: #30363e; --heat: #7cc4ff; --track: #2a3037; --warn: #ffab7a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1320px; padding: 28px 32px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 0; }
h3 { font-size: 14px; margin: 0; }
p { margin: 0; max-width: 78ch; }
section { margin-top: 44px; }
section > p, .lead { color: var(--soft); margin: 4px 0 16px; }
a { color: inherit; text-decoration-color: var(--soft); text-underline-offset: 3px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 18px; font-size: 14px; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); margin: 18px 0 0;
  background: var(--card); border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
dl div { box-shadow: 0 0 0 0.5px var(--line); padding: 10px 14px; }
dt { color: var(--soft); font-size: 12px; }
dd { margin: 0; font-size: 16px; font-weight: 600; overflow-wrap: anywhere; }
details { margin-top: 12px; font-size: 14px; }
summary { cursor: pointer; color: var(--soft); }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; }
.soft { color: var(--soft); font-size: 12.5px; font-weight: 400; }
.warn { color: var(--warn); font-weight: 600; }
.swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; flex: none; }

table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 9px 18px 9px 0; border-top: 1px solid var(--line); }
thead th { border: 0; padding-top: 0; font-size: 13px; color: var(--soft); font-weight: 600; }
tbody th { white-space: nowrap; }
td b { font-size: 16px; }
.bar { display: block; height: 6px; border-radius: 3px; background: var(--track); margin: 4px 0; overflow: hidden; }
.bar i { display: block; height: 100%; border-radius: 3px; }
:where(.bar i) { background: var(--heat); }
td .bar { min-width: 150px; max-width: 200px; }
td .soft { white-space: nowrap; }

.loads { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 16px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; margin: 0 0 12px; font-size: 13px; }
.legend span { display: inline-flex; align-items: center; gap: 5px; }
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; font-size: 14px; margin-bottom: 6px; }
.plot { display: flex; gap: 6px; }
svg.load { flex: 1; min-width: 0; height: 150px; display: block; background: var(--track); }
.ends { position: relative; width: 14px; font-size: 10.5px; line-height: 1; }
.ends span { position: absolute; left: 0; transform: translateY(-50%); }
.axis { display: flex; justify-content: space-between; margin: 4px 20px 0 0; }
.over { fill: transparent; }
.over:hover { fill: var(--ink); fill-opacity: 0.12; }

.stage { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 16px; align-items: start; }
.units { display: grid; gap: 10px; min-width: 0; }
.unit { display: grid; grid-template-columns: 92px auto minmax(150px, 1fr); gap: 20px; align-items: center; }
.unit h3 { display: flex; align-items: center; gap: 7px; }
.share { display: block; font-size: 21px; font-weight: 600; }
.images { display: grid; grid-template-columns: repeat(var(--columns), minmax(0, 92px)); gap: 5px; }
.images img { width: 100%; height: auto; display: block; border-radius: 3px; }
.images img.other { outline: 2px dashed var(--warn); outline-offset: -2px; }
.images img.same { outline: 3px solid var(--heat); outline-offset: 1px; }
.pixels .images img { image-rendering: pixelated; }
.classes { list-style: none; margin: 0; padding: 0; font-size: 13px; }
.classes li { display: flex; justify-content: space-between; gap: 8px; padding: 1px 6px; margin: 1px 0;
  border-radius: 3px; background: linear-gradient(90deg, var(--track) var(--part), transparent 0); }
.classes span { min-width: 0; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.unit.dead { border-style: dashed; border-color: var(--warn); }
.unit.dead .images img { filter: grayscale(0.9); opacity: 0.55; }
svg.heatmap { display: block; overflow: visible; max-width: 100%; height: auto; margin-top: 6px; }
.many .stage { grid-template-columns: minmax(0, 1fr); }
.many .stage > figure { position: static; order: -1; overflow-x: auto; }
.many svg.heatmap { max-width: none; }
.many .units { grid-template-columns: repeat(auto-fill, minmax(min(100%, 560px), 1fr)); align-items: start; }
.many .unit { height: 100%; }
.heatmap text { font-size: 11px; fill: var(--ink); }
.heatmap .row { text-anchor: end; dominant-baseline: central; }
.heatmap .column { text-anchor: middle; font-size: 10px; font-weight: 600; }
.heatmap .column.dead { fill: var(--warn); }
.heatmap .column.upright { text-anchor: start; dominant-baseline: central; }
.scale { display: inline-block; width: 60px; height: 9px; border: 1px solid var(--line); border-radius: 2px;
  background: linear-gradient(90deg, transparent, var(--heat)); }
.heat { fill: var(--heat); shape-rendering: crispEdges; }
footer { margin-top: 44px; font-size: 13px; color: var(--soft); }
.stage > figure { position: sticky; top: 14px; }
@media (max-width: 1080px) { .stage { grid-template-columns: minmax(0, 1fr); } .stage > figure { position: static; } }
@media (max-width: 720px) {
  body { padding: 18px 14px 40px; }
  h1 { font-size: 22px; }
  .unit { grid-template-columns: minmax(0, 1fr); gap: 10px; }
  .unit header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 10px; }
  .unit header .bar { flex-basis: 100%; }
  .classes { display: flex; flex-wrap: wrap; gap: 2px 10px; }
  .classes li { gap: 6px; max-width: 100%; padding: 0; background: none; }
  thead { display: none; }
  tr { display: block; border-top: 1px solid var(--line); padding: 10px 0; }
  tbody tr:first-child { border: 0; padding-top: 0; }
  th, td { display: block; border: 0; padding: 2px 0; }
  td[data-name]::before { content: attr(data-name) " "; color: var(--soft); font-size: 13px; }
  td .bar { max-width: none; }
}
"""

# An image can be near to several memories. Pointing at it marks all its copies.
_SCRIPT = """
document.addEventListener("pointerover", ({target}) => {
  const image = target.dataset.image;
  for (const other of document.querySelectorAll("img[data-image]"))
    other.classList.toggle("same", other.dataset.image === image);
});
"""

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def frame(title: str, body: str, num_units: int) -> str:
    """A complete HTML document.

    Args:
      title: plain text.
      body: HTML.
      num_units: how many units need a colour.
    """
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{_unit_colours(num_units)}</style>\n</head>\n<body>\n"
        f"{body}\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _unit_colours(num_units: int) -> str:
    """CSS rules with the colour of each unit. The palette repeats: paler, paler still, then from the beginning."""
    rules = []
    for unit in range(num_units):
        colour = _UNITS[unit % len(_UNITS)]
        paler = 35 * (unit // len(_UNITS) % 3)
        if paler:
            colour = f"color-mix(in srgb, {colour}, var(--card) {paler}%)"
        rules.append(f".u{unit} {{ fill: {colour}; background: {colour}; }}")
    return "\n".join(rules)
