"""Control tokens that somebody wrote: the model shall read them as text.

Otherwise a user could end their own turn and begin one of the system's: a server tokenizes the rendered template as a
whole. Training treats what users wrote in the same way (the trainer's `prompts.spoken`, which knows the model's own
tokens; the gateway knows no model, so these are the shapes of the families in use).
"""

import re
from collections.abc import Mapping
from typing import Any, Final

_TOKEN: Final = re.compile(
    r"<\|[^<>|\s]{1,64}\|>"  # ChatML, Llama 3, Phi, Qwen, GLM, gpt-oss
    r"|<\uff5c[^<>\uff5c]{1,64}\uff5c>"  # DeepSeek
    r"|</?s>|<</?SYS>>"  # Llama 2, Mistral
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT)\]"  # Mistral
    r"|<(?:start|end)_of_(?:turn|image)>|<\|?turn\|?>|<(?:bos|eos|pad|unk)>"  # Gemma
)


def as_text(value: Any) -> Any:  # noqa: ANN401 -- any JSON value
    """`value` with a space behind the first character of every control token in its texts; roles stay."""
    if isinstance(value, str):
        return _TOKEN.sub(lambda found: f"{found[0][0]} {found[0][1:]}", value)
    if isinstance(value, Mapping):
        return {key: inner if key == "role" else as_text(inner) for key, inner in value.items()}
    return [as_text(inner) for inner in value] if isinstance(value, list) else value
