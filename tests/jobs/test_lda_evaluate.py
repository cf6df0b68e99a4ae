"""Likelihoods, perplexity, coherence, top words and models, compared with the formulas in numpy."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import gammaln

from mpips.cli.main import main
from mpips.errors import InputError
from mpips.jobs.lda.corpus import Block
from mpips.jobs.lda.evaluate import (
    Phi,
    completion,
    distinct,
    doc_likelihood,
    infer_theta,
    log_gamma,
    perplexity,
    topic_norm,
    word_likelihood,
)
from mpips.jobs.lda.inference import load
from mpips.jobs.lda.model import export_model, read_model
from mpips.jobs.lda.topics import Top, cooccurrence, draw, no_words, offer, table, umass


def made(
    seed: int, docs: int, topics: int, vocabulary: int, mean: float = 12.0
) -> tuple[Block, NDArray[np.int32]]:
    """Make documents with random words and topics."""
    rng = np.random.default_rng(seed)
    ptr = np.concatenate([[0], np.cumsum(rng.poisson(mean, docs))]).astype(np.int64)
    words = rng.integers(0, vocabulary, ptr[-1]).astype(np.int32)
    return Block(ptr, words), rng.integers(0, topics, ptr[-1]).astype(np.int32)


def counted(block: Block, z: NDArray[np.int32], topics: int, vocabulary: int) -> tuple[Any, Any]:
    """Count topics in documents, and words in topics."""
    docs = np.zeros((len(block.ptr) - 1, topics), np.int32)
    np.add.at(docs, (np.repeat(np.arange(len(docs)), np.diff(block.ptr)), z), 1)
    words = np.zeros((vocabulary, topics), np.int32)
    np.add.at(words, (block.words, z), 1)
    return docs, words


@given(st.integers(0, 2**32), st.integers(1, 9), st.floats(1e-4, 20.0), st.floats(1e-4, 20.0))
def test_the_joint_likelihood_is_the_formula(seed: int, topics: int, scale: float, beta: float) -> None:
    vocabulary = 30
    block, z = made(seed, 20, topics, vocabulary)
    alpha = scale * np.random.default_rng(seed).uniform(0.1, 2.0, topics)
    n_dk, n_wk = counted(block, z, topics, vocabulary)
    a, n_k, mass = alpha.sum(), n_wk.sum(axis=0), vocabulary * beta
    wanted = (
        (gammaln(a) - gammaln(alpha).sum()) * len(n_dk)
        + gammaln(n_dk + alpha).sum()
        - gammaln(n_dk.sum(axis=1) + a).sum()
        + gammaln(n_wk + beta).sum()
        + topics * (gammaln(mass) - vocabulary * gammaln(beta))
        - gammaln(n_k + mass).sum()
    )
    cut = int(block.ptr[7])
    parts = [
        doc_likelihood(Block(block.ptr[:8], block.words[:cut]), z[:cut], topics, alpha),
        doc_likelihood(Block(block.ptr[7:] - cut, block.words[cut:]), z[cut:], topics, alpha),
        word_likelihood(n_wk[:13], beta),
        word_likelihood(n_wk[13:][n_wk[13:] > 0], beta),
        topic_norm(n_k[:1].astype(np.int64), beta, vocabulary),
        topic_norm(n_k[1:].astype(np.int64), beta, vocabulary),
    ]
    assert sum(parts) == pytest.approx(wanted, rel=1e-10, abs=1e-7)


@pytest.mark.parametrize("beta", [0.01, 1.0, 123.4])
def test_large_counts(beta: float) -> None:
    counts = np.array([0, 1, 4095, 4096, 4097, 10**5, 2**31 - 1], np.int32)
    for n in counts:
        wanted = gammaln(n + beta) - gammaln(beta)
        assert word_likelihood(np.array([[n]], np.int32), beta) == pytest.approx(wanted, rel=1e-13, abs=1e-12)
    assert log_gamma(100.0) == pytest.approx(math.lgamma(100.0), rel=1e-15)


def test_a_long_document_of_one_topic() -> None:
    n = 300_000
    block = Block(np.array([0, n]), np.zeros(n, np.int32))
    found = doc_likelihood(block, np.ones(n, np.int32), 2, np.array([1e-6, 1e-3]))
    wanted = gammaln(1.001e-3) - gammaln(n + 1.001e-3) + gammaln(n + 1e-3) - gammaln(1e-3)
    assert found == pytest.approx(wanted, abs=1e-6)


def test_invalid_counts_topics_and_priors_have_no_likelihood() -> None:
    block, z = made(1, 3, 4, 5)
    with pytest.raises(ValueError, match="must be 0 to 3"):
        doc_likelihood(block, z - 1, 4, np.ones(4))
    with pytest.raises(ValueError, match="numbers alpha of 4 topics"):
        doc_likelihood(block, z, 4, np.ones(3))
    with pytest.raises(ValueError, match="negative"):
        word_likelihood(np.array([[1, -1]], np.int32), 0.1)


def fold_in(
    words: NDArray[np.int32], phi: NDArray[np.float64], alpha: NDArray[np.float64]
) -> NDArray[np.float64]:
    theta: NDArray[np.float64] = alpha / alpha.sum()
    for _ in range(1000):
        r = theta * phi[words]
        theta = (alpha + (r / r.sum(axis=1, keepdims=True)).sum(axis=0)) / (len(words) + alpha.sum())
    return theta


def phi_of(n_wk: NDArray[np.int32], beta: float) -> NDArray[np.float64]:
    phi: NDArray[np.float64] = (n_wk + beta) / (n_wk.sum(axis=0) + beta * len(n_wk))
    return phi


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.integers(1, 11))
def test_shares_of_topics_are_the_fixed_point(seed: int, topics: int) -> None:
    block, z = made(seed, 6, topics, 20)
    _, n_wk = counted(block, z, topics, 20)
    alpha = np.random.default_rng(seed).uniform(0.3, 2.0, topics)
    ids, local = distinct(block)
    phi = Phi(n_wk[ids], n_wk.sum(axis=0).astype(np.int64), alpha, 0.5, 20)
    thetas = infer_theta(local, phi, rounds=3000)
    assert thetas.sum(axis=1) == pytest.approx(1.0)
    for d, theta in enumerate(thetas):
        wanted = fold_in(block.words[block.ptr[d] : block.ptr[d + 1]], phi_of(n_wk, 0.5), alpha)
        assert theta == pytest.approx(wanted, abs=1e-3)


def test_a_document_of_one_topics_words_is_of_that_topic() -> None:
    rows = np.array([[50, 0], [50, 0], [0, 50], [0, 50]], np.int32)
    phi = Phi(rows, rows.sum(axis=0).astype(np.int64), np.full(2, 0.1), 0.01, 4)
    block = Block(np.array([0, 10, 20, 20]), np.array([0, 1] * 5 + [2, 3] * 5, np.int32))
    thetas = infer_theta(block, phi)
    assert thetas[0, 0] > 0.98 and thetas[1, 1] > 0.98
    assert thetas[2] == pytest.approx([0.5, 0.5])


def test_perplexity_of_one_topic_is_that_of_its_words() -> None:
    block, z = made(5, 9, 1, 12)
    _, n_wk = counted(block, z, 1, 12)
    log_p, scored = completion(
        block, np.arange(9), Phi(n_wk, n_wk.sum(axis=0).astype(np.int64), np.ones(1), 1.0, 12)
    )
    assert scored == sum(n - n // 2 for n in np.diff(block.ptr).tolist())
    same = np.log(phi_of(n_wk, 1.0)).min(), np.log(phi_of(n_wk, 1.0)).max()
    assert same[0] <= log_p / scored <= same[1]
    uniform = Phi(np.zeros((12, 3), np.int32), np.zeros(3, np.int64), np.ones(3), 1.0, 12)
    assert perplexity(*completion(block, np.arange(9), uniform)) == pytest.approx(12.0)
    assert perplexity(0.0, 0) is None


def test_completion_does_not_depend_on_blocks_and_scores_the_other_half() -> None:
    block, z = made(2, 30, 5, 40)
    _, n_wk = counted(block, z, 5, 40)
    phi = Phi(n_wk, n_wk.sum(axis=0).astype(np.int64), np.full(5, 0.2), 0.1, 40)
    whole = completion(block, np.arange(30), phi, seed=3)
    cut = int(block.ptr[11])
    first = completion(Block(block.ptr[:12], block.words[:cut]), np.arange(11), phi, seed=3)
    second = completion(Block(block.ptr[11:] - cut, block.words[cut:]), np.arange(11, 30), phi, seed=3)
    assert whole == pytest.approx(tuple(np.add(first, second)), rel=1e-13)
    assert completion(block, np.arange(30), phi, seed=4)[0] != whole[0]
    # Of two tokens, one is seen and the other scored: which of them is one of two cases.
    pair = Block(np.array([0, 2]), np.array([3, 8], np.int32))
    share = phi_of(n_wk, 0.1)
    cases = [
        math.log(fold_in(np.array([seen], np.int32), share, phi.alpha) @ share[scored])
        for seen, scored in ((3, 8), (8, 3))
    ]
    found = {round(completion(pair, np.array([d]), phi, rounds=3000)[0], 3) for d in range(20)}
    assert found == {round(case, 3) for case in cases}


def test_coherence_is_the_formula() -> None:
    block, _ = made(8, 50, 1, 15, mean=6.0)
    top = np.array([[0, 3, 5, -1], [3, 1, 14, 2], [-1, -1, -1, -1]], np.int32)
    has = [set(block.words[a:b].tolist()) for a, b in pairwise(block.ptr)]

    def documents(*words: int) -> int:
        return sum(all(word in doc for word in words) for doc in has)

    cut = int(block.ptr[20])
    counts = cooccurrence(Block(block.ptr[:21], block.words[:cut]), top, 15)
    counts += cooccurrence(Block(block.ptr[20:] - cut, block.words[cut:]), top, 15)
    wanted = [
        sum(
            math.log((documents(words[i], words[j]) + 1) / documents(words[j]))
            for i in range(len(words))
            for j in range(i)
        )
        for words in ([0, 3, 5], [3, 1, 14, 2], [])
    ]
    assert umass(counts) == pytest.approx(wanted)
    assert counts[1, 2, 0] == documents(14, 3) and counts[0, 1, 1] == documents(3)
    with pytest.raises(ValueError, match="at most 64"):
        cooccurrence(block, np.zeros((1, 65), np.int32), 15)


def top_words(rows: NDArray[np.int32], n: int) -> Top:
    """Return the n top words of each topic, of n_wk of all words: i4[V, K]."""
    top = no_words(rows.shape[1], n)
    offer(top, np.arange(len(rows), dtype=np.int32), rows)
    return top


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_top_words_are_the_most_frequent(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 4, (12, 3)).astype(np.int32)
    top = top_words(rows, n)
    for k in range(3):
        order = [w for w in sorted(range(12), key=lambda w: (-rows[w, k], w)) if rows[w, k] > 0][:n]
        assert top.ids[k].tolist() == order + [-1] * (n - len(order))
        assert top.counts[k, : len(order)].tolist() == rows[order, k].tolist()
    again = no_words(3, n)
    for piece in np.array_split(rng.permutation(12), 3):
        offer(again, piece.astype(np.int32), rows[piece])
    assert again.ids.tolist() == top.ids.tolist() and again.counts.tolist() == top.counts.tolist()


ROWS = np.array([[5, 0, 0], [3, 1, 0], [0, 0, 0], [0, 9, 0]], np.int32)
WORDS = ["church", "pope", "never", "yeltsin"]


def test_the_table_begins_with_the_largest_topic() -> None:
    top, n_k = top_words(ROWS, 2), ROWS.sum(axis=0).astype(np.int64)
    lines = table(top, n_k, WORDS, np.array([-1.5, -2.25, 0.0])).splitlines()
    assert lines[0].split() == ["topic", "share", "coherence", "top", "words"]
    assert lines[1].split() == ["1", "55.6", "%", "-2.2", "yeltsin", "pope"]
    assert lines[2].split() == ["0", "44.4", "%", "-1.5", "church", "pope"]
    assert lines[3].split() == ["2", "0.0", "%", "0.0", "(none)"]
    assert table(top, n_k, None).splitlines()[1].split() == ["1", "55.6", "%", "#3", "#1"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A run's folder with a model in it."""
    folder = tmp_path / "run"
    folder.mkdir()
    pieces = [(np.array([0, 1], np.uint64), ROWS[:2]), (np.array([3], np.uint64), ROWS[3:])]
    top, n_k = export_model(folder / "model.h5", pieces, np.array([0.1, 0.2, 0.3]), 0.01, 4, WORDS)
    assert n_k.tolist() == [8, 10, 0] and top.ids[1, :2].tolist() == [3, 1]
    assert [file.name for file in folder.iterdir()] == ["model.h5"]
    return folder


