"""YAML read as a tree that remembers where everything stands, so that every error names a line and a column.

    rate: 1e-3     ->     Tree(value=0.001, at="configs/ratio.yaml:14:9", key_at="configs/ratio.yaml:14:3", text="1e-3")

A file is data and never does anything: tags, anchors, aliases, merge keys, `${...}` and further documents are refused.
Two readings differ from YAML 1.1: `1e-3` is a number, and keys are text as written (`on: answer` has the key "on").
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from persona_lab.errors import SECRET, ConfigError, Problem, quoted

Scalar = str | int | float | bool | None
Path = tuple[str | int, ...]
"""Keys and list positions from the top, e.g. `("conditions", "linked", "order", 0)`."""
Where = Callable[[yaml.Mark], str]

MAX_DEPTH = 64
LARGEST_INTEGER = 2**53
"""Whole numbers up to here are the same number in Python, JSON and a float64."""

REFUSED = "refused"
"""Tag of nodes whose problem the composer has noted."""

LOWER_WORDS: dict[str, Scalar] = {"null": None, "true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
WORDS = {form: value for word, value in LOWER_WORDS.items() for form in (word, word.capitalize(), word.upper())} | {"": None, "~": None}
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
NUMBER = re.compile(r"[-+]?(\.[0-9][0-9_]*|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"([-+]?)\.(inf|Inf|INF|nan|NaN|NAN)")
WANDB_KEY = re.compile(r"[0-9a-f]{40}")


NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""Control characters, which move a terminal's cursor, and halves of surrogate pairs, which have no UTF-8."""


