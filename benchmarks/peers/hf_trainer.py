"""Worker: transformers' Trainer, by its documented options alone."""

from __future__ import annotations

import torch
import transformers
from worker import Clock, Task


def main() -> None:
    """Train the task's work and print what was measured."""
    task = Task()
    clock = Clock(task)
    transformers.set_seed(0)
    model = started(task.setting) if "start" in task.setting else build(task.work)
    losses = Losses(clock)
    trainer = transformers.Trainer(
        model=model,
        args=arguments(task),
        train_dataset=Sequences(task),
        callbacks=[losses],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    clock.report(
        parameters=sum(p.numel() for p in model.parameters()),
        versions={"transformers": transformers.__version__, "torch": torch.__version__},
        losses=losses.values,
    )


def started(setting: dict) -> torch.nn.Module:
    """A published model from its folder, with PEFT's LoRA where the setting has a rank."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        setting["start"], attn_implementation="sdpa",
        dtype=torch.bfloat16 if setting.get("weights") == "bf16" else torch.float32,
    )  # fmt: skip
    model.config.use_cache = False
    if "rank" not in setting:
        return model
    import peft

    return peft.get_peft_model(
        model,
        peft.LoraConfig(
            r=setting["rank"], lora_alpha=2 * setting["rank"], target_modules="all-linear",
            lora_dropout=0.0, task_type="CAUSAL_LM",
        ),
    )  # fmt: skip


def build(work: dict) -> torch.nn.Module:
    """The work's shape as the library's own model, with its fastest attention for a CPU."""
    if work["family"] == "gpt2":
        config = transformers.GPT2Config(
            n_layer=work["layers"], n_embd=work["width"], n_head=work["heads"],
            n_positions=work["context"], n_inner=work["feed_forward_width"],
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
            vocab_size=work["vocabulary"], use_cache=False, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
    else:
        config = transformers.LlamaConfig(
            num_hidden_layers=work["layers"], hidden_size=work["width"],
            num_attention_heads=work["heads"], num_key_value_heads=work["kv_heads"],
            intermediate_size=work["feed_forward_width"], tie_word_embeddings=True,
            max_position_embeddings=work["context"],
            rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
            vocab_size=work["vocabulary"], use_cache=False, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def arguments(task: Task) -> transformers.TrainingArguments:
    """Training arguments of the setting: bf16 and compile by the Trainer's own switches."""
    return transformers.TrainingArguments(
        output_dir=str(task.scratch / "trainer"),
        per_device_train_batch_size=task.micro_batch,
        gradient_accumulation_steps=task.accumulation,
        max_steps=task.warmup + task.measured,
        learning_rate=task.setting.get("learning_rate", 1e-4),
        train_sampling_strategy="sequential",
        lr_scheduler_type="constant",
        weight_decay=0.1,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=task.setting["precision"] == "bf16",
        torch_compile=task.setting["compile"],
        logging_strategy=task.setting.get("logging", "no"),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )


class Sequences(torch.utils.data.Dataset):
    """The token stream; labels are the inputs, which the model shifts by itself."""

    def __init__(self, task: Task) -> None:
        self.sequences = task.sequences[:, :-1]

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.from_numpy(self.sequences[index].astype("int64"))
        return {"input_ids": tokens, "labels": tokens}


class Losses(transformers.TrainerCallback):
    """Stops the clock at every step's end and keeps the losses where they are logged."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.values: list[float] = []

    def on_step_end(self, args, state, control, **_):  # noqa: ANN001, ANN201
        """Note the step; stop when enough were measured."""
        control.should_training_stop = self.clock.step_done()
        return control

    def on_log(self, args, state, control, logs=None, **_):  # noqa: ANN001, ANN201
        """Keep the loss."""
        if logs and "loss" in logs:
            self.values.append(logs["loss"])


if __name__ == "__main__":
    main()
