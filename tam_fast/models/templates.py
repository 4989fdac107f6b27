"""Documented prompts as Jinja templates, for processors that come without one. Images of a turn stand first."""

from __future__ import annotations

__all__ = ["CHAMELEON", "GOT_OCR", "LLAVA", "PALIGEMMA", "VIPLLAVA"]

# Of a message, whose content may be a string, as parts.
_PARTS = (
    "{% set content = message['content'] %}"
    "{% if content is string %}{% set content = [{'type': 'text', 'text': content}] %}{% endif %}"
)
_TEXT = "{% for part in content if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
_IMAGES = "{{% for part in content if part['type'] == 'image' %}}{}{{% endfor %}}"

LLAVA = (
    "{{ bos_token }}"
    "{% for message in messages %}" + _PARTS + "{% if message['role'] == 'system' %}"
    "{% for part in content %}{{ part['text'] }} {% endfor %}"
    "{% elif message['role'] == 'user' %}USER: "
    "{% for part in content if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in content if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% else %}ASSISTANT: {% for part in content %}{{ part['text'] }}{% endfor %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""``USER: <image>\\nQuestion ASSISTANT: Answer</s>``, of LLaVA-1.5's and Video-LLaVA's model cards."""

VIPLLAVA = (
    "{{ bos_token }}A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
    "{% for message in messages %}" + _PARTS + "{% if message['role'] == 'user' %}###Human: "
    "{% for part in content if part['type'] == 'image' %}<image>\n{% endfor %}"
    + _TEXT
    + "{% else %}###Assistant: "
    + _TEXT
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}###Assistant:{% endif %}"
)
"""``###Human: <image>\\nQuestion###Assistant: Answer``, of VipLLaVA's model card."""

PALIGEMMA = "{% for message in messages %}" + _PARTS + _IMAGES.format("<image>") + _TEXT + "{% endfor %}"
"""``<image>caption en``: PaliGemma is no chat model; its processor adds the beginning and a line's end."""

CHAMELEON = "{{ bos_token }}{% for message in messages %}" + _PARTS + _IMAGES.format("<image>") + _TEXT + "{% endfor %}"
"""``<image>Question``: Chameleon's processor ends a turn."""

GOT_OCR = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You should follow the instructions carefully and explain your answers in detail.<|im_end|>{% endif %}"
    "{% for message in messages %}" + _PARTS + "<|im_start|>{{ message['role'] }}\n"
    "{% if content | selectattr('type', 'equalto', 'image') | list %}"
    + _IMAGES.format("<img><imgpad></img>")
    + "\n{% endif %}"
    + _TEXT
    + "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""GOT-OCR 2's prompt, as its processor writes it for a task; the text is such as ``OCR: ``."""
