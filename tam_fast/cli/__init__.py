"""The command ``tam-fast``: see ``tam-fast --help``.

One module a command: `explain`, `models`, `layout`, `info`. `app` is the table of them and the entry point. What
commands share: `console` talks to the user, `images` finds and decodes what the user names, `loading` loads models,
`results` names, writes and shows explanations.

``--help``, ``--version`` and usage errors must be quick: numpy, Pillow, rich, torch and transformers are imported where
they are used.
"""

from tam_fast.cli.app import main

__all__ = ["main"]
