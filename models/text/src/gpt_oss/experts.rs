//! The mixture-of-experts layer (model card, section 2): a router, and experts of which each token uses the top k.
//!
//! On the CPU each expert computes the tokens that selected it. On a GPU, copying the selection to the host waits for the
//! device once per layer, so for few tokens it stays on the device ([`Stacks`]).

use candle_core::{D, DType, Device, Tensor};
use fauna_shared::nn::{Linear, Matrix, clamped_swiglu, softmax};
use fauna_shared::weights::Weights;
use fauna_shared::{Result, transfer};

use super::Config;

/// The mixture-of-experts feed-forward layer of a block.
pub(super) struct Mlp {
    router: Linear,
    experts: Vec<Expert>,
    /// The stacked weights, if they are dense and on a GPU.
    stacks: Option<Stacks>,
    experts_per_token: usize,
    gate: Gate,
}

/// The gated product inside an expert.
#[derive(Clone, Copy)]
struct Gate {
    alpha: f64,
    limit: f64,
}

impl Gate {
    fn forward(self, pairs: &Tensor) -> Result<Tensor> {
        clamped_swiglu(pairs, self.alpha, self.limit)
    }
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
        let maps = |name: &str, inputs: usize, outputs: usize| -> Result<(Vec<Linear>, Option<Stack>)> {
            // Releases store the experts' weights as one stacked tensor.
            let matrices = w.experts(name, count, inputs, outputs, c.packed())?;
            let biases = w.tensor(&format!("{name}_bias"), &[count, outputs])?;
            let (matrices, stack) = Matrix::stack(matrices)?;
            // A view, not a copy: in an inventory the size of the stack is whatever the config claims.
            let map = |(i, matrix)| Ok(Linear::new(matrix, Some(biases.narrow(0, i, 1)?.squeeze(0)?)));
            let maps = matrices.into_iter().enumerate().map(map).collect::<Result<_>>()?;
            Ok((maps, stack.map(|weights| Stack { weights, biases })))
        };
        let (gate_up_proj, gate_up_stack) = maps("gate_up_proj", width, 2 * inner)?;
        let (down_proj, down_stack) = maps("down_proj", inner, width)?;
        let pairs = gate_up_proj.into_iter().zip(down_proj);
        let gate = Gate { alpha: c.swiglu_alpha, limit: c.swiglu_limit };
        let stacks = match (gate_up_stack, down_stack) {
            (Some(gate_up), Some(down)) => Some(Stacks::new(gate_up, down, c.experts_per_token(), gate)?),
            _ => None,
        };
        Ok(Self {
            router,
            experts: pairs.map(|(gate_up_proj, down_proj)| Expert { gate_up_proj, down_proj }).collect(),
            stacks,
            experts_per_token: c.experts_per_token(),
            gate,
        })
    }

    /// `x` and the result: `(batch, sequence, hidden_size)`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, time, width) = x.dims3()?;
        let (tokens, each, device) = (batch * time, self.experts_per_token, x.device());
        let x = x.reshape((tokens, width))?;
        let scores = self.router.forward(&x)?.to_dtype(DType::F32)?;
        if let Some(stacks) = &self.stacks
            && let Some(mixed) = stacks.mixed(&x, &scores)?
        {
            return Ok(mixed.reshape((batch, time, width))?);
        }
        let count = scores.dim(1)?;
        // Which experts are selected has no gradient; their weights do.
        let rows: Vec<f32> = transfer::to_host(&scores.detach())?;
        let routes = Routes::of(rows.chunks(count.max(1)), each);

        // The selection is copied to the device in one tensor.
        let pairs = tokens * each;
        let met = routes.experts.iter().flat_map(|(_, rows)| rows);
        let known = met.chain(&routes.results).chain(&routes.chosen).copied().collect();
        let known = transfer::to_device(known, (3, pairs), device)?;
        let x = match tokens {
            1 => x.broadcast_as((pairs, width))?.contiguous()?,
            _ => x.index_select(&known.get(0)?, 0)?,
        };

        // The outputs of all selected experts, concatenated: `(tokens * experts_per_token, hidden_size)`.
        let mut results = Vec::with_capacity(routes.experts.len());
        let mut first = 0;
        for (expert, rows) in &routes.experts {
            let (expert, x) = (&self.experts[*expert], x.narrow(0, first, rows.len())?);
            results.push(expert.down_proj.forward(&self.gate.forward(&expert.gate_up_proj.forward(&x)?)?)?);
            first += rows.len();
        }
        let mut results = Tensor::cat(&results, 0)?;
        if tokens > 1 {
            results = results.index_select(&known.get(1)?, 0)?;
        }

        let chosen = known.get(2)?.reshape((tokens, each))?;
        let weights = softmax(&scores.gather(&chosen, D::Minus1)?)?.to_dtype(results.dtype())?;
        let mixed = weights.unsqueeze(1)?.matmul(&results.reshape((tokens, each, width))?)?;
        Ok(mixed.reshape((batch, time, width))?)
    }
}

