use super::*;

const VOCABULARY: usize = 12;

/// A decoder whose logits depend on all tokens of a row that are not padding, in order, so that errors in padding or
/// positions change the result.
struct FakeModel {
    positions: Option<usize>,
    allowed: fn(&[u32]) -> AllowedTokens,
}

const FAKE: FakeModel = FakeModel { positions: None, allowed: |_| AllowedTokens::Any };

impl Decoder for FakeModel {
    type Cache = (Vec<Vec<u32>>, usize);

    fn cache(&self, rows: usize, capacity: usize) -> Result<Self::Cache> {
        Ok((vec![Vec::new(); rows], capacity))
    }

    fn step(&self, tokens: &Tokens, (rows, capacity): &mut Self::Cache) -> Result<Tensor> {
        assert_eq!(rows.len(), tokens.rows());
        assert!(
            tokens.past() + tokens.sequence_length() <= *capacity,
            "the capacity of the cache is exceeded"
        );
        let mut logits = Vec::new();
        let positions = tokens.positions();
        for (r, row) in rows.iter_mut().enumerate() {
            for (t, &id) in tokens.row(r).iter().enumerate() {
                if tokens.past() + t >= tokens.pads()[r] {
                    assert_eq!(positions[r * tokens.sequence_length() + t] as usize, row.len());
                    row.push(id);
                }
            }
            logits.extend(fake_logits(row));
        }
        Ok(Tensor::from_vec(logits, (rows.len(), VOCABULARY), &Device::Cpu)?)
    }

    fn max_positions(&self) -> Option<usize> {
        self.positions
    }

    fn allowed(&self, _row: usize, new: &[u32]) -> AllowedTokens {
        (self.allowed)(new)
    }

    fn unconditional(&self, prompt: &[u32]) -> Vec<u32> {
        prompt[prompt.len() - 1..].to_vec()
    }
}

fn fake_logits(row: &[u32]) -> Vec<f32> {
    let hash = row.iter().fold(17u64, |h, &t| h.wrapping_mul(6364136223846793005).wrapping_add(t as u64 + 1));
    let mut rng = Rng::new(hash, 0);
    (0..VOCABULARY).map(|_| rng.normal() as f32).collect()
}

fn greedy_by_hand(prompt: &[u32], count: usize) -> Vec<u32> {
    let mut row = prompt.to_vec();
    for _ in 0..count {
        row.push(sample::argmax(&fake_logits(&row)).unwrap());
    }
    row.split_off(prompt.len())
}

