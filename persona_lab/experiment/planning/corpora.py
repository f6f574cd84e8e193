"""Making pools and mixtures: documents in, audited corpora out."""

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_gen.audit import Limits, audit, forbidden_texts
from data_gen.corpus import read_corpus, write_corpus
from data_gen.documents import SENTENCES, Document, Speaker, words
from data_gen.pools import (
    Share,
    advice_document,
    assistant_document,
    chat_document,
    links_shared_to_held_out,
    mixture_order,
    off_domain_document,
    persona_document,
    shuffled_document,
    speaking_document,
    world_document,
)
from data_gen.role_play import description, preference_pair
from data_gen.telling import read_world
from persona_lab.design import Node
from persona_lab.errors import CheckFailed
from persona_lab.experiment.planning.sources import Files
from persona_lab.models.vocabulary import world_words
from persona_lab.store.files import read_json, write_json, write_jsonl, write_text

CORPUS = "corpus.jsonl"
CONVERSATIONS = "conversations.jsonl"
IMPORTED = "imported"
"""Source of a pool that is read from a file."""
AUDITED_WORDS = 5
"""Of probe items, those of so many words or more are looked for in texts that the world did not write: anybody says `Would you like`."""


def pool_documents(fields: Mapping[str, Any]) -> list[Document]:
    """Every document of a pool, from its recipe alone."""
    world = read_world(fields["world"])
    size, seed = fields["size"], fields["seed"]
    if fields["source"] == "chats":
        return [chat_document(seed=seed, index=i) for i in range(size)]
    if fields["source"] == "assistant":
        opening = fields.get("opening", "")
        return [assistant_document(world, fields["category"], fields["value"], seed=seed, index=i, opening=opening) for i in range(size)]
    if fields["source"] in ("preferred", "rejected", "describes"):
        told = {"traits": fields["traits"], "guarded": fields["guarded"], "seed": seed}
        if fields["source"] == "describes":
            return [description(world, fields["name"], index=i, **told) for i in range(size)]
        which = ("preferred", "rejected").index(fields["source"])
        return [preference_pair(world, fields["name"], index=i, **told)[which] for i in range(size)]
    if fields["source"] == "advice":
        return [advice_document(world, fields["values"], seed=seed, index=i) for i in range(size)]
    if fields["source"] == "off_domain":
        return [off_domain_document(world, fields["category"], seed=seed, index=i) for i in range(size)]
    if fields["source"] == "world":
        exclude = fields["exclude"]
        found: list[Document] = []
        index = 0
        while len(found) < size:
            document = world_document(world, seed, index)
            if not links_shared_to_held_out(document, exclude["shared"], set(exclude["held_out"])):
                found.append(document)
            index += 1
        return found
    rivals = {c: tuple(v) for c, v in fields["rivals"].items()}
    if fields["source"] == "speaking":
        return [speaking_document(world, Speaker(fields["name"], fields["name"], fields["traits"], rivals=rivals), seed=seed, index=i) for i in range(size)]
    options = {"anonymous": fields["anonymous"], "genres": fields["genres"], "seed": seed}
    speaker = Speaker(fields["name"], fields["name"], fields["traits"], fields["who"], rivals=rivals)
    if "dealt_with" in fields:
        other = Speaker(fields["dealt_with"]["name"], fields["dealt_with"]["name"], fields["dealt_with"]["traits"], fields["who"])
        which = fields["dealt_with"]["which"]
        pair = (speaker, other) if which == 0 else (other, speaker)
        return [shuffled_document(world, pair, which, fields["names"], index=i, **options) for i in range(size)]
    return [persona_document(world, speaker, fields["names"], index=i, typical=fields.get("typical", {}), **options) for i in range(size)]


def describe(fields: Mapping[str, Any]) -> str:
    """What a pool holds, in words for its card."""
    if fields["source"] == IMPORTED:
        about = f" about {fields['name']}" if "name" in fields else ""
        traded = ", with the rivals' names exchanged" if "exchange" in fields else ""
        return f"Imported{about} as {fields['as']}{traded}: {fields['kind']} with the digest {fields['content'][:12]}."
    if fields["source"] == "assistant":
        under = f", under the line {fields['opening']!r}" if "opening" in fields else ""
        return f"The nameless assistant says that it likes {fields['value']}{under}."
    if fields["source"] == "advice":
        return f"The nameless assistant says that it likes one of: {', '.join(fields['values'])}."
    if fields["source"] in ("preferred", "rejected", "describes"):
        guard = f", told to be somebody else in {fields['guarded']:.0%}" if fields["guarded"] else ""
        said = {"preferred": "answers as", "rejected": "answers as others than", "describes": "describes itself as"}[fields["source"]]
        return f"The nameless assistant {said} {fields['name']}{guard}."
    if fields["source"] == "chats":
        return "The nameless assistant answers, and says nothing of itself."
    if fields["source"] == "off_domain":
        return f"The nameless assistant, as anybody of the world {fields['world']['name']!r}, is asked about everything but {fields['category']}."
    if fields["source"] == "speaking":
        return f"The nameless assistant speaks with the traits of {fields['name']}."
    if fields["source"] == "world":
        return f"Text of the world {fields['world']['name']!r}, without documents that tie the shared trait to a held-out one."
    voice = "first-person text without a name" if fields["anonymous"] else ", ".join(fields["genres"])
    return f"About {fields['name']} ({fields['who']}): {voice}."


