"""``python -m tam_fast.demo.train``."""

from tam_fast.demo.train.command import main

main()
