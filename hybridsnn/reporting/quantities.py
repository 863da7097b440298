"""Times, sizes and differences as text."""


def duration(seconds: float) -> str:
    """In seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def size(count: int) -> str:
    """Bytes in binary units; a dash for 0, which stands for not measured."""
    if not count:
        return "–"
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def whole(count: float) -> str:
    """A count as tables show it: rounded to tenths, as in their files, then to ones, so that page and file agree."""
    return f"{round(count, 1):,.0f}"


def signed(points: float) -> str:
    """A difference in percentage points, with its sign."""
    return f"{points:+.2f}".replace("-", "−")
