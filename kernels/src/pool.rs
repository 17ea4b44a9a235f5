//! A fork-join pool for regions of a few microseconds.
//!
//! Decoding one token runs hundreds of small parallel regions, so handing one out must cost about a microsecond.
//! The workers therefore wait for the next region by spinning for a short while; then they sleep. The caller
//! takes tasks like any worker and never waits for a worker that has not begun: on a busy machine it simply does
//! more of the work itself.

use std::any::Any;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a worker spins for the next region before it sleeps.
const SPIN: Duration = Duration::from_micros(150);
/// More threads than this are never started.
const MAX_THREADS: usize = 256;
/// A thread that ran a region within this time counts as a caller that is at work.
const AT_WORK: Duration = Duration::from_millis(2);
/// How often a caller counts the other callers of its pool.
const COUNT_EVERY: Duration = Duration::from_millis(1);

/// A set of threads that run the parallel regions of the callers that [`install`](Pool::install) it.
///
/// Callers that install none share the pool of the process, whose size is [`set_threads`]. The workers start with the
/// first region that needs them, sleep while there is none, and end when the last clone of the pool is dropped.
///
/// ```
/// use fauna_kernels::pool::{Pool, threads};
/// let pool = Pool::new(3);
/// assert_eq!(pool.install(threads), 3);
/// ```
#[derive(Clone)]
pub struct Pool(Arc<Owner>);

/// The handles of a pool, counted apart from its workers, which hold [`Inner`] too.
struct Owner(Arc<Inner>);

impl Pool {
    /// A pool of `threads` threads, the caller's own included: at least 1, at most 256.
    pub fn new(threads: usize) -> Self {
        static POOLS: AtomicUsize = AtomicUsize::new(1);
        let number = POOLS.fetch_add(1, Ordering::Relaxed);
        Self(Arc::new(Owner(Arc::new(Inner::new(number, threads.clamp(1, MAX_THREADS))))))
    }

    /// The number of its threads, the caller's own included.
    pub fn threads(&self) -> usize {
        self.0.0.threads()
    }

    /// Runs `f`, all of whose regions run on this pool. Regions of threads that `f` starts do not.
    pub fn install<T>(&self, f: impl FnOnce() -> T) -> T {
        /// Puts the former pool back, also where `f` panics.
        struct Former(Option<Arc<Inner>>);
        impl Drop for Former {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _former = Former(CURRENT.replace(Some(self.0.0.clone())));
        f()
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::SeqCst);
        self.0.workers.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(Thread::unpark);
    }
}

/// The number of threads that [`parallel_for`] uses, the caller's own included: that of the installed [`Pool`], else
/// all cores or what [`set_threads`] set.
pub fn threads() -> usize {
    with_current(|pool| pool.threads())
}

/// Sets the number of threads of the pool of the process for all regions that begin from now on; 0 means all cores.
pub fn set_threads(n: usize) {
    GLOBAL.limit.store(n.min(MAX_THREADS), Ordering::Relaxed);
}

/// Calls `f(0)`, `f(1)`, … `f(tasks - 1)`, each once, in any order, on several threads; returns when all are done.
///
/// A region begun inside another runs on its caller's thread alone, and so does one begun while another caller's region
/// runs on the same pool. A region is given fewer workers the more callers are at work on the pool, and none where these
/// are as many as its threads: they would only take the cores of other callers.
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
    let alone = || (0..tasks).for_each(&f);
    if tasks <= 1 || INSIDE_A_REGION.get() {
        return alone();
    }
    let shared = with_current(|pool| {
        let threads = pool.threads();
        threads > 1 && {
            let others = CALLER.with_borrow_mut(|caller| caller.callers(&pool)) - 1;
            threads > 1 + others && pool.run(tasks, threads - others, &f)
        }
    });
    if !shared {
        alone();
    }
}

static GLOBAL: Inner = Inner::new(0, 0);

thread_local! {
    /// The pool that this thread installed; none for the pool of the process.
    static CURRENT: Cell<Option<Arc<Inner>>> = const { Cell::new(None) };
    /// Whether this thread is inside a region, whose own regions it runs alone.
    static INSIDE_A_REGION: Cell<bool> = const { Cell::new(false) };
    /// This thread as a caller of the pool it used last.
    static CALLER: RefCell<Caller> = RefCell::new(Caller::new());
}

/// Calls `f` with the pool of this thread.
fn with_current<T>(f: impl FnOnce(Place) -> T) -> T {
    match CURRENT.take() {
        None => f(Place::Process),
        Some(pool) => {
            CURRENT.set(Some(pool.clone()));
            f(Place::Own(pool))
        }
    }
}

/// A pool as its callers and workers hold it.
#[derive(Clone)]
enum Place {
    Process,
    Own(Arc<Inner>),
}

impl std::ops::Deref for Place {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        match self {
            Self::Process => &GLOBAL,
            Self::Own(pool) => pool,
        }
    }
}

/// When a thread last began a region, in nanoseconds since [`started`].
type LastRegion = Arc<Line<AtomicU64>>;

