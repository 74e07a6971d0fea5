"""The page, read back by an HTML parser. Takes two seconds."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from errors import raises
from pretend_runs import NAME, write_picture, write_run, write_sweep

from genimg.errors import ConfigError
from genimg.reporting import write_report
from genimg.reporting.importance import RULE

EVIL = "<script>alert(1)<|script> \"'&"
VOID = {"meta", "link", "img", "input", "br"}
JOBS: dict[str, tuple[list[str], float | None]] = {
    "000_a": (["loss=hinge", "optimizer.lr=0.0001"], 20.0),
    "001_b": (["loss=hinge", "optimizer.lr=0.001"], 10.0),
    "002_c": (["loss=wasserstein", "optimizer.lr=0.0001"], 40.0),
    "003_d": (["loss=wasserstein", "optimizer.lr=0.001"], 30.0),
    "004_e": (["loss=elbo", "optimizer.lr=0.001"], None),
}


class Page(HTMLParser):
    """Elements with their attributes and texts, and whether every end has its start."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({key for key, _ in attrs}) == len(attrs)
        self.elements.append((tag, {key: value or "" for key, value in attrs}, []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag: str) -> None:
        assert self.elements[self.open.pop()][0] == tag

    def handle_data(self, data: str) -> None:
        for place in self.open:
            self.elements[place][2].append(data)

    def all(self, name: str, /, **attributes: str) -> list[tuple[dict[str, str], str]]:
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        return [
            (found, "".join(text))
            for element, found, text in self.elements
            if element == name
            and all(value in found.get(key, "").split(" ") or value == found.get(key) for key, value in wanted.items())
        ]


def report(directories: list[Path], output: Path) -> tuple[Page, str]:
    written = write_report(directories, output)
    text = written.html.read_text(encoding="utf-8")
    return Page(text), text


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write_sweep(tmp_path / "sweep", JOBS)


def test_all_jobs_stand_in_the_leaderboard_in_order_with_the_reason_of_failures(sweep: Path) -> None:
    page, text = report([sweep], sweep / "report.html")
    table = re.search(r'<table class="sortable">.*?</table>', text, re.DOTALL)
    assert table is not None
    board = Page(table[0])
    assert [found["data-value"] for found, _ in board.all("th", scope="row")] == ["001_b", "000_a", "003_d", "002_c", "004_e"]
    assert "the loss does not fit" in board.all("tr")[-1][1]
    headers = board.all("th", scope="col")
    assert [found["aria-sort"] for found, _ in headers][:2] == ["ascending", "none"]
    assert len(board.all("button")) == len(headers)
    cells = re.findall(r'<td class="number"(?: data-value="([\d.]+)")?>([^<]*)</td>', table[0])
    assert ("10.0", "10") in cells  # sorted by the whole number, not by what is shown
    assert ("", "—") in cells  # and a missing one has no value to sort by
    assert "lower is better" in board.all("caption")[0][1]
    assert len(page.all("details", class_="run-details")) == 5


def test_runs_of_several_seeds_are_one_row_that_links_to_each(tmp_path: Path) -> None:
    jobs: dict[str, tuple[list[str], float | None]] = {
        f"{number}": ([f"lr={lr}", f"seed={seed}"], value)
        for number, (lr, seed, value) in enumerate([(1, 0, 10.0), (1, 1, 12.0), (2, 0, 30.0), (2, 1, 32.0), (3, 0, None)])
    }
    page, text = report([write_sweep(tmp_path / "sweep", jobs)], tmp_path / "report.html")
    tables = [Page(each) for each in re.findall(r'<table class="sortable">.*?</table>', text, re.DOTALL)]
    assert [[found["data-value"] for found, _ in board.all("th", scope="row")] for board in tables[:2]] == [
        ["lr=1", "lr=2", "lr=3"], ["0", "1", "2", "3", "4"],
    ]  # fmt: skip
    rows = [row for _, row in tables[0].all("tr")][1:]
    assert ["11 ± 1.4" in rows[0], "31 ± 1.4" in rows[1], "failed" in rows[2]] == [True, True, True]
    assert [found["href"] for found, _ in tables[0].all("a")] == ["#run-0", "#run-1", "#run-2", "#run-3", "#run-4"]
    assert "spread by 1.41 (standard deviation, 4 runs)" in text
    assert not page.all("table", class_="shares")  # three values of lr, but too few runs
    assert RULE in "".join(content for _, content in page.all("p"))
    rows = list(csv.DictReader((tmp_path / "report.csv").open(encoding="utf-8")))
    assert [row["mean_over_seeds"] for row in rows] == ["11.0", "11.0", "31.0", "31.0", ""]
    assert [row["setting"] for row in rows] == ["1", "1", "2", "2", "3"]


def test_long_settings_are_shown_in_full(tmp_path: Path) -> None:
    keys = [f"model.generator.channels_of_level_{level}" for level in range(6)]
    texts = {name: f"[{','.join(f'{name}{number}' for number in range(200))}]" for name in "ab"}
    jobs: dict[str, tuple[list[str], float | None]] = {
        f"{number}": (
            [*(f"{key}={number % 2}" for key in keys), f"list={texts['ab'[number % 2]]}", f"seed={number}"],
            9.0 + number,
        )
        for number in range(4)
    }
    page, _ = report([write_sweep(tmp_path / "sweep", jobs)], tmp_path / "report.html")
    label = ", ".join(f"{key}=0" for key in keys)
    names = [text for found, text in page.all("th", scope="row") if found["data-value"].startswith(label)]
    assert len(names) == 1
    assert names[0].endswith(f"{label}, list={texts['a']}")  # after its beginning, which opens it
    markdown = (tmp_path / "report.md").read_text().replace("\\", "")
    assert markdown.count(texts["b"]) > 3
    assert f"| {label}, list={texts['a']} |" in markdown


def test_the_page_is_self_contained_and_reads_well(sweep: Path) -> None:
    page, text = report([sweep], sweep / "report.html")
    assert not re.search(r"""(src|href|action)=["'](?!data:|#)""", text)
    assert not re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest", text)
    assert "default-src 'none'" in page.all("meta", http_equiv="Content-Security-Policy")[0][0]["content"]
    assert page.all("meta", name="viewport")[0][0]["content"] == "width=device-width, initial-scale=1"
    assert page.all("html")[0][0]["lang"] == "en"
    levels = [int(name[1]) for name, _, _ in page.elements if re.fullmatch(r"h[1-6]", name)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for landmark in ("header", "nav", "main", "footer"):
        assert len(page.all(landmark)) == 1
    assert len(page.all("table")) == len(page.all("caption")) > 3
    assert all("scope" in found for found, _ in page.all("th"))
    assert all(found["alt"] for found, _ in page.all("img"))
    labelled = {found.get("for") for found, _ in page.all("label")}
    assert {found["id"] for found, _ in page.all("input", type="range")} - {"smoothing"} <= labelled
    identities = [found["id"] for _, found, _ in page.elements if "id" in found]
    assert len(identities) == len(set(identities))
    links = {found["href"][1:] for found, _ in page.all("a")}
    assert links <= set(identities)
    assert "prefers-color-scheme: dark" in text
    assert "prefers-reduced-motion" in text


def test_several_sweeps_together_are_runs(tmp_path: Path) -> None:
    """And a number that is too large to show is no obstacle."""
    jobs = {name: ([*settings, "seed=" + "9" * 400], value) for name, (settings, value) in JOBS.items()}
    sweeps = [write_sweep(tmp_path / "one", JOBS), write_sweep(tmp_path / "two", jobs)]
    for chosen, words in ((sweeps[:1], "5 jobs of a sweep"), (sweeps, "10 runs")):
        write_report(chosen, tmp_path / "report.html")
        assert words in (tmp_path / "report.html").read_text()
        if len(chosen) == 1:
            assert "5 jobs of a sweep: 4 completed, 1 failed. The" in (tmp_path / "report.md").read_text()


def test_without_a_script_the_first_and_last_pictures_and_all_curves_are_there(sweep: Path) -> None:
    page, _ = report([sweep], sweep / "report.html")
    alts = [found["alt"] for found, _ in page.all("img")]
    assert alts[:2] == ["samples of 000_a after 0 images", "samples of 000_a after 3,000 images"]
    assert len(alts) == 8
    drawn = [found["aria-label"] for found, _ in page.all("svg", class_="plot")]
    assert drawn[0].startswith(f"{NAME} over images seen: 000_a from 25 to 21; 001_b from 15 to 11")
    assert len(page.all("polyline")) == 4 * len(drawn)
    points = [found["points"].split() for found, _ in page.all("polyline")][1]
    assert points == ["1000,35", "2000,40", "3000,39"]  # values of 15, 10 and 11 below an upper tick of 50
    between = [json.loads(text) for _, text in page.all("script", class_="between")]
    assert [[images for images, _ in each] for each in between] == [[1000, 2000]] * 4


def test_importance_and_parallel_coordinates_of_a_sweep(tmp_path: Path) -> None:
    jobs: dict[str, tuple[list[str], float | None]] = {
        f"{number}": (
            [f"loss={'abc'[number % 3]}", f"width={number % 2}"],
            None if number == 9 else 10.0 * (number % 3) + number % 2,
        )
        for number in range(10)
    }
    page, _ = report([write_sweep(tmp_path / "sweep", jobs)], tmp_path / "report.html")
    data = json.loads(page.all("script", id="parallel-data")[0][1])
    assert data["settings"] == {"loss": list("aaabbbccc"), "width": list("001011001")}  # best first
    assert (data["values"][:3], data["metric"], data["higher"]) == ([0.0, 0.0, 1.0], NAME, False)
    assert data["labels"] == ["0", "6", "3", "4", "1", "7", "2", "8", "5"]  # the failed job has no value
    rows = [content for _, content in page.all("tr")]
    assert "loss100 %25 %a: 0.3333 (3), b: 10.67 (3), c: 20.33 (3)" in rows  # width has two values only
    assert not any(re.match(r"width\d+ %", row) for row in rows)


def test_what_comes_from_files_is_text(tmp_path: Path) -> None:
    name = EVIL.replace("/", "|")
    config = {"evil": "</script><script>alert(2)</script>", "b": "<img src=x onerror=alert(3)>"}
    run = write_run(tmp_path / name, overrides=["x='</pre><b>'"], config=config, status="failed", name="m</script>&")
    (run / "train.log").write_text("ValueError: </td><script>alert(4)</script>\n")
    write_picture(run, "<i>kind", 0)
    other = write_run(tmp_path / "other", name="m</script>&")
    page, text = report([run, other], tmp_path / "report.html")
    assert name in page.all("h1")[0][1]
    assert not page.all("b")
    assert not page.all("i")
    assert len(page.all("script")) - len(page.all("script", type="application/json")) == 2
    assert json.loads(page.all("script", id="curves-data")[0][1])["labels"] == [name, "other"]
    assert "alert(4)" in text
    assert "alert(4)" not in "".join(content for _, content in page.all("script"))
    markdown = (tmp_path / "report.md").read_text()
    assert "<script>" not in markdown.replace("\\<", "")
    for target in re.findall(r"^!\[.*\]\((.*)\)$", markdown, re.MULTILINE):
        assert (tmp_path / unquote(target)).is_file()


def test_one_run_has_its_config_overrides_metrics_and_provenance(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", overrides=["loss=hinge"], intervals=True)
    page, text = report([run], run / "report.html")
    assert page.all("h1")[0][1] == "run"
    assert "seed: 0\n" in page.all("pre")[0][1]
    assert "loss=hinge" in text
    assert not page.all("table", class_="sortable")
    assert "20 [19, 22]" in text
    assert "0.5 (sd 0.12)" in text
    facts = dict(zip((t for _, t in page.all("dt")), (t for _, t in page.all("dd")), strict=True))
    assert facts["extractor"] == "shapes"
    assert facts["extractor's weights (SHA-256)"].startswith("0d84b995")
    assert (facts["generated images"], facts["seed of the generated images"], facts["weights of the model"]) == (
        "500",
        "7",
        "ema",
    )
    assert not re.search(r"\bFID\b", text)
    assert "30 s" in text  # 3000 images at 100 a second
    assert "25.0 %" in text  # and both shares, 10 s of 40 s
    assert text.count("25.0 %") == 2


@pytest.mark.parametrize("status", ["stopped", "interrupted", "diverged", "failed", None])
def test_runs_in_every_state_have_a_page(tmp_path: Path, status: str | None) -> None:
    for values in ([], [3.0], [3.0, 2.0]):
        run = write_run(tmp_path / f"run{len(values)}", values=values, status=status)
        (run / "metrics.jsonl").open("a").write('{"step": 1')
        page, text = report([run], run / "report.html")
        assert (status or "in progress") in text
        assert len(page.all("h1")) == 1


def test_a_directory_with_nothing_but_a_console_log_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_text("genimg-train: error: no such model\n")
    _, text = report([tmp_path], tmp_path / "report.html")
    assert "no such model" in text


def test_the_csv_holds_bounds_and_the_markdown_the_same_tables(sweep: Path) -> None:
    write_run(sweep / "001_b", values=[15.0, 10.0, 11.0], intervals=True, overrides=JOBS["001_b"][0])
    write_report([sweep], sweep / "x.html")
    rows = list(csv.DictReader((sweep / "x.csv").open(encoding="utf-8")))
    assert [row["run"] for row in rows] == ["001_b", "000_a", "003_d", "002_c", "004_e"]
    first, last = rows[0], rows[-1]
    assert [float(first[f"best.{NAME}{ending}"]) for ending in ("", ".low", ".high")] == [10.0, 9.0, 12.0]
    assert [first[key] for key in ("place", "status", "loss", "optimizer.lr", "best_images", "images_per_second")] == [
        "1", "completed", "hinge", "0.001", "2000", "100",
    ]  # fmt: skip
    assert (last["status"], last["reason"], last[f"best.{NAME}"]) == ("failed", "the loss does not fit", "")
    markdown = (sweep / "x.md").read_text()
    assert (
        "| 1 | 001_b | 10 [9, 12] | completed | hinge | 0.001 | — | 2k | 11 [10, 13] | 3k |".replace("[", "\\[").replace(
            "]", "\\]"
        )
        in markdown
    )
    assert "<table" not in markdown
    pictures = re.findall(r"^!\[.*\]\((.*)\)$", markdown, re.MULTILINE)
    assert len(pictures) == 4
    assert all((sweep / target).is_file() for target in pictures)


def test_a_page_of_many_pictures_stays_below_15_megabytes(tmp_path: Path) -> None:
    for number in range(6):
        run = write_run(tmp_path / "runs" / f"{number}", values=[1.0])
        for step in range(26):
            write_picture(run, "samples", 100 * step, size=256)
    _, text = report([tmp_path / "runs"], tmp_path / "report.html")
    assert 5e6 < len(text) < 15e6
    assert "evenly spaced" in text


def test_outputs_that_cannot_be_a_page_are_refused(sweep: Path) -> None:
    with raises(ConfigError, "output", word="ends"):
        write_report([sweep], sweep / "report.pdf")
    (sweep / "x.html").mkdir()
    with raises(ConfigError, "output", word="directory"):
        write_report([sweep], sweep / "x.html")


def test_of_many_runs_the_best_can_be_chosen_at_once(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"{number}", values=[float((7 * number) % 10)]) for number in range(10)]
    page, _ = report(runs, tmp_path / "report.html")
    choices = {text: found["data-runs"] for found, text in page.all("button", class_="choice")}
    order = [str(number) for number in sorted(range(10), key=lambda number: (7 * number) % 10)]
    assert choices == {"all": "0 1 2 3 4 5 6 7 8 9", "none": "", "best 8": " ".join(order[:8])}
    assert len(page.all("button", aria_pressed="true")) == 10
    few, _ = report(runs[:8], tmp_path / "report.html")
    assert not few.all("button", class_="choice")
