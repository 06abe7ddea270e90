"""Programs in a terminal, as a person sees them."""

import os
import pty
import re
import subprocess
import sys


def lines_in_a_terminal(arguments: list[str], columns: int) -> list[str]:
    """What Python shows in a terminal of so many columns, the program run with these arguments: every state of every
    line, without colours and movements. It has to end well."""
    master, slave = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "LINES": "40", "TERM": "xterm-256color"}
    program = [sys.executable, *arguments]
    with subprocess.Popen(program, stdout=slave, stderr=slave, env=environment | {"OMP_NUM_THREADS": "1"}) as process:
        os.close(slave)
        shown = b""
        try:
            while part := os.read(master, 65536):
                shown += part
        except OSError:  # the other end is closed
            pass
        os.close(master)
    assert process.returncode == 0
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()))
