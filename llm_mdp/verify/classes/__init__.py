"""Exact moments at any group size: responses in classes, the others of a group through an additive summary."""
