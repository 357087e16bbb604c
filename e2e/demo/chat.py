"""One and the same prompt, answered by the base model and by both generations.

What serves is asked through its public Service, from a pod inside the cluster, as a user's program would. The models
that do not serve are loaded one after the other in the loader pod, whose image is the trainer's.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from e2e.demo.errors import DemoError
from e2e.demo.storage import Claim
from e2e.installation import CLAIM_FOLDER
from e2e.kubectl import KubectlError
from flywheel_contract.uris import parse_uri

PROMPT = "Hey! I just moved to a new city and I don't know anyone here yet. What would you do first?"
MAX_TOKENS = 60

ASK = """
import json, sys, urllib.request
job = json.load(sys.stdin)
request = urllib.request.Request(job["url"], json.dumps(job["body"]).encode(), {"Content-Type": "application/json"})
with urllib.request.urlopen(request, timeout=120) as answer:
    print(json.load(answer)["choices"][0]["message"]["content"])
"""

SAMPLE = """
import json, sys
from pathlib import Path
job = json.load(sys.stdin)
from flywheel_contract.params import Precision, SamplingParams
from flywheel_trainer.models import load_policy, load_tokenizer
from flywheel_trainer.sampling import sample_replies
params = SamplingParams(max_new_tokens=job["tokens"], temperature=0.7, top_p=0.95, precision=Precision.BF16)
answers = {}
for name, folder in job["models"].items():
    model, tokenizer = load_policy(Path(folder), params.precision), load_tokenizer(Path(folder))
    answers[name] = sample_replies(model, tokenizer, [job["messages"]], params)[0][0]
print("\\n" + json.dumps(answers))
"""
"""Both run in the loader. The sampling is that of the base model's generation_config, which the server follows."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model that is to answer."""

    name: str
    uri: str
    service: str | None = None
    """The Service that it stands behind, if it serves."""


def answers(claim: Claim, speakers: Sequence[Speaker], messages: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What each of `speakers` answers to `messages`.

    Raises:
        DemoError: one gave no answer.
    """
    folders = {s.name: f"{CLAIM_FOLDER}/{parse_uri(s.uri).path}" for s in speakers if s.service is None}
    body = {"model": "any", "messages": list(messages), "max_tokens": MAX_TOKENS}
    try:
        found = {
            s.name: claim.python(ASK, {"url": f"http://{s.service}/v1/chat/completions", "body": body}).strip()
            for s in speakers
            if s.service is not None
        }
        if folders:
            job = {"models": folders, "messages": list(messages), "tokens": MAX_TOKENS}
            found |= json.loads(claim.python(SAMPLE, job).strip().splitlines()[-1])
    except (KubectlError, json.JSONDecodeError, IndexError) as error:
        raise DemoError(f"a model gave no answer: {error}") from error
    return {s.name: found[s.name] for s in speakers}
