"""`python -m flowprior`."""

from flowprior.command import main

if __name__ == "__main__":
    main()
