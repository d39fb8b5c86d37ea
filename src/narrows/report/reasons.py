"""Why a plan is as it is, in Chinese too: records hold the reasons as English sentences.

Left stands a sentence with holes for what changes, right what it is in Chinese. A hole holds one
word, a number or a name, which stays as it is; `_PARTS` and `_NAMES` are the exceptions.
"""

from __future__ import annotations

import re
from functools import cache

from narrows.report.words import Phrase, same

_PARTS = (
    "reason", "other", "verdict", "choice", "ratio", "tokens", "time", "longer", "limit"
)  # fmt: skip
"""Holes of a word, or of a sentence that is known itself."""
_SAID = ("said", "was", "now", "layout")
"""Holes of a sentence that stays as it is where it is not known."""
_NAMES = {
    "source": r"[^()]+", "source_2": r"[^()]+", "amount": ".+", "command": ".+", "device": ".+",
    "groups": ".+", "link": ".+",
}  # fmt: skip
"""Holes of whatever somebody else named or said, which stays as it is."""

_QUANTITIES = {
    "{n} tokens": "{n} 词元", "{n} k tokens": "{n}k 词元", "{n} M tokens": "{n}M 词元",
    "{n} B tokens": "{n}B 词元", "{n} T tokens": "{n}T 词元",
    "{n} ns": "{n} 纳秒", "{n} µs": "{n} 微秒", "{n} ms": "{n} 毫秒", "{n} s": "{n} 秒",
    "{n} min": "{n} 分", "{n} h": "{n} 小时", "{n} d": "{n} 天",
    "{time} of time": "{time}时间", "{amount} of energy": "{amount} 能量",
}  # fmt: skip

_VERDICTS = {
    "the only one that works here": "此处唯一可用",
    "nothing else fits memory": "其余都放不进内存",
    "next best, {choice}: {verdict}": "次优（{choice}）：{verdict}",
    "does not fit: {held} GB of {room} GB": "放不下：需 {held} GB，仅有 {room} GB",
    "does not fit: {held} GB of {room} GB at the least": "放不下：至少需 {held} GB，仅有 {room} GB",
    "saves {time} and costs {longer} to compile": "省 {time}，编译却要 {longer}",
    "{ratio}, {memory}x the memory": "{ratio}，内存 {memory} 倍",
    "{ratio}, {share} of it for the network or waiting, {memory}x the memory":
        "{ratio}，其中 {share} 用于通信或等待，内存 {memory} 倍",
    "{n}x the time": "时间 {n} 倍",
    "as quick": "一样快",
    "{share} slower": "慢 {share}",
    "{share} quicker": "快 {share}",
    "all that are allowed: {n}": "允许的全部线程：{n}",
    "of {n} allowed": "共允许 {n} 个",
    "a process kept failing: {said}": "一个进程反复失败：{said}",
}  # fmt: skip

_LAYOUTS = {
    "no recompute": "不重计算",
    "full recompute": "全部重计算",
    "selective recompute": "选择性重计算",
    "no compile": "不编译",
    "tensor {n}": "张量 {n}",
    "pipeline {n}": "流水线 {n}",
    "data {n}": "数据 {n}",
    "{n} processes": "{n} 个进程",
    "{n} pieces a stage": "每级 {n} 块",
    "sharding none": "不分片",
    "sharding optimizer": "优化器分片",
    "sharding gradients": "梯度分片",
    "sharding parameters": "参数分片",
    "zero_bubble": "零气泡",
    "gpipe": "GPipe",
    "1f1b": "1F1B",
    "a micro-batch of {n}": "微批 {n}",
    "loss chunks of {n}": "损失分块 {n}",
    "{name} kernels": "{name} 算子",
}  # fmt: skip

_NETWORK = {
    "no link was measured, and nothing is counted for it: {command}":
        "未实测链路，不计通信时间：{command}",
    "estimated from {link}, {n} ranks, by what each sends around a ring: {command}":
        "由 {link}（{n} 个进程）估算，按各进程在环上的发送量：{command}",
    "measured between {link}, {n} ranks": "实测：{link}，{n} 个进程",
    "groups of {groups} by the ring's share": "{groups} 个进程的组按环的份额推算",
    "exact for {n} steps: early gradients change most": "前 {n} 步精确交换：早期梯度变化最大",
}  # fmt: skip

_SIZES = {
    "{n} for each layer, as in GPT-2": "每层 {n}，同 GPT-2",
    "one for each {n} of width, as in GPT-2": "宽度每 {n} 一层，同 GPT-2",
    "heads of {n}, as in GPT-2": "头宽 {n}，同 GPT-2",
    "heads of {n}, so that there are {least} or more": "头宽 {n}，使头数不少于 {least}",
    "8/3 of the width, rounded up to 32s": "宽度的 8/3，向上取整到 32 的倍数",
    "4 times the width": "宽度的 4 倍",
    "GPT-2's": "同 GPT-2",
    "the habit for a training of about {n} FLOP": "约 {n} FLOP 的训练的惯例",
    "the text has only {n} tokens in one of its splits": "文本的一个划分只有 {n} 词元",
    "lowest loss by the law of {n} sizes for {limit}":
        "{n} 种规模中按缩放定律损失最低者，限于 {limit}",
    "{reason}, {n} epochs of {tokens} discounted": "{reason}，重复读 {tokens}共 {n} 轮，已折算",
    "compute-optimal for {tokens}": "对 {tokens}而言计算最优",
    "twice as much would make it {n}M parameters on {tokens}, instead of {now}M":
        "预算加倍则为 {n}M 参数、{tokens}，而非 {now}M",
    "neither a size nor a budget is given: five minutes, to see something soon":
        "规模与预算均未给出：取五分钟，以便很快见到结果",
}  # fmt: skip