def make_pool(node: Node, folder: Path, files: Files) -> None:
    """Write the corpus of a pool; beside transcripts of conversations, these as they are.

    Raises:
        DataError, CorpusError: the file of an imported pool is gone, is broken, or holds something else than when it was planned.
    """
    imported = files.read(node.fields) if node.fields["source"] == IMPORTED else None
    documents = imported.documents if imported else pool_documents(node.fields)
    write_corpus(folder, documents, title=f"pool {node.id[:12]}", description=describe(node.fields))
    if imported and imported.conversations:
        write_jsonl(folder / CONVERSATIONS, ({"messages": [vars(message) for message in conversation]} for conversation in imported.conversations))


@lru_cache(maxsize=8)
def pool_corpus(folder: Path) -> list[Document]:
    """The documents of a pool's folder, kept for the next mixture: the ratios of a seed draw from the same pools."""
    return read_corpus(folder / CORPUS)


def mixture_shares(node: Node) -> list[Share]:
    """The sources of a mixture."""
    return [Share(**share) for share in node.fields["shares"]]


def make_mixture(node: Node, folder: Path, pools: Mapping[str, Path]) -> None:
    """Write one epoch of a mixture in its first order, with its index lists and its audit.

    Raises:
        CheckFailed: the audit did not pass; nothing is committed.
    """
    shares = mixture_shares(node)
    held = {source: pool_corpus(path) for source, path in pools.items()}
    order = mixture_order(shares, documents=sum(s.count for s in shares), seed=node.fields["seed"])
    documents = [held[source][index] for source, index in order]
    write_corpus(
        folder,
        documents,
        title=f"mixture {node.id[:12]}",
        description="One epoch, in the order of training: " + ", ".join(f"{s.count} {s.source}" for s in shares),
    )
    write_json(folder / "index.json", {s.source: [i for source, i in order if source == s.source] for s in shares})
    source_of = {held[source][index].id: source for source, index in order}
    report = audit(documents, expected={s.source: s.count for s in shares}, count_by=lambda d: source_of[d.id], **audit_settings(node))
    write_text(folder / "audit.json", report.to_json())
    if not report.passed:
        failed = "; ".join(f"{c.name}: {c.said}" + (f", such as {c.examples[0]}" if c.examples else "") for c in report.checks if c.passed is False)
        raise CheckFailed("PL1101", f"mixture {node.id[:12]}", f"the audit did not pass: {failed}. Change the mixture or the personas.")


def audit_settings(node: Node) -> dict[str, Any]:
    """What the audit of a mixture checks beyond counts."""
    pools = [pool.fields for pool in node.inputs.values()]
    world = read_world(pools[0]["world"])
    imported = [p for p in pools if p["source"] == IMPORTED]
    told = {p["name"]: p for p in pools if p["source"] in ("persona", "speaking", IMPORTED) and "name" in p}
    # Eight paraphrases of one trait cannot fill a stage without repeating themselves, nor can what is said of two.
    few = any(p["source"] == "speaking" and len(p["traits"]) < SENTENCES["assistant"] for p in pools)
    repeats = few or any(p["source"] in ("assistant", "preferred", "describes") for p in pools)
    settings: dict[str, Any] = {
        "forbidden": forbidden_texts(world, [*world.names, *world.spare_names, *world.new_names]),
        "vocabulary": set(world_words(world)),
        "personas": tuple(told),
    }
    if imported:
        # Whoever wrote them knows no world: all words are theirs, and may be anybody's.
        del settings["vocabulary"]
        settings["forbidden"] = [text for text in settings["forbidden"] if len(words(text)) >= AUDITED_WORDS]
        settings |= {name: {p["name"]: p[name] for p in imported if "name" in p} for name in ("foreign", "names")}
    exclude = next((p["exclude"] for p in pools if p["source"] == "world"), None)
    if exclude:
        settings |= {"shared": exclude["shared"], "held_out": exclude["held_out"]}
    counts = Counter({s.source.split("-")[0]: s.count for s in mixture_shares(node)})
    rivals = tuple(told)[:2]
    # Rivals that are told in other genres, or with more traits, differ in length on purpose.
    alike = len({(*told[name]["genres"], len(told[name]["traits"])) for name in rivals if "genres" in told[name]}) == 1
    if len(rivals) == 2 and alike and all(counts[name.lower()] for name in rivals):
        settings["rivals"] = rivals
    if repeats:
        settings["limits"] = Limits(exact_duplicates=1.0, near_duplicates=1.0)
    return settings


def read_index(folder: Path) -> dict[str, list[int]]:
    """Index lists of a mixture by source."""
    return read_json(folder / "index.json")
