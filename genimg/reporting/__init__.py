"""Reports about run directories: a self-contained page, a CSV file and a Markdown file. Needs no PyTorch."""

from genimg.reporting.render import Report, write_report

__all__ = ["Report", "write_report"]
