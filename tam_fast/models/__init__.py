"""How model families lay out their visual tokens: data, not patches.

`families` says which layout a model type has, `layouts` builds the grids, `images` reads pictures, `inputs` turns them
and a prompt into what the model takes, `capture` reads final hidden states and candidates while the model runs, `text`
maps tokens to characters, `processors` loads processors, `folders` checks their files.
"""

from tam_fast.models.errors import ModelNotSupportedError

__all__ = ["ModelNotSupportedError"]
