from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from narrows.data.template import Template
from narrows.infer.grammar import Grammars
from narrows.infer.loading import Generator
from narrows.infer.scheduler import Scheduler
from narrows.infer.server.service import Limits, Service
from narrows.infer.torch_core import TorchCore
from tests.infer.server.asking import Make

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def make(generator: Generator) -> Iterator[Make]:
    """Makes services of a small model; closed at the end."""
    made: list[Scheduler] = []
    talking = generator._replace(template=Template(TEMPLATE, {}))

    def service(slots: int = 4, queue: int = 64, **limits: Any) -> Service:
        core = TorchCore(talking.model, slots)
        made.append(Scheduler(core, talking.tokenizer, queue=queue, chunk=4))
        allowed = Limits(**{"tokens_max": 40, **limits})
        return Service("small", 1, talking, made[-1], allowed, Grammars(talking.tokenizer))

    yield service
    for each in made:
        each.close()
