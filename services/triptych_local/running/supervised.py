"""Runs a module as a program that ends when whoever started it is gone, however that happened.

    python -m triptych_local.running.supervised triptych_denoiser --listen unix:/run/denoiser.sock

Standard input is a pipe that the parent holds open. When the parent dies, even by
SIGKILL, the system closes it.
"""

import os
import runpy
import sys
import threading


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)  # nobody waits for results any more


def main() -> None:
    """Runs the module that the first argument names; the other arguments are its own."""
    threading.Thread(target=_end_with_parent, name="parent watch", daemon=True).start()
    module = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
