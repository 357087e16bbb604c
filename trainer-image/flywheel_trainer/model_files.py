"""Which model folders are accepted, judged by their files alone: safetensors weights, and no code of their own."""

import json
from pathlib import Path
from typing import Final

from flywheel_contract.stages import RewardModelType
from flywheel_trainer.errors import ModelError

REWARD_TYPE: Final = "reward_type"
"""The key in config.json under which a reward model says what kind it is."""

_PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_TOKENIZERS: Final = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")


def check_model(path: Path) -> None:
    """Refuses what is no complete model folder, and what could run code on loading.

    Raises:
        ModelError: the sentence names the folder and the fix.
    """
    if not path.is_dir():
        raise ModelError(f"model {path} is no folder; name the folder that holds config.json and *.safetensors")
    config = _config(path)
    if "auto_map" in config or "auto_map" in _json(path / "tokenizer_config.json"):
        raise ModelError(
            f"model folder {path} needs code of its own (auto_map), which is never run; "
            "use an architecture that transformers ships, and remove auto_map"
        )
    if not any(path.glob("*.safetensors")):
        pickles = sorted(p.name for pattern in _PICKLES for p in path.glob(pattern))
        if pickles:
            raise ModelError(
                f"model folder {path} has pickle weights only ({', '.join(pickles[:3])}), which can run code; "
                "save it again with save_pretrained (safetensors)"
            )
        raise ModelError(f"model folder {path} holds no *.safetensors; save the model with save_pretrained")
    if not any((path / name).is_file() for name in _TOKENIZERS):
        raise ModelError(f"model folder {path} has no tokenizer; save it there with tokenizer.save_pretrained")


def architecture(path: Path) -> str:
    """The first of `architectures` in config.json, or an empty string.

    Raises:
        ModelError: there is no readable config.json.
    """
    names = _config(path).get("architectures") or [""]
    return str(names[0])


def reward_type(path: Path) -> RewardModelType:
    """What kind of reward model the folder holds, as the stage that made it wrote into config.json.

    A model of elsewhere that says nothing is taken to be pointwise, as all that gives one score to one reply are.

    Raises:
        ModelError: there is no readable config.json, or it names a kind that does not exist.
    """
    said = _config(path).get(REWARD_TYPE, RewardModelType.POINTWISE.value)
    if said not in set(RewardModelType):
        raise ModelError(f"{path / 'config.json'}: {REWARD_TYPE} is {said!r}; write {', '.join(RewardModelType)}")
    return RewardModelType(str(said))


def _config(path: Path) -> dict[str, object]:
    if not (path / "config.json").is_file():
        raise ModelError(f"model folder {path} has no config.json; save the model with save_pretrained")
    return _json(path / "config.json")


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is no JSON: {error}") from error
    return value if isinstance(value, dict) else {}