/// Maximum number of tokens for which the selection stays on the device. For more, copying it to the host is cheaper than
/// computing experts that no token selected.
const FEW: usize = 64;

/// One of the two linear layers of all experts, on a GPU.
struct Stack {
    /// `(experts, outputs, inputs)`.
    weights: Tensor,
    /// `(experts, outputs)`.
    biases: Tensor,
}

/// All experts on a GPU, selected without copying the router logits to the host.
struct Stacks {
    gate_up: Stack,
    down: Stack,
    gate: Gate,
    /// Strictly lower triangular ones, `(experts, experts)`.
    before: Tensor,
    /// The expert indices 0, 1, 2, …, `(experts)`.
    numbers: Tensor,
    /// The ranks 0, 1, …, `(1, experts_per_token, 1)`.
    places: Tensor,
}

impl Stacks {
    fn new(gate_up: Stack, down: Stack, each: usize, gate: Gate) -> Result<Self> {
        let (count, device) = (gate_up.weights.dim(0)?, gate_up.weights.device());
        let numbers = Tensor::arange(0, count as u32, &Device::Cpu)?.to_dtype(DType::F32)?;
        let before = numbers.unsqueeze(0)?.broadcast_lt(&numbers.unsqueeze(1)?)?.to_dtype(DType::F32)?;
        let places = numbers.narrow(0, 0, each)?.reshape((1, each, 1))?.to_device(device)?;
        let (before, numbers) = (before.to_device(device)?, numbers.to_device(device)?);
        Ok(Self { gate_up, down, gate, before, numbers, places })
    }

    /// Computes the mixture of experts for `x`, `(tokens, hidden_size)`, from the router logits `scores`,
    /// `(tokens, experts)`; `None` for so many tokens that copying the selection to the host is cheaper.
    ///
    /// If the selected experts are less than a third of all, their weights are gathered, which writes and reads them once
    /// more; otherwise all experts are computed.
    fn mixed(&self, x: &Tensor, scores: &Tensor) -> Result<Option<Tensor>> {
        let (tokens, count) = scores.dims2()?;
        let alike = [&self.gate_up, &self.down].iter().all(|stack| stack.weights.dtype() == x.dtype());
        match 3 * tokens * self.places.elem_count() {
            copied if copied <= count => Ok(Some(self.of_copies(x, scores)?)),
            _ if tokens <= FEW && alike => Ok(Some(self.of_all(x, scores)?)),
            _ => Ok(None),
        }
    }

    /// One-hot expert of each rank of each token, `(tokens, experts_per_token, experts)`; of equal logits the first expert
    /// comes first.
    fn chosen(&self, scores: &Tensor) -> Result<Tensor> {
        let scores = scores.detach();
        let (own, other) = (scores.unsqueeze(2)?, scores.unsqueeze(1)?);
        let better = other.broadcast_gt(&own)?.to_dtype(DType::F32)?;
        let equal = other.broadcast_eq(&own)?.to_dtype(DType::F32)?;
        let place = (better + equal.broadcast_mul(&self.before)?)?.sum(2)?;
        Ok(place.unsqueeze(1)?.broadcast_eq(&self.places)?.to_dtype(DType::F32)?)
    }

