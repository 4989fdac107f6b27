"""The command ``tam-fast``: see ``tam-fast --help``.

One module a command: `explain`, `models`, `layout`, `info`. `app` is the table of them and the entry point. What
commands share: `console` talks to the user, `help` groups options, `sources`, `images`, `videos` and `messages` find
what the user names, `loading` loads models, `results` names and writes files. Of `explain` alone: `options` are its
options, `asking` checks them, `questions` are what is asked, `document` and `terminal` say what came out.

``--help``, ``--version`` and usage errors must be quick: numpy, Pillow, rich, torch and transformers are imported where
they are used.
"""

from tam_fast.cli.app import main

__all__ = ["main"]
