"""The looks of report.html, and the script that draws its figures in the reader's theme."""

STYLE = """
:root {
  --page: #f6f7f9; --card: #ffffff; --text: #1c2430; --muted: #667085; --grid: #e4e7ec;
  --model: #2563c9; --model-fill: rgba(37, 99, 201, .22);
  --second: #d9730d; --second-fill: rgba(217, 115, 13, .20); --third: #0f8a72;
  --better: #0f8a5f; --unclear: #9a6b00; --worse: #c0352b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #11151b; --card: #1a2029; --text: #e6eaf0; --muted: #98a4b5; --grid: #2c3440;
    --model: #74a9ff; --model-fill: rgba(116, 169, 255, .25);
    --second: #ffab57; --second-fill: rgba(255, 171, 87, .20); --third: #4fd0b3;
    --better: #47c98d; --unclear: #e0b341; --worse: #ff7b70;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 1.7rem; margin: 0; line-height: 1.2; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 10px; }
h3 { margin: 20px 0 8px; }
section { margin-top: 34px; }
.facts { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; padding: 0;
  margin: 6px 0 0; color: var(--muted); }
.verdict { background: var(--card); border-left: 5px solid var(--muted); border-radius: 8px;
  padding: 16px 20px; margin-top: 20px; }
.verdict h2 { font-size: 1.35rem; margin-bottom: 6px; }
.verdict p { margin: 4px 0; max-width: 78ch; }
.verdict.better { border-color: var(--better); } .verdict.better h2 { color: var(--better); }
.verdict.unclear { border-color: var(--unclear); } .verdict.unclear h2 { color: var(--unclear); }
.verdict.worse, .verdict.undefined { border-color: var(--worse); }
.verdict.worse h2, .verdict.undefined h2 { color: var(--worse); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr));
  gap: 16px; margin-top: 16px; }
.masonry { columns: 2 440px; column-gap: 16px; margin-top: 16px; }
.masonry figure { break-inside: avoid; margin-bottom: 16px; }
figure { background: var(--card); border-radius: 8px; padding: 14px 16px; margin: 0; min-width: 0; }
figcaption { font-weight: 600; margin-bottom: 6px; overflow-wrap: anywhere; }
.note { color: var(--muted); font-size: .86rem; margin: 0 0 6px; }
.scroll { overflow-x: auto; background: var(--card); border-radius: 8px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 14px; text-align: right; border-top: 1px solid var(--grid);
  white-space: nowrap; }
thead th, thead + tbody tr:first-child > *, tbody:first-child tr:first-child > * { border-top: 0; }
thead th { color: var(--muted); font-weight: 500; font-size: .88rem;
  border-bottom: 1px solid var(--grid); }
th:first-child { text-align: left; font-weight: 500; white-space: normal; min-width: 8rem;
  overflow-wrap: anywhere; }
figure th, figure td { padding: 6px 8px; font-size: .9rem; }
.compare td:nth-child(2) { font-weight: 700; color: var(--model); }
.compare th small { display: block; color: var(--muted); font-weight: 400; white-space: normal; }
.total tr:last-child > * { font-weight: 600; }
.pairs td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.pairs th { vertical-align: top; color: var(--muted); width: 9rem; }
.scroll + .scroll { margin-top: 12px; }
details { margin-top: 14px; }
summary { cursor: pointer; color: var(--muted); padding: 4px 0; }
details > ul.tree { background: var(--card); border-radius: 8px; padding: 12px 16px 12px 32px;
  margin: 4px 0 0; }
.tree { padding-left: 18px; margin: 0; font-size: .92rem; }
.tree b { font-weight: 500; }
code { font-family: ui-monospace, Consolas, monospace; font-size: .9em; color: var(--muted);
  overflow-wrap: anywhere; }
@media (max-width: 560px) {
  main { padding: 18px 12px 40px; }
  th, td { padding: 6px 9px; font-size: .9rem; }
  figure { padding: 12px 10px; }
  .compare th small { display: none; }
  .compare thead th { white-space: normal; }
  .pairs th { width: 6.5rem; white-space: normal; }
}
"""

SCRIPT = """
const { figures } = JSON.parse(document.getElementById("figures").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;
function themed(value, style) {
  if (typeof value === "string") {
    return value.startsWith("var(") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;
  }
  if (Array.isArray(value)) return value.map(item => themed(item, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v, style)]));
}
function draw() {
  const style = getComputedStyle(document.documentElement);
  for (const [id, figure] of Object.entries(figures)) {
    const { data, layout } = themed(figure, style);
    if (touch) layout.dragmode = false;
    Plotly.react(id, data, layout, { responsive: true, displayModeBar: false });
  }
}
draw();
dark.addEventListener("change", draw);
"""
