//! What simulations share: virtual time with a queue of what happens in it, and clocks that run at rates of their own.

use std::{cmp::Ordering, collections::BinaryHeap, time::Duration};

use fastrand::Rng;
use leasehold::protocol::moment::Moment;

/// Global time in microseconds.
pub(crate) type Global = u64;

/// A millisecond of global time.
pub(crate) const MILLI: Global = 1_000;

/// A second of global time.
pub(crate) const SECOND: Global = 1_000 * MILLI;

/// What is to happen, in the order of time; at one time, in the order in which it was put in.
pub(crate) struct Timeline<T> {
    pub(crate) now: Global,
    next: u64,
    queue: BinaryHeap<Queued<T>>,
}

impl<T> Timeline<T> {
    pub(crate) fn new() -> Self {
        Self { now: 0, next: 0, queue: BinaryHeap::new() }
    }

    /// A number that no other call returned.
    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn at(&mut self, at: Global, what: T) {
        let number = self.number();
        self.queue.push(Queued(at, number, what));
    }

    /// The next thing that happens until then; time goes on to it, or to `until` if there is none.
    pub(crate) fn pop(&mut self, until: Global) -> Option<T> {
        if self.queue.peek().is_none_or(|queued| queued.0 > until) {
            self.now = self.now.max(until);
            return None;
        }
        let Queued(at, _, what) = self.queue.pop()?;
        self.now = self.now.max(at);
        Some(what)
    }
}

struct Queued<T>(Global, u64, T);

impl<T> PartialEq for Queued<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl<T> Eq for Queued<T> {}
impl<T> PartialOrd for Queued<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<T> Ord for Queued<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.0, other.1).cmp(&(self.0, self.1))
    }
}

/// A process's clock: it has an origin of its own, and does not run as fast as global time.
#[derive(Clone, Copy)]
pub(crate) struct SkewedClock {
    origin: u64,
    /// Parts of a million.
    rate: u64,
}

const MILLION: u64 = 1_000_000;

impl SkewedClock {
    /// Two of them differ by 1.8 % at the most; the margin of a grant covers 2 %.
    pub(crate) fn drawn(rng: &mut Rng) -> Self {
        // The extremes are what margins are for.
        let rate = match rng.u8(0..4) {
            0 => 991_000,
            1 => 1_009_000,
            _ => rng.u64(991_000..=1_009_000),
        };
        Self { origin: rng.u64(0..1_000_000 * SECOND), rate }
    }

    pub(crate) fn read(&self, now: Global) -> Moment {
        Moment::after_origin(Duration::from_micros(self.origin + now * self.rate / MILLION))
    }

    /// How long a duration of this clock is: a little longer rather than shorter, and an hour at the most.
    pub(crate) fn global(&self, duration: Duration) -> Global {
        let micros = u64::try_from(duration.min(Duration::from_secs(3600)).as_micros()).unwrap();
        (micros + 1) * MILLION / self.rate + 1
    }

    /// How long it is until the clock shows `at`; zero if it does already.
    pub(crate) fn until(&self, at: Moment, now: Global) -> Global {
        match at.since(self.read(now)) {
            Duration::ZERO => 0,
            wait => self.global(wait),
        }
    }
}