def test_a_model_comes_back(model: Path) -> None:
    loaded = read_model(model)
    assert loaded.words == WORDS and loaded.vocabulary == 4 and loaded.beta == 0.01
    assert loaded.alpha.tolist() == [0.1, 0.2, 0.3] and loaded.n_k.tolist() == [8, 10, 0]
    ids = np.array([3, 0, 2, 3], np.int32)
    assert loaded.rows(ids).tolist() == ROWS[ids].tolist()
    assert loaded.top(2).ids.tolist() == top_words(ROWS, 2).ids.tolist()
    with h5py.File(model / "model.h5") as file:
        assert file.attrs["program"] == "lda"


def test_shares_of_new_documents(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new.txt").write_text("The church, the Pope\n\nYeltsin yeltsin strangers\n")
    (tmp_path / "new.ldac").write_text("2 0:1 1:1\n0\n1 3:2\n")
    (tmp_path / "empty.txt").write_text("")
    load(model, {}).score_files([tmp_path / "empty.txt", tmp_path / "new.txt"], tmp_path / "theta.tsv")
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'theta.tsv'}: 3 documents\n"
    assert said.err.startswith(f"mpips: left out 1 empty file, the first: {tmp_path / 'empty.txt'}\n")
    load(model / "model.h5", {}).score_files([tmp_path / "new.ldac"], None)
    text = capsys.readouterr().out
    assert text == (tmp_path / "theta.tsv").read_text()
    lines = [line.split("\t") for line in text.splitlines()]
    assert lines[0] == ["document", "topic 0", "topic 1", "topic 2"]
    shares = np.array(lines[1:], float)
    assert shares[:, 0].tolist() == [0, 1, 2] and shares[:, 1:].argmax(axis=1).tolist() == [0, 2, 1]
    assert shares[1, 1:] == pytest.approx([1 / 6, 1 / 3, 1 / 2], abs=1e-5)


