"""Writes the tables and plots of docs/methods.md from what methods_table.py made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Final

from methods_numbers import Line, Pictures, Run, distance, line, missed, paired, read_run, refused, together
from methods_plots import plot_cost, plot_side_effect

from sldcore.documents import write_text_atomically
from sldcore.errors import ConfigurationError
from sldcore.evaluation.estimates import Estimate

ROLES: Final = "playground/roles-held-out"
NEUTRAL: Final = "playground/neutral-held-out"
EXPLICIT: Final = "playground/explicit"
MAIN_STAGES: Final = ("presets", "peers", "savings", "gates")
COMPARED: Final = ("presets", "peers")
STREAMS: Final = (0.01, 0.05, 0.20)
EXACT: Final = {"max-every-2": "max", "max-every-3": "max", "medium-momentum-5%": "medium"}
FEW: Final = tuple(
    f"few-{steps}-{scheduler}" for steps in (8, 20) for scheduler in ("ddim", "dpm++2m", "euler")
)
SIDE_EFFECT: Final = "methods-side-effect.png"
COST: Final = "methods-cost.png"


def write(work: Path, docs: Path) -> None:
    """Write every table between its marks in ``docs/methods.md``, and the plots beside it.

    Raises:
        ConfigurationError: nothing was made, or a mark is missing.
        OSError: a file cannot be read or written.
    """
    runs = {stage: read_run(work / stage) for stage in (*MAIN_STAGES, "goal", "seconds", *FEW)}
    if not runs["presets"]:
        raise ConfigurationError(f"{work} holds no pictures; run 'make' first")
    merged = _merged(runs[stage] for stage in MAIN_STAGES)
    compared = list(dict.fromkeys(method for stage in COMPARED for _, method in runs[stage]))
    roles, neutral = (
        _with_seconds(_lines(merged, each, compared), runs["presets"], runs["seconds"], each)
        for each in (ROLES, NEUTRAL)
    )
    tables = {
        "roles": suppression_table(roles),
        "neutral": side_effect_table(neutral),
        "explicit": suppression_table(_lines(merged, EXPLICIT, compared)),
        "goal": goal_table(runs["goal"]),
        "gates": gates_table(merged, runs["gates"]),
        "streams": streams_table(merged, ["max", "gated", *(method for _, method in runs["gates"])]),
        "savings": savings_table(merged),
        "few-roles": few_table({each: runs[each] for each in FEW}, merged, work, ROLES),
        "few-neutral": few_table({each: runs[each] for each in FEW}, merged, work, NEUTRAL),
        "few-explicit": few_table({each: runs[each] for each in FEW}, merged, work, EXPLICIT),
    }
    page = docs / "methods.md"
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        text = _with_table(text, name, table)
    write_text_atomically(page, text)
    plot_side_effect(roles, neutral, docs / SIDE_EFFECT)
    plot_cost(roles, neutral, docs / COST)


def _merged(runs: Iterable[Run]) -> Run:
    merged: dict[tuple[str, str], Pictures] = {}
    for run in runs:
        merged.update(run)
    return merged


def _lines(run: Run, benchmark: str, methods: Sequence[str]) -> list[Line]:
    """The lines of those methods that have pictures, in their order."""
    there = [method for method in methods if run.get((benchmark, method))]
    return [line(method, run[benchmark, method], run[benchmark, "off"]) for method in there]


def _with_seconds(lines: Sequence[Line], presets: Run, timed: Run, benchmark: str) -> list[Line]:
    """Lines with seconds by those of off in the same stage: the machine was as busy then. NaN if there are none."""
    found = {each.method: each.seconds for each in _lines(timed, benchmark, [name for _, name in timed])}
    unknown = Estimate(nan, nan, 0, 0)
    return [
        each
        if (benchmark, each.method) in presets
        else replace(each, seconds=found.get(each.method, unknown))
        for each in lines
    ]


def _with_table(text: str, name: str, table: str) -> str:
    mark = re.compile(rf"(<!-- table {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not mark.search(text):
        raise ConfigurationError(f"methods.md has no mark '<!-- table {name} -->'")
    return mark.sub(lambda found: f"{found[1]}\n{table}\n{found[2]}", text)


def _markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "".join(f"| {' | '.join(each)} |\n" for each in lines)


def suppression_table(lines: Sequence[Line]) -> str:
    """IP, agreement with the prompt and cost on prompts that have something to suppress."""
    head = ["method", "pictures", "IP", "off minus it", "subject", "colour", "place", "rows", "seconds"]
    return _markdown(
        head,
        (
            [
                each.method,
                str(each.ip.n),
                _signless(each.ip),
                "" if each.method == "off" else _signed(each.drop),
                *_agreement(each),
                f"{each.rows.value:.2f}",
                _seconds(each),
            ]
            for each in lines
        ),
    )


def side_effect_table(lines: Sequence[Line]) -> str:
    """What is changed on prompts that need nothing, and what it costs."""
    head = ["method", "pictures", "identical", "RMSE to off", "IP", "subject", "colour", "place", "rows", "seconds"]  # fmt: skip
    return _markdown(
        head,
        (
            [
                each.method,
                str(each.ip.n),
                f"{100 * each.identical.value:.1f} %",
                _signless(each.moved),
                f"{each.ip.value:.3f}",
                *_agreement(each),
                f"{each.rows.value:.2f}",
                _seconds(each),
            ]
            for each in lines
        ),
    )


def _agreement(each: Line) -> list[str]:
    return [
        f"{100 * value.value:.0f} %" if value.n else "" for value in (each.subject, each.colour, each.place)
    ]


def _seconds(each: Line) -> str:
    return f"{each.seconds.value:.2f}" if each.seconds.n else ""


def _signless(value: Estimate) -> str:
    return f"{value.value:.3f} ± {value.error:.3f}"


def _signed(value: Estimate) -> str:
    return f"{value.value:+.3f} ± {value.error:.3f}"


def goal_table(run: Run) -> str:
    """The goal of the preset ``gated``, part by part, with two pictures per prompt."""
    own, off, strongest = (run[ROLES, method] for method in ("gated", "off", "max"))
    roles, plain = line("gated", own, off), line("gated", run[NEUTRAL, "gated"], run[NEUTRAL, "off"])
    against, most = paired(own, strongest), line("max", strongest, off)
    left, shown = missed(own, off)
    low, high = plain.identical.interval()
    return _markdown(
        ["what", "goal", "found"],
        [
            ["IP of gated on role prompts", "", f"{_signless(roles.ip)} ({roles.ip.n} pictures)"],
            ["IP of max on the same", "", _signless(most.ip)],
            [
                "gated minus max, 95 % interval",
                "at most .01",
                f"{against.difference.value:+.3f}, {against.difference.low:+.3f} to {against.difference.high:+.3f}",
            ],
            [
                "glyph with gated only, with max only, p (McNemar)",
                "not above max",
                f"{against.test.first_only}, {against.test.second_only}, {against.test.p:.2f}",
            ],
            ["role pictures with a glyph that the gate missed", "", f"{left} of {shown}"],
            [
                "neutral pictures bit-identical, 95 % interval",
                ">= 98 %",
                f"{100 * plain.identical.value:.1f} % of {plain.identical.n}, {100 * low:.1f} to {100 * high:.1f} %",
            ],
            ["rows on neutral prompts", "<= 1.08", _signless(plain.rows)],
            ["rows on role prompts", "<= 1.70", _signless(roles.rows)],
        ],
    )


def gates_table(run: Run, gates: Run) -> str:
    """How far each idea for a gate got, all on the prompts that those of ``gates`` have."""
    head = ["method", "IP on roles", "minus max", "p", "missed", "subject", "neutral identical", "rows on neutral", "rows on roles", "IP on explicit"]  # fmt: skip
    methods = list(dict.fromkeys(method for _, method in gates))
    shown = {benchmark: run[benchmark, method] for benchmark, method in gates}
    rows = [_gate(method, _same_prompts(run, shown)) for method in ("max", "gated", *methods) if shown]
    return _markdown(head, rows)


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< .001"


def _same_prompts(run: Run, shown: Mapping[str, Pictures]) -> Run:
    return {
        (benchmark, method): {each: own[each] for each in together(own, shown[benchmark])}
        for (benchmark, method), own in run.items()
        if benchmark in shown
    }


def _gate(method: str, run: Run) -> list[str]:
    roles, neutral = (
        line(method, run.get((each, method), {}), run.get((each, "off"), {})) for each in (ROLES, NEUTRAL)
    )
    against = paired(run[ROLES, method], run[ROLES, "max"])
    left, shown = missed(run[ROLES, method], run[ROLES, "off"])
    return [
        method,
        _signless(roles.ip),
        "" if method == "max" else f"{against.difference.value:+.3f}",
        "" if method == "max" else _p(against.test.p),
        f"{left} of {shown}",
        f"{100 * roles.subject.value:.0f} %",
        f"{100 * neutral.identical.value:.1f} %",
        f"{neutral.rows.value:.3f}",
        f"{roles.rows.value:.3f}",
        _signless(line(method, run.get((EXPLICIT, method), {}), run.get((EXPLICIT, "off"), {})).ip),
    ]


def streams_table(run: Run, methods: Sequence[str]) -> str:
    """Expected rows of streams that mix role prompts into neutral ones; plain guidance is 1."""
    head = ["method", *(f"{100 * part:.0f} % role prompts" for part in STREAMS)]
    rows = []
    for method in dict.fromkeys(methods):
        if (NEUTRAL, method) in run:
            neutral, roles = (
                line(method, run[benchmark, method], run[benchmark, "off"]).rows.value
                for benchmark in (NEUTRAL, ROLES)
            )
            rows.append([method, *(f"{(1 - part) * neutral + part * roles:.3f}" for part in STREAMS)])
    return _markdown(head, rows)


def savings_table(run: Run) -> str:
    """Approximate savings against the exact method that they stand for."""
    head = ["method", "instead of", "rows on roles", "exact", "IP on roles", "minus exact, 95 % interval", "RMSE to exact, roles", "RMSE to exact, neutral"]  # fmt: skip
    rows = []
    for method, exact in EXACT.items():
        if not run.get((ROLES, method)) or not run.get((NEUTRAL, method)):
            continue
        own, other = (line(each, run[ROLES, each], run[ROLES, "off"]) for each in (method, exact))
        change = paired(run[ROLES, method], run[ROLES, exact]).difference
        rows.append(
            [
                method,
                exact,
                f"{own.rows.value:.2f}",
                f"{other.rows.value:.2f}",
                _signless(own.ip),
                f"{change.value:+.3f}, {change.low:+.3f} to {change.high:+.3f}",
                *(_signless(distance(run[each, method], run[each, exact])) for each in (ROLES, NEUTRAL)),
            ]
        )
    return _markdown(head, rows)


def few_table(stages: Mapping[str, Run], main: Run, work: Path, benchmark: str) -> str:
    """Role and explicit prompts: off minus IP. Neutral ones: RMSE to off. One column for each number of steps and scheduler."""
    columns = {"50 ddim": (main, {})}
    columns |= {
        stage.removeprefix("few-").replace("-", " "): (run, refused(work / stage))
        for stage, run in stages.items()
        if run
    }
    methods = list(dict.fromkeys(method for run, _ in columns.values() for _, method in run))
    methods = [each for each in methods if any((benchmark, each) in run for run in list(stages.values()))]
    named = sorted({*methods, *(each for _, no in columns.values() for each in no)}, key=_order)
    shown = next((run[benchmark, "off"] for run in stages.values() if (benchmark, "off") in run), {})
    rows = [
        [method, *(_few_cell(run, no, benchmark, method, shown) for run, no in columns.values())]
        for method in named
    ]
    return _markdown(["method", *columns], rows)


def _order(method: str) -> tuple[int, str]:
    order = ("off", "weak", "weak-noise", "medium", "medium-noise", "strong", "strong-noise", "max", "gated")
    return (order.index(method), "") if method in order else (len(order), method)


def _few_cell(run: Run, no: Mapping[str, str], benchmark: str, method: str, shown: Pictures) -> str:
    if method in no:
        return "refused"
    own, off = run.get((benchmark, method)), run.get((benchmark, "off"))
    if off and (benchmark, method.removesuffix("-noise")) in run and not own:
        return f"as {method.removesuffix('-noise')}"
    if not own or not off:
        return ""
    found = line(method, {each: own[each] for each in together(own, shown)}, off)
    if benchmark == NEUTRAL:
        return f"{found.moved.value:.3f}"
    return (
        f"IP {found.ip.value:.2f}" if method == "off" else f"{found.drop.value:+.2f} ± {found.drop.error:.2f}"
    )
