"""The two sides of throughput.py: Shoestring's steps, and `transformers.Trainer` with a callback that lets ours in."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from shoestring.contract.objective import At
from shoestring.model.hf import to_transformers
from shoestring.model.transformer import Transformer
from shoestring.train.assembly import Parts


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Ours:
    """Shoestring's steps, at a constant learning rate."""

    def __init__(self, parts: Parts, batch: int) -> None:
        self.parts, self.batch, self.losses = parts, batch, list[float]()

    def __call__(self, count: int) -> float:
        """Seconds that `count` steps take."""
        start = time.perf_counter()
        for _ in range(count):
            batch = self.parts.source.batch(len(self.losses) * self.batch, self.batch)
            self.losses.append(self.parts.stepper.gradients(batch, At(len(self.losses))).loss)
            self.parts.stepper.apply(1.0)
        synchronise()
        return time.perf_counter() - start


class Theirs(Trainer):
    """The Trainer, keeping the losses of its steps."""

    losses: list[torch.Tensor]

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss)
        return loss


class Rounds(TrainerCallback):
    """Times every `steps` steps of the Trainer after `warmup`; `between` runs before each round, off its clock."""

    def __init__(self, warmup: int, steps: int, rounds: int, between: Callable[[], None]) -> None:
        self.warmup, self.steps, self.rounds, self.between = warmup, steps, rounds, between
        self.seconds, self.since = list[float](), 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done = state.global_step - self.warmup
        if done < 0 or done % self.steps:
            return
        synchronise()
        if done:
            self.seconds.append(time.perf_counter() - self.since)
        if done < self.rounds * self.steps:
            self.between()
            self.since = time.perf_counter()


def trainer(model: Transformer, ours: Ours, steps: int, bf16: bool, options: argparse.Namespace, out: str) -> Theirs:
    """A Trainer of the same model on the batches that ours will see, in memory."""
    batches = ours.parts.source.batch(0, steps * options.batch)
    rows = zip(batches.inputs.values, batches.targets, strict=True)
    arguments = TrainingArguments(
        output_dir=out,
        max_steps=steps,
        per_device_train_batch_size=options.batch,
        train_sampling_strategy="sequential",
        bf16=bf16,
        torch_compile=options.trainer_compile,
        optim="adamw_torch_fused",
        learning_rate=options.lr,
        adam_beta2=0.95,
        weight_decay=0.1,
        max_grad_norm=1.0,
        lr_scheduler_type="constant",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )
    # targets already shifted, so that both predict the same tokens, the last of each window too
    data = [{"input_ids": inputs, "labels": targets, "shift_labels": targets} for inputs, targets in rows]
    made = Theirs(model=to_transformers(model), args=arguments, train_dataset=data)
    made.losses = []
    made.remove_callback(PrinterCallback)
    return made
