"""A published model as its makers wrote it, a folder or one file: its shape and where weights are.

opened(path) → Original;   Original.fill(model) writes its weights
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from narrows.kernels.load import load as load_kernels
from narrows.model import describing, ggml, gguf, hugging_face
from narrows.model.configuration import family, shaped
from narrows.model.folder import CONFIG, OWN, PLAN, Own, digest, files
from narrows.model.gguf import GGUF
from narrows.model.hub import fetched
from narrows.model.mapped import Tensors
from narrows.model.naming import OURS, Naming
from narrows.model.reading import Reader, fill
from narrows.model.safetensors import Safetensors
from narrows.model.settings import Settings
from narrows.model.transformer import Transformer
from narrows.spec.errors import BadInput
from narrows.spec.hub import repository
from narrows.spec.machine import KernelSet
from narrows.spec.model import ModelSpec, Paired, Rotary
from narrows.spec.record import load

_WEIGHTS_MOST = 8
"""In a byte."""


class Original(NamedTuple):
    """A model that was opened: its family by transformers' name, its shape, and its tensors by
    names that `naming` knows. `source` is the GGUF file, or the folder; `labels` are those of a
    head for classes, none where it says a number, None where there is no head.
    """

    kind: str
    spec: ModelSpec
    naming: Naming
    tensors: Tensors
    source: GGUF | Path
    labels: tuple[str, ...] | None = None

    @property
    def path(self) -> Path:
        """Its file or folder."""
        return self.source if isinstance(self.source, Path) else self.source.file.path

    @property
    def published_naming(self) -> Naming:
        """Transformers' and PEFT's, whatever its own file calls its tensors."""
        return hugging_face.naming(self.kind, self.spec)

    @property
    def facts(self) -> Mapping[str, Any] | None:
        """What the header of a GGUF file says; None of a folder."""
        return None if isinstance(self.source, Path) else self.source.facts

    def digest(self) -> str:
        """Changes when the files do: of their names, sizes, first and last bytes."""
        paths = [self.source.file.path] if isinstance(self.source, GGUF) else [
            self.source / (OWN if self.naming is OURS else CONFIG), *files(self.source)
        ]  # fmt: skip
        return digest(paths)

    def fits(self, model: Transformer) -> None:
        """Raises BadInput where the files have not just its weights; it needs no memory yet."""
        parameters = dict(model.named_parameters())
        reader = Reader(parameters, self.spec, self.naming, self.tensors)
        for name, parameter in parameters.items():
            reader.into(name, parameter, write=False)

    def fill(self, model: Transformer) -> None:
        """Write the weights to a model that has memory, in the types it has."""
        fill(dict(model.named_parameters()), self.spec, self.naming, self.tensors)


def opened(path: Path | str) -> Original:
    """The model in a GGUF file, in a folder with a config.json and safetensors, or of that name on
    the Hugging Face hub, "owner/name". Nothing of its weights is read yet.

    Raises BadInput where it is none, is damaged, or is a model that narrows does not know.
    """
    name = repository(path)
    path = fetched(name) if name else Path(path).expanduser()
    if path.is_dir():
        return _of_folder(path)
    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
        what = f"{path} is a pickle, which can run any code when it is read"
        raise BadInput(what, hint="take the model's safetensors or GGUF")
    file = gguf.opened(path)
    shapes = {name: file.shape(name) for name in file.names()}
    kind, config = ggml.settings(file.facts, shapes, file.file.path)
    spec = _unstretched(shaped(kind, config, then=lambda shape: ggml.stretched(shape, file)))
    _refuse_larger(spec, file.names(), [path])
    return Original(kind, spec, ggml.NAMINGS[kind], file, file)


def build(
    original: Original, dtype: torch.dtype, device: torch.device, kernels: KernelSet = "torch"
) -> Transformer:
    """The model with the original's weights; no memory is taken before it is known to fit them."""
    with torch.device("meta"):
        model = Transformer(original.spec, load_kernels(kernels))
    original.fits(model)
    model = model.to(dtype).to_empty(device=device)
    original.fill(model)
    return model


def _of_folder(path: Path) -> Original:
    if (path / OWN).is_file():
        own = load(Own, path / OWN)
        tensors = Safetensors(files(path))
        _refuse_larger(own.model, tensors.names(), files(path))
        return Original(own.family, own.model, OURS, tensors, path)
    if (path / PLAN).is_file():
        raise BadInput(
            f"{path} is a run, whose weights change as it goes on",
            hint=f"export what it has learned: narrows export {path} --to {path.name}-hf",
        )
    if not (path / CONFIG).is_file():
        raise BadInput(
            f"{path} is not a run folder, and no model's: it has no {CONFIG}",
            hint="give a run such as runs/shakespeare, a model's folder or a GGUF file",
        )
    kind, config = family(path / CONFIG)
    spec = shaped(kind, config)
    tensors = Safetensors(files(path))
    _refuse_packed(config)
    spec = _unstretched(spec)
    spec, labels = describing.headed(spec, kind, config)
    naming = hugging_face.naming(kind, spec)
    if spec.pooler:
        wanted = naming.plain(f"{naming.whole['pooler']}.weight")
        spec = msgspec.structs.replace(spec, pooler=wanted in naming.there(tensors.names()))
    spec = describing.saying(spec, kind, naming.there(tensors.names()))
    _refuse_larger(spec, tensors.names(), files(path))
    return Original(kind, spec, naming, tensors, path, labels)


def _refuse_larger(spec: ModelSpec, names: Sequence[str], paths: Sequence[Path]) -> None:
    """Files have a tensor for each block at least, and a bit for each weight: what claims more need
    not be built to be refused.
    """
    layers = spec.layers + spec.encoder_layers
    size = sum(path.stat().st_size for path in paths)
    if layers <= len(names) and spec.parameters <= _WEIGHTS_MOST * size:
        return
    raise BadInput(
        f"{paths[0]}: {layers:,} layers and {spec.parameters:,} parameters are described, and the "
        f"files have {len(names):,} tensors in {size:,} bytes",
        hint="take configuration and weights of one model",
    )


def _unstretched(spec: ModelSpec) -> ModelSpec:
    """The model of the context that its rotations need not be stretched pair by pair for: others
    turn by other factors as soon as a text is longer, and all that was kept of it is wrong.
    """
    positions = spec.positions
    if not isinstance(positions, Rotary) or not isinstance(positions.scaling, Paired):
        return spec
    return msgspec.structs.replace(spec, context=min(spec.context, positions.scaling.positions))


def _refuse_packed(config: Settings) -> None:
    """Weights packed by a quantizer have other tensors than the family names."""
    table = config.table("quantization_config")
    if table is not None:
        method = table.data.get("quant_method", "some method")
        raise BadInput(
            f"{config.source}: the weights were packed by {method}, which narrows does not read",
            hint="take the model's 16-bit weights, or a GGUF file of it",
        )
