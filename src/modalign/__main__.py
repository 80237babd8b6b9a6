"""``python -m modalign``: the command line."""

from modalign.cli import main

if __name__ == "__main__":
    main()
