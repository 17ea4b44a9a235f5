//! Tests of the use in applications: thread pools of models, progress and cancellation of loading and embedding.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fauna::progress::{Progress, Reporter, Task, Unit};
use fauna::runtime::{Runtime, ThreadPool};
use fauna::{CancellationToken, ErrorKind, GenerationConfig, Item, LoadOptions};

/// Records each task.
#[derive(Default)]
struct Tasks(Mutex<Vec<Begun>>);

/// A task: its name, its total, and the sum of the reported amounts.
type Begun = (String, Option<u64>, Arc<AtomicU64>);

struct Counted(Arc<AtomicU64>);

impl Task for Counted {
    fn advance(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }
}

impl Progress for Tasks {
    fn begin(&self, what: &str, _: Unit, total: Option<u64>) -> Box<dyn Task> {
        let done = Arc::new(AtomicU64::new(0));
        self.0.lock().unwrap().push((what.to_string(), total, done.clone()));
        Box::new(Counted(done))
    }
}

impl Tasks {
    /// The total and the sum of the reports of the only task called `what`.
    fn only(&self, what: &str) -> (Option<u64>, u64) {
        let tasks = self.0.lock().unwrap();
        let of_name: Vec<_> = tasks.iter().filter(|(name, ..)| name == what).collect();
        assert_eq!(of_name.len(), 1, "{what}");
        (of_name[0].1, of_name[0].2.load(Ordering::Relaxed))
    }
}

#[cfg(feature = "builtin")]
#[test]
fn a_load_reports_all_its_bytes_and_embedding_all_its_items() {
    let tasks = Arc::new(Tasks::default());
    let options = LoadOptions { progress: Reporter::new(tasks.clone()), ..LoadOptions::default() };
    let model = fauna::open_with("minilm", &options).unwrap();
    let (total, done) = tasks.only("loading");
    assert!(done > 20_000_000, "{done} bytes");
    assert_eq!(total, Some(done));

    let texts: Vec<Item> = (0..130).map(|i| Item::from(format!("text {i}").as_str())).collect();
    let embedded = model.embed_with(&texts, &*tasks).unwrap();
    assert_eq!(tasks.only("embedding"), (Some(130), 130));
    let at_once = model.embed(&texts).unwrap();
    assert_eq!(embedded.cut, at_once.cut);
    for (a, b) in embedded.to_vecs().unwrap().iter().zip(at_once.to_vecs().unwrap()) {
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

#[cfg(feature = "builtin")]
#[test]
fn a_cancelled_load_or_embedding_ends_with_cancelled() {
    let token = CancellationToken::new();
    let model = fauna::open("minilm").unwrap();
    token.cancel();
    let options = LoadOptions { progress: Reporter::new(Arc::new(token.clone())), ..LoadOptions::default() };
    assert_eq!(fauna::open_with("minilm", &options).err().unwrap().kind(), ErrorKind::Cancelled);
    assert_eq!(model.embed_with(&["a".into()], &token).err().unwrap().kind(), ErrorKind::Cancelled);
}

const LLAMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/parity/llama/text_left_padding/model");

#[cfg(feature = "text")]
#[test]
fn a_prompt_cancelled_by_its_progress_says_so() {
    let token = CancellationToken::new();
    token.cancel();
    let config = GenerationConfig { progress: Reporter::new(Arc::new(token)), ..GenerationConfig::greedy(4) };
    let model = fauna::open(LLAMA).unwrap();
    let made =
        model.generate(&"The light".into(), &config, &mut |_| std::ops::ControlFlow::Continue(())).unwrap();
    assert_eq!(made.finish, Some(fauna::FinishReason::Cancelled));
}

/// The result does not depend on the threads, and the threads are gone with the model.
#[cfg(feature = "text")]
#[test]
fn a_model_on_its_own_threads_computes_the_same() {
    let runtime = Runtime::cpu().with_threads(Some(ThreadPool::new(3)));
    let own = fauna::open_with(LLAMA, &LoadOptions { runtime, ..LoadOptions::default() }).unwrap();
    let shared = fauna::open(LLAMA).unwrap();
    let text = ["The light of a galaxy".into()];
    assert_eq!(own.embed(&text).unwrap().to_vecs().unwrap(), shared.embed(&text).unwrap().to_vecs().unwrap());
}
