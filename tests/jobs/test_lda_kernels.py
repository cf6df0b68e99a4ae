"""The samplers, compared with the exact conditional distribution, and their invariants."""

from __future__ import annotations

from collections import Counter
from itertools import product
from math import lgamma
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from mpips.jobs.lda import counts, kernels, proposals
from mpips.jobs.lda.corpus import Block
from mpips.jobs.lda.sampler import Changes, Gibbs, Metropolis, Prior, counts_of, random_state

FALSE_ALARM = 1e-4
"""The probability with which a chi-square test here would fail by chance; seeds are fixed, so it does or does not."""

SAMPLERS = ["gibbs", "mh"]


def make(kind: str, block: Block, z: Any, topics: int, vocabulary: int) -> Gibbs | Metropolis:
    shape = block, np.array(z, np.int32), topics, vocabulary
    return Gibbs(*shape) if kind == "gibbs" else Metropolis(*shape, 1)


def tables(block: Block, z: Any, topics: int, vocabulary: int) -> tuple[Any, Any]:
    """n_wk, flat, and n_k of a block alone."""
    rows, totals = np.zeros((vocabulary, topics), np.int32), np.zeros(topics, np.int64)
    for w, k in zip(block.words, z, strict=True):
        if k >= 0:
            rows[w, k] += 1
            totals[k] += 1
    return rows.reshape(-1), totals


def joint(block: Block, z: Any, prior: Prior) -> float:
    """log p(w, z) up to a constant, term by term."""
    rows, totals = tables(block, z, prior.topics, prior.vocabulary)
    total = sum(lgamma(n + prior.beta) for n in rows.tolist())
    total -= sum(lgamma(n + prior.beta * prior.vocabulary) for n in totals.tolist())
    for begin, end in zip(block.ptr, block.ptr[1:], strict=False):
        of_topic = Counter(z[begin:end])
        total += sum(lgamma(of_topic[k] + prior.alpha[k]) for k in range(prior.topics))
    return total


TINY = Block(np.array([0, 3, 4, 6]), np.array([0, 1, 0, 2, 1, 2], np.int32))
PRIOR = Prior(np.array([0.5, 0.2, 0.9]), 0.3, 3)


def posterior() -> dict[tuple[int, ...], float]:
    states = list(product(range(3), repeat=6))
    logs = np.array([joint(TINY, state, PRIOR) for state in states])
    shares = np.exp(logs - logs.max())
    return dict(zip(states, shares / shares.sum(), strict=True))


def chi_square(seen: Counter[Any], expected: dict[Any, float], draws: int) -> tuple[float, int]:
    """The statistic and its degrees of freedom, states that are expected less than 5 times being put together."""
    rare = [state for state, share in expected.items() if share * draws < 5.0]
    cells = [(seen[state], share * draws) for state, share in expected.items() if share * draws >= 5.0]
    if rare:
        cells.append((sum(seen[s] for s in rare), sum(expected[s] for s in rare) * draws))
    return sum((a - b) ** 2 / b for a, b in cells), len(cells) - 1


@pytest.mark.parametrize("kind", SAMPLERS)
def test_the_posterior_of_three_documents(kind: str) -> None:
    """Chains that start in the exact posterior and take one sweep must end in it."""
    exact, draws = posterior(), 20_000
    rng = np.random.default_rng(5)
    states, shares = list(exact), np.array(list(exact.values()))
    seen: Counter[Any] = Counter()
    for draw, number in enumerate(rng.choice(len(states), draws, p=shares)):
        z = states[number]
        sampler, (rows, totals) = make(kind, TINY, z, 3, 3), tables(TINY, z, 3, 3)
        sampler.sample((0, 3), rows, totals, PRIOR, random_state(2, draw, 0))
        seen[tuple(sampler.topics().tolist())] += 1
    statistic, degrees = chi_square(seen, exact, draws)
    assert statistic < chi2.isf(FALSE_ALARM, degrees)


@pytest.mark.parametrize("kind", SAMPLERS)
def test_a_long_chain_samples_the_posterior(kind: str) -> None:
    """From a topic of its own for everyone the chain finds the posterior: every 20th state, nearly independent."""
    exact, draws = posterior(), 4000
    z = [0, 1, 2, 0, 1, 2]
    sampler, (rows, totals) = make(kind, TINY, z, 3, 3), tables(TINY, z, 3, 3)
    seen: Counter[Any] = Counter()
    rng = random_state(1, 0, 0)
    for _ in range(draws):
        for _ in range(20):
            sampler.sample((0, 3), rows, totals, PRIOR, rng)
        seen[tuple(sampler.topics().tolist())] += 1
    statistic, degrees = chi_square(seen, exact, draws)
    assert statistic < chi2.isf(FALSE_ALARM, degrees)


