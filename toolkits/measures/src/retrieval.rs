//! Retrieval: rankings of documents for queries, by the rules of trec_eval, which mteb and BEIR use.

use std::collections::BTreeMap;

use fauna_shared::{Error, Result};

/// The relevance of the documents of a query, by their ids: 0 for not relevant; documents that are not listed are not either.
pub type Relevance = BTreeMap<String, u32>;

/// The scores of the documents of a query, by their ids.
pub type Scores = BTreeMap<String, f64>;

/// Measures at one cutoff, means over the queries, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct AtCutoff {
    /// Normalized discounted cumulative gain, with the relevance as the gain.
    pub ndcg: f64,
    /// Mean average precision over the first documents.
    pub map: f64,
    /// The share of the relevant documents that are found.
    pub recall: f64,
    /// The share of the documents up to the cutoff that are relevant.
    pub precision: f64,
    /// Mean reciprocal rank of the first relevant document.
    pub mrr: f64,
    /// The share of queries with a relevant document.
    pub success: f64,
}

/// The measures at `cutoff` over the queries that have a relevant document. Equal scores are ranked by falling id, as
/// trec_eval does it (for `mrr`, mteb keeps its own order, which differs for equal scores alone).
///
/// ```
/// use fauna_measures::retrieval::{Relevance, Scores, at_cutoff};
/// let relevant = Relevance::from([("a".to_string(), 1)]);
/// let scores = Scores::from([("a".to_string(), 0.3), ("b".to_string(), 0.9)]);
/// let found = at_cutoff(&[(relevant, scores)], 10)?;
/// assert_eq!((found.recall, found.mrr, found.precision), (1.0, 0.5, 0.1));
/// # Ok::<(), fauna_shared::Error>(())
/// ```
///
/// # Errors
/// [`Input`](fauna_shared::ErrorKind::Input) for a cutoff of 0, a score that is not a number, or no query with a relevant
/// document.
pub fn at_cutoff(queries: &[(Relevance, Scores)], cutoff: usize) -> Result<AtCutoff> {
    if cutoff == 0 {
        return Err(Error::input("a cutoff of 0 documents"));
    }
    let mut sum = AtCutoff::default();
    let mut count = 0.0;
    for (relevance, scores) in queries {
        if let Some((id, _)) = scores.iter().find(|(_, score)| score.is_nan()) {
            return Err(Error::input(format!("the score of the document {id} is not a number")));
        }
        let mut gains: Vec<u32> = relevance.values().copied().filter(|gain| *gain > 0).collect();
        if gains.is_empty() {
            continue;
        }
        count += 1.0;
        let mut ranking: Vec<(&String, f64)> = scores.iter().map(|(id, score)| (id, *score)).collect();
        ranking.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| b.0.cmp(a.0)));
        ranking.truncate(cutoff);
        let found: Vec<u32> =
            ranking.iter().map(|(id, _)| relevance.get(*id).copied().unwrap_or(0)).collect();
        gains.sort_unstable_by(|a, b| b.cmp(a));
        let relevant = gains.len() as f64;
        gains.truncate(cutoff);
        let hits = found.iter().filter(|gain| **gain > 0).count() as f64;
        sum.ndcg += discounted(&found) / discounted(&gains);
        sum.recall += hits / relevant;
        sum.precision += hits / cutoff as f64;
        sum.success += f64::from(u8::from(hits > 0.0));
        let mut before = 0.0;
        for (rank, _) in found.iter().enumerate().filter(|(_, gain)| **gain > 0) {
            if before == 0.0 {
                sum.mrr += 1.0 / (rank + 1) as f64;
            }
            before += 1.0;
            sum.map += before / (rank + 1) as f64 / relevant;
        }
    }
    if count == 0.0 {
        return Err(Error::input("no query has a relevant document"));
    }
    let AtCutoff { ndcg, map, recall, precision, mrr, success } = sum;
    Ok(AtCutoff {
        ndcg: ndcg / count,
        map: map / count,
        recall: recall / count,
        precision: precision / count,
        mrr: mrr / count,
        success: success / count,
    })
}

fn discounted(gains: &[u32]) -> f64 {
    gains.iter().enumerate().map(|(rank, gain)| f64::from(*gain) / ((rank + 2) as f64).log2()).sum()
}
