"""`bench report` and `bench compare`, from files on: pages, plots, tables, refusals."""

from __future__ import annotations

import io
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from fakes.benched import ENVIRONMENT, MadeUp
from matplotlib.figure import Figure
from matplotlib.image import imread

from remuslike.bench.errors import BenchEnvironmentError, BenchOptionError, ResultsError
from remuslike.bench.report import tables
from remuslike.bench.report.intervals import Estimate
from remuslike.bench.report.page import Plot, draw_plots, render_page
from remuslike.bench.report.plots import crossings, rising_loads
from remuslike.bench.report.style import MODE_COLOURS, looks, ratio_axis
from remuslike.bench.report.summary import Run, Summary
from remuslike.bench.report.timelines import draw_over_time, running_median
from remuslike.bench.results import Cell, Header, Load, Mode, Results, Variant, encode_line
from remuslike.cli.bench import bench

GOLDEN = Path(__file__).with_name("bench_report")
PLOTS = ("throughput", "latency", "pause", "crossover", "takeover", "over-time")


@cache
def made_up(seed: int = 1, slower: float = 1.0, cpu: str = "AMD EPYC") -> Results:
    environment = {**ENVIRONMENT, "cpu": cpu}
    made = MadeUp(seed, rounds=3, samples=30, operations=60, kills=3, slower=slower, environment=environment)
    return made.results()


@cache
def full() -> tuple[Summary, tuple[Plot, ...]]:
    """With all plots: they take seconds."""
    summary = Summary([Run("a.jsonl", made_up())])
    return summary, tuple(draw_plots(summary))


def small() -> Summary:
    """Three rounds of two settings, a kill, and a failure that tries to be markup."""
    bare = Variant(guest="microvm", workload="redis", parameters={"clients": 16}, mode="unprotected")
    epoch = bare.model_copy(update={"mode": "epoch", "epoch_ms": 25.0})
    adaptive = bare.model_copy(update={"mode": "adaptive"})
    cells = []
    for number, (base, kept) in enumerate([(10000.0, 0.8), (20000.0, 0.9), (15000.0, 0.7)], 1):
        load = Load(unit="requests/s", rate=base, latencies_ms=(1.0, 2.0, 3.0))
        cells.append(Cell(variant=bare, round=number, at="t", seconds=2, load=load, cores={"qemu": 1.0}))
        cells.append(
            Cell(
                variant=epoch,
                round=number,
                at="t",
                seconds=2,
                load=Load(unit="requests/s", rate=base * kept, latencies_ms=(20.0, 30.0, 40.0)),
                checkpoints={
                    "pause_ms": (4.0, 5.0),
                    "commit_ms": (3.0, 4.0),
                    "raw_bytes": (4096, 8192),
                    "wire_bytes": (100, 200),
                },
                cores={"qemu": 0.9, "primary": 0.25},
                memory_mib={"qemu": 300.0},
                link_ms=0.5,
            )
        )
    cells.append(
        Cell(
            variant=epoch,
            round=4,
            at="t",
            takeover_ms={"decided": 101, "running": 112, "first_reply": 206},
            lost=0,
        )
    )
    cells.append(
        Cell(variant=adaptive, round=1, at="t", error="<script>alert(1)</script> | a `pipe`\nand more")
    )
    environment = {**ENVIRONMENT, "at": "2026-11-25T22:00:00+00:00"}
    header = Header(environment=environment, options={})
    return Summary([Run("small.jsonl", Results(header=header, cells=tuple(cells)))])


def write(path: Path, results: Results) -> Path:
    path.write_text("".join(map(encode_line, (results.header, *results.cells))), "utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"), [("small.md", tables.markdown(small())), ("small.csv", tables.comma_separated(small()))]
)
def test_tables_are_as_agreed(name: str, text: str) -> None:
    assert text == (GOLDEN / name).read_text("utf-8")


@pytest.mark.parametrize("number", range(len(PLOTS)), ids=PLOTS)
def test_every_plot_is_drawn(number: int) -> None:
    plot = full()[1][number]
    assert (plot.name, plot.missing) == (PLOTS[number], "")
    light, dark = (imread(io.BytesIO(image), format="png")[..., :3] for image in (plot.light, plot.dark))
    assert light.shape == dark.shape
    assert light[0, 0].min() > 0.95
    assert dark[0, 0].max() < 0.15
    for image in (light, dark):
        differing = (abs(image - image[0, 0]).max(axis=2) > 0.1).mean()
        assert differing > 0.01, "an empty picture"


