"""The page on a version: what its features hold, and what changed since another or day by day."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from feature_store.daily import DayDrift, Days
from feature_store.drift import Drift, FeatureDrift
from feature_store.profile import FeatureProfile, Profile, Rate, SplitProfile
from recsys.evaluation.page_parts import Figures, details, note_line, table_of_rows, whole_page
from recsys.evaluation.plots import MODEL, SECOND, Figure, figure_layout, shortened

LARGE_PSI = 0.25
"""The usual marks: below 0.1 stable, above 0.25 another population (Siddiqi 2006)."""
SOME_PSI = 0.1
_BARS = 8
_TABLE_ROWS = 15
_CARDS = 60
_CHANGED = 6
_LONGEST = 20
_MAX_TICKS = 6
# A light fill, on which dots can be seen.
_BAR = {"color": "var(--model-fill)", "line": {"color": MODEL, "width": 1}}
_MAX_DAY_LINES = 30


@dataclass(frozen=True)
class Facts:
    """What the page says of the version at its top."""

    title: str
    lines: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def profile_page(
    facts: Facts, profile: Profile, drifts: Sequence[Drift] = (), days: Days | None = None
) -> str:
    """One HTML file that needs nothing else.

    Args:
        facts: The top of the page.
        profile: Of the version.
        drifts: What is compared.
        days: The version day by day.
    """
    figures = Figures()
    sections = [
        _head(facts),
        *(_drift_section(drift, figures, first=not n) for n, drift in enumerate(drifts)),
        _days_section(days, figures) if days is not None else "",
        _overview(profile),
        _cards(profile, figures),
    ]
    return whole_page(facts.title, sections, figures)


def _head(facts: Facts) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in facts.lines)
    warned = "".join(f"<p>{escape(line)}</p>" for line in facts.warnings)
    box = f'<div class="verdict unclear"><h2>Warnings</h2>{warned}</div>' if warned else ""
    return f'<h1>{escape(facts.title)}</h1><ul class="facts">{lines}</ul>{box}'


# --- what the features hold -----------------------------------------------------------------------


def _overview(profile: Profile) -> str:
    """A line per feature, with the shares of every split."""
    splits = list(profile.splits)
    first = profile.splits[splits[0]]
    rows = []
    for feature in first.features:
        others = [profile.splits[split].feature(feature.name) for split in splits]
        rows.append(
            (
                feature.name,
                _distinct(feature),
                _each([other.missing for other in others]),
                _each([other.unseen for other in others]),
                _range(feature),
            )
        )
    names = " · ".join(splits)
    head = ("feature", "distinct", "missing", "unseen", "most frequent, or 5% – 50% – 95%")
    note = note_line(
        f"Shares in {names}, once where they are the same. Distinct values in {splits[0]}, ≈ where"
        " they are estimated. Unseen: outside the vocabulary, which hashed features do not have."
    )
    table = table_of_rows(head, rows, name="pairs-last")
    return f"<section><h2>Features at a glance</h2>{note}{table}</section>"


def _cards(profile: Profile, figures: Figures) -> str:
    split, found = next(iter(profile.splits.items()))
    tasks = [label.task for label in found.labels]
    boxes = [_card(feature, found, figures) for feature in found.features[:_CARDS]]
    left = len(found.features) - len(boxes)
    more = note_line(f"{left} more are in the JSON file.") if left > 0 else ""
    rate = f" Dots and line: rate of {tasks[0]}, with its 95% interval." if tasks else ""
    note = note_line(
        f"The rows of {split}. Bars: share of the rows (of the entries of lists).{rate}"
    )
    return (
        f"<section><h2>Feature by feature</h2>{note}"
        f'<div class="grid">{"".join(boxes)}</div>{more}</section>'
    )


def _card(feature: FeatureProfile, split: SplitProfile, figures: Figures) -> str:
    said = [f"{_distinct(feature)} distinct"]
    if feature.missing is not None:
        said.append(f"{_percent(feature.missing)} missing")
    if feature.unseen is not None:
        said.append(f"{_percent(feature.unseen)} unseen")
    if feature.lengths is not None:
        said.append(
            f"{feature.lengths.mean:.3g} a row, at most {feature.lengths.quantiles['100']:g}"
        )
    if feature.weights is not None:
        said.append(f"mean weight {feature.weights.mean:.3g}")
    if feature.numbers is not None:
        said.append(f"mean {feature.numbers.mean:.4g}")
    overall = split.labels[0].rate if split.labels else None
    if feature.numbers is not None:
        return figures.place(feature.name, number_figure(feature, overall), " · ".join(said))
    if not feature.top:
        said.append("no value at all")
        title = f"<figcaption>{escape(feature.name)}</figcaption>"
        return f"<figure>{title}{note_line(' · '.join(said))}</figure>"
    figure = (ordered_figure if feature.ordered else value_figure)(feature, overall)
    box = figures.place(feature.name, figure, " · ".join(said))
    return box.removesuffix("</figure>") + _values_table(feature) + "</figure>"


def _values_table(feature: FeatureProfile) -> str:
    shown = feature.top if feature.ordered else feature.top[:_TABLE_ROWS]
    head = ("value", "rows", "share", *(rate.task for rate in feature.top[0].rates))
    rows = [
        (value.value, f"{value.rows:,}", _percent(value.share), *map(_rate, value.rates))
        for value in shown
    ]
    for name, rates in (("(missing)", feature.missing_rates), ("(unseen)", feature.unseen_rates)):
        if rates:
            share = rates[0].rows / feature.entries
            rows.append((name, f"{rates[0].rows:,}", _percent(share), *map(_rate, rates)))
    title = "values" if len(shown) == len(feature.top) else f"{len(shown)} most frequent"
    return details(title, table_of_rows(head, rows))


def value_figure(feature: FeatureProfile, overall: float | None) -> Figure:
    """The most frequent values as bars, the rate of the first label as dots."""
    drawn = feature.top[:_BARS][::-1]
    places = list(range(len(drawn)))
    layout = _plain_layout()
    layout["xaxis"].update(tickformat="~%", nticks=4, rangemode="tozero", tickangle=0)
    layout["yaxis"].update(
        tickvals=places, ticktext=_labels([value.value for value in drawn]), showgrid=False
    )
    layout["yaxis"]["range"] = [-0.6, len(drawn) - 0.4]
    layout["height"] = 64 + 22 * max(2, len(drawn))
    layout["bargap"] = 0.3
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [value.share for value in drawn],
        "y": places,
        "marker": _BAR,
        "customdata": [value.rows for value in drawn],
        "hovertemplate": "%{x:.2%}, %{customdata:,} rows<extra></extra>",
        "showlegend": False,
    }
    rates = [value.rates[0] for value in drawn if value.rates]
    if overall is None or not rates:
        return {"data": [bars], "layout": layout}
    layout["xaxis2"] = _rate_axis(layout["xaxis"], rates, overlaying="x", side="top")
    dots = _dots(rates, places, horizontal=True) | {"xaxis": "x2"}
    return {"data": [bars, dots], "layout": layout}


def ordered_figure(feature: FeatureProfile, overall: float | None) -> Figure:
    """Values in their order as bars, the rate of the first label as a line."""
    places = list(range(len(feature.top)))
    layout = _plain_layout()
    step = -(-len(places) // _MAX_TICKS)
    names = [value.value for value in feature.top]
    layout["xaxis"].update(
        tickvals=places[::step], ticktext=_labels(names[::step]), tickangle=0, showgrid=False
    )
    layout["yaxis"].update(tickformat="~%", nticks=4, rangemode="tozero")
    layout["height"] = 200
    layout["bargap"] = 0.2
    bars = {
        "type": "bar",
        "x": places,
        "y": [value.share for value in feature.top],
        "marker": _BAR,
        "customdata": _labels(names),
        "hovertemplate": "%{customdata}: %{y:.2%}<extra></extra>",
        "showlegend": False,
    }
    rates = [value.rates[0] for value in feature.top if value.rates]
    if overall is None or not rates:
        return {"data": [bars], "layout": layout}
    layout["yaxis2"] = _rate_axis(layout["yaxis"], rates, overlaying="y", side="right")
    return {"data": [bars, _line(rates, places)], "layout": layout}


def number_figure(feature: FeatureProfile, overall: float | None) -> Figure:
    """A histogram, and the rate of the first label by quantile bucket."""
    assert feature.numbers is not None, "asked of numbers only"
    histogram = feature.numbers.histogram
    widths = [high - low for low, high in zip(histogram.edges, histogram.edges[1:], strict=False)]
    middles = [
        (low + high) / 2 for low, high in zip(histogram.edges, histogram.edges[1:], strict=False)
    ]
    layout = _plain_layout()
    layout["xaxis"].update(nticks=5, tickformat="~s", tickangle=0, showgrid=False)
    layout["yaxis"].update(tickformat="~%", nticks=4, rangemode="tozero")
    layout["height"] = 200
    layout["bargap"] = 0.05
    bars = {
        "type": "bar",
        "x": middles,
        "y": list(histogram.shares),
        "width": [width or 1.0 for width in widths],
        "marker": _BAR,
        "hovertemplate": "about %{x:.4g}: %{y:.2%}<extra></extra>",
        "showlegend": False,
    }
    buckets = [bucket for bucket in feature.numbers.buckets if bucket.rates]
    if overall is None or not buckets:
        return {"data": [bars], "layout": layout}
    rates = [bucket.rates[0] for bucket in buckets]
    low, high = histogram.edges[0], histogram.edges[-1]
    at = [min(max((bucket.low + bucket.high) / 2, low), high) for bucket in buckets]
    layout["yaxis2"] = _rate_axis(layout["yaxis"], rates, overlaying="y", side="right")
    return {"data": [bars, _line(rates, at)], "layout": layout}


def _plain_layout(*, legend: bool = False) -> Figure:
    """Axes without titles, and without the room for them."""
    layout = figure_layout("", "", legend=legend)
    for axis in ("xaxis", "yaxis"):
        del layout[axis]["title"]
    return layout


def _dots(rates: Sequence[Rate], places: Sequence[float], *, horizontal: bool) -> Figure:
    values, error = [rate.rate for rate in rates], _error(rates)
    x, y = (values, list(places)) if horizontal else (list(places), values)
    shown = "%{x:.3%}" if horizontal else "%{y:.3%}"
    return {
        "type": "scatter",
        "mode": "markers",
        "x": x,
        "y": y,
        "marker": {"color": SECOND, "size": 7},
        "error_x" if horizontal else "error_y": error,
        "customdata": [rate.rows for rate in rates],
        "hovertemplate": f"rate {shown} of %{{customdata:,}} rows<extra></extra>",
        "showlegend": False,
    }


def _line(rates: Sequence[Rate], places: Sequence[float]) -> Figure:
    dots = _dots(rates, places, horizontal=False)
    line = {"color": SECOND, "width": 1.5}
    return dots | {"yaxis": "y2", "mode": "lines+markers", "line": line}


def _error(rates: Sequence[Rate]) -> Figure:
    return {
        "type": "data",
        "symmetric": False,
        "array": [rate.high - rate.rate for rate in rates],
        "arrayminus": [rate.rate - rate.low for rate in rates],
        "color": SECOND,
        "thickness": 1.2,
        "width": 0,
    }


def _rate_axis(axis: Figure, rates: Sequence[Rate], *, overlaying: str, side: str) -> Figure:
    """An axis of its own for the rates, in their colour."""
    highest = max(rate.high for rate in rates)
    return {
        **axis,
        "overlaying": overlaying,
        "tickmode": "auto",
        "side": side,
        "showgrid": False,
        "tickformat": "~%",
        "nticks": 4,
        "range": [0, highest * 1.08 or 1.0],
        "tickfont": {"color": SECOND},
    }


# --- what changed ---------------------------------------------------------------------------------


def _drift_section(drift: Drift, figures: Figures, *, first: bool) -> str:
    title = f"From {drift.reference} to {drift.current}"
    drawn = [feature for feature in drift.features if feature.psi is not None]
    meaning = (
        f" Affected: share of the traffic in values whose share changed by more than"
        f" {drift.factor:g} times. PSI: below {SOME_PSI:g} stable, above {LARGE_PSI:g} another"
        " population; chance: what it stays below in 95 of 100 cases when nothing changed. JS:"
        " Jensen-Shannon divergence in bits."
    )
    counts = f"{drift.reference_rows:,} rows against {drift.current_rows:,}."
    note = note_line(counts + meaning * first)
    rows = [
        (
            _drift_name(feature),
            _percent(feature.affected),
            _number(feature.psi),
            _number(feature.psi_by_chance),
            _number(feature.jensen_shannon),
            ""
            if feature.new is None
            else f"{feature.new.values:,} ({_percent(feature.new.share)})",
            "" if feature.vanished is None else f"{feature.vanished.values:,}",
        )
        for feature in drawn
    ]
    head = ("feature", "affected", "PSI", "chance", "JS", "new values", "vanished")
    table = table_of_rows(head, rows)
    wild = [feature for feature in drawn if feature.drifted and feature.affected][:_CHANGED]
    boxes = [
        figures.place(
            _drift_name(feature),
            change_figure(feature, drift),
            f"PSI {_number(feature.psi)}, {_percent(feature.affected)} of the traffic affected",
        )
        for feature in wild
    ]
    pictures = f'<div class="grid">{"".join(boxes)}</div>' if boxes else ""
    left = [
        *(f"{f.name}: {f.incomparable}" for f in drift.features if f.incomparable is not None),
        *(f"{name}: only in {drift.reference}" for name in drift.only_reference),
        *(f"{name}: only in {drift.current}" for name in drift.only_current),
    ]
    rest = "".join(map(note_line, left))
    return f"<section><h2>{escape(title)}</h2>{note}{table}{rest}{pictures}</section>"


def change_figure(feature: FeatureDrift, drift: Drift) -> Figure:
    """Shares before and after, the most changed values on top."""
    # Parts of a number stand in their order: all of them, the lowest on top.
    drawn = (feature.changes if feature.of != "values" else feature.changes[:_BARS])[::-1]
    places = list(range(len(drawn)))
    layout = _plain_layout(legend=True)
    layout["legend"] |= {"traceorder": "reversed"}
    layout["xaxis"].update(tickformat="~%", nticks=4, rangemode="tozero", tickangle=0)
    layout["yaxis"].update(
        tickvals=places, ticktext=_labels([change.value for change in drawn]), showgrid=False
    )
    layout["height"] = 70 + 28 * max(2, len(drawn))
    layout["bargap"] = 0.3
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": escape(name, quote=False),
            "x": shares,
            "y": places,
            "marker": {"color": colour},
            "hovertemplate": "%{x:.2%}",
        }
        for name, shares, colour in (
            (drift.current, [change.current for change in drawn], SECOND),
            (drift.reference, [change.reference for change in drawn], MODEL),
        )
    ]
    return {"data": traces, "layout": layout}


# --- days -----------------------------------------------------------------------------------------


def _days_section(days: Days, figures: Figures) -> str:
    each = "Each day" if days.length == 1 else f"Each {days.length} days"
    note = note_line(
        f"{each} (UTC) against the one before; fields that chance alone explains are empty. A day"
        " with fewer than 100 rows is passed over."
    )
    boxes = [figures.place("Rows and rate by day", day_figure(days))]
    compared = [f for f in days.features if any(p is not None for p in f.psi_before)]
    if compared:
        boxes.append(figures.place("PSI by day", heat_figure(days, compared[:_MAX_DAY_LINES])))
    rows = []
    for feature in compared:
        day = feature.largest_step()
        assert day is not None, "features that no day compares are left out"
        since = [p for p in feature.psi_first if p is not None]
        rows.append(
            (
                _day_name(feature),
                f"{days.days[day]:%Y-%m-%d}",
                _number(feature.psi_before[day]),
                _number(feature.by_chance[day]),
                _number(since[-1]),
                _ends(feature.missing),
                _ends(feature.unseen),
            )
        )
    head = ("feature", "largest step", "PSI", "chance", "PSI first to last", "missing", "unseen")
    table = table_of_rows(head, rows)
    return (
        f"<section><h2>Day by day</h2>{note}"
        f'<div class="masonry">{"".join(boxes)}</div><h3>Largest steps</h3>{table}</section>'
    )


def day_figure(days: Days) -> Figure:
    """Rows as bars, the rate of the first label as a line."""
    at = [f"{day:%Y-%m-%d}" for day in days.days]
    layout = _plain_layout()
    layout["yaxis"].update(tickformat="~s", rangemode="tozero", nticks=4)
    layout["xaxis"].update(type="date", nticks=5, tickangle=0, showgrid=False)
    layout["height"] = 220
    bars = {
        "type": "bar",
        "x": at,
        "y": list(days.rows),
        "marker": _BAR,
        "hovertemplate": "%{x}: %{y:,} rows<extra></extra>",
        "showlegend": False,
    }
    if not days.labels:
        return {"data": [bars], "layout": layout}
    rates = next(iter(days.labels.values()))
    layout["yaxis2"] = _rate_axis(layout["yaxis"], rates, overlaying="y", side="right")
    # An interval of a day with three rows would press all others flat.
    layout["yaxis2"]["range"] = [0, min(1.0, 1.3 * max(rate.rate for rate in rates)) or 1.0]
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": at,
        "y": [rate.rate for rate in rates],
        "line": {"color": SECOND, "width": 1.5},
        "yaxis": "y2",
        "hovertemplate": "rate %{y:.2%}<extra></extra>",
        "showlegend": False,
    }
    return {"data": [bars, line], "layout": layout}


def heat_figure(days: Days, features: Sequence[DayDrift]) -> Figure:
    """PSI of every feature on every day, where it is more than chance."""
    values = [
        [
            p if p is not None and c is not None and p > c else None
            for p, c in zip(feature.psi_before, feature.by_chance, strict=True)
        ]
        for feature in features
    ]
    layout = _plain_layout()
    layout["xaxis"].update(type="date", nticks=5, tickangle=0, showgrid=False)
    layout["yaxis"].update(
        tickvals=list(range(len(features))),
        ticktext=_labels([_day_name(feature) for feature in features]),
        autorange="reversed",
        showgrid=False,
    )
    layout["height"] = 70 + 22 * max(2, len(features))
    trace = {
        "type": "heatmap",
        "z": values,
        "x": [f"{day:%Y-%m-%d}" for day in days.days],
        "y": list(range(len(features))),
        "zmin": 0.0,
        "zmax": LARGE_PSI * 2,
        "colorscale": [[0.0, "var(--model-fill)"], [0.5, MODEL], [1.0, SECOND]],
        "colorbar": {"thickness": 8, "outlinewidth": 0, "nticks": 4, "tickformat": ".2~g"},
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "hovertemplate": "%{x}: PSI %{z:.3f}<extra></extra>",
    }
    return {"data": [trace], "layout": layout}


# --- words ----------------------------------------------------------------------------------------


def _distinct(feature: FeatureProfile) -> str:
    return f"{'≈' if feature.distinct_estimated else ''}{feature.distinct:,}"


def _range(feature: FeatureProfile) -> str:
    if feature.numbers is not None:
        return " – ".join(f"{feature.numbers.quantiles[at]:.4g}" for at in ("5", "50", "95"))
    if not feature.top:
        return "–"
    return f"{shortened(feature.top[0].value, _LONGEST)} ({_percent(feature.top[0].share)})"


def _percent(share: float | None) -> str:
    if share is None:
        return "–"
    if share and share < 0.0005:
        return "<0.1%"
    return f"{share:.1%}" if share % 1 else f"{share:.0%}"


def _each(shares: Sequence[float | None]) -> str:
    """A share of each split, or one where they look alike."""
    texts = [_percent(share) for share in shares]
    return " · ".join(texts if len(set(texts)) > 1 else texts[:1])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _rate(rate: Rate) -> str:
    return f"{rate.rate:.1%} ({rate.low:.1%} – {rate.high:.1%})"


def _ends(shares: Sequence[float | None]) -> str:
    known = [share for share in shares if share is not None]
    ends = [_percent(min(known)), _percent(max(known))] if known else ["–"]
    return " – ".join(dict.fromkeys(ends))


def _drift_name(feature: FeatureDrift) -> str:
    return f"{feature.name}: lengths" if feature.of == "lengths" else feature.name


def _day_name(feature: DayDrift) -> str:
    return f"{feature.name}: lengths" if feature.of == "lengths" else feature.name


def _labels(names: Sequence[str]) -> list[str]:
    # Plotly reads tags in labels: a name that looks like a link must not become one.
    return [escape(shortened(name, _LONGEST), quote=False) for name in names]
