"""One run, one process: who comes second is told who is there, and a lock ends with its process."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time

import pytest

from llm_mdp_agents.training.run_lock import LOCK, run_lock
from tests.patience import PATIENCE

PROCESSES = multiprocessing.get_context("fork")


def test_a_folder_is_held_by_one_and_free_again(tmp_path):
    with run_lock(tmp_path):
        words = f"{tmp_path} is in use by process {os.getpid()} on .*; wait until"
        with pytest.raises(ValueError, match=words), run_lock(tmp_path):
            pass
        (tmp_path / "other").mkdir()
        with run_lock(tmp_path / "other"):
            pass
    with run_lock(tmp_path):
        pass


def hold(folder, said):
    """Hold the folder, fork a child that lives on, and wait to be killed."""
    with run_lock(folder):
        child = os.fork()
        if child == 0:
            signal.pause()
        said.send(child)
        signal.pause()


def test_a_lock_ends_with_its_process_though_a_child_lives_on(tmp_path):
    here, there = PROCESSES.Pipe()
    process = PROCESSES.Process(target=hold, args=(tmp_path, there))
    process.start()
    assert here.poll(PATIENCE)
    child = here.recv()
    try:
        with pytest.raises(ValueError, match=f"in use by process {process.pid} on "), run_lock(tmp_path):
            pass
        os.kill(process.pid, signal.SIGKILL)
        # Not joined: the end of the pipe that `join` waits for is open in the child.
        deadline = time.monotonic() + PATIENCE
        while process.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.01)
        with run_lock(tmp_path):
            assert f'"process": {os.getpid()}' in (tmp_path / LOCK).read_text()
    finally:
        os.kill(child, signal.SIGKILL)


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / LOCK).mkdir()
    with pytest.raises(ValueError, match=r"\.lock cannot be opened \(Is a directory\)"), run_lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch):
    def refusing(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refusing)
    with pytest.warns(UserWarning, match=r"knows no locks \(No locks available\)"), run_lock(tmp_path):
        pass


def test_a_holder_that_has_not_said_its_name_is_another_process(tmp_path):
    with run_lock(tmp_path):
        (tmp_path / LOCK).write_text("")
        with pytest.raises(ValueError, match="in use by another process;"), run_lock(tmp_path):
            pass
