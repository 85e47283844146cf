"""Train the demo model on one GPU or several of one machine.

    torchrun --nproc-per-node 2 -m scripts.demo_model.train --model models/pyds4-demo-q4_k.gguf

A training may be cut into commands that each end after ``--seconds``: the state is kept in
``--state`` and the next command goes on. ``--until`` is the progress, 0 to 1, that the learning
rate has reached at the end of a command. With ``--steps`` the schedule follows the step count
instead of the clock, and the same seed then gives the same run.

``--out`` receives weights.N.bin (f16, in pieces of 15 MiB), report.json and train.log.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed
from torch.nn import functional

from scripts.demo_model import evaluate, gguf_file, sinkhorn, vocabulary
from scripts.demo_model.architecture import Model
from scripts.demo_model.batches import PAD_ID, Feed, Rows
from scripts.demo_model.block import Run
from scripts.demo_model.config import Config
from scripts.demo_model.optimizer import Optimizer

PIECE_BYTES = 15 << 20
_ANSWER_WEIGHT = 16


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the demo model.")
    add = parser.add_argument
    add("--model", type=Path, required=True, help="GGUF with the vocabulary and, usually, weights")
    add("--fresh", action="store_true", help="take only the vocabulary from --model")
    add("--state", type=Path, default=Path("/tmp/demo_model/state.pt"))
    add("--out", type=Path, default=Path("/tmp/demo_model/out"))
    add("--prompts", type=Path, help="recorded prompts of real agents, see record_prompts")
    add("--practice", type=json.loads, default={}, help='weights of tasks, JSON: {"sort": 40}')
    add("--seconds", type=float, default=540, help="stop training this long after the start")
    add("--until", type=float, default=1.0, help="progress at the end of this command")
    add("--steps", type=int, help="steps of the whole training; the clock decides without it")
    add("--tokens", type=int, default=32768, help="tokens of a step on each GPU")
    add("--short", type=int, default=4096, help="tokens of a short row")
    add("--long", type=int, default=16384, help="tokens of a long row")
    add("--long-every", type=int, default=3, help="one step in this many has long rows")
    add("--workers", type=int, default=12, help="processes that make rows, for each GPU")
    add("--muon-rate", type=float, default=2e-3)
    add("--adam-rate", type=float, default=1.2e-3)
    add("--decay", type=float, default=0.05)
    add("--plateau", type=float, default=0.3, help="progress at which the rate begins to fall")
    add("--config", type=json.loads, default={}, help="JSON that replaces fields of Config")
    add("--seed", type=int, default=1)
    add("--eval-samples", type=int, default=60, help="of each family and mode; 0 for none")
    add("--no-compile", action="store_true")
    return parser.parse_args()


def rate_factor(progress: float, plateau: float) -> float:
    """A short warm-up, a plateau until progress ``plateau``, then linearly down to 0.01."""
    if progress < plateau:
        return min(progress / 0.02, 1.0)
    return max(1 - (progress - plateau) / (1 - plateau), 0.0) * 0.99 + 0.01


class Trainer:
    """One process of a training."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.started = time.time()
        self.options = options
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        options.out.mkdir(parents=True, exist_ok=True)
        options.state.parent.mkdir(parents=True, exist_ok=True)
        self._log_file = (options.out / "train.log").open("a")
        self.tokenizer = vocabulary.build(vocabulary.read(options.model))
        self.progress, self.steps, self.tokens_seen = 0.0, 0, 0
        kept = options.state.with_suffix(".json")
        if kept.exists():
            saved = json.loads(kept.read_text())
            self.progress, self.steps = saved["progress"], saved["steps"]
            self.tokens_seen = saved["tokens"]
        self.feeds = self._feeds()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cuda":
            torch.cuda.set_device(self.rank)
            self.device = f"cuda:{self.rank}"
        if self.world > 1:
            distributed.init_process_group("nccl" if self.device != "cpu" else "gloo")
        torch.set_float32_matmul_precision("high")
        self.run = Run(bfloat16=self.device != "cpu")
        self._model()

    def _feeds(self) -> dict[int, Feed]:
        """Before the GPU is touched, because the workers fork."""
        o = self.options
        seed = f"{o.seed}/{self.rank}/{self.steps}"
        shares = {o.short: 2 * o.workers // 3, o.long: o.workers - 2 * o.workers // 3}
        return {
            length: Feed(length, max(1, count), seed, self.tokenizer, o.prompts, o.practice)
            for length, count in shares.items()
        }

    def _model(self) -> None:
        o = self.options
        self.config = Config(**o.config)
        self.model = Model(self.config).to(self.device)
        if not o.fresh:
            gguf_file.load_weights(o.model, self.model)
        for block in self.model.blocks:
            block.four_bit = True
        self.optimizer = Optimizer(self.model, o.muon_rate, o.adam_rate, o.decay)
        if self.steps:
            state = torch.load(o.state, map_location=self.device, weights_only=False)
            self.model.load_state_dict(state["model"])
            self.optimizer.load(state["optimizer"])
        kernels = sinkhorn.use_kernels(self.device) if self.device != "cpu" else "plain version"
        count = sum(p.numel() for p in self.model.parameters()) / 1e6
        self.log(f"torch {torch.__version__}, {self.world} x {self.device}, {count:.1f} M")
        self.log(f"sinkhorn: {kernels}; progress {self.progress:.3f}, step {self.steps}")
        self.loss = self._loss
        if not o.no_compile:
            for name in ("recompile_limit", "cache_size_limit"):
                if hasattr(torch._dynamo.config, name):
                    setattr(torch._dynamo.config, name, 64)
            for block in self.model.blocks:
                block.compile(dynamic=False)
            self.loss = torch.compile(self._loss, dynamic=False)

    def log(self, text: str) -> None:
        """Print and keep, from the first process alone."""
        if self.rank == 0:
            line = f"[{time.time() - self.started:6.1f}s] {text}"
            print(line, flush=True)
            print(line, file=self._log_file, flush=True)

    def tensors(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, documents and weights on the device."""

        def move(array: NDArray[Any], dtype: Any) -> Tensor:
            tensor = torch.from_numpy(np.ascontiguousarray(array.astype(dtype)))
            return tensor.to(self.device, non_blocking=True)

        return (
            move(rows.ids, np.int64),
            move(rows.documents, np.int32),
            move(rows.weights, np.float32),
        )

    def _loss(self, streams: Tensor, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted cross entropy, and that of the answers alone."""
        logits = self.model.head(streams, self.run)[:, :-1].float()
        entropy = functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        ).view(ids.shape[0], -1)
        weights = weights[:, :-1]
        answers = (weights >= _ANSWER_WEIGHT).float()
        loss = (entropy * weights).sum() / weights.sum().clamp_min(1)
        return loss, (entropy.detach() * answers).sum() / answers.sum().clamp_min(1)

    def _share(self, load: Tensor) -> None:
        """Average gradients and add up loads over the processes."""
        if self.world == 1:
            return
        gradients = [p.grad for p in self.optimizer.parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        distributed.all_reduce(flat)
        flat /= self.world
        at = 0
        for gradient in gradients:
            gradient.copy_(flat[at : at + gradient.numel()].view_as(gradient))
            at += gradient.numel()
        distributed.all_reduce(load)

    def _advance(self, first: float, began: float) -> bool:
        """Set the progress; the first process's clock decides. False at the end."""
        o = self.options
        if o.steps is not None:
            self.progress = min(self.steps / o.steps, 1.0)
            return bool(self.progress < o.until)
        now = time.time() - self.started
        share = (now - began) / max(1.0, o.seconds - began)
        value = first + (o.until - first) * min(share, 1.0)
        if self.world > 1:
            shared = torch.tensor([value], dtype=torch.float64, device=self.device)
            distributed.broadcast(shared, 0)
            value = float(shared.item())
        self.progress = value
        return bool(value < o.until)

    def length(self, here: int) -> int:
        """Row length of the next step: fewer long rows at the beginning.

        One of the first steps of every command has long rows, so that both graphs are compiled
        before the clock of the progress starts.
        """
        o = self.options
        if here < 8:
            return int(o.long if here == 3 else o.short)
        every = o.long_every if self.progress > 0.2 else 3 * o.long_every
        return int(o.long if self.steps % every == every - 1 else o.short)

    def step(self, factor: float, here: int) -> dict[str, Tensor]:
        """Step ``here`` of this command; the numbers are read only when they are printed."""
        length = self.length(here)
        rows = self.feeds[length].take(max(1, self.options.tokens // length))
        ids, documents, weights = self.tensors(rows)
        valid = (ids != PAD_ID).float()
        streams, index_loss, load = self.model.trunk(ids, self.run, documents, valid)
        loss, answers = self.loss(streams, ids, weights)
        (loss + index_loss).backward()
        self._share(load)
        norm = self.optimizer.step(factor)
        self._balance(load, factor)
        self.steps += 1
        self.tokens_seen += ids.numel() * self.world
        return {"loss": loss, "answers": answers, "index": index_loss, "norm": norm, "load": load}

    @torch.no_grad()
    def _balance(self, load: Tensor, factor: float) -> None:
        """Push the biases of busy experts down and of idle ones up; no loss is involved."""
        push = torch.sign(load.mean(1, keepdim=True) - load) * 0.002 * factor
        for layer, block in enumerate(self.model.blocks):
            if not block.hashed:
                block.exp_probs_b += push[layer]

    def train(self) -> None:
        """Steps until this command's share of the training is done."""
        first, began = self.progress, time.time() - self.started
        clock, seen = time.time(), self.tokens_seen
        here = 0
        while here % 8 or self._advance(first, began):
            numbers = self.step(rate_factor(self.progress, self.options.plateau), here)
            here += 1
            if here == 8 and self.options.steps is None:
                began = time.time() - self.started  # compilation is no progress
                self.log("compiled")
            if here in (1, 2, 10) or here % 100 == 0:
                values = {key: float(value.detach().max()) for key, value in numbers.items()}
                speed = (self.tokens_seen - seen) / (time.time() - clock)
                clock, seen = time.time(), self.tokens_seen
                self.log(
                    f"step {self.steps} progress {self.progress:.3f} loss {values['loss']:.4f} "
                    f"answers {values['answers']:.4f} index {values['index']:.3f} "
                    f"norm {values['norm']:.2f} {speed:.0f} tokens/s {self._memory()}"
                )
        for feed in self.feeds.values():
            feed.close()

    def _memory(self) -> str:
        if self.device == "cpu":
            return ""
        return f"{torch.cuda.max_memory_allocated() / 2**30:.0f} GiB"

    def save(self) -> None:
        """The state for the next command, and the weights for the way home."""
        if self.rank:
            return
        counts = {
            "progress": self.progress,
            "steps": self.steps,
            "tokens": self.tokens_seen,
            "config": self.options.config,
        }
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state()}
        torch.save(state, self.options.state)
        self.options.state.with_suffix(".json").write_text(json.dumps(counts))
        weights = {
            name: (v.half() if v.numel() > 20000 and v.is_floating_point() else v).cpu()
            for name, v in self.model.state_dict().items()
        }
        buffer = io.BytesIO()
        torch.save({"model": weights, **counts}, buffer)
        raw = buffer.getvalue()
        for number, start in enumerate(range(0, len(raw), PIECE_BYTES)):
            piece = self.options.out / f"weights.{number}.bin"
            piece.write_bytes(raw[start : start + PIECE_BYTES])
        self.log(f"{self.steps} steps, {self.tokens_seen / 1e6:.1f} M tokens, weights written")

    def evaluate(self) -> None:
        """Exact match by family, in the first process."""
        if self.rank or not self.options.eval_samples:
            return

        def predict(rows: Rows) -> NDArray[np.int32]:
            ids, documents, _ = self.tensors(rows)
            valid = (ids != PAD_ID).float()
            # Gradients stay on, so that the compiled graphs of the training serve again.
            streams = self.model.trunk(ids, self.run, documents, valid)[0].detach()
            best = self.model.head(streams, self.run).argmax(-1).int().cpu().numpy()
            return np.asarray(best, np.int32)

        length = self.options.long
        at_once = max(1, self.options.tokens // length)
        drawn = evaluate.samples(self.tokenizer, self.options.eval_samples, length)
        counts, mistakes = evaluate.evaluate(predict, drawn, length, at_once)
        right, total = (sum(c[i] for c in counts.values()) for i in (0, 1))
        self.log(f"exact match {right / total:.4f} of {total}")
        for key, (good, all_) in counts.items():
            self.log(f"  {key:24s} {good / all_:.3f} of {all_}")
        for mistake in mistakes:
            for key in ("before", "wanted"):
                mistake[key] = self.tokenizer.decode(mistake[key], skip_special_tokens=False)
            mistake["got"] = self.tokenizer.decode([mistake["got"]], skip_special_tokens=False)
        report = {"counts": counts, "mistakes": mistakes[:400], "tokens": self.tokens_seen}
        path = self.options.out / "report.json"
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False))


def main() -> None:
    """Train, save, evaluate."""
    trainer = Trainer(arguments())
    trainer.train()
    trainer.save()
    trainer.evaluate()
    sys.stdout.flush()
    # Worker queues and process groups hold threads that would keep the process alive.
    os._exit(0)


if __name__ == "__main__":
    main()
