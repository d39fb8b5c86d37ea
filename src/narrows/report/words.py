"""The words of a report in both its languages, English and Chinese."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, slots=True)
class Phrase:
    """The same thing said in English and in Chinese."""

    en: str
    zh: str

    def __str__(self) -> str:
        return self.en

    def filled(self, **values: object) -> Phrase:
        """With `{names}` replaced; a Phrase is replaced by its own language."""
        english = {name: in_english(value) for name, value in values.items()}
        chinese = {name: in_chinese(value) for name, value in values.items()}
        return Phrase(self.en.format(**english), self.zh.format(**chinese))


def same(text: str) -> Phrase:
    """A number or a name that reads alike in both languages."""
    return Phrase(text, text)


def in_english(value: object) -> str:
    """The English form of a phrase, or the value as text."""
    return value.en if isinstance(value, Phrase) else str(value)


def in_chinese(value: object) -> str:
    """The Chinese form of a phrase, or the value as text."""
    return value.zh if isinstance(value, Phrase) else str(value)


PREDICTED = Phrase("predicted", "预测")
MEASURED = Phrase("measured", "实测")
ABSENT = same("–")

KINDS = {
    "gemm": Phrase("matrix products", "矩阵乘法"),
    "attention": Phrase("attention", "注意力"),
    "pointwise": Phrase("pointwise", "逐元素运算"),
    "loss": Phrase("loss", "损失"),
    "optimizer": Phrase("optimizer", "优化器"),
    "data": Phrase("data", "读数据"),
    "launch": Phrase("launching", "启动开销"),
    "link": Phrase("links", "通信"),
    "idle": Phrase("idle", "空闲"),
    "other": Phrase("other", "其他"),
}

OPERATIONS = {
    "attention": Phrase("attention", "注意力"),
    "head_and_loss": Phrase("head and loss", "输出层与损失"),
    "query": Phrase("query", "查询投影"),
    "query_down": Phrase("query down", "查询降维"),
    "query_up": Phrase("query up", "查询升维"),
    "key_value_down": Phrase("key value down", "键值降维"),
    "key_value_up": Phrase("key value up", "键值升维"),
    "router": Phrase("router", "路由"),
    "shared_up": Phrase("shared up", "共享专家 up"),
    "shared_down": Phrase("shared down", "共享专家 down"),
    "expert_up": Phrase("expert up", "专家 up"),
    "expert_down": Phrase("expert down", "专家 down"),
    "memory-bound_operations": Phrase("memory-bound operations", "受带宽限制的运算"),
    "attention's_matrices": Phrase("attention's matrices", "注意力投影"),
    "feed-forward": Phrase("feed-forward", "前馈"),
    "experts": Phrase("experts", "专家"),
    "head": Phrase("head", "输出层"),
    "scores_over_the_cache": Phrase("scores over the cache", "对缓存的注意力"),
    "reductions_between_ranks": Phrase("reductions between ranks", "卡间归约"),
    "starting_kernels": Phrase("starting kernels", "启动核函数"),
    "engine": Phrase("engine", "引擎"),
    "guesses": Phrase("guesses", "猜测"),
}

TRACKS = {
    "compute": Phrase("computing", "计算"),
    "link": Phrase("exchanging", "通信"),
    "waiting": Phrase("waiting for an exchange", "等待通信"),
    "data": Phrase("reading data", "读数据"),
}

MEMORY = {
    "weights": Phrase("weights", "权重"),
    "masters": Phrase("rest of fp32 masters", "fp32 主权重的余下部分"),
    "gradients": Phrase("gradients", "梯度"),
    "optimizer": Phrase("optimizer", "优化器状态"),
    "activations": Phrase("activations", "激活值"),
    "logits": Phrase("logits", "logits"),
    "workspace": Phrase("workspace", "工作区"),
    "runtime": Phrase("runtime", "运行时"),
    "cache": Phrase("keys and values", "键值缓存"),
}

PHASES = {
    "forward": Phrase("forward", "前向"),
    "backward": Phrase("backward", "反向"),
    "optimizer": Phrase("optimizer", "优化器"),
    "data": Phrase("data", "读数据"),
    "other": Phrase("other", "其他"),
    "prefill": Phrase("prompt", "预填充"),
    "decode": Phrase("tokens", "解码"),
}

BASES = {
    "measured": MEASURED,
    "datasheet": Phrase("datasheet", "规格书"),
    "fitted": Phrase("fitted", "拟合"),
    "estimated": Phrase("estimated", "估算"),
    "assumed": Phrase("assumed", "假定"),
}

RESOURCES = {
    "compute": Phrase("compute", "算力"),
    "memory_bandwidth": Phrase("memory bandwidth", "内存带宽"),
    "memory_capacity": Phrase("memory capacity", "内存容量"),
    "link_bandwidth": Phrase("link bandwidth", "互连带宽"),
    "link_latency": Phrase("link latency", "互连延迟"),
    "launch_overhead": Phrase("launch overhead", "启动开销"),
    "storage": Phrase("storage", "存储"),
    "energy": Phrase("energy", "能量"),
    "money": Phrase("money", "费用"),
}

LAYOUT = {
    "micro_batch": Phrase("micro-batch", "微批"),
    "accumulation": Phrase("accumulation", "累积"),
    "precision": Phrase("precision", "精度"),
    "recompute": Phrase("recompute", "重计算"),
    "compile": Phrase("compile", "编译"),
    "kernels": Phrase("kernels", "算子"),
    "threads": Phrase("threads", "线程"),
    "loss_chunk": Phrase("loss chunk", "损失分块"),
    "data": Phrase("data", "数据"),
    "replicas": Phrase("copies", "副本"),
    "tensor": Phrase("tensor", "张量"),
    "pipeline": Phrase("pipeline", "流水线"),
    "interleave": Phrase("pieces a stage", "每级分块"),
    "context": Phrase("context", "上下文"),
    "expert": Phrase("expert", "专家"),
    "sharding": Phrase("sharded", "分片"),
    "reshard": Phrase("reshard", "重新分片"),
    "schedule": Phrase("schedule", "调度"),
    "placement": Phrase("placement", "放置"),
    "exchange": Phrase("context by", "上下文交换"),
    "sequence_parallel": Phrase("sequence parallelism", "序列并行"),
    "first_fewer": Phrase("layers fewer in the first stage", "首级少"),
    "last_fewer": Phrase("layers fewer in the last stage", "末级少"),
    "state_bits": Phrase("bits of a moment", "优化器位数"),
    "offload": Phrase("offload to", "卸载至"),
    "offload_folder": Phrase("offload in", "卸载目录"),
    "chunked_loss": Phrase("loss in chunks", "分块损失"),
}

VALUES = {
    "none": Phrase("none", "无"),
    "optimizer": Phrase("optimizer", "优化器"),
    "gradients": Phrase("gradients", "梯度"),
    "parameters": Phrase("parameters", "参数"),
    "selective": Phrase("selective", "选择性"),
    "full": Phrase("full", "全部"),
    "pointwise": Phrase("norms and activations", "归一化与激活"),
    "gpipe": same("GPipe"),
    "1f1b": same("1F1B"),
    "zero_bubble": Phrase("zero-bubble", "零气泡"),
    "data_outermost": Phrase("data outermost", "数据在最外"),
    "pipeline_outermost": Phrase("pipeline outermost", "流水线在最外"),
    "ring": Phrase("ring", "环"),
    "all_to_all": Phrase("all-to-all", "全交换"),
    "eager": Phrase("eager", "逐个执行"),
    "fused": Phrase("fused", "手工融合"),
    "compiled": Phrase("compiled", "编译"),
    "host": Phrase("host", "主机"),
    "disk": Phrase("disk", "磁盘"),
    "False": Phrase("off", "关"),
    "True": Phrase("on", "开"),
}

CHOICES = {
    **LAYOUT,
    "layers": Phrase("layers", "层数"),
    "width": Phrase("width", "宽度"),
    "heads": Phrase("heads", "注意力头"),
    "kv_heads": Phrase("kv heads", "键值头"),
    "vocabulary": Phrase("vocabulary", "词表"),
    "steps": Phrase("steps", "步数"),
    "batch_sequences": Phrase("batch", "批大小"),
    "learning_rate": Phrase("learning rate", "学习率"),
    "weight_decay": Phrase("weight decay", "权重衰减"),
    "warmup_steps": Phrase("warm-up steps", "预热步数"),
    "decay_steps": Phrase("decay steps", "衰减步数"),
    "schedule": Phrase("schedule", "学习率计划"),
    "optimizer": Phrase("optimizer", "优化器"),
    "model": Phrase("model", "模型"),
    "layout": Phrase("layout", "布局"),
    "data": Phrase("data", "数据"),
    "evaluation": Phrase("evaluation", "评估"),
    "checkpoints": Phrase("checkpoints", "检查点"),
    "gradients": Phrase("gradients", "梯度"),
    "power_watts": Phrase("power", "功率"),
    "bottleneck": Phrase("bottleneck", "瓶颈"),
    "budget": Phrase("budget", "预算"),
    "processes": Phrase("processes", "进程数"),
    "feed_forward_width": Phrase("feed-forward width", "前馈宽度"),
    "epochs": Phrase("epochs", "轮数"),
    "network": Phrase("network", "网络"),
    "rank": Phrase("rank", "秩"),
    "alpha": Phrase("alpha", "缩放系数 alpha"),
    "targets": Phrase("targets", "目标矩阵"),
    "rule": Phrase("rule", "缩放规则"),
    "batch_ramp": Phrase("batch ramp", "批渐增"),
}

SCHEDULES = {
    "cosine": Phrase("cosine", "余弦"),
    "linear": Phrase("linear", "线性"),
    "wsd": Phrase("constant, then a fall", "先恒定、后下降"),
}

EVENTS = {
    "resume": Phrase("resumed", "恢复"),
    "slow": Phrase("slow", "比预测慢"),
    "quick": Phrase("quick", "比预测快"),
    "checkpoint": Phrase("checkpoint", "检查点"),
    "stopped": Phrase("stopped", "停止"),
    "restart": Phrase("started again", "重新启动"),
    "shrink": Phrase("fewer processes", "减少进程"),
    "layout": Phrase("another layout", "更换布局"),
    "skip": Phrase("update left out", "跳过更新"),
    "rollback": Phrase("rolled back", "回滚"),
    "batch": Phrase("larger batch", "批增大"),
    "hang": Phrase("no sign of life", "无响应"),
}


def spoken(table: dict[str, Phrase], name: str) -> Phrase:
    """The phrase for a name, or the name itself where the table does not know it."""
    known = table.get(name.replace(" ", "_"))
    return known if known is not None else same(name.replace("_", " "))
