"""One command from text to a checkpoint that talks.

    python -m examples.train_demo --out runs/demo --seed 1

Stages run in order and resume where they stopped; `--stage` runs one of them.
"""

import argparse
import os
from pathlib import Path

import torch

from .card import write_card
from .codec import CodecConfig
from .corpus import build_corpus
from .espeak import Espeak
from .evaluate import text_accuracy
from .export import TOKENIZER, export_codec, export_lm, folder_bytes, load_codec, sampling_json, write_json
from .generate import Sampling
from .lm import LmConfig
from .lm_data import build_shards
from .measure import codec_report, dialogue_report
from .plots import plot_codec, plot_lm
from .showcase import show_conversation, write_prompts
from .tokenizer import Tokenizer, train_tokenizer
from .train_codec import CodecTraining, train_codec
from .train_lm import LmTraining, train_lm
from .trials import make_trials

CORPUS_HOURS = 5.0
SESSIONS = 8_000
STAGES = ("data", "codec", "lm", "export", "evaluate")


class Run:
    """The folders of one run: `work` holds what can be made again, `model` the result."""

    def __init__(self, out: Path, seed: int, codec_from: Path | None = None):
        self.seed, self.codec_from = seed, codec_from
        self.work, self.model, self.report = out / "work", out / "model", out / "report"
        self.model.mkdir(parents=True, exist_ok=True)

    def data(self) -> None:
        if not (self.work / "corpus" / "audio.npy").exists():
            build_corpus(self.work / "corpus", CORPUS_HOURS, self.seed)
        if not (self.model / TOKENIZER).exists():
            train_tokenizer(self.model / TOKENIZER)

    def codec(self) -> None:
        plan = CodecTraining()
        start = load_codec(self.codec_from) if self.codec_from else None
        codec = train_codec(self.work / "corpus", self.work / "codec", CodecConfig(), plan, self.seed, start)
        export_codec(codec, self.model)

    def lm(self) -> None:
        # The codec as shipped, rounding included: its codes are what the model will meet.
        workers = torch.get_num_threads()
        build_shards(self.work / "dialogues", self.model, SESSIONS, self.seed, workers)
        codec, tokenizer = load_codec(self.model), Tokenizer(self.model / TOKENIZER)
        trials = make_trials(12, seed=1)

        def test(lm):
            return text_accuracy(codec, lm, tokenizer, trials)

        plan = LmTraining()
        train_lm(self.work / "dialogues", tokenizer, self.work / "lm", LmConfig(), plan, self.seed, test)

    def export(self) -> None:
        tokenizer = Tokenizer(self.model / TOKENIZER)
        lm = train_lm(self.work / "dialogues", tokenizer, self.work / "lm", LmConfig(), LmTraining(), self.seed)
        export_lm(lm, self.model, "moshi", lm_gen_config=sampling_json(Sampling()))
        write_prompts(self.model / "prompts")

    def evaluate(self) -> None:
        report = dict(codec=codec_report(self.model), dialogue=dialogue_report(self.model, make_trials(60, seed=2)))
        self.report.mkdir(parents=True, exist_ok=True)
        write_json(self.report / "results.json", report)
        plot_codec(self.work / "codec" / "log.jsonl", self.report / "codec.png")
        plot_lm(self.work / "lm" / "log.jsonl", self.report / "lm.png")
        show_conversation(self.model, self.report)
        write_card(self.model, report, self.seed, Espeak().version)
        print(f"{self.model}: {folder_bytes(self.model) / 1e6:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--stage", choices=STAGES, help="only this stage (default: all in order)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--codec-from", type=Path, metavar="DIR", help="train this exported codec on, with half the steps"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = Run(args.out, args.seed, args.codec_from)
    for stage in [args.stage] if args.stage else STAGES:
        getattr(run, stage)()
