//! The mixture-of-experts layer (model card, section 2): a router, and experts of which each token uses the top k.

use candle_core::{D, DType, Tensor};
use fauna_shared::Result;
use fauna_shared::nn::{Linear, clamped_swiglu, softmax};
use fauna_shared::weights::Weights;

use super::Config;

/// The mixture-of-experts feed-forward layer of a block.
pub(super) struct Mlp {
    router: Linear,
    experts: Vec<Expert>,
    experts_per_token: usize,
    alpha: f64,
    limit: f64,
}

struct Expert {
    /// Gate projection in the even outputs, up projection in the odd ones.
    gate_up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    pub(super) fn load(c: &Config, w: &Weights) -> Result<Self> {
        let (width, inner, count) = (c.hidden_size, c.intermediate_size, c.experts());
        let router = w.linear("router", width, count)?;
        let w = w.at("experts");
        let maps = |name: &str, inputs: usize, outputs: usize| -> Result<Vec<Linear>> {
            // Releases store the experts' weights as one stacked tensor.
            let matrices = w.experts(name, count, inputs, outputs, c.packed())?;
            let biases = w.tensor(&format!("{name}_bias"), &[count, outputs])?;
            // A view, not a copy: in an inventory the size of the stack is whatever the config claims.
            let map = |(i, matrix)| Ok(Linear::new(matrix, Some(biases.narrow(0, i, 1)?.squeeze(0)?)));
            matrices.into_iter().enumerate().map(map).collect()
        };
        let gate_up_proj = maps("gate_up_proj", width, 2 * inner)?;
        let down_proj = maps("down_proj", inner, width)?;
        let pairs = gate_up_proj.into_iter().zip(down_proj);
        Ok(Self {
            router,
            experts: pairs.map(|(gate_up_proj, down_proj)| Expert { gate_up_proj, down_proj }).collect(),
            experts_per_token: c.experts_per_token(),
            alpha: c.swiglu_alpha,
            limit: c.swiglu_limit,
        })
    }

    /// `x` and the result: `(batch, sequence, hidden_size)`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let (tokens, each, device) = (batch * time, self.experts_per_token, x.device());
        let x = x.reshape((tokens, width))?;
        let scores = self.router.forward(&x)?.to_dtype(DType::F32)?;
        let routes = Routes::of(&scores.to_vec2()?, each);

        // The outputs of all selected experts, concatenated: `(tokens * experts_per_token, hidden_size)`.
        let mut results = Vec::with_capacity(routes.experts.len());
        for (expert, rows) in &routes.experts {
            let (expert, rows) = (&self.experts[*expert], rows.as_slice());
            let x = match rows.len() == tokens {
                true => x.clone(),
                false => x.index_select(&Tensor::new(rows, device)?, 0)?,
            };
            let gated = clamped_swiglu(&expert.gate_up_proj.forward(&x)?, self.alpha, self.limit)?;
            results.push(expert.down_proj.forward(&gated)?);
        }
        let mut results = Tensor::cat(&results, 0)?;
        if tokens > 1 {
            results = results.index_select(&Tensor::new(routes.results.as_slice(), device)?, 0)?;
        }

        let chosen = Tensor::from_vec(routes.chosen, (tokens, each), device)?;
        let weights = softmax(&scores.gather(&chosen, D::Minus1)?)?.to_dtype(results.dtype())?;
        let mixed = weights.unsqueeze(1)?.matmul(&results.reshape((tokens, each, width))?)?;
        Ok(mixed.reshape((batch, time, width))?)
    }
}

/// Assignment of tokens to experts.
#[derive(Debug, PartialEq, Eq)]
struct Routes {
    /// The experts of each token, in ascending order: `(tokens, experts_per_token)`.
    chosen: Vec<u32>,
    /// The selected experts in ascending order, each with its tokens.
    experts: Vec<(usize, Vec<u32>)>,
    /// For each of `chosen`, the row of its output in the concatenated outputs of `experts`.
    results: Vec<u32>,
}

