"""Tables and figures as the pages of results write them."""


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown; all columns but the first are numbers."""
    lines = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def within(interval: list[float], form: str, unit: str = "") -> str:
    """A mean and its interval: 226 [215, 236] MiB."""
    middle, low, high = (format(bound, form) for bound in interval)
    return f"{middle} [{low}, {high}]{unit}".replace("inf", "∞")
