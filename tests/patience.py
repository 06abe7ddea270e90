"""How long a test waits for another process before it says that it hangs."""

PATIENCE = 900.0
"""Seconds. On a machine of one's own such a wait takes seconds; a busy one may take a hundred times as long, and only
what never ends should fail. Below `faulthandler_timeout` in pyproject.toml, which ends a test that hangs by itself."""
