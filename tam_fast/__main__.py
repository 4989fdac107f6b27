"""``python -m tam_fast``: the same as the command ``tam-fast``."""

from tam_fast.cli import main

if __name__ == "__main__":
    main()
