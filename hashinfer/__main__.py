"""`python -m hashinfer`: the same as the installed command."""

from hashinfer.cli import main

if __name__ == "__main__":
    main()
