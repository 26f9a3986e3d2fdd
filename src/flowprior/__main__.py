"""`python -m flowprior`, the same as the command `flowprior`."""

from flowprior.cli.app import main

if __name__ == "__main__":
    main()