_STEPS = {
    "neither steps nor a budget is given: {reason}": "步数与预算均未给出：{reason}",
    "{n} tokens a parameter": "每参数 {n} 词元",
    "{n} epochs of {tokens}: up to there repeated text is nearly as good as new":
        "{tokens}读 {n} 轮：到此为止，重复的文本几乎与新文本一样好",
    "{n} epochs: more of the same teaches nothing": "{n} 轮：再重复也学不到什么",
    "{n} epochs, as asked": "{n} 轮，按任务所定",
    "three, the habit of tuning on examples": "三轮，用样本微调的惯例",
    "one epoch of the text, the habit of tuning": "文本读一轮，微调的惯例",
    "as many as {limit} hold, {share} kept back": "限于 {limit}，留出 {share}，步数尽可能多",
    "the budget of {tokens}": "预算为 {tokens}",
    "{n} tokens in sequences of {context}": "{n} 词元，每条序列 {context}",
    "{n} tokens a step: the law for {tokens} gives {law}":
        "每步 {n} 词元：缩放定律对 {tokens}给出 {law}",
    "{reason}, cut so that there are {n} steps": "{reason}，再减小到足有 {n} 步",
    "about {n} examples of {mean} tokens: the habit is {usual} ({source}), and {least} steps at "
    "least": "约 {n} 个样本，每个 {mean} 词元：惯例为 {usual} 个（{source}），且至少 {least} 步",
    "from {batch} sequences ({n} tokens) an update to {most} ({more}), as the gradients' noise "
    "scale grows, which nobody knows before ({source}): {fewest} to {steps} updates over the same "
    "data, {time} to {longer}":
        "每次更新由 {batch} 条序列（{n} 词元）增至 {most} 条（{more} 词元），随梯度噪声尺度增长，"
        "事先无从得知（{source}）：同样的数据更新 {fewest} 至 {steps} 次，用时 {time}至 {longer}",
}  # fmt: skip

_RATES = {
    "the law for this size and {tokens} gives {law}": "缩放定律对此规模与 {tokens}给出 {law}",
    "{reason}, times {n} for this batch ({source})": "{reason}，按此批大小乘以 {n}（{source}）",
    "{reason}, held at {n}": "{reason}，以 {n} 为上限",
    "{reason}, times {n} for {rule}, tried on a small model":
        "{reason}，因 {rule} 乘以 {n}（在小模型上试得）",
    "the larger of {n} = 2 / (1 - beta2) ({source}) and {size}, a token for each parameter "
    "({source_2})":
        "取 {n} = 2 / (1 − beta2)（{source}）与 {size}（每参数一词元，{source_2}）中较大者",
    "{reason}, at most {share} of the steps": "{reason}，至多为步数的 {share}",
    "a sweep to {n} times the planned rate": "扫描到计划学习率的 {n} 倍",
    "the smoothed loss is lowest, {loss}, at {rate}": "平滑后的损失在 {rate} 处最低，为 {loss}",
    "{reason}, where the sweep ended: a higher one may do":
        "{reason}，扫描到此为止：更高的学习率或许可行",
    "{reason}; a {n}th of it leaves room for a whole training":
        "{reason}；取其 1/{n}，为整个训练留出余地",
}  # fmt: skip

_TUNING = {
    "the longest example has {n} tokens": "最长的样本有 {n} 词元",
    "rows that hold several examples, or a usual length of text":
        "一行可容数个样本，或文本的常用长度",
    "the habit; ranks of 4 and 64 learn about as much": "惯例；秩 4 与秩 64 学得大致一样多",
    "twice the rank, the habit": "秩的两倍，惯例",
    "all matrices: fewer fall behind": "全部矩阵：更少则落后",
    "alpha over the rank's root": "alpha 除以秩的平方根",
    "rows have lengths of their own": "各行的长度自成参数",
    "the habit of low-rank adapters": "低秩适配器的惯例",
    "biases alone take larger steps than all weights do": "只训练偏置时，步长可大于训练全部权重",
    "the habit of tuning a model of this size": "微调此规模模型的惯例",
}  # fmt: skip

_ELSEWHERE = {
    "{device} has no {format} figures": "{device} 没有 {format} 数据",
    "what joins {device} to its host is not known, so nothing is offloaded":
        "{device} 与主机之间的互连未知，故不卸载",
    "a batch of {n} sequences cannot be divided among {r} data ranks":
        "{n} 条序列的批无法平分给 {r} 个数据并行卡",
}  # fmt: skip

