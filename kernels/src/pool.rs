//! A fork-join pool for regions of a few microseconds.
//!
//! Decoding one token runs hundreds of small parallel regions, so handing one out must cost about a microsecond.
//! The workers therefore wait for the next region by spinning for a short while; then they sleep. The caller
//! takes tasks like any worker and never waits for a worker that has not begun: on a busy machine it simply does
//! more of the work itself.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a worker spins for the next region before it sleeps.
const SPIN: Duration = Duration::from_micros(150);
/// More threads than this are never started.
const MAX_THREADS: usize = 256;

/// The number of threads that [`parallel_for`] uses, the caller's own included. All cores until
/// [`set_threads`] says otherwise.
pub fn threads() -> usize {
    match THREADS.load(Ordering::Relaxed) {
        0 => *CORES.get_or_init(|| thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS))),
        n => n,
    }
}

/// Sets the number of threads for all regions that begin from now on; 0 means all cores.
pub fn set_threads(n: usize) {
    THREADS.store(n.min(MAX_THREADS), Ordering::Relaxed);
}

/// Calls `f(0)`, `f(1)`, … `f(tasks - 1)`, each once, in any order, on several threads; returns when all are done.
///
/// A region begun inside another, or while another thread's region runs, is done by its caller alone.
///
/// # Panics
/// If a task panics, with its panic, after all running tasks have ended; tasks not yet begun are dropped.
///
/// ```
/// use std::sync::atomic::{AtomicUsize, Ordering};
/// let sum = AtomicUsize::new(0);
/// fauna_kernels::pool::parallel_for(10, |i| {
///     sum.fetch_add(i, Ordering::Relaxed);
/// });
/// assert_eq!(sum.into_inner(), 45);
/// ```
pub fn parallel_for(tasks: usize, f: impl Fn(usize) + Sync) {
    let threads = threads();
    if tasks <= 1 || threads <= 1 || !POOL.run(tasks, threads, &f) {
        (0..tasks).for_each(f);
    }
}

static THREADS: AtomicUsize = AtomicUsize::new(0);
static CORES: OnceLock<usize> = OnceLock::new();
static POOL: Pool = Pool::new();

/// The bits of [`Pool::state`]: how many workers are inside the region, whether it may be entered, its number.
const INSIDE: usize = 0xffff;
const OPEN: usize = 0x1_0000;
const REGION: usize = 0x2_0000;

/// Keeps what one thread writes often off the cache lines of its neighbours.
#[repr(align(128))]
struct Line<T>(T);

struct Pool {
    /// Whether a caller owns the pool.
    owned: Line<AtomicBool>,
    /// Number of the region, whether it is open, and the workers inside it.
    state: Line<AtomicUsize>,
    /// The next task that nobody has taken.
    next: Line<AtomicUsize>,
    /// What to do; written by the owner while the region is closed and empty.
    region: UnsafeCell<Option<Region>>,
    workers: Mutex<Vec<Thread>>,
    sleepers: Line<AtomicUsize>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// The caller's closure, its type and lifetime forgotten, and the number of tasks.
#[derive(Clone, Copy)]
struct Region {
    data: *const (),
    call: unsafe fn(*const (), usize),
    tasks: usize,
    threads: usize,
}

// SAFETY: `region` is the only field that is not `Sync`. It is written only by the thread that holds `owned`, and only
// while the region is closed with nobody inside; it is read only by threads inside, whose entry synchronises with
// the owner's opening it (release store, acquire load of `state`). The closure behind it is `Sync`.
unsafe impl Sync for Pool {}

impl Pool {
    const fn new() -> Self {
        Self {
            owned: Line(AtomicBool::new(false)),
            state: Line(AtomicUsize::new(0)),
            next: Line(AtomicUsize::new(0)),
            region: UnsafeCell::new(None),
            workers: Mutex::new(Vec::new()),
            sleepers: Line(AtomicUsize::new(0)),
            panic: Mutex::new(None),
        }
    }

