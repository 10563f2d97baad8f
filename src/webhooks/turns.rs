//! Where an HTTP/1.1 connection stands between its requests.
//!
//! hyper's time for a head runs from the end of the last answer, so it closes a connection that rests. An API server keeps
//! such a one for 90 s, and loses the request that it writes just as we close it: HTTP/1.1 has no word for "not taken", and a
//! POST is not sent again. So a connection may rest for longer than that, and a head that has begun must come soon.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::{Instant, sleep_until};

use super::server::{Limits, now};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// Nothing has come since then.
    Rests(Instant),
    /// Some of a head has come since then.
    Asks(Instant),
    /// A request is being answered.
    Answers,
}

/// The turns of one connection. Clones are handles on the same.
#[derive(Clone, Debug)]
pub(super) struct Turns(Arc<Mutex<Turn>>);

impl Turns {
    pub(super) fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Turn::Rests(now))))
    }

    /// Bytes have come.
    pub(super) fn heard(&self, now: Instant) {
        let mut turn = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*turn, Turn::Rests(_)) {
            *turn = Turn::Asks(now);
        }
    }

    /// The head of a request is there.
    pub(super) fn asked(&self) {
        self.set(Turn::Answers);
    }

    /// It has its answer.
    pub(super) fn answered(&self, now: Instant) {
        self.set(Turn::Rests(now));
    }

    fn set(&self, next: Turn) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = next;
    }

    /// Until when it may go on as it stands, looked at then; `None` if it is over.
    fn until(&self, now: Instant, limits: &Limits) -> Option<Instant> {
        // A head may begin at any time, and is looked for as often as one may take.
        let soon = now + limits.head;
        let over = match *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Turn::Rests(since) => since + limits.idle,
            Turn::Asks(since) => since + limits.head,
            Turn::Answers => soon,
        };
        (over > now).then_some(over.min(soon))
    }

    /// Resolves when it has rested, or a head has taken, for too long.
    pub(super) async fn over(self, limits: Limits) {
        while let Some(until) = self.until(now(), &limits) {
            sleep_until(until).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_connection_may_rest_for_longer_than_a_head_may_take() {
        let limits = Limits { head: Duration::from_secs(5), idle: Duration::from_secs(120), ..Limits::default() };
        let start = now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let turns = Turns::new(start);
        assert_eq!(turns.until(at(6), &limits), Some(at(11)), "it rests");
        assert_eq!(turns.until(at(118), &limits), Some(at(120)));
        assert_eq!(turns.until(at(120), &limits), None);
        turns.heard(at(60));
        turns.heard(at(64));
        assert_eq!((turns.until(at(64), &limits), turns.until(at(65), &limits)), (Some(at(65)), None));
        turns.asked();
        turns.heard(at(66));
        assert_eq!(turns.until(at(600), &limits), Some(at(605)), "its answer has a limit of its own");
        turns.answered(at(600));
        assert_eq!((turns.until(at(719), &limits), turns.until(at(720), &limits)), (Some(at(720)), None));
    }
}