impl Routes {
    /// Selects the experts with the `each` highest router logits, `scores`, for each token; of equal ones the first.
    fn of(scores: &[Vec<f32>], each: usize) -> Self {
        let mut chosen = Vec::with_capacity(scores.len() * each);
        for scores in scores {
            let mut best: Vec<u32> = (0..scores.len() as u32).collect();
            best.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
            best.truncate(each);
            best.sort_unstable();
            chosen.extend(best);
        }
        let count = scores.first().map_or(0, Vec::len);
        let mut experts = vec![(0, Vec::new()); count];
        for (place, expert) in chosen.iter().enumerate() {
            experts[*expert as usize].1.push(place as u32);
        }
        let mut results = vec![0; chosen.len()];
        let mut next = 0;
        for (i, (expert, places)) in experts.iter_mut().enumerate() {
            *expert = i;
            for place in places {
                results[*place as usize] = next;
                *place /= each as u32;
                next += 1;
            }
        }
        experts.retain(|(_, tokens)| !tokens.is_empty());
        Self { chosen, experts, results }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn each_token_goes_to_its_best_experts_and_finds_its_results_again() {
        let scores = [vec![0.1, 0.9, 0.5, -3.0], vec![0.2, 0.9, 0.1, 0.3], vec![-1.0, -2.0, -0.5, -4.0]];
        let routes = Routes::of(&scores, 2);
        assert_eq!(routes.chosen, [1, 2, 1, 3, 0, 2]);
        assert_eq!(routes.experts, [(0, vec![2]), (1, vec![0, 1]), (2, vec![0, 2]), (3, vec![1])]);
        // Order of the outputs: expert 0: token 2; 1: tokens 0 and 1; 2: tokens 0 and 2; 3: token 1.
        assert_eq!(routes.results, [1, 3, 2, 5, 0, 4]);
    }

    #[test]
    fn of_equal_scores_the_first_is_taken_and_no_score_is_an_accident() {
        assert_eq!(Routes::of(&[vec![1.0; 4]], 3).chosen, [0, 1, 2]);
        let odd = [vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]];
        assert_eq!(Routes::of(&odd, 2).chosen, [0, 3]);
        assert_eq!(Routes::of(&[], 2).experts, []);
    }

    /// A mixture of four experts with a hidden size of 3 and seeded weights.
    fn mixture() -> Mlp {
        let config = Config {
            hidden_size: 3,
            intermediate_size: 5,
            num_local_experts: Some(4),
            num_experts_per_tok: Some(2),
            swiglu_limit: 0.05,
            ..Config::default()
        };
        Mlp::load(&config, &Weights::seeded(3, fauna_shared::runtime::Runtime::cpu())).unwrap()
    }

    #[test]
    fn a_mixture_is_the_weighted_sum_of_the_experts_a_token_chose() {
        let mlp = mixture();
        let values: Vec<f32> = (0..2 * 7 * 3).map(|i| (i as f32 * 0.9).sin() * 9.0).collect();
        let x = Tensor::from_vec(values, (2, 7, 3), &Device::Cpu).unwrap();
        let mixed = mlp.forward(&x).unwrap().reshape((14, 3)).unwrap();
        let rows = x.reshape((14, 3)).unwrap();
        let mut met = std::collections::BTreeSet::new();
        for token in 0..14 {
            let row = rows.narrow(0, token, 1).unwrap();
            let scores = mlp.router.forward(&row).unwrap().to_vec2::<f32>().unwrap().remove(0);
            let mut order: Vec<usize> = (0..4).collect();
            order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            let total: f32 = order[..2].iter().map(|i| scores[*i].exp()).sum();
            let mut wanted = [0f32; 3];
            for i in &order[..2] {
                met.insert(*i);
                let expert = &mlp.experts[*i];
                let pairs = expert.gate_up_proj.forward(&row).unwrap();
                let gated = clamped_swiglu(&pairs, mlp.alpha, mlp.limit).unwrap();
                let out = expert.down_proj.forward(&gated).unwrap().to_vec2::<f32>().unwrap().remove(0);
                for (wanted, out) in wanted.iter_mut().zip(out) {
                    *wanted += scores[*i].exp() / total * out;
                }
            }
            let found = mixed.get(token).unwrap().to_vec1::<f32>().unwrap();
            for (found, wanted) in found.iter().zip(wanted) {
                assert!((found - wanted).abs() < 1e-6, "token {token}: {found}, expected {wanted}");
            }
        }
        assert_eq!(met.len(), 4, "every expert must be selected by some token");
    }

    #[test]
    fn a_mixture_can_be_differentiated() {
        let mlp = mixture();
        let x = Var::from_vec(vec![1f32, -2.0, 0.5, 3.0, 1.0, -1.0], (1, 2, 3), &Device::Cpu).unwrap();
        let sum = |x: &Tensor| mlp.forward(x).unwrap().sum_all().unwrap();
        let slopes = sum(x.as_tensor()).backward().unwrap();
        let slopes = slopes.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (i, slope) in slopes.iter().enumerate() {
            let moved = |by: f32| {
                let mut values = values.clone();
                values[i] += by;
                sum(&Tensor::from_vec(values, (1, 2, 3), &Device::Cpu).unwrap()).to_scalar::<f32>().unwrap()
            };
            let measured = (moved(1e-2) - moved(-1e-2)) / 2e-2;
            assert!((slope - measured).abs() < 1e-4, "input {i}: {slope}, measured {measured}");
        }
        assert!(slopes.iter().any(|slope| slope.abs() > 1e-4));
    }
}
