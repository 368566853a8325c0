"""`python -m asyncjobs` is the command `asyncjobs`."""

from asyncjobs.cli import main

if __name__ == "__main__":
    main()
