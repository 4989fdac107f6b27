"""How model families lay out their visual tokens: data, not patches.

`families` says which layout a model type has, `layouts` builds the grids, `geometry` puts them together for inputs made
elsewhere, `images` reads pictures, `prompts` writes chats out, `inputs` turns both into what the model takes, `places`
and `turns` find the user's words in it, `capture` and `recording` read final hidden states and candidates while the
model runs, `heads` the classifier, `text` maps tokens to characters, `processors` loads processors, `folders` checks
their files.
"""

from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.families import register
from tam_fast.models.geometry import layout_of
from tam_fast.models.support import Support, support

__all__ = ["ModelNotSupportedError", "Support", "layout_of", "register", "support"]
