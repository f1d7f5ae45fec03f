"""The `triptych` command as a module: python -m triptych_local generate "a red fire truck"."""

from triptych_local.cli import main

if __name__ == "__main__":
    main()