_ENDS = {
    "{n} trials": "已满 {n} 次试验",
    "{time} are over": "{time}已用完",
    "{amount} are spent": "{amount} 已用完",
    "every combination of values is tried": "所有取值组合都已试过",
    "what was left of the budget held no further trial": "剩余预算不够再作一次试验",
}

_EVENTS = {
    "from step-{n}": "自 step-{n} 继续",
    "a step takes {n} s, {predicted} s were predicted": "每步 {n} 秒，预测为 {predicted} 秒",
    "{n} sequences an update: the gradients' noise scale is {noise} tokens, no less than the "
    "{held} of these": "每次更新 {n} 条序列：梯度噪声尺度为 {noise} 词元，不小于其 {held} 词元",
    "other islands left out {n} updates since all met": "自上次会合以来，其他孤岛跳过 {n} 次更新",
    "{said}: its update is left out": "{said}：跳过此次更新",
    "{said}: back to {name}, and on with the data that follows":
        "{said}：退回 {name}，以其后的数据继续",
    "{said}; starting again from step {n}": "{said}；从第 {n} 步重新开始",
    "{said}; {n} attempts saved nothing new: going on in {count} processes, the batch as large as "
    "before": "{said}；{n} 次尝试均未存下新进展：改用 {count} 个进程继续，批大小不变",
    "{was} -> {now}; on a spike: {choice}": "{was} → {now}；损失突跳时：{choice}",
    "one process, {n} x {count} sequences each": "一个进程，每个 {n} x {count} 条序列",
    "{layout}, {n} x {count} sequences each": "{layout}，每个 {n} x {count} 条序列",
}  # fmt: skip

_FAILURES = {
    "the loss jumped to {loss} at step {n} (recent median {usual})":
        "第 {n} 步损失突跳至 {loss}（近期中位数 {usual}）",
    "the loss was not finite at step {n}": "第 {n} 步损失不是有限值",
    "the gradient was not finite at step {n}": "第 {n} 步梯度不是有限值",
    "gradient norm {n} before clipping": "裁剪前梯度范数 {n}",
    "forward values are finite: the backward pass overflowed": "前向数值有限：反向溢出",
    "first: a parameter of another process": "起于另一进程的参数",
    "first: parameter {name}": "起于参数 {name}",
    "first: output of {name}": "起于 {name} 的输出",
    "process {n} of {count} ended by signal {signal}":
        "进程 {n}（共 {count} 个）被信号 {signal} 终止",
    "process {n} of {count} ended with code {code}":
        "进程 {n}（共 {count} 个）退出，返回码 {code}",
    "the training hangs: no sign of life for {silent} s at step {n}":
        "训练无响应：第 {n} 步已 {silent} 秒没有动静",
    "longer than what was left of the budget": "超出剩余预算",
}  # fmt: skip

SENTENCES = {
    "{reason} ({source})": "{reason}（{source}）",
    **_QUANTITIES, **_VERDICTS, **_LAYOUTS, **_NETWORK, **_SIZES, **_STEPS, **_RATES, **_TUNING,
    **_ELSEWHERE, **_ENDS, **_FAILURES, **_EVENTS,
    "{reason}; {other}": "{reason}；{other}",
}  # fmt: skip
"""The first that fits is taken: a source is put behind what is known without it, and what several
sentences make up together is tried last.
"""


def reason(text: str) -> Phrase:
    """A sentence of a record in both languages; English in both where it is not known."""
    chinese = _chinese(text)
    return same(text) if chinese is None else Phrase(text, chinese)


def event(message: str) -> Phrase:
    """What is noted of an event: below its first line are causes and stacks, each by itself."""
    lines = [reason(line) for line in message.split("\n")]
    return Phrase(message, "\n".join(line.zh for line in lines))


def _chinese(text: str) -> str | None:
    for pattern, chinese in _patterns():
        found = pattern.fullmatch(text)
        if found is None:
            continue
        parts = {name: _part(name, part) for name, part in found.groupdict().items()}
        if None not in parts.values():
            return chinese.format(**parts)
    return None


def _part(name: str, text: str) -> str | None:
    """What fills a hole; None where it has words that are not known."""
    if name in _SAID:
        return _chinese(text) or text
    if name not in _PARTS:
        return text
    chinese = _chinese(text)
    return text if chinese is None and " " not in text else chinese


@cache
def _patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple((_pattern(english), chinese) for english, chinese in SENTENCES.items())


def _pattern(english: str) -> re.Pattern[str]:
    """Parts are as short as they may be: what follows them is looked for as early as it comes."""
    literals = re.split(r"\{(\w+)\}", english)
    for place in range(1, len(literals), 2):
        name = literals[place]
        inner = ".+?" if name in (*_PARTS, *_SAID) else _NAMES.get(name, r"\S+")
        literals[place] = f"(?P<{name}>{inner})"
    literals[::2] = [re.escape(each) for each in literals[::2]]
    return re.compile("".join(literals), re.DOTALL)
