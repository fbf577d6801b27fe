"""How counts, rates, times and sizes are written for people, the same on every screen."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime


def plural(count: int, noun: str) -> str:
    """`1 row`, `2 rows`, `12,000 rows`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def short(number: float) -> str:
    """A count or rate in at most six characters: `0.4`, `31.9`, `940`, `12.3k`, `4.56M`."""
    if number < 99.95:
        return f"{number:.0f}" if number == int(number) else f"{number:.1f}"
    unit, value = "", number
    for larger in ("k", "M", "G"):
        if value < 999.5:
            break
        unit, value = larger, value / 1000
    digits = 0 if not unit or value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:.{digits}f}{unit}"


def counted(number: int) -> str:
    """A count in full below ten million, short above."""
    return f"{number:,}" if number < 10_000_000 else short(number)


def duration(seconds: float) -> str:
    """Two units at most: `0.8 s`, `42 s`, `3 m 05 s`, `2 h 10 m`, `3 d 04 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} m"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def clock_time(moment: str) -> str:
    """An ISO time as this machine's clock will show it: `06:00:00` today, else with the date."""
    local = datetime.fromisoformat(moment).astimezone()
    return local.strftime("%H:%M:%S" if local.date() == datetime.now().date() else "%Y-%m-%d %H:%M")


def size(count: float) -> str:
    """Bytes in binary units: `812 B`, `9.4 MiB`, `139 GiB`."""
    units = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    unit = 0
    while count >= 1024 and unit < len(units) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} {units[unit]}" if unit == 0 or count >= 99.95 else f"{count:.1f} {units[unit]}"


def share(part: int, whole: int) -> str:
    """A percentage that says 0 or 100 only of exactly none or all."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < part < whole:
        percent = min(99.99, max(0.01, percent))
        return f"{percent:.2f} %"
    return f"{percent:.0f} %"


def numbers(rows: Sequence[int], total: int) -> str:
    """Row numbers as a list, with the number of those left out; no thousands separators between commas."""
    listed = ", ".join(str(row) for row in rows)
    left = total - len(rows)
    return f"{listed} and {left:,} more" if rows and left > 0 else listed


def printable(text: str) -> str:
    """A path or message as one line without control characters, which could rewrite the terminal."""
    return "".join(letter if letter.isprintable() else " " if letter.isspace() else "?" for letter in text)
