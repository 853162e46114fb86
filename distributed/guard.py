"""Run a command until it ends or standard input closes; a byte on standard input asks it to stop.

    python -m distributed.guard COMMAND ...

The launcher starts every process under a guard on its host. When the launcher ends, for whatever reason, the input of
the guard closes, through SSH too. Imports only the standard library, to start quickly.
"""
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import threading


def guard(command):
    """Run a command with a temporary folder of its own; returns its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        child = subprocess.Popen(
            command, env={**os.environ, 'TMPDIR': folder}, stdin=subprocess.DEVNULL,
            preexec_fn=lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL))  # PR_SET_PDEATHSIG: it dies with the guard

        def obey():
            while os.read(0, 1):
                child.terminate()
            child.kill()

        threading.Thread(target=obey, daemon=True).start()
        code = child.wait()
    return code if code >= 0 else 128 - code  # as a shell does for a signal


if __name__ == '__main__':
    sys.exit(guard(sys.argv[1:]))
