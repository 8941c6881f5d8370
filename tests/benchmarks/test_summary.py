"""Tables made of records; those of the pages are what the committed records make."""

import pytest

from benchmarks import summary
from benchmarks.records import read, save
from benchmarks.summary import BEGIN, END, FOLDER, PAGE, README, brief, markdown, placed
from jaxmodels.__main__ import guarded
from jaxmodels.errors import CORRUPT, USAGE, Problem

CPU = {"cpu": "x", "cores": 2, "devices": ["cpu: cpu"]}


def record(contestant, median, ratios, date="2026-01-01", machine=CPU, **settings):
    return {
        "suite": "step",
        "case": "charlm:tiny",
        "contestant": contestant,
        "unit": "ms",
        "median": median,
        "times_as_fast_as": ratios,
        "settings": {"batch": 8, "dtype": "float32"} | settings,
        "machine": machine,
        "versions": {"jax": "1.0"},
        "date": date,
    }


def pair(ours, theirs, **more):
    return [
        record("jaxmodels", ours, {"fast": theirs / ours, "slow": 3 * theirs / ours}, **more),
        record("fast", theirs, {"jaxmodels": ours / theirs}, **more),
        record("slow", 3 * theirs, {"jaxmodels": ours / (3 * theirs)}, **more),
    ]


def test_a_row_for_each_case_of_the_newest_run():
    table = markdown([*pair(5, 5), *pair(10, 20, date="2026-01-02"), *pair(1, 2, batch=9)])
    assert (
        "| train step, charlm:tiny, batch 8 | 10 ms | fast 20 ms; slow 60 ms | 2.00; 6.00 |"
        in table
    )
    assert (
        "| train step, charlm:tiny, batch 9 | 1 ms | fast 2 ms; slow 6 ms | 2.00; 6.00 |" in table
    )
    assert table.count("train step") == 2
    assert "2 cores of x; jax 1.0; 2026-01-01 to 2026-01-02:" in table
    assert "No record was made on a GPU" in table


def test_machines_have_tables_of_their_own():
    gpu = CPU | {"devices": ["gpu: H100"]}
    table = markdown([*pair(5, 5), *pair(1, 2, machine=gpu, dtype="bfloat16")])
    assert "\n\ngpu: H100, 2 cores of x; jax 1.0; 2026-01-01:\n\n" in table
    assert "batch 8, bfloat16 | 1 ms" in table
    assert "No record was made" not in table


def test_each_machine_keeps_its_newest_record():
    other = CPU | {"cpu": "y"}
    table = markdown([*pair(5, 5), *pair(1, 2, machine=other, date="2026-01-02"), *pair(3, 6)])
    assert "2 cores of x; jax 1.0; 2026-01-01:" in table
    assert "2 cores of y; jax 1.0; 2026-01-02:" in table
    assert table.count("train step") == 2
    assert "| 3 ms | fast 6 ms; slow 18 ms | 2.00; 6.00 |" in table


def test_the_short_table_is_of_one_machine_and_the_fastest_other():
    def base(*pair):
        return [one | {"case": "charlm:base"} for one in pair]

    other = CPU | {"cpu": "y"}
    table = brief(
        [
            *base(*pair(5, 10), *pair(4, 8, batch=9, date="2026-01-02")),
            *pair(1, 2),
            *base(*pair(3, 6, machine=other)),
        ]
    )
    assert table.startswith("2 cores of x; jax 1.0; 2026-01-01 to 2026-01-02:\n\n|")
    assert table.splitlines()[4:] == [
        "| train step, charlm:base, batch 8 | 5 ms | fast 10 ms | 2.00 |",
        "| train step, charlm:base, batch 9 | 4 ms | fast 8 ms | 2.00 |",
    ]


def test_what_goes_wrong_is_told(tmp_path, capsys):
    assert guarded(summary.main, ["--results", str(tmp_path)]) == CORRUPT
    assert capsys.readouterr().err.startswith("error: there are no records of measurements")


def test_the_table_is_written_between_the_markers(tmp_path, capsys):
    save(pair(10, 20), tmp_path)
    page, readme = tmp_path / "speed.md", tmp_path / "README.md"
    for path in (page, readme):
        path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    words = ["--results", str(tmp_path), "--page", str(page), "--readme", str(readme)]
    assert summary.main([*words, "--write"]) == 0
    text = page.read_text()
    assert text == f"before\n{BEGIN}\n{markdown(read(tmp_path))}\n{END}\nafter\n"
    assert readme.read_text() == f"before\n{BEGIN}\n{brief(read(tmp_path))}\n{END}\nafter\n"
    assert summary.main([*words, "--write"]) == 0  # and again
    assert page.read_text() == text
    charts = [tmp_path / f"speed-{theme}.svg" for theme in ("light", "dark")]
    first = [chart.read_bytes() for chart in charts]
    assert summary.plot(read(tmp_path), tmp_path) == charts
    assert [chart.read_bytes() for chart in charts] == first
    assert b"2.00\xc3\x97 fast" in first[0]
    assert summary.main(words) == 0
    assert "fast 20 ms" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", BEGIN, END + BEGIN, f"{BEGIN}{END}{BEGIN}{END}"])
def test_without_markers_nothing_is_written(text):
    with pytest.raises(Problem) as caught:
        placed(text, "table")
    assert caught.value.exit_code == USAGE


@pytest.mark.parametrize(("path", "table"), [(PAGE, markdown), (README, brief)])
def test_committed_tables_are_what_the_results_make(path, table):
    """After new results: `python -m benchmarks.summary --write`."""
    text = path.read_text(encoding="utf-8")
    assert text == placed(text, table(read(FOLDER)))