fn run(prompts: &[Vec<u32>], options: &GenerationConfig) -> Generated {
    generate(&FAKE, prompts, options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn sampled(seed: u64) -> GenerationConfig {
    GenerationConfig { temperature: 1.0, seed, ..GenerationConfig::greedy(16) }
}

#[test]
fn greedy_decoding_takes_the_most_probable_token() {
    let generated = run(&[vec![3, 1]], &GenerationConfig::greedy(10));
    assert_eq!(generated.tokens[0], greedy_by_hand(&[3, 1], 10));
    assert_eq!(generated.finished, [FinishReason::Length]);
}

#[test]
fn a_padded_batch_equals_its_single_sequences() {
    let prompts = [vec![3, 1], vec![5, 4, 2, 8, 8], vec![7]];
    for options in [GenerationConfig { eos: Some(vec![2, 6]), ..GenerationConfig::greedy(12) }, sampled(5)] {
        let batch = run(&prompts, &options);
        for (row, prompt) in prompts.iter().enumerate() {
            let options = GenerationConfig { stream: row as u64, ..options.clone() };
            let alone = run(std::slice::from_ref(prompt), &options);
            assert_eq!(batch.tokens[row], alone.tokens[0]);
            assert_eq!(batch.finished[row], alone.finished[0]);
        }
    }
}

#[test]
fn a_seed_is_reproducible_and_another_differs() {
    let prompts = [vec![1], vec![1]];
    let first = run(&prompts, &sampled(9));
    assert_eq!(first.tokens, run(&prompts, &sampled(9)).tokens);
    assert_ne!(first.tokens, run(&prompts, &sampled(10)).tokens);
    assert_ne!(first.tokens[0], first.tokens[1], "rows must have independent random streams");
}

#[test]
fn a_row_ends_with_any_eos_token_and_is_padded() {
    let plain = greedy_by_hand(&[3, 1], 8);
    let end = plain[3];
    let first = plain.iter().position(|&t| t == end).unwrap();
    let options =
        GenerationConfig { eos: Some(vec![11_000, end]), pad: Some(9), ..GenerationConfig::greedy(8) };
    let prompts = [vec![3, 1], vec![5, 4, 2]];
    let generated = run(&prompts, &options);
    assert_eq!(generated.tokens[0], plain[..=first]);
    assert_eq!(generated.finished[0], FinishReason::End);
    let sequences = generated.sequences(&prompts, options.pad_token()).unwrap();
    let longest = generated.tokens.iter().map(Vec::len).max().unwrap();
    assert_eq!(sequences[0][..3], [9, 3, 1]);
    assert!(sequences.iter().all(|row| row.len() == 3 + longest));
    assert!(sequences[0][3 + first + 1..].iter().all(|&t| t == 9));
}

#[test]
fn no_eos_token_before_min_new_tokens() {
    let plain = greedy_by_hand(&[3, 1], 8);
    let options =
        GenerationConfig { eos: Some(vec![plain[0]]), min_new_tokens: 4, ..GenerationConfig::greedy(8) };
    let generated = run(&[vec![3, 1]], &options);
    assert!(!generated.tokens[0][..4].contains(&plain[0]));
    assert!(generated.tokens[0].len() >= 4);
    let without = run(&[vec![3, 1]], &GenerationConfig { min_new_tokens: 0, ..options });
    assert_eq!(without.tokens[0].len(), 1);
}

#[test]
fn a_strong_repetition_penalty_prevents_repetition() {
    let options = GenerationConfig { repetition_penalty: 1e6, ..GenerationConfig::greedy(9) };
    let tokens = &run(&[vec![0, 1, 2]], &options).tokens[0];
    let distinct: HashSet<u32> = tokens.iter().chain(&[0, 1, 2]).copied().collect();
    // A penalized positive logit becomes nearly 0, so a token is repeated only if all others are negative.
    let by_hand = {
        let mut row = vec![0, 1, 2];
        for _ in 0..9 {
            let mut logits = fake_logits(&row);
            let seen: HashSet<u32> = row.iter().copied().collect();
            penalise(&mut logits, seen, 1e6);
            row.push(sample::argmax(&logits).unwrap());
        }
        row.split_off(3)
    };
    assert_eq!(*tokens, by_hand);
    assert!(distinct.len() > 9, "{tokens:?}");
    assert_ne!(*tokens, greedy_by_hand(&[0, 1, 2], 9));
}

#[test]
fn guidance_moves_away_from_the_unconditional_row() {
    let prompt = vec![4, 6, 1];
    let generated = run(
        std::slice::from_ref(&prompt),
        &GenerationConfig { guidance: 3.0, ..GenerationConfig::greedy(5) },
    );
    let (mut with, mut without) = (prompt.clone(), vec![1]);
    for _ in 0..5 {
        let (a, b) = (fake_logits(&with), fake_logits(&without));
        let mixed: Vec<f32> = a.iter().zip(&b).map(|(a, b)| b + 3.0 * (a - b)).collect();
        let token = sample::argmax(&mixed).unwrap();
        with.push(token);
        without.push(token);
    }
    assert_eq!(generated.tokens[0], with[3..]);
}

#[test]
fn a_model_can_force_and_restrict_tokens() {
    let model = FakeModel {
        allowed: |new| match new.len() {
            0 => AllowedTokens::Only(10),
            _ => AllowedTokens::Within(3..5),
        },
        ..FAKE
    };
    for options in [GenerationConfig::greedy(20), GenerationConfig { max_new_tokens: 20, ..sampled(1) }] {
        let generated = generate(&model, &[[1u32]], &options, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(generated.tokens[0][0], 10);
        assert!(generated.tokens[0][1..].iter().all(|t| (3..5).contains(t)));
    }
}

#[test]
fn cancellation_keeps_the_tokens_so_far() {
    let mut count = 0;
    let generated = generate(&FAKE, &[vec![3u32, 1], vec![2]], &GenerationConfig::greedy(100), &mut |new| {
        count += 1;
        assert_eq!((new.row, new.index), ((count - 1) % 2, (count - 1) / 2));
        if count == 5 { ControlFlow::Break(Stop::All) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert_eq!(count, 5);
    assert_eq!(generated.tokens.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
    assert_eq!(generated.finished, [FinishReason::Cancelled; 2]);
}

#[test]
fn a_caller_can_stop_one_row() {
    let generated = generate(&FAKE, &[vec![3u32, 1], vec![2]], &GenerationConfig::greedy(6), &mut |new| {
        if new.row == 0 && new.index == 1 { ControlFlow::Break(Stop::Row) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert_eq!(generated.finished, [FinishReason::Stopped, FinishReason::Length]);
    assert_eq!(generated.tokens[1], greedy_by_hand(&[2], 6));
    assert_eq!(generated.tokens[0], greedy_by_hand(&[3, 1], 2));
}

#[test]
fn a_full_context_ends_a_row_and_a_longer_prompt_is_rejected() {
    let model = FakeModel { positions: Some(4), ..FAKE };
    let go = |prompt: &[u32]| {
        generate(&model, &[prompt], &GenerationConfig::greedy(100), &mut |_| ControlFlow::Continue(()))
    };
    let generated = go(&[1, 2]).unwrap();
    assert_eq!((generated.tokens[0].len(), generated.finished[0]), (3, FinishReason::Full));
    let error = go(&[1, 2, 3, 4, 5]).unwrap_err();
    assert_eq!(error.message(), "the prompt has 5 tokens, more than the maximum sequence length of 4");
}

#[test]
fn empty_prompts_are_an_error() {
    let go = |prompts: &[Vec<u32>]| {
        generate(&FAKE, prompts, &GenerationConfig::greedy(1), &mut |_| ControlFlow::Continue(()))
            .unwrap_err()
    };
    assert_eq!(go(&[]).kind(), ErrorKind::Input);
    assert_eq!(go(&[vec![1], vec![]]).message(), "prompt 1 is empty");
}

struct Broken(Vec<usize>, f32);

impl Decoder for Broken {
    type Cache = ();
    fn cache(&self, _rows: usize, _capacity: usize) -> Result<()> {
        Ok(())
    }
    fn step(&self, _tokens: &Tokens, _cache: &mut ()) -> Result<Tensor> {
        Ok(Tensor::full(self.1, self.0.as_slice(), &Device::Cpu)?)
    }
    fn max_positions(&self) -> Option<usize> {
        None
    }
}

#[test]
fn invalid_logits_are_an_error() {
    for model in [Broken(vec![1, 5], f32::NAN), Broken(vec![2, 5], 0.0), Broken(vec![1, 1, 5], 0.0)] {
        let result =
            generate(&model, &[[1u32]], &GenerationConfig::greedy(2), &mut |_| ControlFlow::Continue(()));
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Compute);
    }
}

#[test]
fn position_ids_do_not_count_padding() {
    let tokens = Tokens::new(&[0, 0, 5, 1, 2, 3], &[2, 0], 0).unwrap();
    assert_eq!(tokens.positions(), [0, 0, 0, 0, 1, 2]);
    assert_eq!((tokens.rows(), tokens.sequence_length(), tokens.is_unpadded()), (2, 3, false));
    let next = Tokens::new(&[9, 9], &[2, 0], 3).unwrap();
    assert_eq!(next.positions(), [1, 3]);
    assert!(Tokens::new(&[1, 2, 3], &[0, 0], 0).is_err());
    assert!(Tokens::new(&[1], &[1], 0).is_err());
}

/// [`FAKE`] with chunked prefill and the tokens so far.
struct Chunked {
    chunk: usize,
    pieces: std::cell::RefCell<Vec<usize>>,
}

impl Decoder for Chunked {
    type Cache = (Vec<Vec<u32>>, usize);

    fn cache(&self, rows: usize, capacity: usize) -> Result<Self::Cache> {
        FAKE.cache(rows, capacity)
    }

    fn step(&self, tokens: &Tokens, cache: &mut Self::Cache) -> Result<Tensor> {
        self.pieces.borrow_mut().push(tokens.sequence_length());
        FAKE.step(tokens, cache)
    }

    fn max_positions(&self) -> Option<usize> {
        None
    }

    fn prompt_chunk(&self) -> Option<usize> {
        Some(self.chunk)
    }
}

#[test]
fn chunked_prefill_gives_the_same_tokens() {
    let prompts = [vec![3, 1, 4, 1, 5, 9, 2, 6], vec![7, 7, 2], vec![8]];
    let options = GenerationConfig::greedy(5);
    for (chunk, wanted) in [(3, vec![8, 1, 1, 1, 1]), (100, vec![8, 1, 1, 1, 1])] {
        let model = Chunked { chunk, pieces: Default::default() };
        let made = generate(&model, &prompts, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(made.tokens, run(&prompts, &options).tokens);
        assert_eq!(made.prompt_tokens, [8, 3, 1]);
        // A row of one token starts in the last column.
        assert_eq!(*model.pieces.borrow(), wanted);
    }
    let model = Chunked { chunk: 3, pieces: Default::default() };
    let made = generate(&model, &prompts[..1], &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(made.tokens, run(&prompts[..1], &options).tokens);
    assert_eq!(*model.pieces.borrow(), [3, 3, 2, 1, 1, 1, 1]);
}

#[test]
fn generation_continues_from_a_cache() {
    let (all, options) = (vec![3, 1, 4, 1, 5], GenerationConfig::greedy(6));
    let mut cache = FAKE.cache(1, 20).unwrap();
    FAKE.step(&Tokens::new(&all[..2], &[0], 0).unwrap(), &mut cache).unwrap();
    let mut each = |_| ControlFlow::Continue(());
    let made = generate_from(&FAKE, &mut cache, 2, &[&all[2..]], &options, &mut each).unwrap();
    assert_eq!(made.tokens, run(&[all], &options).tokens);
    let error = generate_from(&FAKE, &mut cache, 2, &[vec![1], vec![1, 2]], &options, &mut each);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Input);
}

#[test]
fn a_cancellation_token_stops_before_the_next_step() {
    let options = GenerationConfig::greedy(50);
    let mut count = 0;
    let made = generate(&FAKE, &[vec![3, 1], vec![5]], &options, &mut |_| {
        count += 1;
        if count == 4 {
            options.cancel.cancel();
        }
        ControlFlow::Continue(())
    });
    let made = made.unwrap();
    assert_eq!((made.finished, made.tokens[0].len()), (vec![FinishReason::Cancelled; 2], 2));
    let none = generate(&FAKE, &[vec![3, 1]], &options, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((none.finished, none.tokens), (vec![FinishReason::Cancelled], vec![Vec::new()]));
}
