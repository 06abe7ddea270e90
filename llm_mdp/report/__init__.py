"""The ledger for people: terminal tables, one self-contained HTML page, the table in the README.

Everything here reads one JSON-able document, the output of `llm-mdp verify --json`, and never any other object.
"""

from llm_mdp.report.page import render_page
from llm_mdp.report.terminal import print_report, progress

__all__ = ["print_report", "progress", "render_page"]
