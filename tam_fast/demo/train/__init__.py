"""Training of the embedded model: ``python -m tam_fast.demo.train --output DIR``.

Three stages, none of which sees a mask of an image:

1. *language*: the language model alone, on text in the chat layout whose visual slots hold word embeddings of a
   symbolic scene; next-token loss on the text, and every slot names its own content.
2. *alignment*: the language model is frozen; the vision tower and the merger learn from captions and answers, after a
   warm-up that needs no more than the words of the caption: close-ups of single objects, then whole scenes.
3. *polish*: everything at a low rate, with stage-1 text in part of the batches so that visual states stay readable; in
   its second part ("settle") a weak loss keeps visual states from predicting tokens that are no words of a scene.

What is said with pictures never says where anything is: places are spoken of in the text of stage 1 alone. Batches hold
one image, two images or frames of a video each; on all of them several talks are held that do not see one another.

Seed and step counts are fixed, and every step draws from a stream of its own, so that a run resumed from a checkpoint
continues bit for bit.
The forward pass here is a lean one for batches of equal shape; its parity with the stock
``Qwen2VLForConditionalGeneration`` is checked before the weights are written.
"""

from tam_fast.demo import ASSETS
from tam_fast.demo.train.batches import patchify
from tam_fast.demo.train.command import main
from tam_fast.demo.train.model import make_config
from tam_fast.demo.train.plan import SMOKE, STAGES, Phase, Plan
from tam_fast.demo.train.trainer import Trainer, train
from tam_fast.demo.train.words import Words

__all__ = ["ASSETS", "SMOKE", "STAGES", "Phase", "Plan", "Trainer", "Words", "main", "make_config", "patchify", "train"]