class Page(HTMLParser):
    """What a page refers to, and whether its elements are closed in order."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self.references: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids |= {value for name, value in attrs if name == "id" and value}
        self.references += [
            value for name, value in attrs if name in {"src", "href", "srcset", "data", "action"} and value
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(text: str) -> Page:
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    outside = [each for each in page.references if not each.startswith(("data:image/png;base64,", "#"))]
    assert outside == []
    assert {each[1:] for each in page.references if each.startswith("#")} <= page.ids
    assert not re.search(r"https?:|url\(|@import", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    return page


def test_the_page_needs_nothing_outside() -> None:
    summary, plots = full()
    page = check_page(render_page(summary, plots))
    assert page.tags.count("img") == 2 * len(PLOTS)


def test_what_a_file_says_is_text_on_the_page() -> None:
    summary = small()
    text = render_page(summary, [])
    check_page(text)
    assert "&lt;script&gt;alert(1)" in text
    assert "1 of the cells could not be measured" in text


def test_a_plot_without_data_is_left_out_with_the_reason() -> None:
    idle = Cell(variant=Variant(guest="q35", workload="idle", mode="epoch", epoch_ms=25), round=1, at="")
    summary = Summary([Run("idle.jsonl", Results(header=Header(environment={}, options={}), cells=(idle,)))])
    plots = draw_plots(summary)
    assert all(plot.missing and not plot.light for plot in plots)
    text = render_page(summary, plots)
    assert text.count("Left out: ") == len(PLOTS)
    assert "img" not in check_page(text).tags


def test_the_same_results_give_the_same_page() -> None:
    summary = small()
    assert render_page(summary, draw_plots(summary)) == render_page(summary, draw_plots(summary))


def test_a_mode_has_one_colour_everywhere() -> None:
    found = looks(full()[0].variants)
    assert {look.colour for setting, look in found.items() if setting.startswith("epoch")} == {
        MODE_COLOURS["epoch"]
    }
    assert len({look.colour for look in found.values()}) == 4
    assert len({(look.colour, str(look.dash)) for look in found.values()}) == len(found)


def stepped(mode: Mode, rates: list[float]) -> Cell:
    series = tuple((number / 4, rate) for number, rate in enumerate(rates))
    variant = Variant(guest="q35", workload="redis-steps", mode=mode)
    return Cell(variant=variant, round=1, at="", load=Load(unit="requests/s", rate=1, series=series))


@pytest.mark.parametrize(
    ("load", "protected", "drawn"),
    [
        pytest.param([100, 100, 900, 900, 100, 100], [20, 20, 90, 90, 20, 20], True, id="load that changes"),
        pytest.param([900, 890, 900, 880, 900, 900], [0, 90, 0, 90, 0, 90], False, id="mode that stutters"),
    ],
)
def test_over_time_is_of_loads_that_change_by_themselves(
    load: list[float], protected: list[float], drawn: bool
) -> None:
    cells = (stepped("unprotected", load), stepped("adaptive", protected))
    summary = Summary([Run("a.jsonl", Results(header=Header(environment={}, options={}), cells=cells))])
    assert (not isinstance(draw_over_time(summary), str)) is drawn


def test_a_running_median_is_of_fewer_at_the_ends() -> None:
    values = np.array([9.0, 1, 1, 1, 1, 1, 1, 1, 1, 50, 1, 2, 2])
    assert list(running_median(values)) == [1.0] * 11 + [1.5, 2.0]


@pytest.mark.parametrize(("lowest", "scale"), [(0.01, "log"), (0.5, "linear")])
def test_small_ratios_are_not_squeezed_together(lowest: float, scale: str) -> None:
    axes = Figure().subplots()
    axes.plot([1, 2], [lowest, 1])
    ratio_axis(axes, (lowest, 1.0))
    assert axes.get_yscale() == scale
    assert axes.get_ylim()[0] == pytest.approx(lowest / 1.6 if scale == "log" else 0)


def test_loads_that_differ_in_one_parameter_make_a_crossover() -> None:
    (family,) = rising_loads(full()[0])
    assert family.name == "redis by clients"
    assert list(family.outputs) == ["redis clients=1", "redis clients=16", "redis clients=256"]


def test_modes_cross_where_their_lines_do() -> None:
    def at(*values: float) -> list[tuple[float, Estimate]]:
        return [(10.0**place, Estimate(value, None, None, 1)) for place, value in enumerate(values, 1)]

    curves = {
        "event-tap": at(0.9, 0.9, 0.3),
        "epoch 10 ms": at(0.1, 0.3, 0.7),
        "epoch 25 ms": at(0.2, 0.5, 0.2),
    }
    ((x, y, words),) = crossings(curves)
    assert (x, y) == pytest.approx((10**2.5, 0.6))
    assert words == "equal at 320/s"


def test_report_writes_all_it_names_and_says_what_it_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", small().runs[0].results)
    out = tmp_path / "new" / "directory"
    done = CliRunner().invoke(bench, ["report", str(path), "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    names = {"report.html", "report.md", "figures.csv", "throughput.png", "pause.png", "takeover.png"}
    assert {each.name for each in out.iterdir()} == names
    assert all(name in done.output for name in names)
    assert all(f"{plot}: left out: no " in done.output for plot in ("latency", "crossover", "over-time"))


def test_compare_says_what_is_worse(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", made_up(1)), write(tmp_path / "b.jsonl", made_up(2, slower=1.5))
    arguments = ["compare", str(a), str(b), "--figure", "throughput", "--threshold", "0.2"]
    done = CliRunner().invoke(bench, arguments)
    assert done.exit_code == 1
    assert "6 worse, 0 better" in done.output
    back = CliRunner().invoke(bench, ["compare", str(b), str(a), *arguments[3:]])
    assert back.exit_code == 0
    assert "0 worse, 6 better" in back.output


def test_compare_refuses_absolute_figures_of_two_machines(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", made_up(1))
    b = write(tmp_path / "b.jsonl", made_up(2, cpu="Xeon"))
    arguments = ["compare", str(a), str(b), "--figure", "pause_p50", "--threshold", "5"]
    with pytest.raises(ResultsError, match="no figures that can be compared; --force"):
        CliRunner().invoke(bench, arguments, catch_exceptions=False)
    forced = CliRunner().invoke(bench, [*arguments, "--force"])
    assert forced.exit_code == 0
    assert "The runs differ in cpu: AMD EPYC (a.jsonl); Xeon (b.jsonl)" in forced.output


@pytest.mark.parametrize("command", ["report {0} {1} --out {2}", "compare {0} {1}"])
@pytest.mark.parametrize(
    ("second", "message"),
    [
        (None, "can't be read: No such file"),
        ("", "has no whole line"),
        ('{"format": "remuslike-bench-run", "version": 9}\n', "version = 9"),
        ("{}\n", "format: expected"),
        ("HEADER", "holds no cells"),
        ("COPY", "is the same run as a.jsonl"),
        ("DAMAGED", "line 2: "),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, command: str, second: str | None, message: str) -> None:
    results = small().runs[0].results
    a, b = write(tmp_path / "a.jsonl", results), tmp_path / "b.jsonl"
    lines = a.read_text("utf-8").splitlines(keepends=True)
    other_header = lines[0].replace("22:00:00", "22:00:01")
    texts = {
        "HEADER": other_header,
        "COPY": "".join(lines[:-1]),
        "DAMAGED": "".join([other_header, lines[1][:-9] + "\n"]),
    }
    if second is not None:
        b.write_text(texts.get(second, second), "utf-8")
    with pytest.raises(ResultsError, match=message):
        CliRunner().invoke(bench, command.format(a, b, tmp_path).split(), catch_exceptions=False)


def test_what_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(ResultsError, match="is not UTF-8 text"):
        CliRunner().invoke(bench, ["report", str(path), "--out", str(tmp_path)], catch_exceptions=False)


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", small().runs[0].results)
    with pytest.raises(BenchEnvironmentError, match=r"--out .*can't be written: .*name another"):
        CliRunner().invoke(bench, ["report", str(path), "--out", str(path)], catch_exceptions=False)


def test_an_unknown_figure_is_refused_and_the_known_are_listed(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", made_up(1)), write(tmp_path / "b.jsonl", made_up(2))
    with pytest.raises(
        BenchOptionError, match=r"--figure speed: neither file has it; they have .*throughput"
    ):
        CliRunner().invoke(bench, ["compare", str(a), str(b), "--figure", "speed"], catch_exceptions=False)