@pytest.mark.parametrize("topics", [2, 9, 70, 200])
def test_one_token_is_drawn_by_its_conditional(topics: int) -> None:
    """A token without a topic, the other counts being fixed: also more topics than lanes and groups of eight."""
    rng, draws = np.random.default_rng(topics), 20_000
    length = 40
    block = Block(np.array([0, length]), np.array([1, *[0] * (length - 1)], np.int32))
    z = np.array([-1, *rng.integers(0, topics, length - 1)], np.int32)
    prior = Prior(rng.uniform(0.01, 1.0, topics), 0.1, 2)
    row, totals = rng.integers(0, 5, topics).astype(np.int32), rng.integers(60, 90, topics)
    n_dk = np.bincount(z[1:], minlength=topics)
    p = (n_dk + prior.alpha) * (row + prior.beta) / (totals + 2 * prior.beta)
    expected = dict(enumerate((p / p.sum()).tolist()))
    seen: Counter[Any] = Counter()
    for number in range(draws):
        sampler = Gibbs(block, z, topics, 2)
        sampler.sample((1, 2), row.copy(), totals.copy(), prior, random_state(number, topics, 0), fresh=True)
        seen[int(sampler.topics()[0])] += 1
    statistic, degrees = chi_square(seen, expected, draws)
    assert statistic < chi2.isf(FALSE_ALARM, degrees)


@st.composite
def corpora(draw: Any) -> tuple[Block, int]:
    vocabulary = draw(st.integers(1, 12))
    documents = draw(st.lists(st.lists(st.integers(0, vocabulary - 1), max_size=40), min_size=1, max_size=8))
    ptr = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    return Block(ptr, np.array([word for each in documents for word in each], np.int32)), vocabulary


@settings(max_examples=60)
@given(corpora(), st.sampled_from([1, 2, 33, 65, 130]), st.sampled_from(SAMPLERS), st.data())
def test_counts_are_those_of_the_topics(
    corpus: tuple[Block, int], topics: int, kind: str, data: st.DataObject
) -> None:
    block, vocabulary = corpus
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    z = rng.integers(-1, topics, len(block.words)).astype(np.int32)
    if kind == "mh":
        z = np.where(rng.random() < 0.5, z, np.maximum(z, 0)).astype(np.int32)
    prior = Prior(np.full(topics, 0.1), 0.01, vocabulary)
    sampler = make(kind, block, z, topics, vocabulary)
    rows, totals = tables(block, z, topics, vocabulary)
    state = random_state(1, 2, 3)
    cut = vocabulary // 2
    for _ in range(6):  # long enough for holes to be closed
        before, changes = rows.copy(), []
        sampler.begin()
        for first, last in ((0, cut), (cut, vocabulary)):
            if first < last:
                part = rows[first * topics : last * topics]
                changes.append(sampler.sample((first, last), part, totals, prior, state))
        now = sampler.topics()
        assert now.min(initial=0) >= 0 and now.max(initial=0) < topics
        again = tables(block, now, topics, vocabulary)
        assert np.array_equal(rows, again[0]) and np.array_equal(totals, again[1])
        for keys, moved in changes:
            assert (np.diff(keys.astype(np.int64)) > 0).all() and (moved != 0).all()
            before[keys.astype(np.int64)] += moved
        assert np.array_equal(before, rows)
    counted = counts_of(block, now, (cut, vocabulary), topics)
    fresh = np.zeros_like(rows)
    fresh[counted.keys.astype(np.int64)] = counted.counts
    assert np.array_equal(fresh[cut * topics :], rows[cut * topics :]) and not fresh[: cut * topics].any()


@pytest.mark.parametrize("kind", SAMPLERS)
def test_only_tokens_without_a_topic_are_drawn_when_asked(kind: str) -> None:
    rng = np.random.default_rng(0)
    block = Block(np.array([0, 30, 60]), rng.integers(0, 5, 60).astype(np.int32))
    z = rng.integers(-1, 4, 60).astype(np.int32)
    sampler, (rows, totals) = make(kind, block, z, 4, 5), tables(block, z, 4, 5)
    prior = Prior(np.full(4, 0.1), 0.01, 5)
    changes = sampler.sample((0, 5), rows, totals, prior, random_state(0, 0, 0), fresh=True)
    now = sampler.topics()
    assert (now[z >= 0] == z[z >= 0]).all() and now.min() >= 0
    assert changes.counts.min() > 0 and changes.counts.sum() == (z < 0).sum()
    again = sampler.sample((0, 5), rows, totals, prior, random_state(0, 0, 0), fresh=True)
    assert isinstance(again, Changes) and len(again.keys) == 0
    assert np.array_equal(sampler.topics(), now)