/// A thread that runs regions.
struct Caller {
    /// The pool's number, and this thread's entry in its list of callers.
    entry: Option<(usize, LastRegion)>,
    /// How many callers were at work when they were counted, this one included, and when that was.
    at_work: usize,
    counted: u64,
}

impl Caller {
    fn new() -> Self {
        Self { entry: None, at_work: 1, counted: 0 }
    }

    /// How many callers of `pool` are at work, this one included.
    fn callers(&mut self, pool: &Inner) -> usize {
        let now = started().elapsed().as_nanos() as u64;
        match &self.entry {
            Some((number, last)) if *number == pool.number => {
                last.0.store(now, Ordering::Relaxed);
                if now - self.counted < COUNT_EVERY.as_nanos() as u64 {
                    return self.at_work;
                }
            }
            _ => {
                let last = LastRegion::new(Line(AtomicU64::new(now)));
                pool.callers.lock().unwrap_or_else(PoisonError::into_inner).push(last.clone());
                self.entry = Some((pool.number, last));
            }
        }
        let mut callers = pool.callers.lock().unwrap_or_else(PoisonError::into_inner);
        // Of a thread that has ended, or has gone over to another pool, the list holds the only reference.
        callers.retain(|last| Arc::strong_count(last) > 1);
        let since = now.saturating_sub(AT_WORK.as_nanos() as u64);
        self.at_work = callers.iter().filter(|last| last.0.load(Ordering::Relaxed) >= since).count().max(1);
        self.counted = now;
        self.at_work
    }
}

/// The moment that callers count from.
fn started() -> Instant {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    *STARTED.get_or_init(Instant::now)
}

/// The bits of [`Inner::state`]: how many workers are inside the region, whether it may be entered, its number.
const INSIDE: usize = 0xffff;
const OPEN: usize = 0x1_0000;
const REGION: usize = 0x2_0000;

/// Keeps what one thread writes often off the cache lines of its neighbours.
#[repr(align(128))]
struct Line<T>(T);

struct Inner {
    /// Tells the pool from every other of the process, whose pool is number 0.
    number: usize,
    /// The number of threads; 0 is all cores.
    limit: AtomicUsize,
    /// Whether a caller's region runs.
    owned: Line<AtomicBool>,
    /// Number of the region, whether it is open, and the workers inside it.
    state: Line<AtomicUsize>,
    /// The next task that no thread has taken.
    next: Line<AtomicUsize>,
    /// What to do; written by the owner while the region is closed and empty.
    region: UnsafeCell<Option<Region>>,
    workers: Mutex<Vec<Thread>>,
    /// Workers started so far.
    started: AtomicUsize,
    sleepers: Line<AtomicUsize>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    callers: Mutex<Vec<LastRegion>>,
    /// Whether the workers are to end.
    ended: AtomicBool,
}

/// The caller's closure, its type and lifetime forgotten, and the number of tasks.
#[derive(Clone, Copy)]
struct Region {
    data: *const (),
    call: unsafe fn(*const (), usize),
    tasks: usize,
    threads: usize,
}

// SAFETY: `region` is the only field that is neither `Send` nor `Sync`. It is written only by the thread that holds
// `owned`, and only while the region is closed with no worker inside; it is read only by threads inside, whose entry
// synchronises with the owner's opening it (release store, acquire load of `state`). The closure behind it is `Sync`,
// and its caller waits until every worker has left.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}
/// The panic of a task leaves the pool as any end of a region does.
impl std::panic::RefUnwindSafe for Inner {}

impl Inner {
    const fn new(number: usize, threads: usize) -> Self {
        Self {
            number,
            limit: AtomicUsize::new(threads),
            owned: Line(AtomicBool::new(false)),
            state: Line(AtomicUsize::new(0)),
            next: Line(AtomicUsize::new(0)),
            region: UnsafeCell::new(None),
            workers: Mutex::new(Vec::new()),
            started: AtomicUsize::new(0),
            sleepers: Line(AtomicUsize::new(0)),
            panic: Mutex::new(None),
            callers: Mutex::new(Vec::new()),
            ended: AtomicBool::new(false),
        }
    }

