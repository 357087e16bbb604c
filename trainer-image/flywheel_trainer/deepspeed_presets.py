"""DeepSpeed's configuration: a preset for ZeRO-2 and ZeRO-3 with or without offload, or the user's own JSON.

`auto` is filled in by transformers from the stage's other parameters, so that nothing stands in two places.
"""

import json
from typing import Any, Final

from flywheel_contract.params import DeepSpeedParams, Offload, TrainingParams
from flywheel_trainer.errors import ConfigError

_HOST: Final = {"device": "cpu", "pin_memory": True}


def preset(params: DeepSpeedParams, *, on_gpu: bool) -> dict[str, Any]:
    """The configuration of `params`.

    Raises:
        ConfigError: parameters are to be offloaded that stage 2 does not partition.
    """
    if params.offload is Offload.OPTIMIZER_AND_PARAMETERS and params.stage != 3:
        raise ConfigError(
            "deepspeed: offload OptimizerAndParameters needs stage 3, which partitions the parameters; "
            "set stage 3, or offload Optimizer"
        )
    zero: dict[str, Any] = {"stage": params.stage, "overlap_comm": True, "contiguous_gradients": True}
    host = _HOST if on_gpu else {**_HOST, "pin_memory": False}
    if params.offload is not Offload.NONE:
        zero["offload_optimizer"] = host
    if params.offload is Offload.OPTIMIZER_AND_PARAMETERS:
        zero["offload_param"] = host
    if params.stage == 3:
        # Without it ZeRO-3 leaves no model behind.
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    config = {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }
    if params.offload is not Offload.NONE:
        # DeepSpeed's own AdamW, which computes where the offloaded state lies; torch's would be refused.
        auto = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
        config["optimizer"] = {"type": "AdamW", "params": auto}
    return config


def configuration(params: TrainingParams, *, on_gpu: bool) -> str | None:
    """DeepSpeed's configuration as JSON text; None where DeepSpeed is not asked for.

    Raises:
        ConfigError: both ways are used, the JSON is none, or it would leave no model behind.
    """
    if params.deepspeed is not None and params.deepspeed_config is not None:
        raise ConfigError("deepspeed and deepspeedConfig are both set; keep one of them")
    if params.deepspeed is not None:
        return json.dumps(preset(params.deepspeed, on_gpu=on_gpu))
    if params.deepspeed_config is None:
        return None
    try:
        config = json.loads(params.deepspeed_config)
    except json.JSONDecodeError as error:
        raise ConfigError(f"deepspeedConfig is no JSON: {error}") from error
    zero = config.get("zero_optimization", {}) if isinstance(config, dict) else {}
    if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise ConfigError(
            "deepspeedConfig: ZeRO-3 leaves no model behind unless zero_optimization has "
            '"stage3_gather_16bit_weights_on_model_save": true'
        )
    return params.deepspeed_config