    /// Runs the tasks with the workers' help; false, having done nothing, if the pool is in use.
    fn run<F: Fn(usize) + Sync>(&'static self, tasks: usize, threads: usize, f: &F) -> bool {
        if self.owned.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        let region = Region { data: (f as *const F).cast(), call: call::<F>, tasks, threads };
        self.next.0.store(0, Ordering::Relaxed);
        // SAFETY: this thread holds `owned`, and the previous owner left the region closed and empty.
        unsafe { *self.region.get() = Some(region) };
        let closed = self.state.0.load(Ordering::Relaxed);
        self.state.0.store(closed.wrapping_add(REGION) | OPEN, Ordering::SeqCst);
        if STARTED.load(Ordering::Relaxed) + 1 < threads || self.sleepers.0.load(Ordering::SeqCst) > 0 {
            self.wake(threads);
        }
        self.work(region);
        // Nobody may enter any more; those inside still use `f`, so this function must not return before they leave.
        self.state.0.fetch_and(!OPEN, Ordering::Relaxed);
        let mut turns = 0u32;
        while self.state.0.load(Ordering::Acquire) & INSIDE != 0 {
            wait_a_little(&mut turns);
        }
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.owned.0.store(false, Ordering::Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        true
    }

    /// Takes tasks until none is left. Never unwinds: the first panic is kept for the owner, and ends the region.
    fn work(&self, region: Region) {
        let done = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.0.fetch_add(1, Ordering::Relaxed);
                if task >= region.tasks {
                    break;
                }
                // SAFETY: `data` is the closure that `call` was made for; its owner keeps it alive until everyone
                // inside the region has left.
                unsafe { (region.call)(region.data, task) };
            }
        }));
        if let Err(panic) = done {
            self.next.0.store(region.tasks, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    /// Starts the workers that are missing and wakes those that sleep.
    #[cold]
    fn wake(&'static self, threads: usize) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        while workers.len() + 1 < threads {
            let number = workers.len() + 1;
            let name = format!("fauna-{number}");
            // A system that refuses a thread still gets the right answer, on fewer.
            match thread::Builder::new().name(name).spawn(move || self.serve(number)) {
                Ok(handle) => workers.push(handle.thread().clone()),
                Err(_) => break,
            }
        }
        STARTED.store(workers.len(), Ordering::Relaxed);
        workers.iter().take(threads - 1).for_each(Thread::unpark);
    }

    /// A worker's life: wait for a region that it has not seen, enter it, take tasks, leave.
    fn serve(&self, number: usize) -> ! {
        let mut seen = 0;
        loop {
            let state = self.wait_for_change(seen);
            if state & OPEN == 0 {
                seen = state & !(INSIDE | OPEN);
                continue;
            }
            // Entering counts only if the region is still the one that was seen open.
            if self.state.0.compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed).is_err()
            {
                continue;
            }
            seen = state & !(INSIDE | OPEN);
            // SAFETY: this worker is inside an open region, so the owner neither writes nor leaves.
            if let Some(region) = unsafe { *self.region.get() }
                && number < region.threads
            {
                self.work(region);
            }
            self.state.0.fetch_sub(1, Ordering::Release);
        }
    }

    /// The state once it shows another region than `seen`: spins, then sleeps.
    fn wait_for_change(&self, seen: usize) -> usize {
        let changed = || {
            let state = self.state.0.load(Ordering::Acquire);
            (state & !(INSIDE | OPEN) != seen).then_some(state)
        };
        loop {
            let begin = Instant::now();
            while begin.elapsed() < SPIN {
                for _ in 0..64 {
                    if let Some(state) = changed() {
                        return state;
                    }
                    std::hint::spin_loop();
                }
                // Where others want this core, they get it; where nobody does, this returns at once.
                thread::yield_now();
            }
            // Either the owner sees this sleeper, or the sleeper sees the owner's region: both orders are SeqCst.
            self.sleepers.0.fetch_add(1, Ordering::SeqCst);
            let state = self.state.0.load(Ordering::SeqCst);
            if state & !(INSIDE | OPEN) == seen {
                thread::park();
            }
            self.sleepers.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Workers started so far.
static STARTED: AtomicUsize = AtomicUsize::new(0);

/// Calls the closure behind `data`.
///
/// # Safety
/// `data` must point to a live `F`.
unsafe fn call<F: Fn(usize) + Sync>(data: *const (), task: usize) {
    // SAFETY: promised by the caller.
    unsafe { (*data.cast::<F>())(task) }
}

/// Spins at first, then lets others run, then sleeps for moments: a worker inside may have lost its core.
fn wait_a_little(turns: &mut u32) {
    *turns = turns.saturating_add(1);
    match *turns {
        0..2_000 => std::hint::spin_loop(),
        2_000..4_000 => thread::yield_now(),
        _ => thread::sleep(Duration::from_micros(50)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `set_threads` is global; tests that use it take turns.
    static TURN: Mutex<()> = Mutex::new(());

    fn with_threads(n: usize, f: impl FnOnce()) {
        let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        set_threads(n);
        f();
        set_threads(0);
    }

    fn counts(tasks: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        parallel_for(tasks, |i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            with_threads(threads, || {
                for tasks in [0, 1, 2, 3, 7, 100, 1000] {
                    assert_eq!(counts(tasks), vec![1; tasks]);
                }
            });
        }
    }

    #[test]
    fn many_small_regions_in_a_row() {
        with_threads(4, || {
            for round in 0..20_000 {
                assert_eq!(counts(3), [1, 1, 1], "round {round}");
            }
        });
    }

    #[test]
    fn regions_after_the_workers_fell_asleep() {
        with_threads(4, || {
            for _ in 0..20 {
                thread::sleep(SPIN * 3);
                assert_eq!(counts(50), vec![1; 50]);
            }
        });
    }

    #[test]
    fn a_region_inside_a_region() {
        with_threads(4, || {
            let sum = AtomicUsize::new(0);
            parallel_for(8, |i| {
                parallel_for(8, |j| {
                    sum.fetch_add(i * 8 + j, Ordering::Relaxed);
                });
            });
            assert_eq!(sum.into_inner(), 64 * 63 / 2);
        });
    }

    #[test]
    fn several_callers_at_once() {
        with_threads(3, || {
            thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| (0..500).for_each(|_| assert_eq!(counts(5), [1; 5])));
                }
            });
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        with_threads(4, || {
            for round in 0..50 {
                let panic = catch_unwind(|| parallel_for(20, |i| assert_ne!(i, 13, "unlucky"))).unwrap_err();
                let words = panic.downcast_ref::<String>().unwrap();
                assert!(words.contains("unlucky"), "{words}");
                assert_eq!(counts(10), [1; 10], "round {round}");
            }
        });
    }

    #[test]
    fn more_than_one_thread_takes_part() {
        with_threads(2, || {
            let mine = thread::current().id();
            let helped = AtomicBool::new(false);
            for _ in 0..200 {
                parallel_for(2, |_| {
                    helped.fetch_or(thread::current().id() != mine, Ordering::Relaxed);
                    thread::sleep(Duration::from_micros(100));
                });
            }
            assert!(helped.into_inner());
        });
    }
}
