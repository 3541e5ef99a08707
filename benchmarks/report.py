"""What the benchmarks print, write and draw."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from rich import box
from rich.table import Table

from benchmarks.eligibility import EligibilityReport
from benchmarks.search import BATCH_SIZE, SearchPoint, SearchReport
from benchmarks.serve import HALF, TWO_WORKERS, ServeReport

_ASKED_RECALL = 0.95
_COLOURS = {"brute_force": "#4c4c4c", "annoy": "#d95f02", "scann": "#1b6ca8"}
_OTHER_COLOURS = ("#7570b3", "#1b9e77", "#e7298a", "#66a61e", "#e6ab02", "#a6761d")


def search_table(report: SearchReport) -> Table:
    """Tabulate the operating points of a search benchmark."""
    table = Table(
        title=f"{report.n_candidates:,} candidates of {report.dim} dimensions, "
        f"{report.n_queries:,} {report.queries_are}",
        caption="p50/p95/p99: microseconds of calls with one query; QPS: one query a call, and in "
        f"batches of {BATCH_SIZE}; speed: in CPU time, against exact search of the same minute",
        box=box.SIMPLE,
        padding=0,
    )
    table.add_column("index")
    table.add_column("point")
    for heading in (
        "recall@10",
        f"@{report.k}",
        "p50/p95/p99",
        "QPS",
        f"in {BATCH_SIZE}s",
        "speed",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for point in report.points:
        if point.name is None:
            continue
        latency = point.latency
        table.add_row(
            point.contender,
            point.name,
            f"{point.recall_at_10:.3f}",
            f"{point.recall_at_100:.3f}",
            f"{latency.p50_us:,.0f}/{latency.p95_us:,.0f}/{latency.p99_us:,.0f}",
            f"{1e6 / latency.mean_us:,.0f}",
            f"{point.batch_qps:,.0f}",
            f"{point.speedup:.2f}x",
        )
    return table


def asking_sentence(report: SearchReport) -> str:
    """Say what it costs to ask for a recall instead of sweeping params by hand."""
    costs = {name: report.cost_of_asking(name, _ASKED_RECALL) for name in report.build_seconds}
    told = (f"{name} {cost:.2f}" for name, cost in costs.items() if cost is not None)
    return (
        f"To ask for a recall of {_ASKED_RECALL:g} costs so many times the CPU time of the "
        f"cheapest params found by this sweep that deliver it: {', '.join(told)}."
    )


def build_table(report: SearchReport) -> Table:
    """Tabulate what the backends took to build, and take on disk beside the embeddings."""
    table = Table(box=box.SIMPLE, padding=0)
    table.add_column("index")
    table.add_column("build seconds", justify="right")
    table.add_column("megabytes", justify="right")
    for backend, seconds in report.build_seconds.items():
        table.add_row(backend, f"{seconds:.2f}", f"{report.size_bytes[backend] / 1e6:.2f}")
    return table


def draw_search(report: SearchReport, path: Path) -> None:
    """Draw recall against latency, one line a backend, its operating points marked."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for number, contender in enumerate(report.build_seconds):
        points = [point for point in report.points if point.contender == contender]
        colour = colour_of(contender, number)
        front = frontier(points)
        axes.plot(
            [point.recall_at_100 for point in front],
            [point.latency.p50_us for point in front],
            color=colour,
            marker=".",
            label=contender,
        )
        named = [point for point in points if point.name is not None]
        axes.scatter(
            [point.recall_at_100 for point in named],
            [point.latency.p50_us for point in named],
            s=70,
            facecolors="none",
            edgecolors=colour,
        )
        for point in named:
            axes.annotate(
                point.name or "",
                (point.recall_at_100, point.latency.p50_us),
                textcoords="offset points",
                xytext=(-6, 7),
                ha="right",
                fontsize=8,
                color=colour,
            )
    axes.set_yscale("log")
    axes.set_xlabel(f"recall@{report.k}")
    axes.set_ylabel("median latency of one query, microseconds")
    axes.set_title(
        f"{report.n_candidates:,} candidates of {report.dim} dimensions: lower right is better"
    )
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def eligibility_table(report: EligibilityReport) -> Table:
    """Tabulate an eligibility benchmark."""
    table = Table(
        title=f"{report.k} of {report.n_candidates:,} candidates of {report.dim} dimensions, "
        f"{report.backend} at recall {report.recall:.3f} without a mask",
        caption="CPU time in the median; x: divided by that of the same search without a mask, of "
        "our exact scan of the eligible rows, and of one in plain NumPy",
        box=box.SIMPLE,
        padding=0,
    )
    table.add_column("mask")
    for heading in ("recall", "CPU us", "x unfiltered", "x scan", "x NumPy"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("method")
    for point in report.points:
        table.add_row(
            point.mask,
            f"{point.recall:.3f}",
            f"{point.cpu_microseconds:,.0f}",
            f"{point.to_unfiltered:.1f}",
            f"{point.to_scan:.2f}",
            f"{point.to_numpy_scan:.2f}",
            ", ".join(f"{method} {count}" for method, count in point.methods.items()),
        )
    return table


def serve_table(report: ServeReport) -> Table:
    """Tabulate a serving benchmark."""
    table = Table(
        title=f"100 of {report.n_candidates:,} candidates of {report.dim} dimensions, "
        f"{report.backend} at recall {report.expected_recall:.3f}",
        box=box.SIMPLE,
        padding=0,
    )
    table.add_column("scenario")
    for heading in ("requests/s", "p50/p95/p99 us", "CPU us", "cores", "failed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for scenario in report.scenarios:
        load = scenario.load
        table.add_row(
            scenario.name,
            f"{load.requests_per_second:,.0f}",
            f"{load.p50_us:,.0f}/{load.p95_us:,.0f}/{load.p99_us:,.0f}",
            f"{load.cpu_us_per_request:,.0f}",
            f"{load.server_busy:.2f}",
            f"{load.n_failed}",
        )
    return table


def serve_summary(report: ServeReport) -> str:
    """Say in sentences what a serving benchmark found."""
    stages = ", ".join(f"{stage} {micros:.0f}" for stage, micros in report.stages_us.items())
    batched = report.load_of("batch").cpu_us_per_request / BATCH_SIZE
    return f"""\
Floor (null server plus the library's search: {report.floor_us:.0f} us) / server: \
{report.floor_ratio:.2f} in CPU a request.
With all that protects and observes the server / without: {report.protection_ratio:.3f} in CPU a \
request.
One in flight: {report.added_latency_us:.0f} us above null server plus search, in the median.
Against a known user's request, in requests per CPU second: history \
{report.throughput_ratio("history"):.2f}, filter and exclusions \
{report.throughput_ratio("filter and exclusions"):.2f}.
In batches of {BATCH_SIZE}: {batched:.0f} us of CPU a search; the library's own batched search / \
ours: {report.batch_ratio:.2f}.
CPU a request with two workers / with one: {1 / report.throughput_ratio(TWO_WORKERS):.2f}; \
with half the load on one / with all of it: {1 / report.throughput_ratio(HALF):.2f}; \
with half, while another server has the other half / without: {report.company_ratio:.2f}.
While exact searches run beside, the 99th percentile of 100 searches a second is \
{report.stall_us / 1e3:.1f} ms above that without.
From start to serving: {report.start_seconds:.2f} s, of which hashing the files alone takes \
{report.hash_seconds:.2f} s. Private memory: {report.private_bytes / 1e6:.0f} MB.
Microseconds by stage: {stages}."""


def draw_serve(report: ServeReport, path: Path) -> None:
    """Draw what a request costs beside the floor."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    scenarios = [one for one in report.scenarios if one.load.in_flight > 1 and not one.load.rate]
    singles = [one for one in scenarios if one.searches_per_request == 1]
    names = [one.name for one in singles]
    costs = [one.load.cpu_us_per_request for one in singles]
    axes.barh(names, costs, color=_COLOURS["scann"])
    axes.axvline(
        report.floor_us, color=_COLOURS["annoy"], label="floor: null server + library's search"
    )
    for name, cost in zip(names, costs, strict=True):
        axes.annotate(f" {cost:,.0f}", (cost, name), va="center")
    axes.margins(x=0.1)  # for the figures at the ends of the bars
    axes.invert_yaxis()
    axes.set_xlabel("CPU microseconds a request")
    axes.set_title(f"100 of {report.n_candidates:,} candidates, {report.backend}, under load")
    axes.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def colour_of(contender: str, number: int) -> str:
    """Return a contender's colour: ours always have the same."""
    return _COLOURS.get(contender, _OTHER_COLOURS[number % len(_OTHER_COLOURS)])


def frontier(points: list[SearchPoint]) -> list[SearchPoint]:
    """Return the points that no other beats in both recall and latency, by rising recall."""
    best: list[SearchPoint] = []
    for point in sorted(points, key=lambda p: (p.latency.p50_us, -p.recall_at_100)):
        if not best or point.recall_at_100 > best[-1].recall_at_100:
            best.append(point)
    return best