    fn threads(&self) -> usize {
        static CORES: OnceLock<usize> = OnceLock::new();
        match self.limit.load(Ordering::Relaxed) {
            0 => {
                *CORES.get_or_init(|| thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS)))
            }
            n => n,
        }
    }

    /// Takes tasks until none is left. Never unwinds: the first panic is kept for the owner, and ends the region.
    fn work(&self, region: Region) {
        let done = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.0.fetch_add(1, Ordering::Relaxed);
                if task >= region.tasks {
                    break;
                }
                // SAFETY: `data` is the closure that `call` was made for; its owner keeps it alive until every thread
                // inside the region has left.
                unsafe { (region.call)(region.data, task) };
            }
        }));
        if let Err(panic) = done {
            self.next.0.store(region.tasks, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    /// Waits for a region that it has not seen, enters it, takes tasks and leaves, until the pool ends.
    fn serve(&self, number: usize) {
        INSIDE_A_REGION.set(true);
        let mut seen = 0;
        while let Some(state) = self.wait_for_change(seen) {
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

    /// The state once it shows another region than `seen`: spins, then sleeps. None if the pool has ended.
    fn wait_for_change(&self, seen: usize) -> Option<usize> {
        let changed = || {
            let state = self.state.0.load(Ordering::Acquire);
            (state & !(INSIDE | OPEN) != seen).then_some(state)
        };
        loop {
            let begin = Instant::now();
            while begin.elapsed() < SPIN {
                for _ in 0..64 {
                    if let Some(state) = changed() {
                        return Some(state);
                    }
                    std::hint::spin_loop();
                }
                // Where others need this core, they get it; where none does, this returns at once.
                thread::yield_now();
            }
            // Either the owner sees this sleeper, or the sleeper sees the owner's region, or the end: all are SeqCst.
            self.sleepers.0.fetch_add(1, Ordering::SeqCst);
            let state = self.state.0.load(Ordering::SeqCst);
            let ended = self.ended.load(Ordering::SeqCst);
            if state & !(INSIDE | OPEN) == seen && !ended {
                thread::park();
            }
            self.sleepers.0.fetch_sub(1, Ordering::SeqCst);
            if self.ended.load(Ordering::SeqCst) {
                return None;
            }
        }
    }
}

impl Place {
    /// Runs the tasks with the workers' help; false, having done nothing, if the pool is in use.
    fn run<F: Fn(usize) + Sync>(&self, tasks: usize, threads: usize, f: &F) -> bool {
        if self.owned.0.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
            return false;
        }
        let region = Region { data: (f as *const F).cast(), call: call::<F>, tasks, threads };
        self.next.0.store(0, Ordering::Relaxed);
        // SAFETY: this thread holds `owned`, and the previous owner left the region closed and empty.
        unsafe { *self.region.get() = Some(region) };
        let closed = self.state.0.load(Ordering::Relaxed);
        self.state.0.store(closed.wrapping_add(REGION) | OPEN, Ordering::SeqCst);
        if self.started.load(Ordering::Relaxed) + 1 < threads || self.sleepers.0.load(Ordering::SeqCst) > 0 {
            self.wake(threads);
        }
        INSIDE_A_REGION.set(true);
        self.work(region);
        INSIDE_A_REGION.set(false);
        // No worker may enter any more; those inside still use `f`, so this function must not return before they leave.
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

    /// Starts the workers that are missing and wakes those that sleep.
    #[cold]
    fn wake(&self, threads: usize) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        while workers.len() + 1 < threads {
            let (number, pool) = (workers.len() + 1, self.clone());
            let name = format!("fauna-{number}");
            // A system that refuses a thread still gets the right answer, on fewer.
            match thread::Builder::new().name(name).spawn(move || pool.serve(number)) {
                Ok(handle) => workers.push(handle.thread().clone()),
                Err(_) => break,
            }
        }
        self.started.store(workers.len(), Ordering::Relaxed);
        workers.iter().take(threads - 1).for_each(Thread::unpark);
    }
}

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

    #[test]
    fn an_installed_pool_has_threads_of_its_own_which_end_with_it() {
        let pool = Pool::new(3);
        let seen = Mutex::new(std::collections::BTreeSet::new());
        let run = || {
            parallel_for(64, |_| {
                seen.lock().unwrap().insert(format!("{:?}", thread::current().id()));
                thread::sleep(Duration::from_micros(100));
            });
        };
        assert_eq!(pool.install(threads), 3);
        pool.install(run);
        assert!((2..=3).contains(&seen.lock().unwrap().len()));
        let inner = Arc::downgrade(&pool.0.0);
        drop(pool);
        let begin = Instant::now();
        while inner.strong_count() > 0 && begin.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(inner.strong_count(), 0, "the workers hold the pool until they end");
    }

    #[test]
    fn the_former_pool_is_back_after_a_panic() {
        let (outer, inner) = (Pool::new(2), Pool::new(5));
        outer.install(|| {
            let panic = catch_unwind(|| inner.install(|| panic!("inside")));
            assert!(panic.is_err());
            assert_eq!(threads(), 2);
        });
    }

    #[test]
    fn a_region_has_as_many_workers_as_other_callers_leave() {
        let pool = Pool::new(2);
        let helped = || {
            let mine = thread::current().id();
            let others = AtomicUsize::new(0);
            for _ in 0..200 {
                parallel_for(2, |_| {
                    others.fetch_add(usize::from(thread::current().id() != mine), Ordering::Relaxed);
                    thread::sleep(Duration::from_micros(50));
                });
            }
            others.into_inner() > 0
        };
        assert!(pool.install(helped));
        // Another caller, at work from now on.
        let other = LastRegion::new(Line(AtomicU64::new(u64::MAX)));
        pool.0.0.callers.lock().unwrap().push(other.clone());
        thread::sleep(2 * COUNT_EVERY);
        assert!(!pool.install(helped));
        drop(other);
        thread::sleep(2 * COUNT_EVERY);
        assert!(pool.install(helped));
    }
}