def test_a_model_shows_itself(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(model, {}).show(None)
    said = capsys.readouterr().out
    assert "yeltsin pope" in said and said.endswith(f"picture: {model / 'topics.svg'}\n")
    drawn = (model / "topics.svg").read_text()
    (model / "topics.svg").write_text("of the run, which has its hash")
    load(model, {}).show(None)
    assert (model / "topics.svg").read_text() == "of the run, which has its hash"
    said = capsys.readouterr().out
    assert f"picture: {model / 'topics.svg'}, which was there before" in said
    (tmp_path / "theirs").write_text("kept")
    (model / "topics.svg").unlink()
    (model / "topics.svg").symlink_to(tmp_path / "theirs")
    load(model, {}).show(None)
    assert (model / "topics.svg").is_symlink()
    assert (tmp_path / "theirs").read_text() == "kept"
    load(model / "model.h5", {}).show(tmp_path / "t.svg")
    assert (tmp_path / "t.svg").read_text() == drawn
    with pytest.raises(InputError, match=r"t\.png: cannot be written: a picture's name must end in \.svg"):
        load(model, {}).show(tmp_path / "t.png")


def test_the_picture_has_the_largest_topics_first(tmp_path: Path) -> None:
    top = Top(np.array([[0, 1], [2, -1], [-1, -1]], np.int32), np.array([[3, 1], [12, 0], [0, 0]], np.int32))
    draw(tmp_path / "t.svg", top, np.array([4, 12, 0]), ["tea & milk", "b", "c"])
    picture = ElementTree.fromstring((tmp_path / "t.svg").read_text())
    texts = [each.text for each in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text and text.startswith("topic")] == [
        "topic 1, 75 % of tokens", "topic 0, 25 % of tokens",
    ]  # fmt: skip
    assert dict(zip(texts[0:6:2], texts[1:6:2], strict=True)) == {
        "c": "100 %",
        "tea & milk": "75 %",
        "b": "25 %",
    }
    bars = [each for each in picture.iter("{http://www.w3.org/2000/svg}rect") if each.get("class") == "busy"]
    assert [float(each.get("width", 0)) for each in bars] == pytest.approx([300.0, 300.0, 100.0], abs=0.1)
    draw(tmp_path / "none.svg", top, np.zeros(3, np.int64), None)


def test_invalid_model_files(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no model\.h5; a run writes it when it completes"):
        read_model(tmp_path)
    with h5py.File(model / "model.h5", "a") as file:
        del file["n_k"]
        file["n_k"] = np.zeros(2, np.int64)
    with pytest.raises(InputError, match="is damaged"):
        read_model(model)
    (model / "model.h5").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="is not a model of lda"):
        read_model(model)


ASKED = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    '''Nothing.'''

def schedule(cluster, settings):
    return {}

class Worker:
    pass
"""
ANSWER = """
def infer(model, files, out):
    print("asked", model.name, [file.name for file in files], out)
"""


@pytest.mark.parametrize("answers", [True, False])
def test_the_command_asks_the_program(
    tmp_path: Path, answers: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"asked_{answers}.py".lower()
    (tmp_path / name).write_text(ASKED + (ANSWER if answers else ""))
    run = tmp_path / "run"
    run.mkdir()
    (run / "job.toml").write_text(f'[job]\nprogram = "{name}"\nbase = "{tmp_path}"\n')
    code = main(["infer", str(run), "a.txt", "b.txt", "--out", "c", "--program", str(tmp_path / name)])
    said = capsys.readouterr()
    if answers:
        assert code == 0 and said.out == "asked run ['a.txt', 'b.txt'] c\n"
    else:
        assert code == 2 and "has no function `load_model`" in said.err


def test_the_command_refuses_folders_that_are_not_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("text")
    for path, said in (
        (tmp_path, "is neither a run's folder nor a checkpoint's: it has no job.toml"),
        (tmp_path / "a.txt", "is neither a run's folder nor a model file"),
        (tmp_path / "none", "no such run or model"),
    ):
        assert main(["infer", str(path)]) == 2
        assert said in capsys.readouterr().err
