"""Scores pairs with MultiMedEval's own code: JSON pairs [answer, reference] on stdin, [recall, f1, bleu] of each out.

`python -m tests.evaluation.multimedeval_run --record` rewrites multimedeval_scores.json. The package comes by
`pip install --no-deps multimedeval torchmetrics lightning-utilities`: with its dependencies it needs an older
scikit-learn than ours and a dozen readers of other data, whose places are held here by empty modules.
"""

import importlib.abc
import importlib.machinery
import json
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

RECORDED = Path(__file__).with_name("multimedeval_scores.json")
TRICKY = Path(__file__).with_name("tricky_answers.json")
# Of files, downloads, and reports about X-rays: nothing that scores of questions are made with.
UNUSED = {
    "appdirs", "bert_score", "dotmap", "gdown", "h5py", "jsonpickle", "kaggle", "medmnist", "nibabel", "pydicom",
    "spacy", "statsmodels",
}  # fmt: skip


class Unused(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in UNUSED:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec) -> ModuleType:
        return MagicMock(__path__=[], __spec__=spec)

    def exec_module(self, module) -> None:
        pass


def score(pairs: list[tuple[str, str]]) -> list[list[float]]:
    sys.meta_path.append(Unused())
    from multimedeval.task_families import VQA
    from multimedeval.utils import BatcherOutput
    from torchmetrics.text import BLEUScore

    class Pairs(VQA):
        def __init__(self):
            self.bleu = BLEUScore(n_gram=1)  # as its own constructor has it, which also wants a word net

        def __getitem__(self, idx):
            return {"sample": pairs[idx][1]}

        def get_correct_answer(self, sample, full_text=False):
            return sample.lower().strip()

        def format_question(self, sample, prompt=False):
            raise NotImplementedError

        setup = format_question

    predictions = [{"idx": n, "answer": BatcherOutput(text=answer)} for n, (answer, _) in enumerate(pairs)]
    log = Pairs().evaluate(predictions).answer_log
    assert log[0][2:5] == ["F1", "BLEU", "recall"]
    return [[row[4], row[2], row[3]] for row in log[1:]]


def record() -> None:
    tricky = json.loads(TRICKY.read_text(encoding="utf-8"))
    pairs = [(row["answer"], row["reference"]) for row in tricky["open"] + tricky["closed"]]
    pairs += [(row["answer"], text) for row in tricky["choice"] for text in row["choices"][1:3]]
    lines = [json.dumps([*pair, *scores], ensure_ascii=False) for pair, scores in zip(pairs, score(pairs), strict=True)]
    RECORDED.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] == ["--record"]:
        record()
    else:
        print(json.dumps(score(json.load(sys.stdin))))
