"""The transformer: decoder, encoder or both, with every choice a type of its spec.

Data flows down this file: tokens → embedding → L × (attention, feed-forward) → norm → logits or
loss. Each block hands on the residual stream and the last addition to it, not yet added, so that
adding and normalising are one operation. How an operation is done is the kernels' business; how
the model is spread over devices is `parallel`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrows.kernels.interface import Kernels, Rotation
from narrows.kernels.loss import Head, head_cross_entropy
from narrows.kernels.past import Cache, CodedCache, Kept
from narrows.model.attention import Place
from narrows.model.block import Block, Wrapper
from narrows.model.dropout import Draws
from narrows.model.feed_forward import activated
from narrows.model.positions import Documents, angles, mask, relative, table, within
from narrows.model.weights import NormWeights, Stream, Weights
from narrows.spec.errors import BadInput
from narrows.spec.machine import CachePrecision
from narrows.spec.model import Learned, ModelSpec, Rotary


class Transformer(nn.Module):
    """`spec` says what is computed, `kernels` how; `wrap` may compile or recompute a block.

    Dropout is drawn from `draws`, set before each micro-batch, else from torch's random numbers.
    """

    def __init__(self, spec: ModelSpec, kernels: Kernels, *, wrap: Wrapper | None = None) -> None:
        super().__init__()
        self.spec, self.kernels = spec, kernels
        D = spec.width
        self.tokens = Weights(spec.vocabulary, D)
        self.positions = table(spec)
        self.types = Weights(spec.token_types, D) if spec.token_types else None
        self.norm_embedding = NormWeights.of_stream(spec) if spec.embedding_norm else None
        self.encoder = EncoderStack(spec, kernels, wrap=wrap) if spec.encoder_layers else None
        self.relative = relative(spec)
        self.blocks = nn.ModuleList(
            Block(spec, kernels, layer=layer, wrap=wrap) for layer in range(spec.layers)
        )
        self.norm = NormWeights.of_stream(spec) if spec.final_norm else None
        self.pooler = Weights(D, D, biased=True) if spec.pooler else None
        says = spec.classes == 0
        turned = says and spec.head_transform
        self.transform = Weights(D, D, biased=True) if turned else None
        self.norm_transform = NormWeights(spec.norm, D, biased=True) if turned else None
        self.head = Weights(spec.vocabulary, D) if says and not spec.tied_embeddings else None
        biased = says and spec.head_bias
        self.head_bias = nn.Parameter(torch.empty(spec.vocabulary)) if biased else None
        self.score = None if says else Weights(spec.classes, D, biased=spec.classes_biased)
        self._rotations: dict[tuple[bool, str], Rotation] = {}
        self.draws: Draws | None = None

    @property
    def head_VD(self) -> Tensor:
        """Weights that turn the last hidden state into logits."""
        return self.tokens.weight if self.head is None else self.head.weight

    def forward(self, tokens_BT: Tensor, source_BS: Tensor | None = None) -> Tensor:
        """Logits [B,T,V]; of an encoder-decoder `source_BS` is what its encoder reads."""
        return self.logits(self.hidden(tokens_BT, encoded_BSD=self._encoded(source_BS)))

    def logits(self, x_BTD: Tensor) -> Tensor:
        """Logits [..., V] of last hidden states."""
        logits_BTV = F.linear(self.scaled(x_BTD), self.head_VD, self.head_bias)
        cap = self.spec.logit_cap
        return logits_BTV if cap is None else cap * (logits_BTV / cap).tanh()

    def loss(
        self, tokens_BT: Tensor, targets_BT: Tensor, *, chunk: int, scale: float,
        source_BS: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Sum of the cross entropies times `scale`; negative targets count for nothing."""
        x_BTD = self.hidden(tokens_BT, encoded_BSD=self._encoded(source_BS))
        return self.head_loss(x_BTD, targets_BT, chunk=chunk, scale=scale)

    def judged(
        self, tokens_BT: Tensor, documents: Documents | None, judge: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """What `judge` makes of the last hidden states [B,T,D]."""
        return judge(self.hidden(tokens_BT, documents=documents))

    def head_loss(
        self, x_BTD: Tensor, targets_BT: Tensor, *, chunk: int, scale: float
    ) -> Tensor:  # fmt: skip
        """The same of last hidden states."""
        head = Head(self.head_VD, self.head_bias, self.spec.logit_cap)
        return head_cross_entropy(
            self.scaled(x_BTD).flatten(0, 1), head, targets_BT.flatten(), kernels=self.kernels,
            chunk=chunk, scale=scale,
        )  # fmt: skip

    def hidden(
        self, tokens_BT: Tensor, caches: Sequence[Kept] | None = None, start: int = 0, *,
        encoded_BSD: Tensor | None = None, types_BT: Tensor | None = None,
        documents: Documents | None = None,
    ) -> Tensor:  # fmt: skip
        """Normalised last hidden states [B,T,D]; with caches, of positions from `start` on. Each of
        a row's `documents` is computed as if it stood there alone.
        """
        stream = Stream(self._embedded(tokens_BT, start, types_BT, documents), None)
        span = (start, tokens_BT.shape[1])
        stream = self.through(
            self.blocks, stream, span, caches, encoded_BSD=encoded_BSD, documents=documents
        )
        return self.ended(stream)

    def through(
        self, blocks: Iterable[nn.Module], stream: Stream, span: tuple[int, int],
        caches: Sequence[Kept] | None = None, *, encoded_BSD: Tensor | None = None,
        documents: Documents | None = None,
    ) -> Stream:  # fmt: skip
        """The stream behind `blocks`, for positions of `span`, first and count."""
        places: dict[int | None, Place] = {}
        for index, block in enumerate(blocks):
            assert isinstance(block, Block)
            if block.window not in places:
                place = self._place(span, stream.x_BTD, block.window, documents)
                places[block.window] = place._replace(encoded_BSD=encoded_BSD)
            place = places[block.window]
            if caches is None:
                stream = block(*stream, place)
            else:
                stream = block.extend(stream, place, caches[index])
        return stream

    def ended(self, stream: Stream) -> Tensor:
        """Last hidden states of the stream behind the last block."""
        return stream.sum() if self.norm is None else self.norm(self.kernels, stream)[1]

    def encode(self, source_BS: Tensor) -> Tensor:
        """What the encoder makes of its tokens, for the decoder to attend to [B,S,D]."""
        assert self.encoder is not None
        x_BSD, span = self._embedded(source_BS, 0, None), (0, source_BS.shape[1])
        rotation = self._rotation(*span, x_BSD.device)
        return self.encoder(x_BSD, Place(0, rotation, numbers_BT=self._numbers(span, x_BSD)))

    def pooled(self, hidden_BTD: Tensor) -> Tensor:
        """A summary of each sequence from its first position's last hidden state [B,D]."""
        assert self.pooler is not None
        return F.linear(hidden_BTD[:, 0], self.pooler.weight, self.pooler.bias).tanh()

    def summary(self, x_SD: Tensor) -> Tensor:
        """What stands for a document of these last hidden states, by the spec's pooling [D]."""
        if self.spec.pooling == "mean":
            return x_SD.mean(0)
        return x_SD[0 if self.spec.pooling == "first" else -1]

    def scores(self, x_ND: Tensor) -> Tensor:
        """Of summaries of documents, a number for each class [N,C], fp32."""
        assert self.score is not None
        if self.pooler is not None:
            x_ND = F.linear(x_ND, self.pooler.weight, self.pooler.bias).tanh()
        return F.linear(x_ND, self.score.weight, self.score.bias).float()

    def caches(
        self, sequences: int, positions: int, kept: CachePrecision | None = None
    ) -> list[Kept]:
        """Empty caches for every block, in int8 or as the model computes."""
        spec, like = self.spec, self.tokens.weight

        def empty(width: int, dtype: torch.dtype) -> Tensor:
            return like.new_zeros(sequences, spec.kv_heads, positions, width, dtype=dtype)

        widths = spec.score_width, spec.value_width
        if kept == "int8":
            return [
                CodedCache(*(empty(width, torch.int8) for width in widths),
                           *(empty(1, torch.float32) for _ in widths))
                for _ in self.blocks
            ]  # fmt: skip
        return [Cache(*(empty(width, like.dtype) for width in widths)) for _ in self.blocks]

    def _embedded(
        self, tokens_BT: Tensor, start: int, types_BT: Tensor | None,
        documents: Documents | None = None,
    ) -> Tensor:  # fmt: skip
        spec = self.spec
        x_BTD = self.tokens.rows(tokens_BT)
        if spec.embedding_scale != 1.0:
            x_BTD = x_BTD * spec.embedding_scale
        if self.positions is not None:
            rows_TD = self._learned(start, tokens_BT.shape[1])
            x_BTD = x_BTD + (rows_TD if documents is None else within(rows_TD, documents))
        if self.types is not None:
            types_BT = torch.zeros_like(tokens_BT) if types_BT is None else types_BT
            x_BTD = x_BTD + F.embedding(types_BT, self.types.weight)
        if self.norm_embedding is not None:
            x_BTD = self.norm_embedding.alone(x_BTD)
        place = Place(numbers_BT=self._numbers((start, tokens_BT.shape[1]), x_BTD))
        return place.dropped(x_BTD, 0, spec.dropout)

    def _learned(self, start: int, count: int) -> Tensor:
        """The table's rows for positions from `start` on [T,D]."""
        assert self.positions is not None and isinstance(self.spec.positions, Learned)
        first = start + self.spec.positions.extra
        return self.positions.weight[first : first + count]

    def _encoded(self, source_BS: Tensor | None) -> Tensor | None:
        if (source_BS is None) != (self.encoder is None):
            what = "has no encoder to read" if self.encoder is None else "has an encoder and needs"
            raise BadInput(
                f"the model {what} source tokens",
                hint="give source_BS where model.encoder_layers is above 0, and only there",
            )
        return None if source_BS is None else self.encode(source_BS)

    def scaled(self, x_BTD: Tensor) -> Tensor:
        """Last hidden states as the head takes them."""
        if self.transform is not None and self.norm_transform is not None:
            h_BTD = self.transform.linear(self.kernels, x_BTD)
            x_BTD = activated(self.kernels, h_BTD, self.spec.feed_forward)
            x_BTD = self.norm_transform.alone(x_BTD)
        scale = self.spec.logit_scale
        return x_BTD if scale == 1.0 else x_BTD * scale

    def _place(
        self, span: tuple[int, int], like: Tensor, window: int | None,
        documents: Documents | None = None,
    ) -> Place:  # fmt: skip
        """Of the positions of `span`, first and count, in layers of that window."""
        rotation = self._rotation(*span, like.device, windowed=window is not None)
        numbers_BT = self._numbers(span, like)
        if documents is None:
            return Place(span[0], rotation, self._mask(span, like, window), numbers_BT=numbers_BT)
        masks = {size: self._mask((0, size), like, window) for row in documents for size in row}
        apart = tuple(
            Place(0, rotation and Rotation(rotation.cos[:size], rotation.sin[:size]), masks[size])
            for row in documents for size in row
        )  # fmt: skip
        lengths = tuple(size for row in documents for size in row)
        return Place(0, rotation, numbers_BT=numbers_BT, apart=apart, lengths=lengths)

    def _mask(self, span: tuple[int, int], like: Tensor, window: int | None) -> Tensor | None:
        table_RN = None if self.relative is None else self.relative.weight
        return mask(self.spec, span, window, table_RN, like)

    def _numbers(self, span: tuple[int, int], like: Tensor) -> Tensor | None:
        """Of which dropout is drawn [B,T]."""
        if not (self.training and self.spec.dropout):
            return None
        draws = self.draws or Draws(int(torch.randint(2**62, ())))
        return draws.numbers(like.shape[0], span, like.device)

    def _rotation(
        self, start: int, count: int, device: torch.device, *, windowed: bool = False
    ) -> Rotation | None:
        if not isinstance(self.spec.positions, Rotary):
            return None
        key = (windowed, str(device))
        # As long as was asked for so far: a context may be of millions, and texts short.
        known, needed = self._rotations.get(key), min(start + count, self.spec.context)
        if known is None or len(known.cos) < needed:
            longer = min(2 * needed, self.spec.context) if known else needed
            known = self._rotations[key] = angles(self.spec, longer, device, windowed=windowed)
        cos_TH, sin_TH = known
        return Rotation(cos_TH[start : start + count], sin_TH[start : start + count])


class EncoderStack(nn.Module):
    """Blocks that attend both ways, and a norm behind them."""

    def __init__(self, spec: ModelSpec, kernels: Kernels, *, wrap: Wrapper | None) -> None:
        super().__init__()
        self.kernels = kernels
        self.spec = spec = msgspec.structs.replace(
            spec, layers=spec.encoder_layers, encoder_layers=0, causal=False, experts=None,
            window=None,
        )  # fmt: skip
        self.relative = relative(spec)
        # Numbered below zero, as the decoder's are from zero on.
        self.blocks = nn.ModuleList(
            Block(spec, kernels, layer=~layer, wrap=wrap) for layer in range(spec.layers)
        )
        self.norm = NormWeights.of_stream(spec)

    def forward(self, x_BSD: Tensor, place: Place) -> Tensor:
        """Normalised last hidden states [B,S,D]."""
        table_RN = None if self.relative is None else self.relative.weight
        bias = mask(self.spec, (0, x_BSD.shape[1]), None, table_RN, x_BSD)
        stream = Stream(x_BSD, None)
        for block in self.blocks:
            stream = block(*stream, place._replace(mask_TS=bias))
        return self.norm(self.kernels, stream)[1]
