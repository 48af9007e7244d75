"""The stages of the recipe: what each reads and writes. They resume where they stopped."""

import argparse
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from . import takes
from .checkpoint import STATE
from .codec import Codec
from .corpus import corpus_of
from .export import MIMI, MIMI_CONFIG, MOSHI, TOKENIZER, export_codec, export_lm, export_voices, load_codec, load_voices
from .lm import Lm, LmConfig
from .lm_data import Dialogues, Recitations, build_dialogues
from .loop import Pace, device_of
from .speakers import TTS_VOICES
from .stages import HEARD_SET, LEFT_OUT_SET, OWN_SET, READERS_SET, STAGES, packages
from .stt_data import Talks, build_talks
from .takes import Takes
from .tokenizer import Tokenizer, train_dialogue_tokenizer, train_reading_tokenizer
from .train_codec import CodecTraining, Speech, train_codec
from .train_lm import LmTraining, train_lm
from .train_stt import STT_JSON, SttTraining, stt_config, train_stt
from .train_tts import MODEL_ID, TTS_JSON, TtsTraining, Voices, train_tts, tts_config
from .tts_data import Readings, build_readings

SAMPLING = dict(temp=0.4, temp_text=0.0, top_k=50, top_k_text=10)
# A model that an earlier run made goes on more gently than a new one begins.
ON_RATE = 1.4e-3
# The second part of dialogue and speech-to-text, in which the synthesiser that was left out is heard too.
MORE_RATE, MORE_WARMUP = 6e-4, 50
MORE_STEPS = 0.25  # of the first part's
# Of the second part in what is shipped, the rest being the first part's weights: that understands voices never heard better than either.
MORE_SHARE = 0.7
# A CPU's batches are so many times smaller.
CPU_BATCH = 10