    /// Gathers the weights of the selected experts.
    fn of_copies(&self, x: &Tensor, scores: &Tensor) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let experts = self.chosen(scores)?.broadcast_mul(&self.numbers)?.max(2)?.to_dtype(DType::U32)?;
        let (each, flat) = (experts.dim(1)?, experts.flatten_all()?);
        let map = |stack: &Stack, x: &Tensor| -> Result<Tensor> {
            let weights = stack.weights.index_select(&flat, 0)?.to_dtype(x.dtype())?;
            let biases = stack.biases.index_select(&flat, 0)?.unsqueeze(1)?;
            Ok((x.matmul(&weights.transpose(1, 2)?)? + biases)?)
        };
        let x = x.unsqueeze(1)?.broadcast_as((tokens, each, width))?.reshape((tokens * each, 1, width))?;
        let results = map(&self.down, &self.gate.forward(&map(&self.gate_up, &x)?)?)?;
        let shares = softmax(&scores.gather(&experts, D::Minus1)?)?.to_dtype(results.dtype())?;
        let results = results.reshape((tokens, each, width))?;
        Ok(shares.unsqueeze(1)?.matmul(&results)?.reshape((tokens, width))?)
    }

    /// Computes all experts, with weight 0 for those that a token did not select.
    fn of_all(&self, x: &Tensor, scores: &Tensor) -> Result<Tensor> {
        let (tokens, count) = scores.dims2()?;
        let unchosen = (self.chosen(scores)?.sum(1)? - 1.0)?;
        let shares = softmax(&(scores + (unchosen * 1e30)?)?)?.to_dtype(x.dtype())?;
        let Stack { weights, biases } = &self.gate_up;
        let pairs = x.matmul(&weights.flatten(0, 1)?.t()?)?.reshape((tokens, count, ()))?;
        let gated = self.gate.forward(&pairs.broadcast_add(biases)?)?;
        let gated = gated.broadcast_mul(&shares.unsqueeze(2)?)?.transpose(0, 1)?.contiguous()?;
        let Stack { weights, biases } = &self.down;
        let results = gated.matmul(&weights.transpose(1, 2)?)?.sum(0)?;
        Ok((results + shares.matmul(biases)?)?)
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
    fn of<'a>(scores: impl Iterator<Item = &'a [f32]>, each: usize) -> Self {
        let (mut chosen, mut count) = (Vec::new(), 0);
        for scores in scores {
            count = scores.len();
            let mut best: Vec<u32> = (0..scores.len() as u32).collect();
            best.sort_by(|a, b| scores[*b as usize].total_cmp(&scores[*a as usize]));
            best.truncate(each);
            best.sort_unstable();
            chosen.extend(best);
        }
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
        let routes = Routes::of(scores.iter().map(|scores| &scores[..]), 2);
        assert_eq!(routes.chosen, [1, 2, 1, 3, 0, 2]);
        assert_eq!(routes.experts, [(0, vec![2]), (1, vec![0, 1]), (2, vec![0, 2]), (3, vec![1])]);
        // Order of the outputs: expert 0: token 2; 1: tokens 0 and 1; 2: tokens 0 and 2; 3: token 1.
        assert_eq!(routes.results, [1, 3, 2, 5, 0, 4]);
    }

    #[test]
    fn of_equal_scores_the_first_is_taken_and_no_score_is_an_accident() {
        let of = |scores: &[f32], each| Routes::of([scores].into_iter(), each).chosen;
        assert_eq!(of(&[1.0; 4], 3), [0, 1, 2]);
        assert_eq!(of(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN], 2), [0, 3]);
        assert_eq!(Routes::of([].into_iter(), 2).experts, []);
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
                let gated = mlp.gate.forward(&pairs).unwrap();
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

    /// The stacked experts of `mlp`, as on a GPU.
    fn stacks(mlp: &Mlp) -> Stacks {
        let stack = |map: fn(&Expert) -> &Linear| {
            let maps: Vec<&Linear> = mlp.experts.iter().map(map).collect();
            let weights: Vec<Tensor> = maps.iter().map(|map| map.weight().tensor().unwrap()).collect();
            let biases: Vec<&Tensor> = maps.iter().map(|map| map.bias().unwrap()).collect();
            Stack { weights: Tensor::stack(&weights, 0).unwrap(), biases: Tensor::stack(&biases, 0).unwrap() }
        };
        let (gate_up, down) = (stack(|expert| &expert.gate_up_proj), stack(|expert| &expert.down_proj));
        Stacks::new(gate_up, down, mlp.experts_per_token, mlp.gate).unwrap()
    }

    #[test]
    fn a_device_mixes_the_same_without_the_choice_being_read() {
        let mlp = mixture();
        let stacks = stacks(&mlp);
        let values: Vec<f32> = (0..7 * 3).map(|i| (i as f32 * 0.9).sin() * 9.0).collect();
        let x = Tensor::from_vec(values, (1, 7, 3), &Device::Cpu).unwrap();
        let wanted = mlp.forward(&x).unwrap().squeeze(0).unwrap();
        let x = x.squeeze(0).unwrap();
        let scores = mlp.router.forward(&x).unwrap();
        for (name, mixed) in [
            ("copies", stacks.of_copies(&x, &scores).unwrap()),
            ("all", stacks.of_all(&x, &scores).unwrap()),
            ("either", stacks.mixed(&x, &scores).unwrap().unwrap()),
        ] {
            let off =
                (mixed - &wanted).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(off < 1e-6, "{name}: {off}");
        }
        let many = x.repeat((10, 1)).unwrap();
        assert!(stacks.mixed(&many, &scores.repeat((10, 1)).unwrap()).unwrap().is_none());
    }

    #[test]
    fn a_device_takes_the_first_of_equal_scores_too_and_no_score_leads_out_of_the_stack() {
        let stacks = stacks(&mixture());
        let chosen = |scores: [f32; 4]| {
            let scores = Tensor::new(&[scores], &Device::Cpu).unwrap();
            let chosen = stacks.chosen(&scores).unwrap();
            let chosen = chosen.broadcast_mul(&stacks.numbers).unwrap().max(2).unwrap();
            chosen.to_vec2::<f32>().unwrap().remove(0)
        };
        assert_eq!(chosen([1.0; 4]), [0.0, 1.0]);
        assert_eq!(chosen([0.5, 2.0, 0.5, 2.0]), [1.0, 3.0]);
        let odd = chosen([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
        assert!(odd.iter().all(|expert| (0.0..4.0).contains(expert)), "{odd:?}");
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