@dataclass(frozen=True)
class Tree:
    """A YAML value and where it stands."""

    value: "Scalar | list[Tree] | dict[str, Tree]"
    at: str
    """`file:line:column`, or `command line: key=value`."""
    key_at: str = ""
    """Where its key stands; empty for list items and the top."""
    text: str = ""
    """A scalar as written."""
    reported: bool = False
    """A problem of this value is already on the list: no second one."""

    def plain(self) -> Any:
        """The value without positions: None, bool, int, float, str, list, dict."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        return [child.plain() for child in self.value] if isinstance(self.value, list) else self.value

    def trail(self, path: Path) -> list["Tree"]:
        """The nodes along a path, from the top to as deep as the file goes."""
        nodes: list[Tree] = [self]
        for step in path:
            here = nodes[-1].value
            if isinstance(here, dict) and step in here:
                nodes.append(here[str(step)])
            elif isinstance(here, list) and isinstance(step, int) and step < len(here):
                nodes.append(here[step])
            else:
                break
        return nodes

    def get(self, *path: str | int) -> "Tree | None":
        """The node at a path, or None where the file has nothing."""
        nodes = self.trail(path)
        return nodes[-1] if len(nodes) == len(path) + 1 else None

    def mapping(self, *path: str | int) -> Mapping[str, "Tree"]:
        """The entries of the mapping at a path; empty where there is none."""
        node = self.get(*path)
        return node.value if node and isinstance(node.value, dict) else {}


def dotted(path: Path) -> str:
    """A path as people write it: `conditions.linked.order[0]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def merge(low: Tree, high: Tree) -> Tree:
    """Mappings are merged key by key; anything else, lists too, is replaced by the higher layer."""
    if not (isinstance(low.value, dict) and isinstance(high.value, dict)):
        return high
    both = {key: merge(low.value[key], child) if key in low.value else child for key, child in high.value.items()}
    return replace(low, value={**low.value, **both})


def parse(text: str, where: Where, problems: list[Problem], path: Path = ()) -> Tree:
    """The tree of one YAML document; what can be skipped over is added to `problems`.

    Args:
        text: the document.
        where: turns a mark into the position that errors show.
        problems: receives duplicates, anchors, secrets and the like, so that one pass reports them all.
        path: where in the experiment this text belongs, for the command line's `path=text`.

    Raises:
        ConfigError: PL1201, the text is not one YAML document.
    """
    start = yaml.Mark("", 0, 0, 0, None, 0)
    try:
        node = Composer(text, where, problems).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        mark = yaml.Mark("", error.position, line, error.position - text.rfind("\n", 0, error.position) - 1, None, 0)
        raise ConfigError("PL1201", where(mark), f"the character {text[error.position]!a} is not text. Use printable characters only.") from None
    except yaml.MarkedYAMLError as error:
        raise ConfigError("PL1201", where(error.problem_mark or error.context_mark or start), _syntax(error)) from None
    except (ValueError, OverflowError) as error:  # PyYAML lets these escape for "\UFFFFFFFF" and for `%YAML 1.999...`
        raise ConfigError("PL1201", where(start), f"not valid YAML ({error}). Use plain text and no % directives.") from None
    if node is None:
        return Tree(None, where(start))
    return Grower(where, problems).grow(node, path)


def _syntax(error: yaml.MarkedYAMLError) -> str:
    """What PyYAML found, in one line, with what usually mends it."""
    found = ", ".join(part for part in (error.context, error.problem) if part)
    if "single document" in found:
        return "a second document starts here. Use one experiment a file, and no line ---."
    if "'\\t'" in found:
        return f"not valid YAML: {found}. Use spaces, not tabs, to indent."
    return f"not valid YAML: {found}. Use two spaces a level, a space after each colon, and quotes around text that holds : # [ ] or braces."


class Composer(yaml.SafeLoader):
    """PyYAML's composer, which builds the node tree, without tags, anchors and aliases."""

    def __init__(self, text: str, where: Where, problems: list[Problem]) -> None:
        super().__init__(text)
        self.where, self.problems, self.level = where, problems, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """One node; refused constructs are noted and skipped over.

        Raises:
            ConfigError: PL1201, nested deeper than `MAX_DEPTH`.
        """
        event: Any = self.peek_event()
        at = self.where(event.start_mark)
        if isinstance(event, yaml.AliasEvent):
            self.problems.append(Problem("PL1202", at, f"the alias *{event.anchor} is refused: a file has no references. Use the value itself."))
            self.get_event()
            return yaml.ScalarNode(REFUSED, "", event.start_mark, event.end_mark)
        if event.anchor is not None:
            self.problems.append(Problem("PL1202", at, f"the anchor &{event.anchor} is refused: a file has no references. Use `extends:` to share text."))
            event.anchor = None
        if event.tag is not None:
            self.problems.append(Problem("PL1202", at, f"the tag {event.tag} is refused: a file never executes anything. Use the plain value."))
        if self.level == MAX_DEPTH:
            raise ConfigError("PL1201", at, f"nested deeper than {MAX_DEPTH} levels. Use a flatter file.")
        self.level += 1
        node = super().compose_node(parent, index)
        self.level -= 1
        if node and event.tag is not None:
            node.tag = REFUSED
        return node


class Grower:
    """Turns PyYAML's nodes into a `Tree`, noting every value that no experiment may hold."""

    def __init__(self, where: Where, problems: list[Problem]) -> None:
        self.where, self.problems = where, problems

    def grow(self, node: Any, path: Path, key_at: str = "") -> Tree:
        """The tree of a node that stands at `path`."""
        at = self.where(node.start_mark)
        if node.tag == REFUSED:
            return Tree("", at, key_at, reported=True)
        if isinstance(node, yaml.MappingNode):
            return Tree(self.entries(node, path), at, key_at)
        if isinstance(node, yaml.SequenceNode):
            return Tree([self.grow(child, (*path, i)) for i, child in enumerate(node.value)], at, key_at)
        value = plain_scalar(node.value) if node.style is None else node.value
        fault = refused_text(node.value, path) or refused_number(value, path)
        if fault:
            self.problems.append(Problem(fault[0], at, f"{dotted(path)} {fault[1]}" if path else fault[1]))
            return Tree("", at, key_at, reported=True)
        return Tree(value, at, key_at, node.value)

    def entries(self, node: yaml.MappingNode, path: Path) -> dict[str, Tree]:
        """The children of a mapping; a key that cannot be one is noted and left out."""
        entries: dict[str, Tree] = {}
        for key_node, value_node in node.value:
            at, key = self.where(key_node.start_mark), key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                fault = ("PL1202", "a key must be a word, got a list or a mapping. Use `key: value`, and quotes around text that holds braces.")
            elif key == "<<" and key_node.style is None:
                fault = ("PL1202", "the merge key << is refused. Use `extends: other.yaml` to share settings.")
            elif refused := refused_text(key, path):
                fault = (refused[0], f"a key here {refused[1]}")
            elif key in entries:
                fault = ("PL1206", f"{dotted((*path, key))} stands twice, first at {entries[key].key_at}. Use each key once.")
            else:
                entries[key] = self.grow(value_node, (*path, key), at)
                continue
            self.problems.append(Problem(fault[0], at, fault[1]))
        return entries


def plain_scalar(text: str) -> Scalar:
    """What an unquoted scalar means: null, a boolean, a number or text."""
    if text in WORDS:
        return WORDS[text]
    if special := NOT_FINITE.fullmatch(text):
        return float(special[1] + special[2])
    digits = text.replace("_", "")
    if INTEGER.fullmatch(text):
        # Python refuses to read thousands of digits; a float of that size is refused just as well.
        return int(digits) if len(digits) < 400 else float(digits)
    if NUMBER.fullmatch(text):
        number = float(digits)
        return int(number) if "e" in text.lower() and abs(number) < LARGEST_INTEGER and number.is_integer() else number
    return text


def refused_text(text: str, path: Path) -> tuple[str, str] | None:
    """Code and message for text that no file may hold; a secret is never repeated."""
    # A pinned revision is 40 hexadecimal digits too.
    if SECRET.search(text) or (WANDB_KEY.fullmatch(text) and path[-1:] != ("revision",)):
        return "PL1209", "looks like a secret key; it is not shown here. Use an environment variable such as WANDB_API_KEY or HF_TOKEN, and revoke this key."
    if "${" in text:
        return "PL1202", f"holds ${{: nothing is filled in or computed, got {quoted(text)}. Use the value itself, or an override `key=value`."
    if NO_TEXT.search(text):
        return "PL1201", f"holds a character that is not text, got {quoted(text)}. Use printable characters only."
    return None


def refused_number(value: Scalar, path: Path) -> tuple[str, str] | None:
    """Code and message for numbers that mean nothing here: NaN, infinities but for a log ratio, and beyond 2^53."""
    if isinstance(value, (str, bool)) or value is None:
        return None
    if value != value:
        return "PL1203", "must be a number, got NaN. Use a finite number."
    field = next((step for step in reversed(path) if isinstance(step, str)), "")
    if abs(value) == float("inf") and field.rpartition(".")[2] != "ln_ratio":
        return "PL1203", "must be finite: only ln_ratio may be .inf or -.inf. Use a finite number."
    if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        return "PL1203", f"must be at most 2^53, got a number of {len(str(abs(value)))} digits. Use a smaller number."
    return None