class Run:
    """The folders of one run: `work` holds what can be made again, `model` the results."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.seed, self.device, self.graph = args, args.seed, device_of(args.device), args.graph
        self.work, self.model = args.out / "work", args.out / "model"
        self.demo, self.stt_folder, self.tts_folder = (self.model / n for n in ("demo", "demo-stt", "demo-tts"))
        self._tokenizer(self.demo, train_dialogue_tokenizer, MIMI, MIMI_CONFIG)
        for folder in (self.stt_folder, self.tts_folder):
            self._tokenizer(folder, train_reading_tokenizer)

    def _tokenizer(self, folder: Path, train: Callable[[Path], None], *codec: str) -> None:
        """The tokenizer of a result, and its codec: those of the model that training goes on from, if it does."""
        if (folder / TOKENIZER).exists():
            return
        if (earlier := self._earlier(folder)) is None:
            train(folder / TOKENIZER)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name in (*codec, TOKENIZER):
            shutil.copy2(earlier / name, folder)

    def pace(self, pace: Pace, steps: float = 1.0, **changes: float) -> Pace:
        wanted = int(steps * self.args.scale * pace.steps)
        return replace(pace, steps=max(1, wanted), seconds=self.args.seconds, **changes)

    def _takes(self, name: str) -> Takes:
        return Takes(self.work / "takes" / name)

    def takes(self) -> None:
        a = self.args
        sets = takes.all_sets(a.speakers, a.left_out_speakers, a.sentences)
        wanted = [s for s in sets if not a.sets or s.name in a.sets]
        takes.record(self.work / "takes", wanted, self.seed, a.workers)

    def codec(self) -> None:
        if self._earlier(self.demo):
            print("codec: that of the models to go on with stays")
            return
        plan = CodecTraining()
        plan = replace(plan, pace=self.pace(plan.pace))
        if self.device.type == "cpu":
            plan = replace(plan, users=5, own=2, readers=1)
        names = ((HEARD_SET, False), (OWN_SET, True), (READERS_SET, True))
        speech = Speech(*(corpus_of(self._takes(n), self.seed, self.device, aligned) for n, aligned in names))
        start = load_codec(self.args.codec_from) if self.args.codec_from else None
        codec = train_codec(speech, self.work / "codec", plan, self.seed, self.device, start, self.graph)
        export_codec(codec, self.demo)

    def _codec(self) -> Codec:
        # The codec as shipped, rounding included, and in float32: its codes are what the models will meet.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.manual_seed(self.seed)
        return load_codec(self.demo).to(self.device)

    def _sides(self, count: int) -> list[tuple[str, int]]:
        """The sets of users' takes, and how many scenes are made of each."""
        return [(HEARD_SET, count), (LEFT_OUT_SET, count // 5)]

    def dialogues(self) -> None:
        codec, tokenizer, own = self._codec(), Tokenizer(self.demo / TOKENIZER), self._takes(OWN_SET)
        for name, count in self._sides(self.args.dialogues):
            path = self.work / "dialogues" / f"{name}.npz"
            if not path.exists():
                users, seed = self._takes(name), f"{self.seed} {name}"
                build_dialogues(path, codec, tokenizer, users, own, count, self.args.channels, seed)

    def talks(self) -> None:
        codec, tokenizer = self._codec(), Tokenizer(self.stt_folder / TOKENIZER)
        for name, count in self._sides(self.args.talks):
            path = self.work / "talks" / f"{name}.npz"
            if not path.exists():
                build_talks(path, codec, tokenizer, self._takes(name), count, self.args.channels, f"{self.seed} {name}")

    def readings(self) -> None:
        path, tokenizer = self.work / "readings.npz", Tokenizer(self.tts_folder / TOKENIZER)
        if not path.exists():
            build_readings(path, self._codec(), tokenizer, self._takes(READERS_SET), self.args.readings, str(self.seed))

    def lm(self, more: bool = False) -> None:
        plan, tokenizer = LmTraining(), Tokenizer(self.demo / TOKENIZER)
        lm = self._lm(LmConfig(text_card=len(tokenizer)))
        names, out, pace = self._part(lm, self.demo, "lm", plan.pace, more)
        before = _weights(lm)
        plan = replace(plan, pace=pace, batch=self._batch(plan.batch), recited=self._batch(plan.recited))
        dialogues = Dialogues([self.work / "dialogues" / f"{name}.npz" for name in names], tokenizer, self.device)
        recitations = Recitations(dialogues, tokenizer, self.seed, self.device)
        train_lm(dialogues, recitations, lm, out, plan, self.seed, self.graph)
        if more:
            _average(lm, before)
        self._export(lm, self._result(self.demo, more), self.demo, "moshi", lm_gen_config=SAMPLING)

    def stt(self, more: bool = False) -> None:
        plan = SttTraining()
        lm = self._lm(stt_config(len(Tokenizer(self.stt_folder / TOKENIZER))))
        names, out, pace = self._part(lm, self.stt_folder, "stt", plan.pace, more)
        before = _weights(lm)
        plan = replace(plan, pace=pace, batch=self._batch(plan.batch))
        talks = Talks([self.work / "talks" / f"{name}.npz" for name in names], self.device)
        train_stt(talks, lm, out, plan, self.seed, self.graph)
        if more:
            _average(lm, before)
        self._export(lm, self._result(self.stt_folder, more), self.stt_folder, "stt", **STT_JSON)

    def _part(self, lm: Lm, result: Path, name: str, pace: Pace, more: bool) -> tuple[list[str], Path, Pace]:
        """The sets that the first or the second part of a model's training hears, its folder and its pace; `lm` gets the weights it begins with."""
        earlier, out = self._start(lm, result), self.work / name
        if not more:
            return [HEARD_SET], out, self._pace_on(pace) if earlier else self.pace(pace)
        if earlier is None or (out / STATE).exists():
            _load_weights(lm, out)
        pace = self.pace(pace, MORE_STEPS, learning_rate=self._rate(MORE_RATE), warmup=MORE_WARMUP)
        return [HEARD_SET, LEFT_OUT_SET], self.work / f"{name}-more", pace

    def tts(self) -> None:
        plan = TtsTraining()
        cfg = tts_config(len(Tokenizer(self.tts_folder / TOKENIZER)))
        torch.manual_seed(self.seed)
        lm, voices = self._lm(cfg), Voices(cfg.speaker_dim).to(self.device)
        if earlier := self._start(lm, self.tts_folder):
            vectors = load_voices(list(TTS_VOICES), MODEL_ID, earlier / "voices")
            voices.load_state_dict(dict(vectors=vectors))
        pace = self._pace_on(plan.pace) if earlier else self.pace(plan.pace)
        plan = replace(plan, pace=pace, batch=self._batch(plan.batch))
        train_tts(
            Readings(self.work / "readings.npz", self.device),
            lm,
            voices,
            self.work / "tts",
            plan,
            self.seed,
            self.graph,
        )
        self._export(lm, self.tts_folder, self.tts_folder, "tts", **TTS_JSON)
        export_voices(voices.vectors, list(TTS_VOICES), MODEL_ID, self.tts_folder / "voices")

    def lm_more(self) -> None:
        self.lm(more=True)

    def stt_more(self) -> None:
        self.stt(more=True)

    def evaluate(self) -> None:
        # The package itself and a recogniser, which a machine that only trains need not have.
        with packages():
            from .report import write_report

        write_report(self.model, self.args.out / "report", self.args.trials)

    def _lm(self, cfg: LmConfig) -> Lm:
        lm = Lm(cfg).to(self.device)
        return lm.compiled() if self.args.compile else lm

    def _start(self, lm: Lm, result: Path) -> Path | None:
        """The weights that an earlier run exported as `result`, where `--go-on-from` has them; the folder they are in."""
        if folder := self._earlier(result):
            lm.load_state_dict(load_file(folder / MOSHI))
        return folder

    def _earlier(self, result: Path) -> Path | None:
        """Where `--go-on-from` has a model of the name of `result`."""
        folder = self.args.go_on_from and self.args.go_on_from / result.name
        return folder if folder and folder.is_dir() else None

    def _batch(self, rows: int) -> int:
        return rows if self.device.type != "cpu" else max(2, rows // CPU_BATCH)

    def _rate(self, rate: float) -> float:
        """For a model that goes on: small batches are noisy, and at the full rate it would lose what it can."""
        return rate if self.device.type != "cpu" else rate / math.sqrt(CPU_BATCH)

    def _pace_on(self, pace: Pace) -> Pace:
        return self.pace(pace, learning_rate=self._rate(ON_RATE))

    def _export(self, lm: Lm, folder: Path, text: Path, model_type: str, **extra) -> None:
        """A whole checkpoint: the model, the tokenizer of the folder `text`, and the codec."""
        export_lm(lm, folder, model_type, **extra)
        for source in (self.demo / MIMI, self.demo / MIMI_CONFIG, text / TOKENIZER):
            if source.parent != folder:
                shutil.copy2(source, folder)

    @staticmethod
    def _result(folder: Path, more: bool) -> Path:
        """Where a model goes: that of the first part is kept beside the last one, for the test."""
        return folder if more else folder.with_name(folder.name + "-left-out")


def _weights(lm: Lm) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in lm.state_dict().items()}


def _average(lm: Lm, before: dict[str, Tensor]) -> None:
    """The weights that training went on from keep a part in what it made of them."""
    after = lm.state_dict()
    lm.load_state_dict({name: value.lerp(after[name], MORE_SHARE) for name, value in before.items()})


def _load_weights(lm: Lm, folder: Path) -> None:
    stored = torch.load(folder / STATE, map_location="cpu", weights_only=True)
    lm.load_state_dict(stored["objects"]["lm"])


def run(args: argparse.Namespace) -> None:
    """All stages in order, or the one that was asked for."""
    torch.set_num_threads(args.threads)
    run = Run(args)
    for stage in [args.stage] if args.stage else STAGES:
        getattr(run, stage.replace("-", "_"))()
