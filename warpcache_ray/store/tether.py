"""Run as a program, `tether.py PARENT COMMAND...`: becomes the command, which on Linux ends with its parent.

A program of its own, because code between fork and exec (`preexec_fn`) may deadlock in a process with threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the parent ended before the command began")
    os.execv(command[0], command)
