"""`python -m flowprior`."""

from flowprior.cli.command import main

if __name__ == "__main__":
    main()
