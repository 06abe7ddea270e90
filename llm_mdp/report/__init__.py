"""The ledger, noise and cost, credit, and runs for people: terminal tables, self-contained HTML pages, the table in the
README.

Everything here reads one JSON-able document, the output of a command's `--json`, and never any other object.
"""
