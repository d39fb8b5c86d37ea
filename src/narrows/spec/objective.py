"""What a training is to teach: each objective a type, with what only it needs to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from narrows.spec.errors import BadInput
from narrows.spec.record import Record

if TYPE_CHECKING:
    from narrows.spec.model import ModelSpec

Pooling = Literal["first", "last", "mean"]
"""Which of a document's last hidden states stands for it: one of them, or their mean."""


class NextToken(Record, tag="next_token", tag_field="type"):
    """Every token of a text from those before it."""


class Masked(Record, tag="masked", tag_field="type"):
    """A `share` of a text's tokens from all others; of these four fifths are masked, a tenth is
    replaced by any token and a tenth stays (arXiv:1810.04805).
    """

    share: float = 0.15

    def __post_init__(self) -> None:
        _between(self.share, "masked.share", 0.0, 1.0, "0.15, as BERT has it")


class Chat(Record, tag="chat", tag_field="type"):
    """What the assistant says in conversations, written in the model's own template; or answers to
    prompts.
    """


class Classify(Record, tag="classify", tag_field="type"):
    """One of `labels` of each text; none given: those that the rows have. A share `smoothing` of
    what is to be said is spread over all of them (arXiv:1512.00567, section 7).
    """

    labels: tuple[str, ...] = ()
    smoothing: float = 0.0

    def __post_init__(self) -> None:
        if twice := sorted({each for each in self.labels if self.labels.count(each) > 1}):
            raise BadInput(
                f"train.objective.labels has {', '.join(twice)} more than once",
                hint="name each class once",
            )
        if not 0.0 <= self.smoothing < 1.0:
            raise BadInput(
                f"train.objective classify.smoothing is {self.smoothing}",
                hint="use 0 <= smoothing < 1, such as 0.1",
            )


class Regress(Record, tag="regress", tag_field="type"):
    """A number of each text, with the squared error."""


class Distil(Record, tag="distil", tag_field="type"):
    """What a `teacher` would say of a text: a `share` of the loss is the divergence from it at a
    `temperature`, the rest the cross entropy (arXiv:1503.02531).
    """

    teacher: str
    temperature: float = 2.0
    share: float = 0.5

    def __post_init__(self) -> None:
        _between(self.share, "distil.share", 0.0, 1.0, "0.5")
        _between(self.temperature, "distil.temperature", 0.0, 100.0, "2.0")

    def check(self, teacher: ModelSpec, model: ModelSpec, context: int) -> None:
        """Raises BadInput where the teacher cannot say what the model is to say."""
        if not teacher.writes:
            raise BadInput(
                f"the teacher {self.teacher} does not say which token is next",
                hint="give train.objective.teacher a causal decoder",
            )
        if teacher.vocabulary != model.vocabulary:
            raise BadInput(
                f"the teacher {self.teacher} knows {teacher.vocabulary} tokens, and the model "
                f"{model.vocabulary}: they do not read the same text",
                hint="start from a model with the teacher's tokenizer (model.start), or train one "
                "with data.tokenizer = the teacher's tokenizer.json",
            )
        if teacher.context < context:
            raise BadInput(
                f"the teacher {self.teacher} was made for {teacher.context} positions, and rows "
                f"have {context}",
                hint=f"--set model.context={teacher.context}",
            )


class Prefer(Record, tag="prefer", tag_field="type"):
    """The chosen one of two answers rather than the rejected one, by no more than what the model
    was at first allows (DPO, arXiv:2305.18290). `beta` is what leaving it costs.
    """

    beta: float = 0.1

    def __post_init__(self) -> None:
        _between(self.beta, "prefer.beta", 0.0, 100.0, "0.1")


Objective = NextToken | Masked | Chat | Classify | Regress | Distil | Prefer

OF_EXAMPLES = (Chat, Classify, Regress, Prefer)
"""Those that learn from rows of examples; the others read running text."""

OF_DOCUMENTS = (Classify, Regress)
"""Those of them that say one thing of each document, by a head of their own."""


def refuse_unable(objective: Objective, model: ModelSpec) -> None:
    """Raises BadInput where a model cannot learn it: the plan and training ask alike."""
    reads_both_ways = isinstance(objective, (Masked, *OF_DOCUMENTS))
    if not model.writes and not (reads_both_ways and not model.encoder_layers):
        raise BadInput(
            "a model that sees what follows, or reads by an encoder, cannot learn the next token",
            hint="train a causal decoder: model.causal = true and model.encoder_layers = 0",
        )
    if isinstance(objective, Masked) and model.causal:
        raise BadInput(
            "a causal model cannot tell a masked token from those behind it",
            hint="--set model.causal=false",
        )


def _between(value: float, name: str, low: float, high: float, such: str) -> None:
    if not low < value <= high:
        raise BadInput(
            f"train.objective {name} is {value}", hint=f"use more than {low:g}, such as {such}"
        )
