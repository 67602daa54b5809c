"""What a report is made of: records that hold what they must, compared fairly."""

import json

import pytest

from tests.bench_record import cpu_record, record, row
from tlazy.errors import UserError
from tlazy.report import load
from tlazy.report.comparison import problems, scores
from tlazy.report.roofline import roofline


def test_load_gives_what_was_written(tmp_path):
    content = record(row(), row("eager", None), new_key="of a later version")
    (tmp_path / "r.json").write_text(json.dumps(content))
    assert load(tmp_path / "r.json") == content


def without(content, *keys):
    """`content` less the entry that `keys` lead to."""
    at = content
    for key in keys[:-1]:
        at = at[key]
    del at[keys[-1]]
    return content


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ([], "it should be an object"),
        (record(format=2), "format should be 1"),
        (without(record(), "format"), "format is missing"),
        (record(command=3), "command should be text"),
        (record(command="\ud800"), "command should be text that UTF-8"),
        (record(started="yesterday"), "started should be a date"),
        (record(complete="yes"), "complete should be true or false"),
        (without(record(), "machine", "kind"), "machine.kind is missing"),
        (record(versions={"torch": 2}), "versions.torch should be text"),
        (record(ceilings={"bandwidth": 0, "matmul": {}}), "ceilings.bandwidth should be a number"),
        (record(ceilings={"bandwidth": None, "matmul": []}), "ceilings.matmul should be an object"),
        (record(rows={}), "rows should be a list"),
        (record(row(), 7), r"rows\[1\] should be an object"),
        (record(without(row(), "q80_us")), r"rows\[0\].q80_us is missing"),
        (record(row(status="great")), r"rows\[0\].status should be 'ok' or 'wrong'"),
        (record(row(status=["ok"])), r"rows\[0\].status should be"),
        (record(row(median_us=None)), r"rows\[0\].median_us should be a finite number"),
        (record(row(median_us=True)), r"rows\[0\].median_us should be a finite number"),
        (record(row(median_us=float("nan"))), r"rows\[0\].median_us should be a finite number"),
        (record(row(flops=10**400)), r"rows\[0\].flops should be a finite number"),
        (record(row(q20_us=300.0)), r"rows\[0\].q20_us should be at most median_us"),
        (record(row(error=-1)), r"rows\[0\].error should be a finite number"),
        (record(row(shape={"batch": [1]})), r"rows\[0\].shape.batch should be"),
        (record(tests={"command": "", "summary": ""}), "tests.exit_code is missing"),
        (
            record(tests={"command": "", "summary": "", "exit_code": 0, "in_time": 1}),
            "tests.in_time should be true",
        ),
        (record(row(note=None)), r"rows\[0\].note should be text"),
    ],
)
def test_load_names_file_and_key_of_what_is_malformed(tmp_path, content, key):
    (tmp_path / "r.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"r.json: {key}") as caught:
        load(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000])
def test_load_says_what_cannot_be_read(tmp_path, data):
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(UserError, match=r"r\.json"):
        load(tmp_path / "r.json")


def test_load_says_which_file_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.json: No such file"):
        load(tmp_path / "nowhere.json")


def test_same_name_in_another_layout_or_shape_is_another_problem():
    rows = [row(layout="ncl"), row("eager", layout="nlc"), row("eager", shape={"batch": 1})]
    found = problems(rows)
    assert len(found) == 3
    assert [duel.speedup for problem in found for duel in problem.duels] == [None, None]


def test_spread_of_a_speedup_takes_both_sides_quantiles():
    rows = [
        row(median=100.0, q20_us=90.0, q80_us=120.0),
        row("eager", 150.0, q20_us=120.0, q80_us=180.0),
    ]
    [problem] = problems(rows)
    [duel] = problem.duels
    assert (duel.speedup, duel.low, duel.high) == (1.5, 1.0, 2.0)
    assert duel.words == "no difference"


def test_score_is_the_geometric_mean_and_counts_what_is_missing():
    rows = [
        row(problem="a"),
        row("eager", 200.0, problem="a"),
        row(problem="b"),
        row("eager", 50.0, problem="b"),
        row(problem="c"),
        row("eager", None, problem="c"),
        row(problem="d"),
        row("eager", 100.0, problem="d"),
    ]
    [score] = scores(duel for problem in problems(rows) for duel in problem.duels)
    assert (score.faster, score.slower, score.even, score.missing) == (1, 1, 1, 1)
    assert score.mean == pytest.approx(1.0)
    assert score.worst == 0.5


def test_roofs_are_the_measured_and_the_stated_ones():
    found = roofline(record(row())).roofs
    assert {(roof.name, roof.source, roof.rate) for roof in found} == {
        ("bfloat16", "datasheet", 989e12),
        ("bfloat16", "measured", 785e12),
    }


def test_a_device_without_a_datasheet_has_the_measured_roofs_alone():
    content = record(row())
    content["machine"]["device"] = "NVIDIA H100 PCIe"
    assert {roof.source for roof in roofline(content).roofs} == {"measured"}


def test_a_point_lies_at_its_intensity_and_rate():
    plot = roofline(record(row(median=100.0), row("eager", None)))
    [point] = plot.points
    assert point.intensity == pytest.approx(10_485_760_000 / 1_058_816_000)
    assert point.rate == pytest.approx(104.8576e12)
    assert 0 < plot.x.place(point.intensity) < 1
    assert 0 < plot.y.place(point.rate) < 1


@pytest.mark.parametrize(("rate", "unit"), [(30e9, "GFLOP/s"), (3e12, "TFLOP/s")])
def test_rates_are_written_in_the_unit_that_fits(rate, unit):
    slow = row(median_us=1e6, q20_us=1e6, q80_us=1e6, flops=rate)
    plot = roofline(cpu_record(slow))
    assert plot.unit[0] == unit


def test_a_roof_bends_at_its_ridge_and_never_leaves_the_axes():
    plot = roofline(record(row()))
    for roof in plot.roofs:
        (_, low), (ridge, bend), (_, end) = plot.line(roof)
        assert low < bend == end == roof.rate
        assert ridge == pytest.approx(roof.rate / roof.bandwidth)


def test_a_roof_of_memory_alone_ends_where_it_leaves_the_axes():
    fast = row(flops=10**15)  # so many FLOPs per byte that memory would allow any rate
    content = record(row(), fast, ceilings={"bandwidth": 4e12, "matmul": {}})
    content["machine"]["device"] = "unknown"
    plot = roofline(content)
    [roof] = plot.roofs
    *_, (x, y) = plot.line(roof)
    assert y == pytest.approx(4e12 * x)
    assert y <= plot.y.high * 1.001
