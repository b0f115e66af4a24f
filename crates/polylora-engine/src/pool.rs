//! Threads that stay, and the ways in which they may share a matrix.
#![allow(unsafe_code)] // Lending borrowed data to other threads: see SAFETY below.

use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

/// Threads that wait for work without sleeping as long as it comes in quick succession: a token
/// takes some two hundred rounds of a few microseconds to a millisecond each.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Counts the rounds.
    round: AtomicUsize,
    /// Workers that are at the job; counted up under the lock of `job`, while that is there.
    running: AtomicUsize,
    /// The job of the round, until all of it is taken.
    job: Mutex<Option<Job>>,
    /// For workers that have waited long.
    asleep: Mutex<usize>,
    wake: Condvar,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A closure that takes a thread's number; it outlives the round.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(usize) + Sync));

// SAFETY: what it points to is `Sync`, and `Pool::round` keeps it alive until every worker is done
// with it.
unsafe impl Send for Job {}

/// Looks at the round's number before a thread sleeps: some 50 microseconds, more than lies
/// between two rounds of one token, less than anyone notices in an idle process.
const SPINS: u32 = 20_000;

impl Pool {
    /// As many threads, the calling one among them.
    pub(crate) fn new(threads: usize) -> std::io::Result<Pool> {
        let shared = Arc::new(Shared {
            round: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            job: Mutex::new(None),
            asleep: Mutex::new(0),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
        });
        let mut pool = Pool { shared, workers: Vec::new() };
        for number in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new().name(format!("polylora-{number}"));
            pool.workers.push(thread.spawn(move || shared.work(number))?);
        }
        Ok(pool)
    }

    /// How many threads there are.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job` on this thread and on those that come before it is done here, with the thread's
    /// number. A worker that the system lets wait misses the round, and nobody waits for it.
    fn round(&self, job: &(dyn Fn(usize) + Sync)) {
        if self.workers.is_empty() {
            return job(0);
        }
        let shared = &self.shared;
        // SAFETY: the lifetime is lengthened only until the end of this function, which does not
        // return (nor unwind) before the job is taken back and `running` is zero: a worker counts
        // itself in while the job is there, and does not touch it after it has counted itself out.
        let job_here = unsafe {
            std::mem::transmute::<
                *const (dyn Fn(usize) + Sync + '_),
                *const (dyn Fn(usize) + Sync + 'static),
            >(job)
        };
        *lock(&shared.job) = Some(Job(job_here));
        shared.round.fetch_add(1, Ordering::SeqCst);
        if *lock(&shared.asleep) > 0 {
            shared.wake.notify_all();
        }
        let here = catch_unwind(AssertUnwindSafe(|| job(0)));
        *lock(&shared.job) = None;
        let mut spins = 0;
        while shared.running.load(Ordering::Acquire) > 0 {
            pause(&mut spins);
        }
        let there = lock(&shared.panic).take();
        if let Some(panic) = here.err().or(there) {
            resume_unwind(panic);
        }
    }

    /// Runs `job` once for each item, on any threads; the job is told the thread's number. Items are
    /// begun in their order, so that a job may wait for what one before it does.
    pub(crate) fn for_each<T: Send>(&self, items: &mut [T], job: impl Fn(usize, &mut T) + Sync) {
        struct Items<T>(*mut T);
        // SAFETY: the pointer is shared only to take each item once, and items are `Send`.
        unsafe impl<T: Send> Sync for Items<T> {}
        impl<T> Items<T> {
            fn at(&self, index: usize) -> *mut T {
                // SAFETY: the caller's index is less than the length of the slice.
                unsafe { self.0.add(index) }
            }
        }

        let (count, all) = (items.len(), Items(items.as_mut_ptr()));
        let next = AtomicUsize::new(0);
        let work = |thread: usize| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return;
                }
                // SAFETY: the counter gives each index below `count` to one thread only, so this
                // is the only reference to the item, within the borrow of `items`.
                job(thread, unsafe { &mut *all.at(index) });
            }
        };
        match count {
            0 => {}
            1 => work(0),
            _ => self.round(&work),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.round.fetch_add(1, Ordering::SeqCst);
        drop(lock(&self.shared.asleep));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, number: usize) {
        let mut seen = 0;
        loop {
            seen = self.round_after(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if let Some(Job(job)) = self.take_part() {
                // SAFETY: `Pool::round` waits for `running`, which is counted down below.
                let job = unsafe { &*job };
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job(number))) {
                    *lock(&self.panic) = Some(panic);
                }
                self.running.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// The job, if it is still there; counts this worker in.
    fn take_part(&self) -> Option<Job> {
        let job = lock(&self.job);
        if job.is_some() {
            self.running.fetch_add(1, Ordering::Relaxed);
        }
        *job
    }

    /// Waits for a round after `seen`; returns its number.
    fn round_after(&self, seen: usize) -> usize {
        for _ in 0..SPINS {
            let round = self.round.load(Ordering::Acquire);
            if round != seen {
                return round;
            }
            std::hint::spin_loop();
        }
        let mut asleep = lock(&self.asleep);
        *asleep += 1;
        while self.round.load(Ordering::SeqCst) == seen {
            asleep = self.wake.wait(asleep).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        *asleep -= 1;
        self.round.load(Ordering::SeqCst)
    }
}

/// Spins, and after a while lets others have the processor: there may be fewer than threads.
pub(crate) fn pause(spins: &mut u32) {
    *spins += 1;
    if *spins < SPINS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// Nothing is left half-done under these locks, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Some rows and some columns of a matrix that nobody else has.
pub(crate) struct Tile<'a> {
    /// The first value of the first row.
    first: *mut f32,
    /// From one row to the next.
    stride: usize,
    rows: usize,
    columns: usize,
    matrix: PhantomData<&'a mut [f32]>,
}

// SAFETY: a tile is as good as a mutable slice of its values.
unsafe impl Send for Tile<'_> {}

impl Tile<'_> {
    /// The tile's part of its `row`th row.
    pub(crate) fn row(&mut self, row: usize) -> &mut [f32] {
        assert!(row < self.rows);
        // SAFETY: `tiles` made sure that rows and columns lie within the matrix and belong to no
        // other tile; the borrow of `self` keeps this one's rows apart in time.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * self.stride), self.columns) }
    }

    /// Fills it with the values of a matrix of its size.
    pub(crate) fn fill(&mut self, values: &[f32]) {
        assert_eq!(values.len(), self.rows * self.columns);
        for (row, values) in values.chunks_exact(self.columns.max(1)).enumerate() {
            self.row(row).copy_from_slice(values);
        }
    }
}

/// Cuts a matrix of rows of `stride` values into tiles: bands of rows, in order and apart from
/// each other, times columns of the given widths, from the left on. Band after band.
///
/// # Panics
/// Where bands overlap, or either reaches beyond the matrix.
pub(crate) fn tiles<'a>(
    matrix: &'a mut [f32],
    stride: usize,
    bands: &[Range<usize>],
    widths: &[usize],
) -> Vec<Tile<'a>> {
    assert!(widths.iter().sum::<usize>() <= stride);
    let mut end = 0;
    for band in bands {
        assert!(band.start >= end && band.start <= band.end);
        end = band.end;
    }
    assert!(end * stride <= matrix.len());
    let base = matrix.as_mut_ptr();
    let mut tiles = Vec::with_capacity(bands.len() * widths.len());
    for band in bands {
        let mut column = 0;
        for &columns in widths {
            // SAFETY: within the matrix, as asserted above (at its end for a band of no rows).
            let first = unsafe { base.add((band.start * stride + column).min(matrix.len())) };
            tiles.push(Tile { first, stride, rows: band.len(), columns, matrix: PhantomData });
            column += columns;
        }
    }
    tiles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_taken_once() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            for count in [0, 1, 2, 1000] {
                let mut items = vec![0; count];
                pool.for_each(&mut items, |thread, item| {
                    assert!(thread < threads);
                    *item += 1;
                });
                assert_eq!(items, vec![1; count]);
            }
        }
    }

    #[test]
    fn a_panic_comes_out_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.for_each(&mut [0; 64], |_, item| {
                *item = 1;
                panic!("as asked");
            });
        }));
        assert_eq!(*caught.unwrap_err().downcast::<&str>().unwrap(), "as asked");
        let mut items = [0; 64];
        pool.for_each(&mut items, |_, item| *item = 1);
        assert_eq!(items, [1; 64]);
    }

    #[test]
    fn sleepers_wake_up() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let mut items = [0; 8];
            pool.for_each(&mut items, |_, item| *item = 1);
            assert_eq!(items, [1; 8]);
        }
    }

    #[test]
    fn tiles_cover_what_they_are_asked_to() {
        let pool = Pool::new(2).unwrap();
        let mut matrix = vec![0.0; 4 * 5];
        let mut parts: Vec<(usize, Tile<'_>)> =
            tiles(&mut matrix, 5, &[0..1, 2..4], &[2, 3]).into_iter().enumerate().collect();
        pool.for_each(&mut parts, |_, (number, tile)| {
            for row in 0..if *number < 2 { 1 } else { 2 } {
                tile.row(row).fill(*number as f32 + 1.0);
            }
        });
        drop(parts);
        let rows: Vec<&[f32]> = matrix.chunks(5).collect();
        assert_eq!(rows[0], [1.0, 1.0, 2.0, 2.0, 2.0]);
        assert_eq!(rows[1], [0.0; 5]);
        assert_eq!(rows[2], [3.0, 3.0, 4.0, 4.0, 4.0]);
        assert_eq!(rows[3], rows[2]);
    }

    #[test]
    #[should_panic]
    fn a_tile_has_no_more_rows_than_its_band() {
        let mut matrix = vec![0.0; 4];
        let band = 0..1;
        tiles(&mut matrix, 2, std::slice::from_ref(&band), &[2])[0].row(1);
    }
}
