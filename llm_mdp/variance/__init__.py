"""Noise and cost: what a token of sampling buys."""
