"""``python -m isodistill`` is the command ``isodistill``."""

from isodistill.cli import main

if __name__ == "__main__":
    main()
