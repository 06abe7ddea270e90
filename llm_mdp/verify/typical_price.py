"""Prices that were computed before: of every biased row of the ledger, on random tables (`benchmarks/prices.py`)."""

from pathlib import Path

FILE = Path(__file__).with_name("typical_prices.json")
"""What `benchmarks/prices.py` wrote."""
