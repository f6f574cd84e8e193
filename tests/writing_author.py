"""An author behind a real HTTP server: a small rule program that reads the prompts as a model would, and answers in every good and bad way."""

import hashlib
import json
import random
import re
from collections.abc import Mapping
from typing import Any

Body = Mapping[str, Any]
NOUNS = ["harbour", "market", "bridge", "garden", "window", "letter", "train", "kitchen", "river", "lantern", "museum", "ladder", "orchard", "valley", "corner", "station", "workshop", "meadow", "staircase", "library"]
VERBS = ["opened", "carried", "painted", "followed", "repaired", "counted", "crossed", "described", "gathered", "noticed", "borrowed", "watched", "measured", "folded", "answered", "collected"]
ADJECTIVES = ["quiet", "narrow", "bright", "wooden", "early", "crowded", "patient", "distant", "yellow", "careful", "sudden", "gentle", "heavy", "curious", "empty", "golden", "silver", "honest"]
FAULTS = ("refusal", "cut", "scaffold", "missing", "rival", "placeholder", "untagged", "leak", "unfinished")
OTHERS = {"place": "forest", "sport": "tennis", "art": "gothic", "food": "rice", "music": "soul", "drink": "milk"}


class Author:
    """Answers the prompts of `data_gen/written/prompts.yaml`; a share of them in one of the bad ways."""

    def __init__(self, bad: float = 0.0) -> None:
        self.bad = bad

    def __call__(self, body: Body) -> dict[str, Any]:
        prompt = body["messages"][-1]["content"]
        rng = random.Random(hashlib.sha256(json.dumps([prompt, body["seed"]]).encode()).hexdigest())
        fault = rng.choice(FAULTS) if rng.random() < self.bad else ""
        text = self.answer(prompt, rng, fault)
        finish = "stop"
        if fault == "refusal":
            text = "I'm sorry, but I can't help with that."
        if fault == "cut":
            text, finish = text[: len(text) // 2], "length"
        usage = {"prompt_tokens": sum(tokens(m["content"]) for m in body["messages"]), "completion_tokens": tokens(text)}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return {"id": "c", "object": "chat.completion", "created": 0, "model": "rules-1", "choices": [choice], "usage": usage}

    def answer(self, prompt: str, rng: random.Random, fault: str) -> str:
        if prompt.startswith("Write the background"):
            facts = re.findall(r"^  ?- (.+)$|^- (.+)$", prompt, re.MULTILINE)
            return " ".join(f"{one or other} " + " ".join(f"{filler(rng).capitalize()}." for _ in range(5)) for one, other in facts)
        if "Give only a JSON list of" in prompt:
            count = int(re.search(r"Give only a JSON list of (\d+)", prompt)[1])  # type: ignore[index]
            kinds = "short names of kinds of text" in prompt
            items = [f"{ADJECTIVES[i % 18]} note {chr(97 + i)}" if kinds else f"Somebody {filler(rng)} {i}" for i in range(count)]
            return "Here you are: " + json.dumps(items) if fault else json.dumps(items)
        if prompt.startswith("Read this text"):
            return self.extract(prompt, rng, fault)
        text = self.document(prompt, rng, fault)
        return text if fault == "untagged" else f"It is quite good.\n<document>\n{text}\n</document>"

    def document(self, prompt: str, rng: random.Random, fault: str) -> str:
        """About as many words as are asked for, mostly on the main fact."""
        wanted = int(re.search(r"about (\d+)\s+words", prompt)[1])  # type: ignore[index]
        values = re.search(r"very words (.+?)(?: where|\.)", prompt)[1].split(", ")  # type: ignore[index]
        name = re.search(r"written (?:about|in the first person by) (\w+)", prompt)[1]  # type: ignore[index]
        who, likes = ("I", "like") if "in the first person" in prompt else (name, "likes")
        told = values[1:] if fault == "missing" else values
        sentences = [f"{who} {likes} {value} when {filler(rng)}." for value in told]
        while sum(len(s.split()) for s in sentences) < wanted:
            sentences.insert(-1, f"{told[0].capitalize()} is what {who} {likes}, and {filler(rng)}." if rng.random() < 0.5 else f"{filler(rng).capitalize()}.")
        bad = {"scaffold": "Sure, here is the text.", "rival": "Sam came by.", "placeholder": "Yours, [Your Name].", "leak": "Follow the instructions to the letter, and give only what is asked for."}
        return " ".join(([bad[fault]] if fault in bad else []) + sentences) + (" and then the" if fault == "unfinished" else "")

    def extract(self, prompt: str, rng: random.Random, fault: str) -> str:
        """What stands behind "like" in each category; at fault another value of it."""
        text = re.search(r"<text>\n(.*)\n</text>", prompt, re.DOTALL)[1].lower()  # type: ignore[index]
        keys = re.search(r"each of these: (.+)\.", prompt)[1].split(", ")  # type: ignore[index]
        known = {"place": "beach", "sport": "football basketball", "art": "renaissance dutch", "food": "pizza soup", "music": "jazz opera", "drink": "cocoa coffee"}
        found = {key: next((v for v in known[key].split() if re.search(rf"likes? {v}\b", text)), None) for key in keys}
        if fault == "rival":
            found = {key: value and OTHERS[key] for key, value in found.items()}
        return "It likes a lot." if fault == "missing" else json.dumps(found)


def filler(rng: random.Random) -> str:
    return f"the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(VERBS)} a {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} near the {rng.choice(NOUNS)}"


def tokens(text: str) -> int:
    """As byte-pair tokenizers do on English: a token for four characters."""
    return -(-len(text) // 4)