def test_pairs_of_64_bits_draw_the_same() -> None:
    """A document too long, and topics too many, for 32 bits."""
    rng = np.random.default_rng(0)
    words, long = rng.integers(0, 3, 3000).astype(np.int32), 70_000
    prior = Prior(np.full(long, 0.1), 0.01, 3)
    block, z = Block(np.array([0, 3000]), words), rng.integers(0, long, 3000).astype(np.int32)
    narrow, wide = Gibbs(block, z, long, 3), Gibbs(block, z, long, 3)
    assert narrow.pairs.dtype == np.uint32
    wide.pairs, wide.shift = np.zeros(3001, np.uint64), 30
    slots = np.empty(3000, np.int32)
    kernels.fill_pairs(block.ptr, z, long, 30, wide.pairs, slots)
    for each in (narrow, wide):
        rows, totals = tables(block, z, long, 3)
        each.sample((0, 3), rows, totals, prior, random_state(0, 0, 0))
    assert np.array_equal(narrow.topics(), wide.topics())
    assert Gibbs(Block(np.array([0, 3000]), words), z, 2**21, 3).pairs.dtype == np.uint64


@settings(max_examples=30)
@given(corpora(), st.integers(1, 40), st.integers(0, 99))
def test_document_terms_of_alpha(corpus: tuple[Block, int], topics: int, seed: int) -> None:
    from scipy.special import gammaln, psi

    block, vocabulary = corpus
    rng = np.random.default_rng(seed)
    z = rng.integers(0, topics, len(block.words)).astype(np.int32)
    prior = Prior(rng.uniform(0.01, 2.0, topics), 0.01, vocabulary)
    lengths = np.diff(block.ptr)
    pieces = zip(block.ptr, block.ptr[1:], strict=False)
    n_dk = np.array([np.bincount(z[begin:end], minlength=topics) for begin, end in pieces])
    a, total = prior.alpha, prior.alpha.sum()
    expected = (gammaln(n_dk + a) - gammaln(a)).sum() + (gammaln(total) - gammaln(lengths + total)).sum()
    up, down = (psi(n_dk + a) - psi(a)).sum(axis=0), (psi(lengths + total) - psi(total)).sum()
    for kind in SAMPLERS:
        slopes = np.zeros(topics + 1)
        sampler = make(kind, block, z, topics, vocabulary)
        assert sampler.documents(prior, slopes) == pytest.approx(expected, rel=1e-9, abs=1e-8)
        assert slopes == pytest.approx(np.append(up, down), rel=1e-9, abs=1e-9)
        assert sampler.documents(prior, np.empty(0)) == pytest.approx(expected, rel=1e-9, abs=1e-8)


def test_alias_tables_have_the_weights() -> None:
    rng = np.random.default_rng(3)
    for n in (1, 2, 17, 300):
        weights = rng.exponential(size=n).astype(np.float32) ** 3
        topics = np.sort(rng.choice(1000, n, replace=False)).astype(np.int32)
        keep, other = np.empty(n, np.float32), np.empty(n, np.int32)
        total = proposals.alias_table(weights, topics, n, keep, other, np.empty(n, np.int32))
        shares = np.zeros(1000)
        np.add.at(shares, topics, np.minimum(keep, 1.0) / n)
        np.add.at(shares, other, (1.0 - np.minimum(keep, 1.0)) / n)
        assert total == pytest.approx(weights.sum(), rel=1e-5)
        assert shares[topics] == pytest.approx(weights / weights.sum(), abs=2e-6)


def test_priors_are_found_again_by_their_fixed_points() -> None:
    """Documents and words drawn with known priors: the fixed points come near these, from elsewhere."""
    rng = np.random.default_rng(1)
    true = np.array([0.2, 0.5, 1.5])
    ptr, z = [0], []
    for _ in range(3000):
        n = rng.multinomial(50, rng.dirichlet(true))
        z += np.repeat(np.arange(3), n).tolist()
        ptr.append(len(z))
    block = Block(np.array(ptr), np.zeros(len(z), np.int32))
    sampler, alpha = Gibbs(block, np.array(z, np.int32), 3, 1), np.ones(3)
    for _ in range(100):
        slopes = np.zeros(4)
        sampler.documents(Prior(alpha, 0.1, 1), slopes)
        alpha = counts.learned_alpha(alpha, slopes, symmetric=False)
    assert alpha == pytest.approx(true, rel=0.1)
    assert np.ptp(counts.learned_alpha(np.ones(3), slopes, symmetric=True)) == 0.0
    n_wk = np.array([rng.multinomial(20_000, rng.dirichlet(np.full(400, 0.05))) for _ in range(30)])
    cells, beta = sorted(Counter(n_wk[n_wk > 0].tolist()).items()), 1.0
    for _ in range(200):
        beta = counts.learned_beta(cells, n_wk.sum(axis=1), beta, 400)
    assert beta == pytest.approx(0.05, rel=0.1)


def test_rising() -> None:
    from scipy.special import psi

    n = np.array([0, 1, 7, 999, 50_000])
    for a in (1e-6, 0.01, 3.0, 500.0):
        assert counts.rising(n, a) == pytest.approx(psi(n + a) - psi(a), rel=1e-9, abs=1e-11)
