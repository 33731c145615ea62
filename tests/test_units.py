"""Quantities as text: what each kind reads, refuses and prints."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossim import units


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_size, "80 GiB", 80 * 2**30),
        (units.parse_size, "25 MB", 25e6),
        (units.parse_size, "25MB", 25e6),
        (units.parse_size, "8 Mb", 1e6),  # a megabit is an eighth of a megabyte
        (units.parse_size, "81559 MiB", 81559 * 2**20),
        (units.parse_rate, "400 Gb/s", 50e9),
        (units.parse_rate, "400 Gbps", 50e9),
        (units.parse_rate, "450 GB/s", 450e9),
        (units.parse_rate, "450 GBps", 450e9),
        (units.parse_rate, "3.35 TB/s", 3.35e12),
        (units.parse_time, "600 ns", 600e-9),
        (units.parse_time, "2.15 us", 2.15e-6),
        (units.parse_time, "30 min", 1800.0),
        (units.parse_time, "54 d", 54 * 86400.0),
        (units.parse_power, "700 W", 700.0),
        (units.parse_power, "150 MW", 150e6),
        (units.parse_compute, "989 TFLOP/s", 989e12),
        (units.parse_share, "1.5 %", 0.015),
        (units.parse_share, "0.87", 0.87),
        (units.parse_count, "15T", 15e12),
        (units.parse_count, "2.5B", 2.5e9),
        (units.parse_count, "16M", 16e6),
        (units.parse_count, "1e9", 1e9),
    ],
)
def test_reads(parse, text, value):
    assert parse(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize(
    ("parse", "text", "fix"),
    [
        (units.parse_rate, "400", "write `400 GB/s` or `400 Gb/s`"),
        (units.parse_size, "80", "write `80 GB` or `80 GiB`"),
        (units.parse_time, "30", "write `30 s`"),
        (units.parse_power, "700", "write `700 W`"),
        (units.parse_rate, "400 gb/s", "did you mean `GB/s` or `Gb/s`"),
        (units.parse_size, "80 gib", "did you mean `GiB` or `Gib`"),
        (units.parse_rate, "400 Gb", "not a unit of rate"),
        (units.parse_size, "400 Gb/s", "not a unit of size"),
        (units.parse_time, "5 m", "not a unit of time"),
        (units.parse_size, "GB", "write a number and a unit"),
        (units.parse_size, "", "write a number and a unit"),
        (units.parse_size, "80 GiB extra", "not a unit of size"),
        (units.parse_size, "-3 GB", "not negative"),
        (units.parse_time, "1e400 s", "finite"),
        (units.parse_share, "120 %", "at most 100 %"),
        (units.parse_share, "1.5", "at most 100 %"),
        (units.parse_count, "-1", "not negative"),
        (units.parse_count, "15 trillion", "not a unit of count"),
    ],
)
def test_refuses_and_shows_the_fix(parse, text, fix):
    with pytest.raises(ValueError, match="`") as caught:
        parse(text)
    assert fix in str(caught.value)


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (units.format_time(20.7), "20.7 s"),
        (units.format_time(312e-6), "312 us"),
        (units.format_time(4.5e-3), "4.50 ms"),
        (units.format_time(600e-9), "600 ns"),
        (units.format_time(83.1 * 86400), "83.1 d"),
        (units.format_time(0.0), "0 s"),
        (units.format_size(45.1e9), "45.1 GB"),
        (units.format_size(999.9e6), "1.00 GB"),  # rounds up into the next prefix
        (units.format_size(12), "12.0 B"),
        (units.format_time(0.9999e-3), "1.00 ms"),
        (units.format_rate(50e9), "50.0 GB/s"),
        (units.format_compute(989e12), "989 TFLOP/s"),
        (units.format_power(124e6), "124 MW"),
        (units.format_count(314e9), "314B"),
        (units.format_share(0.415), "41.5 %"),
    ],
)
def test_prints(shown, text):
    assert shown == text


@given(st.floats(min_value=1e-3, max_value=1e17))
def test_what_is_printed_can_be_read_again(value):
    """Three digits: a printed size is within 0.5 % of what it was."""
    assert units.parse_size(units.format_size(value)) == pytest.approx(value, rel=6e-3, abs=6e-4)


@given(st.floats(min_value=0, max_value=1e15), st.sampled_from(sorted(units.RATE.units)))
def test_every_unit_scales(number, unit):
    assert units.parse_rate(f"{number!r} {unit}") == pytest.approx(number * units.RATE.units[unit], rel=1e-15)
