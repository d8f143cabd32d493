"""Run a command so that the terminal's Ctrl-C reaches it and nobody else.

A terminal sends Ctrl-C to its whole foreground group. make would be in it, and fails then whatever the
command made of it. So the command gets a group of its own, and the terminal with it, as a shell would do.
"""

import contextlib
import os
import signal
import sys


def main(command: list[str]) -> int:
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC)
        ours = os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        ours = False
    if not ours:
        os.execvp(command[0], command)

    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # or we could not take the terminal back
    child = os.posix_spawnp(
        command[0], command, os.environ, setpgroup=0, setsigdef=[signal.SIGTTOU, signal.SIGPIPE]
    )
    os.tcsetpgrp(terminal, child)
    passed_on = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    for number in passed_on:
        signal.signal(number, lambda number, _: os.kill(child, number))
    while True:
        _, status = os.waitpid(child, os.WUNTRACED)
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.tcsetpgrp(terminal, os.getpgrp())
        if not os.WIFSTOPPED(status):
            break
        os.kill(0, signal.SIGTSTP)  # Ctrl-Z: make stops too, and the shell has the terminal until `fg`
        os.tcsetpgrp(terminal, child)
        os.killpg(child, signal.SIGCONT)
    for number in passed_on:
        signal.signal(number, signal.SIG_IGN)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
