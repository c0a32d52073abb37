"""`python -m snnexp` is `snnexp`."""

from snnexp.cli import main

if __name__ == "__main__":
    main()
