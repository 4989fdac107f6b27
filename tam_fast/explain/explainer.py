"""From a model and an image to an :class:`~tam_fast.explanation.Explanation`: :class:`Explainer`."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import torch

from tam_fast.explain.generation import Answer, answer_ids, force, generate, generate_arguments
from tam_fast.explain.job import Job, Writer
from tam_fast.explain.stream import ExplanationStream
from tam_fast.explanation import Explanation
from tam_fast.maps.answer import check_options
from tam_fast.maps.tokens import Compat
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.heads import Head
from tam_fast.models.inputs import ImageLike, load_images, prepare_inputs
from tam_fast.models.layouts import visual_mask
from tam_fast.models.processors import load_processor
from tam_fast.models.registry import family_of
from tam_fast.models.typed import SpecialTokens, check_special_tokens
from tam_fast.models.wrappers import check_weights, input_device, unwrap

__all__ = ["Explainer"]

# Arguments of from_pretrained that the model and its processor have in common.
_SHARED = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token", "trust_remote_code")


class Explainer:
    """Explain what a vision-language model says: for each token, where in the images the model saw it.

    ::

        explainer = Explainer(model, processor)
        e = explainer.explain("street.jpg", "Describe this image.")
        e["bus"]

    The model is used as it is: its attention implementation, device and dtype stay, no gradients are computed, and
    beyond what ``generate`` holds anyway only one row of final hidden states a position is kept.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A decoder-only model of images and text, in evaluation mode; ``tam_fast.models.support()`` lists the families
        that were verified. Also compiled, in DataParallel, with PEFT's adapters, quantised or offloaded: what is
        explained is the model inside, as it is adapted.
    processor : transformers.ProcessorMixin
        Of that model; see :func:`tam_fast.load_processor`.

    Raises
    ------
    ModelNotSupportedError
        If the model type has no layout here, there is no classifier whose rows can be read, a weight has no values
        (``meta``), or the model reads virtual tokens; says what is missing.
    TypeError
        If `model` or `processor` are something else.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        model = unwrap(model)
        self._family = family_of(model)
        check_weights(model)
        for name in ("image_processor", "tokenizer"):
            if getattr(processor, name, None) is None:
                raise TypeError(f"processor: expected a processor with {name}, got {type(processor).__name__}")
        self.model = model
        self.processor = processor
        hidden = getattr(model.config.get_text_config(), "hidden_size", 0)
        self._head().check(torch.zeros((1, hidden), dtype=model.dtype, device=input_device(model)))

    @classmethod
    def from_pretrained(
        cls,
        id_or_path: str | os.PathLike[str],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        attn_implementation: str | None = None,
        **kwargs: Any,
    ) -> Explainer:
        """Load a model and its processor, and put an explainer around them.

        ::

            explainer = tam_fast.Explainer.from_pretrained("Qwen/Qwen2-VL-2B-Instruct", device="cuda")

        Parameters
        ----------
        id_or_path : str or path
            A model folder (nothing is fetched then) or a model hub id.
        device : str or torch.device, optional
            Where the model goes; the CPU if not given. Not together with ``device_map``.
        dtype : str or torch.dtype
            The number format of its weights; ``"auto"`` leaves them as they are stored.
        attn_implementation : str, optional
            ``"sdpa"``, ``"flash_attention_2"``, ``"eager"``, ...; transformers chooses if not given.
        **kwargs
            Passed on to ``from_pretrained`` of the model, such as ``device_map`` or ``quantization_config``; of the
            processor as well ``revision``, ``token``, ``cache_dir``, ``local_files_only`` and ``trust_remote_code``.

        Returns
        -------
        Explainer

        Raises
        ------
        ModelNotSupportedError, ValueError, OSError
            As the class, :func:`tam_fast.load_processor` and transformers raise.
        """
        import transformers

        if device is not None and kwargs.get("device_map") is not None:
            raise ValueError(f"device: expected none with device_map, got {device!r}")
        if attn_implementation is not None:
            kwargs["attn_implementation"] = attn_implementation
        # First: it takes less, and names files that are missing.
        processor = load_processor(id_or_path, **{name: kwargs[name] for name in _SHARED if name in kwargs})
        auto: Any = transformers.AutoModelForImageTextToText
        model = auto.from_pretrained(id_or_path, dtype=dtype, **kwargs)
        return cls((model if device is None else model.to(device)).eval(), processor)

    def __repr__(self) -> str:
        return f"Explainer({type(self.model).__name__}, {type(self.processor).__name__})"

    def explain(
        self,
        images: ImageLike | Sequence[ImageLike],
        prompt: str = "Describe this image.",
        answer: Answer | None = None,
        *,
        compat: Compat = None,
        kernel_size: int = 3,
        max_new_tokens: int | None = None,
        special_tokens: SpecialTokens = "text",
        keep_states: bool = False,
        **generate_kwargs: Any,
    ) -> Explanation:
        """Explain an answer to a prompt about images: the model's own, or a given one.

        Parameters
        ----------
        images : PIL image, path, (H, W, 3) uint8 array, or a sequence of them
            They stand before the text, in this order.
        prompt : str
            What the user says.
        answer : str, or int sequence or Tensor (T,), optional
            Explain this answer instead of generating one. Token ids are taken as they are. A string is tokenised behind
            the prompt where that leaves the prompt's tokens as they are, else on its own; for an answer that the model
            generated this gives its tokens back unless it spelt a word in an unusual way. One forward pass without a
            cache over prompt and answer; logits are made for the answer's positions only, a few at a time.
        compat : None, "official" or "paper"
            See :func:`tam_fast.activation_maps`.
        kernel_size : int
            Side of the rank Gaussian filter's window; 1 switches the filter off.
        max_new_tokens : int, optional
            Length limit of a generated answer. Default: what `generate_kwargs` or the model's generation configuration
            say, else 128.
        special_tokens : "text" or "obey"
            What control tokens are that are typed in `prompt` or `answer`, ``<|im_end|>`` for one: text like any other,
            or (``"obey"``) control tokens.
        keep_states : bool
            Keep the final hidden states that the maps were made of: :meth:`Explanation.what_if` makes maps of tokens
            that were not said of them, also after saving and loading.
        **generate_kwargs
            Passed on to ``model.generate``; none with `answer`.

        Returns
        -------
        Explanation
            Its tokens are the generated ones without the end mark that generation stopped at. Candidates are the three
            likeliest tokens of each step with their softmax probabilities over the vocabulary, from the model's logits
            before temperature and other sampling transforms. ``elapsed`` has seconds for ``prepare``, ``generate`` (or
            ``forward``), ``maps`` and ``total``.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError
            If an argument is empty, of another type or not supported (more than one sequence, assisted decoding), the
            model is in training mode, the answer has no token before its end mark, or a needed state is NaN or Inf.
        ModelNotSupportedError
            If processor and model do not fit together, or the logits that the model gave are not its classifier rows
            times its final hidden states, neither in generation nor in a pass over the answer.

        Notes
        -----
        At every step the rows of the three likeliest tokens and of the chosen one, times the state, are compared with
        the model's logits. Where they differ, the states come from a pass over the finished answer, and ``source`` of
        the explanation is ``"teacher_forced"``.

        Generation and a teacher-forced pass over the same tokens give the same maps up to the rounding of the model's
        arithmetic, which sums differently for one row and for many.
        """
        started = time.perf_counter()
        # All that can be refused is, before anything is read or run.
        kernel_size = check_options(compat, kernel_size)
        check_special_tokens(special_tokens)
        arguments = generate_arguments(self.model, max_new_tokens, generate_kwargs)
        if answer is not None and generate_kwargs:
            raise ValueError(f"generate_kwargs: expected none with answer=, got {', '.join(generate_kwargs)}")
        job = self._prepare(images, prompt, kernel_size, special_tokens)
        job.elapsed["prepare"] = time.perf_counter() - started
        began = time.perf_counter()
        if answer is None:
            ids, hidden, candidates = generate(job, arguments)
            job.elapsed["generate"] = time.perf_counter() - began
        else:
            job.source = "given"
            ids, hidden, candidates = force(job, answer_ids(job, answer, special_tokens))
            job.elapsed["forward"] = time.perf_counter() - began
        began = time.perf_counter()
        with torch.no_grad():
            maps = job.maps(ids, hidden, compat)
        job.elapsed["maps"] = time.perf_counter() - began
        writer = Writer(self.processor.tokenizer, candidates)
        for token_id in ids:
            writer.append(token_id)
        writer.whole()
        job.elapsed["total"] = time.perf_counter() - started
        return job.explanation(maps, writer, job.keep(ids, hidden) if keep_states else None)

    def stream(
        self,
        images: ImageLike | Sequence[ImageLike],
        prompt: str = "Describe this image.",
        *,
        kernel_size: int = 3,
        max_new_tokens: int | None = None,
        special_tokens: SpecialTokens = "text",
        **generate_kwargs: Any,
    ) -> ExplanationStream:
        """Generate an answer and explain each token as soon as it is there.

        ``generate`` runs in a thread of its own, but never at the same time as the loop over the steps: the model
        works while the loop waits for the next step. Leaving the loop, :meth:`ExplanationStream.close` or dropping the
        iterator stops generation at the next token and releases the hooks; an error in the model is raised in the loop.
        The model may be used for something else between two steps, but for Qwen-VL with transformers before 5.17, which
        keeps a prompt's position offset on the model.

        Parameters
        ----------
        images, prompt, kernel_size, max_new_tokens, special_tokens, **generate_kwargs
            As in :meth:`explain`.

        Returns
        -------
        ExplanationStream
            Iterate over it for :class:`Step` objects; then its ``explanation`` is what :meth:`explain` returns for the
            same tokens, with the same bits in its maps.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError, ModelNotSupportedError
            As :meth:`explain`; what the model raises comes out of the loop. A state that is NaN or Inf is found when a
            map that needs it is read, or at the end of the loop, and so are logits that do not follow from the states.
        """
        started = time.perf_counter()
        kernel_size = check_options(None, kernel_size)
        check_special_tokens(special_tokens)
        arguments = generate_arguments(self.model, max_new_tokens, generate_kwargs)
        job = self._prepare(images, prompt, kernel_size, special_tokens)
        job.elapsed["prepare"] = time.perf_counter() - started
        return ExplanationStream(job, arguments)

    def _prepare(
        self,
        images: ImageLike | Sequence[ImageLike],
        prompt: str,
        kernel_size: int,
        special_tokens: SpecialTokens = "text",
    ) -> Job:
        if self.model.training:
            raise ValueError(
                "model: expected evaluation mode, got training mode, in which dropout makes states random: "
                "call model.eval()"
            )
        pictures = load_images(images)
        inputs = prepare_inputs(self.model, self.processor, pictures, prompt, special_tokens)
        self._check_ids(inputs.input_ids)
        return Job(self.model, self.processor, self._head(), pictures, prompt, inputs, kernel_size)

    def _check_ids(self, ids: torch.Tensor) -> None:
        """Refuse ids that the model has no embedding of: a GPU would fail without a word about them."""
        weight = getattr(self.model.get_input_embeddings(), "weight", None)
        rows = weight.shape[0] if isinstance(weight, torch.Tensor) and weight.ndim == 2 else None
        # Some put their visual tokens' id beyond the vocabulary, and never look it up.
        ids = ids[~visual_mask(self.model.config, ids)]
        if rows is not None and ids.numel() and int(ids.max()) >= rows:
            raise ModelNotSupportedError(
                f"processor: expected the tokenizer of this {type(self.model).__name__}, which embeds {rows} tokens, "
                f"got token id {int(ids.max())} from {type(self.processor.tokenizer).__name__}"
            )

    def _head(self) -> Head:
        # Anew each time: adapters may have been switched, weights merged or offloaded.
        return Head(self.model)
