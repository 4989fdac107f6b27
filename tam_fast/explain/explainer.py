"""From a model and an image to an :class:`~tam_fast.explanation.Explanation`: :class:`Explainer`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch

from tam_fast.explain.answers import Answer, answer_ids, check_spans, whole_answer
from tam_fast.explain.contrast import blind_job
from tam_fast.explain.generation import generate_arguments
from tam_fast.explain.job import Job
from tam_fast.explain.methods import other_method
from tam_fast.explain.progress import reading
from tam_fast.explain.request import Request, explanations
from tam_fast.explain.stream import ExplanationStream
from tam_fast.explain.targets import Targets, check_targets
from tam_fast.explanation import Explanation
from tam_fast.maps.answer import check_options
from tam_fast.maps.tokens import Compat
from tam_fast.models.chat import Chat, read_chat
from tam_fast.models.errors import ModelNotSupportedError
from tam_fast.models.given import given_inputs
from tam_fast.models.heads import Head
from tam_fast.models.inputs import Context, ImageLike, load_images, prepare_chat
from tam_fast.models.layouts import visual_mask
from tam_fast.models.processors import load_processor
from tam_fast.models.registry import family_of
from tam_fast.models.typed import SpecialTokens, check_special_tokens
from tam_fast.models.videos import VideoLike, load_videos
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
        images: ImageLike | Sequence[ImageLike] | None = None,
        prompt: str | None = None,
        *,
        videos: VideoLike | Sequence[VideoLike] | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        turn: int = -1,
        prefix: str | None = None,
        answer: Answer | None = None,
        method: str = "tam",
        refine: str | None = None,
        scale: Literal["map", "answer"] = "map",
        method_options: Mapping[str, Any] | None = None,
        targets: Targets = "answer",
        context: Context = "turn",
        grounding: Literal["contrast"] | None = None,
        compat: Compat = None,
        kernel_size: int = 3,
        max_new_tokens: int | None = None,
        special_tokens: SpecialTokens = "text",
        keep_states: bool = False,
        fps: float | None = None,
        num_frames: int | None = None,
        progress: bool = False,
        **generate_kwargs: Any,
    ) -> Explanation:
        """Explain an answer: the model's own, or a given one.

        ::

            e = explainer.explain("street.jpg", "What is on the left?")
            e = explainer.explain(videos="clip.mp4", prompt="What happens?")
            e = explainer.explain(messages=chat, turn=0)  # the recorded answer to the first question

        Parameters
        ----------
        images : PIL image, path, bytes, array, tensor, or a sequence of them, optional
            See :func:`tam_fast.models.inputs.load_images`. They stand before the text, in this order. With `messages`:
            those of its image parts that bring no data. Without images, videos and messages the text alone is asked:
            maps have no cells, relevance is still there.
        prompt : str, optional
            What the user says; ``"Describe this image."``, or of a video ``"Describe this video."``, if not given.
        videos : path, frames, array, or a sequence of them, optional
            See :func:`tam_fast.models.videos.load_videos`. They stand behind the images.
        messages : sequence of mapping, optional
            A conversation in the chat format of transformers, images and videos in place; not with `prompt`. Roles are
            system, user, assistant and tool; what else a message has is handed to the chat template. Where the last
            message is an assistant's, it is the beginning of the answer, as `prefix`.
        turn : int
            -1 is the next answer. k >= 0 explains the answer that `messages` record to the k-th message of a user, as
            the conversation stood then; `answer` takes its place if it is given too.
        prefix : str, optional
            The beginning of the answer, which goes on from there; its words are context.
        answer : str, or int sequence or Tensor (T,), optional
            Explain this answer instead of generating one. Token ids are taken as they are. A string is tokenised behind
            the prompt where that leaves the prompt's tokens as they are, else on its own; for an answer that the model
            generated this gives its tokens back unless it spelt a word in an unusual way. One forward pass without a
            cache over prompt and answer; logits are made for the answer's positions only, a few at a time.
        method : str
            Whose maps: ``"tam"``, or a name of ``tam_fast.methods.METHODS``, with causal inference and a filter on its
            maps as ``"layer_cam+eci+rgf"``. The answer, its tokens and the layout are the same, so that methods can be
            compared; the maps are of one more teacher-forced pass, or as many as the method takes.
        refine : str, optional
            ``"eci"``, ``"rgf"``, ``"eci_mean+gaussian"``, ...: what stands behind the method's name otherwise.
        scale : "map" or "answer"
            How maps of other methods than TAM are brought to [0, 1]: each by its own extremes, or all of the answer
            together. Negative values count as 0.
        method_options : mapping, optional
            Options of the method, such as ``{"layer": 0}``; ``METHODS[method].options`` has their defaults. Where one
            is called ``images``, None takes superpixels of the images, and False does not.
        targets : "answer", "thinking", "prompt", or a sequence of words, patterns and (start, end)
            Which tokens are explained. ``"answer"``: all that were generated, but for a thinking section before the
            answer, which is context. ``"thinking"``: that section. ``"prompt"``: the user's words, nothing being
            generated; each against the words before it. A sequence: of the answer, those tokens that spell some of its
            words or phrases (strings), of what matches a compiled regular expression, or of its characters start to
            end; maps are made for these alone.
        context : "turn" or "conversation"
            Which words before the answer are context: those of its turn (the user's last message and what came after
            it), or all that users, assistants and tools said.
        grounding : "contrast", optional
            Also find, in one more pass without images and videos, how probable each token is without them:
            ``e.contrast``, a part of ``e.grounding``.
        compat : None, "official" or "paper"
            See :func:`tam_fast.activation_maps`.
        kernel_size : int
            Side of the rank Gaussian filter's window; 1 switches the filter off.
        max_new_tokens : int, optional
            Length limit of a generated answer. Default: what `generate_kwargs` or the model's generation configuration
            say, else 128.
        special_tokens : "text" or "obey"
            What control tokens are that are typed in `prompt`, `messages` or `answer`, ``<|im_end|>`` for one: text
            like any other, or (``"obey"``) control tokens. Marks of a thinking section in an answer are always obeyed.
        keep_states : bool
            Keep the final hidden states that the maps were made of: :meth:`Explanation.what_if` makes maps of tokens
            that were not said of them, also after saving and loading.
        fps, num_frames : float, int, optional
            How video files are sampled; see :func:`tam_fast.models.videos.load_videos`.
        progress : bool
            Show how far reading videos is, and how many passes a method of perturbation has made: a bar on a terminal
            or in a notebook.
        **generate_kwargs
            Passed on to ``model.generate``; none with `answer`. The best answer of a beam search, and that of assisted
            decoding, are explained by one more pass over them.

        Returns
        -------
        Explanation
            Its tokens are the generated ones without the end mark that generation stopped at. Candidates are the three
            likeliest tokens of each step with their softmax probabilities over the vocabulary, from the model's logits
            before temperature and other sampling transforms. ``elapsed`` has seconds for ``prepare``, ``generate`` (or
            ``forward``), ``maps``, ``contrast`` (if asked for) and ``total``.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError
            If an argument is empty, of another type, contradicts another or is not supported (more than one sequence),
            images are not as many as their places in `messages`, an answer is not what its tokens spell, there is no
            such turn, word or thinking section, the model is in training mode, the answer has no token before its end
            mark, or a needed state is NaN or Inf.
        ModelNotSupportedError
            If processor and model do not fit together, the model takes no videos, or the logits that the model gave are
            not its classifier rows times its final hidden states, neither in generation nor in a pass over the answer.

        Notes
        -----
        At every step the rows of the three likeliest tokens and of the chosen one, times the state, are compared with
        the model's logits. Where they differ, the states come from a pass over the finished answer, and ``source`` of
        the explanation is ``"teacher_forced"``.

        Generation and a teacher-forced pass over the same tokens give the same maps up to the rounding of the model's
        arithmetic, which sums differently for one row and for many.
        """
        options = {name: value for name, value in locals().items() if name not in ("self", "generate_kwargs")}
        return explanations([self._request(**options, **generate_kwargs).run()])[0]

    def explain_batch(
        self,
        requests: Iterable[Mapping[str, Any]],
        batch_size: int = 8,
        *,
        progress: bool = False,
    ) -> list[Explanation]:
        """Explain several prompts, a few of them at a time in one call of ``generate``.

        ::

            explainer.explain_batch([{"images": path, "prompt": "What is this?"} for path in paths])

        Answers that are given are forced together, generated ones are generated together from left-padded prompts where
        their settings agree and the processor's inputs can be joined, one by one otherwise. Tokens and maps are those
        of one by one, up to the rounding of the model's arithmetic: in float32 maps within 1e-4; in bfloat16 a token
        may differ. Sampling draws other random numbers in a batch.

        Parameters
        ----------
        requests : iterable of dict
            Each the arguments of :meth:`explain`.
        batch_size : int
            How many prompts are run together.
        progress : bool
            Show how far it is: a bar on a terminal or in a notebook.

        Returns
        -------
        list of Explanation
            In the order of `requests`. ``elapsed`` has each one's even share of what was run together.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError, ModelNotSupportedError
            As :meth:`explain`, the number of the request before the message: ``requests[3]: ...``. Requests are checked
            before any of their batch is run; what was explained before is the error's ``explanations``.
        """
        from tam_fast.explain.batch import explain_all

        return explain_all(self._request, requests, batch_size, progress)

    def explain_ids(
        self,
        inputs: Mapping[str, Any],
        sequence: Sequence[int] | torch.Tensor,
        *,
        images: ImageLike | Sequence[ImageLike] | None = None,
        videos: VideoLike | Sequence[VideoLike] | None = None,
        image_sizes: Sequence[tuple[int, int]] | None = None,
        targets: Targets = "answer",
        compat: Compat = None,
        kernel_size: int = 3,
        keep_states: bool = False,
    ) -> Explanation:
        """Explain after the fact what was generated: from the processor's inputs and the ids that came out.

        ::

            inputs = processor(images=[image], text=[text], return_tensors="pt")
            sequence = model.generate(**inputs)
            e = explainer.explain_ids(inputs, sequence, images=[image])

        Parameters
        ----------
        inputs : mapping
            What the processor returned for one prompt, without padding.
        sequence : int Tensor (1, P + T) or (P + T,), or a list of ids
            What ``generate`` returned: the prompt's ids and the answer's, or the answer's alone.
        images, videos : optional
            What the inputs were made of, to draw on. Videos as the frames that the processor was given.
        image_sizes : sequence of (width, height), optional
            See :func:`tam_fast.layout_of`; those of `images` if these are given.
        targets, compat, kernel_size, keep_states
            As for :meth:`explain`.

        Returns
        -------
        Explanation
            Of one pass over the sequence; ``source`` is ``"given"``. Its context are the words of the last turn of a
            user.

        Raises
        ------
        ValueError, TypeError, ModelNotSupportedError
            As :meth:`explain` and :func:`tam_fast.layout_of`; if the sequence has no token behind the prompt, or images
            are not as many as the inputs were made of.
        """
        started = time.perf_counter()
        kernel_size = check_options(compat, kernel_size)
        targets = check_targets(targets)
        self._check_mode()
        pictures = [] if images is None else load_images(images)
        clips = [] if videos is None else load_videos(videos)
        if image_sizes is None and pictures:
            image_sizes = [picture.size for picture in pictures]
        prompt = given_inputs(self.model, self.processor, inputs, image_sizes)
        self._check_ids(prompt.input_ids)
        self._check_pictures(inputs, pictures)
        words = self.processor.tokenizer.decode(prompt.input_ids[prompt.layout.prompt].tolist())
        chat = Chat((), pictures, clips, 0, str(words).strip())
        job = Job(self.model, self.processor, self._head(), chat, prompt, kernel_size)
        ids = answer_ids(job, _behind(prompt.input_ids, sequence))
        job.elapsed["prepare"] = time.perf_counter() - started
        made = Request(job, {}, ids, targets, compat, keep_states, started=started).run()
        return explanations([made])[0]

    def stream(
        self,
        images: ImageLike | Sequence[ImageLike] | None = None,
        prompt: str | None = None,
        *,
        videos: VideoLike | Sequence[VideoLike] | None = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        prefix: str | None = None,
        context: Context = "turn",
        kernel_size: int = 3,
        max_new_tokens: int | None = None,
        special_tokens: SpecialTokens = "text",
        fps: float | None = None,
        num_frames: int | None = None,
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
        images, prompt, videos, messages, prefix, context, kernel_size, max_new_tokens, special_tokens, fps, num_frames
            As in :meth:`explain`.
        **generate_kwargs
            As in :meth:`explain`, but for beam search and assisted decoding, whose steps are not the answer's.

        Returns
        -------
        ExplanationStream
            Iterate over it for :class:`Step` objects; then its ``explanation`` is what :meth:`explain` returns for the
            same tokens, with the same bits in its maps. Steps are all that is generated, a thinking section too.

        Raises
        ------
        ValueError, TypeError, FileNotFoundError, ModelNotSupportedError
            As :meth:`explain`; what the model raises comes out of the loop. A state that is NaN or Inf is found when a
            map that needs it is read, or at the end of the loop, and so are logits that do not follow from the states.
        """
        started = time.perf_counter()
        kernel_size = check_options(None, kernel_size)
        check_special_tokens(special_tokens)
        arguments = generate_arguments(self.model, max_new_tokens, generate_kwargs, stream=True)
        chat = read_chat(
            images, prompt, videos=videos, messages=messages, prefix=prefix, fps=fps, num_frames=num_frames
        )
        job = self._job(chat, kernel_size, special_tokens, context)
        job.elapsed["prepare"] = time.perf_counter() - started
        return ExplanationStream(job, arguments)

    def _request(
        self,
        images: Any = None,
        prompt: str | None = None,
        *,
        videos: Any = None,
        messages: Sequence[Mapping[str, Any]] | None = None,
        turn: int = -1,
        prefix: str | None = None,
        answer: Answer | None = None,
        method: str = "tam",
        refine: str | None = None,
        scale: Literal["map", "answer"] = "map",
        method_options: Mapping[str, Any] | None = None,
        targets: Targets = "answer",
        context: Context = "turn",
        grounding: str | None = None,
        compat: Compat = None,
        kernel_size: int = 3,
        max_new_tokens: int | None = None,
        special_tokens: SpecialTokens = "text",
        keep_states: bool = False,
        fps: float | None = None,
        num_frames: int | None = None,
        progress: bool = False,
        **generate_kwargs: Any,
    ) -> Request:
        """Check and prepare what :meth:`explain` is asked; nothing is run yet."""
        started = time.perf_counter()
        # All that can be refused is, before anything is read or run.
        kernel_size = check_options(compat, kernel_size)
        check_special_tokens(special_tokens)
        targets = check_targets(targets)
        if grounding not in (None, "contrast"):
            raise ValueError(f"grounding: expected 'contrast' or None, got {grounding!r}")
        arguments = generate_arguments(self.model, max_new_tokens, generate_kwargs)
        other = other_method(self.model, method, refine, scale, method_options, progress)
        states = keep_states or None
        if other is not None:
            _refuse(f"method={method!r}", compat=compat, grounding=grounding, keep_states=states)
        if targets == "prompt":
            _refuse(
                "targets='prompt'",
                answer=answer,
                prefix=prefix,
                compat=compat,
                grounding=grounding,
                method=other and method,
            )
            if turn != -1:
                raise ValueError(f"turn: expected -1 with targets='prompt', got {turn}")
        with reading("reading the video", progress and (videos is not None or messages is not None)) as told:
            chat = read_chat(
                images,
                prompt,
                videos=videos,
                messages=messages,
                turn=turn,
                prefix=prefix,
                fps=fps,
                num_frames=num_frames,
                progress=told,
            )
        if answer is None and chat.answer is not None:
            answer = chat.answer
        if generate_kwargs and (answer is not None or targets == "prompt"):
            what = "targets='prompt'" if answer is None else "answer=" if chat.answer is None else "a recorded answer"
            raise ValueError(f"generate_kwargs: expected none with {what}, got {', '.join(generate_kwargs)}")
        if targets == "prompt" and chat.prefix:
            raise ValueError("messages: expected a last one of a user with targets='prompt', got an assistant's")
        job = self._job(chat, kernel_size, special_tokens, context)
        if other is not None:
            other.completed(job)  # which may refuse
        if isinstance(answer, str):
            answer = whole_answer(job, answer)
        ids = None if answer is None else answer_ids(job, answer, special_tokens)
        if isinstance(answer, str) and ids is not None and not isinstance(targets, str):
            check_spans(job, answer, ids, targets)
        blind = None if grounding is None else blind_job(job)
        job.elapsed["prepare"] = time.perf_counter() - started
        return Request(job, arguments, ids, targets, compat, keep_states, blind, started, other)

    def _job(self, chat: Chat, kernel_size: int, special_tokens: SpecialTokens, context: Context = "turn") -> Job:
        self._check_mode()
        inputs = prepare_chat(self.model, self.processor, chat, special_tokens, context)
        self._check_ids(inputs.input_ids)
        return Job(self.model, self.processor, self._head(), chat, inputs, kernel_size)

    def _prepare(self, images: Any, prompt: str, kernel_size: int, special_tokens: SpecialTokens = "text") -> Job:
        """Prepare a prompt about images."""
        return self._job(read_chat(images, prompt), kernel_size, special_tokens)

    def _check_pictures(self, inputs: Mapping[str, Any], pictures: Sequence[Any]) -> None:
        """Refuse pictures that the processor would have made inputs of another shape of."""
        part = getattr(self.processor, "image_processor", None)
        if not pictures or part is None:
            return
        try:
            made = part(images=list(pictures), return_tensors="pt")
        except Exception:  # what it needs beyond them is not known here
            return
        for name, value in made.items():
            given = inputs[name] if name in inputs else None  # noqa: SIM401 (a BatchFeature has no get)
            shapes = [getattr(item, "shape", None) for item in (value, given)]
            told = name.endswith(("_thw", "_hw", "image_sizes", "spatial_shapes", "target_sizes"))
            if None in shapes or (shapes[0] == shapes[1] and not (told and bool((value != given).any()))):
                continue
            sizes = ", ".join(f"{one.width}x{one.height}" for one in pictures)
            raise ValueError(
                f"images: expected those that the inputs were made of, got pictures of {sizes}, of which the processor "
                f"makes other {name}"
            )

    def _check_mode(self) -> None:
        if self.model.training:
            raise ValueError(
                "model: expected evaluation mode, got training mode, in which dropout makes states random: "
                "call model.eval()"
            )

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


def _refuse(what: str, **given: Any) -> None:
    """Refuse arguments that do not go with another one, where they are not None."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}: expected none with {what}, got {value!r}")


def _behind(prompt: torch.Tensor, sequence: Any) -> list[int]:
    """Find the answer in what ``generate`` returned for a prompt (P,)."""
    try:
        every = torch.as_tensor(sequence)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"sequence: expected token ids, got {type(sequence).__name__}") from error
    if every.ndim == 2 and every.shape[0] == 1:
        every = every[0]
    if every.ndim != 1 or not every.numel() or every.is_floating_point() or every.dtype == torch.bool:
        raise ValueError(f"sequence: expected token ids (P + T,), got {tuple(every.shape)} of {every.dtype}")
    ids: list[int] = every.tolist()
    length = prompt.numel()
    if ids[:length] != prompt.tolist():
        return ids
    if len(ids) == length:
        raise ValueError(f"sequence: expected tokens behind the {length} of the prompt, got none")
    return ids[length:]
