"""Times as people read them."""


def clock(seconds: float) -> str:
    """``7:05`` minutes, or ``26:07:05`` hours."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
